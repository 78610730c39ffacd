//! Blocks of few outputs or inputs: too narrow to fill registers, which hold rows instead.

use super::elements::{self, Side};
use super::{Kernel, pieces};

/// Outputs and inputs of a block at most.
const MOST: usize = 8;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/small",
    accepts: |blocks| blocks.br <= MOST && blocks.bc <= MOST,
    forward: |blocks, values, x, y, accumulate| {
        if pieces::accepts(blocks, y.rows()) {
            return pieces::forward(blocks, values, x, y, accumulate);
        }
        elements::product(Side::rows(blocks), values, (x, blocks.n_in), y, accumulate);
    },
    input_gradient: |blocks, values, dy, dx, accumulate| {
        elements::product(Side::columns(blocks), values, (dy, blocks.n_out), dx, accumulate);
    },
    weight_gradient: elements::block_weight_gradient,
    packings: &[],
};
