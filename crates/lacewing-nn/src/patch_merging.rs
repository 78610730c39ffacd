//! Fewer, wider tokens: each square of four neighbours of a map becomes one token.

use crate::{LayerNorm, Linear, LinearOptions, Result, Scope};
use lacewing_engine::ops::{self, GatherIndex};
use lacewing_engine::{Cx, EngineError, Var};

/// `norm(reduction(the four tokens of a square side by side))`, in the order of Swin Transformer: the upper left, the lower
/// left, the upper right, the lower right.
#[derive(Debug)]
pub struct PatchMerging {
    side: usize,
    /// Two rows of the map to the squares in them.
    squares: GatherIndex,
    reduction: Linear,
    norm: LayerNorm,
}

impl PatchMerging {
    /// Adds `reduction [2 · dim, 4 · dim]`, without a bias, and `norm` to `scope`, for maps of `side × side` tokens of `dim`
    /// channels, `side` even.
    ///
    /// # Errors
    ///
    /// As [`Scope::linear`].
    pub fn new(
        scope: &mut Scope<'_>,
        side: usize,
        dim: usize,
        norm_eps: f64,
        linear: LinearOptions,
    ) -> Result<Self> {
        let half = side / 2;
        let code = |at: usize| {
            let (square, part, channel) = (at / (4 * dim), at / dim % 4, at % dim);
            let (row, col) = (part % 2, 2 * square + part / 2);
            ((row * side + col) * dim + channel) as u32
        };
        let codes: Vec<u32> = (0..4 * half * dim).map(code).collect();
        let squares = GatherIndex::new(scope.device(), 2 * side * dim, 1, &codes)?;
        let options = LinearOptions { bias: false, ..linear };
        let reduction = scope.with_rows(half * half).linear("reduction", 4 * dim, 2 * dim, options)?;
        Ok(Self { side, squares, reduction, norm: LayerNorm::new(scope, "norm", 2 * dim, norm_eps)? })
    }

    /// `x [batch, side², dim]` → `[batch, (side / 2)², 2 · dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports, as for a map of another size.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let (batch, half) = (x.shape()[0], self.side / 2);
        let rows = cx.reshape(x, &[batch * half, self.squares.n_in()])?;
        let squares = ops::gather(cx, &rows, &self.squares)?;
        let squares = cx.reshape(&squares, &[batch, half * half, self.squares.n_out() / half])?;
        self.norm.forward(cx, &self.reduction.forward(cx, &squares)?)
    }
}
