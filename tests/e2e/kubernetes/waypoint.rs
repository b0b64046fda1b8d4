//! A waypoint whose world is the API server's, and whose certificate is the controller's.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use orlop_tests::traffic::HttpServer;
use orlop_tests::{Agent, Pod, Relay, Testbed, Waypoint, wait_for};
use serde_json::json;

use super::api::Kubernetes;
use super::controller::agent;
use super::install::{AUDIENCE, roots};
use super::kubelet::{API_PORT, CA_PORT, Kubelet, authority_url};
use super::replica::{LONG, Replica};
use crate::mesh::{TIMEOUT, record};

pub const ENABLED: (&str, &str) = ("orlop.dev/mesh", "enabled");

#[test]
fn a_waypoint_goes_by_the_api_and_has_its_certificate_from_the_controller() {
    let kubernetes = Kubernetes::shared();
    kubernetes.define_istio();
    let controller = Replica::shared(&kubernetes);
    let testbed = Testbed::in_shared_cluster().unwrap();
    let namespace = kubernetes.namespace("gate", &[ENABLED]);
    let nodes = ["n1", "n2"].map(|name| Kubelet::start(&kubernetes, &testbed, name));
    let _ways = nodes.each_ref().map(|node| node.way_to(controller.listen));
    let shop = Shop::new(&kubernetes, &nodes, &namespace, &[("istio.io/use-waypoint", "gate")]);

    account(&kubernetes, &namespace, "gate");
    let labels = [("app", "gate"), ("orlop.dev/mesh", "disabled")];
    let uid = nodes[1].bind_as("gate", &namespace, "gate-0", &labels);
    let gate = nodes[1].sandbox(&namespace, "gate-0", &uid);
    service(&kubernetes, &namespace, "gate", json!({"ports": [{"name": "hbone", "port": 15008}]}));
    let runs = Runs::new(&kubernetes, &gate, "gate", controller);
    let (name, authority) = (format!("{namespace}/gate"), authority_url());
    let mut arguments =
        vec!["--kube", "--name", &name, "--service-account", "gate", "--ca-address", &authority];
    arguments.extend(runs.files());
    let waypoint = Waypoint::with(&gate, &arguments).unwrap();
    nodes[1].report(&gate);

    shop.wait_until_served();
    shop.assert_through(&waypoint, "gate");
    // It obeys what is applied from now on.
    kubernetes.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"hosts": ["web"], "http": [
            {"match": [{"uri": {"prefix": "/away"}}], "redirect": {"uri": "/"}},
            {"route": [{"destination": {"host": "web"}}]},
        ]},
    }));
    assert!(wait_for(TIMEOUT, || shop.get("/away") == Some(301)), "{}", waypoint.log().unwrap());
    assert_eq!(shop.get("/"), Some(200));
}

/// A service `web` behind a waypoint, a server on the second node, and a client on the first.
pub struct Shop {
    agents: [Agent; 2],
    client: Pod,
    vip: SocketAddr,
    namespace: String,
    _http: HttpServer,
}

impl Shop {
    pub fn new(
        kubernetes: &Kubernetes,
        nodes: &[Kubelet<'_>; 2],
        namespace: &str,
        labels: &[(&str, &str)],
    ) -> Self {
        let client = nodes[0].run(namespace, "client", &[]);
        let server = nodes[1].run(namespace, "server", &[("app", "web")]);
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": namespace, "labels": labels},
            "spec": {
                "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            },
        }));
        let services = Api::<Service>::namespaced(kubernetes.client.clone(), namespace);
        let web = kubernetes.wait(services.get("web")).unwrap();
        let address: IpAddr = web.spec.unwrap().cluster_ip.unwrap().parse().unwrap();
        let agents = nodes.each_ref().map(agent);
        agents[0].wait_enrolled([&client]).unwrap();
        agents[1].wait_enrolled([&server]).unwrap();
        let http = server.serve_http(8080).unwrap();
        Self {
            agents,
            client,
            vip: SocketAddr::new(address, 80),
            namespace: namespace.to_owned(),
            _http: http,
        }
    }

    /// What the client's request is answered with, if it is.
    pub fn get(&self, path: &str) -> Option<u16> {
        self.client.http_get(self.vip, path, TIMEOUT).ok().map(|answer| answer.status)
    }

    /// Until a waypoint is ready the client is refused.
    pub fn wait_until_served(&self) {
        let served = wait_for(LONG, || self.get("/") == Some(200));
        assert!(served, "{}", self.agents[0].log().unwrap());
    }

    /// A request goes to a waypoint of this identity, and is counted there.
    pub fn assert_through(&self, waypoint: &Waypoint, account: &str) {
        let counted = || waypoint.metric("istio_requests_total", &["response_code=\"200\""]).unwrap();
        let before = counted();
        assert_eq!(self.get("/"), Some(200));
        assert!(wait_for(TIMEOUT, || counted() > before), "{}", waypoint.log().unwrap());
        let identity = format!("spiffe://cluster.local/ns/{}/sa/{account}", self.namespace);
        let vip = self.vip.to_string();
        record(&self.agents[0], &[("dst", &vip), ("dst_identity", &identity), ("result", "ok")]);
    }
}

/// What kubelet gives a pod that asks the API server and the controller.
pub struct Runs {
    files: Vec<String>,
    _relays: [Relay; 2],
}

impl Runs {
    pub fn new(kubernetes: &Kubernetes, pod: &Pod, account: &str, controller: &Replica) -> Self {
        let relays = [(API_PORT, kubernetes.plane.address()), (CA_PORT, controller.listen)];
        let relays = relays.map(|(port, to)| Relay::in_pod(pod, port, to).unwrap());
        let namespace = pod.namespace();
        let directory = pod.node().run_dir().join(pod.name());
        let api = format!("127.0.0.1:{API_PORT}");
        let kubeconfig = kubernetes.kubeconfig(&directory, namespace, account, &api);
        let [root, token] = ["root-cert.pem", "token"].map(|name| directory.join(name));
        fs::write(&root, roots(kubernetes, namespace)).unwrap();
        fs::write(&token, kubernetes.bound_token(namespace, account, pod.name(), AUDIENCE)).unwrap();
        let files = [("--kubeconfig", kubeconfig), ("--ca-root", root), ("--ca-token", token)]
            .map(|(flag, path)| format!("{flag}={}", path.display()));
        Self { files: files.into(), _relays: relays }
    }

    /// The arguments that name its files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str)
    }
}

/// A service account that may read what waypoints read.
fn account(kubernetes: &Kubernetes, namespace: &str, name: &str) {
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
    }));
    kubernetes.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": format!("waypoint-{namespace}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "orlop-waypoint"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }));
}

fn service(kubernetes: &Kubernetes, namespace: &str, name: &str, spec: serde_json::Value) {
    let mut spec = spec;
    spec["selector"] = json!({"app": name});
    kubernetes.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    }));
}
