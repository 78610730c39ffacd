//! Dense products on the host, through `lacewing_cpu::gemm`.

use super::Operand;
use crate::Result;
use lacewing_cpu::gemm::{MatMut, MatRef, Parallelism, batched, gemm};

pub(super) fn product(
    batch: usize,
    out: Operand<'_>,
    accumulate: bool,
    a: Operand<'_>,
    b: Operand<'_>,
) -> Result<()> {
    let (a_data, b_data) = (a.tensor.read(), b.tensor.read());
    let view = |operand: &Operand<'_>, data| {
        let Operand { rows, cols, row_stride, col_stride, .. } = *operand;
        MatRef::new(data, rows, cols, row_stride, col_stride)
    };
    let mut out_data = out.tensor.write();
    let out_data = &mut out_data[out.offset..];
    let (rows, cols) = (out.rows, out.cols);
    if batch == 1 {
        let out = MatMut::new(out_data, rows, cols, out.row_stride, out.col_stride);
        gemm(
            out,
            accumulate,
            view(&a, &a_data[a.offset..]),
            view(&b, &b_data[b.offset..]),
            Parallelism::Pool,
        );
        return Ok(());
    }
    let tiles = if out.row_stride == batch * cols && out.batch_stride == cols {
        MatMut::row_major(out_data, rows, batch * cols).tiles(rows, cols)
    } else {
        debug_assert_eq!((out.row_stride, out.batch_stride), (cols, rows * cols), "side by side, or stacked");
        MatMut::row_major(out_data, batch * rows, cols).tiles(rows, cols)
    };
    batched(
        tiles,
        accumulate,
        |i| view(&a, &a_data[a.offset + i * a.batch_stride..]),
        |i| view(&b, &b_data[b.offset + i * b.batch_stride..]),
    );
    Ok(())
}
