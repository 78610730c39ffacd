//! Masks of N:M chosen by magnitude: effective weights, and the gradients of dropped ones.

use super::{Evolving, Kind, pattern_of};
use lacewing_core::{Axis, GradientPolicy, MaskPhase, PatternKind, Schedule};
use lacewing_engine::ops::{NmFactors, NmGroups, nm_scale};
use lacewing_engine::{DType, EngineError, Params, Tensor};

impl Evolving {
    /// Chooses the mask of `phase` by the weights in `by`, shaped as the masters, and makes the effective weights of the
    /// parameters as they are: `W ⊙ (m + (1 − m) d)`.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer under moves.
    pub fn mask(&self, params: &Params, phase: MaskPhase, by: &Tensor) -> Result<(), EngineError> {
        let Kind::Masked(effective) = &self.kind else { return Ok(()) };
        let (weight, out) = (params.master(self.weight), self.effective(effective, params)?);
        let (groups, dropped) = self.groups(phase);
        let factors = NmFactors { kept: 1.0, dropped };
        nm_scale(&params.view(by, self.weight), &weight, groups, factors, out, false)
    }

    /// Makes the gradient of the effective weights that of the stored ones, by the schedule's policy; before clipping.
    ///
    /// `lr` is the step's learning rate, for a decoupled decay of dropped weights.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer under moves.
    pub fn edit_gradient(&self, params: &Params, phase: MaskPhase, lr: f64) -> Result<(), EngineError> {
        let (Kind::Masked(_), Schedule::Masks(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        let (groups, rest) = self.groups(phase);
        match schedule.gradient {
            _ if phase == MaskPhase::Dense => Ok(()),
            GradientPolicy::StraightThrough => Ok(()),
            GradientPolicy::Masked => {
                let factors = NmFactors { kept: 1.0, dropped: rest };
                nm_scale(&weight, &gradient, groups, factors, &gradient, false)
            }
            GradientPolicy::SrSte { lambda, decoupled: false } => {
                let factors = NmFactors { kept: 0.0, dropped: lambda as f32 };
                nm_scale(&weight, &weight, groups, factors, &gradient, true)
            }
            GradientPolicy::SrSte { lambda, decoupled: true } => {
                let factors = NmFactors { kept: 1.0, dropped: (1.0 - lr * lambda) as f32 };
                // Not in place: a group's other weights are read to rank each.
                let decayed = Tensor::empty(&params.device(), DType::F32, weight.shape())?;
                nm_scale(&weight, &weight, groups, factors, &decayed, false)?;
                weight.set_from(&decayed)
            }
        }
    }

    /// The groups of a phase, and what dropped weights count.
    fn groups(&self, phase: MaskPhase) -> (NmGroups, f32) {
        let axis = match pattern_of(&*self.structure()).kind {
            PatternKind::Nm { axis, .. } => axis,
            _ => Axis::Row,
        };
        match phase {
            MaskPhase::Dense => (NmGroups { n: 1, m: 1, axis }, 1.0),
            MaskPhase::Masked { n, m, rest } => (NmGroups { n, m, axis }, rest as f32),
        }
    }
}
