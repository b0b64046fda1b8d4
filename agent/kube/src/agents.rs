//! The node agents of a cluster, reached through its API server as far as a person's kubeconfig lets them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use crate::ClusterError;
use crate::cluster::client;

/// For one answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the chart labels agents' pods with.
const SELECTOR: &str = "app.kubernetes.io/name=orlop-node";

/// The agents in one namespace.
#[derive(Debug)]
pub struct Agents {
    pods: Api<Pod>,
    namespace: String,
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// The node that it is on.
    pub node: String,
    /// The pod's name.
    pub name: String,
}

/// Why an agent can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// No cluster to ask.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The pods can't be listed.
    #[error("can't list the pods of namespace {namespace}: {problem}")]
    List {
        /// Theirs.
        namespace: String,
        /// What the client or the server said.
        problem: String,
    },
    /// No port can be forwarded.
    #[error("can't reach port {port} of pod {namespace}/{pod}: {problem}")]
    Forward {
        /// The pod's.
        namespace: String,
        /// The pod.
        pod: String,
        /// On its loopback.
        port: u16,
        /// What the client or the server said.
        problem: String,
    },
    /// No answer.
    #[error("the Kubernetes API has not answered within {0:?}")]
    Late(Duration),
}

impl Agents {
    /// Those of the cluster of a kubeconfig, or else of `$KUBECONFIG` or `~/.kube/config`, or that this pod runs in.
    /// A context names another cluster than the kubeconfig's current one.
    pub async fn of(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: &str,
    ) -> Result<Self, AgentsError> {
        let pods = Api::namespaced(client(kubeconfig, context).await?, namespace);
        Ok(Self { pods, namespace: namespace.to_owned() })
    }

    /// One for each node that has one, in the order of the nodes' names.
    pub async fn list(&self) -> Result<Vec<AgentPod>, AgentsError> {
        let selected = ListParams::default().labels(SELECTOR);
        let pods = timeout(TIMEOUT, self.pods.list(&selected)).await;
        let pods = pods.map_err(|_| AgentsError::Late(TIMEOUT))?;
        let refused = |error| AgentsError::List {
            namespace: self.namespace.clone(),
            problem: problem(&error, "you need the right to list them"),
        };
        Ok(one_a_node(pods.map_err(refused)?.items))
    }

    /// A connection to a port of the loopback that an agent listens on.
    pub async fn dial(&self, agent: &AgentPod, port: u16) -> Result<DuplexStream, AgentsError> {
        let forwarded = timeout(TIMEOUT, self.pods.portforward(&agent.name, &[port])).await;
        let forwarded = forwarded.map_err(|_| AgentsError::Late(TIMEOUT))?;
        let stream = forwarded.map(|mut forwarder| forwarder.take_stream(port));
        let refused = |error| AgentsError::Forward {
            namespace: self.namespace.clone(),
            pod: agent.name.clone(),
            port,
            problem: problem(&error, "you need the rights to get and to create pods/portforward"),
        };
        // It was asked for this port alone.
        stream.map_err(refused)?.ok_or(AgentsError::Late(TIMEOUT))
    }
}

/// In one line, with what to do about it.
fn problem(error: &kube::Error, rights: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!("{}; {rights}", status.message),
        kube::Error::Api(status) if status.code == 401 => {
            format!("{}; the credentials of your kubeconfig are not accepted, or no longer", status.message)
        }
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

/// Of a node whose agent is being replaced, the new one, once it is ready.
fn one_a_node(pods: Vec<Pod>) -> Vec<AgentPod> {
    let mut best = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        let rank = (is_ready(&pod), pod.metadata.creation_timestamp.clone());
        let Some(name) = pod.metadata.name else { continue };
        match best.get(&node) {
            Some((known, _)) if *known > rank => {}
            _ => drop(best.insert(node, (rank, name))),
        }
    }
    best.into_iter().map(|(node, (_, name))| AgentPod { node, name }).collect()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: Option<&str>, made: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{made}Z")},
            "spec": {"containers": [], "nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_has_one_agent_and_that_is_the_one_that_works() {
        let pods = [
            pod("starting", Some("a"), "09", false),
            pod("old", Some("a"), "01", true),
            pod("leaving", Some("b"), "02", true),
            pod("new", Some("b"), "03", true),
            pod("nowhere", None, "05", false),
            pod("broken", Some("c"), "04", false),
        ];
        let chosen = |mut pods: Vec<Pod>, reversed: bool| {
            if reversed {
                pods.reverse();
            }
            let chosen = one_a_node(pods).into_iter();
            chosen.map(|agent| format!("{} {}", agent.node, agent.name)).collect::<Vec<_>>()
        };
        for reversed in [false, true] {
            assert_eq!(chosen(pods.to_vec(), reversed), ["a old", "b new", "c broken"]);
        }
    }
}
