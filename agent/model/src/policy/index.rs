use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::blocks::Blocks;
use super::facts::Facts;
use super::rule::{Check, Clause, Test};
use super::texts::Texts;
use super::{CompiledPolicy, Hit};
use crate::world::security::{IpBlock, Pattern};

/// Finds the rules that may match a connection by what it shows, so that few are asked.
///
/// Each rule is kept under the values of one of its clauses, that whose values are the rarest: unless the
/// connection has one of these, the rule can't match. Rules that only say what must not be are always asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    rules: Vec<(Effect, Hit)>,
    always: Vec<u32>,
    principals: Texts,
    namespaces: Texts,
    service_accounts: HashMap<String, Vec<u32>>,
    sources: Blocks,
    destinations: Blocks,
    ports: HashMap<u16, Vec<u32>>,
}

/// What comes of a rule that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    Refuse,
    Allow,
    Audit,
    /// Somebody is to be asked.
    Ask,
    DryRun,
}

/// Rules that match: all of those in dry run and of those that want somebody asked, and one of each other effect.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matching<'a> {
    pub refuse: Option<&'a Hit>,
    pub allow: Option<&'a Hit>,
    pub audit: Option<&'a Hit>,
    /// One may be there more than once, as one of these.
    pub ask: Vec<&'a Hit>,
    /// The same.
    pub dry_run: Vec<&'a Hit>,
}

impl<'a> Matching<'a> {
    fn wants(&self, effect: Effect) -> bool {
        match effect {
            Effect::Refuse => self.refuse.is_none(),
            Effect::Allow => self.allow.is_none(),
            Effect::Audit => self.audit.is_none(),
            Effect::Ask | Effect::DryRun => true,
        }
    }

    fn take(&mut self, effect: Effect, hit: &'a Hit) {
        match effect {
            Effect::Refuse => self.refuse = Some(hit),
            Effect::Allow => self.allow = Some(hit),
            Effect::Audit => self.audit = Some(hit),
            Effect::Ask => self.ask.push(hit),
            Effect::DryRun => self.dry_run.push(hit),
        }
    }
}

impl Index {
    pub fn new(policies: &[Arc<CompiledPolicy>]) -> Self {
        let mut seen: HashSet<(Effect, &[Clause])> = HashSet::new();
        let mut rules = Vec::new();
        for policy in policies {
            let effect = policy.effect();
            for (number, rule) in policy.rules.iter().enumerate().filter(|(_, rule)| !rule.never) {
                // Of rules that ask the same the first is enough, unless each policy has a say.
                if matches!(effect, Effect::Ask | Effect::DryRun) || seen.insert((effect, &rule.clauses)) {
                    rules.push((effect, Hit { policy: policy.clone(), rule: number }));
                }
            }
        }
        let (filed, always) = file(&rules);
        Self {
            always,
            principals: filed.principals,
            namespaces: filed.namespaces,
            service_accounts: filed.service_accounts,
            sources: Blocks::new(filed.sources),
            destinations: Blocks::new(filed.destinations),
            ports: filed.ports,
            rules,
        }
    }

    /// Adds to `matching` what matches here.
    pub fn search<'a>(&'a self, facts: &Facts<'_>, matching: &mut Matching<'a>) {
        let mut ask = |numbers: &'a [u32]| {
            for (effect, hit) in numbers.iter().filter_map(|&number| self.rules.get(number as usize)) {
                if matching.wants(*effect) && hit.compiled().matches(facts) {
                    matching.take(*effect, hit);
                }
            }
        };
        self.service_accounts.get(facts.service_account).into_iter().for_each(|rules| ask(rules));
        self.namespaces.of(facts.namespace, &mut ask);
        self.principals.of(facts.principal, &mut ask);
        self.ports.get(&facts.port).into_iter().for_each(|rules| ask(rules));
        self.sources.around(IpBlock::single(facts.source)).for_each(&mut ask);
        match facts.destination {
            Some(address) => self.destinations.around(IpBlock::single(address)).for_each(&mut ask),
            None => self.destinations.all().for_each(&mut ask),
        }
        ask(&self.always);
    }
}

/// The rules by their rarest keys, and those that have none.
fn file(rules: &[(Effect, Hit)]) -> (Filed, Vec<u32>) {
    let frequency = frequency(rules);
    let (mut filed, mut always) = (Filed::default(), Vec::new());
    for (number, (_, hit)) in (0..).zip(rules) {
        match rarest(hit.clauses(), &frequency) {
            Some(keys) => keys.into_iter().for_each(|key| filed.put(key, number)),
            None => always.push(number),
        }
    }
    (filed, always)
}

/// One value a connection must have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key<'a> {
    Principal(Text<'a>),
    Namespace(Text<'a>),
    ServiceAccount(&'a str),
    Source(IpBlock),
    Destination(IpBlock),
    Port(u16),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Text<'a> {
    Exact(&'a str),
    Other(&'a Pattern),
}

/// The values of which the connection must have one; `None` where it is not found by them.
fn keys<'a>(check: &'a Check) -> Option<Vec<Key<'a>>> {
    let texts = |exact: &'a [String], other: &'a [Pattern]| {
        let exact = exact.iter().map(|text| Text::Exact(text));
        exact.chain(other.iter().map(Text::Other))
    };
    Some(match &check.test {
        Test::Principal(of) => texts(&of.exact, &of.other).map(Key::Principal).collect(),
        Test::Namespace(of) => texts(&of.exact, &of.other).map(Key::Namespace).collect(),
        Test::ServiceAccount(accounts) => accounts.iter().map(|text| Key::ServiceAccount(text)).collect(),
        Test::SourceIp(blocks) => blocks.iter().copied().map(Key::Source).collect(),
        Test::DestinationIp(blocks) => blocks.iter().copied().map(Key::Destination).collect(),
        Test::DestinationPort(ports) => ports.iter().copied().map(Key::Port).collect(),
        Test::RemoteIp(_)
        | Test::Sni(_)
        | Test::Host(_)
        | Test::Method(_)
        | Test::Path(_)
        | Test::Header(..)
        | Test::RequestPrincipal(_)
        | Test::Claim(..) => return None,
    })
}

fn positive(alternative: &[Check]) -> impl Iterator<Item = &Check> {
    alternative.iter().filter(|check| !check.negated)
}

fn frequency(rules: &[(Effect, Hit)]) -> HashMap<Key<'_>, u32> {
    let mut frequency = HashMap::with_capacity(rules.len());
    for alternative in rules.iter().flat_map(|(_, hit)| hit.clauses()).flatten() {
        for key in positive(alternative).filter_map(keys).flatten() {
            *frequency.entry(key).or_default() += 1;
        }
    }
    frequency
}

/// The keys of the clause whose most frequent key is the rarest; `None` where no clause says what must be in
/// each of its alternatives.
fn rarest<'a>(clauses: &'a [Clause], frequency: &HashMap<Key<'_>, u32>) -> Option<Vec<Key<'a>>> {
    let cost = |keys: &Vec<Key<'a>>| {
        let counts = keys.iter().map(|key| frequency.get(key).copied().unwrap_or_default());
        (counts.max().unwrap_or_default(), keys.len())
    };
    let of_alternative =
        |alternative: &'a Vec<Check>| positive(alternative).filter_map(keys).min_by_key(cost);
    let of_clause = |clause: &'a Clause| {
        let keys: Vec<_> = clause.iter().map(of_alternative).collect::<Option<_>>()?;
        Some(keys.into_iter().flatten().collect())
    };
    clauses.iter().filter_map(of_clause).min_by_key(cost)
}

/// Rules by key, while the index is made.
#[derive(Default)]
struct Filed {
    principals: Texts,
    namespaces: Texts,
    service_accounts: HashMap<String, Vec<u32>>,
    sources: BTreeMap<IpBlock, Vec<u32>>,
    destinations: BTreeMap<IpBlock, Vec<u32>>,
    ports: HashMap<u16, Vec<u32>>,
}

impl Filed {
    fn put(&mut self, key: Key<'_>, number: u32) {
        let rules = match key {
            Key::Principal(Text::Exact(text)) => self.principals.exact(text),
            Key::Principal(Text::Other(pattern)) => self.principals.pattern(pattern),
            Key::Namespace(Text::Exact(text)) => self.namespaces.exact(text),
            Key::Namespace(Text::Other(pattern)) => self.namespaces.pattern(pattern),
            Key::ServiceAccount(text) => self.service_accounts.entry(text.to_owned()).or_default(),
            Key::Source(block) => self.sources.entry(block).or_default(),
            Key::Destination(block) => self.destinations.entry(block).or_default(),
            Key::Port(port) => self.ports.entry(port).or_default(),
        };
        if rules.last() != Some(&number) {
            rules.push(number);
        }
    }
}
