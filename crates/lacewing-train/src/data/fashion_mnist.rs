//! `fashion_mnist`: 70,000 articles of clothing, 28×28 gray, in the file format of MNIST (Xiao, Rasul, Vollgraf 2017).

use super::dataset::error::DataError;
use super::dataset::{Dataset, OpenOptions};
use super::source::idx::{self, IdxDataset};
use super::{DatasetEntry, Origin};
use std::path::Path;

/// The row of the table.
pub const FASHION_MNIST: DatasetEntry = DatasetEntry {
    name: "fashion_mnist",
    about: "70,000 articles of clothing, 28x28 gray, 10 classes (Xiao, Rasul, Vollgraf 2017)",
    origin: Origin::AtPath { expects: idx::EXPECTS, open },
};

fn open(folder: &Path, _: &OpenOptions) -> Result<Dataset, DataError> {
    IdxDataset {
        name: FASHION_MNIST.name,
        class_names: [
            "t_shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle_boot",
        ],
        mean: 0.2860,
        std: 0.3530,
    }
    .open(folder)
}
