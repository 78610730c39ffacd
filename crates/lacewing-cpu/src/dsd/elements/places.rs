//! The order in which single values meet a tile of rows.
//!
//! Outputs are taken in chunks, whose sums stay near; inputs in runs. The outputs of a chunk come by how many values
//! they have in the run: the number of steps of the innermost loop then hardly ever changes, and a CPU foresees its end.

use super::super::order::Order;
use crate::parallel::share;
use std::ops::Range;

/// The values of one output in one run of inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The first value.
    pub(super) start: u32,
    /// How many there are.
    pub(super) len: u16,
    /// The output, counted from the first of the chunk.
    pub(super) output: u16,
}

/// All values of a weight, by chunks of outputs, then runs of inputs, then outputs.
#[derive(Debug, Clone)]
pub(super) struct Places {
    outputs: usize,
    /// Outputs of a chunk.
    pub(super) chunk: usize,
    /// Inputs of a run.
    pub(super) width: usize,
    pub(super) runs: usize,
    places: Vec<Place>,
    /// Where the inputs of each chunk's run start.
    starts: Vec<u32>,
    /// The input of each value, counted from the first of its run.
    inputs: Vec<u16>,
    /// The number of each value; empty where places refer to values as they are stored.
    slots: Vec<u32>,
}

impl Places {
    /// Of the values of `order`, whose groups are outputs, for runs of `width` of `inputs` inputs. Within an output the
    /// inputs must ascend. Values that are not stored in that order have to be put in order by [`Self::slots`].
    pub(super) fn new(order: &Order, inputs: usize, width: usize, chunk: usize) -> Self {
        let width = width.min(inputs).clamp(1, usize::from(u16::MAX));
        let outputs = order.starts.len() - 1;
        let runs = inputs.div_ceil(width).max(1);
        let mut all = Self {
            outputs,
            chunk,
            width,
            runs,
            places: Vec::with_capacity(outputs * runs),
            starts: Vec::with_capacity(outputs.div_ceil(chunk) * runs + 1),
            inputs: Vec::with_capacity(order.inputs.len()),
            slots: Vec::with_capacity(order.slots().map_or(0, <[u32]>::len)),
        };
        for first in (0..outputs).step_by(chunk) {
            let mut next: Vec<usize> = order.starts[first..outputs.min(first + chunk)].to_vec();
            for run in 0..runs {
                all.starts.push(all.inputs.len() as u32);
                let before = run * width;
                let mut ranges: Vec<(u16, usize, usize)> = Vec::with_capacity(next.len());
                for (o, next) in next.iter_mut().enumerate() {
                    let rest = &order.inputs[*next..order.starts[first + o + 1]];
                    let end = *next + rest.partition_point(|&input| (input as usize) < before + width);
                    ranges.push((o as u16, *next, end));
                    *next = end;
                }
                ranges.sort_by_key(|(_, start, end)| end - start);
                for (output, start, end) in ranges {
                    let stored = if order.slots().is_some() { all.inputs.len() } else { start };
                    all.places.push(Place { start: stored as u32, len: (end - start) as u16, output });
                    let from = &order.inputs[start..end];
                    all.inputs.extend(from.iter().map(|&input| (input as usize - before) as u16));
                    all.slots.extend(order.slots().iter().flat_map(|slots| &slots[start..end]));
                }
            }
        }
        all.starts.push(all.inputs.len() as u32);
        all
    }

    pub(super) fn chunks(&self) -> usize {
        self.outputs.div_ceil(self.chunk)
    }

    /// The places of a run of a chunk, and the inputs of their values one after the other.
    #[inline(always)]
    pub(super) fn of(&self, chunk: usize, run: usize) -> (&[Place], &[u16]) {
        let first = chunk * self.chunk;
        let len = self.chunk.min(self.outputs - first);
        let at = chunk * self.runs + run;
        let inputs = self.starts[at] as usize..self.starts[at + 1] as usize;
        (&self.places[first * self.runs + run * len..][..len], &self.inputs[inputs])
    }

    /// The values of a chunk, in this order or as they are stored.
    pub(super) fn values(&self, chunk: usize) -> Range<usize> {
        self.starts[chunk * self.runs] as usize..self.starts[(chunk + 1) * self.runs] as usize
    }

    /// Puts `values`, stored by their outputs, in this order, by all threads.
    pub(super) fn pack(&self, values: &[f32], to: &mut [f32]) {
        let mut tasks = Vec::new();
        let mut rest = to;
        for chunk in 0..self.chunks() {
            let (own, others) = rest.split_at_mut(self.values(chunk).len());
            tasks.push((chunk, own));
            rest = others;
        }
        share(tasks, |(chunk, mut to)| {
            for run in 0..self.runs {
                for place in self.of(chunk, run).0 {
                    let (own, others) = to.split_at_mut(usize::from(place.len));
                    own.copy_from_slice(&values[place.start as usize..][..own.len()]);
                    to = others;
                }
            }
        });
    }

    /// The number of the value that place `at` of all refers to, of the last one where they end before.
    #[inline(always)]
    pub(super) fn number(&self, at: usize) -> usize {
        let at = at.min(self.inputs.len() - 1);
        self.slots.get(at).map_or(at, |&slot| slot as usize)
    }

    /// The number of each value in this order, unless places refer to them as stored.
    pub(super) fn slots(&self) -> Option<&[u32]> {
        (!self.slots.is_empty()).then_some(&self.slots)
    }
}
