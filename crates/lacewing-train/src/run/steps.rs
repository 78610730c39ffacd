//! The training loop.

use super::teacher::Teacher;
use super::trainee::Trainee;
use super::{Event, Outcome, Plan};
use crate::data::{Batch, Loader, Position};
use crate::error::TrainError;
use crate::evaluate::{median, shared_accuracy};
use crate::ranks::{Ranks, Sums};
use crate::recipe::Recipe;
use crate::schedule::Schedule;
use lacewing_engine::ops::Target;
use lacewing_engine::{Cx, StepRng, Tensor};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What one model's training needs besides the model.
pub(super) struct Job<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) ranks: &'a Ranks,
    pub(super) sums: &'a Sums,
    pub(super) plan: Plan,
    pub(super) schedule: Schedule,
    pub(super) train: &'a Loader,
    pub(super) test: &'a Loader,
    pub(super) teacher: Option<&'a Teacher>,
    pub(super) class_names: &'a [String],
    pub(super) checkpoint: PathBuf,
    pub(super) weights: PathBuf,
    pub(super) stop: &'a AtomicBool,
    pub(super) emit: &'a mut dyn FnMut(Event) -> Result<(), TrainError>,
}

impl Job<'_> {
    /// Trains from where `trainee` stands to the end of the plan. Within a step the device is never waited for: losses
    /// stay on it until a log line fetches and checks them.
    pub(super) fn train(&mut self, trainee: &mut Trainee) -> Result<Outcome, TrainError> {
        let (config, plan) = (&self.recipe.train, self.plan);
        let clip_norm = config.clip_norm.map(|norm| norm as f32);
        let mut batches = self.train.stream(plan.position(trainee.progress.step));
        let mut window = Window::start();
        let mut speeds = Vec::new();
        while trainee.progress.step < plan.end_step {
            let step = trainee.progress.step;
            let lr = self.schedule.lr(step);
            trainee.evolution.watch(step);
            for part in 0..config.accumulate {
                let batch = batches.next().expect("training batches have no end")?;
                let draws = (step * config.accumulate + part) * self.ranks.size() as u64;
                let rng = StepRng::new(self.recipe.seed, draws + self.ranks.rank() as u64);
                window.take(step + 1, self.gradients(trainee, &batch, rng)?, batch.whole);
                batches.recycle(batch);
            }
            self.sum_over_ranks(trainee)?;
            trainee.update(step, lr, clip_norm)?;

            let stopped = self.ranks.first_says(vec![u8::from(self.stop.load(Ordering::Relaxed))])? == [1];
            let last = stopped || step + 1 == plan.end_step;
            let epoch = plan.epoch_that_ends(step + 1);
            let logged = last || epoch.is_some() || (step + 1).is_multiple_of(config.log_every);
            if logged {
                trainee.params.device().synchronize()?;
                let speed = window.images_per_s();
                speeds.push(speed);
                trainee.progress.train_images_per_s = typical(&speeds);
                self.log(trainee, &window, lr, speed)?;
            }
            let due = |every: u64| epoch.is_some_and(|epoch| every > 0 && epoch.is_multiple_of(every));
            if !stopped && (last || due(config.eval_every)) {
                self.evaluate(trainee)?;
            }
            if last || due(config.checkpoint_every) {
                self.save(trainee)?;
            }
            if logged {
                window = Window::start();
            }
            if stopped {
                return Ok(Outcome::Interrupted { step: step + 1 });
            }
        }
        Ok(Outcome::Finished)
    }

    /// One batch forward and backward: its losses, `[B]`, on the device.
    fn gradients(&self, trainee: &Trainee, batch: &Batch, rng: StepRng) -> Result<Tensor, TrainError> {
        let (device, shape) = (trainee.params.device(), self.train.image_shape());
        let dims = [batch.len(), shape.channels, shape.height, shape.width];
        let images = Tensor::from_f32(&device, &batch.images, &dims)?;
        let epoch = self.plan.position(trainee.progress.step).epoch;
        let cx = Cx::training(trainee.params.clone(), rng).at_epoch(epoch).among(self.ranks.size());
        let logits = trainee.model.forward(&cx, &images)?;
        // Over all processes, whose gradients are summed.
        let grad_scale = 1.0 / (batch.whole as u64 * self.recipe.train.accumulate) as f32;
        let (loss, threshold) = (self.recipe.loss()?, self.recipe.train.target_threshold.map(|t| t as f32));
        let (loss, dlogits) = match &batch.soft_targets {
            Some(soft) => {
                let soft = Tensor::from_f32(&device, soft, &[batch.len(), trainee.progress.input.n_classes])?;
                loss.of(logits.value(), Target::Soft(&soft), threshold, grad_scale)?
            }
            None => {
                let labels = Tensor::from_u32(&device, &batch.labels, &[batch.len()])?;
                let target = Target::Classes { labels: &labels, smoothing: 0.0 };
                loss.of(logits.value(), target, threshold, grad_scale)?
            }
        };
        if let Some(teacher) = self.teacher {
            teacher.teach(&images, logits.value(), (&loss, &dlogits), grad_scale)?;
        }
        cx.backward(&logits, dlogits)?;
        Ok(loss)
    }

    /// Makes gradients those of the whole batch, and running statistics the mean of the processes' own.
    fn sum_over_ranks(&self, trainee: &Trainee) -> Result<(), TrainError> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let params = &trainee.params;
        self.sums.sum(params.flat_gradient()?)?;
        for id in params.ids().filter(|&id| params.info(id).from_batches) {
            self.sums.mean(&params.master(id))?;
        }
        Ok(())
    }

    /// Fetches the window's losses, stops at one that is no number, writes a line.
    fn log(
        &mut self,
        trainee: &Trainee,
        window: &Window,
        lr: f64,
        images_per_s: f64,
    ) -> Result<(), TrainError> {
        let (mut sum, mut n, mut bad) = (0.0, 0.0, None);
        for (step, losses) in &window.losses {
            for loss in losses.to_f32()? {
                if !loss.is_finite() {
                    bad = bad.or(Some((*step, loss)));
                }
                sum += f64::from(loss);
                n += 1.0;
            }
        }
        // All processes stop where one has to.
        let first_bad = self.ranks.min_value(bad.map_or(f64::INFINITY, |(step, _)| step as f64))?;
        if first_bad.is_finite() {
            let (model, kept) = (trainee.progress.label.clone(), trainee.saved_step);
            let (step, loss) = (first_bad as u64, bad.map_or(f32::NAN, |(_, loss)| loss));
            return Err(TrainError::NotFinite { model, step, loss, kept });
        }
        let [sum, n] = self.ranks.sum_values([sum, n])?;
        let (step, model) = (trainee.progress.step, trainee.progress.label.clone());
        let (epoch, loss) = (self.plan.epochs(step), sum / f64::max(n, 1.0));
        (self.emit)(Event::Step { model, step, epoch, lr, loss, images_per_s })
    }

    /// Classifies the test split, with the averaged weights where there are any.
    pub(super) fn evaluate(&mut self, trainee: &mut Trainee) -> Result<f64, TrainError> {
        let found = trainee.with_average(|trainee, _| {
            shared_accuracy(&*trainee.model, &trainee.params, self.test, self.ranks)
        })?;
        let best = &mut trainee.progress.best_top1;
        *best = Some(best.map_or(found.top1, |best| best.max(found.top1)));
        trainee.progress.top1 = Some(found.top1);
        let (model, step) = (trainee.progress.label.clone(), trainee.progress.step);
        let (epoch, top1, top5) = (self.plan.epochs(step), found.top1, found.top5);
        (self.emit)(Event::Eval { model, step, epoch, top1, top5, images_per_s: found.images_per_s })?;
        Ok(found.top1)
    }

    /// Writes the checkpoint and the weights.
    fn save(&mut self, trainee: &mut Trainee) -> Result<(), TrainError> {
        let Position { epoch, batch } = self.plan.position(trainee.progress.step);
        (trainee.progress.epoch, trainee.progress.batch) = (epoch, batch);
        if self.ranks.size() > 1 {
            let digest = trainee.digest()?;
            let (model, step) = (trainee.progress.label.clone(), trainee.progress.step);
            self.ranks.agree(&model, step, digest)?;
            let (ranks, digest) = (self.ranks.size(), format!("{digest:016x}"));
            (self.emit)(Event::Agree { model, step, ranks, digest })?;
        }
        if !self.ranks.is_first() {
            trainee.saved_step = Some(trainee.progress.step);
            return Ok(());
        }
        trainee.save(&self.checkpoint)?;
        trainee.save_model(&self.weights, self.class_names)?;
        let (model, step) = (trainee.progress.label.clone(), trainee.progress.step);
        (self.emit)(Event::Checkpoint { model, step, path: self.checkpoint.clone() })
    }
}

/// The steps since the last log line.
struct Window {
    start: Instant,
    images: usize,
    /// The step, from 1, and its losses on the device.
    losses: Vec<(u64, Tensor)>,
}

impl Window {
    fn start() -> Self {
        Self { start: Instant::now(), images: 0, losses: Vec::new() }
    }

    fn take(&mut self, step: u64, losses: Tensor, images: usize) {
        self.losses.push((step, losses));
        self.images += images;
    }

    fn images_per_s(&self) -> f64 {
        self.images as f64 / self.start.elapsed().as_secs_f64()
    }
}

/// The median speed; the first window, in which caches and kernels were cold, counts only when it is alone.
fn typical(speeds: &[f64]) -> f64 {
    let warm = if speeds.len() > 1 { &speeds[1..] } else { speeds };
    median(&mut warm.to_vec()).unwrap_or(0.0)
}
