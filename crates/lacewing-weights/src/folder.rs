//! Folders in the layout of Hugging Face: one file, or shards with an index from names to files; O(tensors).

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Component, Path};

use serde_json::Value;

use crate::error::shown;
use crate::{Loaded, WeightFile, WeightsError, load};

/// File names of a folder's weights, best first.
const NAMES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Reads a file, an index or a folder.
pub(crate) fn read(path: &Path) -> Result<WeightFile, WeightsError> {
    let name = path.display().to_string();
    let kind = fs::metadata(path).map_err(|source| WeightsError::Io { file: name.clone(), source })?;
    let is_index = name.ends_with(".index.json");
    if !kind.is_dir() && !is_index {
        return WeightFile::assemble(&name, load(&name, content(path)?)?, None);
    }
    let folder = if is_index { path.parent().unwrap_or(Path::new("")) } else { path };
    let target = if is_index {
        path.to_owned()
    } else {
        let found = NAMES.iter().map(|name| folder.join(name)).find(|candidate| candidate.exists());
        found.ok_or_else(|| WeightsError::Missing { file: name.clone(), what: NAMES.join(" or ") })?
    };
    let target_name = target.display().to_string();
    let loaded = if target_name.ends_with(".index.json") {
        shards(folder, &target)?
    } else {
        load(&target_name, content(&target)?)?
    };
    let config = folder.join("config.json");
    let config = if config.exists() { Some(json(&config)?) } else { None };
    WeightFile::assemble(&name, loaded, config)
}

/// The bytes of a regular file. A device or pipe might never end.
fn content(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let failed = |source| WeightsError::Io { file: path.display().to_string(), source };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    fs::read(path).map_err(failed)
}

fn json(path: &Path) -> Result<Value, WeightsError> {
    serde_json::from_slice(&content(path)?).map_err(|err| WeightsError::Damaged {
        file: path.display().to_string(),
        part: "content".into(),
        expected: "JSON".into(),
        got: shown(&err.to_string()),
    })
}

/// The tensors of all shards, which must hold what the index says.
fn shards(folder: &Path, index: &Path) -> Result<Loaded, WeightsError> {
    let file = index.display().to_string();
    let damaged = |expected: &str, got: String| WeightsError::Damaged {
        file: file.clone(),
        part: "weight_map".into(),
        expected: expected.to_owned(),
        got,
    };
    let content = json(index)?;
    let Some(map) = content.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return Err(damaged("an object from names to files", "none, or an empty one".into()));
    };
    let mut order: Vec<&str> = Vec::new();
    let mut seen = HashSet::new();
    for (name, shard) in map {
        let shard = shard.as_str().filter(|shard| {
            let mut parts = Path::new(shard).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                && !shard.contains('\\')
        });
        let Some(shard) = shard else {
            let got = format!("{} for {}", shown(&map[name].to_string()), shown(name));
            return Err(damaged("the name of a file beside the index", got));
        };
        if seen.insert(shard) {
            order.push(shard);
        }
    }
    let mut all: Option<Loaded> = None;
    let mut names = HashSet::new();
    for shard in order {
        let path = folder.join(shard);
        let name = path.display().to_string();
        let loaded = load(&name, self::content(&path)?)?;
        for tensor in &loaded.tensors {
            if !names.insert(tensor.name.clone()) {
                return Err(WeightsError::DuplicateTensor { file: name, tensor: shown(&tensor.name) });
            }
        }
        let here: HashSet<&str> = loaded.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let mut mapped = map.iter().filter(|(_, file)| file.as_str() == Some(shard));
        if let Some((missing, _)) = mapped.find(|(tensor, _)| !here.contains(tensor.as_str())) {
            return Err(WeightsError::Missing { file: name, what: format!("tensor {}", shown(missing)) });
        }
        match &mut all {
            None => all = Some(loaded),
            Some(all) => {
                all.tensors.extend(loaded.tensors);
                all.metadata.extend(loaded.metadata);
                all.skipped.extend(loaded.skipped);
            }
        }
    }
    Ok(all.expect("an index names at least one file"))
}
