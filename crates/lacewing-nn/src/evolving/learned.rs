//! Learned masks: scores of places, and the mask they choose.

use super::{Effective, Evolving, Kind, block_norms, pattern_of};
use crate::Result;
use crate::module::Scope;
use lacewing_core::{Choice, LearnSchedule, Pattern, Penalty, Schedule, Score, choose_places};
use lacewing_engine::ops::{ScoreStep, mask_blocks, score_blocks, score_step};
use lacewing_engine::{EngineError, ParamId, Params, Tensor};

/// A learned mask: values of the model that the optimizer does not train.
#[derive(Debug)]
pub(crate) struct Learned {
    pub(crate) effective: Effective,
    scores: Scores,
    /// `[grid rows, grid columns]`: 1 for each place that counts, 0 for the others.
    mask: ParamId,
    /// How many values the model has for all of it.
    pub(crate) values: usize,
}

/// A score for each place.
#[derive(Debug)]
struct Scores {
    /// `[grid rows, grid columns]`.
    id: ParamId,
    /// Adam's moments of them, where they are trained.
    moments: Option<[ParamId; 2]>,
}

/// What scores are trained with at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRate {
    /// The recipe's learning rate as a share of its peak.
    pub share: f64,
    /// Optimizer steps, with this one.
    pub steps: u64,
    /// The penalty on scores, and its weight.
    pub penalty: (Penalty, f64),
}

impl Learned {
    /// Adds scores and a mask of all places to `scope`.
    pub(crate) fn build(scope: &mut Scope<'_>, schedule: &LearnSchedule, pattern: &Pattern) -> Result<Self> {
        let (rows, cols) = pattern.grid();
        let mut values = 0;
        let mut constant = |name: &str, value: f32| {
            values += rows * cols;
            scope.constant(name, &[rows, cols], || vec![value; rows * cols])
        };
        let id = constant("scores", 0.0)?;
        let moments = match schedule.score {
            Score::Trained { .. } => {
                Some([constant("scores_first_moment", 0.0)?, constant("scores_second_moment", 0.0)?])
            }
            Score::Movement | Score::Magnitude => None,
        };
        let mask = constant("mask", 1.0)?;
        Ok(Self { effective: Effective::new(), scores: Scores { id, moments }, mask, values })
    }
}

impl Evolving {
    /// Makes the effective weights under the learned mask in `by`, shaped as the masters.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn let_through(&self, params: &Params, by: &Tensor) -> Result<(), EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(()) };
        let out = self.effective(&learned.effective, params)?;
        mask_blocks(&params.master(self.weight), &params.view(by, learned.mask), self.block(), out)
    }

    /// Takes the gradient of the effective weights into the scores, and makes it that of the stored ones: none for weights that
    /// do not count. Before clipping.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn learn(&self, params: &Params, rate: ScoreRate) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        let scores = &learned.scores;
        match (schedule.score, scores.moments) {
            (Score::Movement, _) => {
                score_blocks(&gradient, &weight, self.block(), &params.master(scores.id))?;
            }
            (Score::Trained { lr }, Some(moments)) => {
                // Constants have a gradient that nothing else writes: zeros, as a step leaves it.
                let movement = params.gradient(scores.id)?;
                score_blocks(&gradient, &weight, self.block(), &movement)?;
                let (penalty, weight) = rate.penalty;
                let step = ScoreStep {
                    lr: (lr * rate.share) as f32,
                    steps: rate.steps,
                    penalty: (weight / movement.len() as f64) as f32,
                    shift: penalty.shift() as f32,
                };
                let [first, second] = moments.map(|id| params.master(id));
                score_step(&params.master(scores.id), &movement, [&first, &second], step)?;
            }
            _ => {}
        }
        mask_blocks(&gradient, &params.master(learned.mask), self.block(), &gradient)
    }

    /// Chooses the learned mask anew by the scores.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn choose_mask(&self, params: &Params, choice: Choice) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let scores: Vec<f64> = match schedule.score {
            Score::Movement | Score::Trained { .. } => {
                params.master(learned.scores.id).to_f32()?.into_iter().map(f64::from).collect()
            }
            Score::Magnitude => {
                let structure = self.structure();
                let pattern = pattern_of(&*structure);
                let mut norms = vec![0.0; pattern.grid().0 * pattern.grid().1];
                block_norms(pattern, &params.master(self.weight).to_f32()?, &mut norms);
                norms
            }
        };
        let counts = choose_places(&scores, choice);
        let mask: Vec<f32> = counts.into_iter().map(|counts| if counts { 1.0 } else { 0.0 }).collect();
        params.master(learned.mask).set_f32(&mask)
    }

    /// Which places of the grid count by the learned mask in `by`, shaped as the masters; none without a learned mask.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn learned_mask(&self, params: &Params, by: &Tensor) -> Result<Option<Vec<bool>>, EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(None) };
        let mask = params.view(by, learned.mask).to_f32()?;
        Ok(Some(mask.into_iter().map(|factor| factor != 0.0).collect()))
    }
}
