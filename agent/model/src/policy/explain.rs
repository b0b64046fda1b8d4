use std::fmt::Write;

use super::rule::{Check, CompiledRule, Sight};
use super::{CompiledPolicy, Facts, Hit, Policies};
use crate::authorize::{Cause, Connection, Denied};
use crate::world::security::Action;

/// How many rules are looked at to find the nearest: a refusal must stay cheap.
const RULES_LOOKED_AT: usize = 1000;
const POLICIES_NAMED: usize = 5;

impl Denied {
    /// Tells in one line which policy denied the connection by which rule; or which ALLOW policies there are, the
    /// rule that came nearest, and what about the connection did not match.
    pub fn explain(&self, connection: &Connection<'_>) -> String {
        match &self.cause {
            Cause::UnknownDestination => {
                let name = &connection.destination.name;
                format!("pod {name} is not known any more, and so not which policies apply to it")
            }
            _ => self.explain_by(&connection.facts()),
        }
    }

    /// The same, of whatever these are the facts.
    pub(crate) fn explain_by(&self, facts: &Facts<'_>) -> String {
        match &self.cause {
            Cause::Matched(hit) => matched(hit, facts),
            Cause::NoneAllows(policies) => none_allows(policies, facts),
            Cause::UnknownDestination => "it is not known any more".to_owned(),
        }
    }
}

fn matched(hit: &Hit, facts: &Facts<'_>) -> String {
    let Hit { policy, rule } = hit;
    let compiled = hit.compiled();
    let mut text = match policy.action {
        Action::Custom => {
            let what = match policy.sight {
                Sight::Connections => "its provider can't be asked about a connection",
                Sight::Requests if policy.provider.is_none() => "there is no provider to ask",
                Sight::Requests => "its provider has not let it pass",
            };
            format!(
                "AuthorizationPolicy {} has action CUSTOM: {what}, so rules[{rule}] denies what it matches",
                policy.name
            )
        }
        action => {
            format!(
                "AuthorizationPolicy {} denies it: {} rules[{rule}] matches",
                policy.name,
                action.as_str()
            )
        }
    };
    let holding = |alternative: &&Vec<Check>| alternative.iter().all(|check| compiled.holds(check, facts));
    let checks = compiled.clauses.iter().filter_map(|clause| clause.iter().find(holding)).flatten();
    let because: Vec<_> = checks.map(|check| say(check, facts)).collect();
    match because.as_slice() {
        [] if policy.sight == Sight::Connections => text.push_str(" every connection"),
        [] => text.push_str(" everything"),
        because => _ = write!(text, ", since {}", because.join("; ")),
    }
    if !compiled.unseen.is_empty() {
        let fields = compiled.unseen.join(", ");
        _ = write!(text, "; its {fields} {} and were left out", unseen(policy.sight));
    }
    text
}

fn none_allows(policies: &Policies, facts: &Facts<'_>) -> String {
    let allow = || policies.policies().filter(|p| p.action == Action::Allow && !p.dry_run);
    let names: Vec<_> = allow().take(POLICIES_NAMED).map(|policy| policy.name.to_string()).collect();
    let mut text = format!("no ALLOW policy matches: {}", names.join(", "));
    if let more @ 1.. = allow().count() - names.len() {
        _ = write!(text, " and {more} more");
    }
    let rules = allow().flat_map(|policy| (0..policy.rules.len()).map(move |rule| (policy, rule)));
    let nearest =
        rules.take(RULES_LOOKED_AT).min_by_key(|(policy, rule)| distance(&policy.rules[*rule], facts));
    match nearest {
        Some((policy, rule)) => text.push_str(&miss(policy, rule, facts)),
        None => text.push_str("; no rule allows anything"),
    }
    text
}

fn miss(policy: &CompiledPolicy, number: usize, facts: &Facts<'_>) -> String {
    let rule = &policy.rules[number];
    let mut why: Vec<_> = failing(rule, facts).map(|check| say(check, facts)).collect();
    if rule.never {
        why.push(format!("its {} {}", rule.unseen.join(", "), unseen(policy.sight)));
    }
    format!("; nearest is {} rules[{number}]: {}", policy.name, why.join("; "))
}

fn unseen(sight: Sight) -> &'static str {
    match sight {
        Sight::Connections => "can't be seen in a connection",
        Sight::Requests => "can't be judged by waypoints yet",
    }
}

/// How many fields don't match.
fn distance(rule: &CompiledRule, facts: &Facts<'_>) -> usize {
    failing(rule, facts).count() + rule.unseen.len()
}

/// The checks that fail, of each clause in the alternative with the fewest of them.
fn failing<'a>(rule: &'a CompiledRule, facts: &'a Facts<'_>) -> impl Iterator<Item = &'a Check> {
    let fails = move |check: &&Check| !rule.holds(check, facts);
    let nearest =
        move |clause: &'a Vec<Vec<Check>>| clause.iter().min_by_key(|a| a.iter().filter(fails).count());
    rule.clauses.iter().filter_map(nearest).flatten().filter(fails)
}

/// Why a check holds or fails. A field like `notPorts` says by itself what is in it.
fn say(check: &Check, facts: &Facts<'_>) -> String {
    let Check { field, test, .. } = check;
    let is = match test.hits(facts) {
        Some(true) => "is",
        Some(false) => "is not",
        None => "may be or not be",
    };
    match test.actual(facts) {
        Some(actual) => format!("{actual}, which {is} in {field} ({})", test.values()),
        None => {
            format!("the source has no identity (no mutual TLS), so it {is} in {field} ({})", test.values())
        }
    }
}
