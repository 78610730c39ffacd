//! Launches `optimizer/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{AdamWStep, SgdStep};
use crate::ops::launch::{MAP_BLOCK, blocks, expect, expect_some, ptr, ptr_or_null, size, source};
use crate::optim::Flat;
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("optimizer");

/// Elements a block of a step updates.
const STEP_BLOCK: usize = 1024;
/// Blocks that share a sum of squares: eight for each of an H200's multiprocessors. The same on every device, so that
/// the sum is.
const SUM_BLOCKS: usize = 1056;

/// One AdamW step on `flat`; its gradient is multiplied by `scale[0]` and is zero afterwards.
///
/// Shapes: all `[n]`; `first`, `second` f32; `scale [1]` f32, 1 if absent.
pub(super) fn adamw(
    gpu: &Device,
    flat: &Flat,
    first: &Tensor,
    second: &Tensor,
    step: &AdamWStep,
    scale: Option<&Tensor>,
) -> Result<(), CudaError> {
    let n = check(flat, scale);
    expect(&[("first moment", first, DType::F32, n), ("second moment", second, DType::F32, n)]);
    let kernel = gpu.function(&SOURCE, "adamw")?;
    let rest = |beta: f32| (1.0 - f64::from(beta)) as f32;
    let args = [
        ptr(&flat.master),
        ptr_or_null(flat.copy.as_ref()),
        ptr(&flat.gradient),
        ptr(first),
        ptr(second),
        ptr_or_null(scale),
        Arg::U64(n as u64),
        Arg::F32((1.0 - f64::from(step.lr) * f64::from(step.weight_decay)) as f32),
        rest(step.beta1).into(),
        step.beta2.into(),
        rest(step.beta2).into(),
        Arg::F32(step.lr / step.bias_correction1),
        step.bias_correction2.sqrt().into(),
        step.eps.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, each array of `n` elements.
    unsafe { kernel.launch([blocks(n, STEP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// One SGD step on `flat`; its gradient is multiplied by `scale[0]` and is zero afterwards.
///
/// Shapes: all `[n]`; `momentum` f32; `scale [1]` f32, 1 if absent.
pub(super) fn sgd(
    gpu: &Device,
    flat: &Flat,
    momentum: &Tensor,
    step: &SgdStep,
    scale: Option<&Tensor>,
) -> Result<(), CudaError> {
    let n = check(flat, scale);
    expect(&[("momentum", momentum, DType::F32, n)]);
    let kernel = gpu.function(&SOURCE, "sgd")?;
    let args = [
        ptr(&flat.master),
        ptr_or_null(flat.copy.as_ref()),
        ptr(&flat.gradient),
        ptr(momentum),
        ptr_or_null(scale),
        Arg::U64(n as u64),
        step.lr.into(),
        step.momentum.into(),
        step.weight_decay.into(),
        Arg::U32(step.nesterov.into()),
    ];
    // SAFETY: the arguments are the kernel's in its order, each array of `n` elements.
    unsafe { kernel.launch([blocks(n, STEP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `norm[0] = ‖gradient‖₂`, `scale[0] = min(1, max_norm / (norm + 1e-6))`.
///
/// Shapes: `gradient [n]`, `norm [1]`, `scale [1]`, all f32.
pub(super) fn clip(
    gpu: &Device,
    gradient: &Tensor,
    max_norm: f32,
    norm: &Tensor,
    scale: &Tensor,
) -> Result<(), CudaError> {
    let n = gradient.len();
    expect(&[
        ("gradient", gradient, DType::F32, n),
        ("norm", norm, DType::F32, 1),
        ("scale", scale, DType::F32, 1),
    ]);
    let parts = n.div_ceil(STEP_BLOCK).min(SUM_BLOCKS);
    let partial = gpu.region(parts * 8)?;
    let kernel = gpu.function(&SOURCE, "sum_of_squares")?;
    let args = [ptr(gradient), Arg::from(&partial), Arg::U64(n as u64)];
    // SAFETY: the arguments are the kernel's in its order; `partial` has an f64 for each block.
    unsafe { kernel.launch([size(parts), 1, 1], [256, 1, 1], 0, &args) }?;
    let kernel = gpu.function(&SOURCE, "clip")?;
    let args = [Arg::from(&partial), size(parts).into(), max_norm.into(), ptr(norm), ptr(scale)];
    // SAFETY: the arguments are the kernel's in its order; `partial` holds `parts` numbers, the results one each.
    unsafe { kernel.launch([1, 1, 1], [32, 1, 1], 0, &args) }
}

/// `shadow ← decay · shadow + (1 − decay) · master`.
///
/// Shapes: both `[n]` f32.
pub(super) fn ema(gpu: &Device, master: &Tensor, shadow: &Tensor, decay: f32) -> Result<(), CudaError> {
    let n = master.len();
    expect(&[("master", master, DType::F32, n), ("shadow", shadow, DType::F32, n)]);
    let kernel = gpu.function(&SOURCE, "ema")?;
    let rest = (1.0 - f64::from(decay)) as f32;
    let args = [ptr(master), ptr(shadow), Arg::U64(n as u64), decay.into(), rest.into()];
    // SAFETY: the arguments are the kernel's in its order, each array of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

fn check(flat: &Flat, scale: Option<&Tensor>) -> usize {
    let n = flat.master.len();
    expect(&[("master", &flat.master, DType::F32, n), ("gradient", &flat.gradient, DType::F32, n)]);
    expect_some("copy", flat.copy.as_ref(), DType::Bf16, n);
    expect_some("scale", scale, DType::F32, 1);
    n
}
