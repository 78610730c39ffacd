//! The weight gradient of blocks: for each, `dyᵀ x` of the two strips of columns that it connects.
//!
//! The rows are swept in runs, whose strips are laid out one after the other once: what a block needs is then in one
//! piece, out of the way of cache conflicts, for every block that needs it.

use super::Blocks;
use super::order::Order;
use crate::parallel::within_pool;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, Vectorize, load, store};
use rayon::prelude::*;

/// Rows of one run of several: all strips of a few thousand columns then fit the second cache.
const RUN_ROWS: usize = 64;
/// Rows up to which there is one run: strips are laid out, and threads meet, once.
const ONE_RUN: usize = 128;
/// Halves of a block to a strip, on average, from which on strips are shared.
const SHARING: usize = 3;
/// Rows up to which they are not: threads would meet more often than it is worth.
const FEW_ROWS: usize = 32;
/// Columns that one task lays out, at least.
const TASK_COLS: usize = 256;
/// Tasks that the blocks are dealt to.
const GRADIENT_TASKS: usize = 16;

/// Splits `width` columns into the widest register tiles that fit, calling `$self.$rows::<I, ROWS, VECTORS,
/// TAIL>`. The tiles leave registers for the operands: 32 registers with 16 lanes, 16 or more with fewer.
macro_rules! by_width {
    ($isa:ident, $self:ident.$rows:ident($($arg:expr),*)) => {{
        let mut at = 0;
        while I::LANES == 16 && $self.width - at >= 4 * I::LANES {
            $self.$rows::<I, 6, 4, false>($isa, at, $($arg),*);
            at += 4 * I::LANES;
        }
        while $self.width - at >= 2 * I::LANES {
            if I::LANES == 16 {
                $self.$rows::<I, 12, 2, false>($isa, at, $($arg),*);
            } else {
                $self.$rows::<I, 6, 2, false>($isa, at, $($arg),*);
            }
            at += 2 * I::LANES;
        }
        while $self.width - at >= I::LANES {
            $self.$rows::<I, 12, 1, false>($isa, at, $($arg),*);
            at += I::LANES;
        }
        if at < $self.width {
            $self.$rows::<I, 12, 1, true>($isa, at, $($arg),*);
        }
    }};
}

pub(super) fn weight_gradient(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
    if dvalues.is_empty() {
        return;
    }
    let strips = blocks.n_out / blocks.br + blocks.n_in / blocks.bc;
    let shared = blocks.positions.len() * 2 >= SHARING * strips && dy.len() > FEW_ROWS * blocks.n_out;
    if shared { by_runs(blocks, dy, x, dvalues) } else { by_blocks(blocks, dy, x, dvalues) }
}

/// Few rows or few blocks to a strip: every task copies the strips of its blocks.
fn by_blocks(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
    let (br, bc, n_out, n_in) = (blocks.br, blocks.bc, blocks.n_out, blocks.n_in);
    let level = Level::current();
    let run = RUN_ROWS.min(dy.len() / n_out);
    tasks(blocks, dvalues).for_each(|(dvalues, positions)| {
        scratch(run * (br + bc), |strips| {
            let (dy_strip, x_strip) = strips.split_at_mut(run * br);
            for (dy, x) in dy.chunks(run * n_out).zip(x.chunks(run * n_in)) {
                let rows = dy.len() / n_out;
                let mut copied = None;
                for (values, &(row, col)) in dvalues.chunks_exact_mut(br * bc).zip(positions) {
                    if copied != Some(row) {
                        copy_strip(dy_strip, dy, n_out, row as usize * br, br);
                        copied = Some(row);
                    }
                    copy_strip(x_strip, x, n_in, col as usize * bc, bc);
                    let (dy, x) = (&dy_strip[..rows * br], &x_strip[..rows * bc]);
                    level.run(Outer { dy, x, values, height: br, width: bc });
                }
            }
        });
    });
}

/// Columns `at..at + width` of the rows of `from`, side by side.
fn copy_strip(to: &mut [f32], from: &[f32], stride: usize, at: usize, width: usize) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
        to.copy_from_slice(&from[at..at + width]);
    }
}

/// Many rows and blocks: all strips of a run of rows are laid out for every block that needs them.
fn by_runs(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
    let (br, bc, n_out, n_in) = (blocks.br, blocks.bc, blocks.n_out, blocks.n_in);
    let level = Level::current();
    let rows = dy.len() / n_out;
    let run = if rows <= ONE_RUN { rows } else { RUN_ROWS };
    let mut sweep = |strips: &mut [f32]| {
        let (dy_strips, x_strips) = strips.split_at_mut(run * n_out);
        for (dy, x) in dy.chunks(run * n_out).zip(x.chunks(run * n_in)) {
            let rows = dy.len() / n_out;
            let lay = |to: &mut [f32], from: &[f32], order: &Order, width: usize| {
                let (groups, stride) = (TASK_COLS.div_ceil(width), from.len() / rows);
                to.par_chunks_mut(groups * run * width).enumerate().for_each(|(task, to)| {
                    level.run(Lay { to, from, stride, width, order, first: task * groups, run });
                });
            };
            rayon::join(|| lay(dy_strips, dy, &blocks.by_row, br), || lay(x_strips, x, &blocks.by_col, bc));
            let (dy_strips, x_strips) = (&*dy_strips, &*x_strips);
            tasks(blocks, dvalues).for_each(|(dvalues, positions)| {
                for (values, &(row, col)) in dvalues.chunks_exact_mut(br * bc).zip(positions) {
                    let dy = &dy_strips[row as usize * run * br..][..rows * br];
                    let x = &x_strips[col as usize * run * bc..][..rows * bc];
                    level.run(Outer { dy, x, values, height: br, width: bc });
                }
            });
        }
    };
    within_pool(|| scratch(run * (n_out + n_in), |strips| sweep(strips)));
}

/// Values and positions of the blocks of each task.
fn tasks<'a>(
    blocks: &'a Blocks,
    dvalues: &'a mut [f32],
) -> impl IndexedParallelIterator<Item = (&'a mut [f32], &'a [(u32, u32)])> {
    let step = blocks.positions.len().div_ceil(GRADIENT_TASKS).max(1);
    dvalues.par_chunks_mut(step * blocks.br * blocks.bc).zip(blocks.positions.par_chunks(step))
}

/// Lays strips of columns one after the other, each with its rows one after the other.
struct Lay<'a> {
    /// `[strips, run, width]`.
    to: &'a mut [f32],
    /// `[rows, stride]`.
    from: &'a [f32],
    stride: usize,
    width: usize,
    /// Which strips have blocks; the others are left out.
    order: &'a Order,
    /// The first strip.
    first: usize,
    run: usize,
}

impl Vectorize for Lay<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { to, from, stride, width, order, first, run } = self;
        for (r, from) in from.chunks_exact(stride).enumerate() {
            for (strip, to) in to.chunks_exact_mut(run * width).enumerate() {
                let group = first + strip;
                if order.starts[group] == order.starts[group + 1] {
                    continue;
                }
                let from = &from[group * width..][..width];
                let to = &mut to[r * width..][..width];
                let (from_tail, to_tail) =
                    (from.chunks_exact(I::LANES).remainder(), width / I::LANES * I::LANES);
                for (to, from) in to.chunks_exact_mut(I::LANES).zip(from.chunks_exact(I::LANES)) {
                    isa.store(to, isa.load(from));
                }
                to[to_tail..].copy_from_slice(from_tail);
            }
        }
    }
}

/// `values [height, width] += dyᵀ x` with `dy [rows, height]`, `x [rows, width]`.
struct Outer<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    values: &'a mut [f32],
    height: usize,
    width: usize,
}

impl Vectorize for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let this = &mut self;
        by_width!(isa, this.sweep());
    }
}

impl Outer<'_> {
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const V: usize, const TAIL: bool>(&mut self, isa: I, at: usize) {
        let mut row = 0;
        // Tiles of 8 rather than 12 or 6: blocks are mostly powers of two high.
        while R >= 8 && row + 8 <= self.height {
            self.tile::<I, 8, V, TAIL>(isa, at, row);
            row += 8;
        }
        while row + 4 <= self.height {
            self.tile::<I, 4, V, TAIL>(isa, at, row);
            row += 4;
        }
        while row < self.height {
            self.tile::<I, 1, V, TAIL>(isa, at, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
        &mut self,
        isa: I,
        at: usize,
        row: usize,
    ) {
        let (height, width) = (self.height, self.width);
        let end = if TAIL { width } else { at + V * I::LANES };
        let mut sums = [[isa.splat(0.0); V]; R];
        for (dy, x) in self.dy.chunks_exact(height).zip(self.x.chunks_exact(width)) {
            let (dy, x) = (&dy[row..row + R], &x[at..end]);
            let x: [I::V; V] = std::array::from_fn(|v| load::<I, TAIL>(isa, &x[v * I::LANES..]));
            for r in 0..R {
                let dy = isa.splat(dy[r]);
                for v in 0..V {
                    sums[r][v] = isa.mul_add(dy, x[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let values = &mut self.values[(row + r) * width..][at..end];
            for v in 0..V {
                let values = &mut values[v * I::LANES..];
                let sum = isa.add(load::<I, TAIL>(isa, values), sums[r][v]);
                store::<I, TAIL>(isa, values, sum);
            }
        }
    }
}
