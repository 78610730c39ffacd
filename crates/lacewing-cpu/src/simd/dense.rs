//! The one call of the `gemm` crate, whose interface is raw pointers.

use super::{MatMut, MatRef};
use gemm::Parallelism;

/// `out (+)= a b`. Panics if the shapes disagree.
pub(crate) fn product(mut out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, b: MatRef<'_>, threads: usize) {
    assert_eq!((a.rows(), a.cols(), b.cols()), (out.rows(), b.rows(), out.cols()), "rows, inner, columns");
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let stride = |s: usize| s as isize;
    let (out_rs, out_cs) = (stride(out.row_stride()), stride(out.col_stride()));
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    // SAFETY: the views hold every element of their shapes, which agree; `out` holds its own exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_cs,
            out_rs,
            accumulate,
            a.as_ptr(),
            stride(a.col_stride()),
            stride(a.row_stride()),
            b.as_ptr(),
            stride(b.col_stride()),
            stride(b.row_stride()),
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}
