//! Dense products: `out = a b` or `out += a b`, strided and batched, on either device.
//!
//! The one place where the engine meets `gemm` and cuBLASLt; every op with a dense product goes through `product`.

mod cpu;
mod cuda;

use crate::{Cx, DType, EngineError, Result, Tensor, Var};

/// One operand: `batch` matrices of `rows × cols` inside a tensor. Strides count elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
    pub(crate) batch_stride: usize,
}

impl<'a> Operand<'a> {
    /// The whole tensor as one row-major matrix, its last dimension the columns.
    pub(crate) fn matrix(tensor: &'a Tensor) -> Self {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        Self { tensor, offset: 0, rows, cols, row_stride: cols, col_stride: 1, batch_stride: 0 }
    }

    /// A tensor `[batch, rows, cols]` as `batch` matrices, one after the other.
    pub(crate) fn stacked(tensor: &'a Tensor, rows: usize, cols: usize) -> Self {
        Self { tensor, offset: 0, rows, cols, row_stride: cols, col_stride: 1, batch_stride: rows * cols }
    }

    /// A tensor `[rows, batch · cols]` as `batch` matrices side by side.
    pub(crate) fn side_by_side(tensor: &'a Tensor, batch: usize, cols: usize) -> Self {
        let (rows, row_stride) = (tensor.len() / (batch * cols).max(1), batch * cols);
        Self { tensor, offset: 0, rows, cols, row_stride, col_stride: 1, batch_stride: cols }
    }

    /// The transposed matrices.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out[i] = a[i] b[i]` for each of `batch` matrices, or `out[i] += …`.
///
/// Shapes: `a` rows × k, `b` k × cols, `out` rows × cols. On a GPU bf16 operands accumulate in f32 and `out` may be
/// f32; on the host everything is f32.
pub(crate) fn product(
    batch: usize,
    out: Operand<'_>,
    accumulate: bool,
    a: Operand<'_>,
    b: Operand<'_>,
) -> Result<()> {
    debug_assert_eq!((a.rows, b.cols, a.cols), (out.rows, out.cols, b.rows), "shapes of a product");
    if batch * out.rows * out.cols == 0 {
        return Ok(());
    }
    if a.cols == 0 {
        return if accumulate { Ok(()) } else { out.tensor.fill_zero() };
    }
    match out.tensor.gpu() {
        None => cpu::product(batch, out, accumulate, a, b),
        Some(gpu) => cuda::product(gpu, batch, out, accumulate, a, b, None),
    }
}

/// `out = a b + bias`, the bias a row vector in `out`'s type, added where the product is written if the device can.
///
/// Returns whether it was: if not, the caller adds it in its next pass.
pub(crate) fn product_with_bias(
    out: Operand<'_>,
    a: Operand<'_>,
    b: Operand<'_>,
    bias: Option<&Tensor>,
) -> Result<bool> {
    if let (Some(gpu), Some(_)) = (out.tensor.gpu(), bias)
        && a.cols > 0
        && out.rows * out.cols > 0
    {
        cuda::product(gpu, 1, out, false, a, b, bias)?;
        return Ok(true);
    }
    product(1, out, false, a, b)?;
    Ok(false)
}

/// Batched product `c[i] = a[i] b[i]`.
///
/// Shapes: `a [batch, m, k]`, `b [batch, k, n]` → `[batch, m, n]`.
///
/// # Errors
///
/// [`EngineError::Shape`] when the operands do not fit each other; what the device reports.
pub fn matmul(cx: &Cx, a: &Var, b: &Var) -> Result<Var> {
    let (&[batch, m, k], &[batch_b, k_b, n]) = (a.shape(), b.shape()) else {
        let got = if a.shape().len() == 3 { b } else { a }.shape().to_vec();
        return Err(EngineError::Shape {
            op: "matmul",
            operand: "a or b",
            expected: "three dimensions".into(),
            got,
        });
    };
    if (batch_b, k_b) != (batch, k) {
        let expected = format!("[{batch}, {k}, n], to follow a {:?}", a.shape());
        return Err(EngineError::Shape { op: "matmul", operand: "b", expected, got: b.shape().to_vec() });
    }
    b.value().expect_device("matmul", "b", a.value())?;
    b.value().expect_dtype("matmul", "b", a.value().dtype())?;
    let y = a.value().like(&[batch, m, n])?;
    let (av, bv) = (a.value().clone(), b.value().clone());
    let out = Operand::stacked(&y, m, n);
    product(batch, out, false, Operand::stacked(&av, m, k), Operand::stacked(&bv, k, n))?;
    let (a_var, b_var) = (a.clone(), b.clone());
    Ok(cx.record(y, &[a, b], move |gradients, dy| {
        let dy_mat = Operand::stacked(&dy, m, n);
        if gradients.wants(&a_var) {
            let da = av.like(&[batch, m, k])?;
            product(batch, Operand::stacked(&da, m, k), false, dy_mat, Operand::stacked(&bv, k, n).t())?;
            gradients.add(&a_var, da)?;
        }
        if gradients.wants(&b_var) {
            let db = bv.like(&[batch, k, n])?;
            product(batch, Operand::stacked(&db, k, n), false, Operand::stacked(&av, m, k).t(), dy_mat)?;
            gradients.add(&b_var, db)?;
        }
        Ok(())
    }))
}

/// Whether `dtype` is one the products take.
pub(crate) fn expect_float(op: &'static str, operand: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::U32 {
        return Err(EngineError::DType { op, operand, expected: DType::F32, got: DType::U32 });
    }
    Ok(())
}
