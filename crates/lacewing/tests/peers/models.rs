//! `lacewing bench --model NAME --peers`: what is asked of whole models and what becomes of the answers. Where Python is
//! run, it finds libraries that the tests make up.

use super::super::{MODEL_COLUMNS, bench, measured};
use super::environment;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

const MODEL: [&str; 3] = [
    "--backward",
    "--model",
    "{name: vit_digits, depth: 2, mlp: {structure: block_sparse, block: 16, density: 0.25}}",
];

#[test]
fn models_are_compared_with_the_fastest_dense_one_of_all_libraries() {
    let script = r#"read settings
        echo "$settings" > "$0.settings"
        echo '{"ready": {"torch": "1"}}'
        echo '{"done": true}'
        while read case; do
            echo "$case" >> "$0.cases"
            case "$case" in
            *'"batch":1,'*)
                echo '{"peer": "torch 1", "kernel": "eager", "ms": 1e9, "ms_spread": 0.5, "peak_bytes": null}'
                echo '{"peer": "torch 1", "kernel": "compiled", "ms": 1e-9, "ms_spread": 0, "peak_bytes": 4096}' ;;
            *) echo '{"peer": "torch 1", "skipped": "eager: out of memory"}' ;;
            esac
            echo '{"done": true}'
        done
    "#;
    let venv = environment(script);
    let csv = venv.path().join("rows.csv");
    let peers = ["--peers", venv.path().to_str().expect("text"), "--csv", csv.to_str().expect("text")];
    let report = measured(&[&MODEL[..], &["--batch", "1", "3"], &peers].concat());

    let read = |name: &str| fs::read_to_string(venv.path().join("bin").join(name)).expect("a file");
    let settings: Value = serde_json::from_str(&read("python.settings")).expect("JSON");
    assert_eq!(json!([settings["device"], settings["dtype"]]), json!(["cpu", "f32"]));
    for key in ["threads", "min_samples", "patience_s"] {
        assert!(settings[key].as_f64() > Some(0.0), "{key} of {settings}");
    }
    let asked: Vec<Value> =
        read("python.cases").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let cases: Vec<Value> = asked.iter().map(|case| json!([case["direction"], case["batch"]])).collect();
    assert_eq!(
        json!(cases),
        json!([["forward", 1], ["forward", 3], ["training step", 1], ["training step", 3]])
    );

    let rows = report["rows"].as_array().expect("a list");
    // Ours, our dense twin and two others; ours and our dense twin.
    assert_eq!(rows.len(), 2 * (4 + 2));
    let columns = [&MODEL_COLUMNS[..], &["peer", "dense", "dense_by"]].concat();
    for (rows, asked) in rows.chunks(6).zip(asked.chunks(2)) {
        for (at, row) in rows.iter().enumerate() {
            let keys: Vec<&str> = row.as_object().expect("a map").keys().map(String::as_str).collect();
            assert_eq!(keys, columns);
            let number = |key: &str| row[key].as_f64().expect("a number");
            assert_eq!(number("speedup"), number("dense_ms") / number("ms"));
            let twin = if at < 4 { &rows[1] } else { &rows[5] };
            assert_eq!(row["dense_peak_bytes"], twin["peak_bytes"]);
            assert_eq!(row["parameters"] == row["dense_parameters"], row["dense"] == true, "{row}");
        }
        let of = |row: &Value| json!([row["peer"], row["dense"]]);
        assert_eq!(
            json!(rows.iter().map(of).collect::<Vec<_>>()),
            json!([
                ["lacewing", false],
                ["lacewing", true],
                ["torch 1 eager", true],
                ["torch 1 compiled", true],
                ["lacewing", false],
                ["lacewing", true],
            ])
        );
        let by = |row: &Value| json!([row["dense_by"], row["dense_ms"]]);
        for (at, row) in rows.iter().enumerate() {
            let fastest =
                if at < 4 { json!(["torch 1 compiled", 1e-9]) } else { json!(["lacewing", rows[5]["ms"]]) };
            assert_eq!(by(row), fastest, "{row}");
        }
        assert_eq!(json!([rows[2]["peak_bytes"], rows[3]["peak_bytes"]]), json!([null, 4096]));
        for case in asked {
            let of = ["model", "parameters", "n_classes", "image"].map(|key| &case[key]);
            assert_eq!(json!(of), json!(["vit_digits", rows[0]["dense_parameters"], 10, [1, 8, 8]]));
            assert!(case["lr"].as_f64() > Some(0.0), "{case}");
        }
    }
    assert_eq!(report["skipped"], json!([{"peer": "torch 1", "reason": "eager: out of memory"}]));

    let file = fs::read_to_string(&csv).expect("a file");
    assert_eq!(file.lines().nth(1), Some(columns.join(",").as_str()));
    let eager = file.lines().find(|line| line.contains("torch 1 eager")).expect("a row");
    let twin = format!(",,{},", rows[1]["peak_bytes"]);
    assert!(eager.contains(&twin), "no memory but our twin's: {eager}");
}

/// A library for the system's Python, in the `lib` of the environment.
fn library(venv: &Path, name: &str, text: &str) {
    let folder = venv.join("lib");
    fs::create_dir_all(&folder).expect("a writable folder");
    fs::write(folder.join(format!("{name}.py")), text).expect("a writable folder");
}

#[test]
fn models_that_a_library_does_not_have_are_skipped_and_a_missing_library_is_an_error() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no python3");
        return;
    }
    let torch = "from types import SimpleNamespace as N\n\
        __version__ = '1.2+cpu'\n\
        set_num_threads = manual_seed = lambda _: None\n\
        float32 = 'f32'\n\
        device = lambda name: N(type=name)\n\
        cuda = N(is_available=lambda: False)\n\
        compiler = N(reset=lambda: None)\n";
    let timm = "from types import SimpleNamespace as N\n\
        __version__ = '3'\n\
        is_model = lambda name: name == 'vit_digits'\n\
        create_model = lambda name, **_: N(parameters=lambda: [N(numel=lambda: 7)])\n";
    let none = "__version__ = '3'\nis_model = lambda name: False\n";
    let venv =
        environment(r#"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="${0%/bin/python}/lib" exec python3 "$@""#);
    let args = [&MODEL[..], &["--batch", "1", "--peers", venv.path().to_str().expect("text")]].concat();

    library(venv.path(), "torch", "raise ImportError('no such thing', name='torch')\n");
    let output = bench(&args);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in ["error: --peers: ", "no `torch`", "no such thing", "pip install torch timm"] {
        assert!(error.contains(part), "{part}: {error}");
    }

    library(venv.path(), "torch", torch);
    for (timm, reason) in [
        (none, "timm 3 has no model vit_digits".to_owned()),
        (timm, "timm's vit_digits has 7 parameters, not ".to_owned()),
    ] {
        library(venv.path(), "timm", timm);
        let report = measured(&args);
        let skipped = report["skipped"].as_array().expect("a list");
        // Once, not for each direction.
        assert_eq!(skipped.len(), 1, "{report}");
        assert_eq!(skipped[0]["peer"], "torch 1.2");
        assert!(skipped[0]["reason"].as_str().is_some_and(|text| text.starts_with(&reason)), "{report}");
        let peers = report["rows"].as_array().expect("a list").iter().map(|row| &row["dense_by"]);
        assert_eq!(json!(peers.collect::<Vec<_>>()), json!(["lacewing", "lacewing", "lacewing", "lacewing"]));
    }
}

/// `LACEWING_TEST_PEERS=VENV` names an environment as `benches/peers/README.md` makes it.
#[test]
fn models_of_other_libraries_are_measured_where_there_are_any() {
    let Ok(venv) = std::env::var("LACEWING_TEST_PEERS") else {
        eprintln!("skipped: LACEWING_TEST_PEERS names no environment");
        return;
    };
    let args = ["--model", "vit_tiny_patch16_224", "--to", "monarch", "--batch", "1", "--backward"];
    let report = measured(&[&args[..], &["--peers", &venv]].concat());
    let rows = report["rows"].as_array().expect("a list");
    let eager = rows.iter().filter(|row| row["peer"].to_string().contains("eager"));
    let directions: Vec<&Value> = eager.map(|row| &row["direction"]).collect();
    assert_eq!(json!(directions), json!(["forward", "training step"]), "{report}");
}
