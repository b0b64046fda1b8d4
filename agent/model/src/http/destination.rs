use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::backend_tls::BackendPolicies;
use super::by_host::ByHost;
use super::by_service::ByService;
use super::compile::{Specificity, full_host, specificity};
use super::made::all_same;
use super::rule::Cluster;
use super::traffic::{
    MAX_POLICIES, MAX_SELECTORS, Policy, SubsetPolicy, any_secures, first_policy, policies_of, tls_of_unknown,
};
use crate::compile::Settings;
use crate::endpoints::is_special;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::policy::shown;
use crate::reason::Reason;
use crate::service::{Endpoint, Service, ServiceKind, ServicePort};
use crate::snapshot::{Workload, WorkloadKind};
use crate::world::routing::{DestinationRule, ServerTls, TrafficPolicy};
use crate::world::{Labels, Pod, WorkloadEntry, World};

/// What DestinationRules say of services.
#[derive(Clone, Debug, Default)]
pub(super) struct Destinations {
    root: String,
    backends: BackendPolicies,
    /// Of each host by the namespace of the rules.
    hosts: ByHost<BTreeMap<String, Arc<OfHost>>>,
    /// Of services that routes lead to subsets of.
    subsets: ByService<Arc<Subsets>>,
    /// Those of the world, by whose labels subsets select.
    pods: Map<NamespacedName, Pod>,
    workload_entries: Map<NamespacedName, WorkloadEntry>,
}

/// The subsets of a service that routes lead to, and what they were made of.
#[derive(Clone, Debug)]
struct Subsets {
    service: Arc<Service>,
    names: BTreeSet<String>,
    hosts: Vec<Arc<OfHost>>,
    ports: SubsetPorts,
}

/// By the level and the name of a subset, a service's ports with the subset's endpoints alone.
type SubsetPorts = HashMap<String, HashMap<String, Arc<Vec<ServicePort>>>>;

/// What the rules of one namespace say of one host.
#[derive(Clone, Debug, Default)]
struct OfHost {
    /// The rules.
    rules: Vec<Arc<DestinationRule>>,
    /// Their subsets that routes name.
    named: BTreeSet<String>,
    /// How many policies the namespace might still have before and after these.
    left: (usize, usize),
    /// To the clients that a `workloadSelector` selects.
    selected: Vec<(Labels, Arc<Policy>)>,
    /// To clients of whom nobody knows whether they are selected, if that matters.
    unknown: Option<Arc<Policy>>,
    /// To the others of the namespace, if what is beyond [`MAX_SELECTORS`] asks for TLS.
    beyond: Option<Arc<Policy>>,
    /// To all others.
    all: Option<Arc<Policy>>,
}

/// A client, as DestinationRules tell them apart.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its namespace, whose rules count first.
    pub namespace: &'a str,
    /// The pod, where it is known.
    pub pod: Option<&'a NamespacedName>,
}

/// Whether a `workloadSelector` selects a client.
#[derive(Clone, Copy)]
enum Selecting<'a> {
    /// Not one of another namespace.
    Never,
    /// As these labels say.
    By(&'a Labels),
    /// Nobody knows.
    Unknown,
}

/// Where requests go: endpoints, and how they are to be treated.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    /// The service.
    pub service: &'t Arc<Service>,
    /// Its port, with the subset's endpoints if it is one.
    pub port: &'t ServicePort,
    /// The subset's name.
    pub subset: Option<&'t str>,
    /// Whose rules say how they are treated; empty where nobody's do. What one namespace has its clients do to endpoints
    /// is nothing to the others.
    pub level: &'t str,
    /// What DestinationRules say; `None` where there is none.
    pub policy: Option<&'t Arc<TrafficPolicy>>,
    /// By what connections to it are secured: as a BackendTLSPolicy says, or else a DestinationRule.
    pub tls: Option<&'t ServerTls>,
}

impl Target<'_> {
    /// The endpoints that may be chosen, of this address's family if there are any.
    pub fn eligible(&self, family: IpAddr) -> &[Endpoint] {
        self.port.eligible(family)
    }

    /// The endpoint that is meant by the address that was dialled, as `PASSTHROUGH` has it: one of the service's, or of a
    /// ServiceEntry the address itself. `workload` is what has that. A Service's own address is none that could be
    /// passed on to.
    pub fn passed_through(
        &self,
        dialled: SocketAddr,
        workload: Option<&Arc<Workload>>,
    ) -> Result<Endpoint, Reason> {
        let known = self.port.endpoints.iter().find(|endpoint| endpoint.address == dialled);
        match known {
            Some(known) => Ok(known.clone()),
            None if self.service.kind == ServiceKind::ServiceEntry && !is_special(dialled.ip()) => {
                Ok(Endpoint::at(dialled, workload.cloned()))
            }
            None => Err(Reason::NoHealthyEndpoint),
        }
    }
}

impl Destinations {
    /// Of the rules that the waypoint's namespace may see. `clusters` are the destinations of routes: there are only
    /// those subsets that they name. What has not changed is kept from `before`, which is of an earlier state of the
    /// world with the same settings and waypoint.
    pub fn after<'w>(
        before: &Self,
        world: &'w World,
        settings: &Settings,
        waypoint: &str,
        clusters: impl Iterator<Item = &'w Cluster>,
    ) -> Self {
        let mut by_host: BTreeMap<(&str, String), Vec<&Arc<DestinationRule>>> = BTreeMap::new();
        for rule in world.destination_rules.values().filter(|rule| rule.exports.include(waypoint)) {
            let host = full_host(&rule.host, &rule.name.namespace, settings);
            by_host.entry((&rule.name.namespace, host)).or_default().push(rule);
        }
        let mut led_to: HashMap<*const Service, (&Arc<Service>, BTreeSet<&str>)> = HashMap::new();
        for cluster in clusters {
            if let (Ok(service), Some(subset)) = (&cluster.service, &cluster.subset) {
                let entry = led_to.entry(Arc::as_ptr(service));
                entry.or_insert_with(|| (service, BTreeSet::new())).1.insert(subset);
            }
        }
        let named: BTreeSet<_> = led_to.values().flat_map(|(_, names)| names).copied().collect();
        let mut hosts: ByHost<BTreeMap<String, Arc<OfHost>>> = ByHost::default();
        let mut left: HashMap<&str, usize> = HashMap::new();
        for ((namespace, host), rules) in by_host {
            let left = left.entry(namespace).or_insert(MAX_POLICIES);
            let before = before.hosts.get(&host).and_then(|of| of.get(namespace));
            let own = rules.iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str());
            let named: BTreeSet<_> = own.filter(|name| named.contains(name)).collect();
            let same = before.filter(|of| {
                of.left.0 == *left && same_texts(&of.named, &named) && all_same(&of.rules, &rules)
            });
            let of = match same {
                Some(same) => Arc::clone(same),
                None => Arc::new(OfHost::new(namespace, &rules, &named, *left)),
            };
            *left = of.left.1;
            hosts.entry(&host).insert(namespace.to_owned(), of);
        }
        let mut found = Self {
            root: settings.root_namespace.clone(),
            backends: BackendPolicies::new(world),
            hosts,
            subsets: ByService::default(),
            pods: world.pods.clone(),
            workload_entries: world.workload_entries.clone(),
        };
        let relabelled = before.relabelled(world);
        for (service, names) in led_to.into_values() {
            let hosts: Vec<_> = found.hosts.of(&service.hostname).flat_map(BTreeMap::values).collect();
            let same = before.subsets.get(service).filter(|of| {
                Arc::ptr_eq(&of.service, service)
                    && same_texts(&of.names, &names)
                    && all_same(&of.hosts, &hosts)
                    && !relabelled.have(service)
            });
            let subsets = match same {
                Some(same) => Arc::clone(same),
                None => Arc::new(Subsets {
                    service: Arc::clone(service),
                    ports: subset_ports(service, &hosts, &names, world),
                    names: names.into_iter().map(str::to_owned).collect(),
                    hosts: hosts.into_iter().cloned().collect(),
                }),
            };
            found.subsets.insert(service, subsets);
        }
        found
    }

    /// What has other labels now.
    fn relabelled<'w>(&'w self, world: &'w World) -> Relabelled<'w> {
        let pods = self.pods.differences(&world.pods).filter(|(_, then, now)| {
            let labels = |pod: &Option<&'w Arc<Pod>>| pod.map(|pod| &pod.labels);
            labels(then) != labels(now)
        });
        let entries = self.workload_entries.differences(&world.workload_entries);
        let pods = pods.map(|(name, ..)| (WorkloadKind::Pod, name));
        Relabelled(pods.chain(entries.map(|(name, ..)| (WorkloadKind::WorkloadEntry, name))).collect())
    }

    /// Level by level: the client's namespace, the service's, the root's. The first that has any for the service and the
    /// client counts, and of its hosts the most specific; levels don't merge.
    fn policy(
        &self,
        service: &Service,
        client: &Client<'_>,
        pods: &Map<NamespacedName, Pod>,
    ) -> Option<&Arc<Policy>> {
        let levels = [client.namespace, &service.name.namespace, &self.root];
        levels.into_iter().find_map(|namespace| {
            let selecting = match client.pod {
                _ if namespace != client.namespace => Selecting::Never,
                Some(pod) if pod.namespace != *namespace => Selecting::Never,
                pod => pod
                    .and_then(|pod| pods.get(pod))
                    .map_or(Selecting::Unknown, |pod| Selecting::By(&pod.labels)),
            };
            let of_level = self.hosts.of(&service.hostname).filter_map(|of| of.get(namespace));
            of_level.into_iter().find_map(|of| of.policy(selecting))
        })
    }

    pub fn target<'t>(
        &'t self,
        service: &'t Arc<Service>,
        subset: Option<&'t str>,
        port: u16,
        client: &Client<'_>,
        pods: &Map<NamespacedName, Pod>,
    ) -> Result<Target<'t>, Reason> {
        let policy = self.policy(service, client, pods);
        let level = policy.map_or("", |policy| policy.level.as_str());
        let (ports, levels) = match (subset, policy) {
            (None, policy) => (&service.ports, policy.map(|policy| &policy.whole)),
            (Some(name), policy) => {
                let subset = policy.and_then(|policy| policy.subsets.get(name));
                let subset = subset.ok_or(Reason::NoSuchDestination)?;
                let of_level = self.subsets.get(service).and_then(|of| of.ports.get(level)?.get(name));
                (&**of_level.ok_or(Reason::NoSuchDestination)?, Some(&subset.levels))
            }
        };
        let index =
            ports.binary_search_by_key(&port, |of| of.number).map_err(|_| Reason::NoSuchDestination)?;
        let policy = levels.map(|levels| levels.at(port));
        let port = &ports[index];
        let tls = self.backends.of(service, port).or_else(|| policy.and_then(|policy| policy.tls.as_ref()));
        Ok(Target { service, port, subset, level, policy, tls })
    }

    /// Whether what goes to a port that the service does not list is to be secured, which only what its ports say could
    /// tell how.
    pub fn secures_all(
        &self,
        service: &Service,
        client: &Client<'_>,
        pods: &Map<NamespacedName, Pod>,
    ) -> bool {
        self.policy(service, client, pods).is_some_and(|policy| policy.whole.secure())
    }
}

impl OfHost {
    /// `left` is how many policies its namespace may still have.
    fn new(namespace: &str, all: &[&Arc<DestinationRule>], named: &BTreeSet<&str>, left: usize) -> Self {
        let objects = all.iter().copied().cloned().collect();
        let names = named.iter().map(|&name| name.to_owned()).collect();
        let mut rules: Vec<&DestinationRule> = all.iter().map(|rule| &***rule).collect();
        let refused = |level: &str, why| Some(Arc::new(Policy::refused(format!("{namespace} {level}"), why)));
        rules.sort_by_key(|rule| (rule.created, &rule.name));
        let (selecting, all): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.selector.is_some());
        let why = "a DestinationRule's workloadSelector: the labels of the client are not known";
        let unknown = tls_of_unknown(&selecting, &all, why);
        let unknown = unknown.map(|tls| Arc::new(Policy::secured(format!("{namespace} ?"), tls)));
        let mut by_selector: Vec<(&Labels, Vec<&DestinationRule>)> = Vec::new();
        let mut beyond = Vec::new();
        for rule in selecting {
            let Some(own) = &rule.selector else { continue };
            let has_room = by_selector.len() < MAX_SELECTORS;
            match by_selector.iter_mut().find(|(selector, _)| *selector == own) {
                Some((_, same)) => same.push(rule),
                None if has_room => by_selector.push((own, vec![rule])),
                None => beyond.push(rule),
            }
        }
        for (_, selected) in &mut by_selector {
            // Of these clients too what is for all counts where nothing else is said.
            if first_policy(selected).is_none() {
                selected.extend(&all);
            }
        }
        let needed = by_selector.iter().map(|(_, rules)| &rules[..]).chain([&all[..]]);
        let needed: usize = needed.map(|rules| policies_of(rules, named)).sum();
        if needed > left {
            let why = "the namespace has more DestinationRules than is sensible";
            let all = if any_secures(&rules) { refused("!", why) } else { None };
            return Self { rules: objects, named: names, left: (left, left), all, ..Self::default() };
        }
        let selected = by_selector.into_iter().map(|(selector, rules)| {
            let level = format!("{namespace} {}", shown(selector));
            (selector.clone(), Arc::new(Policy::new(level, &rules, named)))
        });
        let many = "DestinationRules for the host have more workloadSelectors than is sensible";
        Self {
            rules: objects,
            named: names,
            left: (left, left - needed),
            selected: selected.collect(),
            beyond: if any_secures(&beyond) { refused("+", many) } else { None },
            unknown,
            all: (!all.is_empty()).then(|| Arc::new(Policy::new(namespace.to_owned(), &all, named))),
        }
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.selected.iter().map(|(_, policy)| policy).chain(&self.all)
    }

    fn policy(&self, selecting: Selecting<'_>) -> Option<&Arc<Policy>> {
        let own = match selecting {
            Selecting::Never => None,
            Selecting::Unknown => match self.selected.first() {
                // Whoever it is, it is for them.
                Some((selector, policy)) if selector.is_empty() => Some(policy),
                _ => self.unknown.as_ref(),
            },
            Selecting::By(labels) => {
                let selects = |selector: &Labels| selector.iter().all(|(k, v)| labels.get(k) == Some(v));
                let selected = self.selected.iter().find(|(selector, _)| selects(selector));
                selected.map(|(_, policy)| policy).or(self.beyond.as_ref())
            }
        };
        own.or(self.all.as_ref())
    }
}

/// Workloads whose labels are not what they were.
struct Relabelled<'w>(HashSet<(WorkloadKind, &'w NamespacedName)>);

impl Relabelled<'_> {
    /// Whether some of these are endpoints of the service.
    fn have(&self, service: &Service) -> bool {
        let mut endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        !self.0.is_empty()
            && endpoints.any(|endpoint| {
                let workload = endpoint.workload.as_ref();
                workload.is_some_and(|workload| self.0.contains(&(workload.kind, &workload.name)))
            })
    }
}

fn same_texts(before: &BTreeSet<String>, now: &BTreeSet<&str>) -> bool {
    before.iter().eq(now)
}

fn subset_ports(
    service: &Service,
    hosts: &[&Arc<OfHost>],
    names: &BTreeSet<&str>,
    world: &World,
) -> SubsetPorts {
    let mut found = SubsetPorts::new();
    let mut by_labels: BTreeMap<Vec<_>, Arc<Vec<ServicePort>>> = BTreeMap::new();
    for policy in hosts.iter().flat_map(|of| of.policies()) {
        for (name, subset) in policy.subsets.iter().filter(|(name, _)| names.contains(name.as_str())) {
            let of_level = found.entry(policy.level.clone()).or_default();
            // The more specific host comes first, and counts.
            of_level.entry(name.clone()).or_insert_with(|| {
                let labels = subset.labels.iter().collect();
                let ports = by_labels.entry(labels);
                Arc::clone(ports.or_insert_with(|| Arc::new(subset.ports(service, world))))
            });
        }
    }
    found
}

impl SubsetPolicy {
    fn ports(&self, service: &Service, world: &World) -> Vec<ServicePort> {
        let has = |workload: &Workload| {
            let labels = labels_of(world, workload);
            labels.is_some_and(|labels| self.labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
        };
        let keep = |endpoint: &Endpoint| {
            self.labels.is_empty() || endpoint.workload.as_ref().is_some_and(|workload| has(workload))
        };
        service.ports.iter().map(|port| port.only(keep)).collect()
    }
}

/// Those of the rules whose host is the service's, or the narrowest wildcard that it is in.
pub(super) fn most_specific<'r>(
    rules: impl Iterator<Item = &'r DestinationRule>,
    service: &Service,
    settings: &Settings,
) -> Vec<&'r DestinationRule> {
    let mut best: (Specificity, Vec<&DestinationRule>) = (Specificity::default(), Vec::new());
    for rule in rules {
        let host = full_host(&rule.host, &rule.name.namespace, settings);
        let Some(found) = specificity(&host, &service.hostname) else { continue };
        if best.1.is_empty() || found > best.0 {
            best = (found, vec![rule]);
        } else if found == best.0 {
            best.1.push(rule);
        }
    }
    best.1
}

pub(super) fn labels_of<'w>(world: &'w World, workload: &Workload) -> Option<&'w Labels> {
    let name: &NamespacedName = &workload.name;
    match workload.kind {
        WorkloadKind::Pod => world.pods.get(name).map(|pod| &pod.labels),
        WorkloadKind::WorkloadEntry => world.workload_entries.get(name).map(|entry| &entry.backend.labels),
    }
}
