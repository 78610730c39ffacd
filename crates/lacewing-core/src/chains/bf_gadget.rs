//! Butterfly gadget: a small dense core between a butterfly that narrows and the transpose of one.
//!
//! Cost of a row: `2 · n · (⌈log₂ k⌉ + 1) − 2 · 2^⌈log₂ k⌉` multiply-adds a side, n the power of two that holds
//! it, and `k1 · k2` for the core.

use lacewing_linalg::{matmul, transposed};
use serde_json::{Value, json};

use super::butterfly::orthogonal;
use crate::butterfly::check_sizes;
use crate::config::{Key, Options};
use crate::init::uniform;
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, Init, Link, ParamSpec, Problem, Rng, Structure, StructureKind,
};

const NAME: &str = "bf_gadget";

/// The greatest side of the core.
const MAX_CORE: usize = 1 << 16;

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "a small dense core between two truncated butterflies",
    keys: &[
        Key::new(
            "k1",
            "inputs of the core, 1 to n_in; by default log2 n_in, rounded up to a power of two",
            "",
        ),
        Key::new(
            "k2",
            "outputs of the core, 1 to n_out; by default log2 n_out, rounded up to a power of two",
            "",
        ),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let widths = (0..=16).rev().map(|log| json!({"structure": NAME, "k1": 1 << log, "k2": 1 << log}));
        first_within((n_in, n_out), density, widths)
    },
};

/// One truncated butterfly: all of its sizes follow from the two here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    /// Length after padding, a power of two.
    n: usize,
    /// How many of n are kept.
    k: usize,
}

/// `y = E₂ᵀ C E₁ x`: a truncated butterfly `E₁ [k1, n1]`, a core `C [k2, k1]`, a truncated butterfly `E₂ [k2, n2]`
/// transposed, with n1 and n2 the sizes of the layer rounded up to powers of two.
///
/// `E` is the first k rows of a butterfly of increasing strides. With K = 2^⌈log₂ k⌉, weights that none of the
/// first K rows depends on are left out: factor f reads x as `[n / 2s, 2, s]`, below K as a full factor of stride
/// `s = 2^f`; from K on only one of the two outputs of a block is needed, so the stride stays `s = K` and the
/// width halves down to K.
///
/// The first rows are kept rather than evenly spaced ones since K consecutive inputs are then mixed fully before
/// anything is dropped, and each such stretch reaches the core with its full rank. Evenly spaced rows would first
/// reduce n / K consecutive inputs to one number.
///
/// Parameters are `encoder.f [n1/2, 2, 2]` or `[n1/2^(f+1−log₂ K), 1, 2]` for f = 0, 1, … in the order they are
/// applied, `core [k2, k1]`, and `decoder.f`, the mirror image: `[.., 2, 1]` first, `[n2/2, 2, 2]` last.
#[derive(Clone, Debug, PartialEq)]
pub struct BfGadget {
    encoder: Side,
    decoder: Side,
    chain: Chain,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    check_sizes(NAME, 1, n_out, n_in)?;
    let side = |key: &'static str, size: usize| {
        let n = size.next_power_of_two();
        let k = match options.given(key) {
            true => options.size(key, 1, size.min(MAX_CORE))?,
            false => (n.trailing_zeros() as usize).next_power_of_two().min(size),
        };
        Ok(Side { n, k })
    };
    Ok(Box::new(BfGadget::new(side("k1", n_in)?, side("k2", n_out)?, n_out, n_in)))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let default = json!(NAME);
    let ragged = json!({"structure": NAME, "k1": 3, "k2": 5});
    let all = json!({"structure": NAME, "k1": 7, "k2": 8});
    let one = json!({"structure": NAME, "k1": 1, "k2": 1});
    [
        (&default, 16, 32),
        (&ragged, 13, 11),
        (&all, 7, 8),
        (&one, 9, 6),
        (&default, 1, 1),
        (&one, 1, 5),
        (&one, 2, 1),
    ]
    .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
    .into()
}

impl Side {
    /// K, the width at which the strides stop growing.
    fn waist(self) -> usize {
        self.k.next_power_of_two()
    }

    /// Of each factor, from the wide side to the narrow one: its stride, its groups, and how many numbers of a
    /// pair are on the narrow side.
    fn factors(self) -> impl DoubleEndedIterator<Item = (usize, usize, usize)> + ExactSizeIterator {
        (0..self.n.trailing_zeros() as usize).map(move |f| {
            let groups = self.n >> (f + 1);
            if 1 << f < self.waist() { (1 << f, groups, 2) } else { (self.waist(), groups, 1) }
        })
    }

    /// Weights of all factors.
    fn count(self) -> usize {
        self.factors().map(|(stride, groups, narrow)| stride * groups * narrow * 2).sum()
    }

    /// `E [k, n]` from the factors, wide side first, where `E[r, c]` is the product over f of the weight of block
    /// `(c without its low f + 1 bits, the low f bits of r)` between bit f of r and bit f of c.
    fn dense(self, factors: &[&[f64]], transposed: bool) -> Vec<f64> {
        let entry = |r: usize, c: usize| {
            let mut product = 1.0;
            for (f, (stride, _, narrow)) in self.factors().enumerate() {
                // From K on bit f of r is zero, and all of r is below the stride.
                let (g, sigma) = (c >> (f + 1), r & ((1 << f) - 1));
                let (from, to) = (c >> f & 1, r >> f & 1);
                let place = if transposed { from * narrow + to } else { to * 2 + from };
                product *= factors[f][(g * stride + sigma) * 2 * narrow + place];
            }
            product
        };
        (0..self.k * self.n).map(|at| entry(at / self.n, at % self.n)).collect()
    }
}

impl BfGadget {
    fn new(encoder: Side, decoder: Side, n_out: usize, n_in: usize) -> Self {
        let mut links = Vec::new();
        for (stride, groups, narrow) in encoder.factors() {
            links.push(Link::strided(links.len(), groups, stride, narrow, 2));
        }
        let core = links.len();
        if encoder.k < encoder.waist() {
            let first = |o: usize, _| Some((o, false));
            links.push(Link::Gather(Gather::new(encoder.waist(), encoder.k, 1, first)));
        }
        links.push(Link::blocks(core, 1, decoder.k, encoder.k));
        if decoder.k < decoder.waist() {
            let first = |o: usize, _| (o < decoder.k).then_some((o, false));
            links.push(Link::Gather(Gather::new(decoder.k, decoder.waist(), 1, first)));
        }
        for (at, (stride, groups, narrow)) in decoder.factors().rev().enumerate() {
            links.push(Link::strided(core + 1 + at, groups, stride, 2, narrow));
        }
        let chain = Chain { n_in, n_in_ext: encoder.n, n_out_ext: decoder.n, n_out, links }.checked();
        Self { encoder, decoder, chain }
    }

    /// Inputs and outputs of the core.
    pub fn core(&self) -> (usize, usize) {
        (self.encoder.k, self.decoder.k)
    }
}

impl Structure for BfGadget {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.chain.n_in
    }

    fn n_out(&self) -> usize {
        self.chain.n_out
    }

    /// Twiddles are not decayed, the core is.
    fn params(&self) -> Vec<ParamSpec> {
        let twiddle =
            |name: String, blocks, q, p| ParamSpec { name, shape: vec![blocks, q, p], decay: false };
        let encoder =
            self.encoder.factors().enumerate().map(|(f, (stride, groups, narrow))| {
                twiddle(format!("encoder.{f}"), groups * stride, narrow, 2)
            });
        let decoder =
            self.decoder.factors().rev().enumerate().map(|(f, (stride, groups, narrow))| {
                twiddle(format!("decoder.{f}"), groups * stride, 2, narrow)
            });
        let core = ParamSpec::new("core", &[self.decoder.k, self.encoder.k]);
        encoder.chain([core]).chain(decoder).collect()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// Random rotations and reflections, of which a block with one number on its narrow side has the first row or
    /// column, so that the rows of both E are orthonormal; and U(±√(n1/k1) / √k1) in the core, whatever a model
    /// asks for.
    ///
    /// The factor √(n1/k1) is that of the truncation, which then keeps the expected norm of its input. It stands
    /// in the core because a fixed selection carries no scale.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let mut values = Vec::new();
        let (n, k) = (self.encoder.n as f64, self.encoder.k as f64);
        for spec in self.params() {
            if spec.name == "core" {
                values.push(uniform(n.sqrt() / k, spec.count(), rng));
                continue;
            }
            let (q, p) = (spec.shape[1], spec.shape[2]);
            let mut block = || {
                let [a, b, c, d] = orthogonal(rng);
                match (q, p) {
                    (1, _) => vec![a, b],
                    (_, 1) => vec![a, c],
                    _ => vec![a, b, c, d],
                }
            };
            values.push((0..spec.shape[0]).flat_map(|_| block()).map(|value| value as f32).collect());
        }
        if let (Init::Zeros, Some(last)) = (init, values.last_mut()) {
            last.fill(0.0);
        }
        values
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// `E₂ᵀ C E₁`, both E entry by entry, without the padding.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_in, n_out) = (self.n_in(), self.n_out());
        let core = self.encoder.factors().len();
        let encoder = self.encoder.dense(&params[..core], false);
        let backwards: Vec<&[f64]> = params[core + 1..].iter().rev().copied().collect();
        let decoder = self.decoder.dense(&backwards, true);
        let (n1, n2) = (self.encoder.n, self.decoder.n);
        let kept: Vec<f64> = encoder.chunks_exact(n1).flat_map(|row| &row[..n_in]).copied().collect();
        let inner = matmul(params[core], &kept, (self.decoder.k, self.encoder.k, n_in));
        let columns = transposed(&decoder, self.decoder.k, n2);
        Some(matmul(&columns[..n_out * self.decoder.k], &inner, (n_out, self.decoder.k, n_in)))
    }

    fn counts(&self) -> Counts {
        let parameters = self.encoder.count() + self.encoder.k * self.decoder.k + self.decoder.count();
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        json!({"structure": NAME, "k1": self.encoder.k, "k2": self.decoder.k})
    }
}

#[cfg(test)]
mod tests {
    use lacewing_linalg::svd;
    use lacewing_testkit::{UNIT_F32, UNIT_F64, assert_near, gamma_of, uniform_f64};

    use super::*;
    use crate::chains::{Butterfly, ButterflyConfig};

    fn built(k1: usize, k2: usize, n_in: usize, n_out: usize) -> BfGadget {
        let (n1, n2) = (n_in.next_power_of_two(), n_out.next_power_of_two());
        BfGadget::new(Side { n: n1, k: k1 }, Side { n: n2, k: k2 }, n_out, n_in)
    }

    fn initial(structure: &dyn Structure, seed: u64) -> Vec<Vec<f64>> {
        let values = structure.init(Init::Default, &mut Rng::new(seed));
        values.into_iter().map(|values| values.into_iter().map(f64::from).collect()).collect()
    }

    /// Full twiddles `[n/2, 2, 2]` of an increasing butterfly whose first rows are E: what E does not store is
    /// arbitrary.
    fn full(side: Side, values: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut full = Vec::new();
        for (f, (values, (stride, _, narrow))) in values.iter().zip(side.factors()).enumerate() {
            let mut twiddle = uniform_f64(90 + f as u64, 2 * side.n);
            for (at, block) in values.chunks(2 * narrow).enumerate() {
                let number = at / stride * (1 << f) + at % stride;
                twiddle[4 * number..][..block.len()].copy_from_slice(block);
            }
            full.push(twiddle);
        }
        full
    }

    #[test]
    fn a_side_is_the_first_rows_of_a_butterfly() {
        for (n, k) in [(2, 1), (2, 2), (8, 1), (8, 2), (8, 3), (8, 8), (16, 4), (16, 5), (32, 8), (32, 9)] {
            let side = Side { n, k };
            let values: Vec<Vec<f64>> = side
                .factors()
                .enumerate()
                .map(|(f, (stride, groups, narrow))| uniform_f64(f as u64, stride * groups * narrow * 2))
                .collect();
            let slices: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
            let e = side.dense(&slices, false);
            let butterfly = Butterfly::new(ButterflyConfig::default(), n, n).unwrap();
            let full = full(side, &values);
            let slices: Vec<&[f64]> = full.iter().map(Vec::as_slice).collect();
            let dense = butterfly.to_dense(&slices).unwrap();
            // One path leads from a column to a row: both are one product, in some order.
            let factor = 2.0 * gamma_of(2 * full.len(), UNIT_F64);
            let bound: Vec<f64> = e.iter().map(|e| factor * e.abs()).collect();
            assert_near(&dense[..k * n], &e, &bound, &format!("{side:?}"));
        }
    }

    #[test]
    fn the_map_is_the_product_of_full_butterflies_and_the_core() {
        for (k1, k2, n_in, n_out) in
            [(4, 2, 16, 8), (3, 5, 16, 32), (8, 8, 8, 8), (1, 1, 4, 2), (3, 3, 11, 7)]
        {
            let gadget = built(k1, k2, n_in, n_out);
            let specs = gadget.params();
            let params: Vec<Vec<f64>> =
                specs.iter().enumerate().map(|(i, spec)| uniform_f64(i as u64, spec.count())).collect();
            let core = specs.iter().position(|spec| spec.name == "core").unwrap();
            let increasing = |n: usize, full: &[Vec<f64>]| {
                let slices: Vec<&[f64]> = full.iter().map(Vec::as_slice).collect();
                let butterfly = Butterfly::new(ButterflyConfig::default(), n, n).unwrap();
                let positive: Vec<Vec<f64>> =
                    full.iter().map(|t| t.iter().map(|v| v.abs()).collect()).collect();
                let magnitudes: Vec<&[f64]> = positive.iter().map(Vec::as_slice).collect();
                (butterfly.to_dense(&slices).unwrap(), butterfly.to_dense(&magnitudes).unwrap())
            };
            let (n1, n2) = (gadget.encoder.n, gadget.decoder.n);
            let (e1, size1) = increasing(n1, &full(gadget.encoder, &params[..core]));
            // Wide side first, each block transposed: what an encoder of that size would hold.
            let mirrored: Vec<Vec<f64>> = params[core + 1..]
                .iter()
                .zip(&specs[core + 1..])
                .rev()
                .map(|(values, spec)| match spec.shape[2] {
                    1 => values.clone(),
                    _ => values.chunks(4).flat_map(|t| [t[0], t[2], t[1], t[3]]).collect(),
                })
                .collect();
            let (e2, size2) = increasing(n2, &full(gadget.decoder, &mirrored));
            let (mut expected, mut sums) = (vec![0.0; n_out * n_in], vec![0.0; n_out * n_in]);
            for (row, col) in (0..n_out * n_in).map(|at| (at / n_in, at % n_in)) {
                for (a, b) in (0..k2 * k1).map(|at| (at / k1, at % k1)) {
                    let c = params[core][a * k1 + b];
                    expected[row * n_in + col] += e2[a * n2 + row] * c * e1[b * n1 + col];
                    sums[row * n_in + col] += size2[a * n2 + row] * c.abs() * size1[b * n1 + col];
                }
            }
            let k = k1 * k2 + 3 * params.len() + 4;
            let bound: Vec<f64> = sums.iter().map(|sum| 2.0 * gamma_of(k, UNIT_F64) * sum).collect();
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            assert_near(
                &gadget.to_dense(&slices).unwrap(),
                &expected,
                &bound,
                &format!("{k1} {k2} {n_in} {n_out}"),
            );
        }
    }

    #[test]
    fn counts_leave_out_what_no_output_depends_on() {
        for (n_in, n_out, k1, k2) in
            [(256, 512, 8, 16), (1024, 4096, 16, 16), (768, 3072, 16, 16), (2, 3, 1, 2), (1, 1, 1, 1)]
        {
            let structure = crate::build(&json!(NAME), n_in, n_out, 0, None).unwrap();
            assert_eq!(structure.config(), json!({"structure": NAME, "k1": k1, "k2": k2}));
            let side = |size: usize, k: usize| {
                let (n, waist) = (size.next_power_of_two(), k.next_power_of_two());
                2 * n * waist.trailing_zeros() as usize + 2 * n - 2 * waist
            };
            let expected = side(n_in, k1) + k1 * k2 + side(n_out, k2);
            assert_eq!(structure.counts().parameters, expected);
            let specs = structure.params();
            assert!(specs.iter().all(|spec| spec.decay == (spec.name == "core")));
        }
        let config = json!({"structure": NAME, "k1": 5, "k2": 3});
        let shapes: Vec<(String, Vec<usize>)> = crate::build(&config, 16, 8, 0, None)
            .unwrap()
            .params()
            .into_iter()
            .map(|spec| (spec.name, spec.shape))
            .collect();
        let expected = [
            ("encoder.0", [8, 2, 2]),
            ("encoder.1", [8, 2, 2]),
            ("encoder.2", [8, 2, 2]),
            ("encoder.3", [8, 1, 2]),
            ("core", [0, 3, 5]),
            ("decoder.0", [4, 2, 1]),
            ("decoder.1", [4, 2, 2]),
            ("decoder.2", [4, 2, 2]),
        ]
        .map(|(name, shape)| (name.to_owned(), if name == "core" { vec![3, 5] } else { shape.to_vec() }));
        assert_eq!(shapes, expected);
    }

    #[test]
    fn both_sides_start_with_orthonormal_rows_and_the_core_carries_the_scale() {
        for (n, k) in [(16, 4), (32, 5), (8, 1), (8, 8), (64, 7)] {
            let gadget = built(k, k, n, n);
            let params = initial(&gadget, 3);
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            let levels = gadget.encoder.factors().len();
            let backwards: Vec<&[f64]> = slices[levels + 1..].iter().rev().copied().collect();
            for e in [gadget.encoder.dense(&slices[..levels], false), gadget.decoder.dense(&backwards, true)]
            {
                let gram: Vec<f64> = (0..k * k)
                    .map(|at| (0..n).map(|c| e[at / k * n + c] * e[at % k * n + c]).sum())
                    .collect();
                let identity: Vec<f64> = (0..k * k).map(|at| f64::from(u8::from(at / k == at % k))).collect();
                // Rounding to f32 moves each factor by at most u·√2 in the spectral norm.
                let moved = (1.0 + 2f64.sqrt() * UNIT_F32).powi(levels as i32) - 1.0;
                let bound = 2.0 * moved + moved * moved + gamma_of(4 * n * levels, UNIT_F64);
                assert_near(&gram, &identity, &vec![bound; k * k], "E Eᵀ");
            }
        }
        let gadget = built(64, 64, 256, 256);
        let core = &gadget.init(Init::Default, &mut Rng::new(1))[8];
        let most = core.iter().fold(0f32, |m, v| m.max(v.abs()));
        // √(256 / 64) / √64.
        assert!(most <= 0.25 && most > 0.98 * 0.25, "{most}");
    }

    #[test]
    fn k_consecutive_inputs_reach_the_core_with_full_rank() {
        let gadget = built(8, 8, 64, 64);
        let params = initial(&gadget, 5);
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let e = gadget.encoder.dense(&slices[..6], false);
        for stretch in 0..8 {
            let part: Vec<f64> = (0..64).map(|at| e[at / 8 * 64 + stretch * 8 + at % 8]).collect();
            let sigma = svd(&part, 8, 8, 8).sigma;
            assert!(sigma[7] > 1e-6 * sigma[0], "{sigma:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_an_error_with_numbers() {
        for (config, expected) in [
            (json!({"structure": NAME, "k1": 65}), "`bf_gadget.k1` must be between 1 and 64, got 65"),
            (json!({"structure": NAME, "k2": 0}), "`bf_gadget.k2` must be between 1 and 32, got 0"),
            (json!({"structure": NAME, "k2": "all"}), "`bf_gadget.k2` must be a whole number, got \"all\""),
        ] {
            assert_eq!(crate::build(&config, 64, 32, 0, None).unwrap_err().to_string(), expected);
        }
        let config = json!({"structure": NAME, "k1": 1 << 24, "k2": 1 << 24});
        let error = crate::build(&config, 1 << 24, 1 << 24, 0, None).unwrap_err();
        assert_eq!(error.to_string(), "`bf_gadget.k1` must be between 1 and 65536, got 16777216");
        let huge = crate::build(&json!(NAME), 1 << 24, 1 << 24, 0, None).unwrap();
        assert_eq!(huge.config(), json!({"structure": NAME, "k1": 32, "k2": 32}));
    }
}
