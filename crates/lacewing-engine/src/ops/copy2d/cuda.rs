//! Launches `copy2d/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::Tensor;
use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, size, source};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("copy2d");

const COPY2D: Entry = entry!("copy2d");

/// The first columns of `x`, as many as `y` has, and zeros where `y` has more.
///
/// Shapes: `x [rows, x_cols]`, `y [rows, y_cols]`.
pub(super) fn resize_cols(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    rows: usize,
    x_cols: usize,
    y_cols: usize,
) -> Result<(), CudaError> {
    let dtype = x.dtype();
    expect(&[("x", x, dtype, rows * x_cols), ("y", y, dtype, rows * y_cols)]);
    let kernel = gpu.function(&SOURCE, of(COPY2D, dtype))?;
    let copied = x_cols.min(y_cols);
    let sizes = [rows, x_cols, 0, y_cols, 0, copied, y_cols].map(|n| size(n).into());
    let args = [&[ptr(x), ptr(y)][..], &sizes].concat();
    let per_thread = 16 / dtype.bytes();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `copied` columns lie in
    // both.
    unsafe { kernel.launch([blocks(rows * y_cols.div_ceil(per_thread), 256), 1, 1], [256, 1, 1], 0, &args) }
}
