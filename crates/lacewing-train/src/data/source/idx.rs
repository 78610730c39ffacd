//! IDX files, gzipped or not: the format of MNIST and its successors.
//!
//! A file is a big-endian magic number (2051 for pictures, 2049 for labels), the count, for pictures rows and columns, then
//! bytes.

use super::read_exactly;
use crate::augment::normalize::Normalize;
use crate::augment::picture::ImageShape;
use crate::data::dataset::error::DataError;
use crate::data::dataset::{CacheUse, Dataset, Split, SplitName};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the path of such a data set must be.
pub(crate) const EXPECTS: &str =
    "a folder with {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, each plain or .gz";

const PICTURES: u32 = 2051;
const LABELS: u32 = 2049;

/// Limits on what a header may ask for.
const MAX_COUNT: u32 = 10_000_000;
const MAX_SIDE: u32 = 256;

/// A data set of 10 classes in four IDX files.
pub(crate) struct IdxDataset {
    pub(crate) name: &'static str,
    pub(crate) class_names: [&'static str; 10],
    pub(crate) mean: f64,
    pub(crate) std: f64,
}

impl IdxDataset {
    /// Reads the four files of `folder`.
    ///
    /// # Errors
    /// A file that is missing, truncated, corrupt or does not fit its partner, by name.
    pub(crate) fn open(&self, folder: &Path) -> Result<Dataset, DataError> {
        let (shape, train) = self.split(folder, SplitName::Train)?;
        let (test_shape, test) = self.split(folder, SplitName::Test)?;
        if test_shape != shape {
            let name = folder.join("t10k-images-idx3-ubyte").display().to_string();
            return Err(DataError::BadShape { name, expected: shape, got: test_shape });
        }
        Ok(Dataset {
            name: self.name,
            class_names: self.class_names.map(str::to_owned).to_vec(),
            shape,
            normalize: Normalize::new(&[self.mean], &[self.std]),
            train: Arc::new(train),
            test: Arc::new(test),
            skipped: Vec::new(),
            cache: CacheUse::None,
        })
    }

    fn split(&self, folder: &Path, split: SplitName) -> Result<(ImageShape, Split), DataError> {
        let prefix = match split {
            SplitName::Train => "train",
            SplitName::Test => "t10k",
        };
        let (path, mut file) = find(folder, &format!("{prefix}-images"), "idx3-ubyte")?;
        let [magic, count, rows, columns] = header(&mut file, &path)?;
        field(&path, "the magic number", PICTURES, magic)?;
        limit(&path, "the number of pictures", MAX_COUNT, count)?;
        limit(&path, "the number of rows", MAX_SIDE, rows)?;
        limit(&path, "the number of columns", MAX_SIDE, columns)?;
        let shape = ImageShape::new(1, rows as usize, columns as usize);
        let pixels = read_exactly(&mut file, &path, "the pictures", u64::from(count) * shape.len() as u64)?;

        let (path, mut file) = find(folder, &format!("{prefix}-labels"), "idx1-ubyte")?;
        let [magic, label_count] = header(&mut file, &path)?;
        field(&path, "the magic number", LABELS, magic)?;
        field(&path, "the number of labels", count, label_count)?;
        let labels = read_exactly(&mut file, &path, "the labels", count.into())?;
        let n_classes = self.class_names.len();
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= n_classes) {
            return Err(DataError::Label { path, index, label: labels[index].into(), n_classes });
        }
        Ok((shape, Split::in_memory(shape, pixels, labels.into_iter().map(u32::from).collect())))
    }
}

/// Opens `stem-kind` or `stem.kind`, plain or gzipped (told by the first bytes, not by the name).
fn find(folder: &Path, stem: &str, kind: &str) -> Result<(PathBuf, Box<dyn Read>), DataError> {
    let names = [format!("{stem}-{kind}"), format!("{stem}.{kind}")];
    let candidates = names.iter().flat_map(|name| [folder.join(name), folder.join(format!("{name}.gz"))]);
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
        return Err(DataError::Missing { path: folder.join(&names[0]), expects: EXPECTS });
    };
    let io = |source| DataError::Io { path: path.clone(), source };
    let mut file = File::open(&path).map_err(io)?;
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let input = BufReader::new(file);
    let reader: Box<dyn Read> =
        if start == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
    Ok((path, reader))
}

/// `N` big-endian numbers.
fn header<const N: usize>(file: &mut dyn Read, path: &Path) -> Result<[u32; N], DataError> {
    let bytes = read_exactly(&mut file.take(4 * N as u64), path, "the header", 4 * N as u64)?;
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *number = u32::from_be_bytes(*bytes);
    }
    Ok(numbers)
}

fn field(path: &Path, what: &'static str, expected: u32, got: u32) -> Result<(), DataError> {
    if expected == got {
        return Ok(());
    }
    Err(DataError::Field { path: path.to_owned(), what, expected: expected.into(), got: got.into() })
}

fn limit(path: &Path, what: &str, limit: u32, got: u32) -> Result<(), DataError> {
    if (1..=limit).contains(&got) {
        return Ok(());
    }
    let (path, what) = (path.to_owned(), what.to_owned());
    Err(DataError::Count { path, what, limit: limit.into(), got: got.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn write(folder: &Path, name: &str, header: &[u32], body: &[u8], gz: bool) {
        let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_be_bytes()).collect();
        bytes.extend_from_slice(body);
        if gz {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&bytes).expect("memory");
            bytes = encoder.finish().expect("memory");
        }
        std::fs::write(folder.join(name), bytes).expect("a writable folder");
    }

    fn folder(gz: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let end = if gz { ".gz" } else { "" };
        for (prefix, n) in [("train", 3_u8), ("t10k", 2)] {
            let pixels: Vec<u8> = (0..n * 6).collect();
            let count = n.into();
            write(
                folder.path(),
                &format!("{prefix}-images-idx3-ubyte{end}"),
                &[2051, count, 2, 3],
                &pixels,
                gz,
            );
            let labels: Vec<u8> = (0..n).map(|i| i * 4).collect();
            write(folder.path(), &format!("{prefix}-labels-idx1-ubyte{end}"), &[2049, count], &labels, gz);
        }
        folder
    }

    fn open(folder: &Path) -> Result<Dataset, DataError> {
        crate::data::open("mnist", Some(folder), &crate::data::OpenOptions::default())
    }

    #[test]
    fn plain_and_gzipped_read_alike() {
        for gz in [false, true] {
            let dataset = open(folder(gz).path()).expect("four valid files");
            assert_eq!(dataset.shape, ImageShape::new(1, 2, 3));
            assert_eq!(dataset.train.labels(), [0, 4, 8]);
            assert_eq!(dataset.test.pixels(1), Some(&[6, 7, 8, 9, 10, 11][..]));
        }
    }

    #[test]
    fn damage_is_named() {
        let images = "train-images-idx3-ubyte";
        let labels = "train-labels-idx1-ubyte";
        type Case<'a> = (&'a str, &'a [u32], &'a [u8], &'a [&'a str]);
        let cases: [Case<'_>; 7] = [
            (images, &[2051, 3, 2, 3], &[0; 17], &["truncated", "17", "18"]),
            (images, &[2051, 3, 2, 3], &[0; 19], &["more than 18"]),
            (images, &[2049, 3, 2, 3], &[0; 18], &["2049", "2051"]),
            (images, &[2051, 3], &[], &["header", "8", "16"]),
            (images, &[2051, u32::MAX, 2, 3], &[0; 18], &["4294967295", "10000000"]),
            (labels, &[2049, 2], &[0; 2], &["number of labels", "2", "3"]),
            (labels, &[2049, 3], &[0, 10, 0], &["label 10", "place 1"]),
        ];
        for (name, header, body, parts) in cases {
            let folder = folder(false);
            write(folder.path(), name, header, body, false);
            let error = open(folder.path()).expect_err("a damaged file").to_string();
            assert!(error.contains(name) && parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let folder = folder(true);
        std::fs::remove_file(folder.path().join("t10k-labels-idx1-ubyte.gz")).expect("it is there");
        let error = open(folder.path()).expect_err("a missing file").to_string();
        assert!(error.contains("t10k-labels-idx1-ubyte"), "{error}");
        let path = folder.path().join("train-images-idx3-ubyte.gz");
        let whole = std::fs::read(&path).expect("it is there");
        std::fs::write(&path, &whole[..whole.len() - 9]).expect("writable");
        let error = open(folder.path()).expect_err("a truncated file").to_string();
        assert!(error.contains("train-images-idx3-ubyte.gz"), "{error}");
    }
}
