//! Launches `binary_cross_entropy/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Values;
use crate::ops::launch::{Entry, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("binary_cross_entropy");

const LABELS: Entry = entry!("binary_cross_entropy_labels");
const TARGETS: Entry = entry!("binary_cross_entropy_targets");

/// Up to this many classes one warp takes a row, eight classes a lane.
const WARP_CLASSES: usize = 256;

/// Loss and gradient for one class a row.
///
/// Shapes: `logits`, `dlogits [rows, classes]`; `labels [rows]` u32; `loss [rows]` f32.
pub(super) fn forward_labels(
    gpu: &Device,
    logits: &Tensor,
    labels: &Tensor,
    values: Values,
    grad_scale: f32,
    loss: &Tensor,
    dlogits: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols) = check(logits, loss, dlogits);
    expect(&[("labels", labels, DType::U32, rows)]);
    let kernel = gpu.function(&SOURCE, of(LABELS, logits.dtype()))?;
    let args = [
        ptr(logits),
        ptr(labels),
        ptr(dlogits),
        ptr(loss),
        size(cols).into(),
        values.on.into(),
        values.off.into(),
        grad_scale.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a row,
    // and a label is compared, never used as an address.
    unsafe { kernel.launch([size(rows), 1, 1], block(cols), 0, &args) }
}

/// Loss and gradient for a target a logit.
///
/// Shapes: `logits`, `dlogits [rows, classes]`; `targets [rows, classes]` f32; `loss [rows]` f32.
pub(super) fn forward_soft(
    gpu: &Device,
    logits: &Tensor,
    targets: &Tensor,
    threshold: Option<f32>,
    grad_scale: f32,
    loss: &Tensor,
    dlogits: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols) = check(logits, loss, dlogits);
    expect(&[("targets", targets, DType::F32, rows * cols)]);
    let kernel = gpu.function(&SOURCE, of(TARGETS, logits.dtype()))?;
    let args = [
        ptr(logits),
        ptr(targets),
        ptr(dlogits),
        ptr(loss),
        size(cols).into(),
        u32::from(threshold.is_some()).into(),
        threshold.unwrap_or(0.0).into(),
        grad_scale.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a row.
    unsafe { kernel.launch([size(rows), 1, 1], block(cols), 0, &args) }
}

fn block(cols: usize) -> [u32; 3] {
    [if cols <= WARP_CLASSES { 32 } else { 256 }, 1, 1]
}

fn check(logits: &Tensor, loss: &Tensor, dlogits: &Tensor) -> (usize, usize) {
    let (rows, cols) = (logits.rows(), logits.cols());
    expect(&[("loss", loss, DType::F32, rows), ("dlogits", dlogits, logits.dtype(), rows * cols)]);
    (rows, cols)
}
