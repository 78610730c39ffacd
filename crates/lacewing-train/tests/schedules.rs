//! Runs whose structures change: what is written is what is executed, and equals what was trained.

use lacewing_core::{Axis, Form, PatternKind, restore};
use lacewing_engine::Device;
use lacewing_train::checkpoint::file::TensorFile;
use lacewing_train::checkpoint::{MODEL_FILE, Saved, SavedModel};
use lacewing_train::evaluate::{accuracy, rebuild};
use lacewing_train::recipe::{ComputeType, Override, Recipe, parse};
use lacewing_train::run::{Event, Start, loaders, open_data, train};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const RECIPE: &str = "
name: masked
seed: 5
data: {name: digits, batch_size: 100}
model: {name: vit_digits, dim: 32, depth: 1, heads: 2, mlp_ratio: 2}
train: {epochs: 3, warmup_steps: 2, ema: {decay: 0.8}, log_every: 5}
";

/// Two blocks on a map of 8 × 8, the second shifted, and one on a map of 4 × 4.
const SWIN: &str = "
name: swin
seed: 5
data: {name: digits, batch_size: 100}
model: {name: swinv2_tiny_window8_256, image_size: 8, channels: 1, patch_size: 1, dim: 16, depths: [2, 1], heads: [2, 2],
  window_size: 4, mlp_ratio: 2}
train: {epochs: 1, warmup_steps: 2, log_every: 5}
";

fn recipe(out: &Path, changes: &[(&str, &str)]) -> Recipe {
    recipe_with(RECIPE, out, changes)
}

fn recipe_with(text: &str, out: &Path, changes: &[(&str, &str)]) -> Recipe {
    let mut overrides = vec![Override::new("out", out.display().to_string())];
    overrides
        .extend(changes.iter().map(|(path, value)| format!("{path}={value}").parse().expect("an override")));
    parse("masked", text, &overrides).expect("a valid recipe")
}

/// The accuracy that the weights in `out` have on the test split.
fn accuracy_of_file(recipe: &Recipe, out: &Path) -> f64 {
    let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
    let built = rebuild(&saved, &Device::Cpu, ComputeType::F32).expect("it fits this program");
    assert!(built.evolving.is_empty(), "what is executed does not change");
    let (_, test) = loaders(recipe, &open_data(recipe).expect("embedded")).expect("a loader");
    accuracy(&*built.model, &built.params, &test).expect("a pass").top1
}

#[test]
fn what_is_written_is_packed_and_classifies_as_what_was_trained() {
    for (schedule, steps, structures) in [
        // At the end the target, whatever came before.
        ("sr_ste", None, ["nm 1:8", "nm 2:4"]),
        ("{name: mask_decay, decay: linear, until: 1}", None, ["nm 1:8", "nm 2:4"]),
        ("{name: structure_decay, stages: fine}", None, ["nm 1:8", "nm 2:4"]),
        // On the way the stage's pattern, in groups that a row need not hold a whole number of; dense while dropped weights
        // still count, or all do.
        ("{name: structure_decay, stages: fine}", Some("2"), ["nm 8:64", "nm 16:32"]),
        ("{name: structure_decay, stages: sparsify}", Some("2"), ["nm 7:8", "nm 3:4"]),
        ("mask_decay", Some("5"), ["dense", "dense"]),
        ("{name: sr_ste, dense: 0.5}", Some("5"), ["dense", "dense"]),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let fc1 = format!("{{structure: nm, n: 1, m: 8, schedule: {schedule}, kernel: scatter_dense}}");
        let fc2 = format!("{{structure: nm, n: 2, m: 4, axis: col, schedule: {schedule}}}");
        let mut changes = vec![("model.fc1", fc1.as_str()), ("model.fc2", &fc2)];
        changes.extend(steps.map(|steps| ("train.max_steps", steps)));
        let recipe = recipe(&out, &changes);
        let finished =
            train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{schedule}");

        let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        // A kernel asked for by name runs the packed layer.
        let built = rebuild(&saved, &Device::Cpu, ComputeType::F32).expect("it fits this program");
        let kernels = built.summary.layers.iter().filter(|layer| layer.name == "blocks.0.mlp.fc1");
        let wanted = if structures[0] == "dense" { "dense" } else { "scatter_dense" };
        assert!(kernels.map(|layer| layer.kernel.as_str()).eq([wanted]), "{schedule}");
        let buffers = saved.buffers().expect("indices");
        for ((layer, n_in, n_out), wanted) in
            [("blocks.0.mlp.fc1", 32, 64), ("blocks.0.mlp.fc2", 64, 32)].into_iter().zip(structures)
        {
            let config = &saved.card.structures[layer];
            let name = match config["structure"].as_str() {
                Some("nm") => format!("nm {}:{}", config["n"], config["m"]),
                other => other.expect("a name").to_owned(),
            };
            assert_eq!(name, wanted, "{layer} under {schedule}");
            let own: Vec<_> = buffers
                .iter()
                .filter_map(|buffer| Some((buffer.name.strip_prefix(layer)?.strip_prefix('.')?, buffer)))
                .map(|(name, buffer)| lacewing_core::IndexBuffer { name: name.to_owned(), ..buffer.clone() })
                .collect();
            let structure = restore(config, n_in, n_out, &own).expect("what was written");
            let Form::Pattern(pattern) = structure.form() else { continue };
            let PatternKind::Nm { n, m, axis } = pattern.kind else { panic!("{layer} is not N:M") };
            // Every group has exactly n; one that reaches beyond the weight has at most n inside.
            let lines = if axis == Axis::Row { n_out } else { n_in };
            let groups = if axis == Axis::Row { pattern.n_in_ext } else { pattern.n_out_ext } / m;
            let mut counts = vec![0; lines * groups];
            for &(row, col) in &pattern.positions {
                let (line, along) = if axis == Axis::Row { (row, col) } else { (col, row) };
                counts[line as usize * groups + along as usize / m] += 1;
            }
            assert!(counts.iter().all(|&count| count == n), "{layer} under {schedule}");
        }
    }
}

/// Each of q, k and v follows its own schedule, and so does a fused layer, whose attention is within windows.
#[test]
fn masks_in_a_swin_transformer_follow_their_schedules() {
    let nm = |n: usize, m: usize, schedule: &str| {
        format!("{{structure: nm, n: {n}, m: {m}, schedule: {schedule}}}")
    };
    let rule = |letter: &str, structure: &str| {
        structure.replacen('{', &format!("{{match: \"*.attn.{letter}\", "), 1)
    };
    let rules = [
        rule("q", &nm(1, 8, "{name: mask_decay, decay: linear, dense: \"3 steps\", until: 1}")),
        rule("k", &nm(2, 4, "sr_ste")),
        rule("v", &nm(1, 4, "{name: structure_decay, stages: sparsify}")),
    ];
    for (split, changes, wanted) in [
        (
            true,
            vec![("model.rules", format!("[{}]", rules.join(", ")))],
            vec![("q", "nm 1:8"), ("k", "nm 2:4"), ("v", "nm 1:4")],
        ),
        (
            false,
            vec![("model.qkv", nm(2, 4, "sr_ste")), ("model.mlp", nm(1, 4, "sr_ste"))],
            vec![("qkv", "nm 2:4")],
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let split = split.to_string();
        let mut all = vec![("model.split_qkv", split.as_str())];
        all.extend(changes.iter().map(|(path, value)| (*path, value.as_str())));
        let recipe = recipe_with(SWIN, &out, &all);
        let finished =
            train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy);
        let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        for block in ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"] {
            for (letter, wanted) in &wanted {
                let config = &saved.card.structures[&format!("{block}.attn.{letter}")];
                assert_eq!(format!("nm {}:{}", config["n"], config["m"]), *wanted, "{block} {letter}");
            }
            let mlp = saved.card.structures.get(&format!("{block}.mlp.fc1"));
            assert_eq!(mlp.is_some_and(|mlp| mlp["structure"] == "nm"), split == "false", "{block}");
        }
    }
}

#[test]
fn moved_patterns_keep_their_size_and_are_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (at, (structure, nnz)) in [
        ("{structure: unstructured, density: 0.1, schedule: {name: rigl, every: 2 steps, end: 1}}", 205),
        ("{structure: unstructured, density: 0.1}", 205),
        ("{structure: block_sparse, block: 8, density: 0.25, schedule: {name: block_moves, every: 3 steps, end: 1}}", 8),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(at.to_string());
        let recipe = recipe(&out, &[("model.fc1", structure)]);
        let finished = train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{structure}");
        let saved = Saved::read(&out.join("checkpoint")).expect("whole").expect("there");
        let buffers = saved.buffers().expect("indices");
        let cols = buffers.iter().find(|buffer| buffer.name == "blocks.0.mlp.fc1.cols").expect("the pattern");
        assert_eq!(cols.data.len(), nnz, "{structure}");
        // Updates by gradients take the place of the optimizer's steps: those of step 0, 2, 4, …
        let replaced = if at == 0 { saved.progress.step.div_ceil(2) } else { 0 };
        assert_eq!(saved.progress.optimizer_steps, saved.progress.step - replaced, "{structure}");
    }
    let places = |at: &str| {
        let saved = SavedModel::read(&folder.path().join(at).join(MODEL_FILE)).expect("written by the run");
        let buffers = saved.buffers().expect("indices");
        buffers.into_iter().find(|buffer| buffer.name == "blocks.0.mlp.fc1.cols").expect("the pattern").data
    };
    assert_ne!(places("0"), places("1"), "the same start, but one of them moved");
}

/// The two layers of the model's MLP.
const LAYERS: [&str; 2] = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"];

/// Trains with these as `fc1` and `fc2`; what is written, which classifies as the run did, and how many places each layer has
/// there, if it has a pattern.
fn trained(fc: [&str; 2], steps: Option<&str>) -> (SavedModel, [Option<usize>; 2]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    let mut changes = vec![("model.fc1", fc[0]), ("model.fc2", fc[1])];
    changes.extend(steps.map(|steps| ("train.max_steps", steps)));
    let recipe = recipe(&out, &changes);
    let finished = train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
    assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{fc:?}");
    let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
    let buffers = saved.buffers().expect("indices");
    let kept = LAYERS.map(|layer| {
        let name = format!("{layer}.cols");
        buffers.iter().find(|buffer| buffer.name == name).map(|buffer| buffer.data.len())
    });
    (saved, kept)
}

#[test]
fn masks_over_whole_layers_are_packed() {
    for (schedule, steps, wanted) in [
        ("sr_ste", None, [Some(205), Some(512)]),
        ("{name: mask_decay, decay: linear, until: 1}", None, [Some(205), Some(512)]),
        // In its first stages a layer keeps all but one, and half.
        ("structure_decay", Some("1"), [Some(2047), Some(2047)]),
        ("mask_decay", Some("5"), [None, None]),
    ] {
        let [fc1, fc2] = ["density: 0.1", "sparsity: 0.75"]
            .map(|share| format!("{{structure: unstructured, {share}, schedule: {schedule}}}"));
        let (saved, kept) = trained([&fc1, &fc2], steps);
        for ((layer, wanted), kept) in LAYERS.into_iter().zip(wanted).zip(kept) {
            assert_eq!(kept, wanted, "{layer} under {schedule}");
            let structure = if wanted.is_some() { "unstructured" } else { "dense" };
            assert_eq!(saved.card.structures[layer]["structure"], structure, "{layer} under {schedule}");
        }
    }
}

#[test]
fn places_move_between_layers_and_are_packed() {
    for (structure, schedule, total) in [
        ("unstructured, density: 0.1", "{name: snfs, begin: 2 steps, every: 3 steps}", 410),
        (
            "unstructured, density: 0.1",
            "{name: rigl, every: 4 steps, end: 1, drop: global, redistribution: nonzeros}",
            410,
        ),
        (
            "block_sparse, block: 8, density: 0.25",
            "{name: set, every: 2 steps, end: 1, drop: global, redistribution: nonzeros}",
            16,
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let mlp = format!("{{structure: {structure}, schedule: {schedule}}}");
        let recipe = recipe(&out, &[("model.mlp", &mlp)]);
        let finished =
            train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{schedule}");
        let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        let buffers = saved.buffers().expect("indices");
        let kept = ["fc1", "fc2"].map(|layer| {
            let name = format!("blocks.0.mlp.{layer}.cols");
            buffers.iter().find(|buffer| buffer.name == name).expect("the pattern").data.len()
        });
        assert_eq!(kept.iter().sum::<usize>(), total, "{schedule}: {kept:?}");
        assert_ne!(kept[0], kept[1], "{schedule}: both began with {}", total / 2);
        // Neither averages of gradients nor masks are in the file of what is executed.
        let names = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        let built = rebuild(&names, &Device::Cpu, ComputeType::F32).expect("it fits this program");
        assert!(built.params.infos().iter().all(|info| info.trained), "{schedule}");
    }
}

#[test]
fn learned_masks_thin_out_and_are_packed() {
    for (schedule, steps, nnz) in [
        ("{name: movement, every: 4 steps}", None, [8, 205]),
        ("magnitude", None, [8, 205]),
        // Before pruning begins all places count.
        ("{name: movement, dense: 0.9, fine_tune: 0}", Some("20"), [32, 2048]),
    ] {
        let fc1 = format!("{{structure: block_sparse, block: 8, density: 0.25, schedule: {schedule}}}");
        let fc2 = format!("{{structure: unstructured, density: 0.1, schedule: {schedule}}}");
        let (_, kept) = trained([&fc1, &fc2], steps);
        assert_eq!(kept, nnz.map(Some), "{schedule}");
    }
}

#[test]
fn thresholds_keep_what_is_above_them_and_the_file_says_how_much() {
    for (schedule, sigmoid, threshold) in [
        ("{name: soft_movement, every: 4 steps, lr: 0.3, lambda: 0.3}", true, 0.1),
        ("{name: soft_movement, method: threshold, every: 4 steps, lr: 0.1, penalty: none}", false, 0.1),
        // Nothing is above it: the floor counts.
        ("{name: soft_movement, final: 1, min_share: 0.05}", true, 1.0),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let fc1 = format!("{{structure: block_sparse, block: 8, schedule: {schedule}}}");
        let fc2 = format!("{{structure: unstructured, schedule: {schedule}}}");
        let recipe = recipe(&out, &[("model.fc1", fc1.as_str()), ("model.fc2", &fc2)]);
        let finished =
            train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{schedule}");
        let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        let buffers = saved.buffers().expect("indices");
        let mut parameters = 0;
        let state = TensorFile::read(&out.join("checkpoint/state.safetensors")).expect("a checkpoint");
        for (layer, grid, per_place) in [("fc1", [8, 4], 64), ("fc2", [32, 64], 1)] {
            let layer = format!("blocks.0.mlp.{layer}");
            let places = grid[0] * grid[1];
            let scores = state.f32(&format!("param/{layer}.scores"), &grid).expect("scores");
            let above = scores.iter().filter(|&&score| {
                let score = f64::from(score);
                (if sigmoid { 1.0 / (1.0 + (-score).exp()) } else { score }) > threshold
            });
            let floor = if schedule.contains("min_share") { places / 20 + 1 } else { places / 200 + 1 };
            let kept = above.count().max(floor);
            assert!(kept < places, "{layer} under {schedule}: {kept} of {places}");
            let cols = buffers.iter().find(|buffer| buffer.name == format!("{layer}.cols"));
            assert_eq!(cols.expect("the pattern").data.len(), kept, "{layer} under {schedule}");
            assert_eq!(saved.card.structures[&layer]["density"], kept as f64 / places as f64);
            parameters += kept * per_place;
        }
        // The summary has what came out: the other parameters are those of the dense twin.
        let dense = self::recipe(&folder.path().join("dense"), &[("train.max_steps", "1")]);
        let dense = train(dense, Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(finished.rows[0].parameters, dense.rows[0].parameters - 2 * 2048 + parameters);
    }
}

#[test]
fn rows_and_columns_are_dropped_whole_and_the_file_is_what_was_trained() {
    for (schedule, whole_rows, whole_columns) in [
        ("{name: movement, scores: rows, every: 4 steps, mask_bias: true}", true, false),
        ("{name: movement, scores: columns, every: 4 steps}", false, true),
        ("{name: magnitude, scores: rows, mask_bias: true}", true, false),
        ("{name: soft_movement, scores: rows, lr: 0.3, every: 4 steps, mask_bias: true}", true, false),
        ("{name: movement, scores: rows_and_columns, lr: 0.3, every: 4 steps}", false, false),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let fc1 = format!("{{structure: block_sparse, block: 8, density: 0.25, schedule: {schedule}}}");
        let fc2 = format!("{{structure: unstructured, density: 0.25, schedule: {schedule}}}");
        let recipe = recipe(&out, &[("model.fc1", fc1.as_str()), ("model.fc2", &fc2)]);
        let finished =
            train(recipe.clone(), Start::New, &AtomicBool::new(false), &mut |_| {}).expect("a run");
        assert_eq!(accuracy_of_file(&recipe, &out), finished.rows[0].accuracy, "{schedule}");
        let saved = SavedModel::read(&out.join(MODEL_FILE)).expect("written by the run");
        let built = rebuild(&saved, &Device::Cpu, ComputeType::F32).expect("it fits this program");
        let buffers = saved.buffers().expect("indices");
        for (layer, n_in, n_out) in [("blocks.0.mlp.fc1", 32, 64), ("blocks.0.mlp.fc2", 64, 32)] {
            let own: Vec<_> = buffers
                .iter()
                .filter_map(|buffer| Some((buffer.name.strip_prefix(layer)?.strip_prefix('.')?, buffer)))
                .map(|(name, buffer)| lacewing_core::IndexBuffer { name: name.to_owned(), ..buffer.clone() })
                .collect();
            let structure =
                restore(&saved.card.structures[layer], n_in, n_out, &own).expect("what was written");
            let Form::Pattern(pattern) = structure.form() else { panic!("{layer} is a pattern") };
            let (rows, cols) = pattern.grid();
            let mut counts = (vec![0; rows], vec![0; cols]);
            for &(row, col) in &pattern.positions {
                counts.0[row as usize] += 1;
                counts.1[col as usize] += 1;
            }
            assert!(!whole_rows || counts.0.iter().all(|&n| n == 0 || n == cols), "{schedule}: {counts:?}");
            assert!(
                !whole_columns || counts.1.iter().all(|&n| n == 0 || n == rows),
                "{schedule}: {counts:?}"
            );
            if !schedule.contains("soft") {
                assert_eq!(pattern.nnz(), rows * cols / 4, "{layer} under {schedule}");
            }
            if schedule.contains("mask_bias") {
                let bias = built.params.find(&format!("{layer}.bias")).expect("a bias");
                let bias = built.params.master(bias).to_f32().expect("on the host");
                let per_row = n_out / rows;
                for (row, &bias) in bias.iter().enumerate() {
                    assert_eq!(bias == 0.0, counts.0[row / per_row] == 0, "{layer} under {schedule}");
                }
            }
        }
    }
}

#[test]
fn a_schedule_that_does_not_fit_the_run_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    // The second model's, whose turn would come after the first is trained.
    let late = "{late: {fc1: {structure: nm, schedule: {name: sr_ste, dense: 0.7, fine_tune: 0.7}}}}";
    let recipe = recipe(&out, &[("compare", late)]);
    let mut events = Vec::new();
    let mut listen = |event: &Event| events.push(format!("{event:?}"));
    let error = train(recipe, Start::New, &AtomicBool::new(false), &mut listen).unwrap_err().to_string();
    assert!(error.contains("blocks.0.mlp.fc1") && error.contains("dense + fine_tune"), "{error}");
    // In groups of 64 the positions of a kernel would mix: not at the first checkpoint of that stage, but now.
    let stages = "{structure: nm, n: 1, m: 8, channels: 16, schedule: {name: structure_decay, stages: fine}}";
    let folded = self::recipe(&out, &[("model.fc1", stages)]);
    let error = train(folded, Start::New, &AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("channels = 16 is not a multiple of 64"), "{error}");
    assert!(events.is_empty() && !out.join("checkpoint").exists(), "{events:?}");
}
