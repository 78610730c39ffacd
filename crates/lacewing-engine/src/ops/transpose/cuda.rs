//! Launches `transpose/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::Tensor;
use crate::ops::launch::{Entry, blocks, blocks_yz, entry, expect, of, ptr, size, source};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("transpose");

const TRANSPOSE: Entry = entry!("transpose");

/// Rows and columns of a tile.
const TILE: usize = 64;

/// `y[b, j, i] = x[b, i, j]`.
///
/// Shapes: `x [batch, m, n]`, `y [batch, n, m]`, not the same memory.
pub(super) fn transpose(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    batch: usize,
    m: usize,
    n: usize,
) -> Result<(), CudaError> {
    let dtype = x.dtype();
    expect(&[("x", x, dtype, batch * m * n), ("y", y, dtype, batch * m * n)]);
    let kernel = gpu.function(&SOURCE, of(TRANSPOSE, dtype))?;
    let args = [ptr(x), ptr(y), size(batch).into(), size(m).into(), size(n).into()];
    let grid = [blocks(n, TILE), blocks_yz(m, TILE), blocks_yz(batch, 1)];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays within m and n.
    unsafe { kernel.launch(grid, [256, 1, 1], 0, &args) }
}
