//! Chains of block-diagonal factors, all factors at once: Monarch, butterflies, low rank and their like.
//!
//! A few rows at a time go through the whole chain in cache, turned so that a register holds one feature of as many
//! rows as it has lanes. Permutations are then a matter of which feature a factor reads and touch no memory, and blocks
//! of any size and stride run through one loop. Cost of a row: the factors' multiply-adds, and one pass over x and y.

mod plan;
mod products;
mod tile;
mod weights;

pub use plan::Plan;

use crate::finish::Target;
use crate::parallel::{TASK, elements_per_task, share, within_pool};
use crate::scratch::{Aligned, scratch};
use crate::simd::{Level, MAX_LANES, MatMut};
use products::Blocks;
use rayon::prelude::*;
use thiserror::Error;

/// A chain's weights in the order that forward products read them: for products that share them.
#[derive(Debug)]
pub struct Packed {
    /// At which they are read as well.
    level: Level,
    memory: Aligned,
}

/// An operand of the wrong length.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{operand} has {got} elements, {expected} needed")]
pub struct ChainError {
    /// Which operand.
    pub operand: String,
    /// Elements needed.
    pub expected: usize,
    /// Elements given.
    pub got: usize,
}

/// Elements that the working memory of one thread may have while two registers of rows go through at once: beyond, one
/// does. 1.5 MiB, as caches of the second level have from 1 to 2.
const CACHE: usize = 384 * 1024;
/// Multiply-adds of one task.
const TASK_MACS: usize = 1 << 20;
/// Weights from which on each of a few tiles is shared among threads, factor by factor.
const SHARED_WEIGHTS: usize = 256 * 1024;
/// The same for more than a few: beyond, they come from memory for every tile.
const MANY_WEIGHTS: usize = 2 << 20;
/// Rows that then go through together.
const SHARED_ROWS: usize = 128;
/// Of what the outputs of a task are then a multiple: whole groups of packed weights, and tiles of those that are not.
const SHARED_OUTPUTS: usize = 48;
/// Outputs that are written and finished at a time: of two registers of rows at most 32 KiB.
const STRIP: usize = 256;
/// Rows from which on weights are packed first.
const PACKED_ROWS: usize = 64;
/// Elements that all partial sums of weight gradients together should not exceed,
const PARTIALS: usize = 4 << 20;
/// and how many there are at least and at most where there are tiles enough.
const FEWEST_PARTIALS: usize = 4;
const MOST_PARTIALS: usize = 32;

/// Rows that go through the chain at once: `registers` times the lanes of one.
#[derive(Clone, Copy)]
struct Tile {
    /// Taken once for a whole product, since tiles are read at the level that they were written at.
    level: Level,
    registers: usize,
    rows: usize,
}

impl Tile {
    fn new(level: Level, registers: usize) -> Self {
        Self { level, registers, rows: registers * level.lanes() }
    }

    /// For `rows` rows of a chain that needs `features` values of each at a time.
    fn of(level: Level, rows: usize, features: usize) -> Self {
        let one = Self::new(level, 1);
        if rows <= one.rows || 2 * MAX_LANES * features > CACHE { one } else { Self::new(level, 2) }
    }

    /// Tiles of a task of `macs` multiply-adds a row.
    fn per_task(self, macs: usize) -> usize {
        (TASK_MACS / (self.rows * macs).max(1)).max(1)
    }
}

impl Plan {
    /// `y = W x` for each row, finished, `weights` being the factors' blocks `[blocks, q, p]` in the order of the chain.
    ///
    /// Shapes: `x [rows, n_in]`, `y [rows, n_out]`.
    ///
    /// # Errors
    ///
    /// [`ChainError`] naming the operand of the wrong length.
    pub fn forward(&self, weights: &[&[f32]], x: &[f32], y: Target<'_>) -> Result<(), ChainError> {
        let rows = self.check_product(weights, x.len(), &y)?;
        let level = Level::current();
        let one_task = self.one_task(level, rows);
        pooled(one_task, rows, || {
            self.with_packed(weights, rows, level, false, |blocks| self.run(blocks, level, x, y));
        });
        Ok(())
    }

    /// Packs the weights for [`Plan::forward_packed`], into the `memory` of those packed before if given.
    ///
    /// # Errors
    ///
    /// As [`Plan::forward`].
    pub fn pack(&self, weights: &[&[f32]], memory: Option<Packed>) -> Result<Packed, ChainError> {
        self.check(weights, 0, 0)?;
        let level = Level::current();
        let mut memory = memory.map_or_else(Aligned::default, |packed| packed.memory);
        let to = memory.resize(self.packed_len(level, false));
        within_pool(|| self.pack_into(weights, level, false, to));
        Ok(Packed { level, memory })
    }

    /// [`Plan::forward`] with the weights also as [`Plan::pack`] has packed them.
    ///
    /// # Errors
    ///
    /// As [`Plan::forward`]; weights packed for another plan may be refused so as well.
    pub fn forward_packed(
        &self,
        weights: &[&[f32]],
        packed: &Packed,
        x: &[f32],
        y: Target<'_>,
    ) -> Result<(), ChainError> {
        let rows = self.check_product(weights, x.len(), &y)?;
        let &Packed { level, ref memory } = packed;
        expect_len("packed weights".into(), memory.get().len(), self.packed_len(level, false))?;
        let blocks = self.blocks(weights, level, false, memory.get());
        pooled(self.one_task(level, rows), rows, || self.run(&blocks, level, x, y));
        Ok(())
    }

    /// Whether a forward product of so many rows packs the weights, if nobody has.
    pub fn packs(&self, rows: usize) -> bool {
        rows >= PACKED_ROWS
    }

    /// The tile of a forward product, and rows of a task.
    fn cut(&self, level: Level, rows: usize) -> (Tile, usize) {
        let tile = Tile::of(level, rows, 2 * self.widest());
        (tile, tile.per_task(self.macs()) * tile.rows)
    }

    /// Whether a forward product is a single task.
    fn one_task(&self, level: Level, rows: usize) -> bool {
        rows <= self.cut(level, rows).1 && !self.shares(rows)
    }

    /// Whether threads share the outputs of each factor.
    fn shares(&self, rows: usize) -> bool {
        self.macs() >= if rows < PACKED_ROWS { SHARED_WEIGHTS } else { MANY_WEIGHTS }
    }

    /// Features of the widest tile, the one of zeros included.
    fn widest(&self) -> usize {
        self.widths().max().unwrap_or(0) + 1
    }

    /// `y = W x` by the factors' `blocks`.
    fn run(&self, blocks: &[Blocks<'_>], level: Level, x: &[f32], y: Target<'_>) {
        let (rows, widest) = (y.rows(), self.widest());
        if self.shares(rows) {
            let tile = Tile::new(level, if rows <= level.lanes() { 1 } else { 2 });
            let some = x.chunks(SHARED_ROWS * self.n_in).zip(y.bands(SHARED_ROWS));
            return some.for_each(|(x, y)| match tile.registers {
                1 => self.forward_shared::<1>(blocks, x, y, tile),
                _ => self.forward_shared::<2>(blocks, x, y, tile),
            });
        }
        let (tile, per_task) = self.cut(level, rows);
        let tasks: Vec<_> = x.chunks(per_task * self.n_in).zip(y.bands(per_task)).collect();
        tasks.into_par_iter().for_each(|(x, y)| {
            scratch(2 * widest * tile.rows, |memory| match tile.registers {
                1 => forward_tiles::<1>(self, blocks, x, y, tile, memory),
                _ => forward_tiles::<2>(self, blocks, x, y, tile, memory),
            });
        });
    }

    /// Calls `f` with the factors' blocks, packed where rows are enough to pay for it; transposed where `turned`.
    fn with_packed(
        &self,
        weights: &[&[f32]],
        rows: usize,
        level: Level,
        turned: bool,
        f: impl FnOnce(&[Blocks<'_>]),
    ) {
        if rows < PACKED_ROWS {
            return f(&self.blocks(weights, level, turned, &[]));
        }
        scratch(self.packed_len(level, turned), |memory| {
            self.pack_into(weights, level, turned, memory);
            f(&self.blocks(weights, level, turned, memory));
        });
    }

    /// What packing writes for each factor.
    fn packed_lens(&self, level: Level, turned: bool) -> impl Iterator<Item = usize> {
        self.factors.iter().map(move |factor| {
            let Blocks { n, inner, .. } = factor.blocks(turned, &[], &[]);
            products::packed_len(level.lanes(), factor.blocks, n, inner)
        })
    }

    fn packed_len(&self, level: Level, turned: bool) -> usize {
        self.packed_lens(level, turned).sum()
    }

    /// Packs the factors' blocks one after the other.
    fn pack_into(&self, weights: &[&[f32]], level: Level, turned: bool, mut memory: &mut [f32]) {
        for ((factor, w), len) in self.factors.iter().zip(weights).zip(self.packed_lens(level, turned)) {
            let (packed, rest) = memory.split_at_mut(len);
            memory = rest;
            let Blocks { n, inner, .. } = factor.blocks(turned, w, &[]);
            if !packed.is_empty() {
                let per_task = (TASK / (n * inner)).max(1);
                let parts = packed.par_chunks_mut(per_task * (packed.len() / factor.blocks));
                parts.zip(w.par_chunks(per_task * n * inner)).for_each(|(packed, w)| {
                    level.run(products::Pack { w, n, inner, turned, packed });
                });
            }
        }
    }

    /// The factors' blocks, and what [`Self::pack_into`] has made of them, if it has.
    fn blocks<'a>(
        &self,
        weights: &[&'a [f32]],
        level: Level,
        turned: bool,
        mut packed: &'a [f32],
    ) -> Vec<Blocks<'a>> {
        let factors = self.factors.iter().zip(weights).zip(self.packed_lens(level, turned));
        let blocks = factors.map(|((factor, w), len)| {
            let (own, rest) = packed.split_at(len.min(packed.len()));
            packed = rest;
            factor.blocks(turned, w, own)
        });
        blocks.collect()
    }

    /// Some tiles, each factor's outputs shared among threads: who has read a part of its weights meets all tiles with it.
    fn forward_shared<const R: usize>(&self, blocks: &[Blocks<'_>], x: &[f32], y: Target<'_>, tile: Tile) {
        let Tile { level, rows, .. } = tile;
        let room = self.widest() * rows;
        scratch(2 * room * y.rows().div_ceil(rows), |memory| {
            let (from, to) = memory.split_at_mut(memory.len() / 2);
            let (mut from, mut to): (Vec<_>, Vec<_>) =
                (from.chunks_mut(room).collect(), to.chunks_mut(room).collect());
            let tiles = x.chunks(rows * self.n_in).zip(&mut from);
            share(tiles.collect(), |(x, tile)| level.run(tile::Read::<R> { x, cols: self.n_in, tile }));
            for (factor, &blocks) in self.factors.iter().zip(blocks) {
                let (width, reads) = (factor.blocks * factor.q, &factor.reads[..]);
                let per_task = (TASK_MACS / 4 / (rows * factor.p)).max(1).next_multiple_of(SHARED_OUTPUTS);
                let firsts = (0..width).step_by(per_task);
                let mut tasks: Vec<_> = firsts.map(|at| (at, Vec::with_capacity(from.len()))).collect();
                for (from, to) in from.iter().zip(&mut to) {
                    let (out, zeros) = to.split_at_mut(width * rows);
                    zeros[..rows].fill(0.0);
                    for ((_, tiles), out) in tasks.iter_mut().zip(out.chunks_mut(per_task * rows)) {
                        tiles.push((from, out));
                    }
                }
                share(tasks, |(first, tiles)| {
                    for (from, out) in tiles {
                        level.run(products::Outputs::<R, false> { blocks, from, reads, first, out });
                    }
                });
                (from, to) = (to, from);
            }
            let bands = y.bands(rows).zip(&from);
            let strips = bands.flat_map(|(y, from)| {
                y.strips(STRIP).zip(self.outputs.chunks(STRIP)).map(move |(y, at)| (&**from, at, y))
            });
            share(strips.collect(), |(from, at, y)| write::<R>(from, at, y, level));
        });
    }

    /// The gradients of [`Plan::forward`]: `dx` is written, each of `dw` that is there is added to.
    ///
    /// Shapes: `x [rows, n_in]`, `dy [rows, n_out]`. What the factors made of x is made again, tile by tile.
    ///
    /// # Errors
    ///
    /// [`ChainError`] naming the operand of the wrong length.
    pub fn gradients(
        &self,
        weights: &[&[f32]],
        x: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        dw: &mut [Option<&mut [f32]>],
    ) -> Result<(), ChainError> {
        let rows = self.check(weights, x.len(), dy.len())?;
        expect_len("dw".into(), dw.len(), weights.len())?;
        for (at, (dw, w)) in dw.iter().zip(weights).enumerate() {
            expect_len(format!("dw {at}"), dw.as_ref().map_or(w.len(), |dw| dw.len()), w.len())?;
        }
        if let Some(dx) = &dx {
            expect_len("dx".into(), dx.len(), x.len())?;
        }
        if rows == 0 {
            return Ok(());
        }
        let kept: usize = self.widths().take(self.factors.len()).map(|width| width + 1).sum();
        let widest = self.widest();
        let tile = Tile::of(Level::current(), rows, kept + 2 * widest);
        let wanted: Vec<bool> = dw.iter().map(Option::is_some).collect();
        let size: usize = dw.iter().flatten().map(|dw| dw.len()).sum();
        let most = (PARTIALS / size.max(1)).clamp(FEWEST_PARTIALS, MOST_PARTIALS);
        let tiles = rows.div_ceil(tile.rows);
        let per_task = tiles.div_ceil(most).max(tile.per_task(3 * self.macs()).min(tiles)) * tile.rows;
        let tasks = rows.div_ceil(per_task);
        let dx_parts: Vec<Option<&mut [f32]>> = match &mut dx {
            Some(dx) => dx.chunks_mut(per_task * self.n_in).map(Some).collect(),
            None => (0..tasks).map(|_| None).collect(),
        };
        pooled(tasks == 1, rows, || {
            scratch(tasks * size, |partials| {
                partials.fill(0.0);
                let mut partial_parts: Vec<&mut [f32]> = match size {
                    0 => (0..tasks).map(|_| <&mut [f32]>::default()).collect(),
                    _ => partials.chunks_exact_mut(size).collect(),
                };
                let inputs = tile.rows * 2 * MAX_LANES;
                self.with_packed(weights, rows, tile.level, false, |blocks| {
                    self.with_packed(weights, rows, tile.level, true, |turned| {
                        let backward = Backward { plan: self, blocks, turned, wanted: &wanted, tile, kept };
                        let work = partial_parts.par_iter_mut().zip(dx_parts).enumerate();
                        work.for_each(|(task, (partial, dx))| {
                            let count = per_task.min(rows - task * per_task);
                            let x = rows_of(x, task * per_task, count, self.n_in);
                            let dy = rows_of(dy, task * per_task, count, self.n_out);
                            scratch((kept + 2 * widest) * tile.rows + inputs, |memory| {
                                match tile.registers {
                                    1 => backward.tiles::<1>(x, dy, dx, partial, memory),
                                    _ => backward.tiles::<2>(x, dy, dx, partial, memory),
                                }
                            });
                        });
                    });
                });
                add_partials(dw, partials, size);
            });
        });
        Ok(())
    }

    /// Rows of x and y, where all lengths fit.
    fn check_product(&self, weights: &[&[f32]], x: usize, y: &Target<'_>) -> Result<usize, ChainError> {
        let rows = self.check(weights, x, y.rows() * y.cols())?;
        expect_len("a row of y".into(), y.cols(), self.n_out)?;
        Ok(rows)
    }

    /// The same, of y by its length.
    fn check(&self, weights: &[&[f32]], x: usize, y: usize) -> Result<usize, ChainError> {
        expect_len("weights".into(), weights.len(), self.factors.len())?;
        for (at, (w, factor)) in weights.iter().zip(&self.factors).enumerate() {
            expect_len(format!("weight {at}"), w.len(), factor.weights())?;
        }
        let rows = x / self.n_in.max(1);
        expect_len("x".into(), x, rows * self.n_in)?;
        expect_len("y".into(), y, rows * self.n_out)?;
        Ok(rows)
    }
}

fn expect_len(operand: String, got: usize, expected: usize) -> Result<(), ChainError> {
    if got == expected { Ok(()) } else { Err(ChainError { operand, expected, got }) }
}

/// Runs `f` within the pool, but what is one task without packing: to hand that over would cost more than it saves.
fn pooled(one_task: bool, rows: usize, f: impl FnOnce() + Send) {
    if one_task && rows < PACKED_ROWS { f() } else { within_pool(f) }
}

/// Adds partial sums, each of `size` and in it one gradient after the other.
fn add_partials(dw: &mut [Option<&mut [f32]>], partials: &[f32], size: usize) {
    let mut offset = 0;
    for dw in dw.iter_mut().flatten() {
        let step = elements_per_task(dw.len());
        dw.par_chunks_mut(step).enumerate().for_each(|(at, dw)| {
            for partial in partials.chunks_exact(size) {
                let partial = &partial[offset + at * step..][..dw.len()];
                dw.iter_mut().zip(partial).for_each(|(dw, part)| *dw += part);
            }
        });
        offset += dw.len();
    }
}

fn rows_of(x: &[f32], first: usize, count: usize, cols: usize) -> &[f32] {
    &x[first * cols..][..count * cols]
}

/// Some rows through the chain, a tile at a time.
fn forward_tiles<const R: usize>(
    plan: &Plan,
    blocks: &[Blocks<'_>],
    x: &[f32],
    y: Target<'_>,
    tile: Tile,
    memory: &mut [f32],
) {
    let half = memory.len() / 2;
    let (mut from, mut to) = memory.split_at_mut(half);
    for (x, y) in x.chunks(tile.rows * plan.n_in).zip(y.bands(tile.rows)) {
        tile.level.run(tile::Read::<R> { x, cols: plan.n_in, tile: from });
        for (factor, &blocks) in plan.factors.iter().zip(blocks) {
            apply::<R, false>(blocks, from, &factor.reads, factor.blocks * blocks.n, to, tile);
            (from, to) = (to, from);
        }
        for (y, at) in y.strips(STRIP).zip(plan.outputs.chunks(STRIP)) {
            write::<R>(from, at, y, tile.level);
        }
    }
}

/// Some outputs, which are finished while they are near.
fn write<const R: usize>(tile: &[f32], at: &[u32], mut y: Target<'_>, level: Level) {
    level.run(tile::Write::<R> { tile, at, y: y.sums() });
    y.finish(level);
}

/// All `n_out` outputs of a factor, and the feature of zeros after them.
fn apply<const R: usize, const TURNED: bool>(
    blocks: Blocks<'_>,
    from: &[f32],
    reads: &[u32],
    n_out: usize,
    to: &mut [f32],
    tile: Tile,
) {
    let (out, zeros) = to.split_at_mut(n_out * tile.rows);
    tile.level.run(products::Outputs::<R, TURNED> { blocks, from, reads, first: 0, out });
    zeros[..tile.rows].fill(0.0);
}

/// What gradients are made of.
struct Backward<'a> {
    plan: &'a Plan,
    blocks: &'a [Blocks<'a>],
    /// Their transposes.
    turned: &'a [Blocks<'a>],
    /// Which weights want a gradient.
    wanted: &'a [bool],
    tile: Tile,
    /// Features that are kept of the forward pass, zeros included.
    kept: usize,
}

impl Backward<'_> {
    /// Some rows, a tile at a time; `partial` has the weights' gradients one after the other.
    fn tiles<const R: usize>(
        &self,
        x: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        partial: &mut [f32],
        memory: &mut [f32],
    ) {
        let &Self { plan, blocks, turned, wanted, tile, kept } = self;
        let rows = tile.rows;
        let (made, rest) = memory.split_at_mut(kept * rows);
        let (inputs, rest) = rest.split_at_mut(rows * 2 * MAX_LANES);
        let half = rest.len() / 2;
        let (mut from, mut to) = rest.split_at_mut(half);
        for (at, (x, dy)) in x.chunks(rows * plan.n_in).zip(dy.chunks(rows * plan.n_out)).enumerate() {
            tile.level.run(tile::Read::<R> { x, cols: plan.n_in, tile: made });
            let mut offset = 0;
            for (factor, (&blocks, width)) in plan.factors.iter().zip(blocks.iter().zip(plan.widths())) {
                let next = offset + (width + 1) * rows;
                if next < made.len() {
                    let (before, after) = made.split_at_mut(next);
                    let n_out = factor.blocks * blocks.n;
                    apply::<R, false>(blocks, &before[offset..], &factor.reads, n_out, after, tile);
                }
                offset = next;
            }
            tile.level.run(tile::Read::<R> { x: dy, cols: plan.n_out, tile: from });
            let (mut offset, mut part) = (made.len(), partial.len());
            for (k, factor) in plan.factors.iter().enumerate().rev() {
                let width = plan.widths().nth(k).expect("a width before each factor");
                offset -= (width + 1) * rows;
                if wanted[k] {
                    part -= factor.weights();
                    let (x, dw) = (&made[offset..], &mut partial[part..][..factor.weights()]);
                    tile.level.run(weights::Gradient::<R> { factor, x, dy: from, dw, turned: inputs });
                }
                if k > 0 || dx.is_some() {
                    apply::<R, true>(turned[k], from, &factor.back, factor.blocks * factor.p, to, tile);
                    (from, to) = (to, from);
                }
            }
            if let Some(dx) = &mut dx {
                let dx = &mut dx[at * rows * plan.n_in..][..x.len()];
                let y = MatMut::row_major(dx, x.len() / plan.n_in, plan.n_in);
                tile.level.run(tile::Write::<R> { tile: from, at: &plan.inputs, y });
            }
        }
    }
}

#[cfg(test)]
mod tests;
