use std::collections::HashMap;
use std::sync::Arc;

use super::rule::{CompiledRule, Sight};
use super::{CompiledPolicy, Layer, TrustDomains, findings};
use crate::compile::Settings;
use crate::identity::TrustDomain;
use crate::world::World;
use crate::world::security::AuthorizationPolicy;

/// What a compilation makes of policies, for the next one: an object that is still at its place, as part of the same
/// layer, is not made ready again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    /// What principals were expanded with.
    trust_domains: Vec<TrustDomain>,
    /// Sorted by name, without those for waypoints and gateways.
    pub policies: Vec<(Arc<AuthorizationPolicy>, Arc<CompiledPolicy>)>,
    pub layers: HashMap<LayerKey, Arc<Layer>>,
}

/// Where the policies of a layer are. The layer keeps them there.
pub(crate) type LayerKey = Vec<usize>;

impl Prepared {
    /// Makes the world's policies ready. Layers come later, when it is known which are needed.
    pub fn new(previous: Option<&Self>, world: &World, settings: &Settings) -> Self {
        let own = std::iter::once(&settings.trust_domain);
        let trust_domains: Vec<_> = own.chain(&settings.trust_domain_aliases).cloned().collect();
        let previous = previous.filter(|previous| previous.trust_domains == trust_domains);
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
        Self { trust_domains, policies, layers: HashMap::new() }
    }
}

/// The layers that are needed now: those there were, and those that are made.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    before: Option<&'a HashMap<LayerKey, Arc<Layer>>>,
    now: HashMap<LayerKey, Arc<Layer>>,
}

impl<'a> Layers<'a> {
    pub fn new(previous: Option<&'a Prepared>) -> Self {
        Self { before: previous.map(|previous| &previous.layers), now: HashMap::new() }
    }

    /// The layer of these policies, sorted by name.
    pub fn of<'p>(&mut self, policies: impl Iterator<Item = &'p Arc<CompiledPolicy>> + Clone) -> Arc<Layer> {
        let key: LayerKey = policies.clone().map(|policy| Arc::as_ptr(policy).addr()).collect();
        if let Some(layer) = self.now.get(&key) {
            return layer.clone();
        }
        let known = self.before.and_then(|before| before.get(&key)).cloned();
        let layer = known.unwrap_or_else(|| Arc::new(Layer::new(policies.cloned().collect())));
        self.now.insert(key, layer.clone());
        layer
    }

    pub fn into_inner(self) -> HashMap<LayerKey, Arc<Layer>> {
        self.now
    }
}

impl CompiledPolicy {
    /// Makes a policy ready for who judges by it.
    pub fn new(policy: &AuthorizationPolicy, sight: Sight, trust: &TrustDomains<'_>) -> Self {
        let rule = |rule| CompiledRule::new(rule, policy.action, sight, trust);
        let rules: Vec<_> = policy.rules.iter().map(rule).collect();
        Self {
            name: Arc::new(policy.name.clone()),
            action: policy.action,
            dry_run: policy.dry_run,
            sight,
            findings: findings::of_policy(policy, sight, &rules, trust),
            ports: findings::ports(policy),
            rules,
        }
    }
}
