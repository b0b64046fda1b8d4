use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as api;
use orlop_model::world::{Distribution, Service, ServicePort};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, address, host, port, protocol, target_port};
use crate::metadata::namespaced;
use crate::read::Metadata;

/// Istio's annotation for what `spec.trafficDistribution` says; it counts before that.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// What Kubernetes fills in.
const DEFAULT_AFFINITY: i32 = 10_800;
const MAX_AFFINITY: i32 = 86_400;

/// A `v1` Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Object {
    metadata: Metadata,
    spec: Option<api::ServiceSpec>,
    status: Option<api::ServiceStatus>,
}

/// Converts a Service.
pub(crate) fn convert(service: Object) -> Result<Service, FieldError> {
    let name = namespaced(&service.metadata)?;
    let spec = service.spec.unwrap_or_default();
    let annotated = distribution_annotation(service.metadata.annotations.as_ref())?;
    let path = || "spec.trafficDistribution".into();
    let distribution =
        annotated.map_or_else(|| distribution(spec.traffic_distribution.as_deref(), path), Ok)?;
    Ok(Service {
        name,
        labels: service.metadata.labels.unwrap_or_default(),
        cluster_ips: cluster_ips(&spec)?,
        external_ips: external_ips(&spec, service.status.as_ref())?,
        external_name: external_name(&spec)?,
        affinity: affinity(&spec)?,
        distribution,
        node_local: node_local(&spec)?,
        ports: ports(spec.ports.unwrap_or_default())?,
        selector: spec.selector.into_iter().flatten().collect(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

/// What a Service or ServiceEntry is annotated with.
pub(crate) fn distribution_annotation(
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Option<Distribution>, FieldError> {
    let path = || FieldPath::from("metadata.annotations").key(DISTRIBUTION);
    let annotated = annotations.and_then(|annotations| annotations.get(DISTRIBUTION));
    annotated.map(|text| distribution(Some(text), path)).transpose()
}

fn distribution(text: Option<&str>, path: impl FnOnce() -> FieldPath) -> Result<Distribution, FieldError> {
    match text {
        None | Some("" | "Any") => Ok(Distribution::Any),
        Some("PreferClose" | "PreferSameZone") => Ok(Distribution::Zone),
        Some("PreferSameNode") => Ok(Distribution::Node),
        Some(other) => {
            let problem = format!("{other:?} is not PreferClose, PreferSameZone, PreferSameNode or Any");
            Err(FieldError::new(path(), problem))
        }
    }
}

fn node_local(spec: &api::ServiceSpec) -> Result<bool, FieldError> {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => {
            let problem = format!("{other:?} is not Cluster or Local");
            Err(FieldError::new("spec.internalTrafficPolicy", problem))
        }
    }
}

fn affinity(spec: &api::ServiceSpec) -> Result<Option<Duration>, FieldError> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            let problem = format!("{other:?} is not ClientIP or None");
            return Err(FieldError::new("spec.sessionAffinity", problem));
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(DEFAULT_AFFINITY);
    match u64::try_from(seconds) {
        Ok(wanted @ 1..) if seconds <= MAX_AFFINITY => Ok(Some(Duration::from_secs(wanted))),
        _ => {
            let problem = format!("{seconds} is out of range: want 1 to {MAX_AFFINITY} seconds");
            Err(FieldError::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", problem))
        }
    }
}

fn external_name(spec: &api::ServiceSpec) -> Result<Option<String>, FieldError> {
    if spec.type_.as_deref() != Some("ExternalName") {
        return Ok(None);
    }
    host(spec.external_name.as_deref().unwrap_or_default(), || "spec.externalName".into()).map(Some)
}

/// A load balancer's address stands for the service unless it says that it wants to see the traffic itself.
fn external_ips(
    spec: &api::ServiceSpec,
    status: Option<&api::ServiceStatus>,
) -> Result<Vec<IpAddr>, FieldError> {
    let listed = spec.external_ips.iter().flatten().enumerate();
    let listed = listed.map(|(index, ip)| address(ip, || FieldPath::from("spec.externalIPs").index(index)));
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate();
    let own = ingress.filter(|(_, entry)| entry.ip_mode.as_deref() != Some("Proxy"));
    let balanced = own.filter_map(|(index, entry)| {
        let path = || FieldPath::from("status.loadBalancer.ingress").index(index).key("ip");
        entry.ip.as_deref().filter(|ip| !ip.is_empty()).map(|ip| address(ip, path))
    });
    listed.chain(balanced).collect()
}

fn cluster_ips(spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(Vec::new());
    }
    let is_address = |ip: &str| !ip.is_empty() && ip != "None";
    let listed = spec.cluster_ips.iter().flatten().enumerate().filter(|(_, ip)| is_address(ip));
    let mut found = listed
        .map(|(index, ip)| address(ip, || FieldPath::from("spec.clusterIPs").index(index)))
        .collect::<Result<Vec<_>, _>>()?;
    if let (None, Some(single)) = (&spec.cluster_ips, spec.cluster_ip.as_deref().filter(|ip| is_address(ip)))
    {
        found.push(address(single, || "spec.clusterIP".into())?);
    }
    Ok(found)
}

fn ports(ports: Vec<api::ServicePort>) -> Result<Vec<ServicePort>, FieldError> {
    let mut found: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for (index, entry) in ports.into_iter().enumerate() {
        let path = |field: &str| FieldPath::from("spec.ports").index(index).key(field);
        let converted = ServicePort {
            name: entry.name.unwrap_or_default(),
            number: port(entry.port, || path("port"))?,
            protocol: protocol(entry.protocol.as_deref(), || path("protocol"))?,
            target: target_port(entry.target_port, || path("targetPort"))?,
            app_protocol: entry.app_protocol.filter(|protocol| !protocol.is_empty()),
        };
        let same =
            |other: &ServicePort| (other.number, other.protocol) == (converted.number, converted.protocol);
        if found.iter().any(same) {
            return Err(FieldError::new(path("port"), format!("{} is listed twice", converted.number)));
        }
        if found.iter().any(|other| other.name == converted.name) {
            let problem = format!("{:?} is already another port's name; each needs its own", converted.name);
            return Err(FieldError::new(path("name"), problem));
        }
        found.push(converted);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use orlop_model::world::{Protocol, TargetPort};
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let service = service(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"], "selector": {"app": "web"},
            "publishNotReadyAddresses": true,
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web"},
                {"name": "admin", "port": 81, "targetPort": 8081, "protocol": "TCP"},
                {"name": "dns", "port": 80, "protocol": "UDP"},
            ],
        }))
        .unwrap();
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.selector["app"], "web");
        assert!(service.publish_not_ready);
        let ports: Vec<_> = service.ports.iter().map(|p| (p.number, p.protocol, p.target.clone())).collect();
        let want = [
            (80, Protocol::Tcp, TargetPort::Name("web".into())),
            (81, Protocol::Tcp, TargetPort::Number(8081)),
            (80, Protocol::Udp, TargetPort::Unset),
        ];
        assert_eq!(ports, want);
    }

    #[test]
    fn where_connections_should_go_is_carried_over() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {
                "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferSameNode",
                "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.2"}, {"hostname": "lb.example.com"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
                {"ip": "fd00:2::1", "ipMode": "VIP"},
            ]}},
        });
        let service = convert(serde_json::from_value(object).unwrap()).unwrap();
        let external: Vec<_> = service.external_ips.iter().map(IpAddr::to_string).collect();
        assert_eq!(external, ["192.0.2.1", "192.0.2.2", "fd00:2::1"]);
        assert_eq!((service.distribution, service.node_local), (Distribution::Node, true));
        assert_eq!(service.affinity, Some(Duration::from_secs(60)));
    }

    #[test]
    fn affinity_lasts_three_hours_unless_it_says_otherwise() {
        let service = service(json!({"sessionAffinity": "ClientIP"})).unwrap();
        assert_eq!(service.affinity, Some(Duration::from_secs(3 * 3600)));
    }

    #[test]
    fn istios_annotation_counts_before_the_field() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "spec": {"trafficDistribution": "PreferSameNode"},
            "metadata": {"name": "web", "annotations": {"networking.istio.io/traffic-distribution": "PreferClose"}},
        });
        let service = convert(serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(service.distribution, Distribution::Zone);
    }

    #[test]
    fn headless_and_external_services_have_no_address() {
        for spec in [
            json!({"clusterIP": "None"}),
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"clusterIP": ""}),
            json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.1"}),
        ] {
            assert_eq!(service(spec).unwrap().cluster_ips, Vec::<IpAddr>::new());
        }
        assert_eq!(service(json!({"clusterIP": "10.96.0.1"})).unwrap().cluster_ips.len(), 1);
        let alias = service(json!({"type": "ExternalName", "externalName": "Example.com."})).unwrap();
        assert_eq!(alias.external_name.as_deref(), Some("example.com"));
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |spec| service(spec).unwrap_err().path.to_string();
        assert_eq!(named(json!({"clusterIP": "ten"})), "spec.clusterIP");
        assert_eq!(named(json!({"clusterIPs": ["10.96.0.1", "ten"]})), "spec.clusterIPs[1]");
        assert_eq!(named(json!({"externalIPs": ["ten"]})), "spec.externalIPs[0]");
        assert_eq!(named(json!({"trafficDistribution": "Near"})), "spec.trafficDistribution");
        assert_eq!(named(json!({"internalTrafficPolicy": "local"})), "spec.internalTrafficPolicy");
        assert_eq!(named(json!({"sessionAffinity": "Cookie"})), "spec.sessionAffinity");
        let never = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}});
        assert_eq!(named(never), "spec.sessionAffinityConfig.clientIP.timeoutSeconds");
        assert_eq!(named(json!({"type": "ExternalName", "externalName": "a b"})), "spec.externalName");
        assert_eq!(named(json!({"type": "ExternalName"})), "spec.externalName");
        assert_eq!(named(json!({"ports": [{"port": 0}]})), "spec.ports[0].port");
        assert_eq!(named(json!({"ports": [{"port": 80, "protocol": "HTTP"}]})), "spec.ports[0].protocol");
        assert_eq!(named(json!({"ports": [{"port": 80, "targetPort": "8080"}]})), "spec.ports[0].targetPort");
        assert_eq!(named(json!({"ports": [{"port": 80}, {"port": 81}]})), "spec.ports[1].name");
        assert_eq!(named(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80}]})), "spec.ports[1].port");
    }

    fn service(spec: serde_json::Value) -> Result<Service, FieldError> {
        let object =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec});
        convert(serde_json::from_value(object).unwrap())
    }
}
