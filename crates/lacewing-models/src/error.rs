//! What can be wrong with a model's config.

use lacewing_nn::NnError;

/// The result of building a model.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// A model cannot be built from its config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A config is a name, or a map with the name under `name`.
    #[error("a model is a name or a map with the key `name`, got {got}")]
    NotAConfig {
        /// The value found.
        got: String,
    },
    /// No family has this variant.
    #[error("there is no model `{name}`{}", did_you_mean(.nearest))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The variant nearest to it.
        nearest: Option<String>,
    },
    /// The family has no such key.
    #[error("model `{model}` has no key `{key}`{}", did_you_mean(.nearest))]
    UnknownKey {
        /// The model.
        model: String,
        /// The key found.
        key: String,
        /// The known key nearest to it.
        nearest: Option<String>,
    },
    /// A value of another type than the key takes.
    #[error("model `{model}`: `{key}` = {got}: {source}")]
    WrongType {
        /// The model.
        model: String,
        /// The key.
        key: String,
        /// The value found.
        got: String,
        /// What it should be.
        source: serde_json::Error,
    },
    /// A value that the model cannot be built with.
    #[error("`{key}` must be {expected}, got {got}")]
    Value {
        /// The key.
        key: &'static str,
        /// What would fit.
        expected: String,
        /// The value found.
        got: String,
    },
    /// A layer, a rule or a checkpoint's buffers.
    #[error(transparent)]
    Nn(#[from] NnError),
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
