//! Schedules of learned masks: all weights are stored with a score for each place, and the places of the highest scores count.
//!
//! The density falls from 1 to the target's along a cubic, as in movement pruning (Sanh et al. 2020): with b the step at which
//! pruning begins and e the one at which fine-tuning does, `target + (1 − target) (1 − (t − b)/(e − b))³` between them.

use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::mask::keep_largest;
use crate::{Horizon, Span, StructureError};

/// What a place is scored by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// −Σ g w over the steps, w the place's weights and g the gradient of the effective ones: weights that training moves
    /// away from zero rise.
    Movement,
    /// The magnitude of the weight, or the norm of a block, at the time.
    Magnitude,
}

/// A schedule of learned masks, as a config says it.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnSchedule {
    /// The name of its row in the table.
    pub name: &'static str,
    /// What places are scored by.
    pub score: Score,
    /// All weights count until then.
    pub dense: Span,
    /// Before the end, the density is the target's for that long.
    pub fine_tune: Span,
    /// From one choice of the mask to the next.
    pub every: Span,
}

/// A schedule of learned masks for one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnPlan {
    begin: u64,
    end: u64,
    total: u64,
    every: u64,
}

pub(crate) const DENSE: Key = Key::new("dense", "time at the start in which all weights count", "0.1");
pub(crate) const FINE_TUNE: Key = Key::new("fine_tune", "time at the end with the final density", "0.2");
pub(crate) const EVERY: Key =
    Key::new("every", "time from one choice of the mask to the next", "\"10 steps\"");

impl LearnSchedule {
    /// Reads the keys that all of them share.
    pub(crate) fn read(options: &Options, score: Score) -> Result<Self, StructureError> {
        let (dense, fine_tune) = (options.span("dense")?, options.span("fine_tune")?);
        Ok(Self { name: options.structure(), score, dense, fine_tune, every: options.span("every")? })
    }

    /// The plan for a run.
    ///
    /// # Errors
    ///
    /// [`StructureError::Phases`] when the dense and the fine-tuning phase leave nothing between them.
    pub fn plan(&self, horizon: Horizon) -> Result<LearnPlan, StructureError> {
        let total = horizon.total_steps;
        let (dense, fine_tune) = (self.dense.steps(horizon), self.fine_tune.steps(horizon));
        if dense + fine_tune > total {
            let (what, got) = ("dense + fine_tune", dense + fine_tune);
            return Err(StructureError::Phases { schedule: self.name, what, got, most: total });
        }
        let every = self.every.steps(horizon).max(1);
        Ok(LearnPlan { begin: dense, end: total - fine_tune, total, every })
    }

    /// The config it was read from, every default filled in.
    pub fn config(&self) -> Value {
        json!({
            "name": self.name, "dense": self.dense.config(), "fine_tune": self.fine_tune.config(),
            "every": self.every.config(),
        })
    }
}

impl LearnPlan {
    /// The share of places that count after `step` steps, given the target's.
    pub fn density(&self, step: u64, target: f64) -> f64 {
        if step <= self.begin && step < self.end {
            return 1.0;
        }
        if step >= self.end {
            return target;
        }
        let left = 1.0 - (step - self.begin) as f64 / (self.end - self.begin) as f64;
        target + (1.0 - target) * left.powi(3)
    }

    /// Whether the mask is chosen anew after `step` steps: every so many from the beginning of pruning on, when the density
    /// is the target's first, and at the end.
    pub fn is_due(&self, step: u64) -> bool {
        let on_the_way =
            step > self.begin && step <= self.total && (step - self.begin).is_multiple_of(self.every);
        on_the_way || step == self.end || step == self.total
    }
}

/// Which of the places count: the `density` of the highest `scores`, at least one; among equals the lowest index is dropped
/// first.
pub fn choose_places(scores: &[f64], density: f64) -> Vec<bool> {
    let kept = ((density * scores.len() as f64).round() as usize).clamp(1.min(scores.len()), scores.len());
    let mut counts = vec![false; scores.len()];
    keep_largest(scores, kept).into_iter().for_each(|place| counts[place] = true);
    counts
}
