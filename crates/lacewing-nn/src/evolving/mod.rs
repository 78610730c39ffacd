//! Layers whose structure changes in training: what their schedules do to weights, gradients and patterns.
//!
//! A layer with a schedule of masks, learned ones or not, stores all of its weights and multiplies by the effective ones; one
//! with a schedule of moves stores kept weights and changes their places, or, where places move between layers, all weights,
//! zeros where none is kept. Which step it is, and so what is to be done, is known to whoever
//! trains: it calls these methods, in the same order on every device.

mod across;
mod learned;
mod masks;
mod moves;

pub use across::choose_across;
pub(crate) use learned::Learned;
pub use learned::ScoreRate;
pub use moves::{First, Follower};

pub(crate) use across::{Across, places};

use crate::linear::Running;
use lacewing_core::{Form, IndexBuffer, MaskPhase, Pattern, Schedule, Structure};
use lacewing_engine::ops::DenseGradient;
use lacewing_engine::{EngineError, ParamId, Params, Tensor};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// A layer whose structure changes.
#[derive(Clone, Debug)]
pub struct Evolving {
    /// Dotted name of the layer.
    pub name: String,
    /// How it changes.
    pub schedule: Schedule,
    /// Its weights: all of them under masks and moves between layers, the stored ones under other moves.
    pub weight: ParamId,
    pub(crate) bias: Option<ParamId>,
    pub(crate) running: Arc<Running>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Masked(Arc<Effective>),
    Moving(Arc<Watch>),
    Learned(Arc<Learned>),
    Across(Arc<Across>),
}

/// What a masked layer computes with in place of a parameter, in the compute type; made with the first mask.
pub(crate) type Effective = OnceLock<Tensor>;

/// What growth by gradients watches.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) gradient: Arc<DenseGradient>,
    /// Whether it is wanted in this step.
    pub(crate) is_on: AtomicBool,
}

impl Evolving {
    /// The structure as it is now; under masks the one it is to be packed into, under moves between layers the one it began
    /// with.
    pub fn structure(&self) -> Arc<dyn Structure> {
        self.running.structure()
    }

    /// The kernel that a rule asks for by name; under masks it is that of the packed structure.
    pub fn kernel(&self) -> Option<&str> {
        self.running.forced()
    }

    /// The index buffers as they are now, under the dotted names of a checkpoint; none under masks, which follow from the
    /// weights and the step.
    pub fn buffers(&self) -> Vec<IndexBuffer> {
        if self.schedule.stores_all() {
            return Vec::new();
        }
        let named =
            |buffer: IndexBuffer| IndexBuffer { name: format!("{}.{}", self.name, buffer.name), ..buffer };
        self.structure().buffers().into_iter().map(named).collect()
    }

    /// Where the effective weights lie; made when first asked for.
    fn effective<'a>(&self, effective: &'a Effective, params: &Params) -> Result<&'a Tensor, EngineError> {
        effective_of(effective, params, self.weight)
    }

    /// The phase that a schedule of masks ends with; none under another schedule.
    pub fn final_phase(&self) -> Option<MaskPhase> {
        let structure = self.structure();
        let (n, m) = pattern_of(&*structure).mask_group();
        matches!(self.schedule, Schedule::Masks(_)).then_some(MaskPhase::Masked { n, m, rest: 0.0 })
    }

    /// Rows and columns of a block of the structure.
    fn block(&self) -> (usize, usize) {
        pattern_of(&*self.structure()).block
    }
}

/// Where the effective values of a parameter lie; made when first asked for.
fn effective_of<'a>(
    effective: &'a Effective,
    params: &Params,
    id: ParamId,
) -> Result<&'a Tensor, EngineError> {
    if effective.get().is_none() {
        let shape = &params.info(id).shape;
        let fresh = Tensor::empty(&params.device(), params.compute_dtype(), shape)?.numbered();
        // Losing a race would only drop another array.
        let _ = effective.set(fresh);
    }
    Ok(effective.get().expect("set above"))
}

/// The pattern of a structure that has a schedule.
fn pattern_of(structure: &dyn Structure) -> &Pattern {
    match structure.form() {
        Form::Pattern(pattern) => pattern,
        _ => unreachable!("checked when the layer was built"),
    }
}

/// The norms of the blocks of whole rows of the grid, `to [rows, grid columns]`, whose elements are the lines
/// `values [.., n_in]`.
fn block_norms(pattern: &Pattern, values: &[f32], to: &mut [f64]) {
    let ((rows, cols), across) = (pattern.block, pattern.grid().1);
    if pattern.block == (1, 1) {
        return to.iter_mut().zip(values).for_each(|(to, v)| *to = f64::from(v.abs()));
    }
    to.fill(0.0);
    for (row, line) in values.chunks_exact(pattern.n_in).enumerate() {
        let to = &mut to[row / rows * across..][..across];
        for (to, block) in to.iter_mut().zip(line.chunks(cols)) {
            *to += block.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
    }
    to.iter_mut().for_each(|to| *to = to.sqrt());
}
