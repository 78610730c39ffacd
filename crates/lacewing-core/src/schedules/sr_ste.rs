//! SR-STE (Zhou et al. 2021): straight-through, and dropped weights are drawn to zero so that the mask settles.

use super::{Schedule, ScheduleKind};
use crate::MaskSchedule;
use crate::config::Key;
use crate::mask_plan::{ALIGN, DENSE, FINE_TUNE, GradientPolicy};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "sr_ste",
    about: "the largest of n:m, or of the layer, at each step; dropped weights get the gradient, and decay",
    keys: &[
        Key::new("lambda", "λ of the term λ (1 − m) W", "2e-4"),
        Key::new("decoupled", "the term is a decay of the weight instead of a part of the gradient", "false"),
        DENSE,
        FINE_TUNE,
        ALIGN,
    ],
    build: |options| {
        let (lambda, decoupled) = (options.number("lambda", 0.0, f64::MAX)?, options.flag("decoupled")?);
        let gradient = GradientPolicy::SrSte { lambda, decoupled };
        Ok(Schedule::Masks(MaskSchedule { gradient, ..MaskSchedule::read(options)? }))
    },
};
