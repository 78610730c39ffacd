//! Dense products over strided views: `out = a b` or `out += a b`, and many of them at once.

mod dots;
mod one_row;
mod packed;
mod panels;

use crate::finish::Target;
use crate::simd::product;
use rayon::prelude::*;

pub use crate::simd::{MatMut, MatRef};
pub use packed::Packed;

/// Whether a product may use every thread of the current rayon pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parallelism {
    /// The calling thread alone: inside a parallel task.
    One,
    /// The current pool.
    Pool,
}

/// `out = a b`, or `out += a b` with `accumulate`: `a [m, k]`, `b [k, n]`, `out [m, n]`, any strides.
///
/// Cost `2 m n k` flops. Without `accumulate` the old `out`, NaN included, is ignored; `k = 0` then gives zeros.
/// The bits do not depend on the number of threads. Panics if the shapes disagree.
pub fn gemm(out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, b: MatRef<'_>, parallelism: Parallelism) {
    if dots::accepts(&out, a, b) {
        let product = if out.rows() == 1 { one_row::product } else { dots::product };
        return product(out, accumulate, a, b, parallelism == Parallelism::Pool);
    }
    let threads = match parallelism {
        Parallelism::One => 1,
        Parallelism::Pool => rayon::current_num_threads(),
    };
    product(out, accumulate, a, b, threads);
}

/// `out = a b`, or `out += a b` with `accumulate`, finished, by a `b` that has been packed: as [`gemm()`], and faster for
/// products of some rows ([`Packed::pays`]). Panics if the shapes disagree, or unless the rows of `out` and `a` are contiguous.
pub fn gemm_packed(out: Target<'_>, accumulate: bool, a: MatRef<'_>, b: &Packed) {
    b.product(out, accumulate, a);
}

/// Rows of one task of [`batched`].
const ROWS: usize = 512;

/// `out[i] = a(i) b(i)`, or `+=` with `accumulate`, in parallel over `i` and over rows of each product.
///
/// The views may be strided parts of shared buffers: cut `out` with [`MatMut::tiles`], and `a` and `b` with
/// [`MatRef::rows_at`] and [`MatRef::cols_at`]. Few rows read `b` as it is stored, as in [`gemm()`]. Panics if the shapes
/// disagree.
pub fn batched<'a, 'b>(
    out: Vec<MatMut<'_>>,
    accumulate: bool,
    a: impl Fn(usize) -> MatRef<'a> + Sync,
    b: impl Fn(usize) -> MatRef<'b> + Sync,
) {
    let mut tasks = Vec::with_capacity(out.len());
    for (i, mut out) in out.into_iter().enumerate() {
        let mut start = 0;
        while out.rows() > ROWS {
            let (first, rest) = out.split_rows(ROWS);
            tasks.push((i, start, first));
            out = rest;
            start += ROWS;
        }
        tasks.push((i, start, out));
    }
    tasks.into_par_iter().for_each(|(i, start, out)| {
        let rows = out.rows();
        gemm(out, accumulate, a(i).rows_at(start, rows), b(i), Parallelism::One);
    });
}

#[cfg(test)]
mod tests;
