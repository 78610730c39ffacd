//! `lacewing bench --peers`: what other libraries are asked and what becomes of their answers. They are shell scripts,
//! so that this is for Unix, but for one test that is skipped without an environment.

mod models;

use super::{COLUMNS, SMALL, bench, measured};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder with a `bin/python` that is a shell script.
fn environment(script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (bin, python) = (folder.path().join("bin"), folder.path().join("bin/python"));
    fs::create_dir(bin).expect("a writable folder");
    fs::write(&python, format!("#!/bin/sh\n{script}")).expect("a writable folder");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o700)).expect("a file of ours");
    folder
}

#[test]
fn the_best_dense_product_of_all_libraries_is_compared_with() {
    let script = r#"read settings
        echo '{"ready": {"fake": "1"}}'
        echo '{"peer": "scipy", "skipped": "scipy is not installed"}'
        echo '{"done": true}'
        while read case; do
            case "$case" in
            *'"dense":true'*)
                echo '{"peer": "fake 1", "structure": "dense", "kernel": "slow", "ms": 1e9, "ms_spread": 0.5}'
                echo '{"peer": "fake 1", "structure": "dense", "kernel": "fast", "ms": 1e-9, "ms_spread": 0.0}' ;;
            *'"dense":false'*)
                echo '{"peer": "fake 1", "structure": "block_sparse", "kernel": "sparse", "ms": 2e-9, "ms_spread": 0}'
                echo '{"peer": "fake 1", "skipped": "no such product"}' ;;
            esac
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

/// How the shell scripts below begin: with `answer`, which answers `$case` by a dense or another product as it asks, and
/// keeps it in a file beside the script. A dense product's time tells how many cases there were so far.
const ANSWERING: &str = r#"read settings
    echo '{"ready": {"fake": "1"}}'
    echo '{"done": true}'
    n=0
    answer() {
        echo "$case" >> "$0.cases"
        n=$((n + 1))
        case "$case" in
        *'"dense":true'*) echo '{"peer": "fake 1", "kernel": "dense", "ms": '"$n"'e9, "ms_spread": 0}' ;;
        *) echo '{"peer": "fake 1", "kernel": "sparse", "ms": 1, "ms_spread": 0}' ;;
        esac
        echo '{"done": true}'
    }
"#;

#[test]
fn dense_products_of_other_libraries_are_asked_for_once_for_all_structures() {
    let venv = environment(&format!("{ANSWERING} while read case; do answer; done"));
    let peers = ["--peers", venv.path().to_str().expect("text")];
    let more = ["--shapes", "64x128", "128x64", "--rows", "3", "2"];
    let args = ["--structures", "block_sparse", "monarch", "--density", "0.5"];
    let report = measured(&[&args[..], &more, &peers].concat());

    let asked = fs::read_to_string(venv.path().join("bin/python.cases")).expect("a file");
    let asked: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let structures = ["block_sparse", "monarch"];
    let (mut cases, mut dense_ms) = (asked.iter(), Vec::new());
    for (n_in, n_out) in [(64, 128), (128, 64)] {
        for rows in [3, 2] {
            // First the dense ones, then what is compared with them.
            let dense = cases.next().expect("a case");
            assert_eq!(
                json!([dense["structure"], dense["density"], dense["mask"]]),
                json!(["dense", 1.0, null])
            );
            dense_ms.push(json!(1e9 * (asked.len() - cases.len()) as f64));
            for structure in structures {
                let case = cases.next().expect("a case");
                assert_eq!(json!([case["structure"], case["dense"]]), json!([structure, false]));
                assert_eq!(case["mask"].is_null(), structure == "monarch", "{case}");
                for case in [dense, case] {
                    assert_eq!(
                        json!([case["n_in"], case["n_out"], case["rows"]]),
                        json!([n_in, n_out, rows])
                    );
                }
            }
        }
    }
    assert!(cases.next().is_none(), "{asked:?}");

    // The report stays in the order of shapes, structures, rows; each structure has the times of its shape and rows.
    let mut rows = report["rows"].as_array().expect("a list").chunks(4);
    for (n_in, dense_ms) in [64, 128].into_iter().zip(dense_ms.chunks(2)) {
        for structure in structures {
            for (n, ms) in [3, 2].into_iter().zip(dense_ms) {
                let [own, _, dense, sparse] = rows.next().expect("rows") else { panic!("{report}") };
                let of = |row: &Value| json!([row["structure"], row["n_in"], row["rows"], row["kernel"]]);
                assert_eq!(of(own), json!([structure, n_in, n, own["kernel"]]));
                assert_eq!((of(dense), &dense["ms"]), (json!(["dense", n_in, n, "dense"]), ms));
                assert_eq!(of(sparse), json!([structure, n_in, n, "sparse"]));
            }
        }
    }
    assert!(
        rows.next().is_none() && report["break_even"].as_array().is_some_and(|list| list.len() == 8),
        "{report}"
    );
}

/// The cells of the rows of a run that did not come to its end.
fn unfinished(file: &str) -> Vec<Vec<&str>> {
    let (machine, rows) = file.split_once('\n').expect("a line");
    assert!(machine.starts_with("# ") && machine.ends_with("; unfinished"), "{file}");
    let (columns, rows) = rows.split_once('\n').expect("a line");
    assert_eq!(columns, format!("{},peer,dense_by", COLUMNS.join(",")));
    assert!(rows.ends_with('\n'), "{file}");
    rows.lines().map(|row| row.split(',').collect()).collect()
}

#[test]
fn rows_are_in_the_file_before_the_run_ends_and_stay_when_it_is_killed() {
    // The dense products and two structures; with the third case it waits for what never comes.
    let three = "for i in 1 2 3; do read case; answer; done";
    let venv = environment(&format!("{ANSWERING} {three}; while read case; do :; done"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.csv");
    fs::write(&path, "old").expect("a writable folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_lacewing"))
        .args([
            "bench",
            "--structures",
            "block_sparse",
            "monarch",
            "low_rank",
            "--shapes",
            "64x128",
            "--rows",
            "3",
        ])
        .args(["--density", "0.5", "--peers", venv.path().to_str().expect("text"), "--csv"])
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let start = Instant::now();
    let is_there = |file: &str| file.lines().filter(|line| line.starts_with("monarch,")).count() == 2;
    while !is_there(&fs::read_to_string(&path).expect("a file")) {
        assert!(child.try_wait().expect("a child").is_none(), "it waits for an answer");
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("a child");
            panic!("nothing is written");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    let file = fs::read_to_string(&path).expect("a file");
    let rows = unfinished(&file);
    assert!(rows.iter().all(|row| row.len() == COLUMNS.len() + 2), "{file}");
    let names: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let of = |name| [name, "dense", "dense", name];
    assert_eq!(names, [of("block_sparse"), of("monarch")].concat());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing half written");
}

#[test]
fn a_run_that_fails_keeps_its_finished_cases_and_one_without_any_what_was_there() {
    for (answers, finished) in [(1, 0), (3, 2)] {
        let venv = environment(&format!("{ANSWERING} for i in $(seq {answers}); do read case; answer; done"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.csv");
        fs::write(&path, "old").expect("a writable folder");
        let more = ["--peers", venv.path().to_str().expect("text"), "--csv", path.to_str().expect("text")];
        // After `SMALL`'s two structures at 3 rows come those at 5.
        let output = bench(&[&SMALL[..], &more, &["--rows", "5"]].concat());
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.code() == Some(1) && error.contains("--peers"), "{answers}: {error}");
        let file = fs::read_to_string(&path).expect("a file");
        match finished {
            0 => assert_eq!(file, "old"),
            _ => assert_eq!(unfinished(&file).len(), 4 * finished, "{file}"),
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing half written");
    }
}

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
