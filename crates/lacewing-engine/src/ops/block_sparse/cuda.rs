//! Block-sparse products on a GPU: the kernel that `lacewing_cuda::dsd` selects.

use crate::ops::Activation;
use crate::{DType, Result, Tensor};
use lacewing_cuda::dsd::{BlockPattern, Problem, Product, Ran, run};
use lacewing_cuda::{Device, Finish, Type};
use std::sync::Arc;

/// A pattern on a GPU, in the orders its kernels walk it.
#[derive(Debug)]
pub(super) struct Index {
    gpu: Arc<Device>,
    pattern: BlockPattern,
}

impl Index {
    pub(super) fn new(
        gpu: &Arc<Device>,
        shape: (usize, usize),
        block: (usize, usize),
        positions: &[(u32, u32)],
    ) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), pattern: BlockPattern::new(gpu, shape, block, positions)? })
    }

    fn run(&self, like: &Tensor, product: &Product<'_>) -> Result<Ran> {
        let of = if like.dtype() == DType::Bf16 { Type::Bf16 } else { Type::F32 };
        Ok(run(&self.gpu, &Problem { pattern: &self.pattern, rows: like.rows(), of }, product)?)
    }

    /// Whether bias and activation were applied.
    pub(super) fn forward(
        &self,
        values: &Tensor,
        x: &Tensor,
        y: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<bool> {
        let bias = bias.map(Tensor::region);
        let finish = Finish { bias: bias.as_ref(), activation };
        let product = Product::Forward { x: &x.region(), values: &values.region(), y: &y.region(), finish };
        Ok(self.run(x, &product)?.finished)
    }

    pub(super) fn input_gradient(&self, values: &Tensor, dy: &Tensor, dx: &Tensor) -> Result<()> {
        let product =
            Product::InputGradient { d_y: &dy.region(), values: &values.region(), d_x: &dx.region() };
        self.run(dy, &product).map(drop)
    }

    pub(super) fn weight_gradient(&self, dy: &Tensor, x: &Tensor, dvalues: &Tensor) -> Result<()> {
        let product =
            Product::WeightGradient { d_y: &dy.region(), x: &x.region(), d_values: &dvalues.region() };
        self.run(dy, &product).map(drop)
    }
}
