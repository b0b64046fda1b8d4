use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::rule::{CompiledRule, Sight, Test};
use super::{CompiledPolicy, Scopes, TrustDomains};
use crate::compile::Settings;
use crate::identity::Identity;
use crate::mutual_tls::PeerAuthentications;
use crate::name::NamespacedName;
use crate::service::{self, ServiceKind};
use crate::waypoint;
use crate::world::security::{Action, AuthorizationPolicy, Condition, Pattern, Rule, Target};
use crate::world::{Labels, Pod, Protocol, Service, TargetPort, World};

/// Something a resource's author should know: it can't be decided here, has no effect, or looks like a mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The kind of the resource, such as `AuthorizationPolicy`.
    pub kind: &'static str,
    /// Its name.
    pub name: NamespacedName,
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter, and what to do.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Connections are judged otherwise than the resource says.
    Error,
    /// The resource or part of it does nothing.
    Warning,
    /// Good to know.
    Info,
}

/// Whatever can be told from the world alone, sorted by resource.
pub(crate) fn findings(
    world: &World,
    settings: &Settings,
    scopes: &Scopes<'_>,
    peer_authentications: &PeerAuthentications<'_>,
    services: &[&Arc<service::Service>],
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut tell = |policy: &AuthorizationPolicy, severity, message: String| {
        let (kind, name) = ("AuthorizationPolicy", policy.name.clone());
        found.push(Finding { kind, name, severity, message });
    };
    let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
    let mut targeted = world.authorization_policies.values().filter(|of| !of.targets.is_empty()).peekable();
    let enforcing = targeted.peek().map(|_| Enforcing::new(world, settings, services.iter().copied()));
    for policy in targeted {
        for target in &policy.targets {
            if let Some(Err(why)) = enforcing.as_ref().map(|enforcing| enforcing.check(&policy.name, target))
            {
                tell(policy, Severity::Error, format!("is for {target}, where nobody enforces it: {why}"));
            }
        }
        for (severity, message) in CompiledPolicy::new(policy, Sight::Requests, &trust).findings {
            tell(policy, severity, message);
        }
    }
    let udp = UdpPorts::new(world, settings);
    for (policy, compiled, applies) in scopes.policies() {
        for (severity, message) in &compiled.findings {
            tell(policy, *severity, message.clone());
        }
        if !applies {
            let selector = shown(&policy.selector);
            let message = format!("its selector ({selector}) matches no pod, so it has no effect");
            tell(policy, Severity::Warning, message);
        }
        udp.of(policy, &compiled.ports, &mut |message| tell(policy, Severity::Info, message));
    }
    of_peer_authentications(world, settings, peer_authentications, &mut found);
    found.sort();
    found.dedup();
    found
}

/// Who enforces policies for services and waypoints.
pub(super) struct Enforcing<'a> {
    /// Whether a service has a waypoint.
    services: HashMap<(ServiceKind, &'a NamespacedName), bool>,
    waypoints: BTreeSet<NamespacedName>,
    root_namespace: &'a str,
}

impl<'a> Enforcing<'a> {
    pub fn new(
        world: &World,
        settings: &'a Settings,
        all: impl IntoIterator<Item = &'a Arc<service::Service>>,
    ) -> Self {
        let mut services = HashMap::new();
        for service in all {
            *services.entry((service.kind, &service.name)).or_default() |= service.waypoint.is_some();
        }
        Self { services, waypoints: waypoint::used(world), root_namespace: &settings.root_namespace }
    }

    /// Whether a waypoint judges what is for this target; else why not.
    pub fn check(&self, policy: &NamespacedName, target: &Target) -> Result<(), String> {
        let named = |name: &str| NamespacedName::new(&policy.namespace, name);
        let service = |kind, name: &str| match self.services.get(&(kind, &named(name))) {
            Some(true) => Ok(()),
            Some(false) => {
                Err("it has no waypoint; label it istio.io/use-waypoint, or select pods instead".to_owned())
            }
            None => Err("there is none of this name in the policy's namespace".to_owned()),
        };
        match target {
            Target::Service(name) => service(ServiceKind::Service, name),
            Target::ServiceEntry(name) => service(ServiceKind::ServiceEntry, name),
            Target::Gateway(name) if self.waypoints.contains(&named(name)) => Ok(()),
            Target::Gateway(_) => {
                Err("it is the waypoint of nothing; label what it is for istio.io/use-waypoint".to_owned())
            }
            Target::GatewayClass(name) if !waypoint::is_class(name) => {
                Err(format!("waypoints are of the class {}", waypoint::CLASSES.join(" or ")))
            }
            Target::GatewayClass(_) if self.waypoints.is_empty() => Err("nothing has a waypoint".to_owned()),
            Target::GatewayClass(_) if policy.namespace == self.root_namespace => Ok(()),
            Target::GatewayClass(_) => Err(format!(
                "only a policy of the root namespace, {}, can be for a class",
                self.root_namespace
            )),
        }
    }
}

/// What a policy tells of itself to who judges by it.
pub(super) fn of_policy(
    policy: &AuthorizationPolicy,
    sight: Sight,
    rules: &[CompiledRule],
    trust: &TrustDomains<'_>,
) -> Vec<(Severity, String)> {
    let mut found = Vec::new();
    let mut tell = |severity, message| found.push((severity, message));
    of_whole(policy, sight, &mut tell);
    for (number, rule) in policy.rules.iter().enumerate() {
        of_principals(number, rule, trust, &mut tell);
    }
    of_rules(policy.action, sight, rules, &mut tell);
    found
}

fn of_whole(policy: &AuthorizationPolicy, sight: Sight, tell: &mut impl FnMut(Severity, String)) {
    if policy.dry_run {
        tell(Severity::Info, "is in dry run: what it would say is told, not enforced".to_owned());
    }
    if policy.action == Action::Custom {
        let why = match sight {
            Sight::Connections => "about a connection",
            Sight::Requests => "yet",
        };
        let message =
            format!("has action CUSTOM, whose provider can't be asked {why}: what its rules match is denied");
        tell(Severity::Error, message);
    }
    if policy.action != Action::Allow && policy.rules.is_empty() {
        let message = "has no rules, so it matches nothing; write rules: [{}] to match everything";
        tell(Severity::Warning, message.to_owned());
    }
}

fn of_rules(action: Action, sight: Sight, rules: &[CompiledRule], tell: &mut impl FnMut(Severity, String)) {
    for (number, rule) in rules.iter().enumerate() {
        if !rule.unseen.is_empty() {
            let effect = match action {
                Action::Allow => "so the rule never matches here",
                Action::Deny | Action::Custom => "so they are left out and the rule denies more than it says",
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
            tell(Severity::Error, message);
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
            tell(Severity::Warning, message);
        }
    }
}

/// Principals that nobody can have.
fn of_principals(
    number: usize,
    rule: &Rule,
    trust: &TrustDomains<'_>,
    tell: &mut impl FnMut(Severity, String),
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
                tell(Severity::Warning, message);
            }
            Ok(identity) if !trust.is_ours(identity.trust_domain()) => {
                let name = identity.trust_domain();
                let message = format!(
                    "rules[{number}]: principal {text:?} is of trust domain {name}, which is neither the mesh's \
                     own nor an alias of it"
                );
                tell(Severity::Warning, message);
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
                services.entry(number).or_default().push(service);
            }
        }
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for pod in world.pods.values().filter(|pod| !pod.phase.is_terminal()) {
            pods.entry(pod.name.namespace.as_str()).or_default().push(pod);
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
                let message = format!("port {port} of Service {name} is UDP, to which policies do not apply");
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
        let message = if policy.selector.is_empty() {
            let first = in_force.of_scope(namespace).filter(|first| first.name != policy.name);
            first.map(|first| format!("has no effect: {} is of the same namespace and older", first.name))
        } else if in_root {
            Some(
                "has no effect: in the root namespace a selector is not allowed; move it to the workload's"
                    .into(),
            )
        } else if !selecting.contains(&policy.name) {
            let labels = shown(&policy.selector);
            Some(format!("has no effect: its selector ({labels}) matches no pod that an older one does not"))
        } else {
            None
        };
        found.extend(message.map(|message| Finding {
            kind: "PeerAuthentication",
            name: policy.name.clone(),
            severity: Severity::Warning,
            message,
        }));
    }
}

fn shown(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
