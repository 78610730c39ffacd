//! Patterns: values at chosen places of W. One file a pattern, one row here.

use crate::StructureKind;

mod block_sparse;
mod flat_butterfly;
mod ninja_turtle;
mod nm;
mod random_tiles;
mod stripe_butterfly;
mod top_k_tiles;
mod unstructured;

pub use block_sparse::{BlockSparse, balanced_blocks};
pub(crate) use flat_butterfly::{
    BLOCK, BUTTERFLY_SIZE, DIVISOR, GLOBAL_SIZE, MAX_BLOCK, MAX_BUTTERFLY, N_FACTORS, SHUFFLE,
};
pub use flat_butterfly::{Butterfly, FlatButterfly};
pub use ninja_turtle::NinjaTurtle;
pub use nm::{Nm, keep_in_group};
pub use random_tiles::RandomTiles;
pub use stripe_butterfly::StripeButterfly;
pub use top_k_tiles::TopKTiles;
pub use unstructured::Unstructured;

/// Every pattern.
pub static TABLE: &[&StructureKind] = &[
    &unstructured::KIND,
    &nm::KIND,
    &block_sparse::KIND,
    &flat_butterfly::KIND,
    &stripe_butterfly::KIND,
    &ninja_turtle::KIND,
    &random_tiles::KIND,
    &top_k_tiles::KIND,
];
