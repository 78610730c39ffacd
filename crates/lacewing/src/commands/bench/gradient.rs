//! Gradients in f64 by the form of a structure, and how large the products behind each of them are.
//!
//! Cost: three multiply-adds a row where the structure has one, on one thread.

use lacewing_core::{Chain, Form, Gate, Link, Pattern, Structure, Sum, Weights};

/// Gradients of `Σ dy · y`.
pub(super) struct Gradients {
    /// Of the input, `[rows, n_in]`.
    pub(super) x: Vec<f64>,
    /// Of each parameter.
    pub(super) params: Vec<Vec<f64>>,
}

/// What the sums of products run over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    /// The products themselves.
    Signed,
    /// Their absolute values, as [`lacewing_core::rounding::magnitude`] takes them: for absolute `params`, `x`, `dy`.
    Absolute,
}

/// The gradients for `x [rows, n_in]` and `dy [rows, n_out]`.
pub(super) fn gradients(
    structure: &dyn Structure,
    params: &[&[f64]],
    x: &[f64],
    dy: &[f64],
    terms: Terms,
) -> Gradients {
    let mut node = Node::new(structure, params, terms);
    let rows = x.chunks_exact(structure.n_in()).zip(dy.chunks_exact(structure.n_out()));
    let x = rows.flat_map(|(x, dy)| {
        let trace = node.forward(x);
        node.backward(&trace, dy)
    });
    let x = x.collect();
    let mut sums: Vec<Vec<f64>> = params.iter().map(|values| vec![0.0; values.len()]).collect();
    node.finish(&mut sums);
    Gradients { x, params: sums }
}

/// A map with its values, and the sums of its gradients.
enum Node<'a> {
    Chain(Links),
    Pattern { pattern: &'a Pattern, values: &'a [f64], sums: Vec<f64> },
    Sum(Box<Branches<'a>>),
}

/// A chain whose weights are constants.
struct Links {
    chain: Chain,
    /// Of each link, where its values come from and their gradient; nothing for a link without any.
    sources: Vec<Option<(Weights, Vec<f64>)>>,
}

/// Two maps and their gate.
struct Branches<'a> {
    sum: &'a Sum,
    a: Node<'a>,
    b: Node<'a>,
    terms: Terms,
    /// Values and gradients of the logit's weight and bias, where the gate is learned.
    gate: Option<Logit<'a>>,
}

struct Logit<'a> {
    weight: &'a [f64],
    bias: f64,
    weight_sums: Vec<f64>,
    bias_sum: f64,
}

/// What the forward pass of a row leaves to the backward pass.
struct Trace {
    y: Vec<f64>,
    /// What each link read, or what the map did.
    inputs: Vec<Vec<f64>>,
    /// Those of the branches.
    branches: Vec<Trace>,
}

impl<'a> Node<'a> {
    fn new(structure: &'a dyn Structure, params: &[&'a [f64]], terms: Terms) -> Self {
        match structure.form() {
            Form::Dense => {
                let (n_in, n_out) = (structure.n_in(), structure.n_out());
                let links = vec![Link::blocks(0, 1, n_out, n_in)];
                let chain = Chain { n_in, n_in_ext: n_in, n_out_ext: n_out, n_out, links };
                Self::Chain(Links::new(&chain, params, terms))
            }
            Form::Chain(chain) => Self::Chain(Links::new(chain, params, terms)),
            Form::Pattern(pattern) => {
                Self::Pattern { pattern, values: params[0], sums: vec![0.0; params[0].len()] }
            }
            Form::Sum(sum) => {
                let gate = match sum.gate {
                    Gate::Learned { weight, bias } => Some(Logit {
                        weight: params[weight],
                        bias: params[bias][0],
                        weight_sums: vec![0.0; params[weight].len()],
                        bias_sum: 0.0,
                    }),
                    Gate::Fixed(_) | Gate::Plain => None,
                };
                let a = Self::new(sum.a.as_ref(), &params[sum.a_params.clone()], terms);
                let b = Self::new(sum.b.as_ref(), &params[sum.b_params.clone()], terms);
                Self::Sum(Box::new(Branches { sum, a, b, terms, gate }))
            }
        }
    }

    fn forward(&self, x: &[f64]) -> Trace {
        match self {
            Self::Chain(links) => links.forward(x),
            Self::Pattern { pattern, values, .. } => {
                let mut y = vec![0.0; pattern.n_out];
                pattern.for_each(|at, row, col| y[row] += values[at] * x[col]);
                Trace { y, inputs: vec![x.to_vec()], branches: Vec::new() }
            }
            Self::Sum(branches) => branches.forward(x),
        }
    }

    /// Adds to the sums, and returns the gradient of the row.
    fn backward(&mut self, trace: &Trace, dy: &[f64]) -> Vec<f64> {
        match self {
            Self::Chain(links) => links.backward(trace, dy),
            Self::Pattern { pattern, values, sums } => {
                let x = &trace.inputs[0];
                let mut dx = vec![0.0; pattern.n_in];
                pattern.for_each(|at, row, col| {
                    sums[at] += dy[row] * x[col];
                    dx[col] += values[at] * dy[row];
                });
                dx
            }
            Self::Sum(branches) => branches.backward(trace, dy),
        }
    }

    fn finish(self, params: &mut [Vec<f64>]) {
        match self {
            Self::Chain(links) => links.finish(params),
            Self::Pattern { sums, .. } => params[0] = sums,
            Self::Sum(branches) => {
                let Branches { sum, a, b, gate, .. } = *branches;
                a.finish(&mut params[sum.a_params.clone()]);
                b.finish(&mut params[sum.b_params.clone()]);
                if let (Gate::Learned { weight, bias }, Some(logit)) = (sum.gate, gate) {
                    params[weight] = logit.weight_sums;
                    params[bias] = vec![logit.bias_sum];
                }
            }
        }
    }
}

impl Links {
    fn new(chain: &Chain, params: &[&[f64]], terms: Terms) -> Self {
        let mut chain = if terms == Terms::Absolute { chain.absolute() } else { chain.clone() };
        let sources = chain.links.iter_mut().map(|link| {
            let Link::Blocks { weights, .. } = link else { return None };
            let values = weights.values(params).into_owned();
            let sums = vec![0.0; values.len()];
            Some((std::mem::replace(weights, Weights::Constant(values)), sums))
        });
        let sources = sources.collect();
        Self { chain, sources }
    }

    fn forward(&self, x: &[f64]) -> Trace {
        let (mut y, mut inputs) = (x.to_vec(), Vec::new());
        y.resize(self.chain.n_in_ext, 0.0);
        for link in &self.chain.links {
            let next = link.apply(&[], &y);
            inputs.push(std::mem::replace(&mut y, next));
        }
        y.truncate(self.chain.n_out);
        Trace { y, inputs, branches: Vec::new() }
    }

    fn backward(&mut self, trace: &Trace, dy: &[f64]) -> Vec<f64> {
        let mut dy = dy.to_vec();
        dy.resize(self.chain.n_out_ext, 0.0);
        for ((link, source), x) in self.chain.links.iter().zip(&mut self.sources).zip(&trace.inputs).rev() {
            if let (&Link::Blocks { stride, q, p, .. }, Some((_, sums))) = (link, source) {
                for (block, sums) in sums.chunks_exact_mut(q * p).enumerate() {
                    let (g, s) = (block / stride, block % stride);
                    for (j, row) in sums.chunks_exact_mut(p).enumerate() {
                        let dy = dy[(g * q + j) * stride + s];
                        for (i, sum) in row.iter_mut().enumerate() {
                            *sum += dy * x[(g * p + i) * stride + s];
                        }
                    }
                }
            }
            dy = link.apply_transposed(&[], &dy);
        }
        dy.truncate(self.chain.n_in);
        dy
    }

    fn finish(self, params: &mut [Vec<f64>]) {
        for (weights, sums) in self.sources.into_iter().flatten() {
            let (param, sums) = match weights {
                Weights::Param(param) => (param, sums),
                Weights::Tied { param, gather } => (param, gather.apply_transposed(&sums)),
                Weights::Constant(_) => continue,
            };
            // A parameter may be in several links.
            params[param].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
}

impl Branches<'_> {
    fn forward(&self, x: &[f64]) -> Trace {
        let (a, b) = (self.a.forward(x), self.b.forward(x));
        let (of_a, of_b) = self.weights(x);
        let y = a.y.iter().zip(&b.y).map(|(a, b)| of_a * a + of_b * b).collect();
        Trace { y, inputs: vec![x.to_vec()], branches: vec![a, b] }
    }

    /// What each branch is multiplied by.
    fn weights(&self, x: &[f64]) -> (f64, f64) {
        let logit = self.gate.as_ref().map(|logit| logit.of(x));
        match (self.sum.gate, logit, self.terms) {
            (Gate::Learned { .. }, Some(z), Terms::Signed) => (1.0 - sigmoid(z), sigmoid(z)),
            (Gate::Learned { .. }, Some(z), Terms::Absolute) => ((2.0 + z).powi(2), (2.0 + z).powi(2)),
            (Gate::Fixed(g), _, Terms::Signed) => (1.0 - g, g),
            _ => (1.0, 1.0),
        }
    }

    fn backward(&mut self, trace: &Trace, dy: &[f64]) -> Vec<f64> {
        let (x, [a, b]) = (&trace.inputs[0], &trace.branches[..]) else { unreachable!("two branches") };
        let (of_a, of_b) = self.weights(x);
        let scaled = |by: f64| dy.iter().map(|dy| by * dy).collect::<Vec<_>>();
        let mut dx = self.a.backward(a, &scaled(of_a));
        for (dx, more) in dx.iter_mut().zip(self.b.backward(b, &scaled(of_b))) {
            *dx += more;
        }
        let Some(logit) = &mut self.gate else { return dx };
        let z = logit.of(x);
        let pairs = a.y.iter().zip(&b.y).zip(dy);
        let dz = match self.terms {
            Terms::Signed => {
                sigmoid(z) * (1.0 - sigmoid(z)) * pairs.map(|((a, b), dy)| (b - a) * dy).sum::<f64>()
            }
            Terms::Absolute => 2.0 * (2.0 + z) * pairs.map(|((a, b), dy)| (a + b) * dy).sum::<f64>(),
        };
        logit.bias_sum += dz;
        for ((sum, x), (dx, w)) in logit.weight_sums.iter_mut().zip(x).zip(dx.iter_mut().zip(logit.weight)) {
            *sum += dz * x;
            *dx += dz * w;
        }
        dx
    }
}

impl Logit<'_> {
    fn of(&self, x: &[f64]) -> f64 {
        self.bias + self.weight.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_core::{Rng, rounding, structures};

    /// `(params, x) → Σ dy · y`, of the definition or of its magnitude.
    type Loss<'a> = dyn Fn(&[Vec<f64>], &[f64]) -> f64 + 'a;

    #[test]
    fn gradients_are_the_finite_differences_of_the_definition() {
        // Exact for what is linear in each value; a gate leaves an error of the square.
        let h = 2f64.powi(-14);
        for structure in structures().flat_map(|kind| (kind.samples)()) {
            let structure = structure.as_ref();
            let (n_in, n_out, rows) = (structure.n_in(), structure.n_out(), 2);
            let mut rng = Rng::new(3);
            let mut draw = |len: usize| -> Vec<f64> { (0..len).map(|_| rng.uniform(-1.0, 1.0)).collect() };
            let params: Vec<Vec<f64>> = structure.params().iter().map(|spec| draw(spec.count())).collect();
            let (x, dy) = (draw(rows * n_in), draw(rows * n_out));
            let abs = |values: &[f64]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
            let (abs_params, abs_x) = (params.iter().map(|p| abs(p)).collect::<Vec<_>>(), abs(&x));
            let abs_dy = abs(&dy);
            let slices = |params: &[Vec<f64>]| -> Vec<Vec<f64>> { params.to_vec() };
            let of = |params: &[Vec<f64>], x: &[f64], dy: &[f64], terms| {
                let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
                gradients(structure, &params, x, dy, terms)
            };
            let loss = |params: &[Vec<f64>], x: &[f64]| -> f64 {
                let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
                let rows = x.chunks(n_in).zip(dy.chunks(n_out));
                rows.map(|(x, dy)| dot(&structure.apply(&params, x), dy)).sum()
            };
            let size = |params: &[Vec<f64>], x: &[f64]| -> f64 {
                let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
                let rows = x.chunks(n_in).zip(abs_dy.chunks(n_out));
                rows.map(|(x, dy)| dot(&rounding::magnitude(structure, &params, x), dy)).sum()
            };
            let rounding = {
                let k = (rounding::depth(structure) + rows * n_out) as f64;
                2.0 * k * f64::EPSILON * size(&abs_params, &abs_x) / h
            };
            let signed = of(&params, &x, &dy, Terms::Signed);
            let absolute = of(&abs_params, &abs_x, &abs_dy, Terms::Absolute);
            let check =
                |what: String, got: f64, bound: f64, move_by: &dyn Fn(f64, &Loss<'_>, bool) -> f64| {
                    let slope = (move_by(h, &loss, false) - move_by(-h, &loss, false)) / (2.0 * h);
                    let steepness = (move_by(h, &size, true) - move_by(0.0, &size, true)) / h;
                    let tolerance = rounding + h * h * steepness;
                    assert!((got - slope).abs() <= tolerance, "{structure:?} {what}: {got}, not {slope}");
                    // Convex in each absolute value: no steeper here than a step on.
                    let within = bound <= steepness + rounding && got.abs() <= bound + rounding;
                    assert!(within, "{structure:?} {what}: {bound} of {steepness}, {got}");
                };
            for at in 0..x.len() {
                check(format!("x[{at}]"), signed.x[at], absolute.x[at], &|by, loss, absolute| {
                    let (params, x) = if absolute { (&abs_params, &abs_x) } else { (&params, &x) };
                    let mut x = x.clone();
                    x[at] += by;
                    loss(params, &x)
                });
            }
            for (which, at) in (0..params.len()).flat_map(|i| (0..params[i].len()).map(move |at| (i, at))) {
                let what = format!("params[{which}][{at}]");
                check(what, signed.params[which][at], absolute.params[which][at], &|by, loss, absolute| {
                    let (params, x) = if absolute { (&abs_params, &abs_x) } else { (&params, &x) };
                    let mut params = slices(params);
                    params[which][at] += by;
                    loss(&params, x)
                });
            }
        }
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }
}
