use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::map::Map;
use crate::name::NamespacedName;
use crate::snapshot::Workload;
use crate::world::security::IpBlock;
use crate::world::{Distribution, Exports, Locality, Resolution};

/// A Kubernetes Service, or a host of a ServiceEntry, with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Namespace and name of the object.
    pub name: NamespacedName,
    /// What the object is.
    pub kind: ServiceKind,
    /// `NAME.NAMESPACE.svc.CLUSTER_DOMAIN`, or the ServiceEntry's host, which may begin with `*.`.
    pub hostname: String,
    /// The addresses that DNS gives: cluster IPs, or those of the ServiceEntry; none when headless.
    pub vips: Vec<IpAddr>,
    /// Further addresses that lead here: external and load-balancer addresses, and blocks of a ServiceEntry.
    pub aliases: Vec<IpBlock>,
    /// Another name that DNS gives instead of addresses: `spec.externalName`.
    pub external_name: Option<String>,
    /// The TCP ports, sorted by number.
    pub ports: Vec<ServicePort>,
    /// The UDP ports of a Kubernetes Service, which DNS has names for and the mesh does not carry.
    pub udp_ports: Vec<ServicePort>,
    /// Where the endpoints are from; `Static` for a Kubernetes Service.
    pub resolution: Resolution,
    /// For this long after a client's last connection the next one goes to the same endpoint.
    pub affinity: Option<Duration>,
    /// The waypoint that stands before it, by the name of its own Service.
    pub waypoint: Option<NamespacedName>,
    /// Who may see it. A Kubernetes Service is seen by all.
    pub exports: Exports,
}

/// What a service is an object of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum ServiceKind {
    /// A `v1` Service.
    #[default]
    Service,
    /// A `networking.istio.io` ServiceEntry.
    ServiceEntry,
}

impl Service {
    /// The TCP port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        let index = self.ports.binary_search_by_key(&number, |port| port.number).ok()?;
        self.ports.get(index)
    }

    /// Whether a host, in lower case, is its own, or one of those that it has by a wildcard.
    pub fn bears(&self, host: &str) -> bool {
        match self.hostname.strip_prefix('*') {
            None => self.hostname == host,
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        }
    }

    /// Whether clients of this namespace may see it.
    pub fn visible_to(&self, namespace: &str) -> bool {
        self.exports.include(namespace)
    }
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The name; empty where it has none.
    pub name: String,
    /// The port of the service's addresses.
    pub number: u16,
    /// What it says that it speaks: `appProtocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// The endpoints, in the order in which they are wanted, seen from this node.
    pub endpoints: Vec<Endpoint>,
    #[serde(skip)]
    wanted: Preference,
    /// Whether the endpoints differ in their weight.
    #[serde(skip)]
    weighted: bool,
    /// Those of `endpoints` that new connections go to, IPv4.
    #[serde(skip)]
    v4: Range<usize>,
    /// Those of `endpoints` that new connections go to, IPv6.
    #[serde(skip)]
    v6: Range<usize>,
}

/// Where one port of a service is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Address and port of the pod or other backend.
    pub address: SocketAddr,
    /// The pod or WorkloadEntry, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// Whether it is ready for new connections.
    pub ready: bool,
    /// It is terminating, and still serves: good for new connections while no endpoint is ready.
    pub draining: bool,
    /// How near it is to this node.
    pub proximity: Proximity,
    /// Where it is.
    #[serde(skip)]
    pub locality: Locality,
    /// What share of the connections it gets, against the others'.
    pub weight: NonZeroU32,
}

/// How near an endpoint is, by the labels `topology.kubernetes.io/zone` and `…/region` of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proximity {
    /// On this node.
    Node,
    /// In the zone of this node.
    Zone,
    /// In the region of this node.
    Region,
    /// Further away, or nobody says where.
    #[default]
    Elsewhere,
}

/// Which endpoints a service wants its connections to go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preference {
    pub distribution: Distribution,
    /// Endpoints of other nodes don't count at all.
    pub node_local: bool,
}

impl ServicePort {
    /// Sorts the endpoints as wanted. One that is listed twice counts once, in its better condition, as the nearer.
    pub(crate) fn new(name: String, number: u16, mut endpoints: Vec<Endpoint>, wanted: Preference) -> Self {
        endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.condition(wanted), endpoint.proximity));
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints.shrink_to_fit();
        endpoints.sort_by_key(|endpoint| endpoint.rank(wanted));
        let best = endpoints.first().map(|endpoint| endpoint.condition(wanted));
        let best = best.filter(|best| *best != Condition::Unusable);
        let nearest = |v4: bool| {
            let of_family = |endpoint: &&Endpoint| {
                Some(endpoint.condition(wanted)) == best && endpoint.address.is_ipv4() == v4
            };
            let Some(first) = endpoints.iter().position(|endpoint| of_family(&endpoint)) else { return 0..0 };
            let step = |endpoint: &Endpoint| wanted.step(endpoint.proximity);
            let same =
                |endpoint: &&Endpoint| of_family(endpoint) && step(endpoint) == step(&endpoints[first]);
            first..first + endpoints[first..].iter().take_while(same).count()
        };
        let (v4, v6) = (nearest(true), nearest(false));
        let weighted = endpoints.windows(2).any(|pair| pair[0].weight != pair[1].weight);
        Self { name, number, app_protocol: None, endpoints, wanted, weighted, v4, v6 }
    }

    pub(crate) fn weighted(&self) -> bool {
        self.weighted
    }

    /// The same with some of the endpoints alone.
    pub(crate) fn only(&self, keep: impl Fn(&Endpoint) -> bool) -> Self {
        let endpoints = self.endpoints.iter().filter(|endpoint| keep(endpoint)).cloned().collect();
        let app_protocol = self.app_protocol.clone();
        Self { app_protocol, ..Self::new(self.name.clone(), self.number, endpoints, self.wanted) }
    }

    /// The ready endpoints.
    pub fn ready(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.endpoints.iter().filter(|endpoint| endpoint.ready)
    }

    /// The endpoints that a connection of a client on this node to `address` may go to.
    ///
    /// They are ready; while no endpoint at all is, they are those that terminate and still serve. Of these they
    /// are of the address's family, if it has any, and of these the nearest, if the service asks for that.
    pub fn eligible(&self, address: IpAddr) -> &[Endpoint] {
        let (same, other) = if address.is_ipv4() { (&self.v4, &self.v6) } else { (&self.v6, &self.v4) };
        &self.endpoints[if same.is_empty() { other.clone() } else { same.clone() }]
    }
}

/// The better comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Ready,
    Draining,
    Unusable,
}

impl Endpoint {
    /// What is reached as it was dialled.
    pub fn at(address: SocketAddr, workload: Option<Arc<Workload>>) -> Self {
        let (proximity, weight) = (Proximity::Elsewhere, NonZeroU32::MIN);
        let locality = Locality::default();
        Self { address, workload, ready: true, draining: false, proximity, locality, weight }
    }

    fn condition(&self, wanted: Preference) -> Condition {
        match self {
            _ if wanted.node_local && self.proximity != Proximity::Node => Condition::Unusable,
            Self { ready: true, .. } => Condition::Ready,
            Self { draining: true, .. } => Condition::Draining,
            _ => Condition::Unusable,
        }
    }

    fn rank(&self, wanted: Preference) -> (Condition, bool, Proximity, SocketAddr) {
        (self.condition(wanted), self.address.is_ipv6(), wanted.step(self.proximity), self.address)
    }
}

impl Preference {
    /// The same for endpoints of which none is preferred to the other.
    fn step(self, proximity: Proximity) -> Proximity {
        match self.distribution {
            Distribution::Any => Proximity::Elsewhere,
            Distribution::Zone => proximity.max(Proximity::Zone),
            Distribution::Node => proximity,
        }
    }
}

/// Finds services by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceIndex {
    cluster_ips: Map<IpAddr, Service>,
    /// The other addresses. Kubernetes Services come first in each list.
    claims: Map<IpBlock, Vec<Arc<Service>>>,
    /// The prefix lengths in `claims`, the longest first, by family.
    lengths: [Vec<u8>; 2],
    /// By host name. Kubernetes Services come first in each list.
    hosts: Map<String, Vec<Arc<Service>>>,
}

impl ServiceIndex {
    /// Of two Services with one address the first by name has it.
    pub fn new(services: &Map<NamespacedName, Service>, entries: &[Arc<Service>]) -> Self {
        let mut cluster_ips = BTreeMap::new();
        for service in services.values() {
            for &vip in &service.vips {
                cluster_ips.entry(vip).or_insert_with(|| service.clone());
            }
        }
        let mut hosts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for service in services.values().chain(entries) {
            hosts.entry(service.hostname.clone()).or_default().push(service.clone());
        }
        let aliases = |service: &Arc<Service>| service.aliases.clone();
        let of_services =
            services.values().flat_map(|service| aliases(service).into_iter().map(move |at| (at, service)));
        let of_entries = entries.iter().flat_map(|entry| {
            let vips = entry.vips.iter().copied().map(IpBlock::single);
            vips.chain(aliases(entry)).map(move |at| (at, entry))
        });
        let mut claims: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (block, service) in of_services.chain(of_entries) {
            claims.entry(block).or_default().push(service.clone());
        }
        let lengths = [false, true].map(|v4| {
            let of_family = claims.keys().filter(|block: &&IpBlock| block.is_ipv4() == v4);
            let mut lengths: Vec<_> = of_family.map(IpBlock::length).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            lengths
        });
        Self {
            cluster_ips: cluster_ips.into_iter().collect(),
            claims: claims.into_iter().collect(),
            lengths,
            hosts: hosts.into_iter().collect(),
        }
    }

    /// Puts a service in the place of an earlier state of it that is found in the same ways. False if it is not.
    pub fn replace(&mut self, then: &Arc<Service>, now: &Arc<Service>) -> bool {
        if (&then.vips, &then.aliases, &then.hostname) != (&now.vips, &now.aliases, &now.hostname) {
            return false;
        }
        for vip in &now.vips {
            if self.cluster_ips.get(vip).is_some_and(|owner| Arc::ptr_eq(owner, then)) {
                self.cluster_ips.insert(*vip, Arc::clone(now));
            }
        }
        let in_list = |list: Option<&mut Vec<Arc<Service>>>| {
            let same = list.into_iter().flatten().filter(|service| Arc::ptr_eq(service, then));
            same.for_each(|service| *service = Arc::clone(now));
        };
        now.aliases.iter().for_each(|block| in_list(self.claims.get_mut(block)));
        in_list(self.hosts.get_mut(&now.hostname));
        true
    }

    pub fn cluster_ip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.cluster_ips.get(&address)
    }

    /// The service of this host name, in lower case, that a client of this namespace may see: its own namespace's, if
    /// there are several.
    pub fn named(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        visible(self.hosts.get(host)?, namespace)
    }

    /// Of the narrowest block that holds the address and that some service claims for clients of this namespace:
    /// a Kubernetes Service, else a ServiceEntry of the namespace itself, else the first that it may see.
    pub fn claimed(&self, namespace: &str, address: IpAddr) -> Option<&Arc<Service>> {
        self.lengths[usize::from(address.is_ipv4())]
            .iter()
            .find_map(|&length| visible(self.claims.get(&IpBlock::new(address, length)?)?, namespace))
    }
}

fn visible<'a>(claims: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    let own =
        |service: &&Arc<Service>| service.kind == ServiceKind::Service || service.name.namespace == namespace;
    let mut visible = claims.iter().filter(|service| service.visible_to(namespace));
    visible.clone().find(own).or_else(|| visible.next())
}
