//! Recipes of timm's `train.py`, and of its fork Progressive Gradient Flow, read as recipes of ours.
//!
//! `keys` lists every key that is known: its default in timm, and what it becomes. A key that is not in a file has timm's
//! default and not ours, so that the run is the one that timm would do. `training`, `pictures` and `sparsity` read the keys
//! that mean something together; the rest are copied, ignored by name, or accepted with the one value that changes nothing.

mod keys;
mod pictures;
mod sparsity;
mod training;

use super::read::{nearest, resolve, short};
use super::{Override, Recipe, RecipeError, parse_value};
use keys::{Becomes, KEYS, Keys, Kind};
use lacewing_models::{ModelConfig, ModelError};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Why a recipe of timm's cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimmError {
    /// What can be wrong with any recipe, and what the settings come to.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A model that is not among ours.
    #[error("timm's `model`: {0}")]
    Model(#[from] ModelError),
    /// A key that the mapping does not know.
    #[error("unknown timm key `{key}` = {got}{}", super::read::did_you_mean(nearest))]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value.
        got: String,
        /// The nearest known key.
        nearest: Option<String>,
    },
    /// A value that timm would not take either.
    #[error("timm's `{key}` must be {expected}, got {got}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it takes.
        expected: String,
        /// The value.
        got: String,
    },
    /// A value that timm takes and we do not.
    #[error("timm's `{key}` = {got} has no counterpart here: {reason}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// The value.
        got: String,
        /// Why, and what to write instead where there is something.
        reason: String,
    },
}

/// A recipe with the account of how it came about.
#[derive(Clone, Debug)]
pub struct FromTimm {
    /// The recipe, overrides applied.
    pub recipe: Recipe,
    /// What each key of the file became, in the file's order, then the defaults of timm's that were used.
    pub mapped: Vec<Mapped>,
}

/// What a key of timm's became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The key.
    pub key: String,
    /// Its value as JSON; for one that the file lacks, timm's default.
    pub value: String,
    /// Each `path = value`, or why it changes nothing.
    pub becomes: Vec<String>,
    /// Whether the file has the key.
    pub given: bool,
}

/// The recipe in timm's file at `path`, with `overrides` of the recipe that it becomes.
///
/// # Errors
///
/// As [`from_timm`], and when the file cannot be read.
pub fn load_timm(path: &Path, overrides: &[Override]) -> Result<FromTimm, TimmError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
    from_timm(&path.display().to_string(), &text, overrides)
}

/// The recipe in timm's YAML `text`, with `overrides` of the recipe that it becomes; `origin` is how errors call the text.
///
/// # Errors
///
/// [`TimmError`]: invalid YAML, an unknown key with the nearest known one, a value of a wrong type, one that cannot be
/// honoured, a model that is not among ours, and what can be wrong with the recipe itself.
pub fn from_timm(origin: &str, text: &str, overrides: &[Override]) -> Result<FromTimm, TimmError> {
    let given = match parse_value(origin, text)? {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        other => {
            let (origin, got) = (origin.to_owned(), short(&other));
            return Err(RecipeError::NotAMap { origin, got }.into());
        }
    };
    for (key, value) in &given {
        if KEYS.iter().all(|row| row.name != key) {
            let nearest = nearest(key, KEYS.iter().map(|row| row.name));
            return Err(TimmError::UnknownKey { key: key.clone(), got: short(value), nearest });
        }
    }
    let keys = Keys { given };
    let mut draft = Draft { recipe: json!({}), settings: Vec::new() };
    for row in KEYS {
        match row.becomes {
            Becomes::Setting(path, kind) => {
                let value = match kind {
                    Kind::Number => keys.number(row.name)?.map(Value::from),
                    Kind::Whole => keys.whole(row.name)?.map(Value::from),
                    Kind::Text => keys.text(row.name)?.map(Value::from),
                };
                if let Some(value) = value {
                    draft.set(&[row.name], path, value);
                }
            }
            Becomes::Only(allowed, reason) => keys.only(row.name, allowed, reason)?,
            Becomes::Part(_) | Becomes::Nothing(_) => {}
        }
    }
    let model = keys.text("model")?.unwrap_or_default();
    let model = ModelConfig::from_json(&json!(model))?;
    training::read(&keys, &mut draft)?;
    pictures::read(&keys, &model, &mut draft)?;
    sparsity::read(&keys, &model, &mut draft)?;
    let mapped = draft.account(&keys);
    Ok(FromTimm { recipe: resolve(draft.recipe, overrides)?, mapped })
}

/// A recipe in the making, and what its settings came from.
struct Draft {
    recipe: Value,
    settings: Vec<(Vec<&'static str>, String)>,
}

impl Draft {
    /// Sets the dotted `path`, as the keys `from` say.
    fn set(&mut self, from: &[&'static str], path: &str, value: impl Into<Value>) {
        let value = value.into();
        self.settings.push((from.to_vec(), format!("{path} = {}", short(&value))));
        Override::new(path, value)
            .apply(&mut self.recipe)
            .expect("every path of the mapping goes through maps");
    }

    /// A row for each key of the file, then for each default that decided a setting by itself.
    fn account(&self, keys: &Keys) -> Vec<Mapped> {
        let row = |key: &'static str, value: &Value, given| {
            let of = self.settings.iter().filter(|(from, _)| from.contains(&key));
            let mut becomes: Vec<String> = of.map(|(_, setting)| setting.clone()).collect();
            if becomes.is_empty() {
                becomes.push(match KEYS.iter().find(|row| row.name == key).map(|row| &row.becomes) {
                    Some(Becomes::Nothing(why)) => format!("nothing: {why}"),
                    Some(Becomes::Part(unused)) => format!("nothing: {unused}"),
                    _ => "nothing: as it is here".to_owned(),
                });
            }
            Mapped { key: key.to_owned(), value: short(value), becomes, given }
        };
        let known = |key: &String| KEYS.iter().map(|row| row.name).find(|name| name == key);
        let given = keys.given.iter().filter_map(|(key, value)| Some(row(known(key)?, value, true)));
        let silent = self.settings.iter().filter(|(from, _)| from.iter().all(|key| !keys.has(key)));
        let mut defaults: Vec<&'static str> = silent.map(|(from, _)| from[0]).collect();
        defaults.dedup();
        given.chain(defaults.into_iter().map(|key| row(key, &keys.value(key), false))).collect()
    }
}
