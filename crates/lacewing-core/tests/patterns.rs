//! Invariants that kernels rely on, over random sizes.

use lacewing_core::{Axis, Form, Pattern, PatternKind, Structure, build};
use lacewing_testkit::uniform;
use proptest::prelude::*;
use serde_json::{Value, json};

fn pattern(structure: &dyn Structure) -> &Pattern {
    match structure.form() {
        Form::Pattern(pattern) => pattern,
        Form::Sum(sum) => pattern(&*sum.a),
        form => panic!("no pattern in {form:?}"),
    }
}

fn configs() -> impl Strategy<Value = Value> {
    let mask = prop_oneof![Just("random"), Just("magnitude")];
    let density = 0.05..=1.0f64;
    let block = (1usize..5, 1usize..5);
    prop_oneof![
        (density.clone(), mask.clone()).prop_map(
            |(density, mask)| json!({"structure": "unstructured", "density": density, "mask": mask})
        ),
        (density.clone(), prop_oneof![Just("centred"), Just("write_up")]).prop_map(
            |(density, distance)| json!({"structure": "small_world", "density": density, "distance": distance})
        ),
        (density, mask, block).prop_map(|(density, mask, (rows, cols))| json!({
            "structure": "block_sparse", "density": density, "mask": mask, "block": [rows, cols], "pad": true,
        })),
        (1usize..9, 0usize..9, prop_oneof![Just("row"), Just("col")]).prop_map(
            |(m, n, axis)| json!({"structure": "nm", "n": n.clamp(1, m), "m": m, "axis": axis, "pad": true})
        ),
        (1u32..5, 0usize..4, 1usize..7, any::<bool>()).prop_map(|(log, n_factors, block, shuffle)| json!({
            "structure": "flat_butterfly", "butterfly_size": 1 << log,
            "n_factors": n_factors.clamp(1, log as usize), "block": block, "shuffle": shuffle, "pad": true,
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn places_are_sorted_different_and_inside_the_grid(
        config in configs(), n_in in 1usize..40, n_out in 1usize..40, seed: u64,
    ) {
        let Ok(built) = build(&config, n_in, n_out, seed, None) else {
            // Only a density that keeps nothing may fail here.
            prop_assert!(config["density"].as_f64().unwrap() * (n_in * n_out) as f64 <= 40.0 * 40.0);
            return Ok(());
        };
        let pattern = pattern(&*built);
        let ((rows, cols), (n_rows, n_cols)) = (pattern.block, pattern.grid());
        prop_assert_eq!((n_rows * rows, n_cols * cols), (pattern.n_out_ext, pattern.n_in_ext));
        prop_assert!(pattern.n_out_ext >= n_out && pattern.n_in_ext >= n_in);
        prop_assert!(pattern.positions.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(pattern.positions.iter().all(|&(r, c)| (r as usize) < n_rows && (c as usize) < n_cols));
        prop_assert_eq!(built.params()[0].count(), pattern.values_len());
        if let Some(density) = config["density"].as_f64() {
            prop_assert!((pattern.nnz() as f64 - density * (n_rows * n_cols) as f64).abs() <= 0.5);
        }
        let again = build(&config, n_in, n_out, seed, None).unwrap();
        prop_assert_eq!(again.buffers(), built.buffers());
    }

    #[test]
    fn rows_and_columns_list_the_same_places(
        config in configs(), n_in in 8usize..40, n_out in 8usize..40,
    ) {
        let Ok(built) = build(&config, n_in, n_out, 1, None) else { return Ok(()) };
        let pattern = pattern(&*built);
        let (starts, cols) = (pattern.row_starts(), pattern.cols());
        let rows = starts.windows(2).enumerate().flat_map(|(row, pair)| (pair[0]..pair[1]).map(move |_| row as u32));
        let places: Vec<(u32, u32)> = rows.zip(cols).collect();
        prop_assert_eq!(&places, &pattern.positions);
        let by_column = pattern.by_column();
        let mut seen = vec![false; pattern.nnz()];
        for (col, pair) in by_column.starts.windows(2).enumerate() {
            for at in pair[0] as usize..pair[1] as usize {
                let slot = by_column.slots[at] as usize;
                prop_assert_eq!(pattern.positions[slot], (by_column.rows[at], col as u32));
                prop_assert!(!std::mem::replace(&mut seen[slot], true));
            }
        }
        prop_assert!(seen.iter().all(|&seen| seen));
    }

    #[test]
    fn gathered_values_scatter_back_to_the_masked_weight(
        config in configs(), n_in in 1usize..30, n_out in 1usize..30,
    ) {
        let Ok(built) = build(&config, n_in, n_out, 2, None) else { return Ok(()) };
        let pattern = pattern(&*built);
        let dense = uniform(3, n_in * n_out);
        let mask = pattern.mask();
        let masked: Vec<f32> = dense.iter().zip(&mask).map(|(&w, &kept)| if kept { w } else { 0.0 }).collect();
        let values = pattern.gather(&dense);
        prop_assert_eq!(pattern.scatter(&values), masked.clone());
        let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let masked: Vec<f64> = masked.iter().map(|&v| f64::from(v)).collect();
        prop_assert_eq!(built.to_dense(&[&values]).unwrap(), masked);
    }

    #[test]
    fn every_group_of_m_keeps_its_n_largest(
        m in 1usize..9, n in 1usize..9, groups in 1usize..5, lines in 1usize..6, by_row: bool,
    ) {
        let n = n.min(m);
        let (n_in, n_out) = if by_row { (m * groups, lines) } else { (lines, m * groups) };
        let dense = uniform(7, n_in * n_out);
        let axis = if by_row { "row" } else { "col" };
        let config = json!({"structure": "nm", "n": n, "m": m, "axis": axis});
        let built = build(&config, n_in, n_out, 0, Some(&dense)).unwrap();
        let pattern = pattern(&*built);
        let axis = if by_row { Axis::Row } else { Axis::Col };
        prop_assert_eq!(pattern.kind, PatternKind::Nm { n, m, axis });
        let mask = pattern.mask();
        for line in 0..lines {
            for group in 0..groups {
                let at = |o: usize| {
                    let along = group * m + o;
                    if by_row { line * n_in + along } else { along * n_in + line }
                };
                let (kept, pruned): (Vec<usize>, Vec<usize>) = (0..m).map(at).partition(|&at| mask[at]);
                prop_assert_eq!(kept.len(), n);
                let least = kept.iter().map(|&at| dense[at].abs()).fold(f32::INFINITY, f32::min);
                prop_assert!(pruned.iter().all(|&at| dense[at].abs() <= least));
            }
        }
    }
}
