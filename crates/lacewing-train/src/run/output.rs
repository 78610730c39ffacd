//! A run's folder: what lies where, and whether it can be written before anything is worth losing.

use super::Event;
use crate::checkpoint::{CheckpointError, MODEL_FILE, file};
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::report::Row;
use serde::Deserialize;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Room left besides checkpoints, in bytes: metrics, summaries and file system overhead.
const SLACK_BYTES: u64 = 16 << 20;

/// A run's folder. The first model's files lie in it, those of further models in a folder of their label each.
#[derive(Debug)]
pub struct Output {
    root: PathBuf,
    /// Whether it is this process that writes it: if not, what would write does nothing.
    writes: bool,
}

impl Output {
    /// Makes the folder and proves with a file that it can be written.
    ///
    /// # Errors
    ///
    /// [`TrainError::Output`] with the folder and the system's reason.
    pub fn create(root: &Path) -> Result<Self, TrainError> {
        let failed = |source| TrainError::Output { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(failed)?;
        let probe = root.join(".writable");
        fs::write(&probe, b"lacewing").and_then(|()| fs::remove_file(&probe)).map_err(failed)?;
        Ok(Self { root: root.to_owned(), writes: true })
    }

    /// The folder that another process makes and writes.
    pub fn of_another(root: &Path) -> Self {
        Self { root: root.to_owned(), writes: false }
    }

    /// Checks that `needed` bytes and some slack are free.
    ///
    /// # Errors
    ///
    /// [`TrainError::Space`] with both numbers.
    pub fn require_space(&self, needed: u64) -> Result<(), TrainError> {
        if !self.writes {
            return Ok(());
        }
        let free = fs4::available_space(&self.root)
            .map_err(|source| TrainError::Output { path: self.root.clone(), source })?;
        let needed = needed + SLACK_BYTES;
        if free < needed {
            return Err(TrainError::Space { path: self.root.clone(), needed, free });
        }
        Ok(())
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model: the root for the first.
    fn folder(&self, label: Option<&str>) -> PathBuf {
        label.map_or_else(|| self.root.clone(), |label| self.root.join(label))
    }

    /// Where a model's checkpoint lies.
    pub fn checkpoint(&self, label: Option<&str>) -> PathBuf {
        self.folder(label).join("checkpoint")
    }

    /// Where a model's weights lie.
    pub fn weights(&self, label: Option<&str>) -> PathBuf {
        self.folder(label).join(MODEL_FILE)
    }

    /// Writes `config.yaml`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`].
    pub fn write_config(&self, recipe: &Recipe) -> Result<(), TrainError> {
        if !self.writes {
            return Ok(());
        }
        Ok(file::replace_text(&config_file(&self.root), &recipe.to_yaml()?)?)
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`].
    pub fn write_summary(&self, rows: &[Row]) -> Result<(), TrainError> {
        if !self.writes {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(rows).expect("rows are plain data");
        Ok(file::replace_text(&self.root.join("summary.json"), &(text + "\n"))?)
    }

    /// The rows of `summary.json`; none when there is no such file.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Read`], [`CheckpointError::Corrupt`].
    pub fn summary(&self) -> Result<Vec<Row>, TrainError> {
        let path = self.root.join("summary.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(CheckpointError::Read { path, source }.into()),
        };
        serde_json::from_slice(&bytes).map_err(|source| {
            CheckpointError::Corrupt { path, bytes: bytes.len(), reason: source.to_string() }.into()
        })
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Output`].
    pub fn write_metric(&self, event: &Event) -> Result<(), TrainError> {
        if !self.writes {
            return Ok(());
        }
        let path = self.metrics();
        let line = serde_json::to_string(event).expect("events are plain data") + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|source| TrainError::Output { path, source })
    }

    /// Drops the lines of `metrics.jsonl` that a continuation from `step` of `model` will write again. All of them for
    /// a run that starts anew.
    ///
    /// # Errors
    ///
    /// [`TrainError::Output`].
    pub fn rewind_metrics(&self, model: &str, step: u64) -> Result<(), TrainError> {
        /// What a line must say to be judged; others, and half a line at the end, are dropped.
        #[derive(Deserialize)]
        struct Line {
            model: String,
            step: u64,
        }
        if !self.writes {
            return Ok(());
        }
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(TrainError::Output { path, source }),
        };
        let stays = |line: &&str| {
            serde_json::from_str(line).is_ok_and(|line: Line| line.model != model || line.step <= step)
        };
        let kept: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
        Ok(file::replace_text(&path, &kept)?)
    }

    fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }
}

/// The resolved recipe in a run's folder.
pub fn config_file(root: &Path) -> PathBuf {
    root.join("config.yaml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(model: &str, step: u64) -> Event {
        Event::Eval { model: model.to_owned(), step, epoch: 0.0, top1: 0.5, top5: 1.0, images_per_s: 1.0 }
    }

    #[test]
    fn metrics_of_steps_to_be_repeated_are_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = Output::create(folder.path()).expect("a writable folder");
        output.rewind_metrics("a", 0).expect("nothing to do");
        for (model, step) in [("a", 1), ("b", 3), ("a", 2), ("a", 3)] {
            output.write_metric(&eval(model, step)).expect("a writable folder");
        }
        let path = folder.path().join("metrics.jsonl");
        let torn = fs::read_to_string(&path).expect("a file") + "{\"event\":\"eval\",\"mod";
        fs::write(&path, torn).expect("a writable folder");
        output.rewind_metrics("a", 2).expect("a writable folder");
        let text = fs::read_to_string(&path).expect("a file");
        let steps: Vec<bool> = text.lines().map(|line| line.contains("\"step\":3")).collect();
        assert_eq!(steps, [false, true, false], "{text}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_or_filled_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("taken");
        fs::write(&file, b"").expect("a writable folder");
        let error = Output::create(&file.join("inside")).expect_err("a file is no folder").to_string();
        assert!(error.contains("taken"), "{error}");
        let output = Output::create(folder.path()).expect("a writable folder");
        let error = output.require_space(u64::MAX / 2).expect_err("no disk is that large").to_string();
        assert!(error.contains("free") && error.contains("needs"), "{error}");
    }
}
