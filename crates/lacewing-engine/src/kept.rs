//! What was made of the content of some tensors, for as long as nobody writes to them: weights in the order that a
//! kernel reads them.

use crate::Tensor;
use crate::tensor::Version;
use std::sync::{Arc, Mutex, PoisonError};

/// The latest thing made of the content of tensors. On a GPU it is kept of parameters only, whose writes are numbered as
/// those to all tensors of the host are.
#[derive(Debug)]
pub struct Kept<T>(Mutex<Option<(Vec<Version>, Arc<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// What `make` made of `tensors` as they are: now, or before if nobody has written to them since.
    ///
    /// `make` is given what it made last, if there is such and nobody else holds it, for its memory. Callers hold a read
    /// of the tensors meanwhile, so that what is made fits the content it is kept for.
    ///
    /// # Errors
    ///
    /// Those of `make`; then nothing is kept.
    pub fn of<E>(
        &self,
        tensors: &[&Tensor],
        make: impl FnOnce(Option<T>) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let versions: Option<Vec<Version>> = tensors.iter().map(|tensor| tensor.version()).collect();
        // Held for a moment only: `make` may run by all threads, and one that waits may be given a product as well.
        let latest = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = latest().take();
        let memory = match kept {
            Some((of, made)) if Some(&of) == versions.as_ref() => {
                *latest() = Some((of, made.clone()));
                return Ok(made);
            }
            Some((_, old)) => Arc::into_inner(old),
            None => None,
        };
        let made = Arc::new(make(memory)?);
        *latest() = versions.map(|versions| (versions, made.clone()));
        Ok(made)
    }

    /// Keeps nothing.
    pub fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use super::Kept;
    use crate::{Device, Tensor};
    use std::convert::Infallible;

    #[test]
    fn it_is_made_again_when_a_tensor_was_written_to() {
        let (a, b) =
            (Tensor::from_f32(&Device::Cpu, &[1.0], &[1]), Tensor::from_f32(&Device::Cpu, &[2.0], &[1]));
        let (a, b) = (a.unwrap(), b.unwrap());
        let kept = Kept::default();
        let mut made = 0;
        let mut sum = |kept: &Kept<f32>| {
            let make = |_| {
                made += 1;
                Ok::<f32, Infallible>(a.read()[0] + b.read()[0])
            };
            let sum = *kept.of(&[&a, &b], make).unwrap();
            (sum, made)
        };
        assert_eq!((sum(&kept), sum(&kept)), ((3.0, 1), (3.0, 1)));
        b.set_f32(&[5.0]).unwrap();
        assert_eq!((sum(&kept), sum(&kept)), ((6.0, 2), (6.0, 2)));
        a.set_f32(&[1.0]).unwrap();
        assert_eq!(sum(&kept), (6.0, 3));
        assert!(kept.of(&[&a], Err::<f32, _>).is_err());
        assert_eq!(sum(&kept), (6.0, 4));
        kept.forget();
        assert_eq!((sum(&kept), sum(&kept)), ((6.0, 5), (6.0, 5)));
    }
}
