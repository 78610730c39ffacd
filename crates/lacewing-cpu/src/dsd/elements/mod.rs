//! Single values anywhere, of unstructured and N:M weights, and what small blocks share with them: rows are packed
//! feature-major, so that a value meets a register of rows. Few rows have a way of their own ([`picks`]), by values that
//! are kept packed.

mod block_gradient;
mod block_tile;
mod gradient;
mod pack;
mod picks;
mod places;
mod tasks;
mod tile;

use super::order::Order;
use super::{Blocks, Kernel, Packing, one_row};
use crate::finish::Target;
use crate::parallel::within_pool;
use crate::scratch::scratch;
use crate::simd::Level;
pub(super) use block_gradient::weight_gradient as block_weight_gradient;
use picks::Picks;
use places::Places;
use rayon::prelude::*;
use std::sync::OnceLock;
use tasks::{Tasks, registers};

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/elements",
    accepts: |blocks| blocks.br == 1 && blocks.bc == 1,
    forward: |blocks, values, x, y, accumulate| {
        product(Side::rows(blocks), values, (x, blocks.n_in), y, accumulate);
    },
    input_gradient: |blocks, values, dy, dx, accumulate| {
        product(Side::columns(blocks), values, (dy, blocks.n_out), dx, accumulate);
    },
    weight_gradient: |blocks, dy, x, dvalues| {
        if !dvalues.is_empty() {
            let places = Side::rows(blocks).far(blocks.n_in);
            gradient::weight_gradient(places, (dy, blocks.n_out), (x, blocks.n_in), dvalues);
        }
    },
    packings: &[
        Packing { pays: picks::pays, len: picks::len, pack: picks::pack, forward: picks::forward },
        InOrder::<true>::PACKING,
        InOrder::<false>::PACKING,
    ],
};

/// Outputs of a chunk.
const CHUNK: usize = 128;
/// Registers of rows in a tile, at most.
const REGISTERS: usize = 4;
/// Inputs of a run whose packed rows are to lie in the first cache, or most of them where it is small: 48 KiB of 64 rows.
/// Half of it was faster only for every fourth value, and half as far on lost a tenth.
const NEAR: usize = 192;
/// Values that an output has in such a run at least, or what a run costs besides is too much.
const NEAR_VALUES: usize = 7;
/// Inputs of a run whose packed rows are to lie in the second cache, or in the first if they are few.
const FAR: usize = 1024;
/// The same where outputs have so many values in the half of it.
const HALF_VALUES: usize = 48;
/// Outputs and inputs of a block, at least, for its values to be held together.
const TOGETHER: usize = 4;
/// Inputs of a run of blocks: 32 rows of them are two thirds of the first cache.
const BLOCK_NEAR: usize = 256;
/// Inputs that a group of outputs meets in such a run, for each of its outputs, at least: the more outputs share what
/// is read of an input, the less there is to gain.
const BLOCK_VALUES: usize = 5;
/// Inputs of a run of blocks otherwise.
const BLOCK_FAR: usize = 4096;
/// Values that one task reorders.
const VALUES: usize = 32 * 1024;

/// Values kept in the order in which tiles meet them, in short runs or in long ones: what is read one after the other comes from
/// memory in time.
struct InOrder<const SHORT: bool>;

impl<const SHORT: bool> InOrder<SHORT> {
    const PACKING: Packing =
        Packing { pays: Self::pays, len: Self::len, pack: Self::pack, forward: Self::forward };

    fn places(blocks: &Blocks) -> &Places {
        Side::rows(blocks).singles(blocks.n_in, SHORT)
    }

    /// Packing takes as long as a product of some hundred rows, so only where values are `kept`.
    fn pays(blocks: &Blocks, rows: usize, kept: bool) -> bool {
        let registers = registers(rows, Level::current().lanes(), REGISTERS);
        kept && rows > one_row::MOST_ROWS && Side::rows(blocks).near(blocks.n_in, registers) == SHORT
    }

    fn len(blocks: &Blocks) -> usize {
        blocks.nnz_values()
    }

    fn pack(blocks: &Blocks, values: &[f32], to: &mut [f32]) {
        Self::places(blocks).pack(values, to);
    }

    fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
        if values.is_empty() {
            return without_values(y, accumulate);
        }
        let places = Self::places(blocks);
        let tasks = Tasks::new(Level::current(), Size::SINGLE, places, values, accumulate).ordered();
        within_pool(|| tasks.run((x, blocks.n_in), y));
    }
}

/// The orders of a pattern's values, made when first asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Elements {
    by_row: Orders,
    by_col: Orders,
    /// For products with packed values, and how many steps it has.
    picks: OnceLock<Picks>,
    steps: OnceLock<usize>,
    /// The values of small blocks one by one, by their outputs and by their inputs.
    each: OnceLock<(Order, Order)>,
}

#[derive(Debug, Clone, Default)]
struct Orders {
    near: OnceLock<Places>,
    far: OnceLock<Places>,
}

/// Blocks by their outputs: the rows of the weight, or in the input gradient its columns.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    order: &'a Order,
    orders: &'a Orders,
    size: Size,
}

/// What a block has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Size {
    outputs: usize,
    inputs: usize,
    /// Whether its values are stored `[inputs, outputs]`.
    turned: bool,
}

impl Size {
    const SINGLE: Self = Self { outputs: 1, inputs: 1, turned: false };

    fn single(self) -> bool {
        (self.outputs, self.inputs) == (1, 1)
    }

    /// Registers of rows that a tile has at most.
    fn registers(self, lanes: usize) -> usize {
        match (self.outputs, lanes) {
            (1, _) => REGISTERS,
            (8.., 4 | 8) => 1,
            _ => 2,
        }
    }

    /// Groups of a chunk.
    fn chunk(self) -> usize {
        CHUNK.div_ceil(self.outputs)
    }
}

/// The orders of the values one by one, for blocks of several that are too small to gain from being held together.
fn each(blocks: &Blocks) -> Option<&(Order, Order)> {
    let (br, bc) = (blocks.br, blocks.bc);
    let small = br * bc > 1 && br.min(bc) < TOGETHER;
    small.then(|| {
        blocks.elements.each.get_or_init(|| {
            let places = blocks.positions.iter().flat_map(move |&(row, col)| {
                let values = move |i| (0..bc as u32).map(move |j| (row * br as u32 + i, col * bc as u32 + j));
                (0..br as u32).flat_map(values)
            });
            let by_row = Order::new(blocks.n_out, places.clone());
            (by_row, Order::new(blocks.n_in, places.map(|(o, i)| (i, o))))
        })
    })
}

impl<'a> Side<'a> {
    pub(super) fn rows(blocks: &'a Blocks) -> Self {
        let (order, size) = match each(blocks) {
            Some((by_row, _)) => (by_row, Size::SINGLE),
            None => (&blocks.by_row, Size { outputs: blocks.br, inputs: blocks.bc, turned: false }),
        };
        Self { order, orders: &blocks.elements.by_row, size }
    }

    pub(super) fn columns(blocks: &'a Blocks) -> Self {
        let (order, size) = match each(blocks) {
            Some((_, by_col)) => (by_col, Size::SINGLE),
            None => (&blocks.by_col, Size { outputs: blocks.bc, inputs: blocks.br, turned: true }),
        };
        Self { order, orders: &blocks.elements.by_col, size }
    }

    /// Single values in runs for the second cache.
    fn far(self, n_in: usize) -> &'a Places {
        self.singles(n_in, false)
    }

    /// Single values in runs for the first cache or the second.
    fn singles(self, n_in: usize, near: bool) -> &'a Places {
        let places = if near { &self.orders.near } else { &self.orders.far };
        places.get_or_init(|| {
            let width = match near {
                true => NEAR,
                false if self.have(HALF_VALUES, FAR / 2, n_in) => FAR / 2,
                false => FAR,
            };
            Places::new(self.order, n_in, width, CHUNK)
        })
    }

    /// Whether single values go in runs for the first cache, by tiles of so many registers.
    fn near(self, n_in: usize, registers: usize) -> bool {
        registers == REGISTERS && self.have(NEAR_VALUES, NEAR, n_in)
    }

    /// Whether outputs have so many values in a run of `width` inputs, on average.
    fn have(self, values: usize, width: usize, n_in: usize) -> bool {
        let outputs = self.order.starts.len() - 1;
        self.order.inputs.len() * width >= values * outputs * n_in
    }

    /// In the runs that are best for tiles of so many registers.
    fn places(self, n_in: usize, registers: usize) -> &'a Places {
        if self.size.single() {
            return self.singles(n_in, self.near(n_in, registers));
        }
        let outputs = self.order.starts.len() - 1;
        let fewest = BLOCK_VALUES * self.size.outputs;
        let new = |run: usize| {
            let run = (run / self.size.inputs).max(1);
            Places::new(self.order, n_in / self.size.inputs, run, self.size.chunk())
        };
        if self.order.inputs.len() * self.size.inputs * BLOCK_NEAR >= fewest * outputs * n_in {
            self.orders.near.get_or_init(|| new(BLOCK_NEAR))
        } else {
            self.orders.far.get_or_init(|| new(BLOCK_FAR))
        }
    }
}

/// The product with a weight that has no values.
fn without_values(mut y: Target<'_>, accumulate: bool) {
    if !accumulate {
        y.sums().fill(0.0);
    }
    y.finish_in_parallel(Level::current());
}

/// `y (+)= x Wᵀ` for the blocks of one side.
pub(super) fn product(
    side: Side<'_>,
    values: &[f32],
    (x, n_in): (&[f32], usize),
    y: Target<'_>,
    accumulate: bool,
) {
    if values.is_empty() {
        return without_values(y, accumulate);
    }
    let rows = y.rows();
    if rows <= one_row::MOST_ROWS && side.size.single() {
        return scratch(if side.order.slots().is_some() { values.len() } else { 0 }, |memory| {
            let values = in_order(side.order.slots(), values, memory);
            one_row::product(side.order, values, (x, n_in), y, accumulate);
        });
    }
    // Once, since what is packed is as wide as the registers that will read it.
    let level = Level::current();
    let lanes = level.lanes();
    let places = side.places(n_in, registers(rows, lanes, side.size.registers(lanes)));
    within_pool(|| {
        let moved = if side.size.single() { places.slots() } else { None };
        scratch(moved.map_or(0, <[u32]>::len), |memory| {
            let values = in_order(moved, values, memory);
            let tasks = Tasks::new(level, side.size, places, values, accumulate);
            if moved.is_some() { tasks.ordered() } else { tasks }.run((x, n_in), y);
        });
    });
}

/// Values in the order of `slots`, if they are not stored in it, by all threads.
fn in_order<'a>(slots: Option<&[u32]>, values: &'a [f32], memory: &'a mut [f32]) -> &'a [f32] {
    let Some(slots) = slots else { return values };
    memory.par_chunks_mut(VALUES).zip(slots.par_chunks(VALUES)).for_each(|(to, slots)| {
        to.iter_mut().zip(slots).for_each(|(to, &slot)| *to = values[slot as usize]);
    });
    memory
}
