//! A model being trained: everything a checkpoint holds.

use super::evolution::Evolution;
use super::pack::{Packed, pack};
use super::{Contender, Plan};
use crate::checkpoint::{self, Arrays, ModelInput, Progress, Saved, SavedModel, unchanged};
use crate::error::TrainError;
use crate::recipe::{OptimizerName, Recipe, TrainConfig};
use lacewing_core::{Growth, IndexBuffer};
use lacewing_engine::optim::{AdamW, AdamWConfig, Ema, Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Device, Params, Tensor};
use lacewing_models::{Model, ModelConfig};
use lacewing_nn::{ModelBuilder, Summary};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// A model with its parameters, its optimizer, the average of its weights, and where its training stands.
pub(super) struct Trainee {
    pub(super) model: Box<dyn Model>,
    pub(super) params: Arc<Params>,
    pub(super) summary: Summary,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) average: Option<Ema>,
    pub(super) progress: Progress,
    /// Step of the checkpoint on disk.
    pub(super) saved_step: Option<u64>,
    pub(super) evolution: Evolution,
    config: ModelConfig,
    buffers: Vec<IndexBuffer>,
}

impl Trainee {
    /// A fresh model, the one `saved`, or one with the weights of `init`.
    pub(super) fn new(
        contender: &Contender,
        recipe: &Recipe,
        plan: Plan,
        device: &Device,
        saved: Option<&Saved>,
        init: Option<&SavedModel>,
    ) -> Result<Self, TrainError> {
        let model = contender.config.to_json();
        let dtype = recipe.dtype().engine();
        let builder = match (saved, init) {
            (Some(saved), _) => ModelBuilder::restoring(device.clone(), dtype, saved.buffers()?),
            (None, Some(init)) => ModelBuilder::restoring(device.clone(), dtype, init.buffers()?),
            (None, None) => ModelBuilder::new(device.clone(), dtype, recipe.seed),
        };
        let built = contender.config.build(builder.map_err(lacewing_models::ModelError::from)?)?;
        if let (None, Some(init)) = (saved, init) {
            // Before the average is made, which starts from the weights as they are.
            init.restore(&built.params)?;
        }
        let (image, n_classes) = (built.model.image_shape(), built.model.n_classes());
        let structures = built.summary.layers.iter().map(|layer| (layer.name.clone(), layer.config.clone()));
        let input = ModelInput { image, n_classes };
        let mut progress =
            Progress::start(&contender.label, model, input, structures.collect(), recipe.clone());
        let mut optimizer = new_optimizer(&recipe.train, &built.params)?;
        let (decay, warmup) = (recipe.train.ema.decay as f32, recipe.train.ema.warmup);
        let average = (decay > 0.0).then(|| Ema::new(&built.params, decay, warmup)).transpose()?;
        if let Some(saved) = saved {
            saved.restore(&built.params, &arrays(&built.params, &*optimizer, average.as_ref()))?;
            progress = saved.progress.clone();
            progress.recipe = recipe.clone();
            optimizer.set_steps(progress.optimizer_steps);
        }
        let evolution = Evolution::plan(built.evolving, plan.horizon(), recipe.seed)?;
        evolution.mask(&built.params, progress.step, built.params.flat_master())?;
        Ok(Self {
            model: built.model,
            params: built.params,
            summary: built.summary,
            optimizer,
            average,
            progress,
            saved_step: saved.map(|saved| saved.progress.step),
            evolution,
            config: contender.config.clone(),
            buffers: built.buffers,
        })
    }

    /// What step `step`, from 0, makes of the gradients: the optimizer's step, or moves of patterns in its place, and what
    /// follows.
    pub(super) fn update(&mut self, step: u64, lr: f64, clip_norm: Option<f32>) -> Result<(), TrainError> {
        let (params, average) = (&self.params, self.average.as_ref());
        self.evolution.take_gradients(params, step)?;
        if self.evolution.replaces(step) {
            self.evolution.move_patterns(Growth::Gradient, params, step, &*self.optimizer, average)?;
            params.zero_gradients()?;
        } else {
            self.evolution.edit_gradients(params, step, lr)?;
            let share = lr / self.progress.recipe.train.lr;
            self.evolution.learn(params, step, share, self.optimizer.steps() + 1)?;
            self.optimizer.step(params, lr as f32, clip_norm)?;
        }
        self.evolution.move_patterns(Growth::Random, params, step, &*self.optimizer, average)?;
        if let Some(average) = &mut self.average {
            average.update(&self.params, step + 1)?;
        }
        self.progress.step = step + 1;
        self.evolution.choose_masks(&self.params, step + 1)?;
        self.evolution.mask(&self.params, step + 1, self.params.flat_master())
    }

    /// A number made of all weights, those of the optimizer and the average included, and of all patterns: processes that
    /// hold the same have the same (FNV-1a over the words).
    pub(super) fn digest(&mut self) -> Result<u64, TrainError> {
        self.evolution.update(&mut self.buffers);
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |word: u32| hash = (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
        for (_, array) in arrays(&self.params, &*self.optimizer, self.average.as_ref()) {
            array.to_f32()?.into_iter().for_each(|value| take(value.to_bits()));
        }
        self.buffers.iter().flat_map(|buffer| &buffer.data).for_each(|&value| take(value));
        Ok(hash)
    }

    /// Writes the checkpoint.
    pub(super) fn save(&mut self, path: &Path) -> Result<(), TrainError> {
        self.progress.optimizer_steps = self.optimizer.steps();
        self.evolution.update(&mut self.buffers);
        let arrays = arrays(&self.params, &*self.optimizer, self.average.as_ref());
        checkpoint::save(path, &self.progress, &self.params, &arrays, &self.buffers)?;
        self.saved_step = Some(self.progress.step);
        Ok(())
    }

    /// Writes the weights, averaged where there is an average, of the model as it is executed.
    pub(super) fn save_model(&mut self, path: &Path, class_names: &[String]) -> Result<(), TrainError> {
        self.evolution.update(&mut self.buffers);
        self.with_average(|trainee, by| {
            let mut card = trainee.progress.card(class_names);
            let Some(Packed { config, built }) = trainee.packed(by)? else {
                card.model = trainee.config.without_schedules(&[])?.to_json();
                return Ok(checkpoint::save_model(path, &card, &trainee.params, &trainee.buffers)?);
            };
            card.model = config.to_json();
            let layers = built.summary.layers.iter();
            card.structures = layers.map(|layer| (layer.name.clone(), layer.config.clone())).collect();
            Ok(checkpoint::save_model(path, &card, &built.params, &built.buffers)?)
        })
    }

    /// The model with its kept weights alone, where it is trained with all of them; see [`pack`].
    pub(super) fn packed(&self, by: &Tensor) -> Result<Option<Packed>, TrainError> {
        pack(&self.config, &self.evolution, &self.params, self.progress.step, by, &self.buffers)
    }

    /// Runs `f` with the averaged weights in the place of the trained ones, where there is an average; it is also given the
    /// trained ones, by which masks are chosen.
    pub(super) fn with_average<T>(
        &mut self,
        f: impl FnOnce(&Self, &Tensor) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let Some(mut average) = self.average.take() else { return f(self, self.params.flat_master()) };
        let step = self.progress.step;
        average.swap(&self.params)?;
        let result =
            self.evolution.mask(&self.params, step, average.flat()).and_then(|()| f(self, average.flat()));
        let back = average.swap(&self.params);
        self.average = Some(average);
        back?;
        self.evolution.mask(&self.params, step, self.params.flat_master())?;
        result
    }
}

/// Every flat array of a checkpoint.
fn arrays<'a>(params: &'a Params, optimizer: &'a dyn Optimizer, average: Option<&'a Ema>) -> Arrays<'a> {
    let mut arrays = vec![("param", params.flat_master())];
    arrays.extend(optimizer.state());
    arrays.extend(average.map(|average| ("average", average.flat())));
    arrays
}

fn new_optimizer(config: &TrainConfig, params: &Params) -> Result<Box<dyn Optimizer>, TrainError> {
    let weight_decay = config.weight_decay as f32;
    Ok(match config.optimizer {
        OptimizerName::AdamW => {
            let [beta1, beta2] = config.betas.map(|beta| beta as f32);
            Box::new(AdamW::new(params, AdamWConfig { beta1, beta2, eps: config.eps as f32, weight_decay })?)
        }
        OptimizerName::Sgd => {
            let (momentum, nesterov) = (config.momentum as f32, config.nesterov);
            Box::new(Sgd::new(params, SgdConfig { momentum, nesterov, weight_decay })?)
        }
    })
}

/// What decides which batch comes next and what the arrays mean must be as it was in the checkpoint at `path`. The rest
/// may change: a lower learning rate, more epochs, another device.
pub(super) fn check_unchanged(
    path: &Path,
    saved: &Progress,
    recipe: &Recipe,
    contender: &Contender,
) -> Result<(), TrainError> {
    let fixed = |recipe: &Recipe| {
        json!({
            "seed": recipe.seed,
            "data": {"name": recipe.data.name, "batch_size": recipe.data.batch_size},
            "train": {
                "optimizer": recipe.train.optimizer,
                "accumulate": recipe.train.accumulate,
                "ema": {"is_on": recipe.train.ema.decay > 0.0},
            },
        })
    };
    let (then, now) = (fixed(&saved.recipe), fixed(recipe));
    for part in ["seed", "data", "train"] {
        unchanged(path, part, &then[part], &now[part])?;
    }
    let (mut then, now) = (saved.model.clone(), contender.config.to_json());
    // How activations are kept changes no number.
    if let (Some(then), Some(now)) = (then.get_mut("recompute"), now.get("recompute")) {
        *then = now.clone();
    }
    Ok(unchanged(path, "model", &then, &now)?)
}
