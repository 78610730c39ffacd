//! Launches `magnitude_scale/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{DIGITS, MaskFactors};
use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("magnitude_scale");

const SCALE: Entry = entry!("magnitude_scale");

/// Words of the kernels' `State`: the least key, what is left, whether it is done, a count for each digit.
pub(super) const STATE: usize = 4 + 2048;

/// Weights that a block counts before another is worth its additions.
const COUNTED: usize = 256 * 16;

/// Blocks that fill a large GPU several times over.
const MAX_BLOCKS: usize = 1024;

/// Shapes: `by` and `values` f32 and `out` of one length, `out` may be `values`; `state [STATE]` u32.
#[allow(clippy::too_many_arguments, reason = "the op's own and the state")]
pub(super) fn magnitude_scale(
    gpu: &Device,
    by: &Tensor,
    values: &Tensor,
    kept: usize,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
    state: &Tensor,
) -> Result<(), CudaError> {
    let len = by.len();
    expect(&[
        ("by", by, DType::F32, len),
        ("values", values, DType::F32, len),
        ("out", out, out.dtype(), len),
        ("state", state, DType::U32, STATE),
    ]);
    let n = Arg::U64(len as u64);
    gpu.zero(&state.region())?;
    let grid = [size(len.div_ceil(COUNTED).min(MAX_BLOCKS)), 1, 1];
    let (count, digit) =
        (gpu.function(&SOURCE, "magnitude_count")?, gpu.function(&SOURCE, "magnitude_digit")?);
    let mut k = size(kept);
    for (shift, bits) in DIGITS {
        // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays below `n`, a digit has
        // at most as many values as the state has counts, and additions to these are atomic.
        unsafe { count.launch(grid, [256, 1, 1], 0, &[ptr(by), ptr(state), n, shift.into(), bits.into()])? };
        // SAFETY: the arguments are the kernel's in its order, the state's length was checked above; it is one block, and no
        // other kernel of the stream runs beside it.
        unsafe {
            digit.launch([1, 1, 1], [256, 1, 1], 0, &[ptr(state), k.into(), shift.into(), bits.into()])?
        };
        k = 0;
    }
    let kernel = gpu.function(&SOURCE, of(SCALE, out.dtype()))?;
    let args = [
        ptr(by),
        ptr(values),
        ptr(out),
        ptr(state),
        n,
        factors.kept.into(),
        factors.dropped.into(),
        u32::from(accumulate).into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays below `n`.
    unsafe { kernel.launch([blocks(len, 256), 1, 1], [256, 1, 1], 0, &args) }
}
