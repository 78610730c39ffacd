//! Chains: products of block-diagonal factors and stride permutations. One file a chain, one row here.

use crate::StructureKind;
pub use crate::butterfly::ButterflyProduct;

mod bf_gadget;
mod block_butterfly;
mod block_diagonal;
mod butterfly;
mod debut;
mod fastfood;
mod low_rank;
mod monarch;
mod monarch_einsum;
mod transform;

pub use bf_gadget::BfGadget;
pub use block_butterfly::{BlockButterfly, BlockButterflyConfig};
pub use block_diagonal::BlockDiagonal;
pub use butterfly::{Butterfly, ButterflyConfig, ButterflyInit};
pub use debut::{Debut, DebutFactor};
pub use fastfood::Fastfood;
pub use low_rank::LowRank;
pub(crate) use low_rank::RANK;
pub use monarch::{Monarch, MonarchFactors};
pub use monarch_einsum::{EinsumFactors, EinsumPacking, MonarchEinsum};
pub use transform::{Transform, TransformKind};

/// Every chain.
pub static TABLE: &[&StructureKind] = &[
    &block_diagonal::KIND,
    &monarch::KIND,
    &low_rank::KIND,
    &butterfly::KIND,
    &block_butterfly::KIND,
    &monarch_einsum::KIND,
    &bf_gadget::KIND,
    &debut::KIND,
    &transform::KIND,
    &fastfood::KIND,
];
