//! What can end a run, with names and numbers.

use crate::augment::ImageShape;
use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::ranks::RanksError;
use crate::recipe::RecipeError;
use lacewing_engine::EngineError;
use lacewing_models::ModelError;
use std::path::PathBuf;

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device or an op on it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The other processes of the run.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A model is called like another, or by a name that makes no folder.
    #[error("`compare.{label}` cannot name a model: {reason}")]
    Label {
        /// The name.
        label: String,
        /// Why not.
        reason: &'static str,
    },
    /// Pictures of another shape than a model takes.
    #[error("model {model} takes pictures of {expected}, the data has {got} (channels x height x width)")]
    Image {
        /// The model.
        model: String,
        /// The shape it takes.
        expected: ImageShape,
        /// The shape of the data, after augmentation.
        got: ImageShape,
    },
    /// A teacher that does not know what the data has.
    #[error("the teacher {} does not fit the data: {what}: expected {expected}, got {got}", path.display())]
    Teacher {
        /// Where it lies.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The data's.
        expected: String,
        /// The teacher's.
        got: String,
    },
    /// The output folder holds a run already.
    #[error("{} holds a run already: continue it with --resume {}, or choose another --out", path.display(), path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// The output folder cannot be written.
    #[error("cannot write to the output folder {}: {source}", path.display())]
    Output {
        /// The folder, or the file in it.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The disk is too full.
    #[error(
        "not enough space in {}: the run needs {} MB, {} MB are free",
        path.display(), needed.div_ceil(1_000_000), free / 1_000_000
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The loss is not a number any more.
    #[error(
        "{model}: the loss of step {step} is {loss}; training has stopped, {}",
        match kept {
            Some(step) => format!("the checkpoint of step {step} is kept: resume it with a lower train.lr or with train.clip_norm"),
            None => "there is no checkpoint yet: try a lower train.lr or train.clip_norm".to_owned(),
        }
    )]
    NotFinite {
        /// The model.
        model: String,
        /// The step, from 1.
        step: u64,
        /// Its loss.
        loss: f32,
        /// Step of the last checkpoint.
        kept: Option<u64>,
    },
}
