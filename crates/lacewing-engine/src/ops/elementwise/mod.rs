//! Sums, products and casts, element by element.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, EngineError, Result, Tensor, Var};

/// `y = a + b`.
///
/// # Errors
///
/// [`EngineError::Shape`] unless both have one shape.
pub fn add(cx: &Cx, a: &Var, b: &Var) -> Result<Var> {
    let y = sum(a.value(), b.value())?;
    let (a_var, b_var) = (a.handle(), b.handle());
    Ok(cx.record(y, &[a, b], move |gradients, dy| {
        gradients.add(&a_var, dy.clone())?;
        gradients.add(&b_var, dy)
    }))
}

/// `y = s x`.
///
/// # Errors
///
/// What the device reports.
pub fn scale(cx: &Cx, x: &Var, s: f32) -> Result<Var> {
    let y = scaled(x.value(), s)?;
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| gradients.add(&x_var, scaled(&dy, s)?)))
}

/// `y = s σ(x)`, σ the logistic function.
///
/// # Errors
///
/// What the device reports.
pub fn sigmoid(cx: &Cx, x: &Var, s: f32) -> Result<Var> {
    super::matmul::expect_float("sigmoid", "x", x.value())?;
    let y = x.value().like(x.shape())?;
    match y.gpu() {
        None => cpu::sigmoid(&x.value().read(), s, &mut y.write()),
        Some(gpu) => cuda::sigmoid(gpu, x.value(), s, &y)?,
    }
    let (x_var, kept) = (x.handle(), y.clone());
    Ok(cx.record(y, &[x], move |gradients, dy| {
        let dx = dy.like(dy.shape())?;
        match dy.gpu() {
            None => cpu::sigmoid_backward(&dy.read(), &kept.read(), s, &mut dx.write()),
            Some(gpu) => cuda::sigmoid_backward(gpu, &dy, &kept, s, &dx)?,
        }
        gradients.add(&x_var, dx)
    }))
}

/// `y = x + s · branch`, `s` one factor a sample (1 if absent): the residual sum with stochastic depth.
///
/// Shapes: `x`, `branch [batch, ...]`; `row_scale [batch]` f32.
///
/// # Errors
///
/// [`EngineError::Shape`] naming the operand that does not fit.
pub fn residual(cx: &Cx, x: &Var, branch: &Var, row_scale: Option<&Tensor>) -> Result<Var> {
    branch.value().expect_shape("residual", "branch", x.shape())?;
    rows_per_scale("residual", x.value(), row_scale)?;
    let value = match row_scale {
        None => sum(x.value(), branch.value())?,
        Some(s) => sum(x.value(), &scaled_rows(branch.value(), s)?)?,
    };
    Ok(record_residual(cx, value, x, branch, row_scale))
}

/// Records `value = x + s · branch`, computed elsewhere.
pub(crate) fn record_residual(
    cx: &Cx,
    value: Tensor,
    x: &Var,
    branch: &Var,
    row_scale: Option<&Tensor>,
) -> Var {
    let (x_var, branch_var, row_scale) = (x.handle(), branch.handle(), row_scale.cloned());
    cx.record(value, &[x, branch], move |gradients, dy| {
        if gradients.wants(&branch_var) {
            let dbranch = match &row_scale {
                None => dy.clone(),
                Some(s) => scaled_rows(&dy, s)?,
            };
            gradients.add(&branch_var, dbranch)?;
        }
        gradients.add(&x_var, dy)
    })
}

/// `y = (1 − σ(g)) a + σ(g) b`, `g` one number a row, σ the logistic function.
///
/// Shapes: `a`, `b [..., n]`, `gate [..., 1]` before the logistic.
///
/// # Errors
///
/// [`EngineError::Shape`] naming the operand that does not fit.
pub fn gated_sum(cx: &Cx, a: &Var, b: &Var, gate: &Var) -> Result<Var> {
    b.value().expect_shape("gated_sum", "b", a.shape())?;
    gate.value().expect_shape("gated_sum", "gate", &super::linear::with_cols(a.shape(), 1))?;
    for (operand, var) in [("b", b), ("gate", gate)] {
        var.value().expect_dtype("gated_sum", operand, a.value().dtype())?;
        var.value().expect_device("gated_sum", operand, a.value())?;
    }
    let y = a.value().like(a.shape())?;
    let cols = a.value().cols();
    match y.gpu() {
        None => cpu::gated_sum_forward(
            &a.value().read(),
            &b.value().read(),
            &gate.value().read(),
            &mut y.write(),
            cols,
        ),
        Some(gpu) => cuda::gated_sum_forward(gpu, a.value(), b.value(), gate.value(), &y)?,
    }
    let (a_var, b_var, gate_var) = (a.clone(), b.clone(), gate.clone());
    Ok(cx.record(y, &[a, b, gate], move |gradients, dy| {
        let (a, b, gate) = (a_var.value(), b_var.value(), gate_var.value());
        let (da, db, dgate) = (a.like(a.shape())?, b.like(b.shape())?, gate.like(gate.shape())?);
        match dy.gpu() {
            None => cpu::gated_sum_backward(
                &dy.read(),
                &a.read(),
                &b.read(),
                &gate.read(),
                &mut da.write(),
                &mut db.write(),
                &mut dgate.write(),
                cols,
            ),
            Some(gpu) => cuda::gated_sum_backward(gpu, &dy, a, b, gate, &da, &db, &dgate)?,
        }
        gradients.add(&a_var, da)?;
        gradients.add(&b_var, db)?;
        gradients.add(&gate_var, dgate)
    }))
}

/// Rows of `x` that share one factor of `row_scale`.
pub(crate) fn rows_per_scale(op: &'static str, x: &Tensor, row_scale: Option<&Tensor>) -> Result<usize> {
    let Some(scale) = row_scale else { return Ok(x.rows().max(1)) };
    let batch = x.shape().first().copied().unwrap_or(1);
    scale.expect_shape(op, "row_scale", &[batch])?;
    scale.expect_dtype(op, "row_scale", DType::F32)?;
    scale.expect_device(op, "row_scale", x)?;
    Ok(x.rows() / batch.max(1))
}

/// `a + b`.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() != b.dtype() {
        // A bf16 activation may meet an f32 gradient; the sum keeps the wider type.
        return sum(&cast(a, DType::F32)?, &cast(b, DType::F32)?);
    }
    check_same("add", a, b)?;
    let y = a.like(a.shape())?;
    match y.gpu() {
        None => cpu::add(&a.read(), &b.read(), &mut y.write()),
        Some(gpu) => cuda::add(gpu, a, b, &y)?,
    }
    Ok(y)
}

/// `y += a`, in the type of `y`.
pub(crate) fn add_assign(y: &Tensor, a: &Tensor) -> Result<()> {
    if y.dtype() != a.dtype() {
        return add_assign(y, &cast(a, y.dtype())?);
    }
    check_same("add_assign", y, a)?;
    match y.gpu() {
        None => cpu::add_assign(&mut y.write(), &a.read()),
        Some(gpu) => cuda::add_assign(gpu, y, a)?,
    }
    Ok(())
}

/// `s x`.
pub(crate) fn scaled(x: &Tensor, s: f32) -> Result<Tensor> {
    let y = x.like(x.shape())?;
    match y.gpu() {
        None => cpu::scale(&x.read(), s, &mut y.write()),
        Some(gpu) => cuda::scale(gpu, x, s, &y)?,
    }
    Ok(y)
}

/// `s[sample] x`.
fn scaled_rows(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    let per_scale = rows_per_scale("scale_rows", x, Some(s))?;
    let y = x.like(x.shape())?;
    match y.gpu() {
        None => cpu::scale_rows(&x.read(), &s.read(), per_scale, &mut y.write(), x.cols()),
        Some(gpu) => cuda::scale_rows(gpu, x, s, per_scale, &y)?,
    }
    Ok(y)
}

/// The elements in `dtype`; the tensor itself when they are already.
///
/// # Errors
///
/// [`EngineError::DType`] for integers, or bf16 on the host.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    super::matmul::expect_float("cast", "x", x)?;
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let y = x.beside(dtype, x.shape())?;
    cast_into(x, &y)?;
    Ok(y)
}

/// Converts the elements of `x` into `y`.
pub(crate) fn cast_into(x: &Tensor, y: &Tensor) -> Result<()> {
    match x.gpu() {
        None => y.copy_from(x),
        Some(gpu) => {
            cuda::cast(gpu, x, y)?;
            y.wrote();
            Ok(())
        }
    }
}

fn check_same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    b.expect_shape(op, "b", a.shape())?;
    b.expect_device(op, "b", a)?;
    if a.dtype() == DType::U32 {
        return Err(EngineError::DType { op, operand: "a", expected: DType::F32, got: DType::U32 });
    }
    Ok(())
}
