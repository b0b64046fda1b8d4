use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::Settings;
use crate::endpoints::is_special;
use crate::name::NamespacedName;
use crate::reason::Reason;
use crate::service::{Endpoint, Service, ServiceKind, ServicePort};
use crate::snapshot::{Workload, WorkloadKind};
use crate::world::routing::{DestinationRule, TrafficPolicy};
use crate::world::{Labels, World};

use super::compile::{Specificity, full_host, specificity};

/// What DestinationRules say of services.
#[derive(Clone, Debug, Default)]
pub(super) struct Destinations {
    /// By the service's host name, which objects of several namespaces may bear.
    policies: HashMap<String, Vec<OfService>>,
}

/// What they say of one service.
#[derive(Clone, Debug)]
struct OfService {
    service: (ServiceKind, NamespacedName),
    /// By the namespace whose clients it is for, of which `""` stands for all others.
    levels: BTreeMap<String, Arc<Policy>>,
}

/// Subsets of a service that its rules have in all; there are none beyond.
pub const MAX_SUBSETS: usize = 64;

/// What the DestinationRules of one level say of one service.
#[derive(Clone, Debug, Default)]
struct Policy {
    whole: Levels,
    subsets: HashMap<String, SubsetPolicy>,
}

#[derive(Clone, Debug, Default)]
struct SubsetPolicy {
    /// The service's ports, with the subset's endpoints alone.
    ports: Vec<ServicePort>,
    levels: Levels,
}

/// A traffic policy for each port that has one of its own, and for the others.
#[derive(Clone, Debug, Default)]
struct Levels {
    all: Arc<TrafficPolicy>,
    ports: HashMap<u16, Arc<TrafficPolicy>>,
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
    /// The namespace whose clients alone are treated so, or none if all others are. What one namespace has its clients do
    /// to endpoints is nothing to the others.
    pub level: &'t str,
    /// What DestinationRules say; `None` where there is none.
    pub policy: Option<&'t Arc<TrafficPolicy>>,
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
    /// Level by level: the client's namespace, the service's, the root's. The first that has any for the service
    /// counts, and of its hosts the most specific; levels don't merge.
    pub fn new<'w>(
        world: &'w World,
        settings: &Settings,
        waypoint: &str,
        services: impl Iterator<Item = &'w Arc<Service>>,
    ) -> Self {
        let mut rules: Vec<&DestinationRule> = world.destination_rules.values().map(|rule| &**rule).collect();
        rules.sort_by_key(|rule| (rule.created, &rule.name));
        let mut policies = HashMap::new();
        for service in services {
            let of_namespace = |namespace: &str| {
                let own = rules.iter().copied().filter(|rule| rule.name.namespace == namespace);
                let visible = own.filter(|rule| rule.exports.include(waypoint));
                most_specific(visible, service, settings)
            };
            let common = [service.name.namespace.as_str(), &settings.root_namespace].map(of_namespace);
            let common = common.into_iter().find(|level| !level.is_empty());
            let mut of_service = BTreeMap::new();
            if let Some(rules) = common {
                of_service.insert(String::new(), Arc::new(Policy::new(&rules, service, world)));
            }
            let mut namespaces: Vec<_> = rules.iter().map(|rule| rule.name.namespace.as_str()).collect();
            namespaces.sort_unstable();
            namespaces.dedup();
            for namespace in namespaces.into_iter().filter(|of| *of != service.name.namespace) {
                let own = of_namespace(namespace);
                if !own.is_empty() {
                    of_service.insert(namespace.to_owned(), Arc::new(Policy::new(&own, service, world)));
                }
            }
            if !of_service.is_empty() {
                let of_service =
                    OfService { service: (service.kind, service.name.clone()), levels: of_service };
                let of_host: &mut Vec<_> = policies.entry(service.hostname.clone()).or_default();
                of_host.push(of_service);
            }
        }
        Self { policies }
    }

    pub fn target<'t>(
        &'t self,
        service: &'t Arc<Service>,
        subset: Option<&'t str>,
        port: u16,
        namespace: &str,
    ) -> Result<Target<'t>, Reason> {
        let of_host = self.policies.get(&service.hostname).into_iter().flatten();
        let mut own = of_host.filter(|of| of.service.0 == service.kind && of.service.1 == service.name);
        let of_service = own.next().map(|of| &of.levels);
        let level = of_service.and_then(|of| of.get_key_value(namespace).or_else(|| of.get_key_value("")));
        let (level, policy) = level.map_or(("", None), |(level, policy)| (level.as_str(), Some(policy)));
        let (ports, levels) = match (subset, policy) {
            (None, policy) => (&service.ports, policy.map(|policy| &policy.whole)),
            (Some(name), policy) => {
                let subset = policy.and_then(|policy| policy.subsets.get(name));
                let subset = subset.ok_or(Reason::NoSuchDestination)?;
                (&subset.ports, Some(&subset.levels))
            }
        };
        let index =
            ports.binary_search_by_key(&port, |of| of.number).map_err(|_| Reason::NoSuchDestination)?;
        let policy = levels.map(|levels| levels.ports.get(&port).unwrap_or(&levels.all));
        Ok(Target { service, port: &ports[index], subset, level, policy })
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

impl Policy {
    /// Of one host: subsets are added up, and of several policies the first counts.
    fn new(rules: &[&DestinationRule], service: &Service, world: &World) -> Self {
        let whole = rules.iter().map(|rule| &rule.policy).find(|policy| **policy != TrafficPolicy::default());
        let none = TrafficPolicy::default();
        let whole = whole.unwrap_or(&none);
        let mut subsets = HashMap::new();
        for subset in rules.iter().flat_map(|rule| &rule.subsets).take(MAX_SUBSETS) {
            let has = |workload: &Workload| {
                let labels = labels_of(world, workload);
                labels.is_some_and(|labels| subset.labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
            };
            let keep = |endpoint: &Endpoint| {
                subset.labels.is_empty() || endpoint.workload.as_ref().is_some_and(|workload| has(workload))
            };
            let ports = service.ports.iter().map(|port| port.only(keep)).collect();
            let levels = Levels::new(whole, Some(&subset.policy));
            subsets.entry(subset.name.clone()).or_insert(SubsetPolicy { ports, levels });
        }
        Self { whole: Levels::new(whole, None), subsets }
    }
}

impl Levels {
    /// A port's settings count instead of the others at their level, but for what they can't say; a subset's policy
    /// overrides block by block.
    fn new(whole: &TrafficPolicy, subset: Option<&TrafficPolicy>) -> Self {
        let at = |policy: &TrafficPolicy, port: Option<u16>| {
            let own = policy.ports.iter().find(|(number, _)| Some(*number) == port);
            let (retry_budget, proxy_protocol) = (policy.retry_budget, policy.proxy_protocol);
            own.map_or_else(
                || policy.clone(),
                |(_, own)| TrafficPolicy { retry_budget, proxy_protocol, ..own.clone() },
            )
        };
        let of = |port| {
            let below = at(whole, port);
            Arc::new(match subset {
                None => TrafficPolicy { ports: Vec::new(), ..below },
                Some(subset) => {
                    let above = at(subset, port);
                    let balancing = if above.balancer.is_some() { &above } else { &below };
                    TrafficPolicy {
                        balancer: balancing.balancer.clone(),
                        warmup: balancing.warmup,
                        outlier: above.outlier.or(below.outlier),
                        pool: above.pool.or(below.pool),
                        tls: above.tls.or(below.tls),
                        retry_budget: above.retry_budget.or(below.retry_budget),
                        proxy_protocol: above.proxy_protocol.or(below.proxy_protocol),
                        ports: Vec::new(),
                    }
                }
            })
        };
        let numbers = whole.ports.iter().chain(subset.into_iter().flat_map(|subset| &subset.ports));
        let ports = numbers.map(|(number, _)| (*number, of(Some(*number)))).collect();
        Self { all: of(None), ports }
    }
}

pub(super) fn labels_of<'w>(world: &'w World, workload: &Workload) -> Option<&'w Labels> {
    let name: &NamespacedName = &workload.name;
    match workload.kind {
        WorkloadKind::Pod => world.pods.get(name).map(|pod| &pod.labels),
        WorkloadKind::WorkloadEntry => world.workload_entries.get(name).map(|entry| &entry.backend.labels),
    }
}
