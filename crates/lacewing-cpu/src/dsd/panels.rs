//! Panels: each group of blocks that share outputs is swept by tiles of rows, whose sums stay in registers from the
//! first block of the group to the last, so an output is written once.
//!
//! Both products read a block as a panel `[inner, width]`, `width` being its outputs: as stored for the input
//! gradient, transposed once per call for the forward product. The weight gradient sweeps the rows in runs that
//! fit the second cache and copies the two strips of a block side by side, out of the way of cache conflicts.

use super::order::Order;
use super::{Blocks, Kernel, dots};
use crate::scratch::scratch;
use crate::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

pub(super) const KERNEL: Kernel =
    Kernel { name: "dsd/panels", accepts: |_| true, forward: dots::forward, input_gradient, weight_gradient };

/// Rows of one task of the products.
const TASK_ROWS: usize = 48;
/// Rows of one run of the weight gradient.
const RUN_ROWS: usize = 64;
/// Tasks that the weight gradient's blocks are dealt to.
const GRADIENT_TASKS: usize = 16;

/// `y (+)= x Wᵀ`, the blocks turned once.
pub(super) fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: &mut [f32], accumulate: bool) {
    let (br, bc) = (blocks.br, blocks.bc);
    scratch(values.len(), |panels| {
        let step = blocks.positions.len().div_ceil(GRADIENT_TASKS).max(1) * br * bc;
        panels.par_chunks_mut(step).zip(values.par_chunks(step)).for_each(|(to, from)| {
            for (to, from) in to.chunks_exact_mut(br * bc).zip(from.chunks_exact(br * bc)) {
                for (i, from) in from.chunks_exact(bc).enumerate() {
                    for (j, from) in from.iter().enumerate() {
                        to[j * br + i] = *from;
                    }
                }
            }
        });
        products(&blocks.by_row, panels, (bc, br), (x, blocks.n_in), (y, blocks.n_out), accumulate);
    });
}

fn input_gradient(blocks: &Blocks, values: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let (br, bc) = (blocks.br, blocks.bc);
    products(&blocks.by_col, values, (br, bc), (dy, blocks.n_out), (dx, blocks.n_in), accumulate);
}

fn products(
    groups: &Order,
    panels: &[f32],
    (inner, width): (usize, usize),
    (x, x_stride): (&[f32], usize),
    (y, y_stride): (&mut [f32], usize),
    accumulate: bool,
) {
    if y_stride == 0 {
        return;
    }
    y.par_chunks_mut(TASK_ROWS * y_stride).enumerate().for_each(|(task, y)| {
        let rows = y.len() / y_stride;
        let x = &x[task * TASK_ROWS * x_stride..][..rows * x_stride];
        dispatch(Products { groups, panels, inner, width, x, x_stride, y, y_stride, rows, accumulate });
    });
}

/// `y[:, group] (+)= Σ x[:, input block] · panel` over the blocks of every group.
struct Products<'a> {
    groups: &'a Order,
    panels: &'a [f32],
    inner: usize,
    width: usize,
    x: &'a [f32],
    x_stride: usize,
    y: &'a mut [f32],
    y_stride: usize,
    rows: usize,
    accumulate: bool,
}

/// Splits `width` outputs into the widest register tiles that fit, calling `$self.$rows::<I, ROWS, VECTORS, TAIL>`.
/// The tiles leave registers for the operands: 32 registers with 16 lanes, 16 or more with fewer.
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

/// Loads a register, or with `TAIL` what there is of one.
#[inline(always)]
fn load<I: Isa, const TAIL: bool>(isa: I, from: &[f32]) -> I::V {
    if TAIL { isa.load_partial(from) } else { isa.load(from) }
}

/// Stores a register, or with `TAIL` what there is room for.
#[inline(always)]
fn store<I: Isa, const TAIL: bool>(isa: I, to: &mut [f32], v: I::V) {
    if TAIL { isa.store_partial(to, v) } else { isa.store(to, v) }
}

impl Vectorize for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let this = &mut self;
        for group in 0..this.groups.starts.len() - 1 {
            by_width!(isa, this.sweep(group));
        }
    }
}

impl Products<'_> {
    /// `V` registers of outputs of a group from `at` on, all rows.
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
        &mut self,
        isa: I,
        at: usize,
        group: usize,
    ) {
        let mut row = 0;
        while row + R <= self.rows {
            self.tile::<I, R, V, TAIL>(isa, at, group, row);
            row += R;
        }
        while row + 4 <= self.rows {
            self.tile::<I, 4, V, TAIL>(isa, at, group, row);
            row += 4;
        }
        while row < self.rows {
            self.tile::<I, 1, V, TAIL>(isa, at, group, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
        &mut self,
        isa: I,
        at: usize,
        group: usize,
        row: usize,
    ) {
        let (inner, width) = (self.inner, self.width);
        let end = if TAIL { width } else { at + V * I::LANES };
        let mut sums = [[isa.splat(0.0); V]; R];
        let place = |r: usize| (row + r) * self.y_stride + group * width;
        if self.accumulate {
            for r in 0..R {
                let y = &self.y[place(r)..][at..end];
                for v in 0..V {
                    sums[r][v] = load::<I, TAIL>(isa, &y[v * I::LANES..]);
                }
            }
        }
        for (block, input) in self.groups.of(group) {
            let x: [&[f32]; R] =
                std::array::from_fn(|r| &self.x[(row + r) * self.x_stride + input * inner..][..inner]);
            let panel = &self.panels[block * inner * width..][..inner * width];
            for (k, w) in panel.chunks_exact(width).enumerate().take(inner) {
                let w = &w[at..end];
                let w: [I::V; V] = std::array::from_fn(|v| load::<I, TAIL>(isa, &w[v * I::LANES..]));
                for r in 0..R {
                    let x = isa.splat(x[r][k]);
                    for v in 0..V {
                        sums[r][v] = isa.mul_add(x, w[v], sums[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            let place = (row + r) * self.y_stride + group * width;
            let y = &mut self.y[place..][at..end];
            for v in 0..V {
                store::<I, TAIL>(isa, &mut y[v * I::LANES..], sums[r][v]);
            }
        }
    }
}

fn weight_gradient(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
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
