//! The one trait of this crate: what a linear map with a structure must say about itself.

use std::fmt::Debug;

use crate::{Form, Init, Rng, Target, project};

/// One trainable array of a structure, in storage order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Name inside the layer, such as `weight`, `blkdiag1` or `sparse.weight`.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Whether weight decay may apply to it.
    pub decay: bool,
}

impl ParamSpec {
    /// A parameter that weight decay applies to.
    pub fn new(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), decay: true }
    }

    /// How many values it holds.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An array of indices that, with the config, defines a structure exactly. Saved in every checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexBuffer {
    /// Name inside the layer, such as `cols` or `sparse.cols`.
    pub name: String,
    /// The values, row-major.
    pub data: Vec<u32>,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

/// What a structure costs. The bias belongs to the layer and is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Trainable values, padding included.
    pub parameters: usize,
    /// Bytes of the values as f32 plus the indices as a packed file would hold them (u32 for rows and columns,
    /// `ceil(log2 m)` bits a value for N:M).
    pub bytes: usize,
    /// Multiply-adds for one row of input.
    pub macs: usize,
}

/// A linear map `x [n_in] → y [n_out]` with few parameters (or, gated, a sum of two weighted by the input).
pub trait Structure: Debug + Send + Sync {
    /// The name of its row in the table.
    fn name(&self) -> &'static str;

    /// Length of one row of input.
    fn n_in(&self) -> usize;

    /// Length of one row of output.
    fn n_out(&self) -> usize;

    /// The trainable arrays, in storage order.
    fn params(&self) -> Vec<ParamSpec>;

    /// How it is executed.
    fn form(&self) -> Form<'_>;

    /// First values of every parameter, in the order of [`Structure::params`].
    ///
    /// [`Init::Default`] is the structure's own rule. The other rules are what a model asks of all its layers; a
    /// structure they do not reach ([`Structure::takes_model_init`] is false) keeps its own, except that
    /// [`Init::Zeros`] always makes the map zero. Where the map is a product only the last factor becomes zero, since
    /// with all of them zero every gradient would be zero too.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>>;

    /// Whether a model's own initialization (truncated normal, Xavier) replaces the default one, bias included.
    fn takes_model_init(&self) -> bool {
        true
    }

    /// The bias starts as U(−bound, bound).
    fn bias_bound(&self) -> f64;

    /// The definition of the structure: `W [n_out, n_in]`, row-major, or `None` when no one matrix does it (a learned
    /// gate depends on the input). Written independently of [`Structure::form`], so that the two check each other.
    ///
    /// # Panics
    ///
    /// When `params` does not match [`Structure::params`].
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>>;

    /// `y = W x` for one row by the definition.
    ///
    /// Shapes: `x [n_in]`, result `[n_out]`.
    ///
    /// # Panics
    ///
    /// When `params` or `x` have other lengths.
    fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.n_in(), "length of x");
        let w = self.to_dense(params).expect("a structure without a dense matrix defines apply itself");
        w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    /// The parameters that bring the map nearest to `target`, in the order of [`Structure::params`]; see [`crate::project()`].
    ///
    /// The default goes by [`Structure::form`]. A structure whose optimum has a closed form has its own.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        project::by_form(self.form(), &self.params(), target)
    }

    /// Parameters, bytes and multiply-adds.
    fn counts(&self) -> Counts;

    /// Stored weights over `n_in · n_out`. Padding counts, so it may exceed the share of non-zeros, and 1.
    fn density(&self) -> f64 {
        self.counts().parameters as f64 / (self.n_in() as f64 * self.n_out() as f64)
    }

    /// The same structure with its values at other `positions` of the grid, sorted row-major without repetition; none where
    /// the structure decides itself where they are.
    fn with_positions(&self, positions: Vec<(u32, u32)>) -> Option<Box<dyn Structure>> {
        let _ = positions;
        None
    }

    /// The config it was built from, every default filled in, with its name under `structure`.
    fn config(&self) -> serde_json::Value;

    /// Everything else that defines it. `restore(config, n_in, n_out, buffers)` is the same structure again.
    fn buffers(&self) -> Vec<IndexBuffer> {
        Vec::new()
    }
}

/// Checks the lengths of `params` against `specs`; the first thing each definition does.
pub(crate) fn check_params(specs: &[ParamSpec], params: &[&[f64]]) {
    assert_eq!(specs.len(), params.len(), "number of parameters");
    for (spec, values) in specs.iter().zip(params) {
        assert_eq!(spec.count(), values.len(), "length of parameter {}", spec.name);
    }
}
