//! Lacewing: sparse and structured neural networks, trained, measured and deployed.
//!
//! This crate is the command line and a facade: one name for each part of the toolkit.
#![forbid(unsafe_code)]

pub use lacewing_core as core;
pub use lacewing_engine as engine;
pub use lacewing_models as models;
pub use lacewing_nn as nn;
pub use lacewing_train as train;

pub mod recipes;
