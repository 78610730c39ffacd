//! Moves between layers: which places each layer of a group gives up, and how many new ones it gets.
//!
//! As a whole the layers keep as many places as they have. A layer always keeps one at least, and never gets more than fit.

use crate::mask::keep_largest;

/// Among which weights, or blocks, the smallest are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropScope {
    /// Those of each layer: every one gives up the same share.
    Layer,
    /// Those of all layers with the same schedule and blocks of the same size: one threshold for all (Mostafa & Wang 2019).
    Global,
}

/// What the number of new places that a layer gets is in proportion to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redistribution {
    /// To what it gave up: as many come back.
    None,
    /// To the places that it has left (dynamic sparse reparameterization; Mostafa & Wang 2019).
    Nonzeros,
    /// To the mean magnitude of the averaged gradient of its weights, those given up included (SNFS; Dettmers & Zettlemoyer
    /// 2019).
    Momentum,
}

/// Which stored places of each layer stay when the share `fraction` of the smallest are given up; `norms` are those of the
/// layers' places in order.
///
/// ⌊fraction · places⌋ go, of each layer or of all: among equals the first layer's, and the lowest index, first. The largest
/// place of a layer always stays. `free`, where given, has the places that each layer could take instead, and no more go:
/// for rules under which a place just given up is not taken again.
///
/// # Panics
///
/// When `free` has another length than `norms`.
pub fn keep_across(
    norms: &[Vec<f64>],
    fraction: f64,
    scope: DropScope,
    free: Option<&[usize]>,
) -> Vec<Vec<bool>> {
    let part = |of: usize| (fraction * of as f64) as usize;
    let mut kept: Vec<Vec<bool>> = norms.iter().map(|norms| vec![false; norms.len()]).collect();
    match scope {
        DropScope::Layer => {
            for (layer, (kept, norms)) in kept.iter_mut().zip(norms).enumerate() {
                let most = norms.len().saturating_sub(1).min(free.map_or(usize::MAX, |free| free[layer]));
                let stay = norms.len() - part(norms.len()).min(most);
                keep_largest(norms, stay).into_iter().for_each(|slot| kept[slot] = true);
            }
        }
        DropScope::Global => {
            // Layer, place and norm of all that may go.
            let mut candidates = Vec::new();
            for (layer, (kept, norms)) in kept.iter_mut().zip(norms).enumerate() {
                let last = keep_largest(norms, 1.min(norms.len())).into_iter().next();
                kept.fill(true);
                let others = (0..norms.len()).filter(|&slot| Some(slot) != last);
                candidates.extend(others.map(|slot| (norms[slot], layer, slot)));
            }
            let places: usize = norms.iter().map(Vec::len).sum();
            let most = free.map_or(usize::MAX, |free| free.iter().sum());
            let count = part(places).min(candidates.len()).min(most);
            if count > 0 {
                // The order is total, so that no algorithm shows in the result.
                candidates.select_nth_unstable_by(count - 1, |a, b| {
                    a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
                });
            }
            candidates[..count].iter().for_each(|&(_, layer, slot)| kept[layer][slot] = false);
        }
    }
    kept
}

/// How many of `count` places each layer gets: in proportion to `shares`, at most its `rooms`, in whole numbers by largest
/// remainders, the first layer's among equals. What is beyond a layer's room goes to the others in the same proportion; where
/// no share is left, by room.
///
/// ```
/// use lacewing_core::redistribute;
/// assert_eq!(redistribute(10, &[1.0, 2.0, 2.0], &[9, 9, 9]), [2, 4, 4]);
/// // The second has room for one: what is left goes 1 to 2.
/// assert_eq!(redistribute(10, &[1.0, 2.0, 2.0], &[9, 1, 9]), [3, 1, 6]);
/// ```
///
/// # Panics
///
/// When the lengths differ, or there is no room for all.
pub fn redistribute(count: usize, shares: &[f64], rooms: &[usize]) -> Vec<usize> {
    assert_eq!(shares.len(), rooms.len(), "a share and a room for each layer");
    assert!(count <= rooms.iter().sum(), "room for {count} places in {rooms:?}");
    let share = |layer: usize| if shares[layer].is_finite() { shares[layer].max(0.0) } else { 0.0 };
    let mut given = vec![0; rooms.len()];
    let mut open: Vec<usize> = (0..rooms.len()).filter(|&layer| rooms[layer] > 0).collect();
    let mut left = count;
    loop {
        let sum: f64 = open.iter().map(|&layer| share(layer)).sum();
        let room: usize = open.iter().map(|&layer| rooms[layer]).sum();
        let part =
            |layer: usize| if sum > 0.0 { share(layer) / sum } else { rooms[layer] as f64 / room as f64 };
        let quotas: Vec<(usize, f64)> =
            open.iter().map(|&layer| (layer, left as f64 * part(layer))).collect();
        let (full, rest): (Vec<_>, Vec<_>) =
            quotas.into_iter().partition(|&(layer, quota)| quota >= rooms[layer] as f64);
        for &(layer, _) in &full {
            given[layer] = rooms[layer].min(left);
            left -= given[layer];
        }
        if !full.is_empty() {
            open = rest.into_iter().map(|(layer, _)| layer).collect();
            continue;
        }
        let mut remainders: Vec<(usize, f64)> = Vec::with_capacity(rest.len());
        for (layer, quota) in rest {
            given[layer] = (quota as usize).min(left);
            left -= given[layer];
            remainders.push((layer, quota.fract()));
        }
        remainders.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        remainders.into_iter().take(left).for_each(|(layer, _)| given[layer] += 1);
        return given;
    }
}
