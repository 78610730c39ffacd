//! Launches `scatter/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::block_sparse::BlockIndex;
use crate::ops::launch::{CHUNK, Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Result, Tensor};
use lacewing_cuda::{Arg, Device, Source};

pub(crate) static SOURCE: Source = source!("scatter");

const SCATTER: Entry = entry!("scatter_blocks");
const GATHER: Entry = entry!("gather_blocks");

/// Writes the blocks to their places in `dense`, which keeps the rest.
///
/// Shapes: `values [nnz, br, bc]`, `dense [n_out, n_in]`, one type.
pub(super) fn scatter(gpu: &Device, values: &Tensor, index: &BlockIndex, dense: &Tensor) -> Result<()> {
    let dtype = dense.dtype();
    let positions = check(index, values, dtype, dense)?;
    let kernel = gpu.function(&SOURCE, of(SCATTER, dtype))?;
    let args = [&[ptr(values), ptr(positions), ptr(dense)][..], &sizes(index)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; the index keeps its
    // positions inside the matrix and distinct.
    unsafe { kernel.launch(grid(index), [256, 1, 1], 0, &args) }?;
    Ok(())
}

/// `dvalues +=` the blocks' places in `ddense`.
///
/// Shapes: `ddense [n_out, n_in]`, `dvalues [nnz, br, bc]` f32.
pub(super) fn gather_add(gpu: &Device, ddense: &Tensor, index: &BlockIndex, dvalues: &Tensor) -> Result<()> {
    let positions = check(index, dvalues, DType::F32, ddense)?;
    let kernel = gpu.function(&SOURCE, of(GATHER, ddense.dtype()))?;
    let args = [&[ptr(ddense), ptr(positions), ptr(dvalues)][..], &sizes(index)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; the index keeps its
    // positions inside the matrix and distinct.
    unsafe { kernel.launch(grid(index), [256, 1, 1], 0, &args) }?;
    Ok(())
}

/// Checks the lengths; the positions on the device.
fn check<'a>(index: &'a BlockIndex, values: &Tensor, dtype: DType, dense: &Tensor) -> Result<&'a Tensor> {
    let (br, bc) = index.block();
    expect(&[("values", values, dtype, index.n_blocks() * br * bc)]);
    expect(&[("dense", dense, dense.dtype(), index.n_out() * index.n_in())]);
    let positions = index.device_positions()?;
    expect(&[("positions", positions, DType::U32, index.n_blocks() * 2)]);
    Ok(positions)
}

/// `nnz, br, bc, n_in`.
fn sizes(index: &BlockIndex) -> [Arg; 4] {
    let (br, bc) = index.block();
    [index.n_blocks(), br, bc, index.n_in()].map(|n| size(n).into())
}

/// A thread for each chunk of a block's row.
fn grid(index: &BlockIndex) -> [u32; 3] {
    let (br, bc) = index.block();
    [blocks(index.n_blocks() * br * bc.div_ceil(CHUNK), 256), 1, 1]
}
