//! `lacewing train --ranks`: processes that train together, as a user starts them.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader};
use std::path::Path;
#[cfg(unix)]
use std::process::{Child, ChildStdout, Stdio};
use std::process::{Command, Output};

/// A run of the digits in `ranks` processes; its events.
fn train(ranks: usize, out: &Path, settings: &[&str]) -> Vec<Value> {
    let output = run(ranks, out, settings);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{ranks} ranks: {}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect()
}

fn run(ranks: usize, out: &Path, settings: &[&str]) -> Output {
    command(ranks, out, settings).output().expect("a command that runs")
}

fn command(ranks: usize, out: &Path, settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacewing"));
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
        command.env_remove(name);
    }
    command.args([
        "train",
        "digits-vit",
        "--json",
        "--device",
        "cpu",
        "--ranks",
        &ranks.to_string(),
        "--out",
    ]);
    command.arg(out).args(["twin=false", "train.epochs=1", "train.log_every=5", "train.checkpoint_every=1"]);
    command.args(settings);
    command
}

fn of<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

/// The arrays of a checkpoint, by name, as bytes.
fn arrays(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(out.join("checkpoint").join("state.safetensors")).expect("a checkpoint");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a whole file");
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// Two processes hold the same state after each epoch, and come to what one process comes to: the same patterns, and weights
/// and losses that differ by the rounding of sums.
#[test]
fn two_processes_take_the_decisions_of_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, mlp) in [
        ("rigl", "{structure: unstructured, density: 0.2, schedule: {name: rigl, every: 4 steps, end: 1.0}}"),
        ("sr_ste", "{structure: nm, n: 1, m: 4, schedule: sr_ste}"),
        ("movement", "{structure: block_sparse, block: 4, density: 0.3, schedule: movement}"),
    ] {
        let mlp = format!("model.mlp={mlp}");
        let settings = [mlp.as_str(), "model.dropout=0", "augment={}"];
        let (one, two) = (folder.path().join(format!("{name}-1")), folder.path().join(format!("{name}-2")));
        let (alone, together) = (train(1, &one, &settings), train(2, &two, &settings));
        let agreed = of(&together, "agree");
        assert_eq!(agreed.len(), 1, "{name}: with the checkpoint");
        assert!(agreed.iter().all(|event| event["ranks"] == 2) && of(&alone, "agree").is_empty(), "{name}");
        let (losses_alone, losses_together) = (of(&alone, "step"), of(&together, "step"));
        assert_eq!(losses_alone.len(), losses_together.len(), "{name}");
        for (a, b) in losses_alone.iter().zip(&losses_together) {
            let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
            assert!((a - b).abs() < 0.01, "{name}: loss {a} alone, {b} together");
        }
        let accuracy = |events: &[Value]| of(events, "result")[0]["accuracy"].as_f64().unwrap();
        let apart = (accuracy(&alone) - accuracy(&together)).abs();
        assert!(apart < 0.02, "{name}: accuracies {apart} apart");
        let (alone, together) = (arrays(&one), arrays(&two));
        assert_eq!(alone.keys().collect::<Vec<_>>(), together.keys().collect::<Vec<_>>(), "{name}");
        let (mut places, mut other) = (0, 0);
        for (array, own) in &alone {
            let theirs = &together[array];
            if array.starts_with("index/") || array.ends_with(".mask") {
                let changed =
                    own.as_chunks::<4>().0.iter().zip(theirs.as_chunks::<4>().0).filter(|(a, b)| a != b);
                (places, other) = (places + own.len() / 4, other + changed.count());
            }
        }
        assert!(other * 50 <= places, "{name}: {other} of {places} places differ");
        assert!(places > 0 || !["rigl", "movement"].contains(&name), "{name} has patterns to compare");
    }
}

/// Running statistics are those of the whole batch: a few steps, before a winner more or less makes another run of it.
#[test]
fn duty_cycles_are_those_of_the_whole_batch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = [
        "model.mlp=dense",
        "model.dropout=0",
        "augment={}",
        "model.activation={k_winners: {percent_on: 0.25}}",
    ];
    let settings = [&settings[..], &["train.max_steps=4", "train.ema.decay=0"]].concat();
    let (one, two) = (folder.path().join("1"), folder.path().join("2"));
    train(1, &one, &settings);
    train(2, &two, &settings);
    let (alone, together) = (arrays(&one), arrays(&two));
    let duties: Vec<_> =
        alone.iter().filter(|(name, _)| name.starts_with("param/") && name.ends_with(".duty")).collect();
    assert_eq!(duties.len(), 2, "a layer of the model each");
    for (name, own) in duties {
        let own = floats(own);
        assert!(own.iter().any(|&duty| duty > 0.05), "{name} has seen something");
        for (a, b) in own.iter().zip(floats(&together[name])) {
            assert!((a - b).abs() < 1e-3, "{name}: {a} alone, {b} together");
        }
        let clock = name.replace(".duty", ".clock");
        assert_eq!(alone[&clock], together[&clock], "samples are counted over both");
    }
}

/// A run of two processes that ends early goes on in two processes to the same bits as one that did not.
#[test]
fn two_processes_resume_to_the_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let settings =
        ["model.mlp={structure: unstructured, density: 0.2, schedule: {name: rigl, every: 4 steps}}"];
    train(2, &whole, &settings);
    train(2, &parts, &[settings[0], "train.max_steps=13"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacewing"));
    let resumed = command.args(["train", "--ranks", "2", "--resume"]).arg(&parts).output().expect("runs");
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert!(arrays(&whole) == arrays(&parts), "checkpoints differ");
}

/// A run of two that has begun, its first step logged.
#[cfg(unix)]
fn begun(out: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut command = command(2, out, &["train.epochs=10000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("\"event\":\"step\"") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("lines") > 0, "the run ended");
    }
    (child, lines)
}

#[cfg(unix)]
fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().expect("runs").success());
}

#[test]
#[cfg(unix)]
fn an_interrupt_stops_all_processes_with_a_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut child, lines) = begun(folder.path());
    signal("-INT", child.id());
    let events: Vec<String> = lines.lines().map(|line| line.expect("text")).collect();
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert!(events.iter().any(|line| line.contains("\"event\":\"agree\"")), "{events:?}");
    assert!(folder.path().join("checkpoint").join("state.json").exists());
}

#[test]
#[cfg(unix)]
fn a_process_that_is_lost_ends_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut child, lines) = begun(folder.path());
    let found =
        Command::new("ps").args(["--no-headers", "-o", "pid", "--ppid", &child.id().to_string()]).output();
    let Ok(found) = found.map(|output| String::from_utf8(output.stdout).expect("text")) else {
        signal("-INT", child.id());
        child.wait().expect("ends");
        return eprintln!("skipped: there is no `ps` to find the processes with");
    };
    let last = found.split_whitespace().next_back().expect("a process").parse().expect("a number");
    signal("-KILL", last);
    drop(lines);
    assert!(!child.wait().expect("ends").success());
}

#[test]
fn what_cannot_be_shared_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run");
    let output = run(3, &out, &["data.batch_size=2"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("data.batch_size is 2"), "{text}");
    assert!(!out.exists(), "nothing is begun");

    let output = command(2, &out, &[]).env("WORLD_SIZE", "3").output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("WORLD_SIZE is `3`, expected not set, or 2"), "{text}");

    let mut command = Command::new(env!("CARGO_BIN_EXE_lacewing"));
    let output =
        command.args(["train", "digits-vit", "--out"]).arg(&out).env("WORLD_SIZE", "2").env("RANK", "2");
    let output = output.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("RANK is `2`, expected a number below 2"), "{text}");
}
