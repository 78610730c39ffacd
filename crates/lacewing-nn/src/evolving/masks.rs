//! Masks chosen by magnitude, of N:M or over the whole layer: effective weights, and the gradients of dropped ones.

use super::{Evolving, Kind, pattern_of};
use lacewing_core::{Axis, GradientPolicy, MaskPhase, PatternKind, Schedule};
use lacewing_engine::ops::{MaskFactors, NmGroups, magnitude_scale, nm_scale};
use lacewing_engine::{DType, EngineError, Params, Tensor};

/// Which weights a mask keeps.
#[derive(Clone, Copy)]
enum Kept {
    /// The largest of each group.
    Groups(NmGroups),
    /// So many, the largest of the layer.
    Largest(usize),
}

impl Kept {
    /// `out = values · f`, or `out += values · f`, f a factor for places of `by` that are kept and one for the others.
    fn scale(
        self,
        by: &Tensor,
        values: &Tensor,
        factors: MaskFactors,
        out: &Tensor,
        accumulate: bool,
    ) -> Result<(), EngineError> {
        match self {
            Self::Groups(groups) => nm_scale(by, values, groups, factors, out, accumulate),
            Self::Largest(kept) => magnitude_scale(by, values, kept, factors, out, accumulate),
        }
    }
}

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
        let (mask, dropped) = self.kept(phase);
        let factors = MaskFactors { kept: 1.0, dropped };
        mask.scale(&params.view(by, self.weight), &weight, factors, out, false)
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
        let (mask, rest) = self.kept(phase);
        match schedule.gradient {
            _ if phase == MaskPhase::Dense => Ok(()),
            GradientPolicy::StraightThrough => Ok(()),
            GradientPolicy::Masked => {
                let factors = MaskFactors { kept: 1.0, dropped: rest };
                mask.scale(&weight, &gradient, factors, &gradient, false)
            }
            GradientPolicy::SrSte { lambda, decoupled: false } => {
                let factors = MaskFactors { kept: 0.0, dropped: lambda as f32 };
                mask.scale(&weight, &weight, factors, &gradient, true)
            }
            GradientPolicy::SrSte { lambda, decoupled: true } => {
                let factors = MaskFactors { kept: 1.0, dropped: (1.0 - lr * lambda) as f32 };
                // Not in place: a group's other weights are read to rank each.
                let decayed = Tensor::empty(&params.device(), DType::F32, weight.shape())?;
                mask.scale(&weight, &weight, factors, &decayed, false)?;
                weight.set_from(&decayed)
            }
        }
    }

    /// What a phase keeps, and what dropped weights count.
    fn kept(&self, phase: MaskPhase) -> (Kept, f32) {
        let axis = match pattern_of(&*self.structure()).kind {
            PatternKind::Nm { axis, .. } => Some(axis),
            _ => None,
        };
        match (phase, axis) {
            (MaskPhase::Dense, _) => (Kept::Groups(NmGroups { n: 1, m: 1, axis: Axis::Row }), 1.0),
            (MaskPhase::Masked { n, m, rest }, Some(axis)) => {
                (Kept::Groups(NmGroups { n, m, axis }), rest as f32)
            }
            (MaskPhase::Masked { n, rest, .. }, None) => (Kept::Largest(n), rest as f32),
        }
    }
}
