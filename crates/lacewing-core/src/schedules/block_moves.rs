//! Block moves: the blocks of the smallest norm are drawn anew at random free places, a constant share at each update.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::config::Key;
use crate::move_plan::{
    ANNEAL, BEGIN, DROP, END, EVERY, FRACTION, Growth, MOMENT_SCALE, MOMENTS, POWER, REDISTRIBUTION, SCALE,
    VALUE,
};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "block_moves",
    about: "the blocks of the smallest norm are drawn anew at random free places",
    keys: &[
        BEGIN,
        END,
        EVERY,
        Key::new("fraction", FRACTION, "0.1"),
        Key::new("anneal", ANNEAL, "\"constant\""),
        POWER,
        Key::new("value", VALUE, "\"uniform\""),
        SCALE,
        MOMENTS,
        MOMENT_SCALE,
        DROP,
        Key::new("redistribution", REDISTRIBUTION, "\"none\""),
    ],
    build: |options| Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Random, false)?)),
};
