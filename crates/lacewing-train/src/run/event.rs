//! What a run tells while it goes: to the terminal, to machines, and to `metrics.jsonl`.

use crate::report::Row;
use serde::Serialize;
use std::path::PathBuf;

/// Something happened. Serialized, it is one JSON object with its name under `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A model is ready to be trained.
    Start {
        /// Its name in the run.
        model: String,
        /// Trained values.
        parameters: usize,
        /// Bytes of a packed file.
        bytes: usize,
        /// Multiply-adds for one picture.
        macs: u64,
        /// Where it runs.
        device: String,
        /// Steps already done, by the run that is resumed.
        from_step: u64,
        /// Step at which this run ends.
        steps: u64,
        /// Optimizer steps an epoch.
        steps_per_epoch: u64,
    },
    /// A log line.
    Step {
        /// The model.
        model: String,
        /// Steps done.
        step: u64,
        /// Epochs done, with their fraction.
        epoch: f64,
        /// Learning rate of the last step.
        lr: f64,
        /// Mean loss since the last log line.
        loss: f64,
        /// Pictures a second since the last log line.
        images_per_s: f64,
    },
    /// The test pictures were classified.
    Eval {
        /// The model.
        model: String,
        /// Steps done.
        step: u64,
        /// Epochs done, with their fraction.
        epoch: f64,
        /// Share of pictures whose class got the highest score.
        top1: f64,
        /// Share of pictures whose class was among the five highest.
        top5: f64,
        /// Pictures a second.
        images_per_s: f64,
    },
    /// All processes of the run hold the same weights, moments and patterns.
    Agree {
        /// The model.
        model: String,
        /// Steps done.
        step: u64,
        /// How many processes.
        ranks: usize,
        /// What was made of the state of each and compared.
        digest: String,
    },
    /// A checkpoint is on disk.
    Checkpoint {
        /// The model.
        model: String,
        /// Steps done.
        step: u64,
        /// The folder.
        path: PathBuf,
    },
    /// Something odd that does not end the run.
    Warning {
        /// What.
        text: String,
    },
    /// A model is done.
    Result {
        /// Its row in the table.
        #[serde(flatten)]
        row: Row,
    },
}

impl Event {
    /// Whether `metrics.jsonl` keeps it.
    pub fn is_metric(&self) -> bool {
        matches!(self, Self::Step { .. } | Self::Eval { .. })
    }
}
