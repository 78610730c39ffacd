//! Launches `gather/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Lists;
use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, ptr_or_null, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("gather");

const GATHER: Entry = entry!("gather");
const GATHER_LONG: Entry = entry!("gather_long");

/// Codes a list from which on a warp sums it together.
const LONG: usize = 16;

/// `y[r, o] = Σ ± x[r, index]` over the list of `o`.
///
/// Shapes: `x [rows, n_in]`, `y [rows, n_out]` of the lists, one type.
pub(super) fn gather(gpu: &Device, x: &Tensor, lists: &Lists, y: &Tensor) -> Result<(), CudaError> {
    let (rows, dtype) = (y.rows(), y.dtype());
    expect(&[("x", x, dtype, rows * lists.n_in), ("y", y, dtype, rows * lists.n_out)]);
    expect(&[("starts", &lists.starts, DType::U32, lists.n_out + 1)]);
    expect(&[("codes", &lists.codes, DType::U32, lists.codes.len())]);
    if y.is_empty() {
        return Ok(());
    }
    let starts = (!lists.single).then_some(&lists.starts);
    let long = lists.codes.len() >= LONG * lists.n_out;
    let kernel = gpu.function(&SOURCE, of(if long { GATHER_LONG } else { GATHER }, dtype))?;
    let sizes = [rows, lists.n_in, lists.n_out].map(|n| size(n).into());
    let args = [&[ptr(x), ptr_or_null(starts), ptr(&lists.codes), ptr(y)][..], &sizes].concat();
    let grid = blocks(rows * lists.n_out, if long { 256 / 32 } else { 256 });
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; the index keeps its
    // starts rising to the number of codes and every code below `n_in`.
    unsafe { kernel.launch([grid, 1, 1], [256, 1, 1], 0, &args) }
}
