//! Launches `softmax_cross_entropy/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("softmax_cross_entropy");

const LABELS: Entry = entry!("softmax_cross_entropy_labels");
const TARGETS: Entry = entry!("softmax_cross_entropy_targets");
const RANKS: Entry = entry!("ranks");

/// Up to this many classes one warp holds a row in registers.
const WARP_CLASSES: usize = 256;

/// Loss and gradient for one class a row.
///
/// Shapes: `logits`, `dlogits [rows, classes]`; `labels [rows]` u32; `loss [rows]` f32.
pub(super) fn forward_labels(
    gpu: &Device,
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f32,
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
        smoothing.into(),
        grad_scale.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a row,
    // and a label is compared, never used as an address.
    unsafe { kernel.launch([size(rows), 1, 1], block(cols), 0, &args) }
}

/// Loss and gradient for a distribution a row.
///
/// Shapes: `logits`, `dlogits [rows, classes]`; `targets [rows, classes]` f32; `loss [rows]` f32.
pub(super) fn forward_soft(
    gpu: &Device,
    logits: &Tensor,
    targets: &Tensor,
    grad_scale: f32,
    loss: &Tensor,
    dlogits: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols) = check(logits, loss, dlogits);
    expect(&[("targets", targets, DType::F32, rows * cols)]);
    let kernel = gpu.function(&SOURCE, of(TARGETS, logits.dtype()))?;
    let args = [ptr(logits), ptr(targets), ptr(dlogits), ptr(loss), size(cols).into(), grad_scale.into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a row.
    unsafe { kernel.launch([size(rows), 1, 1], block(cols), 0, &args) }
}

/// How many classes beat each row's label.
///
/// Shapes: `logits [rows, classes]`; `labels`, `ranks [rows]` u32.
pub(super) fn ranks(gpu: &Device, logits: &Tensor, labels: &Tensor, ranks: &Tensor) -> Result<(), CudaError> {
    let (rows, cols) = (logits.rows(), logits.cols());
    expect(&[("labels", labels, DType::U32, rows), ("ranks", ranks, DType::U32, rows)]);
    let kernel = gpu.function(&SOURCE, of(RANKS, logits.dtype()))?;
    let args = [ptr(logits), ptr(labels), ptr(ranks), size(rows).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; a label that is no class
    // is answered before it is used as an address.
    unsafe { kernel.launch([blocks(rows, 4), 1, 1], [128, 1, 1], 0, &args) }
}

fn block(cols: usize) -> [u32; 3] {
    [if cols <= WARP_CLASSES { 32 } else { 256 }, 1, 1]
}

fn check(logits: &Tensor, loss: &Tensor, dlogits: &Tensor) -> (usize, usize) {
    let (rows, cols) = (logits.rows(), logits.cols());
    expect(&[("loss", loss, DType::F32, rows), ("dlogits", dlogits, logits.dtype(), rows * cols)]);
    (rows, cols)
}
