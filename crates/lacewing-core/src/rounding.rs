//! How far rounding can take a product: the sums of absolute products and the lengths of the sums behind an output.
//!
//! A value that is summed from products through `k` roundings of unit `u` is within `γ_k · m` of the exact one, where
//! `γ_k = k u / (1 − k u)`, `m` is its [`magnitude`] and `k` the [`depth`], whatever the order of the sums.

use crate::{Chain, Form, Gate, Gather, Link, Structure, Weights};

/// A bound of what a relative error of one in every product does to each output: the map on absolute values.
///
/// What cancels in the definition does not cancel in its roundings, so signs and constants count by their absolute
/// values too. A learned gate is a smooth function of its logit z; its own error and that of its derivatives are at
/// most (2 + |z|)² times that of z.
///
/// Shapes: `x [n_in]`, result `[n_out]`.
///
/// # Panics
///
/// When `params` or `x` have other lengths than the structure's.
pub fn magnitude(structure: &dyn Structure, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let absolute: Vec<Vec<f64>> = params.iter().map(|values| abs(values)).collect();
    let absolute: Vec<&[f64]> = absolute.iter().map(Vec::as_slice).collect();
    of_absolute(structure, &absolute, &abs(x))
}

fn of_absolute(structure: &dyn Structure, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
    let sum = match structure.form() {
        Form::Sum(sum) => sum,
        Form::Chain(chain) => return chain.absolute().apply(params, x),
        Form::Dense | Form::Pattern(_) => return structure.apply(params, x),
    };
    let a = of_absolute(sum.a.as_ref(), &params[sum.a_params.clone()], x);
    let b = of_absolute(sum.b.as_ref(), &params[sum.b_params.clone()], x);
    let factor = match sum.gate {
        Gate::Learned { weight, bias } => {
            let z = params[bias][0] + params[weight].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            (2.0 + z).powi(2)
        }
        Gate::Fixed(_) | Gate::Plain => 1.0,
    };
    a.iter().zip(&b).map(|(a, b)| (a + b) * factor).collect()
}

/// Roundings on the way from an input to an output, or from an output's gradient back: the lengths of all sums on it.
pub fn depth(structure: &dyn Structure) -> usize {
    match structure.form() {
        Form::Dense => structure.n_in() + structure.n_out(),
        Form::Pattern(pattern) => pattern.n_in_ext + pattern.n_out_ext,
        Form::Chain(chain) => chain.links.iter().map(link_depth).sum(),
        // Logit, exponential, quotient, weighing.
        Form::Sum(sum) => depth(sum.a.as_ref()) + depth(sum.b.as_ref()) + structure.n_in() + 16,
    }
}

fn link_depth(link: &Link) -> usize {
    match link {
        Link::Blocks { weights: Weights::Param(_), q, p, .. } => q + p,
        Link::Blocks { weights: Weights::Tied { gather, .. }, q, p, .. } => q + p + terms(gather),
        // The constants themselves are rounded.
        Link::Blocks { weights: Weights::Constant(_), q, p, .. } => q + p + 1,
        Link::Transpose { .. } => 0,
        Link::Gather(gather) => terms(gather),
    }
}

/// Terms that an output of the map sums, or an input of its transpose.
fn terms(gather: &Gather) -> usize {
    let mut readers = vec![0; gather.n_in()];
    (0..gather.n_out()).for_each(|o| gather.terms_of(o).for_each(|(i, _)| readers[i] += 1));
    gather.terms() + readers.into_iter().max().unwrap_or(0)
}

fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

impl Chain {
    /// The same links with every sign of a gather positive and every constant by its absolute value: on absolute
    /// parameters and inputs, the [`magnitude`] of the chain.
    pub fn absolute(&self) -> Self {
        let links = self.links.iter().map(|link| match link.clone() {
            Link::Blocks { weights, groups, stride, q, p } => {
                let weights = match weights {
                    Weights::Param(param) => Weights::Param(param),
                    Weights::Tied { param, gather } => Weights::Tied { param, gather: gather.absolute() },
                    Weights::Constant(values) => Weights::Constant(abs(&values)),
                };
                Link::Blocks { weights, groups, stride, q, p }
            }
            Link::Transpose { batch, rows, cols } => Link::Transpose { batch, rows, cols },
            Link::Gather(gather) => Link::Gather(gather.absolute()),
        });
        Self { links: links.collect(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rng, build, structures};

    #[test]
    fn no_output_exceeds_its_magnitude_and_without_signs_it_is_the_output() {
        for structure in structures().flat_map(|kind| (kind.samples)()) {
            let mut rng = Rng::new(1);
            let mut draw = |len: usize| -> Vec<f64> { (0..len).map(|_| rng.uniform(-1.0, 1.0)).collect() };
            let params: Vec<Vec<f64>> = structure.params().iter().map(|spec| draw(spec.count())).collect();
            let params: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            let x = draw(structure.n_in());
            let (y, m) = (structure.apply(&params, &x), magnitude(structure.as_ref(), &params, &x));
            // The two are summed in different orders.
            let rounding = 1.0 + depth(structure.as_ref()) as f64 * f64::EPSILON;
            let within = y.iter().zip(&m).all(|(y, m)| y.abs() <= m * rounding);
            assert!(within && y.len() == m.len(), "{structure:?}: {y:?} {m:?}");
        }
        let dense = build(&"dense".into(), 2, 1, 0, None).unwrap();
        assert_eq!(magnitude(dense.as_ref(), &[&[-2.0, 3.0]], &[5.0, -7.0]), [31.0]);
        assert_eq!(depth(dense.as_ref()), 3);
    }
}
