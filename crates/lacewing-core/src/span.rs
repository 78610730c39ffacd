//! Time in a schedule: a share of the run, optimizer steps, or epochs.

use serde_json::{Value, json};

use crate::StructureError;
use crate::config::Options;

/// How long a run is: what spans are resolved with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
}

/// A point or a length in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// A share of the run, 0 to 1.
    Share(f64),
    /// Optimizer steps.
    Steps(u64),
    /// Epochs.
    Epochs(f64),
}

impl Span {
    /// The same in optimizer steps, rounded down.
    pub fn steps(self, horizon: Horizon) -> u64 {
        match self {
            Self::Share(share) => (share * horizon.total_steps as f64) as u64,
            Self::Steps(steps) => steps,
            Self::Epochs(epochs) => (epochs * horizon.steps_per_epoch as f64) as u64,
        }
    }

    /// As it is written in a config: `0.25`, `"300 steps"`, `"2.5 epochs"`.
    pub fn config(self) -> Value {
        match self {
            Self::Share(share) => json!(share),
            Self::Steps(steps) => json!(format!("{steps} steps")),
            Self::Epochs(epochs) => json!(format!("{epochs} epochs")),
        }
    }

    /// Reads what [`Span::config`] writes.
    fn parse(value: &Value) -> Option<Self> {
        if let Some(share) = value.as_f64() {
            return (0.0..=1.0).contains(&share).then_some(Self::Share(share));
        }
        let (number, unit) = value.as_str()?.trim().split_once(' ')?;
        match unit.trim() {
            "step" | "steps" => number.parse().ok().map(Self::Steps),
            "epoch" | "epochs" => {
                let epochs: f64 = number.parse().ok()?;
                (epochs.is_finite() && epochs >= 0.0).then_some(Self::Epochs(epochs))
            }
            _ => None,
        }
    }
}

/// What a span looks like, for errors.
const EXPECTED: &str = "a share of the run from 0 to 1, \"N steps\" or \"N epochs\"";

impl Options {
    /// The span under `key`.
    pub(crate) fn span(&self, key: &'static str) -> Result<Span, StructureError> {
        let value = self.required(key)?;
        self.span_of(key, &value)
    }

    /// `value`, found under `key`, as a span.
    pub(crate) fn span_of(&self, key: &'static str, value: &Value) -> Result<Span, StructureError> {
        Span::parse(value).ok_or_else(|| self.wrong(key, EXPECTED, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_steps_and_epochs_are_steps() {
        let horizon = Horizon { total_steps: 1000, steps_per_epoch: 40 };
        for (config, steps) in [
            (json!(0.25), 250),
            (json!(1), 1000),
            (json!(0.0999), 99),
            (json!("7 steps"), 7),
            (json!("2.5 epochs"), 100),
        ] {
            let span = Span::parse(&config).unwrap();
            assert_eq!(span.steps(horizon), steps, "{config}");
            assert_eq!(Span::parse(&span.config()), Some(span));
        }
        for wrong in [json!(1.5), json!(-0.1), json!("7"), json!("x epochs"), json!("-1 epochs"), json!([])] {
            assert_eq!(Span::parse(&wrong), None, "{wrong}");
        }
    }
}
