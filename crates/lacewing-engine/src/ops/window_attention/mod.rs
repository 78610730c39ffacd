//! Attention within windows of a map, as Swin Transformer V2 has it: scores are scaled cosines and a bias for each pair
//! of places.
//!
//! Heads are copied out of the map, window by window, and back; in between stand products of many small matrices. The
//! probabilities, `places` a token and head, are kept for the backward pass.

mod cpu;
pub(crate) mod cuda;
mod index;

use super::activation::{Activation, backward_linear};
use super::attention::{Rows, packed, whole};
use super::matmul::{Operand, product};
use crate::{Cx, DType, EngineError, Gradients, Result, Tensor, Var};
pub use index::WindowIndex;

/// The greatest logarithm of a scale: cosines are multiplied by 100 at most.
pub(crate) const LOG_SCALE_MAX: f32 = 4.605_170_2;

/// What the score of two tokens of different regions is lowered by.
pub(crate) const OTHER_REGION: f32 = 100.0;

/// The least length that a row of q or k is divided by.
pub(crate) const LENGTH_MIN: f32 = 1e-12;

/// Sizes of a problem. A group is one head of one window of one sample, number `(sample · windows + window) · heads + head`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) windows: usize,
    /// Tokens of a window.
    pub(crate) places: usize,
    pub(crate) heads: usize,
    /// Of one head.
    pub(crate) dim: usize,
}

impl Sizes {
    pub(crate) fn groups(&self) -> usize {
        self.batch * self.windows * self.heads
    }

    pub(crate) fn tokens(&self) -> usize {
        self.windows * self.places
    }

    pub(crate) fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// The shape of what has `cols` values for each place of each group.
    fn by_group(&self, cols: usize) -> [usize; 3] {
        [self.groups(), self.places, cols]
    }
}

/// `softmax(exp(min(s, ln 100)) · cos(q, k) + bias) v` for each head within each window, `s` one number a head, q, k and v
/// packed in one tensor as a fused projection writes them. Where `windows` are shifted, the scores of tokens of different
/// regions are lowered by 100.
///
/// Shapes: `qkv [batch, tokens, 3 · heads · dim]`, order (q | k | v), each by head; `log_scale [heads]` and
/// `bias [heads, places, places]` f32 → `[batch, tokens, heads · dim]`. Cost: `2 · batch · tokens · places · heads · dim` MACs
/// forward, twice that backward; `batch · tokens · places · heads` probabilities are kept.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit the
/// others or `windows`.
pub fn window_attention(
    cx: &Cx,
    qkv: &Var,
    log_scale: &Var,
    bias: &Var,
    windows: &WindowIndex,
) -> Result<Var> {
    let sizes = check(qkv, 3, log_scale, bias, windows)?;
    let width = sizes.width();
    let problem = Problem { sizes, windows: windows.clone(), log_scale: log_scale.value().clone() };
    let (out, kept) = problem.forward(packed(qkv.value(), width), bias.value())?;
    let (qkv_var, log_scale_var, bias_var) = (qkv.handle(), log_scale.clone(), bias.clone());
    Ok(cx.record(out, &[qkv, log_scale, bias], move |gradients, dout| {
        let dqkv = dout.like(&[sizes.batch, sizes.tokens(), 3 * width])?;
        problem.backward(gradients, kept, &dout, [&log_scale_var, &bias_var], packed(&dqkv, width))?;
        gradients.add(&qkv_var, dqkv)
    }))
}

/// As [`window_attention`], for projections of their own.
///
/// Shapes: `q`, `k`, `v [batch, tokens, heads · dim]`.
///
/// # Errors
///
/// As [`window_attention`].
pub fn window_attention_separate(
    cx: &Cx,
    [q, k, v]: [&Var; 3],
    log_scale: &Var,
    bias: &Var,
    windows: &WindowIndex,
) -> Result<Var> {
    let sizes = check(q, 1, log_scale, bias, windows)?;
    for (operand, var) in [("k", k), ("v", v)] {
        var.value().expect_shape(OP, operand, q.shape())?;
        var.value().expect_dtype(OP, operand, q.value().dtype())?;
        var.value().expect_device(OP, operand, q.value())?;
    }
    let problem = Problem { sizes, windows: windows.clone(), log_scale: log_scale.value().clone() };
    let (out, kept) = problem.forward([q, k, v].map(|var| whole(var.value())), bias.value())?;
    let (vars, log_scale_var, bias_var) =
        ([q, k, v].map(|var| var.handle()), log_scale.clone(), bias.clone());
    Ok(cx.record(out, &[q, k, v, log_scale, bias], move |gradients, dout| {
        let like = || dout.like(dout.shape());
        let grads = [like()?, like()?, like()?];
        let views = grads.each_ref().map(whole);
        problem.backward(gradients, kept, &dout, [&log_scale_var, &bias_var], views)?;
        vars.iter().zip(grads).try_for_each(|(var, gradient)| gradients.add(var, gradient))
    }))
}

const OP: &str = "window_attention";

struct Problem {
    sizes: Sizes,
    windows: WindowIndex,
    log_scale: Tensor,
}

/// What the forward pass leaves for the backward pass.
struct Kept {
    /// Scaled q and k of length 1, and v: `[groups, places, dim]`.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// One over the lengths of q and k, `[groups, places]` f32.
    q_inverse: Tensor,
    k_inverse: Tensor,
    /// Probabilities `[groups, places, places]`.
    p: Tensor,
}

impl Problem {
    fn forward(&self, [q, k, v]: [Rows<'_>; 3], bias: &Tensor) -> Result<(Tensor, Kept)> {
        let Sizes { batch, places: n, dim, .. } = self.sizes;
        let (q, q_inverse) = self.unit_heads(q, Some(&self.log_scale))?;
        let (k, k_inverse) = self.unit_heads(k, None)?;
        let v = self.heads(v)?;
        let scores = v.beside(DType::F32, &self.sizes.by_group(n))?;
        self.product(&scores, Operand::stacked(&q, n, dim), Operand::stacked(&k, n, dim).t())?;
        let p = match v.gpu() {
            None => {
                cpu::softmax(&mut scores.write(), &bias.read(), self.windows.regions(), self.sizes);
                scores
            }
            Some(gpu) => {
                let p = v.like(scores.shape())?;
                cuda::softmax(gpu, &scores, bias, self.windows.regions(), &p, self.sizes)?;
                p
            }
        };
        let mixed = v.like(&self.sizes.by_group(dim))?;
        self.product(&mixed, Operand::stacked(&p, n, n), Operand::stacked(&v, n, dim))?;
        let out = v.like(&[batch, self.sizes.tokens(), self.sizes.width()])?;
        self.tokens(&mixed, whole(&out))?;
        Ok((out, Kept { q, k, v, q_inverse, k_inverse, p }))
    }

    /// With scores S: `dv = Pᵀ dout`, `dS = P ∘ (dP − Σ_j P dP)` for `dP = dout vᵀ`, the bias' gradient is the sum of dS
    /// over samples and windows, and `dS k`, `dSᵀ q` are those of q and k of length 1.
    fn backward(
        &self,
        gradients: &mut Gradients,
        kept: Kept,
        dout: &Tensor,
        [log_scale, bias]: [&Var; 2],
        [dq, dk, dv]: [Rows<'_>; 3],
    ) -> Result<()> {
        let Sizes { batch, windows, places: n, heads, dim } = self.sizes;
        let Kept { q, k, v, q_inverse, k_inverse, p } = kept;
        let dmixed = self.heads(whole(dout))?;
        let by_head = |tensor| Operand::stacked(tensor, n, dim);
        let square = |tensor| Operand::stacked(tensor, n, n);

        let dv_heads = v.like(v.shape())?;
        self.product(&dv_heads, square(&p).t(), by_head(&dmixed))?;
        self.tokens(&dv_heads, dv)?;
        let dp = v.beside(DType::F32, p.shape())?;
        self.product(&dp, by_head(&dmixed), by_head(&v).t())?;
        let ds = match p.gpu() {
            None => {
                cpu::softmax_backward(&p.read(), &mut dp.write(), n);
                dp
            }
            Some(gpu) => {
                let ds = p.like(p.shape())?;
                cuda::softmax_backward(gpu, &p, &dp, &ds)?;
                ds
            }
        };
        if gradients.wants(bias) {
            add_column_sums(gradients, ds.reshape(&[batch * windows, heads * n * n])?, bias)?;
        }

        // These are cut to what is across q and k, where most may cancel: in f32.
        let across = v.beside(DType::F32, v.shape())?;
        self.product(&across, square(&ds), by_head(&k))?;
        let along = v.beside(DType::F32, &[batch * self.sizes.tokens(), heads])?;
        self.unit_gradient(&across, (&q, &q_inverse), Some((&self.log_scale, &along)), dq)?;
        if gradients.wants(log_scale) {
            add_column_sums(gradients, along, log_scale)?;
        }
        self.product(&across, square(&ds).t(), by_head(&q))?;
        self.unit_gradient(&across, (&k, &k_inverse), None, dk)
    }

    /// `out[g] = a[g] b[g]` for each group, `out` stacked as its last two dimensions say.
    fn product(&self, out: &Tensor, a: Operand<'_>, b: Operand<'_>) -> Result<()> {
        product(self.sizes.groups(), Operand::stacked(out, a.rows, b.cols), false, a, b)
    }

    /// The rows of the map by group, `[groups, places, dim]`.
    fn heads(&self, rows: Rows<'_>) -> Result<Tensor> {
        let heads = rows.tensor.like(&self.sizes.by_group(self.sizes.dim))?;
        match heads.gpu() {
            None => cpu::heads(rows, self.windows.token_of(), &mut heads.write(), self.sizes),
            Some(gpu) => cuda::heads(gpu, rows, self.windows.token_of(), None, None, &heads, self.sizes)?,
        }
        Ok(heads)
    }

    /// [`Problem::heads`] of length 1, times the head's scale where there is one; and one over their lengths.
    fn unit_heads(&self, rows: Rows<'_>, log_scale: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let Sizes { places, dim, .. } = self.sizes;
        let token_of = self.windows.token_of();
        let inverse = rows.tensor.beside(DType::F32, &[self.sizes.groups(), places])?;
        let heads = match rows.tensor.gpu() {
            None => {
                let heads = self.heads(rows)?;
                let log_scale = log_scale.map(Tensor::read);
                let (values, lengths) = (&mut heads.write(), &mut inverse.write());
                cpu::to_unit(values, lengths, log_scale.as_deref(), self.sizes);
                heads.clone()
            }
            Some(gpu) => {
                let heads = rows.tensor.like(&self.sizes.by_group(dim))?;
                cuda::heads(gpu, rows, token_of, log_scale, Some(&inverse), &heads, self.sizes)?;
                heads
            }
        };
        Ok((heads, inverse))
    }

    /// The inverse of [`Problem::heads`].
    fn tokens(&self, heads: &Tensor, rows: Rows<'_>) -> Result<()> {
        match heads.gpu() {
            None => cpu::tokens(&heads.read(), self.windows.place_of(), rows, self.sizes),
            Some(gpu) => cuda::tokens(gpu, heads, self.windows.place_of(), rows, self.sizes)?,
        }
        Ok(())
    }

    /// The gradient of the rows that [`Problem::unit_heads`] took, from `g`, that of what it made: with `u` of length 1,
    /// `r` the inverse length and `s` the scale it is `r s (g − u (u · g))`; and that of the logarithm of the scale,
    /// `s u · g` for each token and head.
    fn unit_gradient(
        &self,
        g: &Tensor,
        unit: (&Tensor, &Tensor),
        scale: Option<(&Tensor, &Tensor)>,
        rows: Rows<'_>,
    ) -> Result<()> {
        let place_of = self.windows.place_of();
        match g.gpu() {
            None => cpu::unit_gradient(&g.read(), unit, scale, place_of, rows, self.sizes),
            Some(gpu) => cuda::unit_gradient(gpu, g, unit, scale, place_of, rows, self.sizes)?,
        }
        Ok(())
    }
}

/// Adds the sum of the rows of `d` to the gradient of `var`, which has as many values as `d` has columns.
fn add_column_sums(gradients: &mut Gradients, d: Tensor, var: &Var) -> Result<()> {
    backward_linear(gradients, d, None, Activation::Identity, Some(var)).map(drop)
}

fn check(x: &Var, parts: usize, log_scale: &Var, bias: &Var, windows: &WindowIndex) -> Result<Sizes> {
    let operand = if parts == 1 { "q" } else { "qkv" };
    super::matmul::expect_float(OP, operand, x.value())?;
    x.value().expect_device(OP, operand, windows.token_of())?;
    let &[heads] = log_scale.shape() else {
        let (expected, got) = ("[heads]".to_owned(), log_scale.shape().to_vec());
        return Err(EngineError::Shape { op: OP, operand: "log_scale", expected, got });
    };
    let (tokens, n) = (windows.tokens(), windows.places());
    let sizes = match *x.shape() {
        [batch, t, width] if t == tokens && heads > 0 && width > 0 && width % (parts * heads) == 0 => {
            Sizes { batch, windows: windows.windows(), places: n, heads, dim: width / (parts * heads) }
        }
        _ => {
            let expected = format!("[batch, {tokens}, {parts} · {heads} heads · dim]");
            return Err(EngineError::Shape { op: OP, operand, expected, got: x.shape().to_vec() });
        }
    };
    bias.value().expect_shape(OP, "bias", &[heads, n, n])?;
    for (operand, var) in [("log_scale", log_scale), ("bias", bias)] {
        var.value().expect_dtype(OP, operand, DType::F32)?;
        var.value().expect_device(OP, operand, x.value())?;
    }
    Ok(sizes)
}
