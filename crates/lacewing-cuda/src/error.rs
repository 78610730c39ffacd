//! What can go wrong on a GPU, in words and numbers for the person who asked for it.

use crate::matmul::Matmul;

/// Why a device, a kernel or a product is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The machine has no NVIDIA driver, or it cannot be loaded.
    #[error(
        "cuda:{ordinal} was asked for, but no CUDA driver could be loaded: {detail} (install the NVIDIA driver, or \
         choose the device cpu)"
    )]
    NoDriver {
        /// Device asked for.
        ordinal: usize,
        /// What the loader said.
        detail: String,
    },
    /// The driver is there, the device is not.
    #[error("cuda:{ordinal} was asked for, but the CUDA driver sees {count} devices")]
    NoSuchDevice {
        /// Device asked for.
        ordinal: usize,
        /// Devices the driver reports.
        count: usize,
    },
    /// A library that comes with CUDA, not with the driver, is missing.
    #[error(
        "{library} could not be loaded: no {file} on the library path{searched}; put its folder on LD_LIBRARY_PATH or \
         in LACEWING_CUDA_PATH"
    )]
    NoLibrary {
        /// Name as people know it, e.g. `NVRTC`.
        library: &'static str,
        /// File name looked for, e.g. `libnvrtc.so.13`.
        file: String,
        /// Folders searched beyond the library path, as the end of a sentence; may be empty.
        searched: String,
    },
    /// A kernel does not compile.
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile {
        /// [`crate::Source::name`].
        source_name: &'static str,
        /// Architecture compiled for, e.g. `sm_90a`.
        arch: String,
        /// The compiler's messages.
        log: String,
    },
    /// NVRTC refuses a call for a reason that is not in the source.
    #[error("NVRTC: {call} answered {status}")]
    Nvrtc {
        /// Function of the library.
        call: &'static str,
        /// Its status.
        status: String,
    },
    /// A compiled source has no kernel of this name.
    #[error("{source_name} has no kernel named {entry}")]
    NoEntry {
        /// [`crate::Source::name`].
        source_name: &'static str,
        /// Kernel asked for.
        entry: &'static str,
    },
    /// The device has not that much memory left, not even after every cached block was given back.
    #[error(
        "cuda:{ordinal} is out of memory: {asked_bytes} bytes asked for, {in_use_bytes} in use by this process's \
         tensors, {free_bytes} free of {total_bytes}"
    )]
    OutOfMemory {
        /// Device.
        ordinal: usize,
        /// Bytes of the allocation that failed.
        asked_bytes: usize,
        /// Bytes of live buffers.
        in_use_bytes: usize,
        /// Bytes the driver reports free.
        free_bytes: usize,
        /// Bytes of the device.
        total_bytes: usize,
    },
    /// The driver refuses a call.
    #[error("CUDA driver: {call} answered {name} ({code}): {text}")]
    Driver {
        /// Function of the driver.
        call: &'static str,
        /// Number of the status.
        code: u32,
        /// Name of the status.
        name: String,
        /// The driver's sentence about it.
        text: String,
    },
    /// cuBLASLt refuses a call.
    #[error("cuBLASLt: {call} answered {status}")]
    Lt {
        /// Function of the library.
        call: &'static str,
        /// Its status.
        status: String,
    },
    /// NCCL refuses a call.
    #[error("NCCL: {call} answered {status}")]
    Nccl {
        /// Function of the library.
        call: &'static str,
        /// Its status, in its words.
        status: String,
    },
    /// cuBLASLt has no deterministic algorithm for this product.
    #[error("cuBLASLt has no algorithm for {problem:?}")]
    NoAlgorithm {
        /// The product.
        problem: Box<Matmul>,
    },
    /// An operand holds fewer (or, for copies, other) bytes than the call needs.
    #[error("{call}: operand {operand} needs {expected} bytes, got {got}")]
    OperandBytes {
        /// Function called.
        call: &'static str,
        /// Operand by its name in the function.
        operand: &'static str,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A dimension does not fit the others.
    #[error("{call}: {dimension} must be {expected}, got {got}")]
    Dimension {
        /// Function called.
        call: &'static str,
        /// Name of the dimension.
        dimension: &'static str,
        /// What is allowed, e.g. `at least 64`.
        expected: String,
        /// Value given.
        got: usize,
    },
    /// An operand lives on another device.
    #[error("{call}: operand {operand} is on cuda:{got}, the call on cuda:{expected}")]
    WrongDevice {
        /// Function called.
        call: &'static str,
        /// Operand by its name in the function.
        operand: &'static str,
        /// Device of the call.
        expected: usize,
        /// Device of the operand.
        got: usize,
    },
    /// The epilogue needs a bias operand, or takes none.
    #[error("matmul: epilogue {epilogue} takes {expected} bias operands, got {got}")]
    Bias {
        /// The epilogue.
        epilogue: &'static str,
        /// Operands it takes, 0 or 1.
        expected: usize,
        /// Operands given.
        got: usize,
    },
    /// A call that waits for the host cannot be part of a graph.
    #[error("{call} cannot be called while a graph is captured")]
    Capturing {
        /// Function called.
        call: &'static str,
    },
    /// `end_capture` without `begin_capture`.
    #[error("no graph is being captured on cuda:{ordinal}")]
    NotCapturing {
        /// Device.
        ordinal: usize,
    },
    /// No row of a kernel table takes this problem.
    #[error("no {product} kernel takes {problem}; there are {kernels}")]
    NoKernel {
        /// Name of the table.
        product: &'static str,
        /// The problem in words.
        problem: String,
        /// Names of all rows.
        kernels: String,
    },
}
