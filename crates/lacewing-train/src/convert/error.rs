//! What can be wrong with a conversion: names, what was expected, what came.

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::error::TrainError;
use crate::recipe::RecipeError;
use lacewing_core::StructureError;
use lacewing_engine::EngineError;
use lacewing_models::ModelError;
use lacewing_weights::WeightsError;
use std::path::PathBuf;

/// Why a model could not be converted. Nothing has been written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The file cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file of this program cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model, or a rule for its layers.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A structure named wrongly, or a setting.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The calibration data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Evaluation of a model.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A checkpoint that does not say what it is the weights of.
    #[error("{} does not say which model it is: name it with --model", path.display())]
    NoModel {
        /// The file or folder.
        path: PathBuf,
    },
    /// The model is named for a checkpoint that knows its own.
    #[error("{} knows its model; --model is for other tools' checkpoints", path.display())]
    KnownModel {
        /// The file or folder.
        path: PathBuf,
    },
    /// Tensors that the model has no place for.
    #[error(
        "{}: {} of its tensors belong to nothing in {model}: {}; --allow-missing leaves them out",
        path.display(), names.len(), list(names)
    )]
    UnknownKeys {
        /// The file or folder.
        path: PathBuf,
        /// The model.
        model: String,
        /// Their names.
        names: Vec<String>,
    },
    /// Parameters that the file has no tensor for.
    #[error(
        "{}: {} parameters of {model} are missing: {}; --allow-missing draws them afresh",
        path.display(), names.len(), list(names)
    )]
    MissingKeys {
        /// The file or folder.
        path: PathBuf,
        /// The model.
        model: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor of another shape.
    #[error("{}: tensor `{name}` must have shape {expected:?}, got {got:?}", path.display())]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the model needs.
        expected: Vec<usize>,
        /// The file's.
        got: Vec<usize>,
    },
    /// A value that is no number.
    #[error("{}: tensor `{name}` is {value} at position {at}", path.display())]
    NotFinite {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Position, row-major.
        at: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A layer whose map is not one matrix.
    #[error(
        "layer `{layer}`: `{structure}` with a learned gate is not one matrix, so it cannot be made {to}"
    )]
    Gated {
        /// The layer.
        layer: String,
        /// Its structure.
        structure: String,
        /// What it was to become.
        to: &'static str,
    },
    /// A structure that does not fit a layer.
    #[error("layer `{layer}` [{n_out}, {n_in}]: {source}")]
    Structure {
        /// The layer.
        layer: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// Why not.
        source: Box<StructureError>,
    },
    /// Several structures, and nothing to choose between them by.
    #[error("--to names {got} structures; without --budget it takes exactly one, or give --rules")]
    OneStructure {
        /// How many were named.
        got: usize,
    },
    /// Settings where the budget decides.
    #[error("with --budget, --to takes names only, since the budget decides the sizes; got {got}")]
    FamilyOnly {
        /// The config found.
        got: String,
    },
    /// Layers that share a weight would part.
    #[error("layers `{a}` and `{b}` share their weight, so they must become the same structure")]
    Tied {
        /// One layer.
        a: String,
        /// The other.
        b: String,
    },
    /// Nothing is small enough.
    #[error(
        "the budget of {fraction} cannot be met: the smallest choice for the {layers} selected layers costs {least:.4} of \
         dense {metric}"
    )]
    Budget {
        /// The budget asked for.
        fraction: f64,
        /// What is counted.
        metric: &'static str,
        /// How many layers there are.
        layers: usize,
        /// What can be met.
        least: f64,
    },
    /// A uniform budget needs one family, counted in parameters.
    #[error(
        "--uniform takes one structure and --budget params=FRACTION, got {families} structures and {metric}"
    )]
    Uniform {
        /// How many families were named.
        families: usize,
        /// The budget's metric.
        metric: &'static str,
    },
    /// A family has no size that small.
    #[error("layer `{layer}` [{n_out}, {n_in}]: `{structure}` has no size of at most {fraction} of dense")]
    TooLarge {
        /// The layer.
        layer: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// The family.
        structure: &'static str,
        /// The share asked for.
        fraction: f64,
    },
    /// No family that was named has a size for a layer.
    #[error("layer `{layer}` [{n_out}, {n_in}]: none of the structures has a size that fits its shape")]
    NoSize {
        /// The layer.
        layer: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
    },
    /// A projection that left the range of f32.
    #[error("layer `{layer}`: the projection onto `{structure}` gave values that f32 does not hold")]
    Diverged {
        /// The layer.
        layer: String,
        /// The structure.
        structure: &'static str,
    },
    /// A model whose logits are not numbers, although its values are.
    #[error(
        "the logits of {model} on the calibration pictures are not finite: products of its weights leave f32's range"
    )]
    NotFiniteLogits {
        /// The model to be converted, or the converted one.
        model: String,
    },
    /// Pictures that do not fit the model.
    #[error(
        "the model takes pictures of {expected:?}, the calibration data has {got:?} (channels, height, width)"
    )]
    Pictures {
        /// What the model takes.
        expected: [usize; 3],
        /// What the data gives.
        got: [usize; 3],
    },
    /// The result cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is something already.
    #[error("{} holds a model already; choose another --out", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
}

/// The first names of a list, and how many more there are.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(shown.len());
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}
