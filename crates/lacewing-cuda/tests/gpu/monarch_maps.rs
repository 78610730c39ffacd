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

/// Sums and how far they may be missed.
type Bounded = Vec<(f64, f64)>;

/// `Σ a b` by tensor cores in f32, `b` off by as much as stated; rounded to bf16 if `rounds`.
fn bounded_sum(terms: impl ExactSizeIterator<Item = (f64, (f64, f64))>, rounds: bool) -> (f64, f64) {
    let n = terms.len();
    let (mut value, mut magnitude, mut error) = (0.0, 0.0, 0.0);
    for (a, (b, off)) in terms {
        value += a * b;
        magnitude += (a * b).abs() + a.abs() * off;
        error += a.abs() * off;
    }
    error += gamma_of(n, 2.0 * UNIT_F32) * magnitude;
    (value, if rounds { error + UNIT_BF16 * (value.abs() + error) } else { error })
}

#[test]
fn gradients_of_a_monarch_map_agree_with_f64_and_have_the_same_bits_every_time() {
    const SIDE: usize = 128;
    const BLOCKS: usize = 32;
    let Some(device) = device() else { return };
    let factors = MonarchFactors { k: BLOCKS, q: SIDE, p: SIDE, l: BLOCKS, s: SIDE, r: SIDE };
    let plan = Plan::new(factors).expect("sizes that the kernel takes");
    let training = plan.training().expect("and trains");
    if !monarch::supported(&device) || !training.runs_on(&device).expect("kernels") {
        return eprintln!("skipped: no Hopper GPU with room for clusters of sixteen");
    }
    let (of, n) = (Type::Bf16, BLOCKS * SIDE);
    // A row, a part of a tile, tiles for a part of the thread blocks, and many for each.
    for rows in [1, 45, 300, 3000] {
        let [x, d_y] = [1, 2].map(|seed| values(of, seed, rows * n));
        let [first, second] = [3, 4].map(|seed| values(of, seed, n * SIDE));
        let bias = values(of, 5, n);
        let [x_here, d_y_here, first_here, second_here, bias_here] =
            [&x, &d_y, &first, &second, &bias].map(|values| upload(&device, of, values));
        let nan = |of, len: usize| upload(&device, of, &vec![f32::NAN; len]);
        let (y, plain, d_x) = (nan(of, rows * n), nan(of, rows * n), nan(of, rows * n));
        let [d_first, d_second] = [(); 2].map(|()| nan(Type::F32, n * SIDE));
        let kept = device.region(training.kept_bytes(rows)).expect("memory");
        let finish = Finish { bias: Some(&bias_here), activation: Activation::Identity };
        let operands = Operands { x: &x_here, first: &first_here, second: &second_here, y: &y, finish };
        training.forward(&device, rows, &operands, &kept).expect("forward");
        plan.run(&device, rows, &Operands { y: &plain, ..operands }).expect("the map");
        assert_eq!(
            download(&device, of, &y),
            download(&device, of, &plain),
            "{rows} rows, as without keeping"
        );
        let gradients = monarch::Gradients {
            d_y: &d_y_here,
            x: &x_here,
            first: &first_here,
            second: &second_here,
            kept: &kept,
            d_x: &d_x,
            d_first: Some((&d_first, false)),
            d_second: Some((&d_second, false)),
        };
        training.backward(&device, rows, &gradients).expect("backward");
        let got_x = download(&device, of, &d_x);
        let got = [&d_first, &d_second].map(|region| download(&device, Type::F32, region));

        // Again: the same bits, and added to what is there; one without the other.
        let d_x_again = nan(of, rows * n);
        let (first_only, second_only) = ((Some((&d_first, true)), None), (None, Some((&d_second, true))));
        for (d_first, d_second) in [first_only, second_only, (None, None)] {
            let again = monarch::Gradients { d_x: &d_x_again, d_first, d_second, ..gradients };
            training.backward(&device, rows, &again).expect("backward");
            assert_eq!(download(&device, of, &d_x_again), got_x, "{rows} rows");
        }
        for (region, got) in [&d_first, &d_second].into_iter().zip(&got) {
            let twice: Vec<f32> = got.iter().map(|v| v + v).collect();
            assert_eq!(download(&device, Type::F32, region), twice, "{rows} rows");
        }

        let [x, d_y, first, second] = [&x, &d_y, &first, &second].map(|values| widen(values));
        let exact = |v: f64| (v, 0.0);
        let u: Vec<Bounded> = (0..rows)
            .map(|row| {
                let x = &x[row * n..][..n];
                let u = |at: usize| {
                    let terms = (0..SIDE).map(|i| (first[at * SIDE + i], exact(x[at / SIDE * SIDE + i])));
                    bounded_sum(terms, true)
                };
                (0..n).map(u).collect()
            })
            .collect();
        let d_u: Vec<Bounded> = (0..rows)
            .map(|row| {
                let d_y = &d_y[row * n..][..n];
                let d_u = |at: usize| {
                    let (rho, lambda) = (at / BLOCKS, at % BLOCKS);
                    let weight = |sigma: usize| second[(lambda * SIDE + sigma) * SIDE + rho];
                    bounded_sum((0..SIDE).map(|s| (weight(s), exact(d_y[s * BLOCKS + lambda]))), true)
                };
                (0..n).map(d_u).collect()
            })
            .collect();
        for row in (0..rows).filter(|row| row % 97 == 0 || row + 40 > rows) {
            let d_x = |at: usize| {
                let (kappa, i) = (at / SIDE, at % SIDE);
                let terms =
                    (0..SIDE).map(|j| (first[(kappa * SIDE + j) * SIDE + i], d_u[row][kappa * SIDE + j]));
                bounded_sum(terms, true)
            };
            let (expected, bound): (Vec<f64>, Vec<f64>) = (0..n).map(d_x).unzip();
            assert_within(&got_x[row * n..][..n], &expected, &bound, &format!("d_x, row {row} of {rows}"));
        }
        for block in [0, 1, 13, 30, 31] {
            let d_first = |at: usize| {
                let (j, i) = (at / SIDE, at % SIDE);
                bounded_sum(
                    (0..rows).map(|row| (x[row * n + block * SIDE + i], d_u[row][block * SIDE + j])),
                    false,
                )
            };
            let d_second = |at: usize| {
                let (sigma, rho) = (at / SIDE, at % SIDE);
                let of_row =
                    |row: usize| (d_y[row * n + sigma * BLOCKS + block], u[row][rho * BLOCKS + block]);
                bounded_sum((0..rows).map(of_row), false)
            };
            let own = block * SIDE * SIDE..(block + 1) * SIDE * SIDE;
            let (expected, bound): (Vec<f64>, Vec<f64>) = (0..SIDE * SIDE).map(d_first).unzip();
            assert_within(&got[0][own.clone()], &expected, &bound, &format!("d_first {block}, {rows} rows"));
            let (expected, bound): (Vec<f64>, Vec<f64>) = (0..SIDE * SIDE).map(d_second).unzip();
            assert_within(&got[1][own], &expected, &bound, &format!("d_second {block}, {rows} rows"));
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
    assert!(plan.training().is_none(), "kernels for other sizes");
}
