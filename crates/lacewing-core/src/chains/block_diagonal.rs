//! Block-diagonal: the input cut in equal parts, each with a matrix of its own.
//!
//! Cost of a row: 1/blocks of dense. `shuffle` interleaves the parts of the input first (a channel shuffle).

use serde_json::{Value, json};

use crate::config::{Key, Options, PAD};
use crate::project::pattern::{Group, least_squares};
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Init, Link, ParamSpec, Problem, Rng, Structure, StructureKind, Target,
};

const NAME: &str = "block_diagonal";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "equal parts of the input, each with its own matrix",
    keys: &[
        Key::new("blocks", "number of parts, 1 to the smaller of n_in and n_out", "4"),
        Key::new("shuffle", "interleave the parts of the input first", "false"),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = (1.0 / density).ceil() as usize;
        let more = (blocks..=n_in.min(n_out)).take(64);
        first_within(
            (n_in, n_out),
            density,
            more.map(|blocks| json!({"structure": NAME, "blocks": blocks, "pad": true})),
        )
    },
};

/// `y[k, j] = Σ_i W[k, j, i] x[k, i]`, parameter `weight [blocks, q, p]`, `q = ⌈n_out/blocks⌉`, `p = ⌈n_in/blocks⌉`.
///
/// With `shuffle` x is first permuted: `x'[c · blocks + g] = x[g · p + c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockDiagonal {
    chain: Chain,
    blocks: usize,
    q: usize,
    p: usize,
    shuffle: bool,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let blocks = options.size("blocks", 1, n_in.min(n_out))?;
    let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), (blocks, blocks), "blocks")?;
    let (q, p) = (n_out_ext / blocks, n_in_ext / blocks);
    let shuffle = options.flag("shuffle")?;
    let mut links = vec![Link::blocks(0, blocks, q, p)];
    if shuffle {
        links.insert(0, Link::Transpose { batch: 1, rows: blocks, cols: p });
    }
    let chain = Chain { n_in, n_in_ext, n_out_ext, n_out, links }.checked();
    Ok(Box::new(BlockDiagonal { chain, blocks, q, p, shuffle, pad: options.flag("pad")? }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let even = json!({"structure": NAME, "blocks": 2});
    let padded = json!({"structure": NAME, "blocks": 3, "pad": true});
    let shuffled = json!({"structure": NAME, "blocks": 3, "shuffle": true, "pad": true});
    [(&even, 6, 4), (&padded, 7, 10), (&shuffled, 11, 5)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl BlockDiagonal {
    /// The input that the blocks read at `at`: shuffled, `c · blocks + g` came from `g · p + c`.
    fn input(&self, at: usize) -> usize {
        if self.shuffle { at % self.blocks * self.p + at / self.blocks } else { at }
    }
}

impl Structure for BlockDiagonal {
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
        vec![ParamSpec::new("weight", &[self.blocks, self.q, self.p])]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// A dense draw times √blocks: by default U(±1/√p).
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let len = self.blocks * self.q * self.p;
        let mut values = init.draw(self.chain.n_out_ext, self.chain.n_in_ext, len, rng);
        let scale = (self.blocks as f64).sqrt();
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        vec![values]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_out() as f64).sqrt()
    }

    /// `W[k·q + j, input of (k, i)] = weight[k, j, i]`.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let mut dense = vec![0.0; n_out * n_in];
        for row in 0..n_out {
            let (k, j) = (row / self.q, row % self.q);
            for i in 0..self.p {
                let col = self.input(k * self.p + i);
                if col < n_in {
                    dense[row * n_in + col] = params[0][(k * self.q + j) * self.p + i];
                }
            }
        }
        Some(dense)
    }

    /// The blocks of W; with a second moment, least squares on the inputs of every block.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        let (n_out, n_in) = (self.n_out(), self.n_in());
        // The inputs i of block k that are not padding, with their columns.
        let inputs = |k: usize| -> Vec<(usize, usize)> {
            let all = (0..self.p).map(|i| (i, self.input(k * self.p + i)));
            all.filter(|&(_, col)| col < n_in).collect()
        };
        let groups: Vec<Group> = (0..self.blocks)
            .map(|k| Group {
                rows: (k * self.q..((k + 1) * self.q).min(n_out)).collect(),
                cols: inputs(k).into_iter().map(|(_, col)| col).collect(),
            })
            .collect();
        let mut weight = vec![0.0; self.blocks * self.q * self.p];
        for (k, values) in least_squares(target, &groups).into_iter().enumerate() {
            let inputs = inputs(k);
            for (j, values) in values.chunks_exact(inputs.len().max(1)).enumerate() {
                for (&(i, _), value) in inputs.iter().zip(values) {
                    weight[(k * self.q + j) * self.p + i] = *value;
                }
            }
        }
        vec![weight]
    }

    fn counts(&self) -> Counts {
        let parameters = self.blocks * self.q * self.p;
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        json!({"structure": NAME, "blocks": self.blocks, "shuffle": self.shuffle, "pad": self.pad})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffle_deals_the_parts_like_cards() {
        let config = json!({"structure": NAME, "blocks": 3, "shuffle": true});
        let built = crate::build(&config, 6, 3, 0, None).unwrap();
        // x' = x[0], x[2], x[4], x[1], x[3], x[5]; every block adds its two.
        assert_eq!(built.apply(&[&[1.0; 6]], &[1., 2., 4., 8., 16., 32.]), [5., 18., 40.]);
    }

    #[test]
    fn values_start_within_one_over_root_p() {
        let config = json!({"structure": NAME, "blocks": 4});
        let built = crate::build(&config, 64, 32, 0, None).unwrap();
        let most = built.init(Init::Default, &mut Rng::new(1))[0].iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!((0.24..=0.25).contains(&most), "{most}");
    }
}
