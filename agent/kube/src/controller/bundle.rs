use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Patch, PatchParams};
use kube::core::Status;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Error, Resource, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use crate::controller::{Backoff, FIELD_MANAGER};

/// The ConfigMap with the roots that everybody is to trust, in every namespace.
pub const BUNDLE: &str = "orlop-ca-root";

/// The same, under the name that Istio gives it: not written where somebody else does.
pub const ISTIO_BUNDLE: &str = "istio-ca-root-cert";

/// Its key, in Istio's layout.
const KEY: &str = "root-cert.pem";

/// Keeps the roots in a ConfigMap of every namespace, for the replica that leads.
pub struct BundlePublisher {
    client: Client,
    roots: watch::Receiver<String>,
    published: watch::Sender<String>,
    /// Namespaces where somebody else owns [`ISTIO_BUNDLE`], told once.
    foreign: HashSet<String>,
}

#[derive(Default)]
struct Known {
    namespaces: HashSet<String>,
    /// What each ConfigMap says, by namespace and name.
    bundles: HashMap<(String, String), Option<String>>,
}

enum Seen {
    Namespace(Event<Namespace>),
    Bundle(&'static str, Event<ConfigMap>),
    Failed(watcher::Error),
}

impl BundlePublisher {
    /// Publishes what `roots` says: nothing, as long as it is empty. What every namespace has, `published` says.
    pub fn new(client: Client, roots: watch::Receiver<String>, published: watch::Sender<String>) -> Self {
        Self { client, roots, published, foreign: HashSet::new() }
    }

    /// Writes what is missing or differs, for ever.
    pub async fn run(mut self) {
        let mut events = self.events();
        let (mut known, mut listed) = (Known::default(), Known::default());
        // Namespaces, and the ConfigMaps of both names.
        let mut to_list: HashSet<&'static str> = ["", BUNDLE, ISTIO_BUNDLE].into();
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut retry = false;
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Seen::Namespace(event) => known.take_namespace(event, &mut listed, &mut to_list),
                    Seen::Bundle(name, event) => known.take_bundle(name, event, &mut listed, &mut to_list),
                    Seen::Failed(error) => {
                        tracing::warn!(%error, "cannot follow namespaces and their bundles");
                        backoff.wait().await;
                        continue;
                    }
                },
                changed = self.roots.changed() => if changed.is_err() { return },
                () = backoff.wait(), if retry => {}
            }
            if !to_list.is_empty() {
                continue;
            }
            retry = !self.publish(&mut known).await;
            if !retry {
                backoff.reset();
            }
        }
    }

    /// Whether everything is as it should be.
    async fn publish(&mut self, known: &mut Known) -> bool {
        let roots = self.roots.borrow_and_update().clone();
        if roots.is_empty() {
            return true;
        }
        let mut complete = true;
        for (namespace, name) in known.outdated(&roots) {
            if name == ISTIO_BUNDLE && self.foreign.contains(&namespace) {
                continue;
            }
            match self.apply(&namespace, name, &roots).await {
                Ok(()) => {
                    known.bundles.insert((namespace, name.to_owned()), Some(roots.clone()));
                }
                Err(Error::Api(status)) if has_gone(&status) => {}
                Err(Error::Api(status)) if status.is_conflict() => {
                    tracing::warn!(namespace, name, reason = status.message, "left to whoever writes it");
                    self.foreign.insert(namespace);
                }
                Err(error) => {
                    tracing::warn!(namespace, name, %error, "cannot publish the roots");
                    complete = false;
                }
            }
        }
        if complete {
            self.published.send_replace(roots);
        }
        complete
    }

    async fn apply(&self, namespace: &str, name: &str, roots: &str) -> Result<(), Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER}},
            "data": {KEY: roots},
        });
        let params = PatchParams { force: name == BUNDLE, ..PatchParams::apply(FIELD_MANAGER) };
        maps.patch(name, &params, &Patch::Apply(&map)).await.map(drop)
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = Seen> + Send>> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespaces = watcher(namespaces, watcher::Config::default());
        let bundle = |name: &'static str| {
            let maps: Api<ConfigMap> = Api::all(self.client.clone());
            let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
            seen(watcher(maps, only), move |event| Seen::Bundle(name, event))
        };
        let bundles = stream::select(bundle(BUNDLE), bundle(ISTIO_BUNDLE));
        Box::pin(stream::select(seen(namespaces, Seen::Namespace), bundles))
    }
}

fn seen<K: Resource>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    seen: impl Fn(Event<K>) -> Seen,
) -> impl Stream<Item = Seen> {
    events.map(move |event| match event {
        Ok(event) => seen(event),
        Err(error) => Seen::Failed(error),
    })
}

impl Known {
    fn take_namespace(
        &mut self,
        event: Event<Namespace>,
        listed: &mut Self,
        to_list: &mut HashSet<&'static str>,
    ) {
        let stays = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_none();
        match event {
            Event::Init => listed.namespaces.clear(),
            Event::InitApply(namespace) if stays(&namespace) => {
                listed.namespaces.insert(namespace.name_any());
            }
            Event::InitDone => {
                self.namespaces = std::mem::take(&mut listed.namespaces);
                to_list.remove("");
            }
            Event::Apply(namespace) if stays(&namespace) => {
                self.namespaces.insert(namespace.name_any());
            }
            Event::Apply(namespace) | Event::Delete(namespace) => {
                self.namespaces.remove(&namespace.name_any());
            }
            Event::InitApply(_) => {}
        }
    }

    fn take_bundle(
        &mut self,
        name: &'static str,
        event: Event<ConfigMap>,
        listed: &mut Self,
        to_list: &mut HashSet<&'static str>,
    ) {
        let of = |map: &ConfigMap| (map.namespace().unwrap_or_default(), name.to_owned());
        let roots =
            |map: &ConfigMap| map.data.as_ref().and_then(|data: &BTreeMap<_, _>| data.get(KEY).cloned());
        match event {
            Event::Init => listed.bundles.retain(|(_, other), _| other != name),
            Event::InitApply(map) => {
                listed.bundles.insert(of(&map), roots(&map));
            }
            Event::InitDone => {
                self.bundles.retain(|(_, other), _| other != name);
                self.bundles.extend(listed.bundles.extract_if(|(_, other), _| other == name));
                to_list.remove(name);
            }
            Event::Apply(map) => {
                self.bundles.insert(of(&map), roots(&map));
            }
            Event::Delete(map) => {
                self.bundles.remove(&of(&map));
            }
        }
    }

    fn outdated(&self, roots: &str) -> Vec<(String, &'static str)> {
        let mut outdated = Vec::new();
        for namespace in &self.namespaces {
            for name in [BUNDLE, ISTIO_BUNDLE] {
                let found = self.bundles.get(&(namespace.clone(), name.to_owned()));
                if found.and_then(Option::as_deref) != Some(roots) {
                    outdated.push((namespace.clone(), name));
                }
            }
        }
        outdated
    }
}

/// Whether the namespace has gone, or is going. Whatever else forbids the roots there leaves it without them.
pub(super) fn has_gone(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_not_found() || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
