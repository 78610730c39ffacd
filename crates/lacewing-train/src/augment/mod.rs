//! Augmentation: what happens to a training picture between the data set and the batch.
//!
//! One file a step and one row in [`AUGMENTATIONS`]. A recipe names the steps it wants, in any order; they run in the order
//! of the table:
//!
//! ```yaml
//! augment:
//!   random_crop: { padding: 4 }
//!   horizontal_flip: { prob: 0.5 }
//!   rand_augment: rand-m9-n2-mstd0.5
//!   mixup: { alpha: 0.8 }
//!   cutmix: true
//! ```
//!
//! `true` stands for a step's defaults, `false` switches it off; `rand_augment` takes timm's text as well as a map. An
//! unknown step or setting, or a value out of range, is an error when the recipe is read. `pipeline` turns the settings into
//! the steps of training and of evaluation.

pub mod cutmix;
pub mod horizontal_flip;
pub mod mixup;
pub mod normalize;
pub mod picture;
pub mod pipeline;
pub mod rand_augment;
pub mod random;
pub mod random_crop;
pub mod random_erasing;
pub mod random_resized_crop;
pub mod resize;
pub mod resize_center_crop;

pub use picture::{ImageShape, Picture};
pub use pipeline::Pipeline;

use pipeline::Step;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The greatest side a step may produce, in pixels.
const MAX_SIDE: u32 = 4096;

/// Every augmentation, in the order in which they run.
pub const AUGMENTATIONS: &[Augmentation] = &[
    row::<random_resized_crop::RandomResizedCrop>(),
    row::<resize_center_crop::ResizeCenterCrop>(),
    row::<random_crop::RandomCrop>(),
    row::<horizontal_flip::HorizontalFlip>(),
    row::<rand_augment::RandAugment>(),
    row::<normalize::Normalize>(),
    row::<random_erasing::RandomErasing>(),
    row::<mixup::Mixup>(),
    row::<cutmix::Cutmix>(),
];

/// The names of [`AUGMENTATIONS`], as serde wants them.
const NAMES: &[&str] = &{
    let mut names = [""; AUGMENTATIONS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = AUGMENTATIONS[i].name;
        i += 1;
    }
    names
};

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Augmentation {
    /// The key in a recipe.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// Checks settings and fills in the defaults.
    resolve: fn(Value) -> Result<Value, AugmentError>,
    /// Builds the step from resolved settings.
    step: fn(&Value) -> Step,
}

/// The settings of one step: what a file of this folder provides.
trait Settings: Serialize + DeserializeOwned {
    const NAME: &'static str;
    const ABOUT: &'static str;
    /// Settings from what a recipe holds: a map, unless a step knows another form.
    ///
    /// # Errors
    /// What does not fit.
    fn read(value: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }
    /// Ranges and agreements serde cannot see.
    fn check(&self) -> Result<(), AugmentError>;
    /// The step with these settings.
    fn step(self) -> Step;
}

const fn row<S: Settings>() -> Augmentation {
    Augmentation { name: S::NAME, about: S::ABOUT, resolve: resolve::<S>, step: step::<S> }
}

fn parse<S: Settings>(value: Value) -> Result<S, AugmentError> {
    S::read(value).map_err(|source| AugmentError::Settings { step: S::NAME, source })
}

fn resolve<S: Settings>(value: Value) -> Result<Value, AugmentError> {
    let settings: S = parse(value)?;
    settings.check()?;
    serde_json::to_value(settings).map_err(|source| AugmentError::Settings { step: S::NAME, source })
}

fn step<S: Settings>(value: &Value) -> Step {
    parse::<S>(value.clone()).expect("resolved settings parse").step()
}

/// `Ok` when `holds`, else the error that says what `field` must be.
fn require(
    step: &'static str,
    field: &'static str,
    got: f64,
    expected: &'static str,
    holds: bool,
) -> Result<(), AugmentError> {
    if holds { Ok(()) } else { Err(AugmentError::OutOfRange { step, field, expected, got }) }
}

/// What can be wrong with augmentation settings.
#[derive(Debug, thiserror::Error)]
pub enum AugmentError {
    /// No step has this name.
    #[error("unknown augmentation `{name}`; known: {}", NAMES.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// Settings that do not fit the step: an unknown key, a wrong type, one missing.
    #[error("augmentation {step}: {source}")]
    Settings {
        /// The step.
        step: &'static str,
        /// What serde found.
        source: serde_json::Error,
    },
    /// A number outside its range.
    #[error("augmentation {step}: {field} must be {expected}, got {got}")]
    OutOfRange {
        /// The step.
        step: &'static str,
        /// The setting.
        field: &'static str,
        /// The range.
        expected: &'static str,
        /// The value.
        got: f64,
    },
    /// Statistics for another number of channels than the pictures have.
    #[error("{what} has {got} entries, expected {expected}")]
    Channels {
        /// The setting.
        what: &'static str,
        /// Channels of the pictures, or entries of the mean.
        expected: usize,
        /// Entries given.
        got: usize,
    },
    /// A smoothing or class count that makes no distribution.
    #[error("label smoothing must be at least 0 and below 1, got {got}")]
    LabelSmoothing {
        /// The value.
        got: f64,
    },
}

/// The augmentations a recipe asks for, checked and with every default filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AugmentConfig {
    /// Place in [`AUGMENTATIONS`] → resolved settings.
    settings: BTreeMap<usize, Value>,
}

impl AugmentConfig {
    /// Sets the step `name`: a map of settings, `true` for its defaults, `false` for off.
    ///
    /// # Errors
    /// An unknown name or setting, a wrong type, a value out of range.
    pub fn set(&mut self, name: &str, settings: Value) -> Result<(), AugmentError> {
        let place = NAMES
            .iter()
            .position(|known| *known == name)
            .ok_or_else(|| AugmentError::Unknown { name: name.to_owned() })?;
        let settings = match settings {
            Value::Bool(false) => {
                self.settings.remove(&place);
                return Ok(());
            }
            Value::Bool(true) => Value::Object(serde_json::Map::new()),
            other => other,
        };
        self.settings.insert(place, (AUGMENTATIONS[place].resolve)(settings)?);
        Ok(())
    }

    /// The steps that are on, in the order in which they run, with their settings.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Augmentation, &Value)> {
        self.settings.iter().map(|(&place, value)| (&AUGMENTATIONS[place], value))
    }

    /// The steps, built.
    fn steps(&self) -> impl Iterator<Item = Step> {
        self.iter().map(|(row, value)| (row.step)(value))
    }
}

impl Serialize for AugmentConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(row, value)| (row.name, value)))
    }
}

impl<'de> Deserialize<'de> for AugmentConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Steps;
        impl<'de> Visitor<'de> for Steps {
            type Value = AugmentConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map of augmentations ({})", NAMES.join(", "))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AugmentConfig, A::Error> {
                let mut config = AugmentConfig::default();
                while let Some(name) = map.next_key::<String>()? {
                    if !NAMES.contains(&name.as_str()) {
                        return Err(A::Error::unknown_field(&name, NAMES));
                    }
                    config.set(&name, map.next_value()?).map_err(A::Error::custom)?;
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(Steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<AugmentConfig, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn folder_and_table_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/augment");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of this file")
            .map(|entry| entry.expect("a readable folder").path())
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
            .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
            .filter(|name| name != "mod")
            .collect();
        files.sort();
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    #[test]
    fn settings_round_trip_with_defaults_filled_in() {
        let config = read(
            json!({"cutmix": true, "horizontal_flip": {}, "random_crop": {"padding": 2}, "mixup": false}),
        )
        .expect("valid settings");
        let resolved = serde_json::to_value(&config).expect("settings are plain values");
        assert_eq!(
            resolved.to_string(),
            r#"{"random_crop":{"padding":2},"horizontal_flip":{"prob":0.5},"cutmix":{"alpha":1.0,"prob":1.0,"share":1.0}}"#
        );
        assert_eq!(read(resolved).expect("what was written is valid"), config);
    }

    #[test]
    fn yaml_reads_like_json() {
        let config: AugmentConfig =
            serde_saphyr::from_str("random_crop: {padding: 3}\nhorizontal_flip: true\n").expect("valid YAML");
        assert_eq!(
            config,
            read(json!({"random_crop": {"padding": 3}, "horizontal_flip": {}})).expect("valid")
        );
    }

    #[test]
    fn bad_settings_are_named() {
        for (value, parts) in [
            (json!({"mixpu": {}}), vec!["mixpu", "mixup", "cutmix"]),
            (json!({"random_crop": {"pading": 4}}), vec!["random_crop", "pading", "padding"]),
            (json!({"horizontal_flip": {"prob": 1.5}}), vec!["horizontal_flip", "prob", "1.5", "0 to 1"]),
            (json!({"horizontal_flip": null}), vec!["horizontal_flip"]),
            (json!({"mixup": {"alpha": -1.0}}), vec!["mixup", "alpha", "-1"]),
            (json!({"rand_augment": {"magnitud": 9}}), vec!["rand_augment", "magnitud", "num_ops"]),
            (json!({"rand_augment": {"num_ops": 0}}), vec!["rand_augment", "num_ops", "1 to 16"]),
            (json!({"rand_augment": "auto-m9"}), vec!["rand_augment", "`auto-m9`", "`rand`"]),
            (json!({"rand_augment": "rand-m9-q3"}), vec!["rand_augment", "`q3`", "mstd"]),
            (json!({"rand_augment": "rand-m9-mstdx"}), vec!["rand_augment", "`mstdx`", "mstd"]),
            (json!({"rand_augment": "rand-m9-p2"}), vec!["rand_augment", "prob", "0 to 1", "2"]),
            (json!({"random_erasing": {"mode": "noise"}}), vec!["random_erasing", "noise", "const", "pixel"]),
            (json!({"random_erasing": {"area": [0.5, 0.1]}}), vec!["random_erasing", "area[0]", "0.5"]),
            (json!({"random_resized_crop": true}), vec!["random_resized_crop", "size"]),
            (json!({"random_resized_crop": {"size": 9, "scale": [0.5, 0.2]}}), vec!["scale[0]", "0.5"]),
            (json!({"normalize": {"mean": [0.5], "std": [0.5, 0.5]}}), vec!["normalize.std", "2", "1"]),
        ] {
            let error = read(value.clone()).expect_err("bad settings");
            for part in parts {
                assert!(error.contains(part), "{value}: {error:?} lacks {part:?}");
            }
        }
    }
}
