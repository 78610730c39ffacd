//! Patterns: values at chosen places of W. One file a pattern, one row here.

use crate::StructureKind;

mod block_sparse;
mod flat_butterfly;
mod ninja_turtle;
mod nm;
mod random_tiles;
mod small_world;
mod stripe_butterfly;
mod top_k_tiles;
mod unstructured;

pub use block_sparse::balanced_blocks;
pub use flat_butterfly::Butterfly;
pub(crate) use flat_butterfly::{
    BLOCK, BUTTERFLY_SIZE, DIVISOR, GLOBAL_SIZE, MAX_BLOCK, MAX_BUTTERFLY, N_FACTORS, SHUFFLE, flat_butterfly,
};
pub use nm::{Nm, keep_in_group};

/// Every pattern.
pub static TABLE: &[&StructureKind] = &[
    &unstructured::KIND,
    &small_world::KIND,
    &nm::KIND,
    &block_sparse::KIND,
    &flat_butterfly::KIND,
    &stripe_butterfly::KIND,
    &ninja_turtle::KIND,
    &random_tiles::KIND,
    &top_k_tiles::KIND,
];
