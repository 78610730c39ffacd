//! What a data set is: two splits of labeled pictures, the names of the classes, the shape and the statistics.

pub mod error;

use super::source::picture;
use crate::augment::normalize::Normalize;
use crate::augment::picture::{ImageShape, Picture};
use crate::augment::pipeline::Source;
use error::DataError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// How a data set is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What to do with a picture that does not decode.
    pub on_bad_image: OnBadImage,
    /// Where decoded archives are kept for the next run.
    pub cache: CacheMode,
    /// Decoding threads; 0 for one a core.
    pub workers: usize,
    /// Side, in pixels, to which pictures of varying size are brought.
    pub image_size: u32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { on_bad_image: OnBadImage::default(), cache: CacheMode::default(), workers: 0, image_size: 224 }
    }
}

/// What to do with a picture that does not decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadImage {
    /// Fail, naming it.
    #[default]
    Stop,
    /// Leave it out and count it.
    Skip,
}

/// Where decoded archives are kept for the next run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// `$XDG_CACHE_HOME/lacewing/data`, or `~/.cache/lacewing/data`; nowhere when neither variable is set.
    #[default]
    User,
    /// Nowhere.
    Off,
    /// In this folder.
    Folder(PathBuf),
}

/// What became of the cache.
#[derive(Debug)]
pub enum CacheUse {
    /// Not asked: off, or a source that needs none.
    None,
    /// The pictures came from this file.
    Read(PathBuf),
    /// This file was written.
    Written(PathBuf),
    /// It could not be written; the data set is whole all the same.
    Failed {
        /// The file meant.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The two parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SplitName {
    /// For training.
    Train,
    /// For evaluation.
    Test,
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// A labeled data set of pictures.
#[derive(Debug)]
pub struct Dataset {
    /// Its name in [`super::DATASETS`].
    pub name: &'static str,
    /// Names of the classes; a label is a place in this list.
    pub class_names: Vec<String>,
    /// Shape of every picture; when they vary, the shape to which they are brought.
    pub shape: ImageShape,
    /// Mean and deviation of its channels.
    pub normalize: Normalize,
    /// The training split.
    pub train: Arc<Split>,
    /// The evaluation split.
    pub test: Arc<Split>,
    /// Pictures left out because they did not decode ([`OnBadImage::Skip`]).
    pub skipped: Vec<String>,
    /// What became of the cache.
    pub cache: CacheUse,
}

impl Dataset {
    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        self.class_names.len()
    }

    /// Checks that a model with `expected` outputs fits.
    ///
    /// # Errors
    /// [`DataError::ClassCount`] with both numbers.
    pub fn require_classes(&self, expected: usize) -> Result<(), DataError> {
        if self.n_classes() == expected {
            return Ok(());
        }
        Err(DataError::ClassCount { source_name: self.name.to_owned(), expected, got: self.n_classes() })
    }

    /// What the augmentation pipeline has to know of the pictures.
    pub fn source(&self) -> Source<'_> {
        let varying = matches!(self.train.pictures, Pictures::Files(_));
        Source { shape: self.shape, varying, normalize: &self.normalize }
    }

    /// The split of this name.
    pub fn split(&self, name: SplitName) -> &Arc<Split> {
        match name {
            SplitName::Train => &self.train,
            SplitName::Test => &self.test,
        }
    }
}

/// One part of a data set.
#[derive(Debug)]
pub struct Split {
    labels: Vec<u32>,
    pictures: Pictures,
}

/// Where the pictures of a split are.
enum Pictures {
    /// Decoded, one after the other.
    Memory { shape: ImageShape, pixels: Vec<u8> },
    /// In files, decoded when asked for.
    Files(Vec<PathBuf>),
}

impl fmt::Debug for Pictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { shape, pixels } => {
                write!(f, "Memory({} of {shape})", pixels.len() / shape.len().max(1))
            }
            Self::Files(files) => write!(f, "Files({})", files.len()),
        }
    }
}

impl Split {
    /// A split in memory: `pixels` is `[labels.len(), channels, height, width]`.
    ///
    /// # Panics
    /// When the sizes disagree: the reader of a source checks them first.
    pub fn in_memory(shape: ImageShape, pixels: Vec<u8>, labels: Vec<u32>) -> Self {
        assert_eq!(pixels.len(), labels.len() * shape.len(), "pixels against labels of {shape}");
        Self { labels, pictures: Pictures::Memory { shape, pixels } }
    }

    /// A split of files that are decoded when asked for.
    ///
    /// # Panics
    /// When there are not as many files as labels.
    pub fn in_files(files: Vec<PathBuf>, labels: Vec<u32>) -> Self {
        assert_eq!(files.len(), labels.len(), "one label a file");
        Self { labels, pictures: Pictures::Files(files) }
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The label of every picture.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The bytes of a picture, `[channels, height, width]`; `None` when it lies in a file.
    pub fn pixels(&self, index: usize) -> Option<&[u8]> {
        match &self.pictures {
            Pictures::Memory { shape, pixels } => {
                Some(&pixels[index * shape.len()..(index + 1) * shape.len()])
            }
            Pictures::Files(_) => None,
        }
    }

    /// All bytes of a split in memory, `[len, channels, height, width]`.
    pub fn all_pixels(&self) -> Option<&[u8]> {
        match &self.pictures {
            Pictures::Memory { pixels, .. } => Some(pixels),
            Pictures::Files(_) => None,
        }
    }

    /// Puts a picture into `target`, decoding its file when it lies in one.
    ///
    /// # Errors
    /// A file that is gone, unreadable or does not decode, by name.
    pub fn load(&self, index: usize, target: &mut Picture) -> Result<(), DataError> {
        match &self.pictures {
            Pictures::Memory { shape, pixels } => {
                target.copy_from(*shape, &pixels[index * shape.len()..(index + 1) * shape.len()]);
                Ok(())
            }
            Pictures::Files(files) => picture::decode_file(&files[index], target),
        }
    }

    /// The name by which a picture is reported.
    pub fn name(&self, index: usize) -> String {
        match &self.pictures {
            Pictures::Memory { .. } => format!("picture {index}"),
            Pictures::Files(files) => files[index].display().to_string(),
        }
    }
}
