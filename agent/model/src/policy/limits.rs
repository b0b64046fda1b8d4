use std::sync::Arc;

use super::findings::Enforcing;
use super::rule::{CompiledRule, Sight};
use super::{Finding, FindingReason, Severity, TrustDomains};
use crate::compile::Settings;
use crate::service::Service;
use crate::world::World;
use crate::world::security::Action;

/// What the authors of RateLimits should know. For waypoints: nobody else reads them.
pub(crate) fn limit_findings<'a>(
    world: &'a World,
    settings: &'a Settings,
    services: impl IntoIterator<Item = &'a Arc<Service>>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if world.rate_limits.is_empty() {
        return found;
    }
    let enforcing = Enforcing::new(world, settings, services);
    let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
    for of in world.rate_limits.values() {
        let mut tell = |reason, message: String| {
            let (kind, name) = ("RateLimit", of.name.clone());
            found.push(Finding { kind, name, severity: Severity::Error, reason, message });
        };
        if of.unreadable {
            let message = "can't be understood, so nothing passes where it is for".to_owned();
            tell(FindingReason::FieldsNotEnforced, message);
            continue;
        }
        for target in &of.targets {
            if let Err((reason, why)) = enforcing.check(&of.name, target) {
                tell(reason, format!("is for {target}, where nobody enforces it: {why}"));
            }
        }
        for limit in &of.limits {
            for (number, rule) in limit.matches.iter().enumerate() {
                let unseen = CompiledRule::new(rule, Action::Deny, Sight::Requests, &trust).unseen;
                if !unseen.is_empty() {
                    let message = format!(
                        "limit {} match[{number}] asks for {}, which waypoints do not judge yet, so they are left \
                         out and more requests count than it says",
                        limit.name,
                        unseen.join(", ")
                    );
                    tell(FindingReason::FieldsNotEnforced, message);
                }
            }
        }
    }
    found
}
