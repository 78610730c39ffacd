//! Structures of linear maps: shapes and numbers only.
//!
//! A linear layer `y = W x + b` has a *structure*: how `W [n_out, n_in]` is parameterized. This crate says which
//! structures exist ([`structures`]), builds them from a config ([`build`]) or a checkpoint ([`restore`]), defines
//! each in f64 ([`Structure::to_dense`]), initializes it, counts it, and describes how it is executed ([`Form`]).
//! It knows no tensor, no device, no thread and no gradient.
//!
//! ```
//! use lacewing_core::{build, Structure};
//! let config = serde_json::json!({"structure": "monarch", "blocks": 8});
//! let monarch = build(&config, 768, 3072, 0, None)?;
//! assert_eq!(monarch.counts().parameters, 368_640);
//! # Ok::<(), lacewing_core::StructureError>(())
//! ```
//!
//! A structure is one file in `patterns/` (values at chosen places of W), `chains/` (products of block-diagonal
//! factors), `sums/` (two structures added) or `sketch/` (few values at many places), with its `mod` line and its row in
//! that folder's table. [`project()`] finds the parameters that bring a structure nearest to a dense matrix. How a structure
//! changes in training is a [`Schedule`], one file in `schedules/`.
#![forbid(unsafe_code)]

mod activation;
pub mod auto_chain;
mod budget;
mod butterfly;
mod canvas;
pub mod chains;
mod config;
mod dense;
mod error;
mod form;
mod fourier;
mod init;
mod learn_plan;
mod mask;
mod mask_plan;
mod masked;
mod mersenne;
mod move_across;
mod move_plan;
mod pattern;
pub mod patterns;
pub mod project;
mod registry;
mod rng;
pub mod rounding;
pub mod schedules;
pub mod sketch;
mod span;
mod spectrum;
mod structure;
pub mod sums;

pub use activation::Activation;
pub use budget::Budget;
pub use config::{Key, Options};
pub use dense::Dense;
pub use error::StructureError;
pub use form::{Chain, Form, Gate, Gather, Link, Sum, Weights};
pub use init::Init;
pub use learn_plan::{
    Choice, Granularity, LearnPlan, LearnSchedule, PRODUCT_START, Penalty, Score, Selection, Threshold,
    choose_places,
};
pub use mask_plan::{Decay, GradientPolicy, MaskPhase, MaskPlan, MaskSchedule, Rate, Stages};
pub use move_across::{DropScope, Redistribution, keep_across, redistribute};
pub use move_plan::{
    Anneal, FirstMoment, FirstValue, Growth, Move, MovePlan, MoveSchedule, Search, move_places, regrow_places,
};
pub use pattern::{Axis, ByColumn, Pattern, PatternKind};
pub use project::{Projection, Target, project};
pub use registry::{Built, Origin, Problem, StructureKind, build, restore, structures};
pub use rng::Rng;
pub use schedules::Schedule;
pub use span::{Horizon, Span};
pub use structure::{Counts, IndexBuffer, ParamSpec, Structure};
