//! Recipes: everything that decides a training run, as typed settings with defaults.
//!
//! A recipe is YAML. Overrides `key.path=value` are merged over it, then it is read as [`Recipe`]; whatever is wrong is
//! reported with its path. The settings of the model and of its structures belong to the model and are checked by it.

mod read;
mod timm;

pub use crate::data::OnBadImage;
pub use read::{Override, RecipeError, load, merge, parse, parse_value};
pub use timm::{FromTimm, Mapped, TimmError, from_timm, load_timm};

use crate::augment::AugmentConfig;
use crate::loss::{self, LOSSES, Loss};
use crate::schedule::{self, Schedule, Tick};
use lacewing_engine::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// What the run is called.
    pub name: String,
    /// One line on what it is for.
    pub about: String,
    /// Decides first values, patterns, the order of the data and every random draw.
    pub seed: u64,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Folder for everything the run writes; by default `runs/NAME`, or `runs/NAME-2` and so on when that is taken.
    pub out: Option<PathBuf>,
    /// Where pictures come from.
    pub data: DataConfig,
    /// What happens to training pictures.
    pub augment: AugmentConfig,
    /// The model: its `name`, its own settings, and structures by group and by rule.
    pub model: Map<String, Value>,
    /// Weights to start from: a run's folder, a converted model's, or a `model.safetensors`. They bring their model; of
    /// `model` only what does not change its layers is heard.
    pub init: Option<PathBuf>,
    /// Also train the model with every structure made dense, and compare.
    pub twin: bool,
    /// More models to train beside: a name for each, and what it changes in `model`.
    pub compare: Map<String, Value>,
    /// How it is trained.
    pub train: TrainConfig,
}

/// Where pictures come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The data set.
    pub name: String,
    /// Where it lies, unless it is part of the program.
    pub path: Option<PathBuf>,
    /// Pictures a training batch.
    pub batch_size: usize,
    /// Pictures an evaluation batch.
    pub eval_batch_size: usize,
    /// Threads that prepare batches; 0 for one a core.
    pub workers: usize,
    /// What to do with a picture that does not decode.
    pub on_bad_image: OnBadImage,
    /// Side in pixels to which pictures of varying size are brought.
    pub image_size: u32,
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training pictures.
    pub epochs: u64,
    /// Passes after those, with the learning rate at the end of its schedule.
    pub cooldown_epochs: u64,
    /// Stop after this many optimizer steps, the schedule being that of the whole run.
    pub max_steps: Option<u64>,
    /// What is made small: a name of `lacewing list losses`.
    pub loss: String,
    /// With the loss `binary_cross_entropy`: targets above it count as 1, all others as 0.
    pub target_threshold: Option<f64>,
    /// A teacher whose answers are a part of the loss.
    pub distill: Option<DistillConfig>,
    /// The optimizer.
    pub optimizer: OptimizerName,
    /// The learning rate after warm-up.
    pub lr: f64,
    /// The learning rate at the end.
    pub min_lr: f64,
    /// Epochs of linear warm-up; may be a fraction.
    pub warmup_epochs: f64,
    /// Steps of linear warm-up, in place of `warmup_epochs`.
    pub warmup_steps: Option<u64>,
    /// The learning rate of the first step (or epoch) of warm-up; by default warm-up rises from 0 with the first step
    /// already above it.
    pub warmup_lr: Option<f64>,
    /// Whether the schedule begins after warm-up; else it runs from the first step, and warm-up hides its start.
    pub warmup_prefix: bool,
    /// How the learning rate falls: a name of `lacewing list schedules`.
    pub schedule: String,
    /// Whether the learning rate changes with every step or once an epoch.
    pub schedule_unit: ScheduleUnit,
    /// Weight decay of everything but biases, norms, class tokens and positions.
    pub weight_decay: f64,
    /// Decays of AdamW's two moments.
    pub betas: [f64; 2],
    /// AdamW's ε.
    pub eps: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Whether SGD's momentum looks ahead.
    pub nesterov: bool,
    /// Share of each target that is spread over all classes.
    pub label_smoothing: f64,
    /// Greatest norm of the gradient; longer ones are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Batches whose gradients are averaged for one optimizer step.
    pub accumulate: u64,
    /// Averaged weights.
    pub ema: EmaConfig,
    /// Type of activations and weight copies; by default bf16 on a GPU and f32 on the host.
    pub dtype: Option<ComputeType>,
    /// Epochs between evaluations; 0 for only the last.
    pub eval_every: u64,
    /// Epochs between checkpoints; 0 for only the last.
    pub checkpoint_every: u64,
    /// Steps between log lines, when losses are fetched and checked.
    pub log_every: u64,
}

/// Distillation: the loss is (1 − α) times that of the labels and α T² times the divergence of the answers from a trained
/// model's, both softened by T.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// The teacher: a run's folder, a converted model's, or a `model.safetensors`.
    pub teacher: PathBuf,
    /// α: its share of the loss.
    #[serde(default = "DistillConfig::alpha")]
    pub alpha: f64,
    /// T: what logits are divided by before their softmax.
    #[serde(default = "DistillConfig::temperature")]
    pub temperature: f64,
}

impl DistillConfig {
    fn alpha() -> f64 {
        0.5
    }

    fn temperature() -> f64 {
        2.0
    }
}

/// An exponential moving average of the weights, which is then what is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// What the average keeps of itself at each step; 0 for no average.
    pub decay: f64,
    /// Whether it keeps less at first: at step `t` no more than `(1 + t) / (10 + t)`.
    pub warmup: bool,
}

/// When the learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleUnit {
    /// With every optimizer step.
    Step,
    /// Once an epoch.
    Epoch,
}

/// The optimizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// Type of activations and of the weights they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// 32-bit floats.
    F32,
    /// bfloat16 with f32 masters; GPUs only.
    Bf16,
}

impl ComputeType {
    /// The engine's name for it.
    pub fn engine(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "run".to_owned(),
            about: String::new(),
            seed: 0,
            device: "cpu".to_owned(),
            out: None,
            data: DataConfig::default(),
            augment: AugmentConfig::default(),
            model: Map::new(),
            init: None,
            twin: false,
            compare: Map::new(),
            train: TrainConfig::default(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            name: "digits".to_owned(),
            path: None,
            batch_size: 128,
            eval_batch_size: 256,
            workers: 0,
            on_bad_image: OnBadImage::default(),
            image_size: 224,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            cooldown_epochs: 0,
            max_steps: None,
            loss: "cross_entropy".to_owned(),
            target_threshold: None,
            distill: None,
            optimizer: OptimizerName::AdamW,
            lr: 1e-3,
            min_lr: 0.0,
            warmup_epochs: 5.0,
            warmup_steps: None,
            warmup_lr: None,
            warmup_prefix: true,
            schedule: "cosine".to_owned(),
            schedule_unit: ScheduleUnit::Step,
            weight_decay: 0.05,
            betas: [0.9, 0.999],
            eps: 1e-8,
            momentum: 0.9,
            nesterov: false,
            label_smoothing: 0.0,
            clip_norm: None,
            accumulate: 1,
            ema: EmaConfig::default(),
            dtype: None,
            eval_every: 1,
            checkpoint_every: 1,
            log_every: 20,
        }
    }
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.0, warmup: true }
    }
}

impl Recipe {
    /// Checks what types cannot: ranges and names.
    ///
    /// # Errors
    ///
    /// [`RecipeError::OutOfRange`] with the path, the value and what it must be.
    pub fn check(&self) -> Result<(), RecipeError> {
        let train = &self.train;
        let positive = "at least 1";
        let fraction = "at least 0 and below 1";
        let in_fraction = |x: f64| (0.0..1.0).contains(&x);
        let rate = "a finite number, 0 or more";
        let is_rate = |x: f64| x.is_finite() && x >= 0.0;
        let (alpha, temperature) =
            train.distill.as_ref().map_or((0.0, 1.0), |distill| (distill.alpha, distill.temperature));
        let rules: &[(&str, f64, &'static str, bool)] = &[
            ("data.batch_size", self.data.batch_size as f64, positive, self.data.batch_size > 0),
            (
                "data.eval_batch_size",
                self.data.eval_batch_size as f64,
                positive,
                self.data.eval_batch_size > 0,
            ),
            ("train.epochs", train.epochs as f64, positive, train.epochs > 0),
            ("train.max_steps", train.max_steps.unwrap_or(1) as f64, positive, train.max_steps != Some(0)),
            ("train.accumulate", train.accumulate as f64, positive, train.accumulate > 0),
            ("train.log_every", train.log_every as f64, positive, train.log_every > 0),
            ("train.lr", train.lr, "above 0", train.lr.is_finite() && train.lr > 0.0),
            ("train.min_lr", train.min_lr, "0 to train.lr", (0.0..=train.lr).contains(&train.min_lr)),
            (
                "train.warmup_lr",
                train.warmup_lr.unwrap_or(0.0),
                "0 to train.lr",
                train.warmup_lr.is_none_or(|lr| (0.0..=train.lr).contains(&lr)),
            ),
            (
                "train.target_threshold",
                train.target_threshold.unwrap_or(0.0),
                fraction,
                train.target_threshold.is_none_or(in_fraction),
            ),
            ("train.warmup_epochs", train.warmup_epochs, rate, is_rate(train.warmup_epochs)),
            ("train.weight_decay", train.weight_decay, rate, is_rate(train.weight_decay)),
            ("train.betas.0", train.betas[0], fraction, in_fraction(train.betas[0])),
            ("train.betas.1", train.betas[1], fraction, in_fraction(train.betas[1])),
            ("train.eps", train.eps, "above 0", train.eps.is_finite() && train.eps > 0.0),
            ("train.momentum", train.momentum, fraction, in_fraction(train.momentum)),
            ("train.label_smoothing", train.label_smoothing, fraction, in_fraction(train.label_smoothing)),
            (
                "train.clip_norm",
                train.clip_norm.unwrap_or(1.0),
                "above 0",
                train.clip_norm.is_none_or(|x| x > 0.0),
            ),
            ("train.ema.decay", train.ema.decay, fraction, in_fraction(train.ema.decay)),
            ("train.distill.alpha", alpha, "0 to 1", (0.0..=1.0).contains(&alpha)),
            (
                "train.distill.temperature",
                temperature,
                "above 0",
                temperature.is_finite() && temperature > 0.0,
            ),
        ];
        if let Some(&(path, got, expected, _)) = rules.iter().find(|(.., holds)| !holds) {
            return Err(RecipeError::OutOfRange { path: path.to_owned(), got: got.to_string(), expected });
        }
        if train.dtype == Some(ComputeType::Bf16) && self.device == "cpu" {
            let (path, got) = ("train.dtype".to_owned(), "bf16".to_owned());
            return Err(RecipeError::OutOfRange { path, got, expected: "f32 on the device `cpu`" });
        }
        if let (Some(threshold), false) = (train.target_threshold, self.loss()?.takes_threshold) {
            let (path, got) = ("train.target_threshold".to_owned(), threshold.to_string());
            let expected = "null unless train.loss is `binary_cross_entropy`";
            return Err(RecipeError::OutOfRange { path, got, expected });
        }
        if train.distill.is_some() && !self.loss()?.takes_teacher {
            let (path, got) = ("train.distill".to_owned(), format!("train.loss {}", train.loss));
            let expected = "null unless train.loss is `cross_entropy`";
            return Err(RecipeError::OutOfRange { path, got, expected });
        }
        self.schedule(0, 1).map(|_| ())
    }

    /// The loss.
    ///
    /// # Errors
    ///
    /// [`RecipeError::UnknownName`] when no loss has the name.
    pub fn loss(&self) -> Result<Loss, RecipeError> {
        let name = &self.train.loss;
        loss::find(name)
            .ok_or_else(|| RecipeError::unknown_name("train.loss", name, LOSSES.iter().map(|loss| loss.name)))
    }

    /// The learning rate of a run of `total_steps`, cooldown aside, whose epochs have `batches_per_epoch` batches.
    ///
    /// # Errors
    ///
    /// [`RecipeError::UnknownName`] when no schedule has the name.
    pub fn schedule(&self, total_steps: u64, batches_per_epoch: u64) -> Result<Schedule, RecipeError> {
        let train = &self.train;
        let shape = schedule::shape(&train.schedule).ok_or_else(|| {
            RecipeError::unknown_name(
                "train.schedule",
                &train.schedule,
                schedule::SHAPES.iter().map(|s| s.name),
            )
        })?;
        let (warmup, total, tick) = match train.schedule_unit {
            ScheduleUnit::Step => {
                let by_epochs = train.warmup_epochs * (batches_per_epoch / train.accumulate) as f64;
                let warmup = train.warmup_steps.unwrap_or(by_epochs.round() as u64).min(total_steps);
                (warmup as f64, total_steps as f64, Tick::Step)
            }
            ScheduleUnit::Epoch => {
                let epochs = |steps| steps as f64 * train.accumulate as f64 / batches_per_epoch as f64;
                let (total, accumulate) = (train.epochs as f64, train.accumulate);
                let warmup = train.warmup_steps.map_or(train.warmup_epochs, epochs).min(total);
                (warmup, total, Tick::Epoch { batches: batches_per_epoch, accumulate })
            }
        };
        Ok(Schedule {
            shape,
            peak: train.lr,
            floor: train.min_lr,
            warmup_start: train.warmup_lr,
            warmup,
            warmup_prefix: train.warmup_prefix,
            total,
            tick,
        })
    }

    /// The device, asked for or implied type of activations.
    pub fn dtype(&self) -> ComputeType {
        let implied = if self.device == "cpu" { ComputeType::F32 } else { ComputeType::Bf16 };
        self.train.dtype.unwrap_or(implied)
    }

    /// The recipe as YAML, every default written out.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Write`], which would be our own mistake.
    pub fn to_yaml(&self) -> Result<String, RecipeError> {
        serde_saphyr::to_string(self).map_err(|source| RecipeError::Write { reason: source.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timms_learning_rates_by_epoch() {
        let text = "train: {epochs: 350, cooldown_epochs: 2, lr: 7.0710678118654752e-4, min_lr: 1e-7, warmup_epochs: 15,
                    warmup_lr: 1e-7, warmup_prefix: false, schedule_unit: epoch}";
        let schedule = parse("timm", text, &[])
            .and_then(|recipe| recipe.schedule(350 * 625, 625))
            .expect("a valid recipe");
        for (epoch, lr) in [
            (0, 1e-7),
            (1, 4.7233785e-5),
            (14, 6.5997300e-4),
            (15, 7.0390749e-4),
            (100, 5.7400915e-4),
            (175, 3.5360339e-4),
            (349, 1.1424047e-7),
            (350, 1e-7),
            (351, 1e-7),
        ] {
            // The table has eight digits.
            for step in [epoch * 625, epoch * 625 + 624] {
                let got = schedule.lr(step);
                assert!((got - lr).abs() <= 1e-7 * lr, "epoch {epoch}, step {step}: {got}, expected {lr}");
            }
        }
    }

    #[test]
    fn a_fraction_of_an_epoch_warms_up_in_either_unit() {
        let recipe = |unit: &str, warmup: &str| {
            parse(
                "test",
                &format!("train: {{epochs: 10, accumulate: 2, schedule_unit: {unit}, {warmup}}}"),
                &[],
            )
        };
        let warmup =
            |unit, text| recipe(unit, text).and_then(|recipe| recipe.schedule(100, 20)).map(|s| s.warmup);
        assert_eq!(warmup("step", "warmup_epochs: 1.5").expect("a valid recipe"), 15.0);
        assert_eq!(warmup("epoch", "warmup_epochs: 1.5").expect("a valid recipe"), 1.5);
        assert_eq!(warmup("epoch", "warmup_steps: 5").expect("a valid recipe"), 0.5);
        assert_eq!(warmup("step", "warmup_steps: 1000").expect("a valid recipe"), 100.0);
    }
}
