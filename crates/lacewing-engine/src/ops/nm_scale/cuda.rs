//! Launches `nm_scale/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{MaskFactors, NmGroups};
use crate::ops::launch::{Entry, blocks, entry, expect, of, ptr, size, source};
use crate::{DType, Tensor};
use lacewing_core::Axis;
use lacewing_cuda::{CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("nm_scale");

const NM_SCALE: Entry = entry!("nm_scale");

/// Shapes: all `[n_out, n_in]`; `by` and `values` f32; `out` may be `values`.
pub(super) fn nm_scale(
    gpu: &Device,
    by: &Tensor,
    values: &Tensor,
    NmGroups { n, m, axis }: NmGroups,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
) -> Result<(), CudaError> {
    let len = by.len();
    expect(&[
        ("by", by, DType::F32, len),
        ("values", values, DType::F32, len),
        ("out", out, out.dtype(), len),
    ]);
    if len == 0 {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(NM_SCALE, out.dtype()))?;
    let args = [
        ptr(by),
        ptr(values),
        ptr(out),
        size(by.rows()).into(),
        size(by.cols()).into(),
        size(n).into(),
        size(m).into(),
        u32::from(axis == Axis::Row).into(),
        factors.kept.into(),
        factors.dropped.into(),
        u32::from(accumulate).into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, each array of rows · cols elements.
    unsafe { kernel.launch([blocks(len, 256), 1, 1], [256, 1, 1], 0, &args) }
}
