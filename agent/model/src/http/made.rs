//! What was made of rules, kept with all that it was made of: for the next state of the world only that is made anew
//! which has changed.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use super::backend_tls::BackendPolicies;
use super::compile::specificity;
use super::traffic::Levels;
use crate::map::Map;
use crate::name::NamespacedName;
use crate::policy::Finding;
use crate::service::{Service, ServicePort};
use crate::snapshot::Snapshot;
use crate::world::World;
use crate::world::gateway_api::ReferenceGrant;
use crate::world::routing::{DestinationRule, ServerTls, VirtualService};

/// What was made of rules `R`, for a service or a gateway.
#[derive(Clone, Debug)]
pub(super) struct Made<R, T> {
    service: Option<Arc<Service>>,
    rules: Vec<Arc<R>>,
    /// All that the rules named beside, and what that was.
    answers: Vec<Answer>,
    pub findings: Vec<Finding>,
    pub made: T,
}

impl<R, T> Made<R, T> {
    /// What was made before, if all that it was made of is still the same, or else what `make` makes. That must depend on
    /// nothing but the service, the rules, what it asks `lookup`, and what never changes.
    pub fn after(
        before: Option<&Arc<Self>>,
        service: Option<&Arc<Service>>,
        rules: &[&Arc<R>],
        lookup: &Lookup<'_>,
        make: impl FnOnce(&mut Vec<Finding>) -> T,
    ) -> Arc<Self> {
        if let Some(before) = before
            && is_same(&before.service, service)
            && all_same(&before.rules, rules)
            && lookup.still_answers(&before.answers)
        {
            return Arc::clone(before);
        }
        lookup.answers.take();
        let mut findings = Vec::new();
        let made = make(&mut findings);
        let rules = rules.iter().copied().cloned().collect();
        Arc::new(Self { service: service.cloned(), rules, answers: lookup.answers.take(), findings, made })
    }
}

/// Whether both are the very same objects in the same order.
pub(super) fn all_same<T>(before: &[Arc<T>], now: &[&Arc<T>]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(before, now)| Arc::ptr_eq(before, now))
}

/// Finds what rules name, and keeps what it has answered.
pub(super) struct Lookup<'a> {
    world: &'a World,
    snapshot: &'a Snapshot,
    backends: OnceCell<BackendPolicies>,
    answers: RefCell<Vec<Answer>>,
}

/// What was found.
#[derive(Clone, Debug)]
enum Answer {
    Service(NamespacedName, Option<Arc<Service>>),
    /// As clients of this namespace call it.
    Host(String, String, Option<Arc<Service>>),
    VirtualService(NamespacedName, Option<Arc<VirtualService>>),
    Grants(Map<NamespacedName, ReferenceGrant>),
    IsSecured(Arc<Service>, u16, bool),
}

impl<'a> Lookup<'a> {
    pub fn new(world: &'a World, snapshot: &'a Snapshot) -> Self {
        Self { world, snapshot, backends: OnceCell::new(), answers: RefCell::default() }
    }

    /// The Kubernetes Service of this name.
    pub fn service(&self, name: &NamespacedName) -> Option<&'a Arc<Service>> {
        let found = self.snapshot.service(name);
        self.keep(Answer::Service(name.clone(), found.cloned()));
        found
    }

    /// The service that a client of this namespace calls by this host.
    pub fn service_named(&self, namespace: &str, host: &str) -> Option<&'a Arc<Service>> {
        let found = self.snapshot.service_named(namespace, host);
        self.keep(Answer::Host(namespace.to_owned(), host.to_owned(), found.cloned()));
        found
    }

    /// The VirtualService of this name.
    pub fn virtual_service(&self, name: &NamespacedName) -> Option<&'a Arc<VirtualService>> {
        let found = self.world.virtual_services.get(name);
        self.keep(Answer::VirtualService(name.clone(), found.cloned()));
        found
    }

    /// All ReferenceGrants.
    pub fn grants(&self) -> &'a Map<NamespacedName, ReferenceGrant> {
        self.keep(Answer::Grants(self.world.reference_grants.clone()));
        &self.world.reference_grants
    }

    /// Whether anything has clients, be it only some, reach the servers of this port by TLS of their own.
    pub fn is_secured(&self, service: &Arc<Service>, port: &ServicePort) -> bool {
        let secured = self.secured(service, port);
        self.keep(Answer::IsSecured(Arc::clone(service), port.number, secured));
        secured
    }

    fn secured(&self, service: &Service, port: &ServicePort) -> bool {
        let backends = self.backends.get_or_init(|| BackendPolicies::new(self.world));
        if let Some(tls) = backends.of(service, port) {
            return tls.is_with_server();
        }
        let secures = |rule: &DestinationRule| {
            let levels = Levels::new(&rule.policy, None);
            levels.at(port.number).tls.as_ref().is_some_and(ServerTls::is_with_server)
        };
        let mut rules = self.world.destination_rules.values();
        rules.any(|rule| names(rule, service) && secures(rule))
    }

    fn keep(&self, answer: Answer) {
        self.answers.borrow_mut().push(answer);
    }

    fn still_answers(&self, answers: &[Answer]) -> bool {
        answers.iter().all(|answer| match answer {
            Answer::Service(name, then) => is_same(then, self.snapshot.service(name)),
            Answer::Host(namespace, host, then) => {
                is_same(then, self.snapshot.service_named(namespace, host))
            }
            Answer::VirtualService(name, then) => is_same(then, self.world.virtual_services.get(name)),
            Answer::Grants(then) => then.is_same(&self.world.reference_grants),
            Answer::IsSecured(service, port, then) => {
                service.port(*port).is_some_and(|port| self.secured(service, port) == *then)
            }
        })
    }
}

fn is_same<T>(then: &Option<Arc<T>>, now: Option<&Arc<T>>) -> bool {
    then.as_ref().map(Arc::as_ptr) == now.map(Arc::as_ptr)
}

/// Whether a DestinationRule is for the service.
fn names(rule: &DestinationRule, service: &Service) -> bool {
    let short = *rule.host == *service.name.name && rule.name.namespace == service.name.namespace;
    short || specificity(&rule.host, &service.hostname).is_some()
}
