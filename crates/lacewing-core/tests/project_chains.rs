//! Dense matrices brought to chains: exact recovery of members, and errors that only fall.

use std::f64::consts::PI;

use lacewing_core::project::{butterfly_complex, hierarchical};
use lacewing_core::{
    Chain, Counts, Form, Gather, Init, Link, ParamSpec, Projection, Rng, Structure, Target, Weights, project,
};

/// A structure that is nothing but its chain.
#[derive(Debug)]
struct Bare {
    chain: Chain,
    sizes: Vec<usize>,
}

impl Bare {
    fn new(n_in: usize, n_out: usize, links: Vec<Link>) -> Self {
        let mut sizes = Vec::new();
        for link in &links {
            let (param, count) = match *link {
                Link::Blocks { weights: Weights::Param(param), groups, stride, q, p } => {
                    (param, groups * stride * q * p)
                }
                Link::Blocks { weights: Weights::Tied { param, ref gather }, .. } => (param, gather.n_in()),
                _ => continue,
            };
            if sizes.len() <= param {
                sizes.resize(param + 1, 0);
            }
            sizes[param] = count;
        }
        let (n_in_ext, n_out_ext) = (links[0].sizes().0, links[links.len() - 1].sizes().1);
        Bare { chain: Chain { n_in, n_in_ext, n_out_ext, n_out, links }, sizes }
    }

    fn random(&self, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = Rng::new(seed);
        self.sizes.iter().map(|&n| (0..n).map(|_| rng.normal() / 2f64.sqrt()).collect()).collect()
    }

    fn dense(&self, params: &[Vec<f64>]) -> Vec<f64> {
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        self.to_dense(&slices).unwrap()
    }

    fn project(&self, weight: &[f64], moment: Option<&[f64]>) -> Projection {
        let target = Target::new(self.chain.n_out, self.chain.n_in, weight);
        project(self, &moment.map_or(target, |moment| target.with_moment(moment)))
    }

    /// The error of the hierarchical factorization.
    fn hierarchical_error(&self, weight: &[f64]) -> f64 {
        let params = hierarchical(&self.chain, weight).expect("a chain it applies to");
        distance(weight, &self.dense(&params))
    }
}

impl Structure for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }
    fn n_in(&self) -> usize {
        self.chain.n_in
    }
    fn n_out(&self) -> usize {
        self.chain.n_out
    }
    fn params(&self) -> Vec<ParamSpec> {
        self.sizes.iter().enumerate().map(|(i, &n)| ParamSpec::new(&format!("w{i}"), &[n])).collect()
    }
    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }
    fn init(&self, _: Init, _: &mut Rng) -> Vec<Vec<f32>> {
        self.sizes.iter().map(|&n| vec![0.0; n]).collect()
    }
    fn bias_bound(&self) -> f64 {
        0.0
    }
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        let Chain { n_in, n_in_ext, n_out, ref links, .. } = self.chain;
        let mut dense = vec![0.0; n_out * n_in];
        for col in 0..n_in {
            let mut x = vec![0.0; n_in_ext];
            x[col] = 1.0;
            let y = links.iter().fold(x, |x, link| link.apply(params, &x));
            (0..n_out).for_each(|row| dense[row * n_in + col] = y[row]);
        }
        Some(dense)
    }
    fn counts(&self) -> Counts {
        let parameters = self.sizes.iter().sum();
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }
    fn config(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// `‖a − b‖ / ‖a‖`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    (squares / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

fn draw(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.normal()).collect()
}

/// The links of a butterfly of size n, `stacks` of them side by side; parameters from `param` on.
fn butterfly_links(n: usize, stacks: usize, increasing: bool, param: usize) -> Vec<Link> {
    let levels = n.ilog2() as usize;
    let stride = |k: usize| if increasing { 1 << k } else { n >> (k + 1) };
    (0..levels).map(|k| Link::strided(param + k, stacks * n / 2 / stride(k), stride(k), 2, 2)).collect()
}

fn butterfly(n_in: usize, n_out: usize, increasing: bool) -> Bare {
    let n = n_in.max(n_out).next_power_of_two().max(2);
    Bare::new(n_in, n_out, butterfly_links(n, 1, increasing, 0))
}

/// A deformable butterfly by its blocks (r, s) and the inputs beyond those of one chain of blocks.
fn debut(blocks: &[(usize, usize)], groups: usize) -> Bare {
    let mut n = groups * blocks.iter().map(|block| block.1).product::<usize>();
    let (n_in, mut stride, mut links) = (n, 1, Vec::new());
    for (param, &(r, s)) in blocks.iter().enumerate() {
        links.push(Link::strided(param, n / (s * stride), stride, r, s));
        n = n / s * r;
        stride *= r;
    }
    Bare::new(n_in, n, links)
}

/// The chain of the transposed matrix, which has decreasing strides.
fn transposed(bare: &Bare) -> Bare {
    let flip = |link: &Link| match *link {
        Link::Blocks { weights: Weights::Param(param), groups, stride, q, p } => {
            Link::strided(param, groups, stride, p, q)
        }
        ref link => link.clone(),
    };
    Bare::new(bare.chain.n_out, bare.chain.n_in, bare.chain.links.iter().rev().map(flip).collect())
}

fn bit_reversed(i: usize, n: usize) -> usize {
    (0..n.ilog2()).fold(0, |r, bit| (r << 1) | ((i >> bit) & 1))
}

#[test]
fn members_are_recovered() {
    let mut chains = Vec::new();
    for increasing in [true, false] {
        for (n_in, n_out) in
            [(2, 2), (4, 4), (8, 8), (32, 32), (256, 256), (200, 251), (7, 31), (13, 1), (1, 1)]
        {
            chains.push(butterfly(n_in, n_out, increasing));
        }
    }
    for bare in [
        debut(&[(2, 4), (3, 1)], 1),
        debut(&[(2, 2), (3, 2)], 3),
        debut(&[(8, 9), (2, 2), (2, 2), (1, 2)], 1),
        debut(&[(3, 6), (2, 2), (5, 1), (1, 4)], 2),
        debut(&[(5, 7)], 3),
        debut(&[(1, 7), (3, 1)], 1),
    ] {
        chains.push(transposed(&bare));
        chains.push(bare);
    }
    for (seed, bare) in chains.iter().enumerate() {
        let weight = bare.dense(&bare.random(seed as u64));
        let error = bare.hierarchical_error(&weight);
        assert!(error < 1e-10, "{error:e} for {:?}", bare.chain);
        let error = bare.project(&weight, None).error;
        assert!(error < 1e-10, "{error:e} for {:?}", bare.chain);
    }
}

#[test]
fn stacks_permutations_and_signs_at_the_ends_are_allowed() {
    let (n_in, n, stacks) = (13, 16, 3);
    for increasing in [true, false] {
        let copies: Vec<usize> = (0..stacks * n).map(|i| i % n).collect();
        let mut links = vec![Link::Gather(Gather::select(n, &copies))];
        links.extend(butterfly_links(n, stacks, increasing, 0));
        let bare = Bare::new(n_in, 41, links.clone());
        let weight = bare.dense(&bare.random(3));
        assert!(bare.hierarchical_error(&weight) < 1e-10);
        links.insert(1, Link::Transpose { batch: stacks, rows: 2, cols: 8 });
        let n_ext = stacks * n;
        links.push(Link::Gather(Gather::new(n_ext, n_ext, 2, |o, t| {
            (t == 1).then_some((n_ext - 1 - o, o % 3 == 0))
        })));
        let bare = Bare::new(n_in, 41, links);
        let weight = bare.dense(&bare.random(4));
        assert!(bare.hierarchical_error(&weight) < 1e-10);
        assert!(bare.project(&weight, None).error < 1e-10);
    }
}

#[test]
fn hadamard_of_256_is_recovered() {
    let n = 256;
    let sign = |at: usize| if ((at / n) & (at % n)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let weight: Vec<f64> = (0..n * n).map(sign).collect();
    for increasing in [true, false] {
        let error = butterfly(n, n, increasing).hierarchical_error(&weight);
        assert!(error < 1e-10, "{error:e}");
    }
}

/// The DFT matrix with its columns, or its rows, in bit-reversed order: real and imaginary part.
fn dft(n: usize, columns: bool) -> (Vec<f64>, Vec<f64>) {
    let angle = |at: usize| {
        let (k, j) = (at / n, at % n);
        let product = if columns { k * bit_reversed(j, n) } else { bit_reversed(k, n) * j };
        -2.0 * PI * (product % n) as f64 / n as f64
    };
    (0..n * n).map(|at| (angle(at).cos(), angle(at).sin())).unzip()
}

/// The product of complex factors, as a dense matrix.
fn product(factors: &[(Vec<f64>, Vec<f64>)], n: usize, increasing: bool) -> (Vec<f64>, Vec<f64>) {
    let (mut re, mut im) = (vec![0.0; n * n], vec![0.0; n * n]);
    for col in 0..n {
        let (mut x, mut y) = (vec![0.0; n], vec![0.0; n]);
        x[col] = 1.0;
        for (link, (a, b)) in butterfly_links(n, 1, increasing, 0).iter().zip(factors) {
            let Link::Blocks { groups, stride, q, p, .. } = *link else { unreachable!() };
            let link = Link::strided(0, groups, stride, q, p);
            let times = |w: &[f64], x: &[f64]| link.apply(&[w], x);
            let minus = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
            let negative: Vec<f64> = times(b, &x).iter().map(|v| -v).collect();
            (x, y) = (minus(times(a, &x), times(b, &y)), minus(times(a, &y), negative));
        }
        (0..n).for_each(|row| (re[row * n + col], im[row * n + col]) = (x[row], y[row]));
    }
    (re, im)
}

#[test]
fn the_fourier_transform_of_256_is_recovered() {
    let n = 256;
    for increasing in [true, false] {
        let (re, im) = dft(n, increasing);
        let factors = butterfly_complex(&re, &im, n, increasing);
        assert_eq!(factors.len(), 8);
        let (a, b) = product(&factors, n, increasing);
        assert!(distance(&[re, im].concat(), &[a, b].concat()) < 1e-10);
    }
}

#[test]
fn the_cosine_transform_of_256_is_recovered() {
    // DCT-II: X[k] = Re(2 e^{−iπk/2n} Σ_j e^{−2πijk/n} v[j]) with v the even entries of x, then the odd ones
    // reversed.
    let n = 256;
    let order: Vec<usize> = (0..n).map(|j| if 2 * j < n { 2 * j } else { 2 * n - 1 - 2 * j }).collect();
    let (re, im) = dft(n, true);
    // The diagonal belongs to the butterfly: it multiplies rows of the last factor.
    let twiddle = |k: usize| {
        (2.0 * (PI * k as f64 / (2 * n) as f64).cos(), -2.0 * (PI * k as f64 / (2 * n) as f64).sin())
    };
    let at = |at: usize| {
        let ((c, s), x, y) = (twiddle(at / n), re[at], im[at]);
        (c * x - s * y, c * y + s * x)
    };
    let (re, im): (Vec<f64>, Vec<f64>) = (0..n * n).map(at).unzip();
    let (got, _) = product(&butterfly_complex(&re, &im, n, true), n, true);
    let cosine = |at: usize| {
        // Column j of the butterfly is v[bit-reversed j].
        let (k, i) = (at / n, order[bit_reversed(at % n, n)]);
        2.0 * (PI * k as f64 * (2 * i + 1) as f64 / (2 * n) as f64).cos()
    };
    let expected: Vec<f64> = (0..n * n).map(cosine).collect();
    let error = distance(&expected, &got);
    assert!(error < 1e-6, "{error:e}");
}

/// A block butterfly: butterfly of size n whose values are `lanes × lanes` blocks, on rows `[n, lanes]`.
fn block_butterfly(n: usize, lanes: usize, increasing: bool) -> Bare {
    let mut links = Vec::new();
    for link in butterfly_links(n, 1, increasing, 0) {
        let Link::Blocks { weights, groups, stride, .. } = link else { unreachable!() };
        links.push(Link::Transpose { batch: 2 * groups, rows: stride, cols: lanes });
        links.push(Link::Blocks { weights, groups, stride, q: 2 * lanes, p: 2 * lanes });
        links.push(Link::Transpose { batch: 2 * groups, rows: lanes, cols: stride });
    }
    Bare::new(n * lanes, n * lanes, links)
}

#[test]
fn block_butterflies_are_recovered_and_so_is_the_fourier_transform_on_pairs() {
    for (n, lanes) in [(2, 3), (8, 4), (16, 2), (32, 1)] {
        for increasing in [true, false] {
            let bare = block_butterfly(n, lanes, increasing);
            let weight = bare.dense(&bare.random(5));
            let error = bare.hierarchical_error(&weight);
            assert!(error < 1e-10, "{error:e} for {n} · {lanes}");
        }
    }
    let n = 256;
    let (re, im) = dft(n, true);
    let mut weight = vec![0.0; 4 * n * n];
    for (at, (re, im)) in re.iter().zip(&im).enumerate() {
        let corner = 4 * n * (at / n) + 2 * (at % n);
        (weight[corner], weight[corner + 1]) = (*re, -im);
        (weight[corner + 2 * n], weight[corner + 2 * n + 1]) = (*im, *re);
    }
    let error = block_butterfly(n, 2, true).hierarchical_error(&weight);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn random_matrices_get_nearer_by_alternating() {
    for (seed, bare) in [
        butterfly(48, 64, true),
        butterfly(64, 24, false),
        debut(&[(4, 6), (2, 2), (2, 2), (1, 2)], 2),
        transposed(&debut(&[(4, 6), (2, 2), (2, 2), (1, 2)], 2)),
        block_butterfly(8, 4, true),
    ]
    .iter()
    .enumerate()
    {
        let Chain { n_in, n_out, .. } = bare.chain;
        let weight = draw(n_in * n_out, seed as u64);
        let (start, end) = (bare.hierarchical_error(&weight), bare.project(&weight, None).error);
        // As many free values keep about their share of the energy; much less is a fault.
        let share = bare.counts().parameters as f64 / (n_in * n_out) as f64;
        assert!(start < 1.0 && end < start, "{start} then {end}");
        assert!(end < (1.0 - 0.5 * share.min(1.0)).sqrt(), "{end} with {share} of the values");
    }
}

#[test]
fn channels_that_a_start_leaves_at_zero_are_used() {
    let config = serde_json::json!({"structure": "block_butterfly", "block": 4, "increasing": true});
    let structure = lacewing_core::build(&config, 128, 32, 0, None).unwrap();
    let weight = draw(128 * 32, 3);
    let target = Target::new(32, 128, &weight);
    let error = project(&*structure, &target).error;
    let share = structure.counts().parameters as f64 / (128.0 * 32.0);
    assert!(error < (1.0 - 0.5 * share.min(1.0)).sqrt(), "{error} with {share} of the values");
}

#[test]
fn small_and_ragged_shapes_have_projections() {
    for (n_in, n_out) in [(1, 1), (1, 5), (5, 1), (3, 2), (7, 13), (11, 11)] {
        for increasing in [true, false] {
            let bare = butterfly(n_in, n_out, increasing);
            let weight = draw(n_in * n_out, 9);
            let error = bare.project(&weight, None).error;
            assert!(error <= bare.hierarchical_error(&weight) + 1e-12);
            // A single row or column is within reach of every butterfly.
            assert!(n_in > 1 && n_out > 1 || error < 1e-10, "{error:e} for {n_in} to {n_out}");
            assert_eq!(bare.project(&vec![0.0; n_in * n_out], None).error, 0.0);
        }
    }
}

/// A second moment of inputs whose directions matter very differently.
fn moment(n: usize, seed: u64) -> Vec<f64> {
    let factor = draw(n * n, seed);
    let entry = |at: usize| {
        (0..n).map(|k| factor[at / n * n + k] * factor[at % n * n + k] / (1 + k * k) as f64).sum()
    };
    (0..n * n).map(entry).collect()
}

#[test]
fn known_inputs_lower_the_error_of_the_outputs() {
    for (seed, bare) in
        [butterfly(24, 32, true), butterfly(32, 32, false), debut(&[(4, 6), (2, 2), (1, 4)], 1)]
            .iter()
            .enumerate()
    {
        let Chain { n_in, n_out, .. } = bare.chain;
        let (weight, moment) = (draw(n_in * n_out, seed as u64), moment(n_in, 7));
        let plain = bare.project(&weight, None).params;
        let plain =
            Target::new(n_out, n_in, &weight).with_moment(&moment).output_error(&bare.dense(&plain)).unwrap();
        let weighted = bare.project(&weight, Some(&moment)).output_error.unwrap();
        assert!(weighted < 0.95 * plain, "{weighted} against {plain}");
    }
}

#[test]
fn a_singular_moment_still_has_a_projection() {
    let bare = butterfly(8, 8, true);
    let weight = draw(64, 1);
    let ones = vec![1.0; 64];
    // All inputs equal: only the sums of rows count, and those a butterfly can match.
    let error = bare.project(&weight, Some(&ones)).output_error.unwrap();
    assert!(error < 1e-6, "{error:e}");
    assert!(bare.project(&weight, Some(&[0.0; 64])).error.is_finite());
}

#[test]
fn low_rank_by_alternating_reaches_the_optimum() {
    // Rank 5 of 12 × 8: no strided product (5 divides neither), so this is a draw and alternating alone. The
    // optimum is known by construction: W = Σ σ_t u_t v_tᵀ with unit vectors.
    let (n_out, n_in, rank) = (12, 8, 5);
    let bare = Bare::new(n_in, n_out, vec![Link::blocks(0, 1, rank, n_in), Link::blocks(1, 1, n_out, rank)]);
    assert!(hierarchical(&bare.chain, &draw(n_out * n_in, 1)).is_none());
    let sigma: Vec<f64> = (0..n_in).map(|t| 2f64.powi(-(t as i32))).collect();
    let mut weight = vec![0.0; n_out * n_in];
    (0..n_in).for_each(|t| weight[t * n_in + t] = sigma[t]);
    let energy = |sigma: &[f64]| sigma.iter().map(|s| s * s).sum::<f64>();
    let best = (energy(&sigma[rank..]) / energy(&sigma)).sqrt();
    let error = bare.project(&weight, None).error;
    assert!(error < 1.01 * best && error > 0.999_999 * best, "{error} against {best}");
}

#[test]
fn tied_and_constant_weights_and_reused_parameters_are_handled() {
    // A circulant: one parameter of n values at n² places; least squares is the mean along each diagonal.
    let n = 6;
    let circulant = |param| {
        let gather = Gather::new(n, n * n, 1, |at, _| Some(((at / n + n - at % n) % n, false)));
        Link::Blocks { weights: Weights::Tied { param, gather }, groups: 1, stride: 1, q: n, p: n }
    };
    let bare = Bare::new(n, n, vec![circulant(0)]);
    let weight = draw(n * n, 3);
    let got = bare.project(&weight, None).params;
    for d in 0..n {
        let mean = (0..n).map(|col| weight[(col + d) % n * n + col]).sum::<f64>() / n as f64;
        assert!((got[0][d] - mean).abs() < 1e-6, "{} against {mean}", got[0][d]);
    }
    // Between constant blocks, and beside a parameter that occurs twice and stays as drawn.
    let constant = Weights::Constant(draw(n * n / 2, 5));
    let fixed = Link::Blocks { weights: constant, groups: 2, stride: 1, q: n / 2, p: n / 2 };
    let bare = Bare::new(n, n, vec![fixed, circulant(0), Link::blocks(1, 3, 2, 2), circulant(0)]);
    let member = bare.dense(&bare.random(8));
    let found = bare.project(&member, None);
    assert!(found.error < 1.0 && found.params[1].iter().any(|&v| v != 0.0), "{}", found.error);
}

#[test]
fn two_blocks_of_a_kaleidoscope_are_no_worse_than_one() {
    let n = 16;
    let weight = draw(n * n, 21);
    let one = butterfly(n, n, true).project(&weight, None).error;
    let mut links = butterfly_links(n, 1, true, 0);
    links.extend(butterfly_links(n, 1, false, 4));
    let bare = Bare::new(n, n, links);
    assert!(hierarchical(&bare.chain, &weight).is_none());
    let two = bare.project(&weight, None).error;
    assert!(two < 0.95 * one, "{two} against {one}");
}

#[test]
fn a_gadget_with_truncations_gets_near_its_members() {
    // Butterfly of 16, six of its outputs, a dense 4 × 6 matrix, embedded into a butterfly of 8.
    let mut links = butterfly_links(16, 1, true, 0);
    links.push(Link::Gather(Gather::select(16, &[0, 3, 5, 8, 9, 14])));
    links.push(Link::blocks(4, 1, 4, 6));
    links.push(Link::Gather(Gather::new(4, 8, 1, |o, _| (o % 2 == 0).then_some((o / 2, false)))));
    links.extend(butterfly_links(8, 1, false, 5));
    let bare = Bare::new(15, 8, links);
    let error = bare.project(&bare.dense(&bare.random(2)), None).error;
    assert!(error < 0.5, "{error}");
}

#[test]
fn targets_that_are_not_numbers_end() {
    for bare in [butterfly(4, 4, true), block_butterfly(4, 2, false)] {
        let n = bare.chain.n_in;
        let mut weight = draw(n * n, 1);
        weight[5] = f64::NAN;
        assert!(bare.project(&weight, None).error.is_nan());
        let _ = hierarchical(&bare.chain, &weight);
        weight[5] = f64::INFINITY;
        assert!(bare.project(&weight, None).params.iter().flatten().all(|v| v.is_nan()));
    }
}

#[test]
fn factors_do_not_cancel() {
    // A core as wide as the input makes the butterfly before it redundant, so nothing but care bounds its factors. The
    // inputs are correlated, and all but a few directions of them small.
    let (n_in, n_out) = (32, 64);
    let config = serde_json::json!({"structure": "bf_gadget", "k1": n_in, "k2": n_in});
    let gadget = lacewing_core::build(&config, n_in, n_out, 0, None).unwrap();
    let weight = draw(n_out * n_in, 1);
    let mixed = draw(n_in * n_in, 2);
    let size = |i: usize| 0.5f64.powi(i as i32 / 2);
    let moment: Vec<f64> = (0..n_in * n_in)
        .map(|at| {
            let terms =
                (0..n_in).map(|t| mixed[at / n_in * n_in + t] * mixed[at % n_in * n_in + t] * size(t));
            terms.sum::<f64>() + if at / n_in == at % n_in { 1e-4 } else { 0.0 }
        })
        .collect();
    let found = project(&*gadget, &Target::new(n_out, n_in, &weight).with_moment(&moment));
    let Form::Chain(chain) = gadget.form() else { panic!("not a chain") };
    let magnitudes: Vec<Vec<f64>> =
        found.params.iter().map(|values| values.iter().map(|v| v.abs()).collect()).collect();
    let slices: Vec<&[f64]> = magnitudes.iter().map(Vec::as_slice).collect();
    let column = |i: usize| {
        let x = (0..chain.n_in_ext).map(|at| f64::from(u8::from(at == i))).collect();
        chain.links.iter().fold(x, |x: Vec<f64>, link| link.apply(&slices, &x))
    };
    let energy: f64 = (0..n_in).flat_map(column).map(|v| v * v).sum();
    let growth = (energy / weight.iter().map(|w| w * w).sum::<f64>()).sqrt();
    assert!(growth < 100.0, "{growth}");
    assert!(found.output_error.unwrap() < 0.5, "{:?}", found.output_error);
}
