//! Transforms against their direct sums, textbook matrices, and sizes that do not fit.

use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};

use super::*;

fn of(kind: &str, normalized: bool, n_in: usize, n_out: usize) -> Box<dyn Structure> {
    let config = json!({"structure": NAME, "kind": kind, "normalized": normalized});
    crate::build(&config, n_in, n_out, 0, None).unwrap()
}

fn run(transform: &Transform, x: &[f64]) -> Vec<f64> {
    let values = transform.exact();
    let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
    let mut y = x.to_vec();
    y.resize(transform.chain.n_in_ext, 0.0);
    let mut y = transform.chain.links.iter().fold(y, |y, link| link.apply(&values, &y));
    y.truncate(transform.n_out());
    // The definition at these values agrees far within what the direct formula is compared with.
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let bound = rounding(transform, norm);
    assert_near(&transform.apply(&values, x), &y, &vec![bound; y.len()], "definition");
    y
}

/// What one output may be off after log2 n factors, each orthogonal up to its scale: at most 16 roundings a
/// factor and diagonal, on numbers of at most the length of the result, itself at most the norm of the map
/// times that of x.
fn rounding(transform: &Transform, x: f64) -> f64 {
    let n = transform.n as f64;
    let norm = match transform.kind {
        TransformKind::Convolution => {
            2.0 * n.sqrt() * transform.kernel.iter().map(|k| k * k).sum::<f64>().sqrt()
        }
        _ if transform.normalized => 1.0,
        TransformKind::Fft | TransformKind::Hadamard => n.sqrt(),
        TransformKind::Ifft => 1.0 / n.sqrt(),
        _ => 2.0 * n.sqrt(),
    };
    gamma_of(16 * (transform.steps.len() + 3), UNIT_F64) * norm * x
}

/// A sum in pairs, so that the error is log2 n roundings.
fn pairwise(terms: &[f64]) -> f64 {
    match terms.len() {
        0 => 0.0,
        1 => terms[0],
        len => pairwise(&terms[..len / 2]) + pairwise(&terms[len / 2..]),
    }
}

/// Cosines of the multiples of 2π / 8n.
struct Turns(Vec<f64>);

impl Turns {
    fn new(n: usize) -> Self {
        Self((0..8 * n).map(|i| (2.0 * PI * i as f64 / (8 * n) as f64).cos()).collect())
    }

    /// cos(2π · turns / of), the fraction reduced exactly.
    fn cos(&self, turns: usize, of: usize) -> f64 {
        self.0[turns * (self.0.len() / of) % self.0.len()]
    }

    fn sin(&self, turns: usize, of: usize) -> f64 {
        let quarter = self.0.len() / 4;
        self.0[(turns * (self.0.len() / of) + 3 * quarter) % self.0.len()]
    }
}

/// `W[k, j]` of the real kinds, without scaling to equal lengths.
fn entry(kind: TransformKind, turns: &Turns, n: usize, k: usize, j: usize) -> f64 {
    match kind {
        TransformKind::Dct2 => 2.0 * turns.cos(k * (2 * j + 1), 4 * n),
        TransformKind::Dct3 if j == 0 => 1.0,
        TransformKind::Dct3 => 2.0 * turns.cos(j * (2 * k + 1), 4 * n),
        TransformKind::Dct4 => 2.0 * turns.cos((2 * k + 1) * (2 * j + 1), 8 * n),
        TransformKind::Dst2 => 2.0 * turns.sin((k + 1) * (2 * j + 1), 4 * n),
        TransformKind::Dst4 => 2.0 * turns.sin((2 * k + 1) * (2 * j + 1), 8 * n),
        _ => {
            if (k & j).count_ones().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            }
        }
    }
}

/// The direct sums, and for each the sum of its terms' magnitudes.
fn direct(kind: TransformKind, normalized: bool, x: &[f64]) -> (Vec<f64>, f64) {
    let complex = kind.is_complex();
    let n = if complex { x.len() / 2 } else { x.len() };
    let (root, turns) = ((n as f64).sqrt(), Turns::new(n));
    let scale = |k: usize| match kind {
        TransformKind::Fft | TransformKind::Hadamard => {
            if normalized {
                1.0 / root
            } else {
                1.0
            }
        }
        TransformKind::Ifft => {
            if normalized {
                1.0 / root
            } else {
                1.0 / n as f64
            }
        }
        _ if !normalized => 1.0,
        TransformKind::Dct2 if k == 0 => 0.5 / root,
        TransformKind::Dst2 if k == n - 1 => 0.5 / root,
        _ => FRAC_1_SQRT_2 / root,
    };
    let mut y = Vec::new();
    for k in 0..n {
        if complex {
            let turn = |j: usize| {
                (
                    turns.cos(j * k, n),
                    if kind == TransformKind::Fft { -turns.sin(j * k, n) } else { turns.sin(j * k, n) },
                )
            };
            let terms = |part: usize| -> Vec<f64> {
                let term = |j: usize| match (turn(j), part) {
                    ((c, s), 0) => [c * x[2 * j], -s * x[2 * j + 1]],
                    ((c, s), _) => [s * x[2 * j], c * x[2 * j + 1]],
                };
                (0..n).flat_map(term).collect()
            };
            y.extend([0, 1].map(|part| scale(k) * pairwise(&terms(part))));
            continue;
        }
        let first = |j: usize| {
            if normalized && kind == TransformKind::Dct3 && j == 0 { SQRT_2 } else { 1.0 }
        };
        let terms: Vec<f64> = (0..n).map(|j| first(j) * entry(kind, &turns, n, k, j) * x[j]).collect();
        y.push(scale(k) * pairwise(&terms));
    }
    let most = (0..n).map(scale).fold(0.0, f64::max) * 2.0;
    (y, most * x.iter().map(|x| x.abs()).sum::<f64>())
}

#[test]
fn initial_values_are_the_transforms() {
    for log in 1..=10 {
        let n = 1 << log;
        for (name, kind) in KINDS.into_iter().filter(|(_, kind)| *kind != TransformKind::Convolution) {
            for normalized in [true, false] {
                let size = if kind.is_complex() { 2 * n } else { n };
                let transform = Transform::new(kind, size, size, normalized, Vec::new()).unwrap();
                let x = uniform_f64(n as u64, size);
                let (expected, magnitude) = direct(kind, normalized, &x);
                let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                // log2 n roundings of the sum, and a few of each term.
                let bound = rounding(&transform, norm) + gamma_of(log + 8, UNIT_F64) * magnitude;
                assert!(bound < 1e-10, "{name} {n}: {bound:e}");
                let what = format!("{name} of {n}");
                assert_near(&run(&transform, &x), &expected, &vec![bound; size], &what);
            }
        }
    }
}

#[test]
fn a_convolution_is_circular_at_any_size() {
    for n in (1usize..20).chain([31, 64, 100, 127, 512]) {
        let kernel = uniform_f64(n as u64, n.div_ceil(2).max(n.min(5)));
        let x = uniform_f64(n as u64 + 1, n);
        for normalized in [true, false] {
            let kind = TransformKind::Convolution;
            let transform = Transform::new(kind, n, n, normalized, kernel.clone()).unwrap();
            let terms = |k: usize| -> Vec<f64> {
                (0..n).filter_map(|j| Some(kernel.get((n + k - j) % n)? * x[j])).collect()
            };
            let expected: Vec<f64> = (0..n).map(|k| pairwise(&terms(k))).collect();
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let bound =
                rounding(&transform, norm) + gamma_of(16, UNIT_F64) * x.iter().map(|x| x.abs()).sum::<f64>();
            assert_near(&run(&transform, &x), &expected, &vec![bound; n], &format!("convolution of {n}"));
        }
    }
    let default = of("convolution", true, 6, 6);
    let Form::Chain(chain) = default.form() else { panic!() };
    assert!(chain.links.iter().all(|link| matches!(link, Link::Blocks { .. })), "nothing is permuted");
    assert_eq!(chain.n_in_ext, 2 * 16);
}

#[test]
fn small_matrices_are_the_textbooks() {
    let dense = |kind: &str, n_in, n_out| {
        let built = of(kind, false, n_in, n_out);
        let values: Vec<Vec<f64>> = built
            .init(Init::TruncNormal { std: 1.0 }, &mut Rng::new(0))
            .into_iter()
            .map(|values| values.into_iter().map(f64::from).collect())
            .collect();
        let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
        // Exact values here are whole; the twiddles' are rounded to f32.
        built.to_dense(&values).unwrap().into_iter().map(|w| (w * 1e6).round() / 1e6).collect::<Vec<f64>>()
    };
    #[rustfmt::skip]
    assert_eq!(dense("hadamard", 4, 4), [
        1., 1., 1., 1.,   1., -1., 1., -1.,   1., 1., -1., -1.,   1., -1., -1., 1.,
    ]);
    // [1, 1], [1, −1] on pairs.
    #[rustfmt::skip]
    assert_eq!(dense("fft", 4, 4), [
        1., 0., 1., 0.,   0., 1., 0., 1.,   1., 0., -1., 0.,   0., 1., 0., -1.,
    ]);
    // Three inputs of four, two outputs.
    assert_eq!(dense("hadamard", 3, 2), [1., 1., 1., 1., -1., 1.]);
    let order: Vec<usize> = (0..8).map(|m| even_then_odd(m, 8)).collect();
    assert_eq!(order, [0, 2, 4, 6, 7, 5, 3, 1]);
    let order: Vec<usize> = (0..8).map(|m| reversed(m, 8)).collect();
    assert_eq!(order, [0, 4, 2, 6, 1, 5, 3, 7]);
}

#[test]
fn costs_are_those_of_the_factors() {
    let counts = |kind| of(kind, true, 1024, 1024).counts();
    assert_eq!((counts("hadamard").parameters, counts("hadamard").macs), (2 * 1024 * 10, 2 * 1024 * 10));
    // 512 complex points.
    assert_eq!((counts("fft").parameters, counts("fft").macs), (4 * 512 * 9, 8 * 512 * 9));
    assert_eq!(counts("dct2").parameters, 4 * 1024 * 10 + 2 * 1024);
    assert_eq!(counts("dct4").macs, 8 * 1024 * 10 + 4 * 1024);
    assert_eq!(counts("convolution").parameters, 2 * 4 * 1024 * 10 + 2 * 1024);
}

#[test]
fn sizes_that_do_not_fit_are_errors_without_pad() {
    let error = |config: Value, n_in, n_out| crate::build(&config, n_in, n_out, 0, None).unwrap_err();
    for (kind, n_in, n_out, size) in [("dct2", 12, 16, 16), ("hadamard", 8, 16, 16), ("fft", 2, 2, 4)] {
        let error = error(json!({"structure": NAME, "kind": kind, "pad": false}), n_in, n_out);
        assert!(matches!(error, StructureError::Indivisible { padded, .. } if padded == size), "{error}");
    }
    let convolution = json!({"structure": NAME, "kind": "convolution", "pad": false});
    let expected = StructureError::FactorShape {
        structure: NAME,
        what: "n_out, which is n_in without `pad`,",
        expected: 5,
        got: 6,
    };
    assert_eq!(error(convolution.clone(), 5, 6), expected);
    assert!(crate::build(&convolution, 5, 5, 0, None).is_ok());
    let kernel =
        |kernel: Value| error(json!({"structure": NAME, "kind": "convolution", "kernel": kernel}), 2, 2);
    for wrong in [json!(1), json!(["1"])] {
        assert!(matches!(kernel(wrong.clone()), StructureError::WrongType { .. }), "{wrong}");
    }
    assert!(matches!(kernel(json!([1e10])), StructureError::OutOfRange { key: "kernel", .. }));
    for (wrong, expected, got) in [(json!([]), 1, 0), (json!([1, 2, 3]), 2, 3)] {
        let what = "the number of kernel values";
        let shape = StructureError::FactorShape { structure: NAME, what, expected, got };
        assert_eq!(kernel(wrong), shape);
    }
    let conflict = error(json!({"structure": NAME, "kernel": [1]}), 4, 4);
    assert!(matches!(conflict, StructureError::Conflict { key: "kernel", .. }), "{conflict}");
}
