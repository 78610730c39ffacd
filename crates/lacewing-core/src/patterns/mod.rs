//! Patterns: values at chosen places of W. One file a pattern, one row here.

use crate::StructureKind;

mod block_sparse;
mod flat_butterfly;
mod nm;
mod unstructured;

pub use block_sparse::{BlockSparse, balanced_blocks};
pub(crate) use flat_butterfly::{BLOCK, BUTTERFLY_SIZE, GLOBAL_SIZE, N_FACTORS, SHUFFLE};
pub use flat_butterfly::{Butterfly, FlatButterfly};
pub use nm::{Nm, keep_in_group};
pub use unstructured::Unstructured;

/// Every pattern.
pub static TABLE: &[&StructureKind] =
    &[&unstructured::KIND, &nm::KIND, &block_sparse::KIND, &flat_butterfly::KIND];
