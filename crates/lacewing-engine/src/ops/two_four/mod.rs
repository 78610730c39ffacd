//! The product with a weight of at most two values in every four inputs, on a Hopper GPU's sparse tensor cores.
//!
//! Forward it takes half of a dense product's multiply-adds. Both gradients are dense products: of the weight filled in, and
//! gathered from a dense gradient, since the fours run along inputs only.

use super::activation::{self, Activation};
use super::block_sparse::BlockIndex;
use super::linear::{check_bias, with_cols};
use super::matmul::{Operand, product};
use crate::{Cx, DType, Device, EngineError, Kept, Result, Tensor, Var};
use lacewing_cuda::Finish;
use lacewing_cuda::two_four::{Operands, TwoFourPattern, fill, gather_add, multiply, pack, supported};

/// A pattern of single values as the sparse tensor cores are told of it.
#[derive(Debug)]
pub struct TwoFourIndex {
    index: BlockIndex,
    pattern: TwoFourPattern,
    packed: Kept<Tensor>,
}

impl TwoFourIndex {
    /// That of `index`; none on a device without such tensor cores.
    ///
    /// # Errors
    ///
    /// [`EngineError::Cuda`] naming the side that is no multiple of 64 or the four inputs that have more than two values.
    pub fn new(index: &BlockIndex) -> Result<Option<Self>> {
        let Device::Cuda(gpu) = index.device() else { return Ok(None) };
        if !supported(gpu) {
            return Ok(None);
        }
        let shape = (index.n_out(), index.n_in());
        let pattern = TwoFourPattern::new(gpu, shape, index.host_positions())?;
        Ok(Some(Self { index: index.clone(), pattern, packed: Kept::default() }))
    }

    /// The values in the order of the tensor cores: as they are, or packed for as long as they stay.
    fn packed(&self, cx: &Cx, gpu: &lacewing_cuda::Device, values: &Tensor) -> Result<Tensor> {
        if self.pattern.is_packed() {
            return Ok(values.clone());
        }
        let fresh = || {
            let packed = values.like(&[self.pattern.n_packed()])?;
            pack(gpu, &self.pattern, &values.region(), &packed.region())?;
            Ok(packed)
        };
        if cx.is_training() {
            self.packed.forget();
            return fresh();
        }
        self.packed.of(&[values], |_| fresh()).map(|packed| (*packed).clone())
    }
}

/// `y = f(x Wᵀ + b)` with `W` of at most two values in every four inputs.
///
/// Shapes: `x [..., n_in]`, `values [nnz]`, `bias [n_out]` → `[..., n_out]`, all bf16. Cost: `rows · n_in · n_out / 2` MACs
/// forward and four times that backward, whose products are dense. With an activation the pre-activation is kept for the
/// backward pass.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit, a CPU's
/// tensors included.
pub fn two_four_linear(
    cx: &Cx,
    x: &Var,
    values: &Var,
    index: &TwoFourIndex,
    bias: Option<&Var>,
    act: Activation,
) -> Result<Var> {
    let blocks = &index.index;
    blocks.expect_values(OP, values.value())?;
    if x.shape().is_empty() || x.value().cols() != blocks.n_in() {
        let expected = format!("[..., {}]", blocks.n_in());
        return Err(EngineError::Shape { op: OP, operand: "x", expected, got: x.shape().to_vec() });
    }
    let Some(gpu) = x.value().gpu() else {
        let (expected, got) = ("a GPU".into(), x.value().device().to_string());
        return Err(EngineError::Device { op: OP, operand: "x", expected, got });
    };
    for (name, var) in [("x", x), ("values", values)] {
        var.value().expect_dtype(OP, name, DType::Bf16)?;
        var.value().expect_device(OP, name, x.value())?;
    }
    check_bias(x.value(), blocks.n_out(), bias)?;
    let pre = x.value().like(&with_cols(x.shape(), blocks.n_out()))?;
    let inputs: Vec<&Var> = [x, values].into_iter().chain(bias).collect();
    // What goes into the activation is kept where it is recorded.
    let kept = act != Activation::Identity && cx.records(&inputs);
    let bias_region = bias.map(|bias| bias.value().region());
    let activation = if kept { Activation::Identity } else { act };
    let packed = index.packed(cx, gpu, values.value())?;
    let operands = Operands {
        x: &x.value().region(),
        packed: &packed.region(),
        y: &pre.region(),
        finish: Finish { bias: bias_region.as_ref(), activation },
    };
    multiply(gpu, &index.pattern, x.value().rows(), &operands)?;
    let y = if kept { activation::finish_linear(&pre, None, act)? } else { pre.clone() };
    let (x_var, values_var, bias, gpu) = (x.clone(), values.clone(), bias.cloned(), gpu.clone());
    let (pre, pattern, weight_shape) =
        (kept.then_some(pre), index.pattern.clone(), [blocks.n_out(), blocks.n_in()]);
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dy = activation::backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        drop(pre);
        let (x, dy) = (x_var.value(), Operand::matrix(&dy));
        if let Some(dvalues) = gradients.sink_to_add(&values_var)? {
            let dweight = x.beside(DType::F32, &weight_shape)?;
            product(1, Operand::matrix(&dweight), false, dy.t(), Operand::matrix(x))?;
            gather_add(&gpu, &pattern, &dweight.region(), &dvalues.region())?;
        }
        if gradients.wants(&x_var) {
            let (dx, weight) = (x.like(x.shape())?, x.like(&weight_shape)?);
            fill(&gpu, &pattern, &packed.region(), &weight.region())?;
            product(1, Operand::matrix(&dx), false, dy, Operand::matrix(&weight))?;
            gradients.add(&x_var, dx)?;
        }
        Ok(())
    }))
}

const OP: &str = "two_four_linear";
