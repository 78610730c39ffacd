//! The command as a user runs it: what it prints, what it writes, how it fails, and that no signal loses work.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A model small enough for tests, as arguments.
const TINY: &[&str] = &[
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "model.mlp_ratio=2",
    "data.batch_size=100",
    "train.log_every=1",
];

fn lacewing(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacewing"));
    command.args(args).current_dir(folder);
    command
}

fn output(folder: &Path, args: &[&str]) -> Output {
    lacewing(folder, args).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
fn stdout(folder: &Path, args: &[&str]) -> String {
    let output = output(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Standard error of a run that must fail with `code`.
fn failure(folder: &Path, args: &[&str], code: i32) -> String {
    let output = output(folder, args);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    stderr
}

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train"];
    args.extend(TINY);
    args.extend(more);
    args
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn training_without_a_recipe_writes_everything_and_prints_the_table() {
    let folder = temporary();
    let text = stdout(folder.path(), &train(&["train.max_steps=3"]));
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("model")).collect();
    assert!(table[0].contains("accuracy") && table[0].contains("MACs"), "{text}");
    assert!(table[2].starts_with("monarch") && table[3].starts_with("dense"), "{text}");
    assert!(table[4].starts_with("monarch / dense"), "{text}");
    assert!(text.contains("step 3/3"), "{text}");

    let out = folder.path().join("runs/digits-vit");
    for name in ["config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoint/state.json"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
    let summary = fs::read_to_string(out.join("summary.json")).expect("a file");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    let rows = summary.as_array().expect("a list");
    assert_eq!(rows.len(), 2);
    for row in rows {
        for key in ["accuracy", "train_images_per_s"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} of {row}");
        }
        for key in ["parameters", "bytes", "macs"] {
            assert!(row[key].as_u64().is_some_and(|value| value > 0), "{key} of {row}");
        }
        for batch in ["1", "32"] {
            assert!(row["latency_ms"][batch].as_f64().is_some_and(|ms| ms > 0.0), "{row}");
        }
    }
    assert!(rows[0]["parameters"].as_u64() < rows[1]["parameters"].as_u64());

    // The next run has a folder of its own.
    stdout(folder.path(), &train(&["train.max_steps=1", "twin=false"]));
    assert!(folder.path().join("runs/digits-vit-2/summary.json").is_file());

    let evaluated = stdout(folder.path(), &["eval", "runs/digits-vit", "--json"]);
    let evaluated: serde_json::Value = serde_json::from_str(&evaluated).expect("JSON");
    assert_eq!(evaluated["accuracy"], rows[0]["accuracy"]);
    let evaluated = stdout(folder.path(), &["eval", "runs/digits-vit/dense/model.safetensors"]);
    assert!(evaluated.contains("360 test pictures"), "{evaluated}");
    let info = stdout(folder.path(), &["info", "runs/digits-vit"]);
    assert!(info.contains("blocks.0.mlp.fc1") && info.contains("monarch blocks=4"), "{info}");
}

#[test]
fn a_trained_model_is_converted_evaluated_tuned_and_exported() {
    let folder = temporary();
    let args = train(&["model.mlp=dense", "twin=false", "train.max_steps=3", "--out", "dense"]);
    stdout(folder.path(), &args);
    fn convert<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["convert", "dense", "--layers", "blocks.*.mlp.*"], more].concat()
    }
    let text =
        stdout(folder.path(), &convert(&["--to", "{structure: monarch, blocks: 4}", "--out", "monarch"]));
    assert!(text.contains("blocks.0.mlp.fc1") && text.contains("monarch blocks=4"), "{text}");
    assert!(text.contains("2 layers: "), "{text}");
    let budget =
        ["--budget", "params=0.3", "--to", "low_rank", "nm", "--calibrate", "digits", "--samples", "100"];
    let text = stdout(folder.path(), &convert(&[&budget[..], &["--out", "chosen", "--json"]].concat()));
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let layers = report["layers"].as_array().expect("a list");
    assert!(layers.len() == 2 && layers.iter().all(|layer| layer["output_error"].is_f64()), "{text}");
    assert!(report["logit_error"].as_f64().is_some_and(|error| error > 0.0), "{text}");
    for name in ["model.safetensors", "config.json", "rules.yaml"] {
        assert!(folder.path().join("chosen").join(name).is_file(), "{name}");
    }
    let again =
        stdout(folder.path(), &["convert", "dense", "--rules", "chosen/rules.yaml", "--out", "again"]);
    assert!(again.contains("2 layers: "), "{again}");

    assert!(stdout(folder.path(), &["eval", "monarch"]).contains("360 test pictures"));
    assert!(stdout(folder.path(), &["info", "monarch"]).contains("monarch blocks=4"));
    let tuned = ["train", "--init", "monarch", "train.max_steps=1", "--out", "tuned", "data.batch_size=100"];
    assert!(stdout(folder.path(), &tuned).contains("monarch"));
    stdout(folder.path(), &["convert", "tuned", "--dense", "--out", "exported"]);
    let model = "{name: vit_digits, dim: 32, depth: 1, heads: 2, mlp_ratio: 2}";
    let back = ["convert", "exported", "--model", model, "--to", "nm", "--out", "back"];
    assert!(stdout(folder.path(), &back).contains("nm n=2 m=4"));

    let missing = failure(folder.path(), &convert(&["--to", "monarch", "--out", "dense"]), 1);
    assert!(missing.contains("holds a model already"), "{missing}");
    let typo =
        failure(folder.path(), &["convert", "dense", "--layers", "block.*", "--to", "nm", "--out", "x"], 1);
    assert!(typo.contains("`block.*` matches none"), "{typo}");
    let budget = failure(folder.path(), &convert(&["--budget", "parms=0.5", "--out", "x"]), 1);
    assert!(budget.contains("did you mean `params`"), "{budget}");
    assert!(!folder.path().join("x").exists());
}

#[test]
fn json_is_one_object_a_line() {
    let folder = temporary();
    let text = stdout(
        folder.path(),
        &train(&["train.max_steps=2", "twin=false", "--out", "x", "--seed", "5", "--json"]),
    );
    let names = text.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        event["event"].as_str().expect("a name").to_owned()
    });
    let names: Vec<String> = names.collect();
    assert_eq!(names, ["start", "step", "step", "eval", "checkpoint", "result"]);
    let config = fs::read_to_string(folder.path().join("x/config.yaml")).expect("a file");
    assert!(config.contains("seed: 5") && config.contains("warmup_epochs:"), "{config}");
}

#[test]
fn mistakes_end_with_one_clear_message() {
    let folder = temporary();
    fs::write(folder.path().join("taken"), b"").expect("a writable folder");
    fs::write(folder.path().join("bad.yaml"), b"train: {lr: fast}").expect("a writable folder");
    fs::write(folder.path().join("bad.safetensors"), b"garbage").expect("a writable folder");
    for (args, parts) in [
        (&["train", "digit-vit"][..], &["digit-vit", "did you mean `digits-vit`"][..]),
        (&["train", "no/such.yaml"], &["no/such.yaml"]),
        (&["train", "bad.yaml"], &["`train.lr`", "\"fast\"", "a number"]),
        (&["train", "train.epoch=3"], &["`train.epoch`", "`train.epochs`"]),
        (&["train", "train.epochs=many"], &["`train.epochs`", "\"many\"", "whole number"]),
        (&["train", "model.name=vit_digit"], &["vit_digit", "vit_digits"]),
        (&["train", "model.dpeth=3"], &["dpeth", "depth"]),
        (&["train", "model.mlp.structure=monarhc"], &["monarhc", "monarch"]),
        (&["train", "model.mlp.blocks=3"], &["monarch", "3", "pad"]),
        (&["train", "model.n_classes=7"], &["digits", "10", "7"]),
        (&["train", "model.image_size=16"], &["1x16x16", "1x8x8"]),
        (&["train", "data.name=cifar10"], &["cifar10", "path"]),
        (&["train", "data.name=cifar10", "--data", "no/such"], &["no/such"]),
        (&["train", "--device", "gpu"], &["gpu", "cuda:0"]),
        (&["train", "--out", "taken/inside"], &["taken/inside"]),
        (&["train", "data.batch_size=5000"], &["5000", "1437"]),
        (&["train", "--resume", "nowhere"], &["nowhere"]),
        (&["eval", "nowhere"], &["nowhere"]),
        (&["eval", "bad.safetensors"], &["bad.safetensors", "truncated or corrupt"]),
        (&["info", "vit_bse_patch16_224"], &["vit_base_patch16_224"]),
    ] {
        let error = failure(folder.path(), args, 1);
        assert!(error.starts_with("error: "), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
        assert!(!folder.path().join("runs/digits-vit/checkpoint").exists(), "{args:?} trained");
    }
    failure(folder.path(), &["trian"], 2);
    failure(folder.path(), &["list", "nothing"], 2);
}

#[test]
fn a_run_is_not_overwritten() {
    let folder = temporary();
    stdout(folder.path(), &train(&["train.max_steps=1", "twin=false", "--out", "run"]));
    let error = failure(folder.path(), &train(&["train.max_steps=1", "--out", "run"]), 1);
    assert!(error.contains("--resume run"), "{error}");
}

#[test]
fn tables_are_listed_and_models_counted() {
    let folder = temporary();
    for (topic, parts) in [
        ("structures", &["monarch", "pixelfly", "blocks", "default: 4"][..]),
        ("models", &["vit_base_patch16_224", "mixer_b16_224", "takes structures for"]),
        ("data", &["digits", "cifar10", "part of the program"]),
        ("augmentations", &["mixup", "random_crop"]),
        ("recipes", &["digits-vit", "cifar10-vit-monarch"]),
        ("schedules", &["cosine", "constant"]),
        ("losses", &["cross_entropy", "binary_cross_entropy"]),
        ("kernels", &["chain", "block_sparse", "cpu: ", "cuda: "]),
    ] {
        let text = stdout(folder.path(), &["list", topic]);
        assert!(parts.iter().all(|part| text.contains(part)), "{topic}: {text}");
    }
    // Published counts: timm's ViT-B/16 and Mixer-B/16, and Mixer-B/16 with Pixelfly channel MLPs.
    for (args, parameters) in [
        (&["info", "vit_base_patch16_224"][..], "86,567,656"),
        (&["info", "mixer_b16_224"], "59,880,472"),
        (&["info", "mixer-b16-pixelfly"], "27,486,256"),
    ] {
        let text = stdout(folder.path(), args);
        let total = text.lines().find(|line| line.starts_with("total")).expect("a total");
        assert!(total.contains(parameters), "{args:?}: {total}");
    }
    let args = ["info", "vit_tiny_patch16_224", "mlp.structure=monarch", "model.mlp.blocks=4", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(folder.path(), &args)).expect("JSON");
    let fc1 =
        json["layers"].as_array().expect("a list").iter().find(|layer| layer["name"] == "blocks.0.mlp.fc1");
    assert_eq!(fc1.expect("a layer")["structure"]["blocks"], 4);
}

/// Waits until `ready`, for a minute at most.
fn wait_until(child: &mut Child, what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(child.try_wait().expect("our child").is_none(), "it ended before {what}");
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not come");
        sleep(Duration::from_millis(1));
    }
}

/// Starts training in `out` and returns once a checkpoint is there and a step beyond it is logged.
fn train_beyond_a_checkpoint(folder: &Path, out: &str, args: &[&str]) -> Child {
    let mut command = lacewing(folder, &[args, &["--out", out]].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let out = folder.join(out);
    wait_until(&mut child, "a step after a checkpoint", || {
        let saved = fs::read_to_string(out.join("checkpoint/state.json")).unwrap_or_default();
        let saved: serde_json::Value = serde_json::from_str(&saved).unwrap_or_default();
        let logged = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let last = logged.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let step = |value: &serde_json::Value| value["step"].as_u64();
        matches!((step(&saved), last.as_ref().and_then(step)), (Some(saved), Some(logged)) if logged > saved)
    });
    child
}

/// Everything random on, many short epochs with a checkpoint each.
fn long_run() -> Vec<&'static str> {
    train(&["train.epochs=30", "twin=false", "model.dropout=0.1", "augment.mixup=true", "train.eval_every=0"])
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = temporary();
    stdout(folder.path(), &[&long_run()[..], &["--out", "whole"]].concat());
    let mut child = train_beyond_a_checkpoint(folder.path(), "killed", &long_run());
    // SIGKILL: nothing in the program sees it.
    child.kill().expect("our child");
    child.wait().expect("our child");
    assert!(!folder.path().join("killed/summary.json").exists(), "killed too late to show anything");
    stdout(folder.path(), &["train", "--resume", "killed"]);
    for name in ["model.safetensors", "checkpoint/state.safetensors"] {
        let read = |run: &str| fs::read(folder.path().join(run).join(name)).expect("a file");
        assert!(read("killed") == read("whole"), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_and_exits_with_130() {
    let folder = temporary();
    let mut child =
        train_beyond_a_checkpoint(folder.path(), "run", &train(&["train.epochs=100000", "twin=false"]));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
    assert_eq!(child.wait().expect("our child").code(), Some(130));
    let state = fs::read_to_string(folder.path().join("run/checkpoint/state.json")).expect("a checkpoint");
    let state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    let logged = fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("a file");
    let last = logged.lines().last().expect("a line");
    let last: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(state["step"], last["step"], "the checkpoint is of the last step");
    assert!(!folder.path().join("run/summary.json").exists());
}

#[test]
fn recipes_of_timm_are_shown_and_trained() {
    let folder = temporary();
    let text = "model: vit_digits\ncolor_jitter: null\npin_mem: true\nepochs: 2\nwarmup_epochs: 0\nbatch_size: 100\n\
                sparsity_type: STRUCTURED_NM\ndecay_type: EXP\nn_sparsity: 1\nm_sparsity: 8\ndense_steps: 0.5\n";
    fs::write(folder.path().join("timm.yaml"), text).expect("a folder to write to");
    let info = stdout(folder.path(), &["info", "--from-timm", "timm.yaml", "model.depth=1"]);
    for part in
        ["m_sparsity", "model.mlp.m = 8", "warmup_lr (default)", "pin_mem", "blocks.0.mlp.fc1", "nm n=1 m=8"]
    {
        assert!(info.contains(part), "{part}: {info}");
    }
    assert!(!info.contains("blocks.1."), "{info}");
    let schedule = ["info", "--from-timm", "timm.yaml", "--schedule", "--steps-per-epoch", "10"];
    let schedule = stdout(folder.path(), &schedule);
    assert!(schedule.contains("mask_decay") && schedule.contains("1:8"), "{schedule}");

    let small = [
        "data.name=digits",
        "augment={}",
        "model.dim=32",
        "model.depth=1",
        "train.max_steps=1",
        "train.dtype=f32",
        "--device",
        "cpu",
        "--out",
        "run",
    ];
    let run = output(folder.path(), &[&["train", "--from-timm", "timm.yaml"][..], &small].concat());
    let errors = String::from_utf8(run.stderr).expect("text");
    assert!(run.status.success(), "{errors}");
    assert!(errors.contains("model.mlp.structure = \"nm\""), "{errors}");
    let config = fs::read_to_string(folder.path().join("run/config.yaml")).expect("a file");
    assert!(config.contains("mask_decay"), "{config}");

    let error = failure(folder.path(), &["train", "--from-timm", "timm.yaml", "digits-vit"], 1);
    assert!(error.contains("digits-vit"), "{error}");
    fs::write(folder.path().join("timm.yaml"), "epoch: 3").expect("a folder to write to");
    let error = failure(folder.path(), &["train", "--from-timm", "timm.yaml"], 1);
    assert!(error.contains("`epoch` = 3") && error.contains("`epochs`"), "{error}");
}
