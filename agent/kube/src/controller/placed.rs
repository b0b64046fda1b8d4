use std::collections::HashMap;
use std::pin::pin;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod as Whole;
use kube::api::ListParams;
use kube::core::{ApiResource, Object};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;

use crate::controller::{Backoff, CallError};
use crate::pod::has_ended;

/// What is read of a pod.
type Pod = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
}

/// Which service accounts have pods on which node.
pub struct PlacedPods {
    client: Client,
    nodes: RwLock<HashMap<String, Node>>,
}

/// The pods of a node that have not ended, by namespace and name.
type Node = HashMap<(String, String), Placed>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    uid: String,
    service_account: String,
}

impl PlacedPods {
    /// Knows nothing until [`PlacedPods::run`] has.
    pub fn new(client: Client) -> Self {
        Self { client, nodes: RwLock::default() }
    }

    /// Whether a pod of this service account is on `node` and has not ended. Where the watch knows of none, the API
    /// server is asked: a pod that was bound a moment ago may want its certificate already.
    pub async fn has(&self, node: &str, namespace: &str, service_account: &str) -> Result<bool, CallError> {
        if self.knows(node, namespace, service_account) {
            return Ok(true);
        }
        let pods: Api<Pod> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Whole>(&()));
        let there = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let found = pods.list(&there).await.map_err(CallError::new(format!("list the pods of {node}")))?;
        Ok(found.iter().filter_map(placed).any(|(_, _, pod)| pod.service_account == service_account))
    }

    /// The node of the pod with this name and UID.
    pub fn node_of(&self, namespace: &str, name: &str, uid: &str) -> Option<String> {
        let key = (namespace.to_owned(), name.to_owned());
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let found = nodes.iter().find(|(_, pods)| pods.get(&key).is_some_and(|pod| pod.uid == uid));
        found.map(|(node, _)| node.clone())
    }

    /// The node of the pod with this name and UID, if it is of this service account.
    pub fn node_of_account(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        service_account: &str,
    ) -> Option<String> {
        let key = (namespace.to_owned(), name.to_owned());
        let wanted = Placed { uid: uid.to_owned(), service_account: service_account.to_owned() };
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let found = nodes.iter().find(|(_, pods)| pods.get(&key) == Some(&wanted));
        found.map(|(node, _)| node.clone())
    }

    /// Follows the pods of every node, for ever.
    pub async fn run(&self) {
        let pods: Api<Pod> = Api::all_with(self.client.clone(), &ApiResource::erase::<Whole>(&()));
        let bound = watcher::Config::default().fields("spec.nodeName!=");
        let mut events = pin!(watcher(pods, bound));
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut listed = HashMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    backoff.reset();
                    self.take(event, &mut listed);
                }
                // What is known stays in force.
                Err(error) => {
                    tracing::warn!(%error, "cannot follow the pods");
                    backoff.wait().await;
                }
            }
        }
    }

    fn take(&self, event: Event<Pod>, listed: &mut HashMap<String, Node>) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => insert(listed, &pod),
            Event::InitDone => *nodes = std::mem::take(listed),
            Event::Apply(pod) => insert(&mut nodes, &pod),
            Event::Delete(pod) => remove(&mut nodes, &pod),
        }
    }

    fn knows(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).is_some_and(|pods| {
            pods.iter().any(|((of, _), pod)| of == namespace && pod.service_account == service_account)
        })
    }
}

fn insert(nodes: &mut HashMap<String, Node>, pod: &Pod) {
    match placed(pod) {
        Some((node, key, placed)) => {
            nodes.entry(node).or_default().insert(key, placed);
        }
        None => remove(nodes, pod),
    }
}

fn remove(nodes: &mut HashMap<String, Node>, pod: &Pod) {
    let Some(node) = &pod.spec.node_name else { return };
    if let Some(pods) = nodes.get_mut(node) {
        pods.remove(&(pod.namespace().unwrap_or_default(), pod.name_any()));
        if pods.is_empty() {
            nodes.remove(node);
        }
    }
}

/// The node, namespace and name of a pod that has one and has not ended.
fn placed(pod: &Pod) -> Option<(String, (String, String), Placed)> {
    let spec = &pod.spec;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if has_ended(phase) {
        return None;
    }
    let node = spec.node_name.clone().filter(|node| !node.is_empty())?;
    let service_account = spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    let placed = Placed { uid: pod.uid().unwrap_or_default(), service_account };
    Some((node, (pod.namespace().unwrap_or_default(), pod.name_any()), placed))
}
