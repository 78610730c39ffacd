//! The definition, block by block: takes anything, one thread.

use super::{Blocks, Kernel};

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/reference",
    accepts: |_| true,
    forward: |blocks, values, x, y, accumulate| {
        if !accumulate {
            y.fill(0.0);
        }
        blocks.for_each(|slot, o, i| {
            for (x, y) in x.chunks_exact(blocks.n_in).zip(y.chunks_exact_mut(blocks.n_out)) {
                y[o] += values[slot] * x[i];
            }
        });
    },
    input_gradient: |blocks, values, dy, dx, accumulate| {
        if !accumulate {
            dx.fill(0.0);
        }
        blocks.for_each(|slot, o, i| {
            for (dx, dy) in dx.chunks_exact_mut(blocks.n_in).zip(dy.chunks_exact(blocks.n_out)) {
                dx[i] += values[slot] * dy[o];
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
    packing: None,
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
