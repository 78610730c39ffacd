//! Files of results: tried before anything is measured, so that a wrong path costs no time, and written whole, or text by
//! text as results come. What was there stays until then.

use super::error::BenchError;
use lacewing_train::checkpoint::file::replace_text;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that will be written.
pub(super) struct Output {
    option: &'static str,
    path: PathBuf,
    /// The name under which [`replace_text`] writes it before it is renamed.
    fresh: PathBuf,
    /// The file at `path`, once something has been added.
    begun: Option<File>,
}

impl Output {
    /// A file at `path`, which `option` asks for.
    pub(super) fn create(option: &'static str, path: &Path) -> Result<Self, BenchError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        let output = Self { option, path: path.to_owned(), fresh, begun: None };
        let made = match path.is_dir() {
            true => Err(io::ErrorKind::IsADirectory.into()),
            // Nothing is left of the trial, however the run ends.
            false => File::create(&output.fresh).map(drop).and_then(|()| fs::remove_file(&output.fresh)),
        };
        match made {
            Ok(()) => Ok(output),
            Err(source) => Err(output.failed(source)),
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

    /// Adds `text` to the file, which holds it when this returns. The first text replaces what was there.
    pub(super) fn add(&mut self, text: &str) -> Result<(), BenchError> {
        let done = match &mut self.begun {
            Some(file) => file.write_all(text.as_bytes()),
            None => self.begin(text),
        };
        done.map_err(|source| self.failed(source))
    }

    fn begin(&mut self, text: &str) -> io::Result<()> {
        let mut file = File::create(&self.fresh)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&self.fresh, &self.path)?;
        self.begun = Some(file);
        Ok(())
    }

    /// Writes it whole, in the place of what was there or has been added.
    pub(super) fn write(mut self, text: &str) -> Result<(), BenchError> {
        // Some systems replace no file that is open.
        self.begun = None;
        replace_text(&self.path, text).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> BenchError {
        BenchError::Write { option: self.option, path: self.path.clone(), source: source.into() }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Once renamed it is not there, and what could not be written whole is of no use.
        let _ = fs::remove_file(&self.fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_by_whole_texts_and_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.csv");
        fs::write(&path, "old").expect("a writable folder");
        let names = || fs::read_dir(folder.path()).expect("a folder").count();
        drop(Output::create("--csv", &path).expect("a writable folder"));
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), ("old", 1));
        let mut output = Output::create("--csv", &path).expect("a writable folder");
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), ("old", 1));
        for (text, all) in [("one\n", "one\n"), ("two\n", "one\ntwo\n")] {
            output.add(text).expect("a writable folder");
            assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), (all, 1));
        }
        output.write("new").expect("a writable folder");
        assert_eq!((fs::read_to_string(&path).expect("a file").as_str(), names()), ("new", 1));
        assert!(Output::create("--csv", folder.path()).is_err(), "a folder");
        assert!(Output::create_in("--svg", &path, "b.svg").is_err(), "a folder inside a file");
    }
}
