//! Sketches: few values at many places of W. One file a sketch, one row here.

mod circulant;
mod ssl;
mod ssl_hashed;
mod toeplitz;

pub use circulant::Circulant;
pub use ssl::{Ssl, SslHash};
pub use ssl_hashed::{SslHashed, TileHash};
pub use toeplitz::Toeplitz;

use crate::{Chain, Gather, Link, StructureError, StructureKind, Weights};

/// Every sketch.
pub static TABLE: &[&StructureKind] = &[&circulant::KIND, &toeplitz::KIND, &ssl::KIND, &ssl_hashed::KIND];

/// The most weights of a layer whose map from weights to values is listed, at 4 bytes a weight.
const MAX_LISTED: usize = 1 << 28;

/// Checks a number of weights or values before a list of them is made.
fn check_listed(
    structure: &'static str,
    size_name: &'static str,
    sizes: [usize; 2],
) -> Result<(), StructureError> {
    let (got, max) = (sizes[0].saturating_mul(sizes[1]), MAX_LISTED);
    if got > max {
        return Err(StructureError::Size { structure, size_name, got, max });
    }
    Ok(())
}

/// `y = W x` with `W[i, j] = ± value[place(i, j)]` of `values` values.
fn tied_chain(
    n_out: usize,
    n_in: usize,
    values: usize,
    place: impl Fn(usize, usize) -> (usize, bool),
) -> Chain {
    let gather = Gather::new(values, n_out * n_in, 1, |at, _| Some(place(at / n_in, at % n_in)));
    let weights = Weights::Tied { param: 0, gather };
    let links = vec![Link::Blocks { weights, groups: 1, stride: 1, q: n_out, p: n_in }];
    Chain { n_in, n_in_ext: n_in, n_out_ext: n_out, n_out, links }.checked()
}
