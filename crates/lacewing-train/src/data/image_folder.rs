//! `image_folder`: pictures of any size in the layout of ImageNet, decoded when a batch needs them.
//!
//! `train/CLASS/FILE` and `val/CLASS/FILE` (or `test`, `valid`, `validation`) with JPEG or PNG files. Classes are the folders
//! of `train` by name. Every picture is brought to [`OpenOptions::image_size`] unless the recipe's augmentations say
//! otherwise.

use super::dataset::error::DataError;
use super::dataset::{CacheUse, Dataset, OpenOptions, Split, SplitName};
use super::source::folder::{self, Classes};
use super::{DatasetEntry, Origin};
use crate::augment::normalize::Normalize;
use crate::augment::picture::ImageShape;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The row of the table.
pub const IMAGE_FOLDER: DatasetEntry = DatasetEntry {
    name: "image_folder",
    about: "your own pictures: train/CLASS/*.jpg and val/CLASS/*.jpg (the layout of ImageNet)",
    origin: Origin::AtPath { expects: EXPECTS, open },
};

const EXPECTS: &str = "a folder with train/CLASS/*.{jpg,jpeg,png} and val/ or test/ of the same classes";

fn open(root: &Path, options: &OpenOptions) -> Result<Dataset, DataError> {
    let Some((train, test)) = folder::split_folders(root) else {
        return Err(DataError::Layout { path: root.to_owned(), expects: EXPECTS });
    };
    let (train, test) = (folder::list(&train)?, folder::list(&test)?);
    for (classes, split) in [(&train, SplitName::Train), (&test, SplitName::Test)] {
        if classes.is_empty() {
            return Err(DataError::EmptySplit { path: root.to_owned(), split });
        }
    }
    for (here, there, split) in [(&train, &test, SplitName::Test), (&test, &train, SplitName::Train)] {
        let gap = here.iter().find(|(class, _)| there.iter().all(|(other, _)| other != class));
        if let Some((class, _)) = gap {
            return Err(DataError::ClassMissing { path: root.to_owned(), class: class.clone(), split });
        }
    }
    let side = options.image_size as usize;
    Ok(Dataset {
        name: IMAGE_FOLDER.name,
        class_names: train.iter().map(|(class, _)| class.clone()).collect(),
        shape: ImageShape::new(3, side, side),
        normalize: Normalize::new(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225]),
        train: Arc::new(split(train)),
        test: Arc::new(split(test)),
        skipped: Vec::new(),
        cache: CacheUse::None,
    })
}

/// Files class by class; both splits have the same classes in the same order.
fn split(classes: Classes) -> Split {
    let (mut files, mut labels): (Vec<PathBuf>, Vec<u32>) = (Vec::new(), Vec::new());
    for (label, (_, of_class)) in classes.into_iter().enumerate() {
        labels.resize(labels.len() + of_class.len(), label as u32);
        files.extend(of_class);
    }
    Split::in_files(files, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::picture::Picture;
    use image::{ImageBuffer, Rgb};
    use std::fs;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (split, n) in [("train", 2), ("val", 1)] {
            for (label, class) in ["cat", "dog", "eel"].iter().enumerate() {
                let folder = root.path().join(split).join(class);
                fs::create_dir_all(&folder).expect("writable");
                for id in 0..n {
                    let color = Rgb([label as u8 * 50, id as u8, 0]);
                    let picture = ImageBuffer::from_pixel(20 + 7 * id, 30, color);
                    picture.save(folder.join(format!("{id}.png"))).expect("writable");
                }
                fs::write(folder.join("notes.txt"), "no picture").expect("writable");
            }
        }
        root
    }

    #[test]
    fn classes_files_and_sizes() {
        let root = tree();
        let dataset =
            open(root.path(), &OpenOptions { image_size: 16, ..Default::default() }).expect("valid");
        assert_eq!(dataset.class_names, ["cat", "dog", "eel"]);
        assert_eq!(dataset.train.labels(), [0, 0, 1, 1, 2, 2]);
        assert_eq!((dataset.shape, dataset.source().varying), (ImageShape::new(3, 16, 16), true));
        let mut picture = Picture::empty();
        dataset.train.load(3, &mut picture).expect("a valid file");
        assert_eq!((picture.shape, picture.pixels[0]), (ImageShape::new(3, 30, 27), 50));
        assert!(dataset.train.name(3).ends_with("1.png"));
    }

    #[test]
    fn classes_must_agree() {
        let root = tree();
        fs::remove_dir_all(root.path().join("val/dog")).expect("it is there");
        let error = open(root.path(), &OpenOptions::default()).expect_err("a class less").to_string();
        assert!(error.contains("dog is missing in test"), "{error}");
        fs::remove_dir_all(root.path().join("train/dog")).expect("it is there");
        assert!(open(root.path(), &OpenOptions::default()).is_ok());
        fs::remove_dir_all(root.path().join("val")).expect("it is there");
        let error = open(root.path(), &OpenOptions::default()).expect_err("no evaluation split").to_string();
        assert!(error.contains("val/ or test/"), "{error}");
    }

    #[test]
    fn a_file_that_does_not_decode_is_named() {
        let root = tree();
        fs::write(root.path().join("train/dog/0.png"), b"garbage").expect("writable");
        let dataset = open(root.path(), &OpenOptions::default()).expect("files are decoded later");
        let error = dataset.train.load(2, &mut Picture::empty()).expect_err("garbage");
        assert!(error.is_bad_image() && error.to_string().contains("0.png"), "{error}");
    }
}
