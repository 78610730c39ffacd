//! Published golden numbers of block patterns: index tensors, moves, storage, and a layer forward and backward.

use lacewing_core::{Form, Pattern, Structure, build};
use serde_json::json;

fn pattern(structure: &dyn Structure) -> &Pattern {
    let Form::Pattern(pattern) = structure.form() else { panic!("no pattern in {structure:?}") };
    pattern
}

/// Row-major list of (column, slot), its row starts, column-major list of (row, slot) and its column starts, where
/// the k-th place holds the block of slot `slots[k]`.
type Index = (Vec<[u32; 2]>, Vec<u32>, Vec<[u32; 2]>, Vec<u32>);

fn index(pattern: &Pattern, slots: &[u32]) -> Index {
    let by_row = pattern.cols().iter().zip(slots).map(|(&col, &slot)| [col, slot]).collect();
    let by_column = pattern.by_column();
    let by_col = by_column.rows.iter().zip(&by_column.slots).map(|(&row, &at)| [row, slots[at as usize]]);
    (by_row, pattern.row_starts(), by_col.collect(), by_column.starts)
}

#[test]
fn index_tensors_before_and_after_blocks_move() {
    let config = json!({"structure": "block_sparse", "mask": [[0, 0], [1, 0], [2, 0], [0, 1]]});
    let built = build(&config, 64, 128, 0, None).unwrap();
    let (by_row, row_starts, by_col, col_starts) = index(pattern(&*built), &[0, 1, 2, 3]);
    assert_eq!(by_row, [[0, 0], [1, 1], [0, 2], [0, 3]]);
    assert_eq!(row_starts, [0, 2, 3, 4, 4]);
    assert_eq!(by_col, [[0, 0], [1, 2], [2, 3], [0, 1]]);
    assert_eq!(col_starts, [0, 3, 4]);

    // Blocks 0, 2 and 1 move to (3, 1), (2, 1) and (1, 1); block 3 stays at (2, 0).
    let mut places = pattern(&*built).positions.clone();
    for (row, col, slot) in [(3, 1, 0), (2, 1, 2), (1, 1, 1)] {
        places[slot] = (row, col);
    }
    let mut slots: Vec<u32> = (0..4).collect();
    slots.sort_by_key(|&slot| places[slot as usize]);
    let config = json!({"structure": "block_sparse", "mask": places});
    let built = build(&config, 64, 128, 0, None).unwrap();
    let (by_row, row_starts, by_col, col_starts) = index(pattern(&*built), &slots);
    assert_eq!(by_row, [[1, 1], [0, 3], [1, 2], [1, 0]]);
    assert_eq!(row_starts, [0, 0, 1, 3, 4]);
    assert_eq!(by_col, [[2, 3], [1, 1], [2, 2], [3, 0]]);
    assert_eq!(col_starts, [0, 1, 4]);
}

#[test]
fn a_block_that_is_not_square_is_the_part_of_the_matrix() {
    let dense: Vec<f32> = (0..32u8).map(f32::from).collect();
    let config = json!({"structure": "block_sparse", "block": [2, 4], "density": 1});
    let built = build(&config, 8, 4, 0, None).unwrap();
    let values = pattern(&*built).gather(&dense);
    assert_eq!(values[..8], [0., 1., 2., 3., 8., 9., 10., 11.]);
    // The reference stores a block column by column.
    let stored: Vec<f32> = (0..8).map(|at| values[at % 2 * 4 + at / 2]).collect();
    assert_eq!(stored, [0., 8., 1., 9., 2., 10., 3., 11.]);
    assert_eq!(pattern(&*built).scatter(&values), dense);
    let config = json!({"structure": "block_sparse", "block": [2, 4], "mask": [[0, 1], [1, 0]]});
    let built = build(&config, 8, 4, 0, None).unwrap();
    let kept = pattern(&*built).scatter(&pattern(&*built).gather(&dense));
    #[rustfmt::skip]
    assert_eq!(kept, [
         0.,  0.,  0.,  0.,  4.,  5.,  6.,  7.,
         0.,  0.,  0.,  0., 12., 13., 14., 15.,
        16., 17., 18., 19.,  0.,  0.,  0.,  0.,
        24., 25., 26., 27.,  0.,  0.,  0.,  0.,
    ]);
}

#[test]
fn a_layer_of_four_by_six_backward() {
    let config = json!({"structure": "block_sparse", "block": 2, "mask": [[0, 1], [1, 0], [1, 2]]});
    let built = build(&config, 6, 4, 0, None).unwrap();
    let weight = [1., 2., 3., 4., -1., 0., 2., 1., 0.5, 0., 0., -2.];
    let w = built.to_dense(&[&weight]).unwrap();
    let x = [[1., 2., 3., 4., 5., 6.], [0., 1., 0., -1., 2., 1.]];
    let dy = [[1., 0., -1., 2.], [0.5, 1., 0., 1.]];
    let dx = dy.map(|dy| [0, 1, 2, 3, 4, 5].map(|i| (0..4).map(|o| dy[o] * w[o * 6 + i]).sum::<f64>()));
    assert_eq!(dx, [[5., 2., 1., 2., -0.5, -4.], [2., 1., 3.5, 5., 0., -2.]]);
    let dense: Vec<f64> = (0..24).map(|at| (0..2).map(|b| dy[b][at / 6] * x[b][at % 6]).sum()).collect();
    let dw = pattern(&*built).gather(&dense);
    assert_eq!(dw, [3., 3.5, 0., -1., -1., -2., 2., 5., -5., -6., 12., 13.]);
    assert_eq!([0, 1, 2, 3].map(|o| dy[0][o] + dy[1][o]), [1.5, 1., -1., 3.]);
    let norms: Vec<f64> = weight.chunks(4).map(|b| b.iter().map(|w| w * w).sum::<f64>().sqrt()).collect();
    assert_eq!(norms, [30f64.sqrt(), 6f64.sqrt(), 4.25f64.sqrt()]);
    let printed = norms.iter().map(|norm| format!("{norm:.6}")).collect::<Vec<_>>();
    assert_eq!(printed, ["5.477226", "2.449490", "2.061553"]);
}
