//! AuthorizationPolicies, made ready to be asked.

mod blocks;
mod explain;
mod facts;
mod finding;
mod findings;
mod index;
mod limits;
mod listed;
mod prepared;
mod providers;
mod rule;
mod scope;
mod telemetries;
#[cfg(test)]
mod tests;
mod texts;
mod tokens;
mod trust;

use std::sync::Arc;

use crate::authorize::{Allowed, Cause, Denied, DryRun, Outcome};
use crate::name::NamespacedName;
use crate::world::ExtensionProvider;
use crate::world::security::Action;
pub(crate) use facts::{Facts, RequestFacts, Token};
pub use finding::{Concern, Finding, FindingReason, Severity};
use findings::Remark;
pub(crate) use findings::{findings, shown};
use index::{Effect, Index, Matching};
pub(crate) use limits::limit_findings;
pub use listed::ListedPolicy;
pub(crate) use listed::listed;
pub(crate) use prepared::Prepared;
pub(crate) use providers::provider_findings;
use rule::Clause;
pub(crate) use rule::{CompiledRule, Sight};
pub(crate) use scope::Scopes;
pub(crate) use telemetries::telemetry_findings;
pub(crate) use tokens::{token_fields, token_findings};
pub(crate) use trust::TrustDomains;

/// The policies that apply to one pod: those that select it, those of its namespace, those of the mesh. Each
/// layer is shared by all pods that have the same one. At a waypoint: those of a service, of the waypoint, of its
/// class.
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
    index: Index,
    /// Those of its rules that ask for the name in TLS.
    by_sni: Vec<Hit>,
}

/// A provider that is to be asked about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToAsk {
    /// Who.
    pub provider: Arc<ExtensionProvider>,
    /// The AuthorizationPolicy that wants it.
    pub policy: Arc<NamespacedName>,
}

/// A policy with its rules made ready.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CompiledPolicy {
    pub name: Arc<NamespacedName>,
    pub action: Action,
    pub dry_run: bool,
    /// Who is asked about what a CUSTOM policy matches; `None` where nobody can be.
    pub provider: Option<Arc<ExtensionProvider>>,
    /// Who judges by it.
    pub sight: Sight,
    pub rules: Vec<CompiledRule>,
    /// What its author should know, as far as the policy alone tells.
    pub findings: Vec<Remark>,
    /// Those it speaks of, sorted.
    pub ports: Vec<u16>,
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

    /// Whether the provider that it wants asked has let it pass.
    fn has_passed(&self, facts: &Facts<'_>) -> bool {
        self.policy.provider.as_ref().is_some_and(|provider| facts.passed.contains(provider))
    }

    fn clauses(&self) -> &[Clause] {
        &self.compiled().clauses
    }
}

impl CompiledPolicy {
    fn effect(&self) -> Effect {
        match self.action {
            _ if self.dry_run => Effect::DryRun,
            Action::Allow => Effect::Allow,
            Action::Custom if self.provider.is_some() => Effect::Ask,
            Action::Deny | Action::Custom => Effect::Refuse,
            Action::Audit => Effect::Audit,
        }
    }
}

impl Layer {
    pub fn new(policies: Vec<Arc<CompiledPolicy>>) -> Self {
        let allow = |dry_run| {
            move |policy: &&Arc<CompiledPolicy>| policy.action == Action::Allow && policy.dry_run == dry_run
        };
        Self {
            has_allow: policies.iter().any(|policy| allow(false)(&policy)),
            dry_run_allow: policies.iter().find(allow(true)).cloned(),
            index: Index::new(&policies),
            by_sni: by_sni(&policies),
            policies,
        }
    }
}

fn by_sni(policies: &[Arc<CompiledPolicy>]) -> Vec<Hit> {
    let all = policies.iter().flat_map(|policy| (0..policy.rules.len()).map(move |rule| (policy, rule)));
    let hits = all.map(|(policy, rule)| Hit { policy: policy.clone(), rule });
    hits.filter(|hit| hit.compiled().asks_for_sni()).collect()
}

impl Policies {
    /// Policies that apply together.
    pub fn new(layers: [Option<Arc<Layer>>; 3]) -> Self {
        Self(layers)
    }

    /// Of its layers, each sorted.
    #[cfg(test)]
    pub fn names(&self) -> Vec<Vec<NamespacedName>> {
        let names = |layer: &Layer| layer.policies.iter().map(|policy| (*policy.name).clone()).collect();
        self.layers().map(names).collect()
    }

    /// Who is to be asked about it, and by which policies, sorted by policy.
    pub fn to_ask(&self, facts: &Facts<'_>) -> Vec<ToAsk> {
        let hits = self.matching(facts).ask;
        let to_ask = hits.into_iter().filter_map(|hit| {
            let provider = hit.policy.provider.clone()?;
            Some(ToAsk { provider, policy: Arc::clone(&hit.policy.name) })
        });
        let mut found: Vec<_> = to_ask.collect();
        found.sort_by(|a, b| a.policy.cmp(&b.policy));
        found.dedup();
        found
    }

    /// What a DENY policy matches is denied, and what a CUSTOM one does whose provider has not let it pass; else, where
    /// ALLOW policies apply, one of them must match.
    pub fn judge(&self, facts: &Facts<'_>) -> Result<Allowed, Denied> {
        let matching = self.matching(facts);
        let audit = matching.audit.is_some();
        let dry_run = self.dry_run(&matching);
        let policy = |hit: &Hit| Some(hit.policy.name.clone());
        let unasked = matching.ask.iter().copied().find(|hit| !hit.has_passed(facts));
        match (unasked.or(matching.refuse), matching.allow) {
            (Some(hit), _) => {
                Err(Denied { policy: policy(hit), audit, dry_run, cause: Cause::Matched(hit.clone()) })
            }
            (None, Some(hit)) => Ok(Allowed { policy: policy(hit), audit, dry_run }),
            (None, None) if self.has_allow() => {
                Err(Denied { policy: None, audit, dry_run, cause: Cause::NoneAllows(self.clone()) })
            }
            (None, None) => Ok(Allowed { policy: None, audit, dry_run }),
        }
    }

    /// Whether an ALLOW policy matches by whoever connects being named in it.
    pub fn name(&self, facts: &Facts<'_>) -> bool {
        let allowing = self.policies().filter(|policy| policy.effect() == Effect::Allow);
        allowing.flat_map(|policy| &policy.rules).any(|rule| rule.names(facts))
    }

    /// Whether the name in the client's TLS may decide.
    pub fn want_sni(&self, facts: &Facts<'_>) -> bool {
        self.layers().flat_map(|layer| &layer.by_sni).any(|hit| hit.compiled().wants_sni(facts))
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter().flatten().map(|layer| &**layer)
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        self.layers().flat_map(|layer| &layer.policies)
    }

    fn has_allow(&self) -> bool {
        self.layers().any(|layer| layer.has_allow)
    }

    /// What matches, of all layers.
    fn matching(&self, facts: &Facts<'_>) -> Matching<'_> {
        let mut matching = Matching::default();
        self.layers().for_each(|layer| layer.index.search(facts, &mut matching));
        matching
    }

    /// What the policies in dry run say, sorted. If none of all ALLOW policies matches, the first of those in dry
    /// run says no for all of them.
    fn dry_run(&self, matching: &Matching<'_>) -> Vec<DryRun> {
        let said = |policy: &CompiledPolicy, outcome| DryRun { policy: policy.name.clone(), outcome };
        let hits = matching.dry_run.iter();
        let mut all: Vec<_> = hits.map(|hit| said(&hit.policy, hit.policy.outcome())).collect();
        let allowed = matching.allow.is_some() || all.iter().any(|one| one.outcome == Outcome::Allow);
        let first = self.layers().filter_map(|layer| layer.dry_run_allow.as_ref()).min_by_key(|p| &p.name);
        all.extend(first.filter(|_| !allowed).map(|first| said(first, Outcome::Deny)));
        all.sort();
        all.dedup();
        all
    }
}
