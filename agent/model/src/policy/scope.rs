use std::collections::HashMap;
use std::sync::Arc;

use super::prepared::Layers;
use super::{CompiledPolicy, Layer, Policies, PolicyIndex, Prepared};
use crate::compile::Settings;
use crate::name::NamespacedName;
use crate::world::security::AuthorizationPolicy;
use crate::world::{Labels, Pod};

/// Finds the policies of pods.
pub(crate) struct Scopes<'a> {
    prepared: &'a Prepared,
    layers: Layers<'a>,
    mesh: Option<Arc<Layer>>,
    namespaces: HashMap<&'a str, Arc<Layer>>,
    /// Policies with a selector, by namespace (`None` for the mesh) and the first label they ask for.
    selectors: HashMap<(Option<&'a str>, &'a str, &'a str), Vec<usize>>,
    /// Of each policy, whether it is one with a selector that applies to some pod.
    selecting: Vec<bool>,
}

impl<'a> Scopes<'a> {
    pub fn new(prepared: &'a Prepared, previous: Option<&'a Prepared>, settings: &'a Settings) -> Self {
        let mut layers = Layers::new(previous);
        let mut selectors: HashMap<_, Vec<_>> = HashMap::new();
        let mut scoped: HashMap<_, Vec<_>> = HashMap::new();
        for (position, (policy, compiled)) in prepared.policies.iter().enumerate() {
            let namespace = policy.name.namespace.as_str();
            let scope = (namespace != settings.root_namespace).then_some(namespace);
            match policy.selector.first_key_value() {
                Some((key, value)) => {
                    selectors.entry((scope, key.as_str(), value.as_str())).or_default().push(position);
                }
                None => scoped.entry(scope).or_default().push(compiled),
            }
        }
        let mesh = scoped.remove(&None).map(|policies| layers.of(policies.into_iter()));
        let namespaces = scoped
            .into_iter()
            .filter_map(|(scope, policies)| Some((scope?, layers.of(policies.into_iter()))))
            .collect();
        let selecting = vec![false; prepared.policies.len()];
        Self { prepared, layers, mesh, namespaces, selectors, selecting }
    }

    /// The policies of all these pods.
    pub fn index<'p>(&mut self, pods: impl Iterator<Item = &'p Pod>) -> PolicyIndex {
        let by_workload = pods.map(|pod| (pod.name.clone(), self.of(pod))).collect();
        PolicyIndex { by_workload }
    }

    fn of(&mut self, pod: &Pod) -> Policies {
        let positions = self.positions(&pod.name, &pod.labels);
        let selected = (!positions.is_empty()).then(|| {
            positions.iter().for_each(|&position| self.selecting[position] = true);
            self.layers.of(positions.iter().map(|&position| &self.prepared.policies[position].1))
        });
        Policies([selected, self.namespaces.get(pod.name.namespace.as_str()).cloned(), self.mesh.clone()])
    }

    /// Those of the policies that select the pod.
    fn positions(&self, pod: &NamespacedName, labels: &Labels) -> Vec<usize> {
        let mut found = Vec::new();
        for (key, value) in labels {
            for scope in [None, Some(pod.namespace.as_str())] {
                let candidates = self.selectors.get(&(scope, key.as_str(), value.as_str()));
                found.extend(candidates.into_iter().flatten().copied());
            }
        }
        found.retain(|&position| {
            let selector = &self.prepared.policies[position].0.selector;
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        found.sort_unstable();
        found
    }

    /// All policies that the node enforces, sorted by name, and whether they apply to some pod or ask for none.
    pub fn policies(&self) -> impl Iterator<Item = (&'a AuthorizationPolicy, &'a CompiledPolicy, bool)> {
        let all = self.prepared.policies.iter().zip(&self.selecting);
        all.map(|((policy, compiled), selecting)| {
            (&**policy, &**compiled, *selecting || policy.selector.is_empty())
        })
    }

    /// Every layer that some pod has.
    pub fn into_layers(self) -> HashMap<Vec<usize>, Arc<Layer>> {
        self.layers.into_inner()
    }
}
