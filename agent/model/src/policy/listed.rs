use serde::Serialize;

use crate::name::NamespacedName;
use crate::world::security::{Action, Target};
use crate::world::{Labels, World};

/// A policy as people list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedPolicy {
    /// The kind of the resource, such as `AuthorizationPolicy`.
    pub kind: &'static str,
    /// Its name.
    pub name: NamespacedName,
    /// What it does: `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`, the mode of mutual TLS, how many requests it lets
    /// pass, or whose tokens it takes.
    pub action: String,
    /// Whose connections it is for.
    pub applies_to: String,
}

/// Every policy of the world, sorted by kind and name.
pub(crate) fn listed(world: &World, root_namespace: &str) -> Vec<ListedPolicy> {
    let policies = world.authorization_policies.values().map(|policy| ListedPolicy {
        kind: "AuthorizationPolicy",
        name: policy.name.clone(),
        action: action(policy.action).to_owned() + if policy.dry_run { " (dry run)" } else { "" },
        applies_to: match policy.targets.as_slice() {
            [] => scope(&policy.name, &policy.selector, root_namespace),
            targets => shown(targets),
        },
    });
    let modes = world.peer_authentications.values().map(|policy| ListedPolicy {
        kind: "PeerAuthentication",
        name: policy.name.clone(),
        action: policy.mode.map_or_else(|| "UNSET".to_owned(), |mode| format!("{mode:?}").to_uppercase()),
        applies_to: scope(&policy.name, &policy.selector, root_namespace),
    });
    let tokens = world.request_authentications.values().map(|policy| ListedPolicy {
        kind: "RequestAuthentication",
        name: policy.name.clone(),
        action: match policy.rules.iter().map(|rule| rule.issuer.as_str()).collect::<Vec<_>>()[..] {
            _ if policy.unreadable => "refuses all".to_owned(),
            [] => "no issuer".to_owned(),
            [issuer] => issuer.to_owned(),
            [first, ..] => format!("{first} and {} more", policy.rules.len() - 1),
        },
        applies_to: match policy.targets.as_slice() {
            [] if policy.unreadable => scope(&policy.name, &policy.selector, root_namespace),
            [] => "nothing".to_owned(),
            targets => shown(targets),
        },
    });
    let limits = world.rate_limits.values().map(|of| ListedPolicy {
        kind: "RateLimit",
        name: of.name.clone(),
        action: match &of.limits[..] {
            _ if of.unreadable => "refuses all".to_owned(),
            [] => "no limit".to_owned(),
            [limit] => limit.shown(),
            [first, ..] => format!("{} and {} more", first.shown(), of.limits.len() - 1),
        },
        applies_to: match of.targets.as_slice() {
            [] => scope(&of.name, &Labels::new(), root_namespace),
            targets => shown(targets),
        },
    });
    policies.chain(modes).chain(limits).chain(tokens).collect()
}

fn shown(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    }
}

fn scope(name: &NamespacedName, selector: &Labels, root_namespace: &str) -> String {
    let place = if name.namespace == root_namespace { "mesh".to_owned() } else { name.namespace.to_string() };
    if selector.is_empty() {
        return place;
    }
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{place}, {}", labels.join(","))
}
