//! What DestinationRules of one host say, made ready for each port and subset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::world::routing::{DestinationRule, ServerTls, TrafficPolicy};
use crate::world::{Labels, World};

/// Subsets of a service that its rules have in all; there are none beyond.
pub const MAX_SUBSETS: usize = 64;
/// Ports of a service with settings of their own.
pub const MAX_PORT_SETTINGS: usize = 64;

/// Secrets that the DestinationRules of a namespace name.
pub const MAX_CREDENTIALS: usize = 64;
/// Different `workloadSelector`s of one namespace's rules for one host.
pub const MAX_SELECTORS: usize = 16;
/// Policies that one namespace's rules may make in all, of ports and subsets: a waypoint is not theirs alone.
pub(super) const MAX_POLICIES: usize = 16_384;

/// What rules of one namespace say of one host, to clients of which all are alike.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    /// Whose rules they are: what they have clients do to endpoints is nothing to other clients.
    pub level: String,
    pub whole: Levels,
    /// Those that some route leads to.
    pub subsets: HashMap<String, SubsetPolicy>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SubsetPolicy {
    /// Of its endpoints.
    pub labels: Labels,
    pub levels: Levels,
}

/// A traffic policy for each port that has one of its own, and for the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    pub all: Arc<TrafficPolicy>,
    ports: HashMap<u16, Arc<TrafficPolicy>>,
}

impl Policy {
    /// Of one host, the oldest rule first: subsets are added up, and of several policies the first counts. Only subsets
    /// that are `named` are made.
    pub fn new(level: String, rules: &[&DestinationRule], named: &BTreeSet<&str>) -> Self {
        let none = TrafficPolicy::default();
        let whole = first_policy(rules).map_or(&none, |rule| &rule.policy);
        let mut subsets = HashMap::new();
        let all = rules.iter().flat_map(|rule| &rule.subsets).take(MAX_SUBSETS);
        for subset in all.filter(|subset| named.contains(subset.name.as_str())) {
            subsets.entry(subset.name.clone()).or_insert_with(|| SubsetPolicy {
                labels: subset.labels.clone(),
                levels: Levels::new(whole, Some(&subset.policy)),
            });
        }
        Self { level, whole: Levels::new(whole, None), subsets }
    }

    /// Lets nothing pass.
    pub fn refused(level: String, why: &str) -> Self {
        Self::secured(level, ServerTls::Unavailable(why.to_owned()))
    }

    /// Lets nothing pass but by this.
    pub fn secured(level: String, tls: ServerTls) -> Self {
        let policy = TrafficPolicy { tls: Some(tls), ..TrafficPolicy::default() };
        Self { level, whole: Levels::new(&policy, None), subsets: HashMap::new() }
    }
}

/// How many policies [`Policy::new`] makes of rules at most.
pub(super) fn policies_of(rules: &[&DestinationRule], named: &BTreeSet<&str>) -> usize {
    let ports = |policy: &TrafficPolicy| policy.ports.len() + 1;
    let whole = first_policy(rules).map_or(1, |rule| ports(&rule.policy));
    let subsets = rules.iter().flat_map(|rule| &rule.subsets).take(MAX_SUBSETS);
    let subsets = subsets.filter(|subset| named.contains(subset.name.as_str()));
    whole + subsets.map(|subset| whole + ports(&subset.policy)).sum::<usize>()
}

/// Whether some of the rules ask for TLS, be it of a subset or at a port.
pub(super) fn any_secures(rules: &[&DestinationRule]) -> bool {
    tls_asked(rules).next().is_some()
}

/// What clients are held to of whom nobody knows which of the rules with a selector are for them: nothing where none of
/// these asks for TLS, and the mesh's own where that is all that any rule asks for.
pub(super) fn tls_of_unknown(
    selecting: &[&DestinationRule],
    all: &[&DestinationRule],
    why: &str,
) -> Option<ServerTls> {
    tls_asked(selecting).next()?;
    let only_mesh = tls_asked(selecting).chain(tls_asked(all)).all(|tls| *tls == ServerTls::Mesh);
    Some(if only_mesh { ServerTls::Mesh } else { ServerTls::Unavailable(why.to_owned()) })
}

/// The TLS that rules ask for, be it of a subset or at a port.
fn tls_asked<'r>(rules: &[&'r DestinationRule]) -> impl Iterator<Item = &'r ServerTls> {
    let subsets = rules.iter().flat_map(|rule| &rule.subsets).map(|subset| &subset.policy);
    let policies = rules.iter().map(|rule| &rule.policy).chain(subsets);
    let levels = policies.flat_map(|policy| policy.ports.iter().map(|(_, of_port)| of_port).chain([policy]));
    levels.filter(|policy| policy.is_secured()).filter_map(|policy| policy.tls.as_ref())
}

/// The Secrets that DestinationRules name by `credentialName`, by the namespace of both: those that the waypoints and
/// gateways of it have. Of a namespace at most [`MAX_CREDENTIALS`].
pub fn credentials(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for tls in world.destination_rules.values().flat_map(|rule| tls_asked(&[&**rule]).collect::<Vec<_>>()) {
        let ServerTls::Simple(check) = tls else { continue };
        if let Some(of) = &check.credential {
            let own = found.entry(of.secret.namespace.to_string()).or_default();
            own.insert(of.secret.name.to_string());
            if own.len() > MAX_CREDENTIALS {
                own.pop_last();
            }
        }
    }
    found
}

/// Of several rules for one host, the oldest first, the one whose policy counts.
pub(super) fn first_policy<'r>(rules: &[&'r DestinationRule]) -> Option<&'r DestinationRule> {
    rules.iter().find(|rule| rule.policy != TrafficPolicy::default()).copied()
}

/// Whether the policy asks for TLS, be it at some port.
pub(super) fn secures(policy: &TrafficPolicy) -> bool {
    policy.is_secured() || policy.ports.iter().any(|(_, of_port)| of_port.is_secured())
}

impl Levels {
    /// A port's settings count instead of the others at their level, but for what they can't say; a subset's policy
    /// overrides block by block.
    pub fn new(whole: &TrafficPolicy, subset: Option<&TrafficPolicy>) -> Self {
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
                        locality: balancing.locality.clone(),
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

    /// Whether they ask for TLS, be it at some port.
    pub fn secure(&self) -> bool {
        self.all.is_secured() || self.ports.values().any(|policy| policy.is_secured())
    }

    pub fn at(&self, port: u16) -> &Arc<TrafficPolicy> {
        self.ports.get(&port).unwrap_or(&self.all)
    }
}
