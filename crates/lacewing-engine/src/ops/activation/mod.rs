//! Activations, alone and as the end of a linear layer (bias added in the same pass).

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, Gradients, Result, Tensor, Var};
pub use lacewing_cpu::activation::Activation;
use lacewing_cpu::finish::Target;

/// Names, as in a recipe.
pub static ACTIVATIONS: &[(&str, Activation)] = &[
    ("identity", Activation::Identity),
    ("relu", Activation::Relu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
];

/// `y = f(x)`, any shape.
///
/// # Errors
///
/// What the device reports.
pub fn activation(cx: &Cx, x: &Var, act: Activation) -> Result<Var> {
    bias_activation(cx, x.clone(), None, act)
}

/// `y = f(x + b)`: the end of a structured linear layer whose product does not end itself, in one pass.
///
/// Shapes: `x [..., n]`, `bias [n]` → `[..., n]`. Takes `x` by value: its memory is reused where nobody else holds it.
///
/// # Errors
///
/// [`crate::EngineError::Shape`] for a bias that does not fit; what the device reports.
pub fn bias_activation(cx: &Cx, x: Var, bias: Option<&Var>, act: Activation) -> Result<Var> {
    super::matmul::expect_float("bias_activation", "x", x.value())?;
    super::linear::check_bias(x.value(), x.value().cols(), bias)?;
    if bias.is_none() && act == Activation::Identity {
        return Ok(x);
    }
    let pre =
        if bias.is_none() || x.value().is_unique() { x.value().clone() } else { x.value().duplicate()? };
    let y = finish_linear(&pre, bias.map(Var::value), act)?;
    let bias = bias.cloned();
    let inputs: Vec<Var> = [x.clone()].into_iter().chain(bias.clone()).collect();
    let (x, pre) = (x.handle(), (act != Activation::Identity).then_some(pre));
    Ok(cx.record(y, &inputs.iter().collect::<Vec<_>>(), move |gradients, dy| {
        let dx = backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        gradients.add(&x, dx)
    }))
}

/// `y = f(pre + bias)`; `pre` holds the sum afterwards. `y` is `pre` itself for the identity.
///
/// Shapes: `pre [..., cols]`, `bias [cols]`.
pub(crate) fn finish_linear(pre: &Tensor, bias: Option<&Tensor>, act: Activation) -> Result<Tensor> {
    if bias.is_none() && act == Activation::Identity {
        return Ok(pre.clone());
    }
    let y = if act == Activation::Identity { None } else { Some(pre.like(pre.shape())?) };
    match pre.gpu() {
        None => cpu::finish(pre, bias, y.as_ref(), act),
        Some(gpu) => cuda::bias_act_forward(gpu, pre, bias, y.as_ref(), act)?,
    }
    Ok(y.unwrap_or_else(|| pre.clone()))
}

/// What [`finish_linear`] makes of a product of the host over `inputs`, each tile of it ended while it is in cache.
/// `pre` holds the sum afterwards if the op is recorded with an activation, whose backward pass needs it; else it is `y`.
pub(crate) fn finished_product(
    cx: &Cx,
    inputs: &[&Var],
    pre: &Tensor,
    bias: Option<&Tensor>,
    act: Activation,
    product: impl FnOnce(Target<'_>),
) -> Result<Tensor> {
    let kept = act != Activation::Identity && cx.records(inputs);
    let y = kept.then(|| pre.like(pre.shape())).transpose()?;
    cpu::with_target(pre, bias, y.as_ref(), act, product);
    Ok(y.unwrap_or_else(|| pre.clone()))
}

/// The gradient before the activation of [`finish_linear`]; that of the bias is added to its sink on the way. `pre` is
/// what went into the activation, absent for the identity.
pub(crate) fn backward_linear(
    gradients: &mut Gradients,
    dy: Tensor,
    pre: Option<&Tensor>,
    act: Activation,
    bias: Option<&Var>,
) -> Result<Tensor> {
    let dbias = bias.map(|bias| gradients.sink_to_add(bias)).transpose()?.flatten();
    let Some(pre) = pre else {
        if let Some(dbias) = &dbias {
            match dy.gpu() {
                None => cpu::bias_grad(&dy.read(), &mut dbias.write(), dy.cols()),
                Some(gpu) => cuda::bias_grad(gpu, &dy, dbias)?,
            }
        }
        return Ok(dy);
    };
    let dpre = dy.like(dy.shape())?;
    match dy.gpu() {
        None => cpu::act_backward_bias(
            &dy.read(),
            &pre.read(),
            &mut dpre.write(),
            dbias.as_ref().map(Tensor::write).as_deref_mut(),
            dy.cols(),
            act,
        ),
        Some(gpu) => cuda::act_backward_bias(gpu, &dy, pre, &dpre, dbias.as_ref(), act)?,
    }
    Ok(dpre)
}
