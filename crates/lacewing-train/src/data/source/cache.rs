//! The cache of decoded archives: one file a source, so that the second run reads bytes and decodes nothing.
//!
//! The key is the source's file name, size and time of change. A file is `LACEDATA`, a version, the length of a JSON header
//! (u32 each, little-endian), the header, the labels of both splits (u32 each), their pixels, and the CRC-32 of all before.
//! It is written to a temporary sibling and renamed. Anything wrong with one makes it as good as absent.

use super::decode::Contents;
use crate::augment::picture::ImageShape;
use crate::data::dataset::{CacheMode, OnBadImage, Split};
use flate2::Crc;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const MAGIC: &[u8; 8] = b"LACEDATA";
const VERSION: u32 = 1;

/// Bytes that are checksummed and written at a time, to stay in the processor's cache.
const PIECE: usize = 256 << 10;

/// What identifies a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    dataset: String,
    file: String,
    size: u64,
    modified_ns: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    class_names: Vec<String>,
    shape: [usize; 3],
    /// Pictures for training and evaluation.
    counts: [usize; 2],
    skipped: Vec<String>,
}

/// The place of one source in the cache.
#[derive(Clone, Debug)]
pub(crate) struct CacheFile {
    pub(crate) path: PathBuf,
    key: Key,
}

impl CacheFile {
    /// The place of `source`; `None` when there is no cache or the source has no usable key.
    pub(crate) fn locate(mode: &CacheMode, dataset: &str, source: &Path) -> Option<Self> {
        let folder = match mode {
            CacheMode::Off => return None,
            CacheMode::Folder(folder) => folder.clone(),
            CacheMode::User => user_folder()?,
        };
        let metadata = fs::metadata(source).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let file = source.file_name()?.to_string_lossy().into_owned();
        let key = Key {
            dataset: dataset.to_owned(),
            size: metadata.len(),
            modified_ns: u64::try_from(modified.as_nanos()).ok()?,
            file,
        };
        let name = format!("{dataset}-{}-{:x}-{:x}.cache", key.file, key.size, key.modified_ns);
        Some(Self { path: folder.join(name), key })
    }

    /// The decoded pictures; `None` when they are not there, damaged, of another source, or not what `on_bad` wants.
    pub(crate) fn read(&self, on_bad: OnBadImage) -> Option<Contents> {
        let file = File::open(&self.path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut input = Summed { inner: file, crc: Crc::new() };
        let mut start = [0; 16];
        input.read(&mut start).ok()?;
        let (magic, numbers) = start.split_at(8);
        let [version, header] =
            [0, 4].map(|at| u32::from_le_bytes(numbers[at..at + 4].try_into().expect("4 bytes")));
        if magic != MAGIC || version != VERSION || u64::from(header) > length {
            return None;
        }
        let mut json = vec![0; header as usize];
        input.read(&mut json).ok()?;
        let header: Header = serde_json::from_slice(&json).ok()?;
        let [channels, height, width] = header.shape;
        let shape = ImageShape::new(channels, height, width);
        let [train, test] = header.counts;
        // Checked arithmetic: the numbers are only as good as the file.
        let picture = channels.checked_mul(height)?.checked_mul(width)?.checked_add(4)?;
        let body = train.checked_add(test)?.checked_mul(picture)?;
        let expected = body.checked_add(16 + json.len() + 4)? as u64;
        if header.key != self.key || expected != length {
            return None;
        }
        if on_bad == OnBadImage::Stop && !header.skipped.is_empty() {
            return None;
        }
        let mut labels = [vec![0; train * 4], vec![0; test * 4]];
        let mut pixels = [vec![0; train * shape.len()], vec![0; test * shape.len()]];
        for part in labels.iter_mut().chain(&mut pixels) {
            input.read(part).ok()?;
        }
        let sum = input.crc.sum();
        let mut stored = [0; 4];
        input.read(&mut stored).ok()?;
        if u32::from_le_bytes(stored) != sum {
            return None;
        }
        let labels =
            labels.map(|bytes| bytes.as_chunks::<4>().0.iter().map(|l| u32::from_le_bytes(*l)).collect());
        let [train_labels, test_labels]: [Vec<u32>; 2] = labels;
        let n_classes = header.class_names.len() as u32;
        if train_labels.iter().chain(&test_labels).any(|&label| label >= n_classes) {
            return None;
        }
        let [train_pixels, test_pixels] = pixels;
        Some(Contents {
            class_names: header.class_names,
            shape,
            train: Split::in_memory(shape, train_pixels, train_labels),
            test: Split::in_memory(shape, test_pixels, test_labels),
            skipped: header.skipped,
        })
    }

    /// Writes the decoded pictures.
    ///
    /// # Errors
    /// A folder that cannot be made or written, a full disk; no partial file is left.
    pub(crate) fn write(&self, contents: &Contents) -> io::Result<()> {
        let folder = self.path.parent().expect("a cache file lies in a folder");
        fs::create_dir_all(folder)?;
        let shape = contents.shape;
        let header = Header {
            key: self.key.clone(),
            class_names: contents.class_names.clone(),
            shape: [shape.channels, shape.height, shape.width],
            counts: [contents.train.len(), contents.test.len()],
            skipped: contents.skipped.clone(),
        };
        let json = serde_json::to_vec(&header).map_err(io::Error::other)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        let mut output = Summed { inner: BufWriter::new(&mut file), crc: Crc::new() };
        output.write(MAGIC)?;
        output.write(&VERSION.to_le_bytes())?;
        output.write(&(json.len() as u32).to_le_bytes())?;
        output.write(&json)?;
        let splits = [&contents.train, &contents.test];
        for split in splits {
            let labels: Vec<u8> = split.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
            output.write(&labels)?;
        }
        for split in splits {
            output.write(split.all_pixels().expect("contents are in memory"))?;
        }
        let sum = output.crc.sum();
        output.write(&sum.to_le_bytes())?;
        output.inner.flush()?;
        drop(output);
        file.persist(&self.path)?;
        Ok(())
    }
}

/// A file whose bytes are summed as they pass.
struct Summed<F> {
    inner: F,
    crc: Crc,
}

impl<F: Read> Summed<F> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<()> {
        for piece in target.chunks_mut(PIECE) {
            self.inner.read_exact(piece)?;
            self.crc.update(piece);
        }
        Ok(())
    }
}

impl<F: Write> Summed<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            self.crc.update(piece);
            self.inner.write_all(piece)?;
        }
        Ok(())
    }
}

/// The user's cache folder for data, by the XDG rules: an absolute `XDG_CACHE_HOME`, else `~/.cache`.
fn user_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("lacewing").join("data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let shape = ImageShape::new(3, 2, 2);
        Contents {
            class_names: vec!["a".to_owned(), "b".to_owned()],
            shape,
            train: Split::in_memory(shape, (0..36).collect(), vec![0, 1, 1]),
            test: Split::in_memory(shape, (100..124).collect(), vec![1, 0]),
            skipped: Vec::new(),
        }
    }

    fn place() -> (tempfile::TempDir, CacheFile) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("source.tar");
        fs::write(&source, b"stands for an archive").expect("writable");
        let mode = CacheMode::Folder(folder.path().join("below/cache"));
        let file = CacheFile::locate(&mode, "cifar10", &source).expect("a key");
        (folder, file)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, file) = place();
        assert!(file.read(OnBadImage::Stop).is_none());
        file.write(&contents()).expect("writable");
        let (read, written) = (file.read(OnBadImage::Stop).expect("just written"), contents());
        assert_eq!((read.class_names, read.shape), (written.class_names, written.shape));
        for (a, b) in [(read.train, written.train), (read.test, written.test)] {
            assert_eq!((a.labels(), a.all_pixels()), (b.labels(), b.all_pixels()));
        }
        let files = fs::read_dir(file.path.parent().expect("a folder")).expect("readable").count();
        assert_eq!(files, 1, "no temporary file stays");
    }

    #[test]
    fn any_damage_makes_it_absent() {
        let (_folder, file) = place();
        file.write(&contents()).expect("writable");
        let whole = fs::read(&file.path).expect("just written");
        for place in 0..whole.len() {
            let mut bad = whole.clone();
            bad[place] ^= 1;
            fs::write(&file.path, &bad).expect("writable");
            assert!(file.read(OnBadImage::Stop).is_none(), "byte {place} of {}", whole.len());
            fs::write(&file.path, &whole[..place]).expect("writable");
            assert!(file.read(OnBadImage::Stop).is_none(), "cut to {place} of {}", whole.len());
        }
    }

    #[test]
    fn a_cache_with_gaps_does_not_serve_who_wants_none() {
        let (_folder, file) = place();
        file.write(&Contents { skipped: vec!["x.jpg".to_owned()], ..contents() }).expect("writable");
        assert!(file.read(OnBadImage::Stop).is_none());
        assert_eq!(file.read(OnBadImage::Skip).expect("gaps allowed").skipped, ["x.jpg"]);
    }

    #[test]
    fn a_source_that_changed_has_another_place() {
        let (folder, file) = place();
        let source = folder.path().join("source.tar");
        fs::write(&source, b"another archive of another size").expect("writable");
        let mode = CacheMode::Folder(folder.path().join("below/cache"));
        assert_ne!(CacheFile::locate(&mode, "cifar10", &source).expect("a key").path, file.path);
        assert!(CacheFile::locate(&CacheMode::Off, "cifar10", &source).is_none());
    }
}
