//! A model being trained: everything a checkpoint holds.

use super::Contender;
use crate::checkpoint::{self, Arrays, ModelInput, Progress, Saved, SavedModel, unchanged};
use crate::error::TrainError;
use crate::recipe::{OptimizerName, Recipe, TrainConfig};
use lacewing_core::IndexBuffer;
use lacewing_engine::optim::{AdamW, AdamWConfig, Ema, Optimizer, Sgd, SgdConfig};
use lacewing_engine::{Device, Params};
use lacewing_models::Model;
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
    buffers: Vec<IndexBuffer>,
}

impl Trainee {
    /// A fresh model, the one `saved`, or one with the weights of `init`.
    pub(super) fn new(
        contender: &Contender,
        recipe: &Recipe,
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
        let decay = recipe.train.ema.decay as f32;
        let average = (decay > 0.0).then(|| Ema::new(&built.params, decay)).transpose()?;
        if let Some(saved) = saved {
            saved.restore(&built.params, &arrays(&built.params, &*optimizer, average.as_ref()))?;
            progress = saved.progress.clone();
            progress.recipe = recipe.clone();
            optimizer.set_steps(progress.optimizer_steps);
        }
        Ok(Self {
            model: built.model,
            params: built.params,
            summary: built.summary,
            optimizer,
            average,
            progress,
            saved_step: saved.map(|saved| saved.progress.step),
            buffers: built.buffers,
        })
    }

    /// Writes the checkpoint.
    pub(super) fn save(&mut self, path: &Path) -> Result<(), TrainError> {
        self.progress.optimizer_steps = self.optimizer.steps();
        let arrays = arrays(&self.params, &*self.optimizer, self.average.as_ref());
        checkpoint::save(path, &self.progress, &self.params, &arrays, &self.buffers)?;
        self.saved_step = Some(self.progress.step);
        Ok(())
    }

    /// Writes the weights, averaged where there is an average.
    pub(super) fn save_model(&mut self, path: &Path, class_names: &[String]) -> Result<(), TrainError> {
        self.with_average(|trainee| {
            let card = trainee.progress.card(class_names);
            Ok(checkpoint::save_model(path, &card, &trainee.params, &trainee.buffers)?)
        })
    }

    /// Runs `f` with the averaged weights in the place of the trained ones, where there is an average.
    pub(super) fn with_average<T>(
        &mut self,
        f: impl FnOnce(&Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let Some(mut average) = self.average.take() else { return f(self) };
        average.swap(&self.params)?;
        let result = f(self);
        let back = average.swap(&self.params);
        self.average = Some(average);
        back?;
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
