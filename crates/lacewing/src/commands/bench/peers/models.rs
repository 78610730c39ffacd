//! The same models, dense, in PyTorch.

use super::{PeerTimes, Peers, Program};
use crate::commands::bench::error::BenchError;
use crate::commands::bench::place::Place;
use serde_json::json;
use std::path::Path;

/// What goes in and comes out is in the headers.
const MODELS: Program = Program {
    text: concat!(
        include_str!("../../../../../../benches/peers/protocol.py"),
        include_str!("../../../../../../benches/peers/model.py")
    ),
    recipe: "python3 -m venv .venv && .venv/bin/pip install torch timm, then lacewing bench --model MODEL --peers .venv",
};

/// What a library is asked for of a model.
pub(in crate::commands::bench) struct ModelCase<'a> {
    pub(in crate::commands::bench) model: &'a str,
    /// Trained values of the dense model: one with another number is not the same.
    pub(in crate::commands::bench) parameters: usize,
    pub(in crate::commands::bench) n_classes: usize,
    /// Channels, height and width of a picture.
    pub(in crate::commands::bench) image: [usize; 3],
    pub(in crate::commands::bench) batch: usize,
    /// Its name in reports.
    pub(in crate::commands::bench) direction: &'static str,
    /// The learning rate of a training step.
    pub(in crate::commands::bench) lr: f32,
}

impl Peers {
    /// Starts the program that measures models.
    pub(in crate::commands::bench) fn models(venv: Option<&Path>, place: &Place) -> Result<Self, BenchError> {
        let settings = json!({ "device": place.device.to_string(), "dtype": place.dtype_name() });
        Self::start(&MODELS, venv, settings)
    }

    /// Times every way to run the dense model.
    pub(in crate::commands::bench) fn model(
        &mut self,
        case: &ModelCase<'_>,
    ) -> Result<Vec<PeerTimes>, BenchError> {
        let case = json!({
            "model": case.model,
            "parameters": case.parameters,
            "n_classes": case.n_classes,
            "image": case.image,
            "batch": case.batch,
            "direction": case.direction,
            "lr": case.lr,
        });
        self.ask(&case, true)
    }
}
