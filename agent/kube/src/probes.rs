use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::read::{Container, PodSpec};

/// The ports of the pod that kubelet dials: for startup, liveness and readiness, and for lifecycle hooks. `None`
/// where no container is listed, as in a pod by hand: nobody says then which they are.
pub(crate) fn ports(spec: &PodSpec) -> Option<BTreeSet<u16>> {
    let containers = spec.containers.as_ref().filter(|containers| !containers.is_empty())?;
    let containers = containers.iter().chain(spec.init_containers.iter().flatten());
    Some(containers.flat_map(of).collect())
}

fn of(container: &Container) -> impl Iterator<Item = u16> {
    let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
    let probed = probes.into_iter().flatten().flat_map(|probe| {
        let http = probe.http_get.as_ref().map(|http| &http.port);
        let tcp = probe.tcp_socket.as_ref().map(|tcp| &tcp.port);
        let grpc = probe.grpc.as_ref().and_then(|grpc| u16::try_from(grpc.port).ok());
        http.into_iter().chain(tcp).filter_map(|port| number(container, port)).chain(grpc)
    });
    let hooks = container.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let hooked = hooks.flatten().flat_map(|hook| {
        let http = hook.http_get.as_ref().map(|http| &http.port);
        let tcp = hook.tcp_socket.as_ref().map(|tcp| &tcp.port);
        http.into_iter().chain(tcp).filter_map(|port| number(container, port))
    });
    probed.chain(hooked)
}

/// A name is one of the container's own ports. What is no port kubelet can't dial either.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.as_deref().unwrap_or_default();
            ports.iter().find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    fn ports_of(spec: serde_json::Value) -> Option<Vec<u16>> {
        super::ports(&serde_json::from_value(spec).unwrap()).map(|ports| ports.into_iter().collect())
    }

    #[test]
    fn every_kind_of_probe_counts() {
        let container = json!({
            "name": "web", "ports": [{"name": "health", "containerPort": 9001}],
            "startupProbe": {"tcpSocket": {"port": 9000}},
            "livenessProbe": {"httpGet": {"port": "health"}},
            "readinessProbe": {"grpc": {"port": 9002}},
            "lifecycle": {"preStop": {"httpGet": {"port": 9003}}, "postStart": {"exec": {"command": ["true"]}}},
        });
        let sidecar =
            json!({"name": "s", "restartPolicy": "Always", "livenessProbe": {"tcpSocket": {"port": 9004}}});
        let spec = json!({"containers": [container], "initContainers": [sidecar]});
        assert_eq!(ports_of(spec), Some(vec![9000, 9001, 9002, 9003, 9004]));
    }

    #[test]
    fn a_pod_without_probes_is_dialled_nowhere() {
        assert_eq!(ports_of(json!({"containers": [{"name": "web"}]})), Some(vec![]));
        let exec = json!({"name": "web", "livenessProbe": {"exec": {"command": ["true"]}}});
        assert_eq!(ports_of(json!({"containers": [exec]})), Some(vec![]));
    }

    #[test]
    fn of_a_pod_by_hand_nobody_knows() {
        assert_eq!(ports_of(json!({"containers": []})), None);
    }

    #[test]
    fn what_is_no_port_is_left_out() {
        let probe =
            |port| json!({"containers": [{"name": "web", "livenessProbe": {"tcpSocket": {"port": port}}}]});
        assert_eq!(ports_of(probe(json!("nobody-knows-it"))), Some(vec![]));
        assert_eq!(ports_of(probe(json!(70_000))), Some(vec![]));
        assert_eq!(ports_of(probe(json!(0))), Some(vec![]));
    }
}
