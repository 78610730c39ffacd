//! Launches `attention/wide.cu` and `kernel.cu`, on tensor cores, and `naive.cu`, which takes what they do not.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{Rows, Sizes};
use crate::ops::launch::{Entry, entry, expect, of, ptr, size};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = Source {
    name: "attention",
    code: concat!(include_str!("../prelude.cuh"), include_str!("tiles.cuh"), include_str!("kernel.cu")),
};

pub(crate) static WIDE: Source = Source {
    name: "attention_wide",
    code: concat!(include_str!("../prelude.cuh"), include_str!("tiles.cuh"), include_str!("wide.cu")),
};

pub(crate) static NAIVE: Source = Source {
    name: "attention_naive",
    code: concat!(include_str!("../prelude.cuh"), include_str!("naive.cu")),
};

const NAIVE_FORWARD: Entry = entry!("attention_naive_forward");
const NAIVE_GRAD_Q: Entry = entry!("attention_naive_grad_q");
const NAIVE_GRAD_KV: Entry = entry!("attention_naive_grad_kv");

const NAIVE_BLOCK: [u32; 3] = [128, 1, 1];

/// The kernels of one head dimension.
struct Kernels {
    dim: usize,
    /// `backward_short` keeps a whole head in shared memory and registers: up to this many tokens.
    short_tokens: usize,
    forward: &'static str,
    delta: &'static str,
    short: &'static str,
    keys: &'static str,
    queries: &'static str,
}

macro_rules! kernels {
    ($dim:literal, $short_tokens:literal) => {
        Kernels {
            dim: $dim,
            short_tokens: $short_tokens,
            forward: concat!("attention_forward_d", $dim),
            delta: concat!("attention_delta_d", $dim),
            short: concat!("attention_backward_short_d", $dim),
            keys: concat!("attention_backward_keys_d", $dim),
            queries: concat!("attention_backward_queries_d", $dim),
        }
    };
}

static KERNELS: &[Kernels] = &[kernels!(32, 256), kernels!(64, 224), kernels!(128, 128)];

/// What the warpgroup kernels take: their head dimension, and from where on they are faster.
const WIDE_DIM: usize = 64;
const WIDE_TOKENS_MIN: usize = 100;
const WIDE_FORWARD_TOKENS_MAX: usize = 256;
const WIDE_BACKWARD_TOKENS_MAX: usize = 224;

/// `out = softmax(scale · q kᵀ) v` and the log of each row's sum of exponentials.
pub(super) fn forward(
    gpu: &Device,
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
) -> Result<(), CudaError> {
    check(sizes, qkv, out, lse);
    let Some(kernels) = kernels_for(sizes, &[&qkv, &[whole(out)]]) else {
        return naive_forward(gpu, sizes, qkv, out, lse);
    };
    let Plan { heads, row_tiles, .. } = Plan::of(sizes);
    let strides: Vec<Arg> = qkv.iter().chain([&whole(out)]).flat_map(|view| strides(sizes, view)).collect();
    let operands = [&qkv.map(|view| at(&view))[..], &[ptr(out), ptr(lse)]].concat();
    let wide = is_wide(gpu, sizes, WIDE_FORWARD_TOKENS_MAX);
    let (entry, grid, block, shared, counts) = if wide {
        let block = 128 * sizes.tokens.div_ceil(64);
        let shared = 768 * 16 * row_tiles + 1024;
        let grid = heads.min(resident(gpu, block, shared));
        ("attention_forward_wide_d64", grid, block, shared, vec![sizes.batch, sizes.heads, sizes.tokens])
    } else {
        let warps = row_tiles.div_ceil(row_tiles.div_ceil(8));
        let grid = heads * row_tiles.div_ceil(warps);
        (kernels.forward, grid, 32 * warps, 512 * kernels.dim, vec![sizes.heads, sizes.tokens])
    };
    let kernel = gpu.function(if wide { &WIDE } else { &SOURCE }, entry)?;
    let args = [operands, sizes_args(&counts), strides, last(sizes)].concat();
    // SAFETY: the arguments are the kernel's in its order; the views were checked to lie inside their tensors, and
    // block, grid and shared memory are what its header asks for.
    unsafe { kernel.launch([size(grid), 1, 1], [size(block), 1, 1], size(shared), &args) }
}

/// The gradients of q, k and v.
pub(super) fn backward(
    gpu: &Device,
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    grads: [Rows<'_>; 3],
) -> Result<(), CudaError> {
    check(sizes, qkv, out, lse);
    check(sizes, grads, dout, lse);
    let outs = [whole(out), whole(dout)];
    let Some(kernels) = kernels_for(sizes, &[&qkv, &outs, &grads]) else {
        return naive_backward(gpu, sizes, qkv, out, lse, dout, grads);
    };
    let Plan { heads, row_tiles, short_bytes, wide_bytes } = Plan::of(sizes);
    let shared_max = gpu.properties().shared_bytes;
    let wide = is_wide(gpu, sizes, WIDE_BACKWARD_TOKENS_MAX) && wide_bytes <= shared_max;
    let short = sizes.tokens <= kernels.short_tokens && short_bytes <= shared_max;
    if !wide && !short {
        return backward_any(gpu, kernels, sizes, qkv, out, lse, dout, grads);
    }
    let (entry, block, shared, at_once) = if wide {
        ("attention_backward_wide_d64", 256, wide_bytes, gpu.properties().sm_count)
    } else {
        let block = 32 * row_tiles;
        (kernels.short, block, short_bytes, resident(gpu, block, short_bytes))
    };
    let grid = heads.min(at_once);
    let kernel = gpu.function(if wide { &WIDE } else { &SOURCE }, entry)?;
    let args = [
        [&qkv.map(|view| at(&view))[..], &[ptr(out), ptr(dout), ptr(lse)], &grads.map(|view| at(&view))]
            .concat(),
        sizes_args(&[sizes.batch, sizes.heads, sizes.tokens]),
        qkv.iter().chain(&outs).chain(&grads).flat_map(|view| strides(sizes, view)).collect(),
        last(sizes),
    ]
    .concat();
    // SAFETY: the arguments are the kernel's in its order; the views were checked to lie inside their tensors, and
    // block, grid and shared memory are what its header asks for.
    unsafe { kernel.launch([size(grid), 1, 1], [size(block), 1, 1], size(shared), &args) }
}

/// [`backward`] for any number of tokens: the rows' `dout · out`, then keys and queries by themselves.
fn backward_any(
    gpu: &Device,
    kernels: &Kernels,
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    grads: [Rows<'_>; 3],
) -> Result<(), CudaError> {
    let Sizes { batch, tokens, heads, dim, .. } = sizes;
    let delta = gpu.region(batch * heads * tokens * 4)?;
    let (out_view, dout_view) = (whole(out), whole(dout));
    let kernel = gpu.function(&SOURCE, kernels.delta)?;
    let args = [
        vec![ptr(out), ptr(dout), Arg::from(&delta)],
        sizes_args(&[batch, heads, tokens]),
        [strides(sizes, &out_view), strides(sizes, &dout_view)].concat(),
    ]
    .concat();
    let grid = (batch * tokens * heads * (dim / 8)).div_ceil(256);
    // SAFETY: the arguments are the kernel's in its order; `delta` has a number for each row of each head.
    unsafe { kernel.launch([size(grid), 1, 1], [256, 1, 1], 0, &args) }?;

    let row_tiles = tokens.div_ceil(16);
    let warps = row_tiles.div_ceil(row_tiles.div_ceil(4));
    let grid = [size(batch * heads * row_tiles.div_ceil(warps)), 1, 1];
    let block = [size(32 * warps), 1, 1];
    let operands = [&qkv.map(|view| at(&view))[..], &[ptr(dout), ptr(lse), Arg::from(&delta)]].concat();
    let inputs: Vec<Arg> = qkv.iter().chain([&dout_view]).flat_map(|view| strides(sizes, view)).collect();
    let [dq, dk, dv] = grads;
    for (entry, outputs, shared) in
        [(kernels.keys, &[dk, dv][..], 512 * dim + 1024), (kernels.queries, &[dq], 512 * dim)]
    {
        let kernel = gpu.function(&SOURCE, entry)?;
        let args = [
            operands.clone(),
            outputs.iter().map(at).collect(),
            sizes_args(&[heads, tokens]),
            inputs.clone(),
            outputs.iter().flat_map(|view| strides(sizes, view)).collect(),
            last(sizes),
        ]
        .concat();
        // SAFETY: the arguments are the kernel's in its order; the views were checked to lie inside their tensors, and
        // block, grid and shared memory are what its header asks for.
        unsafe { kernel.launch(grid, block, size(shared), &args) }?;
    }
    Ok(())
}

/// What the launches are made of.
#[derive(Debug, PartialEq)]
struct Plan {
    /// Of all samples.
    heads: usize,
    /// Tiles of 16 tokens.
    row_tiles: usize,
    /// Shared memory of `backward_short` and of `backward_wide`.
    short_bytes: usize,
    wide_bytes: usize,
}

impl Plan {
    fn of(sizes: Sizes) -> Self {
        let row_tiles = sizes.tokens.div_ceil(16);
        let rows = 16 * row_tiles;
        Self {
            heads: sizes.batch * sizes.heads,
            row_tiles,
            short_bytes: 8 * rows * sizes.dim + 2 * rows * (rows + 8) + 8 * rows,
            wide_bytes: 128 * rows * (4 + sizes.tokens.div_ceil(64)) + 8 * rows + 1024,
        }
    }
}

/// The tensor-core kernels for these operands, if they take them.
fn kernels_for(sizes: Sizes, views: &[&[Rows<'_>]]) -> Option<&'static Kernels> {
    let fits = |view: &Rows<'_>| {
        let start = view.tensor.region().ptr() + 2 * view.offset as u64;
        view.tensor.dtype() == DType::Bf16 && start.is_multiple_of(16) && view.stride.is_multiple_of(8)
    };
    let kernels = KERNELS.iter().find(|kernels| kernels.dim == sizes.dim)?;
    views.iter().copied().flatten().all(fits).then_some(kernels)
}

fn is_wide(gpu: &Device, sizes: Sizes, tokens_max: usize) -> bool {
    gpu.properties().is_hopper()
        && sizes.dim == WIDE_DIM
        && (WIDE_TOKENS_MIN..=tokens_max).contains(&sizes.tokens)
}

/// About as many blocks as the device holds at once: the kernels walk over heads, and their result is the same for any
/// number. Each block is taken to leave room for no more than its registers' half, and 1 KiB of shared memory is the
/// driver's.
fn resident(gpu: &Device, block: usize, shared_bytes: usize) -> usize {
    const REGISTERS: usize = 65_536;
    const REGISTERS_A_THREAD: usize = 128;
    let properties = gpu.properties();
    let by_memory = (properties.shared_bytes + 1024) / (shared_bytes + 1024);
    let by_registers = REGISTERS / (REGISTERS_A_THREAD * block);
    properties.sm_count * by_memory.min(by_registers).max(1)
}

fn whole(tensor: &Tensor) -> Rows<'_> {
    Rows { tensor, offset: 0, stride: tensor.cols() }
}

fn at(rows: &Rows<'_>) -> Arg {
    let region = rows.tensor.region();
    Arg::Ptr(region.ptr() + (rows.offset * rows.tensor.dtype().bytes()) as u64)
}

/// Elements from a token to the next, and from a sample to the next.
fn strides(sizes: Sizes, rows: &Rows<'_>) -> [Arg; 2] {
    [rows.stride, sizes.tokens * rows.stride].map(|n| Arg::U64(n as u64))
}

fn sizes_args(sizes: &[usize]) -> Vec<Arg> {
    sizes.iter().map(|&n| Arg::U32(size(n))).collect()
}

/// Scale, and no causal mask.
fn last(sizes: Sizes) -> Vec<Arg> {
    vec![sizes.scale.into(), Arg::I32(0)]
}

// ---- any head dimension, any type ------------------------------------------------------------------------------

fn naive_forward(
    gpu: &Device,
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
) -> Result<(), CudaError> {
    let kernel = gpu.function(&NAIVE, of(NAIVE_FORWARD, out.dtype()))?;
    let [q, k, v] = qkv.map(|rows| at(&rows));
    let args = [q, k, v, naive_stride(&qkv[0]), ptr(out), Arg::U32(size(out.cols())), ptr(lse)];
    let args = [&args[..], &naive_last(sizes)].concat();
    let shared = size((sizes.tokens + sizes.dim + 32) * 4);
    // SAFETY: the arguments are the kernel's in its order; the views were checked to lie inside their tensors.
    unsafe { kernel.launch(naive_grid(sizes), NAIVE_BLOCK, shared, &args) }
}

fn naive_backward(
    gpu: &Device,
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    grads: [Rows<'_>; 3],
) -> Result<(), CudaError> {
    let [q, k, v] = qkv.map(|rows| at(&rows));
    let [dq, dk, dv] = grads.map(|rows| at(&rows));
    let width = Arg::U32(size(out.cols()));
    let common = [q, k, v, naive_stride(&qkv[0]), ptr(out), ptr(dout), width, ptr(lse)];
    let shared = size(sizes.tokens * 8);
    let kernel = gpu.function(&NAIVE, of(NAIVE_GRAD_Q, out.dtype()))?;
    let args = [&common[..], &[dq, naive_stride(&grads[0])], &naive_last(sizes)].concat();
    // SAFETY: the arguments are the kernel's in its order; the views were checked to lie inside their tensors.
    unsafe { kernel.launch(naive_grid(sizes), NAIVE_BLOCK, shared, &args) }?;
    let kernel = gpu.function(&NAIVE, of(NAIVE_GRAD_KV, out.dtype()))?;
    let args = [&common[..], &[dk, dv, naive_stride(&grads[1])], &naive_last(sizes)].concat();
    // SAFETY: as above.
    unsafe { kernel.launch(naive_grid(sizes), NAIVE_BLOCK, shared, &args) }
}

fn naive_grid(sizes: Sizes) -> [u32; 3] {
    [size(sizes.tokens), size(sizes.heads), size(sizes.batch)]
}

fn naive_stride(rows: &Rows<'_>) -> Arg {
    Arg::U32(size(rows.stride))
}

fn naive_last(sizes: Sizes) -> [Arg; 4] {
    let Sizes { tokens, heads, dim, .. } = sizes;
    [Arg::U32(size(tokens)), Arg::U32(size(heads)), Arg::U32(size(dim)), Arg::F32(sizes.scale)]
}

/// Checks what the launches' safety rests on.
fn check(sizes: Sizes, views: [Rows<'_>; 3], out: &Tensor, lse: &Tensor) {
    let (rows, width) = (sizes.batch * sizes.tokens, sizes.heads * sizes.dim);
    expect(&[("out", out, out.dtype(), rows * width), ("lse", lse, DType::F32, sizes.heads * rows)]);
    for view in views {
        assert_eq!((view.tensor.dtype(), view.stride), (out.dtype(), views[0].stride), "views of one kind");
        let end = rows.checked_sub(1).map_or(0, |last| view.offset + last * view.stride + width);
        assert!(end <= view.tensor.len(), "a view inside its tensor");
    }
}

#[cfg(test)]
mod tests {
    use super::{Plan, Sizes};

    #[test]
    fn a_head_of_a_vision_transformer_fits_shared_memory() {
        let plan = Plan::of(Sizes { batch: 256, tokens: 197, heads: 12, dim: 64, scale: 0.125 });
        let expected = Plan {
            heads: 3072,
            row_tiles: 13,
            short_bytes: 8 * 208 * 64 + 2 * 208 * 216 + 8 * 208,
            wide_bytes: 215_680,
        };
        assert_eq!(plan, expected);
        const HOPPER_BYTES: usize = 227 << 10;
        for tokens in 1..=224 {
            let plan = Plan::of(Sizes { batch: 1, tokens, heads: 1, dim: 64, scale: 0.125 });
            assert!(plan.short_bytes.max(plan.wide_bytes) <= HOPPER_BYTES, "{tokens}: {plan:?}");
        }
    }
}
