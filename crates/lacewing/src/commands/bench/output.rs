//! Files of results: claimed before anything is measured, so that a wrong path costs no time, and whole or not there.

use super::error::BenchError;
use lacewing_train::checkpoint::file::replace_text;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file that will be written.
pub(super) struct Output {
    option: &'static str,
    path: PathBuf,
    /// The name under which [`replace_text`] writes it before it is renamed.
    fresh: PathBuf,
}

impl Output {
    /// A file at `path`, which `option` asks for. What is there stays until the new one is whole.
    pub(super) fn create(option: &'static str, path: &Path) -> Result<Self, BenchError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        let made = if path.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { File::create(&fresh) };
        match made {
            Ok(_) => Ok(Self { option, path: path.to_owned(), fresh }),
            Err(source) => Err(BenchError::Write { option, path: path.to_owned(), source: source.into() }),
        }
    }

    /// A file called `name` in `folder`, which is made if there is none.
    pub(super) fn create_in(option: &'static str, folder: &Path, name: &str) -> Result<Self, BenchError> {
        fs::create_dir_all(folder).map_err(|source| BenchError::Write {
            option,
            path: folder.to_owned(),
            source: source.into(),
        })?;
        Self::create(option, &folder.join(name))
    }

    /// Writes it.
    pub(super) fn write(self, text: &str) -> Result<(), BenchError> {
        replace_text(&self.path, text).map_err(|source| BenchError::Write {
            option: self.option,
            path: self.path.clone(),
            source: source.into(),
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Once renamed it is not there, and what was never written is nobody's loss.
        let _ = fs::remove_file(&self.fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.csv");
        fs::write(&path, "old").expect("a writable folder");
        let names = || fs::read_dir(folder.path()).expect("a folder").count();
        drop(Output::create("--csv", &path).expect("a writable folder"));
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), ("old", 1));
        let output = Output::create("--csv", &path).expect("a writable folder");
        output.write("new").expect("a writable folder");
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), ("new", 1));
        assert!(Output::create("--csv", folder.path()).is_err(), "a folder");
        assert!(Output::create_in("--svg", &path, "b.svg").is_err(), "a folder inside a file");
    }
}
