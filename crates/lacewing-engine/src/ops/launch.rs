//! What the `cuda.rs` of every op shares: entry points by element type, arguments from tensors, grids.

use crate::{DType, Tensor};
use lacewing_cuda::Arg;

/// An entry point's variants for f32 and for bf16.
pub(super) type Entry = [&'static str; 2];

/// `entry!("add")` stands for `add_f32` and `add_bf16`.
macro_rules! entry {
    ($name:literal) => {
        [concat!($name, "_f32"), concat!($name, "_bf16")]
    };
}
pub(super) use entry;

/// The kernel source of the op that calls it: the shared prelude, then the folder's `kernel.cu`.
macro_rules! source {
    ($name:literal) => {
        lacewing_cuda::Source {
            name: $name,
            code: concat!(include_str!("../prelude.cuh"), include_str!("kernel.cu")),
        }
    };
}
pub(super) use source;

/// Elements a kernel handles at a time; rows of a multiple of this can move as whole vectors.
pub(super) const CHUNK: usize = 8;

/// Elements a block of the prelude's `map` handles.
pub(super) const MAP_BLOCK: usize = 256 * 4 * CHUNK;

/// Grids in y and z have at most this many blocks; the kernels go on from there in strides.
const GRID_YZ_MAX: usize = 65_535;

/// The variant whose storage is `dtype`.
pub(super) fn of(entry: Entry, dtype: DType) -> &'static str {
    debug_assert_ne!(dtype, DType::U32, "{entry:?} on integers");
    entry[usize::from(dtype == DType::Bf16)]
}

/// The address of a tensor's first element.
pub(super) fn ptr(tensor: &Tensor) -> Arg {
    Arg::from(&tensor.region())
}

/// The address of a tensor's first element, null without one.
pub(super) fn ptr_or_null(tensor: Option<&Tensor>) -> Arg {
    tensor.map_or(Arg::Ptr(0), ptr)
}

/// A dimension as a kernel takes it.
pub(super) fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a dimension below 2^32")
}

/// Blocks in x for `work` items, `per_block` each.
pub(super) fn blocks(work: usize, per_block: usize) -> u32 {
    size(work.div_ceil(per_block))
}

/// Blocks in y or z: as [`blocks`], and no more than a grid may have.
pub(super) fn blocks_yz(work: usize, per_block: usize) -> u32 {
    size(work.div_ceil(per_block).min(GRID_YZ_MAX))
}

/// Whether every tensor starts at a multiple of 16 bytes.
pub(super) fn aligned(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.region().ptr().is_multiple_of(16))
}

/// Checks what the launches' safety rests on: each operand has this type and number of elements.
///
/// # Panics
///
/// When one has not: the op above passed it wrongly.
pub(super) fn expect(operands: &[(&str, &Tensor, DType, usize)]) {
    for &(name, tensor, dtype, len) in operands {
        assert_eq!((tensor.dtype(), tensor.len()), (dtype, len), "operand `{name}` of a kernel");
    }
}

/// [`expect`] for an operand that may be absent.
pub(super) fn expect_some(name: &str, tensor: Option<&Tensor>, dtype: DType, len: usize) {
    if let Some(tensor) = tensor {
        expect(&[(name, tensor, dtype, len)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_a_variant_for_each_float() {
        const ADD: Entry = entry!("add");
        assert_eq!((of(ADD, DType::F32), of(ADD, DType::Bf16)), ("add_f32", "add_bf16"));
    }

    #[test]
    fn grids_cover_ragged_work_and_stay_legal() {
        assert_eq!((blocks(0, 256), blocks(256, 256), blocks(257, 256)), (0, 1, 2));
        assert_eq!((blocks_yz(257, 256), blocks_yz(1 << 20, 1)), (2, 65_535));
    }
}
