//! The certificates that BackendTLSPolicies name, copied to where waypoints and gateways may read them.
//!
//! A right to read can't be limited to the ConfigMaps that somebody names. So the controller alone has it for all, and
//! puts what is named into one ConfigMap of each namespace, whose name is always the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use orlop_model::world::config_map::{COPIES, KEY};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::bundle::has_gone;
use super::{CallError, FIELD_MANAGER, NamedConfigMaps};

/// Between two looks at what has been copied: nobody tells of a change.
const LOOK: Duration = Duration::from_secs(10);
/// How long one namespace may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// All copies of a namespace, in bytes: what a ConfigMap has room for, with a reserve for what is around.
const MAX_COPIES: usize = 1000 << 10;

/// Keeps the copies, for the replica that leads.
pub struct CertificateCopies {
    client: Client,
    named: watch::Receiver<Option<NamedConfigMaps>>,
    /// By namespace, what was written.
    written: HashMap<String, BTreeMap<String, String>>,
}

impl CertificateCopies {
    pub(super) fn new(client: Client, named: watch::Receiver<Option<NamedConfigMaps>>) -> Self {
        Self { client, named, written: HashMap::new() }
    }

    /// Copies what is missing or differs, for ever.
    pub async fn run(mut self) {
        loop {
            let named = self.named.borrow_and_update().clone().unwrap_or_default();
            let mut namespaces = named;
            // What nobody names any more is not left there.
            for namespace in self.written.keys() {
                namespaces.entry(namespace.clone()).or_default();
            }
            for (namespace, names) in &namespaces {
                let problem = match timeout(PATIENCE, self.copy(namespace, names.iter())).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "it took too long".to_owned(),
                };
                tracing::warn!(namespace, problem, "certificates of BackendTLSPolicies are not copied");
            }
            tokio::select! {
                changed = self.named.changed() => if changed.is_err() { return },
                () = sleep(LOOK), if !namespaces.is_empty() => {}
            }
        }
    }

    /// Of one namespace. What can't be read leaves there what is.
    async fn copy(
        &mut self,
        namespace: &str,
        names: impl ExactSizeIterator<Item = &String>,
    ) -> Result<(), CallError> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let is_named = names.len() > 0;
        let (mut found, mut room) = (BTreeMap::new(), MAX_COPIES);
        for name in names {
            let read = maps.get_opt(name).await;
            let read = read.map_err(CallError::new(format!("read ConfigMap {namespace}/{name}")))?;
            let Some(text) = read.and_then(|map| map.data?.remove(KEY)) else { continue };
            match room.checked_sub(name.len() + text.len()) {
                Some(left) => room = left,
                None => {
                    tracing::warn!(
                        namespace,
                        name,
                        "has no room among the certificates of BackendTLSPolicies"
                    );
                    continue;
                }
            }
            found.insert(name.clone(), text);
        }
        let read = maps.get_opt(COPIES).await;
        let read = read.map_err(CallError::new(format!("read ConfigMap {namespace}/{COPIES}")))?;
        let there = read.and_then(|map| map.data).unwrap_or_default();
        // Somebody else may have changed it.
        let is_there = found.iter().all(|(name, text)| there.get(name) == Some(text));
        // What somebody else has put there is left.
        let is_more = there.len() > found.len() && self.written.get(namespace) != Some(&found);
        if !is_there || is_more {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": COPIES, "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER}},
                "data": found,
            });
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let written = maps.patch(COPIES, &params, &Patch::Apply(&map)).await;
            match written {
                // The namespace has gone.
                Err(kube::Error::Api(status)) if !is_named && has_gone(&status) => {}
                written => {
                    drop(written.map_err(CallError::new(format!("write ConfigMap {namespace}/{COPIES}")))?)
                }
            }
        }
        match is_named {
            true => self.written.insert(namespace.to_owned(), found),
            false => self.written.remove(namespace),
        };
        Ok(())
    }
}
