//! Launches `distillation/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Blend;
use crate::ops::launch::{Entry, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("distillation");

const DISTILLATION: Entry = entry!("distillation");

/// Up to this many classes a row is a warp's.
const WARP_CLASSES: usize = 256;

/// Blends loss and gradient with the distance from a teacher.
///
/// Shapes: as [`super::distillation`].
pub(super) fn blend(
    gpu: &Device,
    logits: &Tensor,
    teacher: &Tensor,
    loss: &Tensor,
    dlogits: &Tensor,
    blend: Blend,
) -> Result<(), CudaError> {
    let (rows, cols) = (logits.rows(), logits.cols());
    expect(&[
        ("teacher", teacher, logits.dtype(), rows * cols),
        ("dlogits", dlogits, logits.dtype(), rows * cols),
        ("loss", loss, DType::F32, rows),
    ]);
    if rows == 0 {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(DISTILLATION, logits.dtype()))?;
    let args = [
        ptr(logits),
        ptr(teacher),
        ptr(dlogits),
        ptr(loss),
        size(cols).into(),
        blend.inverse.into(),
        blend.hard.into(),
        blend.soft_loss.into(),
        blend.soft_gradient.into(),
    ];
    let threads = if cols <= WARP_CLASSES { 32 } else { 256 };
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a row.
    unsafe { kernel.launch([size(rows), 1, 1], [threads, 1, 1], 0, &args) }
}
