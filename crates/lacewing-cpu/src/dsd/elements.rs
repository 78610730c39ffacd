//! Single values anywhere: unstructured and N:M weights.
//!
//! Inputs are packed feature-major, a tile of rows at a time: one value then meets a register of rows, as if the
//! weight were dense. A tile's sums stay in registers over a run of inputs whose packed rows fit the first cache,
//! and lie feature-major in between; the tile is turned back on the way out. The weight gradient is a dot product
//! of two packed rows for each value.

use super::order::Order;
use super::{Blocks, Kernel};
use crate::scratch::scratch;
use crate::simd::{Isa, MAX_LANES, MatMut, Vectorize, dispatch};
use rayon::prelude::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/elements",
    accepts: |blocks| blocks.br == 1 && blocks.bc == 1,
    forward: |blocks, values, x, y, accumulate| {
        product(&blocks.by_row, values, (x, blocks.n_in), (y, blocks.n_out), accumulate);
    },
    input_gradient,
    weight_gradient,
    packing: None,
};

/// Rows of one task.
const TASK_ROWS: usize = 64;
/// Tasks at least, where there are outputs to cut.
const TASKS: usize = 8;
/// Rows up to which each is a product of its own: a register would be mostly empty.
const FEW_ROWS: usize = 4;
/// Outputs whose sums are kept between runs.
const OUTPUTS: usize = 256;
/// Values that one task reorders.
const VALUES: usize = 32 * 1024;

fn input_gradient(blocks: &Blocks, values: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let order = &blocks.by_col;
    let (x, y) = ((dy, blocks.n_out), (dx, blocks.n_in));
    let Some(slots) = order.slots() else { return product(order, values, x, y, accumulate) };
    scratch(values.len(), |ordered| {
        ordered.par_chunks_mut(VALUES).zip(slots.par_chunks(VALUES)).for_each(|(to, slots)| {
            to.iter_mut().zip(slots).for_each(|(to, &slot)| *to = values[slot as usize]);
        });
        product(order, ordered, x, y, accumulate);
    });
}

/// `y (+)= x Wᵀ` for the values of `order`, which lie in its order.
fn product(
    order: &Order,
    values: &[f32],
    (x, n_in): (&[f32], usize),
    (y, n_out): (&mut [f32], usize),
    accumulate: bool,
) {
    if n_out == 0 || y.is_empty() {
        return;
    }
    let rows = y.len() / n_out;
    if rows <= FEW_ROWS {
        let rows = y.chunks_exact_mut(n_out).enumerate();
        return rows.for_each(|(r, y)| row(order, values, &x[r * n_in..][..n_in], y, accumulate));
    }
    let bands = rows.div_ceil(TASK_ROWS);
    let cols = n_out.div_ceil(TASKS.div_ceil(bands)).next_multiple_of(16);
    let mut tasks = Vec::new();
    let mut below = MatMut::row_major(y, rows, n_out);
    for band in 0..bands {
        let (mut right, rest) = below.split_rows(TASK_ROWS.min(rows - band * TASK_ROWS));
        below = rest;
        for first in (0..n_out).step_by(cols) {
            let (left, rest) = right.split_cols(cols.min(n_out - first));
            tasks.push((band, first, left));
            right = rest;
        }
    }
    tasks.into_par_iter().for_each(|(band, first, y)| {
        let x = &x[band * TASK_ROWS * n_in..];
        // Here, not inside: a closure there would be compiled without the level's instructions.
        scratch((n_in + OUTPUTS.min(y.cols())) * TASK_ROWS, |memory| {
            dispatch(Band { order, values, x, n_in, first, y, accumulate, memory });
        });
    });
}

/// The product of one row: every output a sum over its values.
fn row(order: &Order, values: &[f32], x: &[f32], y: &mut [f32], accumulate: bool) {
    let per_task = y.len().div_ceil(TASKS).max(64);
    y.par_chunks_mut(per_task).enumerate().for_each(|(task, y)| {
        for (o, y) in y.iter_mut().enumerate() {
            let group = task * per_task + o;
            let range = order.starts[group]..order.starts[group + 1];
            let (values, inputs) = (&values[range.clone()], &order.inputs[range]);
            let mut sums = [0.0; 4];
            let (v, i) = (values.chunks_exact(4), inputs.chunks_exact(4));
            let rest = v.remainder().iter().zip(i.remainder());
            let rest: f32 = rest.map(|(v, &i)| v * x[i as usize]).sum();
            for (v, i) in v.zip(i) {
                for t in 0..4 {
                    sums[t] += v[t] * x[i[t] as usize];
                }
            }
            let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest;
            *y = if accumulate { *y + sum } else { sum };
        }
    });
}

/// Up to [`TASK_ROWS`] rows of some outputs.
struct Band<'a> {
    order: &'a Order,
    values: &'a [f32],
    x: &'a [f32],
    n_in: usize,
    /// The first output.
    first: usize,
    y: MatMut<'a>,
    accumulate: bool,
    /// Packed inputs, and sums.
    memory: &'a mut [f32],
}

impl Vectorize for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let rows = self.y.rows();
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            // Two sums for each register of rows hide the latency of a multiply-add.
            if left > 2 * I::LANES {
                self.tile::<I, 4, 2>(isa, row);
                row += 4 * I::LANES;
            } else if left > I::LANES {
                self.tile::<I, 2, 4>(isa, row);
                row += 2 * I::LANES;
            } else {
                self.tile::<I, 1, 8>(isa, row);
                row += I::LANES;
            }
        }
    }
}

impl Band<'_> {
    /// `V` registers of rows from `row` on, with `U` sums for each.
    #[inline(always)]
    fn tile<I: Isa, const V: usize, const U: usize>(&mut self, isa: I, row: usize) {
        let tile = V * I::LANES;
        let (n_in, n_out) = (self.n_in, self.y.cols());
        let rows = tile.min(self.y.rows() - row);
        let memory = std::mem::take(&mut self.memory);
        let (xt, sums) = memory.split_at_mut(n_in * tile);
        pack(isa, xt, &self.x[row * n_in..], n_in, rows, tile);
        for chunk in (0..n_out).step_by(OUTPUTS) {
            let outputs = OUTPUTS.min(n_out - chunk);
            // Of fewer rows, more inputs are near.
            for run in (0..self.order.runs()).step_by(4 / V) {
                let runs = run..self.order.runs().min(run + 4 / V);
                for (o, sums) in sums.chunks_exact_mut(tile).take(outputs).enumerate() {
                    let range = self.order.run(runs.clone(), self.first + chunk + o);
                    let (values, inputs) = (&self.values[range.clone()], &self.order.inputs[range]);
                    add::<I, V, U>(isa, sums, run > 0, values, inputs, xt);
                }
            }
            self.put(isa, &sums[..outputs * tile], row, rows, chunk, tile);
        }
        self.memory = memory;
    }

    /// Turns the sums of some outputs into rows.
    #[inline(always)]
    fn put<I: Isa>(&mut self, isa: I, sums: &[f32], row: usize, rows: usize, chunk: usize, tile: usize) {
        let outputs = sums.len() / tile;
        let (whole, high) = (outputs / I::LANES * I::LANES, rows / I::LANES * I::LANES);
        for first in (0..whole).step_by(I::LANES) {
            for r in (0..high).step_by(I::LANES) {
                let mut square = [isa.splat(0.0); MAX_LANES];
                for (o, square) in square[..I::LANES].iter_mut().enumerate() {
                    *square = isa.load(&sums[(first + o) * tile + r..]);
                }
                isa.transpose(&mut square);
                for (at, &sums) in square[..I::LANES].iter().enumerate() {
                    let y = &mut self.y.row_mut(row + r + at)[chunk + first..];
                    let sums = if self.accumulate { isa.add(isa.load(y), sums) } else { sums };
                    isa.store(y, sums);
                }
            }
        }
        for r in 0..rows {
            let from = if r < high { whole } else { 0 };
            let y = &mut self.y.row_mut(row + r)[chunk + from..chunk + outputs];
            for (y, sums) in y.iter_mut().zip(sums[from * tile..].chunks_exact(tile)) {
                *y = if self.accumulate { *y + sums[r] } else { sums[r] };
            }
        }
    }
}

/// `sums[r] (+)= Σ values · xt[inputs][r]`: one output for the rows of a tile.
#[inline(always)]
fn add<I: Isa, const V: usize, const U: usize>(
    isa: I,
    sums: &mut [f32],
    more: bool,
    values: &[f32],
    inputs: &[u32],
    xt: &[f32],
) {
    let tile = V * I::LANES;
    let mut held = [[isa.splat(0.0); V]; U];
    if more {
        held[0] = std::array::from_fn(|v| isa.load(&sums[v * I::LANES..]));
    }
    let step = |held: &mut [I::V; V], value: f32, input: u32| {
        let (w, x) = (isa.splat(value), &xt[input as usize * tile..][..tile]);
        for v in 0..V {
            held[v] = isa.mul_add(w, isa.load(&x[v * I::LANES..]), held[v]);
        }
    };
    let (by_u, inputs_by_u) = (values.chunks_exact(U), inputs.chunks_exact(U));
    let rest = by_u.remainder().iter().zip(inputs_by_u.remainder());
    for (values, inputs) in by_u.zip(inputs_by_u) {
        for u in 0..U {
            step(&mut held[u], values[u], inputs[u]);
        }
    }
    for (&value, &input) in rest {
        step(&mut held[0], value, input);
    }
    for v in 0..V {
        let sum = (1..U).fold(held[0][v], |sum, u| isa.add(sum, held[u][v]));
        isa.store(&mut sums[v * I::LANES..], sum);
    }
}

/// `to[c · tile + r] = from[r · stride + c]` for the rows that there are; zeros in the others. `to` says how many columns.
#[inline(always)]
fn pack<I: Isa>(isa: I, to: &mut [f32], from: &[f32], stride: usize, rows: usize, tile: usize) {
    if rows < tile {
        to.fill(0.0);
    }
    let cols = to.len() / tile;
    let (whole, high) = (cols / I::LANES * I::LANES, rows / I::LANES * I::LANES);
    for c in (0..whole).step_by(I::LANES) {
        for r in (0..high).step_by(I::LANES) {
            let mut square = [isa.splat(0.0); MAX_LANES];
            for (at, square) in square[..I::LANES].iter_mut().enumerate() {
                *square = isa.load(&from[(r + at) * stride + c..]);
            }
            isa.transpose(&mut square);
            for (at, &column) in square[..I::LANES].iter().enumerate() {
                isa.store(&mut to[(c + at) * tile + r..], column);
            }
        }
    }
    for r in 0..rows {
        let first = if r < high { whole } else { 0 };
        let from = &from[r * stride + first..][..cols - first];
        for (to, value) in to[first * tile..].chunks_exact_mut(tile).zip(from) {
            to[r] = *value;
        }
    }
}

/// [`pack`] as a task of its own.
struct Pack<'a> {
    to: &'a mut [f32],
    from: &'a [f32],
    stride: usize,
    rows: usize,
    tile: usize,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        pack(isa, self.to, self.from, self.stride, self.rows, self.tile);
    }
}

/// Rows that the weight gradient packs at once.
const GRADIENT_ROWS: usize = 128;
/// Registers of dy that the weight gradient holds.
const HELD: usize = 8;
/// Outputs of one of its tasks.
const GRADIENT_OUTPUTS: usize = 96;

/// `dvalues[i] += Σ_r dy[r, o] x[r, c]`.
fn weight_gradient(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
    if dvalues.is_empty() {
        return;
    }
    let (n_in, n_out) = (blocks.n_in, blocks.n_out);
    let tile = GRADIENT_ROWS;
    let runs = dy.chunks(tile * n_out).zip(x.chunks(tile * n_in));
    for (dy, x) in runs {
        let rows = dy.len() / n_out;
        scratch(tile * (n_in + n_out), |memory| {
            let (xt, dyt) = memory.split_at_mut(tile * n_in);
            for (to, from, n) in [(&mut *xt, x, n_in), (&mut *dyt, dy, n_out)] {
                to.par_chunks_mut(64 * tile).enumerate().for_each(|(strip, to)| {
                    dispatch(Pack { to, from: &from[strip * 64..], stride: n, rows, tile });
                });
            }
            let (xt, dyt, order) = (&*xt, &*dyt, &blocks.by_row);
            let mut tasks = Vec::new();
            let mut rest = &mut *dvalues;
            for first in (0..n_out).step_by(GRADIENT_OUTPUTS) {
                let outputs = first..n_out.min(first + GRADIENT_OUTPUTS);
                let (own, others) = rest.split_at_mut(order.starts[outputs.end] - order.starts[first]);
                tasks.push((outputs, own));
                rest = others;
            }
            tasks.into_par_iter().for_each(|(outputs, dvalues)| {
                dispatch(Dots { order, outputs, dvalues, xt, dyt });
            });
        });
    }
}

/// Dot products of packed rows, for the values of some outputs.
struct Dots<'a> {
    order: &'a Order,
    outputs: Range<usize>,
    dvalues: &'a mut [f32],
    xt: &'a [f32],
    dyt: &'a [f32],
}

impl Vectorize for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let before = self.order.starts[self.outputs.start];
        for run in 0..self.order.runs() {
            for o in self.outputs.clone() {
                let range = self.order.run(run..run + 1, o);
                let inputs = &self.order.inputs[range.clone()];
                let dvalues = &mut self.dvalues[range.start - before..range.end - before];
                // As many rows at a time as registers hold of dy.
                for at in (0..GRADIENT_ROWS).step_by(HELD * I::LANES) {
                    let dy = &self.dyt[o * GRADIENT_ROWS + at..];
                    let mut held = [isa.splat(0.0); HELD];
                    for (k, held) in held.iter_mut().enumerate() {
                        *held = isa.load(&dy[k * I::LANES..]);
                    }
                    let (mut to, mut from) =
                        (dvalues.chunks_exact_mut(I::LANES), inputs.chunks_exact(I::LANES));
                    // Sums of as many values as there are lanes are added by turning them.
                    for (to, from) in (&mut to).zip(&mut from) {
                        let mut sums = [isa.splat(0.0); MAX_LANES];
                        for (sum, &i) in sums[..I::LANES].iter_mut().zip(from) {
                            *sum = dots(isa, &held, &self.xt[i as usize * GRADIENT_ROWS + at..]);
                        }
                        isa.transpose(&mut sums);
                        let mut sum = isa.load(to);
                        for &other in &sums[..I::LANES] {
                            sum = isa.add(sum, other);
                        }
                        isa.store(to, sum);
                    }
                    for (to, &i) in to.into_remainder().iter_mut().zip(from.remainder()) {
                        let sum = dots(isa, &held, &self.xt[i as usize * GRADIENT_ROWS + at..]);
                        *to += isa.reduce_add(sum);
                    }
                }
            }
        }
    }
}

/// The products with what is held, lane by lane.
#[inline(always)]
fn dots<I: Isa>(isa: I, held: &[I::V; HELD], x: &[f32]) -> I::V {
    let x = &x[..HELD * I::LANES];
    let (mut even, mut odd) = (isa.splat(0.0), isa.splat(0.0));
    for k in (0..HELD).step_by(2) {
        even = isa.mul_add(held[k], isa.load(&x[k * I::LANES..]), even);
        odd = isa.mul_add(held[k + 1], isa.load(&x[(k + 1) * I::LANES..]), odd);
    }
    isa.add(even, odd)
}
