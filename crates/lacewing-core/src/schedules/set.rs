//! SET (Mocanu et al. 2018): the smallest weights give their places to random others.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::config::Key;
use crate::move_plan::{
    ANNEAL, BEGIN, END, EVERY, FRACTION, Growth, MOMENT_SCALE, MOMENTS, POWER, SCALE, VALUE,
};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "set",
    about: "the smallest weights or blocks move to random places",
    keys: &[
        BEGIN,
        END,
        EVERY,
        FRACTION,
        ANNEAL,
        POWER,
        Key::new("value", VALUE, "\"zero\""),
        SCALE,
        MOMENTS,
        MOMENT_SCALE,
    ],
    build: |options| Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Random, true)?)),
};
