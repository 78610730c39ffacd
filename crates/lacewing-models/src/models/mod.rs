//! The families of models. One file a family, one row here.

mod mlp;
mod mlp_mixer;
mod resnet;
mod swin_v2;
mod t2t_vit;
mod vit;

pub use mlp::MlpConfig;
pub use mlp_mixer::MixerConfig;
pub use resnet::{Block, ResNetConfig, Stem};
pub use swin_v2::SwinV2Config;
pub use t2t_vit::T2tVitConfig;
pub use vit::{Pool, VitConfig};

use crate::{Family, ModelError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every family.
pub static MODELS: &[&Family] =
    &[&vit::FAMILY, &swin_v2::FAMILY, &t2t_vit::FAMILY, &mlp_mixer::FAMILY, &resnet::FAMILY, &mlp::FAMILY];

/// A config as JSON.
fn json(config: impl Serialize) -> Value {
    serde_json::to_value(config).expect("numbers, words and lists")
}

/// Reads a complete config.
fn read<C: DeserializeOwned>(values: &Value) -> Result<C, serde_json::Error> {
    C::deserialize(values)
}

/// Reads a config that was checked when it was set.
fn checked<C: DeserializeOwned>(values: &Value) -> C {
    read(values).expect("checked when set")
}

fn value_error(key: &'static str, expected: impl Into<String>, got: impl ToString) -> ModelError {
    ModelError::Value { key, expected: expected.into(), got: got.to_string() }
}

/// Checks that each of `sizes` is at least 1.
fn positive(sizes: &[(&'static str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, size)) => Err(value_error(key, "at least 1", size)),
        None => Ok(()),
    }
}

/// Checks that each of `probabilities` is in [0, 1).
fn below_one(probabilities: &[(&'static str, f64)]) -> Result<()> {
    match probabilities.iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
        Some((key, p)) => Err(value_error(key, "from 0 to below 1", p)),
        None => Ok(()),
    }
}

/// The number of patches of an image.
fn patches(image_size: usize, patch_size: usize) -> Result<usize> {
    positive(&[("image_size", image_size), ("patch_size", patch_size)])?;
    if !image_size.is_multiple_of(patch_size) {
        return Err(value_error("patch_size", format!("a divisor of image_size = {image_size}"), patch_size));
    }
    Ok((image_size / patch_size).pow(2))
}

/// The width `ratio · dim`, which must be whole and at least 1.
fn hidden(key: &'static str, ratio: f64, dim: usize) -> Result<usize> {
    let width = ratio * dim as f64;
    // `ratio` may be a decimal such as 0.1, whose product is whole only up to rounding.
    let whole = width.round();
    if whole >= 1.0 && (width - whole).abs() <= 2.0 * f64::EPSILON * width && whole <= f64::from(1 << 24) {
        return Ok(whole as usize);
    }
    Err(value_error(key, format!("a number that makes a whole width of dim = {dim}"), ratio))
}

#[cfg(test)]
mod tests {
    use super::MODELS;
    use std::collections::BTreeSet;

    #[test]
    fn every_file_has_its_row() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/models");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != "mod")
            .collect();
        let rows: BTreeSet<String> = MODELS.iter().map(|family| family.name.to_owned()).collect();
        assert_eq!(files, rows);
    }

    #[test]
    fn names_are_unique_and_variants_are_complete_configs() {
        let mut names = BTreeSet::new();
        for variant in MODELS.iter().flat_map(|family| family.variants) {
            assert!(names.insert(variant.name), "{} twice", variant.name);
        }
        for family in MODELS {
            for variant in family.variants {
                let config = (variant.config)();
                (family.check)(&config).unwrap();
                assert!(
                    family.groups.iter().all(|group| config.get(group.name).is_none()),
                    "{}",
                    variant.name
                );
            }
        }
    }
}
