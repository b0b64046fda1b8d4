use serde::Serialize;

use crate::name::NamespacedName;
use crate::world::security::Action;
use crate::world::{Labels, World};

/// A policy as people list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListedPolicy {
    /// The kind of the resource, such as `AuthorizationPolicy`.
    pub kind: &'static str,
    /// Its name.
    pub name: NamespacedName,
    /// What it does: `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`, or the mode of mutual TLS.
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
            targets => targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        },
    });
    let modes = world.peer_authentications.values().map(|policy| ListedPolicy {
        kind: "PeerAuthentication",
        name: policy.name.clone(),
        action: policy.mode.map_or_else(|| "UNSET".to_owned(), |mode| format!("{mode:?}").to_uppercase()),
        applies_to: scope(&policy.name, &policy.selector, root_namespace),
    });
    policies.chain(modes).collect()
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
    let place = if name.namespace == root_namespace { "mesh".to_owned() } else { name.namespace.clone() };
    if selector.is_empty() {
        return place;
    }
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{place}, {}", labels.join(","))
}
