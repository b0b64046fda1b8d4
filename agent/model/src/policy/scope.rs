use std::collections::HashMap;
use std::sync::Arc;

use super::{CompiledPolicy, Layer, TrustDomains};
use crate::compile::Settings;
use crate::identity::TrustDomain;
use crate::name::NamespacedName;
use crate::policy::rule::Sight;
use crate::text::Text;
use crate::world::security::AuthorizationPolicy;
use crate::world::{Labels, World};

/// The policies that the node enforces, made ready, and how those of a pod are found.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    /// What principals were expanded with.
    trust_domains: Vec<TrustDomain>,
    /// Sorted by name, without those for waypoints and gateways.
    pub policies: Vec<(Arc<AuthorizationPolicy>, Arc<CompiledPolicy>)>,
    pub mesh: Scope,
    pub namespaces: HashMap<String, Scope>,
}

/// Policies of one namespace, or of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// Those for all pods.
    pub layer: Option<Arc<Layer>>,
    /// Those with a selector, by the key and the value of the first label they ask for.
    selectors: HashMap<Text, HashMap<Text, Vec<usize>>>,
}

impl Scopes {
    /// `layer` makes a layer of policies that are sorted by name. What `previous` has made of a policy that is still at
    /// its place is not made again.
    pub fn new(
        previous: Option<&Self>,
        world: &World,
        settings: &Settings,
        mut layer: impl FnMut(&[&Arc<CompiledPolicy>]) -> Arc<Layer>,
    ) -> Self {
        let own = std::iter::once(&settings.trust_domain);
        let trust_domains: Vec<_> = own.chain(&settings.trust_domain_aliases).cloned().collect();
        let previous = previous.filter(|previous| previous.trust_domains == trust_domains);
        let policies = policies(previous, world, settings);
        let mut scopes: HashMap<Option<&str>, (Scope, Vec<_>)> = HashMap::new();
        for (position, (policy, compiled)) in policies.iter().enumerate() {
            let namespace = policy.name.namespace.as_str();
            let scope = (namespace != settings.root_namespace).then_some(namespace);
            let (scope, for_all) = scopes.entry(scope).or_default();
            match policy.selector.iter().next() {
                Some((key, value)) => {
                    let of_key = scope.selectors.entry(key.clone()).or_default();
                    of_key.entry(value.clone()).or_default().push(position);
                }
                None => for_all.push(compiled),
            }
        }
        let mut found = Self { trust_domains, ..Self::default() };
        for (namespace, (mut scope, for_all)) in scopes {
            scope.layer = (!for_all.is_empty()).then(|| layer(&for_all));
            match namespace {
                Some(namespace) => drop(found.namespaces.insert(namespace.to_owned(), scope)),
                None => found.mesh = scope,
            }
        }
        found.policies = policies;
        found
    }

    /// The scopes that count for a pod of this namespace.
    pub fn around(&self, namespace: &str) -> [Option<&Scope>; 2] {
        [self.namespaces.get(namespace), Some(&self.mesh)]
    }

    /// Those of the policies that select the pod.
    pub fn positions(&self, pod: &NamespacedName, labels: &Labels) -> Vec<usize> {
        let mut found = Vec::new();
        for scope in self.around(&pod.namespace).into_iter().flatten().filter(|of| !of.selectors.is_empty()) {
            for (key, value) in labels {
                let of_value = scope.selectors.get(key).and_then(|of_key| of_key.get(value));
                found.extend(of_value.into_iter().flatten().copied());
            }
        }
        found.retain(|&position| {
            let selector = &self.policies[position].0.selector;
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        found.sort_unstable();
        found
    }
}

fn policies(
    previous: Option<&Scopes>,
    world: &World,
    settings: &Settings,
) -> Vec<(Arc<AuthorizationPolicy>, Arc<CompiledPolicy>)> {
    let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
    let mut before = previous.map_or(&[][..], |previous| &previous.policies).iter().peekable();
    let mut policies = Vec::with_capacity(world.authorization_policies.len());
    for policy in world.authorization_policies.values().filter(|policy| policy.targets.is_empty()) {
        while before.next_if(|(old, _)| !Arc::ptr_eq(old, policy) && old.name < policy.name).is_some() {}
        let compiled = match before.next_if(|(old, _)| Arc::ptr_eq(old, policy)) {
            Some((_, compiled)) => compiled.clone(),
            None => Arc::new(CompiledPolicy::new(policy, Sight::Connections, &trust)),
        };
        policies.push((policy.clone(), compiled));
    }
    policies
}
