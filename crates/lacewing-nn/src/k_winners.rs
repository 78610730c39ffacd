//! K-winners: the activation that lets only the k strongest units of a group through, raised by how seldom they win.
//!
//! Two values of the model remember: `duty [channels]`, the share of samples in which each channel won with a positive
//! value, and `clock [2]`, the samples seen and the boost strength. They are saved with the parameters, and no gradient
//! reaches them.

use crate::{NnError, Result, Scope};
use lacewing_engine::ops::{self, Competition, DutyCycles, DutyRate};
use lacewing_engine::{Cx, EngineError, ParamId, Var};
use serde::{Deserialize, Serialize};

/// Settings of [`KWinners`]; one of `percent_on` and `k` says how many win.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KWinnersConfig {
    /// Share of the units that win in training, above 0 and below 1: k is that share of n, rounded, halves to even.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_on: Option<f64>,
    /// Winners in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Winners in evaluation over those in training.
    pub k_inference_factor: f64,
    /// β of the boosts `exp(−β duty)` in the first epoch; 0 for none.
    pub boost_strength: f64,
    /// What β is multiplied by from each epoch to the next.
    pub boost_strength_factor: f64,
    /// Samples that duty cycles are averages over.
    pub duty_cycle_period: u32,
    /// In place of the period: the weight of every batch's mean, whatever its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duty_cycle_alpha: Option<f64>,
    /// Whether winners that are not above 0 are put to 0 too.
    pub relu: bool,
}

impl Default for KWinnersConfig {
    fn default() -> Self {
        Self {
            percent_on: None,
            k: None,
            k_inference_factor: 1.5,
            boost_strength: 1.0,
            boost_strength_factor: 0.9,
            duty_cycle_period: 1000,
            duty_cycle_alpha: None,
            relu: false,
        }
    }
}

/// Who competes with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// The last dimension: the units of a layer, or of feature maps with channels last the channels of each pixel.
    Row(usize),
    /// All values of a feature map `[height, width, channels]`, with one duty cycle a channel.
    Map {
        /// Height.
        height: usize,
        /// Width.
        width: usize,
        /// Channels.
        channels: usize,
    },
}

impl Units {
    fn shape(self) -> Vec<usize> {
        match self {
            Self::Row(units) => vec![units],
            Self::Map { height, width, channels } => vec![height, width, channels],
        }
    }
}

/// `y = x` for the k units of each group with the largest `x · exp(−β duty)`, else 0.
///
/// Of equal values the lower index wins. A training pass uses the duty cycles as they were before it and brings them up
/// to date when its backward pass is over; evaluation leaves them, and β is then that of the last training pass.
#[derive(Debug)]
pub struct KWinners {
    shape: Vec<usize>,
    k: usize,
    k_inference: usize,
    boost_strength: f64,
    boost_strength_factor: f64,
    rate: DutyRate,
    relu: bool,
    duty: ParamId,
    clock: ParamId,
}

impl KWinners {
    /// Adds `duty` and `clock` to `scope`.
    ///
    /// # Errors
    ///
    /// [`NnError::Value`] for a setting out of its range, or one that leaves no winners.
    pub fn new(scope: &mut Scope<'_>, units: Units, config: KWinnersConfig) -> Result<Self> {
        let shape = units.shape();
        let n = shape.iter().product();
        let channels = *shape.last().expect("one dimension or three");
        let check = Check { layer: scope.path() };
        let (k, k_inference) = check.winners(units, n, config)?;
        let rate = check.rate(config)?;
        let KWinnersConfig { boost_strength, boost_strength_factor, relu, .. } = config;
        check.that("boost_strength", "a finite number, 0 or more", boost_strength, |b| {
            b.is_finite() && b >= 0.0
        })?;
        check.that("boost_strength_factor", "from 0 to 1", boost_strength_factor, |f| {
            (0.0..=1.0).contains(&f)
        })?;
        let duty = scope.statistic("duty", &[channels], || vec![0.0; channels])?;
        let clock = scope.constant("clock", &[2], || vec![0.0, boost_strength as f32])?;
        Ok(Self { shape, k, k_inference, boost_strength, boost_strength_factor, rate, relu, duty, clock })
    }

    /// Winners of a group in training and in evaluation.
    pub fn winners(&self) -> (usize, usize) {
        (self.k, self.k_inference)
    }

    /// The duty cycles, `[channels]`.
    pub fn duty(&self) -> ParamId {
        self.duty
    }

    /// The samples seen, up to the period, and the boost strength of the last training pass: `[2]`.
    pub fn clock(&self) -> ParamId {
        self.clock
    }

    /// Winners keep their values.
    ///
    /// Shapes: `x [.., n]`, or `[.., height, width, channels]` for [`Units::Map`], → the same.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] for another x; what the device reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        if !x.shape().ends_with(&self.shape) {
            let (expected, got) = (format!("[.., {:?}]", self.shape), x.shape().to_vec());
            return Err(EngineError::Shape { op: "k_winners", operand: "x", expected, got });
        }
        let k = if cx.is_training() { self.k } else { self.k_inference };
        let (duty, clock) = (cx.params().master(self.duty), cx.params().master(self.clock));
        let epochs = i32::try_from(cx.epoch()).unwrap_or(i32::MAX);
        let boost = (self.boost_strength * self.boost_strength_factor.powi(epochs)) as f32;
        let state = DutyCycles { duty: &duty, clock: &clock, boost, rate: self.rate };
        ops::k_winners(cx, x, Competition { dims: self.shape.len(), k, relu: self.relu }, state)
    }
}

/// Checks the settings of the layer of this name.
struct Check<'a> {
    layer: &'a str,
}

impl Check<'_> {
    fn error(&self, key: &'static str, expected: impl Into<String>, got: impl ToString) -> NnError {
        NnError::Value { layer: self.layer.to_owned(), key, expected: expected.into(), got: got.to_string() }
    }

    fn that(&self, key: &'static str, expected: &str, got: f64, holds: fn(f64) -> bool) -> Result<()> {
        if holds(got) { Ok(()) } else { Err(self.error(key, expected, got)) }
    }

    /// Winners of `n` units in training and in evaluation.
    fn winners(&self, units: Units, n: usize, config: KWinnersConfig) -> Result<(usize, usize)> {
        let factor = config.k_inference_factor;
        self.that("k_inference_factor", "a finite number above 0", factor, |f| f.is_finite() && f > 0.0)?;
        let of_k = |k: usize| {
            // A product such as 100 · 1.15 is whole but for its rounding.
            (k as f64 * factor * (1.0 + 2.0 * f64::EPSILON)) as usize
        };
        let (key, got, k, k_inference) = match (config.percent_on, config.k) {
            (Some(percent), None) => {
                self.that("percent_on", "above 0 and below 1", percent, |p| p > 0.0 && p < 1.0)?;
                if percent * factor >= 1.0 {
                    let expected = format!("below 1 / percent_on = {}", 1.0 / percent);
                    return Err(self.error("k_inference_factor", expected, factor));
                }
                let share = |percent: f64| (n as f64 * percent).round_ties_even() as usize;
                let k = share(percent);
                let k_inference = match units {
                    Units::Row(_) => of_k(k),
                    Units::Map { .. } => share(percent * factor),
                };
                ("percent_on", percent.to_string(), k, k_inference)
            }
            (None, Some(k)) => ("k", k.to_string(), k, of_k(k)),
            (None, None) => return Err(self.error("percent_on", "given, or `k` in its place", "neither")),
            (Some(_), Some(k)) => return Err(self.error("k", "left out, as percent_on is given", k)),
        };
        if !(1..=n).contains(&k) {
            return Err(self.error(key, format!("a number that makes 1 to {n} winners of {n} units"), got));
        }
        if !(1..=n).contains(&k_inference) {
            let expected =
                format!("a number that makes 1 to {n} winners in evaluation of the {k} in training");
            return Err(self.error("k_inference_factor", expected, factor));
        }
        Ok((k, k_inference))
    }

    fn rate(&self, config: KWinnersConfig) -> Result<DutyRate> {
        if let Some(alpha) = config.duty_cycle_alpha {
            self.that("duty_cycle_alpha", "above 0, at most 1", alpha, |a| a > 0.0 && a <= 1.0)?;
            return Ok(DutyRate::Constant(alpha as f32));
        }
        let (key, period) = ("duty_cycle_period", config.duty_cycle_period);
        self.that(key, "1 to 16777216", f64::from(period), |p| (1.0..=16_777_216.0).contains(&p))?;
        Ok(DutyRate::Period(period))
    }
}
