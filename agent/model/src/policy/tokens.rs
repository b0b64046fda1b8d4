use std::sync::Arc;

use super::findings::Enforcing;
use super::{Finding, FindingReason, Severity};
use crate::compile::Settings;
use crate::service::Service;
use crate::world::security::{Condition, Rule};
use crate::world::{KeySource, World};

/// What the authors of RequestAuthentications should know. For waypoints: nobody else reads them.
pub(crate) fn token_findings<'a>(
    world: &'a World,
    settings: &'a Settings,
    services: impl IntoIterator<Item = &'a Arc<Service>>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if world.request_authentications.is_empty() {
        return found;
    }
    let enforcing = Enforcing::new(world, settings, services);
    for of in world.request_authentications.values() {
        let mut tell = |severity, reason, message: String| {
            let (kind, name) = ("RequestAuthentication", of.name.clone());
            found.push(Finding { kind, name, severity, reason, message });
        };
        if of.unreadable {
            let message = "can't be understood, so nothing passes where it is for".to_owned();
            tell(Severity::Error, FindingReason::FieldsNotEnforced, message);
            continue;
        }
        if of.targets.is_empty() && !enforcing.has_gateway_around(&of.name.namespace) {
            let message = "has no effect: waypoints go by targetRefs alone; give it some".to_owned();
            tell(Severity::Error, FindingReason::NoWaypoint, message);
        } else if of.rules.is_empty() {
            let message = "has no effect: it has no jwtRules".to_owned();
            tell(Severity::Warning, FindingReason::NeverMatches, message);
        }
        for (index, rule) in of.rules.iter().enumerate() {
            if let KeySource::Unusable(why) = &rule.keys {
                let message = format!(
                    "spec.jwtRules[{index}].jwks is no key set that can be used: {why}; put in what the issuer's \
                     jwks_uri answers with, or name that as jwksUri; until then all tokens of {} are refused",
                    rule.issuer
                );
                tell(Severity::Error, FindingReason::InvalidKeys, message);
            }
        }
        for target in &of.targets {
            if let Err((reason, why)) = enforcing.check(&of.name, target) {
                let message = format!("is for {target}, where nobody enforces it: {why}");
                tell(Severity::Error, reason, message);
            }
        }
    }
    found
}

/// Which fields of a rule ask for what is in tokens.
pub(crate) fn token_fields(rule: &Rule) -> Vec<&'static str> {
    let mut fields = Vec::new();
    for source in &rule.from {
        let principals = &source.request_principals;
        fields.extend((!principals.values.is_empty()).then_some("requestPrincipals"));
        fields.extend((!principals.not_values.is_empty()).then_some("notRequestPrincipals"));
    }
    fields.extend(rule.when.iter().filter_map(|condition| match condition {
        Condition::RequestPrincipal(_) => Some("request.auth.principal"),
        Condition::RequestAudience(_) => Some("request.auth.audiences"),
        Condition::RequestPresenter(_) => Some("request.auth.presenter"),
        Condition::Claim(..) => Some("request.auth.claims"),
        _ => None,
    }));
    fields.dedup();
    fields
}
