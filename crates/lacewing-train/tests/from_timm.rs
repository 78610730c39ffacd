//! timm's recipes as ours: every key, what cannot be, and the fork's recipe whole.

use lacewing_core::{Horizon, MaskPhase, Schedule};
use lacewing_train::recipe::{FromTimm, Override, Recipe, from_timm, parse};
use serde_json::{Value, json};

/// The settings of Progressive Gradient Flow's ViT-B/16 run for one process.
const MDGF: &str = include_str!("fixtures/timm-vit-base-mdgf.yaml");

/// The sparsity of its SwinV2-B run, with Microsoft's settings for the rest.
const SWIN: &str = include_str!("fixtures/timm-swin-v2-base-nm.yaml");

fn read(text: &str, overrides: &[&str]) -> FromTimm {
    let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().expect("an override")).collect();
    from_timm("test.yaml", text, &overrides).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The recipe of a small vision transformer with these lines, at a dotted path.
fn at(lines: &str, path: &str) -> Value {
    let recipe = read(&format!("model: vit_tiny_patch16_224\ncolor_jitter: null\n{lines}"), &[]).recipe;
    let recipe = serde_json::to_value(recipe).expect("plain data");
    path.split('.').fold(recipe, |at, key| match at {
        Value::Array(mut list) => list[key.parse::<usize>().expect("a place")].take(),
        mut map => map[key].take(),
    })
}

#[test]
fn the_published_recipe_is_the_one_in_the_program() {
    let text = include_str!("../../../configs/imagenet-vit-base-mdgf.yaml");
    let ours = parse("imagenet-vit-base-mdgf", text, &[]).expect("a valid recipe");
    let mapped = read(MDGF, &[]).recipe;
    let mapped = Recipe { name: ours.name.clone(), about: ours.about.clone(), ..mapped };
    assert_eq!(mapped, ours);
}

#[test]
fn the_swin_recipe_is_the_one_in_the_program() {
    let text = include_str!("../../../configs/imagenet-swin-v2-base-nm.yaml");
    let ours = parse("imagenet-swin-v2-base-nm", text, &[]).expect("a valid recipe");
    let mapped = read(SWIN, &[]).recipe;
    let mapped = Recipe { name: ours.name.clone(), about: ours.about.clone(), ..mapped };
    assert_eq!(mapped, ours);
}

#[test]
fn the_published_recipe_has_timms_learning_rates() {
    let schedule = read(MDGF, &[]).recipe.schedule(350 * 625, 625 * 8).expect("a schedule");
    for (epoch, lr) in [
        (0, 1e-7),
        (1, 4.7233785e-5),
        (14, 6.5997300e-4),
        (15, 7.0390749e-4),
        (100, 5.7400915e-4),
        (175, 3.5360339e-4),
        (349, 1.1424047e-7),
        (350, 1e-7),
        (351, 1e-7),
    ] {
        // The table has eight digits.
        let got = schedule.lr(epoch * 625);
        assert!((got - lr).abs() <= 1e-7 * lr, "epoch {epoch}: {got}, expected {lr}");
    }
}

/// Step of each stage and the phase at a step, of the MLPs in a run of 350 epochs of 625 steps.
fn plan(lines: &str) -> lacewing_core::MaskPlan {
    let recipe = read(&format!("{MDGF}\n{lines}"), &[]).recipe;
    let mlp = &recipe.model["mlp"];
    let Schedule::Masks(masks) = Schedule::from_json(&mlp["schedule"]).expect("a schedule") else {
        panic!("{mlp} has no masks")
    };
    let horizon = Horizon { total_steps: recipe.train.epochs * 625, steps_per_epoch: 625 };
    let size = |key: &str| mlp[key].as_u64().expect("a size") as usize;
    masks.plan(horizon, size("n"), size("m")).expect("a plan")
}

#[test]
fn phases_begin_with_epochs() {
    let plan_of = plan("dense_steps: 0.1\nfine_tune_steps: 0.2");
    assert_eq!(plan_of.at(35 * 625 - 1), MaskPhase::Dense);
    assert_eq!(plan_of.at(35 * 625), MaskPhase::Masked { n: 1, m: 32, rest: 1.0 });
    let rest = (-1e-4 * 10_000.0f64).exp();
    assert_eq!(plan_of.at(35 * 625 + 10_000), MaskPhase::Masked { n: 1, m: 32, rest });
    assert!(matches!(plan_of.at(280 * 625 - 1), MaskPhase::Masked { rest, .. } if rest > 0.0));
    assert_eq!(plan_of.at(280 * 625), MaskPhase::Masked { n: 1, m: 32, rest: 0.0 });

    let staged = |kind: &str| {
        plan(&format!("structure_decay_flag: true\nstructure_decay_type: {kind}"))
            .stages()
            .iter()
            .map(|&(step, n, m)| (step / 625, step % 625, n, m))
            .collect::<Vec<_>>()
    };
    let fine = [(0, 0, 8, 256), (87, 0, 4, 128), (175, 0, 2, 64), (262, 0, 1, 32)];
    assert_eq!(staged("FINE"), fine);
    assert_eq!(staged("CONFIG\nstructure_decay_config: 8:256, 4:128, 2:64, 1:32"), fine);
}

#[test]
fn keys_become_settings() {
    let base = "train.";
    for (lines, path, expected) in [
        ("epochs: 7\nwarmup_epochs: 1", "epochs", json!(7)),
        ("cooldown_epochs: 3", "cooldown_epochs", json!(3)),
        ("warmup_epochs: 4", "warmup_epochs", json!(4.0)),
        ("warmup_lr: 1e-6", "warmup_lr", json!(1e-6)),
        ("warmup_prefix: true", "warmup_prefix", json!(true)),
        ("sched: cosine", "schedule", json!("cosine")),
        ("sched_on_updates: true", "schedule_unit", json!("step")),
        ("", "schedule_unit", json!("epoch")),
        ("lr: 0.25", "lr", json!(0.25)),
        ("lr: \"25e-2\"", "lr", json!(0.25)),
        // Linear for SGD, the square root for Adam's kin.
        ("lr_base: 0.5\nlr_base_size: 1024\nbatch_size: 64\ngrad_accum_steps: 4", "lr", json!(0.125)),
        ("opt: adamw\nlr_base: 0.5\nlr_base_size: 1024\nbatch_size: 256", "lr", json!(0.25)),
        ("opt: adamw\nlr_base: 0.5\nlr_base_scale: linear\nbatch_size: 128", "lr", json!(0.25)),
        ("min_lr: 1e-6", "min_lr", json!(1e-6)),
        ("opt: adamw", "optimizer", json!("adamw")),
        ("opt: sgd", "nesterov", json!(true)),
        ("opt: momentum\nmomentum: 0.8", "nesterov", json!(false)),
        ("opt: momentum\nmomentum: 0.8", "momentum", json!(0.8)),
        ("opt: adamw\nopt_eps: 1e-6", "eps", json!(1e-6)),
        ("opt: adamw\nopt_betas: [0.8, 0.99]", "betas", json!([0.8, 0.99])),
        ("weight_decay: 0.3", "weight_decay", json!(0.3)),
        ("", "weight_decay", json!(2e-5)),
        ("clip_grad: 2.0\nclip_mode: norm", "clip_norm", json!(2.0)),
        ("grad_accum_steps: 6", "accumulate", json!(6)),
        ("bce_loss: true\nbce_target_thresh: 0.2", "loss", json!("binary_cross_entropy")),
        ("bce_loss: true\nbce_target_thresh: 0.2", "target_threshold", json!(0.2)),
        ("smoothing: 0.2", "label_smoothing", json!(0.2)),
        ("model_ema: true", "ema", json!({"decay": 0.9998, "warmup": false})),
        ("model_ema: true\nmodel_ema_decay: 0.9", "ema.decay", json!(0.9)),
        ("model_ema: false\nmodel_ema_decay: 0.9", "ema.decay", json!(0.0)),
        ("amp: true\namp_dtype: bfloat16", "dtype", json!("bf16")),
        ("amp: false", "dtype", json!("f32")),
        ("log_interval: 9", "log_every", json!(9)),
        ("checkpoint_freq_epoch: 8", "checkpoint_every", json!(8)),
    ] {
        assert_eq!(at(lines, &format!("{base}{path}")), expected, "{lines}: {path}");
    }
    for (lines, path, expected) in [
        ("seed: 3", "seed", json!(3)),
        ("", "seed", json!(42)),
        ("device: cuda:1", "device", json!("cuda:1")),
        ("", "device", json!("cuda:0")),
        ("experiment: mine", "name", json!("mine")),
        ("data_dir: /x y", "data.path", json!("/x y")),
        ("dataset: torch/imagenet-1k", "data.name", json!("image_folder")),
        ("dataset: torch/cifar10", "data.name", json!("cifar10")),
        ("batch_size: 17", "data.batch_size", json!(17)),
        ("batch_size: 17", "data.eval_batch_size", json!(17)),
        ("validation_batch_size: 5", "data.eval_batch_size", json!(5)),
        ("workers: 2", "data.workers", json!(2)),
        ("num_classes: 10", "model.n_classes", json!(10)),
        ("drop: 0.1", "model.dropout", json!(0.1)),
        ("drop_path: 0.2", "model.drop_path", json!(0.2)),
        ("gp: token", "model.pool", json!("class")),
        ("grad_checkpointing: true", "model.recompute", json!(true)),
        ("img_size: 64", "model.image_size", json!(64)),
        ("input_size: [3, 64, 64]", "augment.random_resized_crop.size", json!(64)),
        ("img_size: 64", "augment.resize_center_crop.size", json!(64)),
        ("mean: [0.1, 0.2, 0.3]", "augment.normalize.mean", json!([0.1, 0.2, 0.3])),
        ("std: [0.1, 0.2, 0.3]", "augment.normalize.std", json!([0.1, 0.2, 0.3])),
        ("", "augment.normalize.mean", json!([0.5, 0.5, 0.5])),
        ("crop_pct: 0.8", "augment.resize_center_crop.crop_ratio", json!(0.8)),
        ("interpolation: bilinear", "augment.resize_center_crop.filter", json!("bilinear")),
        ("train_interpolation: bicubic", "augment.random_resized_crop.filter", json!("bicubic")),
        ("scale: [0.3, 0.9]", "augment.random_resized_crop.scale", json!([0.3, 0.9])),
        ("ratio: [0.5, 2.0]", "augment.random_resized_crop.ratio", json!([0.5, 2.0])),
        ("hflip: 0.3", "augment.horizontal_flip.prob", json!(0.3)),
        ("hflip: 0", "augment.horizontal_flip", json!(null)),
        ("aa: rand-m7-n3", "augment.rand_augment.num_ops", json!(3)),
        ("aa: rand-m7-n3", "augment.rand_augment.cutout", json!(false)),
        ("aa: rand-m7-n3\nsparsity_type: DENSE", "augment.rand_augment.cutout", json!(true)),
        ("aa: rand-m7\ntrain_interpolation: bilinear", "augment.rand_augment.filter", json!("bilinear")),
        ("reprob: 0.25\nremode: rand\nrecount: 2", "augment.random_erasing.mode", json!("rand")),
        ("reprob: 0.25\nrecount: 2", "augment.random_erasing.count", json!(2)),
        ("reprob: 0.25", "augment.random_erasing.prob", json!(0.25)),
        ("mixup: 0.5\nmixup_prob: 0.7", "augment.mixup", json!({"alpha": 0.5, "prob": 0.7, "share": 1.0})),
        ("mixup: 0.5\ncutmix: 1.0\nmixup_switch_prob: 0.25", "augment.mixup.share", json!(0.75)),
        ("mixup: 0.5\ncutmix: 1.0\nmixup_switch_prob: 0.25", "augment.cutmix.share", json!(0.25)),
        ("mixup: 0.5\ncutmix: 1.0\nmixup_switch_prob: 1", "augment.mixup", json!(null)),
    ] {
        assert_eq!(at(lines, path), expected, "{lines}: {path}");
    }
}

#[test]
fn sparsity_keys_become_schedules() {
    let mlp = |lines: &str| at(&format!("epochs: 100\n{lines}"), "model.mlp");
    let nm = "sparsity_type: STRUCTURED_NM\n";
    let schedule = |lines: &str| mlp(&format!("{nm}{lines}"))["schedule"].take();
    assert_eq!(
        mlp(&format!("{nm}n_sparsity: 1\nm_sparsity: 8\nsparse_dim: COL")),
        json!({"structure": "nm", "n": 1, "m": 8, "axis": "col",
               "schedule": {"name": "straight_through", "align": "epoch"}})
    );
    assert_eq!(
        schedule("decay_type: linear"),
        json!({"name": "mask_decay", "decay": "linear", "coef": 0.0002, "align": "epoch"})
    );
    assert_eq!(
        schedule(
            "structure_decay_flag: true\nstructure_decay_type: DENSIFY\ndecay_type: EXP\ndense_steps: 0.1"
        ),
        json!({"name": "structure_decay", "stages": "densify", "decay": "exp", "coef": 0.0002, "align": "epoch",
               "dense": "10 epochs"})
    );
    assert_eq!(
        schedule("structure_decay_flag: true\nfine_tune_steps: 0.2"),
        json!({"name": "structure_decay", "stages": "sparsify", "align": "epoch", "fine_tune": "20 epochs"})
    );
    // Sparse from epoch 10 to 80.
    assert_eq!(
        schedule(
            "structure_decay_flag: true\nstructure_decay_type: CONFIG\nstructure_decay_config: \"[8:16, 4:8, 2:4]\"\n\
             dense_steps: 0.1\nfine_tune_steps: 0.2"
        )["stages"],
        json!([["10 epochs", 8, 16], ["33 epochs", 4, 8], ["56 epochs", 2, 4]])
    );
    assert_eq!(
        mlp("sparsity_type: SRSTE\ndecay_type: linear\ndecay_coef: 0.0008\nfine_tune_steps: 0.1"),
        json!({"structure": "nm", "n": 2, "m": 4, "schedule": {"name": "sr_ste", "align": "epoch"}})
    );
    assert_eq!(mlp("sparsity_type: DENSE"), json!(null));

    let qkv = "n_sparsity: 1\nm_sparsity: 8\nn_sparsity_qkv: 2\nm_sparsity_qkv: 4\nsparsity_loc: ";
    assert_eq!(at(&format!("{nm}{qkv}QKV"), "model.qkv.m"), json!(4));
    assert_eq!(at(&format!("{nm}{qkv}QKV"), "model.mlp"), json!(null));
    let both = format!("{nm}{qkv}FF,Q,K");
    assert_eq!(at(&both, "model.mlp.m"), json!(8));
    assert_eq!(at(&both, "model.split_qkv"), json!(true));
    assert_eq!(at(&both, "model.rules.0.match"), json!("blocks.*.attn.{q,k}"));
    assert_eq!(at(&both, "model.rules.0.m"), json!(4));
    let swin = format!("model: swinv2_tiny_window8_256\ncolor_jitter: 0\n{nm}{qkv}FF,Q,K");
    let swin = read(&swin, &[]).recipe;
    assert_eq!(swin.model["rules"][0]["match"], json!("layers.*.blocks.*.attn.{q,k}"));
    assert_eq!((&swin.model["mlp"]["m"], &swin.model["split_qkv"]), (&json!(8), &json!(true)));
    let augment = serde_json::to_value(&swin.augment).expect("plain data");
    assert_eq!(augment["resize_center_crop"]["crop_ratio"], json!(0.9));
    let resnet = format!("model: resnet50\ncolor_jitter: 0\n{nm}");
    assert_eq!(read(&resnet, &[]).recipe.model["conv"]["structure"], json!("nm"));
    let overridden = read(MDGF, &["model.mlp.m=16", "train.epochs=9", "train.warmup_epochs=1"]);
    assert_eq!(overridden.recipe.model["mlp"]["m"], json!(16));
    assert_eq!(overridden.recipe.train.epochs, 9);
}

#[test]
fn a_rate_prunes_the_layer_as_a_whole() {
    let text = |lines: &str| format!("model: vit_tiny_patch16_224\ncolor_jitter: null\nepochs: 20\n{lines}");
    // The rate overrides n and m under every type, as in the fork.
    for (kind, schedule) in
        [("UNSTRUCTURED", "mask_decay"), ("STRUCTURED_NM", "mask_decay"), ("SRSTE", "sr_ste")]
    {
        let lines = format!(
            "sparsity_type: {kind}\nprune_rate: 0.75\nn_sparsity: 1\nm_sparsity: 8\ndecay_type: exp\n\
             dense_steps: 0.1\nsparsity_loc: FFQK\nprune_rate_qkv: 0.5"
        );
        let read = from_timm("test.yaml", &text(&lines), &[]).expect(kind);
        let mlp = &read.recipe.model["mlp"];
        assert_eq!(mlp["structure"], json!("unstructured"), "{kind}");
        assert_eq!(mlp["sparsity"], json!(0.75));
        assert!(mlp.get("n").is_none() && mlp.get("m").is_none());
        assert_eq!(mlp["schedule"]["name"], json!(schedule));
        assert_eq!(mlp["schedule"]["dense"], json!("2 epochs"));
        let rule = &read.recipe.model["rules"][0];
        assert_eq!((&rule["structure"], &rule["sparsity"]), (&json!("unstructured"), &json!(0.5)), "{kind}");
        let row = read.mapped.iter().find(|row| row.key == "prune_rate").expect("given");
        assert_eq!(row.becomes, ["model.mlp.sparsity = 0.75"]);
        let row = read.mapped.iter().find(|row| row.key == "n_sparsity").expect("given");
        assert!(row.becomes[0].starts_with("nothing: "), "{row:?}");
    }
    // Without a rate the type alone changes nothing.
    let read = from_timm("test.yaml", &text("sparsity_type: UNSTRUCTURED"), &[]).expect("n:m");
    assert_eq!(read.recipe.model["mlp"]["structure"], json!("nm"));
}

#[test]
fn what_cannot_be_is_named_with_key_and_value() {
    for (lines, parts) in [
        ("n_sparsty: 3", &["`n_sparsty` = 3", "did you mean `n_sparsity`"][..]),
        ("quuxquux: 3", &["unknown timm key `quuxquux`"]),
        ("model: vit_bas_patch16_224", &["`vit_bas_patch16_224`", "`vit_base_patch16_224`"]),
        ("epochs: many", &["`epochs`", "whole number", "\"many\""]),
        ("batch_size: 2.5", &["`batch_size`", "2.5"]),
        ("lr: fast", &["`lr`", "a number", "\"fast\""]),
        ("bce_loss: 3", &["`bce_loss`", "true or false", "3"]),
        ("opt: lamb", &["`opt`", "lamb", "adamw"]),
        ("opt: adamw\nopt_betas: [0.9]", &["`opt_betas`", "2 numbers", "[0.9]"]),
        ("sched: step", &["`sched`", "step", "cosine"]),
        ("lr_base_scale: cubic", &["`lr_base_scale`", "sqrt", "cubic"]),
        ("clip_mode: agc", &["`clip_mode`", "agc", "norm"]),
        ("mixup_mode: elem", &["`mixup_mode`", "elem", "batch"]),
        ("aa: original", &["`aa`", "original", "`rand`"]),
        ("color_jitter: 0.4", &["`color_jitter`", "0.4", "null"]),
        ("amp: true", &["`amp_dtype`", "float16", "bfloat16"]),
        ("gp: avg", &["`gp`", "avg", "token"]),
        ("vflip: 0.5", &["`vflip`", "0.5"]),
        ("pretrained: true", &["`pretrained`", "true", "--init"]),
        ("dataset: tfds/imagenet", &["`dataset`", "tfds/imagenet", "image_folder"]),
        ("interpolation: lanczos", &["`interpolation`", "lanczos", "bicubic"]),
        ("input_size: [3, 8, 9]", &["`input_size`", "square"]),
        ("sparsity_type: UNSTRUCTURED\nprune_rate: 1", &["`prune_rate`", "below 1", "1"]),
        (
            "sparsity_type: UNSTRUCTURED\nprune_rate: 0.5\nstructure_decay_flag: true",
            &["`structure_decay_flag`", "prune_rate overrides"],
        ),
        ("sparsity_type: NM", &["`sparsity_type`", "STRUCTURED_NM", "\"NM\""]),
        ("sparsity_type: STRUCTURED_NM\nn_sparsity: 5", &["`n_sparsity`", "m_sparsity = 4", "5"]),
        ("sparsity_type: STRUCTURED_NM\nsparsity_loc: FFX", &["`sparsity_loc`", "FFX"]),
        ("sparsity_type: STRUCTURED_NM\ndense_steps: 1.5", &["`dense_steps`", "below 1", "1.5"]),
        ("sparsity_type: SRSTE\nstructure_decay_flag: true", &["`structure_decay_flag`", "SRSTE"]),
        (
            "sparsity_type: STRUCTURED_NM\nstructure_decay_flag: true\nstructure_decay_type: CONFIG\n\
             structure_decay_config: \"4:8, 1:4\"",
            &["`structure_decay_config`", "ends with", "2:4", "4:8, 1:4"],
        ),
        ("min_lr: 9", &["`train.min_lr`", "9"]),
    ] {
        let head = if lines.starts_with("model:") { "" } else { "model: vit_tiny_patch16_224\n" };
        let jitter = if lines.starts_with("color_jitter") { "" } else { "color_jitter: null\n" };
        let text = format!("{head}{jitter}{lines}");
        let error = from_timm("test.yaml", &text, &[]).expect_err(lines).to_string();
        for part in parts {
            assert!(error.contains(part), "{lines}: {error:?} lacks {part:?}");
        }
    }
    let error = from_timm("test.yaml", "- a", &[]).expect_err("a list").to_string();
    assert!(error.contains("test.yaml") && error.contains("map"), "{error}");
    let missing = from_timm("t", "model: vit_tiny_patch16_224", &[]).expect_err("timm's jitter").to_string();
    assert!(missing.contains("`color_jitter` = 0.4"), "{missing}");
}

#[test]
fn every_key_of_a_file_is_accounted_for() {
    let text = "model: vit_tiny_patch16_224\naa: rand-m9\npin_mem: true\nlr: 0.1\nlr_base: 3\nmixup: 0";
    let mapped = read(text, &[]).mapped;
    let row = |key: &str| mapped.iter().find(|row| row.key == key).expect(key);
    assert!(
        mapped
            .iter()
            .filter(|row| row.given)
            .map(|row| row.key.as_str())
            .eq(["model", "aa", "pin_mem", "lr", "lr_base", "mixup"])
    );
    assert_eq!(row("lr").becomes, ["train.lr = 0.1"]);
    assert!(row("model").becomes.contains(&"model.name = \"vit_tiny_patch16_224\"".to_owned()));
    assert!(row("pin_mem").becomes[0].starts_with("nothing: "));
    assert_eq!(row("lr_base").becomes, ["nothing: lr is given"]);
    let default = row("epochs");
    assert_eq!(
        (default.given, default.value.as_str(), default.becomes.concat().as_str()),
        (false, "300", "train.epochs = 300")
    );
}
