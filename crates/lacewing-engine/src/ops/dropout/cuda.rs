//! Launches `dropout/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::Tensor;
use crate::ops::launch::{CHUNK, Entry, blocks, entry, expect, of, ptr, source};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("dropout");

const DROPOUT: Entry = entry!("dropout");

/// `y = keep(i) ? x / (1 − p) : 0`, by the stream keyed `seed` from block `offset` on; `y` may be `x`.
pub(super) fn apply(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    seed: u64,
    offset: u64,
    p: f32,
) -> Result<(), CudaError> {
    let (dtype, n) = (y.dtype(), y.len());
    expect(&[("x", x, dtype, n)]);
    let kernel = gpu.function(&SOURCE, of(DROPOUT, dtype))?;
    let args = [ptr(x), ptr(y), Arg::U64(n as u64), Arg::U64(seed), Arg::U64(offset), p.into()];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, 256 * CHUNK), 1, 1], [256, 1, 1], 0, &args) }
}
