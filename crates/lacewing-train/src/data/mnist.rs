//! `mnist`: 70,000 handwritten digits, 28×28 gray, from the four IDX files (LeCun, Cortes, Burges 1998).

use super::dataset::error::DataError;
use super::dataset::{Dataset, OpenOptions};
use super::source::idx::{self, IdxDataset};
use super::{DatasetEntry, Origin};
use std::path::Path;

/// The row of the table.
pub const MNIST: DatasetEntry = DatasetEntry {
    name: "mnist",
    about: "70,000 handwritten digits, 28x28 gray, 10 classes (LeCun, Cortes, Burges 1998)",
    origin: Origin::AtPath { expects: idx::EXPECTS, open },
};

fn open(folder: &Path, _: &OpenOptions) -> Result<Dataset, DataError> {
    IdxDataset {
        name: MNIST.name,
        class_names: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        mean: 0.1307,
        std: 0.3081,
    }
    .open(folder)
}
