//! RigL (Evci et al. 2020): the smallest weights give their places to those of the largest gradients.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::move_plan::{Growth, KEYS};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "rigl",
    about: "the smallest weights or blocks move to where the gradient is largest",
    keys: KEYS,
    build: |options| Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Gradient, true)?)),
};
