//! Launches `max_pool/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{
    CHUNK, Entry, blocks, entry, expect, expect_some, of, ptr, ptr_or_null, size, source,
};
use crate::ops::unfold::Sizes;
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("max_pool");

const FORWARD: Entry = entry!("max_pool_forward");
const BACKWARD: Entry = entry!("max_pool_backward");

/// The largest value of each window and, where asked for, the tap it came from.
///
/// Shapes: `x [batch, height, width, channels]`, `y`, `taps [batch, down, across, channels]`.
pub(super) fn forward(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    taps: Option<&Tensor>,
    sizes: Sizes,
) -> Result<(), CudaError> {
    expect_some("taps", taps, DType::U32, y.len());
    launch(gpu, FORWARD, [ptr(x), ptr(y), ptr_or_null(taps)], (x, y), y, sizes)
}

/// Each pixel adds up the gradients of the windows that took its value.
pub(super) fn backward(
    gpu: &Device,
    dy: &Tensor,
    taps: &Tensor,
    dx: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    expect(&[("taps", taps, DType::U32, dy.len())]);
    launch(gpu, BACKWARD, [ptr(dy), ptr(taps), ptr(dx)], (dx, dy), dx, sizes)
}

fn launch(
    gpu: &Device,
    entry: Entry,
    operands: [Arg; 3],
    (image, pooled): (&Tensor, &Tensor),
    written: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    let Sizes { batch, height, width, channels, places: (down, across), window } = sizes;
    let dtype = written.dtype();
    expect(&[("image", image, dtype, batch * height * width * channels)]);
    expect(&[("pooled", pooled, dtype, batch * down * across * channels)]);
    if written.is_empty() {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(entry, dtype))?;
    let (kh, kw) = window.kernel;
    let numbers = [batch, height, width, channels, down, across, kh, kw, window.stride, window.padding];
    let args = [&operands[..], &numbers.map(|n| size(n).into())].concat();
    let work = written.len() / channels * channels.div_ceil(CHUNK);
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it reads inside the image
    // and the windows only, and a thread writes a chunk of its own.
    unsafe { kernel.launch([blocks(work, 256), 1, 1], [256, 1, 1], 0, &args) }
}
