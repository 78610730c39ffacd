//! Least squares on chosen places of W: patterns and block-diagonal maps.
//!
//! Without a second moment the optimum is W at those places. With one, an output's kept weights also take over
//! what its dropped inputs would have given, as far as the kept inputs predict them. Cost: one factorization of
//! `|S|³/3` multiply-adds for every set S of inputs that outputs share, and `n_out · n_in²` in all.

use std::collections::BTreeMap;

use lacewing_linalg::{matmul, solve_symmetric};

use super::Target;
use crate::Pattern;

/// Outputs that keep the same inputs.
pub(crate) struct Group {
    /// Rows of W.
    pub(crate) rows: Vec<usize>,
    /// Columns of W that these rows keep.
    pub(crate) cols: Vec<usize>,
}

/// The optimum `[rows, cols]` of each group, the other places of W being zero. No row is in two groups.
///
/// With the second moment M a row solves `ŵ_S M_SS = (w M)_S`. It is solved for `ŵ_S − w_S`, whose right side
/// is the share of the dropped weights: what lies in the structure comes out to the last bit, and where M is
/// singular the correction is the least one.
pub(crate) fn least_squares(target: &Target<'_>, groups: &[Group]) -> Vec<Vec<f64>> {
    let (n_out, n_in) = (target.n_out, target.n_in);
    let kept = |group: &Group| -> Vec<f64> {
        let row = |&row: &usize| group.cols.iter().map(move |&col| target.weight[row * n_in + col]);
        group.rows.iter().flat_map(row).collect()
    };
    let Some(moment) = target.moment else { return groups.iter().map(kept).collect() };
    let mut dropped = target.weight.to_vec();
    for group in groups {
        for &row in &group.rows {
            group.cols.iter().for_each(|&col| dropped[row * n_in + col] = 0.0);
        }
    }
    let shares = matmul(&dropped, moment, (n_out, n_in, n_in));
    let solve = |group: &Group| {
        let mut values = kept(group);
        let missing = |&row: &usize| dropped[row * n_in..][..n_in].iter().any(|&w| w != 0.0);
        if group.cols.is_empty() || !group.rows.iter().any(missing) {
            return values;
        }
        let at = |rows: &[usize], from: &[f64]| -> Vec<f64> {
            rows.iter().flat_map(|row| group.cols.iter().map(move |col| from[row * n_in + col])).collect()
        };
        let corrections =
            solve_symmetric(&at(&group.cols, moment), &at(&group.rows, &shares), group.cols.len());
        values.iter_mut().zip(corrections).for_each(|(value, correction)| *value += correction);
        values
    };
    groups.iter().map(solve).collect()
}

/// The optimal values of a pattern. Block rows with the same blocks are solved together; padding is zero.
pub(super) fn project(pattern: &Pattern, target: &Target<'_>) -> Vec<f64> {
    if target.moment.is_none() {
        return pattern.gather(target.weight);
    }
    let (starts, block_cols) = (pattern.row_starts(), pattern.cols());
    let mut sharing: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
    for (block_row, pair) in starts.windows(2).enumerate() {
        sharing.entry(&block_cols[pair[0] as usize..pair[1] as usize]).or_default().push(block_row);
    }
    let of = |ids: &mut dyn Iterator<Item = usize>, size: usize, end: usize| -> Vec<usize> {
        ids.flat_map(|id| id * size..((id + 1) * size).min(end)).collect()
    };
    let groups: Vec<Group> = sharing
        .iter()
        .map(|(cols, rows)| Group {
            rows: of(&mut rows.iter().copied(), pattern.block.0, pattern.n_out),
            cols: of(&mut cols.iter().map(|&col| col as usize), pattern.block.1, pattern.n_in),
        })
        .collect();
    let mut dense = vec![0.0; pattern.n_out * pattern.n_in];
    for (group, values) in groups.iter().zip(least_squares(target, &groups)) {
        for (row, values) in group.rows.iter().zip(values.chunks_exact(group.cols.len().max(1))) {
            for (col, value) in group.cols.iter().zip(values) {
                dense[row * pattern.n_in + col] = *value;
            }
        }
    }
    pattern.gather(&dense)
}
