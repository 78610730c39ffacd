//! Multi-layer perceptron on flattened images.
//!
//! Layers `layers.0`, `layers.1`, …, and `head`; first values by each structure's own rule. With K-winners as the
//! activation the state of the first is `k_winners.0`, and so on.

use super::{below_one, checked, json, positive, read};
use crate::{ActivationConfig, Family, Group, Model, Result, Variant};
use lacewing_engine::{Cx, EngineError, Tensor, Var, ops};
use lacewing_nn::{Activated, Dropout, Linear, LinearOptions, ModelBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The row of the table.
pub(super) static FAMILY: Family = Family {
    name: "mlp",
    about: "multi-layer perceptron on flattened images",
    variants: &[
        Variant {
            name: "mlp",
            about: "1024, 1024 wide, 32×32 images",
            config: || json(of(32, 3, &[1024, 1024])),
        },
        Variant {
            name: "mlp_mnist",
            about: "512, 512 wide, 28×28 gray images",
            config: || json(of(28, 1, &[512, 512])),
        },
        Variant {
            name: "mlp_digits",
            about: "128, 128 wide, 8×8 gray images",
            config: || json(of(8, 1, &[128, 128])),
        },
    ],
    groups: &[Group { name: "layers", pattern: "layers.*" }, Group { name: "head", pattern: "head" }],
    build,
    check: |values| read::<MlpConfig>(values).map(drop),
};

/// Every key of the family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Height and width of an image.
    pub image_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub n_classes: usize,
    /// Widths between input and head.
    pub hidden: Vec<usize>,
    /// After each hidden layer.
    pub activation: ActivationConfig,
    /// Probability of zero after each hidden layer.
    pub dropout: f64,
    /// Whether layers and head add a bias; models saved before the key existed do.
    #[serde(default = "with_bias")]
    pub bias: bool,
}

fn with_bias() -> bool {
    true
}

fn of(image_size: usize, channels: usize, hidden: &[usize]) -> MlpConfig {
    let (hidden, activation) = (hidden.to_vec(), "relu".into());
    MlpConfig { image_size, channels, n_classes: 10, hidden, activation, dropout: 0.0, bias: true }
}

#[derive(Debug)]
struct Perceptron {
    config: MlpConfig,
    layers: Vec<Activated>,
    head: Linear,
    dropout: Dropout,
}

fn build(values: &Value, builder: &mut ModelBuilder) -> Result<Box<dyn Model>> {
    let config: MlpConfig = checked(values);
    let MlpConfig { image_size, channels, n_classes, dropout, bias, .. } = config;
    positive(&[("image_size", image_size), ("channels", channels), ("n_classes", n_classes)])?;
    below_one(&[("dropout", dropout)])?;
    let linear = LinearOptions { bias, ..LinearOptions::default() };
    let activation = config.activation.nonlinearity()?;
    let mut root = builder.root();
    let mut n_in = channels * image_size * image_size;
    let mut layers = Vec::with_capacity(config.hidden.len());
    for (at, &width) in config.hidden.iter().enumerate() {
        positive(&[("hidden", width)])?;
        let names = [format!("layers.{at}"), format!("k_winners.{at}")];
        let names = names.each_ref().map(String::as_str);
        layers.push(Activated::new(&mut root, names, (n_in, width), activation, linear)?);
        n_in = width;
    }
    let head = root.linear("head", n_in, n_classes, linear)?;
    Ok(Box::new(Perceptron { config, layers, head, dropout: Dropout::new(dropout) }))
}

impl Model for Perceptron {
    fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        // One patch is the whole image, in the compute type.
        let flat = ops::patchify(cx, images, self.config.image_size)?;
        let batch = flat.shape()[0];
        let mut x = cx.constant(flat.value().reshape(&[batch, flat.value().cols()])?);
        for layer in &self.layers {
            x = self.dropout.forward(cx, &layer.forward(cx, &x)?)?;
        }
        self.head.forward(cx, &x)
    }

    fn image_shape(&self) -> [usize; 3] {
        [self.config.channels, self.config.image_size, self.config.image_size]
    }

    fn n_classes(&self) -> usize {
        self.config.n_classes
    }
}
