//! What the copy engine of Hopper needs to know of a matrix to fetch tiles of it.

use super::driver::check;
use super::memory::Region;
use crate::CudaError;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Bytes that every address and row given to the copy engine are multiples of.
const STEP_BYTES: usize = 16;

/// A row-major bf16 matrix by lines of 32 or 64 columns, of which a kernel fetches boxes: coordinates (column in the line, row,
/// line). In shared memory a box is rows of 64 or 128 bytes, their pieces of 16 bytes swizzled as the tensor cores want
/// them. Rows beyond the matrix arrive as zeros. A kernel takes it as `const __grid_constant__`, 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

impl TensorMap {
    /// The matrix `[rows, cols]` at the start of `region`, in boxes of `box_rows` rows of `box_lines` lines of `line` columns.
    ///
    /// # Errors
    ///
    /// [`CudaError::Dimension`] for what the copy engine does not take, [`CudaError::OperandBytes`] if the region is smaller.
    pub fn new(
        region: &Region,
        matrix: (usize, usize),
        line: usize,
        boxes: (usize, usize),
    ) -> Result<Self, CudaError> {
        Self::with_order(region, matrix, line, boxes, false)
    }

    /// The same with coordinates (column in the line, line, row): in shared memory the lines of a row stand side by side, swizzled
    /// as if each were a row.
    ///
    /// # Errors
    ///
    /// As [`TensorMap::new`].
    pub fn by_rows(
        region: &Region,
        matrix: (usize, usize),
        line: usize,
        boxes: (usize, usize),
    ) -> Result<Self, CudaError> {
        Self::with_order(region, matrix, line, boxes, true)
    }

    fn with_order(
        region: &Region,
        (rows, cols): (usize, usize),
        line: usize,
        (box_rows, box_lines): (usize, usize),
        by_rows: bool,
    ) -> Result<Self, CudaError> {
        const CALL: &str = "tensor map";
        let wrong = |dimension, expected: &str, got| {
            Err(CudaError::Dimension { call: CALL, dimension, expected: expected.to_owned(), got })
        };
        if line != 32 && line != 64 {
            return wrong("columns of a line", "32 or 64", line);
        }
        if cols == 0 || !cols.is_multiple_of(line) {
            return wrong("columns", &format!("a multiple of {line}"), cols);
        }
        if !(1..=256).contains(&box_rows) {
            return wrong("rows of a box", "1 to 256", box_rows);
        }
        if rows == 0 || u32::try_from(rows).is_err() {
            return wrong("rows", "1 to 2^32 - 1", rows);
        }
        if !region.ptr().is_multiple_of(STEP_BYTES as u64) {
            let got = (region.ptr() % STEP_BYTES as u64) as usize;
            return wrong("address modulo 16", "0", got);
        }
        let expected = rows.saturating_mul(cols).saturating_mul(2);
        if region.len_bytes() < expected {
            let got = region.len_bytes();
            return Err(CudaError::OperandBytes { call: CALL, operand: "region", expected, got });
        }
        let swizzle = if line == 64 {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B
        };
        // Count, bytes from one to the next, and count in a box, of rows and of lines.
        let mut outer = [(rows, cols * 2, box_rows), (cols / line, line * 2, box_lines)];
        if by_rows {
            outer.reverse();
        }
        let sizes = [line, outer[0].0, outer[1].0].map(|size| size as u64);
        let strides = outer.map(|(_, stride, _)| stride as u64);
        let box_sizes = [line, outer[0].2, outer[1].2].map(|size| size as u32);
        let mut map = Self([0; 16]);
        // SAFETY: writes 128 bytes, to an address that is a multiple of 64; the arrays hold three, two, three and three
        // numbers, as a tensor of three dimensions has. Nothing is read at the region's address.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map.0).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                3,
                region.ptr() as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                box_sizes.as_ptr(),
                [1_u32; 3].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", status).map(|()| map)
    }
}
