//! Kept values to a dense matrix and back: how any pattern runs on dense products.

mod cpu;
pub(crate) mod cuda;

use super::block_sparse::BlockIndex;
use crate::{Cx, Result, Var};

/// The dense matrix of a pattern: `values` at their places, zeros elsewhere.
///
/// Shapes: `values [nnz, br, bc]` (or `[nnz]` for 1×1 blocks) → `[n_out, n_in]` of the index. Its gradient is gathered,
/// so a gradient exists for kept values only.
///
/// # Errors
///
/// [`crate::EngineError::Shape`] when the values do not fit the index.
pub fn scatter_blocks(cx: &Cx, values: &Var, index: &BlockIndex) -> Result<Var> {
    index.expect_values("scatter_blocks", values.value())?;
    let dense = values.value().like(&[index.n_out(), index.n_in()])?;
    dense.fill_zero()?;
    match dense.gpu() {
        None => cpu::scatter(
            &values.value().read(),
            index.host_positions(),
            index.block(),
            &mut dense.write(),
            index.n_in(),
        ),
        Some(gpu) => cuda::scatter(gpu, values.value(), index, &dense)?,
    }
    let (values_var, index) = (values.clone(), index.clone());
    Ok(cx.record_any(dense, &[values], move |gradients, ddense| {
        let Some(dvalues) = gradients.sink_to_add(&values_var)? else { return Ok(()) };
        match ddense.gpu() {
            None => cpu::gather_add(
                &ddense.read(),
                index.host_positions(),
                index.block(),
                &mut dvalues.write(),
                index.n_in(),
            ),
            Some(gpu) => cuda::gather_add(gpu, &ddense, &index, &dvalues)?,
        }
        Ok(())
    }))
}
