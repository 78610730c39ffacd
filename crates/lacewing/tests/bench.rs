//! `lacewing bench` as a user runs it: what a row holds, and that mistakes end it before anything is measured. Speeds
//! are the machine's and not asserted.

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
    assert_eq!(lines[1], COLUMNS.join(","));
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let expected = rows.iter().map(|row| COLUMNS.map(|key| cell(&row[key])).join(","));
    assert_eq!(lines[2..], expected.collect::<Vec<_>>());
}

/// A folder with a `bin/python` that is a shell script.
#[cfg(unix)]
fn environment(script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (bin, python) = (folder.path().join("bin"), folder.path().join("bin/python"));
    fs::create_dir(bin).expect("a writable folder");
    fs::write(&python, format!("#!/bin/sh\n{script}")).expect("a writable folder");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o700)).expect("a file of ours");
    folder
}

#[cfg(unix)]
#[test]
fn the_best_dense_product_of_all_libraries_is_compared_with() {
    let script = r#"read settings
        echo '{"ready": {"fake": "1"}}'
        echo '{"peer": "scipy", "skipped": "scipy is not installed"}'
        echo '{"done": true}'
        while read case; do
            echo '{"peer": "fake 1", "structure": "dense", "kernel": "slow", "ms": 1e9, "ms_spread": 0.5}'
            echo '{"peer": "fake 1", "structure": "dense", "kernel": "fast", "ms": 1e-9, "ms_spread": 0.0}'
            echo '{"peer": "fake 1", "structure": "block_sparse", "kernel": "sparse", "ms": 2e-9, "ms_spread": 0.0}'
            echo '{"peer": "fake 1", "skipped": "no such product"}'
            echo '{"done": true}'
        done
    "#;
    let venv = environment(script);
    let peers = ["--peers", venv.path().to_str().expect("text")];
    let report = measured(&[&SMALL[..], &peers].concat());
    let rows = report["rows"].as_array().expect("a list");
    let of = |row: &Value| json!(["structure", "peer", "kernel"].map(|key| row[key].clone()));
    assert_eq!(rows.len(), 2 * 5);
    for (own, rows) in ["block_sparse", "monarch"].iter().zip(rows.chunks(5)) {
        for row in rows {
            let keys: Vec<&str> = row.as_object().expect("a map").keys().map(String::as_str).collect();
            assert_eq!(keys, [&COLUMNS[..], &["peer", "dense_by"]].concat());
            assert_eq!(json!([row["dense_ms"], row["dense_by"]]), json!([1e-9, "fake 1 fast"]));
            let number = |key: &str| row[key].as_f64().expect("a number");
            assert_eq!(number("speedup"), 1e-9 / number("ms"));
        }
        assert_eq!(json!([rows[0]["structure"], rows[0]["peer"]]), json!([own, "lacewing"]));
        assert_eq!(of(&rows[1]), json!(["dense", "lacewing", "dense"]));
        assert_eq!(of(&rows[2]), json!(["dense", "fake 1", "slow"]));
        assert_eq!(of(&rows[4]), json!([own, "fake 1", "sparse"]));
        assert_eq!(json!([rows[2]["density"], rows[4]["density"]]), json!([1.0, rows[0]["density"]]));
    }
    let skipped = json!([
        {"peer": "scipy", "reason": "scipy is not installed"}, {"peer": "fake 1", "reason": "no such product"},
    ]);
    assert_eq!(report["skipped"], skipped);
    let break_even = report["break_even"].as_array().expect("a list");
    assert!(break_even.len() == 2 && break_even.iter().all(|row| row["density"].is_null()), "{report}");
}

#[cfg(unix)]
#[test]
fn environments_that_cannot_measure_are_errors() {
    let ready = r#"read settings; echo '{"ready": {}}'"#;
    let missing = r#"read settings; echo '{"missing": "torch", "reason": "No module named torch"}'"#;
    let install = "python3 -m venv .venv && .venv/bin/pip install numpy torch";
    for (script, parts) in [
        (missing.to_owned(), &["bin/python", "no `torch`", "No module named torch", install][..]),
        ("exit 3".to_owned(), &["bin/python", "exit status: 3"]),
        (format!("{ready}; echo '{{\"done\": true}}'; read case; exit 4"), &["bin/python", "exit status: 4"]),
        (format!("{ready}; echo hello"), &["bin/python", "`hello`"]),
        (
            format!("{ready}; echo '{{\"peer\": \"x\", \"kernel\": \"y\", \"ms\": -1}}'"),
            &["bin/python", "-1"],
        ),
    ] {
        let venv = environment(&script);
        let output = bench(&[&SMALL[..], &["--peers", venv.path().to_str().expect("text")]].concat());
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{script}: {error}");
        assert!(error.starts_with("error: --peers: "), "{script}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{script}: {error}");
    }
}

/// `LACEWING_TEST_PEERS=VENV` names an environment as `benches/peers/README.md` makes it.
#[test]
fn other_libraries_are_measured_where_there_are_any() {
    let Ok(venv) = std::env::var("LACEWING_TEST_PEERS") else {
        eprintln!("skipped: LACEWING_TEST_PEERS names no environment");
        return;
    };
    for backward in [&[][..], &["--backward"]] {
        let report = measured(&[&SMALL[..], &["--peers", &venv], backward].concat());
        let rows = report["rows"].as_array().expect("a list");
        let torch = |kernel: &str, structure: &str| {
            let is = |row: &&Value| row["kernel"] == kernel && row["structure"] == structure;
            rows.iter()
                .filter(is)
                .filter(|row| row["peer"].as_str().expect("text").starts_with("torch"))
                .count()
        };
        assert_eq!((torch("F.linear", "dense"), torch("CSR F.linear", "block_sparse")), (2, 1), "{report}");
        let skipped = report["skipped"].as_array().expect("a list");
        assert!(skipped.iter().all(|one| !one["reason"].to_string().contains("wrong")), "{report}");
    }
}

const MODEL_COLUMNS: [&str; 17] = [
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
    let rows = model_rows(&report, "forward");
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
    let rows = model_rows(&report, "forward+backward");
    assert!(rows.len() == 1 && rows[0]["kernels"]["fused_chain"].is_u64(), "{report}");
}

/// The rows of a report on models, each with every column.
fn model_rows<'a>(report: &'a Value, direction: &str) -> &'a [Value] {
    let rows = report["rows"].as_array().expect("a list");
    for row in rows {
        let keys: Vec<&String> = row.as_object().expect("a map").keys().collect();
        assert_eq!(keys, MODEL_COLUMNS);
        assert_eq!(json!([row["model"], row["direction"]]), json!(["vit_digits", direction]));
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
fn options_of_layers_and_of_models_do_not_mix() {
    for args in [
        &["--model", "vit_digits", "--to", "monarch", "--shapes", "64x64"][..],
        &["--model", "vit_digits", "--to", "monarch", "--peers", "venv"],
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
        (&["--device", "cuda:0"], &["--device", "cuda:0", "cpu"]),
        (&["--device", "gpu"], &["gpu", "cpu"]),
        (&["--csv", "no/such/folder/rows.csv"], &["--csv", "rows.csv"]),
        (&["--svg", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], &["--svg", "Cargo.toml"]),
        (
            &["--peers", "no/such/venv"],
            &["--peers", "no/such/venv", "python3 -m venv", "pip install numpy torch"],
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
