//! Single values anywhere: unstructured and N:M weights.

mod gradient;
mod pack;
mod places;
mod tile;

use super::order::Order;
use super::{Kernel, one_row};
use crate::parallel::within_pool;
use crate::scratch::scratch;
use crate::simd::{Level, MatMut};
use pack::{Lanes, Pack};
use places::{CHUNK, Places};
use rayon::prelude::*;
use std::sync::OnceLock;
use tile::Tile;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/elements",
    accepts: |blocks| blocks.br == 1 && blocks.bc == 1,
    forward: |blocks, values, x, y, accumulate| {
        let side = Side { order: &blocks.by_row, orders: &blocks.elements.by_row };
        product(side, values, (x, blocks.n_in), (y, blocks.n_out), accumulate);
    },
    input_gradient: |blocks, values, dy, dx, accumulate| {
        let side = Side { order: &blocks.by_col, orders: &blocks.elements.by_col };
        product(side, values, (dy, blocks.n_out), (dx, blocks.n_in), accumulate);
    },
    weight_gradient: |blocks, dy, x, dvalues| {
        if !dvalues.is_empty() {
            let places = Side { order: &blocks.by_row, orders: &blocks.elements.by_row }.far(blocks.n_in);
            gradient::weight_gradient(places, (dy, blocks.n_out), (x, blocks.n_in), dvalues);
        }
    },
    packing: None,
};

/// Registers of rows in a tile, at most.
const REGISTERS: usize = 4;
/// Inputs of a run whose packed rows are to lie in the first cache: 64 rows of them are half of it, and the other half
/// is what passes through.
const NEAR: usize = 96;
/// Values that an output has in such a run at least, or what a run costs besides is too much.
const NEAR_VALUES: usize = 7;
/// Inputs of a run whose packed rows are to lie in the second cache.
const FAR: usize = 1024;
/// Tasks at least, where there is enough to cut.
const TASKS: usize = 16;
/// Chunks of one at most.
const TASK_CHUNKS: usize = 8;
/// Inputs that one task packs.
const STRIP: usize = 128;
/// Values that one task reorders.
const VALUES: usize = 32 * 1024;

/// The orders of a pattern's values, made when first asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Elements {
    by_row: Orders,
    by_col: Orders,
}

#[derive(Debug, Clone, Default)]
struct Orders {
    near: OnceLock<Places>,
    far: OnceLock<Places>,
}

/// The values by their outputs: the rows of the weight, or in the input gradient its columns.
#[derive(Clone, Copy)]
struct Side<'a> {
    order: &'a Order,
    orders: &'a Orders,
}

impl<'a> Side<'a> {
    /// In runs for the second cache.
    fn far(self, n_in: usize) -> &'a Places {
        self.orders.far.get_or_init(|| Places::new(self.order, n_in, FAR))
    }

    /// In the runs that are best for tiles of so many registers.
    fn places(self, n_in: usize, registers: usize) -> &'a Places {
        let outputs = self.order.starts.len() - 1;
        let near = self.order.inputs.len() * NEAR >= NEAR_VALUES * outputs * n_in;
        if near && registers == REGISTERS {
            return self.orders.near.get_or_init(|| Places::new(self.order, n_in, NEAR));
        }
        self.far(n_in)
    }
}

/// `y (+)= x Wᵀ` for the values of one side.
fn product(
    side: Side<'_>,
    values: &[f32],
    (x, n_in): (&[f32], usize),
    (y, n_out): (&mut [f32], usize),
    accumulate: bool,
) {
    if y.is_empty() || values.is_empty() {
        if !accumulate {
            y.fill(0.0);
        }
        return;
    }
    let rows = y.len() / n_out;
    if rows <= one_row::MOST_ROWS {
        return scratch(if side.order.slots().is_some() { values.len() } else { 0 }, |memory| {
            let values = in_order(side.order.slots(), values, memory);
            one_row::product(side.order, values, (x, n_in), (y, n_out), accumulate);
        });
    }
    // Once, since what is packed is as wide as the registers that will read it.
    let level = Level::current();
    let lanes = level.run(Lanes);
    let places = side.places(n_in, registers(rows, lanes));
    within_pool(|| {
        scratch(if places.slots().is_some() { values.len() } else { 0 }, |memory| {
            let values = in_order(places.slots(), values, memory);
            let tasks = Tasks { level, lanes, places, values, accumulate };
            if rows.div_ceil(REGISTERS * lanes) >= TASKS {
                tasks.by_bands((x, n_in), (y, n_out));
            } else {
                tasks.by_outputs((x, n_in), (y, n_out));
            }
        });
    });
}

/// Registers that rows fill, as many as a tile may have.
fn registers(rows: usize, lanes: usize) -> usize {
    rows.div_ceil(lanes).next_power_of_two().min(REGISTERS)
}

/// What the tasks of a product share.
struct Tasks<'a> {
    level: Level,
    lanes: usize,
    places: &'a Places,
    values: &'a [f32],
    accumulate: bool,
}

impl Tasks<'_> {
    /// A task for each band of rows.
    fn by_bands(&self, (x, n_in): (&[f32], usize), (y, n_out): (&mut [f32], usize)) {
        let band = REGISTERS * self.lanes;
        y.par_chunks_mut(band * n_out).zip(x.par_chunks(band * n_in)).for_each(|(y, from)| {
            let rows = y.len() / n_out;
            let width = registers(rows, self.lanes) * self.lanes;
            scratch(n_in * width, |to| {
                self.level.run(Pack { to, from, stride: n_in, rows, width });
                self.chunks(to, width, 0, MatMut::row_major(y, rows, n_out));
            });
        });
    }

    /// Few bands: each packed once for tasks that share its outputs.
    fn by_outputs(&self, (x, n_in): (&[f32], usize), (y, n_out): (&mut [f32], usize)) {
        let (band, rows) = (REGISTERS * self.lanes, y.len() / n_out);
        let (bands, all) = (rows.div_ceil(band), n_out.div_ceil(CHUNK));
        let chunks = all.div_ceil(TASKS.div_ceil(bands)).min(TASK_CHUNKS);
        let height = |at: usize| band.min(rows - at * band);
        let width = |at: usize| registers(height(at), self.lanes) * self.lanes;
        scratch(bands * band * n_in, |packed| {
            let mut strips = Vec::new();
            for ((at, packed), x) in packed.chunks_mut(band * n_in).enumerate().zip(x.chunks(band * n_in)) {
                let (rows, width) = (height(at), width(at));
                for (strip, to) in packed[..n_in * width].chunks_mut(STRIP * width).enumerate() {
                    strips.push(Pack { to, from: &x[strip * STRIP..], stride: n_in, rows, width });
                }
            }
            strips.into_par_iter().for_each(|strip| self.level.run(strip));
            let mut tasks = Vec::new();
            let mut below = MatMut::row_major(y, rows, n_out);
            for (at, packed) in packed.chunks(band * n_in).enumerate() {
                let (mut right, rest) = below.split_rows(height(at));
                below = rest;
                for first in (0..all).step_by(chunks) {
                    let (left, rest) = right.split_cols((chunks * CHUNK).min(n_out - first * CHUNK));
                    tasks.push((packed, width(at), first, left));
                    right = rest;
                }
            }
            tasks.into_par_iter().for_each(|(x, width, first, y)| self.chunks(x, width, first, y));
        });
    }

    /// The chunks from `first` on that `y` has the outputs of, for one tile.
    fn chunks(&self, x: &[f32], width: usize, first: usize, y: MatMut<'_>) {
        let &Self { level, places, values, accumulate, .. } = self;
        scratch(CHUNK * width, |sums| {
            let (mut right, mut chunk) = (y, first);
            while right.cols() > 0 {
                let outputs = CHUNK.min(right.cols());
                let (y, rest) = right.split_cols(outputs);
                level.run(Tile { places, values, x, width, chunk, y, accumulate, sums });
                (right, chunk) = (rest, chunk + 1);
            }
        });
    }
}

/// Values in the order of `slots`, if they are not stored in it, by all threads.
fn in_order<'a>(slots: Option<&[u32]>, values: &'a [f32], memory: &'a mut [f32]) -> &'a [f32] {
    let Some(slots) = slots else { return values };
    memory.par_chunks_mut(VALUES).zip(slots.par_chunks(VALUES)).for_each(|(to, slots)| {
        to.iter_mut().zip(slots).for_each(|(to, &slot)| *to = values[slot as usize]);
    });
    memory
}
