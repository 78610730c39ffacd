//! The product of one tile of rows with the values of one chunk of outputs.
//!
//! Inputs are packed feature-major: one value meets a register of rows, as if the weight were dense. An output's sums
//! stay in registers for a run, and lie feature-major in between; they are turned on the way out.

use super::places::{Place, Places};
use crate::simd::{Isa, MAX_LANES, MatMut, Vectorize};

/// Places ahead whose values are asked for, where they do not lie one after the other.
const AHEAD: usize = 4;
/// Values ahead that are asked for where they do: the memory itself reads ahead of what is read one after the other, but
/// to the end of a page only.
const VALUES_AHEAD: usize = 512;

/// `y (+)= x Wᵀ` for the rows of a tile and the outputs of a chunk.
pub(super) struct Tile<'a> {
    pub(super) places: &'a Places,
    pub(super) values: &'a [f32],
    /// Whether they lie in the order of the places.
    pub(super) in_order: bool,
    /// `[inputs, width]`, packed.
    pub(super) x: &'a [f32],
    /// Rows that the tile has room for: one, two or four registers.
    pub(super) width: usize,
    pub(super) chunk: usize,
    /// The chunk's outputs.
    pub(super) y: MatMut<'a>,
    pub(super) accumulate: bool,
    /// `[outputs of a chunk, width]`.
    pub(super) sums: &'a mut [f32],
}

impl Vectorize for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // Several sums for each register of rows hide the latency of a multiply-add.
        match self.width / I::LANES {
            1 => self.sweep::<I, 1, 4>(isa),
            2 => self.sweep::<I, 2, 4>(isa),
            _ => self.sweep::<I, 4, 2>(isa),
        }
    }
}

impl Tile<'_> {
    /// All runs, for tiles of `V` registers, with `U` sums for each.
    #[inline(always)]
    fn sweep<I: Isa, const V: usize, const U: usize>(&mut self, isa: I) {
        let width = V * I::LANES;
        let (chunk, places) = (self.chunk, self.places);
        let mut in_order = self.in_order.then(|| &self.values[places.values(chunk)]);
        for run in 0..places.runs {
            let x = &self.x[run * places.width * width..];
            let (places, mut inputs) = places.of(chunk, run);
            for (at, &Place { start, len, output }) in places.iter().enumerate() {
                let len = usize::from(len);
                let values = match &mut in_order {
                    Some(rest) => {
                        let (own, others) = rest.split_at(len);
                        *rest = others;
                        for line in (0..len).step_by(MAX_LANES) {
                            isa.prefetch(own, VALUES_AHEAD + line);
                        }
                        own
                    }
                    None => {
                        if let Some(next) = places.get(at + AHEAD) {
                            for line in (0..usize::from(next.len) + MAX_LANES - 1).step_by(MAX_LANES) {
                                isa.prefetch(self.values, next.start as usize + line);
                            }
                        }
                        &self.values[start as usize..][..len]
                    }
                };
                let (own, others) = inputs.split_at(len);
                inputs = others;
                let sums = &mut self.sums[usize::from(output) * width..][..width];
                add::<I, V, U>(isa, sums, run > 0, values, own, x);
            }
        }
        put(isa, &mut self.y, self.sums, width, self.accumulate);
    }
}

/// Turns `sums [outputs, width]` into rows.
#[inline(always)]
pub(super) fn put<I: Isa>(isa: I, y: &mut MatMut<'_>, sums: &[f32], width: usize, accumulate: bool) {
    let (rows, outputs) = (y.rows(), y.cols());
    let (whole, high) = (outputs / I::LANES * I::LANES, rows / I::LANES * I::LANES);
    for r in (0..high).step_by(I::LANES) {
        for first in (0..whole).step_by(I::LANES) {
            let square = isa.load_transposed(|o| &sums[(first + o) * width + r..]);
            y.store_square(isa, (r, first), &square, accumulate);
        }
    }
    for r in 0..rows {
        let from = if r < high { whole } else { 0 };
        let y = &mut y.row_mut(r)[from..];
        for (y, sums) in y.iter_mut().zip(sums[from * width..].chunks_exact(width)) {
            *y = if accumulate { *y + sums[r] } else { sums[r] };
        }
    }
}

/// `sums[r] (+)= Σ values · x[inputs][r]`: one output for the rows of a tile.
#[inline(always)]
fn add<I: Isa, const V: usize, const U: usize>(
    isa: I,
    sums: &mut [f32],
    more: bool,
    values: &[f32],
    inputs: &[u16],
    x: &[f32],
) {
    let width = V * I::LANES;
    let mut held = [[isa.splat(0.0); V]; U];
    if more {
        held[0] = std::array::from_fn(|v| isa.load(&sums[v * I::LANES..]));
    }
    let (values_by_four, last_values) = values.as_chunks::<4>();
    let (inputs_by_four, last_inputs) = inputs.as_chunks::<4>();
    for (values, inputs) in values_by_four.iter().zip(inputs_by_four) {
        for u in 0..4 {
            step::<I, V>(isa, &mut held[u % U], values[u], inputs[u], x);
        }
    }
    for (&value, &input) in last_values.iter().zip(last_inputs) {
        step::<I, V>(isa, &mut held[0], value, input, x);
    }
    for v in 0..V {
        let sum = (1..U).fold(held[0][v], |sum, u| isa.add(sum, held[u][v]));
        isa.store(&mut sums[v * I::LANES..width], sum);
    }
}

/// `held[r] += value · x[input][r]`.
#[inline(always)]
fn step<I: Isa, const V: usize>(isa: I, held: &mut [I::V; V], value: f32, input: u16, x: &[f32]) {
    let width = V * I::LANES;
    let at = usize::from(input) * width;
    // One comparison: `at + width` cannot overflow, the compiler sees.
    let (w, x) = (isa.splat(value), &x[at..at + width]);
    for v in 0..V {
        held[v] = isa.mul_add(w, isa.load(&x[v * I::LANES..]), held[v]);
    }
}
