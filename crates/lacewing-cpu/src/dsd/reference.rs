//! The definition, block by block: takes anything, one thread.

use super::{Blocks, Kernel};
use crate::simd::Level;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/reference",
    accepts: |_| true,
    forward: |blocks, values, x, mut target, accumulate| {
        let mut y = target.sums();
        if !accumulate {
            y.fill(0.0);
        }
        blocks.for_each(|slot, o, i| {
            for (r, x) in x.chunks_exact(blocks.n_in).enumerate() {
                y.row_mut(r)[o] += values[slot] * x[i];
            }
        });
        target.finish(Level::current());
    },
    input_gradient: |blocks, values, dy, mut target, accumulate| {
        let mut dx = target.sums();
        if !accumulate {
            dx.fill(0.0);
        }
        blocks.for_each(|slot, o, i| {
            for (r, dy) in dy.chunks_exact(blocks.n_out).enumerate() {
                dx.row_mut(r)[i] += values[slot] * dy[o];
            }
        });
    },
    weight_gradient: |blocks, dy, x, dvalues| {
        blocks.for_each(|slot, o, i| {
            for (x, dy) in x.chunks_exact(blocks.n_in).zip(dy.chunks_exact(blocks.n_out)) {
                dvalues[slot] += dy[o] * x[i];
            }
        });
    },
    packings: &[],
};

impl Blocks {
    /// Calls `f(slot, output, input)` for every stored value: the definition of the format.
    pub(super) fn for_each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let (br, bc) = (self.br, self.bc);
        for (block, &(row, col)) in self.positions.iter().enumerate() {
            for i in 0..br {
                for j in 0..bc {
                    f((block * br + i) * bc + j, row as usize * br + i, col as usize * bc + j);
                }
            }
        }
    }
}
