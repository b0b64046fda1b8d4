use std::collections::HashMap;
use std::sync::Arc;

use super::authentication::{Authentications, service_key};
use super::authorize::ServiceKey;
use super::own::Own;
use crate::behind::Behind;
use crate::name::NamespacedName;
use crate::policy::{CompiledRule, Facts, Finding, FindingReason, Severity, Sight, Token, TrustDomains};
use crate::service::ServiceKind;
use crate::text::Text;
use crate::world::security::Action;
use crate::world::{self, KeyPart, RateLimit, World};

/// A limit, made ready to be asked which requests count.
#[derive(Debug)]
pub struct Limit {
    /// The RateLimit that it is of.
    pub resource: NamespacedName,
    /// As it is written.
    pub of: Arc<world::Limit>,
    matches: Vec<CompiledRule>,
}

/// A limit that a request counts for, and what tells its bucket from the limit's others.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The limit.
    pub limit: Arc<Limit>,
    /// What the request has of each part of its key; `None` where it has nothing there.
    pub key: Vec<Option<String>>,
}

impl Counted {
    /// Whether both are counted in the same bucket.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.limit, &other.limit) && self.key == other.key
    }
}

/// The RateLimits, as far as a waypoint counts by them.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Those for the waypoint and its class, which are for all that is behind it.
    common: Of,
    services: HashMap<ServiceKey, Of>,
    /// One that can't be understood, by the namespace for all of which it may be.
    unreadable: HashMap<Text, NamespacedName>,
    /// The same, for everything.
    unreadable_everywhere: Option<NamespacedName>,
}

/// What is for the same.
#[derive(Clone, Debug, Default)]
struct Of {
    limits: Vec<Arc<Limit>>,
    unreadable: Option<NamespacedName>,
}

impl Limits {
    pub fn new(world: &World, own: &Own<'_>, trust: &TrustDomains<'_>) -> Self {
        let mut found = Self::default();
        for of in world.rate_limits.values() {
            if of.unreadable && of.targets.is_empty() {
                let namespace = &of.name.namespace;
                // It may be for the waypoint itself.
                if own.is_around(namespace) {
                    found.unreadable_everywhere = Some(of.name.clone());
                }
                found.unreadable.insert(namespace.clone(), of.name.clone());
            }
            let limits: Vec<_> =
                of.limits.iter().map(|limit| Arc::new(Limit::new(of, limit, trust))).collect();
            for target in &of.targets {
                let place = match service_key(&of.name, target) {
                    // Whoever stands before the service counts.
                    Some(_) if own.is_gateway() => continue,
                    Some(key) => found.services.entry(key).or_default(),
                    None if own.is_target(&of.name, target) => &mut found.common,
                    None => continue,
                };
                let is_new =
                    |limit: &&Arc<Limit>| !place.limits.iter().any(|known| Arc::ptr_eq(known, limit));
                let new: Vec<_> = limits.iter().filter(is_new).cloned().collect();
                place.limits.extend(new);
                if of.unreadable {
                    place.unreadable = Some(of.name.clone());
                }
            }
        }
        found
    }

    pub fn is_empty(&self) -> bool {
        self.common.limits.is_empty()
            && self.common.unreadable.is_none()
            && self.services.is_empty()
            && self.unreadable.is_empty()
            && self.unreadable_everywhere.is_none()
    }

    /// Whether there is something for this very service.
    pub fn names(&self, service: &ServiceKey) -> bool {
        self.services.contains_key(service)
    }

    /// Whether requests for this service may count for any.
    pub fn are_for(&self, service: &ServiceKey) -> bool {
        let own = self.services.get(service).is_some_and(|of| !of.limits.is_empty());
        own || !self.common.limits.is_empty()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Limit>> {
        self.common.limits.iter().chain(self.services.values().flat_map(|of| &of.limits))
    }

    /// One that can't be understood and may be for this, or for this service.
    pub fn unreadable(&self, target: &Behind, service: Option<&ServiceKey>) -> Option<&NamespacedName> {
        let namespace = match target {
            Behind::Service { service, .. } => &service.name.namespace,
            Behind::Workload { workload, .. } => &workload.name.namespace,
            Behind::Gateway { gateway, .. } => &gateway.namespace,
        };
        let of_service = service.and_then(|service| self.services.get(service));
        let by_target = of_service.into_iter().chain([&self.common]).find_map(|of| of.unreadable.as_ref());
        by_target.or(self.unreadable_everywhere.as_ref()).or_else(|| self.unreadable.get(namespace))
    }

    /// Adds those that a request for this service counts for.
    pub fn count(&self, service: Option<&ServiceKey>, facts: &Facts<'_>, counted: &mut Vec<Counted>) {
        let of_service = service.and_then(|service| self.services.get(service));
        for limit in of_service.into_iter().chain([&self.common]).flat_map(|of| &of.limits) {
            if !limit.counts(facts) {
                continue;
            }
            let key = limit.of.by.iter().map(|part| value(part, service, facts)).collect();
            let new = Counted { limit: Arc::clone(limit), key };
            if !counted.iter().any(|known| known.is_same(&new)) {
                counted.push(new);
            }
        }
    }

    /// What the authors of limits should know that count by what is in tokens.
    pub fn findings(&self, world: &World, own: &Own<'_>, authentications: &Authentications) -> Vec<Finding> {
        let mut found = Vec::new();
        for of in world.rate_limits.values() {
            let asks = |limit: &&Arc<world::Limit>| {
                limit.by.iter().any(|part| matches!(part, KeyPart::RequestPrincipal | KeyPart::Claim(_)))
            };
            let Some(limit) = of.limits.iter().find(asks) else { continue };
            for target in &of.targets {
                let key = service_key(&of.name, target);
                if key.is_none() && !own.is_target(&of.name, target) {
                    continue;
                }
                if authentications.of(key.as_ref()).is_none_or(|rules| rules.rules.is_empty()) {
                    let message = format!(
                        "limit {} counts by what is in tokens, and no RequestAuthentication with jwtRules is for \
                         {target}, so all requests there count together",
                        limit.name
                    );
                    found.push(finding(of, Severity::Error, FindingReason::FieldsNotEnforced, message));
                }
            }
        }
        found
    }
}

impl Limit {
    fn new(resource: &RateLimit, of: &Arc<world::Limit>, trust: &TrustDomains<'_>) -> Self {
        // What nobody can tell counts, as it would be denied.
        let rule = |rule| CompiledRule::new(rule, Action::Deny, Sight::Requests, trust);
        Self {
            resource: resource.name.clone(),
            of: Arc::clone(of),
            matches: of.matches.iter().map(rule).collect(),
        }
    }

    fn counts(&self, facts: &Facts<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|rule| rule.matches(facts))
    }
}

/// What a request has of a part of a key.
fn value(part: &KeyPart, service: Option<&ServiceKey>, facts: &Facts<'_>) -> Option<String> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let request = facts.request?;
    match part {
        KeyPart::Principal => some(facts.principal),
        KeyPart::Namespace => some(facts.namespace),
        KeyPart::ServiceAccount => some(facts.service_account),
        KeyPart::Address => Some(facts.source.to_string()),
        KeyPart::Remote => facts.remote.map(|address| address.to_string()),
        KeyPart::Service => service.map(|(kind, name)| match kind {
            ServiceKind::Service => name.to_string(),
            ServiceKind::ServiceEntry => format!("ServiceEntry/{name}"),
        }),
        // Of several spellings one.
        KeyPart::Host => request.hosts.first().cloned().or_else(|| some(&request.authority.to_lowercase())),
        KeyPart::Method => Some(request.method.to_ascii_uppercase()),
        KeyPart::Path => some(request.path),
        KeyPart::Header(name) => request.headers.value(name).map(|value| value.into_owned()),
        KeyPart::RequestPrincipal => match facts.token {
            Token::Verified(claims) => some(claims.principal()?),
            Token::Missing | Token::Untold => None,
        },
        KeyPart::Claim(names) => match facts.token {
            Token::Verified(claims) => claims.text(names),
            Token::Missing | Token::Untold => None,
        },
    }
}

fn finding(of: &RateLimit, severity: Severity, reason: FindingReason, message: String) -> Finding {
    Finding { kind: "RateLimit", name: of.name.clone(), severity, reason, message }
}
