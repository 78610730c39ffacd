//! Blocks to a dense matrix and back, on the CPU.

use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// Writes each block to its place; what lies elsewhere is left as it is.
///
/// Shapes: `values [nnz, br, bc]`, `positions [nnz]` in blocks, strictly increasing row-major, `dense [n_out, n_in]`.
pub(super) fn scatter(
    values: &[f32],
    positions: &[(u32, u32)],
    (br, bc): (usize, usize),
    dense: &mut [f32],
    n_in: usize,
) {
    assert_eq!(values.len(), positions.len() * br * bc);
    if positions.is_empty() {
        return;
    }
    // A task owns whole block rows of `dense`, and the run of blocks that lies in them.
    let grid_rows = dense.len() / (br * n_in);
    let step = rows_per_task(grid_rows, br * n_in);
    dense.par_chunks_mut(step * br * n_in).enumerate().for_each(|(task, dense)| {
        let start = |row: usize| positions.partition_point(|&(r, _)| (r as usize) < row);
        let blocks = start(task * step)..start((task + 1) * step);
        for block in blocks {
            let (row, col) = (positions[block].0 as usize - task * step, positions[block].1 as usize);
            for (i, values) in values[block * br * bc..][..br * bc].chunks_exact(bc).enumerate() {
                dense[(row * br + i) * n_in + col * bc..][..bc].copy_from_slice(values);
            }
        }
    });
}

/// Adds to each block's gradient what stands at its place in `ddense`.
///
/// Shapes: those of [`scatter`].
pub(super) fn gather_add(
    ddense: &[f32],
    positions: &[(u32, u32)],
    (br, bc): (usize, usize),
    dvalues: &mut [f32],
    n_in: usize,
) {
    assert_eq!(dvalues.len(), positions.len() * br * bc);
    if dvalues.is_empty() {
        return;
    }
    let step = rows_per_task(positions.len(), br * bc);
    dvalues.par_chunks_mut(step * br * bc).zip(positions.par_chunks(step)).for_each(
        |(dvalues, positions)| {
            for (dvalues, &(row, col)) in dvalues.chunks_exact_mut(br * bc).zip(positions) {
                for (i, dvalues) in dvalues.chunks_exact_mut(bc).enumerate() {
                    let from = &ddense[(row as usize * br + i) * n_in + col as usize * bc..][..bc];
                    dvalues.iter_mut().zip(from).for_each(|(d, from)| *d += from);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_to_their_places_and_come_back() {
        for (grid_rows, grid_cols, br, bc) in
            [(1, 1, 1, 1), (3, 2, 2, 3), (5, 7, 1, 1), (2, 2, 16, 17), (40, 20, 8, 8), (300, 150, 1, 1)]
        {
            let places = (0..grid_rows).flat_map(|r| (0..grid_cols).map(move |c| (r, c)));
            let positions: Vec<(u32, u32)> = places.filter(|(r, c)| (r * 5 + c) % 3 != 1).collect();
            let n_in = grid_cols as usize * bc;
            let size = br * bc;
            let values: Vec<f32> = (0..positions.len() * size).map(|i| i as f32 + 1.0).collect();
            let mut dense = vec![0.0; grid_rows as usize * br * n_in];
            scatter(&values, &positions, (br, bc), &mut dense, n_in);
            let mut wanted = vec![0.0; dense.len()];
            for (slot, value) in values.iter().enumerate() {
                let (row, col) = positions[slot / size];
                let (i, j) = (slot % size / bc, slot % bc);
                wanted[(row as usize * br + i) * n_in + col as usize * bc + j] = *value;
            }
            assert_eq!(dense, wanted, "{grid_rows}x{grid_cols} blocks of {br}x{bc}");
            let mut back = vec![0.5; values.len()];
            gather_add(&dense, &positions, (br, bc), &mut back, n_in);
            assert_eq!(back, values.iter().map(|v| v + 0.5).collect::<Vec<_>>());
        }
        scatter(&[], &[], (2, 2), &mut [0.0; 4], 2);
        gather_add(&[0.0; 4], &[], (2, 2), &mut [], 2);
    }
}
