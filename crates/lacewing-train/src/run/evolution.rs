//! The schedules of a model's layers, step by step.

use crate::error::TrainError;
use lacewing_core::{
    Form, Growth, Horizon, IndexBuffer, LearnPlan, MaskPhase, MaskPlan, Move, MovePlan, Rng, Schedule,
    StructureError,
};
use lacewing_engine::ops::SumOver;
use lacewing_engine::optim::{Ema, Optimizer};
use lacewing_engine::{Params, Tensor};
use lacewing_models::ModelError;
use lacewing_nn::{Evolving, First, Follower, NnError, ScoreRate, choose_across};
use serde_json::Value;
use std::sync::Arc;

/// The layers of a model whose structure changes, each with its plan for the run.
#[derive(Debug)]
pub(super) struct Evolution {
    masked: Vec<(Evolving, MaskPlan)>,
    moving: Vec<(Evolving, MovePlan)>,
    learned: Vec<(Evolving, LearnPlan)>,
    across: Vec<Group>,
    rng: Rng,
}

/// Layers between which places move: those of one schedule, with blocks of one size.
#[derive(Debug)]
struct Group {
    layers: Vec<Evolving>,
    block: (usize, usize),
    plan: MovePlan,
}

impl Group {
    fn grows(&self, growth: Growth) -> bool {
        grows(&self.layers[0], growth)
    }
}

impl Evolution {
    /// Plans a run of `horizon`; draws depend on `seed`, the layer's name and the step alone.
    ///
    /// # Errors
    ///
    /// [`ModelError::Nn`] for a schedule that does not fit the run, with the layer.
    pub(super) fn plan(layers: Vec<Evolving>, horizon: Horizon, seed: u64) -> Result<Self, TrainError> {
        let (mut masked, mut moving, mut learned) = (Vec::new(), Vec::new(), Vec::new());
        let mut across: Vec<Group> = Vec::new();
        for layer in layers {
            let structure = layer.structure();
            let refused = |source| {
                let (layer, source) = (layer.name.clone(), Box::new(source));
                let (n_in, n_out) = (structure.n_in(), structure.n_out());
                ModelError::from(NnError::Structure { layer, n_in, n_out, source })
            };
            match (&layer.schedule, structure.form()) {
                (Schedule::Masks(masks), Form::Pattern(pattern)) => {
                    let (n, m) = pattern.mask_group();
                    let plan = masks.plan(horizon, n, m).map_err(refused)?;
                    check_channels(&structure.config(), &plan).map_err(refused)?;
                    masked.push((layer, plan));
                }
                (Schedule::Moves(moves), Form::Pattern(pattern)) if moves.stores_all() => {
                    let (plan, block) = (moves.plan(horizon).map_err(refused)?, pattern.block);
                    let alike =
                        |group: &Group| group.layers[0].schedule == layer.schedule && group.block == block;
                    match across.iter().position(alike) {
                        Some(at) => across[at].layers.push(layer),
                        None => across.push(Group { layers: vec![layer], block, plan }),
                    }
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
        Ok(Self { masked, moving, learned, across, rng: Rng::new(seed).fork("moves") })
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

    /// The layers whose places move between layers.
    pub(super) fn across(&self) -> impl Iterator<Item = &Evolving> {
        self.across.iter().flat_map(|group| &group.layers)
    }

    /// Takes the gradients of step `step` into the averages that growth goes by, as long as there is growth.
    pub(super) fn take_gradients(&self, params: &Params, step: u64) -> Result<(), TrainError> {
        for group in self.across.iter().filter(|group| !group.plan.is_over(step)) {
            group.layers.iter().try_for_each(|layer| layer.take_gradient(params))?;
        }
        Ok(())
    }

    /// Chooses the learned masks that are due after `step` steps.
    pub(super) fn choose_masks(&self, params: &Params, step: u64) -> Result<(), TrainError> {
        for (layer, plan) in self.learned.iter().filter(|(_, plan)| plan.is_due(step)) {
            layer.choose_mask(params, plan.choice(step, target_density(layer)))?;
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
            || self.across.iter().any(|group| group.grows(Growth::Gradient) && group.plan.is_due(step))
    }

    /// Makes the gradients of effective weights those of the stored ones.
    pub(super) fn edit_gradients(&self, params: &Params, step: u64, lr: f64) -> Result<(), TrainError> {
        for (layer, phase) in self.phases(step) {
            layer.edit_gradient(params, phase, lr)?;
        }
        Ok(())
    }

    /// Takes the gradients of step `step`, from 0, into the scores of learned masks, and drops those of weights that do not
    /// count. `share` is the learning rate's of its peak, `steps` the number of optimizer steps with this one.
    pub(super) fn learn(&self, params: &Params, step: u64, share: f64, steps: u64) -> Result<(), TrainError> {
        for (layer, plan) in &self.learned {
            layer.learn(params, ScoreRate { share, steps, penalty: plan.penalty(step) })?;
        }
        self.across().try_for_each(|layer| layer.mask_gradient(params))?;
        Ok(())
    }

    /// Moves the patterns that are due at step `step` and grow so: by the gradient, or else.
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
        for group in self.across.iter().filter(|group| group.grows(growth) && group.plan.is_due(step)) {
            let layers: Vec<&Evolving> = group.layers.iter().collect();
            let stream = |layer: &&Evolving| self.rng.fork(&layer.name).fork(&step.to_string());
            let mut rngs: Vec<Rng> = layers.iter().map(stream).collect();
            let moved: Vec<Move> = choose_across(&layers, params, group.plan.fraction(step), &mut rngs)?;
            for ((layer, moved), rng) in layers.iter().zip(&moved).zip(&mut rngs) {
                layer.relocate(params, moved, &followers, rng)?;
            }
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

/// Whether places of a layer are found by the gradient, in the place of the optimizer's step, or after it, as `growth` says.
fn grows(layer: &Evolving, growth: Growth) -> bool {
    let by_gradient = |growth| growth == Growth::Gradient;
    matches!(&layer.schedule, Schedule::Moves(moves) if by_gradient(moves.growth) == by_gradient(growth))
}
