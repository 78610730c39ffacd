//! What can be wrong with a checkpoint. Every variant names the file and, where there is one, the tensor.

use std::io;

use crate::Dtype;

/// Why a checkpoint, or one of its tensors, could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{file}: {source}")]
    Io {
        /// The path asked for.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file or a part of one that must exist does not.
    #[error("{file}: {what} is missing")]
    Missing {
        /// The file or folder searched.
        file: String,
        /// What was looked for.
        what: String,
    },
    /// The first bytes are of no known format.
    #[error("{file}: neither safetensors nor a PyTorch checkpoint (first bytes {got})")]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its first bytes in hexadecimal.
        got: String,
    },
    /// A known format in a form that is not read.
    #[error("{file}: {what} is not supported")]
    Unsupported {
        /// The file.
        file: String,
        /// The feature met.
        what: String,
    },
    /// The file ends before a part of it does.
    #[error("{file}: {part} needs {expected} bytes, {got} are there")]
    Truncated {
        /// The file.
        file: String,
        /// The part that is cut.
        part: String,
        /// Bytes needed.
        expected: u64,
        /// Bytes left in the file.
        got: u64,
    },
    /// A part of the file contradicts its format or another part.
    #[error("{file}: {part}: expected {expected}, got {got}")]
    Damaged {
        /// The file.
        file: String,
        /// The part in question.
        part: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The pickle program is not one that `pickle` writes.
    #[error("{file}: pickle byte {at}: expected {expected}, got {got}")]
    Pickle {
        /// The file.
        file: String,
        /// Offset in the pickle.
        at: usize,
        /// What the instruction needs.
        expected: String,
        /// What it found.
        got: String,
    },
    /// The description of one tensor is wrong.
    #[error("{file}: tensor {tensor}: expected {expected}, got {got}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What would be right.
        expected: String,
        /// What is declared.
        got: String,
    },
    /// Two tensors have one name.
    #[error("{file}: tensor {tensor} occurs twice")]
    DuplicateTensor {
        /// The file or folder.
        file: String,
        /// The name.
        tensor: String,
    },
    /// The file asks for more memory than its size allows.
    #[error("{file}: {what} would take {got} {unit}, the limit for this file is {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// What is too large.
        what: String,
        /// The amount asked for.
        got: u64,
        /// The most that is allowed.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// The checkpoint holds no tensor where a state dict is looked for.
    #[error("{file}: no tensors at top level nor under {looked}; the file holds {got}")]
    NoTensors {
        /// The file.
        file: String,
        /// The keys searched.
        looked: String,
        /// What was found instead.
        got: String,
    },
    /// A tensor's type does not convert to the one asked for.
    #[error("{file}: tensor {tensor}: {got} does not convert to {expected}")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type asked for.
        expected: &'static str,
        /// The tensor's type.
        got: Dtype,
    },
    /// An integer does not fit the type asked for.
    #[error("{file}: tensor {tensor}: element {index} is {value}, outside {expected}")]
    Range {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Row-major index of the element.
        index: usize,
        /// Its value.
        value: i128,
        /// The type asked for.
        expected: &'static str,
    },
}

/// Text out of a file as it is shown in an error: escaped, and cut where it would fill the screen.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut out: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push_str("...");
    }
    out
}

/// [`shown`] for bytes that may not be text.
pub(crate) fn shown_bytes(bytes: &[u8]) -> String {
    shown(&String::from_utf8_lossy(&bytes[..bytes.len().min(512)]))
}
