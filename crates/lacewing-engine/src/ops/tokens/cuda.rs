//! Launches `tokens/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{
    CHUNK, Entry, blocks, blocks_yz, entry, expect, expect_some, of, ptr, ptr_or_null, size, source,
};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("tokens");

const EMBED: Entry = entry!("tokens_embed");
const EMBED_BACKWARD: Entry = entry!("tokens_embed_backward");
const MEAN_POOL: Entry = entry!("tokens_mean_pool");
const SELECT: Entry = entry!("tokens_select");
const SPREAD: Entry = entry!("tokens_spread");

/// Blocks that the sums over the batch are spread over. The same on every device, so that the sums are.
const SUM_BLOCKS: usize = 1056;
/// Sequences a thread of `embed_backward` has in flight.
const DEEP: usize = 8;
/// The kernel's `ALL_TOKENS`.
const ALL_TOKENS: u32 = u32::MAX;

/// `y = [cls; x] + pos`.
///
/// Shapes: `x [batch, n, dim]`, `cls [dim]` f32, `pos [n', dim]` f32, `y [batch, n', dim]`, `n' = n + 1` with a `cls`.
pub(super) fn embed(
    gpu: &Device,
    x: &Tensor,
    cls: Option<&Tensor>,
    pos: &Tensor,
    y: &Tensor,
    batch: usize,
    n: usize,
    dim: usize,
) -> Result<(), CudaError> {
    let (dtype, n_out) = (x.dtype(), n + usize::from(cls.is_some()));
    expect(&[("x", x, dtype, batch * n * dim), ("y", y, dtype, batch * n_out * dim)]);
    expect(&[("pos", pos, DType::F32, n_out * dim)]);
    expect_some("cls", cls, DType::F32, dim);
    let kernel = gpu.function(&SOURCE, of(EMBED, dtype))?;
    let sizes = [batch, n, dim].map(|n| size(n).into());
    let args = [&[ptr(x), ptr_or_null(cls), ptr(pos), ptr(y)][..], &sizes].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([chunk_blocks(batch * n_out, dim), 1, 1], [256, 1, 1], 0, &args) }
}

/// The gradients of [`embed`]: `dx`, and `dcls`, `dpos +=` the sums over the batch.
///
/// Shapes: as [`embed`]; `dcls`, `dpos` f32.
pub(super) fn embed_backward(
    gpu: &Device,
    dy: &Tensor,
    dx: &Tensor,
    dcls: Option<&Tensor>,
    dpos: Option<&Tensor>,
    batch: usize,
    n: usize,
    dim: usize,
    has_cls: bool,
) -> Result<(), CudaError> {
    let (dtype, n_out) = (dy.dtype(), n + usize::from(has_cls));
    expect(&[("dy", dy, dtype, batch * n_out * dim), ("dx", dx, dtype, batch * n * dim)]);
    expect_some("dcls", dcls, DType::F32, dim);
    expect_some("dpos", dpos, DType::F32, n_out * dim);
    let across = blocks(n_out * dim.div_ceil(CHUNK), 128);
    let parts = (SUM_BLOCKS / across.max(1) as usize).clamp(1, batch.div_ceil(DEEP).max(1));
    let partial = gpu.region(parts * n_out * dim * 4)?;
    let kernel = gpu.function(&SOURCE, of(EMBED_BACKWARD, dtype))?;
    let sizes = [batch, n, n_out - n, dim].map(|n| size(n).into());
    let args = [&[ptr(dy), ptr(dx), Arg::from(&partial)][..], &sizes].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has a slice for
    // each block in y.
    unsafe { kernel.launch([across, size(parts), 1], [128, 1, 1], 0, &args) }?;
    if dcls.is_none() && dpos.is_none() {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, "tokens_embed_finish")?;
    let sizes = [parts, n_out, dim].map(|n| size(n).into());
    let args = [&[Arg::from(&partial), ptr_or_null(dcls), ptr_or_null(dpos)][..], &sizes].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it skips a null sum.
    unsafe { kernel.launch([blocks(n_out * dim, 256), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y[b] = (1/n) Σ x[b, :]`.
///
/// Shapes: `x [batch, n, dim]`, `y [batch, dim]`.
pub(super) fn mean_pool(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    batch: usize,
    n: usize,
    dim: usize,
) -> Result<(), CudaError> {
    let dtype = x.dtype();
    expect(&[("x", x, dtype, batch * n * dim), ("y", y, dtype, batch * dim)]);
    let kernel = gpu.function(&SOURCE, of(MEAN_POOL, dtype))?;
    let args = [ptr(x), ptr(y), size(batch).into(), size(n).into(), size(dim).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([blocks(dim, 32 * CHUNK), blocks_yz(batch, 1), 1], [32, 8, 1], 0, &args) }
}

/// `dx[b, i] = dy[b] / n`.
///
/// Shapes: `dy [batch, dim]`, `dx [batch, n, dim]`.
pub(super) fn mean_pool_backward(
    gpu: &Device,
    dy: &Tensor,
    dx: &Tensor,
    batch: usize,
    n: usize,
    dim: usize,
) -> Result<(), CudaError> {
    spread(gpu, dy, dx, [batch, n, dim], ALL_TOKENS, 1.0 / n as f32)
}

/// `y[b] = x[b, token]`.
///
/// Shapes: `x [batch, n, dim]`, `y [batch, dim]`.
pub(super) fn select(
    gpu: &Device,
    x: &Tensor,
    y: &Tensor,
    batch: usize,
    n: usize,
    dim: usize,
    token: usize,
) -> Result<(), CudaError> {
    let dtype = x.dtype();
    assert!(token < n, "token {token} of {n}");
    expect(&[("x", x, dtype, batch * n * dim), ("y", y, dtype, batch * dim)]);
    let kernel = gpu.function(&SOURCE, of(SELECT, dtype))?;
    let sizes = [batch, n, dim, token].map(|n| size(n).into());
    let args = [&[ptr(x), ptr(y)][..], &sizes].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths and the token were checked above.
    unsafe { kernel.launch([chunk_blocks(batch, dim), 1, 1], [256, 1, 1], 0, &args) }
}

/// `dx[b, token] = dy[b]`, zeros elsewhere.
///
/// Shapes: `dy [batch, dim]`, `dx [batch, n, dim]`.
pub(super) fn select_backward(
    gpu: &Device,
    dy: &Tensor,
    dx: &Tensor,
    batch: usize,
    n: usize,
    dim: usize,
    token: usize,
) -> Result<(), CudaError> {
    spread(gpu, dy, dx, [batch, n, dim], size(token), 1.0)
}

fn spread(
    gpu: &Device,
    dy: &Tensor,
    dx: &Tensor,
    [batch, n, dim]: [usize; 3],
    token: u32,
    weight: f32,
) -> Result<(), CudaError> {
    let dtype = dy.dtype();
    expect(&[("dy", dy, dtype, batch * dim), ("dx", dx, dtype, batch * n * dim)]);
    let kernel = gpu.function(&SOURCE, of(SPREAD, dtype))?;
    let sizes = [batch, n, dim].map(|n| size(n).into());
    let args = [&[ptr(dy), ptr(dx)][..], &sizes, &[token.into(), weight.into()]].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([chunk_blocks(batch * n, dim), 1, 1], [256, 1, 1], 0, &args) }
}

/// Blocks of 256 for kernels with a thread for each chunk of a row.
fn chunk_blocks(rows: usize, cols: usize) -> u32 {
    blocks(rows * cols.div_ceil(CHUNK), 256)
}
