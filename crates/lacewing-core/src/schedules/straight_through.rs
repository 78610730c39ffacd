//! Straight-through: the mask, of N:M or over the layer, is chosen anew at each step, and dropped weights get the
//! gradient as if there were none.

use super::{Schedule, ScheduleKind};
use crate::MaskSchedule;
use crate::mask_plan::{ALIGN, DENSE, FINE_TUNE, GRADIENT};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "straight_through",
    about: "the largest of n:m, or of the layer, at each step; dropped weights get the gradient too",
    keys: &[GRADIENT, DENSE, FINE_TUNE, ALIGN],
    build: |options| Ok(Schedule::Masks(MaskSchedule::read(options)?)),
};
