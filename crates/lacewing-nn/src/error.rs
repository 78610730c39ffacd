//! What can go wrong while a model is being built. A forward pass reports the engine's own errors.

use lacewing_core::StructureError;
use lacewing_engine::EngineError;

/// The result of building a layer.
pub type Result<T, E = NnError> = std::result::Result<T, E>;

/// A layer, a rule or a checkpoint's index buffers do not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A layer's structure cannot be built.
    #[error("layer `{layer}` [{n_out}, {n_in}]: {source}")]
    Structure {
        /// Dotted name of the layer.
        layer: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// What is wrong with it.
        source: Box<StructureError>,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Rules are a list of maps.
    #[error("rules are a list of maps such as {{match: \"*.mlp.*\", structure: monarch}}, got {got}")]
    NotRules {
        /// The value found.
        got: String,
    },
    /// A rule without a pattern or without a structure.
    #[error("rule {at} needs `{key}`, a string: got {got}")]
    RuleKey {
        /// Position in the list, from 0.
        at: usize,
        /// The key.
        key: &'static str,
        /// The rule found.
        got: String,
    },
    /// A structure is a name or a map.
    #[error("rule `{pattern}`: `{key}` is not right in {got}")]
    RuleConfig {
        /// The rule's pattern.
        pattern: String,
        /// What is missing or of a wrong type.
        key: &'static str,
        /// The config found.
        got: String,
    },
    /// A rule whose schedule cannot be read.
    #[error("rule `{pattern}`: {source}")]
    Schedule {
        /// The rule's pattern.
        pattern: String,
        /// What is wrong with the schedule.
        source: Box<StructureError>,
    },
    /// A rule whose pattern is no glob.
    #[error("rule `{pattern}` is not a glob: {source}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// Why.
        source: globset::Error,
    },
    /// A rule whose pattern is no regular expression.
    #[error("rule `{pattern}` is not a regular expression: {source}")]
    Regex {
        /// The pattern.
        pattern: String,
        /// Why.
        source: regex::Error,
    },
    /// A rule that no layer's name matches.
    #[error("rule `{pattern}` matches none of the {layers} linear layers; the nearest are {}", .nearest.join(", "))]
    Unmatched {
        /// The pattern.
        pattern: String,
        /// How many layers there are.
        layers: usize,
        /// The names nearest to the pattern.
        nearest: Vec<String>,
    },
    /// A kernel name that is in no table.
    #[error("layer `{layer}`: there is no kernel `{kernel}`; there are {}", .known.join(", "))]
    UnknownKernel {
        /// The layer.
        layer: String,
        /// The name asked for.
        kernel: String,
        /// The table's names.
        known: Vec<&'static str>,
    },
    /// A kernel that was asked for by name and does not take the layer.
    #[error("layer `{layer}`: kernel `{kernel}` does not take `{structure}` [{n_out}, {n_in}]")]
    Refused {
        /// The layer.
        layer: String,
        /// The kernel.
        kernel: String,
        /// The structure.
        structure: &'static str,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
    },
    /// A checkpoint has an index buffer that belongs to no layer.
    #[error("index buffer `{name}` belongs to no layer of this model")]
    UnknownBuffer {
        /// Its dotted name.
        name: String,
    },
    /// A setting out of its range.
    #[error("`{layer}`: {key} is {got}, expected {expected}")]
    Value {
        /// The layer.
        layer: String,
        /// The setting.
        key: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// A width that does not split into heads.
    #[error("`{layer}`: dim = {dim} is not a multiple of heads = {heads}")]
    Heads {
        /// The layer.
        layer: String,
        /// The width.
        dim: usize,
        /// The number of heads.
        heads: usize,
    },
}
