//! Chains: products of block-diagonal factors and stride permutations. One file a chain, one row here.

use crate::StructureKind;

mod block_diagonal;
mod low_rank;
mod monarch;

pub use block_diagonal::BlockDiagonal;
pub use low_rank::LowRank;
pub(crate) use low_rank::RANK;
pub use monarch::{Monarch, MonarchFactors};

/// Every chain.
pub static TABLE: &[&StructureKind] = &[&block_diagonal::KIND, &monarch::KIND, &low_rank::KIND];
