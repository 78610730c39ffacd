//! The order in which a product walks the blocks: by the outputs that they share.

use super::one_row::Columns;
use std::ops::Range;
use std::sync::OnceLock;

/// The blocks of every output group, in the order they lie.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Group `g` is `starts[g]..starts[g + 1]`.
    pub(super) starts: Vec<usize>,
    /// The block of inputs that each reads.
    pub(super) inputs: Vec<u32>,
    /// The number of each; empty where they lie in this order.
    slots: Vec<u32>,
    /// As products of few rows read the inputs: made by the first of them.
    pub(super) columns: OnceLock<Columns>,
}

impl Order {
    /// Of `groups` groups for `(group, input)` pairs in any order.
    pub(super) fn new(groups: usize, places: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut starts = vec![0; groups + 1];
        let (mut sorted, mut last) = (true, 0);
        for (group, _) in places.clone() {
            starts[group as usize + 1] += 1;
            sorted &= group >= last;
            last = group;
        }
        for g in 0..groups {
            starts[g + 1] += starts[g];
        }
        if sorted {
            let inputs = places.map(|(_, input)| input).collect();
            return Self { starts, inputs, slots: Vec::new(), columns: OnceLock::new() };
        }
        let mut next = starts.clone();
        let (mut inputs, mut slots) = (vec![0; starts[groups]], vec![0; starts[groups]]);
        for (slot, (group, input)) in places.enumerate() {
            let at = &mut next[group as usize];
            (inputs[*at], slots[*at]) = (input, slot as u32);
            *at += 1;
        }
        Self { starts, inputs, slots, columns: OnceLock::new() }
    }

    /// Number and input block of every block of a group, and of the block that follows in this order.
    #[inline(always)]
    pub(super) fn of(&self, group: usize) -> impl Iterator<Item = (usize, usize, (usize, usize))> {
        let slot = |at: usize| self.slots.get(at).map_or(at, |&slot| slot as usize);
        let last = self.inputs.len().saturating_sub(1);
        let range = self.starts[group]..self.starts[group + 1];
        range.map(move |at| {
            let next = last.min(at + 1);
            (slot(at), self.inputs[at] as usize, (slot(next), self.inputs[next] as usize))
        })
    }

    /// Ranges of groups, one after the other, with about as many blocks each; no more than `parts`.
    pub(super) fn parts(&self, parts: usize) -> impl Iterator<Item = Range<usize>> {
        let (groups, blocks) = (self.starts.len() - 1, self.inputs.len());
        let mut start = 0;
        (1..=parts).filter_map(move |part| {
            let end = if part == parts {
                groups
            } else {
                self.starts.partition_point(|&at| at < blocks * part / parts).min(groups)
            };
            let range = start..end.max(start);
            start = range.end;
            (!range.is_empty()).then_some(range)
        })
    }

    /// The number of each block, where they do not lie in this order.
    pub(super) fn slots(&self) -> Option<&[u32]> {
        (!self.slots.is_empty()).then_some(&self.slots)
    }
}
