use std::collections::HashMap;
use std::sync::Arc;

use super::rule::{CompiledRule, Sight};
use super::{CompiledPolicy, Layer, Policies, Scopes, TrustDomains, findings};
use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::world::security::AuthorizationPolicy;
use crate::world::{Pod, World};

/// What a compilation makes of policies, for itself and for the next one: an object that is still at its place, as part
/// of the same layer, is not made ready again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    pub scopes: Arc<Scopes>,
    layers: HashMap<LayerKey, Arc<Layer>>,
}

/// Where the policies of a layer are. The layer keeps them there.
type LayerKey = Vec<usize>;

impl Prepared {
    /// Makes the world's policies ready.
    pub fn new(previous: Option<&Self>, world: &World, settings: &Settings) -> Self {
        let mut layers = previous.map(|previous| previous.layers.clone()).unwrap_or_default();
        let before = previous.map(|previous| &*previous.scopes);
        let scopes = Scopes::new(before, world, settings, |policies| of(&mut layers, policies));
        Self { scopes: Arc::new(scopes), layers }
    }

    /// The policies of these pods, and what they and the next compilation need.
    pub fn apply<'p>(
        &self,
        pods: impl Iterator<Item = &'p Arc<Pod>>,
    ) -> (Self, HashMap<NamespacedName, Policies>) {
        let scopes = self.scopes.namespaces.values().chain([&self.scopes.mesh]);
        let own = scopes.filter_map(|scope| scope.layer.as_ref());
        let mut needed: HashMap<_, _> = own.map(|layer| (key(&layer.policies), layer.clone())).collect();
        let mut layers = self.layers.clone();
        let policies = pods.map(|pod| {
            let policies = self.with_layer(pod, |selected| {
                let layer = of(&mut layers, selected);
                needed.insert(key(selected.iter().copied()), layer.clone());
                layer
            });
            (pod.name.clone(), policies)
        });
        let policies = policies.collect();
        (Self { scopes: self.scopes.clone(), layers: needed }, policies)
    }

    /// The policies of a pod: those of one that was not among those of [`apply`](Self::apply) are made ready just now.
    pub fn of(&self, pod: &Pod) -> Policies {
        self.with_layer(pod, |selected| {
            let known = self.layers.get(&key(selected.iter().copied())).cloned();
            known.unwrap_or_else(|| Arc::new(Layer::new(selected.iter().copied().cloned().collect())))
        })
    }

    fn with_layer(&self, pod: &Pod, layer: impl FnOnce(&[&Arc<CompiledPolicy>]) -> Arc<Layer>) -> Policies {
        let positions = self.scopes.positions(&pod.name, &pod.labels);
        let selected: Vec<_> = positions.iter().map(|&position| &self.scopes.policies[position].1).collect();
        let selected = (!selected.is_empty()).then(|| layer(&selected));
        let [namespace, mesh] =
            self.scopes.around(&pod.name.namespace).map(|scope| scope.and_then(|scope| scope.layer.clone()));
        Policies::new([selected, namespace, mesh])
    }
}

/// The layer of these policies, sorted by name.
fn of(layers: &mut HashMap<LayerKey, Arc<Layer>>, policies: &[&Arc<CompiledPolicy>]) -> Arc<Layer> {
    let made = || Arc::new(Layer::new(policies.iter().copied().cloned().collect()));
    layers.entry(key(policies.iter().copied())).or_insert_with(made).clone()
}

fn key<'p>(policies: impl IntoIterator<Item = &'p Arc<CompiledPolicy>>) -> LayerKey {
    policies.into_iter().map(|policy| Arc::as_ptr(policy).addr()).collect()
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
            provider: None,
            sight,
            findings: findings::of_policy(policy, sight, &rules, trust),
            ports: findings::ports(policy),
            rules,
        }
    }
}
