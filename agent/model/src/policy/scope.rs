use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::rule::CompiledRule;
use super::{CompiledPolicy, Layer, Policies, PolicyIndex, TrustDomains};
use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::world::security::AuthorizationPolicy;
use crate::world::{Labels, Pod, World};

/// Finds the policies of pods.
pub(crate) struct Scopes<'a> {
    /// Sorted by name, without those for waypoints and gateways.
    policies: Vec<(&'a AuthorizationPolicy, Arc<CompiledPolicy>)>,
    mesh: Option<Arc<Layer>>,
    namespaces: HashMap<&'a str, Arc<Layer>>,
    /// Policies with a selector, by namespace (`None` for the mesh) and the first label they ask for.
    selectors: HashMap<(Option<&'a str>, &'a str, &'a str), Vec<usize>>,
    /// By the positions of their policies.
    selected: HashMap<Vec<usize>, Arc<Layer>>,
    /// The positions of policies that apply to some pod.
    in_use: BTreeSet<usize>,
}

impl<'a> Scopes<'a> {
    pub fn new(world: &'a World, settings: &'a Settings) -> Self {
        let trust = TrustDomains::new(&settings.trust_domain, &settings.trust_domain_aliases);
        let at_work = world.authorization_policies.values().filter(|policy| policy.targets.is_empty());
        let policies: Vec<_> = at_work.map(|policy| (policy, Arc::new(compiled(policy, &trust)))).collect();
        let mut selectors: HashMap<_, Vec<_>> = HashMap::new();
        let mut scoped: HashMap<_, Vec<_>> = HashMap::new();
        for (position, (policy, compiled)) in policies.iter().enumerate() {
            let namespace = policy.name.namespace.as_str();
            let scope = (namespace != settings.root_namespace).then_some(namespace);
            match policy.selector.first_key_value() {
                Some((key, value)) => {
                    selectors.entry((scope, key.as_str(), value.as_str())).or_default().push(position);
                }
                None => scoped.entry(scope).or_default().push(compiled.clone()),
            }
        }
        let mesh = scoped.remove(&None).map(|policies| Arc::new(Layer::new(policies)));
        let namespaces = scoped
            .into_iter()
            .filter_map(|(scope, policies)| Some((scope?, Arc::new(Layer::new(policies)))))
            .collect();
        Self { policies, mesh, namespaces, selectors, selected: HashMap::new(), in_use: BTreeSet::new() }
    }

    /// The policies of all these pods.
    pub fn index<'p>(&mut self, pods: impl Iterator<Item = &'p Pod>) -> PolicyIndex {
        let by_workload = pods.map(|pod| (pod.name.clone(), self.of(pod))).collect();
        PolicyIndex { by_workload }
    }

    fn of(&mut self, pod: &Pod) -> Policies {
        let selecting = self.selecting(&pod.name, &pod.labels);
        let selected = if selecting.is_empty() {
            None
        } else if let Some(layer) = self.selected.get(&selecting) {
            Some(layer.clone())
        } else {
            let policies = selecting.iter().map(|&position| self.policies[position].1.clone()).collect();
            self.in_use.extend(&selecting);
            let layer = Arc::new(Layer::new(policies));
            self.selected.insert(selecting, layer.clone());
            Some(layer)
        };
        Policies([selected, self.namespaces.get(pod.name.namespace.as_str()).cloned(), self.mesh.clone()])
    }

    fn selecting(&self, pod: &NamespacedName, labels: &Labels) -> Vec<usize> {
        let mut found = Vec::new();
        for (key, value) in labels {
            for scope in [None, Some(pod.namespace.as_str())] {
                let candidates = self.selectors.get(&(scope, key.as_str(), value.as_str()));
                found.extend(candidates.into_iter().flatten().copied());
            }
        }
        found.retain(|&position| {
            self.policies[position].0.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        found.sort_unstable();
        found
    }

    /// Whether a policy with a selector applies to some pod.
    pub fn selects_some(&self, name: &NamespacedName) -> bool {
        let position = self.policies.binary_search_by(|(policy, _)| policy.name.cmp(name));
        position.is_ok_and(|position| self.in_use.contains(&position))
    }

    pub fn compiled(&self) -> impl Iterator<Item = (&'a AuthorizationPolicy, &CompiledPolicy)> {
        self.policies.iter().map(|(policy, compiled)| (*policy, &**compiled))
    }
}

fn compiled(policy: &AuthorizationPolicy, trust: &TrustDomains<'_>) -> CompiledPolicy {
    let rule = |rule| CompiledRule::new(rule, policy.action, trust);
    CompiledPolicy {
        name: Arc::new(policy.name.clone()),
        action: policy.action,
        dry_run: policy.dry_run,
        rules: policy.rules.iter().map(rule).collect(),
    }
}
