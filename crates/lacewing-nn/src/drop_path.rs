//! Stochastic depth: in training, a residual branch of a sample is dropped with probability p and scaled by
//! 1 / (1 − p) else.

use lacewing_engine::{Cx, EngineError, Tensor, ops};

/// Stochastic depth with a given probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropPath {
    /// Probability of dropping, in [0, 1).
    pub probability: f32,
}

impl DropPath {
    /// With probability `p` of dropping.
    pub fn new(p: f64) -> Self {
        Self { probability: p as f32 }
    }

    /// The probability of block `at` of `depth` when it grows linearly from 0 to `last`.
    pub fn linear(last: f64, at: usize, depth: usize) -> Self {
        Self::new(last * at as f64 / depth.saturating_sub(1).max(1) as f64)
    }

    /// The factor of each sample, `[batch]`; `None` when all are 1. It is for the residual addition to apply.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn scale(&self, cx: &Cx, batch: usize) -> Result<Option<Tensor>, EngineError> {
        ops::drop_path_scale(cx, batch, self.probability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_runs_from_zero_to_the_last() {
        let at = |i| DropPath::linear(0.25, i, 5).probability;
        assert_eq!([at(0), at(2), at(4)], [0.0, 0.125, 0.25]);
        assert_eq!(DropPath::linear(0.25, 0, 1).probability, 0.0);
    }
}
