use std::collections::{BTreeMap, HashMap};

use super::Request;
use crate::world::routing::{HttpMatch, StringMatch};

/// Finds the entries of a table that may match a request, so that few are asked: each is kept under the path that it
/// asks for, or else under a header's value, or else with those that are always asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    exact: HashMap<String, Vec<u32>>,
    /// Sorted.
    prefixes: Vec<Prefix>,
    /// By name, then by value.
    headers: HashMap<String, HashMap<String, Vec<u32>>>,
    always: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Prefix {
    text: String,
    entries: Vec<u32>,
    /// The longest of the others that this one begins with.
    parent: Option<usize>,
}

impl Index {
    /// Of entries each of which has to match all of its matches.
    pub fn new<'m>(entries: impl Iterator<Item = &'m [HttpMatch]>) -> Self {
        let mut index = Self::default();
        let mut prefixes: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (number, matches) in (0..).zip(entries) {
            let paths = || matches.iter().filter(|of| !of.ignore_uri_case).filter_map(|of| of.uri.as_ref());
            let exact = paths().find_map(|uri| match uri {
                StringMatch::Exact(path) => Some(path),
                _ => None,
            });
            let prefix = paths().filter_map(|uri| match uri {
                StringMatch::Prefix(path) | StringMatch::Segments(path) => Some(path),
                _ => None,
            });
            let prefix = prefix.max_by_key(|path| path.len()).filter(|path| path.len() > 1);
            let header = matches.iter().flat_map(|of| &of.headers).find_map(|(name, value)| match value {
                StringMatch::Exact(value) if !name.starts_with(':') && name != "host" => Some((name, value)),
                _ => None,
            });
            let list = match (exact, prefix, header) {
                (Some(path), ..) => index.exact.entry(path.clone()).or_default(),
                (None, Some(path), _) => prefixes.entry(path.as_str()).or_default(),
                (None, None, Some((name, value))) => {
                    index.headers.entry(name.clone()).or_default().entry(value.clone()).or_default()
                }
                (None, None, None) => &mut index.always,
            };
            list.push(number);
        }
        index.prefixes = linked(prefixes);
        index
    }

    /// The first entry, in the order of the table, for which `matches` holds.
    pub fn first(&self, request: &Request<'_>, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let mut best: Option<u32> = None;
        let mut ask = |entries: &[u32]| {
            let earlier = entries.iter().take_while(|&&entry| best.is_none_or(|best| entry < best));
            let found = earlier.copied().find(|&entry| matches(entry));
            best = found.or(best);
        };
        self.exact.get(request.path).into_iter().for_each(|entries| ask(entries));
        // Whatever begins the path comes before it in the order, and so also begins the last that does.
        let mut next = self.prefixes.partition_point(|prefix| *prefix.text <= *request.path).checked_sub(1);
        while let Some(prefix) = next.and_then(|next| self.prefixes.get(next)) {
            if request.path.starts_with(&prefix.text) {
                ask(&prefix.entries);
            }
            next = prefix.parent;
        }
        for (name, values) in &self.headers {
            if let Some(value) = request.headers.value(name)
                && let Some(entries) = values.get(&*value)
            {
                ask(entries);
            }
        }
        ask(&self.always);
        best
    }
}

fn linked(sorted: BTreeMap<&str, Vec<u32>>) -> Vec<Prefix> {
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(sorted.len());
    for (text, entries) in sorted {
        let mut parent = prefixes.len().checked_sub(1);
        while let Some(index) = parent
            && !text.starts_with(&prefixes[index].text)
        {
            parent = prefixes[index].parent;
        }
        prefixes.push(Prefix { text: text.to_owned(), entries, parent });
    }
    prefixes
}
