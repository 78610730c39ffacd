//! The pre-norm block of a transformer encoder: `x ← x + attn(norm1(x))`, then `x ← x + mlp(norm2(x))`.

use crate::{
    AttentionOptions, DropPath, LayerNorm, Mlp, MlpOptions, MultiHeadAttention, Nonlinearity, ResidualBlock,
    ResidualStream, Result, Scope,
};
use lacewing_engine::{Cx, EngineError};

/// Sizes and options of the blocks of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerBlockOptions {
    /// The attention; its width, dropout and first values are those of the whole block.
    pub attention: AttentionOptions,
    /// Width between the layers of the MLP.
    pub hidden: usize,
    /// Between the layers of the MLP.
    pub activation: Nonlinearity,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Blocks of the model.
    pub depth: usize,
    /// Probability of dropping a branch of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
}

/// Attention and MLP, each behind a norm and added to the residual stream.
#[derive(Debug)]
pub struct TransformerBlock {
    norm1: LayerNorm,
    attn: MultiHeadAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    drop_path: DropPath,
}

impl TransformerBlock {
    /// Adds `norm1`, `attn`, `norm2` and `mlp` of block `at` to `scope`.
    ///
    /// # Errors
    ///
    /// As [`Mlp::new`].
    pub fn new(scope: &mut Scope<'_>, options: TransformerBlockOptions, at: usize) -> Result<Self> {
        let TransformerBlockOptions { attention, hidden, activation, norm_eps, depth, drop_path } = options;
        let AttentionOptions { dim, dropout, linear, .. } = attention;
        Ok(Self {
            norm1: LayerNorm::new(scope, "norm1", dim, norm_eps)?,
            attn: MultiHeadAttention::new(&mut scope.scope("attn"), attention)?,
            norm2: LayerNorm::new(scope, "norm2", dim, norm_eps)?,
            mlp: Mlp::new(&mut scope.scope("mlp"), MlpOptions { dim, hidden, activation, dropout, linear })?,
            drop_path: DropPath::linear(drop_path, at, depth),
        })
    }
}

impl ResidualBlock for TransformerBlock {
    fn forward(&self, cx: &Cx, stream: &mut ResidualStream) -> Result<(), EngineError> {
        let y = stream.norm(cx, &self.norm1)?;
        stream.add(cx, self.attn.forward(cx, &y)?, self.drop_path.scale(cx, stream.batch())?)?;
        let y = stream.norm(cx, &self.norm2)?;
        stream.add(cx, self.mlp.forward(cx, &y)?, self.drop_path.scale(cx, stream.batch())?)
    }
}
