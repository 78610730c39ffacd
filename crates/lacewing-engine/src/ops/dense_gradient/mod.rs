//! The gradient that a weight would have if it were dense: what growth of sparse weights goes by.

use super::linear::with_cols;
use super::matmul::{Operand, product};
use crate::{Cx, DType, EngineError, Result, Tensor, Var};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Collects, over the batches of a step, the gradient of the dense `W [n_out, n_in]` behind `y = x Wᵀ`.
///
/// It is summed where it takes less memory than what it is made of, and else made a few rows at a time when it is asked for:
/// then no array of W's size is ever held.
///
/// Where several processes train together, each takes in its own batches, and [`DenseGradient::rows`] gives the sum over all.
#[derive(Debug)]
pub struct DenseGradient {
    n_out: usize,
    n_in: usize,
    parts: Mutex<Parts>,
    over: OnceLock<Arc<dyn SumOver>>,
}

/// Sums over the processes that train together.
pub trait SumOver: fmt::Debug + Send + Sync {
    /// Makes each value the sum of those at its place in all processes, the same to the bit in each. All call it, in the
    /// same order and with as many values.
    ///
    /// # Errors
    ///
    /// [`EngineError::Processes`] when one cannot be reached.
    fn sum(&self, values: &mut [f32]) -> Result<()>;
}

#[derive(Debug, Default)]
struct Parts {
    /// Σ dyᵀ x, f32.
    sum: Option<Tensor>,
    /// x and dy of each batch that is not in the sum.
    pairs: Vec<(Tensor, Tensor)>,
}

impl DenseGradient {
    /// Of a weight `[n_out, n_in]`; zero so far.
    pub fn new(n_out: usize, n_in: usize) -> Arc<Self> {
        Arc::new(Self { n_out, n_in, parts: Mutex::default(), over: OnceLock::new() })
    }

    /// From here on the gradient is the sum over these processes; the first call counts.
    pub fn sum_over(&self, processes: Arc<dyn SumOver>) {
        let _ = self.over.set(processes);
    }

    /// `y`, whose gradient is taken in with `x` when the tape runs backwards.
    ///
    /// Shapes: `x [..., n_in]`, `y [..., n_out]`, before a bias or an activation.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when they do not fit the weight.
    pub fn watch(self: &Arc<Self>, cx: &Cx, x: &Var, y: &Var) -> Result<Var> {
        x.value().expect_shape("dense_gradient", "x", &with_cols(x.shape(), self.n_in))?;
        y.value().expect_shape("dense_gradient", "y", &with_cols(x.shape(), self.n_out))?;
        let (this, x, handle) = (self.clone(), x.value().clone(), y.handle());
        Ok(cx.record(y.value().clone(), &[y], move |gradients, dy| {
            this.take(x, &dy)?;
            gradients.add(&handle, dy)
        }))
    }

    fn take(&self, x: Tensor, dy: &Tensor) -> Result<()> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.n_out * self.n_in > x.len() + dy.len() {
            parts.pairs.push((x, dy.clone()));
            return Ok(());
        }
        let fresh = parts.sum.is_none();
        if fresh {
            parts.sum = Some(x.beside(DType::F32, &[self.n_out, self.n_in])?);
        }
        let sum = parts.sum.as_ref().expect("made above");
        product(1, Operand::matrix(sum), !fresh, Operand::matrix(dy).t(), Operand::matrix(&x))
    }

    /// Rows of the gradient, `[rows.len(), n_in]`, on the host; zeros where nothing was taken in.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`] for rows beyond `n_out`; what the device or another process reports.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = self.own_rows(rows)?;
        self.over.get().map_or(Ok(()), |processes| processes.sum(&mut values))?;
        Ok(values)
    }

    fn own_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        if rows.start > rows.end || rows.end > self.n_out {
            let (op, what, expected) = ("dense_gradient", "rows", format!("inside 0..{}", self.n_out));
            return Err(EngineError::Value { op, what, expected, got: format!("{rows:?}") });
        }
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = match &parts.sum {
            Some(sum) => sum.slice_flat(rows.start * self.n_in, &[rows.len(), self.n_in]).to_f32()?,
            None => vec![0.0; rows.len() * self.n_in],
        };
        let Some((first, _)) = parts.pairs.first() else { return Ok(all) };
        let made = first.beside(DType::F32, &[rows.len(), self.n_in])?;
        for (i, (x, dy)) in parts.pairs.iter().enumerate() {
            let columns = Operand { offset: rows.start, cols: rows.len(), ..Operand::matrix(dy) };
            product(1, Operand::matrix(&made), i > 0, columns.t(), Operand::matrix(x))?;
        }
        all.iter_mut().zip(made.to_f32()?).for_each(|(all, made)| *all += made);
        Ok(all)
    }

    /// Back to zero; lets go of what it holds.
    pub fn clear(&self) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = Parts::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ParamsBuilder, StepRng, ops};
    use lacewing_core::Activation;

    #[test]
    fn it_is_the_gradient_of_the_dense_weight() {
        // Few rows: pairs are kept. Many: it is summed. Both over two batches.
        for (rows, n_in, n_out) in [(2, 7, 5), (40, 7, 5), (3, 1, 9)] {
            let mut builder = ParamsBuilder::new(Device::Cpu, DType::F32).unwrap();
            let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 8.0;
            let id = builder.add("w", &[n_out, n_in], true, (0..n_out * n_in).map(value).collect()).unwrap();
            let params = builder.build().unwrap();
            let watched = DenseGradient::new(n_out, n_in);
            for batch in 0..2 {
                let cx = Cx::training(params.clone(), StepRng::new(0, 0));
                let x: Vec<f32> = (0..rows * n_in).map(|i| value(i + 5 * batch)).collect();
                let dy: Vec<f32> = (0..rows * n_out).map(|i| value(3 * i + batch)).collect();
                let x = cx.leaf(Tensor::from_f32(&Device::Cpu, &x, &[rows, n_in]).unwrap());
                let y = ops::linear(&cx, &x, &cx.param(id), None, Activation::Identity).unwrap();
                let y = watched.watch(&cx, &x, &y).unwrap();
                let dy = Tensor::from_f32(&Device::Cpu, &dy, &[rows, n_out]).unwrap();
                let mut gradients = cx.backward(&y, dy).unwrap();
                assert!(gradients.take(&x).is_some(), "the gradient goes on");
            }
            // Sums of eighths of small integers are exact in f32 in any order.
            let whole = params.gradient(id).unwrap().to_f32().unwrap();
            assert_eq!(watched.rows(0..n_out).unwrap(), whole);
            assert_eq!(watched.rows(1..3.min(n_out)).unwrap(), whole[n_in..3.min(n_out) * n_in]);
            assert!(watched.rows(0..n_out + 1).is_err());
            watched.clear();
            assert_eq!(watched.rows(0..1).unwrap(), vec![0.0; n_in]);
        }
    }
}
