//! The Kubernetes objects a testbed writes, as YAML.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::Pod;

/// The label that says whether a namespace or pod is in the mesh.
pub(crate) const MESH_LABEL: &str = "orlop.dev/mesh";

/// A Pod, as far as a mesh reads it.
#[derive(Clone, Debug)]
pub(crate) struct PodObject {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Another one for each pod, also of the same name.
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) service_account: String,
    pub(crate) ports: Vec<(String, u16)>,
    /// Ports that kubelet probes; `None` leaves the containers out.
    pub(crate) probes: Option<Vec<u16>>,
    pub(crate) node: String,
    pub(crate) host_ip: IpAddr,
    pub(crate) netns: PathBuf,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
}

/// A Service and its EndpointSlices.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster addresses; none makes it headless.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its endpoints; they become one EndpointSlice for each address family.
    pub endpoints: Vec<Endpoint>,
    /// The labels of the pods behind it. Only text here: the endpoints are what counts.
    pub selector: BTreeMap<String, String>,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// More fields of `spec`, as lines of YAML without indentation.
    pub spec: Vec<String>,
    /// Addresses of its load balancer.
    pub balancer_ips: Vec<IpAddr>,
    /// What its ports speak.
    pub app_protocol: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name; may be empty if it is the only one.
    pub name: String,
    /// The port on the service's address.
    pub port: u16,
    /// The port on the pods.
    pub target: TargetPort,
}

/// A Service's `targetPort`.
#[derive(Clone, Debug)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port, and the number it has in the EndpointSlices.
    Name(String, u16),
}

/// An endpoint of a Service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The pod's name, in the service's namespace.
    pub pod: String,
    /// The name of its node.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether it gets traffic.
    pub ready: bool,
    /// Whether it terminates and still serves.
    pub draining: bool,
    /// Its own name within the service.
    pub hostname: Option<String>,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self {
            pod: pod.name().to_owned(),
            node: pod.node().name().to_owned(),
            ips: pod.ips().to_vec(),
            ready: true,
            draining: false,
            hostname: None,
        }
    }
}

impl ServiceSpec {
    /// A service with one port.
    pub fn new(namespace: &str, name: &str, port: u16, target: TargetPort) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster_ips: Vec::new(),
            ports: vec![ServicePort { name: String::new(), port, target }],
            endpoints: Vec::new(),
            selector: BTreeMap::new(),
            labels: BTreeMap::new(),
            spec: Vec::new(),
            balancer_ips: Vec::new(),
            app_protocol: None,
        }
    }

    /// Says what its ports speak.
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        self.app_protocol = Some(protocol.to_owned());
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a field of `spec`, as one line of YAML.
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.to_owned());
        self
    }

    /// Sets the cluster addresses, such as [`Testbed::vip`](crate::Testbed::vip)'s.
    pub fn cluster_ips(mut self, ips: Vec<IpAddr>) -> Self {
        self.cluster_ips = ips;
        self
    }

    /// Sets the endpoints.
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<Endpoint>>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }
}

pub(crate) fn namespace_yaml(name: &str, labels: &BTreeMap<String, String>) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n{}",
        quoted(name),
        map("  ", "labels", labels)
    )
}

pub(crate) fn pod_yaml(pod: &PodObject) -> String {
    let annotations = BTreeMap::from([("orlop.dev/netns".to_owned(), pod.netns.display().to_string())]);
    let mut yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n{}{}",
        quoted(&pod.name),
        quoted(&pod.namespace),
        quoted(&pod.uid),
        map("  ", "labels", &pod.labels),
        map("  ", "annotations", &annotations),
    );
    yaml += &format!(
        "spec:\n  nodeName: {}\n  serviceAccountName: {}\n",
        quoted(&pod.node),
        quoted(&pod.service_account),
    );
    if let Some(probes) = &pod.probes {
        yaml += "  containers:\n  - name: app\n    image: none\n";
        if !pod.ports.is_empty() {
            yaml += "    ports:\n";
        }
        for (name, port) in &pod.ports {
            yaml += &format!("    - name: {}\n      containerPort: {port}\n", quoted(name));
        }
        for port in probes {
            let probe = format!("readinessProbe:\n      tcpSocket:\n        port: {port}\n");
            yaml += &format!("  - name: probed-{port}\n    image: none\n    {probe}");
        }
    }
    let ready = if pod.ready { "True" } else { "False" };
    yaml += &format!(
        "status:\n  phase: Running\n  conditions:\n  - type: Ready\n    status: {}\n  hostIP: {}\n",
        quoted(ready),
        quoted(&pod.host_ip.to_string()),
    );
    if let Some(first) = pod.ips.first() {
        yaml += &format!("  podIP: {}\n  podIPs:\n", quoted(&first.to_string()));
    }
    for ip in &pod.ips {
        yaml += &format!("  - ip: {}\n", quoted(&ip.to_string()));
    }
    yaml
}

/// The Service and one EndpointSlice for each address family that an endpoint has.
pub(crate) fn service_yaml(service: &ServiceSpec) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\n{}spec:\n{}",
        quoted(&service.name),
        quoted(&service.namespace),
        map("  ", "labels", &service.labels),
        map("  ", "selector", &service.selector),
    );
    for line in &service.spec {
        let _ = writeln!(yaml, "  {line}");
    }
    match service.cluster_ips.first() {
        None => yaml += "  clusterIP: None\n",
        Some(first) => {
            yaml += &format!("  clusterIP: {}\n  clusterIPs:\n", quoted(&first.to_string()));
            for ip in &service.cluster_ips {
                yaml += &format!("  - {}\n", quoted(&ip.to_string()));
            }
        }
    }
    yaml += "  ports:\n";
    for port in &service.ports {
        yaml += "  - protocol: TCP\n";
        let target = match &port.target {
            TargetPort::Number(number) => number.to_string(),
            TargetPort::Name(name, _) => quoted(name),
        };
        yaml += &format!("    port: {}\n    targetPort: {target}\n", port.port);
        if !port.name.is_empty() {
            yaml += &format!("    name: {}\n", quoted(&port.name));
        }
        if let Some(protocol) = &service.app_protocol {
            yaml += &format!("    appProtocol: {}\n", quoted(protocol));
        }
    }
    if !service.balancer_ips.is_empty() {
        let ips = service.balancer_ips.iter().map(|ip| format!("{{ip: {}}}", quoted(&ip.to_string())));
        yaml += &format!("status:\n  loadBalancer:\n    ingress: [{}]\n", ips.collect::<Vec<_>>().join(", "));
    }
    yaml += &slice_yaml(service, "IPv4", IpAddr::is_ipv4);
    yaml += &slice_yaml(service, "IPv6", IpAddr::is_ipv6);
    yaml
}

fn slice_yaml(service: &ServiceSpec, family: &str, in_family: fn(&IpAddr) -> bool) -> String {
    let mut endpoints = String::new();
    for endpoint in &service.endpoints {
        let ips = endpoint.ips.iter().filter(|ip| in_family(ip));
        let ips: Vec<String> = ips.map(|ip| quoted(&ip.to_string())).collect();
        if ips.is_empty() {
            continue;
        }
        let _ = write!(
            endpoints,
            "- addresses: [{}]\n  conditions: {{ready: {}, serving: {}, terminating: {}}}\n  nodeName: {}\n  \
             targetRef:\n    kind: Pod\n    namespace: {}\n    name: {}\n",
            ips.join(", "),
            endpoint.ready,
            endpoint.ready || endpoint.draining,
            endpoint.draining,
            quoted(&endpoint.node),
            quoted(&service.namespace),
            quoted(&endpoint.pod),
        );
        if let Some(hostname) = &endpoint.hostname {
            let _ = writeln!(endpoints, "  hostname: {}", quoted(hostname));
        }
    }
    if endpoints.is_empty() {
        return String::new();
    }
    let mut ports = String::new();
    for port in &service.ports {
        let (TargetPort::Number(number) | TargetPort::Name(_, number)) = &port.target;
        ports += &format!("- name: {}\n  port: {number}\n  protocol: TCP\n", quoted(&port.name));
    }
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {}\n  namespace: {}\n  \
         labels:\n    kubernetes.io/service-name: {}\n\
         addressType: {family}\nports:\n{ports}endpoints:\n{endpoints}",
        quoted(&format!("{}-{}", service.name, family.to_lowercase())),
        quoted(&service.namespace),
        quoted(&service.name),
    )
}

fn map(indent: &str, key: &str, entries: &BTreeMap<String, String>) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut yaml = format!("{indent}{key}:\n");
    for (key, value) in entries {
        let _ = writeln!(yaml, "{indent}  {}: {}", quoted(key), quoted(value));
    }
    yaml
}

/// A YAML double-quoted scalar.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_quoted() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }

    #[test]
    fn a_service_has_a_slice_for_each_family() {
        let endpoint = |ip: &str| Endpoint {
            pod: "web".to_owned(),
            node: "n1".to_owned(),
            ips: vec![ip.parse().unwrap()],
            ready: true,
            draining: false,
            hostname: None,
        };
        let service = ServiceSpec::new("shop", "web", 80, TargetPort::Name("http".to_owned(), 8080));
        let yaml = service_yaml(&service.clone().endpoints([endpoint("10.1.0.2"), endpoint("fd00::2")]));
        assert_eq!(yaml.matches("kind: EndpointSlice").count(), 2);
        assert!(yaml.contains("targetPort: \"http\"") && yaml.contains("  port: 8080"), "{yaml}");
        assert!(!service_yaml(&service).contains("EndpointSlice"));
    }
}
