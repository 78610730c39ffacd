//! Sums over the GPUs of processes that train together.

use crate::{DType, Device, EngineError, Result, Tensor};
use lacewing_cuda::{Communicator, ID_BYTES, Reduction};

/// One process's part in a group of processes, each with a GPU of its own. Results are the same to the bit in all of them.
#[derive(Debug)]
pub struct Collective(Communicator);

impl Collective {
    /// What the first process makes and gives the others so that they find each other.
    ///
    /// # Errors
    ///
    /// [`EngineError::Cuda`] without NCCL.
    pub fn id() -> Result<[u8; ID_BYTES]> {
        Ok(Communicator::id()?)
    }

    /// Joins the group of `id` as its member `rank` of `size`; waits for the others.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`] for the host, which NCCL knows nothing of; [`EngineError::Cuda`] when NCCL refuses.
    pub fn join(device: &Device, rank: usize, size: usize, id: &[u8; ID_BYTES]) -> Result<Self> {
        match device {
            Device::Cuda(gpu) => Ok(Self(Communicator::join(gpu, rank, size, id)?)),
            Device::Cpu => {
                let (what, expected) = ("device", "a GPU".to_owned());
                Err(EngineError::Value { op: "collective", what, expected, got: device.to_string() })
            }
        }
    }

    /// Each element of the f32 `values` becomes the sum of those at its place in all processes. Queued, not waited for.
    ///
    /// # Errors
    ///
    /// [`EngineError::DType`] or [`EngineError::Device`] for what is not f32 on the GPU; [`EngineError::Cuda`] when NCCL
    /// refuses.
    pub fn sum(&self, values: &Tensor) -> Result<()> {
        self.reduce(values, Reduction::Sum)
    }

    /// As [`Collective::sum`] with the mean.
    ///
    /// # Errors
    ///
    /// As [`Collective::sum`].
    pub fn mean(&self, values: &Tensor) -> Result<()> {
        self.reduce(values, Reduction::Mean)
    }

    fn reduce(&self, values: &Tensor, reduction: Reduction) -> Result<()> {
        let (op, operand) = ("collective", "values");
        if values.dtype() != DType::F32 {
            return Err(EngineError::DType { op, operand, expected: DType::F32, got: values.dtype() });
        }
        if values.gpu().is_none() {
            let (expected, got) = ("a GPU".to_owned(), values.device().to_string());
            return Err(EngineError::Device { op, operand, expected, got });
        }
        if !values.is_empty() {
            self.0.all_reduce(&values.region(), reduction)?;
            values.wrote();
        }
        Ok(())
    }
}
