//! Mask decay (MdGF; Bambhaniya et al. 2024): weights that the mask drops fade instead of vanishing at once.

use super::{Schedule, ScheduleKind};
use crate::MaskSchedule;
use crate::config::Key;
use crate::mask_plan::{ALIGN, COEF, DECAY, DENSE, FINE_TUNE, GRADIENT, STAGES, UNTIL};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "mask_decay",
    about: "the largest of n:m, or of the layer; dropped weights fade linearly or exponentially (MdGF)",
    keys: &[
        Key::new("decay", DECAY, "\"exp\""),
        COEF,
        UNTIL,
        Key::new("stages", STAGES, "\"target\""),
        GRADIENT,
        DENSE,
        FINE_TUNE,
        ALIGN,
    ],
    build: |options| Ok(Schedule::Masks(MaskSchedule::read(options)?)),
};
