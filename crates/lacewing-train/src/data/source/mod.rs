//! Where bytes come from: compressed archives, folders, pictures, IDX files and the cache of decoded pictures.

pub mod archive;
pub mod cache;
pub mod decode;
pub mod folder;
pub mod idx;
pub mod picture;

use super::dataset::error::DataError;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Reads exactly the rest of `input`, which must be `expected` bytes long; more is never taken into memory.
///
/// # Errors
/// A shorter or longer input, an unreadable one.
pub(crate) fn read_exactly(
    input: &mut dyn Read,
    path: &Path,
    what: &str,
    expected: u64,
) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let failure = input.take(expected + 1).read_to_end(&mut bytes).err();
    let got = bytes.len() as u64;
    // A compressed stream that ends early: what it gave so far says how early.
    let short = failure.as_ref().is_none_or(|error| error.kind() == ErrorKind::UnexpectedEof);
    if got < expected && short {
        return Err(DataError::Truncated { path: path.to_owned(), what: what.to_owned(), expected, got });
    }
    if let Some(source) = failure {
        return Err(DataError::Io { path: path.to_owned(), source });
    }
    if got > expected {
        return Err(DataError::TooLarge { path: path.to_owned(), what: what.to_owned(), limit: expected });
    }
    Ok(bytes)
}
