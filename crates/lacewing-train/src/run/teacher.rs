//! The teacher of a run: a trained model whose answers are a part of the loss (Hinton et al. 2015).

use crate::augment::ImageShape;
use crate::checkpoint::{CheckpointError, MODEL_FILE, SavedModel, TeacherMark, unchanged};
use crate::data::Dataset;
use crate::error::TrainError;
use crate::evaluate::rebuild;
use crate::recipe::Recipe;
use lacewing_engine::ops::{Distillation, distillation};
use lacewing_engine::{Cx, Device, Params, Tensor};
use lacewing_models::Model;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// A model that is not trained, and how much it counts.
pub(super) struct Teacher {
    model: Box<dyn Model>,
    params: Arc<Params>,
    blend: Distillation,
    /// What checkpoints say of it.
    pub(super) mark: TeacherMark,
}

impl Teacher {
    /// The teacher that `recipe` names, if it names one, on the run's device and in its type.
    ///
    /// # Errors
    ///
    /// [`TrainError::Teacher`] when it knows other pictures or other classes than those of the data; [`CheckpointError`] when it
    /// cannot be read; what the device reports.
    pub(super) fn load(
        recipe: &Recipe,
        device: &Device,
        shape: ImageShape,
        data: &Dataset,
    ) -> Result<Option<Self>, TrainError> {
        let Some(config) = &recipe.train.distill else { return Ok(None) };
        let path = &config.teacher;
        let saved = SavedModel::read(path)?;
        let refused = |what, expected: String, got: String| {
            Err(TrainError::Teacher { path: path.clone(), what, expected, got })
        };
        let [channels, height, width] = saved.card.input.image;
        let takes = ImageShape { channels, height, width };
        if takes != shape {
            return refused("pictures", shape.to_string(), takes.to_string());
        }
        let (known, wanted) = (saved.card.input.n_classes, data.n_classes());
        if known != wanted {
            return refused("classes", wanted.to_string(), known.to_string());
        }
        let (names, own) = (&data.class_names, &saved.card.class_names);
        if let Some((wanted, known)) = names.iter().zip(own).find(|(wanted, known)| wanted != known) {
            return refused("class names", format!("`{wanted}`"), format!("`{known}`"));
        }
        let built = rebuild(&saved, device, recipe.dtype())?;
        let blend = Distillation { alpha: config.alpha as f32, temperature: config.temperature as f32 };
        let mark = TeacherMark { path: path.clone(), digest: digest(path)? };
        Ok(Some(Self { model: built.model, params: built.params, blend, mark }))
    }

    /// Takes the teacher's answers to `images` into the loss and the gradient of `logits`.
    pub(super) fn teach(
        &self,
        images: &Tensor,
        logits: &Tensor,
        (loss, dlogits): (&Tensor, &Tensor),
        grad_scale: f32,
    ) -> Result<(), TrainError> {
        let answers = self.model.forward(&Cx::evaluation(self.params.clone()), images)?;
        Ok(distillation(logits, answers.value(), (loss, dlogits), self.blend, grad_scale)?)
    }
}

/// Checks that the run whose checkpoint is at `path` goes on with the teacher it began with, wherever that lies now.
pub(super) fn check_teacher(
    path: &Path,
    then: Option<&TeacherMark>,
    now: Option<&Teacher>,
) -> Result<(), CheckpointError> {
    let digest = |mark: Option<&TeacherMark>| json!(mark.map(|mark| &mark.digest));
    unchanged(path, "train.distill.teacher", &digest(then), &digest(now.map(|now| &now.mark)))
}

/// The hash FNV-1a, 64 bits, of the file of weights: enough to tell one teacher from another, not against forgery.
fn digest(path: &Path) -> Result<String, CheckpointError> {
    let path = if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() };
    let bytes = std::fs::read(&path).map_err(|source| CheckpointError::Read { path, source })?;
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Ok(format!("fnv1a:{hash:016x}"))
}
