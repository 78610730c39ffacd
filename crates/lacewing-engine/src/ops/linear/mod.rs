//! A dense linear map with its bias and activation: `y = f(x Wᵀ + b)`.

mod filled;

use super::activation::{self, Activation};
use super::matmul::{Operand, product, product_with_bias};
use crate::{Cx, EngineError, Kept, Result, Tensor, Var};
pub use filled::FilledWeight;
use lacewing_cpu::finish::Target;
use lacewing_cpu::gemm::{MatRef, Packed, gemm_packed};
use std::convert::Infallible;

/// A weight in the order that the CPU's products of some rows read it, packed by and for the first of them: of a layer, whose
/// weight comes again and again. It takes as much memory as the weight.
#[derive(Debug, Default)]
pub struct PackedWeight(Kept<Packed>);

impl PackedWeight {
    /// `y = x wᵀ`, finished, by the packed weight.
    fn product(&self, y: Target<'_>, x: &Tensor, w: &Tensor) {
        let (rows, n_in, n_out) = (x.rows(), w.cols(), w.rows());
        let (x, read) = (x.read(), w.read());
        let Ok(packed) = self.0.of(&[w], |memory| {
            Ok::<_, Infallible>(Packed::new(MatRef::row_major(&read, n_out, n_in).t(), rows, memory))
        });
        gemm_packed(y, false, MatRef::row_major(&x, rows, n_in), &packed);
    }
}

/// `y = f(x Wᵀ + b)`.
///
/// Shapes: `x [..., n_in]`, `w [n_out, n_in]`, `bias [n_out]` → `[..., n_out]`. Cost: `rows · n_in · n_out` MACs
/// forward, twice that backward. With an activation the pre-activation is kept for the backward pass.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit.
pub fn linear(cx: &Cx, x: &Var, w: &Var, bias: Option<&Var>, act: Activation) -> Result<Var> {
    linear_packed(cx, x, w, bias, act, None)
}

/// [`linear`] with a weight that is kept `packed` on the CPU outside training, where that makes the product faster. In
/// training weights change with every step, and what is computed again for a backward pass must be the same to the bit; what
/// was packed before is let go.
///
/// # Errors
///
/// As [`linear`].
pub fn linear_packed(
    cx: &Cx,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    act: Activation,
    packed: Option<&PackedWeight>,
) -> Result<Var> {
    let n_out = check(x, w)?;
    check_bias(x.value(), n_out, bias)?;
    let shape = with_cols(x.shape(), n_out);
    let pre = x.value().like(&shape)?;
    let inputs: Vec<&Var> = [x, w].into_iter().chain(bias).collect();
    let bias_value = bias.map(Var::value);
    if let Some(PackedWeight(kept)) = packed
        && cx.is_training()
    {
        kept.forget();
    }
    let pays = x.value().gpu().is_none() && Packed::pays(x.value().rows()) && !cx.is_training();
    let y = if let (Some(packed), true) = (packed, pays) {
        activation::finished_product(cx, &inputs, &pre, bias_value, act, |y| {
            packed.product(y, x.value(), w.value());
        })?
    } else {
        let (a, b) = (Operand::matrix(x.value()), Operand::matrix(w.value()).t());
        let added = product_with_bias(Operand::matrix(&pre), a, b, bias_value)?;
        activation::finish_linear(&pre, if added { None } else { bias_value }, act)?
    };
    let (x, w, bias) = (x.clone(), w.clone(), bias.cloned());
    let pre = (act != Activation::Identity).then_some(pre);
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dpre = activation::backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        drop(pre);
        let dy = Operand::matrix(&dpre);
        if let Some((dw, holds_sum)) = gradients.sink(&w)? {
            product(1, Operand::matrix(&dw), holds_sum, dy.t(), Operand::matrix(x.value()))?;
        }
        if gradients.wants(&x) {
            let dx = x.value().like(x.shape())?;
            product(1, Operand::matrix(&dx), false, dy, Operand::matrix(w.value()))?;
            gradients.add(&x, dx)?;
        }
        Ok(())
    }))
}

/// Checks the operands; returns `n_out`.
fn check(x: &Var, w: &Var) -> Result<usize> {
    let &[n_out, n_in] = w.shape() else {
        let expected = "[n_out, n_in]".into();
        return Err(EngineError::Shape { op: "linear", operand: "w", expected, got: w.shape().to_vec() });
    };
    if x.shape().is_empty() || x.value().cols() != n_in {
        let expected = format!("[..., {n_in}], as w is {:?}", w.shape());
        return Err(EngineError::Shape { op: "linear", operand: "x", expected, got: x.shape().to_vec() });
    }
    super::matmul::expect_float("linear", "x", x.value())?;
    w.value().expect_dtype("linear", "w", x.value().dtype())?;
    w.value().expect_device("linear", "w", x.value())?;
    Ok(n_out)
}

/// Checks a bias of `n_out` values against an input.
pub(crate) fn check_bias(x: &Tensor, n_out: usize, bias: Option<&Var>) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    bias.value().expect_shape("linear", "bias", &[n_out])?;
    bias.value().expect_dtype("linear", "bias", x.dtype())?;
    bias.value().expect_device("linear", "bias", x)
}

/// `shape` with another last dimension.
pub(crate) fn with_cols(shape: &[usize], cols: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    *shape.last_mut().expect("checked: at least one dimension") = cols;
    shape
}
