//! SET (Mocanu et al. 2018): the smallest weights give their places to random others.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::move_plan::{Growth, KEYS};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "set",
    about: "the smallest weights or blocks move to random places",
    keys: KEYS,
    build: |options| Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Random, true)?)),
};
