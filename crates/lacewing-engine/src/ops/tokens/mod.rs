//! Token sequences: class token and positions at the start, pooling at the end.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, EngineError, Result, Tensor, Tracked, Var};

/// `y = [cls; x] + pos`: the class token put in front, positions added.
///
/// Shapes: `x [batch, n, dim]`, `cls [dim]` f32 or absent, `pos [n', dim]` f32 with `n' = n + 1` or `n` → `[batch, n', dim]`.
///
/// # Errors
///
/// [`EngineError::Shape`] or [`EngineError::DType`] naming the operand that does not fit.
pub fn embed_tokens(cx: &Cx, x: &Var, cls: Option<&Var>, pos: &Var) -> Result<Var> {
    let [batch, n, dim] = three("embed_tokens", x)?;
    let n_all = n + usize::from(cls.is_some());
    pos.value().expect_shape("embed_tokens", "pos", &[n_all, dim])?;
    pos.value().expect_dtype("embed_tokens", "pos", DType::F32)?;
    pos.value().expect_device("embed_tokens", "pos", x.value())?;
    if let Some(cls) = cls {
        cls.value().expect_shape("embed_tokens", "cls", &[dim])?;
        cls.value().expect_dtype("embed_tokens", "cls", DType::F32)?;
        cls.value().expect_device("embed_tokens", "cls", x.value())?;
    }
    let y = x.value().like(&[batch, n_all, dim])?;
    match y.gpu() {
        None => cpu::embed(
            &x.value().read(),
            cls.map(|cls| cls.value().read()).as_deref(),
            &pos.value().read(),
            &mut y.write(),
            batch,
            n,
            dim,
        ),
        Some(gpu) => cuda::embed(gpu, x.value(), cls.map(Var::value), pos.value(), &y, batch, n, dim)?,
    }
    let inputs: Vec<&Var> = [x, pos].into_iter().chain(cls).collect();
    let (x_var, cls_var, pos_var) = (x.handle(), cls.cloned(), pos.clone());
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dx = dy.like(x_var.shape())?;
        let dcls = cls_var.as_ref().map(|cls| gradients.sink_to_add(cls)).transpose()?.flatten();
        let dpos = gradients.sink_to_add(&pos_var)?;
        match dy.gpu() {
            None => Tensor::write_two(dcls.as_ref(), dpos.as_ref(), |dcls, dpos| {
                cpu::embed_backward(
                    &dy.read(),
                    &mut dx.write(),
                    dcls,
                    dpos,
                    batch,
                    n,
                    dim,
                    cls_var.is_some(),
                );
            }),
            Some(gpu) => cuda::embed_backward(
                gpu,
                &dy,
                &dx,
                dcls.as_ref(),
                dpos.as_ref(),
                batch,
                n,
                dim,
                cls_var.is_some(),
            )?,
        }
        gradients.add(&x_var, dx)
    }))
}

/// The mean over tokens: `[batch, n, dim]` → `[batch, dim]`.
///
/// # Errors
///
/// [`EngineError::Shape`] unless `x` has three dimensions and a token.
pub fn mean_tokens(cx: &Cx, x: &Var) -> Result<Var> {
    let [batch, n, dim] = three("mean_tokens", x)?;
    let y = x.value().like(&[batch, dim])?;
    match y.gpu() {
        None => cpu::mean_pool(&x.value().read(), &mut y.write(), batch, n, dim),
        Some(gpu) => cuda::mean_pool(gpu, x.value(), &y, batch, n, dim)?,
    }
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| {
        let dx = dy.like(x_var.shape())?;
        match dy.gpu() {
            None => cpu::mean_pool_backward(&dy.read(), &mut dx.write(), batch, n, dim),
            Some(gpu) => cuda::mean_pool_backward(gpu, &dy, &dx, batch, n, dim)?,
        }
        gradients.add(&x_var, dx)
    }))
}

/// Token `token` of each sequence: `[batch, n, dim]` → `[batch, dim]`.
///
/// # Errors
///
/// [`EngineError::Value`] when there is no such token.
pub fn select_token(cx: &Cx, x: &Var, token: usize) -> Result<Var> {
    let [batch, n, dim] = three("select_token", x)?;
    if token >= n {
        return Err(crate::tape::value_error("select_token", "token", format!("less than {n}"), token));
    }
    let y = x.value().like(&[batch, dim])?;
    match y.gpu() {
        None => cpu::select(&x.value().read(), &mut y.write(), batch, n, dim, token),
        Some(gpu) => cuda::select(gpu, x.value(), &y, batch, n, dim, token)?,
    }
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| {
        let dx = dy.like(x_var.shape())?;
        match dy.gpu() {
            None => cpu::select_backward(&dy.read(), &mut dx.write(), batch, n, dim, token),
            Some(gpu) => cuda::select_backward(gpu, &dy, &dx, batch, n, dim, token)?,
        }
        gradients.add(&x_var, dx)
    }))
}

fn three(op: &'static str, x: &Var) -> Result<[usize; 3]> {
    super::matmul::expect_float(op, "x", x.value())?;
    match *x.shape() {
        [batch, n, dim] if n > 0 => Ok([batch, n, dim]),
        _ => {
            let expected = "[batch, tokens, dim] with tokens > 0".into();
            Err(EngineError::Shape { op, operand: "x", expected, got: x.shape().to_vec() })
        }
    }
}
