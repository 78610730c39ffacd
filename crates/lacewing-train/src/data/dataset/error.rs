//! What can be wrong with data, with the file, what was expected and what was found.

use crate::augment::AugmentError;
use crate::augment::picture::ImageShape;
use crate::data::DATASETS;
use crate::data::dataset::SplitName;
use std::io;
use std::path::PathBuf;

/// What can be wrong with data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No data set has this name.
    #[error("unknown data set `{name}`{}; known: {}", did_you_mean(nearest), known())]
    UnknownDataset {
        /// The name asked for.
        name: String,
        /// A known one like it.
        nearest: Option<&'static str>,
    },
    /// The data set lies outside the binary and no path was given.
    #[error("data set {dataset} needs a path: {expects}")]
    PathNeeded {
        /// The data set.
        dataset: &'static str,
        /// What the path must be.
        expects: &'static str,
    },
    /// The data set is in the binary and a path was given.
    #[error("data set {dataset} is part of the program and takes no path, got {}", path.display())]
    PathNotWanted {
        /// The data set.
        dataset: &'static str,
        /// The path given.
        path: PathBuf,
    },
    /// Nothing is at the path.
    #[error("no such file or folder: {} (expected {expects})", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
        /// What should be there.
        expects: &'static str,
    },
    /// Something is at the path, but not what the data set needs.
    #[error("{}: nothing to read there (expected {expects})", path.display())]
    Layout {
        /// The path.
        path: PathBuf,
        /// What should be there.
        expects: &'static str,
    },
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// A file ends early.
    #[error("{} is truncated: {what} has {got} bytes, expected {expected}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that is short.
        what: String,
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        got: u64,
    },
    /// A compressed file ends early; how long it should be is not known.
    #[error("{} is truncated: it ends after {read} bytes of a {format} stream that goes on", path.display())]
    StreamEnds {
        /// The file.
        path: PathBuf,
        /// tar, gzip, xz or zstd.
        format: &'static str,
        /// Bytes the file has.
        read: u64,
    },
    /// A stream does not decode.
    #[error("{} is corrupt: {format} stream, near byte {read} of the file: {source}", path.display())]
    Stream {
        /// The file.
        path: PathBuf,
        /// tar, gzip, xz or zstd.
        format: &'static str,
        /// Bytes of the file read so far.
        read: u64,
        /// The decoder's reason.
        source: io::Error,
    },
    /// A number in a file is not the one its format demands.
    #[error("{} is corrupt: {what} is {got}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The number.
        what: &'static str,
        /// What the format demands.
        expected: u64,
        /// What the file says.
        got: u64,
    },
    /// A count in a file is zero or beyond anything legitimate.
    #[error("{} is corrupt: {what} is {got}, expected 1 to {limit}", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// The number.
        what: String,
        /// The greatest legitimate value.
        limit: u64,
        /// What the file says.
        got: u64,
    },
    /// A file or an entry is larger than anything legitimate.
    #[error("{}: {what} has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The part.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// An archive holds an entry twice.
    #[error("{} is corrupt: {entry} is in it twice", path.display())]
    Duplicate {
        /// The archive.
        path: PathBuf,
        /// The entry.
        entry: String,
    },
    /// A label outside the classes.
    #[error("{} is corrupt: label {label} at place {index}, expected less than {n_classes}", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// Which label.
        index: usize,
        /// Its value.
        label: u32,
        /// Number of classes.
        n_classes: usize,
    },
    /// A picture does not decode.
    #[error("{name} does not decode: {source}")]
    BadImage {
        /// The file, or the archive and the entry.
        name: String,
        /// The decoder's reason.
        source: image::ImageError,
    },
    /// A picture has another shape than its data set.
    #[error("{name} is {got}, expected {expected} (channels x height x width)")]
    BadShape {
        /// The file, or the archive and the entry.
        name: String,
        /// The data set's shape.
        expected: ImageShape,
        /// The picture's.
        got: ImageShape,
    },
    /// Every picture of a split is bad.
    #[error("no picture of {split} decodes; the first: {first}")]
    AllBad {
        /// The split.
        split: String,
        /// Its first picture.
        first: String,
    },
    /// Another number of classes than expected.
    #[error("{source_name} has {got} classes, expected {expected}")]
    ClassCount {
        /// The data set or file.
        source_name: String,
        /// Classes expected.
        expected: usize,
        /// Classes found.
        got: usize,
    },
    /// The two splits do not have the same classes.
    #[error("{}: class {class} is missing in {split}", path.display())]
    ClassMissing {
        /// The folder or archive.
        path: PathBuf,
        /// The class.
        class: String,
        /// The split that lacks it.
        split: SplitName,
    },
    /// A split without pictures.
    #[error("{}: no pictures in {split}", path.display())]
    EmptySplit {
        /// The folder or archive.
        path: PathBuf,
        /// The split.
        split: SplitName,
    },
    /// A batch size with which an epoch has no batch.
    #[error("batch size {batch_size} makes no batch of {samples} samples")]
    BatchSize {
        /// The batch size.
        batch_size: usize,
        /// Samples of the split.
        samples: usize,
    },
    /// The operating system gave no threads.
    #[error("cannot start {workers} data workers: {source}")]
    Threads {
        /// Workers asked for; 0 is one a core.
        workers: usize,
        /// Its reason.
        source: rayon::ThreadPoolBuildError,
    },
    /// Augmentation settings that do not fit the data.
    #[error(transparent)]
    Augment(#[from] AugmentError),
}

impl DataError {
    /// Whether the error is one bad picture, which [`super::OnBadImage::Skip`] passes over.
    pub fn is_bad_image(&self) -> bool {
        matches!(self, Self::BadImage { .. } | Self::BadShape { .. })
    }
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn known() -> String {
    DATASETS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}
