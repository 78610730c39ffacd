//! Data sets, and the loader that makes batches of them.
//!
//! One file a data set and one row in [`DATASETS`]. `dataset` is what a data set is, `source` reads archives, pictures and
//! IDX files, `loader` shuffles, augments and prefetches.

pub mod cifar10;
pub mod dataset;
pub mod digits;
pub mod fashion_mnist;
pub mod image_folder;
pub mod loader;
pub mod mnist;
pub mod source;

pub use crate::augment::picture::ImageShape;
pub use dataset::error::DataError;
pub use dataset::{CacheMode, CacheUse, Dataset, OnBadImage, OpenOptions, Split, SplitName};
pub use loader::{Batch, Batches, Loader, LoaderOptions, Position};

use std::path::Path;

/// Every data set.
pub const DATASETS: &[DatasetEntry] = &[
    digits::DIGITS,
    cifar10::CIFAR10,
    mnist::MNIST,
    fashion_mnist::FASHION_MNIST,
    image_folder::IMAGE_FOLDER,
];

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct DatasetEntry {
    /// Its name in recipes.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// Where its bytes are and how they are read.
    pub origin: Origin,
}

/// Where a data set's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// In the binary.
    Embedded(fn() -> Result<Dataset, DataError>),
    /// At a path the user names.
    AtPath {
        /// What the path must be, in words.
        expects: &'static str,
        /// Reads it.
        open: fn(&Path, &OpenOptions) -> Result<Dataset, DataError>,
    },
}

/// Opens the data set `name`. `path` is where it lies; an embedded one needs and takes none.
///
/// # Errors
/// An unknown name, a path missing or not wanted, and whatever is wrong with the files, each by name: [`DataError`].
pub fn open(name: &str, path: Option<&Path>, options: &OpenOptions) -> Result<Dataset, DataError> {
    let entry = DATASETS.iter().find(|entry| entry.name == name).ok_or_else(|| unknown(name))?;
    match (entry.origin, path) {
        (Origin::Embedded(open), None) => open(),
        (Origin::Embedded(_), Some(path)) => {
            Err(DataError::PathNotWanted { dataset: entry.name, path: path.to_owned() })
        }
        (Origin::AtPath { expects, .. }, None) => Err(DataError::PathNeeded { dataset: entry.name, expects }),
        (Origin::AtPath { expects, open }, Some(path)) => {
            if !path.exists() {
                return Err(DataError::Missing { path: path.to_owned(), expects });
            }
            open(path, options)
        }
    }
}

fn unknown(name: &str) -> DataError {
    let nearest = DATASETS
        .iter()
        .map(|entry| (strsim::damerau_levenshtein(name, entry.name), entry.name))
        .min()
        .filter(|&(distance, _)| distance <= 3)
        .map(|(_, known)| known);
    DataError::UnknownDataset { name: name.to_owned(), nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_and_table_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/data");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of this file")
            .map(|entry| entry.expect("a readable folder").path())
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
            .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
            .filter(|name| name != "mod")
            .collect();
        files.sort();
        let mut names: Vec<&str> = DATASETS.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    #[test]
    fn names_and_paths_are_checked() {
        let options = OpenOptions::default();
        let text = |name: &str, path: Option<&str>| {
            open(name, path.map(Path::new), &options).map(|_| ()).expect_err("a bad request").to_string()
        };
        let typo = text("cifar-10", None);
        assert!(typo.contains("cifar-10") && typo.contains("did you mean `cifar10`"), "{typo}");
        let far = text("something else", None);
        assert!(far.contains("digits, cifar10") && !far.contains("did you mean"), "{far}");
        assert!(text("cifar10", None).contains("needs a path"));
        assert!(text("digits", Some("/x")).contains("/x"));
        assert!(text("mnist", Some("/no/such/folder")).contains("/no/such/folder"));
    }
}
