//! Block-sparse products on the host: the kernel that `lacewing_cpu::dsd` selects.

use super::BlockIndex;
use crate::Tensor;
use crate::tensor::Version;
use lacewing_cpu::dsd::{self, select};
use lacewing_cpu::finish::Target;
use std::sync::{Arc, Mutex, PoisonError};

/// The index was checked when it was made and the operands by the op, so a refusal is a bug of ours.
const CHECKED: &str = "operands were checked";

/// Values packed by the latest product that needed them: they serve as long as nobody writes to the values.
#[derive(Debug, Default)]
pub(super) struct Packed(Mutex<Option<(Version, Arc<dsd::Packed>)>>);

impl Packed {
    /// Those of `values`, packed here unless they were before.
    fn of(&self, index: &BlockIndex, values: &Tensor) -> Arc<dsd::Packed> {
        let read = values.read();
        let version = values.version();
        // Held for a moment only: packing is done by all threads, and one that waits may be given another product.
        let latest = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = latest().take();
        let memory = match kept {
            Some((of, packed)) if Some(of) == version => {
                *latest() = Some((of, packed.clone()));
                return packed;
            }
            Some((_, old)) => Arc::into_inner(old),
            None => None,
        };
        let blocks = &index.0.blocks;
        let packed = Arc::new(select(blocks).pack(blocks, &read, memory).expect(CHECKED));
        *latest() = version.map(|version| (version, packed.clone()));
        packed
    }
}

pub(super) fn forward(index: &BlockIndex, values: &Tensor, x: &Tensor, y: Target<'_>) {
    let blocks = &index.0.blocks;
    let kernel = select(blocks);
    if kernel.packs(blocks, x.rows()) {
        let packed = index.0.packed.of(index, values);
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
