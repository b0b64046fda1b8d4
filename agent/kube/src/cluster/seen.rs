use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Client;
use orlop_model::World;
use tokio::sync::watch as channel;

use super::head::Head;
use super::pods::Pods;
use super::store::{Store, Update};
use super::watch::{Definitions, Telling};
use super::{ClusterError, Keeper};
use crate::object::{Key, Kinds};

/// A cluster's world, and what the objects say of themselves that have conditions of ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub world: World,
    /// Grows whenever the world changes.
    pub revision: u64,
    pub heads: BTreeMap<Key, Arc<Head>>,
}

impl Seen {
    /// Watches the cluster until the receiver and all its clones are dropped. Waits until everything has been listed
    /// once.
    pub async fn watch(
        client: &Client,
        kinds: Kinds,
        definitions: &channel::Receiver<Definitions>,
    ) -> Result<channel::Receiver<Arc<Self>>, ClusterError> {
        let mut keeper = Keeper::start_with(client, kinds, Pods::All, Telling::Heads, definitions);
        let mut seen = Self::default();
        while !keeper.store.is_complete() {
            let update = keeper.updates.recv().await.ok_or(ClusterError::Ended)?;
            seen.apply(&mut keeper.store, update);
        }
        let (sender, receiver) = channel::channel(Arc::new(seen));
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = keeper.run_seen(&sender) => {}
            }
        });
        Ok(receiver)
    }

    /// Takes an update over. Says whether that has changed anything.
    fn apply(&mut self, store: &mut Store, update: Update) -> bool {
        let of_heads = self.apply_to_heads(&update);
        let of_world = store.apply(&mut self.world, update);
        self.revision += u64::from(of_world);
        of_heads || of_world
    }

    fn apply_to_heads(&mut self, update: &Update) -> bool {
        match update {
            Update::Told(key, head, _) => {
                self.heads.insert(key.clone(), Arc::clone(head)).as_ref() != Some(head)
            }
            Update::Delete(key) => self.heads.remove(key).is_some(),
            Update::Listed(kind, there) => {
                let before = self.heads.len();
                self.heads.retain(|key, _| key.kind() != *kind || there.contains(key));
                self.heads.len() != before
            }
            Update::Apply(_)
            | Update::Malformed(..)
            | Update::OfPart(..)
            | Update::Failing(..)
            | Update::Works(_) => false,
        }
    }
}

impl Keeper {
    async fn run_seen(&mut self, sender: &channel::Sender<Arc<Seen>>) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            sender.send_if_modified(|seen| {
                // In place, unless somebody still works with it.
                let seen = Arc::make_mut(seen);
                batch.drain(..).fold(false, |changed, update| seen.apply(&mut self.store, update) | changed)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::object::{Kind, Source};

    #[test]
    fn what_changes_in_the_head_alone_is_no_change_of_the_world() {
        let (mut seen, mut store) = (Seen::default(), Store::of(Kinds::OfWaypoints, Pods::All));
        let kind = Kind::AuthorizationPolicy;
        let key = |name: &str| Key::new(kind, "shop", name);
        let head = |version: &str| Arc::new(Head { resource_version: version.to_owned(), ..Head::default() });
        let told = |name: &str, version: &str| {
            let object =
                json!({"apiVersion": "", "kind": "", "metadata": {"name": name, "namespace": "shop"}});
            let object = kind.convert(object, Source::Cluster).unwrap();
            Update::Told(key(name), head(version), Box::new(Update::Apply(object)))
        };
        for name in ["a", "b", "c"] {
            assert!(seen.apply(&mut store, told(name, "1")));
        }
        assert_eq!(seen.revision, 3);
        assert!(!seen.apply(&mut store, told("a", "1")));
        assert!(seen.apply(&mut store, told("a", "2")));
        assert_eq!(seen.revision, 3);
        assert!(seen.apply(&mut store, Update::Delete(key("b"))));
        let there = BTreeSet::from([key("a")]);
        assert!(seen.apply(&mut store, Update::Listed(kind, there)));
        assert!(!seen.apply(&mut store, Update::Listed(Kind::PeerAuthentication, BTreeSet::new())));
        assert_eq!(seen.heads.into_iter().collect::<Vec<_>>(), [(key("a"), head("2"))]);
        assert_eq!((seen.revision, seen.world.authorization_policies.len()), (5, 1));
    }
}
