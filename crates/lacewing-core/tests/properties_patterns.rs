//! Properties of patterns over random shapes, with 1, primes and ragged sizes among them.

use lacewing_core::{Form, Pattern, Structure, StructureError, build};
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

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), prop::sample::select(vec![2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]), 1usize..48]
}

/// Every pattern in the table by keys that any size takes.
fn configs() -> impl Strategy<Value = Value> {
    let small = (1usize..5, 1usize..5, 1usize..4, 0.01..=1.0f64);
    (0usize..8, small, any::<bool>(), 1u32..5).prop_map(|(which, (a, b, c, density), flag, log)| match which {
        0 => json!({"structure": "unstructured", "density": density}),
        1 => json!({"structure": "block_sparse", "block": [a, b], "density": density, "pad": true}),
        2 => json!({
            "structure": "nm", "n": a.min(b), "m": a.max(b), "axis": if flag { "row" } else { "col" }, "pad": true,
        }),
        3 => json!({
            "structure": "flat_butterfly", "butterfly_size": 1 << log, "n_factors": c.min(log as usize), "block": a,
            "shuffle": flag, "pad": true,
        }),
        4 => json!({"structure": "stripe_butterfly", "window": a, "stripes": c, "step": b, "block": [b, a]}),
        5 => json!({"structure": "ninja_turtle", "window": a, "stripes": c, "step": b, "block": [b, a]}),
        6 => json!({"structure": "random_tiles", "window": a, "density": density}),
        _ => json!({"structure": "top_k_tiles", "window": a, "density": density}),
    })
}

/// Values whose bits show whether they were kept: zeros of both signs among them.
fn marked(len: usize) -> Vec<f32> {
    let signed = |(at, v): (usize, f32)| match at % 5 {
        0 => 0.0,
        1 => -0.0,
        _ => v,
    };
    uniform(11, len).into_iter().enumerate().map(signed).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn what_is_gathered_scatters_back_bit_by_bit(config in configs(), n_in in sizes(), n_out in sizes(), seed: u64) {
        let built = match build(&config, n_in, n_out, seed, None) {
            Ok(built) => built,
            Err(StructureError::EmptyPattern { density, places, .. }) => {
                prop_assert!(density * places as f64 <= 0.5);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let pattern = pattern(&*built);
        let dense = marked(n_in * n_out);
        let mask = pattern.mask();
        let masked: Vec<f32> = dense.iter().zip(&mask).map(|(&w, &kept)| if kept { w } else { 0.0 }).collect();
        let values = pattern.gather(&dense);
        prop_assert_eq!(values.len(), pattern.values_len());
        prop_assert_eq!(bits(&pattern.scatter(&values)), bits(&masked));
        // Gathered again nothing changes, and the mask of ones is the mask.
        prop_assert_eq!(bits(&pattern.gather(&masked)), bits(&values));
        let ones = pattern.scatter(&vec![1u8; values.len()]);
        prop_assert!(ones.iter().zip(&mask).all(|(&one, &kept)| (one == 1) == kept));
        // The definition and the pattern say the same matrix.
        let exact: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let expected: Vec<f64> = masked.iter().map(|&v| f64::from(v)).collect();
        prop_assert_eq!(built.to_dense(&[&exact]).unwrap(), expected);
        let saved = lacewing_core::restore(&built.config(), n_in, n_out, &built.buffers()).unwrap();
        prop_assert_eq!(format!("{saved:?}"), format!("{built:?}"));
    }

    #[test]
    fn counts_follow_their_formulas(
        n_in in sizes(), n_out in sizes(), a in 1usize..6, b in 1usize..6, density in 0.05..=1.0f64, log in 1u32..5,
        by_row: bool,
    ) {
        let nnz = |config: &Value, n_in: usize, n_out: usize| {
            build(config, n_in, n_out, 1, None).ok().map(|built| {
                assert_eq!(built.counts().parameters, pattern(&*built).values_len());
                pattern(&*built).nnz()
            })
        };
        let nearest = |places: usize| Some((density * places as f64).round() as usize).filter(|&n| n > 0);
        let config = json!({"structure": "unstructured", "density": density});
        prop_assert_eq!(nnz(&config, n_in, n_out), nearest(n_in * n_out));
        let config = json!({"structure": "block_sparse", "block": [a, b], "density": density, "pad": true});
        prop_assert_eq!(nnz(&config, n_in, n_out), nearest(n_out.div_ceil(a) * n_in.div_ceil(b)));
        let places = n_out.div_ceil(a) * n_in.div_ceil(b);
        let config = json!({"structure": "block_sparse", "block": [a, b], "blocks": places.div_ceil(2), "pad": true});
        prop_assert_eq!(nnz(&config, n_in, n_out), Some(places.div_ceil(2)));
        let (n, m) = (a.min(b), a.max(b));
        let config = json!({
            "structure": "nm", "n": n, "m": m, "axis": if by_row { "row" } else { "col" }, "pad": true,
        });
        let (lines, along) = if by_row { (n_out, n_in) } else { (n_in, n_out) };
        prop_assert_eq!(nnz(&config, n_in, n_out), Some(lines * along.div_ceil(m) * n));
        // Rectangles of whole tiles: exactly (f + 1)/s of them.
        let (size, f) = (1usize << log, a.min(log as usize));
        let config = json!({"structure": "flat_butterfly", "butterfly_size": size, "n_factors": f, "block": b});
        let (rows, cols) = (size * b * (1 + n_out % 3), size * b * (1 + n_in % 3));
        let tiles = rows / b * (cols / b);
        prop_assert_eq!(nnz(&config, cols, rows), Some(tiles * (f + 1) / size));
    }

    #[test]
    fn every_group_has_exactly_n_ones(
        n_in in sizes(), n_out in sizes(), m in 1usize..9, n in 1usize..9, by_row: bool, tied: bool, seed: u64,
    ) {
        let n = n.min(m);
        let dense: Vec<f32> =
            uniform(seed, n_in * n_out).iter().map(|&v| if tied { (2.0 * v).round() } else { v }).collect();
        let axis = if by_row { "row" } else { "col" };
        let config = json!({"structure": "nm", "n": n, "m": m, "axis": axis, "pad": true});
        let built = build(&config, n_in, n_out, 0, Some(&dense)).unwrap();
        let pattern = pattern(&*built);
        let mut ones = vec![0; pattern.n_out_ext * pattern.n_in_ext / m];
        for &(row, col) in &pattern.positions {
            let (row, col) = (row as usize, col as usize);
            let group = if by_row {
                row * (pattern.n_in_ext / m) + col / m
            } else {
                col * (pattern.n_out_ext / m) + row / m
            };
            ones[group] += 1;
        }
        prop_assert!(ones.iter().all(|&ones| ones == n), "{:?}", ones);
        // Whole groups by a stable sort, the definition of the rule.
        let mask = pattern.mask();
        let (lines, along) = if by_row { (n_out, n_in) } else { (n_in, n_out) };
        for line in 0..lines {
            for start in (0..along / m).map(|group| group * m) {
                let at = |o: usize| if by_row { line * n_in + start + o } else { (start + o) * n_in + line };
                let mut order: Vec<usize> = (0..m).collect();
                order.sort_by(|&a, &b| dense[at(a)].abs().total_cmp(&dense[at(b)].abs()));
                prop_assert!(order.iter().enumerate().all(|(rank, &o)| mask[at(o)] == (rank >= m - n)));
            }
        }
    }

    #[test]
    fn groups_along_outputs_are_those_along_inputs_of_the_transpose(
        n_in in sizes(), n_out in sizes(), m in 1usize..9, n in 1usize..9, tied: bool, seed: u64,
    ) {
        let n = n.min(m);
        let dense: Vec<f32> =
            uniform(seed, n_in * n_out).iter().map(|&v| if tied { (2.0 * v).round() } else { v }).collect();
        let transposed: Vec<f32> = (0..n_in * n_out).map(|at| dense[at % n_out * n_in + at / n_out]).collect();
        let config = |axis: &str| json!({"structure": "nm", "n": n, "m": m, "axis": axis, "pad": true});
        let col = build(&config("col"), n_in, n_out, 0, Some(&dense)).unwrap();
        let row = build(&config("row"), n_out, n_in, 0, Some(&transposed)).unwrap();
        let (col_mask, row_mask) = (pattern(&*col).mask(), pattern(&*row).mask());
        prop_assert!((0..n_in * n_out).all(|at| col_mask[at] == row_mask[at % n_in * n_out + at / n_in]));
        prop_assert_eq!(col.buffers(), row.buffers());
    }

    #[test]
    fn a_budget_is_kept_and_used(
        n_in in sizes(), n_out in sizes(), scale in 1usize..5, block in 1usize..9, share in 0.05..=0.9f64,
        fraction in 0.05..=1.5f64, gate in prop::sample::select(vec!["learned", "fixed", "plain"]), shuffle: bool,
    ) {
        let (n_in, n_out) = (n_in * scale, n_out * scale);
        let keys = |key: Value| {
            let mut config = json!({
                "structure": "pixelfly", "block": block, "gate": gate, "shuffle": shuffle, "pad": true,
            });
            config.as_object_mut().unwrap().extend(key.as_object().unwrap().clone());
            config
        };
        let budget = (fraction * (n_in * n_out) as f64) as usize;
        let config = keys(json!({"budget": budget, "low_rank_share": share}));
        let built = match build(&config, n_in, n_out, 0, None) {
            Ok(built) => built,
            Err(StructureError::Budget { budget: got, least, .. }) => {
                prop_assert!(got == budget && least > budget);
                let config = keys(json!({"budget": least, "low_rank_share": share}));
                prop_assert!(build(&config, n_in, n_out, 0, None).unwrap().counts().parameters <= least);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert!(built.counts().parameters <= budget, "{} of {}", built.counts().parameters, budget);
        // Neither part could be larger.
        let resolved = built.config();
        let counts: Vec<usize> = built.params().iter().map(|spec| spec.count()).collect();
        let weights = budget as f64 - counts[3..].iter().sum::<usize>() as f64;
        let (most, rank) = (n_in.min(n_out), resolved["rank"].as_u64().unwrap() as usize);
        let next = rank + block.min(most);
        prop_assert_eq!(counts[1] + counts[2], rank * (n_in + n_out));
        prop_assert!(rank == most || (next * (n_in + n_out)) as f64 > share * weights || next > most);
        for log in 1..=12 {
            let size = 1usize << log;
            if log > 1 && size > most {
                break;
            }
            for n_factors in 1..=log {
                let other = keys(json!({"butterfly_size": size, "n_factors": n_factors, "rank": 1}));
                let other = build(&other, n_in, n_out, 0, None).unwrap().params()[0].count();
                prop_assert!(
                    other <= counts[0] || other as f64 > (1.0 - share) * weights,
                    "({}, {}) has {} values, {} has {}", size, n_factors, other, &resolved, counts[0]
                );
                if other == counts[0] {
                    prop_assert!(n_factors <= resolved["n_factors"].as_u64().unwrap() as usize);
                }
            }
        }
    }
}
