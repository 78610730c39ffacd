//! RandAugment (Cubuk et al. 2020) as timm has it: a few ops drawn from a list, all of one magnitude.
//!
//! Settings are a map, or timm's text: `rand-m9-n2-mstd0.5-inc1`. `ops` is the list and what a magnitude means to each of
//! them; `affine`, `enhance` and `tone` do with a picture what PIL does. For one op, argument and filter the picture is that
//! of Pillow 13 to the bit, and the argument that of timm 1.0; which ops are drawn is decided by our own random numbers.
//!
//! As in timm a magnitude is cut at 10 unless `max_magnitude` (`mmax`) says otherwise: `rand-m15` alone is `rand-m10`. Where
//! posterize keeps no bit the picture is black, which newer versions of PIL refuse to make.

mod affine;
mod enhance;
mod ops;
mod text;
mod tone;

use super::pipeline::{Canvas, SampleStep, Step};
use super::random::Draws;
use super::resize::RandomFilter;
use super::{AugmentError, Settings, require};
use ops::{OPS, Stage};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of `rand_augment`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandAugment {
    /// How strong the ops are, 0 or more; 10 is the end of their usual ranges. Cut at `max_magnitude`.
    pub magnitude: f64,
    /// Ops a picture, 1 to 16, drawn with replacement.
    pub num_ops: u32,
    /// Chance that a drawn op is applied, 0 to 1.
    pub prob: f64,
    /// Deviation of the magnitude, normal around `magnitude`; above 100 it is uniform from 0 to `magnitude`.
    pub std: f64,
    /// Where a magnitude is cut, above 0.
    pub max_magnitude: f64,
    /// Whether every op changes a picture the more, the greater the magnitude. Without it posterize and solarize change it
    /// less, and the enhancing ops range from weakening to strengthening.
    pub increasing: bool,
    /// Whether the list holds Cutout: a square of up to `8 · magnitude` pixels a side becomes black.
    pub cutout: bool,
    /// The interpolation of ops that move pixels.
    pub filter: RandomFilter,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self {
            magnitude: 10.0,
            num_ops: 2,
            prob: 0.5,
            std: 0.0,
            max_magnitude: FULL,
            increasing: false,
            cutout: false,
            filter: RandomFilter::Random,
        }
    }
}

/// The magnitude at the end of the usual ranges.
const FULL: f64 = 10.0;

/// Deviations above this stand for a uniform magnitude.
const UNIFORM_STD: f64 = 100.0;

impl Settings for RandAugment {
    const NAME: &'static str = "rand_augment";
    const ABOUT: &'static str = "a few ops of one magnitude, drawn from a list; takes timm's text too";

    fn read(value: Value) -> Result<Self, serde_json::Error> {
        match value {
            Value::String(text) => text.parse().map_err(serde_json::Error::custom),
            map => serde_json::from_value(map),
        }
    }

    fn check(&self) -> Result<(), AugmentError> {
        let rate = |field, got: f64| {
            require(Self::NAME, field, got, "finite and at least 0", got.is_finite() && got >= 0.0)
        };
        rate("magnitude", self.magnitude)?;
        rate("std", self.std)?;
        require(Self::NAME, "prob", self.prob, "0 to 1", (0.0..=1.0).contains(&self.prob))?;
        let (most, ops) = (self.max_magnitude, self.num_ops);
        require(Self::NAME, "max_magnitude", most, "above 0, at most 100", most > 0.0 && most <= 100.0)?;
        require(Self::NAME, "num_ops", ops.into(), "1 to 16", (1..=16).contains(&ops))
    }

    fn step(self) -> Step {
        Step::Train(Box::new(Painter { settings: self, fill: vec![MIDDLE; 3] }))
    }
}

/// What fills a picture when nothing is known of its colors.
const MIDDLE: u8 = 128;

/// The step.
#[derive(Debug)]
struct Painter {
    settings: RandAugment,
    /// The mean color, which takes the place of what moves in; a byte a channel.
    fill: Vec<u8>,
}

impl Painter {
    /// The magnitude of one op over [`FULL`].
    fn level(&self, draws: &mut Draws) -> f64 {
        let RandAugment { magnitude, std, max_magnitude, .. } = self.settings;
        let drawn = if std > UNIFORM_STD {
            draws.uniform(0.0, magnitude)
        } else if std > 0.0 {
            magnitude + std * draws.normal()
        } else {
            magnitude
        };
        drawn.clamp(0.0, max_magnitude) / FULL
    }
}

impl SampleStep for Painter {
    fn apply(&self, canvas: &mut Canvas, draws: &mut Draws) {
        let RandAugment { num_ops, prob, increasing, cutout, filter, .. } = self.settings;
        let ops = OPS.iter().filter(|op| cutout || op.name != ops::CUTOUT).count();
        for _ in 0..num_ops {
            let op = &OPS[draws.below(ops as u32) as usize];
            if prob < 1.0 && !draws.chance(prob) {
                continue;
            }
            let level = self.level(draws);
            let mut sign = |x: f64| if draws.chance(0.5) { -x } else { x };
            let argument = (op.argument)(level, increasing, &mut sign);
            (op.apply)(&mut Stage { canvas, draws, fill: &self.fill, filter }, argument);
        }
    }

    fn set_mean(&mut self, mean: &[f64]) {
        self.fill = mean.iter().map(|mean| (255.0 * mean).round_ties_even() as u8).collect();
    }
}

#[cfg(test)]
mod tests;
