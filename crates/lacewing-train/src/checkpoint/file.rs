//! Files that are whole or absent: safetensors of f32 and u32, and replacing a file or folder in one rename.

use super::CheckpointError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The one metadata key: with several their order in the file would be random, and equal runs must give equal bytes.
const METADATA_KEY: &str = "lacewing";

/// One array to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Entry {
    /// An array of f32.
    pub fn f32(name: String, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, shape: shape.to_vec(), dtype: Dtype::F32, bytes }
    }

    /// An array of u32.
    pub fn u32(name: String, shape: &[usize], values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, shape: shape.to_vec(), dtype: Dtype::U32, bytes }
    }
}

/// A safetensors file in memory, its header checked: every array lies inside the file and fills its shape.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
    data_at: usize,
    header: Metadata,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Read`] when the system refuses, [`CheckpointError::Corrupt`] when the file is cut short or its
    /// header does not describe it.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes =
            fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let corrupt =
            |reason: String| CheckpointError::Corrupt { path: path.to_owned(), bytes: bytes.len(), reason };
        // This also compares the header with the length of the file.
        let (header_len, header) =
            SafeTensors::read_metadata(&bytes).map_err(|source| corrupt(source.to_string()))?;
        Ok(Self { path: path.to_owned(), data_at: 8 + header_len, header, bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text that [`write()`] was given.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoMetadata`] for a file of someone else.
    pub fn metadata(&self) -> Result<&str, CheckpointError> {
        let found = self.header.metadata().as_ref().and_then(|map| map.get(METADATA_KEY));
        found.map(String::as_str).ok_or_else(|| CheckpointError::NoMetadata { path: self.path.clone() })
    }

    /// Names of all arrays, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.tensors().into_keys().collect();
        names.sort_unstable();
        names
    }

    /// Whether an array of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Whether the array is of integers: a structure's indices.
    pub fn is_u32(&self, name: &str) -> bool {
        self.header.info(name).is_some_and(|info| info.dtype == Dtype::U32)
    }

    /// The shape of an array.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// An array of f32 of the shape expected.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Missing`], [`CheckpointError::Tensor`] for another type or shape.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let words = self.words(name, Dtype::F32, Some(shape))?;
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    /// An array of u32 of any shape.
    ///
    /// # Errors
    ///
    /// As [`TensorFile::f32`].
    pub fn u32(&self, name: &str) -> Result<Vec<u32>, CheckpointError> {
        let words = self.words(name, Dtype::U32, None)?;
        Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
    }

    fn words(
        &self,
        name: &str,
        dtype: Dtype,
        shape: Option<&[usize]>,
    ) -> Result<&[[u8; 4]], CheckpointError> {
        let missing = || CheckpointError::Missing { path: self.path.clone(), name: name.to_owned() };
        let info = self.header.info(name).ok_or_else(missing)?;
        if info.dtype != dtype || shape.is_some_and(|shape| shape != info.shape) {
            return Err(CheckpointError::Tensor {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: format!("{dtype:?} {}", shape.map(|s| format!("{s:?}")).unwrap_or_default()),
                got: format!("{:?} {:?}", info.dtype, info.shape),
            });
        }
        let (start, end) = info.data_offsets;
        Ok(self.bytes[self.data_at + start..self.data_at + end].as_chunks().0)
    }
}

/// Whether the file at `path` opens with a safetensors header that this program wrote. Only the header is read; a file
/// that is none of ours, or no safetensors file at all, is for other readers to judge.
///
/// # Errors
///
/// [`CheckpointError::Read`] when the system refuses.
pub fn is_ours(path: &Path) -> Result<bool, CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Ok(false);
    }
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > size - 8 {
        return Ok(false);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(failed)?;
    let header: Option<serde_json::Value> = serde_json::from_slice(&header).ok();
    let card = header.as_ref().and_then(|header| header.get("__metadata__")?.get(METADATA_KEY)?.as_str());
    // A dense export and a checkpoint's state carry a plain word there, a model its card.
    Ok(card.is_some_and(|card| card.starts_with('{')))
}

/// Writes a safetensors file with `metadata` and waits until it is on disk.
///
/// # Errors
///
/// [`CheckpointError::Write`].
pub fn write(path: &Path, entries: &[Entry], metadata: &str) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let views = entries.iter().map(|entry| {
        let view = TensorView::new(entry.dtype, entry.shape.clone(), &entry.bytes);
        (entry.name.as_str(), view.expect("an entry's bytes fill its shape"))
    });
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata.to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|source| failed(std::io::Error::other(source)))?;
    write_bytes(path, &bytes)
}

/// Fills a new file beside `path` and renames it to `path`: a reader sees the old one or the new one, whole.
///
/// # Errors
///
/// What `fill` reports, and [`CheckpointError::Write`].
pub fn replace_file(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let fresh = beside(path, "new");
    fill(&fresh)?;
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    fs::rename(&fresh, path).map_err(failed)?;
    sync_parent(path)
}

/// Writes `text` to the file at `path`, whole or not at all.
///
/// # Errors
///
/// [`CheckpointError::Write`].
pub fn replace_text(path: &Path, text: &str) -> Result<(), CheckpointError> {
    replace_file(path, |fresh| write_text(fresh, text))
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<(), CheckpointError> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    fs::write(path, bytes).map_err(failed)?;
    File::open(path).and_then(|file| file.sync_all()).map_err(failed)
}

/// Fills a new folder beside `path` and puts it in the place of `path`. A folder cannot be replaced in one rename, so
/// for a moment the old one is called `NAME.old` and there is no `NAME`: see [`whole_folder`].
///
/// # Errors
///
/// What `fill` reports, and [`CheckpointError::Write`].
pub fn replace_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let (fresh, old) = (beside(path, "new"), beside(path, "old"));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    fs::create_dir_all(&fresh).map_err(failed)?;
    fill(&fresh)?;
    if path.exists() {
        // What a crash left: with `path` there, it is one older still.
        if old.exists() {
            fs::remove_dir_all(&old).map_err(failed)?;
        }
        fs::rename(path, &old).map_err(failed)?;
    }
    fs::rename(&fresh, path).map_err(failed)?;
    sync_parent(path)?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(failed)?;
    }
    Ok(())
}

/// Where the newest whole folder is that [`replace_folder`] made for `path`, if any.
pub fn whole_folder(path: &Path) -> Option<PathBuf> {
    [path.to_owned(), beside(path, "old")].into_iter().find(|folder| folder.is_dir())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map(|name| name.to_owned()).unwrap_or_default();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// A rename is on disk once its folder is.
fn sync_parent(path: &Path) -> Result<(), CheckpointError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|folder| folder.sync_all());
    synced.map_err(|source| CheckpointError::Write { path: parent.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(path: &Path) {
        let entries = [
            Entry::f32("b".to_owned(), &[2, 2], &[1.0, -2.0, f32::NAN, f32::MIN_POSITIVE / 2.0]),
            Entry::u32("a.cols".to_owned(), &[3], &[7, 0, u32::MAX]),
            Entry::f32("empty".to_owned(), &[0], &[]),
        ];
        write(path, &entries, "{\"x\": 1}").expect("a writable folder");
    }

    #[test]
    fn arrays_round_trip_bit_for_bit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.safetensors");
        sample(&path);
        let file = TensorFile::read(&path).expect("what was written");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(
            bits(file.f32("b", &[2, 2]).expect("there")),
            bits(vec![1.0, -2.0, f32::NAN, f32::MIN_POSITIVE / 2.0])
        );
        assert_eq!(file.u32("a.cols").expect("there"), [7, 0, u32::MAX]);
        assert_eq!(file.metadata().expect("ours"), "{\"x\": 1}");
        assert_eq!(file.names(), ["a.cols", "b", "empty"]);
        assert!(file.is_u32("a.cols") && !file.is_u32("b"));
    }

    #[test]
    fn wrong_arrays_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.safetensors");
        sample(&path);
        let file = TensorFile::read(&path).expect("what was written");
        for (error, parts) in [
            (file.f32("c", &[1]).map(|_| ()), vec!["x.safetensors", "`c`", "missing"]),
            (file.f32("b", &[4]).map(|_| ()), vec!["`b`", "[4]", "[2, 2]"]),
            (file.f32("a.cols", &[3]).map(|_| ()), vec!["`a.cols`", "F32", "U32"]),
            (file.u32("b").map(|_| ()), vec!["`b`", "U32", "F32"]),
        ] {
            let error = error.expect_err("not as expected").to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.safetensors");
        sample(&path);
        let whole = fs::read(&path).expect("what was written");
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).expect("a writable folder");
            let error = TensorFile::read(&path).expect_err("a truncated file").to_string();
            assert!(error.contains("x.safetensors") && error.contains(&len.to_string()), "{error}");
        }
    }

    #[test]
    fn hostile_headers_are_errors() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.safetensors");
        for header in [
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes.extend([0; 4]);
            fs::write(&path, &bytes).expect("a writable folder");
            assert!(TensorFile::read(&path).is_err(), "{header}");
        }
        fs::write(&path, [0xff; 64]).expect("a writable folder");
        assert!(TensorFile::read(&path).is_err());
    }

    #[test]
    fn a_crash_between_the_renames_leaves_a_whole_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("checkpoint");
        let put = |text: &'static str| replace_folder(&path, |at| write_text(&at.join("state"), text));
        let read =
            || fs::read_to_string(whole_folder(&path).expect("a folder").join("state")).expect("a file");
        assert!(whole_folder(&path).is_none());
        put("one").expect("a writable folder");
        put("two").expect("a writable folder");
        assert_eq!(read(), "two");
        // Killed after the first rename, with the third half written.
        fs::rename(&path, beside(&path, "old")).expect("a writable folder");
        fs::create_dir(beside(&path, "new")).expect("a writable folder");
        assert_eq!(read(), "two");
        put("four").expect("a writable folder");
        assert_eq!(read(), "four");
        // A failure while filling leaves the last one.
        let failing = replace_folder(&path, |at| {
            let path = at.to_owned();
            Err(CheckpointError::Missing { path, name: String::new() })
        });
        assert!(failing.is_err());
        assert_eq!(read(), "four");
    }
}
