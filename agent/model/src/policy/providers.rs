use std::sync::Arc;

use super::rule::Sight;
use super::{CompiledPolicy, Finding, FindingReason, Severity, TrustDomains};
use crate::compile::Settings;
use crate::http::{Asker, Callees};
use crate::name::NamespacedName;
use crate::snapshot::Snapshot;
use crate::world::security::{Action, AuthorizationPolicy};
use crate::world::{Counting, ExtensionProvider, World};

const PROVIDER: &str = "ExtensionProvider";
const LIMIT: &str = "RateLimit";

impl CompiledPolicy {
    /// Makes a policy ready for a waypoint of this world, which asks whom the policy wants asked.
    pub fn of_waypoint(
        policy: &AuthorizationPolicy,
        world: &World,
        settings: &Settings,
        trust: &TrustDomains<'_>,
    ) -> Self {
        let provider = provider(policy, world, settings).cloned();
        Self { provider, ..Self::new(policy, Sight::Requests, trust) }
    }
}

/// The policy's namespace comes first, then what is for the whole mesh.
fn provider<'w>(
    policy: &AuthorizationPolicy,
    world: &'w World,
    settings: &Settings,
) -> Option<&'w Arc<ExtensionProvider>> {
    let name = policy.provider.as_ref().filter(|_| policy.action == Action::Custom)?;
    let mut namespaces = [policy.name.namespace.as_str(), &settings.root_namespace].into_iter();
    namespaces.find_map(|namespace| world.extension_providers.get(&NamespacedName::new(namespace, name)))
}

/// What the authors should know of those who are to be asked by waypoints, and of who wants them asked. For waypoints:
/// nobody else reads them.
pub(crate) fn provider_findings(world: &World, settings: &Settings, snapshot: &Snapshot) -> Vec<Finding> {
    let policies = world.authorization_policies.values();
    let policies = policies.filter(|of| of.action == Action::Custom && !of.targets.is_empty() && !of.dry_run);
    let unasked = policies.filter(|of| provider(of, world, settings).is_none()).map(|of| {
        let why = match &of.provider {
            None => "names no provider".to_owned(),
            Some(name) => {
                format!("there is no ExtensionProvider {name} in its namespace or the root namespace")
            }
        };
        let message = format!("has action CUSTOM and {why}: what its rules match is denied");
        error("AuthorizationPolicy", &of.name, FindingReason::NoProvider, message)
    });
    let callees = Callees::new(world, settings);
    let unreachable = |kind, name: &NamespacedName, namespace: &str, host: &str, port: u16| {
        let asker = Asker { kind, namespace: &name.namespace };
        unreachable(snapshot, &callees, &asker, (namespace, host, port))
    };
    let unknown = world.extension_providers.values().filter_map(|of| {
        let (reason, problem) = unreachable(PROVIDER, &of.name, of.namespace(), &of.host, of.port)?;
        Some(error(PROVIDER, &of.name, reason, problem))
    });
    let limits = world.rate_limits.values().flat_map(|of| of.limits.iter().map(move |limit| (of, limit)));
    let uncounted = limits.filter_map(|(of, limit)| match &limit.counting {
        Counting::Shared(by) => {
            let (reason, problem) = unreachable(LIMIT, &of.name, &by.namespace, &by.host, by.port)?;
            Some(error(LIMIT, &of.name, reason, problem))
        }
        Counting::Local(_) => None,
    });
    unasked.chain(unknown).chain(uncounted).collect()
}

fn unreachable(
    snapshot: &Snapshot,
    callees: &Callees,
    asker: &Asker<'_>,
    (namespace, host, port): (&str, &str, u16),
) -> Option<(FindingReason, String)> {
    match snapshot.service_named(namespace, host) {
        None => Some((FindingReason::NoSuchService, format!("{host} is no service: it can't be asked"))),
        Some(service) if !callees.permits(asker, service) => {
            let of = &service.name.namespace;
            let problem = format!(
                "{host} is of namespace {of}, of which no ReferenceGrant lets it be asked: it is not"
            );
            Some((FindingReason::RefNotPermitted, problem))
        }
        Some(service) if service.port(port).is_none() => {
            Some((FindingReason::NoSuchPort, format!("{host} has no port {port}: it can't be asked")))
        }
        Some(_) => None,
    }
}

fn error(kind: &'static str, name: &NamespacedName, reason: FindingReason, message: String) -> Finding {
    Finding { kind, name: name.clone(), severity: Severity::Error, reason, message }
}
