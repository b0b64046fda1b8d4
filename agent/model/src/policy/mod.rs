//! AuthorizationPolicies, made ready to be asked.

mod explain;
mod facts;
mod findings;
mod index;
mod nested;
mod rule;
mod scope;
mod trust;

use std::collections::HashMap;
use std::sync::Arc;

use crate::authorize::{DryRun, Outcome};
use crate::name::NamespacedName;
use crate::world::security::Action;
pub(crate) use facts::Facts;
pub(crate) use findings::findings;
pub use findings::{Finding, Severity};
use index::Index;
use rule::{Clause, CompiledRule};
pub(crate) use scope::Scopes;
pub(crate) use trust::TrustDomains;

/// Which policies apply to which pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyIndex {
    by_workload: HashMap<NamespacedName, Policies>,
}

impl PolicyIndex {
    pub fn of(&self, workload: &NamespacedName) -> Option<&Policies> {
        self.by_workload.get(workload)
    }
}

/// The policies that apply to one pod: those that select it, those of its namespace, those of the mesh. Each
/// layer is shared by all pods that have the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies([Option<Arc<Layer>>; 3]);

/// Policies that apply together.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Sorted by name.
    policies: Vec<Arc<CompiledPolicy>>,
    has_allow: bool,
    /// The first ALLOW policy in dry run.
    dry_run_allow: Option<Arc<CompiledPolicy>>,
    refuse: Index,
    allow: Index,
    audit: Index,
    dry_run: Index,
}

/// A policy with its rules made ready.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CompiledPolicy {
    pub name: Arc<NamespacedName>,
    pub action: Action,
    pub dry_run: bool,
    pub rules: Vec<CompiledRule>,
}

/// A rule of a policy.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub policy: Arc<CompiledPolicy>,
    pub rule: usize,
}

impl Hit {
    fn compiled(&self) -> &CompiledRule {
        &self.policy.rules[self.rule]
    }

    fn clauses(&self) -> &[Clause] {
        &self.compiled().clauses
    }
}

impl Layer {
    fn new(policies: Vec<Arc<CompiledPolicy>>) -> Self {
        let (dry, enforced): (Vec<_>, Vec<_>) = policies.iter().cloned().partition(|policy| policy.dry_run);
        let of = |actions: &[Action]| -> Vec<_> {
            enforced.iter().filter(|policy| actions.contains(&policy.action)).cloned().collect()
        };
        let allow = of(&[Action::Allow]);
        Self {
            has_allow: !allow.is_empty(),
            dry_run_allow: dry.iter().find(|policy| policy.action == Action::Allow).cloned(),
            refuse: Index::of_distinct(&of(&[Action::Deny, Action::Custom])),
            allow: Index::of_distinct(&allow),
            audit: Index::of_distinct(&of(&[Action::Audit])),
            dry_run: Index::of_all(&dry),
            policies,
        }
    }
}

impl Policies {
    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter().flatten().map(|layer| &**layer)
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        self.layers().flat_map(|layer| &layer.policies)
    }

    /// The DENY or CUSTOM rule that matches.
    pub fn refuses(&self, facts: &Facts<'_>) -> Option<Hit> {
        self.layers().find_map(|layer| layer.refuse.find(facts)).cloned()
    }

    pub fn has_allow(&self) -> bool {
        self.layers().any(|layer| layer.has_allow)
    }

    /// The ALLOW policy that matches.
    pub fn allows(&self, facts: &Facts<'_>) -> Option<&Arc<CompiledPolicy>> {
        self.layers().find_map(|layer| layer.allow.find(facts)).map(|hit| &hit.policy)
    }

    pub fn audits(&self, facts: &Facts<'_>) -> bool {
        self.layers().any(|layer| layer.audit.find(facts).is_some())
    }

    /// What the policies in dry run say, sorted. If none of all ALLOW policies matches, the first of those in dry
    /// run says no for all of them.
    pub fn dry_run(&self, facts: &Facts<'_>) -> Vec<DryRun> {
        let mut said = Vec::new();
        for layer in self.layers() {
            layer.dry_run.search(facts, &mut |hit| {
                let policy = hit.policy.name.clone();
                said.push(DryRun { policy, outcome: hit.policy.outcome() });
                false
            });
        }
        let first = self.layers().filter_map(|layer| layer.dry_run_allow.as_ref()).min_by_key(|p| &p.name);
        let allowed = || said.iter().any(|one| one.outcome == Outcome::Allow) || self.allows(facts).is_some();
        if let Some(first) = first
            && !allowed()
        {
            said.push(DryRun { policy: first.name.clone(), outcome: Outcome::Deny });
        }
        said.sort();
        said.dedup();
        said
    }
}
