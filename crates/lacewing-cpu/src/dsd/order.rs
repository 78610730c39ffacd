//! The order in which a product walks the blocks: by the outputs that they share.

use std::ops::Range;

/// Inputs of a run at least: of single values, 64 rows of that many floats stay in the first cache.
const LEAST_RUN: usize = 128;
/// Values that a group should have in a run, so that what a run costs besides is a small part.
const RUN_VALUES: usize = 16;

/// The blocks of every output group, in the order they lie.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Group `g` is `starts[g]..starts[g + 1]`.
    pub(super) starts: Vec<usize>,
    /// The block of inputs that each reads.
    pub(super) inputs: Vec<u32>,
    /// The number of each; empty where they lie in this order.
    slots: Vec<u32>,
    /// Runs of inputs: `cuts[r · groups + g]` is where those of group `g` in run `r` end. Empty for a single run.
    cuts: Vec<u32>,
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
            return Self {
                starts,
                inputs: places.map(|(_, input)| input).collect(),
                slots: Vec::new(),
                cuts: Vec::new(),
            };
        }
        let mut next = starts.clone();
        let (mut inputs, mut slots) = (vec![0; starts[groups]], vec![0; starts[groups]]);
        for (slot, (group, input)) in places.enumerate() {
            let at = &mut next[group as usize];
            (inputs[*at], slots[*at]) = (input, slot as u32);
            *at += 1;
        }
        Self { starts, inputs, slots, cuts: Vec::new() }
    }

    /// With every group cut into runs of the `inputs` that there are, as wide as suits how many values it has. Within a
    /// group the inputs must ascend.
    pub(super) fn in_runs(mut self, inputs: usize) -> Self {
        let groups = self.starts.len() - 1;
        let width = (RUN_VALUES * inputs * groups / self.inputs.len().max(1)).max(LEAST_RUN);
        if width >= inputs {
            return self;
        }
        for end in (width..inputs).step_by(width).chain([inputs]) {
            for group in 0..groups {
                let range = self.starts[group]..self.starts[group + 1];
                let within = self.inputs[range.clone()].partition_point(|&i| (i as usize) < end);
                self.cuts.push((range.start + within) as u32);
            }
        }
        self
    }

    /// Runs that every group is cut into.
    pub(super) fn runs(&self) -> usize {
        self.cuts.len().checked_div(self.starts.len() - 1).unwrap_or(0).max(1)
    }

    /// What of a group is in runs `run` up to and without `end`.
    #[inline(always)]
    pub(super) fn run(&self, Range { start: run, end }: Range<usize>, group: usize) -> Range<usize> {
        if self.cuts.is_empty() {
            return self.starts[group]..self.starts[group + 1];
        }
        let groups = self.starts.len() - 1;
        let start =
            if run == 0 { self.starts[group] } else { self.cuts[(run - 1) * groups + group] as usize };
        start..self.cuts[(end - 1) * groups + group] as usize
    }

    /// Number and input block of every block of a group, and the number of the block that follows in this order.
    #[inline(always)]
    pub(super) fn of(&self, group: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let slot = |at: usize| self.slots.get(at).map_or(at, |&slot| slot as usize);
        let last = self.inputs.len().saturating_sub(1);
        let range = self.starts[group]..self.starts[group + 1];
        range.map(move |at| (slot(at), self.inputs[at] as usize, slot(last.min(at + 1))))
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
