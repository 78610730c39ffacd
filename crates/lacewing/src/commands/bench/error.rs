//! What ends a bench.

use super::check::Mistake;
use lacewing_core::StructureError;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Why a bench cannot start, or what it found wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    /// A type that the device has no products in.
    #[error("--dtype: {device} has no products in bf16; expected f32")]
    Bf16 {
        /// The device.
        device: String,
    },
    /// Other libraries' layers are measured on the host alone.
    #[error(
        "--peers: other libraries' layers are measured on cpu, not on {device}; their models (--model) on both"
    )]
    Peers {
        /// The device.
        device: String,
    },
    /// A config that does not fit a shape.
    #[error("--structures: `{structure}` cannot be built at {n_in}x{n_out}: {source}")]
    Structure {
        /// The config in a line.
        structure: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// What is wrong with it.
        source: Box<StructureError>,
    },
    /// A structure whose smallest size is too large.
    #[error("--structures: `{structure}` at {n_in}x{n_out} has no size within density {most}")]
    NoSize {
        /// Its name.
        structure: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// The largest density asked for.
        most: f64,
    },
    /// An output that rounding does not explain.
    #[error(
        "`{structure}` at {n_in}x{n_out}, {rows} rows, is wrong through {}: {} is {}, not {} within {:e}",
        mistake.kernel, mistake.what, mistake.got, mistake.expected, mistake.bound
    )]
    Wrong {
        /// The structure.
        structure: String,
        /// Length of one row of input.
        n_in: usize,
        /// Length of one row of output.
        n_out: usize,
        /// Rows of input.
        rows: usize,
        /// Where and by how much.
        mistake: Mistake,
    },
    /// A file that cannot be written.
    #[error("{option}: cannot write {}: {source}", path.display())]
    Write {
        /// The option that asked for it.
        option: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No Python to run other libraries with.
    #[error("--peers: cannot run {}: {source}; {recipe}", python.display())]
    NoPython {
        /// The interpreter.
        python: PathBuf,
        /// The system's reason.
        source: io::Error,
        /// How an environment is made.
        recipe: &'static str,
    },
    /// A library that cannot be done without.
    #[error("--peers: {} has no `{module}` ({reason}); {recipe}", python.display())]
    MissingModule {
        /// The interpreter.
        python: PathBuf,
        /// The library.
        module: String,
        /// What Python says.
        reason: String,
        /// How an environment is made.
        recipe: &'static str,
    },
    /// A program of other libraries that ended too early.
    #[error("--peers: {} ended with {status} before it had measured everything", python.display())]
    PeersEnded {
        /// The interpreter.
        python: PathBuf,
        /// How it ended.
        status: String,
    },
    /// Something that is not an answer.
    #[error("--peers: {} answered `{line}`, not a row of times", python.display())]
    PeersAnswer {
        /// The interpreter.
        python: PathBuf,
        /// What it said.
        line: String,
    },
    /// A model without anything to compare.
    #[error("--model: every layer of {model} is dense; say what to put in their place by --to or --rules")]
    AllDense {
        /// The model.
        model: String,
    },
    /// A model that does not compute what its structures define.
    #[error(
        "{model} at batch {batch}, {direction}, is wrong: {what} differ from those with the definitions' dense weights by {by:e} of \
         the largest, where rounding explains {bound:e}"
    )]
    WrongModel {
        /// The model.
        model: String,
        /// Pictures in a batch.
        batch: usize,
        /// What was computed.
        direction: &'static str,
        /// Logits or gradients.
        what: &'static str,
        /// The largest difference.
        by: f64,
        /// What it may be.
        bound: f64,
    },
}
