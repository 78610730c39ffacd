//! Moves between layers: all weights are stored, zeros at the places that are not kept, and a mask says which are.
//!
//! A parameter's length is fixed, and the number of weights that a layer keeps is not: so the layer is a dense one whose other
//! weights, their gradients, moments and averages are zero. Its gradient, before the mask, is that of the dense weight, which
//! growth goes by.

use super::{Evolving, Kind, block_norms, pattern_of};
use lacewing_core::{
    Growth, Move, MoveSchedule, Pattern, Redistribution, Rng, Schedule, Search, Structure, keep_across,
    redistribute, regrow_places,
};
use lacewing_engine::ops::mask_blocks;
use lacewing_engine::optim::moving_average;
use lacewing_engine::{EngineError, ParamId, Params, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// What a layer whose places move between layers has besides its weights: values of the model that are not trained.
#[derive(Debug)]
pub(crate) struct Across {
    /// 1 for each place of the grid that is kept, 0 for the others.
    pub(crate) mask: ParamId,
    /// The average of the dense weight's gradient, `[n_out, n_in]`, where growth goes by it.
    pub(crate) momentum: Option<ParamId>,
    /// How many values both are.
    pub(crate) values: usize,
}

impl Across {
    /// Keeps the places of `pattern`.
    pub(super) fn set_places(&self, params: &Params, pattern: &Pattern) -> Result<(), EngineError> {
        params.set(self.mask, &places(pattern))
    }
}

/// 1 for each place of the grid that `pattern` has, 0 for the others.
pub(crate) fn places(pattern: &Pattern) -> Vec<f32> {
    let (rows, cols) = pattern.grid();
    let mut mask = vec![0.0; rows * cols];
    pattern.positions.iter().for_each(|&(row, col)| mask[row as usize * cols + col as usize] = 1.0);
    mask
}

impl Evolving {
    /// Takes the gradient of the dense weight into its average, where growth goes by one; before [`Evolving::mask_gradient`].
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn take_gradient(&self, params: &Params) -> Result<(), EngineError> {
        let (Kind::Across(across), Schedule::Moves(moves)) = (&self.kind, &self.schedule) else {
            return Ok(());
        };
        match (across.momentum, moves.growth) {
            (Some(momentum), Growth::Momentum(decay)) => {
                moving_average(&params.gradient(self.weight)?, &params.master(momentum), decay as f32)
            }
            _ => Ok(()),
        }
    }

    /// Leaves no gradient to weights that are not kept.
    ///
    /// # Errors
    ///
    /// What the device reports. Nothing is done to a layer whose places do not move between layers.
    pub fn mask_gradient(&self, params: &Params) -> Result<(), EngineError> {
        let Kind::Across(across) = &self.kind else { return Ok(()) };
        let gradient = params.gradient(self.weight)?;
        mask_blocks(&gradient, &params.master(across.mask), self.block(), &gradient)
    }

    /// Which places of the grid are kept by the mask in `by`, shaped as the masters; none for a layer whose places do not move
    /// between layers.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn kept_places(&self, params: &Params, by: &Tensor) -> Result<Option<Vec<bool>>, EngineError> {
        let Kind::Across(across) = &self.kind else { return Ok(None) };
        let mask = params.view(by, across.mask).to_f32()?;
        Ok(Some(mask.into_iter().map(|factor| factor != 0.0).collect()))
    }

    /// The structure with the places whose weights are kept now; none for a layer that is not under moves.
    pub(super) fn stored_places(&self, params: &Params) -> Result<Option<Arc<dyn Structure>>, EngineError> {
        let structure = self.structure();
        match &self.kind {
            Kind::Moving(_) => Ok(Some(structure)),
            Kind::Across(_) => {
                let kept = self.kept_places(params, params.flat_master())?.unwrap_or_default();
                let cols = pattern_of(&*structure).grid().1;
                let kept = kept.iter().enumerate().filter(|(_, kept)| **kept);
                let positions = kept.map(|(at, _)| ((at / cols) as u32, (at % cols) as u32)).collect();
                let now = structure.with_positions(positions).expect("checked when the layer was built");
                Ok(Some(now.into()))
            }
            _ => Ok(None),
        }
    }

    fn across(&self) -> (&MoveSchedule, &Across) {
        match (&self.schedule, &self.kind) {
            (Schedule::Moves(moves), Kind::Across(across)) => (moves, across),
            _ => panic!("places of layer `{}` do not move between layers", self.name),
        }
    }

    /// What growth goes by, `[n_out, n_in]`; none where it is random.
    fn growth_scores(&self, params: &Params) -> Result<Option<Vec<f32>>, EngineError> {
        let (moves, across) = self.across();
        match (moves.growth, across.momentum) {
            (Growth::Gradient, _) => params.gradient(self.weight)?.to_f32().map(Some),
            (Growth::Momentum(_), Some(momentum)) => params.master(momentum).to_f32().map(Some),
            _ => Ok(None),
        }
    }
}

/// Which places change when `fraction` of the weights of `layers` move, between them as their schedule says; draws for each
/// layer come from its stream in `rngs`. As many are kept in all as before.
///
/// Memory: besides words for each kept place, the values of one layer at a time.
///
/// # Errors
///
/// What the device reports.
///
/// # Panics
///
/// When the places of a layer do not move between layers, or there is not a stream for each.
pub fn choose_across(
    layers: &[&Evolving],
    params: &Params,
    fraction: f64,
    rngs: &mut [Rng],
) -> Result<Vec<Move>, EngineError> {
    assert_eq!(layers.len(), rngs.len(), "a stream for each layer");
    let Some(first) = layers.first() else { return Ok(Vec::new()) };
    let moves = first.across().0;
    let (mut structures, mut norms, mut means) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let structure = layer.stored_places(params)?.expect("places move between layers");
        let pattern = pattern_of(&*structure);
        norms.push(stored_norms(pattern, &params.master(layer.weight).to_f32()?));
        means.push(match (moves.redistribution, layer.across().1.momentum) {
            (Redistribution::Momentum, Some(momentum)) => {
                mean_magnitude(&pattern.gather(&params.master(momentum).to_f32()?))
            }
            _ => 0.0,
        });
        structures.push(structure);
    }
    let free: Vec<usize> =
        structures.iter().map(|s| size(pattern_of(&**s)) - pattern_of(&**s).nnz()).collect();
    let kept = keep_across(&norms, fraction, moves.drop, (!moves.regrow).then_some(&free));
    let count = |kept: &[bool]| kept.iter().filter(|kept| **kept).count();
    let dropped: Vec<usize> = kept.iter().map(|kept| kept.len() - count(kept)).collect();
    let share = |at: usize| match moves.redistribution {
        Redistribution::None => dropped[at] as f64,
        Redistribution::Nonzeros => count(&kept[at]) as f64,
        Redistribution::Momentum => means[at],
    };
    let shares: Vec<f64> = (0..layers.len()).map(share).collect();
    let room = |at: usize| if moves.regrow { free[at] + dropped[at] } else { free[at] };
    let rooms: Vec<usize> = (0..layers.len()).map(room).collect();
    let grown = redistribute(dropped.iter().sum(), &shares, &rooms);

    let mut moved = Vec::with_capacity(layers.len());
    for (at, (layer, is_kept)) in layers.iter().zip(kept).enumerate() {
        let pattern = pattern_of(&*structures[at]);
        let by = layer.growth_scores(params)?;
        let mut scores = |rows: Range<usize>, to: &mut [f64]| {
            let by = by.as_deref().expect("growth by scores");
            let line = |row: usize| (row * pattern.block.0).min(pattern.n_out) * pattern.n_in;
            block_norms(pattern, &by[line(rows.start)..line(rows.end)], to);
        };
        let search = if by.is_some() { Search::Largest(&mut scores) } else { Search::Random(&mut rngs[at]) };
        moved.push(regrow_places(pattern, is_kept, grown[at], moves.regrow, search));
    }
    Ok(moved)
}

/// Places of the grid.
fn size(pattern: &Pattern) -> usize {
    pattern.grid().0 * pattern.grid().1
}

/// The norms of the stored places of the weight `dense [n_out, n_in]`, in order.
fn stored_norms(pattern: &Pattern, dense: &[f32]) -> Vec<f64> {
    let mut all = vec![0.0; size(pattern)];
    block_norms(pattern, dense, &mut all);
    let cols = pattern.grid().1;
    pattern.positions.iter().map(|&(row, col)| all[row as usize * cols + col as usize]).collect()
}

fn mean_magnitude(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len().max(1) as f64
}
