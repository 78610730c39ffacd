//! Block-sparse products on the host: the kernel that `lacewing_cpu::dsd` selects.

use super::BlockIndex;
use crate::Tensor;
use lacewing_cpu::dsd::select;
use lacewing_cpu::finish::Target;

/// The index was checked when it was made and the operands by the op, so a refusal is a bug of ours.
const CHECKED: &str = "operands were checked";

/// `y` finished, from values that are `kept` for many products, or for one.
pub(super) fn forward(index: &BlockIndex, values: &Tensor, x: &Tensor, y: Target<'_>, kept: bool) {
    let blocks = &index.0.blocks;
    let kernel = select(blocks);
    if let Some(packing) = kernel.packing(blocks, x.rows(), kept) {
        let read = values.read();
        let pack = |memory| kernel.pack(blocks, packing, &read, memory);
        let packed = index.0.packed[packing].of(&[values], pack).expect(CHECKED);
        kernel.forward_packed(blocks, &packed, &x.read(), y, false).expect(CHECKED);
        return;
    }
    kernel.forward(blocks, &values.read(), &x.read(), y, false).expect(CHECKED);
}

pub(super) fn input_gradient(index: &BlockIndex, values: &Tensor, dy: &Tensor, dx: &Tensor) {
    let blocks = &index.0.blocks;
    let kernel = select(blocks);
    kernel.input_gradient(blocks, &values.read(), &dy.read(), &mut dx.write(), false).expect(CHECKED);
}

pub(super) fn weight_gradient(index: &BlockIndex, dy: &Tensor, x: &Tensor, dvalues: &Tensor) {
    let blocks = &index.0.blocks;
    let kernel = select(blocks);
    kernel.weight_gradient(blocks, &dy.read(), &x.read(), &mut dvalues.write()).expect(CHECKED);
}
