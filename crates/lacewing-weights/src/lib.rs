//! Reading other tools' checkpoints: safetensors, and the three formats that `torch.save` has had. Opening a file
//! costs O(its header); elements are converted when they are asked for, O(1) each.
//!
//! The files come from strangers. A pickle is a program, so it is interpreted as data by a machine that knows a short
//! list of names (storages, the calls that rebuild tensors, ordered dicts) and makes inert objects of all others;
//! nothing is ever imported or called. Memory is bounded by the size of the file: storages are views of its bytes,
//! what is shared in a pickle stays shared, compressed entries and expanded views are limited to a multiple of the
//! file, and nothing recurses. Every failure is a [`WeightsError`].
//!
//! The crate `pytorch-reader` (0.23.0-pre.1) was measured against the same fixtures. It holds up on unknown names, deep
//! nesting, views out of bounds and all three containers, but: it keeps dicts in hash order, so file order is lost; it
//! does not tell tied tensors; it copies what a pickle shares, and refuses a list that occurs 200 000 times; it lets 100
//! bytes expand to 8 GiB; an unknown call on a tensor beside the weights makes the whole file unreadable; of two zip
//! entries of one name it takes either silently; big-endian archives and 8-bit floats are refused; and it returns the
//! optimizer's tensors with the model's.
//!
//! The crate depends on no other of this project, so that it is fuzzed alone.

#![forbid(unsafe_code)]

mod dtype;
mod error;
mod folder;
mod pickle;
mod safetensors;
mod tar;
mod tensor;
mod torch;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

pub use dtype::Dtype;
pub use error::WeightsError;
pub use tensor::TensorEntry;

/// The container a checkpoint was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save` since 1.6.
    Zip,
    /// `torch.save` from 0.1.10 to 1.5.
    Legacy,
    /// torch before 0.1.10.
    Tar,
}

/// A value of the state dict that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name, or that of the dict it is in.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// All tensors of a checkpoint, in the order of the file.
#[derive(Debug)]
pub struct WeightFile {
    format: Format,
    tensors: Vec<TensorEntry>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    config: Option<serde_json::Value>,
    prefix: Option<String>,
    skipped: Vec<Skipped>,
}

/// One file's content before its names are looked at.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) format: Format,
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) skipped: Vec<Skipped>,
}

/// What wrappers put before the names of a model they hold.
const WRAPPERS: &[&str] = &["module.", "_orig_mod."];

impl WeightFile {
    /// Reads a file, or a folder in the layout of Hugging Face: `model.safetensors`, or its shards with
    /// `model.safetensors.index.json`, or the same as `pytorch_model.bin`. The index may also be named itself.
    ///
    /// # Errors
    /// A [`WeightsError`] naming the file, and the tensor where there is one.
    pub fn read(path: &Path) -> Result<WeightFile, WeightsError> {
        folder::read(path)
    }

    /// Reads the content of one file, called `name` in errors. The format is told by the content.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<WeightFile, WeightsError> {
        WeightFile::assemble(name, load(name, bytes)?, None)
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.index.get(name).map(|&place| &self.tensors[place])
    }

    /// `__metadata__` of safetensors; of shards all together. Empty for pickles.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// `config.json` of a folder.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// The format of the file, or of a folder's first shard.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What every name began with and no longer does: `module.` of a data-parallel wrapper, `_orig_mod.` of a
    /// compiled model, or both.
    pub fn stripped_prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// Values of a pickle's state dict that were left out, because their keys are not text or lie too deep.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    pub(crate) fn assemble(
        name: &str,
        loaded: Loaded,
        config: Option<serde_json::Value>,
    ) -> Result<WeightFile, WeightsError> {
        let Loaded { format, mut tensors, metadata, skipped } = loaded;
        let prefix = shared_prefix(&tensors);
        for tensor in &mut tensors {
            tensor.name.drain(..prefix.len());
        }
        let mut index = HashMap::with_capacity(tensors.len());
        for (place, tensor) in tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), place).is_some() {
                let tensor = error::shown(&tensor.name);
                return Err(WeightsError::DuplicateTensor { file: name.to_owned(), tensor });
            }
        }
        let prefix = (!prefix.is_empty()).then_some(prefix);
        Ok(WeightFile { format, tensors, index, metadata, config, prefix, skipped })
    }
}

/// The wrappers' prefixes that all names have, outermost first. None is taken that would leave a name empty.
fn shared_prefix(tensors: &[TensorEntry]) -> String {
    let mut prefix = String::new();
    while let Some(first) = tensors.first() {
        let Some(wrapper) = WRAPPERS.iter().find(|wrapper| first.name[prefix.len()..].starts_with(*wrapper))
        else {
            break;
        };
        let length = prefix.len() + wrapper.len();
        let longer = &first.name[..length];
        if !tensors.iter().all(|tensor| tensor.name.len() > length && tensor.name.starts_with(longer)) {
            break;
        }
        prefix.push_str(wrapper);
    }
    prefix
}

/// Reads one file's content by its first bytes. In safetensors the ninth byte opens a JSON object, and in none of the
/// other formats can it do so.
pub(crate) fn load(name: &str, bytes: Vec<u8>) -> Result<Loaded, WeightsError> {
    let (file, bytes) = (Arc::from(name), Arc::new(bytes));
    if bytes.get(8) == Some(&b'{') || name.ends_with(".safetensors") {
        safetensors::read(&file, bytes)
    } else if bytes.starts_with(b"PK") {
        torch::read_zip(&file, bytes)
    } else if tar::is_tar(&bytes) {
        torch::read_tar(&file, bytes)
    } else if torch::is_legacy(&bytes) {
        torch::read_legacy(&file, bytes)
    } else {
        let got = format!("{:02x?}", &bytes[..bytes.len().min(8)]);
        Err(WeightsError::UnknownFormat { file: name.to_owned(), got })
    }
}
