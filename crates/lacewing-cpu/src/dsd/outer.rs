//! The weight gradient of blocks: for each, `dyᵀ x` of the two strips of columns that it connects.
//!
//! The rows are swept in runs that fit the second cache, and the two strips of a block are copied side by side,
//! out of the way of cache conflicts.

use super::Blocks;
use super::panels::{load, store};
use crate::scratch::scratch;
use crate::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// Rows of one run.
const RUN_ROWS: usize = 64;
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
    let (br, bc) = (blocks.br, blocks.bc);
    let step = blocks.positions.len().div_ceil(GRADIENT_TASKS).max(1);
    let tasks = dvalues.par_chunks_mut(step * br * bc).zip(blocks.positions.par_chunks(step));
    tasks.for_each(|(dvalues, positions)| {
        scratch(RUN_ROWS * (br + bc), |strips| {
            let (dy_strip, x_strip) = strips.split_at_mut(RUN_ROWS * br);
            let runs = dy.chunks(RUN_ROWS * blocks.n_out).zip(x.chunks(RUN_ROWS * blocks.n_in));
            for (dy, x) in runs {
                let rows = dy.len() / blocks.n_out;
                let mut copied = None;
                for (values, &(row, col)) in dvalues.chunks_exact_mut(br * bc).zip(positions) {
                    if copied != Some(row) {
                        copy_strip(dy_strip, dy, blocks.n_out, row as usize * br, br);
                        copied = Some(row);
                    }
                    copy_strip(x_strip, x, blocks.n_in, col as usize * bc, bc);
                    let (dy, x) = (&dy_strip[..rows * br], &x_strip[..rows * bc]);
                    dispatch(Outer { dy, x, values, height: br, width: bc });
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
