//! The house rules that a machine can check: crate edges, `unsafe`, file headers, names and sizes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every `.rs`, `.cu` and `.cuh` file of the crates, relative to the root.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if [".rs", ".cu", ".cuh"].iter().any(|end| name.ends_with(end)) {
                files.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// What each crate may name of ours, dev-dependencies aside.
const EDGES: &[(&str, &[&str])] = &[
    ("lacewing-linalg", &[]),
    ("lacewing-core", &["linalg"]),
    ("lacewing-testkit", &[]),
    ("lacewing-weights", &[]),
    ("lacewing-cpu", &["core"]),
    ("lacewing-cuda", &["core"]),
    ("lacewing-engine", &["core", "cpu", "cuda"]),
    ("lacewing-nn", &["core", "engine"]),
    ("lacewing-models", &["core", "engine", "nn"]),
    ("lacewing-train", &["core", "engine", "nn", "models", "weights"]),
    ("lacewing", &["core", "cpu", "cuda", "engine", "nn", "models", "train", "weights"]),
];

#[test]
fn crates_name_only_those_above_them() {
    let crates: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(crates, EDGES.iter().map(|(name, _)| (*name).to_owned()).collect(), "EDGES lists the crates");
    for (name, allowed) in EDGES {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let Some(of_ours) = line.strip_prefix("lacewing-") else { continue };
            let of_ours = of_ours.split(['.', ' ', '=']).next().unwrap();
            let dev = section == "[dev-dependencies]";
            let fits = allowed.contains(&of_ours) || (dev && of_ours == "testkit");
            assert!(fits, "{name} names lacewing-{of_ours} in {section}");
        }
    }
}

#[test]
fn unsafe_stays_where_it_may_be() {
    let may = |file: &str| {
        file.starts_with("crates/lacewing-cpu/src/simd/")
            || file.starts_with("crates/lacewing-cuda/")
            || (file.starts_with("crates/lacewing-engine/src/ops/") && file.ends_with("/cuda.rs"))
    };
    for (file, text) in sources().iter().filter(|(file, _)| file.ends_with(".rs") && !may(file)) {
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        let found = code.filter(|line| line.contains(concat!("un", "safe ")) && !line.contains('"')).count();
        assert_eq!(found, 0, "{file} has unsafe code");
    }
}

#[test]
fn files_say_what_they_are_and_stay_readable() {
    for (file, text) in sources() {
        let header = if file.ends_with(".rs") { "//!" } else { "//" };
        assert!(text.starts_with(header), "{file} does not open with {header}");
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        let is_test = file.contains("/tests/") || file.ends_with("/tests.rs");
        let (lines, limit) = (code.lines().count(), if file.ends_with(".rs") { 700 } else { 1000 });
        assert!(
            is_test || lines <= limit,
            "{file} has {lines} lines without its tests; split it by what it does"
        );
        let stem = Path::new(&file).file_stem().unwrap().to_str().unwrap();
        assert!(
            !["utils", "util", "common", "helpers", "misc", "old"].contains(&stem),
            "{file}: a name that says nothing"
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimpl", "emented!(")];
    for (file, text) in sources() {
        for mark in marks {
            assert!(!text.contains(mark), "{file} has {mark}");
        }
        assert!(!text.contains(concat!("#[ig", "nore")), "{file} has an ignored test");
    }
}
