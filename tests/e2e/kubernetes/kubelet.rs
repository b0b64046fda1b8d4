//! A node of the testbed that is in the cluster, and a stand-in for its kubelet.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use orlop_tests::{Agent, AgentOptions, Node, Pod, PodCgroups, Relay, Testbed};
use serde_json::{Value, json};

use super::api::Kubernetes;
use super::install::{AUDIENCE, NODE_ACCOUNT, SYSTEM, install, roots};
use crate::mesh::options;

/// Where the API server is on the loopback of every node, and of a pod that asks it.
pub const API_PORT: u16 = 6443;
/// Where the certificate service is on the loopback of every node, and of a pod that asks it.
pub const CA_PORT: u16 = 15012;

pub struct Kubelet<'a> {
    kubernetes: &'a Kubernetes,
    pub node: Node,
    pub cgroups: PodCgroups,
    /// The node's way to the API server.
    pub relay: Relay,
}

impl<'a> Kubelet<'a> {
    /// Adds a node, whose name no other testbed has.
    pub fn start(kubernetes: &'a Kubernetes, testbed: &Testbed, name: &str) -> Self {
        let node = testbed.node(&format!("{name}-{}", testbed.id())).unwrap();
        kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node.name(), "labels": {"topology.kubernetes.io/zone": name}},
            "status": {"addresses": [{"type": "InternalIP", "address": node.ipv4().to_string()}]},
        }));
        install(kubernetes);
        let relay = Relay::start(&node, API_PORT, kubernetes.plane.address()).unwrap();
        Self { kubernetes, node, cgroups: PodCgroups::default(), relay }
    }

    /// The node's agent, with the service account that the manifests give it.
    pub fn agent(&self, args: &[&str]) -> Agent {
        self.node.agent(self.options(args)).unwrap()
    }

    /// What [`agent`](Self::agent) starts it with.
    pub fn options(&self, args: &[&str]) -> AgentOptions {
        let roots = self.node.pods_cgroup(self.cgroups).unwrap();
        let pods = ["--pods-cgroup", &roots.to_string_lossy()].map(str::to_owned);
        let address = format!("127.0.0.1:{API_PORT}");
        let kubeconfig = self.kubernetes.kubeconfig(&self.node.run_dir(), SYSTEM, NODE_ACCOUNT, &address);
        let mut options = AgentOptions { kubeconfig: Some(kubeconfig), ..options(args) };
        options.args.extend(pods);
        options
    }

    /// The way from this node to a controller.
    pub fn way_to(&self, controller: SocketAddr) -> Relay {
        Relay::start(&self.node, CA_PORT, controller).unwrap()
    }

    /// Mounts what the agent's pod has of Secrets and ConfigMaps, and gives the arguments that name it.
    pub fn mount_authority(&self) -> [String; 6] {
        let directory = self.node.run_dir();
        fs::create_dir_all(&directory).unwrap();
        let [root, token] = ["root-cert.pem", "token"].map(|name| directory.join(name));
        fs::write(&root, roots(self.kubernetes, SYSTEM)).unwrap();
        fs::write(&token, self.agent_token(AUDIENCE)).unwrap();
        let path = |path: &Path| path.to_string_lossy().into_owned();
        [
            "--ca-address".to_owned(),
            authority_url(),
            "--ca-root".to_owned(),
            path(&root),
            "--ca-token".to_owned(),
            path(&token),
        ]
    }

    /// A token of the agent's pod on this node.
    pub fn agent_token(&self, audience: &str) -> String {
        let pod = format!("{NODE_ACCOUNT}-{}", self.node.name());
        self.kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": SYSTEM},
            "spec": {
                "nodeName": self.node.name(), "serviceAccountName": NODE_ACCOUNT, "hostNetwork": true,
                "containers": [{"name": "orlop", "image": "orlop"}],
            },
        }));
        self.kubernetes.bound_token(SYSTEM, NODE_ACCOUNT, &pod, audience)
    }

    /// A pod that runs here: its object first, then its processes, then its status.
    pub fn run(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Pod {
        let uid = self.bind(namespace, name, labels);
        let pod = self.sandbox(namespace, name, &uid);
        self.report(&pod);
        pod
    }

    /// Makes the object of a pod that was scheduled here. Gives its UID.
    pub fn bind(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> String {
        self.bind_as("default", namespace, name, labels)
    }

    /// The same, of another service account.
    pub fn bind_as(&self, account: &str, namespace: &str, name: &str, labels: &[(&str, &str)]) -> String {
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let object = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "nodeName": self.node.name(), "serviceAccountName": account,
                "containers": [{"name": "app", "image": "app"}],
            },
        });
        let object: PodObject = serde_json::from_value(object).unwrap();
        let made = self.kubernetes.wait(self.pods(namespace).create(&PostParams::default(), &object));
        made.unwrap().metadata.uid.unwrap()
    }

    /// Makes the object by which kubelet tells of a static pod.
    pub fn mirror(&self, namespace: &str, name: &str, hash: &str) {
        let object = json!({
            "metadata": {
                "name": name, "namespace": namespace,
                "annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
            },
            "spec": {"nodeName": self.node.name(), "containers": [{"name": "app", "image": "app"}]},
        });
        let object = serde_json::from_value(object).unwrap();
        self.kubernetes.wait(self.pods(namespace).create(&PostParams::default(), &object)).unwrap();
    }

    /// Starts the pod's processes.
    pub fn sandbox(&self, namespace: &str, name: &str, uid: &str) -> Pod {
        self.node.pod_as_kubelet(namespace, name, uid, self.cgroups).unwrap()
    }

    /// Posts the status of a pod that runs.
    pub fn report(&self, pod: &Pod) {
        let ips: Vec<Value> = pod.ips().iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        self.kubernetes.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name(), "namespace": pod.namespace()},
            "status": {
                "phase": "Running", "podIP": pod.ipv4().to_string(), "podIPs": ips,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
    }

    /// Ends a pod at once: first its object, then its processes.
    pub fn delete(&self, pod: &Pod) {
        let now = DeleteParams::default().grace_period(0);
        self.kubernetes.wait(self.pods(pod.namespace()).delete(pod.name(), &now)).unwrap();
        pod.delete().unwrap();
    }

    fn pods(&self, namespace: &str) -> Api<PodObject> {
        Api::namespaced(self.kubernetes.client.clone(), namespace)
    }
}

/// Of the certificate service, on any node.
pub fn authority_url() -> String {
    format!("https://localhost:{CA_PORT}")
}
