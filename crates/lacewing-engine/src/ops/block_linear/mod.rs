//! The block-diagonal product: the step that chains (block-diagonal, Monarch, low rank) are made of.

use super::linear::with_cols;
use super::matmul::{Operand, product};
use crate::{Cx, EngineError, Result, Var};

/// `y[.., k, :] = W[k] x[.., k, :]` for each block `k`.
///
/// Shapes: `x [..., blocks · p]`, `w [blocks, q, p]` → `[..., blocks · q]`. Cost: `rows · blocks · q · p` MACs.
/// The blocks are the batch of one strided product; activations are not moved.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit.
pub fn block_linear(cx: &Cx, x: &Var, w: &Var) -> Result<Var> {
    let &[blocks, q, p] = w.shape() else {
        let expected = "[blocks, q, p]".into();
        return Err(EngineError::Shape {
            op: "block_linear",
            operand: "w",
            expected,
            got: w.shape().to_vec(),
        });
    };
    if x.shape().is_empty() || x.value().cols() != blocks * p {
        let expected = format!("[..., {}], as w is {:?}", blocks * p, w.shape());
        return Err(EngineError::Shape {
            op: "block_linear",
            operand: "x",
            expected,
            got: x.shape().to_vec(),
        });
    }
    super::matmul::expect_float("block_linear", "x", x.value())?;
    w.value().expect_dtype("block_linear", "w", x.value().dtype())?;
    w.value().expect_device("block_linear", "w", x.value())?;

    let y = x.value().like(&with_cols(x.shape(), blocks * q))?;
    let weight = Operand::stacked(w.value(), q, p);
    let a = Operand::side_by_side(x.value(), blocks, p);
    product(blocks, Operand::side_by_side(&y, blocks, q), false, a, weight.t())?;

    let (x_var, w_var) = (x.clone(), w.clone());
    Ok(cx.record(y, &[x, w], move |gradients, dy| {
        let dy = Operand::side_by_side(&dy, blocks, q);
        if let Some((dw, holds_sum)) = gradients.sink(&w_var)? {
            let x = Operand::side_by_side(x_var.value(), blocks, p);
            product(blocks, Operand::stacked(&dw, q, p), holds_sum, dy.t(), x)?;
        }
        if gradients.wants(&x_var) {
            let dx = x_var.value().like(x_var.shape())?;
            let weight = Operand::stacked(w_var.value(), q, p);
            product(blocks, Operand::side_by_side(&dx, blocks, p), false, dy, weight)?;
            gradients.add(&x_var, dx)?;
        }
        Ok(())
    }))
}
