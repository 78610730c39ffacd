//! What can go wrong in the engine, with names and numbers.

use crate::DType;

/// The engine's result.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// An op was asked for something it cannot do, or the device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// An operand's shape does not fit the op.
    #[error("{op}: {operand} has shape {got:?}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// What would fit, in words or numbers.
        expected: String,
        /// What came.
        got: Vec<usize>,
    },
    /// An operand's element type does not fit the op.
    #[error("{op}: {operand} is {got:?}, expected {expected:?}")]
    DType {
        /// The op.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// What would fit.
        expected: DType,
        /// What came.
        got: DType,
    },
    /// Operands live on different devices.
    #[error("{op}: {operand} is on {got}, the other operands on {expected}")]
    Device {
        /// The op.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// Where the others are.
        expected: String,
        /// Where it is.
        got: String,
    },
    /// A device name that is not `cpu` or `cuda:N`.
    #[error("unknown device `{name}`: expected `cpu` or `cuda:N`, as in `cuda:0`")]
    UnknownDevice {
        /// What was asked for.
        name: String,
    },
    /// A value outside an op's range.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Value {
        /// The op.
        op: &'static str,
        /// Which value.
        what: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// Values for a parameter that do not match its shape.
    #[error("parameter `{name}`: {got} values, expected {expected}")]
    ParamLen {
        /// Its name.
        name: String,
        /// Elements of its shape.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// Another process of the run cannot be reached.
    #[error(transparent)]
    Processes(Box<dyn std::error::Error + Send + Sync>),
    /// The GPU or its libraries.
    #[error(transparent)]
    Cuda(#[from] lacewing_cuda::CudaError),
}
