//! Schedules of learned masks: all weights are stored with scores, and the places of the highest scores count.
//!
//! Which do is decided by a density or by a threshold on the scores. Either goes from its first value to its last along a cubic,
//! as in movement pruning (Sanh et al. 2020): with b the step at which pruning begins and e the one at which fine-tuning does,
//! `last + (first − last) (1 − (t − b)/(e − b))³` between them.

use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::mask::keep_largest;
use crate::{Horizon, Span, StructureError};

/// What a place is scored by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// −Σ g w over the steps, w the place's weights and g the gradient of the effective ones: weights that training moves
    /// away from zero rise. Only the order of such scores counts.
    Movement,
    /// A parameter that Adam trains with this learning rate. Its gradient goes straight through the choice: Σ g w over the
    /// place's weights.
    Trained {
        /// At the peak of the recipe's learning rate, whose course it follows.
        lr: f64,
    },
    /// The magnitude of the weight, or the norm of a block, at the time.
    Magnitude,
}

/// What has a score of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Each place: a weight or a block.
    Places,
    /// Each row of places: outputs.
    Rows,
    /// Each column of places: inputs.
    Columns,
    /// Each row and each column; a place's score is the product of both.
    RowsAndColumns,
}

/// What decides how many places count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Selection {
    /// The density, which falls from 1 to the structure's.
    TopK,
    /// A threshold on the scores; the density is what comes of it.
    Threshold(Threshold),
}

/// A threshold on scores, and what draws scores below it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Whether σ(S) is compared with it, else S.
    pub sigmoid: bool,
    /// Until pruning begins.
    pub initial: f64,
    /// From fine-tuning on.
    pub last: f64,
    /// At least ⌊share · scores⌋ + 1 count.
    pub min_share: f64,
    /// What is added to the loss.
    pub penalty: Penalty,
    /// Weight of the penalty when the threshold is the last.
    pub lambda: f64,
}

/// A term of the loss that falls with the scores S.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Penalty {
    /// None.
    None,
    /// The mean of σ(S).
    L1,
    /// The mean of σ(S − ⅔ ln(0.1 / 1.1)): how many gates of a hard concrete distribution are open (Louizos et al. 2018, with
    /// β = ⅔ and stretched to −0.1 … 1.1).
    L0,
}

/// A schedule of learned masks, as a config says it.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnSchedule {
    /// The name of its row in the table.
    pub name: &'static str,
    /// What places are scored by.
    pub score: Score,
    /// What has a score.
    pub granularity: Granularity,
    /// What decides how many of them count.
    pub selection: Selection,
    /// All weights count until then.
    pub dense: Span,
    /// Before the end, the density or the threshold is the last for that long.
    pub fine_tune: Span,
    /// From one choice of the mask to the next.
    pub every: Span,
    /// Whether biases of rows without a place that counts do not count either.
    pub mask_bias: bool,
}

/// A schedule of learned masks for one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnPlan {
    selection: Selection,
    begin: u64,
    end: u64,
    total: u64,
    every: u64,
}

/// Which scores make their places count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// This share of them, the highest; at least one.
    Share(f64),
    /// Those above a threshold.
    Above {
        /// It.
        threshold: f64,
        /// Whether σ(S) is compared with it, else S.
        sigmoid: bool,
        /// Where fewer than ⌊share · scores⌋ + 1 are above it, so many of the highest count.
        min_share: f64,
    },
}

pub(crate) const DENSE: Key = Key::new("dense", "time at the start in which all weights count", "0.1");
pub(crate) const FINE_TUNE: Key =
    Key::new("fine_tune", "time at the end with the final density or threshold", "0.2");
pub(crate) const EVERY: Key =
    Key::new("every", "time from one choice of the mask to the next", "\"10 steps\"");

impl LearnSchedule {
    /// Reads the keys that all of them share.
    pub(crate) fn read(
        options: &Options,
        score: Score,
        selection: Selection,
    ) -> Result<Self, StructureError> {
        let (dense, fine_tune) = (options.span("dense")?, options.span("fine_tune")?);
        let (name, every) = (options.structure(), options.span("every")?);
        let (granularity, mask_bias) = (Granularity::read(options)?, options.flag("mask_bias")?);
        Ok(Self { name, score, granularity, selection, dense, fine_tune, every, mask_bias })
    }

    /// The plan for a run.
    ///
    /// # Errors
    ///
    /// [`StructureError::Phases`] when the dense and the fine-tuning phase leave nothing between them.
    pub fn plan(&self, horizon: Horizon) -> Result<LearnPlan, StructureError> {
        let total = horizon.total_steps;
        let (dense, fine_tune) = (self.dense.steps(horizon), self.fine_tune.steps(horizon));
        if dense + fine_tune > total {
            let (what, got) = ("dense + fine_tune", dense + fine_tune);
            return Err(StructureError::Phases { schedule: self.name, what, got, most: total });
        }
        let every = self.every.steps(horizon).max(1);
        Ok(LearnPlan { selection: self.selection, begin: dense, end: total - fine_tune, total, every })
    }

    /// The config it was read from, every default filled in.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "name": self.name, "dense": self.dense.config(), "fine_tune": self.fine_tune.config(),
            "every": self.every.config(), "scores": self.granularity.name(), "mask_bias": self.mask_bias,
        });
        if let Score::Trained { lr } = self.score {
            config["lr"] = json!(lr);
        }
        if let Selection::Threshold(threshold) = self.selection {
            threshold.write(&mut config);
        }
        config
    }
}

impl LearnPlan {
    /// The share of places that count after `step` steps, given the target's; under a threshold the share is not planned.
    pub fn density(&self, step: u64, target: f64) -> f64 {
        self.between(step, 1.0, target)
    }

    /// The threshold after `step` steps; none where the density decides.
    pub fn threshold(&self, step: u64) -> Option<f64> {
        match self.selection {
            Selection::TopK => None,
            Selection::Threshold(Threshold { initial, last, .. }) => Some(self.between(step, initial, last)),
        }
    }

    /// The penalty and its weight λ τ / τ_last after `step` steps, never below 0.
    pub fn penalty(&self, step: u64) -> (Penalty, f64) {
        match (self.selection, self.threshold(step)) {
            (Selection::Threshold(rule), Some(threshold)) if rule.penalty != Penalty::None => {
                (rule.penalty, (rule.lambda * threshold / rule.last).max(0.0))
            }
            _ => (Penalty::None, 0.0),
        }
    }

    /// How the mask is chosen after `step` steps, given the target's density.
    pub fn choice(&self, step: u64, target: f64) -> Choice {
        match (self.selection, self.threshold(step)) {
            (Selection::Threshold(rule), Some(threshold)) => {
                Choice::Above { threshold, sigmoid: rule.sigmoid, min_share: rule.min_share }
            }
            _ => Choice::Share(self.density(step, target)),
        }
    }

    /// The cubic from `first` to `last`.
    fn between(&self, step: u64, first: f64, last: f64) -> f64 {
        if step <= self.begin && step < self.end {
            return first;
        }
        if step >= self.end {
            return last;
        }
        let left = 1.0 - (step - self.begin) as f64 / (self.end - self.begin) as f64;
        last + (first - last) * left.powi(3)
    }

    /// Whether the mask is chosen anew after `step` steps: every so many from the beginning of pruning on, when the density
    /// or the threshold is the last for the first time, and at the end.
    pub fn is_due(&self, step: u64) -> bool {
        let on_the_way =
            step > self.begin && step <= self.total && (step - self.begin).is_multiple_of(self.every);
        on_the_way || step == self.end || step == self.total
    }
}

/// What scores of rows and columns, whose product is a place's, start from: from 0 the product would not move.
pub const PRODUCT_START: f64 = 1.0;

impl Granularity {
    const ALL: [(&str, Self); 4] = [
        ("places", Self::Places),
        ("rows", Self::Rows),
        ("columns", Self::Columns),
        ("rows_and_columns", Self::RowsAndColumns),
    ];

    /// Reads its key.
    pub(crate) fn read(options: &Options) -> Result<Self, StructureError> {
        options.choice("scores", &Self::ALL, "`places`, `rows`, `columns` or `rows_and_columns`")
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, own)| *own == self).expect("all are listed").0
    }
}

impl Penalty {
    /// What is taken from a score before its σ.
    pub fn shift(self) -> f64 {
        match self {
            Self::None | Self::L1 => 0.0,
            Self::L0 => 2.0 / 3.0 * (0.1f64 / 1.1).ln(),
        }
    }
}

/// Which of the places with these scores count; among equals the lowest index is dropped first, and at least one counts.
pub fn choose_places(scores: &[f64], choice: Choice) -> Vec<bool> {
    let least = |count: usize| count.clamp(1.min(scores.len()), scores.len());
    let kept = match choice {
        Choice::Share(share) => least((share * scores.len() as f64).round() as usize),
        Choice::Above { threshold, sigmoid, min_share } => {
            let value = |score: f64| if sigmoid { 1.0 / (1.0 + (-score).exp()) } else { score };
            let above: Vec<bool> = scores.iter().map(|&score| value(score) > threshold).collect();
            let floor = least((min_share * scores.len() as f64) as usize + 1);
            if above.iter().filter(|above| **above).count() >= floor {
                return above;
            }
            floor
        }
    };
    let mut counts = vec![false; scores.len()];
    keep_largest(scores, kept).into_iter().for_each(|place| counts[place] = true);
    counts
}

pub(crate) const LR: &str = "learning rate of the scores, which Adam trains, at the peak of the recipe's";

pub(crate) const SCORES: Key = Key::new(
    "scores",
    "what has one: places | rows | columns | rows_and_columns: a place's is the product",
    "\"places\"",
);
pub(crate) const MASK_BIAS: Key =
    Key::new("mask_bias", "biases of rows without weights that count do not count either", "false");

/// The keys of a threshold.
pub(crate) const METHOD: Key = Key::new(
    "method",
    "sigmoid_threshold: σ(score) above it | threshold: the score",
    "\"sigmoid_threshold\"",
);
pub(crate) const INITIAL: Key = Key::new("initial", "the threshold until pruning begins", "0");
pub(crate) const FINAL: Key = Key::new("final", "the threshold from fine-tuning on", "0.1");
pub(crate) const MIN_SHARE: Key =
    Key::new("min_share", "share of the scores that counts at least, and one more", "0.005");
pub(crate) const PENALTY: Key =
    Key::new("penalty", "added to the loss: l1: mean σ(score) | l0: mean σ(score + 1.6) | none", "\"l1\"");
pub(crate) const LAMBDA: Key = Key::new("lambda", "weight of the penalty at the final threshold", "1");

impl Threshold {
    /// Reads its keys.
    pub(crate) fn read(options: &Options) -> Result<Self, StructureError> {
        let methods = [("sigmoid_threshold", true), ("threshold", false)];
        let sigmoid = options.choice("method", &methods, "`sigmoid_threshold` or `threshold`")?;
        let (low, high) = if sigmoid { (0.0, 1.0) } else { (f64::MIN, f64::MAX) };
        let (initial, last) = (options.number("initial", low, high)?, options.number("final", low, high)?);
        let penalties = [("l1", Penalty::L1), ("l0", Penalty::L0), ("none", Penalty::None)];
        let penalty = options.choice("penalty", &penalties, "`l1`, `l0` or `none`")?;
        let min_share = options.number("min_share", 0.0, 1.0)?;
        if penalty == Penalty::None {
            if options.given("lambda") {
                let (structure, key) = (options.structure(), "lambda");
                return Err(StructureError::Conflict { structure, key, other: "penalty: none" });
            }
            return Ok(Self { sigmoid, initial, last, min_share, penalty, lambda: 0.0 });
        }
        if last <= 0.0 {
            // The penalty's weight is relative to it.
            return Err(options.wrong("final", "above 0 where there is a penalty", &json!(last)));
        }
        let lambda = options.number("lambda", 0.0, f64::MAX)?;
        Ok(Self { sigmoid, initial, last, min_share, penalty, lambda })
    }

    /// Writes what [`Threshold::read`] reads.
    fn write(&self, config: &mut Value) {
        config["method"] = json!(if self.sigmoid { "sigmoid_threshold" } else { "threshold" });
        config["initial"] = json!(self.initial);
        config["final"] = json!(self.last);
        config["min_share"] = json!(self.min_share);
        config["penalty"] = json!(match self.penalty {
            Penalty::None => "none",
            Penalty::L1 => "l1",
            Penalty::L0 => "l0",
        });
        if self.penalty != Penalty::None {
            config["lambda"] = json!(self.lambda);
        }
    }
}
