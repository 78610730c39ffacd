//! Whether a layer computes what its structure is: outputs against the definition in f64, within what rounding explains.

use super::measure::Layer;
use lacewing_core::{Chain, Form, Gate, Gather, Link, Rng, Structure, Weights};
use lacewing_engine::EngineError;

/// Rows of a product that are checked.
const ROWS: usize = 3;

/// An output that rounding does not explain.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) kernel: String,
    pub(super) row: usize,
    pub(super) output: usize,
    pub(super) got: f32,
    pub(super) expected: f64,
    pub(super) bound: f64,
}

/// A structure's definition with a layer's values.
pub(super) struct Oracle {
    params: Vec<Vec<f64>>,
    /// `|params|`.
    magnitudes: Vec<Vec<f64>>,
    /// `W [n_out, n_in]`, where one matrix does it.
    dense: Option<Vec<f64>>,
    /// Roundings on the way from an input to an output.
    depth: usize,
}

impl Oracle {
    pub(super) fn new(layer: &Layer) -> Result<Self, EngineError> {
        let (structure, params) = (layer.structure(), layer.values()?);
        let magnitudes = params.iter().map(|values| absolute(values)).collect();
        let dense = structure.to_dense(&slices(&params));
        // Factors that are multiplied out first add the roundings of a dense product, merged ones those of longer sums.
        let kernel = layer.kernel();
        let composed = if kernel.contains("composed") { structure.n_in() } else { 0 };
        let longer = if kernel.contains("merged") { 4 } else { 1 };
        Ok(Self { magnitudes, dense, depth: longer * depth(structure) + composed + 4, params })
    }

    /// Compares a few rows of `y [rows, n_out]` with the definition's for `x [rows, n_in]`: each output to
    /// `γ_depth · Σ|w||x|`.
    pub(super) fn check(&self, layer: &Layer, x: &[f32], y: &[f32], rng: &mut Rng) -> Result<(), Mistake> {
        let structure = layer.structure();
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let rows = x.len() / n_in;
        for row in rng.sample(rows as u64, ROWS.min(rows)) {
            let row = row as usize;
            let x: Vec<f64> = x[row * n_in..][..n_in].iter().copied().map(f64::from).collect();
            let expected = match &self.dense {
                Some(dense) => product(dense, &x),
                None => structure.apply(&slices(&self.params), &x),
            };
            let sums = magnitude(structure, &self.magnitudes, &absolute(&x));
            for (output, &got) in y[row * n_out..][..n_out].iter().enumerate() {
                let (expected, bound) = (expected[output], self.bound(sums[output]));
                // Not "greater than the bound": a NaN is a mistake as well.
                if (f64::from(got) - expected).abs() <= bound {
                    continue;
                }
                return Err(Mistake { kernel: layer.kernel(), row, output, got, expected, bound });
            }
        }
        Ok(())
    }

    /// `γ_k · sum` with γ_k = k u / (1 − k u), u the unit roundoff of f32, and as many of the least normal numbers for
    /// what underflows.
    fn bound(&self, sum: f64) -> f64 {
        let k = self.depth as f64;
        let ku = k * f64::from(f32::EPSILON) / 2.0;
        ku / (1.0 - ku) * sum + k * f64::from(f32::MIN_POSITIVE)
    }
}

fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
    params.iter().map(Vec::as_slice).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// A bound of what a relative error of one in every product can do to each output, for absolute `params` and `x`.
fn magnitude(structure: &dyn Structure, params: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let sum = match structure.form() {
        Form::Sum(sum) => sum,
        Form::Chain(chain) => return chain_magnitude(chain, params, x),
        Form::Dense => return product(&params[0], x),
        Form::Pattern(pattern) => {
            let mut y = vec![0.0; pattern.n_out];
            pattern.for_each(|at, row, col| y[row] += params[0][at] * x[col]);
            return y;
        }
    };
    let a = magnitude(sum.a.as_ref(), &params[sum.a_params.clone()], x);
    let b = magnitude(sum.b.as_ref(), &params[sum.b_params.clone()], x);
    let factor = match sum.gate {
        // A gate is a smooth function of its logit z: its own error is at most (2 + |z|)² times that of z.
        Gate::Learned { weight, bias } => {
            let z = params[bias][0] + params[weight].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            (2.0 + z).powi(2)
        }
        Gate::Fixed(_) | Gate::Plain => 1.0,
    };
    a.iter().zip(&b).map(|(a, b)| (a + b) * factor).collect()
}

/// The links on absolute values: what cancels in the definition does not cancel in its roundings.
fn chain_magnitude(chain: &Chain, params: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let unsigned = |gather: &Gather, x: &[f64]| -> Vec<f64> {
        (0..gather.n_out()).map(|o| gather.terms_of(o).map(|(i, _)| x[i]).sum()).collect()
    };
    let mut y = x.to_vec();
    y.resize(chain.n_in_ext, 0.0);
    for link in &chain.links {
        y = match link {
            &Link::Blocks { ref weights, groups, stride, q, p } => {
                let values = match weights {
                    Weights::Param(param) => params[*param].clone(),
                    Weights::Tied { param, gather } => unsigned(gather, &params[*param]),
                    Weights::Constant(values) => absolute(values),
                };
                Link::Blocks { weights: Weights::Constant(values), groups, stride, q, p }.apply(&[], &y)
            }
            Link::Transpose { .. } => link.apply(&[], &y),
            Link::Gather(gather) => unsigned(gather, &y),
        };
    }
    y.truncate(chain.n_out);
    y
}

/// Roundings on the way from an input to an output: the lengths of all sums on it.
fn depth(structure: &dyn Structure) -> usize {
    match structure.form() {
        Form::Dense => structure.n_in(),
        Form::Pattern(pattern) => pattern.n_in_ext,
        Form::Chain(chain) => {
            let sizes = chain.links.iter().map(|link| match link {
                Link::Blocks { weights: Weights::Param(_), p, .. } => *p,
                Link::Blocks { weights: Weights::Tied { gather, .. }, p, .. } => p + gather.terms(),
                // The constants themselves are rounded.
                Link::Blocks { weights: Weights::Constant(_), p, .. } => p + 1,
                Link::Transpose { .. } => 0,
                Link::Gather(gather) => gather.terms(),
            });
            sizes.sum()
        }
        // Logit, exponential, quotient, weighing.
        Form::Sum(sum) => depth(sum.a.as_ref()) + depth(sum.b.as_ref()) + structure.n_in() + 16,
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Direction;
    use super::*;
    use lacewing_engine::{Device, Tensor};

    #[test]
    fn every_structure_passes_and_a_wrong_output_does_not() {
        for kind in lacewing_core::structures() {
            let structure = lacewing_core::build(&kind.name.into(), 256, 512, 1, None).unwrap();
            let layer = Layer::new(&Device::Cpu, structure).unwrap();
            let oracle = Oracle::new(&layer).unwrap();
            let mut rng = Rng::new(2);
            let x: Vec<f32> = (0..2 * 256).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
            let input = Tensor::from_f32(&Device::Cpu, &x, &[2, 256]).unwrap();
            let seed = Tensor::zeros(&Device::Cpu, input.dtype(), &[2, 512]).unwrap();
            let mut y = layer.pass(Direction::Forward, &input, &seed).unwrap().to_f32().unwrap();
            assert!(y.iter().any(|&y| y != 0.0), "{}: nothing to check", kind.name);
            oracle
                .check(&layer, &x, &y, &mut rng)
                .unwrap_or_else(|mistake| panic!("{}: {mistake:?}", kind.name));
            for wrong in [y[512 + 7] + 0.1, f32::NAN] {
                y[512 + 7] = wrong;
                let mistake = oracle.check(&layer, &x, &y, &mut rng).unwrap_err();
                assert_eq!((mistake.row, mistake.output), (1, 7), "{}", kind.name);
            }
        }
    }
}
