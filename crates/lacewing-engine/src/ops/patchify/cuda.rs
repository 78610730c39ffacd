//! Launches `patchify/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{CHUNK, Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("patchify");

const PATCHIFY: Entry = entry!("patchify");

/// Images as rows of patches.
///
/// Shapes: `images [batch, channels, height, width]` f32, `y [batch, (height/patch)·(width/patch), channels·patch²]`;
/// `patch` divides both sizes.
pub(super) fn patchify(
    gpu: &Device,
    images: &Tensor,
    y: &Tensor,
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch: usize,
) -> Result<(), CudaError> {
    let n = batch * channels * height * width;
    assert!(
        height.is_multiple_of(patch) && width.is_multiple_of(patch),
        "patches of {patch} in {height} x {width}"
    );
    expect(&[("images", images, DType::F32, n), ("y", y, y.dtype(), n)]);
    let kernel = gpu.function(&SOURCE, of(PATCHIFY, y.dtype()))?;
    let sizes = [batch, channels, height, width, patch].map(|n| size(n).into());
    let args = [&[ptr(images), ptr(y)][..], &sizes].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; the patches partition the
    // images, so every address it makes is inside.
    unsafe { kernel.launch([blocks(n, 256 * CHUNK), 1, 1], [256, 1, 1], 0, &args) }
}
