//! Why a checkpoint cannot be written or used.

use lacewing_engine::EngineError;
use std::path::PathBuf;

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system does not give the file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The system does not take the file.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// No checkpoint at all.
    #[error("{} holds no checkpoint: there is no folder `checkpoint` and no `model.safetensors` in it", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// A file that is cut short or does not describe itself.
    #[error("{} ({bytes} bytes) is truncated or corrupt: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// What is wrong.
        reason: String,
    },
    /// A safetensors file that this program did not write.
    #[error("{} is not of lacewing: it has no model config in its metadata", path.display())]
    NoMetadata {
        /// The file.
        path: PathBuf,
    },
    /// A file of another version.
    #[error("{} has format {got}, this program reads {expected}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version this program knows.
        expected: u32,
        /// The file's.
        got: u32,
    },
    /// An array is not there.
    #[error("{}: tensor `{name}` is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
    },
    /// An array that nothing asks for.
    #[error("{}: tensor `{name}` belongs to nothing in this model", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
    },
    /// An array of another type or shape.
    #[error("{}: tensor `{name}` is {got}, expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// Type and shape the model needs.
        expected: String,
        /// Type and shape found.
        got: String,
    },
    /// A setting that may not change between a run and its continuation.
    #[error("{}: `{what}` was {expected} in this run and is now {got}; it cannot change on the way", path.display())]
    Changed {
        /// The checkpoint.
        path: PathBuf,
        /// The setting.
        what: String,
        /// Its value then.
        expected: String,
        /// Its value now.
        got: String,
    },
    /// Two parts of a model with one name.
    #[error("parameter and index buffer share the name `{name}`")]
    SharedName {
        /// The name.
        name: String,
    },
    /// The device.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
