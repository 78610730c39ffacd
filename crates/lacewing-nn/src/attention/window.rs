//! Multi-head attention within the windows of a square map, as in Swin Transformer V2: scores by cosine, with a scale a
//! head and a bias for each pair of places.

use super::position_bias::{PositionBias, RelativePositions};
use super::{AttentionOptions, Inputs, check_heads};
use crate::{Dropout, Linear, LinearOptions, Result, Scope};
use lacewing_core::Gather;
use lacewing_engine::ops::{self, GatherIndex, WindowIndex};
use lacewing_engine::{Cx, EngineError, ParamId, Var};

/// Sizes and options of a [`WindowAttention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowAttentionOptions {
    /// What any attention has; its first values are those of the position bias as well.
    pub attention: AttentionOptions,
    /// Side of the map.
    pub side: usize,
    /// Side of a window, a divisor of it.
    pub window: usize,
    /// By how much the map is shifted cyclically before it is cut; less than a window.
    pub shift: usize,
}

/// `proj(softmax(s · cos(q, k) + bias) v)` within windows; q and v have a bias, k has none.
///
/// Parameters: `logit_scale [heads]`, the logarithm of s; `q_bias [dim]` and `v_bias [dim]`; `cpb_mlp`, the perceptron of the
/// position bias; `qkv`, or `q`, `k` and `v`; `proj`.
#[derive(Debug)]
pub struct WindowAttention {
    windows: WindowIndex,
    log_scale: ParamId,
    inputs: Inputs,
    bias: Option<InputBias>,
    positions: PositionBias,
    proj: Linear,
    dropout: Dropout,
}

/// The biases of q and v, and where they stand in that of a fused layer.
#[derive(Debug)]
struct InputBias {
    q: ParamId,
    v: ParamId,
    /// Absent where q and v are layers of their own.
    places: Option<[GatherIndex; 2]>,
}

impl WindowAttention {
    /// Adds the layers to `scope`, whose rows a sample are the tokens of the map.
    ///
    /// # Errors
    ///
    /// [`NnError::Heads`](crate::NnError::Heads) when `heads` does not divide `dim`; [`NnError::Engine`](crate::NnError::Engine)
    /// for a window or a shift that does not fit; as [`Scope::linear`].
    pub fn new(
        scope: &mut Scope<'_>,
        options: WindowAttentionOptions,
        positions: &RelativePositions,
    ) -> Result<Self> {
        let WindowAttentionOptions { attention, side, window, shift } = options;
        let AttentionOptions { dim, heads, split_qkv, linear, .. } = attention;
        check_heads(scope, dim, heads)?;
        let windows = WindowIndex::new(scope.device(), side, window, shift)?;
        let log_scale = scope.parameter("logit_scale", &[heads], false, |_| vec![10f32.ln(); heads])?;
        let bias = attention.qkv_bias.then(|| InputBias::new(scope, dim, split_qkv)).transpose()?;
        let positions = PositionBias::new(scope, "cpb_mlp", heads, linear.init, positions)?;
        let input = LinearOptions { bias: false, ..linear };
        let inputs = Inputs::new(scope, dim, split_qkv, input)?;
        let proj = scope.linear("proj", dim, dim, linear)?;
        // q kᵀ and a v: a window's places · dim for each token.
        scope.add_macs(2 * (windows.tokens() * windows.places() * dim) as u64);
        let dropout = Dropout::new(attention.dropout);
        Ok(Self { windows, log_scale, inputs, bias, positions, proj, dropout })
    }

    /// `x [batch, side², dim]` → `[batch, side², dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let log_scale = cx.param_f32(self.log_scale);
        let positions = self.positions.forward(cx)?;
        let of = |id: fn(&InputBias) -> ParamId| self.bias.as_ref().map(|bias| cx.param(id(bias)));
        let biased = |layer: &Linear, bias: Option<Var>| match bias {
            Some(bias) => layer.forward_biased(cx, x, &bias),
            None => layer.forward(cx, x),
        };
        let mixed = match &self.inputs {
            Inputs::Fused(qkv) => {
                let bias = self.bias.as_ref().and_then(|bias| bias.fused(cx)).transpose()?;
                ops::window_attention(cx, &biased(qkv, bias)?, &log_scale, &positions, &self.windows)?
            }
            Inputs::Split { q, k, v } => {
                let (q, v) = (biased(q, of(|bias| bias.q))?, biased(v, of(|bias| bias.v))?);
                let qkv = [&q, &k.forward(cx, x)?, &v];
                ops::window_attention_separate(cx, qkv, &log_scale, &positions, &self.windows)?
            }
        };
        self.dropout.forward(cx, &self.proj.forward(cx, &mixed)?)
    }
}

impl InputBias {
    fn new(scope: &mut Scope<'_>, dim: usize, split: bool) -> Result<Self> {
        let q = scope.parameter("q_bias", &[dim], false, |_| vec![0.0; dim])?;
        let v = scope.parameter("v_bias", &[dim], false, |_| vec![0.0; dim])?;
        let place = |part: usize| {
            let own = part * dim..(part + 1) * dim;
            let code = |at: usize| if own.contains(&at) { (at - own.start) as u32 } else { Gather::NONE };
            GatherIndex::new(scope.device(), dim, 1, &(0..3 * dim).map(code).collect::<Vec<_>>())
        };
        let places = if split { None } else { Some([place(0)?, place(2)?]) };
        Ok(Self { q, v, places })
    }

    /// `[3 · dim]`: that of q, zeros for k, that of v.
    fn fused(&self, cx: &Cx) -> Option<Result<Var, EngineError>> {
        let [q, v] = self.places.as_ref()?;
        let q = ops::gather(cx, &cx.param(self.q), q);
        let v = ops::gather(cx, &cx.param(self.v), v);
        Some(q.and_then(|q| ops::add(cx, &q, &v?)))
    }
}
