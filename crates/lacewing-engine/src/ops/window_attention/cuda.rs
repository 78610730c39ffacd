//! Launches `window_attention/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{Rows, Sizes};
use crate::ops::launch::{Entry, blocks, entry, expect, expect_some, of, ptr, ptr_or_null, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("window_attention");

const HEADS: Entry = entry!("window_attention_heads");
const TOKENS: Entry = entry!("window_attention_tokens");
const SOFTMAX: Entry = entry!("window_attention_softmax");
const SOFTMAX_BACKWARD: Entry = entry!("window_attention_softmax_backward");
const UNIT_GRADIENT: Entry = entry!("window_attention_unit_gradient");

const BLOCK: [u32; 3] = [256, 1, 1];

/// Heads of a map; with `inverse` of length 1, and with `log_scale` times its exponential.
///
/// Shapes: `token_of [tokens]` u32, `log_scale [heads]`, `inverse [groups, places]` f32, `heads [groups, places, dim]`.
pub(super) fn heads(
    gpu: &Device,
    rows: Rows<'_>,
    token_of: &Tensor,
    log_scale: Option<&Tensor>,
    inverse: Option<&Tensor>,
    heads: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    check(rows, heads, sizes);
    expect(&[("token_of", token_of, DType::U32, sizes.tokens())]);
    expect_some("log_scale", log_scale, DType::F32, sizes.heads);
    expect_some("inverse", inverse, DType::F32, sizes.groups() * sizes.places);
    let kernel = gpu.function(&SOURCE, of(HEADS, heads.dtype()))?;
    let operands = [ptr(token_of), ptr_or_null(log_scale), ptr_or_null(inverse), ptr(heads)];
    let args = [&[at(&rows), stride(&rows)][..], &operands, &shape(sizes)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above and the view to lie inside
    // its tensor; an index holds each token of a map once. It returns beyond the last row.
    unsafe { kernel.launch(grid(sizes), BLOCK, 0, &args) }
}

/// The rows of a map from its heads `[groups, places, dim]`; `place_of [tokens]` u32.
pub(super) fn tokens(
    gpu: &Device,
    heads: &Tensor,
    place_of: &Tensor,
    rows: Rows<'_>,
    sizes: Sizes,
) -> Result<(), CudaError> {
    check(rows, heads, sizes);
    expect(&[("place_of", place_of, DType::U32, sizes.tokens())]);
    let kernel = gpu.function(&SOURCE, of(TOKENS, heads.dtype()))?;
    let args = [&[ptr(heads), ptr(place_of), at(&rows), stride(&rows)][..], &shape(sizes)].concat();
    // SAFETY: as in `heads`, an index holds each place of a map once.
    unsafe { kernel.launch(grid(sizes), BLOCK, 0, &args) }
}

/// `p = softmax(scores + bias)`, scores of different regions lowered.
///
/// Shapes: `scores [groups, places, places]` f32, `p` alike; `bias [heads, places, places]` f32, `regions [tokens]` u32.
pub(super) fn softmax(
    gpu: &Device,
    scores: &Tensor,
    bias: &Tensor,
    regions: Option<&Tensor>,
    p: &Tensor,
    sizes: Sizes,
) -> Result<(), CudaError> {
    let square = sizes.places * sizes.places;
    let len = sizes.groups() * square;
    expect(&[("scores", scores, DType::F32, len), ("p", p, p.dtype(), len)]);
    expect(&[("bias", bias, DType::F32, sizes.heads * square)]);
    expect_some("regions", regions, DType::U32, sizes.tokens());
    let kernel = gpu.function(&SOURCE, of(SOFTMAX, p.dtype()))?;
    let args = [&[ptr(scores), ptr(bias), ptr_or_null(regions), ptr(p)][..], &shape(sizes)].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it returns beyond the last
    // row.
    unsafe { kernel.launch(grid(sizes), BLOCK, 0, &args) }
}

/// `ds = p (dp − Σ p dp)` over the last dimension; `dp` f32, `p` and `ds` of one type.
pub(super) fn softmax_backward(gpu: &Device, p: &Tensor, dp: &Tensor, ds: &Tensor) -> Result<(), CudaError> {
    let (rows, cols) = (p.rows(), p.cols());
    expect(&[("dp", dp, DType::F32, rows * cols), ("ds", ds, p.dtype(), rows * cols)]);
    let kernel = gpu.function(&SOURCE, of(SOFTMAX_BACKWARD, p.dtype()))?;
    let args = [ptr(p), ptr(dp), ptr(ds), size(rows).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order, each of `rows · cols` elements; it returns beyond the last
    // row.
    unsafe { kernel.launch([blocks(rows, 8), 1, 1], BLOCK, 0, &args) }
}

/// [`super::Problem::unit_gradient`].
///
/// Shapes: `g [groups, places, dim]` f32, the unit rows alike, their inverse lengths `[groups, places]` f32; of the scale its
/// logarithm `[heads]` and the terms of its gradient `[batch · tokens, heads]`, f32; `place_of [tokens]` u32.
pub(super) fn unit_gradient(
    gpu: &Device,
    g: &Tensor,
    (unit, inverse): (&Tensor, &Tensor),
    scale: Option<(&Tensor, &Tensor)>,
    place_of: &Tensor,
    rows: Rows<'_>,
    sizes: Sizes,
) -> Result<(), CudaError> {
    let n_rows = sizes.groups() * sizes.places;
    check(rows, unit, sizes);
    expect(&[("g", g, DType::F32, n_rows * sizes.dim), ("inverse", inverse, DType::F32, n_rows)]);
    expect(&[("place_of", place_of, DType::U32, sizes.tokens())]);
    let (log_scale, along) = (scale.map(|(log_scale, _)| log_scale), scale.map(|(_, along)| along));
    expect_some("log_scale", log_scale, DType::F32, sizes.heads);
    expect_some("along", along, DType::F32, n_rows);
    let kernel = gpu.function(&SOURCE, of(UNIT_GRADIENT, unit.dtype()))?;
    let operands = [ptr(g), ptr(unit), ptr(inverse), ptr_or_null(log_scale), ptr_or_null(along)];
    let args = [&operands[..], &[ptr(place_of), at(&rows), stride(&rows)], &shape(sizes)].concat();
    // SAFETY: as in `tokens`.
    unsafe { kernel.launch(grid(sizes), BLOCK, 0, &args) }
}

/// Rows of heads, then the sizes, as every kernel takes them.
fn shape(sizes: Sizes) -> [Arg; 5] {
    let Sizes { windows, places, heads, dim, .. } = sizes;
    [sizes.groups() * places, windows, places, heads, dim].map(|n| size(n).into())
}

/// A warp a row of heads.
fn grid(sizes: Sizes) -> [u32; 3] {
    [blocks(sizes.groups() * sizes.places, 8), 1, 1]
}

fn at(rows: &Rows<'_>) -> Arg {
    let bytes = rows.tensor.dtype().bytes();
    let len = rows.tensor.len() - rows.offset;
    Arg::from(&rows.tensor.region().slice(rows.offset * bytes, len * bytes))
}

fn stride(rows: &Rows<'_>) -> Arg {
    Arg::U64(rows.stride as u64)
}

/// Checks what the launches' safety rests on: `heads [groups, places, dim]` and rows of its type inside their tensor.
fn check(rows: Rows<'_>, heads: &Tensor, sizes: Sizes) {
    let n_rows = sizes.batch * sizes.tokens();
    expect(&[("heads", heads, heads.dtype(), n_rows * sizes.width())]);
    assert_eq!(rows.tensor.dtype(), heads.dtype(), "rows and heads of one type");
    let end = n_rows.checked_sub(1).map_or(0, |last| rows.offset + last * rows.stride + sizes.width());
    assert!(end <= rows.tensor.len(), "a view inside its tensor");
}
