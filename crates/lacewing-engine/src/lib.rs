//! The training engine: tensors on a device, a tape of coarse ops, parameters stored once, optimizers.
//!
//! A [`Tensor`] is shape, dtype and storage. A [`Var`] is a tensor that may be on a tape; an op computes its output
//! and pushes a closure that turns the output's gradient into its inputs'. There is no op enum and no backend trait:
//! an op is a folder under [`ops`] with `mod.rs` (shapes, errors, forward, backward), `cpu.rs`, and where it has its
//! own kernels `cuda.rs` with `kernel.cu`.
#![deny(unsafe_code)]

mod collective;
mod device;
mod error;
mod kept;
mod memory;
pub mod ops;
pub mod optim;
mod params;
mod random;
mod tape;
mod tensor;

pub use collective::Collective;
pub use device::Device;
pub use error::{EngineError, Result};
pub use kept::Kept;
pub use memory::{cpu_bytes_in_use, cpu_peak_bytes, reset_cpu_peak};
pub use params::{ParamId, ParamInfo, Params, ParamsBuilder};
pub use random::StepRng;
pub use tape::{Cx, Gradients, Handle, Tracked, Var};
pub use tensor::{DType, F32Read, F32Write, Tensor};
