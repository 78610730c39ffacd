//! Device, loss, optimizer, learning rate and averages of timm's recipes.

use super::keys::Keys;
use super::{Draft, TimmError};

pub(super) fn read(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    run(keys, draft)?;
    loss(keys, draft)?;
    optimizer(keys, draft)?;
    learning_rate(keys, draft)?;
    if keys.flag("model_ema")? {
        let decay = keys.number("model_ema_decay")?.unwrap_or_default();
        draft.set(&["model_ema", "model_ema_decay"], "train.ema.decay", decay);
        draft.set(&["model_ema"], "train.ema.warmup", false);
    }
    Ok(())
}

fn run(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    let device = keys.text("device")?.unwrap_or_default();
    draft.set(&["device"], "device", if device == "cuda" { "cuda:0" } else { device.as_str() });
    let named = keys.text("experiment")?.filter(|name| !name.is_empty());
    let name = match named {
        Some(name) => Some((["experiment"], name)),
        None => keys.text("model")?.map(|model| (["model"], model)),
    };
    if let Some((from, name)) = name {
        draft.set(&from, "name", name);
    }
    if !keys.flag("amp")? {
        draft.set(&["amp"], "train.dtype", "f32");
    } else if keys.text("amp_dtype")?.as_deref() == Some("bfloat16") {
        draft.set(&["amp", "amp_dtype"], "train.dtype", "bf16");
    } else {
        return Err(keys.refuse("amp_dtype", "mixed precision is bfloat16"));
    }
    let evaluation = keys.whole("validation_batch_size")?;
    let (from, batch) = match evaluation {
        Some(batch) => ("validation_batch_size", Some(batch)),
        None => ("batch_size", keys.whole("batch_size")?),
    };
    draft.set(&[from], "data.eval_batch_size", batch);
    // The fork saves every fifth epoch, timm every one.
    if keys.whole("checkpoint_freq_epoch")?.is_none() {
        let fork = keys.has("sparsity_type");
        draft.set(&["checkpoint_freq_epoch"], "train.checkpoint_every", if fork { 5 } else { 1 });
    }
    Ok(())
}

fn loss(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    let bce = keys.flag("bce_loss")?;
    draft.set(&["bce_loss"], "train.loss", if bce { "binary_cross_entropy" } else { "cross_entropy" });
    if let (true, Some(threshold)) = (bce, keys.number("bce_target_thresh")?) {
        draft.set(&["bce_target_thresh"], "train.target_threshold", threshold);
    }
    Ok(())
}

fn optimizer(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    let name = keys.text("opt")?.unwrap_or_default().to_lowercase();
    match name.as_str() {
        "adamw" => {
            draft.set(&["opt"], "train.optimizer", "adamw");
            if let Some(eps) = keys.number("opt_eps")? {
                draft.set(&["opt_eps"], "train.eps", eps);
            }
            if let Some(betas) = keys.numbers("opt_betas", 2)? {
                draft.set(&["opt_betas"], "train.betas", betas);
            }
        }
        // timm's `sgd` is Nesterov's, its `momentum` the plain one.
        "sgd" | "nesterov" | "momentum" => {
            draft.set(&["opt"], "train.optimizer", "sgd");
            draft.set(&["opt"], "train.nesterov", name != "momentum");
            draft.set(&["momentum"], "train.momentum", keys.number("momentum")?);
        }
        _ => return Err(keys.refuse("opt", "the optimizers are adamw, sgd, nesterov and momentum")),
    }
    Ok(())
}

/// `lr`, or `lr_base · r` with r = global batch / `lr_base_size`, under the square root for Adam's kin unless
/// `lr_base_scale` says otherwise.
fn learning_rate(keys: &Keys, draft: &mut Draft) -> Result<(), TimmError> {
    if keys.text("sched")?.as_deref() != Some("cosine") {
        return Err(keys.refuse("sched", "write cosine, and set train.schedule to linear or constant"));
    }
    draft.set(&["sched"], "train.schedule", "cosine");
    let unit = if keys.flag("sched_on_updates")? { "step" } else { "epoch" };
    draft.set(&["sched_on_updates"], "train.schedule_unit", unit);
    draft.set(&["warmup_prefix"], "train.warmup_prefix", keys.flag("warmup_prefix")?);
    if let Some(lr) = keys.number("lr")? {
        draft.set(&["lr"], "train.lr", lr);
        return Ok(());
    }
    let number = |key| Ok::<f64, TimmError>(keys.number(key)?.unwrap_or_default());
    let size = number("lr_base_size")?;
    if size <= 0.0 {
        return Err(keys.wrong("lr_base_size", "above 0"));
    }
    let name = keys.text("opt")?.unwrap_or_default().to_lowercase();
    let sqrt = match keys.text("lr_base_scale")?.unwrap_or_default().as_str() {
        "" => ["ada", "lamb"].iter().any(|part| name.contains(part)),
        "sqrt" => true,
        "linear" => false,
        _ => return Err(keys.wrong("lr_base_scale", "`sqrt`, `linear` or nothing")),
    };
    let ratio = number("batch_size")? * number("grad_accum_steps")? / size;
    let lr = number("lr_base")? * if sqrt { ratio.sqrt() } else { ratio };
    let from = ["lr_base", "lr_base_size", "lr_base_scale", "batch_size", "grad_accum_steps", "opt"];
    draft.set(&from, "train.lr", lr);
    Ok(())
}
