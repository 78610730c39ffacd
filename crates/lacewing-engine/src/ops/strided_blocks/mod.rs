//! Many small blocks whose inputs lie `stride` apart: butterfly factors, and products with a row vector (1×1 blocks).

mod cpu;
pub(crate) mod cuda;

use super::elementwise::cast;
use super::linear::with_cols;
use crate::{Cx, EngineError, Result, Tensor, Var};

/// The largest side of a block: one thread, or one register a lane, holds a block's inputs.
pub const MAX_SIDE: usize = 8;

/// Sizes: x is read as `[groups, p, stride]`, y written as `[groups, q, stride]`.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    groups: usize,
    stride: usize,
    q: usize,
    p: usize,
}

impl Sizes {
    fn blocks(&self) -> usize {
        self.groups * self.stride
    }

    /// The transposed blocks.
    fn t(self) -> Self {
        Self { q: self.p, p: self.q, ..self }
    }

    /// `y = W x`, with the blocks transposed where `transposed`; the sizes are those of the product.
    fn apply(&self, x: &Tensor, w: &Tensor, transposed: bool) -> Result<Tensor> {
        let y = x.like(&with_cols(x.shape(), self.blocks() * self.q))?;
        match y.gpu() {
            None => cpu::apply(&x.read(), &w.read(), transposed, &mut y.write(), *self),
            Some(gpu) => cuda::apply(gpu, x, w, transposed, &y, *self)?,
        }
        Ok(y)
    }
}

/// `y[.., g, j, s] = Σ_i w[g · stride + s, j, i] x[.., g, i, s]`: blocks of `q × p`, both at most [`MAX_SIDE`].
///
/// Shapes: `x [..., blocks · p]`, `w [blocks, q, p]` with `blocks = groups · stride` → `[..., blocks · q]`. Cost:
/// `rows · blocks · q · p` MACs in one pass over x and y, twice that backward. With 1×1 blocks it multiplies the
/// columns of x by w. `y` takes a gradient in f32 as well, as a computed weight has it.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit.
pub fn strided_blocks(cx: &Cx, x: &Var, w: &Var, stride: usize) -> Result<Var> {
    let wrong = |operand, expected: String, got: &Var| {
        Err(EngineError::Shape { op: OP, operand, expected, got: got.shape().to_vec() })
    };
    let fits = |&[blocks, q, p]: &[usize; 3]| {
        stride > 0
            && blocks.is_multiple_of(stride)
            && (1..=MAX_SIDE).contains(&q.min(p))
            && q.max(p) <= MAX_SIDE
    };
    let Some(&[blocks, q, p]) = <&[usize; 3]>::try_from(w.shape()).ok().filter(|shape| fits(shape)) else {
        return wrong("w", format!("[a multiple of {stride}, 1 to {MAX_SIDE}, 1 to {MAX_SIDE}]"), w);
    };
    if x.shape().last() != Some(&(blocks * p)) {
        return wrong("x", format!("[..., {}], as w is {:?}", blocks * p, w.shape()), x);
    }
    super::matmul::expect_float(OP, "x", x.value())?;
    w.value().expect_dtype(OP, "w", x.value().dtype())?;
    w.value().expect_device(OP, "w", x.value())?;
    // Columns times a vector: one run, however they were grouped.
    let stride = if q * p == 1 { blocks.max(1) } else { stride };
    let sizes = Sizes { groups: blocks / stride, stride, q, p };
    let y = sizes.apply(x.value(), w.value(), false)?;
    let (x_var, w_var) = (x.clone(), w.clone());
    Ok(cx.record_any(y, &[x, w], move |gradients, dy| {
        if let Some(dw) = gradients.sink_to_add(&w_var)? {
            let x = cast(x_var.value(), dy.dtype())?;
            match dy.gpu() {
                None => cpu::weight_gradient(&dy.read(), &x.read(), &mut dw.write(), sizes),
                Some(gpu) => cuda::weight_gradient(gpu, &dy, &x, &dw, sizes)?,
            }
        }
        if gradients.wants(&x_var) {
            let w = cast(w_var.value(), dy.dtype())?;
            gradients.add(&x_var, sizes.t().apply(&dy, &w, true)?)?;
        }
        Ok(())
    }))
}

const OP: &str = "strided_blocks";
