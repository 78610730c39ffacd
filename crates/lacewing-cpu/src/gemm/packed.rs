//! A matrix kept in the order that products of some rows and more read it.

use super::panels;
use crate::dsd::{self, Blocks};
use crate::finish::Target;
use crate::scratch::Aligned;
use crate::simd::{Level, MatRef};

/// Rows from which products by a packed matrix are faster than [`gemm`](super::gemm()): 1.0 to 1.8 times (two cores with
/// AVX-512, an AMD EPYC and an Intel Xeon, 768 to 4096 wide, to 1024 rows; 0.94 once, 768 to 3072 at 1024 rows of the Xeon).
const LEAST_ROWS: usize = 8;
/// Inner elements and columns of the blocks of a matrix that is multiplied as if it were block-sparse.
const BLOCK: usize = 32;
/// Elements up to which that is faster than panels for any number of rows, and rows from which it is for any matrix. A
/// larger one comes from memory, which panels ask for ahead: 1.2 times as fast at 4096 x 4096 and 128 rows of the Xeon.
const BLOCKED: usize = 8 << 20;
const MANY_ROWS: usize = 512;

/// A matrix `b [k, n]` in the order that a product reads it, which is that of one [`Level`].
#[derive(Debug)]
pub struct Packed {
    memory: Aligned,
    level: Level,
    k: usize,
    n: usize,
    /// All blocks of `bᵀ`, where it is multiplied by the kernel of block-sparse weights: the fastest there is for a matrix
    /// that fits the caches, whose blocks then lie as panels of [`BLOCK`] columns.
    blocks: Option<Blocks>,
}

impl Packed {
    /// Packs `b` by all threads for products of about `rows` rows, into the `memory` of another one if given. Panics unless
    /// the elements of its rows or those of its columns are contiguous.
    pub fn new(b: MatRef<'_>, rows: usize, memory: Option<Self>) -> Self {
        let (level, k, n) = (Level::current(), b.rows(), b.cols());
        let (old, mut memory) = match memory {
            Some(old) => (Some((old.k, old.n, old.blocks)), old.memory),
            None => (None, Aligned::default()),
        };
        let fits = (k * n <= BLOCKED || rows >= MANY_ROWS) && k * n > 0;
        let blocked = fits && k.is_multiple_of(BLOCK) && n.is_multiple_of(BLOCK);
        let blocks = blocked.then(|| match old {
            Some((old_k, old_n, Some(blocks))) if (old_k, old_n) == (k, n) => blocks,
            _ => all_blocks(k, n),
        });
        if blocked {
            panels::pack_by(level, BLOCK, b, memory.resize(k * n));
        } else {
            panels::pack(level, b, memory.resize(panels::len(level, k, n)));
        }
        Self { memory, level, k, n, blocks }
    }

    /// Whether a product of `rows` rows is faster by a packed matrix than by [`gemm`](super::gemm()), not counting what
    /// packing takes.
    pub fn pays(rows: usize) -> bool {
        rows >= LEAST_ROWS
    }

    /// `out (+)= a b`, finished.
    pub(super) fn product(&self, out: Target<'_>, accumulate: bool, a: MatRef<'_>) {
        assert_eq!((a.rows(), a.cols(), self.n), (out.rows(), self.k, out.cols()), "rows, inner, columns");
        let packed = self.memory.get();
        match &self.blocks {
            Some(blocks) => dsd::by_panels(blocks, packed, a, out, accumulate),
            None => panels::product(out, accumulate, a, (packed, self.level)),
        }
    }
}

/// Every block of a weight `[n, k]`.
fn all_blocks(k: usize, n: usize) -> Blocks {
    let (rows, cols) = ((n / BLOCK) as u32, (k / BLOCK) as u32);
    let positions = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))).collect();
    Blocks::new((BLOCK, BLOCK), (n, k), positions).expect("blocks that divide the matrix, in order")
}
