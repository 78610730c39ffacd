//! SNFS, sparse networks from scratch (Dettmers & Zettlemoyer 2019): the smallest weights give their places to those of the
//! largest momentum, in the layers whose momentum is largest.

use super::{Schedule, ScheduleKind};
use crate::MoveSchedule;
use crate::config::Key;
use crate::move_plan::{
    ANNEAL, DROP, FRACTION, Growth, MOMENT_SCALE, MOMENTS, POWER, REDISTRIBUTION, SCALE, VALUE,
};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "snfs",
    about: "the smallest weights or blocks move to where the average of the gradient is largest, between layers too",
    keys: &[
        Key::new(
            "momentum",
            "α of the average of the dense gradient, M ← α M + (1 − α) g at each step",
            "0.9",
        ),
        Key::new("begin", "the first update", "\"1 epochs\""),
        Key::new("end", "no update after it", "1"),
        Key::new("every", "time from one update to the next", "\"1 epochs\""),
        Key::new("fraction", FRACTION, "0.2"),
        Key::new("anneal", ANNEAL, "\"cosine\""),
        POWER,
        Key::new("value", VALUE, "\"zero\""),
        SCALE,
        MOMENTS,
        MOMENT_SCALE,
        DROP,
        Key::new("redistribution", REDISTRIBUTION, "\"momentum\""),
    ],
    build: |options| {
        // At 1 the average would never take a gradient in.
        let momentum = options.number("momentum", 0.0, 1.0)?;
        if momentum == 1.0 {
            return Err(options.wrong("momentum", "0 or more and below 1", &momentum.into()));
        }
        Ok(Schedule::Moves(MoveSchedule::read(options, Growth::Momentum(momentum), true)?))
    },
};
