use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orlop_model::World;

use super::head::Head;
use super::pods::{Part, Parts, Pods};
use super::watch::Problem;
use crate::field::FieldError;
use crate::object::{Key, Kind, Kinds, Object};
use crate::stand_in::stand_in;

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Update {
    /// This is what the object is now.
    Apply(Object),
    /// The object is there, and can't be understood; its text may say whom it is for.
    Malformed(Key, FieldError, String),
    /// The object, and beside it what it says of itself.
    Told(Key, Arc<Head>, Box<Update>),
    /// What one of two watches of pods tells.
    OfPart(Part, Box<Update>),
    /// The object is gone.
    Delete(Key),
    /// These are all objects of the kind.
    Listed(Kind, BTreeSet<Key>),
    /// The kind can't be asked for.
    Failing(Kind, Problem),
    /// It can again.
    Works(Kind),
}

impl Update {
    /// What it is about, if that is one object.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Apply(object) => Some(object.key()),
            Self::Malformed(key, ..) | Self::Told(key, ..) | Self::Delete(key) => Some(key.clone()),
            Self::OfPart(_, update) => update.key(),
            Self::Listed(..) | Self::Failing(..) | Self::Works(_) => None,
        }
    }
}

/// Keeps a world in step with what watches tell.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Objects that can't be understood, and what was said of them.
    malformed: BTreeMap<Key, FieldError>,
    /// Kinds that were not listed yet.
    missing: BTreeSet<Kind>,
    /// Where pods are in two watches.
    parts: Option<Parts>,
    failing: BTreeMap<Kind, String>,
}

impl Store {
    /// Of these kinds and pods.
    pub fn of(kinds: Kinds, pods: Pods<'_>) -> Self {
        let parts = pods.are_parted().then(Parts::default);
        Self { missing: kinds.all().collect(), parts, ..Self::default() }
    }

    /// Whether every kind was listed once.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.parts.as_ref().is_none_or(|parts| parts.listed)
    }

    /// Whether this kind was not listed yet.
    pub fn is_missing(&self, kind: Kind) -> bool {
        self.missing.contains(&kind)
    }

    /// Takes an update over into the world. Says whether that has changed.
    pub fn apply(&mut self, world: &mut World, update: Update) -> bool {
        match update {
            Update::Apply(object) => {
                let key = object.key();
                if self.malformed.remove(&key).is_some() {
                    tracing::info!("{key}: good again");
                }
                object.put_if_new(world)
            }
            Update::Malformed(key, error, text) => self.malformed(world, key, error, &text),
            Update::Told(_, _, update) => self.apply(world, *update),
            Update::OfPart(part, update) => {
                let joined = match &mut self.parts {
                    Some(parts) => parts.joined(world, part, *update),
                    None => vec![*update],
                };
                joined.into_iter().fold(false, |changed, update| self.apply(world, update) | changed)
            }
            Update::Delete(key) => {
                self.malformed.remove(&key);
                key.remove_from(world)
            }
            Update::Listed(kind, there) => {
                self.missing.remove(&kind);
                let gone: Vec<_> = keys(world, kind).into_iter().filter(|key| !there.contains(key)).collect();
                self.malformed.retain(|key, _| key.kind() != kind || there.contains(key));
                gone.iter().filter(|key| key.remove_from(world)).count() > 0
            }
            Update::Failing(kind, problem) => {
                self.fails(kind, problem.text);
                false
            }
            Update::Works(kind) => {
                if self.failing.remove(&kind).is_some() && self.failing.is_empty() {
                    tracing::info!("the Kubernetes API can be asked again");
                }
                false
            }
        }
    }

    /// What was good before stays. A policy that never was must not be taken for none.
    fn malformed(&mut self, world: &mut World, key: Key, error: FieldError, text: &str) -> bool {
        let before = key.is_in(world);
        let stand_in = if before { None } else { stand_in(&key, text) };
        if self.malformed.get(&key) != Some(&error) {
            let meanwhile = match (before, &stand_in) {
                (true, _) => "what it was before stays in force",
                (false, Some(_)) => "until it can be understood nothing passes where it is for",
                (false, None) => "it is left out",
            };
            tracing::error!("{key}: {error} ({meanwhile})");
        }
        self.malformed.insert(key, error);
        stand_in.is_some_and(|object| object.put_if_new(world))
    }

    /// Of an API server that is away one line is enough; what it forbids is said of each kind.
    fn fails(&mut self, kind: Kind, problem: String) {
        let (first, kind_name) = (self.failing.is_empty(), kind.name());
        if self.failing.get(&kind) == Some(&problem) {
            return;
        }
        if first || problem.contains("orbidden") {
            tracing::warn!(
                kind = kind_name,
                problem,
                "the Kubernetes API can't be asked; what is in force stays"
            );
        } else {
            tracing::debug!(kind = kind_name, problem, "the Kubernetes API can't be asked");
        }
        self.failing.insert(kind, problem);
    }
}

fn keys(world: &World, kind: Kind) -> Vec<Key> {
    match kind {
        Kind::Namespace => world.namespaces.keys().cloned().map(Key::Namespace).collect(),
        Kind::Node => world.nodes.keys().cloned().map(Key::Node).collect(),
        Kind::Pod => world.pods.keys().cloned().map(Key::Pod).collect(),
        Kind::Service => world.services.keys().cloned().map(Key::Service).collect(),
        Kind::EndpointSlice => world.endpoint_slices.keys().cloned().map(Key::EndpointSlice).collect(),
        Kind::ServiceEntry => world.service_entries.keys().cloned().map(Key::ServiceEntry).collect(),
        Kind::WorkloadEntry => world.workload_entries.keys().cloned().map(Key::WorkloadEntry).collect(),
        Kind::AuthorizationPolicy => {
            world.authorization_policies.keys().cloned().map(Key::AuthorizationPolicy).collect()
        }
        Kind::PeerAuthentication => {
            world.peer_authentications.keys().cloned().map(Key::PeerAuthentication).collect()
        }
        Kind::VirtualService => world.virtual_services.keys().cloned().map(Key::VirtualService).collect(),
        Kind::DestinationRule => world.destination_rules.keys().cloned().map(Key::DestinationRule).collect(),
        Kind::RequestAuthentication => {
            world.request_authentications.keys().cloned().map(Key::RequestAuthentication).collect()
        }
        Kind::RateLimit => world.rate_limits.keys().cloned().map(Key::RateLimit).collect(),
        Kind::ExtensionProvider => {
            world.extension_providers.keys().cloned().map(Key::ExtensionProvider).collect()
        }
        Kind::Gateway => world.gateways.keys().cloned().map(Key::Gateway).collect(),
        Kind::Telemetry => world.telemetries.keys().cloned().map(Key::Telemetry).collect(),
        Kind::HttpRoute => world.http_routes.keys().cloned().map(Key::HttpRoute).collect(),
        Kind::GrpcRoute => world.grpc_routes.keys().cloned().map(Key::GrpcRoute).collect(),
        Kind::TlsRoute => world.tls_routes.keys().cloned().map(Key::TlsRoute).collect(),
        Kind::TcpRoute => world.tcp_routes.keys().cloned().map(Key::TcpRoute).collect(),
        Kind::ReferenceGrant => world.reference_grants.keys().cloned().map(Key::ReferenceGrant).collect(),
        Kind::BackendTls => world.backend_tls.keys().cloned().map(Key::BackendTls).collect(),
        Kind::ConfigMap => world.config_maps.keys().cloned().map(Key::ConfigMap).collect(),
    }
}

#[cfg(test)]
mod tests {
    use orlop_model::Text;
    use orlop_model::world::security::{Action, Mode};
    use serde_json::json;

    use super::*;
    use crate::object::Source;

    #[test]
    fn what_a_list_does_not_hold_is_gone() {
        let (mut store, mut world) = (Store::default(), World::default());
        for name in ["a", "b"] {
            assert!(store.apply(&mut world, Update::Apply(pod(name, "10.0.0.1"))));
        }
        let there = BTreeSet::from([Key::new(Kind::Pod, "shop", "b")]);
        assert!(store.apply(&mut world, Update::Listed(Kind::Pod, there.clone())));
        assert_eq!(keys(&world, Kind::Pod), there.iter().cloned().collect::<Vec<_>>());
        assert!(!store.apply(&mut world, Update::Listed(Kind::Pod, there)));
    }

    #[test]
    fn an_update_that_says_nothing_new_changes_nothing() {
        let (mut store, mut world) = (Store::default(), World::default());
        assert!(store.apply(&mut world, Update::Apply(pod("a", "10.0.0.1"))));
        assert!(!store.apply(&mut world, Update::Apply(pod("a", "10.0.0.1"))));
        assert!(store.apply(&mut world, Update::Apply(pod("a", "10.0.0.2"))));
    }

    #[test]
    fn a_malformed_object_stays_as_it_was() {
        let (mut store, mut world) = (Store::default(), World::default());
        store.apply(&mut world, Update::Apply(pod("a", "10.0.0.1")));
        let before = world.clone();
        assert!(!store.apply(&mut world, malformed(Key::new(Kind::Pod, "shop", "a"), "{}")));
        assert!(!store.apply(&mut world, malformed(Key::new(Kind::Pod, "shop", "b"), "{}")));
        assert_eq!(world, before);
    }

    #[test]
    fn a_policy_that_was_never_understood_lets_nothing_pass() {
        let (mut store, mut world) = (Store::default(), World::default());
        let text = r#"{"spec": {"selector": {"matchLabels": {"app": "web"}}, "rules": 7}}"#;
        assert!(store.apply(&mut world, malformed(Key::new(Kind::AuthorizationPolicy, "shop", "a"), text)));
        let policy = world.authorization_policies.values().next().unwrap();
        assert_eq!((policy.action, policy.rules.len()), (Action::Deny, 1));
        assert_eq!(policy.selector.get("app").map(Text::as_str), Some("web"));
        assert!(store.apply(&mut world, malformed(Key::new(Kind::PeerAuthentication, "shop", "a"), "{}")));
        let policy = world.peer_authentications.values().next().unwrap();
        assert_eq!(policy.mode, Some(Mode::Strict));
    }

    #[test]
    fn every_kind_must_be_listed_once() {
        for kinds in [Kinds::OfNodes, Kinds::OfWaypoints] {
            let (mut store, mut world) = (Store::of(kinds, Pods::All), World::default());
            for kind in kinds.all() {
                assert!(!store.is_complete());
                store.apply(&mut world, Update::Listed(kind, BTreeSet::new()));
            }
            assert!(store.is_complete());
        }
    }

    fn pod(name: &str, address: &str) -> Object {
        let object = json!({
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"},
            "status": {"podIP": address},
        });
        Kind::Pod.convert(object, Source::Cluster).unwrap()
    }

    fn malformed(key: Key, text: &str) -> Update {
        Update::Malformed(key, FieldError::new("spec", "is wrong"), text.to_owned())
    }
}
