use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::authorize::ServiceKey;
use super::own::Own;
use super::token::TokenRules;
use crate::behind::Behind;
use crate::name::NamespacedName;
use crate::policy::{Finding, FindingReason, Severity, token_fields};
use crate::service::ServiceKind;
use crate::text::Text;
use crate::world::security::{Action, AuthorizationPolicy, Target};
use crate::world::{KeySource, RemoteKeys, RequestAuthentication, World};

/// The RequestAuthentications with `targetRefs`, as far as a waypoint goes by them.
#[derive(Clone, Debug, Default)]
pub(super) struct Authentications {
    /// Those for the waypoint and its class, which are for all that is behind it.
    common: Option<Arc<TokenRules>>,
    /// Those for a service, and these.
    services: HashMap<ServiceKey, Arc<TokenRules>>,
    /// One that can't be understood, by the namespace for all of which it may be.
    unreadable: HashMap<Text, NamespacedName>,
    /// The same, for everything.
    unreadable_everywhere: Option<NamespacedName>,
}

impl Authentications {
    pub fn new(world: &World, own: &Own<'_>) -> Self {
        let mut found = Self::default();
        let mut common = TokenRules::default();
        let mut services: HashMap<ServiceKey, TokenRules> = HashMap::new();
        for of in world.request_authentications.values() {
            if of.unreadable && of.targets.is_empty() {
                let namespace = &of.name.namespace;
                // It may be for the waypoint itself.
                if own.is_around(namespace) {
                    found.unreadable_everywhere = Some(of.name.clone());
                }
                found.unreadable.insert(namespace.clone(), of.name.clone());
            } else if of.targets.is_empty() {
                match own.is_selected(&of.name, &of.selector) {
                    Some(true) => add(&mut common, of),
                    Some(false) => {}
                    None => found.unreadable_everywhere = Some(of.name.clone()),
                }
            }
            for target in &of.targets {
                match service_key(&of.name, target) {
                    // Whoever stands before the service asks.
                    Some(_) if own.is_gateway() => {}
                    Some(key) => add(services.entry(key).or_default(), of),
                    None if own.is_target(&of.name, target) => add(&mut common, of),
                    None => {}
                }
            }
        }
        for rules in services.values_mut() {
            for rule in &common.rules {
                if !rules.rules.contains(rule) {
                    rules.rules.push(rule.clone());
                }
            }
            rules.unreadable = rules.unreadable.take().or_else(|| common.unreadable.clone());
        }
        found.services = services.into_iter().map(|(key, rules)| (key, Arc::new(rules))).collect();
        found.common = (common != TokenRules::default()).then(|| Arc::new(common));
        found
    }

    pub fn is_empty(&self) -> bool {
        self.common.is_none()
            && self.services.is_empty()
            && self.unreadable.is_empty()
            && self.unreadable_everywhere.is_none()
    }

    /// What is for a service, or for what is behind the waypoint without one.
    pub fn of(&self, service: Option<&ServiceKey>) -> Option<&Arc<TokenRules>> {
        service.and_then(|service| self.services.get(service)).or(self.common.as_ref())
    }

    /// Whether there is something for this very service.
    pub fn names(&self, service: &ServiceKey) -> bool {
        self.services.contains_key(service)
    }

    /// One that can't be understood and may be for the whole namespace of this.
    pub fn unreadable(&self, target: &Behind) -> Option<&NamespacedName> {
        let namespace = match target {
            Behind::Service { service, .. } => &service.name.namespace,
            Behind::Workload { workload, .. } => &workload.name.namespace,
            Behind::Gateway { gateway, .. } => &gateway.namespace,
        };
        self.unreadable_everywhere.as_ref().or_else(|| self.unreadable.get(namespace))
    }

    /// All keys that have to be asked for.
    pub fn remote_keys(&self) -> BTreeSet<RemoteKeys> {
        let all = self.common.iter().chain(self.services.values());
        let remote = all.flat_map(|of| &of.rules).filter_map(|rule| match &rule.keys {
            KeySource::Remote(keys) => Some(keys.clone()),
            KeySource::Inline(_) | KeySource::Unusable(_) => None,
        });
        remote.collect()
    }

    /// What the authors of AuthorizationPolicies should know that ask for what is in tokens.
    pub fn findings(&self, world: &World, own: &Own<'_>) -> Vec<Finding> {
        let mut found = Vec::new();
        for policy in world.authorization_policies.values() {
            for target in &policy.targets {
                let rules = match service_key(&policy.name, target) {
                    Some(key) => self.of(Some(&key)),
                    None if own.is_target(&policy.name, target) => self.common.as_ref(),
                    None => continue,
                };
                if rules.is_none_or(|rules| rules.rules.is_empty()) {
                    found.extend(untold(policy, target));
                }
            }
        }
        found
    }
}

/// Nobody can say what the policy's rules ask for.
fn untold(policy: &AuthorizationPolicy, target: &Target) -> Vec<Finding> {
    let asking = policy.rules.iter().enumerate().filter_map(|(number, rule)| {
        let fields = token_fields(rule);
        (!fields.is_empty()).then(|| (number, fields.join(", ")))
    });
    let effect = match policy.action {
        Action::Allow => "so the rule never matches there",
        Action::Deny | Action::Custom => "so they are left out there and the rule denies more than it says",
        Action::Audit => "so they are left out there and the rule audits more than it says",
    };
    let finding = |(number, fields)| Finding {
        kind: "AuthorizationPolicy",
        name: policy.name.clone(),
        severity: Severity::Error,
        reason: FindingReason::FieldsNotEnforced,
        message: format!(
            "rules[{number}] asks for {fields}, and no RequestAuthentication with jwtRules is for {target}, {effect}"
        ),
    };
    asking.map(finding).collect()
}

fn add(rules: &mut TokenRules, of: &RequestAuthentication) {
    for rule in &of.rules {
        if !rules.rules.contains(rule) {
            rules.rules.push(rule.clone());
        }
    }
    if of.unreadable {
        rules.unreadable = Some(of.name.clone());
    }
}

pub(super) fn service_key(policy: &NamespacedName, target: &Target) -> Option<ServiceKey> {
    let named = |name: &str| NamespacedName::new(&policy.namespace, name);
    match target {
        Target::Service(name) => Some((ServiceKind::Service, named(name))),
        Target::ServiceEntry(name) => Some((ServiceKind::ServiceEntry, named(name))),
        Target::Gateway(_) | Target::GatewayClass(_) => None,
    }
}
