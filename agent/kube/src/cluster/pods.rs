//! Which pods are watched. An agent watches those of its node, whatever becomes of them, and beside them, in a watch of
//! its own, those of other nodes that can be dialled or dial: whose traffic it may see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orlop_model::World;
use orlop_model::world::Pod;

use super::store::Update;
use crate::object::{Key, Object};

/// Which pods are read of a cluster.
#[derive(Clone, Copy, Debug)]
pub enum Pods<'a> {
    /// All.
    All,
    /// Those that have an address and have not ended.
    Live,
    /// All of this node, and of the others those that have an address and have not ended.
    OfNode(&'a str),
}

/// One of two watches of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Of pods of the agent's own node.
    Own,
    /// Of pods of all other nodes.
    Others,
}

/// What the API server calls live: fields that it selects pods by.
const LIVE: &str = "status.podIP!=,status.phase!=Succeeded,status.phase!=Failed";

impl Pods<'_> {
    /// The watches, each with what it selects (`fieldSelector`).
    pub(super) fn watches(self) -> Vec<(Option<Part>, Option<String>)> {
        match self {
            Self::All => vec![(None, None)],
            Self::Live => vec![(None, Some(LIVE.to_owned()))],
            Self::OfNode(node) => vec![
                (Some(Part::Own), Some(format!("spec.nodeName={node}"))),
                (Some(Part::Others), Some(format!("spec.nodeName!={node},{LIVE}"))),
            ],
        }
    }

    /// Whether there are two watches.
    pub(super) fn are_parted(self) -> bool {
        matches!(self, Self::OfNode(_))
    }
}

/// What two watches say of pods that are one world's. Neither waits for the other: where a name is used again on another
/// node, the new pod may be told of before the end of the old one. Then the own node's counts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The own node's were listed once.
    pub listed: bool,
    own: BTreeSet<Key>,
    /// Of other nodes, of names that the own node has too.
    hidden: BTreeMap<Key, Arc<Pod>>,
}

impl Parts {
    /// Makes of what one watch tells what it is to the world.
    pub fn joined(&mut self, world: &World, part: Part, update: Update) -> Vec<Update> {
        match (part, update) {
            (Part::Own, Update::Listed(_, there)) => {
                self.listed = true;
                let gone: Vec<_> = self.own.difference(&there).cloned().collect();
                gone.into_iter().map(|key| self.ended(key)).collect()
            }
            (Part::Own, Update::Delete(key)) => vec![self.ended(key)],
            (Part::Own, update) => {
                if let Some(key) = update.key() {
                    self.claim(world, key);
                }
                vec![update]
            }
            (Part::Others, Update::Listed(kind, mut there)) => {
                self.hidden.retain(|key, _| there.contains(key));
                there.extend(self.own.iter().cloned());
                vec![Update::Listed(kind, there)]
            }
            (Part::Others, update) => match update.key().filter(|key| self.own.contains(key)) {
                Some(key) => {
                    self.hide(key, update);
                    Vec::new()
                }
                None => vec![update],
            },
        }
    }

    /// The name is the own node's; what the world has of it until now is another's.
    fn claim(&mut self, world: &World, key: Key) {
        if !self.own.contains(&key) {
            let before = key.namespaced().and_then(|name| world.pods.get(name));
            self.hidden.extend(before.map(|pod| (key.clone(), Arc::clone(pod))));
            self.own.insert(key);
        }
    }

    /// The own node has no such pod any more.
    fn ended(&mut self, key: Key) -> Update {
        self.own.remove(&key);
        match self.hidden.remove(&key) {
            Some(pod) => Update::Apply(Object::Pod(pod)),
            None => Update::Delete(key),
        }
    }

    fn hide(&mut self, key: Key, update: Update) {
        match update {
            Update::Apply(Object::Pod(pod)) => drop(self.hidden.insert(key, pod)),
            Update::Delete(_) => drop(self.hidden.remove(&key)),
            // What it was before stays.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cluster::store::Store;
    use crate::object::{Key, Kind, Kinds, Source};

    const OWN: &str = "n1";
    const NAMES: [&str; 2] = ["web-0", "web-1"];

    fn pod(name: &str, node: &str, uid: usize) -> Object {
        let object = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid.to_string()},
            "spec": {"nodeName": node}, "status": {"podIP": "10.0.0.1"},
        });
        Kind::Pod.convert(object, Source::Cluster).unwrap()
    }

    /// What happens to pods, one thing after the other.
    #[derive(Clone, Debug)]
    enum Step {
        /// The name ends, if it is there, and is made anew, unless it is to be gone.
        Remake(usize, Option<bool>),
        /// One of the watches tells the next thing that it knows.
        Hear(Part),
        /// It breaks off, and lists.
        List(Part),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let part = || prop_oneof![Just(Part::Own), Just(Part::Others)];
        let step = prop_oneof![
            (0..NAMES.len(), proptest::option::of(any::<bool>()))
                .prop_map(|(name, own)| Step::Remake(name, own)),
            part().prop_map(Step::Hear),
            part().prop_map(Step::List),
        ];
        proptest::collection::vec(step, 0..40)
    }

    /// An API server, and what each watch has not been told yet.
    #[derive(Default)]
    struct Server {
        there: BTreeMap<Key, (Part, Object)>,
        untold: [VecDeque<Update>; 2],
        made: usize,
    }

    impl Server {
        fn remake(&mut self, name: &str, own: Option<bool>) {
            let key = Key::new(Kind::Pod, "shop", name);
            if let Some((part, _)) = self.there.remove(&key) {
                self.untold[part as usize].push_back(Update::Delete(key.clone()));
            }
            let Some(own) = own else { return };
            self.made += 1;
            let (part, node) = if own { (Part::Own, OWN) } else { (Part::Others, "n2") };
            let object = pod(name, node, self.made);
            self.untold[part as usize].push_back(Update::Apply(object.clone()));
            self.there.insert(key, (part, object));
        }

        /// What it tells who asks for all.
        fn list(&mut self, part: Part) -> Vec<Update> {
            self.untold[part as usize].clear();
            let of_part = self.there.iter().filter(|(_, (of, _))| *of == part);
            let keys = of_part.clone().map(|(key, _)| key.clone()).collect();
            let objects = of_part.map(|(_, (_, object))| Update::Apply(object.clone()));
            objects.chain([Update::Listed(Kind::Pod, keys)]).collect()
        }
    }

    proptest! {
        #[test]
        fn two_watches_in_any_order_end_with_what_there_is(steps in steps()) {
            let (mut server, mut world) = (Server::default(), World::default());
            let mut store = Store::of(Kinds::OfNodes, Pods::OfNode(OWN));
            let mut hear = |part, updates: Vec<Update>| {
                updates.into_iter().for_each(|update| {
                    store.apply(&mut world, Update::OfPart(part, Box::new(update)));
                });
            };
            for part in [Part::Own, Part::Others] {
                hear(part, server.list(part));
            }
            for step in steps {
                match step {
                    Step::Remake(name, own) => server.remake(NAMES[name], own),
                    Step::Hear(part) => hear(part, server.untold[part as usize].pop_front().into_iter().collect()),
                    Step::List(part) => hear(part, server.list(part)),
                }
            }
            for part in [Part::Others, Part::Own] {
                hear(part, std::mem::take(&mut server.untold[part as usize]).into());
            }
            let mut wanted = World::default();
            for (_, object) in server.there.into_values() {
                object.put_if_new(&mut wanted);
            }
            prop_assert_eq!(world, wanted);
        }
    }

    #[test]
    fn pods_are_not_listed_before_both_are() {
        let parts = [Part::Own, Part::Others];
        for order in [parts, [parts[1], parts[0]]] {
            let (mut store, mut world) = (Store::of(Kinds::OfNodes, Pods::OfNode(OWN)), World::default());
            for kind in Kinds::OfNodes.all().filter(|kind| *kind != Kind::Pod) {
                store.apply(&mut world, Update::Listed(kind, BTreeSet::new()));
            }
            for part in order {
                assert!(!store.is_complete());
                let listed = Box::new(Update::Listed(Kind::Pod, BTreeSet::new()));
                store.apply(&mut world, Update::OfPart(part, listed));
            }
            assert!(store.is_complete());
        }
    }
}
