//! Which places a pattern keeps: the `mask` key, and ranking by magnitude.
//!
//! One rule for ties everywhere: among equal magnitudes the lowest index is pruned first.

use std::borrow::Cow;

use serde_json::Value;

use crate::config::Options;
use crate::{Init, Origin, Problem, Rng, StructureError};

/// The `mask` key of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// Drawn from the seed.
    Random,
    /// The largest of the dense weight, or of a draw.
    Magnitude,
    /// As listed, sorted row-major; empty where a checkpoint says it.
    User(Vec<(u32, u32)>),
}

impl Mask {
    /// `"random"`, `"magnitude"`, a list of `[row, col]` on a grid, or, for a saved layer, `"user"`.
    pub(crate) fn read(
        options: &Options,
        problem: &Problem<'_>,
        (n_rows, n_cols): (usize, usize),
    ) -> Result<Self, StructureError> {
        let value = options.required("mask")?;
        let wrong =
            |value: &Value| options.wrong("mask", "`random`, `magnitude` or a list of [row, col]", value);
        let structure = options.structure();
        let list = match &value {
            Value::String(name) => {
                return match (name.as_str(), problem.origin) {
                    ("random", _) => Ok(Mask::Random),
                    ("magnitude", _) => Ok(Mask::Magnitude),
                    ("user", Origin::Saved(_)) => Ok(Mask::User(Vec::new())),
                    _ => Err(wrong(&value)),
                };
            }
            Value::Array(list) => list,
            _ => return Err(wrong(&value)),
        };
        let mut places = Vec::with_capacity(list.len());
        for place in list {
            let pair = place.as_array().filter(|pair| pair.len() == 2);
            let pair = pair.and_then(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?)));
            let (row, col) = pair.ok_or_else(|| wrong(place))?;
            if row >= n_rows as u64 || col >= n_cols as u64 {
                return Err(StructureError::OutsideGrid { structure, row, col, rows: n_rows, cols: n_cols });
            }
            places.push((row as u32, col as u32));
        }
        places.sort_unstable();
        if let Some(pair) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(StructureError::Repeated { structure, row: pair[0].0, col: pair[0].1 });
        }
        if places.is_empty() {
            return Err(StructureError::EmptyPattern { structure, places: n_rows * n_cols, density: 0.0 });
        }
        Ok(Mask::User(places))
    }

    /// What the config of the built structure says.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Mask::Random => "random",
            Mask::Magnitude => "magnitude",
            Mask::User(_) => "user",
        }
    }
}

/// The whole number of places nearest to `density · places`, at least one.
pub(crate) fn places_kept(
    structure: &'static str,
    density: f64,
    places: usize,
) -> Result<usize, StructureError> {
    match (density * places as f64).round() as usize {
        0 => Err(StructureError::EmptyPattern { structure, places, density }),
        kept => Ok(kept.min(places)),
    }
}

/// The weight `[n_out, n_in]` whose magnitudes rank the places: the dense one given, else a default draw.
pub(crate) fn weight_to_rank<'a>(problem: &Problem<'a>, rng: &mut Rng) -> Cow<'a, [f32]> {
    match problem.origin {
        Origin::New { dense: Some(dense), .. } => Cow::Borrowed(dense),
        _ => {
            let (n_out, n_in) = problem.shape();
            Cow::Owned(Init::Default.draw(n_out, n_in, n_out * n_in, rng))
        }
    }
}

/// The stream of random choices of a fresh layer.
pub(crate) fn choices(problem: &Problem<'_>) -> Rng {
    let Origin::New { seed, .. } = problem.origin else { unreachable!("a saved layer chooses nothing") };
    Rng::new(seed).fork("pattern")
}

/// Indices of the `count` largest scores, ascending; among equals the lowest index is pruned first.
pub(crate) fn keep_largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let pruned = scores.len() - count;
    if pruned > 0 && count > 0 {
        // The order is total, so which elements land on either side does not depend on the algorithm.
        order.select_nth_unstable_by(pruned, |&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    }
    let mut kept = order.split_off(pruned);
    kept.sort_unstable();
    kept
}
