use std::collections::HashMap;

use crate::world::security::Pattern;

/// Rules by what a text must look like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    exact: HashMap<String, Vec<u32>>,
    prefixes: Affixes,
    suffixes: Affixes,
    present: Vec<u32>,
}

/// Prefixes or suffixes. They have few different lengths, so that looking up one of each is quicker than any tree.
#[derive(Clone, Debug, Default)]
struct Affixes {
    /// Sorted.
    lengths: Vec<usize>,
    rules: HashMap<String, Vec<u32>>,
}

impl Texts {
    /// The list of rules for this very text.
    pub fn exact(&mut self, text: &str) -> &mut Vec<u32> {
        self.exact.entry(text.to_owned()).or_default()
    }

    /// The list of rules for a pattern.
    pub fn pattern(&mut self, pattern: &Pattern) -> &mut Vec<u32> {
        match pattern {
            Pattern::Exact(text) => self.exact(text),
            Pattern::Prefix(text) => self.prefixes.at(text),
            Pattern::Suffix(text) => self.suffixes.at(text),
            Pattern::Present => &mut self.present,
        }
    }

    /// Gives each list whose text or pattern this one matches.
    pub fn of<'a>(&'a self, text: &str, give: &mut impl FnMut(&'a [u32])) {
        // Nothing matches what is not there.
        if text.is_empty() {
            return;
        }
        self.exact.get(text).into_iter().for_each(|rules| give(rules));
        self.prefixes.of(text.len(), |length| text.get(..length), give);
        self.suffixes.of(text.len(), |length| text.get(text.len() - length..), give);
        give(&self.present);
    }
}

impl Affixes {
    fn at(&mut self, affix: &str) -> &mut Vec<u32> {
        if let Err(position) = self.lengths.binary_search(&affix.len()) {
            self.lengths.insert(position, affix.len());
        }
        self.rules.entry(affix.to_owned()).or_default()
    }

    fn of<'a, 't>(
        &'a self,
        longest: usize,
        part: impl Fn(usize) -> Option<&'t str>,
        give: &mut impl FnMut(&'a [u32]),
    ) {
        let lengths = self.lengths.iter().copied().take_while(|&length| length <= longest);
        for rules in lengths.filter_map(|length| self.rules.get(part(length)?)) {
            give(rules);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_patterns_are_found(
            patterns in prop::collection::btree_set("[ab]{1,3}[*]?|[*][ab]{0,3}", 0..12),
            text in "[abc]{0,4}",
        ) {
            let patterns: Vec<Pattern> = patterns.iter().map(|text| text.parse().unwrap()).collect();
            let mut texts = Texts::default();
            (0..).zip(&patterns).for_each(|(rule, pattern)| texts.pattern(pattern).push(rule));
            let mut found = Vec::new();
            texts.of(&text, &mut |rules| found.extend_from_slice(rules));
            found.sort();
            let want: Vec<u32> =
                (0..).zip(&patterns).filter(|(_, p)| p.matches(&text)).map(|(rule, _)| rule).collect();
            prop_assert_eq!(found, want);
        }
    }
}
