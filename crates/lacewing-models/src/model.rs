//! What every model is, and what a row of the table says.

use crate::Result;
use lacewing_core::IndexBuffer;
use lacewing_engine::{Cx, EngineError, Params, Tensor, Var};
use lacewing_nn::{Evolving, ModelBuilder, Summary};
use serde_json::Value;
use std::fmt::Debug;
use std::sync::Arc;

/// An image classifier. It holds no values: those are in [`Params`], which [`Cx`] brings along.
pub trait Model: Debug + Send + Sync {
    /// `images [batch, channels, height, width]`, f32 → logits `[batch, n_classes]` in the compute type.
    ///
    /// # Errors
    ///
    /// What the engine reports, as for images of another shape.
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError>;

    /// Channels, height and width of an image.
    fn image_shape(&self) -> [usize; 3];

    /// Length of a row of logits.
    fn n_classes(&self) -> usize;
}

/// A model with its parameters and its account.
#[derive(Debug)]
pub struct BuiltModel {
    /// How it is computed.
    pub model: Box<dyn Model>,
    /// Its parameters on their device.
    pub params: Arc<Params>,
    /// What it costs, layer by layer.
    pub summary: Summary,
    /// Index buffers under their dotted names, for checkpoints.
    pub buffers: Vec<IndexBuffer>,
    /// The layers whose structure changes in training; see [`lacewing_nn::Built::evolving`].
    pub evolving: Vec<Evolving>,
}

/// One row of the table of models.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// Named configs.
    pub variants: &'static [Variant],
    /// Groups of layers that a config may give a structure; where a layer is in two, the first decides.
    pub groups: &'static [Group],
    /// Builds one from a complete config.
    pub(crate) build: fn(&Value, &mut ModelBuilder) -> Result<Box<dyn Model>>,
    /// Reads a complete config, for its errors.
    pub(crate) check: fn(&Value) -> Result<(), serde_json::Error>,
}

/// A named config of a family.
#[derive(Debug)]
pub struct Variant {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// Every key of the family with its value.
    pub config: fn() -> Value,
}

/// A group of layers: a key of the config whose value is a structure.
#[derive(Debug)]
pub struct Group {
    /// The key.
    pub name: &'static str,
    /// The rule's pattern.
    pub pattern: &'static str,
}
