//! The product of one tile of rows with the blocks of one chunk of outputs, for blocks of few outputs and inputs.
//!
//! As in [`super::tile`] inputs are packed feature-major. The sums of a block's outputs are held together, so that a
//! register of inputs meets the values of all of them.

use super::Size;
use super::places::{Place, Places};
use super::tile::put;
use crate::simd::{Isa, Level, MatMut, Vectorize};

/// Blocks ahead whose values are asked for.
const AHEAD: usize = 6;

/// Elements that are in the first cache once they have been read.
const FIRST_CACHE: usize = 8 * 1024;

/// `y (+)= x Wᵀ` for the rows of a tile and the outputs of a chunk.
pub(super) struct BlockTile<'a> {
    pub(super) places: &'a Places,
    pub(super) values: &'a [f32],
    pub(super) size: Size,
    /// `[inputs, width]`, packed.
    pub(super) x: &'a [f32],
    /// Rows that the tile has room for: one or two registers.
    pub(super) width: usize,
    pub(super) chunk: usize,
    /// The chunk's outputs.
    pub(super) y: MatMut<'a>,
    pub(super) accumulate: bool,
    /// `[outputs of a chunk, width]`.
    pub(super) sums: &'a mut [f32],
}

impl BlockTile<'_> {
    /// By as many outputs at a time as the registers hold.
    pub(super) fn run(mut self, level: Level, lanes: usize) {
        let (registers, outputs) = (self.width / lanes, self.size.outputs);
        let mut at = 0;
        while at < outputs {
            let this = &mut self;
            at += match (registers, outputs - at) {
                // Sixteen registers hold eight sums and what they are made of.
                (1, 8..) if lanes < 16 => this.sweep::<1, 8, 1>(level, at),
                (2, 4..) if lanes < 16 => this.sweep::<2, 4, 1>(level, at),
                (1, 4..) if lanes < 16 => this.sweep::<1, 4, 2>(level, at),
                (1, 8..) => this.sweep::<1, 8, 2>(level, at),
                (_, 8..) => this.sweep::<2, 8, 1>(level, at),
                (1, 4..) => this.sweep::<1, 4, 4>(level, at),
                (_, 4..) => this.sweep::<2, 4, 2>(level, at),
                (1, 2..) => this.sweep::<1, 2, 4>(level, at),
                (_, 2..) => this.sweep::<2, 2, 4>(level, at),
                (1, _) => this.sweep::<1, 1, 4>(level, at),
                _ => this.sweep::<2, 1, 4>(level, at),
            };
        }
        level.run(Put { y: self.y, sums: self.sums, width: self.width, accumulate: self.accumulate });
    }

    /// Outputs `at..at + R` of every group, for tiles of `V` registers with `U` sums for each, as few as the inputs of
    /// a block allow. Returns `R`.
    fn sweep<const V: usize, const R: usize, const U: usize>(&mut self, level: Level, at: usize) -> usize {
        let Self { places, values, size, x, chunk, .. } = *self;
        let (y, sums) = (self.y.reborrow(), &mut *self.sums);
        let Size { outputs, inputs, turned } = size;
        let whole = outputs == R;
        macro_rules! sweep {
            ($size:literal, $turned:literal) => {
                level.run(Sweep::<V, R, U, $size, $turned> {
                    places,
                    values,
                    outputs,
                    inputs,
                    at,
                    x,
                    chunk,
                    y,
                    sums,
                })
            };
        }
        match (inputs, turned) {
            (4, false) if whole => sweep!(4, false),
            (4, true) if whole => sweep!(4, true),
            (8, false) if whole => sweep!(8, false),
            (8, true) if whole => sweep!(8, true),
            (_, false) => sweep!(0, false),
            (_, true) => sweep!(0, true),
        }
        R
    }
}

/// All runs for some outputs of every group. With `SIZE` blocks have so many inputs, and no other outputs.
struct Sweep<'a, const V: usize, const R: usize, const U: usize, const SIZE: usize, const TURNED: bool> {
    places: &'a Places,
    values: &'a [f32],
    outputs: usize,
    inputs: usize,
    at: usize,
    x: &'a [f32],
    chunk: usize,
    y: MatMut<'a>,
    sums: &'a mut [f32],
}

impl<const V: usize, const R: usize, const U: usize, const SIZE: usize, const TURNED: bool> Vectorize
    for Sweep<'_, V, R, U, SIZE, TURNED>
{
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let width = V * I::LANES;
        let runs = self.places.runs;
        for run in 0..runs {
            let x = &self.x[run * self.places.width * self.inputs * width..];
            let (places, mut inputs) = self.places.of(self.chunk, run);
            for (at, &Place { start, len, output }) in places.iter().enumerate() {
                if run + 1 == runs && self.at == 0 {
                    for at in at * self.outputs..(at + 1) * self.outputs {
                        ask(isa, &mut self.y, at);
                    }
                }
                let (own, others) = inputs.split_at(usize::from(len));
                inputs = others;
                self.add(isa, run > 0, start as usize, own, usize::from(output), x);
            }
        }
    }
}

impl<const V: usize, const R: usize, const U: usize, const SIZE: usize, const TURNED: bool>
    Sweep<'_, V, R, U, SIZE, TURNED>
{
    /// The blocks of one group in one run.
    #[inline(always)]
    fn add<I: Isa>(&mut self, isa: I, more: bool, start: usize, blocks: &[u16], group: usize, x: &[f32]) {
        let width = V * I::LANES;
        let (outputs, inputs) = if SIZE > 0 { (R, SIZE) } else { (self.outputs, self.inputs) };
        let size = outputs * inputs;
        let sums = &mut self.sums[(group * outputs + self.at) * width..][..R * width];
        // The packed rows of a short run are in the first cache.
        let far = self.places.width * inputs * width > FIRST_CACHE;
        let mut held = [[[isa.splat(0.0); V]; R]; U];
        if more {
            held[0] =
                std::array::from_fn(|r| std::array::from_fn(|v| isa.load(&sums[r * width + v * I::LANES..])));
        }
        for (i, &input) in blocks.iter().enumerate() {
            let block = &self.values[self.places.number(start + i) * size..][..size];
            let x_at = |input: u16| &x[usize::from(input) * inputs * width..][..inputs * width];
            let x_block = x_at(input);
            let next = self.places.number(start + i + AHEAD) * size;
            for line in (0..size).step_by(16) {
                isa.prefetch(self.values, next + line);
            }
            if far && let Some(&next) = blocks.get(i + 1) {
                let next = x_at(next);
                for line in (0..inputs * width).step_by(16) {
                    isa.prefetch(next, line);
                }
            }
            if SIZE > 0 {
                let (block, x) = (&block[..R * SIZE], &x_block[..SIZE * width]);
                for first in (0..SIZE).step_by(4) {
                    for u in 0..4 {
                        let k = first + u;
                        let weight = |r: usize| if TURNED { block[k * R + r] } else { block[r * SIZE + k] };
                        step::<I, V, R>(isa, &mut held[u % U], &x[k * width..][..width], weight);
                    }
                }
            } else if TURNED {
                let rows = block.chunks_exact(outputs);
                for (k, (weights, x)) in rows.zip(x_block.chunks_exact(width)).enumerate() {
                    let weights = &weights[self.at..][..R];
                    if U > 1 && k % 2 == 1 {
                        step::<I, V, R>(isa, &mut held[1 % U], x, |r| weights[r]);
                    } else {
                        step::<I, V, R>(isa, &mut held[0], x, |r| weights[r]);
                    }
                }
            } else {
                let rows: [&[f32]; R] = std::array::from_fn(|r| &block[(self.at + r) * inputs..][..inputs]);
                for (k, x) in (0..inputs).zip(x_block.chunks_exact(width)) {
                    if U > 1 && k % 2 == 1 {
                        step::<I, V, R>(isa, &mut held[1 % U], x, |r| rows[r][k]);
                    } else {
                        step::<I, V, R>(isa, &mut held[0], x, |r| rows[r][k]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let sum = (1..U).fold(held[0][r][v], |sum, u| isa.add(sum, held[u][r][v]));
                isa.store(&mut sums[r * width + v * I::LANES..], sum);
            }
        }
    }
}

/// `held[r] += weight(r) · x`.
#[inline(always)]
fn step<I: Isa, const V: usize, const R: usize>(
    isa: I,
    held: &mut [[I::V; V]; R],
    x: &[f32],
    weight: impl Fn(usize) -> f32,
) {
    let x: [I::V; V] = std::array::from_fn(|v| isa.load(&x[v * I::LANES..]));
    for r in 0..R {
        let weight = isa.splat(weight(r));
        for v in 0..V {
            held[r][v] = isa.mul_add(weight, x[v], held[r][v]);
        }
    }
}

/// What [`put`] does.
struct Put<'a> {
    y: MatMut<'a>,
    sums: &'a [f32],
    width: usize,
    accumulate: bool,
}

impl Vectorize for Put<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        put(isa, &mut self.y, self.sums, self.width, self.accumulate);
    }
}

/// Asks for a part of what [`put`] will write, a sixteenth of some outputs' rows at a time.
#[inline(always)]
fn ask<I: Isa>(isa: I, y: &mut MatMut<'_>, at: usize) {
    let (rows, col) = (y.rows(), at / 16 * 16);
    let part = rows.div_ceil(16);
    for r in (at % 16 * part..rows).take(part) {
        isa.prefetch(y.row_mut(r), col);
    }
}
