//! Gradual magnitude pruning (Zhu & Gupta 2017): the mask of the largest weights or blocks, fewer and fewer.

use super::{Schedule, ScheduleKind};
use crate::LearnSchedule;
use crate::learn_plan::{DENSE, EVERY, FINE_TUNE, MASK_BIAS, SCORES, Score, Selection};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "magnitude",
    about: "the mask of the largest weights or blocks; the density falls along a cubic",
    keys: &[SCORES, DENSE, FINE_TUNE, EVERY, MASK_BIAS],
    build: |options| Ok(Schedule::Learns(LearnSchedule::read(options, Score::Magnitude, Selection::TopK)?)),
};
