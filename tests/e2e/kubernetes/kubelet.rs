//! A node of the testbed that is in the cluster, and a stand-in for its kubelet.

use std::fs;

use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use orlop_tests::{Agent, AgentOptions, Node, Pod, PodCgroups, Relay, Testbed};
use serde_json::{Value, json};

use super::api::Kubernetes;
use crate::mesh::options;

/// Where the API server is on the loopback of every node.
const API_PORT: u16 = 6443;
/// The namespace of the agents' service account.
const SYSTEM: &str = "orlop-system";
const ACCOUNT: &str = "orlop-node";

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
        let relay = Relay::start(&node, API_PORT, kubernetes.plane.address()).unwrap();
        Self { kubernetes, node, cgroups: PodCgroups::default(), relay }
    }

    /// The node's agent, with a service account of its own that may do as little as the agent needs.
    pub fn agent(&self, args: &[&str]) -> Agent {
        let roots = self.node.pods_cgroup(self.cgroups).unwrap();
        let pods = ["--pods-cgroup", &roots.to_string_lossy()].map(str::to_owned);
        let mut options = AgentOptions { kubeconfig: Some(self.kubeconfig()), ..options(args) };
        options.args.extend(pods);
        self.node.agent(options).unwrap()
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
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let object = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": self.node.name(), "containers": [{"name": "app", "image": "app"}]},
        });
        let object: PodObject = serde_json::from_value(object).unwrap();
        let made = self.kubernetes.wait(self.pods(namespace).create(&PostParams::default(), &object));
        made.unwrap().metadata.uid.unwrap()
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

    fn kubeconfig(&self) -> std::path::PathBuf {
        self.kubernetes.authorize_agents(SYSTEM, ACCOUNT);
        let directory = self.node.run_dir();
        fs::create_dir_all(&directory).unwrap();
        let authority = directory.join("cluster-ca.crt");
        fs::write(&authority, self.kubernetes.plane.authority().unwrap()).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": ACCOUNT}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{API_PORT}"), "certificate-authority": authority,
            }}],
            "users": [{"name": ACCOUNT, "user": {"token": self.kubernetes.token(SYSTEM, ACCOUNT)}}],
        });
        let path = directory.join("kubeconfig");
        fs::write(&path, config.to_string()).unwrap();
        path
    }
}
