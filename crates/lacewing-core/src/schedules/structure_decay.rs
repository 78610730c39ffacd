//! Structure decay (SdGF; Bambhaniya et al. 2024): the pattern itself comes to its target in stages.

use super::{Schedule, ScheduleKind};
use crate::MaskSchedule;
use crate::config::Key;
use crate::mask_plan::{ALIGN, COEF, DECAY, DENSE, FINE_TUNE, GRADIENT, STAGES, UNTIL};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "structure_decay",
    about: "masks in stages: fewer and fewer kept, or for n:m smaller and smaller groups (SdGF)",
    keys: &[
        Key::new("stages", STAGES, "\"sparsify\""),
        Key::new("decay", DECAY, "\"step\""),
        COEF,
        UNTIL,
        GRADIENT,
        DENSE,
        FINE_TUNE,
        ALIGN,
    ],
    build: |options| Ok(Schedule::Masks(MaskSchedule::read(options)?)),
};
