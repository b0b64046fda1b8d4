use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use orlop_model::world::{Service, ServicePort};

use crate::field::{FieldError, FieldPath, address, port, protocol, target_port};
use crate::metadata::namespaced;

/// Converts a `v1` Service.
pub(crate) fn convert(service: api::Service) -> Result<Service, FieldError> {
    let name = namespaced(&service.metadata)?;
    let spec = service.spec.unwrap_or_default();
    Ok(Service {
        name,
        labels: service.metadata.labels.unwrap_or_default(),
        cluster_ips: cluster_ips(&spec)?,
        ports: ports(spec.ports.unwrap_or_default())?,
        selector: spec.selector.unwrap_or_default(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
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
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |spec| service(spec).unwrap_err().path.to_string();
        assert_eq!(named(json!({"clusterIP": "ten"})), "spec.clusterIP");
        assert_eq!(named(json!({"clusterIPs": ["10.96.0.1", "ten"]})), "spec.clusterIPs[1]");
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
