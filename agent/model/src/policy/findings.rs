use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::finding::{Finding, FindingReason, Severity};
use super::rule::{CompiledRule, Sight, Test};
use super::{CompiledPolicy, TrustDomains};
use crate::compile::{Settings, live};
use crate::identity::Identity;
use crate::mutual_tls::PeerAuthentications;
use crate::name::NamespacedName;
use crate::service::{self, ServiceKind};
use crate::snapshot::Snapshot;
use crate::waypoint;
use crate::world::security::{
    Action, AuthorizationPolicy, Condition, Pattern, PeerAuthentication, Rule, Target,
};
use crate::world::{Labels, Pod, Protocol, Service, TargetPort, World};

/// Whatever can be told from the world alone, sorted by resource.
pub(crate) fn findings(snapshot: &Snapshot, settings: &Settings) -> Vec<Finding> {
    let (world, scopes) = (&snapshot.world, &*snapshot.policies.scopes);
    let mut found = Vec::new();
    let mut tell = |policy: &AuthorizationPolicy, (severity, reason, message): Remark| {
        let (kind, name) = ("AuthorizationPolicy", policy.name.clone());
        found.push(Finding { kind, name, severity, reason, message });
    };
    let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
    let mut targeted = world.authorization_policies.values().filter(|of| !of.targets.is_empty()).peekable();
    let services = || snapshot.services().chain(snapshot.service_entries());
    let enforcing = targeted.peek().map(|_| Enforcing::new(world, settings, services()));
    for policy in targeted {
        for target in &policy.targets {
            if let Some(Err((reason, why))) = enforcing.as_ref().map(|of| of.check(&policy.name, target)) {
                let message = format!("is for {target}, where nobody enforces it: {why}");
                tell(policy, (Severity::Error, reason, message));
            }
        }
        for remark in CompiledPolicy::new(policy, Sight::Requests, &trust).findings {
            tell(policy, remark);
        }
    }
    let udp = UdpPorts::new(world, settings);
    let mut selecting = vec![false; scopes.policies.len()];
    for (name, pod) in live(world) {
        scopes.positions(name, &pod.labels).into_iter().for_each(|position| selecting[position] = true);
    }
    for ((policy, compiled), selecting) in scopes.policies.iter().zip(selecting) {
        for remark in &compiled.findings {
            tell(policy, remark.clone());
        }
        if !selecting && !policy.selector.is_empty() {
            let selector = shown(&policy.selector);
            let message = format!("its selector ({selector}) matches no pod, so it has no effect");
            tell(policy, (Severity::Warning, FindingReason::SelectsNothing, message));
        }
        udp.of(policy, &compiled.ports, &mut |message| {
            tell(policy, (Severity::Info, FindingReason::UdpNotEnforced, message));
        });
    }
    of_peer_authentications(world, settings, &PeerAuthentications::new(world, settings), &mut found);
    found.sort();
    found.dedup();
    found
}

/// A finding of a resource that is known.
pub(super) type Remark = (Severity, FindingReason, String);

/// Who enforces policies for services and waypoints.
pub(super) struct Enforcing<'a> {
    /// Whether a service has a waypoint.
    services: HashMap<(ServiceKind, &'a NamespacedName), bool>,
    waypoints: BTreeSet<NamespacedName>,
    world: &'a World,
    root_namespace: &'a str,
}

impl<'a> Enforcing<'a> {
    pub fn new(
        world: &'a World,
        settings: &'a Settings,
        all: impl IntoIterator<Item = &'a Arc<service::Service>>,
    ) -> Self {
        let mut services = HashMap::new();
        for service in all {
            *services.entry((service.kind, &service.name)).or_default() |= service.waypoint.is_some();
        }
        Self { services, waypoints: waypoint::used(world), world, root_namespace: &settings.root_namespace }
    }

    /// Whether a waypoint judges what is for this target; else why not.
    pub fn check(&self, policy: &NamespacedName, target: &Target) -> Result<(), (FindingReason, String)> {
        let no_waypoint = |why: String| Err((FindingReason::NoWaypoint, why));
        let no_target = |why: String| Err((FindingReason::NoSuchTarget, why));
        let named = |name: &str| NamespacedName::new(&policy.namespace, name);
        let service = |kind, name: &str| match self.services.get(&(kind, &named(name))) {
            Some(true) => Ok(()),
            Some(false) => no_waypoint(
                "it has no waypoint; label it istio.io/use-waypoint, or select pods instead".to_owned(),
            ),
            None => no_target("there is none of this name in the policy's namespace".to_owned()),
        };
        match target {
            Target::Service(name) => service(ServiceKind::Service, name),
            Target::ServiceEntry(name) => service(ServiceKind::ServiceEntry, name),
            Target::Gateway(name) if self.waypoints.contains(&named(name)) => Ok(()),
            Target::Gateway(name) if self.is_gateway(&named(name)) => Ok(()),
            Target::Gateway(_) => no_waypoint(
                "it is the waypoint of nothing; label what it is for istio.io/use-waypoint".to_owned(),
            ),
            Target::GatewayClass(name)
                if policy.namespace == self.root_namespace && self.has_gateway_of(name) =>
            {
                Ok(())
            }
            Target::GatewayClass(_) if self.waypoints.is_empty() => {
                no_waypoint("nothing has a waypoint".to_owned())
            }
            Target::GatewayClass(name) if !self.waypoints.iter().any(|of| self.is_waypoint_of(of, name)) => {
                let all = waypoint::CLASSES.join(" and ");
                no_target(format!("no waypoint is of this class; {all} stand for all of them"))
            }
            Target::GatewayClass(_) if policy.namespace == self.root_namespace => Ok(()),
            Target::GatewayClass(_) => no_target(format!(
                "only a policy of the root namespace, {}, can be for a class",
                self.root_namespace
            )),
        }
    }
}

impl Enforcing<'_> {
    /// Whether it is a Gateway for those who come from outside, which is for its controller to say: it is none of the
    /// classes that are for waypoints. Of nodes, which read no Gateways, none is.
    fn is_gateway(&self, name: &NamespacedName) -> bool {
        let gateway = self.world.gateways.get(name);
        gateway.is_some_and(|gateway| !waypoint::CLASSES.contains(&gateway.class.as_str()))
    }

    fn is_waypoint_of(&self, waypoint: &NamespacedName, class: &str) -> bool {
        let own = [
            waypoint::class_of_service(self.world, waypoint),
            self.world.gateways.get(waypoint).map(|gateway| gateway.class.as_str()),
        ];
        waypoint::CLASSES.contains(&class) || own.contains(&Some(class))
    }

    /// Whether there is one that policies of this namespace without targets may be for.
    pub fn has_gateway_around(&self, namespace: &str) -> bool {
        let is_around = |of: &NamespacedName| of.namespace == *namespace || namespace == self.root_namespace;
        self.world.gateways.keys().any(|name| is_around(name) && self.is_gateway(name))
    }

    fn has_gateway_of(&self, class: &str) -> bool {
        self.world.gateways.iter().any(|(name, gateway)| gateway.class == class && self.is_gateway(name))
    }
}

/// What a policy tells of itself to who judges by it.
pub(super) fn of_policy(
    policy: &AuthorizationPolicy,
    sight: Sight,
    rules: &[CompiledRule],
    trust: &TrustDomains<'_>,
) -> Vec<Remark> {
    let mut found = Vec::new();
    let mut tell = |severity, reason, message| found.push((severity, reason, message));
    of_whole(policy, sight, &mut tell);
    for (number, rule) in policy.rules.iter().enumerate() {
        of_principals(number, rule, trust, &mut tell);
    }
    of_rules(policy.action, sight, rules, &mut tell);
    found
}

fn of_whole(
    policy: &AuthorizationPolicy,
    sight: Sight,
    tell: &mut impl FnMut(Severity, FindingReason, String),
) {
    if policy.dry_run {
        let message = match policy.action {
            Action::Custom => {
                "is in dry run, in which its provider is not asked: what it matches is told, and passes"
            }
            _ => "is in dry run: what it would say is told, not enforced",
        };
        tell(Severity::Info, FindingReason::DryRun, message.to_owned());
    }
    if policy.action == Action::Custom && sight == Sight::Connections && !policy.dry_run {
        let message = "has action CUSTOM, whose provider can't be asked about a connection: what its rules match is \
                       denied; give it targetRefs, so that a waypoint asks";
        tell(Severity::Error, FindingReason::NoProvider, message.to_owned());
    }
    if policy.action != Action::Allow && policy.rules.is_empty() {
        let message = "has no rules, so it matches nothing; write rules: [{}] to match everything";
        tell(Severity::Warning, FindingReason::NeverMatches, message.to_owned());
    }
}

fn of_rules(
    action: Action,
    sight: Sight,
    rules: &[CompiledRule],
    tell: &mut impl FnMut(Severity, FindingReason, String),
) {
    for (number, rule) in rules.iter().enumerate() {
        if !rule.unseen.is_empty() {
            let effect = match action {
                Action::Allow => "so the rule never matches here",
                Action::Custom => "so they are left out and more is asked about or denied than it says",
                Action::Deny => "so they are left out and the rule denies more than it says",
                Action::Audit => "so they are left out and the rule audits more than it says",
            };
            let fields = rule.unseen.join(", ");
            let message = match sight {
                Sight::Connections => format!(
                    "rules[{number}] asks for {fields}, which a connection does not show, {effect}; give the policy \
                     targetRefs, so that a waypoint decides"
                ),
                Sight::Requests => {
                    format!("rules[{number}] asks for {fields}, which waypoints do not judge yet, {effect}")
                }
            };
            tell(Severity::Error, FindingReason::FieldsNotEnforced, message);
        }
        let asks_who = |negated: bool| {
            move |check: &&super::rule::Check| {
                let who =
                    matches!(check.test, Test::Principal(_) | Test::Namespace(_) | Test::ServiceAccount(_));
                who && check.negated == negated
            }
        };
        let shown = |negated| rule.clauses.iter().flatten().flatten().find(asks_who(negated));
        if action == Action::Allow
            && !rule.never
            && let (Some(check), None) = (shown(true), shown(false))
        {
            let message = format!(
                "rules[{number}] also allows sources without an identity, of which {} says nothing; add \
                 principals: [\"*\"] to ask for one",
                check.field
            );
            tell(Severity::Warning, FindingReason::AllowsUnidentified, message);
        }
    }
}

/// Principals that nobody can have.
fn of_principals(
    number: usize,
    rule: &Rule,
    trust: &TrustDomains<'_>,
    tell: &mut impl FnMut(Severity, FindingReason, String),
) {
    let sources = rule.from.iter().map(|source| &source.principals);
    let conditions = rule.when.iter().filter_map(|condition| match condition {
        Condition::SourcePrincipal(principals) => Some(principals),
        _ => None,
    });
    let patterns = sources.chain(conditions).flat_map(|of| of.values.iter().chain(&of.not_values));
    for pattern in patterns {
        let Pattern::Exact(text) = pattern else { continue };
        match format!("spiffe://{text}").parse::<Identity>() {
            Err(_) => {
                let form = "TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT";
                let message = format!("rules[{number}]: no source has principal {text:?}; write {form}");
                tell(Severity::Warning, FindingReason::NeverMatches, message);
            }
            Ok(identity) if !trust.is_ours(identity.trust_domain()) => {
                let name = identity.trust_domain();
                let message = format!(
                    "rules[{number}]: principal {text:?} is of trust domain {name}, which is neither the mesh's \
                     own nor an alias of it"
                );
                tell(Severity::Warning, FindingReason::NeverMatches, message);
            }
            Ok(_) => {}
        }
    }
}

/// Services' UDP ports by the number they have at the pods.
struct UdpPorts<'a> {
    services: HashMap<u16, Vec<&'a Service>>,
    pods: HashMap<&'a str, Vec<&'a Pod>>,
    root_namespace: &'a str,
}

impl<'a> UdpPorts<'a> {
    fn new(world: &'a World, settings: &'a Settings) -> Self {
        let mut services: HashMap<_, Vec<_>> = HashMap::new();
        for service in world.services.values() {
            for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
                let number = match port.target {
                    TargetPort::Number(number) => number,
                    TargetPort::Unset | TargetPort::Name(_) => port.number,
                };
                services.entry(number).or_default().push(&**service);
            }
        }
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for pod in world.pods.values().filter(|pod| !pod.phase.is_terminal()) {
            pods.entry(pod.name.namespace.as_str()).or_default().push(&**pod);
        }
        Self { services, pods, root_namespace: &settings.root_namespace }
    }

    fn of(&self, policy: &AuthorizationPolicy, ports: &[u16], tell: &mut impl FnMut(String)) {
        if self.services.is_empty() {
            return;
        }
        for port in ports {
            let services = self.services.get(port).into_iter().flatten();
            for service in services.filter(|service| self.meet(policy, service)) {
                let name = &service.name;
                let message = format!(
                    "port {port} of Service {name} is UDP, to which policies do not apply; a NetworkPolicy can close it"
                );
                tell(message);
            }
        }
    }

    /// Whether some pod of the service is under the policy.
    fn meet(&self, policy: &AuthorizationPolicy, service: &Service) -> bool {
        let namespace = service.name.namespace.as_str();
        let scope = policy.name.namespace.as_str();
        let has = |pod: &Pod, labels: &Labels| labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
        let pods = self.pods.get(namespace).into_iter().flatten();
        (scope == namespace || scope == self.root_namespace)
            && !service.selector.is_empty()
            && pods.into_iter().any(|pod| has(pod, &policy.selector) && has(pod, &service.selector))
    }
}

/// The ports the policy speaks of, sorted.
pub(super) fn ports(policy: &AuthorizationPolicy) -> Vec<u16> {
    let operations = policy.rules.iter().flat_map(|rule| &rule.to).map(|operation| &operation.ports);
    let conditions = policy.rules.iter().flat_map(|rule| &rule.when).filter_map(|when| match when {
        Condition::DestinationPort(ports) => Some(ports),
        _ => None,
    });
    let ports: BTreeSet<_> = operations.chain(conditions).flat_map(|of| &of.values).copied().collect();
    ports.into_iter().collect()
}

fn of_peer_authentications(
    world: &World,
    settings: &Settings,
    in_force: &PeerAuthentications<'_>,
    found: &mut Vec<Finding>,
) {
    let pods = world.pods.values().filter(|pod| !pod.phase.is_terminal());
    let selecting: BTreeSet<_> = pods.filter_map(|pod| Some(&in_force.selecting(pod)?.name)).collect();
    for policy in world.peer_authentications.values() {
        let namespace = policy.name.namespace.as_str();
        let in_root = namespace == settings.root_namespace;
        let remark = if policy.selector.is_empty() {
            let first = in_force.of_scope(namespace).filter(|first| first.name != policy.name);
            let message = |first: &PeerAuthentication| {
                format!("has no effect: {} is of the same namespace and older", first.name)
            };
            first.map(|first| (FindingReason::Overruled, message(first)))
        } else if in_root {
            let message =
                "has no effect: in the root namespace a selector is not allowed; move it to the workload's";
            Some((FindingReason::FieldsNotEnforced, message.to_owned()))
        } else if !selecting.contains(&policy.name) {
            let labels = shown(&policy.selector);
            let message =
                format!("has no effect: its selector ({labels}) matches no pod that an older one does not");
            Some((FindingReason::SelectsNothing, message))
        } else {
            None
        };
        found.extend(remark.map(|(reason, message)| Finding {
            kind: "PeerAuthentication",
            name: policy.name.clone(),
            severity: Severity::Warning,
            reason,
            message,
        }));
    }
}

/// As people write them on a command line.
pub(crate) fn shown(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
