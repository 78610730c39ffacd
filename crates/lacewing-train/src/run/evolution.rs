//! The schedules of a model's layers, step by step.

use crate::error::TrainError;
use lacewing_core::{
    Form, Growth, Horizon, IndexBuffer, LearnPlan, MaskPhase, MaskPlan, MovePlan, PatternKind, Rng, Schedule,
    StructureError,
};
use lacewing_engine::ops::SumOver;
use lacewing_engine::optim::{Ema, Optimizer};
use lacewing_engine::{Params, Tensor};
use lacewing_models::ModelError;
use lacewing_nn::{Evolving, First, Follower, NnError};
use serde_json::Value;
use std::sync::Arc;

/// The layers of a model whose structure changes, each with its plan for the run.
#[derive(Debug)]
pub(super) struct Evolution {
    masked: Vec<(Evolving, MaskPlan)>,
    moving: Vec<(Evolving, MovePlan)>,
    learned: Vec<(Evolving, LearnPlan)>,
    rng: Rng,
}

impl Evolution {
    /// Plans a run of `horizon`; draws depend on `seed`, the layer's name and the step alone.
    ///
    /// # Errors
    ///
    /// [`ModelError::Nn`] for a schedule that does not fit the run, with the layer.
    pub(super) fn plan(layers: Vec<Evolving>, horizon: Horizon, seed: u64) -> Result<Self, TrainError> {
        let (mut masked, mut moving, mut learned) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers {
            let structure = layer.structure();
            let refused = |source| {
                let (layer, source) = (layer.name.clone(), Box::new(source));
                let (n_in, n_out) = (structure.n_in(), structure.n_out());
                ModelError::from(NnError::Structure { layer, n_in, n_out, source })
            };
            match (&layer.schedule, structure.form()) {
                (Schedule::Masks(masks), Form::Pattern(pattern)) => {
                    let PatternKind::Nm { n, m, .. } = pattern.kind else { continue };
                    let plan = masks.plan(horizon, n, m).map_err(refused)?;
                    check_channels(&structure.config(), &plan).map_err(refused)?;
                    masked.push((layer, plan));
                }
                (Schedule::Moves(moves), _) => {
                    let plan = moves.plan(horizon).map_err(refused)?;
                    moving.push((layer, plan));
                }
                (Schedule::Learns(learns), _) => {
                    let plan = learns.plan(horizon).map_err(refused)?;
                    learned.push((layer, plan));
                }
                _ => {}
            }
        }
        Ok(Self { masked, moving, learned, rng: Rng::new(seed).fork("moves") })
    }

    /// Gradients that patterns move by are summed over these processes.
    pub(super) fn sum_over(&self, processes: &Arc<dyn SumOver>) {
        self.moving.iter().for_each(|(layer, _)| layer.sum_over(processes.clone()));
    }

    /// The layers under masks, with the phase after `step` steps.
    pub(super) fn phases(&self, step: u64) -> impl Iterator<Item = (&Evolving, MaskPhase)> {
        self.masked.iter().map(move |(layer, plan)| (layer, plan.at(step)))
    }

    /// Makes the effective weights of masked layers as they are after `step` steps, the masks being chosen by the trained
    /// weights `by`. To be done whenever parameters change.
    pub(super) fn mask(&self, params: &Params, step: u64, by: &Tensor) -> Result<(), TrainError> {
        for (layer, phase) in self.phases(step) {
            layer.mask(params, phase, by)?;
        }
        for (layer, _) in &self.learned {
            layer.let_through(params, by)?;
        }
        Ok(())
    }

    /// The layers under learned masks.
    pub(super) fn learned(&self) -> impl Iterator<Item = &Evolving> {
        self.learned.iter().map(|(layer, _)| layer)
    }

    /// Chooses the learned masks that are due after `step` steps.
    pub(super) fn choose_masks(&self, params: &Params, step: u64) -> Result<(), TrainError> {
        for (layer, plan) in self.learned.iter().filter(|(_, plan)| plan.is_due(step)) {
            layer.choose_mask(params, plan.density(step, target_density(layer)))?;
        }
        Ok(())
    }

    /// Readies the layers for the gradients of step `step`, from 0.
    pub(super) fn watch(&self, step: u64) {
        for (layer, plan) in &self.moving {
            layer.watch(grows(layer, Growth::Gradient) && plan.is_due(step));
        }
    }

    /// Whether patterns move by gradients at step `step`: then that is the step, and the optimizer takes none.
    pub(super) fn replaces(&self, step: u64) -> bool {
        self.moving.iter().any(|(layer, plan)| grows(layer, Growth::Gradient) && plan.is_due(step))
    }

    /// Makes the gradients of effective weights those of the stored ones.
    pub(super) fn edit_gradients(&self, params: &Params, step: u64, lr: f64) -> Result<(), TrainError> {
        for (layer, phase) in self.phases(step) {
            layer.edit_gradient(params, phase, lr)?;
        }
        for (layer, _) in &self.learned {
            layer.learn(params)?;
        }
        Ok(())
    }

    /// Moves the patterns that are due at step `step` and grow so.
    pub(super) fn move_patterns(
        &self,
        growth: Growth,
        params: &Params,
        step: u64,
        optimizer: &dyn Optimizer,
        average: Option<&Ema>,
    ) -> Result<(), TrainError> {
        let moment = |(name, flat)| {
            let power = if name == "second_moment" { 2 } else { 1 };
            Follower { flat, first: First::Moment { power } }
        };
        let mut followers: Vec<Follower<'_>> = optimizer.state().into_iter().map(moment).collect();
        followers.extend(average.map(|average| Follower { flat: average.flat(), first: First::Weight }));
        let due = |layer: &Evolving, plan: &MovePlan| grows(layer, growth) && plan.is_due(step);
        let mut any = false;
        for (layer, plan) in self.moving.iter().filter(|(layer, plan)| due(layer, plan)) {
            let mut rng = self.rng.fork(&layer.name).fork(&step.to_string());
            let moved = layer.choose(params, plan.fraction(step), &mut rng)?;
            layer.relocate(params, &moved, &followers, &mut rng)?;
            layer.watch(false);
            any = true;
        }
        if any {
            params.refresh_copy()?;
        }
        Ok(())
    }

    /// `buffers` with those of moved layers as they are now.
    pub(super) fn update(&self, buffers: &mut [IndexBuffer]) {
        for now in self.moving.iter().flat_map(|(layer, _)| layer.buffers()) {
            if let Some(buffer) = buffers.iter_mut().find(|buffer| buffer.name == now.name) {
                *buffer = now;
            }
        }
    }
}

/// Checks that the groups of every stage keep the positions of a convolution's kernel apart, as those of the target do.
fn check_channels(config: &Value, plan: &MaskPlan) -> Result<(), StructureError> {
    let Some(channels) = config["channels"].as_u64().filter(|_| config["axis"] == "row") else {
        return Ok(());
    };
    let channels = channels as usize;
    match plan.stages().iter().find(|&&(_, _, m)| !channels.is_multiple_of(m)) {
        None => Ok(()),
        Some(&(_, _, divisor)) => Err(StructureError::Indivisible {
            structure: "nm",
            size_name: "channels",
            size: channels,
            divisor_name: "the group size m of a stage",
            divisor,
            padded: channels,
        }),
    }
}

/// The share of places that the structure of a layer keeps.
fn target_density(layer: &Evolving) -> f64 {
    match layer.structure().form() {
        Form::Pattern(pattern) => pattern.nnz() as f64 / (pattern.grid().0 * pattern.grid().1) as f64,
        _ => unreachable!("checked when the layer was built"),
    }
}

fn grows(layer: &Evolving, growth: Growth) -> bool {
    matches!(&layer.schedule, Schedule::Moves(moves) if moves.growth == growth)
}
