//! Projection: the parameters that bring a structure nearest to a dense matrix, and how near that is.
//!
//! Nearest is meant in the Frobenius norm, or, given the second moment `M = E[x xᵀ]` of the layer's inputs, in the mean
//! square of the outputs: `tr((W − Ŵ) M (W − Ŵ)ᵀ)`. A structure with an optimum in closed form computes it in
//! [`crate::Structure::project`]; the others go by their [`Form`]: a pattern by least squares on its places, a chain
//! by alternating least squares over its factors and descent on all of them, a sum by alternating between its branches.

mod alternating;
mod balance;
mod complex;
mod descent;
mod hierarchical;
pub(crate) mod low_rank;
mod moment;
pub(crate) mod monarch;
mod normal_equations;
pub(crate) mod pattern;
mod sum;
pub(crate) mod tied;

pub use complex::{Complex, ComplexMonarch, monarch_complex};
pub use hierarchical::{butterfly_complex, hierarchical};
pub use moment::Moment;

use lacewing_linalg::matmul;

use crate::{Form, Gate, ParamSpec, Structure, Sum};

/// A dense layer to come near to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Rows of W.
    pub n_out: usize,
    /// Columns of W.
    pub n_in: usize,
    /// `W [n_out, n_in]`, row-major.
    pub weight: &'a [f64],
    /// `M [n_in, n_in]`, symmetric and positive semidefinite, when calibration inputs are at hand.
    pub moment: Option<&'a [f64]>,
}

/// A structure's parameters and how far they are from the target.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// Values of every parameter, in the structure's order.
    pub params: Vec<Vec<f64>>,
    /// `‖W − Ŵ‖ / ‖W‖` in the Frobenius norm; 0 for a zero W.
    pub error: f64,
    /// `√(tr((W − Ŵ) M (W − Ŵ)ᵀ) / tr(W M Wᵀ))`, the relative error of the outputs, where M was given.
    pub output_error: Option<f64>,
}

impl<'a> Target<'a> {
    /// A target without calibration.
    ///
    /// # Panics
    ///
    /// When `weight` has another length than `n_out · n_in`.
    pub fn new(n_out: usize, n_in: usize, weight: &'a [f64]) -> Self {
        assert_eq!(weight.len(), n_out * n_in, "length of the weight");
        Self { n_out, n_in, weight, moment: None }
    }

    /// The same target with the second moment of its inputs.
    ///
    /// # Panics
    ///
    /// When `moment` has another length than `n_in · n_in`.
    pub fn with_moment(self, moment: &'a [f64]) -> Self {
        assert_eq!(moment.len(), self.n_in * self.n_in, "length of the second moment");
        Self { moment: Some(moment), ..self }
    }

    /// `‖W − Ŵ‖ / ‖W‖`; 0 when both are zero.
    pub fn error(&self, approximation: &[f64]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let differences = &mut self.weight.iter().zip(approximation).map(|(w, a)| w - a);
        ratio(squares(differences), squares(&mut self.weight.iter().copied()))
    }

    /// The relative error of the outputs, where the second moment is known.
    pub fn output_error(&self, approximation: &[f64]) -> Option<f64> {
        let moment = self.moment?;
        let difference: Vec<f64> = self.weight.iter().zip(approximation).map(|(w, a)| w - a).collect();
        let energy = |w: &[f64]| -> f64 {
            let product = matmul(w, moment, (self.n_out, self.n_in, self.n_in));
            let energy = w.iter().zip(product).map(|(w, product)| w * product).sum::<f64>();
            // Rounding may leave a negative zero energy; NaN stays.
            if energy < 0.0 { 0.0 } else { energy }
        };
        Some(ratio(energy(&difference), energy(self.weight)))
    }
}

/// `√(a / b)`; 0 for 0 / 0.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { (a / b).sqrt() }
}

/// The projection of `target` onto `structure`, whose pattern stays as it is.
///
/// A learned gate is set to ½ for every input, which makes the map one matrix.
///
/// # Panics
///
/// When the sizes differ.
pub fn project(structure: &dyn Structure, target: &Target<'_>) -> Projection {
    assert_eq!((structure.n_out(), structure.n_in()), (target.n_out, target.n_in), "sizes of the target");
    let params = structure.project(target);
    let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
    let dense = dense_of(structure, &slices);
    Projection { error: target.error(&dense), output_error: target.output_error(&dense), params }
}

/// `Ŵ [n_out, n_in]` of a structure whose map is linear at these parameters.
pub(crate) fn dense_of(structure: &dyn Structure, params: &[&[f64]]) -> Vec<f64> {
    structure.to_dense(params).unwrap_or_else(|| {
        if let Form::Sum(sum) = structure.form()
            && let Some(dense) = dense_sum(sum, params)
        {
            return dense;
        }
        let (n_out, n_in) = (structure.n_out(), structure.n_in());
        let mut dense = vec![0.0; n_out * n_in];
        for col in 0..n_in {
            let mut x = vec![0.0; n_in];
            x[col] = 1.0;
            for (row, y) in structure.apply(params, &x).into_iter().enumerate() {
                dense[row * n_in + col] = y;
            }
        }
        dense
    })
}

/// The matrix of a sum whose learned gate does not look at its input, or `None`.
fn dense_sum(sum: &Sum, params: &[&[f64]]) -> Option<Vec<f64>> {
    let Gate::Learned { weight, bias } = sum.gate else { return None };
    if params[weight].iter().any(|&w| w != 0.0) {
        return None;
    }
    let g = 1.0 / (1.0 + (-params[bias][0]).exp());
    let a = dense_of(&*sum.a, &params[sum.a_params.clone()]);
    let b = dense_of(&*sum.b, &params[sum.b_params.clone()]);
    Some(a.iter().zip(b).map(|(a, b)| (1.0 - g) * a + g * b).collect())
}

/// The projection by a structure's form, for those without a better one of their own.
pub(crate) fn by_form(form: Form<'_>, specs: &[ParamSpec], target: &Target<'_>) -> Vec<Vec<f64>> {
    match form {
        Form::Dense => vec![target.weight.to_vec()],
        Form::Pattern(pattern) => vec![pattern::project(pattern, target)],
        Form::Sum(sum) => sum::project(sum, specs, target),
        Form::Chain(chain) => match tied::scatter_mean(chain, target) {
            Some(params) if target.moment.is_none() => params,
            _ => alternating::project(chain, specs, target),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_the_norms_they_stand_for() {
        let weight = [3.0, 0.0, 0.0, 4.0];
        let moment = [2.0, 1.0, 1.0, 5.0];
        let target = Target::new(2, 2, &weight);
        assert_eq!(target.error(&[0.0; 4]), 1.0);
        assert_eq!(target.error(&weight), 0.0);
        // ‖(0, 3; 0, 0)‖ / 5.
        assert_eq!(target.error(&[3.0, -3.0, 0.0, 4.0]), 0.6);
        assert_eq!(target.output_error(&weight), None);
        let target = target.with_moment(&moment);
        assert_eq!(target.output_error(&weight), Some(0.0));
        // tr(W M Wᵀ) = 9 · 2 + 16 · 5; of the difference (1, 1; 0, 0): 2 + 1 + 1 + 5.
        assert_eq!(target.output_error(&[2.0, -1.0, 0.0, 4.0]), Some((9.0f64 / 98.0).sqrt()));
    }

    #[test]
    fn a_zero_target_has_error_zero_or_infinity_and_nan_stays_nan() {
        let target = Target::new(1, 2, &[0.0; 2]).with_moment(&[1.0, 0.0, 0.0, 1.0]);
        assert_eq!((target.error(&[0.0; 2]), target.output_error(&[0.0; 2])), (0.0, Some(0.0)));
        assert_eq!(
            (target.error(&[1.0; 2]), target.output_error(&[1.0; 2])),
            (f64::INFINITY, Some(f64::INFINITY))
        );
        assert!(target.error(&[f64::NAN; 2]).is_nan());
        assert!(target.output_error(&[f64::NAN; 2]).unwrap().is_nan());
    }

    #[test]
    #[should_panic(expected = "sizes of the target")]
    fn a_target_of_another_size_is_refused() {
        project(&crate::Dense { n_in: 2, n_out: 3 }, &Target::new(2, 3, &[0.0; 6]));
    }
}
