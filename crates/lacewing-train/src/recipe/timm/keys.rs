//! Every key of timm's that is known: its default there, and what it becomes here.

use super::super::read::short;
use super::TimmError;
use serde_json::{Map, Value};

/// A row of the table.
pub(super) struct Key {
    /// The key in timm's YAML.
    pub(super) name: &'static str,
    /// What timm does without it, as JSON.
    default: &'static str,
    /// What it becomes.
    pub(super) becomes: Becomes,
}

/// What a key becomes.
#[derive(Clone, Copy)]
pub(super) enum Becomes {
    /// This setting, as it is; null leaves the setting at its own default.
    Setting(&'static str, Kind),
    /// Read together with others; the text says when it changes nothing.
    Part(&'static str),
    /// Nothing, and any value but these (as JSON) and null is an error for this reason.
    Only(&'static [&'static str], &'static str),
    /// Nothing whatever its value, for this reason.
    Nothing(&'static str),
}

/// Types of values.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A number.
    Number,
    /// A whole number, 0 or more.
    Whole,
    /// Text.
    Text,
}

use Becomes::{Nothing, Only, Part, Setting};

const fn key(name: &'static str, default: &'static str, becomes: Becomes) -> Key {
    Key { name, default, becomes }
}

const OFF: &[&str] = &["false", "0", "0.0", "\"\"", "[]"];
const SPEED: &str = "how fast it runs, not what it computes";
const LOGS: &str = "what is printed or kept, not what is trained";
const ONE: &str = "there is one process";
const COSINE: &str = "of schedules other than the cosine";
const DENSE: &str = "the model or this part of it is dense, or the schedule has no use for it";
const UNUSED: &str = "what it belongs to is off";

/// Every known key.
pub(super) const KEYS: &[Key] = &[
    // The run.
    key("seed", "42", Setting("seed", Kind::Whole)),
    key("device", "\"cuda\"", Part(UNUSED)),
    key("experiment", "null", Part(UNUSED)),
    key("output", "\"\"", Nothing("results go to runs/NAME; --out says otherwise")),
    key("amp", "false", Part(UNUSED)),
    key("amp_dtype", "\"float16\"", Part(UNUSED)),
    key("amp_impl", "\"native\"", Nothing(SPEED)),
    key("apex_amp", "false", Only(OFF, "write amp: true and amp_dtype: bfloat16")),
    key("native_amp", "false", Only(OFF, "write amp: true and amp_dtype: bfloat16")),
    key("resume", "\"\"", Only(OFF, "continue a run with --resume DIR")),
    key("no_resume_opt", "false", Only(OFF, "a run is continued whole")),
    key("start_epoch", "null", Only(OFF, "a run begins with its first epoch")),
    // Data.
    key("data_dir", "null", Setting("data.path", Kind::Text)),
    key("dataset", "\"\"", Part(UNUSED)),
    key("train_split", "\"train\"", Only(&["\"train\""], "the folder `train` is what is trained on")),
    key(
        "val_split",
        "\"validation\"",
        Only(
            &["\"validation\"", "\"val\"", "\"valid\"", "\"test\"", "\"eval\""],
            "the folder that is evaluated on is found by itself",
        ),
    ),
    key("dataset_download", "false", Only(OFF, "nothing is downloaded")),
    key("class_map", "\"\"", Only(OFF, "classes are the folders by name")),
    key("epoch_repeats", "0", Only(OFF, "an epoch sees each picture once")),
    key("batch_size", "128", Setting("data.batch_size", Kind::Whole)),
    key("validation_batch_size", "null", Part(UNUSED)),
    key("workers", "4", Setting("data.workers", Kind::Whole)),
    // Model.
    key("model", "\"resnet50\"", Setting("model.name", Kind::Text)),
    key("num_classes", "null", Setting("model.n_classes", Kind::Whole)),
    key("drop", "0.0", Part("no dropout is asked for")),
    key("drop_path", "null", Part("no drop path is asked for")),
    key("drop_connect", "null", Only(OFF, "write drop_path")),
    key("drop_block", "null", Only(OFF, "there is no drop block")),
    key("gp", "null", Part(UNUSED)),
    key("grad_checkpointing", "false", Part(UNUSED)),
    key("pretrained", "false", Only(OFF, "start from weights with --init")),
    key("initial_checkpoint", "\"\"", Only(OFF, "start from weights with --init")),
    key("bn_momentum", "null", Only(OFF, "set model.norm_momentum instead")),
    key("bn_eps", "null", Only(OFF, "set model.norm_eps instead")),
    key("split_bn", "false", Only(OFF, "there is one batch norm for all pictures")),
    // Pictures.
    key("img_size", "null", Part(UNUSED)),
    key("input_size", "null", Part(UNUSED)),
    key("mean", "null", Part(UNUSED)),
    key("std", "null", Part(UNUSED)),
    key("crop_pct", "null", Part(UNUSED)),
    key("crop_mode", "null", Only(&["\"center\""], "evaluation takes the center")),
    key("interpolation", "\"\"", Part(UNUSED)),
    key("train_interpolation", "\"random\"", Part(UNUSED)),
    key("no_aug", "false", Only(OFF, "name the augmentations that are off")),
    key("scale", "[0.08,1.0]", Part(UNUSED)),
    key("ratio", "[0.75,1.3333333333333333]", Part(UNUSED)),
    key("hflip", "0.5", Part("no picture is flipped")),
    key("vflip", "0.0", Only(OFF, "pictures are flipped left to right only")),
    key("color_jitter", "0.4", Part("there is none, as here")),
    key("aa", "null", Part("no op is asked for")),
    key("aug_repeats", "0", Only(OFF, "a batch holds a picture once")),
    key("aug_splits", "0", Only(OFF, "there is no AugMix")),
    key("reprob", "0.0", Part("nothing is erased")),
    key("remode", "\"pixel\"", Part("nothing is erased")),
    key("recount", "1", Part("nothing is erased")),
    key("resplit", "false", Only(OFF, "there is no AugMix")),
    key("mixup", "0.0", Part("no pictures are mixed")),
    key("cutmix", "0.0", Part("no boxes are exchanged")),
    key("cutmix_minmax", "null", Only(OFF, "the box is drawn by cutmix's alpha")),
    key("mixup_prob", "1.0", Part(UNUSED)),
    key("mixup_switch_prob", "0.5", Part("mixup and cutmix are not both on")),
    key("mixup_mode", "\"batch\"", Only(&["\"batch\""], "a batch is mixed with one weight: write batch")),
    key("mixup_off_epoch", "0", Only(OFF, "pictures are mixed to the end")),
    // Loss.
    key("smoothing", "0.1", Setting("train.label_smoothing", Kind::Number)),
    key("bce_loss", "false", Part(UNUSED)),
    key("bce_target_thresh", "null", Part("bce_loss is off")),
    key("bce_sum", "false", Only(OFF, "the loss is a mean over classes")),
    key("bce_pos_weight", "null", Only(OFF, "all classes weigh the same")),
    key("jsd_loss", "false", Only(OFF, "there is no AugMix")),
    // Optimizer.
    key("opt", "\"sgd\"", Part(UNUSED)),
    key("opt_eps", "null", Part("the optimizer has none")),
    key("opt_betas", "null", Part("the optimizer has none")),
    key("momentum", "0.9", Part("the optimizer has none")),
    key("weight_decay", "2e-5", Setting("train.weight_decay", Kind::Number)),
    key("layer_decay", "null", Only(OFF, "all layers have one learning rate")),
    key("clip_grad", "null", Setting("train.clip_norm", Kind::Number)),
    key("clip_mode", "\"norm\"", Only(&["\"norm\""], "the gradient's norm is clipped: write norm")),
    key("grad_accum_steps", "1", Setting("train.accumulate", Kind::Whole)),
    key("model_ema", "false", Part("no average is asked for")),
    key("model_ema_decay", "0.9998", Part("model_ema is off")),
    key("model_ema_force_cpu", "false", Nothing(SPEED)),
    key(
        "model_ema_warmup",
        "false",
        Only(OFF, "timm's warm-up of the average differs: set train.ema.warmup"),
    ),
    // Learning rate.
    key("epochs", "300", Setting("train.epochs", Kind::Whole)),
    key("cooldown_epochs", "0", Setting("train.cooldown_epochs", Kind::Whole)),
    key("warmup_epochs", "5", Setting("train.warmup_epochs", Kind::Number)),
    key("warmup_lr", "1e-5", Setting("train.warmup_lr", Kind::Number)),
    key("warmup_prefix", "false", Part(UNUSED)),
    key("sched", "\"cosine\"", Part(UNUSED)),
    key("sched_on_updates", "false", Part(UNUSED)),
    key("lr", "null", Part("null: lr_base gives it")),
    key("lr_base", "0.1", Part("lr is given")),
    key("lr_base_size", "256", Part("lr is given")),
    key("lr_base_scale", "\"\"", Part("lr is given")),
    key("min_lr", "0.0", Setting("train.min_lr", Kind::Number)),
    key("lr_noise", "null", Only(OFF, "the learning rate has no noise")),
    key("lr_noise_pct", "0.67", Nothing("lr_noise is off")),
    key("lr_noise_std", "1.0", Nothing("lr_noise is off")),
    key("lr_cycle_limit", "1", Only(&["1", "1.0"], "the cosine runs once")),
    key("lr_cycle_mul", "1.0", Only(&["1", "1.0"], "the cosine runs once")),
    key("lr_cycle_decay", "0.5", Nothing("the cosine runs once")),
    key("lr_k_decay", "1.0", Only(&["1", "1.0"], "the cosine is the plain one")),
    key("decay_epochs", "90", Nothing(COSINE)),
    key("decay_milestones", "[]", Nothing(COSINE)),
    key("decay_rate", "0.1", Nothing(COSINE)),
    key("patience_epochs", "10", Nothing(COSINE)),
    // Sparsity: the fork's keys.
    key("sparsity_type", "null", Part("the model is dense")),
    key("n_sparsity", "2", Part(DENSE)),
    key("m_sparsity", "4", Part(DENSE)),
    key("n_sparsity_qkv", "2", Part(DENSE)),
    key("m_sparsity_qkv", "4", Part(DENSE)),
    key("prune_rate", "null", Part(DENSE)),
    key("prune_rate_qkv", "null", Part(DENSE)),
    key("sparsity_loc", "\"FF\"", Part(DENSE)),
    key("sparse_dim", "\"ROW\"", Part(DENSE)),
    key("decay_type", "\"STEP\"", Part(DENSE)),
    key("decay_coef", "0.0002", Part(DENSE)),
    key("structure_decay_flag", "false", Part(DENSE)),
    key("structure_decay_type", "\"SPARSIFY\"", Part(DENSE)),
    key("structure_decay_config", "null", Part(DENSE)),
    key("dense_steps", "0.0", Part(DENSE)),
    key("fine_tune_steps", "0.0", Part(DENSE)),
    // Logs and checkpoints.
    key("log_interval", "50", Setting("train.log_every", Kind::Whole)),
    key("checkpoint_freq_epoch", "null", Setting("train.checkpoint_every", Kind::Whole)),
    key("checkpoint_hist", "10", Nothing(LOGS)),
    key("eval_metric", "\"top1\"", Nothing(LOGS)),
    key("recovery_interval", "0", Nothing(LOGS)),
    key("save_images", "false", Nothing(LOGS)),
    key("log_wandb", "false", Nothing(LOGS)),
    // How it is computed.
    key("pin_mem", "false", Nothing(SPEED)),
    key("no_prefetcher", "false", Nothing(SPEED)),
    key("use_multi_epochs_loader", "false", Nothing(SPEED)),
    key("channels_last", "false", Nothing(SPEED)),
    key("torchscript", "false", Nothing(SPEED)),
    key("torchcompile", "null", Nothing(SPEED)),
    key("aot_autograd", "false", Nothing(SPEED)),
    key("fuser", "\"\"", Nothing(SPEED)),
    key("fast_norm", "false", Nothing(SPEED)),
    key("worker_seeding", "\"all\"", Nothing("draws depend on the seed and the picture alone")),
    key("tta", "0", Only(OFF, "a picture is evaluated once")),
    key("local_rank", "0", Nothing(ONE)),
    key("no_ddp_bb", "false", Nothing(ONE)),
    key("sync_bn", "false", Nothing(ONE)),
    key("dist_bn", "\"reduce\"", Nothing(ONE)),
];

/// The keys of a file.
pub(super) struct Keys {
    pub(super) given: Map<String, Value>,
}

impl Keys {
    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// The value in the file, or timm's default where it is null or absent.
    pub(super) fn value(&self, key: &'static str) -> Value {
        let given = self.given.get(key).filter(|value| !value.is_null());
        given.cloned().unwrap_or_else(|| {
            let row = KEYS.iter().find(|row| row.name == key).expect("a key of the table");
            serde_json::from_str(row.default).expect("defaults are JSON")
        })
    }

    /// The error for a value that timm would not take either.
    pub(super) fn wrong(&self, key: &'static str, expected: impl Into<String>) -> TimmError {
        TimmError::Value { key, expected: expected.into(), got: short(&self.value(key)) }
    }

    /// The error for a value that cannot be honoured.
    pub(super) fn refuse(&self, key: &'static str, reason: impl Into<String>) -> TimmError {
        TimmError::Unsupported { key, got: short(&self.value(key)), reason: reason.into() }
    }

    /// As `argparse` does, a text that is a number counts as one: YAML 1.1 takes 1e-3 for a text.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, TimmError> {
        let value = match self.value(key) {
            Value::Null => return Ok(None),
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        value.filter(|x: &f64| x.is_finite()).map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    pub(super) fn whole(&self, key: &'static str) -> Result<Option<u64>, TimmError> {
        let wrong = || self.wrong(key, "a whole number, 0 or more");
        match self.number(key).map_err(|_| wrong())? {
            None => Ok(None),
            Some(x) if x >= 0.0 && x.fract() == 0.0 && x < 2f64.powi(53) => Ok(Some(x as u64)),
            Some(_) => Err(wrong()),
        }
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<String>, TimmError> {
        match self.value(key) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.wrong(key, "text")),
        }
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<bool, TimmError> {
        self.value(key).as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// The numbers of a list, `count` of them unless that is 0.
    pub(super) fn numbers(&self, key: &'static str, count: usize) -> Result<Option<Vec<f64>>, TimmError> {
        let list = match self.value(key) {
            Value::Null => return Ok(None),
            Value::Array(list) => list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>(),
            _ => None,
        };
        let expected = if count == 0 { "a list of numbers".to_owned() } else { format!("{count} numbers") };
        list.filter(|list| count == 0 || list.len() == count)
            .map(Some)
            .ok_or_else(|| self.wrong(key, expected))
    }

    /// That of `choices` which the value names, in whatever case.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Result<T, TimmError> {
        let text = self.text(key)?.unwrap_or_default();
        let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text));
        found.map(|&(_, choice)| choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.wrong(key, format!("one of {}", names.join(", ")))
        })
    }

    /// Refuses every value but null and those of `allowed`.
    pub(super) fn only(&self, key: &'static str, allowed: &[&str], reason: &str) -> Result<(), TimmError> {
        let value = self.value(key);
        if value.is_null() || allowed.contains(&value.to_string().as_str()) {
            return Ok(());
        }
        Err(self.refuse(key, reason))
    }
}
