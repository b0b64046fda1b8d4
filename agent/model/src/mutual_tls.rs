use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::snapshot::{Snapshot, Workload};
use crate::world::security::{Mode, PeerAuthentication};
use crate::world::{Pod, World};

/// What PeerAuthentications say of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modes {
    ports: BTreeMap<u16, Said>,
    other: Said,
}

/// A mode, and the PeerAuthentication that says so; `None` where none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    mode: Mode,
    by: Option<Arc<NamespacedName>>,
}

impl Snapshot {
    /// Whether the pod takes connections without mutual TLS on this port of its own.
    ///
    /// The PeerAuthentication that selects the pod counts before that of its namespace, and that before that of
    /// the root namespace; what one leaves UNSET the next says. A pod the snapshot doesn't know is `Strict`.
    pub fn mutual_tls(&self, workload: &Workload, port: u16) -> Mode {
        self.modes(workload).map_or(Mode::Strict, |modes| modes.of(port).mode)
    }

    /// The PeerAuthentication behind [`mutual_tls`](Self::mutual_tls); `None` where none says anything.
    pub fn peer_authentication(&self, workload: &Workload, port: u16) -> Option<Arc<NamespacedName>> {
        self.modes(workload)?.of(port).by.clone()
    }

    /// Tells in one line why a connection without mutual TLS is refused at this port, for a pod that is strict.
    pub fn explain_strict(&self, workload: &Workload, port: u16) -> String {
        let name = &workload.name;
        match self.peer_authentication(workload, port) {
            Some(policy) => format!(
                "PeerAuthentication {policy} asks for mutual TLS on port {port} of {name}, and the connection has none"
            ),
            None => format!("pod {name} is not known any more, and so not whether it takes plaintext"),
        }
    }

    /// Which of the pod's ports take connections with mutual TLS alone; port 0 stands for all others.
    pub fn strict_ports(&self, workload: &Workload) -> BTreeMap<u16, bool> {
        let Some(modes) = self.modes(workload) else { return [(0, true)].into() };
        let other = modes.other.mode == Mode::Strict;
        let ports = modes.ports.iter().map(|(&port, said)| (port, said.mode == Mode::Strict));
        // What says the same as all others say needs no saying.
        [(0, other)]
            .into_iter()
            .chain(ports)
            .filter(|&(port, strict)| strict != (port != 0 && other))
            .collect()
    }

    /// `None` of a pod that the snapshot doesn't know.
    fn modes(&self, workload: &Workload) -> Option<Cow<'_, Modes>> {
        if let Some(modes) = self.local.mutual_tls.get(&workload.name) {
            return Some(Cow::Borrowed(modes));
        }
        // Of a pod that another node guards.
        let (pod, input) = (self.live_pod(&workload.name)?, self.input.as_ref()?);
        Some(Cow::Owned(PeerAuthentications::new(&self.world, &input.settings).of(pod)))
    }
}

impl Modes {
    fn of(&self, port: u16) -> &Said {
        self.ports.get(&port).unwrap_or(&self.other)
    }
}

/// The PeerAuthentications by scope, of which one counts in each: the oldest, then the first by name.
pub(crate) struct PeerAuthentications<'a> {
    root_namespace: &'a str,
    /// Those without a selector, by namespace.
    scopes: HashMap<&'a str, &'a PeerAuthentication>,
    /// Those with a selector, by namespace, the oldest first.
    selecting: HashMap<&'a str, Vec<&'a PeerAuthentication>>,
    /// To be shared by all pods.
    names: HashMap<&'a NamespacedName, Arc<NamespacedName>>,
}

impl<'a> PeerAuthentications<'a> {
    pub fn new(world: &'a World, settings: &'a Settings) -> Self {
        let mut sorted: Vec<_> = world.peer_authentications.values().collect();
        sorted.sort_by_key(|policy| policy.created);
        let root_namespace = settings.root_namespace.as_str();
        let names = sorted.iter().map(|policy| (&policy.name, Arc::new(policy.name.clone()))).collect();
        let mut found = Self { root_namespace, scopes: HashMap::new(), selecting: HashMap::new(), names };
        for policy in sorted {
            let namespace = policy.name.namespace.as_str();
            if policy.selector.is_empty() {
                found.scopes.entry(namespace).or_insert(&**policy);
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

    /// What they say of the pod.
    pub fn of(&self, pod: &Pod) -> Modes {
        let own = self.selecting(pod);
        let wider = [self.of_scope(&pod.name.namespace), self.of_scope(self.root_namespace)];
        let said =
            |mode, policy: &PeerAuthentication| Said { mode, by: self.names.get(&policy.name).cloned() };
        let mut scopes = own.into_iter().chain(wider.into_iter().flatten());
        let other = scopes.find_map(|policy| Some(said(policy.mode?, policy))).unwrap_or_default();
        let port = |policy, mode: Option<Mode>| mode.map_or_else(|| other.clone(), |mode| said(mode, policy));
        let ports = own
            .into_iter()
            .flat_map(|policy| policy.ports.iter().map(move |(&number, &mode)| (number, policy, mode)));
        Modes {
            ports: ports.map(|(number, policy, mode)| (number, port(policy, mode))).collect(),
            other: other.clone(),
        }
    }
}
