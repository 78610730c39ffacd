//! Dense products on a GPU, through cuBLASLt.

use super::Operand;
use crate::{DType, Result, Tensor};
use lacewing_cuda::matmul::{Epilogue, Matmul, run};
use lacewing_cuda::{Device, Region, Type};

pub(super) fn product(
    gpu: &Device,
    batch: usize,
    out: Operand<'_>,
    accumulate: bool,
    a: Operand<'_>,
    b: Operand<'_>,
    bias: Option<&Tensor>,
) -> Result<()> {
    let (trans_a, lda) = layout(&a);
    let (trans_b, ldb) = layout(&b);
    let problem = Matmul {
        m: out.rows,
        n: out.cols,
        k: a.cols,
        batch,
        trans_a,
        trans_b,
        lda,
        ldb,
        ldd: out.row_stride,
        stride_a: a.batch_stride,
        stride_b: b.batch_stride,
        stride_d: out.batch_stride,
        a_type: type_of(a.tensor),
        b_type: type_of(b.tensor),
        d_type: type_of(out.tensor),
        accumulate,
        alpha: 1.0,
        epilogue: if bias.is_some() { Epilogue::Bias } else { Epilogue::None },
    };
    let bias = bias.map(Tensor::region);
    Ok(run(gpu, &problem, &region(&a), &region(&b), &region(&out), bias.as_ref())?)
}

/// Whether the matrix is stored transposed, and the distance of its stored rows.
fn layout(operand: &Operand<'_>) -> (bool, usize) {
    // A single column or row fits both readings; its stride must still span it.
    if operand.col_stride == 1 {
        (false, operand.row_stride.max(operand.cols))
    } else {
        debug_assert_eq!(operand.row_stride, 1, "one dimension of an operand is contiguous");
        (true, operand.col_stride.max(operand.rows))
    }
}

fn region(operand: &Operand<'_>) -> Region {
    let bytes = operand.tensor.dtype().bytes();
    operand.tensor.region().slice(operand.offset * bytes, (operand.tensor.len() - operand.offset) * bytes)
}

fn type_of(tensor: &Tensor) -> Type {
    match tensor.dtype() {
        DType::Bf16 => Type::Bf16,
        _ => Type::F32,
    }
}
