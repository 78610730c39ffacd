//! Monarch maps in one launch.

use super::*;

/// The map in f64 and how far it may be missed: sums in f32 by tensor cores, what lies between and the result rounded.
fn monarch_oracle(
    factors: MonarchFactors,
    x: &[f64],
    [first, second]: [&[f64]; 2],
    bias: Option<&[f64]>,
    activation: Activation,
) -> (Vec<f64>, Vec<f64>) {
    let MonarchFactors { k, q, p, l, s, r } = factors;
    let (sum, unit) = (2.0 * UNIT_F32, UNIT_BF16);
    let (mut values, mut bounds) = (Vec::new(), Vec::new());
    for x in x.chunks(k * p) {
        let mid: Vec<(f64, f64)> = (0..k * q)
            .map(|at| {
                let terms = first[at * p..][..p].iter().zip(&x[at / q * p..]).map(|(w, x)| w * x);
                let (value, magnitude) = terms.fold((0.0, 0.0), |(v, m), term| (v + term, m + term.abs()));
                let error = gamma_of(p, sum) * magnitude;
                (value, error + unit * (value.abs() + error))
            })
            .collect();
        for at in 0..l * s {
            let (sigma, lambda) = (at / l, at % l);
            let bias = bias.map_or(0.0, |bias| bias[at]);
            let (mut value, mut magnitude, mut error) = (bias, bias.abs(), 0.0);
            for (rho, w) in second[(lambda * s + sigma) * r..][..r].iter().enumerate() {
                let (u, off) = mid[rho * l + lambda];
                value += w * u;
                magnitude += (w * u).abs() + w.abs() * off;
                error += w.abs() * off;
            }
            error += gamma_of(r + 1, sum) * magnitude;
            let (value, bound) = end(activation, value, error, Type::Bf16);
            values.push(value);
            bounds.push(bound);
        }
    }
    (values, bounds)
}

#[test]
fn a_fused_monarch_map_agrees_with_f64_at_tile_edges_and_has_the_same_bits_every_time() {
    let Some(device) = device() else { return };
    if !monarch::supported(&device) {
        return eprintln!("skipped: not a Hopper GPU");
    }
    let of = Type::Bf16;
    let equal = |n_in: usize, n_out: usize, blocks: usize| {
        let (p, s) = (n_in / blocks, n_out / blocks);
        MonarchFactors { k: blocks, q: p.min(s), p, l: blocks, s, r: p.min(s) }
    };
    let uneven = MonarchFactors { k: 4, q: 64, p: 96, l: 8, s: 64, r: 32 };
    for (factors, rows) in [
        (equal(1024, 1024, 32), 1),
        (equal(1024, 1024, 32), 257),
        (equal(1024, 1024, 32), 20_000),
        (equal(768, 3072, 8), 1),
        (equal(768, 3072, 8), 3000),
        (equal(768, 2304, 8), 300),
        (equal(3072, 768, 8), 64),
        (equal(3072, 768, 8), 5000),
        (equal(768, 768, 8), 2001),
        (equal(2048, 1024, 8), 130),
        (equal(256, 256, 8), 70),
        (equal(512, 2048, 8), 100),
        (equal(1024, 1024, 8), 65),
        (equal(2048, 2048, 16), 511),
        (equal(4096, 2048, 8), 130),
        // A row, a part of a tile, and as many tiles as a cluster of thread blocks has rooms for and more.
        (equal(4096, 4096, 32), 1),
        (equal(4096, 4096, 32), 45),
        (equal(4096, 4096, 32), 3000),
        // As many row tiles as the ring turns round more than once.
        (equal(1024, 512, 16), 40_000),
        (uneven, 1000),
    ] {
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let plan = Plan::new(factors).expect("sizes that the kernel takes");
        let x = values(of, 1, rows * k * p);
        let [first, second, bias] =
            [(2, k * q * p), (3, l * s * r), (4, l * s)].map(|(n, len)| values(of, n, len));
        let [x_here, first_here, second_here, bias_here] =
            [&x, &first, &second, &bias].map(|values| upload(&device, of, values));
        // Biases alone may lie anywhere.
        let odd = upload(&device, of, &[&[0.0], &bias[..]].concat()).slice(2, 2 * l * s);
        for (bias_here, activation) in [
            (None, Activation::Identity),
            (Some(&odd), Activation::Relu),
            (Some(&bias_here), Activation::Identity),
            (None, Activation::Relu),
            (Some(&bias_here), Activation::Gelu),
            (Some(&bias_here), Activation::GeluTanh),
        ] {
            let finish = Finish { bias: bias_here, activation };
            // Not a number where nothing was written.
            let y = upload(&device, of, &vec![f32::NAN; rows * l * s]);
            let operands = Operands { x: &x_here, first: &first_here, second: &second_here, y: &y, finish };
            plan.run(&device, rows, &operands).expect("the map");
            let got = download(&device, of, &y);
            assert!(got.iter().all(|v| v.is_finite()), "{factors:?} of {rows} rows leaves gaps");
            let again = upload(&device, of, &vec![f32::NAN; rows * l * s]);
            plan.run(&device, rows, &Operands { y: &again, ..operands }).expect("the map");
            assert_eq!(download(&device, of, &again), got, "{factors:?} of {rows} rows");
            // The first and the last rows: the oracle is slow.
            let ends = 0..rows.min(140);
            let shown = ends.clone().chain(rows.saturating_sub(140).max(ends.end)..rows);
            let bias = widen(&bias);
            for row in shown {
                let (expected, bound) = monarch_oracle(
                    factors,
                    &widen(&x[row * k * p..][..k * p]),
                    [&widen(&first), &widen(&second)],
                    bias_here.map(|_| &bias[..]),
                    activation,
                );
                let what = format!("{factors:?}, {activation:?}, row {row} of {rows}");
                assert_within(&got[row * l * s..][..l * s], &expected, &bound, &what);
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_a_monarch_map_are_refused_by_name() {
    let Some(device) = device() else { return };
    let factors = MonarchFactors { k: 8, q: 64, p: 64, l: 8, s: 64, r: 64 };
    let plan = Plan::new(factors).expect("sizes that the kernel takes");
    let region = |len: usize| device.region(2 * len).expect("memory");
    let (x, factor, y) = (region(32 * 512), region(8 * 64 * 64), region(31 * 512));
    let operands = Operands { x: &x, first: &factor, second: &factor, y: &y, finish: Finish::default() };
    match plan.run(&device, 32, &operands) {
        Err(CudaError::NoKernel { .. }) => assert!(!monarch::supported(&device)),
        Err(CudaError::OperandBytes { operand: "y", expected: 32_768, got: 31_744, .. }) => {}
        other => panic!("{other:?}"),
    }
}
