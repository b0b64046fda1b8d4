use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orlop_model::world::security::IpBlock;
use orlop_model::world::{
    Backend, BackendAddress, Exports, Labels, Protocol, Resolution, ServiceEntry, ServicePort, TargetPort,
};
use serde::Deserialize;

use crate::field::{FieldError, FieldPath, Ignored, host, port};
use crate::metadata::{label, namespaced};
use crate::read::Metadata;
use crate::service::distribution_annotation;
use crate::workload_entry::{BackendObject, backend};

/// A `networking.istio.io` ServiceEntry as it is written.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    status: Option<Status>,
}

/// What others wrote: nothing in it is a mistake of the user's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Vec<Allocated>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Allocated {
    value: String,
    host: String,
}

/// A misspelt field would send connections elsewhere, so none is let pass.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Spec {
    /// Names by which the service is reached.
    hosts: Option<Vec<String>>,
    /// Addresses or CIDR blocks by which it is reached. If left out for names that have none, some are given.
    addresses: Option<Vec<String>>,
    /// Its ports.
    ports: Option<Vec<PortObject>>,
    /// MESH_EXTERNAL (if left out) or MESH_INTERNAL: whether its servers are workloads of the mesh.
    location: Option<String>,
    /// Where its servers are: NONE, where the client dials; STATIC, at the endpoints; DNS or DNS_ROUND_ROBIN,
    /// where DNS says; DYNAMIC_DNS.
    resolution: Option<String>,
    /// Its servers. Not together with workloadSelector.
    endpoints: Option<Vec<BackendObject>>,
    /// Its servers by their labels: Pods and WorkloadEntries of the same namespace.
    workload_selector: Option<SelectorObject>,
    /// Namespaces that see it: "." its own, "*" all, which is also meant if it is left out.
    export_to: Option<Vec<String>>,
    /// Has no effect: a server is known by its workload's identity.
    #[serde(rename = "subjectAltNames")]
    _subject_alt_names: Option<Ignored>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortObject {
    /// The number of the port.
    number: i32,
    /// Its name.
    name: Option<String>,
    /// What is spoken: HTTP, HTTP2, GRPC, TLS, TCP and others.
    protocol: Option<String>,
    /// The servers' port, if that is another one.
    target_port: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
struct SelectorObject {
    /// Labels that a server must have, all of them.
    labels: BTreeMap<String, String>,
}

/// Converts a ServiceEntry.
pub(crate) fn convert(object: Object) -> Result<ServiceEntry, FieldError> {
    let name = namespaced(&object.metadata)?;
    let distribution = distribution_annotation(object.metadata.annotations.as_ref())?.unwrap_or_default();
    let spec = object.spec;
    is_small(&spec)?;
    let endpoints = spec.endpoints.unwrap_or_default().into_iter().enumerate();
    let endpoints =
        endpoints.map(|(index, entry)| backend(entry, &FieldPath::from("spec.endpoints").index(index)));
    let entry = ServiceEntry {
        labels: object.metadata.labels.unwrap_or_default(),
        hosts: hosts(&spec.hosts.unwrap_or_default())?,
        addresses: addresses(&spec.addresses.unwrap_or_default())?,
        allocated: allocated(object.status.unwrap_or_default()),
        ports: ports(spec.ports.unwrap_or_default())?,
        external: external(spec.location.as_deref())?,
        resolution: resolution(spec.resolution.as_deref())?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        selector: selector(spec.workload_selector)?,
        exports: exports(spec.export_to.unwrap_or_default(), &name.namespace)?,
        distribution,
        name,
    };
    check(&entry)?;
    Ok(entry)
}

/// As many hosts as Istio's definition lets it have, and as many endpoints of ports of hosts: each has its own.
const MAX_HOSTS: usize = 256;
const MAX_PRODUCT: usize = 100_000;

/// What is written in a few bytes more becomes many times as much.
fn is_small(spec: &Spec) -> Result<(), FieldError> {
    let count = |of: Option<usize>| of.unwrap_or_default().max(1);
    let hosts = count(spec.hosts.as_ref().map(Vec::len));
    if hosts > MAX_HOSTS {
        return Err(FieldError::new(
            "spec.hosts",
            format!("has {hosts} entries; at most {MAX_HOSTS} are read"),
        ));
    }
    let ports = count(spec.ports.as_ref().map(Vec::len));
    let endpoints = count(spec.endpoints.as_ref().map(Vec::len));
    if hosts.saturating_mul(ports).saturating_mul(endpoints) > MAX_PRODUCT {
        let problem = format!(
            "{hosts} hosts with {ports} ports and {endpoints} endpoints each are more than {MAX_PRODUCT} in all; \
             make several objects of it"
        );
        return Err(FieldError::new("spec", problem));
    }
    Ok(())
}

fn hosts(hosts: &[String]) -> Result<Vec<String>, FieldError> {
    if hosts.is_empty() {
        return Err(FieldError::new("spec.hosts", "is empty; name at least one host"));
    }
    let checked = hosts.iter().enumerate().map(|(index, text)| {
        let path = || FieldPath::from("spec.hosts").index(index);
        match text.strip_prefix("*.") {
            Some(rest) => host(rest, path).map(|rest| format!("*.{rest}")),
            None => host(text, path),
        }
    });
    checked.collect()
}

fn addresses(addresses: &[String]) -> Result<Vec<IpBlock>, FieldError> {
    let checked = addresses.iter().enumerate().map(|(index, text)| {
        let path = FieldPath::from("spec.addresses").index(index);
        text.parse::<IpBlock>().map_err(|error| FieldError::new(path, error.to_string()))
    });
    checked.collect()
}

/// Addresses without a host were for an entry that has one host, whose name may have changed since.
fn allocated(status: Status) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for Allocated { value, host } in status.addresses {
        if let Ok(address) = value.parse::<IpAddr>()
            && !host.is_empty()
        {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            found.entry(host).or_default().push(address.to_canonical());
        }
    }
    found
}

fn ports(ports: Vec<PortObject>) -> Result<Vec<ServicePort>, FieldError> {
    let mut found: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for (index, entry) in ports.into_iter().enumerate() {
        let path = |field: &str| FieldPath::from("spec.ports").index(index).key(field);
        let target = entry.target_port.filter(|&target| target != 0);
        let target = target.map(|target| port(target, || path("targetPort"))).transpose()?;
        let converted = ServicePort {
            name: entry.name.unwrap_or_default(),
            number: port(entry.number, || path("number"))?,
            protocol: protocol(entry.protocol.as_deref(), || path("protocol"))?,
            target: target.map_or(TargetPort::Unset, TargetPort::Number),
            app_protocol: None,
        };
        if found.iter().any(|other| other.number == converted.number) {
            return Err(FieldError::new(path("number"), format!("{} is listed twice", converted.number)));
        }
        found.push(converted);
    }
    Ok(found)
}

/// Everything that Istio knows and that runs over TCP.
fn protocol(name: Option<&str>, path: impl FnOnce() -> FieldPath) -> Result<Protocol, FieldError> {
    match name.unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "TCP" | "TLS" | "HTTP" | "HTTPS" | "HTTP2" | "GRPC" | "GRPC-WEB" | "MONGO" | "MYSQL"
        | "REDIS" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        other => {
            let problem = format!("{other:?} is not TCP, TLS, HTTP, HTTPS, HTTP2, GRPC, MONGO or UDP");
            Err(FieldError::new(path(), problem))
        }
    }
}

fn external(location: Option<&str>) -> Result<bool, FieldError> {
    match location {
        None | Some("MESH_EXTERNAL") => Ok(true),
        Some("MESH_INTERNAL") => Ok(false),
        Some(other) => {
            let problem = format!("{other:?} is not MESH_EXTERNAL or MESH_INTERNAL");
            Err(FieldError::new("spec.location", problem))
        }
    }
}

fn resolution(resolution: Option<&str>) -> Result<Resolution, FieldError> {
    match resolution {
        None | Some("NONE") => Ok(Resolution::None),
        Some("STATIC") => Ok(Resolution::Static),
        Some("DNS") => Ok(Resolution::Dns),
        Some("DNS_ROUND_ROBIN") => Ok(Resolution::DnsRoundRobin),
        Some(other) => {
            let problem = format!("{other:?} is not NONE, STATIC, DNS or DNS_ROUND_ROBIN");
            Err(FieldError::new("spec.resolution", problem))
        }
    }
}

fn selector(selector: Option<SelectorObject>) -> Result<Labels, FieldError> {
    match selector {
        None => Ok(Labels::new()),
        Some(selector) if selector.labels.is_empty() => {
            Err(FieldError::new("spec.workloadSelector.labels", "is empty; name the labels of the workloads"))
        }
        Some(selector) => Ok(selector.labels.into_iter().collect()),
    }
}

pub(crate) fn exports(exports: Vec<String>, own: &str) -> Result<Exports, FieldError> {
    let mut namespaces = BTreeSet::new();
    let all = exports.is_empty() || exports.iter().any(|to| to == "*");
    for (index, to) in exports.into_iter().enumerate() {
        match to.as_str() {
            "*" | "~" => {}
            "." => drop(namespaces.insert(own.to_owned())),
            _ => {
                label(&to, &FieldPath::from("spec.exportTo").index(index).to_string())?;
                namespaces.insert(to);
            }
        }
    }
    Ok(if all { Exports::All } else { Exports::To(namespaces) })
}

/// What the fields must be together.
fn check(entry: &ServiceEntry) -> Result<(), FieldError> {
    let wrong = |path: &str, problem: &str| Err(FieldError::new(path, problem));
    let by_name = |backend: &Backend| matches!(backend.address, BackendAddress::Host(_));
    let has_endpoints = !entry.endpoints.is_empty() || !entry.selector.is_empty();
    if !entry.endpoints.is_empty() && !entry.selector.is_empty() {
        return wrong("spec.endpoints", "and a workloadSelector exclude each other; keep one of them");
    }
    match entry.resolution {
        Resolution::None if has_endpoints => {
            wrong("spec.resolution", "is NONE, which has no endpoints; write STATIC, or leave them out")
        }
        Resolution::Static if entry.endpoints.iter().any(by_name) => {
            wrong("spec.resolution", "is STATIC, but an endpoint is a host name; write DNS")
        }
        Resolution::Dns | Resolution::DnsRoundRobin
            if !has_endpoints && entry.hosts.iter().any(|host| host.starts_with('*')) =>
        {
            wrong("spec.resolution", "is by DNS, which can't resolve a wildcard; list the endpoints")
        }
        Resolution::DnsRoundRobin if entry.endpoints.len() > 1 => {
            wrong("spec.endpoints", "has more than one, and DNS_ROUND_ROBIN takes one; write DNS")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn everything_the_mesh_reads_is_carried_over() {
        let entry = entry(json!({
            "hosts": ["API.example.com", "*.example.org."], "addresses": ["192.0.2.1", "198.51.100.0/24"],
            "ports": [
                {"number": 443, "name": "https", "protocol": "TLS", "targetPort": 8443},
                {"number": 53, "name": "dns", "protocol": "UDP"},
            ],
            "location": "MESH_INTERNAL", "resolution": "STATIC", "exportTo": [".", "street"],
            "subjectAltNames": ["spiffe://x"], "endpoints": [{"address": "192.0.2.9"}],
        }))
        .unwrap();
        assert_eq!(entry.hosts, ["api.example.com", "*.example.org"]);
        let addresses: Vec<_> = entry.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "198.51.100.0/24"]);
        let ports: Vec<_> = entry.ports.iter().map(|p| (p.number, p.protocol, p.target.clone())).collect();
        let want = [(443, Protocol::Tcp, TargetPort::Number(8443)), (53, Protocol::Udp, TargetPort::Unset)];
        assert_eq!(ports, want);
        assert_eq!((entry.external, entry.resolution), (false, Resolution::Static));
        assert_eq!(entry.exports, Exports::To(["shop".to_owned(), "street".to_owned()].into()));
        assert_eq!(entry.endpoints.len(), 1);
    }

    #[test]
    fn what_others_gave_to_hosts_is_read_and_what_makes_no_sense_is_not() {
        let mut object = object(&json!({"hosts": ["a.com"]}));
        object["status"] = json!({"addresses": [
            {"value": "240.240.0.1", "host": "A.com"}, {"value": "2001:2::1", "host": "a.com"},
            {"value": "ten", "host": "a.com"}, {"value": "240.240.0.2"},
        ]});
        let entry = convert(serde_json::from_value(object).unwrap()).unwrap();
        let given = ["240.240.0.1", "2001:2::1"].map(|address| address.parse().unwrap()).to_vec();
        assert_eq!(entry.allocated, [("a.com".to_owned(), given)].into());
    }

    #[test]
    fn what_is_left_out_is_as_istio_has_it() {
        let entry = entry(json!({"hosts": ["example.com"]})).unwrap();
        assert_eq!((entry.external, entry.resolution), (true, Resolution::None));
        assert_eq!(entry.exports, Exports::All);
    }

    #[test]
    fn exports_may_be_to_all_or_to_nobody() {
        let exports = |to: Value| entry(json!({"hosts": ["a.com"], "exportTo": to})).unwrap().exports;
        assert_eq!(exports(json!(["*"])), Exports::All);
        assert_eq!(exports(json!(["~"])), Exports::To(BTreeSet::new()));
    }

    #[test]
    fn wrong_fields_are_named() {
        let named = |mut spec: Value| {
            if spec["hosts"].is_null() {
                spec["hosts"] = json!(["example.com"]);
            }
            entry(spec).unwrap_err().path.to_string()
        };
        assert_eq!(named(json!({"hosts": []})), "spec.hosts");
        assert_eq!(named(json!({"hosts": vec!["a.com"; 257]})), "spec.hosts");
        let ports: Vec<_> = (1..1000).map(|n| json!({"number": n, "name": format!("p{n}")})).collect();
        let endpoints = vec![json!({"address": "192.0.2.1"}); 101];
        assert_eq!(named(json!({"hosts": ["a.com"], "ports": ports, "endpoints": endpoints})), "spec");
        assert_eq!(named(json!({"hosts": ["a.com", "*"]})), "spec.hosts[1]");
        assert_eq!(named(json!({"hosts": ["a.*.com"]})), "spec.hosts[0]");
        assert_eq!(named(json!({"addresses": ["ten"]})), "spec.addresses[0]");
        assert_eq!(named(json!({"ports": [{"number": 0}]})), "spec.ports[0].number");
        assert_eq!(named(json!({"ports": [{"number": 1}, {"number": 1}]})), "spec.ports[1].number");
        assert_eq!(named(json!({"ports": [{"number": 1, "protocol": "SPDY"}]})), "spec.ports[0].protocol");
        assert_eq!(named(json!({"ports": [{"number": 1, "targetPort": 70000}]})), "spec.ports[0].targetPort");
        assert_eq!(named(json!({"location": "OUTSIDE"})), "spec.location");
        assert_eq!(named(json!({"resolution": "dns"})), "spec.resolution");
        assert_eq!(named(json!({"workloadSelector": {}})), "spec.workloadSelector.labels");
        assert_eq!(named(json!({"exportTo": ["a/b"]})), "spec.exportTo[0]");
        assert_eq!(named(json!({"resolution": "STATIC", "endpoints": [{}]})), "spec.endpoints[0].address");
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused() {
        let endpoint = json!({"address": "192.0.2.1"});
        let host = json!({"address": "vm.example.com"});
        let selector = json!({"labels": {"app": "vm"}});
        for spec in [
            json!({"resolution": "STATIC", "endpoints": [endpoint], "workloadSelector": selector}),
            json!({"resolution": "NONE", "endpoints": [endpoint]}),
            json!({"resolution": "STATIC", "endpoints": [host]}),
            json!({"resolution": "DNS", "hosts": ["*.example.com"]}),
            json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [host, host]}),
        ] {
            let mut whole = spec.clone();
            if whole["hosts"].is_null() {
                whole["hosts"] = json!(["example.com"]);
            }
            assert!(entry(whole).is_err(), "{spec}");
        }
    }

    #[test]
    fn misspelt_fields_are_refused() {
        for spec in [json!({"hosts": ["a.com"], "resoluton": "DNS"}), json!({"endpoints": [{"adress": "x"}]})]
        {
            assert!(serde_json::from_value::<Object>(object(&spec)).is_err(), "{spec}");
        }
    }

    fn entry(spec: Value) -> Result<ServiceEntry, FieldError> {
        convert(serde_json::from_value(object(&spec)).unwrap())
    }

    fn object(spec: &Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "spec": spec,
            "metadata": {"name": "api", "namespace": "shop"},
        })
    }
}
