//! Learned masks: scores of places, and the mask they choose.

use super::{Evolving, Kind, block_norms, pattern_of};
use lacewing_core::{Schedule, Score, choose_places};
use lacewing_engine::ops::{mask_blocks, score_blocks};
use lacewing_engine::{EngineError, Params, Tensor};

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
    /// do not count.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn learn(&self, params: &Params) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        if schedule.score == Score::Movement {
            score_blocks(&gradient, &weight, self.block(), &params.master(learned.scores))?;
        }
        mask_blocks(&gradient, &params.master(learned.mask), self.block(), &gradient)
    }

    /// Chooses the learned mask anew: the `density` of the places with the highest scores.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn choose_mask(&self, params: &Params, density: f64) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let scores: Vec<f64> = match schedule.score {
            Score::Movement => params.master(learned.scores).to_f32()?.into_iter().map(f64::from).collect(),
            Score::Magnitude => {
                let structure = self.structure();
                let pattern = pattern_of(&*structure);
                let mut norms = vec![0.0; pattern.grid().0 * pattern.grid().1];
                block_norms(pattern, &params.master(self.weight).to_f32()?, &mut norms);
                norms
            }
        };
        let counts = choose_places(&scores, density);
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
