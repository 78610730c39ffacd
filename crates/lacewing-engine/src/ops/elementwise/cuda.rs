//! Launches `elementwise/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{CHUNK, Entry, MAP_BLOCK, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("elementwise");

const ADD: Entry = entry!("add");
const SCALE: Entry = entry!("scale");
const SIGMOID: Entry = entry!("sigmoid");
const SIGMOID_BACKWARD: Entry = entry!("sigmoid_backward");
const SCALE_ROWS: Entry = entry!("scale_rows");
const GATED_SUM: Entry = entry!("gated_sum");
const GATED_SUM_BACKWARD: Entry = entry!("gated_sum_backward");
/// By the type it writes.
const CAST: Entry = entry!("cast");

/// `y = a + b`; `y` may be an operand.
pub(super) fn add(gpu: &Device, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<(), CudaError> {
    let (dtype, n) = (y.dtype(), y.len());
    expect(&[("a", a, dtype, n), ("b", b, dtype, n)]);
    let kernel = gpu.function(&SOURCE, of(ADD, dtype))?;
    let args = [ptr(a), ptr(b), ptr(y), Arg::U64(n as u64)];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y += a`; `a` may be bf16 where `y` is f32.
pub(super) fn add_assign(gpu: &Device, y: &Tensor, a: &Tensor) -> Result<(), CudaError> {
    if y.dtype() == a.dtype() {
        return add(gpu, y, a, y);
    }
    let n = y.len();
    expect(&[("y", y, DType::F32, n), ("a", a, DType::Bf16, n)]);
    let kernel = gpu.function(&SOURCE, "accumulate_bf16")?;
    let args = [ptr(a), ptr(y), Arg::U64(n as u64)];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y = s x`; `y` may be `x`.
pub(super) fn scale(gpu: &Device, x: &Tensor, s: f32, y: &Tensor) -> Result<(), CudaError> {
    let (dtype, n) = (y.dtype(), y.len());
    expect(&[("x", x, dtype, n)]);
    let kernel = gpu.function(&SOURCE, of(SCALE, dtype))?;
    let args = [ptr(x), ptr(y), Arg::U64(n as u64), s.into()];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y = s σ(x)`; `y` may be `x`.
pub(super) fn sigmoid(gpu: &Device, x: &Tensor, s: f32, y: &Tensor) -> Result<(), CudaError> {
    let (dtype, n) = (y.dtype(), y.len());
    expect(&[("x", x, dtype, n)]);
    let kernel = gpu.function(&SOURCE, of(SIGMOID, dtype))?;
    let args = [ptr(x), ptr(y), Arg::U64(n as u64), s.into()];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `dx = dy · y (1 − y / s)`; `dx` may be an operand.
pub(super) fn sigmoid_backward(
    gpu: &Device,
    dy: &Tensor,
    y: &Tensor,
    s: f32,
    dx: &Tensor,
) -> Result<(), CudaError> {
    let (dtype, n) = (dx.dtype(), dx.len());
    expect(&[("dy", dy, dtype, n), ("y", y, dtype, n)]);
    let kernel = gpu.function(&SOURCE, of(SIGMOID_BACKWARD, dtype))?;
    let args = [ptr(dy), ptr(y), ptr(dx), Arg::U64(n as u64), (1.0 / s).into()];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y[r, :] = s[r / rows_per_scale] x[r, :]`; `y` may be `x`.
///
/// Shapes: `x`, `y [rows, cols]`; `s [rows / rows_per_scale]` f32.
pub(super) fn scale_rows(
    gpu: &Device,
    x: &Tensor,
    s: &Tensor,
    rows_per_scale: usize,
    y: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (x.rows(), x.cols(), x.dtype());
    let per_scale = rows_per_scale.max(1);
    expect(&[("y", y, dtype, rows * cols), ("s", s, DType::F32, rows.div_ceil(per_scale))]);
    let kernel = gpu.function(&SOURCE, of(SCALE_ROWS, dtype))?;
    let args = [ptr(x), ptr(s), ptr(y), size(rows).into(), size(cols).into(), size(per_scale).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([row_blocks(rows, cols), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y = (1 − σ(g)) a + σ(g) b`.
///
/// Shapes: `a`, `b`, `y [rows, cols]`; `gate [rows]`; one type.
pub(super) fn gated_sum_forward(
    gpu: &Device,
    a: &Tensor,
    b: &Tensor,
    gate: &Tensor,
    y: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (a.rows(), a.cols(), a.dtype());
    expect(&[("b", b, dtype, rows * cols), ("gate", gate, dtype, rows), ("y", y, dtype, rows * cols)]);
    let kernel = gpu.function(&SOURCE, of(GATED_SUM, dtype))?;
    let args = [ptr(a), ptr(b), ptr(gate), ptr(y), size(rows).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([row_blocks(rows, cols), 1, 1], [256, 1, 1], 0, &args) }
}

/// The gradients of [`gated_sum_forward`]; `da` or `db` may be `dy`.
pub(super) fn gated_sum_backward(
    gpu: &Device,
    dy: &Tensor,
    a: &Tensor,
    b: &Tensor,
    gate: &Tensor,
    da: &Tensor,
    db: &Tensor,
    dgate: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (a.rows(), a.cols(), a.dtype());
    let len = rows * cols;
    expect(&[("dy", dy, dtype, len), ("b", b, dtype, len), ("da", da, dtype, len), ("db", db, dtype, len)]);
    expect(&[("gate", gate, dtype, rows), ("dgate", dgate, dtype, rows)]);
    let kernel = gpu.function(&SOURCE, of(GATED_SUM_BACKWARD, dtype))?;
    let args = [
        ptr(dy),
        ptr(a),
        ptr(b),
        ptr(gate),
        ptr(da),
        ptr(db),
        ptr(dgate),
        size(rows).into(),
        size(cols).into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a warp a row.
    unsafe { kernel.launch([blocks(rows, 8), 1, 1], [256, 1, 1], 0, &args) }
}

/// `y = x` in the other float type.
pub(super) fn cast(gpu: &Device, x: &Tensor, y: &Tensor) -> Result<(), CudaError> {
    if x.dtype() == y.dtype() {
        return gpu.copy(&y.region(), &x.region());
    }
    let n = y.len();
    let from = if y.dtype() == DType::F32 { DType::Bf16 } else { DType::F32 };
    expect(&[("x", x, from, n)]);
    let kernel = gpu.function(&SOURCE, of(CAST, y.dtype()))?;
    let args = [ptr(x), ptr(y), Arg::U64(n as u64)];
    // SAFETY: the arguments are the kernel's in its order, each of `n` elements and of the type it is named for.
    unsafe { kernel.launch([blocks(n, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) }
}

/// Blocks of 256 for kernels with a thread for each chunk of a row.
fn row_blocks(rows: usize, cols: usize) -> u32 {
    blocks(rows * cols.div_ceil(CHUNK), 256)
}
