//! Launches `unfold/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Sizes;
use crate::Tensor;
use crate::ops::launch::{CHUNK, Entry, blocks, entry, expect, of, ptr, size, source};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("unfold");

const UNFOLD: Entry = entry!("unfold");
const FOLD: Entry = entry!("fold");

/// Each window as a row; zeros outside the image.
///
/// Shapes: `x [batch, height, width, channels]`, `y [batch · down · across, kh · kw · channels]`, one type.
pub(super) fn unfold(gpu: &Device, x: &Tensor, y: &Tensor, sizes: Sizes) -> Result<(), CudaError> {
    launch(gpu, UNFOLD, [x, y], y, (x, y), sizes)
}

/// The transpose of [`unfold`], into `dx`.
pub(super) fn fold(gpu: &Device, dy: &Tensor, dx: &Tensor, sizes: Sizes) -> Result<(), CudaError> {
    launch(gpu, FOLD, [dy, dx], dx, (dx, dy), sizes)
}

fn launch(
    gpu: &Device,
    entry: Entry,
    operands: [&Tensor; 2],
    written: &Tensor,
    (image, rows): (&Tensor, &Tensor),
    sizes: Sizes,
) -> Result<(), CudaError> {
    let Sizes { batch, height, width, channels, places: (down, across), window } = sizes;
    let dtype = written.dtype();
    expect(&[("image", image, dtype, batch * height * width * channels)]);
    expect(&[("rows", rows, dtype, batch * down * across * sizes.values())]);
    if written.is_empty() {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(entry, dtype))?;
    let (kh, kw) = window.kernel;
    let numbers = [batch, height, width, channels, down, across, kh, kw, window.stride, window.padding];
    let args = [&operands.map(ptr)[..], &numbers.map(|n| size(n).into())].concat();
    let work = written.len() / channels * channels.div_ceil(CHUNK);
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it reads inside the image
    // and the windows only, and a thread writes a chunk of its own.
    unsafe { kernel.launch([blocks(work, 256), 1, 1], [256, 1, 1], 0, &args) }
}
