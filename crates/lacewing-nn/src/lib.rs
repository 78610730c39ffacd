//! Layers: a linear map that takes any structure, and what vision models put around it.
//!
//! Layers know names, shapes and rules. They never ask which device they run on: kernels are chosen once, when a layer
//! is built, by the table [`linear::KERNELS`].
//!
//! ```
//! use lacewing_engine::{Cx, DType, Device, Tensor};
//! use lacewing_nn::{LinearOptions, ModelBuilder, Rules};
//! use serde_json::json;
//!
//! let rules = Rules::from_json(&json!([{"match": "*.fc1", "structure": "monarch", "blocks": 4}]))?;
//! let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 0)?.with_rules(rules);
//! let fc1 = builder.scope("mlp").linear("fc1", 64, 128, LinearOptions::default())?;
//! let built = builder.finish()?;
//! let cx = Cx::evaluation(built.params);
//! let x = cx.constant(Tensor::zeros(&Device::Cpu, DType::F32, &[2, 7, 64])?);
//! assert_eq!(fc1.forward(&cx, &x)?.shape(), [2, 7, 128]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod attention;
mod batch_norm;
mod conv2d;
mod drop_path;
mod dropout;
mod error;
mod evolving;
mod k_winners;
pub mod linear;
mod mlp;
mod module;
mod nonlinearity;
mod norm;
mod patch_embed;
mod patch_merging;
mod residual;
mod rules;
mod transformer_block;

pub use attention::{
    AttentionOptions, MultiHeadAttention, RelativePositions, WindowAttention, WindowAttentionOptions,
};
pub use batch_norm::{BatchNorm, BatchNormOptions};
pub use conv2d::{
    Conv2d, Conv2dOptions, channels_first, channels_last, fold_weight, unfold_weight, with_channels,
};
pub use drop_path::DropPath;
pub use dropout::Dropout;
pub use error::{NnError, Result};
pub use evolving::{Evolving, First, Follower, ScoreRate, choose_across};
pub use k_winners::{KWinners, KWinnersConfig, Units};
pub use linear::{BiasInit, Linear, LinearOptions};
pub use mlp::{Mlp, MlpOptions};
pub use module::{Built, LayerInfo, ModelBuilder, Scope, Summary};
pub use nonlinearity::{Activated, Nonlinearity};
pub use norm::LayerNorm;
pub use patch_embed::PatchEmbed;
pub use patch_merging::PatchMerging;
pub use residual::{ResidualBlock, ResidualStream, run_blocks};
pub use rules::{Choice, Rules};
pub use transformer_block::{TransformerBlock, TransformerBlockOptions};
