//! One row times a matrix whose columns are contiguous (a layer's weight as it is stored): dot products at the speed of
//! the memory that the matrix is in.
//!
//! Nothing is packed, and threads get long stretches of the matrix, which they read in a few streams. Sums are made as in
//! [`super::dots`], so that a row has the same bits alone as among others.

use crate::parallel::{TASK, share};
use crate::simd::{Isa, Level, MAX_LANES, MatMut, MatRef, Vectorize};

/// Columns that are read side by side.
const WIDE: usize = 8;
/// The same of a matrix that a cache holds whose columns are whole pages apart: they share a set of the first cache, which has
/// as many places as [`WIDE`], and the row wants one as well. Memory is so much slower that it makes no difference.
const NARROW: usize = 4;
const PAGE: usize = 4096 / size_of::<f32>();
/// Elements from which on a matrix comes from memory.
const LARGE: usize = 4 << 20;
/// Tasks at most: the shape decides, not the number of threads.
const TASKS: usize = 16;

/// `out (+)= a b` for operands that [`super::dots`] accepts, of one row; by all threads if `parallel`.
pub(super) fn product(out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, b: MatRef<'_>, parallel: bool) {
    let (columns, level, x) = (b.t(), Level::current(), a.row(0));
    let narrow = x.len().is_multiple_of(PAGE) && columns.rows() * x.len() < LARGE;
    let tasks = if parallel { (columns.rows() * x.len() / TASK).clamp(1, TASKS) } else { 1 };
    let width = columns.rows().div_ceil(tasks).next_multiple_of(MAX_LANES);
    let (mut all, mut right) = (Vec::with_capacity(tasks), out);
    for first in (0..columns.rows()).step_by(width) {
        let (out, rest) = right.split_cols(width.min(columns.rows() - first));
        right = rest;
        all.push(Dots { columns: columns.rows_at(first, out.cols()), out, accumulate, x, narrow });
    }
    share(all, |dots| level.run(dots));
}

/// The dot product of `x` with each of some columns.
struct Dots<'a> {
    out: MatMut<'a>,
    accumulate: bool,
    x: &'a [f32],
    /// The columns, as rows.
    columns: MatRef<'a>,
    /// Whether [`NARROW`] are read side by side.
    narrow: bool,
}

impl Vectorize for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let out = self.out.row_mut(0);
        for (first, out) in (0..).step_by(I::LANES).zip(out.chunks_mut(I::LANES)) {
            let mut sums = [isa.splat(0.0); MAX_LANES];
            let mut at = 0;
            while at < out.len() {
                if self.narrow && at + NARROW <= out.len() {
                    at += dots::<I, NARROW>(isa, self.x, self.columns, first + at, &mut sums[at..]);
                } else if !self.narrow && at + WIDE <= out.len() {
                    at += dots::<I, WIDE>(isa, self.x, self.columns, first + at, &mut sums[at..]);
                } else {
                    at += dots::<I, 1>(isa, self.x, self.columns, first + at, &mut sums[at..]);
                }
            }
            let mut lanes = [0.0; MAX_LANES];
            isa.store(&mut lanes, isa.sum_each(&mut sums));
            for (out, sum) in out.iter_mut().zip(lanes) {
                *out = if self.accumulate { *out + sum } else { sum };
            }
        }
    }
}

/// Lane by lane the products of `x` with the columns `first..first + C`, added; returns `C`.
#[inline(always)]
fn dots<I: Isa, const C: usize>(
    isa: I,
    x: &[f32],
    columns: MatRef<'_>,
    first: usize,
    to: &mut [I::V],
) -> usize {
    let whole = x.len() / I::LANES * I::LANES;
    let mut from: [&[f32]; C] = [&[]; C];
    for c in 0..C {
        from[c] = &columns.row(first + c)[..x.len()];
    }
    let mut sums = [isa.splat(0.0); C];
    // The machine sees the streams and asks for what comes.
    for at in (0..whole).step_by(I::LANES) {
        let x = isa.load(&x[at..]);
        for c in 0..C {
            sums[c] = isa.mul_add(x, isa.load(&from[c][at..]), sums[c]);
        }
    }
    if whole < x.len() {
        let x = isa.load_partial(&x[whole..]);
        for c in 0..C {
            sums[c] = isa.mul_add(x, isa.load_partial(&from[c][whole..]), sums[c]);
        }
    }
    to[..C].copy_from_slice(&sums);
    C
}
