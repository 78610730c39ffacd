//! `lacewing bench` as a user runs it: what a row holds, and that mistakes end it before anything is measured. Speeds
//! are the machine's and not asserted.

#[cfg(unix)]
mod peers;

use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const SMALL: [&str; 9] =
    ["--structures", "block_sparse", "monarch", "--shapes", "64x128", "--rows", "3", "--density", "0.5"];

const COLUMNS: [&str; 16] = [
    "structure",
    "density",
    "n_in",
    "n_out",
    "rows",
    "dtype",
    "device",
    "direction",
    "ms",
    "ms_spread",
    "dense_ms",
    "speedup",
    "gflops",
    "percent_of_peak",
    "limit_speedup",
    "kernel",
];

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacewing"));
    command.arg("bench").args(args).output().expect("the program starts")
}

/// Standard output of a run that must succeed.
fn stdout(args: &[&str]) -> String {
    let output = bench(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The rows of a report, each with every column.
fn rows(report: &Value) -> &[Value] {
    let rows = report["rows"].as_array().expect("a list");
    for row in rows {
        let keys: Vec<&String> = row.as_object().expect("a map").keys().collect();
        assert_eq!(keys, COLUMNS);
        for key in COLUMNS {
            match &row[key] {
                Value::Number(number) => {
                    // A spread may be zero; JSON has no number that is not finite.
                    let number = number.as_f64().expect("a number");
                    assert!(number > 0.0 || (key == "ms_spread" && number == 0.0), "{key} of {row}");
                }
                Value::String(text) => assert!(!text.is_empty(), "{key} of {row}"),
                other => panic!("{key} is {other}"),
            }
        }
        let number = |key: &str| row[key].as_f64().expect("a number");
        assert_eq!(number("speedup"), number("dense_ms") / number("ms"));
    }
    rows
}

fn measured(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&[args, &["--json"]].concat())).expect("JSON")
}

#[test]
fn a_file_holds_the_rows_of_the_report() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.csv");
    let report = measured(&[&SMALL[..], &["--csv", path.to_str().expect("text")]].concat());
    let rows = rows(&report);
    let names: Vec<&Value> = rows.iter().map(|row| &row["structure"]).collect();
    assert_eq!(names, ["block_sparse", "monarch"]);
    for row in rows {
        let fixed = ["n_in", "n_out", "rows", "dtype", "device", "direction"].map(|key| row[key].clone());
        assert_eq!(json!(fixed), json!([64, 128, 3, "f32", "cpu", "forward"]));
    }
    // Half of the 8 × 4 blocks of 16 × 16. Four blocks of Monarch: 64 × 16 values in the first factor, 128 × 16 in the
    // second; three would store more than half.
    let stored = [16 * 256, 64 * 16 + 128 * 16].map(|values| f64::from(values) / (64.0 * 128.0));
    assert_eq!([&rows[0]["density"], &rows[1]["density"]].map(|density| density.as_f64()), stored.map(Some));
    for key in ["gflops_peak", "read_gb_per_s", "threads"] {
        assert!(report["machine"][key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    let pays: Vec<bool> = rows.iter().map(|row| row["speedup"].as_f64() > Some(1.0)).collect();
    let break_even = report["break_even"].as_array().expect("a list");
    let found: Vec<bool> = break_even.iter().map(|row| row["density"].is_number()).collect();
    assert_eq!(found, pays, "one density each: it pays there or nowhere");

    let file = fs::read_to_string(&path).expect("a file");
    let lines: Vec<&str> = file.lines().collect();
    assert!(lines[0].starts_with("# ") && lines[0].contains("threads"), "{file}");
    assert!(!lines[0].contains("unfinished"), "{file}");
    assert_eq!(lines[1], COLUMNS.join(","));
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let expected = rows.iter().map(|row| COLUMNS.map(|key| cell(&row[key])).join(","));
    assert_eq!(lines[2..], expected.collect::<Vec<_>>());
}

const MODEL_COLUMNS: [&str; 19] = [
    "model",
    "batch",
    "dtype",
    "device",
    "direction",
    "ms",
    "ms_spread",
    "dense_ms",
    "speedup",
    "images_per_s",
    "gflops",
    "percent_of_peak",
    "parameters",
    "dense_parameters",
    "macs",
    "dense_macs",
    "peak_bytes",
    "dense_peak_bytes",
    "kernels",
];

#[test]
fn whole_models_are_measured_against_their_dense_twins() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (rules, csv) = (folder.path().join("rules.yaml"), folder.path().join("rows.csv"));
    let text =
        "- {match: '*.mlp.*', structure: block_sparse, block: 16, density: 0.25, kernel: scatter_dense}\n";
    fs::write(&rules, text).expect("a writable folder");
    let (rules, csv_path) = (rules.to_str().expect("text"), csv.to_str().expect("text"));
    let model = "{name: vit_digits, depth: 2}";
    let args = ["--model", model, "--rules", rules, "--batch", "1,3", "--csv", csv_path];
    let report = measured(&args);
    let rows = model_rows(&report, &["forward"]);
    assert_eq!(rows.iter().map(|row| row["batch"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    for row in rows {
        let number = |key: &str| row[key].as_f64().expect("a number");
        // Three quarters of the weights of four layers 128 x 512.
        assert_eq!(number("dense_parameters") - number("parameters"), 0.75 * 4.0 * 128.0 * 512.0);
        // Patches, two layers of attention a block, head.
        assert_eq!(row["kernels"], json!({"dense": 6, "scatter_dense": 4}));
    }
    let file = fs::read_to_string(&csv).expect("a file");
    assert_eq!(file.lines().count(), 2 + rows.len(), "{file}");
    assert_eq!(file.lines().nth(1), Some(MODEL_COLUMNS.join(",").as_str()));

    // A recipe has its structures.
    let report = measured(&["--model", "digits-vit", "--batch", "1", "--backward"]);
    let rows = model_rows(&report, &["forward", "training step"]);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["kernels"]["fused_chain"].is_u64()), "{report}");
}

#[test]
fn one_call_measures_inference_and_training_and_the_memory_of_both() {
    let model = "{name: vit_digits, depth: 2, mlp: {structure: block_sparse, block: 16, density: 0.25}}";
    let report = measured(&["--model", model, "--batch", "1", "3", "--backward"]);
    let rows = model_rows(&report, &["forward", "training step"]);
    let cases: Vec<Value> = rows.iter().map(|row| json!([row["direction"], row["batch"]])).collect();
    let expected =
        ["forward", "training step"].map(|direction| [json!([direction, 1]), json!([direction, 3])]);
    assert_eq!(cases, expected.concat());
    for (at, row) in rows.iter().enumerate() {
        let number = |key: &str| row[key].as_f64().expect("a number");
        // In f32 weights and, in training, their gradients and two moments. Little comes to them: blocks of memory are at
        // most an eighth larger, and a picture of 8 x 8 has 17 tokens of 128 values in some twenty activations a block.
        let arrays = if at < 2 { 1.0 } else { 4.0 };
        for (peak, parameters) in [("peak_bytes", "parameters"), ("dense_peak_bytes", "dense_parameters")] {
            let (held, peak) = (arrays * 4.0 * number(parameters), number(peak));
            assert!(peak >= held && peak < 1.25 * held + number("batch") * 8e5, "{held} bytes: {row}");
        }
        if at % 2 == 1 {
            assert!(
                number("peak_bytes") > rows[at - 1]["peak_bytes"].as_f64().expect("a number"),
                "{report}"
            );
        }
    }

    let text = stdout(&["--model", model, "--batch", "1", "--backward"]);
    let lines: Vec<&str> = text.lines().collect();
    let table = |title: &str| {
        let at = lines.iter().position(|line| *line == title).expect("a title");
        (lines[at + 2], lines[at + 4])
    };
    for title in ["forward", "training step"] {
        let (header, row) = table(title);
        assert!(header.contains("memory") && row.starts_with("vit_digits"), "{text}");
        assert_eq!(row.matches(" MiB").count(), 2, "{text}");
    }
}

/// The rows of a report on models, each with every column, in one of the directions.
fn model_rows<'a>(report: &'a Value, directions: &[&str]) -> &'a [Value] {
    let rows = report["rows"].as_array().expect("a list");
    for row in rows {
        let keys: Vec<&String> = row.as_object().expect("a map").keys().collect();
        assert_eq!(keys, MODEL_COLUMNS);
        assert_eq!(row["model"], "vit_digits");
        assert!(directions.iter().any(|direction| row["direction"] == *direction), "{row}");
        let number = |key: &str| row[key].as_f64().expect("a number");
        assert_eq!(number("speedup"), number("dense_ms") / number("ms"));
    }
    rows
}

#[test]
fn training_steps_are_measured_and_every_shape_has_its_plot() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plots = folder.path().join("new/plots");
    let more = ["--shapes", "128x64", "--backward", "--svg", plots.to_str().expect("text")];
    let report = measured(&[&SMALL[..], &more].concat());
    let rows = rows(&report);
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["direction"] == "forward+backward"), "{report}");
    let entries = fs::read_dir(&plots).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    assert_eq!(names, ["128x64.svg", "64x128.svg"], "nothing half written");
    for name in names {
        let plot = fs::read_to_string(plots.join(name)).expect("a file");
        assert!(plot.starts_with("<svg ") && plot.ends_with("</svg>\n"), "{plot}");
        // Two structures, each with its bound.
        assert_eq!(plot.matches("<polyline").count(), 4, "{plot}");
        assert!(
            ["block_sparse", "monarch", ">dense<", "3 rows"].iter().all(|part| plot.contains(part)),
            "{plot}"
        );
    }
}

#[test]
fn a_config_is_taken_as_it_is_and_the_table_ends_with_break_evens() {
    let args = ["--structures", "{structure: monarch, blocks: 4}", "low_rank", "--shapes", "64x128"];
    let more = ["--rows", "2", "--density", "0.25", "0.125", "0.125"];
    let text = stdout(&[&args[..], &more].concat());
    let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    // A row and a break-even; two rows, a density given twice being one, and a break-even.
    assert_eq!((of("monarch blocks=4"), of("low_rank")), (2, 3), "{text}");
    assert!(text.contains("faster than dense"), "{text}");
}

#[test]
fn every_kernel_is_timed_and_the_choice_is_compared_with_the_fastest() {
    let args = ["--autotune", "--structures", "{structure: monarch, blocks: 4}", "nm"];
    let report =
        measured(&[&args[..], &["--shapes", "64x128", "--rows", "2", "9", "--density", "0.5"]].concat());
    let rows = report["rows"].as_array().expect("a list");
    let choices = report["choices"].as_array().expect("a list");
    let cases: Vec<_> = choices.iter().map(|choice| [&choice["structure"], &choice["rows"]]).collect();
    assert_eq!(json!(cases), json!([["monarch blocks=4", 2], ["monarch blocks=4", 9], ["nm", 2], ["nm", 9]]));
    for choice in choices {
        let same = |row: &&Value| ["structure", "rows"].iter().all(|key| row[key] == choice[key]);
        let of_case: Vec<&Value> = rows.iter().filter(same).collect();
        let mut kernels: Vec<&str> = of_case.iter().filter_map(|row| row["kernel"].as_str()).collect();
        let chosen: Vec<&Value> =
            of_case.iter().filter(|row| row["chosen"] == true).map(|row| &row["kernel"]).collect();
        assert_eq!(chosen, [&choice["kernel"]], "one of {kernels:?}");
        let ms = |row: &&Value| row["ms"].as_f64().expect("a number");
        let fastest = of_case.iter().min_by(|a, b| ms(a).total_cmp(&ms(b))).expect("rows");
        assert_eq!((&fastest["kernel"], &fastest["ms"]), (&choice["fastest"], &choice["fastest_ms"]));
        assert!(choice["over_fastest"].as_f64() >= Some(1.0), "{choice}");
        let n = kernels.len();
        kernels.sort_unstable();
        kernels.dedup();
        assert!(n == kernels.len() && n >= 2, "each kernel once: {kernels:?}");
    }
    let break_even = report["break_even"].as_array().expect("a list");
    assert_eq!(break_even.len(), 4, "of the chosen kernels alone");
}

#[test]
fn options_of_layers_and_of_models_do_not_mix() {
    for args in [
        &["--model", "vit_digits", "--to", "monarch", "--autotune"][..],
        &["--autotune", "--peers", "venv"],
        &["--model", "vit_digits", "--to", "monarch", "--shapes", "64x64"],
        &["--model", "vit_digits", "--to", "monarch", "--rules", "rules.yaml"],
        &["--to", "monarch"],
        &["--batch", "1"],
    ] {
        assert_eq!(bench(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn mistakes_are_named_before_anything_is_measured() {
    for (args, parts) in [
        (
            &["--structures", "monarhc"][..],
            &["monarhc", "did you mean `monarch`", "block_sparse", "butterfly"][..],
        ),
        (&["--structures", "{structure: monarhc}"], &["monarhc", "did you mean `monarch`", "butterfly"]),
        (&["--structures", "{blocks: 4}"], &["--structures", "{blocks: 4}"]),
        (&["--structures", "{structure: monarch, blokcs: 4}"], &["768x3072", "blokcs", "blocks"]),
        (&["--structures", "{structure: monarch, blocks: 5}"], &["monarch blocks=5", "768x3072"]),
        (&["--structures", "block_sparse", "--shapes", "7x13"], &["block_sparse", "7x13"]),
        (&["--structures", "dense"], &["dense", "0.5"]),
        (&["--rows", "16", "0"], &["--rows", "0"]),
        (&["--density", "0.5", "0"], &["--density", "0"]),
        (&["--density", "1.5"], &["--density", "1.5"]),
        (&["--density", "NaN"], &["--density", "NaN"]),
        (&["--shapes", "768"], &["--shapes", "768", "INxOUT"]),
        (&["--shapes", "768xmany"], &["--shapes", "768xmany"]),
        (&["--shapes", "0x5"], &["--shapes", "0x5"]),
        (&["--shapes", "99999999x99999999"], &["--shapes", "99999999x99999999"]),
        (&["--rows", "99999999999"], &["--rows", "99999999999"]),
        (&["--dtype", "bf16"], &["--dtype", "bf16", "cpu", "f32"]),
        (&["--device", "gpu"], &["gpu", "cpu"]),
        (&["--csv", "no/such/folder/rows.csv"], &["--csv", "rows.csv"]),
        (&["--svg", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], &["--svg", "Cargo.toml"]),
        (
            &["--peers", "no/such/venv"],
            &["--peers", "no/such/venv", "python3 -m venv", "pip install numpy torch"],
        ),
        (
            &["--model", "vit_digits", "--to", "low_rank", "--peers", "no/such/venv"],
            &["--peers", "no/such/venv", "pip install torch timm"],
        ),
        (&["--model", "vit_digit", "--to", "monarch"], &["vit_digit", "did you mean `vit_digits`"]),
        (&["--model", "vit_digits"], &["--model", "vit_digits", "--to", "--rules"]),
        (&["--model", "vit_digits", "--to", "monarhc"], &["blocks.0", "monarhc"]),
        (&["--model", "vit_digits", "--to", "monarch", "--layers", "block.*"], &["block.*", "blocks.0"]),
        (&["--model", "vit_digits", "--rules", "no/such.yaml"], &["no/such.yaml"]),
        (&["--model", "vit_digits", "--to", "monarch", "--batch", "0"], &["--batch", "0"]),
        (
            &["--model", "vit_digits", "--to", "monarch", "--batch", "99999999999"],
            &["--batch", "99999999999"],
        ),
        (&["--model", "vit_digits", "--to", "monarch", "--csv", "no/such/rows.csv"], &["--csv", "rows.csv"]),
    ] {
        let start = Instant::now();
        let output = bench(args);
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
        assert!(start.elapsed() < Duration::from_secs(60), "{args:?} measured");
    }
}
