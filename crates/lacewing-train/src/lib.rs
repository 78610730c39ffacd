//! Training: data, augmentation, recipes, the loop, checkpoints and reports.
//!
//! A [`recipe::Recipe`] says everything; [`run::train`] does it and tells what happens through [`run::Event`]s.
#![forbid(unsafe_code)]

pub mod augment;
pub mod checkpoint;
pub mod convert;
pub mod data;
mod error;
pub mod evaluate;
pub mod loss;
pub mod ranks;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;

pub use error::TrainError;
