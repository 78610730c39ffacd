//! Every fixture that PyTorch wrote is read bit for bit as PyTorch reads it; `fixtures/make.py` made both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lacewing_weights::{Dtype, Format, WeightFile, WeightsError};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(name: &str) -> WeightFile {
    WeightFile::read(&fixtures().join(name)).unwrap()
}

/// The names of a fixture's state dict in order, as Python saw them.
fn orders() -> BTreeMap<String, Vec<String>> {
    serde_json::from_slice(&fs::read(fixtures().join("order.json")).unwrap()).unwrap()
}

/// The file or folder of an expectation.
fn path_of(stem: &str) -> PathBuf {
    let file = fixtures().join(format!("{stem}.pt"));
    if file.exists() { file } else { fixtures().join(stem) }
}

#[test]
fn every_fixture_is_read_bit_for_bit() {
    let orders = orders();
    assert!(orders.len() >= 35);
    for (stem, order) in &orders {
        let weights = WeightFile::read(&path_of(stem)).unwrap_or_else(|err| panic!("{stem}: {err}"));
        let bytes = fs::read(fixtures().join("expected").join(format!("{stem}.safetensors"))).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let prefix = weights.stripped_prefix().unwrap_or_default();
        let mut names: Vec<String> =
            weights.tensors().iter().map(|tensor| format!("{prefix}{}", tensor.name)).collect();
        let mut order = order.clone();
        if stem == "sharded" {
            // The safetensors package writes each shard in its own order.
            names.sort();
            order.sort();
        }
        assert_eq!(names, order, "{stem}: names in order");
        for tensor in weights.tensors() {
            let name = format!("{prefix}{}", tensor.name);
            let view = expected.tensor(&name).unwrap();
            assert_eq!(tensor.shape, view.shape(), "{stem}: {name}");
            assert_eq!(tensor.elements(), view.shape().iter().product::<usize>());
            assert_eq!(tensor.dtype.to_string(), format!("{}", view.dtype()), "{stem}: {name}");
            assert_eq!(tensor.raw_le_bytes(), view.data(), "{stem}: {name}");
            assert!(std::ptr::eq(weights.get(&tensor.name).unwrap(), tensor));
            check_values(tensor, view.data());
        }
    }
}

/// The conversions against the standard library and `half`, element by element.
fn check_values(tensor: &lacewing_weights::TensorEntry, data: &[u8]) {
    let wide = |element: &[u8]| -> Option<f64> {
        Some(match tensor.dtype {
            Dtype::F64 => f64::from_le_bytes(element.try_into().unwrap()),
            Dtype::F32 => f32::from_le_bytes(element.try_into().unwrap()).into(),
            Dtype::F16 => half::f16::from_le_bytes(element.try_into().unwrap()).into(),
            Dtype::Bf16 => half::bf16::from_le_bytes(element.try_into().unwrap()).into(),
            _ => return None,
        })
    };
    let expected: Option<Vec<f64>> = data.chunks_exact(tensor.dtype.size()).map(wide).collect();
    if let (Some(expected), true) = (expected, tensor.dtype.is_float()) {
        let (single, double) = (tensor.to_f32().unwrap(), tensor.to_f64().unwrap());
        assert_eq!((single.len(), double.len()), (expected.len(), expected.len()));
        for ((single, double), expected) in single.iter().zip(&double).zip(&expected) {
            assert!(double.to_bits() == expected.to_bits() || (double.is_nan() && expected.is_nan()));
            let rounded = *expected as f32;
            assert!(single.to_bits() == rounded.to_bits() || (single.is_nan() && rounded.is_nan()));
        }
        assert!(matches!(tensor.to_u32(), Err(WeightsError::Dtype { expected: "u32", .. })));
    } else if !tensor.dtype.is_float() {
        assert!(matches!(tensor.to_f32(), Err(WeightsError::Dtype { expected: "f32", .. })));
        assert!(matches!(tensor.to_f64(), Err(WeightsError::Dtype { expected: "f64", .. })));
    }
}

#[test]
fn formats_are_told_by_content() {
    for (name, format) in [
        ("small_zip.pt", Format::Zip),
        ("small_legacy.pt", Format::Legacy),
        ("protocol4_legacy.pt", Format::Legacy),
        ("training.pth.tar", Format::Zip),
        ("old_tar.pt", Format::Tar),
        ("expected/small_zip.safetensors", Format::Safetensors),
        ("sharded", Format::Safetensors),
        ("sharded_bin", Format::Zip),
    ] {
        assert_eq!(read(name).format(), format, "{name}");
        if !name.starts_with("sharded") {
            // The name plays no part, but for damaged safetensors files.
            let bytes = fs::read(fixtures().join(name)).unwrap();
            assert_eq!(WeightFile::from_bytes("x", bytes).unwrap().format(), format, "{name}");
        }
    }
}

#[test]
fn ties_are_places_not_values() {
    for name in ["tied_zip.pt", "tied_legacy.pt"] {
        let weights = read(name);
        let [embed, head, turned, copy] = ["embed.weight", "head.weight", "head.transposed", "copy.weight"]
            .map(|name| weights.get(name).unwrap());
        assert!(
            embed.same_values_as(head) && head.same_values_as(embed) && embed.same_values_as(embed),
            "{name}"
        );
        assert!(!embed.same_values_as(turned) && !embed.same_values_as(copy), "{name}");
        assert_eq!(embed.raw_le_bytes(), copy.raw_le_bytes());
    }
    let tar = read("old_tar.pt");
    assert!(tar.get("weight").unwrap().same_values_as(tar.get("tied").unwrap()));
    assert!(!tar.get("weight").unwrap().same_values_as(tar.get("transposed").unwrap()));
    // Safetensors keeps every tensor apart.
    let plain = read("expected/tied_zip.safetensors");
    assert!(!plain.get("embed.weight").unwrap().same_values_as(plain.get("head.weight").unwrap()));
}

#[test]
fn wrappers_are_stripped_where_all_names_have_them() {
    assert_eq!(read("parallel_zip.pt").stripped_prefix(), Some("module."));
    assert_eq!(read("compiled_legacy.pt").stripped_prefix(), Some("module._orig_mod."));
    assert_eq!(read("expected/parallel_zip.safetensors").stripped_prefix(), Some("module."));
    let plain = read("module_zip.pt");
    assert_eq!(plain.stripped_prefix(), None);
    assert!(plain.get("0.weight").is_some());
    assert!(read("parallel_zip.pt").get("0.weight").is_some());
}

#[test]
fn a_training_checkpoint_gives_its_state_dict() {
    for name in ["training_zip.pt", "training_legacy.pt", "training.pth.tar"] {
        let weights = read(name);
        assert_eq!(weights.tensors().len(), 9, "{name}");
        assert_eq!(
            weights.stripped_prefix(),
            Some("module."),
            "{name}: state_dict is preferred to model_ema"
        );
        assert!(weights.skipped().is_empty());
    }
    assert_eq!(read("model_key_zip.pt").tensors().len(), 9);
}

#[test]
fn integers_convert_where_they_fit() {
    let weights = read("types_zip.pt");
    let err = weights.get("int64").unwrap().to_u32().unwrap_err();
    assert!(matches!(err, WeightsError::Range { index: 0, value: -100, expected: "u32", .. }), "{err}");
    assert!(matches!(
        weights.get("bool").unwrap().to_u32(),
        Err(WeightsError::Dtype { got: Dtype::Bool, .. })
    ));
    let bytes = weights.get("uint8").unwrap();
    assert_eq!(bytes.to_u32().unwrap(), bytes.raw_le_bytes().into_iter().map(u32::from).collect::<Vec<_>>());
    let unsigned = read("unsigned.pt");
    assert_eq!(
        unsigned.get("u32").unwrap().to_u32().unwrap(),
        [0, 800_000_000, 1_600_000_000, 2_400_000_000, 3_200_000_000]
    );
    assert_eq!(unsigned.get("u16").unwrap().to_u32().unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(unsigned.get("f8").unwrap().to_f32().unwrap(), [0.0, 1.5, -448.0, 0.001953125]);
    assert_eq!(unsigned.get("f8b").unwrap().to_f64().unwrap(), [0.0, 1.5, -57344.0, 1.52587890625e-05]);
}

#[test]
fn folders_have_metadata_and_a_config() {
    for name in ["sharded", "sharded_bin"] {
        let weights = read(name);
        assert_eq!(weights.config().unwrap()["hidden_size"], 3, "{name}");
        assert_eq!(weights.tensors().len(), 9);
    }
    assert_eq!(read("sharded").metadata()["format"], "pt");
    assert!(read("sharded_bin").metadata().is_empty());
    assert!(read("small_zip.pt").config().is_none());
    // The index by name is the folder.
    assert_eq!(read("sharded/model.safetensors.index.json").tensors().len(), 9);
    // One file in a folder.
    let folder = tempfile::tempdir().unwrap();
    let missing = WeightFile::read(folder.path()).unwrap_err();
    assert!(matches!(missing, WeightsError::Missing { .. }), "{missing}");
    fs::copy(fixtures().join("small_zip.pt"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(WeightFile::read(folder.path()).unwrap().format(), Format::Zip);
    fs::copy(fixtures().join("expected/small_zip.safetensors"), folder.path().join("model.safetensors"))
        .unwrap();
    assert_eq!(WeightFile::read(folder.path()).unwrap().format(), Format::Safetensors);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(WeightFile::read(folder.path()), Err(WeightsError::Damaged { .. })));
    assert!(matches!(WeightFile::read(&folder.path().join("none")), Err(WeightsError::Io { .. })));
}

#[test]
fn an_index_stays_in_its_folder_and_is_true() {
    let write = |map: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("expected/small_zip.safetensors"), folder.path().join("a.safetensors"))
            .unwrap();
        fs::copy(fixtures().join("expected/small_zip.safetensors"), folder.path().join("b.safetensors"))
            .unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), format!("{{\"weight_map\": {map}}}"))
            .unwrap();
        WeightFile::read(folder.path())
    };
    assert_eq!(write(r#"{"a": "a.safetensors", "b": "a.safetensors"}"#).unwrap().tensors().len(), 2);
    for map in [
        r#"{"a": "../a.safetensors"}"#,
        r#"{"a": "/etc/passwd"}"#,
        r#"{"a": "x/a.safetensors"}"#,
        r#"{"a": ""}"#,
        r#"{"a": ".."}"#,
        r#"{"a": 3}"#,
        "{}",
        "[]",
    ] {
        assert!(matches!(write(map), Err(WeightsError::Damaged { .. })), "{map}");
    }
    assert!(matches!(write(r#"{"z": "a.safetensors"}"#), Err(WeightsError::Missing { .. })));
    assert!(matches!(write(r#"{"z": "c.safetensors"}"#), Err(WeightsError::Io { .. })));
    let twice = r#"{"a": "a.safetensors", "b": "b.safetensors"}"#;
    assert!(matches!(write(twice), Err(WeightsError::DuplicateTensor { .. })));
}
