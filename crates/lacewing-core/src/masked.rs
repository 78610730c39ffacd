//! A sparse weight: values at the places of a [`Pattern`], found by a column a block and a start a row of blocks.
//!
//! Cost of a row: [`Pattern::values_len`] multiply-adds.

use serde_json::Value;

use crate::structure::check_params;
use crate::{Counts, Form, IndexBuffer, Init, ParamSpec, Pattern, PatternKind, Rng, Structure};

/// `y = W x` with `W[r_t · rows + i, c_t · cols + j] = weight[t, i, j]` at the places `(r_t, c_t)` of a pattern, and
/// 0 elsewhere.
///
/// Parameter `weight [nnz, rows, cols]` for a pattern of blocks, `[nnz]` for one of single weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Masked {
    /// The name of its row in the table.
    pub(crate) name: &'static str,
    pub(crate) pattern: Pattern,
    pub(crate) fan_in: FanIn,
    /// Whether the places may be any others.
    pub(crate) free: bool,
    /// As [`Structure::config`] gives it.
    pub(crate) config: Value,
}

/// The number of inputs that the first values of a [`Masked`] weight go by, in place of a dense layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FanIn {
    /// What each row of blocks has.
    Row,
    /// What a row has on average: a dense draw over √density.
    Mean,
}

impl Structure for Masked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn n_in(&self) -> usize {
        self.pattern.n_in
    }

    fn n_out(&self) -> usize {
        self.pattern.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        let (rows, cols) = self.pattern.block;
        let shape = [self.pattern.nnz(), rows, cols];
        let shape = if self.pattern.kind == PatternKind::Block { &shape[..] } else { &shape[..1] };
        vec![ParamSpec::new("weight", shape)]
    }

    fn form(&self) -> Form<'_> {
        Form::Pattern(&self.pattern)
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let Pattern { n_out, n_in, .. } = self.pattern;
        if self.fan_in == FanIn::Row {
            return vec![self.pattern.init(init, rng)];
        }
        let len = self.pattern.values_len();
        let scale = (n_out as f64 * n_in as f64 / len as f64).sqrt();
        let mut values = init.draw(n_out, n_in, len, rng);
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        vec![values]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.pattern.n_in_ext as f64).sqrt()
    }

    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let (rows, cols) = self.pattern.block;
        let mut dense = vec![0.0; n_out * n_in];
        for (t, &(block_row, block_col)) in self.pattern.positions.iter().enumerate() {
            for i in 0..rows {
                for j in 0..cols {
                    let (row, col) = (block_row as usize * rows + i, block_col as usize * cols + j);
                    if row < n_out && col < n_in {
                        dense[row * n_in + col] = params[0][t * rows * cols + i * cols + j];
                    }
                }
            }
        }
        Some(dense)
    }

    fn counts(&self) -> Counts {
        let (parameters, n_rows) = (self.pattern.values_len(), self.pattern.grid().0);
        Counts { parameters, bytes: 4 * (parameters + self.pattern.nnz() + n_rows + 1), macs: parameters }
    }

    fn with_positions(&self, positions: Vec<(u32, u32)>) -> Option<Box<dyn Structure>> {
        if !self.free {
            return None;
        }
        let pattern = Pattern { positions, ..self.pattern.clone() };
        Some(Box::new(Self { pattern, config: self.config.clone(), ..*self }))
    }

    fn config(&self) -> Value {
        self.config.clone()
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        self.pattern.buffers()
    }
}
