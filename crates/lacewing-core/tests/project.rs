//! Projections: what lies in a structure comes back, and nothing near an optimum is better.

use lacewing_core::chains::{Monarch, MonarchFactors};
use lacewing_core::project::{Moment, monarch_complex};
use lacewing_core::{Form, Projection, Rng, Structure, Target, build, project, structures};
use lacewing_testkit::{UNIT_F64, gamma_of, uniform_f64};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The chains whose projection is a closed form. The others go by their form, an iteration with tests of its own.
const CHAINS: [&str; 3] = ["block_diagonal", "low_rank", "monarch"];

/// Whether the projection, for a target with a second moment or without, is a closed form: sums alternate, and
/// with a moment Monarch's slices depend on each other.
fn is_closed(structure: &dyn Structure, weighted: bool) -> bool {
    match structure.form() {
        Form::Dense | Form::Pattern(_) => true,
        Form::Chain(_) => CHAINS.contains(&structure.name()) && !(weighted && structure.name() == "monarch"),
        Form::Sum(_) => false,
    }
}

/// Every sample of the tables whose projection these tests are about.
fn samples() -> Vec<Box<dyn Structure>> {
    let samples = structures().flat_map(|kind| (kind.samples)());
    let covered = |sample: &dyn Structure| match sample.form() {
        Form::Chain(_) => CHAINS.contains(&sample.name()),
        Form::Sum(sum) => is_closed(&*sum.a, false) && is_closed(&*sum.b, false),
        Form::Dense | Form::Pattern(_) => true,
    };
    samples.filter(|sample| covered(&**sample)).collect()
}

fn normals(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal()).collect()
}

/// The second moment of `rows` random rows whose inputs are correlated.
fn moment(n: usize, rows: usize, seed: u64) -> Vec<f64> {
    let mut moment = Moment::new(n);
    for row in normals(n * rows, seed).chunks_exact(n) {
        let near: Vec<f32> = (0..n).map(|i| (row[i] + 0.7 * row[(i + 1) % n]) as f32).collect();
        moment.add(&near);
    }
    moment.mean()
}

fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
    params.iter().map(Vec::as_slice).collect()
}

fn seeded_params(structure: &dyn Structure, seed: u64) -> Vec<Vec<f64>> {
    let specs = structure.params();
    specs.iter().enumerate().map(|(i, spec)| uniform_f64(seed + i as u64, spec.count())).collect()
}

/// `W`, column by column, whatever the structure: a projection makes every gate constant.
fn dense(structure: &dyn Structure, params: &[Vec<f64>]) -> Vec<f64> {
    let (n_out, n_in) = (structure.n_out(), structure.n_in());
    let mut dense = vec![0.0; n_out * n_in];
    for col in 0..n_in {
        let mut x = vec![0.0; n_in];
        x[col] = 1.0;
        for (row, y) in structure.apply(&slices(params), &x).into_iter().enumerate() {
            dense[row * n_in + col] = y;
        }
    }
    dense
}

/// Both errors by their definitions.
fn errors(target: &Target<'_>, approximation: &[f64]) -> (f64, Option<f64>) {
    let n = target.n_in;
    let difference: Vec<f64> = target.weight.iter().zip(approximation).map(|(w, a)| w - a).collect();
    let norm = |w: &[f64]| w.iter().map(|v| v * v).sum::<f64>().sqrt();
    let energy = |w: &[f64], moment: &[f64]| {
        let form = |row: &[f64]| (0..n * n).map(|at| row[at / n] * moment[at] * row[at % n]).sum::<f64>();
        w.chunks_exact(n).map(form).sum::<f64>().max(0.0).sqrt()
    };
    let relative = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
    let output =
        target.moment.map(|moment| relative(energy(&difference, moment), energy(target.weight, moment)));
    (relative(norm(&difference), norm(target.weight)), output)
}

/// How far rounding may take the square of an output error: `γ ‖D‖² tr M` relative to the energy of W's
/// outputs, for cancelling quadratic forms of n² terms. Large where M is near singular and the weights with it.
fn noise(target: &Target<'_>, approximation: &[f64]) -> f64 {
    let (n, Some(moment)) = (target.n_in, target.moment) else { return 1e-14 };
    let difference = target.weight.iter().zip(approximation).map(|(w, a)| (w - a).powi(2)).sum::<f64>();
    let trace: f64 = (0..n).map(|i| moment[i * n + i]).sum();
    let form = |row: &[f64]| (0..n * n).map(|at| row[at / n] * moment[at] * row[at % n]).sum::<f64>();
    let energy: f64 = target.weight.chunks_exact(n).map(form).sum();
    1e-14 + 4.0 * gamma_of(n * n + 8, UNIT_F64) * difference * trace / energy
}

/// The error that the projection makes least.
fn objective(projection: &Projection) -> f64 {
    projection.output_error.unwrap_or(projection.error)
}

/// What every projection must hold, with the structure's name in the message.
fn check(structure: &dyn Structure, seed: u64) {
    let (n_out, n_in) = (structure.n_out(), structure.n_in());
    let what = format!("{} {n_in} to {n_out}", structure.config());
    let moments =
        [None, Some(moment(n_in, 3 * n_in + 5, seed)), Some(moment(n_in, n_in.div_ceil(2), seed + 1))];
    let any = normals(n_out * n_in, seed + 2);
    for (at, moment) in moments.iter().enumerate() {
        let full_rank = at < 2;
        let with_moment = |weight| Target { n_out, n_in, weight, moment: moment.as_deref() };
        let target = with_moment(&any);
        let projection = project(structure, &target);
        let lengths: Vec<usize> = projection.params.iter().map(Vec::len).collect();
        assert_eq!(lengths, structure.params().iter().map(|spec| spec.count()).collect::<Vec<_>>(), "{what}");
        let near = dense(structure, &projection.params);
        let (error, output_error) = errors(&target, &near);
        let slack = noise(&target, &near);
        let agree = |a: f64, b: f64| (a * a - b * b).abs() <= slack * (1.0 + a * a);
        assert!(agree(projection.error, error), "{what}: {projection:?} {error}");
        assert_eq!(projection.output_error.is_some(), output_error.is_some());
        if let (Some(reported), Some(output_error)) = (projection.output_error, output_error) {
            assert!(agree(reported, output_error), "{what}: {reported} {output_error}");
        }
        assert!(objective(&projection).powi(2) <= 1.0 + slack, "{what}, moment {at}: {projection:?}");
        if matches!(structure.form(), Form::Sum(_)) {
            continue;
        }
        // A matrix of this structure, random or found just now, comes back.
        let inside = dense(structure, &seeded_params(structure, seed));
        for weight in [&inside, &near] {
            let again = project(structure, &with_moment(weight));
            assert!(objective(&again) < 1e-10, "{what}, moment {at}: {}", objective(&again));
            if full_rank {
                assert!(again.error < 1e-10, "{what}, moment {at}: {}", again.error);
            }
        }
        if is_closed(structure, moment.is_some()) {
            for (scale, seed) in [(0.3, 0), (1e-2, 1), (1e-3, 2), (1e-3, 3)] {
                let mut params = projection.params.clone();
                let mut rng = Rng::new(seed);
                params.iter_mut().flatten().for_each(|value| *value += scale * rng.normal());
                let moved = dense(structure, &params);
                let slack = slack + noise(&target, &moved);
                let (error, output_error) = errors(&target, &moved);
                let moved = output_error.unwrap_or(error);
                assert!(
                    moved * moved >= objective(&projection).powi(2) - slack,
                    "{what}, moment {at}: {moved} below {}",
                    objective(&projection)
                );
            }
        }
    }
}

#[test]
fn every_sample_is_projected_to_its_optimum() {
    let names: Vec<&str> = samples().iter().map(|sample| sample.name()).collect();
    for name in ["dense", "unstructured", "pixelfly"].iter().chain(&CHAINS) {
        assert!(names.contains(name), "{name}");
    }
    samples().iter().for_each(|sample| check(&**sample, 1));
}

fn configs() -> impl Strategy<Value = Value> {
    let block = (1usize..5, 1usize..5);
    prop_oneof![
        (0.1..=1.0f64).prop_map(|density| json!({"structure": "unstructured", "density": density})),
        (0.1..=1.0f64, block).prop_map(|(density, (rows, cols))| json!({
            "structure": "block_sparse", "density": density, "block": [rows, cols], "pad": true,
        })),
        (1usize..6, 1usize..6, prop_oneof![Just("row"), Just("col")]).prop_map(
            |(m, n, axis)| json!({"structure": "nm", "n": n.min(m), "m": m, "axis": axis, "pad": true})
        ),
        (1u32..4, 1usize..5, any::<bool>()).prop_map(|(log, block, shuffle)| json!({
            "structure": "flat_butterfly", "butterfly_size": 1 << log, "n_factors": log, "block": block,
            "shuffle": shuffle, "pad": true,
        })),
        (1usize..7, any::<bool>()).prop_map(|(blocks, shuffle)| json!({
            "structure": "block_diagonal", "blocks": blocks, "shuffle": shuffle, "pad": true,
        })),
        (1usize..7).prop_map(|blocks| json!({"structure": "monarch", "blocks": blocks, "pad": true})),
        (1usize..7).prop_map(|rank| json!({"structure": "low_rank", "rank": rank})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn any_shape_is_projected_to_its_optimum(
        config in configs(), n_in in 1usize..20, n_out in 1usize..20, seed in 0u64..1000,
    ) {
        // A size of 1 to 6 may exceed the layer's; that is an error of its own.
        if let Ok(built) = build(&config, n_in, n_out, seed, None) {
            check(&*built, seed);
        }
    }

    #[test]
    fn any_two_factors_are_projected_to_their_optimum(
        k in 1usize..5, p in 1usize..5, l in 1usize..5, s in 1usize..5, width in 1usize..4,
        cut in (0usize..3, 0usize..3),
    ) {
        // k q = l r holds for q = width · l and r = width · k, and also with both divided by what k and l share.
        let shared = (1..=k.min(l)).rev().find(|d| k % d == 0 && l % d == 0).unwrap();
        let factors = MonarchFactors { k, q: width * l / shared, p, l, s, r: width * k / shared };
        let (n_out, n_in) = ((l * s).saturating_sub(cut.0).max(1), (k * p).saturating_sub(cut.1).max(1));
        check(&Monarch::new(factors, n_out, n_in).unwrap(), 7);
    }
}

/// Layers with blocks, and the relative error of a matrix of normals. That of the small ones varies from draw
/// to draw, so theirs is the mean of 2000 draws by NumPy, whose `svd` decomposed the slices.
const LAYERS: [(usize, usize, usize, f64); 6] = [
    (32, 64, 4, 0.6964),
    (64, 32, 4, 0.6964),
    (12, 20, 4, 0.7109),
    (24, 24, 4, 0.6202),
    (784, 392, 15, 0.911),
    (768, 3072, 8, 0.873),
];

#[test]
fn random_monarch_matrices_are_recovered_and_normals_keep_the_reference_error() {
    for (n_in, n_out, blocks, expected) in LAYERS {
        let config = json!({"structure": "monarch", "blocks": blocks, "pad": true});
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let params = seeded_params(&*built, 3);
        let weight = built.to_dense(&slices(&params)).unwrap();
        let error = project(&*built, &Target::new(n_out, n_in, &weight)).error;
        assert!(error < 1e-12, "{n_in} to {n_out}: {error:e}");
        let error = |seed| {
            let weight = normals(n_out * n_in, seed);
            project(&*built, &Target::new(n_out, n_in, &weight)).error
        };
        // One draw deviates by 0.025 at most, the mean of 200 by 0.002.
        let seeds = if n_in < 100 { 200 } else { 1 };
        let error = (0..seeds).map(error).sum::<f64>() / seeds as f64;
        assert!((error - expected).abs() < 0.01, "{n_in} to {n_out}: {error}, expected {expected}");
    }
}

#[test]
fn the_reference_matrix_of_12_has_the_reference_error() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/randn12.json")).unwrap();
    let weight: Vec<f64> = serde_json::from_value(fixture["values"].clone()).unwrap();
    let expected = 0.574_501_406;
    let factors = [[4, 3, 3], [3, 4, 4]];
    let built = build(&json!({"structure": "monarch", "factors": factors}), 12, 12, 0, None).unwrap();
    let projection = project(&*built, &Target::new(12, 12, &weight));
    // The reference gives nine digits.
    assert!((projection.error - expected).abs() < 0.5e-9, "{}", projection.error);
    for sizes in [None, Some((4, 3))] {
        let complex = monarch_complex(&weight, &[0.0; 144], 12, sizes);
        let MonarchFactors { k, q, p, l, s, r } = complex.factors;
        assert_eq!([[k, q, p], [l, s, r]], factors);
        let dense = complex.to_dense();
        let error = Target::new(12, 12, &weight).error(&dense.re);
        assert!((error - expected).abs() < 0.5e-9, "{error}");
        assert!(dense.im.iter().all(|im| im.abs() < 1e-15));
    }
}

#[test]
fn the_permuted_dft_is_monarch() {
    for n in [15, 36, 196, 27, 48, 42, 85, 168, 512] {
        let (large, small) = {
            let small = (1..=n).filter(|s| n % s == 0 && s * s <= n).max().unwrap();
            (n / small, small)
        };
        // Column j · small + i is the DFT's column i · large + j.
        let angle = |at: usize| {
            let (row, col) = (at / n, at % n);
            let frequency = row * (col % small * large + col / small) % n;
            -std::f64::consts::TAU * frequency as f64 / n as f64
        };
        let re: Vec<f64> = (0..n * n).map(|at| angle(at).cos()).collect();
        let im: Vec<f64> = (0..n * n).map(|at| angle(at).sin()).collect();
        let monarch = monarch_complex(&re, &im, n, None);
        assert_eq!((monarch.factors.k, monarch.factors.l), (large, small));
        let dense = monarch.to_dense();
        let off = (0..n * n).map(|at| (dense.re[at] - re[at]).hypot(dense.im[at] - im[at]));
        let worst = off.fold(0.0, f64::max);
        assert!(worst < 1e-12, "{n}: {worst:e}");
    }
}

#[test]
fn a_complex_matrix_with_general_blocks_is_at_its_optimum() {
    // Blocks of 2 and 3 of a layer of 6: slices [2, 3] of rank 1, so the error is that of 2 × 2 Gram matrices.
    let (n, sizes) = (6, (2, 3));
    let (re, im) = (normals(n * n, 1), normals(n * n, 2));
    let monarch = monarch_complex(&re, &im, n, Some(sizes));
    let dense = monarch.to_dense();
    let off =
        (0..n * n).map(|at| (dense.re[at] - re[at]).powi(2) + (dense.im[at] - im[at]).powi(2)).sum::<f64>();
    let mut expected = 0.0;
    for lambda in 0..3 {
        for kappa in 0..2 {
            let entry = |sigma: usize, i: usize| (sigma * 3 + lambda) * n + kappa * 3 + i;
            let gram = |a: usize, b: usize| -> (f64, f64) {
                let terms = (0..3).map(|i| (entry(a, i), entry(b, i)));
                terms.fold((0.0, 0.0), |(x, y), (a, b)| {
                    (x + re[a] * re[b] + im[a] * im[b], y + im[a] * re[b] - re[a] * im[b])
                })
            };
            let (a, d, b) = (gram(0, 0).0, gram(1, 1).0, gram(0, 1));
            let root = ((a - d).powi(2) + 4.0 * (b.0 * b.0 + b.1 * b.1)).sqrt();
            expected += (a + d - root) / 2.0;
        }
    }
    assert!((off - expected).abs() < 1e-12 * expected, "{off} {expected}");
}

/// With M = D² diagonal, `‖(W − Ŵ) D‖` is the plain problem of `W D`, since D keeps every family here as it is.
#[test]
fn a_diagonal_moment_is_a_scaling_of_the_inputs() {
    let (n_in, n_out) = (15, 22);
    let scales: Vec<f64> = (0..n_in).map(|i| 0.2 + (i * 7 % 11) as f64).collect();
    let moment: Vec<f64> = (0..n_in * n_in)
        .map(|at| if at / n_in == at % n_in { scales[at % n_in].powi(2) } else { 0.0 })
        .collect();
    let plain = normals(n_out * n_in, 4);
    let scaled: Vec<f64> = plain.iter().enumerate().map(|(at, w)| w / scales[at % n_in]).collect();
    for config in [
        json!({"structure": "low_rank", "rank": 4}),
        json!({"structure": "monarch", "blocks": 4, "pad": true}),
        json!({"structure": "monarch", "factors": [[5, 4, 3], [2, 11, 10]]}),
        json!({"structure": "block_diagonal", "blocks": 3, "shuffle": true, "pad": true}),
        json!({"structure": "unstructured", "density": 0.3}),
    ] {
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let expected = project(&*built, &Target::new(n_out, n_in, &plain));
        let got = project(&*built, &Target::new(n_out, n_in, &scaled).with_moment(&moment));
        let error = got.output_error.unwrap();
        assert!((error - expected.error).abs() < 1e-12, "{config}: {error} {}", expected.error);
        let expected = dense(&*built, &expected.params);
        for (at, got) in dense(&*built, &got.params).into_iter().enumerate() {
            assert!((got * scales[at % n_in] - expected[at]).abs() < 1e-9, "{config} {at}");
        }
    }
}

#[test]
fn a_second_moment_never_makes_the_outputs_worse() {
    for (n_in, n_out, seed) in [(12, 20, 1), (20, 12, 2), (23, 17, 3), (24, 24, 4)] {
        let weight = normals(n_out * n_in, seed);
        for rows in [4 * n_in, n_in / 2] {
            let moment = moment(n_in, rows, seed + 9);
            let target = Target::new(n_out, n_in, &weight);
            for config in [
                json!({"structure": "monarch", "blocks": 4, "pad": true}),
                json!({"structure": "low_rank", "rank": 3}),
                json!({"structure": "block_diagonal", "blocks": 3, "pad": true}),
                json!({"structure": "nm", "n": 2, "m": 4, "pad": true}),
                json!({"structure": "block_sparse", "block": 4, "density": 0.4, "pad": true}),
            ] {
                let built = build(&config, n_in, n_out, 0, None).unwrap();
                let blind = dense(&*built, &project(&*built, &target).params);
                let (_, before) = errors(&target.with_moment(&moment), &blind);
                let seeing = project(&*built, &target.with_moment(&moment));
                let (before, after) = (before.unwrap(), seeing.output_error.unwrap());
                assert!(after < before, "{config}: {before} to {after}");
                if built.name() != "monarch" {
                    continue;
                }
                // The second factor is at its optimum for the first.
                let mut params = seeing.params.clone();
                let mut rng = Rng::new(5);
                params[1].iter_mut().for_each(|value| *value += 1e-3 * rng.normal());
                let (_, moved) = errors(&target.with_moment(&moment), &dense(&*built, &params));
                assert!(moved.unwrap() >= after - 1e-12, "{moved:?} {after}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_come_out_and_end() {
    for sample in samples() {
        let (n_in, n_out) = (sample.n_in(), sample.n_out());
        for bad in [f64::NAN, f64::INFINITY] {
            let good = normals(n_out * n_in, 1);
            let moment = moment(n_in, 2 * n_in, 2);
            let weight = vec![bad; n_out * n_in];
            let projection = project(&*sample, &Target::new(n_out, n_in, &weight));
            assert!(projection.error.is_nan(), "{sample:?}: {projection:?}");
            let projection = project(&*sample, &Target::new(n_out, n_in, &weight).with_moment(&moment));
            assert!(!projection.output_error.unwrap().is_finite(), "{sample:?}");
            let moment = vec![bad; n_in * n_in];
            let projection = project(&*sample, &Target::new(n_out, n_in, &good).with_moment(&moment));
            assert!(!projection.output_error.unwrap().is_finite(), "{sample:?}");
        }
    }
}

#[test]
fn a_zero_matrix_has_error_zero() {
    for sample in samples() {
        let (n_in, n_out) = (sample.n_in(), sample.n_out());
        let weight = vec![0.0; n_out * n_in];
        let moment = vec![0.0; n_in * n_in];
        for target in
            [Target::new(n_out, n_in, &weight), Target::new(n_out, n_in, &weight).with_moment(&moment)]
        {
            let projection = project(&*sample, &target);
            assert_eq!((projection.error, projection.output_error.unwrap_or(0.0)), (0.0, 0.0), "{sample:?}");
        }
    }
}
