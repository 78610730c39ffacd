//! Moves: which places change, and how weights, moments and averages follow.
//!
//! Where places move between layers, `across` says which; weights and what follows them are taken along here, too.

use super::{Evolving, Kind, Watch, block_norms, pattern_of};
use lacewing_core::{
    FirstMoment, FirstValue, Growth, Move, MoveSchedule, Pattern, Rng, Schedule, Search, move_places,
};
use lacewing_engine::ops::SumOver;
use lacewing_engine::{EngineError, Params, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    /// Makes growth go by the gradient summed over these processes, each of which calls all that follows as this one does.
    pub fn sum_over(&self, processes: Arc<dyn SumOver>) {
        if let Kind::Moving(watch) = &self.kind {
            watch.gradient.sum_over(processes);
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
        if moves.growth == Growth::Random {
            return Ok(move_places(pattern, &values, count, moves.regrow, Search::Random(rng)));
        }
        let mut failed = None;
        let mut scores = |rows: Range<usize>, to: &mut [f64]| {
            if failed.is_none() {
                failed = score(pattern, &|rows| watch.gradient.rows(rows), rows, to).err();
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
        let (Schedule::Moves(moves), Some(structure)) = (&self.schedule, self.stored_places(params)?) else {
            panic!("layer `{}` is not under a schedule of moves", self.name)
        };
        let pattern = pattern_of(&*structure);
        let next =
            structure.with_positions(moved.positions.clone()).expect("checked when the layer was built");
        let per_block = pattern.block.0 * pattern.block.1;
        // Between layers all weights are stored: those at the places are taken out, and put at the new ones among zeros.
        let dense = matches!(self.kind, Kind::Across(_));
        let taken = |array: &Tensor| -> Result<Vec<f32>, EngineError> {
            let values = array.to_f32()?;
            Ok(if dense { pattern.gather(&values) } else { values })
        };
        let values = taken(&params.master(self.weight))?;
        let n_new = moved.from.iter().filter(|from| from.is_none()).count() * per_block;
        let drawn = first_values(moves.value, &values, n_new, rng);
        let zeros = vec![0.0; n_new];
        let gradients = match (moves.moment, &self.kind) {
            (FirstMoment::Gradient(scale), Kind::Moving(watch)) => {
                grown(pattern, &|rows| watch.gradient.rows(rows), moved, scale)?
            }
            (FirstMoment::Gradient(scale), _) => {
                let (all, n_in) = (params.gradient(self.weight)?.to_f32()?, pattern.n_in);
                grown(pattern, &|rows| Ok(all[rows.start * n_in..rows.end * n_in].to_vec()), moved, scale)?
            }
            _ => Vec::new(),
        };
        let kept_moments = |old: &[f32]| -> Vec<f32> {
            let blocks = moved.dropped.iter().map(|&slot| slot as usize * per_block);
            let mut kept: Vec<f32> = blocks.flat_map(|at| old[at..at + per_block].iter().copied()).collect();
            // Between layers there may be more new places than were given up, or fewer.
            kept.resize(n_new, 0.0);
            kept
        };
        let put = |array: &Tensor, old: Vec<f32>, new: &[f32]| {
            let values = moved_values(moved, per_block, &old, new);
            array.set_f32(&if dense { pattern_of(&*next).scatter(&values) } else { values })
        };
        for follower in followers {
            let array = params.view(follower.flat, self.weight);
            let old = taken(&array)?;
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
        match &self.kind {
            Kind::Across(across) => across.set_places(params, pattern_of(&*next)),
            _ => self.running.replace(next),
        }
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

/// Fetches rows of the gradient of a dense weight, `[rows.len(), n_in]`.
type GradientRows<'a> = &'a dyn Fn(Range<usize>) -> Result<Vec<f32>, EngineError>;

/// The norms of the gradient in the blocks of the grid rows `rows`.
fn score(
    pattern: &Pattern,
    gradient: GradientRows<'_>,
    rows: Range<usize>,
    to: &mut [f64],
) -> Result<(), EngineError> {
    let (block_rows, cols) = (pattern.block.0, pattern.grid().1);
    let step = (FETCHED / (block_rows * pattern.n_in)).max(1);
    for start in rows.clone().step_by(step) {
        let end = (start + step).min(rows.end);
        let elements = start * block_rows..(end * block_rows).min(pattern.n_out);
        let fetched = gradient(elements)?;
        let to = &mut to[(start - rows.start) * cols..(end - rows.start) * cols];
        block_norms(pattern, &fetched, to);
    }
    Ok(())
}

/// The gradient at the new places, times `scale`, in their order.
fn grown(
    pattern: &Pattern,
    gradient: GradientRows<'_>,
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
            fetched = (row, gradient(first..(first + rows).min(pattern.n_out))?);
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
