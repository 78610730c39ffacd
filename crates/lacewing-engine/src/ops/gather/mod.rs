//! Fixed signed sums of columns: permutations, folds and embeddings of activations, and weights tied to few values.

mod cpu;
pub(crate) mod cuda;

use super::linear::with_cols;
use crate::tape::value_error;
use crate::{Cx, Device, EngineError, Result, Tensor, Var};
use lacewing_core::Gather;
use std::sync::Arc;

/// A map `y[o] = Σ_t ± x[index(o, t)]` and its transpose, on one device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct GatherIndex(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    forward: Lists,
    backward: Lists,
}

/// For each output the inputs that it sums, with their signs: the map in one direction.
#[derive(Debug)]
struct Lists {
    n_in: usize,
    n_out: usize,
    /// `[n_out + 1]` u32: where the list of each output starts.
    starts: Tensor,
    /// u32: the lists, as codes of [`Gather`].
    codes: Tensor,
    /// Each list has one entry, so that `starts` need not be read.
    single: bool,
}

impl GatherIndex {
    /// A map of `n_in` values from `codes [n_out, terms]` as [`Gather::codes`] gives them. The transposed lists are
    /// made here, once: a gradient is a sum in a fixed order.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`] when `terms` is 0 or does not divide the codes, an index is not below `n_in`, or there
    /// are 2³¹ − 1 of anything; what the device reports.
    pub fn new(device: &Device, n_in: usize, terms: usize, codes: &[u32]) -> Result<Self> {
        let wrong = |what, expected: String, got: usize| Err(value_error(OP, what, expected, got));
        if terms == 0 || !codes.len().is_multiple_of(terms) {
            return wrong("number of codes", format!("a multiple of {terms} terms, at least 1"), codes.len());
        }
        let most = Gather::MINUS as usize - 1;
        if n_in.max(codes.len()) >= most {
            return wrong("number of inputs or codes", format!("below {most}"), n_in.max(codes.len()));
        }
        let n_out = codes.len() / terms;
        let (mut starts, mut kept) = (vec![0u32], Vec::with_capacity(codes.len()));
        // Counted one place up, so that the running sum below leaves the starts.
        let mut readers = vec![0u32; n_in + 1];
        for codes in codes.chunks_exact(terms) {
            for &code in codes.iter().filter(|&&code| code != Gather::NONE) {
                let index = (code & !Gather::MINUS) as usize;
                if index >= n_in {
                    return wrong("index", format!("below {n_in}"), index);
                }
                readers[index + 1] += 1;
                kept.push(code);
            }
            starts.push(kept.len() as u32);
        }
        for i in 0..n_in {
            readers[i + 1] += readers[i];
        }
        let (mut next, mut back) = (readers.clone(), vec![0u32; kept.len()]);
        for o in 0..n_out {
            for &code in &kept[starts[o] as usize..starts[o + 1] as usize] {
                let slot = &mut next[(code & !Gather::MINUS) as usize];
                back[*slot as usize] = o as u32 | code & Gather::MINUS;
                *slot += 1;
            }
        }
        let forward = Lists::new(device, n_in, &starts, &kept)?;
        let backward = Lists::new(device, n_out, &readers, &back)?;
        Ok(Self(Arc::new(Inner { forward, backward })))
    }

    /// Length of the input.
    pub fn n_in(&self) -> usize {
        self.0.forward.n_in
    }

    /// Length of the output.
    pub fn n_out(&self) -> usize {
        self.0.forward.n_out
    }
}

impl Lists {
    fn new(device: &Device, n_in: usize, starts: &[u32], codes: &[u32]) -> Result<Self> {
        Ok(Self {
            n_in,
            n_out: starts.len() - 1,
            starts: Tensor::from_u32(device, starts, &[starts.len()])?,
            codes: Tensor::from_u32(device, codes, &[codes.len()])?,
            single: starts.windows(2).all(|pair| pair[1] - pair[0] == 1),
        })
    }

    /// `[.., n_in]` → `[.., n_out]`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.like(&with_cols(x.shape(), self.n_out))?;
        match y.gpu() {
            None => cpu::gather(
                &x.read(),
                (!self.single).then(|| self.starts.read_u32()).as_deref(),
                &self.codes.read_u32(),
                &mut y.write(),
                self.n_in,
                self.n_out,
            ),
            Some(gpu) => cuda::gather(gpu, x, self, &y)?,
        }
        Ok(y)
    }
}

/// `y[.., o] = Σ_t ± x[.., index(o, t)]`.
///
/// Shapes: `x [..., n_in]` → `[..., n_out]`. Cost: an addition a term; sums are f32. The gradient is the transposed map
/// of `dy` in the type of `dy`, f32 where `y` was a weight.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] when `x` does not fit the index.
pub fn gather(cx: &Cx, x: &Var, index: &GatherIndex) -> Result<Var> {
    if x.shape().last() != Some(&index.n_in()) {
        let expected = format!("[..., {}]", index.n_in());
        return Err(EngineError::Shape { op: OP, operand: "x", expected, got: x.shape().to_vec() });
    }
    super::matmul::expect_float(OP, "x", x.value())?;
    x.value().expect_device(OP, "x", &index.0.forward.codes)?;
    let y = index.0.forward.apply(x.value())?;
    let (x_var, index) = (x.handle(), index.clone());
    Ok(cx.record_any(y, &[x], move |gradients, dy| gradients.add(&x_var, index.0.backward.apply(&dy)?)))
}

const OP: &str = "gather";
