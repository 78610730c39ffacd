//! Launches `score_step/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{BETA1, BETA2, Constants, EPS};
use crate::ops::launch::{blocks, expect, ptr, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("score_step");

/// One step of Adam; `movement` is zero afterwards.
///
/// Shapes: as [`super::score_step`].
pub(super) fn step(
    gpu: &Device,
    scores: &Tensor,
    movement: &Tensor,
    [first, second]: [&Tensor; 2],
    constants: Constants,
) -> Result<(), CudaError> {
    let n = scores.len();
    expect(&[
        ("scores", scores, DType::F32, n),
        ("movement", movement, DType::F32, n),
        ("first moment", first, DType::F32, n),
        ("second moment", second, DType::F32, n),
    ]);
    if n == 0 {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, "score_step")?;
    let args = [
        ptr(scores),
        ptr(movement),
        ptr(first),
        ptr(second),
        Arg::U64(n as u64),
        Arg::F32((1.0 - BETA1) as f32),
        Arg::F32(BETA2 as f32),
        Arg::F32((1.0 - BETA2) as f32),
        Arg::F32(constants.rate),
        Arg::F32(constants.root),
        Arg::F32(EPS),
        Arg::F32(constants.penalty),
        Arg::F32(constants.shift),
    ];
    // SAFETY: the arguments are the kernel's in its order, each array of `n` elements.
    unsafe { kernel.launch([blocks(n, 256), 1, 1], [256, 1, 1], 0, &args) }
}
