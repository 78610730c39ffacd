//! Chains with every kind of link and weight, as structures that no table has.

use lacewing_core::{Chain, Counts, Form, Gather, Init, Link, ParamSpec, Rng, Structure, Weights};
use serde_json::{Value, json};

/// The name of every sample.
pub(crate) const NAME: &str = "sample_chain";

/// A chain whose definition is its own links in f64.
#[derive(Debug)]
struct SampleChain {
    index: usize,
    params: Vec<ParamSpec>,
    chain: Chain,
}

/// Sample `index`, if there are as many.
pub(crate) fn sample(index: usize) -> Option<Box<dyn Structure>> {
    let fold = |o: usize, t: usize| ((o + t) % 5 != 4).then_some(((o * 3 + t * 4) % 10, (o + t) % 2 == 1));
    let tied = |param, n: usize, len: usize| {
        let term =
            |o: usize, t: usize| ((o + 2 * t) % 7 != 6).then_some(((o * 5 + t) % n, (o * o + t) % 3 == 1));
        Weights::Tied { param, gather: Gather::new(n, len, 2, term) }
    };
    let hadamard = |n: usize| {
        Weights::Constant([1.0, 1.0, 1.0, -1.0].repeat(n).iter().map(|v| v * 0.5f64.sqrt()).collect())
    };
    let circulant = |n: usize| Weights::Tied {
        param: 0,
        gather: Gather::new(n, n * n, 1, |at, _| Some(((n + at / n - at % n) % n, false))),
    };
    let blocks = |weights, groups, stride, q, p| Link::Blocks { weights, groups, stride, q, p };
    let permutation =
        |n: usize| Link::Gather(Gather::select(n, &(0..n).map(|i| i * 5 % n).collect::<Vec<_>>()));
    let constant = |n: usize| Weights::Constant((0..n).map(|i| (i as f64 * 0.7).cos()).collect());
    let (sizes, counts, links): (_, &[usize], _) = match index {
        // A signed fold with gaps, then one block.
        0 => {
            ((10, 10, 5, 5), &[30], vec![Link::Gather(Gather::new(10, 6, 3, fold)), Link::blocks(0, 1, 5, 6)])
        }
        // Tied weights in small and in large blocks, padded, and a batch of transpositions.
        1 => (
            (17, 18, 18, 13),
            &[5, 7],
            vec![
                blocks(tied(0, 5, 3 * 3 * 4), 3, 3, 2, 2),
                Link::Transpose { batch: 3, rows: 2, cols: 3 },
                blocks(tied(1, 7, 2 * 81), 2, 1, 9, 9),
            ],
        ),
        // Constants and diagonals, as in fastfood: S H D P H D.
        2 => {
            let transform =
                |n: usize| [1, 2, 4].map(|stride| blocks(hadamard(n / 2), n / 2 / stride, stride, 2, 2));
            let mut links = vec![Link::blocks(0, 8, 1, 1)];
            links.extend(transform(8));
            links.extend([permutation(8), Link::strided(1, 1, 8, 1, 1)]);
            links.extend(transform(8));
            links.push(Link::strided(2, 4, 2, 1, 1));
            ((7, 8, 8, 8), &[8, 8, 8], links)
        }
        // Rising butterfly of 16.
        3 => {
            let links = (0..4).map(|f| Link::strided(f, 8 >> f, 1 << f, 2, 2)).collect();
            ((16, 16, 16, 16), &[32; 4], links)
        }
        // Falling, with factors that are not square and one left over, behind a diagonal.
        4 => {
            let links = vec![
                Link::strided(0, 1, 24, 1, 1),
                Link::strided(1, 1, 12, 1, 2),
                Link::strided(2, 1, 6, 4, 2),
                Link::strided(3, 4, 3, 1, 2),
                Link::strided(4, 4, 1, 3, 3),
            ];
            ((24, 24, 12, 12), &[24, 24, 48, 24, 36], links)
        }
        // Rising, not square.
        5 => {
            let links = vec![
                Link::strided(0, 6, 2, 1, 2),
                Link::strided(1, 3, 2, 3, 2),
                Link::strided(2, 1, 6, 2, 3),
            ];
            ((24, 24, 12, 11), &[24, 36, 36], links)
        }
        // Circulant, as the last factor, whose product takes bias and activation.
        6 => ((12, 12, 12, 12), &[12], vec![blocks(circulant(12), 1, 1, 12, 12)]),
        // Large strided blocks of each kind of weights; one parameter is used twice.
        7 => (
            (18, 18, 18, 18),
            &[3 * 36, 9],
            vec![
                Link::strided(0, 1, 3, 6, 6),
                blocks(tied(1, 9, 2 * 81), 2, 1, 9, 9),
                blocks(constant(2 * 81), 1, 2, 9, 9),
                Link::strided(0, 1, 3, 6, 6),
                permutation(18),
            ],
        ),
        // A dense last factor that is not trained.
        8 => ((9, 9, 4, 4), &[9], vec![Link::blocks(0, 9, 1, 1), blocks(constant(36), 1, 1, 4, 9)]),
        _ => return None,
    };
    let params = counts.iter().enumerate().map(|(i, &n)| ParamSpec::new(&format!("p{i}"), &[n])).collect();
    let (n_in, n_in_ext, n_out_ext, n_out) = sizes;
    Some(Box::new(SampleChain { index, params, chain: Chain { n_in, n_in_ext, n_out_ext, n_out, links } }))
}

impl Structure for SampleChain {
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
        self.params.clone()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    fn init(&self, _: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let draw = |spec: &ParamSpec| (0..spec.count()).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
        self.params.iter().map(draw).collect()
    }

    fn bias_bound(&self) -> f64 {
        1.0
    }

    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        let Chain { n_in, n_out, .. } = self.chain;
        let mut w = vec![0.0; n_out * n_in];
        for i in 0..n_in {
            let mut x = vec![0.0; n_in];
            x[i] = 1.0;
            self.apply(params, &x).iter().enumerate().for_each(|(o, y)| w[o * n_in + i] = *y);
        }
        Some(w)
    }

    fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        self.chain.apply(params, x)
    }

    fn counts(&self) -> Counts {
        let parameters = self.params.iter().map(ParamSpec::count).sum();
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        json!({"structure": NAME, "index": self.index})
    }
}
