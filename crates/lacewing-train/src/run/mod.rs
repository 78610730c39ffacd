//! A run: every model of a recipe trained, evaluated and measured, with nothing lost on the way.
//!
//! [`train`] checks all that can be checked, then trains the models one after the other. What happens is told through
//! [`Event`]s; [`train_with`] does so as one of several processes. Each model's checkpoint makes its training restartable; `summary.json` says which models are done.

mod contender;
mod event;
mod evolution;
mod output;
mod pack;
mod steps;
mod teacher;
mod trainee;

pub use contender::{Contender, contenders};
pub use event::Event;
pub use output::{Output, config_file};

use crate::checkpoint::{Progress, Saved, SavedModel};
use crate::data::{Dataset, Loader, LoaderOptions, OpenOptions, Position, SplitName, open};
use crate::error::TrainError;
use crate::evaluate::latency;
use crate::ranks::{Ranks, RanksError};
use crate::recipe::{OptimizerName, Recipe};
use crate::report::Row;
use evolution::Evolution;
use lacewing_core::Horizon;
use lacewing_engine::Device;
use lacewing_models::ModelError;
use lacewing_nn::{ModelBuilder, Summary};
use pack::Packed;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use steps::Job;
use teacher::{Teacher, check_teacher};
use trainee::{Trainee, check_unchanged};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the end of the recipe, or to `train.max_steps`.
    Finished,
    /// By request; the checkpoint is written.
    Interrupted {
        /// Steps done of the model that was being trained.
        step: u64,
    },
}

/// What came of a run.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// A row for each model that is done.
    pub rows: Vec<Row>,
    /// The run's folder.
    pub out: PathBuf,
}

/// Where training begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With fresh models, in a folder that holds no run.
    New,
    /// From the checkpoints in `recipe.out`.
    Resume,
}

/// Trains every model of `recipe`.
///
/// `stop` is looked at after each step; when it is set, a checkpoint is written and the run ends. `listen` is told
/// everything that happens.
///
/// # Errors
///
/// [`TrainError`]. All that can be known beforehand is found before the first step: the recipe, the models, the device,
/// the data, the folder and the space in it.
pub fn train(
    recipe: Recipe,
    start: Start,
    stop: &AtomicBool,
    listen: &mut dyn FnMut(&Event),
) -> Result<Finished, TrainError> {
    train_with(&Ranks::alone(), recipe, start, stop, listen)
}

/// As [`train`], as one of several processes that call this with the same recipe.
///
/// `data.batch_size` is that of all together, each makes the gradients of its share. The first one writes the folder,
/// which the others must see too when a run is continued; its `stop` counts, it alone is told what happens, and only its
/// result has rows.
///
/// # Errors
///
/// As [`train`], and [`TrainError::Ranks`] when another process ends or holds other weights than the first.
pub fn train_with(
    ranks: &Ranks,
    mut recipe: Recipe,
    start: Start,
    stop: &AtomicBool,
    listen: &mut dyn FnMut(&Event),
) -> Result<Finished, TrainError> {
    let mut listen = |event: &Event| {
        if ranks.is_first() {
            listen(event);
        }
    };
    let init = initial_weights(&mut recipe, start)?;
    contenders(&recipe)?;
    let (batch_size, n_ranks) = (recipe.data.batch_size, ranks.size());
    if batch_size < n_ranks {
        return Err(RanksError::Batch { batch_size, ranks: n_ranks }.into());
    }
    let device = Device::open(&ranks.device_name(&recipe.device))?;
    let sums = ranks.sums(&device)?;
    let root = shared_folder(ranks, &recipe, start)?;
    recipe.out = Some(root.clone());
    recipe.train.dtype = Some(recipe.dtype());
    let output = if ranks.is_first() { Output::create(&root)? } else { Output::of_another(&root) };
    let data = open_data(&recipe)?;
    let (train_loader, test_loader) = shared_loaders(&recipe, &data, ranks)?;
    let contenders = contender::fit(&mut recipe, train_loader.image_shape(), &data)?;
    let teacher = Teacher::load(&recipe, &device, train_loader.image_shape(), &data)?;
    let plan = Plan::new(&recipe, train_loader.batches_per_epoch() as u64);
    let mut summaries = Vec::new();
    for contender in &contenders {
        let counted = contender.config.build(ModelBuilder::counting().map_err(ModelError::from)?)?;
        Evolution::plan(counted.evolving, plan.horizon(), recipe.seed)?;
        summaries.push(counted.summary);
    }
    output.require_space(summaries.iter().map(|summary| bytes_on_disk(&recipe, summary)).sum())?;
    for contender in contenders.iter().filter(|_| start == Start::Resume) {
        let path = output.checkpoint(contender.folder.as_deref());
        if let Some(saved) = Progress::read(&path)? {
            check_unchanged(&path, &saved, &recipe, contender)?;
            check_teacher(&path, saved.teacher.as_ref(), teacher.as_ref())?;
        }
    }
    output.write_config(&recipe)?;
    for name in &data.skipped {
        listen(&Event::Warning { text: format!("left out, it does not decode: {name}") });
    }

    let schedule = recipe.schedule(plan.total_steps, plan.batches_per_epoch)?;
    let known_rows = if start == Start::Resume { output.summary()? } else { Vec::new() };
    let mut rows: Vec<Row> = Vec::new();
    for contender in &contenders {
        let folder = contender.folder.as_deref();
        let saved = match start {
            Start::Resume => Saved::read(&output.checkpoint(folder))?,
            Start::New => None,
        };
        let done = saved.as_ref().is_some_and(|saved| saved.progress.step >= plan.end_step);
        if let (true, Some(row)) = (done, known_rows.iter().find(|row| row.name == contender.label)) {
            rows.push(row.clone());
            continue;
        }
        let mut trainee = Trainee::new(contender, &recipe, plan, &device, saved.as_ref(), init.as_ref())?;
        if let Some(sums) = ranks.host_sums() {
            trainee.evolution.sum_over(&sums);
        }
        trainee.progress.teacher = teacher.as_ref().map(|teacher| teacher.mark.clone());
        let from_step = trainee.progress.step;
        output.rewind_metrics(&contender.label, from_step)?;
        let mut emit = |event: Event| -> Result<(), TrainError> {
            if event.is_metric() {
                output.write_metric(&event)?;
            }
            listen(&event);
            Ok(())
        };
        emit(Event::Start {
            model: contender.label.clone(),
            parameters: trainee.summary.parameters,
            bytes: trainee.summary.bytes,
            macs: trainee.summary.macs(),
            device: if n_ranks == 1 { device.to_string() } else { format!("{n_ranks} x {device}") },
            from_step,
            steps: plan.end_step,
            steps_per_epoch: plan.batches_per_epoch / plan.accumulate,
        })?;
        let mut job = Job {
            recipe: &recipe,
            ranks,
            sums: &sums,
            plan,
            schedule,
            train: &train_loader,
            test: &test_loader,
            teacher: teacher.as_ref(),
            class_names: &data.class_names,
            checkpoint: output.checkpoint(folder),
            weights: output.weights(folder),
            stop,
            emit: &mut emit,
        };
        let outcome = job.train(&mut trainee)?;
        if let Outcome::Interrupted { .. } = outcome {
            return Ok(Finished { outcome, rows, out: root });
        }
        let accuracy = match trainee.progress.top1 {
            Some(top1) => top1,
            None => job.evaluate(&mut trainee)?,
        };
        if !ranks.is_first() {
            continue;
        }
        let row = measure(&mut trainee, accuracy)?;
        emit(Event::Result { row: row.clone() })?;
        rows.push(row);
        output.write_summary(&rows)?;
    }
    for name in train_loader.skipped().iter().chain(&test_loader.skipped()) {
        listen(&Event::Warning { text: format!("left out, it does not decode: {name}") });
    }
    Ok(Finished { outcome: Outcome::Finished, rows, out: root })
}

/// The weights that a new run starts from. They replace the recipe's model by their own, with the recipe's dropout, drop
/// path and recomputation; there is nothing to compare with, so the recipe's other models are left out.
fn initial_weights(recipe: &mut Recipe, start: Start) -> Result<Option<SavedModel>, TrainError> {
    let Some(path) = recipe.init.clone().filter(|_| start == Start::New) else { return Ok(None) };
    let saved = SavedModel::read(&path)?;
    let Value::Object(mut model) = saved.card.model.clone() else {
        return Err(ModelError::NotAConfig { got: saved.card.model.to_string() }.into());
    };
    for key in ["dropout", "drop_path", "recompute"] {
        if let Some(value) = recipe.model.get(key).filter(|_| model.contains_key(key)) {
            model.insert(key.to_owned(), value.clone());
        }
    }
    recipe.model = model;
    (recipe.twin, recipe.compare) = (false, Map::new());
    Ok(Some(saved))
}

/// The data set of a recipe.
///
/// # Errors
///
/// [`TrainError::Data`].
pub fn open_data(recipe: &Recipe) -> Result<Dataset, TrainError> {
    let data = &recipe.data;
    let options = OpenOptions {
        on_bad_image: data.on_bad_image,
        workers: data.workers,
        image_size: data.image_size,
        ..OpenOptions::default()
    };
    Ok(open(&data.name, data.path.as_deref(), &options)?)
}

/// What the schedules of structures of a recipe go by, with the number of pictures in its data.
///
/// # Errors
///
/// [`TrainError::Data`].
pub fn horizon(recipe: &Recipe) -> Result<Horizon, TrainError> {
    let (train, _) = loaders(recipe, &open_data(recipe)?)?;
    Ok(Plan::new(recipe, train.batches_per_epoch() as u64).horizon())
}

/// Batches of the training split and of the test split, as a recipe wants them.
///
/// # Errors
///
/// [`TrainError::Data`].
pub fn loaders(recipe: &Recipe, data: &Dataset) -> Result<(Loader, Loader), TrainError> {
    shared_loaders(recipe, data, &Ranks::alone())
}

/// This process's share of the same batches.
fn shared_loaders(recipe: &Recipe, data: &Dataset, ranks: &Ranks) -> Result<(Loader, Loader), TrainError> {
    let options = LoaderOptions {
        batch_size: recipe.data.batch_size,
        rank: ranks.rank(),
        ranks: ranks.size(),
        seed: recipe.seed,
        workers: recipe.data.workers,
        label_smoothing: recipe.train.label_smoothing,
        on_bad_image: recipe.data.on_bad_image,
        ..LoaderOptions::default()
    };
    let evaluation = LoaderOptions { batch_size: recipe.data.eval_batch_size, ..options.clone() };
    let train = Loader::train(data, &recipe.augment, options)?;
    Ok((train, Loader::eval(data, SplitName::Test, &recipe.augment, evaluation)?))
}

/// Batches of training pictures, shuffled but without augmentation: what a conversion measures on.
///
/// # Errors
///
/// [`TrainError::Data`].
pub fn calibration_loader(recipe: &Recipe, data: &Dataset) -> Result<Loader, TrainError> {
    let options = LoaderOptions {
        batch_size: recipe.data.eval_batch_size,
        seed: recipe.seed,
        workers: recipe.data.workers,
        on_bad_image: recipe.data.on_bad_image,
        ..LoaderOptions::default()
    };
    Ok(Loader::sample(data, &recipe.augment, options)?)
}

/// The row of a trained model.
fn measure(trainee: &mut Trainee, accuracy: f64) -> Result<Row, TrainError> {
    let image = trainee.progress.input.image;
    // Speed and size are those of the model as it is executed.
    let (latency_ms, summary) = trainee.with_average(|trainee, by| {
        Ok(match trainee.packed(by)? {
            Some(Packed { built, .. }) => (latency(&*built.model, &built.params, image)?, built.summary),
            None => (latency(&*trainee.model, &trainee.params, image)?, trainee.summary.clone()),
        })
    })?;
    Ok(Row {
        name: trainee.progress.label.clone(),
        accuracy,
        parameters: summary.parameters,
        bytes: summary.bytes,
        macs: summary.macs(),
        train_images_per_s: trainee.progress.train_images_per_s,
        latency_ms,
    })
}

/// How batches make steps and steps make epochs. An optimizer step takes `accumulate` batches, wherever epochs end.
#[derive(Clone, Copy, Debug)]
struct Plan {
    batches_per_epoch: u64,
    accumulate: u64,
    /// Steps of all epochs but those of cooldown: what the schedule is made for.
    total_steps: u64,
    /// Where this run stops.
    end_step: u64,
}

impl Plan {
    fn new(recipe: &Recipe, batches_per_epoch: u64) -> Self {
        let accumulate = recipe.train.accumulate;
        let steps = |epochs: u64| (epochs.saturating_mul(batches_per_epoch) / accumulate).max(1);
        let total_steps = steps(recipe.train.epochs);
        let with_cooldown = steps(recipe.train.epochs.saturating_add(recipe.train.cooldown_epochs));
        let end_step = with_cooldown.min(recipe.train.max_steps.unwrap_or(u64::MAX));
        Self { batches_per_epoch, accumulate, total_steps, end_step }
    }

    /// What the schedules of structures go by.
    fn horizon(&self) -> Horizon {
        let steps_per_epoch = (self.batches_per_epoch / self.accumulate).max(1);
        Horizon { total_steps: self.total_steps, steps_per_epoch }
    }

    /// The batch with which the step after `step` steps begins.
    fn position(&self, step: u64) -> Position {
        let batches = step * self.accumulate;
        Position {
            epoch: batches / self.batches_per_epoch,
            batch: (batches % self.batches_per_epoch) as usize,
        }
    }

    /// Epochs done after `step` steps, with their fraction.
    fn epochs(&self, step: u64) -> f64 {
        (step * self.accumulate) as f64 / self.batches_per_epoch as f64
    }

    /// The number of the epoch, from 1, whose last batch is in the step that makes `step` steps.
    fn epoch_that_ends(&self, step: u64) -> Option<u64> {
        let (before, after) = (self.position(step - 1).epoch, self.position(step).epoch);
        (after > before).then_some(after)
    }
}

/// Bytes that checkpoints and weights of a model take: two checkpoints, since the new one is written beside the old.
fn bytes_on_disk(recipe: &Recipe, summary: &Summary) -> u64 {
    let moments = match recipe.train.optimizer {
        OptimizerName::AdamW => 2,
        OptimizerName::Sgd => 1,
    };
    let copies = 1 + moments + u64::from(recipe.train.ema.decay > 0.0);
    let values = 4 * summary.parameters as u64;
    let indices = (summary.bytes as u64).saturating_sub(values);
    2 * (copies * values + indices) + 2 * (values + indices)
}

/// The folder the recipe names, or the first of `runs/NAME`, `runs/NAME-2`, … that holds no run.
fn output_folder(recipe: &Recipe, start: Start) -> Result<PathBuf, TrainError> {
    match &recipe.out {
        Some(out) if start == Start::New && holds_run(out) => Err(TrainError::Taken { path: out.clone() }),
        Some(out) => Ok(out.clone()),
        None => {
            let base = Path::new("runs").join(&recipe.name);
            let numbered = |n: u64| PathBuf::from(format!("{}-{n}", base.display()));
            let free = std::iter::once(base.clone()).chain((2..).map(numbered)).find(|path| !holds_run(path));
            Ok(free.expect("there are more numbers than folders"))
        }
    }
}

/// The folder that rank 0 chooses: what it sees must not depend on who is first to make it.
fn shared_folder(ranks: &Ranks, recipe: &Recipe, start: Start) -> Result<PathBuf, TrainError> {
    if ranks.size() == 1 {
        return output_folder(recipe, start);
    }
    let own = if ranks.is_first() { output_folder(recipe, start)? } else { PathBuf::new() };
    let said = ranks.first_says(own.to_string_lossy().into_owned().into_bytes())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&said).into_owned()))
}

fn holds_run(path: &Path) -> bool {
    ["checkpoint", "checkpoint.old", "summary.json", crate::checkpoint::MODEL_FILE]
        .iter()
        .any(|name| path.join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_epochs_agree_with_batches() {
        let mut recipe = Recipe::default();
        (recipe.train.epochs, recipe.train.accumulate) = (3, 2);
        let plan = Plan::new(&recipe, 5);
        assert_eq!((plan.total_steps, plan.end_step), (7, 7));
        assert_eq!(plan.position(3), Position { epoch: 1, batch: 1 });
        let ends: Vec<Option<u64>> = (1..=7).map(|step| plan.epoch_that_ends(step)).collect();
        assert_eq!(ends, [None, None, Some(1), None, Some(2), None, None]);
        recipe.train.max_steps = Some(4);
        assert_eq!(Plan::new(&recipe, 5).end_step, 4);
        (recipe.train.max_steps, recipe.train.cooldown_epochs) = (None, 2);
        let plan = Plan::new(&recipe, 5);
        assert_eq!((plan.total_steps, plan.end_step), (7, 12));
        recipe.train.accumulate = 100;
        assert_eq!(Plan::new(&recipe, 5).total_steps, 1);
    }

    #[test]
    fn a_folder_with_a_run_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recipe = Recipe { out: Some(folder.path().to_owned()), ..Recipe::default() };
        assert!(output_folder(&recipe, Start::New).is_ok());
        std::fs::create_dir(folder.path().join("checkpoint")).expect("a writable folder");
        let error = output_folder(&recipe, Start::New).expect_err("a run is there").to_string();
        assert!(error.contains("--resume"), "{error}");
        assert!(output_folder(&recipe, Start::Resume).is_ok());
    }
}
