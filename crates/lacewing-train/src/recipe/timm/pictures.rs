//! Data set, sizes, augmentation and the model's own settings of timm's recipes.

use super::keys::Keys;
use super::{Draft, TimmError};
use crate::augment::rand_augment::RandAugment;
use crate::augment::resize::RandomFilter;
use lacewing_models::ModelConfig;
use serde_json::{Value, json};

pub(super) fn read(keys: &Keys, model: &ModelConfig, draft: &mut Draft) -> Result<(), TimmError> {
    let dataset = keys.text("dataset")?.unwrap_or_default();
    let name = match dataset.trim_start_matches("torch/") {
        "" | "folder" | "image_folder" | "imagenet" | "imagenet-1k" => "image_folder",
        name @ ("cifar10" | "mnist" | "fashion_mnist") => name,
        _ => return Err(keys.refuse("dataset", "image_folder, cifar10, mnist and fashion_mnist are known")),
    };
    draft.set(&["dataset"], "data.name", name);
    settings_of_the_model(keys, model, draft)?;
    sizes(keys, model, draft)?;
    changes(keys, draft)?;
    mixing(keys, draft)
}

fn settings_of_the_model(keys: &Keys, model: &ModelConfig, draft: &mut Draft) -> Result<(), TimmError> {
    let known = |setting| model.get(setting).is_some();
    for (key, setting) in [("drop", "dropout"), ("drop_path", "drop_path")] {
        let share = keys.number(key)?.unwrap_or(0.0);
        match share > 0.0 {
            true if known(setting) => draft.set(&[key], &format!("model.{setting}"), share),
            true => return Err(keys.refuse(key, format!("{} has no `{setting}`", model.name()))),
            false if share < 0.0 => return Err(keys.wrong(key, "0 or more")),
            false => {}
        }
    }
    match keys.text("gp")?.as_deref() {
        None | Some("") => {}
        Some("token") if known("pool") => draft.set(&["gp"], "model.pool", "class"),
        // timm keeps the class token then, and has its norm after the mean.
        Some("avg") if known("pool") => {
            return Err(keys.refuse("gp", "timm's mean is not `pool: mean`: write token"));
        }
        Some("avg") if !known("pool") => {}
        Some(_) => return Err(keys.refuse("gp", "token for vision transformers, avg for others")),
    }
    if keys.flag("grad_checkpointing")? {
        draft.set(&["grad_checkpointing"], "model.recompute", true);
    }
    Ok(())
}

/// What timm evaluates its model with: mean and deviation of all channels where they are alike, share of the shorter side,
/// interpolation.
fn of_model(name: &str) -> (Value, Value, f64, &'static str) {
    let half = || json!([0.5, 0.5, 0.5]);
    let imagenet = || (json!([0.485, 0.456, 0.406]), json!([0.229, 0.224, 0.225]));
    match name {
        _ if name.starts_with("vit") => (half(), half(), 0.9, "bicubic"),
        _ if name.starts_with("swinv2") => (imagenet().0, imagenet().1, 0.9, "bicubic"),
        _ if name.starts_with("mixer") => (half(), half(), 0.875, "bicubic"),
        _ if name.starts_with("resnet") => (imagenet().0, imagenet().1, 0.875, "bilinear"),
        _ => (imagenet().0, imagenet().1, 0.875, "bicubic"),
    }
}

fn sizes(keys: &Keys, model: &ModelConfig, draft: &mut Draft) -> Result<(), TimmError> {
    let own = model.get("image_size").and_then(Value::as_u64);
    let (from, side) = match keys.numbers("input_size", 3)? {
        Some(size) if size[1] != size[2] => return Err(keys.refuse("input_size", "pictures are square")),
        Some(size) => ("input_size", Some(size[1] as u64)),
        None => match keys.whole("img_size")? {
            Some(side) => ("img_size", Some(side)),
            None => ("model", own),
        },
    };
    let side = side.unwrap_or(224);
    draft.set(&[from], "data.image_size", side);
    if own.is_some_and(|own| own != side) {
        draft.set(&[from], "model.image_size", side);
    }
    let (mean, std, crop, filter) = of_model(model.name());
    for (key, own) in [("mean", mean), ("std", std)] {
        let given = keys.numbers(key, 0)?.map(Value::from);
        let from = if given.is_some() { key } else { "model" };
        draft.set(&[from], &format!("augment.normalize.{key}"), given.unwrap_or(own));
    }
    draft.set(&[from], "augment.resize_center_crop.size", side);
    let given = keys.number("crop_pct")?;
    let of = if given.is_some() { "crop_pct" } else { "model" };
    draft.set(&[of], "augment.resize_center_crop.crop_ratio", given.unwrap_or(crop));
    let given = keys.text("interpolation")?.filter(|name| !name.is_empty());
    if given.as_deref().is_some_and(|name| !["bilinear", "bicubic"].contains(&name)) {
        return Err(keys.refuse("interpolation", "the filters are bilinear and bicubic"));
    }
    let of = if given.is_some() { "interpolation" } else { "model" };
    draft.set(&[of], "augment.resize_center_crop.filter", given.as_deref().unwrap_or(filter));
    draft.set(&[from], "augment.random_resized_crop.size", side);
    for key in ["scale", "ratio"] {
        draft.set(&[key], &format!("augment.random_resized_crop.{key}"), keys.numbers(key, 2)?);
    }
    Ok(())
}

fn changes(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    let filters = [("random", "random"), ("bilinear", "bilinear"), ("bicubic", "bicubic")];
    let filter = keys.choice("train_interpolation", &filters)?;
    draft.set(&["train_interpolation"], "augment.random_resized_crop.filter", filter);
    let flip = keys.number("hflip")?.unwrap_or_default();
    if flip > 0.0 {
        draft.set(&["hflip"], "augment.horizontal_flip.prob", flip);
    }
    let policy = keys.text("aa")?.filter(|text| !text.is_empty());
    // null asks for none, which is not timm's default; with a policy timm does not look.
    let jitter = if keys.given.get("color_jitter").is_some_and(Value::is_null) {
        None
    } else {
        keys.number("color_jitter")?
    };
    if policy.is_none() && jitter.is_some_and(|jitter| jitter != 0.0) {
        return Err(keys.refuse("color_jitter", "colors are not jittered: write color_jitter: null"));
    }
    if let Some(text) = policy {
        let mut settings: RandAugment =
            text.parse().map_err(|error| keys.refuse("aa", format!("{error}")))?;
        settings.filter = match filter {
            "bilinear" => RandomFilter::Bilinear,
            "bicubic" => RandomFilter::Bicubic,
            _ => RandomFilter::Random,
        };
        // The fork's list of ops always holds Cutout.
        settings.cutout |= keys.has("sparsity_type") && !text.contains("cutout0");
        let settings = serde_json::to_value(settings).expect("settings are plain data");
        draft.set(&["aa"], "augment.rand_augment", settings);
    }
    let erase = keys.number("reprob")?.unwrap_or_default();
    if erase > 0.0 {
        let modes = [("const", "const"), ("rand", "rand"), ("pixel", "pixel")];
        draft.set(&["reprob"], "augment.random_erasing.prob", erase);
        draft.set(&["remode"], "augment.random_erasing.mode", keys.choice("remode", &modes)?);
        draft.set(&["recount"], "augment.random_erasing.count", keys.whole("recount")?);
    }
    Ok(())
}

/// Mixup and cutmix; where both are on a batch is cutmix's with probability `mixup_switch_prob`.
fn mixing(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    let number = |key| Ok::<f64, TimmError>(keys.number(key)?.unwrap_or_default());
    let (mixup, cutmix, prob) = (number("mixup")?, number("cutmix")?, number("mixup_prob")?);
    let switch = number("mixup_switch_prob")?;
    if !(0.0..=1.0).contains(&switch) {
        return Err(keys.wrong("mixup_switch_prob", "0 to 1"));
    }
    let both = mixup > 0.0 && cutmix > 0.0;
    for (key, alpha, share) in [("mixup", mixup, 1.0 - switch), ("cutmix", cutmix, switch)] {
        // A share of 0 is a step that is off.
        if alpha > 0.0 && (!both || share > 0.0) {
            draft.set(&[key], &format!("augment.{key}.alpha"), alpha);
            draft.set(&["mixup_prob", key], &format!("augment.{key}.prob"), prob);
            if both {
                draft.set(&["mixup_switch_prob"], &format!("augment.{key}.share"), share);
            }
        }
    }
    Ok(())
}
