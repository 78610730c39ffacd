//! Swapping the last two dimensions: token mixing, and the stride permutations of chains.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, EngineError, Result, Tensor, Var};

/// `y[.., n, m] = x[.., m, n]`.
///
/// # Errors
///
/// [`EngineError::Shape`] for fewer than two dimensions.
pub fn transpose(cx: &Cx, x: &Var) -> Result<Var> {
    let y = swapped(x.value())?;
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| gradients.add(&x_var, swapped(&dy)?)))
}

fn swapped(x: &Tensor) -> Result<Tensor> {
    let [outer @ .., m, n] = x.shape() else {
        let expected = "two dimensions or more".into();
        return Err(EngineError::Shape { op: "transpose", operand: "x", expected, got: x.shape().to_vec() });
    };
    super::matmul::expect_float("transpose", "x", x)?;
    let shape: Vec<usize> = outer.iter().copied().chain([*n, *m]).collect();
    if *m == 1 || *n == 1 {
        return x.reshape(&shape);
    }
    let y = x.like(&shape)?;
    let batch = outer.iter().product();
    match y.gpu() {
        None => cpu::transpose(&x.read(), &mut y.write(), batch, *m, *n),
        Some(gpu) => cuda::transpose(gpu, x, &y, batch, *m, *n)?,
    }
    Ok(y)
}
