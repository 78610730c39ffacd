//! Where is measured, and in which type.

use super::error::BenchError;
use crate::cli::BenchArgs;
use lacewing_core::{Form, Structure};
use lacewing_engine::ops::cast;
use lacewing_engine::{DType, Device, EngineError, Tensor};
use std::error::Error;

/// A device, and the type of activations and weights there.
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) dtype: DType,
}

impl Place {
    /// What `args` ask for: bf16 on a GPU and f32 on a CPU unless they say.
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Box<dyn Error>> {
        let device = Device::open(&args.device)?;
        let gpu = matches!(device, Device::Cuda(_));
        let dtype = match args.dtype.as_deref() {
            None if gpu => DType::Bf16,
            None | Some("f32") => DType::F32,
            Some("bf16") if gpu => DType::Bf16,
            Some(_) => return Err(BenchError::Bf16 { device: device.to_string() }.into()),
        };
        if gpu && args.peers.is_some() && args.model.is_none() {
            return Err(BenchError::Peers { device: device.to_string() }.into());
        }
        Ok(Self { device, dtype })
    }

    /// Name of the type.
    pub(super) fn dtype_name(&self) -> &'static str {
        if self.dtype == DType::Bf16 { "bf16" } else { "f32" }
    }

    /// `values` there, rounded to the type.
    pub(super) fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Tensor, EngineError> {
        cast(&Tensor::from_f32(&self.device, values, shape)?, self.dtype)
    }

    /// The unit roundoff of what is stored between products: zero in f32, where the products' own roundings count it.
    pub(super) fn roundoff(&self) -> f64 {
        if self.dtype == DType::Bf16 { 2f64.powi(-8) } else { 0.0 }
    }
}

/// How often at most what passes through a structure is rounded where it is stored, its outputs not counted: between
/// factors forward and backward, and in weights that are made of others.
pub(super) fn stored(structure: &dyn Structure) -> usize {
    match structure.form() {
        Form::Dense | Form::Pattern(_) => 0,
        Form::Chain(chain) => 2 * chain.links.len(),
        // The branches, the gate and what it weighs.
        Form::Sum(sum) => stored(sum.a.as_ref()) + stored(sum.b.as_ref()) + 8,
    }
}
