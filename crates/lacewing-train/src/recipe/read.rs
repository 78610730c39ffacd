//! Reading a recipe: YAML, then overrides, then types; every error names the path.

use super::Recipe;
use crate::augment::AUGMENTATIONS;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// No such file.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A text that is not YAML.
    #[error("{origin} is not valid YAML: {reason}")]
    Yaml {
        /// The file, embedded recipe or override.
        origin: String,
        /// Where and why.
        reason: String,
    },
    /// YAML, but not a map of settings.
    #[error("{origin} must be a map of settings, got {got}")]
    NotAMap {
        /// The file or embedded recipe.
        origin: String,
        /// What it holds.
        got: String,
    },
    /// An argument that is neither a recipe nor `key.path=value`.
    #[error("`{text}` is not of the form key.path=value")]
    Override {
        /// The argument.
        text: String,
    },
    /// A path that goes through something other than a map or a list.
    #[error("`{path}` cannot be set: `{at}` is {got}, not a map of settings")]
    Through {
        /// The path.
        path: String,
        /// Its part that ends the way.
        at: String,
        /// What is there.
        got: String,
    },
    /// No setting has this path.
    #[error("unknown key `{path}`{}", did_you_mean(nearest))]
    UnknownKey {
        /// The path.
        path: String,
        /// The nearest known path.
        nearest: Option<String>,
    },
    /// A value of another type than the setting takes.
    #[error("`{path}` must be {expected}, got {got}")]
    WrongType {
        /// The path.
        path: String,
        /// What the setting takes.
        expected: String,
        /// The value.
        got: String,
    },
    /// A value outside its range.
    #[error("`{path}` must be {expected}, got {got}")]
    OutOfRange {
        /// The path.
        path: String,
        /// What it must be.
        expected: &'static str,
        /// The value.
        got: String,
    },
    /// A name that no table row has.
    #[error("`{path}`: unknown name `{name}`{}; known: {known}", did_you_mean(nearest))]
    UnknownName {
        /// The path.
        path: String,
        /// The name.
        name: String,
        /// The nearest known one.
        nearest: Option<String>,
        /// All of them.
        known: String,
    },
    /// A recipe that cannot be written as YAML.
    #[error("the recipe cannot be written as YAML: {reason}")]
    Write {
        /// Why.
        reason: String,
    },
}

pub(super) fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

impl RecipeError {
    /// The error for a name that none of `known` is.
    pub fn unknown_name<'a>(path: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Self {
        Self::UnknownName {
            path: path.to_owned(),
            name: name.to_owned(),
            nearest: nearest(name, known.clone()),
            known: known.collect::<Vec<_>>().join(", "),
        }
    }
}

/// The name that takes the fewest edits, if at most half of the letters (at least two).
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let most = (name.chars().count() / 2).max(2);
    let found =
        known.map(|known| (strsim::damerau_levenshtein(name, known), known)).min_by_key(|&(d, _)| d)?;
    (found.0 <= most).then(|| found.1.to_owned())
}

/// One `key.path=value` of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The path, split at dots.
    path: Vec<String>,
    /// The value, read as YAML.
    value: Value,
}

impl std::str::FromStr for Override {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let bad = || RecipeError::Override { text: text.to_owned() };
        let (path, value) = text.split_once('=').ok_or_else(bad)?;
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(bad());
        }
        let value =
            if value.is_empty() { Value::Null } else { yaml(value, || format!("the value of `{text}`"))? };
        Ok(Self { path, value })
    }
}

impl Override {
    /// The override that sets the dotted `path`.
    pub fn new(path: &str, value: impl Into<Value>) -> Self {
        Self { path: path.split('.').map(str::to_owned).collect(), value: value.into() }
    }

    /// The same override with `section` before its path, unless it stands there.
    pub fn under(mut self, section: &str) -> Self {
        if self.path[0] != section {
            self.path.insert(0, section.to_owned());
        }
        self
    }

    /// The path, dotted.
    pub fn path(&self) -> String {
        self.path.join(".")
    }

    fn names_structure(&self) -> bool {
        self.path.last().is_some_and(|key| key == "structure")
    }

    /// Sets the value in `recipe`, making the maps on its way.
    pub(super) fn apply(&self, recipe: &mut Value) -> Result<(), RecipeError> {
        let mut at = recipe;
        for (depth, key) in self.path.iter().enumerate() {
            let last = depth + 1 == self.path.len();
            if at.is_null() || (depth > 0 && at.is_boolean()) {
                // `mixup: true` stands for its defaults, so one of them may be set.
                *at = Value::Object(Map::new());
            }
            if let (Value::String(name), true) = (&*at, depth > 0 && self.path[0] == "model") {
                // A bare name is the short form of a structure's config.
                *at = json!({ "structure": name });
            }
            if let (true, "structure", Some(map)) = (last, key.as_str(), at.as_object_mut()) {
                // Another structure does not take the old one's settings.
                if map.get(key) != Some(&self.value) {
                    map.clear();
                }
            }
            let got = short(at);
            let found = match at {
                Value::Object(map) => Some(map.entry(key).or_insert(Value::Null)),
                Value::Array(list) => key.parse().ok().and_then(|i: usize| list.get_mut(i)),
                _ => None,
            };
            at = found.ok_or_else(|| {
                let at = self.path[..depth].join(".");
                RecipeError::Through { path: self.path(), at, got }
            })?;
        }
        *at = self.value.clone();
        Ok(())
    }
}

/// Merges `changes` over `base`: maps key by key, anything else replaced. A map that names another `structure` than
/// the one it is merged over replaces it whole, and so does a `schedule` with another name.
pub fn merge(base: &mut Value, changes: &Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            if changes.get("structure").is_some_and(|name| base.get("structure") != Some(name)) {
                base.clear();
            }
            for (key, value) in changes {
                let under = base.entry(key).or_insert(Value::Null);
                if key == "schedule" && value.get("name").is_some_and(|name| under.get("name") != Some(name))
                {
                    *under = Value::Null;
                }
                merge(under, value);
            }
        }
        (base, changes) => *base = changes.clone(),
    }
}

/// The recipe in the file at `path`, with `overrides`.
///
/// # Errors
///
/// As [`parse`], and when the file cannot be read.
pub fn load(path: &std::path::Path, overrides: &[Override]) -> Result<Recipe, RecipeError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
    parse(&path.display().to_string(), &text, overrides)
}

/// The recipe in `text`, with `overrides`; `origin` is how errors call it. Where one override names a structure and
/// others its settings, the structure comes first, whatever their order.
///
/// # Errors
///
/// Invalid YAML, an unknown key with the nearest known one, a value of a wrong type or out of range: [`RecipeError`].
pub fn parse(origin: &str, text: &str, overrides: &[Override]) -> Result<Recipe, RecipeError> {
    let mut value: Value = yaml(text, || origin.to_owned())?;
    if value.is_null() {
        value = Value::Object(Map::new());
    }
    if !value.is_object() {
        return Err(RecipeError::NotAMap { origin: origin.to_owned(), got: short(&value) });
    }
    resolve(value, overrides)
}

/// The recipe that the map `value` holds, with `overrides`.
pub(super) fn resolve(mut value: Value, overrides: &[Override]) -> Result<Recipe, RecipeError> {
    let (structures, others): (Vec<_>, Vec<_>) = overrides.iter().partition(|o| o.names_structure());
    for change in structures.into_iter().chain(others) {
        change.apply(&mut value)?;
    }
    let schema = schema();
    known_keys(&value, &schema, "")?;
    let recipe: Recipe = match Recipe::deserialize_value(&value) {
        Ok(recipe) => recipe,
        Err(error) => {
            return Err(locate(&value, &schema, &mut Vec::new()).unwrap_or_else(|| whole(&value, &error)));
        }
    };
    recipe.check()?;
    Ok(recipe)
}

impl Recipe {
    fn deserialize_value(value: &Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value.clone())
    }
}

/// A value given as YAML (JSON is YAML too), such as a structure's config.
///
/// # Errors
///
/// [`RecipeError::Yaml`] naming `origin`.
pub fn parse_value(origin: &str, text: &str) -> Result<Value, RecipeError> {
    yaml(text, || origin.to_owned())
}

fn yaml(text: &str, origin: impl Fn() -> String) -> Result<Value, RecipeError> {
    serde_saphyr::from_str(text)
        .map_err(|source| RecipeError::Yaml { origin: origin(), reason: source.to_string() })
}

/// Every known key with its default. A map here is closed, save `model` and `compare`, whose keys their readers check.
fn schema() -> Value {
    let mut schema = serde_json::to_value(Recipe::default()).expect("a recipe is plain data");
    schema["model"] = Value::Null;
    schema["compare"] = Value::Null;
    schema["augment"] = AUGMENTATIONS.iter().map(|row| (row.name.to_owned(), Value::Null)).collect();
    schema
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Compares keys with those of the schema, as deep as both are maps.
fn known_keys(value: &Value, schema: &Value, path: &str) -> Result<(), RecipeError> {
    let (Value::Object(value), Value::Object(schema)) = (value, schema) else { return Ok(()) };
    for (key, inner) in value {
        let Some(known) = schema.get(key) else {
            let nearest = nearest(key, schema.keys().map(String::as_str)).map(|near| join(path, &near));
            return Err(RecipeError::UnknownKey { path: join(path, key), nearest });
        };
        known_keys(inner, known, &join(path, key))?;
    }
    Ok(())
}

/// The first value that does not fit its setting: each is tried alone, everything else left at its default.
fn locate(value: &Value, schema: &Value, path: &mut Vec<String>) -> Option<RecipeError> {
    if let (Value::Object(value), Value::Object(schema)) = (value, schema) {
        return value.iter().find_map(|(key, inner)| {
            path.push(key.clone());
            let found = locate(inner, schema.get(key).unwrap_or(&Value::Null), path);
            path.pop();
            found
        });
    }
    let alone = path.iter().rev().fold(value.clone(), |inner, key| json!({ key: inner }));
    let error = Recipe::deserialize_value(&alone).err()?;
    let (path, got) = (path.join("."), short(value));
    let message = error.to_string();
    let expected = message.rsplit_once(", expected ").map_or(message.as_str(), |(_, expected)| expected);
    Some(RecipeError::WrongType { path, expected: in_words(expected), got })
}

fn whole(value: &Value, error: &serde_json::Error) -> RecipeError {
    RecipeError::WrongType { path: "recipe".to_owned(), expected: error.to_string(), got: short(value) }
}

/// serde's names of types, as a user would say them.
fn in_words(expected: &str) -> String {
    match expected {
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "text",
        other => other,
    }
    .to_owned()
}

/// A value as JSON, cut where it gets long.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        parse("test.yaml", text, &overrides)
    }

    #[test]
    fn bad_recipes_are_named_with_path_and_value() {
        for (text, overrides, parts) in [
            ("trian: {}", &[][..], &["unknown key `trian`", "did you mean `train`"][..]),
            ("train: {epoch: 3}", &[], &["`train.epoch`", "`train.epochs`"]),
            ("train: {ema: {dcay: 0.9}}", &[], &["`train.ema.dcay`", "`train.ema.decay`"]),
            ("", &["data.batchsize=3"], &["`data.batchsize`", "`data.batch_size`"]),
            ("", &["quux=3"], &["unknown key `quux`"]),
            ("train: {lr: fast}", &[], &["`train.lr`", "a number", "\"fast\""]),
            ("", &["train.epochs=-3"], &["`train.epochs`", "whole number", "-3"]),
            ("", &["train.epochs=2.5"], &["`train.epochs`", "whole number", "2.5"]),
            ("train: 3", &[], &["`train`", "3"]),
            ("train: {nesterov: 1}", &[], &["`train.nesterov`", "true or false", "1"]),
            ("train: {optimizer: adam}", &[], &["`train.optimizer`", "adamw", "sgd", "\"adam\""]),
            ("train: {betas: [0.9]}", &[], &["`train.betas`", "[0.9]"]),
            ("data: {on_bad_image: ignore}", &[], &["`data.on_bad_image`", "stop", "skip", "ignore"]),
            ("augment: {mixpu: true}", &[], &["`augment.mixpu`", "`augment.mixup`"]),
            ("augment: {random_crop: {pading: 4}}", &[], &["augment.random_crop", "pading", "padding"]),
            ("train: {schedule: cosin}", &[], &["`train.schedule`", "cosin", "`cosine`", "linear"]),
            ("train: {schedule_unit: batch}", &[], &["`train.schedule_unit`", "step", "epoch", "\"batch\""]),
            ("train: {warmup_lr: 0.5}", &[], &["`train.warmup_lr`", "0 to train.lr", "0.5"]),
            ("train: {ema: {warmup: 3}}", &[], &["`train.ema.warmup`", "true or false", "3"]),
            (
                "train: {loss: binary_crossentropy}",
                &[],
                &[
                    "`train.loss`",
                    "`binary_crossentropy`",
                    "did you mean `binary_cross_entropy`",
                    "cross_entropy",
                ],
            ),
            (
                "train: {target_threshold: 0.2}",
                &[],
                &["`train.target_threshold`", "binary_cross_entropy", "0.2"],
            ),
            (
                "train: {loss: binary_cross_entropy, target_threshold: 1.5}",
                &[],
                &["`train.target_threshold`", "below 1", "1.5"],
            ),
            ("train: {lr: 0}", &[], &["`train.lr`", "above 0", "got 0"]),
            ("train: {label_smoothing: 1.0}", &[], &["`train.label_smoothing`", "below 1"]),
            ("train: {accumulate: 0}", &[], &["`train.accumulate`", "at least 1"]),
            ("train: {dtype: bf16}", &[], &["`train.dtype`", "bf16", "cpu"]),
            ("name: [", &[], &["test.yaml", "YAML"]),
            ("- a", &[], &["test.yaml", "map of settings", "[\"a\"]"]),
            ("", &["train.lr"], &["train.lr", "key.path=value"]),
            ("", &["train..lr=3"], &["train..lr=3", "key.path=value"]),
            ("", &["train.lr=[1"], &["train.lr=[1", "YAML"]),
            ("name: x", &["name.first=3"], &["`name.first`", "`name` is \"x\""]),
        ] {
            let error = read(text, overrides).expect_err("a bad recipe").to_string();
            for part in parts {
                assert!(error.contains(part), "{text} {overrides:?}: {error:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn overrides_are_yaml_and_win() {
        let text =
            "train: {epochs: 3, clip_norm: 1.0}\nmodel: {name: vit, mlp: {structure: monarch, blocks: 4}}";
        let recipe = read(
            text,
            &[
                "train.epochs=7",
                "train.lr=5e-4",
                "train.clip_norm=null",
                "data.path=/a b",
                "train.betas=[0.8, 0.9]",
            ],
        )
        .expect("a valid recipe");
        assert_eq!((recipe.train.epochs, recipe.train.lr, recipe.train.clip_norm), (7, 5e-4, None));
        assert_eq!((recipe.data.path, recipe.train.betas), (Some(PathBuf::from("/a b")), [0.8, 0.9]));
        assert_eq!(recipe.model["mlp"], json!({"structure": "monarch", "blocks": 4}));
    }

    #[test]
    fn another_structure_drops_the_settings_of_the_old_one() {
        let text = "model: {mlp: {structure: monarch, blocks: 4}, attn: nm}";
        let mlp = |overrides: &[&str]| read(text, overrides).expect("a valid recipe").model["mlp"].clone();
        assert_eq!(mlp(&["model.mlp.blocks=8"]), json!({"structure": "monarch", "blocks": 8}));
        let low_rank = json!({"structure": "low_rank", "rank": 3});
        assert_eq!(mlp(&["model.mlp.structure=low_rank", "model.mlp.rank=3"]), low_rank);
        assert_eq!(mlp(&["model.mlp.rank=3", "model.mlp.structure=low_rank"]), low_rank);
        let attn = read(text, &["model.attn.m=8"]).expect("a valid recipe").model["attn"].clone();
        assert_eq!(attn, json!({"structure": "nm", "m": 8}));
    }

    #[test]
    fn lists_are_reached_by_place() {
        let text = "model: {rules: [{match: a}, {match: b}]}";
        let rules = read(text, &["model.rules.1.match=c"]).expect("a valid recipe").model["rules"].clone();
        assert_eq!(rules, json!([{"match": "a"}, {"match": "c"}]));
        let error = read(text, &["model.rules.2.match=c"]).expect_err("no such place").to_string();
        assert!(error.contains("model.rules.2.match"), "{error}");
    }

    #[test]
    fn a_resolved_recipe_reads_back_as_itself() {
        let text =
            "augment: {random_crop: true}\nmodel: {name: vit, mlp: monarch}\ndevice: cuda:0\nname: \"1\"";
        let recipe = read(text, &["train.clip_norm=1", "out=some where"]).expect("a valid recipe");
        let yaml = recipe.to_yaml().expect("plain data");
        assert_eq!(read(&yaml, &[]).expect("what was written is valid"), recipe);
        assert!(yaml.contains("warmup_epochs:"), "{yaml}");
    }

    #[test]
    fn merging_replaces_structures_and_joins_the_rest() {
        let mut base = json!({"dim": 3, "mlp": {"structure": "monarch", "blocks": 4}});
        merge(&mut base, &json!({"depth": 2, "mlp": {"structure": "low_rank"}}));
        assert_eq!(base, json!({"dim": 3, "mlp": {"structure": "low_rank"}, "depth": 2}));
        // As does another schedule, while a setting of the same one is a change.
        let mut scheduled = json!({"schedule": {"name": "rigl", "every": "9 steps"}});
        merge(&mut scheduled, &json!({"schedule": {"fraction": 0.1}}));
        assert_eq!(scheduled["schedule"]["every"], "9 steps");
        merge(&mut scheduled, &json!({"schedule": {"name": "set"}}));
        assert_eq!(scheduled, json!({"schedule": {"name": "set"}}));
        merge(&mut base, &json!({"mlp": "dense"}));
        assert_eq!(base["mlp"], json!("dense"));
    }
}
