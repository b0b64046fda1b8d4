use std::collections::{BTreeMap, HashMap};

use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::snapshot::{Snapshot, Workload};
use crate::world::security::{Mode, PeerAuthentication};
use crate::world::{Pod, World};

/// What PeerAuthentications say of pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct MutualTls {
    by_workload: HashMap<NamespacedName, Modes>,
}

#[derive(Clone, Debug)]
struct Modes {
    ports: BTreeMap<u16, Mode>,
    other: Mode,
}

impl Snapshot {
    /// Whether the pod takes connections without mutual TLS on this port of its own.
    ///
    /// The PeerAuthentication that selects the pod counts before that of its namespace, and that before that of
    /// the root namespace; what one leaves UNSET the next says. A pod the snapshot doesn't know is `Strict`.
    pub fn mutual_tls(&self, workload: &Workload, port: u16) -> Mode {
        match self.mutual_tls.by_workload.get(&workload.name) {
            Some(modes) => modes.ports.get(&port).copied().unwrap_or(modes.other),
            None => Mode::Strict,
        }
    }

    /// Which of the pod's ports take connections with mutual TLS alone; port 0 stands for all others.
    pub fn strict_ports(&self, workload: &Workload) -> BTreeMap<u16, bool> {
        let Some(modes) = self.mutual_tls.by_workload.get(&workload.name) else { return [(0, true)].into() };
        let other = modes.other == Mode::Strict;
        let ports = modes.ports.iter().map(|(&port, &mode)| (port, mode == Mode::Strict));
        // What says the same as all others say needs no saying.
        [(0, other)]
            .into_iter()
            .chain(ports)
            .filter(|&(port, strict)| strict != (port != 0 && other))
            .collect()
    }
}

impl MutualTls {
    pub fn new<'p>(in_force: &PeerAuthentications<'_>, pods: impl Iterator<Item = &'p Pod>) -> Self {
        Self { by_workload: pods.map(|pod| (pod.name.clone(), in_force.of(pod))).collect() }
    }
}

/// The PeerAuthentications by scope, of which one counts in each: the oldest, then the first by name.
pub(crate) struct PeerAuthentications<'a> {
    root_namespace: &'a str,
    /// Those without a selector, by namespace.
    scopes: HashMap<&'a str, &'a PeerAuthentication>,
    /// Those with a selector, by namespace, the oldest first.
    selecting: HashMap<&'a str, Vec<&'a PeerAuthentication>>,
}

impl<'a> PeerAuthentications<'a> {
    pub fn new(world: &'a World, settings: &'a Settings) -> Self {
        let mut sorted: Vec<_> = world.peer_authentications.values().collect();
        sorted.sort_by_key(|policy| policy.created);
        let root_namespace = settings.root_namespace.as_str();
        let mut found = Self { root_namespace, scopes: HashMap::new(), selecting: HashMap::new() };
        for policy in sorted {
            let namespace = policy.name.namespace.as_str();
            if policy.selector.is_empty() {
                found.scopes.entry(namespace).or_insert(policy);
            } else if namespace != root_namespace {
                // In the root namespace a selector has no meaning that Istio would honour.
                found.selecting.entry(namespace).or_default().push(policy);
            }
        }
        found
    }

    /// The policy without a selector that counts in this namespace.
    pub fn of_scope(&self, namespace: &str) -> Option<&'a PeerAuthentication> {
        self.scopes.get(namespace).copied()
    }

    /// The policy that counts of those that select the pod.
    pub fn selecting(&self, pod: &Pod) -> Option<&'a PeerAuthentication> {
        let candidates = self.selecting.get(pod.name.namespace.as_str())?;
        let selects = |policy: &&&PeerAuthentication| {
            policy.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        candidates.iter().find(selects).copied()
    }

    fn of(&self, pod: &Pod) -> Modes {
        let own = self.selecting(pod);
        let wider = [self.of_scope(&pod.name.namespace), self.of_scope(self.root_namespace)];
        let other = own.into_iter().chain(wider.into_iter().flatten()).find_map(|policy| policy.mode);
        let other = other.unwrap_or_default();
        let ports = own.into_iter().flat_map(|policy| &policy.ports);
        Modes { ports: ports.map(|(&port, mode)| (port, mode.unwrap_or(other))).collect(), other }
    }
}
