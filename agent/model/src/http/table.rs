use super::index::Index;
use super::matching::holds;
use super::{Action, Cluster, Request, Rule, Selected};
use crate::name::NamespacedName;
use crate::world::Labels;
use crate::world::routing::{HttpMatch, StringMatch};

#[cfg(test)]
thread_local! {
    /// How many entries have been asked, for tests of the index.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The rules for one host, in the order in which they count.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    rules: Vec<Rule>,
    entries: Vec<Entry>,
    index: Index,
}

/// One alternative of a rule.
#[derive(Clone, Debug)]
struct Entry {
    rule: usize,
    /// All of these must hold: a delegate's own, and that of the rule that delegates.
    matches: Vec<HttpMatch>,
}

impl Table {
    /// Each rule comes with its alternatives.
    pub fn new(rules: Vec<(Rule, Vec<Vec<HttpMatch>>)>) -> Self {
        let mut all = Vec::with_capacity(rules.len());
        let mut entries = Vec::new();
        for (rule, alternatives) in rules {
            entries.extend(alternatives.into_iter().map(|matches| (all.len(), matches)));
            all.push(rule);
        }
        Self::of_entries(all, entries)
    }

    /// The alternatives come in an order of their own, each with the number of its rule.
    pub fn of_entries(rules: Vec<Rule>, entries: Vec<(usize, Vec<HttpMatch>)>) -> Self {
        let entries: Vec<_> = entries.into_iter().map(|(rule, matches)| Entry { rule, matches }).collect();
        let index = Index::new(entries.iter().map(|entry| &entry.matches[..]));
        Self { rules, entries, index }
    }

    pub fn select(&self, request: &Request<'_>, labels: Option<&Labels>) -> Option<Selected<'_>> {
        let first = self.index.first(request, |number| {
            #[cfg(test)]
            LOOKED_AT.set(LOOKED_AT.get() + 1);
            let entry = &self.entries[number as usize];
            entry.matches.iter().all(|of| holds(of, request, labels))
        })?;
        let entry = self.entries.get(first as usize)?;
        // A delegate's own path counts, and that of the rule that delegates only where it asks for none.
        let uri = entry.matches.iter().rev().find_map(|of| of.uri.as_ref());
        let prefix = match uri {
            Some(StringMatch::Prefix(prefix) | StringMatch::Segments(prefix)) => Some(prefix.as_str()),
            _ => None,
        };
        let rule = self.rules.get(entry.rule)?;
        // As Istio has it for `rewrite.uri`: what asks for no path is for all that begin with a slash.
        let has_uri = rule.rewrite.as_ref().is_some_and(|rewrite| rewrite.uri.is_some());
        let prefix = prefix.or_else(|| (has_uri && uri.is_none()).then_some("/"));
        Some(Selected { rule, prefix })
    }

    /// The resources whose rules these are.
    pub fn resources(&self) -> impl Iterator<Item = &NamespacedName> {
        let mut last = None;
        let names = self.rules.iter().map(|rule| &*rule.resource);
        names.filter(move |name| last.replace(*name) != Some(*name))
    }

    /// Where its rules lead.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.rules.iter().flat_map(|rule| {
            let choices = match &rule.action {
                Action::Route(split) => Some(split.choices()),
                Action::Redirect(_) | Action::Direct(_) | Action::Invalid(_) => None,
            };
            let mirrors = rule.mirrors.iter().map(|mirror| &mirror.cluster);
            choices.into_iter().flatten().map(|choice| &choice.cluster).chain(mirrors)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::Arc;

    use super::super::{Action, Headers, Split};
    use super::*;
    use crate::world::routing::{Fault, HeaderChanges, Retries};

    struct User(String);

    impl Headers for User {
        fn values(&self, name: &str) -> Vec<Cow<'_, str>> {
            (name == "x-user").then_some(Cow::Borrowed(&*self.0)).into_iter().collect()
        }

        fn alike(&self, _: &str) -> Vec<Cow<'_, str>> {
            Vec::new()
        }
    }

    fn rule(number: usize) -> Rule {
        Rule {
            name: number.to_string(),
            kind: "VirtualService",
            resource: Arc::default(),
            root: None,
            action: Action::Route(Split::new([])),
            rewrite: None,
            timeout: None,
            retries: Retries::default(),
            fault: Fault::default(),
            mirrors: Vec::new(),
            cors: None,
            headers: HeaderChanges::default(),
        }
    }

    #[test]
    fn of_a_thousand_rules_few_are_asked() {
        let uri = |uri| HttpMatch { uri: Some(uri), ..HttpMatch::default() };
        let of = |kind: usize, number: usize| match kind {
            0 => uri(StringMatch::Exact(format!("/path/{number}"))),
            1 => uri(StringMatch::Prefix(format!("/path/{number}/"))),
            _ => HttpMatch {
                headers: vec![("x-user".to_owned(), StringMatch::Exact(number.to_string()))],
                ..HttpMatch::default()
            },
        };
        for (kind, path) in [(0, "/path/777"), (1, "/path/777/x"), (2, "/")] {
            let table = Table::new((0..1000).map(|n| (rule(n), vec![vec![of(kind, n)]])).collect());
            let headers = User("777".to_owned());
            let request = Request {
                method: "GET",
                scheme: "http",
                authority: "web",
                path,
                query: None,
                headers: &headers,
                port: 80,
                source: None,
                source_namespace: "shop",
                claims: &[],
            };
            LOOKED_AT.set(0);
            assert_eq!(table.select(&request, None).unwrap().rule.name, "777");
            assert_eq!(LOOKED_AT.get(), 1, "{path}");
        }
    }
}
