//! Launches `block_mask/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("block_mask");

const SCALE: Entry = entry!("scale_blocks");

/// `scores[b] −= Σ gradient · weight`.
///
/// Shapes: as [`super::score_blocks`].
pub(super) fn score(
    gpu: &Device,
    gradient: &Tensor,
    weight: &Tensor,
    block: (usize, usize),
    scores: &Tensor,
) -> Result<(), CudaError> {
    let (len, n_blocks) = (weight.len(), count(weight, block));
    expect(&[
        ("gradient", gradient, DType::F32, len),
        ("weight", weight, DType::F32, len),
        ("scores", scores, DType::F32, n_blocks),
    ]);
    if len == 0 {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, "score_blocks")?;
    let args = [&[ptr(gradient), ptr(weight), ptr(scores)][..], &sizes(weight, block)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([blocks(n_blocks * 32, 256), 1, 1], [256, 1, 1], 0, &args) }
}

/// `out = values · mask[b]`.
///
/// Shapes: as [`super::mask_blocks`].
pub(super) fn scale(
    gpu: &Device,
    values: &Tensor,
    mask: &Tensor,
    block: (usize, usize),
    out: &Tensor,
) -> Result<(), CudaError> {
    let len = values.len();
    expect(&[
        ("values", values, DType::F32, len),
        ("mask", mask, DType::F32, count(values, block)),
        ("out", out, out.dtype(), len),
    ]);
    if len == 0 {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(SCALE, out.dtype()))?;
    let args = [&[ptr(values), ptr(mask), ptr(out)][..], &sizes(values, block)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([blocks(len, 256), 1, 1], [256, 1, 1], 0, &args) }
}

fn count(weight: &Tensor, (rows, cols): (usize, usize)) -> usize {
    weight.rows().div_ceil(rows) * weight.cols().div_ceil(cols)
}

/// `n_out, n_in, rows, cols`.
fn sizes(weight: &Tensor, (rows, cols): (usize, usize)) -> [Arg; 4] {
    [weight.rows(), weight.cols(), rows, cols].map(|n| size(n).into())
}
