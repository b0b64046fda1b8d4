//! BackendTLSPolicies: by what TLS Services are reached.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::name::{NamespacedName, is_object_name};
use crate::policy::{Finding, FindingReason, Severity};
use crate::service::{Service, ServiceKind, ServicePort};
use crate::snapshot::Snapshot;
use crate::text::Text;
use crate::world::World;
use crate::world::config_map::{COPIES, MAX_CONFIG_MAPS};
use crate::world::gateway_api::{BackendProblem, BackendTarget, BackendTls};
use crate::world::routing::{CertificateRef, Roots, ServerCheck, ServerTls};

const KIND: &str = "BackendTLSPolicy";

/// How much text of certificates a policy may name. Whoever reaches its servers reads all of it, who may be everybody's
/// gateway.
pub const MAX_CERTIFICATES: usize = 256 << 10;

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
            let made = tls(world, of);
            if of.anything {
                found.anything.entry(namespace.clone()).or_insert_with(|| made.clone());
            }
            for BackendTarget { service, port } in &of.targets {
                let own = found.services.entry(NamespacedName::new(namespace, service)).or_default();
                match port {
                    Some(port) => drop(own.ports.entry(port.clone()).or_insert_with(|| made.clone())),
                    None => drop(own.all.get_or_insert_with(|| made.clone())),
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
fn tls(world: &World, of: &BackendTls) -> ServerTls {
    match Resolved::of(world, of).check {
        Ok(check) => ServerTls::Simple(check),
        Err(problem) => ServerTls::Unavailable(format!("{KIND} {}: {problem}", of.name)),
    }
}

/// What a BackendTLSPolicy says, with the certificates that it names.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// By what servers are known, or why nothing can be sent.
    pub check: Result<Arc<ServerCheck>, BackendProblem>,
    /// Entries of `caCertificateRefs` that have no certificates.
    pub unresolved: Vec<Unresolved>,
}

/// Why an entry of `caCertificateRefs` has no certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// It is of a kind that never has any, which this says.
    Kind(String),
    /// There is no such ConfigMap, or there is none in it, which this says.
    Missing(String),
}

impl Unresolved {
    /// What is the matter.
    pub fn message(&self) -> &str {
        let (Self::Kind(message) | Self::Missing(message)) = self;
        message
    }
}

impl Resolved {
    /// As the world is. Of several references those count that can be resolved.
    pub fn of(world: &World, policy: &BackendTls) -> Self {
        let (check, refs) = match &policy.check {
            Ok(check) => match &check.roots {
                Roots::Named(refs) => (check, refs),
                _ => return Self { check: policy.check.clone(), unresolved: Vec::new() },
            },
            Err(problem) => return Self { check: Err(problem.clone()), unresolved: Vec::new() },
        };
        let (mut found, mut unresolved) = (Vec::new(), Vec::new());
        let mut room = MAX_CERTIFICATES;
        for (index, of) in refs.iter().enumerate() {
            // The same once more says nothing new.
            if refs[..index].contains(of) {
                continue;
            }
            let at = format!("spec.validation.caCertificateRefs[{index}]");
            match of {
                CertificateRef::Other(of) => {
                    unresolved.push(Unresolved::Kind(format!("{at}: {of} is no ConfigMap")));
                }
                CertificateRef::ConfigMap(name) if !is_object_name(name) => {
                    unresolved.push(Unresolved::Missing(format!("{at}: no ConfigMap can be of this name")));
                }
                CertificateRef::ConfigMap(name) => {
                    let name = NamespacedName::new(&*policy.name.namespace, &**name);
                    let missing = |why: &str| Unresolved::Missing(format!("{at}: ConfigMap {name}: {why}"));
                    match world.certificates_of(&name) {
                        Ok(pem) if found.contains(pem) => {}
                        Ok(pem) => match room.checked_sub(pem.as_str().len()) {
                            Some(left) => {
                                room = left;
                                found.push(pem.clone());
                            }
                            None => unresolved.push(missing(&format!(
                                "a policy's certificates would have more than {MAX_CERTIFICATES} bytes with it"
                            ))),
                        },
                        Err(why) => unresolved.push(missing(why)),
                    }
                }
            }
        }
        if found.is_empty() {
            let all: Vec<_> = unresolved.iter().map(Unresolved::message).collect();
            return Self { check: Err(BackendProblem::NoCertificates(all.join("; "))), unresolved };
        }
        let check = Ok(Arc::new(ServerCheck { roots: Roots::Only(found), ..(**check).clone() }));
        Self { check, unresolved }
    }
}

/// The ConfigMaps that BackendTLSPolicies name, by the namespace of both. Of a namespace at most [`MAX_CONFIG_MAPS`]; none
/// where there are copies still, but no policy any more that names one.
pub fn certificate_maps(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for policy in world.backend_tls.values() {
        let Ok(Roots::Named(refs)) = policy.check.as_ref().map(|check| &check.roots) else { continue };
        for of in refs {
            let CertificateRef::ConfigMap(name) = of else { continue };
            if !is_object_name(name) {
                continue;
            }
            let own = found.entry(policy.name.namespace.to_string()).or_default();
            own.insert(name.to_string());
            if own.len() > MAX_CONFIG_MAPS {
                own.pop_last();
            }
        }
    }
    for map in world.config_maps.values().filter(|map| *map.name.name == *COPIES) {
        if !map.certificates.is_empty() {
            found.entry(map.name.namespace.to_string()).or_default();
        }
    }
    found
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
            let Resolved { check, unresolved } = Resolved::of(world, of);
            for of_ref in unresolved {
                let reason = match of_ref {
                    Unresolved::Kind(_) => FindingReason::InvalidKind,
                    Unresolved::Missing(_) => FindingReason::NoSuchTarget,
                };
                tell(of, Severity::Error, reason, of_ref.message().to_owned());
            }
            if let Err(problem) = check {
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
