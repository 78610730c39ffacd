//! A bias of attention scores for each pair of places in a window: a small perceptron of how far apart they are (the
//! continuous relative position bias of Swin Transformer V2), so that a window of any size has one.

use crate::{Result, Scope};
use lacewing_core::{Init, Rng};
use lacewing_engine::ops::{self, Activation, GatherIndex};
use lacewing_engine::{Cx, EngineError, ParamId, Tensor, Var};

/// Width between the layers of the perceptron.
const HIDDEN: usize = 512;

/// The bias lies between 0 and this.
const GREATEST: f32 = 16.0;

/// How far apart two places of a window can be, and which pairs are so far apart. Cloning shares it.
#[derive(Clone, Debug)]
pub struct RelativePositions {
    places: usize,
    /// `[(2 · window − 1)², 2]`: rows and columns, from −8 to 8 on a scale of logarithms.
    distances: Tensor,
    /// From the distances to the pairs of places.
    pairs: GatherIndex,
}

impl RelativePositions {
    /// Of a window of `window × window` places, on the device of `scope`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn new(scope: &Scope<'_>, window: usize) -> Result<Self> {
        let (side, places) = (2 * window - 1, window * window);
        // A window of one place has the distance 0 alone.
        let span = (window.max(2) - 1) as f64;
        let along = |at: usize| {
            let t = 8.0 * (at as f64 + 1.0 - window as f64) / span;
            (t.signum() * (t.abs() + 1.0).log2() / 3.0 * f64::from(u8::from(t != 0.0))) as f32
        };
        let distances: Vec<f32> =
            (0..side * side).flat_map(|at| [along(at / side), along(at % side)]).collect();
        let distance = |from: usize, to: usize| {
            let apart = |a: usize, b: usize| a + window - 1 - b;
            apart(from / window, to / window) * side + apart(from % window, to % window)
        };
        let pairs: Vec<u32> =
            (0..places * places).map(|at| distance(at / places, at % places) as u32).collect();
        let device = scope.device();
        Ok(Self {
            places,
            distances: Tensor::from_f32(device, &distances, &[side * side, 2])?,
            pairs: GatherIndex::new(device, side * side, 1, &pairs)?,
        })
    }
}

/// `bias[head, i, j] = 16 σ(W₂ relu(W₁ d + b))` with d the distance between the places i and j.
///
/// It is computed in f32, once a pass, and its layers take no structure.
#[derive(Debug)]
pub(super) struct PositionBias {
    positions: RelativePositions,
    hidden: ParamId,
    hidden_bias: ParamId,
    out: ParamId,
    heads: usize,
}

impl PositionBias {
    /// Adds `NAME.0.weight [512, 2]`, `NAME.0.bias` and `NAME.2.weight [heads, 512]`; none decays.
    pub(super) fn new(
        scope: &mut Scope<'_>,
        name: &str,
        heads: usize,
        init: Init,
        positions: &RelativePositions,
    ) -> Result<Self> {
        let std = match init {
            Init::TruncNormal { std } => std,
            _ => 0.02,
        };
        let draw = |len: usize| move |mut rng: Rng| (0..len).map(|_| rng.trunc_normal(std) as f32).collect();
        let mut scope = scope.scope(name);
        let mut first = scope.scope("0");
        let hidden = first.parameter("weight", &[HIDDEN, 2], false, draw(2 * HIDDEN))?;
        let hidden_bias = first.parameter("bias", &[HIDDEN], false, |_| vec![0.0; HIDDEN])?;
        let out = scope.scope("2").parameter("weight", &[heads, HIDDEN], false, draw(heads * HIDDEN))?;
        Ok(Self { positions: positions.clone(), hidden, hidden_bias, out, heads })
    }

    /// `[heads, places, places]`, f32.
    pub(super) fn forward(&self, cx: &Cx) -> Result<Var, EngineError> {
        let RelativePositions { places, distances, pairs } = &self.positions;
        let [hidden, hidden_bias, out] = [self.hidden, self.hidden_bias, self.out].map(|id| cx.param_f32(id));
        let distances = cx.constant(distances.clone());
        let y = ops::linear(cx, &distances, &hidden, Some(&hidden_bias), Activation::Relu)?;
        let y = ops::linear(cx, &y, &out, None, Activation::Identity)?;
        let by_head = ops::sigmoid(cx, &ops::transpose(cx, &y)?, GREATEST)?;
        cx.reshape(&ops::gather(cx, &by_head, pairs)?, &[self.heads, *places, *places])
    }
}
