//! Launches `strided_blocks/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Sizes;
use crate::ops::launch::{Entry, blocks, blocks_yz, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("strided_blocks");

const APPLY: Entry = entry!("strided_blocks");
const GRADIENT: Entry = entry!("strided_blocks_gradient");

/// Rows that share a thread's weights, and at least so many in a partial sum.
const ROWS: usize = 16;
/// The most partial sums.
const PARTS: usize = 64;

/// `y = W x`, or `Wᵀ x` with w stored as `[blocks, p, q]` where `transposed`.
///
/// Shapes: `x [rows, blocks · p]`, `y [rows, blocks · q]`, one type.
pub(super) fn apply(
    gpu: &Device,
    x: &Tensor,
    w: &Tensor,
    transposed: bool,
    y: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    let Sizes { stride, q, p, .. } = sizes;
    let (rows, dtype, n) = (y.rows(), y.dtype(), sizes.blocks());
    expect(&[("x", x, dtype, rows * n * p), ("w", w, dtype, n * q * p), ("y", y, dtype, rows * n * q)]);
    if y.is_empty() {
        return Ok(());
    }
    let (w_out, w_in) = if transposed { (1, q) } else { (p, 1) };
    let kernel = gpu.function(&SOURCE, of(APPLY, dtype))?;
    let numbers = [rows, n, stride, q, p, w_out, w_in].map(|n| size(n).into());
    let args = [&[ptr(x), ptr(w), ptr(y)][..], &numbers].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it returns beyond the last
    // block and strides over the rows.
    unsafe { kernel.launch([blocks(n, 256), blocks_yz(rows, ROWS), 1], [256, 1, 1], 0, &args) }
}

/// `dw += Σ dy xᵀ`, block by block.
///
/// Shapes: `dy [rows, blocks · q]`, `x [rows, blocks · p]` of one type, `dw [blocks, q, p]` f32.
pub(super) fn weight_gradient(
    gpu: &Device,
    dy: &Tensor,
    x: &Tensor,
    dw: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    let Sizes { stride, q, p, .. } = sizes;
    let (rows, dtype, n) = (dy.rows(), dy.dtype(), sizes.blocks());
    let len = n * q * p;
    expect(&[("dy", dy, dtype, rows * n * q), ("x", x, dtype, rows * n * p), ("dw", dw, DType::F32, len)]);
    if dy.is_empty() {
        return Ok(());
    }
    let parts = rows.div_ceil(ROWS).min(PARTS);
    let partial = gpu.region(parts * len * 4)?;
    let kernel = gpu.function(&SOURCE, of(GRADIENT, dtype))?;
    let numbers = [rows, n, stride, q, p].map(|n| size(n).into());
    let args = [&[ptr(dy), ptr(x), Arg::from(&partial)][..], &numbers].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has `len`
    // values for each block in y.
    unsafe { kernel.launch([blocks(n, 32), size(parts), 1], [32, 8, 1], 0, &args) }?;
    let kernel = gpu.function(&SOURCE, "strided_blocks_finish")?;
    let args = [Arg::from(&partial), ptr(dw), size(parts).into(), size(len).into()];
    // SAFETY: the arguments are the kernel's in its order; `partial` holds `parts` rows of `len` values.
    unsafe { kernel.launch([blocks(len, 32), 1, 1], [32, 16, 1], 0, &args) }
}
