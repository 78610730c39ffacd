//! Layers whose structure changes in training: what their schedules do to weights, gradients and patterns.
//!
//! A layer with a schedule of masks, learned ones or not, stores all of its weights and multiplies by the effective ones; one
//! with a schedule of moves stores kept weights and changes their places. Which step it is, and so what is to be done, is known to whoever
//! trains: it calls these methods, in the same order on every device.

use crate::linear::Running;
use lacewing_core::{
    Axis, FirstMoment, FirstValue, Form, GradientPolicy, IndexBuffer, MaskPhase, Move, MoveSchedule, Pattern,
    PatternKind, Rng, Schedule, Score, Search, Structure, choose_places, move_places,
};
use lacewing_engine::ops::{DenseGradient, NmFactors, NmGroups, mask_blocks, nm_scale, score_blocks};
use lacewing_engine::{DType, EngineError, ParamId, Params, Tensor};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A layer whose structure changes.
#[derive(Clone, Debug)]
pub struct Evolving {
    /// Dotted name of the layer.
    pub name: String,
    /// How it changes.
    pub schedule: Schedule,
    /// Its weights: all of them under masks, the stored ones under moves.
    pub weight: ParamId,
    pub(crate) running: Arc<Running>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Masked(Arc<Effective>),
    Moving(Arc<Watch>),
    Learned(Arc<Learned>),
}

/// A learned mask: values of the model that are not trained.
#[derive(Debug)]
pub(crate) struct Learned {
    pub(crate) effective: Effective,
    /// A score for each place of the grid.
    pub(crate) scores: ParamId,
    /// 1 for each place that counts, 0 for the others.
    pub(crate) mask: ParamId,
}

/// The weights that a masked layer multiplies by, in the compute type; made with the first mask.
pub(crate) type Effective = OnceLock<Tensor>;

/// What growth by gradients watches.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) gradient: Arc<DenseGradient>,
    /// Whether it is wanted in this step.
    pub(crate) is_on: AtomicBool,
}

/// An array that follows the weights when they move: a moment, or an average.
#[derive(Clone, Copy, Debug)]
pub struct Follower<'a> {
    /// Shaped as the masters.
    pub flat: &'a Tensor,
    /// What a new weight has in it.
    pub first: First,
}

/// What a weight at a new place has in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// As the first value of the weight itself.
    Weight,
    /// As the schedule's first moment says; the power is 1 for the first moment, 2 for the second.
    Moment {
        /// Of the gradient.
        power: i32,
    },
}

impl Evolving {
    /// The structure as it is now; under masks the one it is to be packed into.
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

    /// Chooses the mask of `phase` by the weights in `by`, shaped as the masters, and makes the effective weights of the
    /// parameters as they are: `W ⊙ (m + (1 − m) d)`.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer under moves.
    pub fn mask(&self, params: &Params, phase: MaskPhase, by: &Tensor) -> Result<(), EngineError> {
        let Kind::Masked(effective) = &self.kind else { return Ok(()) };
        let (weight, out) = (params.master(self.weight), self.effective(effective, params)?);
        let (groups, dropped) = self.groups(phase);
        let factors = NmFactors { kept: 1.0, dropped };
        nm_scale(&params.view(by, self.weight), &weight, groups, factors, out, false)
    }

    /// Makes the effective weights under the learned mask in `by`, shaped as the masters.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn let_through(&self, params: &Params, by: &Tensor) -> Result<(), EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(()) };
        let out = self.effective(&learned.effective, params)?;
        mask_blocks(&params.master(self.weight), &params.view(by, learned.mask), self.block(), out)
    }

    /// Takes the gradient of the effective weights into the scores, and makes it that of the stored ones: none for weights that
    /// do not count.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn learn(&self, params: &Params) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        if schedule.score == Score::Movement {
            score_blocks(&gradient, &weight, self.block(), &params.master(learned.scores))?;
        }
        mask_blocks(&gradient, &params.master(learned.mask), self.block(), &gradient)
    }

    /// Chooses the learned mask anew: the `density` of the places with the highest scores.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer without a learned mask.
    pub fn choose_mask(&self, params: &Params, density: f64) -> Result<(), EngineError> {
        let (Kind::Learned(learned), Schedule::Learns(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let scores: Vec<f64> = match schedule.score {
            Score::Movement => params.master(learned.scores).to_f32()?.into_iter().map(f64::from).collect(),
            Score::Magnitude => {
                let structure = self.structure();
                let pattern = pattern_of(&*structure);
                let mut norms = vec![0.0; pattern.grid().0 * pattern.grid().1];
                block_norms(pattern, &params.master(self.weight).to_f32()?, &mut norms);
                norms
            }
        };
        let counts = choose_places(&scores, density);
        let mask: Vec<f32> = counts.into_iter().map(|counts| if counts { 1.0 } else { 0.0 }).collect();
        params.master(learned.mask).set_f32(&mask)
    }

    /// Which places of the grid count by the learned mask in `by`, shaped as the masters; none without a learned mask.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn learned_mask(&self, params: &Params, by: &Tensor) -> Result<Option<Vec<bool>>, EngineError> {
        let Kind::Learned(learned) = &self.kind else { return Ok(None) };
        let mask = params.view(by, learned.mask).to_f32()?;
        Ok(Some(mask.into_iter().map(|factor| factor != 0.0).collect()))
    }

    /// Where the effective weights lie; made when first asked for.
    fn effective<'a>(&self, effective: &'a Effective, params: &Params) -> Result<&'a Tensor, EngineError> {
        if effective.get().is_none() {
            let shape = &params.info(self.weight).shape;
            let fresh = Tensor::empty(&params.device(), params.compute_dtype(), shape)?.numbered();
            // Losing a race would only drop another array.
            let _ = effective.set(fresh);
        }
        Ok(effective.get().expect("set above"))
    }

    /// Rows and columns of a block of the structure.
    fn block(&self) -> (usize, usize) {
        pattern_of(&*self.structure()).block
    }

    /// Makes the gradient of the effective weights that of the stored ones, by the schedule's policy; before clipping.
    ///
    /// `lr` is the step's learning rate, for a decoupled decay of dropped weights.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer under moves.
    pub fn edit_gradient(&self, params: &Params, phase: MaskPhase, lr: f64) -> Result<(), EngineError> {
        let (Kind::Masked(_), Schedule::Masks(schedule)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        let (weight, gradient) = (params.master(self.weight), params.gradient(self.weight)?);
        let (groups, rest) = self.groups(phase);
        match schedule.gradient {
            _ if phase == MaskPhase::Dense => Ok(()),
            GradientPolicy::StraightThrough => Ok(()),
            GradientPolicy::Masked => {
                let factors = NmFactors { kept: 1.0, dropped: rest };
                nm_scale(&weight, &gradient, groups, factors, &gradient, false)
            }
            GradientPolicy::SrSte { lambda, decoupled: false } => {
                let factors = NmFactors { kept: 0.0, dropped: lambda as f32 };
                nm_scale(&weight, &weight, groups, factors, &gradient, true)
            }
            GradientPolicy::SrSte { lambda, decoupled: true } => {
                let factors = NmFactors { kept: 1.0, dropped: (1.0 - lr * lambda) as f32 };
                // Not in place: a group's other weights are read to rank each.
                let decayed = Tensor::empty(&params.device(), DType::F32, weight.shape())?;
                nm_scale(&weight, &weight, groups, factors, &decayed, false)?;
                weight.set_from(&decayed)
            }
        }
    }

    /// The groups of a phase, and what dropped weights count.
    fn groups(&self, phase: MaskPhase) -> (NmGroups, f32) {
        let axis = match pattern_of(&*self.structure()).kind {
            PatternKind::Nm { axis, .. } => axis,
            _ => Axis::Row,
        };
        match phase {
            MaskPhase::Dense => (NmGroups { n: 1, m: 1, axis }, 1.0),
            MaskPhase::Masked { n, m, rest } => (NmGroups { n, m, axis }, rest as f32),
        }
    }

    /// Whether the coming forward passes take in the gradient of the dense weight, for growth.
    pub fn watch(&self, is_on: bool) {
        if let Kind::Moving(watch) = &self.kind {
            watch.is_on.store(is_on, Ordering::Relaxed);
            watch.gradient.clear();
        }
    }

    /// Which places change when `fraction` of the weights move; draws come from `rng`.
    ///
    /// # Errors
    ///
    /// What the device reports.
    ///
    /// # Panics
    ///
    /// When the layer is not under moves.
    pub fn choose(&self, params: &Params, fraction: f64, rng: &mut Rng) -> Result<Move, EngineError> {
        let (moves, watch) = self.moving();
        let structure = self.structure();
        let pattern = pattern_of(&*structure);
        let count = (fraction * pattern.nnz() as f64) as usize;
        let values = params.master(self.weight).to_f32()?;
        if moves.growth == lacewing_core::Growth::Random {
            return Ok(move_places(pattern, &values, count, moves.regrow, Search::Random(rng)));
        }
        let mut failed = None;
        let mut scores = |rows: Range<usize>, to: &mut [f64]| {
            if failed.is_none() {
                failed = score(pattern, &watch.gradient, rows, to).err();
            }
        };
        let moved = move_places(pattern, &values, count, moves.regrow, Search::Largest(&mut scores));
        failed.map_or(Ok(moved), Err)
    }

    /// Takes the weights, and what follows them, to their new places. The parameter stays the same one, and as long.
    ///
    /// First values are drawn from `rng`. [`Params::refresh_copy`] is to be called when all layers have moved.
    ///
    /// # Errors
    ///
    /// What the device reports.
    ///
    /// # Panics
    ///
    /// When the layer is not under moves, or `moved` is not of its pattern.
    pub fn relocate(
        &self,
        params: &Params,
        moved: &Move,
        followers: &[Follower<'_>],
        rng: &mut Rng,
    ) -> Result<(), EngineError> {
        let (moves, watch) = self.moving();
        let structure = self.structure();
        let pattern = pattern_of(&*structure);
        let per_block = pattern.block.0 * pattern.block.1;
        let values = params.master(self.weight).to_f32()?;
        let n_new = moved.from.iter().filter(|from| from.is_none()).count() * per_block;
        let drawn = first_values(moves.value, &values, n_new, rng);
        let zeros = vec![0.0; n_new];
        let gradients = match moves.moment {
            FirstMoment::Gradient(scale) => grown(pattern, &watch.gradient, moved, scale)?,
            _ => Vec::new(),
        };
        let kept_moments = |old: &[f32]| -> Vec<f32> {
            let blocks = moved.dropped.iter().map(|&slot| slot as usize * per_block);
            blocks.flat_map(|at| old[at..at + per_block].iter().copied()).collect()
        };
        let put = |array: &Tensor, old: Vec<f32>, new: &[f32]| {
            array.set_f32(&moved_values(moved, per_block, &old, new))
        };
        for follower in followers {
            let array = params.view(follower.flat, self.weight);
            let old = array.to_f32()?;
            match (follower.first, moves.moment) {
                (First::Weight, _) => put(&array, old, &drawn)?,
                (First::Moment { .. }, FirstMoment::Zero) => put(&array, old, &zeros)?,
                (First::Moment { .. }, FirstMoment::Keep) => {
                    let kept = kept_moments(&old);
                    put(&array, old, &kept)?;
                }
                (First::Moment { power }, FirstMoment::Gradient(_)) => {
                    let new: Vec<f32> = gradients.iter().map(|g| g.powi(power)).collect();
                    put(&array, old, &new)?;
                }
            }
        }
        put(&params.master(self.weight), values, &drawn)?;
        let next =
            structure.with_positions(moved.positions.clone()).expect("checked when the layer was built");
        self.running.replace(next)
    }

    fn moving(&self) -> (&MoveSchedule, &Watch) {
        match (&self.schedule, &self.kind) {
            (Schedule::Moves(moves), Kind::Moving(watch)) => (moves, watch),
            _ => panic!("layer `{}` is not under a schedule of moves", self.name),
        }
    }
}

/// The arrays' values at the new places: those that stay, and `new` ones in order.
fn moved_values(moved: &Move, per_block: usize, old: &[f32], new: &[f32]) -> Vec<f32> {
    let mut new = new.chunks_exact(per_block);
    let mut values = Vec::with_capacity(old.len());
    for from in &moved.from {
        values.extend_from_slice(match from {
            Some(slot) => &old[*slot as usize * per_block..][..per_block],
            None => new.next().expect("a value for every new place"),
        });
    }
    values
}

/// First values of `count` new weights in a layer whose stored ones are `values`.
fn first_values(rule: FirstValue, values: &[f32], count: usize, rng: &mut Rng) -> Vec<f32> {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let square = |&v: &f32| (f64::from(v) - mean) * (f64::from(v) - mean);
    let deviation = (values.iter().map(square).sum::<f64>() / n).sqrt();
    let mut draw = || match rule {
        FirstValue::Zero => 0.0,
        FirstValue::Uniform(scale) => rng.uniform(-scale * deviation, scale * deviation),
        FirstValue::Normal(scale) => scale * (mean + deviation * rng.normal()),
    };
    (0..count).map(|_| draw() as f32).collect()
}

/// Elements of the gradient that are fetched at a time: 64 MiB.
const FETCHED: usize = 1 << 24;

/// The norms of the gradient in the blocks of the grid rows `rows`.
fn score(
    pattern: &Pattern,
    gradient: &DenseGradient,
    rows: Range<usize>,
    to: &mut [f64],
) -> Result<(), EngineError> {
    let (block_rows, cols) = (pattern.block.0, pattern.grid().1);
    let step = (FETCHED / (block_rows * pattern.n_in)).max(1);
    for start in rows.clone().step_by(step) {
        let end = (start + step).min(rows.end);
        let elements = start * block_rows..(end * block_rows).min(pattern.n_out);
        let fetched = gradient.rows(elements)?;
        let to = &mut to[(start - rows.start) * cols..(end - rows.start) * cols];
        block_norms(pattern, &fetched, to);
    }
    Ok(())
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

/// The pattern of a structure that has a schedule.
fn pattern_of(structure: &dyn Structure) -> &Pattern {
    match structure.form() {
        Form::Pattern(pattern) => pattern,
        _ => unreachable!("checked when the layer was built"),
    }
}

/// The gradient at the new places, times `scale`, in their order.
fn grown(
    pattern: &Pattern,
    gradient: &DenseGradient,
    moved: &Move,
    scale: f64,
) -> Result<Vec<f32>, EngineError> {
    let (rows, cols) = pattern.block;
    let mut values = Vec::new();
    // Places are in order, so each row of blocks is fetched once.
    let mut fetched: (u32, Vec<f32>) = (u32::MAX, Vec::new());
    for (&(row, col), _) in moved.positions.iter().zip(&moved.from).filter(|(_, from)| from.is_none()) {
        if fetched.0 != row {
            let first = row as usize * rows;
            fetched = (row, gradient.rows(first..(first + rows).min(pattern.n_out))?);
        }
        for i in 0..rows {
            for j in col as usize * cols..(col as usize + 1) * cols {
                let inside = j < pattern.n_in;
                let g = fetched.1.get(i * pattern.n_in + j).filter(|_| inside).copied().unwrap_or(0.0);
                values.push((f64::from(g) * scale) as f32);
            }
        }
    }
    Ok(values)
}
