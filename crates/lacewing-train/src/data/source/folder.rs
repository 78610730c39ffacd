//! Folders of pictures, one folder a class.

use super::picture::is_picture;
use crate::data::dataset::SplitName;
use crate::data::dataset::error::DataError;
use std::fs::{DirEntry, read_dir};
use std::path::{Path, PathBuf};

/// The pictures of one split: class names in order, and the files of each.
pub(crate) type Classes = Vec<(String, Vec<PathBuf>)>;

/// The split that a folder of this name holds.
pub(crate) fn split_of(folder: &str) -> Option<SplitName> {
    match folder {
        "train" => Some(SplitName::Train),
        "test" | "val" | "valid" | "validation" => Some(SplitName::Test),
        _ => None,
    }
}

/// The folders of `root` that hold the training and the evaluation split, when both are there.
pub(crate) fn split_folders(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let train = root.join("train");
    let test = ["val", "test", "valid", "validation"]
        .iter()
        .map(|name| root.join(name))
        .find(|path| path.is_dir())?;
    train.is_dir().then_some((train, test))
}

/// Lists `folder`: subfolders are classes and their `.jpg`, `.jpeg` and `.png` files are its pictures; both sorted by name.
/// Classes without pictures are left out, and so are other files and hidden ones.
///
/// # Errors
/// A folder that is unreadable.
pub(crate) fn list(folder: &Path) -> Result<Classes, DataError> {
    let mut classes = Vec::new();
    for class in entries(folder)? {
        let path = class.path();
        if !path.is_dir() {
            continue;
        }
        let files: Vec<PathBuf> =
            entries(&path)?.iter().map(DirEntry::path).filter(|file| shows_picture(file)).collect();
        if !files.is_empty() {
            classes.push((class.file_name().to_string_lossy().into_owned(), files));
        }
    }
    Ok(classes)
}

fn shows_picture(file: &Path) -> bool {
    file.file_name().is_some_and(|name| is_picture(&name.to_string_lossy()))
}

/// The entries of a folder by name, without hidden ones.
fn entries(folder: &Path) -> Result<Vec<DirEntry>, DataError> {
    let io = |source| DataError::Io { path: folder.to_owned(), source };
    let mut entries = read_dir(folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    entries.retain(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}
