//! Products with a block-sparse weight: dense = sparse · dense, in the three forms that training needs.
//!
//! `W [n_out, n_in]` is zero outside `nnz` blocks of `br × bc`; block `b` has its place `(block_row, block_col)` in
//! units of blocks and its values at `values[b]`, row-major. Kernels stand in [`KERNELS`]; the first that accepts a
//! [`Blocks`] runs.

mod dots;
mod elements;
mod one_row;
mod order;
mod outer;
mod panels;
mod pieces;
mod reference;
mod small;
mod tiles;

use crate::finish::Target;
use crate::scratch::Aligned;
use elements::Elements;
use order::Order;
pub(crate) use panels::by_panels;
use thiserror::Error;

/// A block-sparse weight's pattern: checked and put in order once, so that products need not.
#[derive(Debug, Clone)]
pub struct Blocks {
    br: usize,
    bc: usize,
    n_out: usize,
    n_in: usize,
    positions: Vec<(u32, u32)>,
    /// By block rows, for the forward product.
    by_row: Order,
    /// By block columns, for the input gradient.
    by_col: Order,
    /// Of single values, for tiles of rows.
    elements: Elements,
}

/// What disagrees in a block-sparse product.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DsdError {
    /// The blocks do not divide the weight.
    #[error("blocks of {br}x{bc} do not divide a weight of {n_out}x{n_in}")]
    Indivisible {
        /// Rows of a block.
        br: usize,
        /// Columns of a block.
        bc: usize,
        /// Rows of the weight.
        n_out: usize,
        /// Columns of the weight.
        n_in: usize,
    },
    /// A block lies outside the weight.
    #[error("block {block} is at ({row}, {col}), outside a grid of {rows}x{cols} blocks")]
    Outside {
        /// Its number.
        block: usize,
        /// Its block row.
        row: u32,
        /// Its block column.
        col: u32,
        /// Block rows of the weight.
        rows: usize,
        /// Block columns of the weight.
        cols: usize,
    },
    /// Positions are not in row-major order, or one repeats.
    #[error("block {block} is not after its predecessor in row-major order")]
    Order {
        /// The number of the offending block.
        block: usize,
    },
    /// An operand of the wrong length.
    #[error("{operand} has {got} elements, {expected} needed")]
    Len {
        /// Which operand.
        operand: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
}

impl Blocks {
    /// Blocks of `(br, bc)` of a weight of `(n_out, n_in)`, at strictly increasing row-major `positions`.
    ///
    /// # Errors
    ///
    /// [`DsdError`] where blocks do not divide the weight, a position is outside it, out of order or repeated.
    pub fn new(
        (br, bc): (usize, usize),
        (n_out, n_in): (usize, usize),
        positions: Vec<(u32, u32)>,
    ) -> Result<Self, DsdError> {
        if br == 0 || bc == 0 || !n_out.is_multiple_of(br) || !n_in.is_multiple_of(bc) {
            return Err(DsdError::Indivisible { br, bc, n_out, n_in });
        }
        let (rows, cols) = (n_out / br, n_in / bc);
        for (block, &(row, col)) in positions.iter().enumerate() {
            if row as usize >= rows || col as usize >= cols {
                return Err(DsdError::Outside { block, row, col, rows, cols });
            }
            if block > 0 && positions[block - 1] >= (row, col) {
                return Err(DsdError::Order { block });
            }
        }
        let by_row = Order::new(rows, positions.iter().copied());
        let by_col = Order::new(cols, positions.iter().map(|&(row, col)| (col, row)));
        let elements = Elements::default();
        Ok(Self { br, bc, n_out, n_in, positions, by_row, by_col, elements })
    }

    /// Block row and block column of every block.
    pub fn positions(&self) -> &[(u32, u32)] {
        &self.positions
    }

    /// Stored values.
    pub fn nnz_values(&self) -> usize {
        self.positions.len() * self.br * self.bc
    }

    fn rows(
        &self,
        values: usize,
        x: (&'static str, usize),
        y: (&'static str, usize),
    ) -> Result<usize, DsdError> {
        let rows = x.1.checked_div(self.n_in).or(y.1.checked_div(self.n_out)).unwrap_or(0);
        for (operand, got, expected) in [
            ("values", values, self.nnz_values()),
            (x.0, x.1, rows * self.n_in),
            (y.0, y.1, rows * self.n_out),
        ] {
            if got != expected {
                return Err(DsdError::Len { operand, expected, got });
            }
        }
        Ok(rows)
    }

    /// [`Blocks::rows`] of a forward product, whose matrix says itself how long its rows are.
    fn rows_of_product(&self, values: usize, x: usize, y: &Target<'_>) -> Result<usize, DsdError> {
        let rows = self.rows(values, ("x", x), ("y", y.rows() * y.cols()))?;
        if y.cols() == self.n_out {
            return Ok(rows);
        }
        Err(DsdError::Len { operand: "a row of y", expected: self.n_out, got: y.cols() })
    }
}

/// A way to multiply by a block-sparse weight. Sizes have been checked by the callers below.
#[derive(Debug)]
pub struct Kernel {
    /// `product/kernel`, shown in logs and benches.
    pub name: &'static str,
    /// Whether it takes these blocks.
    pub accepts: fn(&Blocks) -> bool,
    /// Finishes what it has written.
    forward: fn(&Blocks, &[f32], &[f32], Target<'_>, bool),
    input_gradient: fn(&Blocks, &[f32], &[f32], Target<'_>, bool),
    weight_gradient: fn(&Blocks, &[f32], &[f32], &mut [f32]),
    /// The orders of its own that it has for values, best first.
    packings: &'static [Packing],
}

/// How a kernel multiplies by values in an order of its own.
#[derive(Debug)]
struct Packing {
    /// Whether it is faster than [`Kernel::forward`] for so many rows, where the values are kept packed or, without,
    /// packed for one product.
    pays: fn(&Blocks, usize, bool) -> bool,
    /// Elements that packed values take.
    len: fn(&Blocks) -> usize,
    pack: fn(&Blocks, &[f32], &mut [f32]),
    forward: fn(&Blocks, &[f32], &[f32], Target<'_>, bool),
}

/// A weight's values in an order that one kernel's forward product reads them in: for products that share them.
#[derive(Debug)]
pub struct Packed {
    packing: usize,
    values: Aligned,
}

/// Every kernel, best first; the last takes anything.
pub static KERNELS: &[Kernel] = &[elements::KERNEL, small::KERNEL, panels::KERNEL, reference::KERNEL];

/// The first kernel of [`KERNELS`] that takes `blocks`.
pub fn select(blocks: &Blocks) -> &'static Kernel {
    let accepting = KERNELS.iter().find(|kernel| (kernel.accepts)(blocks));
    accepting.unwrap_or(&reference::KERNEL)
}

impl Kernel {
    /// `y [rows, n_out] = x [rows, n_in] Wᵀ`, or `y += …` with `accumulate`, finished. Cost `2 · rows · nnz · br · bc`
    /// flops.
    ///
    /// # Errors
    ///
    /// [`DsdError::Len`] names the first operand that does not fit.
    pub fn forward(
        &self,
        blocks: &Blocks,
        values: &[f32],
        x: &[f32],
        y: Target<'_>,
        accumulate: bool,
    ) -> Result<(), DsdError> {
        if blocks.rows_of_product(values.len(), x.len(), &y)? > 0 {
            (self.forward)(blocks, values, x, y, accumulate);
        }
        Ok(())
    }

    /// Orders of its own that this kernel has for values, of which [`Kernel::packing`] names one.
    pub fn packings(&self) -> usize {
        self.packings.len()
    }

    /// The order in which packed values make forward products of `rows` rows faster, if any does, where the values are
    /// `kept` for many products or packed for one.
    pub fn packing(&self, blocks: &Blocks, rows: usize, kept: bool) -> Option<usize> {
        let pays = |packing: &Packing| (packing.pays)(blocks, rows, kept);
        self.packings.iter().position(pays).filter(|_| !blocks.positions.is_empty())
    }

    /// Packs `values` in one of this kernel's orders for [`Kernel::forward_packed`], into the `memory` of those packed
    /// before if given.
    ///
    /// # Errors
    ///
    /// [`DsdError::Len`] where the values are not as many as the blocks'.
    ///
    /// # Panics
    ///
    /// Where `packing` is not below [`Kernel::packings`].
    pub fn pack(
        &self,
        blocks: &Blocks,
        packing: usize,
        values: &[f32],
        memory: Option<Packed>,
    ) -> Result<Packed, DsdError> {
        blocks.rows(values.len(), ("x", 0), ("y", 0))?;
        let mut packed = memory.map_or_else(Aligned::default, |packed| packed.values);
        let Packing { len, pack, .. } = self.packings[packing];
        pack(blocks, values, packed.resize(len(blocks)));
        Ok(Packed { packing, values: packed })
    }

    /// [`Kernel::forward`] with values that [`Kernel::pack`] of this kernel has packed for these blocks.
    ///
    /// # Errors
    ///
    /// As [`Kernel::forward`].
    pub fn forward_packed(
        &self,
        blocks: &Blocks,
        packed: &Packed,
        x: &[f32],
        y: Target<'_>,
        accumulate: bool,
    ) -> Result<(), DsdError> {
        let (values, nnz) = (packed.values.get(), blocks.nnz_values());
        let packing = self.packings.get(packed.packing);
        let expected = packing.map_or(nnz, |packing| (packing.len)(blocks));
        let Some(packing) = packing.filter(|_| values.len() == expected) else {
            return Err(DsdError::Len { operand: "packed values", expected, got: values.len() });
        };
        if blocks.rows_of_product(nnz, x.len(), &y)? > 0 {
            (packing.forward)(blocks, values, x, y, accumulate);
        }
        Ok(())
    }

    /// `dx [rows, n_in] = dy [rows, n_out] W`, or `dx += …` with `accumulate`.
    ///
    /// # Errors
    ///
    /// [`DsdError::Len`] names the first operand that does not fit.
    pub fn input_gradient(
        &self,
        blocks: &Blocks,
        values: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        accumulate: bool,
    ) -> Result<(), DsdError> {
        let rows = blocks.rows(values.len(), ("dx", dx.len()), ("dy", dy.len()))?;
        if rows > 0 {
            let dx = Target::row_major(dx, rows, blocks.n_in);
            (self.input_gradient)(blocks, values, dy, dx, accumulate);
        }
        Ok(())
    }

    /// `dvalues[b] += dyᵀ x` at the place of every block `b`, summed over rows.
    ///
    /// # Errors
    ///
    /// [`DsdError::Len`] names the first operand that does not fit.
    pub fn weight_gradient(
        &self,
        blocks: &Blocks,
        dy: &[f32],
        x: &[f32],
        dvalues: &mut [f32],
    ) -> Result<(), DsdError> {
        if blocks.rows(dvalues.len(), ("x", x.len()), ("dy", dy.len()))? > 0 {
            (self.weight_gradient)(blocks, dy, x, dvalues);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
