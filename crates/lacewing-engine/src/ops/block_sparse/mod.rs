//! The product with a block-sparse weight, bias and activation at its end, through the kernel tables of `lacewing-cpu` and
//! `lacewing-cuda`.

mod cpu;
mod cuda;

use super::activation::{self, Activation};
use super::linear::{check_bias, with_cols};
use crate::{Cx, Device, EngineError, Kept, Result, Tensor, Var};
use lacewing_cpu::dsd::{Blocks, Packed, select};
use std::sync::{Arc, OnceLock};

/// Where the blocks of a pattern sit, on host and device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct BlockIndex(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    n_out: usize,
    n_in: usize,
    block: (usize, usize),
    blocks: Blocks,
    device: Device,
    /// The values in each order that the host's kernel reads them in.
    packed: Vec<Kept<Packed>>,
    /// `[nnz, 2]` u32, as `positions`, on a GPU once somebody scatters there: of single values eight bytes for each.
    positions: OnceLock<Tensor>,
    /// The orders a GPU's kernels walk the blocks in, once one of them runs: another sixteen.
    gpu: OnceLock<cuda::Index>,
}

impl BlockIndex {
    /// The pattern of an `n_out × n_in` matrix whose `block` (rows, columns) sized tiles at `positions` (block row,
    /// block column) are kept.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`] when the blocks do not divide the matrix, or a position is outside, repeated or out of
    /// row-major order; what the device reports.
    pub fn new(
        device: &Device,
        (n_out, n_in): (usize, usize),
        block: (usize, usize),
        positions: &[(u32, u32)],
    ) -> Result<Self> {
        let blocks = Blocks::new(block, (n_out, n_in), positions.to_vec())
            .map_err(|why| crate::tape::value_error("block index", "pattern", "blocks of the matrix", why))?;
        let packed = (0..select(&blocks).packings()).map(|_| Kept::default()).collect();
        let (device, positions, gpu) = (device.clone(), OnceLock::new(), OnceLock::new());
        Ok(Self(Arc::new(Inner { n_out, n_in, block, blocks, device, packed, positions, gpu })))
    }

    /// Rows of the matrix.
    pub fn n_out(&self) -> usize {
        self.0.n_out
    }

    /// Columns of the matrix.
    pub fn n_in(&self) -> usize {
        self.0.n_in
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> (usize, usize) {
        self.0.block
    }

    /// Number of blocks.
    pub fn n_blocks(&self) -> usize {
        self.0.blocks.positions().len()
    }

    pub(crate) fn host_positions(&self) -> &[(u32, u32)] {
        self.0.blocks.positions()
    }

    /// `[nnz, 2]` u32 on a GPU.
    pub(crate) fn device_positions(&self) -> Result<&Tensor> {
        made_once(&self.0.positions, || {
            let positions = self.host_positions();
            let flat: Vec<u32> = positions.iter().flat_map(|&(row, col)| [row, col]).collect();
            Tensor::from_u32(&self.0.device, &flat, &[positions.len(), 2])
        })
    }

    /// Where its values are.
    pub(crate) fn device(&self) -> &Device {
        &self.0.device
    }

    /// What a GPU's kernels go by; none on the host.
    fn gpu(&self) -> Result<Option<&cuda::Index>> {
        let Device::Cuda(gpu) = &self.0.device else { return Ok(None) };
        let shape = (self.n_out(), self.n_in());
        let make = || cuda::Index::new(gpu, shape, self.block(), self.host_positions());
        made_once(&self.0.gpu, make).map(Some)
    }

    /// Checks that `values` are this pattern's: `nnz · br · bc` of them, on its device.
    pub(crate) fn expect_values(&self, op: &'static str, values: &Tensor) -> Result<()> {
        let (br, bc) = self.block();
        super::matmul::expect_float(op, "values", values)?;
        values.expect_on(op, "values", &self.0.device)?;
        if values.len() == self.n_blocks() * br * bc {
            return Ok(());
        }
        let expected = format!("[{}, {br}, {bc}]", self.n_blocks());
        Err(EngineError::Shape { op, operand: "values", expected, got: values.shape().to_vec() })
    }
}

/// What is in the cell, made now if nothing is.
fn made_once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

/// `y = f(x Wᵀ + b)` with `W` block-sparse.
///
/// Shapes: `x [..., n_in]`, `values [nnz, br, bc]`, `bias [n_out]` → `[..., n_out]`. Cost: `rows · nnz · br · bc` MACs
/// forward, twice that backward; gradients exist for kept blocks only. With an activation the pre-activation is kept for
/// the backward pass.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit.
pub fn block_sparse_linear(
    cx: &Cx,
    x: &Var,
    values: &Var,
    index: &BlockIndex,
    bias: Option<&Var>,
    act: Activation,
) -> Result<Var> {
    index.expect_values(OP, values.value())?;
    if x.shape().is_empty() || x.value().cols() != index.n_in() {
        let expected = format!("[..., {}]", index.n_in());
        return Err(EngineError::Shape { op: OP, operand: "x", expected, got: x.shape().to_vec() });
    }
    values.value().expect_dtype(OP, "values", x.value().dtype())?;
    values.value().expect_device(OP, "values", x.value())?;
    check_bias(x.value(), index.n_out(), bias)?;
    let pre = x.value().like(&with_cols(x.shape(), index.n_out()))?;
    let inputs: Vec<&Var> = [x, values].into_iter().chain(bias).collect();
    let bias_value = bias.map(Var::value);
    let gpu = index.gpu()?;
    let y = match gpu {
        None => activation::finished_product(cx, &inputs, &pre, bias_value, act, |y| {
            cpu::forward(index, values.value(), x.value(), y, !cx.is_training());
        })?,
        Some(gpu) => {
            // What goes into the activation is kept where it is recorded.
            let kept = act != Activation::Identity && cx.records(&inputs);
            let applied = if kept { Activation::Identity } else { act };
            match gpu.forward(values.value(), x.value(), &pre, bias_value, applied)? {
                true if kept => activation::finish_linear(&pre, None, act)?,
                true => pre.clone(),
                false => activation::finish_linear(&pre, bias_value, act)?,
            }
        }
    };
    let (x_var, values_var, bias, index) = (x.clone(), values.clone(), bias.cloned(), index.clone());
    let pre = (act != Activation::Identity).then_some(pre);
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dy = activation::backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        drop(pre);
        let (x, values, gpu) = (x_var.value(), values_var.value(), index.gpu()?);
        if let Some(dvalues) = gradients.sink_to_add(&values_var)? {
            match gpu {
                None => cpu::weight_gradient(&index, &dy, x, &dvalues),
                Some(gpu) => gpu.weight_gradient(&dy, x, &dvalues)?,
            }
        }
        if gradients.wants(&x_var) {
            let dx = x.like(x.shape())?;
            match gpu {
                None => cpu::input_gradient(&index, values, &dy, &dx),
                Some(gpu) => gpu.input_gradient(values, &dy, &dx)?,
            }
            gradients.add(&x_var, dx)?;
        }
        Ok(())
    }))
}

const OP: &str = "block_sparse_linear";
