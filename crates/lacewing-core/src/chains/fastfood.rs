//! Fastfood: trained diagonals between fixed Hadamard transforms and a fixed permutation.
//!
//! Cost of a row: `n · (4 log2 n + 3)` multiply-adds for every stack of n outputs, n a power of two; 3n
//! parameters.

use serde_json::{Value, json};

use crate::config::Options;
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, IndexBuffer, Init, Link, Origin, ParamSpec, Problem, Rng, Structure,
    StructureError, StructureKind, Weights,
};

const NAME: &str = "fastfood";

/// The most outputs of all stacks together: the fixed links hold `32 · log2 n` bytes for each.
const MAX_OUTPUTS: usize = 1 << 18;

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "trained diagonals between fixed Hadamard transforms and a permutation",
    keys: &[],
    build,
    samples,
    sized: |n_in, n_out, density| first_within((n_in, n_out), density, [json!({"structure": NAME})]),
};

/// `y = D3 · H · D2 · P · H · D1 · x` in each of `⌈n_out / n⌉` stacks, whose outputs follow one another.
///
/// n is the least power of two that holds `n_in`; the input is padded with zeros and outputs beyond `n_out` are
/// dropped. Parameters `d1`, `d2` and `d3`, each `[stacks, n]`, are the diagonals;
/// `H[i, j] = (−1)^{bits that i and j share} / √n`, and `(P x)[i] = x[permutation[stack, i]]` with a random
/// permutation for each stack, which is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Fastfood {
    chain: Chain,
    /// Points of a transform.
    n: usize,
    /// `[stacks, n]`.
    permutation: Vec<u32>,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let saved = problem.saved(options.structure(), ["permutation"])?;
    let (n_out, n_in) = problem.shape();
    let n = n_in.next_power_of_two();
    let stacks = n_out.div_ceil(n);
    if stacks * n > MAX_OUTPUTS {
        let (size_name, got) = if n > MAX_OUTPUTS { ("n_in", n_in) } else { ("n_out", n_out) };
        return Err(StructureError::Size { structure: NAME, size_name, got, max: MAX_OUTPUTS });
    }
    let permutation = match (saved, problem.origin) {
        (Some([buffer]), _) => {
            buffer.expect_shape(NAME, &[stacks, n])?;
            check_permutations(buffer, n)?;
            buffer.data.clone()
        }
        (None, Origin::New { seed, .. }) => {
            let mut rng = Rng::new(seed);
            (0..stacks).flat_map(|_| rng.permutation(n)).map(|i| i as u32).collect()
        }
        (None, Origin::Saved(_)) => {
            return Err(StructureError::MissingBuffer { structure: NAME, buffer: "permutation".to_owned() });
        }
    };
    Ok(Box::new(Fastfood::new(n_out, n_in, permutation)))
}

/// Checks that each row of n numbers has each number below n.
fn check_permutations(buffer: &IndexBuffer, n: usize) -> Result<(), StructureError> {
    let mut seen_in = vec![usize::MAX; n];
    for (at, &index) in buffer.data.iter().enumerate() {
        let last = seen_in.get_mut(index as usize);
        let last = last.ok_or_else(|| buffer.bad_value(NAME, at, 0, n as u64 - 1))?;
        if std::mem::replace(last, at / n) == at / n {
            return Err(StructureError::Repeated { structure: NAME, row: (at / n) as u32, col: index });
        }
    }
    Ok(())
}

fn samples() -> Vec<Box<dyn Structure>> {
    [(1, 1), (1, 3), (8, 8), (5, 21), (13, 7)]
        .map(|(n_in, n_out)| crate::build(&json!(NAME), n_in, n_out, 7, None).expect("valid sample"))
        .into()
}

impl Fastfood {
    /// `permutation` holds one permutation of n for each stack.
    fn new(n_out: usize, n_in: usize, permutation: Vec<u32>) -> Self {
        let (n, all) = (n_in.next_power_of_two(), permutation.len());
        let diagonal = |param| Link::blocks(param, all, 1, 1);
        let h = std::f64::consts::FRAC_1_SQRT_2;
        let hadamard = (0..n.trailing_zeros()).map(|i| Link::Blocks {
            weights: Weights::Constant([h, h, h, -h].repeat(all / 2)),
            groups: all >> (i + 1),
            stride: 1 << i,
            q: 2,
            p: 2,
        });
        let mut links = vec![diagonal(0)];
        if all > n {
            links.insert(0, Link::Gather(Gather::new(n, all, 1, |o, _| Some((o % n, false)))));
        }
        links.extend(hadamard.clone());
        links.push(Link::Gather(Gather::new(all, all, 1, |o, _| {
            Some((o / n * n + permutation[o] as usize, false))
        })));
        links.push(diagonal(1));
        links.extend(hadamard);
        links.push(diagonal(2));
        let chain = Chain { n_in, n_in_ext: n, n_out_ext: all, n_out, links }.checked();
        Self { chain, n, permutation }
    }

    /// How many independent products of n outputs it has.
    pub fn stacks(&self) -> usize {
        self.permutation.len() / self.n
    }
}

impl Structure for Fastfood {
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
        ["d1", "d2", "d3"].map(|name| ParamSpec::new(name, &[self.stacks(), self.n])).into()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// Random signs, normals of deviation 1, and a constant that gives W the deviation of the dense draw.
    ///
    /// A row of `H · D2 · P · H · D1` has length 1 on average, so without the constant the deviation of W is 1/√n.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let all = self.permutation.len();
        let signs = (0..all).map(|_| if rng.below(2) == 0 { -1.0 } else { 1.0 }).collect();
        let normals = (0..all).map(|_| rng.normal() as f32).collect();
        let scale = init.deviation(self.n_out(), self.n_in()) * (self.n as f64).sqrt();
        vec![signs, normals, vec![scale as f32; all]]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// `W[s·n + i, j] = d3[s, i] · Σ_k H[i, k] d2[s, k] H[permutation[s, k], j] · d1[s, j]`.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n, n_in) = (self.n, self.n_in());
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let w = |row: usize, col: usize| {
            let (stack, i) = (row / n * n, row % n);
            let terms = (0..n)
                .map(|k| sign(i, k) * params[1][stack + k] * sign(self.permutation[stack + k] as usize, col));
            params[2][row] * params[0][stack + col] * terms.sum::<f64>() / n as f64
        };
        Some(
            (0..self.n_out())
                .flat_map(|row| (0..n_in).map(move |col| (row, col)))
                .map(|(r, c)| w(r, c))
                .collect(),
        )
    }

    fn counts(&self) -> Counts {
        let parameters = 3 * self.permutation.len();
        // The permutation counts as an index of 4 bytes a value.
        let bytes = 4 * (parameters + self.permutation.len());
        Counts { parameters, bytes, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        json!({"structure": NAME})
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        let (data, shape) = (self.permutation.clone(), vec![self.stacks(), self.n]);
        vec![IndexBuffer { name: "permutation".to_owned(), data, shape }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(data: Vec<u32>, shape: Vec<usize>, n_in: usize, n_out: usize) -> Built {
        let buffer = IndexBuffer { name: "permutation".to_owned(), data, shape };
        crate::restore(&json!(NAME), n_in, n_out, &[buffer])
    }

    #[test]
    fn a_product_by_hand() {
        // H = [[1, 1], [1, −1]] / √2, twice, so the products are halved.
        let built = restored(vec![1, 0], vec![1, 2], 2, 2).unwrap();
        let y = built.apply(&[&[1., 2.], &[3., 4.], &[5., 6.]], &[7., 8.]);
        // D1: 7, 16; H: 23, −9; P: −9, 23; D2: −27, 92; H: 65, −119; D3: 325, −714; halved.
        let error = 1e3 * f64::EPSILON;
        assert!((y[0] - 162.5).abs() < error && (y[1] + 357.0).abs() < error, "{y:?}");
    }

    #[test]
    fn stacks_are_independent_and_their_values_are_counted() {
        let built = crate::build(&json!(NAME), 100, 300, 5, None).unwrap();
        let counts = built.counts();
        assert_eq!(counts.parameters, 3 * 128 * 3);
        assert_eq!(counts.macs, 3 * 128 * (4 * 7 + 3));
        assert_eq!(counts.bytes, 4 * 4 * 128 * 3);
        let saved = &built.buffers()[0];
        assert_eq!(saved.shape, [3, 128]);
        let rows: Vec<&[u32]> = saved.data.chunks(128).collect();
        assert!(rows[0] != rows[1] && rows[1] != rows[2], "one permutation a stack");
        let other = crate::build(&json!(NAME), 100, 300, 6, None).unwrap();
        assert_ne!(other.buffers(), built.buffers());
    }

    #[test]
    fn w_starts_with_the_deviation_of_a_dense_draw() {
        for (n_in, n_out, init) in [(128, 128, Init::Default), (100, 300, Init::TruncNormal { std: 0.02 })] {
            let built = crate::build(&json!(NAME), n_in, n_out, 1, None).unwrap();
            let values = built.init(init, &mut Rng::new(2));
            let values: Vec<Vec<f64>> =
                values.iter().map(|v| v.iter().map(|&v| f64::from(v)).collect()).collect();
            let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
            let w = built.to_dense(&values).unwrap();
            let deviation = (w.iter().map(|w| w * w).sum::<f64>() / w.len() as f64).sqrt();
            let ratio = deviation / init.deviation(n_out, n_in);
            // The squares average those of n normals a stack, which deviate by √(2/n).
            assert!((ratio * ratio - 1.0).abs() < 6.0 * f64::sqrt(2.0 / 128.0), "{init:?}: {ratio}");
        }
    }

    #[test]
    fn only_permutations_are_restored() {
        assert!(restored(vec![2, 0, 3, 1, 0, 1, 2, 3], vec![2, 4], 3, 7).is_ok());
        let error = restored(vec![2, 0, 3, 1, 0, 1, 2, 1], vec![2, 4], 3, 7).unwrap_err();
        assert_eq!(error, StructureError::Repeated { structure: NAME, row: 1, col: 1 });
        let error = restored(vec![2, 0, 3, 1, 0, 4, 2, 1], vec![2, 4], 3, 7).unwrap_err();
        assert!(matches!(error, StructureError::BufferValue { at: 5, got: 4, high: 3, .. }), "{error}");
        let error = restored(vec![1, 0], vec![1, 2], 3, 7).unwrap_err();
        assert!(matches!(error, StructureError::BufferShape { .. }), "{error}");
    }

    #[test]
    fn sizes_beyond_the_fixed_links_are_errors() {
        for (n_in, n_out, name) in [(1 << 19, 4, "n_in"), (1024, 1 << 20, "n_out")] {
            let error = crate::build(&json!(NAME), n_in, n_out, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::Size { size_name, .. } if size_name == name), "{error}");
        }
    }
}
