//! The weight gradient of single values: for each, a dot product of two packed rows.

use super::pack::Pack;
use super::places::{Place, Places};
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, Vectorize};
use rayon::prelude::*;

/// Registers of dy that are held at most.
const HELD: usize = 8;
/// Columns that one task packs.
const STRIP: usize = 64;

/// `dvalues[i] += Σ_r dy[r, o] x[r, c]`.
pub(super) fn weight_gradient(
    places: &Places,
    (dy, n_out): (&[f32], usize),
    (x, n_in): (&[f32], usize),
    dvalues: &mut [f32],
) {
    // Once, since what is packed is as wide as the registers that will read it.
    let level = Level::current();
    let lanes = level.lanes();
    let most = HELD * lanes;
    for (dy, x) in dy.chunks(most * n_out).zip(x.chunks(most * n_in)) {
        let rows = dy.len() / n_out;
        let width = rows.div_ceil(lanes).next_power_of_two() * lanes;
        scratch(width * (n_in + n_out), |memory| {
            let (xt, dyt) = memory.split_at_mut(width * n_in);
            for (to, from, n) in [(&mut *xt, x, n_in), (&mut *dyt, dy, n_out)] {
                to.par_chunks_mut(STRIP * width).enumerate().for_each(|(strip, to)| {
                    level.run(Pack { to, from: &from[strip * STRIP..], stride: n, rows, width });
                });
            }
            let (xt, dyt) = (&*xt, &*dyt);
            let mut tasks = Vec::new();
            let mut rest = &mut *dvalues;
            for chunk in 0..n_out.div_ceil(places.chunk) {
                let (own, others) = rest.split_at_mut(places.values(chunk).len());
                tasks.push((chunk, own));
                rest = others;
            }
            tasks.into_par_iter().for_each(|(chunk, dvalues)| {
                level.run(Dots { places, chunk, width, dvalues, xt, dyt });
            });
        });
    }
}

/// Dot products of packed rows, for the values of a chunk of outputs.
struct Dots<'a> {
    places: &'a Places,
    chunk: usize,
    width: usize,
    dvalues: &'a mut [f32],
    xt: &'a [f32],
    dyt: &'a [f32],
}

impl Vectorize for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match self.width / I::LANES {
            1 => self.sweep::<I, 1>(isa),
            2 => self.sweep::<I, 2>(isa),
            4 => self.sweep::<I, 4>(isa),
            _ => self.sweep::<I, HELD>(isa),
        }
    }
}

impl Dots<'_> {
    /// Rows that fill `V` registers.
    #[inline(always)]
    fn sweep<I: Isa, const V: usize>(&mut self, isa: I) {
        let width = V * I::LANES;
        let before = self.places.values(self.chunk).start;
        for run in 0..self.places.runs {
            let x = &self.xt[run * self.places.width * width..];
            let (places, mut inputs) = self.places.of(self.chunk, run);
            for &Place { start, len, output } in places {
                let (own, others) = inputs.split_at(usize::from(len));
                inputs = others;
                let dy = &self.dyt[(self.chunk * self.places.chunk + usize::from(output)) * width..][..width];
                let dy: [I::V; V] = std::array::from_fn(|v| isa.load(&dy[v * I::LANES..]));
                let dvalues = &mut self.dvalues[start as usize - before..][..own.len()];
                // As many values at a time as there are lanes: their sums are added up together.
                for (to, from) in dvalues.chunks_mut(I::LANES).zip(own.chunks(I::LANES)) {
                    let mut sums = [isa.splat(0.0); MAX_LANES];
                    for (sum, &input) in sums[..I::LANES].iter_mut().zip(from) {
                        *sum = dots::<I, V>(isa, &dy, x, input);
                    }
                    let sum = isa.sum_each(&mut sums);
                    isa.store_partial(to, isa.add(isa.load_partial(to), sum));
                }
            }
        }
    }
}

/// The products with what is held, lane by lane.
#[inline(always)]
fn dots<I: Isa, const V: usize>(isa: I, held: &[I::V; V], x: &[f32], input: u16) -> I::V {
    let width = V * I::LANES;
    let x = &x[usize::from(input) * width..][..width];
    let mut sums = [isa.splat(0.0); 2];
    for v in 0..V {
        sums[v % 2] = isa.mul_add(held[v], isa.load(&x[v * I::LANES..]), sums[v % 2]);
    }
    if V > 1 { isa.add(sums[0], sums[1]) } else { sums[0] }
}
