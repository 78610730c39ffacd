//! Runs with a teacher: what it adds to the loss, what is refused, and that such a run continues to the bit.

use lacewing_train::TrainError;
use lacewing_train::checkpoint::{Progress, SavedModel};
use lacewing_train::recipe::{Override, Recipe, load, parse};
use lacewing_train::run::{Event, Finished, Start, config_file, train};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const RECIPE: &str = "
name: pupil
seed: 3
data: {name: digits, batch_size: 100}
augment: {random_crop: {padding: 1}, mixup: {prob: 0.5}}
model: {name: vit_digits, dim: 32, depth: 1, heads: 2, mlp_ratio: 2, dropout: 0.1, fc1: {structure: unstructured, density: 0.3}}
train: {epochs: 1, accumulate: 2, warmup_steps: 2, log_every: 1}
";

fn recipe(out: &Path, changes: &[(&str, String)]) -> Recipe {
    let mut overrides = vec![Override::new("out", out.display().to_string())];
    overrides
        .extend(changes.iter().map(|(path, value)| format!("{path}={value}").parse().expect("an override")));
    parse("pupil", RECIPE, &overrides).expect("a valid recipe")
}

fn run(recipe: Recipe, start: Start) -> Result<(Finished, Vec<f64>), TrainError> {
    let mut losses = Vec::new();
    let mut listen = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    let finished = train(recipe, start, &AtomicBool::new(false), &mut listen)?;
    Ok((finished, losses))
}

/// A teacher of another make than its pupils.
fn teach(folder: &Path) -> String {
    let out = folder.join("teacher");
    let changes =
        [("model.dim", "48".to_owned()), ("model.fc1", "dense".to_owned()), ("seed", "9".to_owned())];
    run(recipe(&out, &changes), Start::New).expect("a run");
    out.display().to_string()
}

fn distill(teacher: &str, rest: &str) -> (&'static str, String) {
    ("train.distill", format!("{{teacher: \"{teacher}\", {rest}}}"))
}

#[test]
fn the_teacher_is_a_share_of_the_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let teacher = teach(folder.path());
    let before = fs::read(folder.path().join("teacher/model.safetensors")).expect("a file");
    let losses = |name: &str, changes: &[(&str, String)]| {
        let one = [("train.max_steps", "1".to_owned())];
        run(recipe(&folder.path().join(name), &[changes, &one].concat()), Start::New).expect("a run").1[0]
    };
    // The first step's loss is that of the first values: linear in α between the plain loss and the divergence.
    let plain = losses("plain", &[]);
    let none = losses("none", &[distill(&teacher, "alpha: 0")]);
    let all = losses("all", &[distill(&teacher, "alpha: 1")]);
    let half = losses("half", &[distill(&teacher, "alpha: 0.5")]);
    assert!((plain - none).abs() <= 1e-6 * plain, "{plain} {none}");
    assert!((half - (none + all) / 2.0).abs() <= 1e-5 * plain, "{half} of {none} and {all}");
    // A divergence, times T² = 4; the first answers are near uniform, the teacher's are not.
    assert!(all > 0.0 && (all - none).abs() > 1e-3, "{all} {none}");
    // A pupil that starts as its teacher diverges by nothing.
    let own = [("init", teacher.clone()), ("model.dropout", "0".to_owned()), distill(&teacher, "alpha: 1")];
    let same = losses("same", &own);
    assert!(same.abs() < 1e-5, "{same}");
    assert_eq!(fs::read(folder.path().join("teacher/model.safetensors")).expect("a file"), before);
}

#[test]
fn a_distilled_run_continues_to_the_bit_and_only_with_its_teacher() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let teacher = teach(folder.path());
    let at = |name: &str| folder.path().join(name);
    let distilled = |name: &str, steps: Option<&str>| {
        let schedule =
            "{structure: block_sparse, block: 8, schedule: {name: soft_movement, lr: 0.3, every: 2 steps}}";
        let mut changes = vec![distill(&teacher, "alpha: 0.7"), ("model.fc1", schedule.to_owned())];
        changes.extend(steps.map(|steps| ("train.max_steps", steps.to_owned())));
        recipe(&at(name), &changes)
    };
    let state = |name: &str| {
        ["model.safetensors", "checkpoint/state.safetensors"]
            .map(|file| fs::read(at(name).join(file)).expect("a file"))
    };
    run(distilled("whole", None), Start::New).expect("a run");
    run(distilled("cut", Some("3")), Start::New).expect("a run");
    let on = [Override::new("train.max_steps", serde_json::Value::Null)];
    let again = || load(&config_file(&at("cut")), &on).expect("written by the run");

    // The checkpoint has which teacher, not what it knows.
    let progress = Progress::read(&at("cut/checkpoint")).expect("whole").expect("there");
    let mark = progress.teacher.expect("a teacher");
    assert!(mark.path.ends_with("teacher") && mark.digest.starts_with("fnv1a:"), "{mark:?}");
    let card = SavedModel::read(&at("cut")).expect("weights").card;
    assert_eq!(card.recipe.train.distill.expect("a teacher").teacher.to_str(), Some(mark.digest.as_str()));

    // Another one in its place.
    let file = at("teacher/model.safetensors");
    let whole = fs::read(&file).expect("a file");
    let mut other = whole.clone();
    *other.last_mut().expect("bytes") ^= 1;
    fs::write(&file, &other).expect("a writable folder");
    let error = run(again(), Start::Resume).map(|_| ()).expect_err("another teacher").to_string();
    assert!(error.contains("train.distill.teacher") && error.contains(&mark.digest), "{error}");
    let none = load(&config_file(&at("cut")), &[Override::new("train.distill", serde_json::Value::Null)]);
    let error = run(none.expect("valid"), Start::Resume).map(|_| ()).expect_err("no teacher").to_string();
    assert!(error.contains("train.distill.teacher") && error.contains("null"), "{error}");
    fs::write(&file, &whole).expect("a writable folder");

    run(again(), Start::Resume).expect("a run");
    assert!(state("cut") == state("whole"));
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let teacher = teach(folder.path());
    let out = folder.path().join("run");
    let refused = |changes: &[(&str, String)]| {
        let error = run(recipe(&out, changes), Start::New).map(|_| ()).expect_err("a misfit").to_string();
        assert!(!out.join("checkpoint").exists() && !config_file(&out).exists());
        error
    };
    let missing = folder.path().join("nobody").display().to_string();
    assert!(refused(&[distill(&missing, "alpha: 0.5")]).contains("nobody"));
    // The same file with another account of itself: other pictures, other classes.
    let file = folder.path().join("teacher/model.safetensors");
    let whole = fs::read(&file).expect("a file");
    for (from, to, parts) in [
        (
            r#"\"image\": [\n      1,\n      8,"#,
            r#"\"image\": [\n      1,\n      9,"#,
            ["pictures", "1x9x8", "1x8x8"],
        ),
        (r#"\"n_classes\": 10\n  }"#, r#"\"n_classes\": 11\n  }"#, ["classes", "11", "10"]),
        (r#"[\n    \"0\",\n    \"1\""#, r#"[\n    \"1\",\n    \"0\""#, ["class names", "`1`", "`0`"]),
    ] {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes());
        let at = at.unwrap_or_else(|| panic!("{from} is in the header"));
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&file, &bytes).expect("a writable folder");
        let error = refused(&[distill(&teacher, "alpha: 0.5")]);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    for (rest, part) in
        [("alpha: 1.5", "alpha"), ("temperature: 0", "temperature"), ("temprature: 1", "temprature")]
    {
        let (path, value) = distill(&teacher, rest);
        let error = parse("pupil", RECIPE, &[format!("{path}={value}").parse().expect("an override")]);
        let error = error.expect_err("a bad setting").to_string();
        assert!(error.contains("train.distill") && error.contains(part), "{error}");
    }
    let binary = "train: {loss: binary_cross_entropy, distill: {teacher: x}}";
    let error = parse("pupil", binary, &[]).expect_err("another loss").to_string();
    assert!(error.contains("`train.distill`") && error.contains("cross_entropy"), "{error}");
}
