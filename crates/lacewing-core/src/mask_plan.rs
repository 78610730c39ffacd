//! Schedules of weights that are all stored: which of them count at each step, and by how much the rest still do.
//!
//! The effective weight is `W ⊙ (m + (1 − m) d)`: m keeps the n largest magnitudes of every m consecutive weights, or of all of
//! the layer's where its places are free, and is chosen anew at each step, d falls from 1 to 0. Everything here is a pure function of the global optimizer step, so a run
//! that is taken up again stands where it stood.

use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::{Horizon, Span, StructureError};

/// How weights that the mask drops fade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// d = 0 at once.
    Step,
    /// d = max(1 − β t, 0), t steps after the dense phase.
    Linear,
    /// d = exp(−β t).
    Exp,
}

/// How fast they fade.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// β for each optimizer step.
    PerStep(f64),
    /// β such that d is 0 (linear) or 1 % (exponential) after this part of the time between the dense and the fine-tuning
    /// phase.
    Until(f64),
}

/// How the pattern comes to the target n:m.
#[derive(Clone, Debug, PartialEq)]
pub enum Stages {
    /// It is the target from the start.
    Target,
    /// (m − 1):m, ⌊m/2⌋:m, ⌊m/4⌋:m, … down to n:m.
    Sparsify,
    /// 8n:8m, 4n:4m, 2n:2m, n:m: the density stays, groups shrink.
    Fine,
    /// n:8m, n:4m, n:2m, n:m: from sparser to the target.
    Densify,
    /// As listed; the last is the target's.
    Custom(Vec<(Span, usize, usize)>),
}

/// What reaches weights that the mask drops, of the gradient g of the effective weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GradientPolicy {
    /// g, as if there were no mask (straight-through).
    StraightThrough,
    /// g (m + (1 − m) d): the exact derivative with m held fixed.
    Masked,
    /// g + λ (1 − m) W, before clipping and the optimizer's moments (Zhou et al. 2021).
    SrSte {
        /// λ.
        lambda: f64,
        /// Whether the term is a decay of the weight, `W ← W − lr λ (1 − m) W`, instead of a part of the gradient.
        decoupled: bool,
    },
}

/// A schedule of masks, as a config says it.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskSchedule {
    /// The name of its row in the table.
    pub name: &'static str,
    /// How dropped weights fade.
    pub decay: Decay,
    /// How fast.
    pub rate: Rate,
    /// How the pattern comes to the target.
    pub stages: Stages,
    /// What reaches dropped weights.
    pub gradient: GradientPolicy,
    /// All weights count until then.
    pub dense: Span,
    /// Before the end, the mask is the target's and d = 0 for that long.
    pub fine_tune: Span,
    /// Whether phases and stages begin with an epoch.
    pub whole_epochs: bool,
}

/// A schedule of masks for one run and one target.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskPlan {
    /// First step, n and m; ascending, and the last is the target.
    stages: Vec<(u64, usize, usize)>,
    sparse_from: u64,
    binary_from: u64,
    decay: Decay,
    rate: f64,
}

/// Which weights count at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaskPhase {
    /// All.
    Dense,
    /// The `n` largest of every `m` fully, the others times `rest`.
    Masked {
        /// Kept in a group.
        n: usize,
        /// Weights of a group.
        m: usize,
        /// d.
        rest: f64,
    },
}

impl MaskPhase {
    /// Share of the weights that count fully.
    pub fn density(self) -> f64 {
        match self {
            Self::Dense => 1.0,
            Self::Masked { n, m, .. } => n as f64 / m as f64,
        }
    }
}

/// The keys that every schedule of masks has.
pub(crate) const DENSE: Key = Key::new("dense", "time at the start in which all weights count", "0");
pub(crate) const FINE_TUNE: Key =
    Key::new("fine_tune", "time at the end with the final mask, dropped weights at zero", "0");
pub(crate) const ALIGN: Key = Key::new("align", "step | epoch: where phases may begin", "\"step\"");
pub(crate) const DECAY: &str = "step: dropped weights count nothing | linear | exp: they fade";
pub(crate) const COEF: Key =
    Key::new("coef", "β of the fading, for each optimizer step; instead of `until`", "");
pub(crate) const UNTIL: Key = Key::new(
    "until",
    "share of the sparse phase after which dropped weights count 0 (linear) or 1 % (exp)",
    "0.5",
);
pub(crate) const STAGES: &str = "target | sparsify | fine | densify | list of [when, n, m]";
pub(crate) const GRADIENT: Key = Key::new(
    "gradient",
    "of dropped weights; straight_through: as if there were no mask | masked: times what they count",
    "\"straight_through\"",
);

impl MaskSchedule {
    /// Reads the keys that all schedules of masks share; those that a row does not declare have their neutral value.
    pub(crate) fn read(options: &Options) -> Result<Self, StructureError> {
        let name = options.structure();
        let aligns = [("step", false), ("epoch", true)];
        let whole_epochs = options.choice("align", &aligns, "`step` or `epoch`")?;
        let decays = [("step", Decay::Step), ("linear", Decay::Linear), ("exp", Decay::Exp)];
        let decay = match options.declares("decay") {
            true => options.choice("decay", &decays, "`step`, `linear` or `exp`")?,
            false => Decay::Step,
        };
        let rate = match options.declares("coef") {
            true if options.given("coef") && options.given("until") => {
                return Err(StructureError::Conflict { structure: name, key: "coef", other: "until" });
            }
            true if options.given("coef") => Rate::PerStep(options.number("coef", 0.0, f64::MAX)?),
            true => Rate::Until(options.number("until", 0.0, 1.0)?),
            false => Rate::Until(0.0),
        };
        let stages = if options.declares("stages") { Stages::read(options)? } else { Stages::Target };
        let policies =
            [("straight_through", GradientPolicy::StraightThrough), ("masked", GradientPolicy::Masked)];
        let gradient = match options.declares("gradient") {
            true => options.choice("gradient", &policies, "`straight_through` or `masked`")?,
            false => GradientPolicy::StraightThrough,
        };
        let (dense, fine_tune) = (options.span("dense")?, options.span("fine_tune")?);
        Ok(Self { name, decay, rate, stages, gradient, dense, fine_tune, whole_epochs })
    }

    /// The plan for a run, and for the target `n` of every `m`.
    ///
    /// # Errors
    ///
    /// [`StructureError::Phases`] when the dense and the fine-tuning phase leave nothing between them or a listed stage
    /// begins before the one before it; [`StructureError::LastStage`] when a list does not end with the target.
    pub fn plan(&self, horizon: Horizon, n: usize, m: usize) -> Result<MaskPlan, StructureError> {
        let schedule = self.name;
        let total = horizon.total_steps;
        // In units of what phases are aligned to: whole epochs, or steps.
        let unit = if self.whole_epochs { horizon.steps_per_epoch.max(1) } else { 1 };
        let span = |span: Span| span.steps(horizon) / unit;
        let (dense, fine_tune, length) = (span(self.dense), span(self.fine_tune), total.div_ceil(unit));
        if dense + fine_tune > length {
            return Err(StructureError::Phases {
                schedule,
                what: "dense + fine_tune",
                got: (dense + fine_tune) * unit,
                most: total,
            });
        }
        let sparse = length - dense - fine_tune;
        let patterns = match &self.stages {
            Stages::Target => vec![(n, m)],
            Stages::Sparsify => sparsify(n, m),
            Stages::Fine => [8, 4, 2, 1].map(|factor| (n * factor, m * factor)).to_vec(),
            Stages::Densify => [8, 4, 2, 1].map(|factor| (n, m * factor)).to_vec(),
            Stages::Custom(_) => Vec::new(),
        };
        let begin = |i: usize| dense + (i as f64 * sparse as f64 / patterns.len() as f64) as u64;
        let mut stages: Vec<(u64, usize, usize)> =
            patterns.iter().enumerate().map(|(i, &(n, m))| (begin(i) * unit, n, m)).collect();
        if let Stages::Custom(list) = &self.stages {
            stages = list.iter().map(|&(when, n, m)| (span(when) * unit, n, m)).collect();
            if let Some(pair) = stages.windows(2).find(|pair| pair[1].0 < pair[0].0) {
                let what = "stages: a stage that begins before the one before it";
                return Err(StructureError::Phases { schedule, what, got: pair[1].0, most: pair[0].0 });
            }
            let last = stages.last().map(|&(_, n, m)| (n, m));
            if last != Some((n, m)) {
                return Err(StructureError::LastStage { schedule, expected: (n, m), got: last });
            }
        }
        // `length - fine_tune` is the first unit of fine-tuning.
        let (sparse_from, binary_from) = (dense * unit, ((length - fine_tune) * unit).min(total));
        let fading = binary_from.saturating_sub(sparse_from) as f64;
        let rate = match (self.rate, self.decay) {
            (Rate::PerStep(rate), _) => rate,
            (Rate::Until(_), Decay::Step) => 0.0,
            (Rate::Until(share), Decay::Linear) => 1.0 / (share * fading),
            (Rate::Until(share), Decay::Exp) => 100f64.ln() / (share * fading),
        };
        Ok(MaskPlan { stages, sparse_from, binary_from, decay: self.decay, rate })
    }

    /// The config it was read from, every default filled in.
    pub fn config(&self) -> Value {
        let decay = match self.decay {
            Decay::Step => "step",
            Decay::Linear => "linear",
            Decay::Exp => "exp",
        };
        let mut config = json!({
            "name": self.name, "decay": decay, "stages": self.stages.config(),
            "dense": self.dense.config(), "fine_tune": self.fine_tune.config(),
            "align": if self.whole_epochs { "epoch" } else { "step" },
        });
        match self.rate {
            _ if self.decay == Decay::Step => {}
            Rate::PerStep(rate) => config["coef"] = json!(rate),
            Rate::Until(share) => config["until"] = json!(share),
        }
        match self.gradient {
            GradientPolicy::StraightThrough => config["gradient"] = json!("straight_through"),
            GradientPolicy::Masked => config["gradient"] = json!("masked"),
            GradientPolicy::SrSte { lambda, decoupled } => {
                config["lambda"] = json!(lambda);
                config["decoupled"] = json!(decoupled);
            }
        }
        config
    }
}

impl Stages {
    fn read(options: &Options) -> Result<Self, StructureError> {
        let value = options.required("stages")?;
        let wrong = |value: &Value| {
            options.wrong(
                "stages",
                "`target`, `sparsify`, `fine`, `densify` or a list of [when, n, m]",
                value,
            )
        };
        let list = match &value {
            Value::String(name) => {
                return match name.as_str() {
                    "target" => Ok(Self::Target),
                    "sparsify" => Ok(Self::Sparsify),
                    "fine" => Ok(Self::Fine),
                    "densify" => Ok(Self::Densify),
                    _ => Err(wrong(&value)),
                };
            }
            Value::Array(list) if !list.is_empty() => list,
            _ => return Err(wrong(&value)),
        };
        let mut stages = Vec::with_capacity(list.len());
        for stage in list {
            let Some([when, n, m]) = stage.as_array().map(Vec::as_slice) else { return Err(wrong(stage)) };
            let m = options.size_of("stages", m, 1, 1 << 16)?;
            stages.push((options.span_of("stages", when)?, options.size_of("stages", n, 1, m)?, m));
        }
        Ok(Self::Custom(stages))
    }

    fn config(&self) -> Value {
        match self {
            Self::Target => json!("target"),
            Self::Sparsify => json!("sparsify"),
            Self::Fine => json!("fine"),
            Self::Densify => json!("densify"),
            Self::Custom(list) => {
                list.iter().map(|&(when, n, m)| json!([when.config(), n, m])).collect::<Vec<_>>().into()
            }
        }
    }
}

/// (m − 1):m, then halves of m, then n:m.
fn sparsify(n: usize, m: usize) -> Vec<(usize, usize)> {
    let halves = (1..usize::BITS).map(|i| m >> i).take_while(|&kept| kept > n);
    let first = std::iter::once(m.saturating_sub(1)).filter(|&kept| kept > n);
    let mut kept: Vec<usize> = first.chain(halves).chain([n]).collect();
    kept.dedup();
    kept.into_iter().map(|kept| (kept, m)).collect()
}

impl MaskPlan {
    /// Which weights count in the forward pass of step `step`, from 0; after the last, the target with d = 0.
    pub fn at(&self, step: u64) -> MaskPhase {
        let target = *self.stages.last().expect("at least the target");
        if step >= self.binary_from {
            return MaskPhase::Masked { n: target.1, m: target.2, rest: 0.0 };
        }
        if step < self.sparse_from {
            return MaskPhase::Dense;
        }
        // A list may leave a gap before its first stage, in which all weights count.
        let Some(&(_, n, m)) = self.stages.iter().rev().find(|&&(from, ..)| from <= step) else {
            return MaskPhase::Dense;
        };
        let t = (step - self.sparse_from) as f64;
        let rest = match self.decay {
            Decay::Step => 0.0,
            Decay::Linear => (1.0 - self.rate * t).max(0.0),
            // Not 0 · ∞ where all of the time is fine-tuning.
            Decay::Exp if t == 0.0 => 1.0,
            Decay::Exp => (-self.rate * t).exp(),
        };
        MaskPhase::Masked { n, m, rest }
    }

    /// First step, n and m of each stage.
    pub fn stages(&self) -> &[(u64, usize, usize)] {
        &self.stages
    }
}
