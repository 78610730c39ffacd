//! A run that was stopped and continued is the run that was not, bit by bit; and nothing a bad file or a bad loss does
//! goes unnoticed. `LACEWING_TEST_CUDA=1` adds runs on the GPU.

use lacewing_train::TrainError;
use lacewing_train::checkpoint::{CheckpointError, Saved, SavedModel};
use lacewing_train::recipe::{Override, Recipe, load, parse};
use lacewing_train::run::{Event, Finished, Outcome, Start, config_file, train};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Everything random at once: dropout, dropped paths, mixed pictures, a random pattern; moments, an average and
/// accumulation across the ends of epochs.
const RECIPE: &str = "
name: tiny
seed: 3
data: {name: digits, batch_size: 100}
augment: {random_crop: {padding: 1}, mixup: {prob: 0.5}}
model:
  name: vit_digits
  dim: 32
  depth: 2
  heads: 2
  mlp_ratio: 2
  dropout: 0.1
  drop_path: 0.2
  fc1: {structure: unstructured, density: 0.5}
  fc2: {structure: monarch, blocks: 4}
train:
  epochs: 2
  accumulate: 3
  warmup_steps: 2
  label_smoothing: 0.1
  clip_norm: 1.0
  ema: {decay: 0.9}
  log_every: 2
";

/// Batch norms, whose running statistics move in every part of a step and in blocks that are run again.
const CONVOLUTIONS: &str = "
name: tiny
seed: 3
data: {name: digits, batch_size: 100}
augment: {mixup: {prob: 0.5}}
model:
  name: resnet18_cifar
  width: 8
  layers: [1, 1]
  dropout: 0.1
  drop_path: 0.2
  recompute: true
  conv: {structure: nm, n: 2, m: 4}
twin: false
train:
  epochs: 2
  accumulate: 3
  optimizer: sgd
  nesterov: true
  lr: 0.1
  warmup_steps: 2
  ema: {decay: 0.9}
  log_every: 2
";

fn recipe(out: &Path, changes: &[(&str, &str)]) -> Recipe {
    recipe_of(RECIPE, out, changes)
}

fn recipe_of(text: &str, out: &Path, changes: &[(&str, &str)]) -> Recipe {
    let mut overrides = vec![Override::new("out", out.display().to_string())];
    overrides
        .extend(changes.iter().map(|(path, value)| format!("{path}={value}").parse().expect("an override")));
    parse("tiny", text, &overrides).expect("a valid recipe")
}

fn run(recipe: Recipe, start: Start) -> Result<Finished, TrainError> {
    train(recipe, start, &AtomicBool::new(false), &mut |_| {})
}

/// Continues the run in `out` from what lies there.
fn resume(out: &Path) -> Result<Finished, TrainError> {
    let changes = [Override::new("train.max_steps", serde_json::Value::Null)];
    run(load(&config_file(out), &changes).expect("written by the run"), Start::Resume)
}

/// The bytes that must be equal.
fn state(out: &Path) -> [Vec<u8>; 2] {
    ["model.safetensors", "checkpoint/state.safetensors"]
        .map(|name| fs::read(out.join(name)).expect("a file"))
}

/// Names of the arrays of two checkpoints that differ.
fn changed(a: &Path, b: &Path) -> Vec<String> {
    let [a, b] = [a, b].map(|out| fs::read(out.join("checkpoint/state.safetensors")).expect("a file"));
    let [a, b] = [&a, &b].map(|bytes| safetensors::SafeTensors::deserialize(bytes).expect("a whole file"));
    let same = |name: &str| {
        b.tensor(name).is_ok_and(|other| Some(other.data()) == a.tensor(name).ok().map(|t| t.data()))
    };
    a.names().into_iter().filter(|name| !same(name)).map(str::to_owned).collect()
}

#[test]
fn a_stopped_and_continued_run_equals_an_unbroken_one() {
    continued_runs_equal_unbroken_ones(RECIPE, &[]);
    continued_runs_equal_unbroken_ones(CONVOLUTIONS, &[]);
}

#[test]
fn so_does_one_with_the_data_loss_and_rates_of_timms_recipes() {
    continued_runs_equal_unbroken_ones(
        RECIPE,
        &[
            ("augment.rand_augment", "rand-m9-n2-p1-mstd0.5-inc1-cutout1"),
            ("augment.random_erasing", "{mode: pixel, count: 2}"),
            ("train.epochs", "1"),
            ("train.cooldown_epochs", "1"),
            ("train.loss", "binary_cross_entropy"),
            ("train.target_threshold", "0.3"),
            ("train.schedule_unit", "epoch"),
            ("train.warmup_lr", "1e-4"),
            ("train.warmup_prefix", "false"),
            ("train.ema.warmup", "false"),
        ],
    );
}

#[test]
fn a_continued_run_with_k_winners_equals_an_unbroken_one() {
    // The boost falls in the second epoch; the duty cycles are those of the whole run.
    let winners = ("model.activation", "{k_winners: {percent_on: 0.2, boost_strength_factor: 0.5}}");
    continued_runs_equal_unbroken_ones(RECIPE, &[winners]);
    continued_runs_equal_unbroken_ones(RECIPE, &[winners, ("model.recompute", "true")]);
}

#[test]
fn a_stopped_and_continued_run_on_a_gpu_equals_an_unbroken_one() {
    if std::env::var_os("LACEWING_TEST_CUDA").is_none_or(|value| value != "1") {
        return eprintln!("skipped: set LACEWING_TEST_CUDA=1 on a machine with a GPU");
    }
    let on_gpu = ("device", "cuda:0");
    continued_runs_equal_unbroken_ones(RECIPE, &[on_gpu]);
    continued_runs_equal_unbroken_ones(CONVOLUTIONS, &[on_gpu]);
    continued_runs_equal_unbroken_ones(
        RECIPE,
        &[on_gpu, ("model.activation", "{k_winners: {percent_on: 0.2}}")],
    );
    // So wide that blocks are multiplied by the kernels for many rows.
    let wide = [
        on_gpu,
        ("model.dim", "384"),
        ("model.heads", "6"),
        ("model.mlp_ratio", "4"),
        ("model.fc1", "{structure: block_sparse, block: 32, density: 0.125}"),
        ("model.fc2", "{structure: block_sparse, block: 64, density: 0.25}"),
    ];
    continued_runs_equal_unbroken_ones(RECIPE, &wide);
}

/// Every kind of schedule: masks that fade in stages, with the averages' mask; moves by gradients, by their averages and at
/// random, of weights and of blocks, within layers and between them. Steps at which the run is cut lie between updates and inside stages.
const SCHEDULES: &[&[(&str, &str)]] = &[
    &[
        (
            "model.fc1",
            "{structure: block_sparse, block: 8, density: 0.25, schedule: \
             {name: movement, scores: rows_and_columns, lr: 0.3, every: 2 steps, mask_bias: true}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, schedule: {name: soft_movement, scores: rows, lr: 0.3, every: 2 steps, mask_bias: true}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: block_sparse, block: 8, schedule: {name: soft_movement, every: 2 steps, lr: 0.3, lambda: 9}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, schedule: \
             {name: soft_movement, method: threshold, penalty: l0, lr: 0.1, dense: 0, every: 3 steps}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: block_sparse, block: 8, density: 0.25, schedule: {name: movement, every: 2 steps}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, density: 0.1, schedule: {name: magnitude, dense: 0, every: 3 steps}}",
        ),
    ],
    &[(
        "model.mlp",
        "{structure: unstructured, density: 0.2, schedule: {name: snfs, begin: 1 steps, every: 2 steps}}",
    )],
    &[
        (
            "model.fc1",
            "{structure: block_sparse, block: 8, density: 0.4, schedule: \
             {name: rigl, every: 3 steps, end: 1, drop: global, redistribution: nonzeros, moments: gradient}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, density: 0.2, schedule: \
             {name: set, every: 2 steps, end: 1, drop: global, redistribution: nonzeros, moments: keep, value: normal}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: unstructured, density: 0.2, schedule: {name: mask_decay, decay: linear, fine_tune: 0.2}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, sparsity: 0.9, schedule: {name: structure_decay, dense: 0.1, gradient: masked}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: nm, n: 1, m: 8, schedule: {name: mask_decay, decay: linear, fine_tune: 0.2}}",
        ),
        ("model.fc2", "{structure: nm, n: 2, m: 4, axis: col, schedule: {name: sr_ste, decoupled: true}}"),
    ],
    &[
        (
            "model.fc1",
            "{structure: nm, n: 1, m: 4, schedule: {name: structure_decay, dense: 0.1, gradient: masked}}",
        ),
        (
            "model.fc2",
            "{structure: nm, n: 1, m: 4, schedule: {name: structure_decay, stages: fine, decay: exp}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: unstructured, density: 0.2, schedule: {name: rigl, every: 3 steps, end: 1}}",
        ),
        (
            "model.fc2",
            "{structure: unstructured, density: 0.2, schedule: {name: set, every: 2 steps, end: 1, moments: keep}}",
        ),
    ],
    &[
        (
            "model.fc1",
            "{structure: block_sparse, block: 8, density: 0.4, schedule: \
             {name: rigl, every: 2 steps, end: 1, moments: gradient, value: normal}}",
        ),
        (
            "model.fc2",
            "{structure: block_sparse, block: 8, density: 0.4, schedule: {name: block_moves, every: 1 steps, end: 1}}",
        ),
    ],
];

#[test]
fn runs_with_schedules_continue_to_the_bit() {
    SCHEDULES.iter().for_each(|changes| continued_runs_equal_unbroken_ones(RECIPE, changes));
    for conv in [
        "{structure: nm, n: 2, m: 4, schedule: sr_ste}",
        "{structure: unstructured, density: 0.2, schedule: {name: rigl, every: 2 steps, end: 1}}",
        "{structure: unstructured, density: 0.2, schedule: {name: snfs, begin: 1 steps, every: 2 steps}}",
        "{structure: unstructured, density: 0.2, schedule: sr_ste}",
    ] {
        continued_runs_equal_unbroken_ones(CONVOLUTIONS, &[("model.conv", conv)]);
    }
}

#[test]
fn runs_with_schedules_on_a_gpu_continue_to_the_bit() {
    if std::env::var_os("LACEWING_TEST_CUDA").is_none_or(|value| value != "1") {
        return eprintln!("skipped: set LACEWING_TEST_CUDA=1 on a machine with a GPU");
    }
    for changes in SCHEDULES {
        continued_runs_equal_unbroken_ones(RECIPE, &[changes, &[("device", "cuda:0")][..]].concat());
    }
}

fn continued_runs_equal_unbroken_ones(text: &str, changes: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let recipe = |out: &Path, more: &[(&str, &str)]| recipe_of(text, out, &[changes, more].concat());
    let whole = run(recipe(&at("whole"), &[]), Start::New).expect("a run");
    // 14 batches an epoch, 3 a step: 9 steps in all.
    assert_eq!(Saved::read(&at("whole/checkpoint")).expect("whole").expect("there").progress.step, 9);

    // Cut in the middle of an epoch by max_steps, twice.
    run(recipe(&at("cut"), &[("train.max_steps", "2")]), Start::New).expect("a run");
    assert_ne!(state(&at("cut")), state(&at("whole")));
    let further = [Override::new("train.max_steps", 6)];
    run(load(&config_file(&at("cut")), &further).expect("written by the run"), Start::Resume).expect("a run");
    let continued = resume(&at("cut")).expect("a run");
    assert!(state(&at("cut")) == state(&at("whole")), "{changes:?}: {:?}", changed(&at("cut"), &at("whole")));
    assert_eq!(continued.rows[0].accuracy, whole.rows[0].accuracy);

    // Stopped by request while step 7 runs, which has no log line of its own.
    let stop = AtomicBool::new(false);
    let mut listen = |event: &Event| {
        if matches!(event, Event::Step { step: 6, .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let stopped = train(recipe(&at("stopped"), &[]), Start::New, &stop, &mut listen).expect("a run");
    assert_eq!(stopped.outcome, Outcome::Interrupted { step: 7 });
    assert!(stopped.rows.is_empty());
    resume(&at("stopped")).expect("a run");
    assert!(state(&at("stopped")) == state(&at("whole")));

    // The log has each step once.
    let metrics = fs::read_to_string(at("stopped/metrics.jsonl")).expect("a file");
    let steps = metrics.lines().filter(|line| line.contains("\"event\":\"step\"")).count();
    let unbroken = fs::read_to_string(at("whole/metrics.jsonl")).expect("a file");
    let unbroken = unbroken.lines().filter(|line| line.contains("\"event\":\"step\"")).count();
    assert_eq!(steps, unbroken + 1, "the line of the step it was stopped at is the only addition\n{metrics}");
}

#[test]
fn finished_models_are_not_trained_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    let first = run(recipe(&out, &[("train.max_steps", "2"), ("twin", "true")]), Start::New).expect("a run");
    assert_eq!(first.rows.len(), 2);
    let mut started = Vec::new();
    let mut listen = |event: &Event| {
        if let Event::Start { model, from_step, .. } = event {
            started.push((model.clone(), *from_step));
        }
    };
    let again = load(&config_file(&out), &[]).expect("written by the run");
    let second = train(again, Start::Resume, &AtomicBool::new(false), &mut listen).expect("a run");
    let names = |run: &Finished| run.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&second), names(&first));
    assert_eq!(started, []);
    // A crash after the last step and before the table: measured again, not trained.
    fs::remove_file(out.join("summary.json")).expect("a file");
    let again = load(&config_file(&out), &[]).expect("written by the run");
    let third = train(again, Start::Resume, &AtomicBool::new(false), &mut |_| {}).expect("a run");
    assert_eq!(third.rows[1].accuracy, first.rows[1].accuracy);
    assert!(out.join("dense/model.safetensors").exists());
}

#[test]
fn damaged_and_foreign_checkpoints_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    run(recipe(&out, &[("train.max_steps", "1")]), Start::New).expect("a run");
    let again = |changes: &[(&str, &str)]| {
        let overrides =
            changes.iter().map(|(path, value)| format!("{path}={value}").parse().expect("an override"));
        // One step beyond what is done, so that the checkpoint is used.
        let overrides: Vec<Override> = overrides.chain([Override::new("train.max_steps", 2)]).collect();
        run(load(&config_file(&out), &overrides).expect("a valid recipe"), Start::Resume)
    };
    for (changes, parts) in [
        (&[("seed", "4")][..], &["seed", "3", "4"][..]),
        (&[("data.batch_size", "50")], &["data.batch_size", "100", "50"]),
        (&[("model.dim", "64")], &["model.dim", "32", "64"]),
        (&[("model.fc2.blocks", "2")], &["model.fc2.blocks", "4", "2"]),
        (&[("train.optimizer", "sgd")], &["train.optimizer", "adamw", "sgd"]),
        (&[("train.ema.decay", "0")], &["train.ema", "true", "false"]),
    ] {
        let error = again(changes).map(|_| ()).expect_err("another run").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{changes:?}: {error}");
    }

    let arrays = out.join("checkpoint/state.safetensors");
    let whole = fs::read(&arrays).expect("a file");
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&arrays, &whole[..len]).expect("a writable folder");
        let error = again(&[]).map(|_| ()).expect_err("a truncated file");
        assert!(
            matches!(&error, TrainError::Checkpoint(CheckpointError::Corrupt { bytes, .. }) if *bytes == len),
            "{error}"
        );
    }
    // The name of a tensor changed in the header: one is missing.
    let renamed = String::from_utf8_lossy(&whole).find("param/head.bias").expect("in the header");
    let mut bytes = whole.clone();
    bytes[renamed + "param/".len()] = b'x';
    fs::write(&arrays, &bytes).expect("a writable folder");
    let error = again(&[]).map(|_| ()).expect_err("a tensor is missing").to_string();
    assert!(error.contains("`param/head.bias` is missing"), "{error}");
    fs::write(&arrays, &whole).expect("a writable folder");

    let numbers = out.join("checkpoint/state.json");
    let text = fs::read_to_string(&numbers).expect("a file");
    for (from, to, part) in [
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("\"step\": 1", "\"step\": -1", "state.json"),
        ("\"seed\"", "\"sede\"", "sede"),
    ] {
        fs::write(&numbers, text.replacen(from, to, 1)).expect("a writable folder");
        let error = again(&[]).map(|_| ()).expect_err("not a state").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn weights_say_what_they_are_and_are_checked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    let finished = run(recipe(&out, &[("train.max_steps", "2")]), Start::New).expect("a run");
    let saved = SavedModel::read(&out).expect("weights");
    assert_eq!((saved.card.step, saved.card.input.n_classes), (2, 10));
    assert_eq!(saved.card.structures["blocks.1.mlp.fc1"]["structure"], "unstructured");
    assert!(
        saved.buffers().expect("integers").iter().any(|buffer| buffer.name.starts_with("blocks.1.mlp.fc1."))
    );

    use lacewing_engine::Device;
    use lacewing_train::evaluate::{accuracy, rebuild};
    use lacewing_train::recipe::ComputeType;
    use lacewing_train::run::{loaders, open_data};
    let built = rebuild(&saved, &Device::Cpu, ComputeType::F32).expect("a model");
    let data = open_data(&saved.card.recipe).expect("embedded");
    let (_, test) = loaders(&saved.card.recipe, &data).expect("valid");
    let found = accuracy(&*built.model, &built.params, &test).expect("a pass");
    assert_eq!(found.top1, finished.rows[0].accuracy);

    // An index buffer under a foreign name: its structure cannot be restored.
    let path = out.join("model.safetensors");
    let whole = fs::read(&path).expect("a file");
    let name = &saved.buffers().expect("integers")[0].name;
    let at = String::from_utf8_lossy(&whole).find(name.as_str()).expect("in the header");
    let mut bytes = whole.clone();
    bytes[at] = b'x';
    fs::write(&path, &bytes).expect("a writable folder");
    let foreign = SavedModel::read(&path).expect("a whole file");
    let error = rebuild(&foreign, &Device::Cpu, ComputeType::F32)
        .map(|_| ())
        .expect_err("a foreign name")
        .to_string();
    assert!(error.contains(&name[1..name.rfind('.').expect("dotted")]), "{error}");
    assert!(matches!(SavedModel::read(folder.path()), Err(CheckpointError::None { .. })));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    run(recipe(&out, &[("train.max_steps", "3")]), Start::New).expect("a run");
    let kept = state(&out);
    let changes = [
        Override::new("train.max_steps", serde_json::Value::Null),
        Override::new("train.lr", 1e38),
        Override::new("train.clip_norm", serde_json::Value::Null),
        Override::new("train.warmup_steps", 0),
    ];
    let hot = load(&config_file(&out), &changes).expect("a valid recipe");
    match run(hot, Start::Resume) {
        Err(error @ TrainError::NotFinite { step, kept: Some(3), .. }) => {
            assert!((4..=9).contains(&step), "{error}");
            assert!(error.to_string().contains("checkpoint of step 3 is kept"), "{error}");
        }
        other => panic!("expected the loss to be no number, got {other:?}"),
    }
    assert!(state(&out) == kept);
    let cooler = [Override::new("train.lr", 1e-3), Override::new("train.clip_norm", 1)];
    let cooler = load(&config_file(&out), &cooler).expect("a valid recipe");
    run(cooler, Start::Resume).expect("it goes on from step 3");
}
