//! Where tensors live.

use crate::{EngineError, Result};
use std::fmt;
use std::sync::Arc;

/// A device: the host's processors, or one NVIDIA GPU.
#[derive(Clone)]
pub enum Device {
    /// The host, through `rayon` threads.
    Cpu,
    /// A GPU, through CUDA loaded at run time.
    Cuda(Arc<lacewing_cuda::Device>),
}

impl Device {
    /// Opens the device called `name`: `cpu` or `cuda:N`.
    ///
    /// # Errors
    ///
    /// [`EngineError::UnknownDevice`] for any other name, [`EngineError::Cuda`] when the GPU cannot be had.
    pub fn open(name: &str) -> Result<Self> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        let ordinal = ordinal.or((name == "cuda").then_some(0));
        let ordinal = ordinal.ok_or_else(|| EngineError::UnknownDevice { name: name.to_owned() })?;
        Ok(Self::Cuda(lacewing_cuda::Device::new(ordinal)?))
    }

    /// The host, and a GPU where `LACEWING_TEST_CUDA=1` says that there is one.
    #[cfg(test)]
    pub(crate) fn all_for_tests() -> Vec<Self> {
        let gpu = std::env::var("LACEWING_TEST_CUDA").is_ok_and(|value| value == "1");
        let gpu = gpu.then(|| Self::open("cuda:0").expect("LACEWING_TEST_CUDA=1 asks for a GPU"));
        [Self::Cpu].into_iter().chain(gpu).collect()
    }

    /// Waits until everything asked of the device has been done.
    ///
    /// # Errors
    ///
    /// What the device reports of work that had been queued.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(gpu) => Ok(gpu.synchronize()?),
        }
    }

    /// Most bytes held at once since the last [`Device::reset_peak`], caches of freed memory excluded.
    pub fn peak_bytes(&self) -> usize {
        match self {
            Self::Cpu => crate::cpu_peak_bytes(),
            Self::Cuda(gpu) => gpu.peak(),
        }
    }

    /// Starts a new peak measurement.
    pub fn reset_peak(&self) {
        match self {
            Self::Cpu => crate::reset_cpu_peak(),
            Self::Cuda(gpu) => gpu.reset_peak(),
        }
    }

    /// Whether both are the same device.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpu) => write!(f, "cuda:{}", gpu.ordinal()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
