//! Movement pruning (Sanh et al. 2020; Lagunas et al. 2021 for blocks): places are kept whose weights training moves away from
//! zero.

use super::{Schedule, ScheduleKind};
use crate::LearnSchedule;
use crate::config::Key;
use crate::learn_plan::{DENSE, EVERY, FINE_TUNE, Granularity, MASK_BIAS, SCORES, Score, Selection};

/// Of scores whose product is a place's, which no sum can stand for.
const PRODUCT_LR: f64 = 0.01;

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "movement",
    about: "the mask of the weights or blocks that training moves away from zero; the density falls along a cubic",
    keys: &[
        SCORES,
        Key::new(
            "lr",
            "learning rate of scores that Adam trains (rows_and_columns: 0.01); without it they are sums of -g w",
            "",
        ),
        DENSE,
        FINE_TUNE,
        EVERY,
        MASK_BIAS,
    ],
    build: |options| {
        let score = if options.given("lr") {
            Score::Trained { lr: options.number("lr", 0.0, f64::MAX)? }
        } else if Granularity::read(options)? == Granularity::RowsAndColumns {
            Score::Trained { lr: PRODUCT_LR }
        } else {
            Score::Movement
        };
        Ok(Schedule::Learns(LearnSchedule::read(options, score, Selection::TopK)?))
    },
};
