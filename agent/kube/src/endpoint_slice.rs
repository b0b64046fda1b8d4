use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as api;
use orlop_model::world::{EndpointSlice, Port, Protocol, SliceEndpoint};
use orlop_model::{NamespacedName, Text};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, address, port, protocol};
use crate::metadata::namespaced;
use crate::read::Metadata;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Object {
    metadata: Metadata,
    address_type: String,
    endpoints: Option<Vec<api::Endpoint>>,
    ports: Option<Vec<api::EndpointPort>>,
}

/// Converts an EndpointSlice.
pub(crate) fn convert(slice: Object) -> Result<EndpointSlice, FieldError> {
    let name = namespaced(&slice.metadata)?;
    // Host names instead of addresses: nothing to route to.
    let endpoints =
        if slice.address_type == "FQDN" { Vec::new() } else { slice.endpoints.unwrap_or_default() };
    let endpoints = endpoints
        .into_iter()
        .enumerate()
        .map(|(index, entry)| endpoint(entry, &name.namespace, &FieldPath::from("endpoints").index(index)));
    let [ports, udp_ports] = ports(slice.ports.unwrap_or_default())?;
    let mut endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
    endpoints.shrink_to_fit();
    Ok(EndpointSlice {
        endpoints,
        service: slice.metadata.labels.and_then(|labels| labels.get(SERVICE_NAME).cloned()),
        ports,
        udp_ports,
        name,
    })
}

/// Those of TCP and of UDP.
fn ports(ports: Vec<api::EndpointPort>) -> Result<[Vec<Port>; 2], FieldError> {
    let [mut tcp, mut udp] = [Vec::with_capacity(ports.len()), Vec::new()];
    for (index, entry) in ports.into_iter().enumerate() {
        let path = |field: &str| FieldPath::from("ports").index(index).key(field);
        let found = match protocol(entry.protocol.as_deref(), || path("protocol"))? {
            Protocol::Tcp => &mut tcp,
            Protocol::Udp => &mut udp,
            Protocol::Sctp => continue,
        };
        // Without a number it stands for any port, which a service's port can't be routed to.
        if let Some(number) = entry.port {
            let number = port(number, || path("port"))?;
            found.push(Port { name: entry.name.unwrap_or_default().into(), number });
        }
    }
    Ok([tcp, udp])
}

fn endpoint(entry: api::Endpoint, namespace: &str, path: &FieldPath) -> Result<SliceEndpoint, FieldError> {
    let conditions = entry.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let target = entry.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
    let target = target.and_then(|target| {
        let own = target.namespace.filter(|own| !own.is_empty());
        Some(NamespacedName::new(own.as_deref().unwrap_or(namespace), target.name?))
    });
    let addresses = entry.addresses.iter().enumerate();
    let addresses = addresses.map(|(index, ip)| address(ip, || path.clone().key("addresses").index(index)));
    Ok(SliceEndpoint {
        addresses: addresses.collect::<Result<Vec<IpAddr>, _>>()?.into(),
        hostname: entry.hostname.filter(|name| !name.is_empty()).map(Text::from),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: entry.node_name.map(Text::from),
        zone: entry.zone.map(Text::from),
        target,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let slice = slice(json!({
            "addressType": "IPv4",
            "ports": [
                {"name": "http", "port": 8080}, {"name": "any"},
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 9090, "protocol": "TCP"},
            ],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "one", "zone": "a", "hostname": "web-0",
                 "targetRef": {"kind": "Pod", "name": "web-0"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true},
                 "targetRef": {"kind": "Pod", "name": "web-1", "namespace": "other"}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}, "targetRef": {"kind": "VM", "name": "x"}},
            ],
        }))
        .unwrap();
        assert_eq!(slice.service.as_deref(), Some("web"));
        let ports: Vec<_> = slice.ports.iter().map(|port| (port.name.as_str(), port.number)).collect();
        assert_eq!(ports, [("http", 8080), ("", 9090)]);
        assert_eq!(slice.udp_ports, [Port { name: "dns".into(), number: 53 }]);
        let flags: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(flags, [(true, true, false), (false, true, true), (false, false, false)]);
        let targets: Vec<_> =
            slice.endpoints.iter().map(|e| e.target.as_ref().map(|t| t.to_string())).collect();
        assert_eq!(targets, [Some("shop/web-0".into()), Some("other/web-1".into()), None]);
        assert_eq!(slice.endpoints[0].zone.as_deref(), Some("a"));
        assert_eq!(slice.endpoints[0].node.as_deref(), Some("one"));
        assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("web-0"));
    }

    #[test]
    fn host_names_are_left_out() {
        let object = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]});
        assert_eq!(slice(object).unwrap().endpoints, []);
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |object| slice(object).unwrap_err().path.to_string();
        assert_eq!(
            named(json!({"endpoints": [{"addresses": ["10.0.0.1", "x"]}]})),
            "endpoints[0].addresses[1]"
        );
        assert_eq!(named(json!({"ports": [{"port": 70000}]})), "ports[0].port");
        assert_eq!(named(json!({"ports": [{"protocol": "HTTP"}]})), "ports[0].protocol");
    }

    fn slice(mut object: serde_json::Value) -> Result<EndpointSlice, FieldError> {
        object["apiVersion"] = json!("discovery.k8s.io/v1");
        object["kind"] = json!("EndpointSlice");
        object["metadata"] =
            json!({"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}});
        convert(serde_json::from_value(object).unwrap())
    }
}
