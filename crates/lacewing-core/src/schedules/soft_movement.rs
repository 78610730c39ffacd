//! Soft movement pruning (Sanh et al. 2020; Lagunas et al. 2021 for blocks): scores are trained, those above a threshold count,
//! and a penalty draws them below it. How many do is what comes of it.

use super::{Schedule, ScheduleKind};
use crate::LearnSchedule;
use crate::config::Key;
use crate::learn_plan::{
    DENSE, EVERY, FINAL, FINE_TUNE, INITIAL, LAMBDA, LR, MASK_BIAS, METHOD, MIN_SHARE, PENALTY, SCORES,
    Score, Selection, Threshold,
};

/// The row of the table.
pub(super) static KIND: ScheduleKind = ScheduleKind {
    name: "soft_movement",
    about: "the mask of the weights or blocks whose trained scores are above a threshold; the density comes of it",
    keys: &[
        SCORES,
        METHOD,
        INITIAL,
        FINAL,
        MIN_SHARE,
        PENALTY,
        LAMBDA,
        Key::new("lr", LR, "0.01"),
        DENSE,
        FINE_TUNE,
        EVERY,
        MASK_BIAS,
    ],
    build: |options| {
        let score = Score::Trained { lr: options.number("lr", 0.0, f64::MAX)? };
        let selection = Selection::Threshold(Threshold::read(options)?);
        Ok(Schedule::Learns(LearnSchedule::read(options, score, selection)?))
    },
};
