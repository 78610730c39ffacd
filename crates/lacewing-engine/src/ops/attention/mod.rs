//! Softmax attention without its `tokens × tokens` matrix in memory.

mod cpu;
pub(crate) mod cuda;

use crate::tape::value_error;
use crate::{Cx, DType, EngineError, Result, Tensor, Var};

/// Sizes of an attention problem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    /// Of one head.
    pub(crate) dim: usize,
    /// What the products of q and k are multiplied by; above 0.
    pub(crate) scale: f32,
}

impl Sizes {
    fn width(&self) -> usize {
        self.heads * self.dim
    }
}

/// Rows of one of q, k, v inside a tensor: token `t` of sample `b` starts at `offset + (b · tokens + t) · stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

/// `softmax(scale · q kᵀ) v` for each head, q, k and v packed in one tensor as a fused projection writes them; without
/// `scale` it is `1 / √dim`.
///
/// Shapes: `qkv [batch, tokens, 3 · heads · dim]`, order (q | k | v), each by head → `[batch, tokens, heads · dim]`.
/// Cost: `2 · batch · heads · tokens² · dim` MACs forward, five halves of that backward (scores are recomputed).
///
/// # Errors
///
/// [`EngineError::Shape`] when the last dimension is not three times a multiple of `heads`; [`EngineError::Value`] for a
/// `scale` that is not finite and above 0.
pub fn attention(cx: &Cx, qkv: &Var, heads: usize, scale: Option<f32>) -> Result<Var> {
    let sizes = sizes("attention", qkv, 3, heads, scale)?;
    let width = sizes.width();
    let shape = [sizes.batch, sizes.tokens, width];
    let out = qkv.value().like(&shape)?;
    let lse = lse(qkv.value(), sizes)?;
    forward(sizes, packed(qkv.value(), width), &out, &lse)?;
    let (qkv_var, saved) = (qkv.clone(), out.clone());
    Ok(cx.record(out, &[qkv], move |gradients, dout| {
        let dqkv = qkv_var.value().like(qkv_var.shape())?;
        backward(sizes, packed(qkv_var.value(), width), &saved, &lse, &dout, packed(&dqkv, width))?;
        gradients.add(&qkv_var, dqkv)
    }))
}

/// As [`attention`], for projections of their own.
///
/// Shapes: `q`, `k`, `v [batch, tokens, heads · dim]`.
///
/// # Errors
///
/// [`EngineError::Shape`] naming the operand that does not fit; [`EngineError::Value`] as [`attention`].
pub fn attention_separate(
    cx: &Cx,
    q: &Var,
    k: &Var,
    v: &Var,
    heads: usize,
    scale: Option<f32>,
) -> Result<Var> {
    let sizes = sizes("attention", q, 1, heads, scale)?;
    for (operand, var) in [("k", k), ("v", v)] {
        var.value().expect_shape("attention", operand, q.shape())?;
        var.value().expect_dtype("attention", operand, q.value().dtype())?;
        var.value().expect_device("attention", operand, q.value())?;
    }
    let out = q.value().like(q.shape())?;
    let lse = lse(q.value(), sizes)?;
    forward(sizes, [q, k, v].map(|var| whole(var.value())), &out, &lse)?;
    let (vars, saved) = ([q.clone(), k.clone(), v.clone()], out.clone());
    Ok(cx.record(out, &[q, k, v], move |gradients, dout| {
        let like = |var: &Var| var.value().like(var.shape());
        let grads = [like(&vars[0])?, like(&vars[1])?, like(&vars[2])?];
        let inputs = [0, 1, 2].map(|i| whole(vars[i].value()));
        backward(sizes, inputs, &saved, &lse, &dout, grads.each_ref().map(whole))?;
        for (var, gradient) in vars.iter().zip(grads) {
            gradients.add(var, gradient)?;
        }
        Ok(())
    }))
}

fn forward(sizes: Sizes, qkv: [Rows<'_>; 3], out: &Tensor, lse: &Tensor) -> Result<()> {
    match out.gpu() {
        None => cpu::forward(sizes, qkv, out, lse),
        Some(gpu) => cuda::forward(gpu, sizes, qkv, out, lse)?,
    }
    Ok(())
}

fn backward(
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    grads: [Rows<'_>; 3],
) -> Result<()> {
    match out.gpu() {
        None => cpu::backward(sizes, qkv, out, lse, dout, grads),
        Some(gpu) => cuda::backward(gpu, sizes, qkv, out, lse, dout, grads)?,
    }
    Ok(())
}

pub(super) fn packed(tensor: &Tensor, width: usize) -> [Rows<'_>; 3] {
    [0, 1, 2].map(|i| Rows { tensor, offset: i * width, stride: 3 * width })
}

pub(super) fn whole(tensor: &Tensor) -> Rows<'_> {
    Rows { tensor, offset: 0, stride: tensor.cols() }
}

/// Log of each row's sum of exponentials: what the backward pass needs to have the probabilities again.
fn lse(like: &Tensor, sizes: Sizes) -> Result<Tensor> {
    like.beside(DType::F32, &[sizes.batch, sizes.heads, sizes.tokens])
}

fn sizes(op: &'static str, x: &Var, parts: usize, heads: usize, scale: Option<f32>) -> Result<Sizes> {
    super::matmul::expect_float(op, "q", x.value())?;
    if let Some(scale) = scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
        return Err(value_error(op, "scale", "finite and above 0", scale));
    }
    match *x.shape() {
        [batch, tokens, width] if heads > 0 && tokens > 0 && width > 0 && width % (parts * heads) == 0 => {
            let dim = width / (parts * heads);
            let scale = scale.unwrap_or_else(|| 1.0 / (dim as f32).sqrt());
            Ok(Sizes { batch, tokens, heads, dim, scale })
        }
        _ => {
            let expected = format!("[batch, tokens, {parts} · {heads} heads · dim]");
            Err(EngineError::Shape { op, operand: "q", expected, got: x.shape().to_vec() })
        }
    }
}
