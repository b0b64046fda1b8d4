//! TLS that a DestinationRule asks for and that is not in force, since something else counts instead. Nothing must be
//! sent in clear without anybody's being told.

use std::collections::BTreeMap;

use super::compile::full_host;
use super::traffic::{first_policy, secures};
use crate::compile::Settings;
use crate::policy::{Finding, FindingReason, Severity};
use crate::world::World;
use crate::world::routing::DestinationRule;

pub(super) fn hidden_tls(world: &World, settings: &Settings) -> Vec<Finding> {
    let mut by_host: BTreeMap<_, Vec<&DestinationRule>> = BTreeMap::new();
    let mut found = Vec::new();
    for rule in world.destination_rules.values() {
        let host = full_host(&rule.host, &rule.name.namespace, settings);
        let selector = rule.selector.as_ref().map(|labels| labels.iter().collect::<Vec<_>>());
        by_host.entry((&rule.name.namespace, host, selector)).or_default().push(rule);
        let bare = rule.policy.ports.iter().filter(|(_, of_port)| of_port.tls.is_none());
        for (port, _) in bare.filter(|_| rule.policy.is_secured()) {
            let message = format!(
                "portLevelSettings of port {port} has no tls, and counts there instead of all the rest, so that what \
                 goes there is not secured: write it there too"
            );
            found.push(hidden(rule, FindingReason::FieldsNotEnforced, message));
        }
    }
    for rules in by_host.values_mut() {
        rules.sort_by_key(|rule| (rule.created, &rule.name));
    }
    // By namespace and host, what is for all clients and asks for TLS.
    let mut for_all = BTreeMap::new();
    for ((namespace, host, selector), rules) in &by_host {
        let secured = first_policy(rules).filter(|first| selector.is_none() && secures(&first.policy));
        for_all.extend(secured.map(|first| ((*namespace, host), first)));
    }
    for ((namespace, host, selector), rules) in &by_host {
        let Some(first) = first_policy(rules) else { continue };
        if selector.is_some()
            && first.policy.tls.is_none()
            && let Some(common) = for_all.get(&(*namespace, host))
        {
            let message = format!(
                "clients that it selects go by it alone, so that the tls of {} is not in force for them: write it here \
                 too",
                common.name
            );
            found.push(hidden(first, FindingReason::Merged, message));
        }
        let others = rules.iter().filter(|rule| !std::ptr::eq(**rule, first));
        for rule in others.filter(|rule| secures(&rule.policy)) {
            let message = format!(
                "is for the same host as {}, whose trafficPolicy counts since that is older, so that this tls is not in \
                 force: write both into one",
                first.name
            );
            found.push(hidden(rule, FindingReason::Merged, message));
        }
    }
    found
}

pub(super) fn hidden(rule: &DestinationRule, reason: FindingReason, message: String) -> Finding {
    Finding { kind: "DestinationRule", name: rule.name.clone(), severity: Severity::Error, reason, message }
}
