//! RigL (Evci et al. 2020): the smallest weights give their places to those of the largest gradients.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::config::Key;
use crate::move_plan::{
    ANNEAL, BEGIN, END, EVERY, FRACTION, Growth, MOMENT_SCALE, MOMENTS, POWER, SCALE, VALUE,
};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "rigl",
    about: "the smallest weights or blocks move to where the gradient is largest",
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
    build: |options| Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Gradient, true)?)),
};
