//! Dense: `y = W x`, every weight its own parameter. The baseline of every comparison.

use serde_json::{Value, json};

use crate::config::Options;
use crate::structure::check_params;
use crate::{Built, Counts, Form, Init, ParamSpec, Problem, Rng, Structure, StructureKind};

/// The row of the table.
pub(crate) static KIND: StructureKind = StructureKind {
    name: "dense",
    about: "every weight stored: the baseline",
    keys: &[],
    build,
    samples: || vec![Box::new(Dense { n_in: 5, n_out: 3 }), Box::new(Dense { n_in: 1, n_out: 1 })],
    sized: |_, _, density| (density >= 1.0).then(|| json!({"structure": "dense"})),
};

/// `y = W x`, parameter `weight [n_out, n_in]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Length of one row of input.
    pub n_in: usize,
    /// Length of one row of output.
    pub n_out: usize,
}

fn build(_: &Options, problem: &Problem<'_>) -> Built {
    problem.saved("dense", [])?;
    Ok(Box::new(Dense { n_in: problem.n_in, n_out: problem.n_out }))
}

impl Structure for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        vec![ParamSpec::new("weight", &[self.n_out, self.n_in])]
    }

    fn form(&self) -> Form<'_> {
        Form::Dense
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        vec![init.draw(self.n_out, self.n_in, self.n_out * self.n_in, rng)]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in as f64).sqrt()
    }

    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        Some(params[0].to_vec())
    }

    fn counts(&self) -> Counts {
        let parameters = self.n_out * self.n_in;
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        json!({"structure": "dense"})
    }
}
