use std::net::IpAddr;
use std::path::Path;

use orlop_model::Text;
use orlop_model::world::{Labels, Owner, Phase, Pod, Port, Protocol};

use crate::field::{FieldError, FieldPath, address, port, protocol};
use crate::metadata::{namespaced, subdomain};
use crate::probes;
use crate::read;

const NETNS: &str = "orlop.dev/netns";
/// Of the object that kubelet makes of a static pod: the hash that is the pod's UID on its node. Nobody can change it
/// once the object is there.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Label of nodes.
const OS: &str = "kubernetes.io/os";

/// Converts a `v1` Pod whose author also runs the node, as in a world directory, and so may say by annotation
/// where its network namespace is.
pub(crate) fn convert_trusted(mut pod: read::Pod) -> Result<Pod, FieldError> {
    let netns = pod.metadata.annotations.as_mut().and_then(|annotations| annotations.remove(NETNS));
    let mut pod = convert(pod)?;
    if let Some(netns) = netns {
        if !Path::new(&netns).is_absolute() {
            let path = FieldPath::from("metadata.annotations").key(NETNS);
            let problem = format!("{netns:?} is not an absolute path, such as /run/netns/web");
            return Err(FieldError::new(path, problem));
        }
        pod.annotations.insert(NETNS, netns);
    }
    Ok(pod)
}

/// Converts a `v1` Pod.
pub(crate) fn convert(pod: read::Pod) -> Result<Pod, FieldError> {
    let name = namespaced(&pod.metadata)?;
    let metadata = pod.metadata;
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let phase = phase(status.phase.as_deref())?;
    let service_account = spec.service_account_name.clone().filter(|account| !account.is_empty());
    let service_account = service_account.unwrap_or_else(|| "default".to_owned());
    subdomain(&service_account, "spec.serviceAccountName")?;
    Ok(Pod {
        name,
        uid: uid_on_node(&metadata, &status).into(),
        claim: claim(&metadata).filter(|_| !has_address(&status)).map(Text::from),
        labels: metadata.labels.unwrap_or_default(),
        // No other is read, and there may be much in them. Never the network namespace: in a cluster anyone who may make a pod
        // may write it, and could name the node's own.
        annotations: Labels::new(),
        node: given(&spec.node_name),
        hostname: given(&spec.hostname),
        subdomain: given(&spec.subdomain),
        service_account: service_account.into(),
        addresses: addresses(&status)?.into(),
        host_network: spec.host_network.unwrap_or(false),
        windows: is_windows(&spec),
        phase,
        ready: ready(&status, phase),
        terminating: metadata.deletion_timestamp.is_some(),
        owner: owner(metadata.owner_references),
        container_ports: container_ports(&spec)?,
        probed: probes::ports(&spec),
    })
}

/// The UID by which kubelet knows a pod, its cgroup and its volumes: of a static pod not its object's. Anybody who may
/// make pods may claim to have a static pod's (no other pod's: those are UUIDs), but no address is in the status of an
/// object that is not kubelet's.
fn uid_on_node<'a>(metadata: &'a read::Metadata, status: &read::PodStatus) -> &'a str {
    claim(metadata).filter(|_| has_address(status)).or(metadata.uid.as_deref()).unwrap_or_default()
}

/// The UID of a static pod that an object claims to be.
fn claim(metadata: &read::Metadata) -> Option<&str> {
    let mirror = metadata.annotations.as_ref()?.get(MIRROR)?;
    (mirror.len() == 32 && mirror.bytes().all(|b| b.is_ascii_hexdigit())).then_some(mirror)
}

fn has_address(status: &read::PodStatus) -> bool {
    status.pod_ips.as_ref().is_some_and(|addresses| !addresses.is_empty())
}

/// What kubelet and the scheduler go by.
fn is_windows(spec: &read::PodSpec) -> bool {
    let selected = spec.node_selector.as_ref().and_then(|labels| labels.get(OS));
    let named = spec.os.as_ref().map(|os| os.name.as_str());
    [named, selected.map(Text::as_str)].contains(&Some("windows"))
}

fn given(text: &Option<String>) -> Option<Text> {
    text.as_deref().filter(|text| !text.is_empty()).map(Text::from)
}

/// Whether a pod of this phase runs no more, and never will.
pub(crate) fn has_ended(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn phase(phase: Option<&str>) -> Result<Phase, FieldError> {
    match phase {
        Some("Pending") => Ok(Phase::Pending),
        None | Some("" | "Running") => Ok(Phase::Running),
        Some("Succeeded") => Ok(Phase::Succeeded),
        Some("Failed") => Ok(Phase::Failed),
        Some("Unknown") => Ok(Phase::Unknown),
        Some(other) => {
            let problem = format!("{other:?} is not Pending, Running, Succeeded, Failed or Unknown");
            Err(FieldError::new("status.phase", problem))
        }
    }
}

fn addresses(status: &read::PodStatus) -> Result<Vec<IpAddr>, FieldError> {
    let listed = status.pod_ips.iter().flatten().enumerate();
    let mut found = listed
        .filter(|(_, entry)| !entry.ip.is_empty())
        .map(|(index, entry)| address(&entry.ip, || FieldPath::from("status.podIPs").index(index).key("ip")))
        .collect::<Result<Vec<_>, _>>()?;
    if let (true, Some(single)) = (found.is_empty(), status.pod_ip.as_deref().filter(|ip| !ip.is_empty())) {
        found.push(address(single, || "status.podIP".into())?);
    }
    Ok(found)
}

/// The kubelet always writes the condition; whoever writes a pod by hand need not.
fn ready(status: &read::PodStatus, phase: Phase) -> bool {
    let condition = status.conditions.iter().flatten().find(|condition| condition.kind == "Ready");
    condition.map_or(phase == Phase::Running, |condition| condition.status == "True")
}

fn owner(references: Option<Vec<read::OwnerReference>>) -> Option<Owner> {
    let controller = references?.into_iter().find(|owner| owner.controller == Some(true))?;
    Some(Owner { kind: controller.kind.into(), name: controller.name.into() })
}

/// Those of containers that keep running, so of init containers only the ones restarted always.
fn container_ports(spec: &read::PodSpec) -> Result<Box<[Port]>, FieldError> {
    let containers =
        spec.containers.iter().flatten().enumerate().map(|(index, c)| ("spec.containers", index, c));
    let init = spec.init_containers.iter().flatten().enumerate();
    let sidecars = init
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| ("spec.initContainers", index, container));
    let mut found = Vec::new();
    for (list, index, container) in containers.chain(sidecars) {
        for (port_index, entry) in container.ports.iter().flatten().enumerate() {
            let path =
                |field: &str| FieldPath::from(list).index(index).key("ports").index(port_index).key(field);
            if protocol(entry.protocol.as_deref(), || path("protocol"))? == Protocol::Tcp {
                let number = port(entry.container_port, || path("containerPort"))?;
                found.push(Port { name: entry.name.as_deref().unwrap_or_default().into(), number });
            }
        }
    }
    Ok(found.into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let pod = pod(json!({
            "metadata": {
                "name": "web-5d4f8-x", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"},
                "annotations": {
                    "orlop.dev/netns": "/run/netns/web", "ambient.istio.io/redirection": "enabled",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}", "notistio.io/x": "y",
                },
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8", "uid": "2", "controller": true},
                ],
            },
            "spec": {
                "nodeName": "one", "serviceAccountName": "till", "hostname": "web-0", "subdomain": "web",
                "initContainers": [
                    {"name": "setup", "ports": [{"containerPort": 1}]},
                    {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 9000}]},
                ],
                "containers": [{"name": "web", "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ]}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "False"}],
            },
        }))
        .unwrap();
        assert_eq!(pod.name.to_string(), "shop/web-5d4f8-x");
        assert_eq!(
            (&*pod.uid, pod.node.as_deref(), pod.service_account.as_str()),
            ("u-1", Some("one"), "till")
        );
        assert_eq!((pod.hostname.as_deref(), pod.subdomain.as_deref()), (Some("web-0"), Some("web")));
        assert_eq!(*pod.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(pod.owner, Some(Owner { kind: "ReplicaSet".into(), name: "web-5d4f8".into() }));
        let ports: Vec<_> =
            pod.container_ports.iter().map(|port| (port.name.as_str(), port.number)).collect();
        assert_eq!(ports, [("http", 8080), ("", 9000)]);
        let kept: Vec<_> = pod.annotations.keys().map(Text::as_str).collect();
        assert_eq!(kept, ["orlop.dev/netns"]);
        assert!(!pod.ready && !pod.host_network && !pod.terminating);
    }

    #[test]
    fn a_pod_by_hand_runs_and_is_ready() {
        let pod = pod(json!({"metadata": {"name": "web"}, "status": {"podIP": "10.0.0.1"}})).unwrap();
        assert_eq!((pod.phase, pod.ready, pod.service_account.as_str()), (Phase::Running, true, "default"));
        assert_eq!(pod.addresses.len(), 1);
    }

    #[test]
    fn a_pending_pod_is_not_ready() {
        assert!(!pod(json!({"metadata": {"name": "web"}, "status": {"phase": "Pending"}})).unwrap().ready);
    }

    #[test]
    fn a_static_pod_has_the_uid_that_its_node_knows() {
        const HASH: &str = "0f3a9c1e5b7d2468ace013579bdf8642";
        let made = |mirror: &str, status: Value| {
            let annotations =
                json!({"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": mirror});
            let metadata = json!({"name": "web-n1", "uid": "u-1", "annotations": annotations});
            pod(json!({"metadata": metadata, "status": status})).unwrap()
        };
        let uid = |mirror: &str, status: Value| made(mirror, status).uid.to_string();
        let has_started = || json!({"podIPs": [{"ip": "10.0.0.1"}]});
        assert_eq!(uid(HASH, has_started()), HASH);
        // Whoever may make pods may write the rest.
        assert_eq!(uid(HASH, json!({})), "u-1");
        assert_eq!(made(HASH, json!({})).claim.as_deref(), Some(HASH));
        assert_eq!(made(HASH, has_started()).claim, None);
        assert_eq!(made("8f3a1c52-7c0e-4a59-9d2c-3f0a6b1e2d4c", json!({})).claim, None);
        // The UID of another pod, which is no static one.
        assert_eq!(uid("8f3a1c52-7c0e-4a59-9d2c-3f0a6b1e2d4c", has_started()), "u-1");
        assert_eq!(uid("", has_started()), "u-1");
        assert!(pod(json!({"metadata": {"name": "web"}})).unwrap().uid.is_empty());
    }

    #[test]
    fn a_pod_for_windows_says_so() {
        let windows = |spec| pod(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap().windows;
        assert!(windows(json!({"os": {"name": "windows"}})));
        assert!(windows(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})));
        assert!(!windows(json!({"os": {"name": "linux"}, "nodeSelector": {"disk": "windows"}})));
        assert!(!windows(json!(null)));
    }

    #[test]
    fn in_a_cluster_a_pod_cannot_say_where_its_netns_is() {
        let annotations = [(NETNS.to_owned(), "/proc/1/ns/net".to_owned())].into();
        let mut pod = read::Pod::default();
        pod.metadata.name = Some("evil".into());
        pod.metadata.annotations = Some(annotations);
        assert_eq!(convert(pod).unwrap().annotations, Labels::new());
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |spec, status| {
            let object = json!({"metadata": {"name": "web"}, "spec": spec, "status": status});
            pod(object).unwrap_err().path.to_string()
        };
        assert_eq!(named(json!(null), json!({"podIPs": [{"ip": "10.0.0.300"}]})), "status.podIPs[0].ip");
        assert_eq!(named(json!(null), json!({"podIPs": [{"ip": "127.0.0.1"}]})), "status.podIPs[0].ip");
        assert_eq!(named(json!(null), json!({"podIP": "x"})), "status.podIP");
        assert_eq!(named(json!(null), json!({"phase": "Walking"})), "status.phase");
        assert_eq!(
            named(json!({"serviceAccountName": "a/b", "containers": []}), json!(null)),
            "spec.serviceAccountName"
        );
        let containers = json!({"containers": [{"name": "a", "ports": [{"containerPort": 65536}]}]});
        assert_eq!(named(containers, json!(null)), "spec.containers[0].ports[0].containerPort");
        let relative = json!({"metadata": {"name": "web", "annotations": {"orlop.dev/netns": "web"}}});
        assert_eq!(pod(relative).unwrap_err().path.to_string(), r#"metadata.annotations["orlop.dev/netns"]"#);
    }

    fn pod(mut object: Value) -> Result<Pod, FieldError> {
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Pod");
        convert_trusted(serde_json::from_value(object).unwrap())
    }
}
