use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::admit::{Judgement, Refused};
use crate::identity::Identity;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::ports::HBONE_PORT;
use crate::reason::Reason;
use crate::route::{Balance, pick};
use crate::service::{Service, ServiceKind, ServicePort};
use crate::snapshot::{Snapshot, Workload, WorkloadKind};
use crate::text::Text;
use crate::workloads::{Workloads, in_namespace};
use crate::world::{Labels, World};

/// Label of namespaces, services and workloads: the name of a Gateway, or `none`.
const WAYPOINT: &str = "istio.io/use-waypoint";
/// The Gateway's namespace, where it is not the labelled object's.
const WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// Of a waypoint's Service: the GatewayClass that its Gateway is of.
const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
/// The GatewayClasses that every waypoint counts as being of: ours, and that of Istio, whose policies are to go on.
pub(crate) const CLASSES: [&str; 2] = ["orlop-waypoint", "istio-waypoint"];

/// The class that the Service of a waypoint or gateway was made for.
pub(crate) fn class_of_service<'w>(world: &'w World, name: &NamespacedName) -> Option<&'w str> {
    world.services.get(name).and_then(|service| service.labels.get(CLASS)).map(Text::as_str)
}

/// Which waypoints stand before workloads: by namespace, since nothing of another one has a say on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waypoints(Map<Text, OfNamespace>);

/// Of the workloads of a namespace, by kind and name, those that have some.
type OfNamespace = HashMap<(WorkloadKind, Text), Required>;

/// Waypoints are named by their Service, which has the Gateway's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Required {
    /// The one for connections to the workload's own address.
    through: NamespacedName,
    /// Those whose connections the workload takes: the same, and those of its services.
    admitted: BTreeSet<NamespacedName>,
}

/// The proxy of a waypoint that a connection goes through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Whose certificate it must show.
    pub workload: Arc<Workload>,
    /// Where it takes HBONE.
    pub address: SocketAddr,
}

impl Snapshot {
    /// Decides whether a connection of this identity, `None` without mutual TLS, may come to a workload past its
    /// waypoints: if it has some, only they may; else [`Reason::NotThroughWaypoint`].
    pub fn admit_past_waypoints(
        &self,
        workload: &Workload,
        identity: Option<&Identity>,
    ) -> Result<(), Refused> {
        let Some(required) = self.waypoints.of(workload) else { return Ok(()) };
        if identity.is_some_and(|identity| self.is_admitted(required, identity)) {
            return Ok(());
        }
        let names: Vec<_> = required.admitted.iter().map(ToString::to_string).collect();
        let detail =
            format!("{} is reached through the waypoint {} alone", workload.name, names.join(" or "));
        Err(Refused { reason: Reason::NotThroughWaypoint, detail, judgement: Judgement::default() })
    }

    /// Whether this identity is that of a waypoint through which the workload may be reached.
    pub fn is_waypoint_of(&self, workload: &Workload, identity: &Identity) -> bool {
        self.waypoints.of(workload).is_some_and(|required| self.is_admitted(required, identity))
    }

    /// Whether the workload is reached through this waypoint, among others.
    pub(crate) fn stands_before(&self, waypoint: &NamespacedName, workload: &Workload) -> bool {
        self.waypoints.of(workload).is_some_and(|required| required.admitted.contains(waypoint))
    }

    /// Whether the workload has any waypoint.
    pub(crate) fn stands_behind(&self, workload: &Workload) -> bool {
        self.waypoints.of(workload).is_some()
    }

    /// The waypoint between `source` and a service, if there is one.
    pub fn waypoint_of_service(
        &self,
        source: &Workload,
        service: &Service,
        towards: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Result<Option<Hop>, Reason> {
        let through = service.waypoint.as_ref().filter(|name| !self.is_waypoint(name, &source.identity));
        through.map(|name| self.hop(name, towards, balance)).transpose()
    }

    /// The waypoint between `source` and a workload that is reached by its own address, if there is one.
    pub(crate) fn waypoint_of_workload(
        &self,
        source: &Workload,
        workload: &Workload,
        towards: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Result<Option<Hop>, Reason> {
        let required = self.waypoints.of(workload);
        let required = required.filter(|required| !self.is_admitted(required, &source.identity));
        required.map(|required| self.hop(&required.through, towards, balance)).transpose()
    }

    fn is_admitted(&self, required: &Required, identity: &Identity) -> bool {
        required.admitted.iter().any(|name| self.is_waypoint(name, identity))
    }

    /// Whether the waypoint has this identity: that of the pods behind its Service, ready or not.
    fn is_waypoint(&self, name: &NamespacedName, identity: &Identity) -> bool {
        let Some(service) = self.service(name) else { return false };
        let mut workloads =
            service.port(HBONE_PORT).into_iter().flat_map(|port| own_workloads(service, port));
        workloads.any(|workload| workload.identity == *identity)
    }

    fn hop(
        &self,
        name: &NamespacedName,
        towards: SocketAddr,
        balance: &mut dyn Balance,
    ) -> Result<Hop, Reason> {
        let port = self.service(name).and_then(|service| service.port(HBONE_PORT));
        let endpoint = port.and_then(|port| pick(port, towards.ip(), balance));
        // Of what is no workload nobody could say whose certificate is the right one.
        let hop = endpoint.and_then(|endpoint| {
            Some(Hop { workload: endpoint.workload.clone()?, address: endpoint.address })
        });
        hop.ok_or(Reason::NoReadyWaypoint)
    }
}

impl Waypoints {
    /// Those of all workloads of a snapshot.
    pub fn new(snapshot: &Snapshot) -> Self {
        let Workloads { pods, entries, .. } = &snapshot.workloads;
        let mut found = Self::default();
        found.look_again(snapshot, pods.keys().chain(entries.keys()).map(|name| &name.namespace).collect());
        found
    }

    /// Takes over what the workloads of these namespaces have in a later snapshot.
    pub fn look_again(&mut self, snapshot: &Snapshot, namespaces: BTreeSet<&Text>) {
        if snapshot.used_waypoints.is_empty() {
            return;
        }
        let mut entries: HashMap<&Text, Vec<&Arc<Service>>> = HashMap::new();
        for of in snapshot.service_entries.iter() {
            entries.entry(&of.name.namespace).or_default().push(of);
        }
        for namespace in namespaces {
            let entries = entries.get(namespace).into_iter().flatten().copied();
            let found = of_namespace(snapshot, namespace, entries);
            match found.is_empty() {
                true => drop(self.0.remove(namespace)),
                false => drop(self.0.insert(namespace.clone(), found)),
            }
        }
    }

    fn of(&self, workload: &Workload) -> Option<&Required> {
        let name: &NamespacedName = &workload.name;
        self.0.get(&name.namespace)?.get(&(workload.kind, name.name.clone()))
    }
}

/// `entries` are the namespace's ServiceEntries. What is itself behind a waypoint's Service has no waypoint.
fn of_namespace<'s>(
    snapshot: &'s Snapshot,
    namespace: &'s Text,
    entries: impl Iterator<Item = &'s Arc<Service>>,
) -> OfNamespace {
    let Snapshot { world, workloads, used_waypoints, .. } = snapshot;
    let mut served: HashMap<_, BTreeSet<NamespacedName>> = HashMap::new();
    let mut waypoints = HashSet::new();
    for service in in_namespace(&snapshot.services, namespace).map(|(_, service)| service).chain(entries) {
        let is_waypoint = service.kind == ServiceKind::Service && used_waypoints.contains(&service.name);
        for workload in service.ports.iter().flat_map(|port| own_workloads(service, port)) {
            let key = (workload.kind, &workload.name.name);
            served.entry(key).or_default().extend(service.waypoint.clone());
            if is_waypoint {
                waypoints.insert(key);
            }
        }
    }
    let pods = in_namespace(&workloads.pods, namespace);
    let pods = pods.filter_map(|(name, of)| Some((of, &world.pods.get(name)?.labels)));
    let registered = in_namespace(&workloads.entries, namespace);
    let registered =
        registered.filter_map(|(name, of)| Some((of, &world.workload_entries.get(name)?.backend.labels)));
    let mut found = OfNamespace::new();
    for (workload, labels) in pods.chain(registered) {
        let name = &workload.name.name;
        let of_services = served.remove(&(workload.kind, name));
        if !waypoints.contains(&(workload.kind, name))
            && let Some(required) = required(world, namespace, labels, of_services)
        {
            found.insert((workload.kind, name.clone()), required);
        }
    }
    found
}

/// The endpoints of a service that its namespace has a say on. Whatever addresses it lists, another namespace's workloads
/// are no waypoint by that, and have none.
fn own_workloads<'s>(
    service: &'s Service,
    port: &'s ServicePort,
) -> impl Iterator<Item = &'s Arc<Workload>> + use<'s> {
    let workloads = port.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
    workloads.filter(|workload| workload.name.namespace == service.name.namespace)
}

/// The workload's own label counts first, then those of its services. One that is behind no service follows its
/// namespace.
fn required(
    world: &World,
    namespace: &str,
    labels: &Labels,
    of_services: Option<BTreeSet<NamespacedName>>,
) -> Option<Required> {
    let is_served = of_services.is_some();
    let mut admitted = of_services.unwrap_or_default();
    let through = match wish(labels, namespace) {
        Some(own) => own?,
        None if is_served => admitted.first()?.clone(),
        None => wish(&world.namespaces.get(namespace)?.labels, namespace)??,
    };
    admitted.insert(through.clone());
    Some(Required { through, admitted })
}

/// The waypoint of a service with these labels.
pub(crate) fn of_service(world: &World, name: &NamespacedName, labels: &Labels) -> Option<NamespacedName> {
    let of_namespace = || wish(&world.namespaces.get(&name.namespace)?.labels, &name.namespace);
    wish(labels, &name.namespace).or_else(of_namespace).flatten()
}

/// What labels say: nothing, no waypoint, or this one.
pub(crate) fn wish(labels: &Labels, namespace: &str) -> Option<Option<NamespacedName>> {
    let value = |key| labels.get(key).map(Text::as_str).filter(|value| !value.is_empty());
    match value(WAYPOINT)? {
        "none" => Some(None),
        name => Some(Some(NamespacedName::new(value(WAYPOINT_NAMESPACE).unwrap_or(namespace), name))),
    }
}

/// Every waypoint that some label names.
pub(crate) fn used(world: &World) -> BTreeSet<NamespacedName> {
    let namespaces = world.namespaces.iter().map(|(name, namespace)| (name, &namespace.labels));
    let services = world.services.values().map(|service| (&service.name.namespace, &service.labels));
    let entries = world.service_entries.values().map(|entry| (&entry.name.namespace, &entry.labels));
    let pods = world.pods.values().map(|pod| (&pod.name.namespace, &pod.labels));
    let workloads =
        world.workload_entries.values().map(|entry| (&entry.name.namespace, &entry.backend.labels));
    let all = namespaces.chain(services).chain(entries).chain(pods).chain(workloads);
    all.filter_map(|(namespace, labels)| wish(labels, namespace)?).collect()
}
