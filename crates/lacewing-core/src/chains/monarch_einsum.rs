//! Monarch as one sum: two block-diagonal factors whose bundles of channels join every pair of blocks.
//!
//! Cost of a row: `rank · (blocks2 · n_in + blocks1 · n_out)` multiply-adds, rank = `b1` or `rank`. Each slice of
//! W, one block of inputs by the outputs of one block of the second factor, is any matrix of that rank.

use lacewing_linalg::{matmul, square_roots, svd};
use serde_json::{Value, json};

use crate::config::{Key, Options, PAD};
use crate::init::uniform;
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Target,
};

const NAME: &str = "monarch_einsum";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "two block-diagonal factors, any rank between a pair of blocks",
    keys: &[
        Key::new("blocks1", "blocks of the first factor, 1 to n_in", "4"),
        Key::new("blocks2", "blocks of the second factor, 1 to n_out", "4"),
        Key::new("b1", "channels between two blocks, at most the smaller side of a slice of W", "1"),
        Key::new("b2", "consecutive outputs of one block, 1 to n_out / blocks2", "1"),
        Key::new("rank", "instead of b1 and b2: channels between two blocks, the block running fastest", ""),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let channels = (1..=n_in.min(n_out)).rev();
        let configs =
            channels.map(|b1| json!({"structure": NAME, "blocks1": 4, "blocks2": 4, "b1": b1, "pad": true}));
        first_within((n_in, n_out), density, configs)
    },
};

/// Order of the channels that a block of the first factor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EinsumPacking {
    /// `(j b)`: the channels for one block of the second factor are consecutive.
    Bundles,
    /// `(r j)`: the block runs fastest.
    Interleaved,
}

/// Sizes of the two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EinsumFactors {
    /// Blocks K of the first factor.
    pub blocks1: usize,
    /// Blocks J of the second factor.
    pub blocks2: usize,
    /// Inputs p of a block of the first factor.
    pub inputs: usize,
    /// Outputs s of a block of the second factor, a multiple of `b2`.
    pub outputs: usize,
    /// Channels B between each pair of blocks.
    pub rank: usize,
    /// Consecutive outputs of one block of the second factor.
    pub b2: usize,
    /// Order of the channels between the factors.
    pub packing: EinsumPacking,
}

/// `y[l, j, c] = Σ_{k, b, i} w2[j, (l c), (k b)] w1[k, (j b), i] x[k, i]`, indices in parentheses flattened with
/// the last one fastest.
///
/// x has K blocks of p values, y is `[s / b2, J, b2]`. Parameters are `w1 [K, J·B, p]` and `w2 [J, s, K·B]`. With
/// `rank` in place of `b1` and `b2`, `w1[k, (b j), i]` stands for `w1[k, (j b), i]` and b2 is 1.
#[derive(Clone, Debug, PartialEq)]
pub struct MonarchEinsum {
    factors: EinsumFactors,
    chain: Chain,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let blocks1 = options.size("blocks1", 1, n_in)?;
    let blocks2 = options.size("blocks2", 1, n_out)?;
    let (rank_key, packing) = match options.given("rank") {
        true => ("rank", EinsumPacking::Interleaved),
        false => ("b1", EinsumPacking::Bundles),
    };
    if let (EinsumPacking::Interleaved, Some(other)) =
        (packing, ["b1", "b2"].into_iter().find(|key| options.given(key)))
    {
        return Err(StructureError::Conflict { structure: NAME, key: "rank", other });
    }
    let b2 = options.size("b2", 1, n_out.div_ceil(blocks2))?;
    let divisors = (blocks2 * b2, blocks1);
    let (n_out_ext, n_in_ext) =
        options.padded((n_out, n_in), divisors, "blocks1 inputs, blocks2 · b2 outputs")?;
    let (inputs, outputs) = (n_in_ext / blocks1, n_out_ext / blocks2);
    // No slice has a greater rank, and both factors stay within a small multiple of the dense matrix.
    let rank = options.size(rank_key, 1, inputs.min(outputs))?;
    let factors = EinsumFactors { blocks1, blocks2, inputs, outputs, rank, b2, packing };
    let mut links = vec![Link::blocks(0, blocks1, blocks2 * rank, inputs)];
    if packing == EinsumPacking::Bundles && rank > 1 && blocks2 > 1 {
        links.push(Link::Transpose { batch: blocks1, rows: blocks2, cols: rank });
    }
    // Now the channels are [K · B, J], so the blocks of the second factor read them J apart and write y the same
    // way.
    links.push(Link::strided(1, 1, blocks2, outputs, blocks1 * rank));
    if b2 > 1 && blocks2 > 1 {
        links.push(Link::Transpose { batch: outputs / b2, rows: b2, cols: blocks2 });
    }
    let chain = Chain { n_in, n_in_ext, n_out_ext, n_out, links }.checked();
    Ok(Box::new(MonarchEinsum { factors, chain, pad: options.flag("pad")? }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let simple = json!({"structure": NAME, "blocks1": 2, "blocks2": 3});
    let blocked = json!({"structure": NAME, "blocks1": 3, "blocks2": 2, "b1": 2, "b2": 2});
    let rank = json!({"structure": NAME, "blocks1": 2, "blocks2": 3, "rank": 2, "pad": true});
    let ragged = json!({"structure": NAME, "blocks1": 3, "blocks2": 2, "b1": 2, "b2": 3, "pad": true});
    let one = json!({"structure": NAME, "blocks1": 1, "blocks2": 1});
    [(&simple, 8, 9), (&blocked, 12, 8), (&rank, 7, 11), (&ragged, 5, 7), (&one, 1, 1), (&rank, 4, 6)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl EinsumFactors {
    /// Row of `w1[k]` that is channel `b` towards block `j` of the second factor.
    fn channel(&self, j: usize, b: usize) -> usize {
        match self.packing {
            EinsumPacking::Bundles => j * self.rank + b,
            EinsumPacking::Interleaved => b * self.blocks2 + j,
        }
    }

    /// Output that row `at` of block `j` of the second factor writes.
    fn output(&self, j: usize, at: usize) -> usize {
        (at / self.b2 * self.blocks2 + j) * self.b2 + at % self.b2
    }

    /// Index of `w1[k, channel, i]`.
    fn first(&self, k: usize, channel: usize, i: usize) -> usize {
        (k * self.blocks2 * self.rank + channel) * self.inputs + i
    }

    /// Index of `w2[j, at, (k b)]`.
    fn second(&self, j: usize, at: usize, k: usize, b: usize) -> usize {
        ((j * self.outputs + at) * self.blocks1 + k) * self.rank + b
    }
}

impl MonarchEinsum {
    /// Sizes of the two factors.
    pub fn factors(&self) -> &EinsumFactors {
        &self.factors
    }

    /// Truncated singular value decompositions of all slices: of `A`, or with a moment of `A M_k^½`, where M_k is
    /// the block of the moment that belongs to the slice's inputs.
    fn nearest(&self, weight: &[f64], moment: Option<&[f64]>) -> Vec<Vec<f64>> {
        let EinsumFactors { blocks1, blocks2, inputs, outputs, rank, .. } = self.factors;
        let (n_in, n_out) = (self.n_in(), self.n_out());
        let mut params: Vec<Vec<f64>> = self.params().iter().map(|spec| vec![0.0; spec.count()]).collect();
        for k in 0..blocks1 {
            // Padding is left out: its weights are zero in the optimum.
            let (start, cols) = (k * inputs, inputs.min(n_in.saturating_sub(k * inputs)));
            if cols == 0 {
                continue;
            }
            let roots = moment.map(|moment| {
                let entry = |at: usize| moment[(start + at / cols) * n_in + start + at % cols];
                square_roots(&(0..cols * cols).map(entry).collect::<Vec<_>>(), cols)
            });
            for j in 0..blocks2 {
                let rows: Vec<usize> =
                    (0..outputs).filter(|&at| self.factors.output(j, at) < n_out).collect();
                let slice_of = |&at: &usize| &weight[self.factors.output(j, at) * n_in + start..][..cols];
                let mut slice = rows.iter().flat_map(slice_of).copied().collect::<Vec<_>>();
                if let Some((root, _)) = &roots {
                    slice = matmul(&slice, root, (rows.len(), cols, cols));
                }
                let svd = svd(&slice, rows.len(), cols, rank);
                for (b, sigma) in svd.sigma.iter().enumerate() {
                    let scale = sigma.sqrt();
                    let right = match &roots {
                        Some((_, inverse)) => matmul(&svd.right[b], inverse, (1, cols, cols)),
                        None => svd.right[b].clone(),
                    };
                    for (i, v) in right.iter().enumerate() {
                        params[0][self.factors.first(k, self.factors.channel(j, b), i)] = scale * v;
                    }
                    for (&at, u) in rows.iter().zip(&svd.left[b]) {
                        params[1][self.factors.second(j, at, k, b)] = scale * u;
                    }
                }
            }
        }
        params
    }
}

impl Structure for MonarchEinsum {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.chain.n_in
    }

    fn n_out(&self) -> usize {
        self.chain.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        let EinsumFactors { blocks1, blocks2, inputs, outputs, rank, .. } = self.factors;
        vec![
            ParamSpec::new("w1", &[blocks1, blocks2 * rank, inputs]),
            ParamSpec::new("w2", &[blocks2, outputs, blocks1 * rank]),
        ]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// U(±1/√(d₁·d₂)) for a factor `[d₀, d₁, d₂]`, the rule of the published layer, whatever a model asks for.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let [first, second] = [0, 1].map(|at| self.params()[at].clone());
        let bound = |spec: &ParamSpec| 1.0 / ((spec.shape[1] * spec.shape[2]) as f64).sqrt();
        let values = uniform(bound(&first), first.count(), rng);
        let last = if init == Init::Zeros { 0.0 } else { bound(&second) };
        vec![values, uniform(last, second.count(), rng)]
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    /// The bound of `w1`.
    fn bias_bound(&self) -> f64 {
        let EinsumFactors { blocks2, inputs, rank, .. } = self.factors;
        1.0 / ((blocks2 * rank * inputs) as f64).sqrt()
    }

    /// `W[(l·J + j)·b2 + c, k·p + i] = Σ_b w2[j, (l c), (k b)] w1[k, (j b), i]`.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let EinsumFactors { blocks2, inputs, rank, b2, .. } = self.factors;
        let (n_in, n_out) = (self.n_in(), self.n_out());
        let mut dense = vec![0.0; n_out * n_in];
        for (at, value) in dense.iter_mut().enumerate() {
            let (row, col) = (at / n_in, at % n_in);
            let (l, j, c) = (row / b2 / blocks2, row / b2 % blocks2, row % b2);
            let (k, i) = (col / inputs, col % inputs);
            let term = |b| {
                let first = self.factors.first(k, self.factors.channel(j, b), i);
                params[1][self.factors.second(j, l * b2 + c, k, b)] * params[0][first]
            };
            *value = (0..rank).map(term).sum();
        }
        Some(dense)
    }

    /// The truncated singular value decomposition of every slice, which are disjoint and together all of W: the
    /// optimum in the Frobenius norm.
    ///
    /// With a moment, also that of the slices weighted by the square root of the moment's diagonal block: the
    /// optimum in the outputs when the moment is block-diagonal, and otherwise only a guess. The better of the two
    /// is taken.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        let plain = self.nearest(target.weight, None);
        let Some(moment) = target.moment else { return plain };
        let weighted = self.nearest(target.weight, Some(moment));
        let error = |params: &[Vec<f64>]| {
            let dense = self.to_dense(&[&params[0], &params[1]]);
            dense.and_then(|dense| target.output_error(&dense)).unwrap_or(f64::INFINITY)
        };
        if error(&weighted) < error(&plain) { weighted } else { plain }
    }

    fn counts(&self) -> Counts {
        let EinsumFactors { blocks1, blocks2, inputs, outputs, rank, .. } = self.factors;
        let parameters = blocks1 * blocks2 * rank * (inputs + outputs);
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        let EinsumFactors { blocks1, blocks2, rank, b2, packing, .. } = self.factors;
        let pad = self.pad;
        match packing {
            EinsumPacking::Bundles => json!({
                "structure": NAME, "blocks1": blocks1, "blocks2": blocks2, "b1": rank, "b2": b2, "pad": pad,
            }),
            EinsumPacking::Interleaved => json!({
                "structure": NAME, "blocks1": blocks1, "blocks2": blocks2, "rank": rank, "pad": pad,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};

    use super::*;
    use crate::project;

    fn built(config: &Value, n_in: usize, n_out: usize) -> Box<dyn Structure> {
        crate::build(config, n_in, n_out, 0, None).unwrap()
    }

    fn random(structure: &dyn Structure) -> Vec<Vec<f64>> {
        structure.params().iter().enumerate().map(|(i, spec)| uniform_f64(i as u64, spec.count())).collect()
    }

    fn dense(structure: &dyn Structure, params: &[Vec<f64>]) -> Vec<f64> {
        structure.to_dense(&[&params[0], &params[1]]).unwrap()
    }

    /// Shapes of every kind: simple, blocked, interleaved; square, wide, narrow, padded, one block, one value.
    fn shapes() -> Vec<(Value, usize, usize)> {
        let of = |keys: Value, n_in, n_out| {
            let mut keys = keys;
            keys["structure"] = json!(NAME);
            (keys, n_in, n_out)
        };
        vec![
            of(json!({"blocks1": 4, "blocks2": 4}), 16, 16),
            of(json!({"blocks1": 2, "blocks2": 3}), 8, 15),
            of(json!({"blocks1": 2, "blocks2": 3, "b1": 2}), 8, 9),
            of(json!({"blocks1": 3, "blocks2": 2, "b1": 3, "b2": 2}), 12, 16),
            of(json!({"blocks1": 3, "blocks2": 2, "b1": 2, "b2": 4, "pad": true}), 10, 13),
            of(json!({"blocks1": 2, "blocks2": 3, "rank": 2}), 8, 9),
            of(json!({"blocks1": 4, "blocks2": 3, "rank": 2, "pad": true}), 13, 11),
            of(json!({"blocks1": 5, "blocks2": 4, "b1": 1, "pad": true}), 6, 7),
            of(json!({"blocks1": 1, "blocks2": 1}), 1, 1),
            of(json!({"blocks1": 1, "blocks2": 1, "rank": 3}), 5, 3),
        ]
    }

    #[test]
    fn products_match_the_einsum() {
        for (config, n_in, n_out) in shapes() {
            let structure = built(&config, n_in, n_out);
            let params = random(&*structure);
            let (w1, w2) = (&structure.params()[0].shape, &structure.params()[1].shape);
            let (k_n, p, j_n, s) = (w1[0], w1[2], w2[0], w2[1]);
            let (rank, interleaved) = (w1[1] / j_n, config.get("rank").is_some());
            let b2 = config.get("b2").map_or(1, |b2| b2.as_u64().unwrap() as usize);
            let mut x = uniform_f64(7, n_in);
            x.resize(k_n * p, 0.0);
            let (mut y, mut sums) = (vec![0.0; s * j_n], vec![0.0; s * j_n]);
            for (l, j, c) in (0..s * j_n).map(|o| (o / b2 / j_n, o / b2 % j_n, o % b2)) {
                for (k, b, i) in (0..k_n * rank * p).map(|at| (at / p / rank, at / p % rank, at % p)) {
                    let channel = if interleaved { b * j_n + j } else { j * rank + b };
                    let first = params[0][(k * w1[1] + channel) * p + i];
                    let second = params[1][(j * s + l * b2 + c) * w2[2] + k * rank + b];
                    y[(l * j_n + j) * b2 + c] += second * first * x[k * p + i];
                    sums[(l * j_n + j) * b2 + c] += (second * first * x[k * p + i]).abs();
                }
            }
            let k = 2 * (k_n * rank + p) + n_in;
            let bound: Vec<f64> = sums.iter().map(|sum| 2.0 * gamma_of(k, UNIT_F64) * sum).collect();
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            let got = structure.apply(&slices, &x[..n_in]);
            assert_near(&got, &y[..n_out], &bound[..n_out], &format!("definition of {config}"));
            let Form::Chain(chain) = structure.form() else { panic!("not a chain") };
            let got = chain.links.iter().fold(x, |x, link| link.apply(&slices, &x));
            assert_near(&got, &y, &bound, &format!("links of {config}"));
        }
    }

    #[test]
    fn shapes_and_bounds_are_those_of_the_published_layer() {
        let config = json!({"structure": NAME, "b1": 48});
        let structure = built(&config, 768, 3072);
        let shapes: Vec<Vec<usize>> = structure.params().into_iter().map(|spec| spec.shape).collect();
        assert_eq!(shapes, [[4, 192, 192], [4, 768, 192]]);
        assert_eq!(structure.bias_bound(), 1.0 / 192.0);
        let values = structure.init(Init::Default, &mut Rng::new(1));
        for (values, bound) in values.iter().zip([1.0 / 192.0, 1.0 / (768f32 * 192.0).sqrt()]) {
            let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(most <= bound && most > 0.98 * bound, "{most} of {bound}");
        }
        assert!(structure.init(Init::Zeros, &mut Rng::new(1))[1].iter().all(|&v| v == 0.0));
    }

    #[test]
    fn rank_and_b1_are_the_same_family_in_another_order() {
        let bundles = built(&json!({"structure": NAME, "blocks1": 2, "blocks2": 3, "b1": 2}), 8, 9);
        let interleaved = built(&json!({"structure": NAME, "blocks1": 2, "blocks2": 3, "rank": 2}), 8, 9);
        let params = random(&*bundles);
        // (j b) to (b j) in each of the blocks of six rows of four values.
        let from = |at: usize| {
            let (k, channel, i) = (at / 24, at / 4 % 6, at % 4);
            k * 24 + (channel % 3 * 2 + channel / 3) * 4 + i
        };
        let moved = vec![(0..48).map(|at| params[0][from(at)]).collect(), params[1].clone()];
        assert_eq!(dense(&*bundles, &params), dense(&*interleaved, &moved));
        assert_ne!(dense(&*bundles, &params), dense(&*interleaved, &params));
    }

    #[test]
    fn projection_recovers_members() {
        for (config, n_in, n_out) in shapes() {
            let structure = built(&config, n_in, n_out);
            let w = dense(&*structure, &random(&*structure));
            let target = Target::new(n_out, n_in, &w);
            let projection = project::project(&*structure, &target);
            assert!(projection.error < 1e-12, "{config}: {}", projection.error);
            // Any full moment leaves the optimum at zero error.
            let moment = moment(n_in, 3);
            let projection = project::project(&*structure, &target.with_moment(&moment));
            assert!(projection.output_error.unwrap() < 1e-12, "{config}: {projection:?}");
        }
    }

    /// `Σ x xᵀ` of more rows than inputs.
    fn moment(n: usize, seed: u64) -> Vec<f64> {
        let rows = uniform_f64(seed, 3 * n * n);
        let mut moment = vec![0.0; n * n];
        for x in rows.chunks(n) {
            (0..n * n).for_each(|at| moment[at] += x[at / n] * x[at % n]);
        }
        moment
    }

    #[test]
    fn the_optimal_error_is_what_the_slices_drop() {
        for (config, n_in, n_out) in shapes() {
            let structure = built(&config, n_in, n_out);
            let w = uniform_f64(5, n_in * n_out);
            let projection = project::project(&*structure, &Target::new(n_out, n_in, &w));
            let (w1, w2) = (&structure.params()[0].shape, &structure.params()[1].shape);
            let (k_n, p, j_n, rank) = (w1[0], w1[2], w2[0], w1[1] / w2[0]);
            let b2 = config.get("b2").map_or(1, |b2| b2.as_u64().unwrap() as usize);
            let mut dropped = 0.0;
            for (k, j) in (0..k_n * j_n).map(|at| (at / j_n, at % j_n)) {
                let rows: Vec<usize> = (0..n_out).filter(|row| row / b2 % j_n == j).collect();
                let cols: Vec<usize> = (0..n_in).filter(|col| col / p == k).collect();
                if rows.is_empty() || cols.is_empty() {
                    continue;
                }
                let row = |&row: &usize| cols.iter().map(|col| w[row * n_in + col]).collect::<Vec<_>>();
                let slice: Vec<f64> = rows.iter().flat_map(row).collect();
                let sigma = svd(&slice, rows.len(), cols.len(), usize::MAX).sigma;
                dropped += sigma.iter().skip(rank).map(|s| s * s).sum::<f64>();
            }
            let norm = w.iter().map(|v| v * v).sum::<f64>();
            assert!((projection.error.powi(2) * norm - dropped).abs() < 1e-12 * norm, "{config}");
        }
    }

    #[test]
    fn a_block_diagonal_moment_has_its_own_optimum_and_no_moment_makes_it_worse() {
        let config = json!({"structure": NAME, "blocks1": 3, "blocks2": 2, "b1": 2, "b2": 2, "pad": true});
        let structure = built(&config, 11, 13);
        let w = uniform_f64(5, 11 * 13);
        let target = Target::new(13, 11, &w);
        let plain = project::project(&*structure, &target).params;
        // The moment of inputs whose blocks of four are uncorrelated, on very different scales.
        let scaled = moment(11, 3);
        let scale = |i: usize| 10f64.powi((i % 4) as i32);
        let kept = |at: usize| {
            scaled[at] * scale(at / 11) * scale(at % 11) * f64::from(u8::from(at / 44 == at % 11 / 4))
        };
        let blocks: Vec<f64> = (0..121).map(kept).collect();
        let projection = project::project(&*structure, &target.with_moment(&blocks));
        let best = projection.output_error.unwrap();
        assert!(best < 0.5 * target.with_moment(&blocks).output_error(&dense(&*structure, &plain)).unwrap());
        // A local optimum: no small step in any direction is better.
        for (which, values) in projection.params.iter().enumerate() {
            for at in 0..values.len() {
                for step in [1e-3, -1e-3] {
                    let mut moved = projection.params.clone();
                    moved[which][at] += step * (1.0 + values[at].abs());
                    let error =
                        target.with_moment(&blocks).output_error(&dense(&*structure, &moved)).unwrap();
                    assert!(
                        error >= best * (1.0 - 1e-12),
                        "w{}[{at}] by {step}: {error} < {best}",
                        which + 1
                    );
                }
            }
        }
        for seed in 0..5 {
            let moment = moment(11, seed);
            let target = target.with_moment(&moment);
            let projection = project::project(&*structure, &target);
            assert!(projection.output_error <= target.output_error(&dense(&*structure, &plain)));
        }
    }

    #[test]
    fn a_zero_target_and_a_zero_moment_give_finite_values() {
        let structure = built(&json!({"structure": NAME, "rank": 2}), 8, 12);
        let (zeros, w, moment) = (vec![0.0; 96], uniform_f64(1, 96), vec![0.0; 64]);
        for target in [Target::new(12, 8, &zeros), Target::new(12, 8, &w).with_moment(&moment)] {
            let projection = project::project(&*structure, &target);
            assert!(projection.params.iter().flatten().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn what_cannot_be_is_an_error_with_numbers() {
        for (config, expected) in [
            (
                json!({"structure": NAME, "blocks1": 5}),
                "`monarch_einsum`: n_in = 64 is not a multiple of 5 (blocks1 inputs, blocks2 · b2 outputs); \
                 choose sizes that divide, or set `pad: true` to pad with zeros to 65",
            ),
            (
                json!({"structure": NAME, "b2": 5}),
                "`monarch_einsum`: n_out = 64 is not a multiple of 20 (blocks1 inputs, blocks2 · b2 outputs); \
                 choose sizes that divide, or set `pad: true` to pad with zeros to 80",
            ),
            (
                json!({"structure": NAME, "rank": 17}),
                "`monarch_einsum.rank` must be between 1 and 16, got 17",
            ),
            (json!({"structure": NAME, "b1": 0}), "`monarch_einsum.b1` must be between 1 and 16, got 0"),
            (
                json!({"structure": NAME, "b1": 2, "rank": 2}),
                "`monarch_einsum.rank` cannot be combined with `b1`",
            ),
            (
                json!({"structure": NAME, "b2": 1, "rank": 2}),
                "`monarch_einsum.rank` cannot be combined with `b2`",
            ),
            (
                json!({"structure": NAME, "blocks2": 65}),
                "`monarch_einsum.blocks2` must be between 1 and 64, got 65",
            ),
        ] {
            assert_eq!(crate::build(&config, 64, 64, 0, None).unwrap_err().to_string(), expected);
        }
        // Sizes from a file: counted, never allocated.
        let n = 1 << 24;
        for config in [
            json!({"structure": NAME, "blocks1": n, "blocks2": n}),
            json!({"structure": NAME, "blocks1": 1, "blocks2": 1, "b1": n, "b2": n}),
            json!({"structure": NAME, "blocks1": n - 1, "blocks2": n - 1, "rank": 2, "pad": true}),
        ] {
            assert!(built(&config, n, n).counts().parameters >= n);
        }
    }
}
