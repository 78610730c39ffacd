//! What ends a bench.

use super::check::Mistake;
use lacewing_core::StructureError;
use std::io;
use std::path::PathBuf;

/// Why a bench cannot start, or what it found wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    /// A device that is not measured.
    #[error("--device: bench measures on cpu only, not on {name}")]
    Device {
        /// Its name.
        name: String,
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
        "`{structure}` at {n_in}x{n_out}, {rows} rows, is wrong through {}: output {} of row {} is {}, not {} within {:e}",
        mistake.kernel, mistake.output, mistake.row, mistake.got, mistake.expected, mistake.bound
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
    #[error("--csv: cannot write {}: {source}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}
