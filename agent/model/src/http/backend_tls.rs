//! BackendTLSPolicies: by what TLS Services are reached.

use std::collections::HashMap;

use crate::name::NamespacedName;
use crate::policy::{Finding, FindingReason, Severity};
use crate::service::{Service, ServiceKind, ServicePort};
use crate::snapshot::Snapshot;
use crate::text::Text;
use crate::world::World;
use crate::world::gateway_api::{BackendTarget, BackendTls};
use crate::world::routing::ServerTls;

const KIND: &str = "BackendTLSPolicy";

/// By what BackendTLSPolicies secure the connections to Services. What such a policy asks for is never undone by
/// anything else.
#[derive(Clone, Debug, Default)]
pub(super) struct BackendPolicies {
    services: HashMap<NamespacedName, OfService>,
    /// Of namespaces with one of which nobody knows what it is for.
    anything: HashMap<Text, ServerTls>,
}

#[derive(Clone, Debug, Default)]
struct OfService {
    ports: HashMap<String, ServerTls>,
    all: Option<ServerTls>,
}

impl BackendPolicies {
    pub fn new(world: &World) -> Self {
        let mut found = Self::default();
        for of in oldest_first(world) {
            let namespace = &of.name.namespace;
            if of.anything {
                found.anything.entry(namespace.clone()).or_insert_with(|| tls(of));
            }
            for BackendTarget { service, port } in &of.targets {
                let own = found.services.entry(NamespacedName::new(namespace, service)).or_default();
                match port {
                    Some(port) => drop(own.ports.entry(port.clone()).or_insert_with(|| tls(of))),
                    None => drop(own.all.get_or_insert_with(|| tls(of))),
                }
            }
        }
        found
    }

    /// What counts for a port: one that names it before one for all, and of several the oldest.
    pub fn of(&self, service: &Service, port: &ServicePort) -> Option<&ServerTls> {
        if service.kind != ServiceKind::Service {
            return None;
        }
        let own = self.services.get(&service.name);
        let own = own.and_then(|own| own.ports.get(&port.name).or(own.all.as_ref()));
        own.or_else(|| self.anything.get(&service.name.namespace))
    }
}

/// Nothing is sent where it can't be done as it is to be.
fn tls(of: &BackendTls) -> ServerTls {
    match &of.check {
        Ok(check) => ServerTls::Simple(check.clone()),
        Err(problem) => ServerTls::Unavailable(format!("{KIND} {}: {problem}", of.name)),
    }
}

fn oldest_first(world: &World) -> Vec<&BackendTls> {
    let mut all: Vec<_> = world.backend_tls.values().map(|of| &**of).collect();
    all.sort_by_key(|of| (of.created, &of.name));
    all
}

/// Why a BackendTLSPolicy is not in force for one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetProblem {
    /// There is no such Service, or it has no such port, which this says.
    NotFound(String),
    /// An older one is for the same.
    Conflicted(NamespacedName),
}

/// The targets of BackendTLSPolicies for which these are not in force.
pub fn backend_problems(world: &World) -> HashMap<NamespacedName, HashMap<BackendTarget, TargetProblem>> {
    let mut found: HashMap<_, HashMap<_, _>> = HashMap::new();
    let mut first: HashMap<_, &BackendTls> = HashMap::new();
    for of in oldest_first(world) {
        for target in &of.targets {
            let service = NamespacedName::new(&of.name.namespace, &target.service);
            let missing = match world.services.get(&service) {
                None => Some("there is no such Service".to_owned()),
                Some(service) => target.port.as_ref().and_then(|wanted| {
                    let is_there = service.ports.iter().any(|port| port.name == *wanted);
                    (!is_there).then(|| format!("the Service has no port of the name {wanted}"))
                }),
            };
            let oldest = *first.entry((service, &target.port)).or_insert(of);
            let problem = missing.map(TargetProblem::NotFound).or_else(|| {
                (!std::ptr::eq(oldest, of)).then(|| TargetProblem::Conflicted(oldest.name.clone()))
            });
            if let Some(problem) = problem {
                found.entry(of.name.clone()).or_default().insert(target.clone(), problem);
            }
        }
    }
    found
}

impl Snapshot {
    /// What the authors of BackendTLSPolicies should know.
    pub(super) fn backend_findings(&self, world: &World) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut tell = |of: &BackendTls, severity, reason, message: String| {
            found.push(Finding { kind: KIND, name: of.name.clone(), severity, reason, message });
        };
        let problems = backend_problems(world);
        for of in oldest_first(world) {
            if let Err(problem) = &of.check {
                let message = format!("{problem}, so that what would go there is refused: 503");
                tell(of, Severity::Error, FindingReason::FieldsNotEnforced, message);
            }
            if !of.unread.is_empty() {
                let message = format!("{} means nothing here", of.unread.join(", "));
                tell(of, Severity::Warning, FindingReason::FieldsNotEnforced, message);
            }
            for target in &of.targets {
                let problem = problems.get(&of.name).and_then(|of| of.get(target));
                let (severity, reason, message) = match problem {
                    Some(TargetProblem::NotFound(why)) => {
                        (Severity::Error, FindingReason::NoSuchTarget, format!("is for {target}, but {why}"))
                    }
                    Some(TargetProblem::Conflicted(oldest)) => {
                        let message =
                            format!("is for {target} as {oldest} is, which counts since it is older");
                        (Severity::Warning, FindingReason::Overruled, message)
                    }
                    None if self.is_seen(&NamespacedName::new(&of.name.namespace, &target.service)) => {
                        continue;
                    }
                    None => {
                        let message = format!(
                            "no waypoint stands before {target}, so that only gateways go by it; label the Service \
                             or its namespace istio.io/use-waypoint"
                        );
                        (Severity::Warning, FindingReason::NoWaypoint, message)
                    }
                };
                tell(of, severity, reason, message);
            }
        }
        found
    }

    /// Whether a waypoint stands before the Service.
    fn is_seen(&self, service: &NamespacedName) -> bool {
        self.service(service).is_some_and(|service| service.waypoint.is_some())
    }
}
