//! Movement pruning (Sanh et al. 2020; Lagunas et al. 2021 for blocks): places are kept whose weights training moves away from
//! zero.

use super::{Schedule, ScheduleKind};
use crate::LearnSchedule;
use crate::learn_plan::{DENSE, EVERY, FINE_TUNE, Score, Selection};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "movement",
    about: "the mask of the weights or blocks that training moves away from zero; the density falls along a cubic",
    keys: &[DENSE, FINE_TUNE, EVERY],
    build: |options| Ok(Schedule::Learns(LearnSchedule::read(options, Score::Movement, Selection::TopK)?)),
};
