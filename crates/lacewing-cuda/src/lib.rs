//! Lacewing on NVIDIA GPUs: memory, launches, dense matmul and sparse products, on one stream.
//!
//! Nothing of CUDA is needed to build this crate. The driver, NVRTC and cuBLASLt are loaded when [`Device::new`]
//! is called; whatever is missing is a [`CudaError`] that says so in words a user understands.
//!
//! | part | what it is |
//! |---|---|
//! | [`Device`] | context, the one stream, caching memory pool, kernel cache, graph capture |
//! | [`Buffer`], [`Region`] | device memory, and the part of it that a tensor holds |
//! | [`Source`], [`Function`] | a `.cu` file compiled by NVRTC on first use, and one entry of it |
//! | [`matmul`] | dense products by cuBLASLt, the algorithm timed once and kept |
//! | [`Finish`] | bias and activation at the end of a product |
//! | [`dsd`] | dense = sparse x dense: the table of block-sparse kernels |
//! | [`Communicator`] | sums over the GPUs of several processes, by NCCL |
//! | [`monarch`] | both factors of a Monarch map in one launch, on Hopper |
//! | [`two_four`] | weights of at most two values in every four, on Hopper's sparse tensor cores |
//!
//! | environment | meaning |
//! |---|---|
//! | `LD_LIBRARY_PATH`, `LACEWING_CUDA_PATH`, `CUDA_HOME` | folders with `libnvrtc.so.13` and `libcublasLt.so.13` |
//! | `LACEWING_NVRTC` | the file to load as NVRTC |
//! | `LACEWING_CACHE` | folder of compiled kernels and chosen algorithms, see [`cache`] |
//! | `LACEWING_TEST_CUDA=1` | this crate's tests: there is a GPU, use it |
//! | `LACEWING_REQUIRE_NVRTC=1` | tests that compile kernels: fail without NVRTC |
//!
//! Everything a device does is queued on its one stream and runs in the order of the calls, so a buffer may be
//! dropped while work that reads it is still queued: its memory goes only to work that is queued later.
//! This crate knows no tensor, no tape and no shape beyond what a call states.

pub mod cache;
pub mod device;
pub mod dsd;
mod error;
mod finish;
pub mod matmul;
pub mod monarch;
mod source;
pub mod two_four;

pub use device::{
    Arg, Buffer, Communicator, Device, Function, Graph, ID_BYTES, Properties, Reduction, Region, TensorMap,
};
pub use error::CudaError;
pub use finish::Finish;
pub use source::{Constant, PRELUDE, Source, compile, compile_all_test, compile_all_with_test, compile_with};

/// Type of the numbers in a matrix on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// IEEE single precision.
    F32,
    /// Upper half of an IEEE single.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Type {
    /// Bytes of one number.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::Bf16 | Type::F16 => 2,
        }
    }
}
