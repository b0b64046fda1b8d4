use std::collections::BTreeMap;

use crate::world::security::IpBlock;

/// Rules by CIDR block. Of any two blocks one is inside the other or they are apart, so all that hold an address
/// are found by one binary search and a walk outwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    /// Sorted, so that a block comes before those inside it.
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    block: IpBlock,
    /// The position of the narrowest block around this one.
    around: Option<usize>,
    rules: Vec<u32>,
}

impl Blocks {
    pub fn new(rules: BTreeMap<IpBlock, Vec<u32>>) -> Self {
        let mut blocks: Vec<Block> = Vec::with_capacity(rules.len());
        for (block, rules) in rules {
            let mut around = blocks.len().checked_sub(1);
            while let Some(position) = around.filter(|&position| !blocks[position].block.covers(&block)) {
                around = blocks[position].around;
            }
            blocks.push(Block { block, around, rules });
        }
        Self { blocks }
    }

    /// The rules of all blocks.
    pub fn all(&self) -> impl Iterator<Item = &[u32]> {
        self.blocks.iter().map(|entry| entry.rules.as_slice())
    }

    /// The rules of all blocks around this one.
    pub fn around(&self, inner: IpBlock) -> impl Iterator<Item = &[u32]> {
        // Whatever is around it is also around the last block before it, or is that block.
        let mut at = self.blocks.partition_point(|entry| entry.block <= inner).checked_sub(1);
        std::iter::from_fn(move || {
            loop {
                let entry = self.blocks.get(at?)?;
                at = entry.around;
                if entry.block.covers(&inner) {
                    return Some(entry.rules.as_slice());
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_blocks_are_found(blocks in prop::collection::btree_set(block(), 0..12), at in any::<(u8, bool)>()) {
            let at = IpBlock::single(address(at));
            let blocks: BTreeMap<_, _> = blocks.into_iter().zip(0..).map(|(b, rule)| (b, vec![rule])).collect();
            let want: Vec<_> = blocks.iter().filter(|(block, _)| block.covers(&at)).map(|(_, r)| r[0]).collect();
            let mut found: Vec<_> = Blocks::new(blocks).around(at).map(|rules| rules[0]).collect();
            found.sort();
            prop_assert_eq!(found, want);
        }
    }

    fn block() -> impl Strategy<Value = IpBlock> {
        (any::<(u8, bool)>(), 0u8..=32).prop_map(|(at, length)| IpBlock::new(address(at), length).unwrap())
    }

    /// Few different ones, so that blocks nest.
    fn address((byte, v4): (u8, bool)) -> std::net::IpAddr {
        let byte = byte & 0b1100_0011;
        if v4 { [byte, 0, 0, byte].into() } else { [u16::from(byte) << 8, 0, 0, 0, 0, 0, 0, 1].into() }
    }
}
