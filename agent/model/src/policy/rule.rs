use std::fmt;

use super::facts::Facts;
use super::trust::TrustDomains;
use crate::world::security::{
    Action, Condition, IpBlock, Match, Operation, Pattern, Rule, ServiceAccount, Source,
};

/// A rule made ready to be asked: all clauses must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompiledRule {
    pub clauses: Vec<Clause>,
    /// What the rule asks that a connection doesn't show, in the order written.
    pub of_requests: Vec<String>,
    /// It can't match, since it would have to show that.
    pub never: bool,
}

#[cfg(test)]
thread_local! {
    /// How many rules have been asked, for tests of the index.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Holds if one of its alternatives does, all of whose checks must hold.
pub(crate) type Clause = Vec<Vec<Check>>;

/// One field of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Check {
    /// As the resource spells it.
    pub field: &'static str,
    pub negated: bool,
    pub test: Test,
}

/// One fact of a connection and the values it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Test {
    Principal(Patterns),
    Namespace(Patterns),
    /// As `ns/NAMESPACE/sa/SERVICE_ACCOUNT`, sorted.
    ServiceAccount(Vec<String>),
    SourceIp(Vec<IpBlock>),
    DestinationIp(Vec<IpBlock>),
    /// Sorted.
    DestinationPort(Vec<u16>),
}

/// Patterns of one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Patterns {
    /// Sorted.
    pub exact: Vec<String>,
    pub other: Vec<Pattern>,
}

impl CompiledRule {
    /// What a rule asks of requests can't be seen here. It keeps an ALLOW rule from matching; in the rules of
    /// other actions it is left out, so that they match more.
    pub fn new(rule: &Rule, action: Action, trust: &TrustDomains<'_>) -> Self {
        let mut of_requests = Vec::new();
        let mut clauses = Vec::new();
        if !rule.from.is_empty() {
            clauses.push(rule.from.iter().map(|from| source(from, trust)).collect());
            of_requests.extend(rule.from.iter().flat_map(|from| from.of_requests.iter().cloned()));
        }
        if !rule.to.is_empty() {
            clauses.push(rule.to.iter().map(operation).collect());
            of_requests.extend(rule.to.iter().flat_map(|to| to.of_requests.iter().cloned()));
        }
        for when in &rule.when {
            match condition(when, trust) {
                Ok(checks) => clauses.push(vec![checks]),
                Err(key) => of_requests.push(key.to_owned()),
            }
        }
        let mut seen = Vec::new();
        of_requests.retain(|field| {
            !seen.contains(field) && {
                seen.push(field.clone());
                true
            }
        });
        // An alternative without checks always holds, and its clause with it.
        clauses.retain(|clause: &Clause| clause.iter().all(|alternative| !alternative.is_empty()));
        let never = action == Action::Allow && !of_requests.is_empty();
        Self { clauses, of_requests, never }
    }

    /// Whether all of it holds.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        #[cfg(test)]
        LOOKED_AT.set(LOOKED_AT.get() + 1);
        let holds = |alternative: &Vec<Check>| alternative.iter().all(|check| check.holds(facts));
        !self.never && self.clauses.iter().all(|clause| clause.iter().any(holds))
    }
}

impl Check {
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        self.test.hits(facts) != self.negated
    }
}

impl Test {
    fn hits(&self, facts: &Facts<'_>) -> bool {
        match self {
            Test::Principal(patterns) => patterns.hit(facts.principal),
            Test::Namespace(patterns) => patterns.hit(facts.namespace),
            Test::ServiceAccount(accounts) => {
                accounts.binary_search_by(|account| account.as_str().cmp(facts.service_account)).is_ok()
            }
            Test::SourceIp(blocks) => blocks.iter().any(|block| block.contains(facts.source)),
            Test::DestinationIp(blocks) => blocks.iter().any(|block| block.contains(facts.destination.ip())),
            Test::DestinationPort(ports) => ports.binary_search(&facts.destination.port()).is_ok(),
        }
    }

    /// What the connection has, as people write it; `None` where only an identity would tell.
    pub fn actual(&self, facts: &Facts<'_>) -> Option<String> {
        let known = !facts.principal.is_empty();
        match self {
            Test::SourceIp(_) => Some(format!("the source's address is {}", facts.source)),
            Test::DestinationIp(_) => {
                Some(format!("the destination's address is {}", facts.destination.ip()))
            }
            Test::DestinationPort(_) => {
                Some(format!("the destination's port is {}", facts.destination.port()))
            }
            Test::Principal(_) => known.then(|| format!("the source's principal is {}", facts.principal)),
            Test::Namespace(_) => known.then(|| format!("the source's namespace is {}", facts.namespace)),
            Test::ServiceAccount(_) => {
                known.then(|| format!("the source's service account is {}", short(facts.service_account)))
            }
        }
    }

    /// The values, a few of them where they are many.
    pub fn values(&self) -> String {
        match self {
            Test::Principal(patterns) | Test::Namespace(patterns) => {
                let other = patterns.other.iter().map(|pattern| pattern as &dyn fmt::Display);
                few(patterns.exact.iter().map(|text| text as &dyn fmt::Display).chain(other))
            }
            Test::ServiceAccount(accounts) => {
                let shown: Vec<_> = accounts.iter().map(|account| short(account)).collect();
                few(shown.iter().map(|account| account as &dyn fmt::Display))
            }
            Test::SourceIp(blocks) | Test::DestinationIp(blocks) => {
                few(blocks.iter().map(|block| block as &dyn fmt::Display))
            }
            Test::DestinationPort(ports) => few(ports.iter().map(|port| port as &dyn fmt::Display)),
        }
    }
}

impl Patterns {
    fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let (mut exact, mut other) = (Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern {
                Pattern::Exact(text) => exact.push(text),
                pattern => other.push(pattern),
            }
        }
        exact.sort();
        exact.dedup();
        other.sort();
        other.dedup();
        Self { exact, other }
    }

    fn hit(&self, text: &str) -> bool {
        !text.is_empty()
            && (self.exact.binary_search_by(|exact| exact.as_str().cmp(text)).is_ok()
                || self.other.iter().any(|pattern| pattern.matches(text)))
    }
}

fn source(source: &Source, trust: &TrustDomains<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    add(&mut checks, ["principals", "notPrincipals"], &source.principals, |them| principal(them, trust));
    add(&mut checks, ["namespaces", "notNamespaces"], &source.namespaces, namespace);
    add(&mut checks, ["serviceAccounts", "notServiceAccounts"], &source.service_accounts, service_account);
    add(&mut checks, ["ipBlocks", "notIpBlocks"], &source.ip_blocks, |blocks| {
        Test::SourceIp(blocks.to_vec())
    });
    checks
}

fn operation(operation: &Operation) -> Vec<Check> {
    let mut checks = Vec::new();
    add(&mut checks, ["ports", "notPorts"], &operation.ports, port);
    checks
}

/// The checks, or the key that can't be decided.
fn condition<'a>(condition: &'a Condition, trust: &TrustDomains<'_>) -> Result<Vec<Check>, &'a str> {
    let mut checks = Vec::new();
    let to = &mut checks;
    match condition {
        Condition::SourceIp(of) => {
            add(to, ["source.ip", "source.ip notValues"], of, |blocks| Test::SourceIp(blocks.to_vec()))
        }
        Condition::SourceNamespace(of) => {
            add(to, ["source.namespace", "source.namespace notValues"], of, namespace)
        }
        Condition::SourcePrincipal(of) => {
            add(to, ["source.principal", "source.principal notValues"], of, |them| principal(them, trust));
        }
        Condition::SourceServiceAccount(of) => {
            add(to, ["source.serviceAccount", "source.serviceAccount notValues"], of, service_account)
        }
        Condition::DestinationIp(of) => {
            add(to, ["destination.ip", "destination.ip notValues"], of, |blocks| {
                Test::DestinationIp(blocks.to_vec())
            });
        }
        Condition::DestinationPort(of) => {
            add(to, ["destination.port", "destination.port notValues"], of, port)
        }
        Condition::OfRequests(key) => return Err(key),
    }
    Ok(checks)
}

fn add<T>(checks: &mut Vec<Check>, fields: [&'static str; 2], of: &Match<T>, test: impl Fn(&[T]) -> Test) {
    for (values, field, negated) in [(&of.values, fields[0], false), (&of.not_values, fields[1], true)] {
        if !values.is_empty() {
            checks.push(Check { field, negated, test: test(values) });
        }
    }
}

fn principal(patterns: &[Pattern], trust: &TrustDomains<'_>) -> Test {
    Test::Principal(Patterns::new(patterns.iter().flat_map(|pattern| trust.expand(pattern))))
}

fn namespace(patterns: &[Pattern]) -> Test {
    Test::Namespace(Patterns::new(patterns.iter().cloned()))
}

fn service_account(accounts: &[ServiceAccount]) -> Test {
    let mut uris: Vec<_> = accounts.iter().map(|a| format!("ns/{}/sa/{}", a.namespace, a.name)).collect();
    uris.sort();
    Test::ServiceAccount(uris)
}

fn port(ports: &[u16]) -> Test {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    Test::DestinationPort(ports)
}

/// `NAMESPACE/NAME` of `ns/NAMESPACE/sa/NAME`.
fn short(service_account: &str) -> String {
    service_account.replacen("ns/", "", 1).replacen("/sa/", "/", 1)
}

fn few<'a>(values: impl Iterator<Item = &'a dyn fmt::Display>) -> String {
    const SHOWN: usize = 4;
    let values: Vec<_> = values.collect();
    let mut text = values.iter().take(SHOWN).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = values.len().saturating_sub(SHOWN) {
        text += &format!(" and {more} more");
    }
    text
}
