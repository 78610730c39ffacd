//! Multi-head self-attention: `softmax(q kᵀ / √d) v` for each head, between linear layers.

mod position_bias;
mod window;

use crate::{Dropout, Linear, LinearOptions, NnError, Result, Scope};
use lacewing_engine::{Cx, EngineError, Var, ops};
pub use position_bias::RelativePositions;
pub use window::{WindowAttention, WindowAttentionOptions};

/// Sizes and options of a [`MultiHeadAttention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Width of input and output; a multiple of `heads`.
    pub dim: usize,
    /// Heads, of `dim / heads` channels each.
    pub heads: usize,
    /// Whether q, k and v are three layers, so that each has its own structure, instead of one.
    pub split_qkv: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Probability of zero after the projection.
    pub dropout: f64,
    /// First values and biases.
    pub linear: LinearOptions,
}

/// `proj(attention(q, k, v))` with `qkv [3 · dim, dim]`, or `q`, `k`, `v` of `[dim, dim]` each, and `proj [dim, dim]`.
#[derive(Debug)]
pub struct MultiHeadAttention {
    inputs: Inputs,
    proj: Linear,
    heads: usize,
    dropout: Dropout,
}

#[derive(Debug)]
enum Inputs {
    /// Rows of the output: all of q, then k, then v, each by head.
    Fused(Linear),
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
}

impl Inputs {
    /// Adds `qkv [3 · dim, dim]`, or `q`, `k` and `v` of `[dim, dim]` each.
    fn new(scope: &mut Scope<'_>, dim: usize, split: bool, options: LinearOptions) -> Result<Self> {
        if !split {
            return Ok(Self::Fused(scope.linear("qkv", dim, 3 * dim, options)?));
        }
        let mut one = |name| scope.linear(name, dim, dim, options);
        Ok(Self::Split { q: one("q")?, k: one("k")?, v: one("v")? })
    }
}

/// Checks that `heads` divides `dim`.
fn check_heads(scope: &Scope<'_>, dim: usize, heads: usize) -> Result<()> {
    if heads == 0 || !dim.is_multiple_of(heads) {
        return Err(NnError::Heads { layer: scope.path().to_owned(), dim, heads });
    }
    Ok(())
}

impl MultiHeadAttention {
    /// Adds the layers to `scope`, whose rows a sample are the tokens.
    ///
    /// # Errors
    ///
    /// [`NnError::Heads`] when `heads` does not divide `dim`; as [`Scope::linear`].
    pub fn new(scope: &mut Scope<'_>, options: AttentionOptions) -> Result<Self> {
        let AttentionOptions { dim, heads, linear, .. } = options;
        check_heads(scope, dim, heads)?;
        let input = LinearOptions { bias: options.qkv_bias, ..linear };
        let inputs = Inputs::new(scope, dim, options.split_qkv, input)?;
        let proj = scope.linear("proj", dim, dim, linear)?;
        let tokens = scope.rows() as u64;
        // q kᵀ and a v: tokens² · dim each.
        scope.add_macs(2 * tokens * tokens * dim as u64);
        Ok(Self { inputs, proj, heads, dropout: Dropout::new(options.dropout) })
    }

    /// `x [batch, tokens, dim]` → `[batch, tokens, dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let mixed = match &self.inputs {
            Inputs::Fused(qkv) => ops::attention(cx, &qkv.forward(cx, x)?, self.heads, None)?,
            Inputs::Split { q, k, v } => {
                let (q, k, v) = (q.forward(cx, x)?, k.forward(cx, x)?, v.forward(cx, x)?);
                ops::attention_separate(cx, &q, &k, &v, self.heads, None)?
            }
        };
        self.dropout.forward(cx, &self.proj.forward(cx, &mixed)?)
    }
}
