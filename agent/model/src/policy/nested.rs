use std::collections::BTreeMap;

/// Keys that stand for ranges, of which any two are apart or one inside the other: prefixes, CIDR blocks. Finds
/// all that hold a point by one binary search and a walk outwards.
#[derive(Clone, Debug)]
pub(crate) struct Nested<K> {
    /// Sorted, so that a key comes before those inside it.
    ranges: Vec<Range<K>>,
}

#[derive(Clone, Debug)]
struct Range<K> {
    key: K,
    /// The position of the narrowest key around this one.
    around: Option<usize>,
    rules: Vec<u32>,
}

impl<K> Default for Nested<K> {
    fn default() -> Self {
        Self { ranges: Vec::new() }
    }
}

impl<K: Ord> Nested<K> {
    /// `holds` says whether the first key holds the second.
    pub fn new(keys: BTreeMap<K, Vec<u32>>, holds: impl Fn(&K, &K) -> bool) -> Self {
        let mut ranges: Vec<Range<K>> = Vec::with_capacity(keys.len());
        for (key, rules) in keys {
            let mut around = ranges.len().checked_sub(1);
            while let Some(position) = around.filter(|&position| !holds(&ranges[position].key, &key)) {
                around = ranges[position].around;
            }
            ranges.push(Range { key, around, rules });
        }
        Self { ranges }
    }

    /// The rules of all keys that hold the point. `not_after` says whether a key sorts before the point or is
    /// it, `holds` whether it holds the point.
    pub fn find(
        &self,
        not_after: impl Fn(&K) -> bool,
        holds: impl Fn(&K) -> bool,
    ) -> impl Iterator<Item = &[u32]> {
        // Whatever holds the point also holds the last key before it, or is that key.
        let mut at = self.ranges.partition_point(|range| not_after(&range.key)).checked_sub(1);
        std::iter::from_fn(move || {
            loop {
                let range = self.ranges.get(at?)?;
                at = range.around;
                if holds(&range.key) {
                    return Some(range.rules.as_slice());
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::world::security::IpBlock;

    proptest! {
        #[test]
        fn all_prefixes_are_found(keys in prop::collection::btree_set("[ab]{1,4}", 0..12), text in "[abc]{0,6}") {
            let keys: BTreeMap<_, _> = keys.into_iter().zip(0..).map(|(key, rule)| (key, vec![rule])).collect();
            let want: Vec<_> = keys.iter().filter(|(key, _)| text.starts_with(*key)).map(|(_, r)| r[0]).collect();
            let nested = Nested::new(keys, |around, key| key.starts_with(around));
            let found = nested.find(|key| *key <= text, |key| text.starts_with(key));
            let mut found: Vec<_> = found.map(|rules| rules[0]).collect();
            found.sort();
            prop_assert_eq!(found, want);
        }

        #[test]
        fn all_blocks_are_found(keys in prop::collection::btree_set(block(), 0..12), at in any::<(u8, bool)>()) {
            let at = IpBlock::single(address(at));
            let keys: BTreeMap<_, _> = keys.into_iter().zip(0..).map(|(key, rule)| (key, vec![rule])).collect();
            let want: Vec<_> = keys.iter().filter(|(key, _)| key.covers(&at)).map(|(_, r)| r[0]).collect();
            let nested = Nested::new(keys, IpBlock::covers);
            let mut found: Vec<_> = nested.find(|key| *key <= at, |key| key.covers(&at)).map(|r| r[0]).collect();
            found.sort();
            prop_assert_eq!(found, want);
        }
    }

    fn block() -> impl Strategy<Value = IpBlock> {
        (any::<(u8, bool)>(), 0u8..=32).prop_map(|(at, length)| IpBlock::new(address(at), length).unwrap())
    }

    fn address((byte, v4): (u8, bool)) -> std::net::IpAddr {
        let byte = byte & 0b1100_0011;
        if v4 { [byte, 0, 0, byte].into() } else { [u16::from(byte) << 8, 0, 0, 0, 0, 0, 0, 1].into() }
    }
}
