//! Checkpoints: everything a run needs to go on bit by bit, and the weights alone for whoever uses them.
//!
//! `checkpoint/` holds `state.safetensors` (`param/NAME`, `average/NAME` and each optimizer array as `ARRAY/NAME`, all
//! f32; index buffers as `index/NAME`, u32) and `state.json` ([`Progress`]). The order of the data and every random draw
//! are functions of the seed and the step, so those two numbers are the state of all generators.
//! `model.safetensors` holds the weights under their own names, index buffers beside them, and a [`ModelCard`] in its
//! metadata. Both are written beside their place and renamed into it.

mod error;
pub mod file;

pub use error::CheckpointError;

use crate::recipe::Recipe;
use file::{Entry, TensorFile};
use lacewing_core::IndexBuffer;
use lacewing_engine::{Params, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// The version of the formats.
const FORMAT: u32 = 1;

/// Arrays of a checkpoint, and the file.
const ARRAYS: &str = "state.safetensors";

/// Numbers of a checkpoint.
const PROGRESS: &str = "state.json";

/// What a model needs to know of its data to be built again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInput {
    /// Channels, height, width of a picture.
    pub image: [usize; 3],
    /// Number of classes.
    pub n_classes: usize,
}

/// Which teacher a run has: its values are not in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherMark {
    /// Where it lay.
    pub path: PathBuf,
    /// Of its file of weights.
    pub digest: String,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Version of the format.
    format: u32,
    /// Name of the model in the run.
    pub label: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Epoch of the next batch, from 0.
    pub epoch: u64,
    /// The next batch in its epoch, from 0.
    pub batch: usize,
    /// Steps the optimizer counts.
    pub optimizer_steps: u64,
    /// Seed of all random draws.
    pub seed: u64,
    /// Share of the test pictures classified right at the last evaluation.
    pub top1: Option<f64>,
    /// The best of all evaluations.
    pub best_top1: Option<f64>,
    /// Pictures trained a second, median so far.
    pub train_images_per_s: f64,
    /// The model's config.
    pub model: Value,
    /// What it was built for.
    pub input: ModelInput,
    /// Every linear layer's structure with all defaults.
    pub structures: BTreeMap<String, Value>,
    /// The recipe, with all defaults.
    pub recipe: Recipe,
    /// The teacher, of a run that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherMark>,
}

/// What `model.safetensors` says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// Version of the format.
    format: u32,
    /// Name of the model in its run.
    pub label: String,
    /// Optimizer steps behind the weights.
    pub step: u64,
    /// The model's config.
    pub model: Value,
    /// What it was built for.
    pub input: ModelInput,
    /// Names of the classes.
    pub class_names: Vec<String>,
    /// Every linear layer's structure with all defaults.
    pub structures: BTreeMap<String, Value>,
    /// The recipe, with all defaults.
    pub recipe: Recipe,
}

impl ModelCard {
    /// Of weights that no run of this program made.
    pub fn new(
        label: &str,
        model: Value,
        input: ModelInput,
        structures: BTreeMap<String, Value>,
        recipe: Recipe,
    ) -> Self {
        let (label, class_names) = (label.to_owned(), Vec::new());
        Self { format: FORMAT, label, step: 0, model, input, class_names, structures, recipe }
    }
}

impl Progress {
    /// At step 0.
    pub fn start(
        label: &str,
        model: Value,
        input: ModelInput,
        structures: BTreeMap<String, Value>,
        recipe: Recipe,
    ) -> Self {
        Self {
            format: FORMAT,
            label: label.to_owned(),
            step: 0,
            epoch: 0,
            batch: 0,
            optimizer_steps: 0,
            seed: recipe.seed,
            top1: None,
            best_top1: None,
            train_images_per_s: 0.0,
            model,
            input,
            structures,
            recipe,
            teacher: None,
        }
    }

    /// The numbers of the checkpoint at `path` alone, without its arrays.
    ///
    /// # Errors
    ///
    /// As [`Saved::read`].
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        file::whole_folder(path).map(|folder| read_progress(&folder)).transpose()
    }

    /// What the weights of this moment say of themselves. Where and on what the run ran is left out: equal runs make
    /// equal files.
    pub fn card(&self, class_names: &[String]) -> ModelCard {
        let mut recipe = self.recipe.clone();
        recipe.out = None;
        recipe.train.max_steps = None;
        recipe.data.path = None;
        if let (Some(distill), Some(mark)) = (&mut recipe.train.distill, &self.teacher) {
            distill.teacher = PathBuf::from(&mark.digest);
        }
        ModelCard {
            format: FORMAT,
            label: self.label.clone(),
            step: self.step,
            model: self.model.clone(),
            input: self.input.clone(),
            class_names: class_names.to_vec(),
            structures: self.structures.clone(),
            recipe,
        }
    }
}

fn read_progress(folder: &Path) -> Result<Progress, CheckpointError> {
    let path = folder.join(PROGRESS);
    let text = std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    from_json(&path, &text)
}

/// Checks that a setting of the run at `path`, or every setting in a map of them, is as it was.
///
/// # Errors
///
/// [`CheckpointError::Changed`] for the first that is not.
pub fn unchanged(path: &Path, what: &str, then: &Value, now: &Value) -> Result<(), CheckpointError> {
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let keys = then.keys().chain(now.keys().filter(|key| !then.contains_key(*key)));
        for key in keys {
            let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            unchanged(path, &format!("{what}.{key}"), &value(then), &value(now))?;
        }
        return Ok(());
    }
    if then == now {
        return Ok(());
    }
    let (what, path) = (what.to_owned(), path.to_owned());
    Err(CheckpointError::Changed { path, what, expected: then.to_string(), got: now.to_string() })
}

/// Flat arrays shaped as the masters, by name: `param`, `average`, the optimizer's.
pub type Arrays<'a> = Vec<(&'static str, &'a Tensor)>;

/// Writes the checkpoint folder at `path`.
///
/// # Errors
///
/// [`CheckpointError::Write`], and what the device reports.
pub fn save(
    path: &Path,
    progress: &Progress,
    params: &Params,
    arrays: &Arrays<'_>,
    buffers: &[IndexBuffer],
) -> Result<(), CheckpointError> {
    let mut entries = Vec::new();
    for (array, flat) in arrays {
        let values = flat.to_f32()?;
        for info in params.infos() {
            let own = &values[info.offset..][..info.len()];
            entries.push(Entry::f32(format!("{array}/{}", info.name), &info.shape, own));
        }
    }
    for buffer in buffers {
        entries.push(Entry::u32(format!("index/{}", buffer.name), &buffer.shape, &buffer.data));
    }
    file::replace_folder(path, |folder| {
        file::write(&folder.join(ARRAYS), &entries, "state")?;
        file::write_text(&folder.join(PROGRESS), &json(progress))
    })
}

/// A checkpoint folder, read.
#[derive(Debug)]
pub struct Saved {
    /// Where the run stood.
    pub progress: Progress,
    arrays: TensorFile,
}

impl Saved {
    /// Reads the checkpoint at `path`, or the one before it if a crash fell between two renames; `None` without either.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Read`], [`CheckpointError::Corrupt`], [`CheckpointError::Format`].
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(folder) = file::whole_folder(path) else { return Ok(None) };
        let path = folder.join(PROGRESS);
        let text =
            std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let progress: Progress = from_json(&path, &text)?;
        Ok(Some(Self { progress, arrays: TensorFile::read(&folder.join(ARRAYS))? }))
    }

    /// The index buffers of every structure.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensor`] for one that is not of integers.
    pub fn buffers(&self) -> Result<Vec<IndexBuffer>, CheckpointError> {
        let names = self.arrays.names();
        let names = names.iter().filter_map(|name| Some((name, name.strip_prefix("index/")?)));
        names.map(|(name, own)| read_buffer(&self.arrays, name, own)).collect()
    }

    /// Overwrites `arrays` with what was saved.
    ///
    /// # Errors
    ///
    /// A tensor missing, unknown, or of another shape, by name; what the device reports.
    pub fn restore(&self, params: &Params, arrays: &Arrays<'_>) -> Result<(), CheckpointError> {
        let mut expected = HashSet::new();
        let mut flats = Vec::new();
        for (array, flat) in arrays {
            let mut values = vec![0.0; flat.len()];
            for info in params.infos() {
                let name = format!("{array}/{}", info.name);
                values[info.offset..][..info.len()].copy_from_slice(&self.arrays.f32(&name, &info.shape)?);
                expected.insert(name);
            }
            flats.push((flat, values));
        }
        let unknown = |name: &String| !name.starts_with("index/") && !expected.contains(name);
        if let Some(name) = self.arrays.names().into_iter().find(unknown) {
            return Err(CheckpointError::Unknown { path: self.arrays.path().to_owned(), name });
        }
        for (flat, values) in flats {
            flat.set_f32(&values)?;
        }
        Ok(params.refresh_copy()?)
    }
}

/// Writes the weights as they are now.
///
/// # Errors
///
/// [`CheckpointError::Write`], [`CheckpointError::SharedName`], and what the device reports.
pub fn save_model(
    path: &Path,
    card: &ModelCard,
    params: &Params,
    buffers: &[IndexBuffer],
) -> Result<(), CheckpointError> {
    let values = params.flat_master().to_f32()?;
    let mut entries: Vec<Entry> = params
        .infos()
        .iter()
        .map(|info| Entry::f32(info.name.clone(), &info.shape, &values[info.offset..][..info.len()]))
        .collect();
    for buffer in buffers {
        if params.find(&buffer.name).is_some() {
            return Err(CheckpointError::SharedName { name: buffer.name.clone() });
        }
        entries.push(Entry::u32(buffer.name.clone(), &buffer.shape, &buffer.data));
    }
    file::replace_file(path, |fresh| file::write(fresh, &entries, &json(card)))
}

/// Weights, read.
#[derive(Debug)]
pub struct SavedModel {
    /// What they are the weights of.
    pub card: ModelCard,
    arrays: TensorFile,
}

impl SavedModel {
    /// Reads `path`, or `model.safetensors` in it when it is a folder.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::None`], and as [`Saved::read`].
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let file = if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() };
        if path.is_dir() && !file.exists() {
            return Err(CheckpointError::None { path: path.to_owned() });
        }
        let arrays = TensorFile::read(&file)?;
        let card = from_json(&file, arrays.metadata()?.as_bytes())?;
        Ok(Self { card, arrays })
    }

    /// As [`SavedModel::read`], but `None` for what another tool wrote.
    ///
    /// # Errors
    ///
    /// As [`SavedModel::read`], for a file of this program.
    pub fn read_if_ours(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let file = if path.is_dir() { path.join(MODEL_FILE) } else { path.to_owned() };
        if !file.is_file() || !file::is_ours(&file)? {
            return Ok(None);
        }
        Self::read(&file).map(Some)
    }

    /// The index buffers of every structure.
    ///
    /// # Errors
    ///
    /// As [`Saved::buffers`].
    pub fn buffers(&self) -> Result<Vec<IndexBuffer>, CheckpointError> {
        let names = self.arrays.names();
        let names = names.iter().filter(|name| self.arrays.is_u32(name));
        names.map(|name| read_buffer(&self.arrays, name, name)).collect()
    }

    /// Overwrites the parameters.
    ///
    /// # Errors
    ///
    /// As [`Saved::restore`].
    pub fn restore(&self, params: &Params) -> Result<(), CheckpointError> {
        let unknown = |name: &String| !self.arrays.is_u32(name) && params.find(name).is_none();
        if let Some(name) = self.arrays.names().into_iter().find(unknown) {
            return Err(CheckpointError::Unknown { path: self.arrays.path().to_owned(), name });
        }
        for (id, info) in params.ids().zip(params.infos()) {
            params.set(id, &self.arrays.f32(&info.name, &info.shape)?)?;
        }
        Ok(params.refresh_copy()?)
    }
}

/// The weights' file in a run's folder.
pub const MODEL_FILE: &str = "model.safetensors";

fn read_buffer(file: &TensorFile, name: &str, own: &str) -> Result<IndexBuffer, CheckpointError> {
    let shape = file.shape(name).unwrap_or_default().to_vec();
    Ok(IndexBuffer { name: own.to_owned(), data: file.u32(name)?, shape })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("numbers, texts and maps of them")
}

/// Reads JSON after checking its `format`, so that a newer file is called newer and not corrupt.
fn from_json<T: for<'de> Deserialize<'de>>(path: &Path, text: &[u8]) -> Result<T, CheckpointError> {
    let corrupt = |source: serde_json::Error| CheckpointError::Corrupt {
        path: path.to_owned(),
        bytes: text.len(),
        reason: source.to_string(),
    };
    let value: Value = serde_json::from_slice(text).map_err(corrupt)?;
    let format = value.get("format").and_then(Value::as_u64).and_then(|format| u32::try_from(format).ok());
    if let Some(got) = format.filter(|&format| format != FORMAT) {
        return Err(CheckpointError::Format { path: path.to_owned(), expected: FORMAT, got });
    }
    serde_json::from_value(value).map_err(corrupt)
}
