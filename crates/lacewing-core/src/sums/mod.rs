//! Sums: two structures on the same input, added. One file a sum, one row here.

use crate::StructureKind;

mod pixelfly;

pub use pixelfly::Pixelfly;

/// Every sum.
pub static TABLE: &[&StructureKind] = &[&pixelfly::KIND];
