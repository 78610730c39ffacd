//! Models: one file a family in `models/`, one row in [`MODELS`].
//!
//! A model comes from a config: a variant's name and whatever differs from it. Structures are chosen by groups of layers
//! (`mlp: {structure: monarch, blocks: 8}`) and by rules on dotted names, which come first.
//!
//! ```
//! use lacewing_models::ModelConfig;
//! use serde_json::json;
//!
//! let dense = ModelConfig::from_json(&json!("vit_tiny_patch16_224"))?.summary()?;
//! assert_eq!(dense.parameters, 5_717_416);
//! let config = json!({"name": "vit_tiny_patch16_224", "mlp": {"structure": "monarch", "blocks": 4}});
//! let sparse = ModelConfig::from_json(&config)?.summary()?;
//! assert!(sparse.macs() < dense.macs());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod activation;
mod config;
mod error;
mod model;
pub mod models;
pub mod weights;

pub use activation::ActivationConfig;
pub use config::ModelConfig;
pub use error::{ModelError, Result};
pub use model::{BuiltModel, Family, Group, Model, Variant};
pub use models::MODELS;
