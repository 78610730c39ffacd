//! Dropout: in training, each element is zero with probability p and scaled by 1 / (1 − p) else.

use lacewing_engine::{Cx, EngineError, Var, ops};

/// Dropout with a given probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zero, in [0, 1).
    pub probability: f32,
}

impl Dropout {
    /// With probability `p` of zero.
    pub fn new(p: f64) -> Self {
        Self { probability: p as f32 }
    }

    /// `x` itself in evaluation or when p = 0.
    ///
    /// # Errors
    ///
    /// What the engine reports, as for p outside [0, 1).
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        if self.probability == 0.0 || !cx.is_training() {
            return Ok(x.clone());
        }
        ops::dropout(cx, x, self.probability)
    }
}
