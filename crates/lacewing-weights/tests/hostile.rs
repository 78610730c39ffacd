//! Files made to do harm: nothing runs, nothing panics, and nothing takes more memory than the file warrants.

use std::fs;
use std::path::{Path, PathBuf};

use lacewing_weights::{WeightFile, WeightsError};

mod containers;

use containers::zip;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Reads everything that can be read of one file, checking what must hold of any.
fn exhaust(bytes: Vec<u8>) -> Result<WeightFile, WeightsError> {
    let size = bytes.len();
    let file = WeightFile::from_bytes("hostile", bytes)?;
    let mut total = 0;
    for tensor in file.tensors() {
        let raw = tensor.raw_le_bytes();
        assert_eq!(raw.len(), tensor.elements() * tensor.dtype.size());
        assert_eq!(tensor.to_f32().is_ok(), tensor.dtype.is_float());
        total += raw.len();
    }
    // 16 times the file and what its entries inflate to, which is 16 MiB and 32 times the file at most.
    assert!(total <= (1 << 20) + 16 * (size + (1 << 24) + 32 * size));
    Ok(file)
}

/// A checkpoint of that pickle and one storage of 6 floats under the key "0".
fn checkpoint(pickle: &[u8]) -> Result<WeightFile, WeightsError> {
    exhaust(zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])]))
}

/// Pickle text.
fn text(value: &str) -> Vec<u8> {
    [b"X".as_slice(), &(value.len() as u32).to_le_bytes(), value.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat()
}

/// The pickle of a tensor over storage "0" with `numel` elements.
fn tensor(numel: i64, offset: i64, sizes: &[i64], strides: &[i64]) -> Vec<u8> {
    let mut out = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    out.extend(text("storage"));
    out.extend(b"ctorch\nFloatStorage\n");
    out.extend(text("0"));
    out.extend(text("cpu"));
    out.extend(int(numel));
    out.extend(b"tQ");
    out.extend(int(offset));
    for axes in [sizes, strides] {
        out.push(b'(');
        axes.iter().for_each(|&axis| out.extend(int(axis)));
        out.push(b't');
    }
    out.extend(b"\x89}tR");
    out
}

/// A dict of one value called `w`.
fn dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}".as_slice(), &text("w"), value, b"s."].concat()
}

#[test]
fn nothing_that_a_pickle_names_is_run() {
    let mut seen = 0;
    for path in fs::read_dir(fixtures().join("hostile")).unwrap() {
        let bytes = fs::read(path.unwrap().path()).unwrap();
        let err = exhaust(bytes).unwrap_err();
        assert!(matches!(err, WeightsError::NoTensors { .. }), "{err}");
        seen += 1;
    }
    assert_eq!(seen, 6);
    assert!(!Path::new("lacewing-weights-was-run").exists());
    assert!(!fixtures().join("lacewing-weights-was-run").exists());
    // The same beside a tensor: the file is read, and the call is an object that does nothing.
    let call = [b"cos\nsystem\n".as_slice(), &text("touch lacewing-weights-was-run"), b"\x85R"].concat();
    let pickle =
        [b"\x80\x02}".as_slice(), &text("w"), &tensor(6, 0, &[6], &[1]), b"s", &text("x"), &call, b"s."];
    let file = checkpoint(&pickle.concat()).unwrap();
    assert_eq!(file.tensors().len(), 1);
    assert!(!Path::new("lacewing-weights-was-run").exists());
}

#[test]
fn views_stay_within_their_storage() {
    let view = |numel, offset, sizes: &[i64], strides: &[i64]| {
        checkpoint(&dict(&tensor(numel, offset, sizes, strides)))
    };
    assert_eq!(view(6, 0, &[2, 3], &[3, 1]).unwrap().tensors()[0].shape, [2, 3]);
    assert_eq!(view(6, 5, &[], &[]).unwrap().tensors()[0].elements(), 1);
    assert_eq!(view(6, 0, &[2, 0], &[i64::MAX, 1]).unwrap().tensors()[0].elements(), 0);
    assert_eq!(view(6, 5, &[1], &[i64::MAX]).unwrap().tensors()[0].elements(), 1);
    assert_eq!(view(6, 3, &[50], &[0]).unwrap().tensors()[0].to_f32().unwrap().len(), 50);
    for (offset, sizes, strides) in [
        (6, &[][..], &[][..]),
        (1, &[2, 3], &[3, 1]),
        (0, &[2, 3], &[4, 1]),
        (0, &[7], &[1]),
        (-1, &[2], &[1]),
        (i64::MAX, &[2], &[1]),
        (0, &[-2], &[1]),
        (0, &[2], &[-1]),
        (0, &[i64::MAX, i64::MAX], &[1, 1]),
        (0, &[i64::MAX], &[i64::MAX]),
        (0, &[2, 3], &[1]),
    ] {
        let err = view(6, offset, sizes, strides).unwrap_err();
        assert!(matches!(&err, WeightsError::Tensor { tensor, .. } if tensor == "w"), "{err}");
    }
    assert!(matches!(view(6, 0, &[1; 65], &[1; 65]), Err(WeightsError::Tensor { .. })));
    // A storage that is not as long as the pickle says.
    for numel in [5, 7, -1, i64::MAX] {
        let err = view(numel, 0, &[1], &[1]).unwrap_err();
        assert!(
            matches!(&err, WeightsError::Damaged { part, .. } if part.ends_with(" of tensor w")),
            "{err}"
        );
    }
    // Expanded beyond what the file warrants, in one tensor or in many.
    let err = view(6, 0, &[1 << 20], &[0]).unwrap_err();
    assert!(matches!(err, WeightsError::TooLarge { got: 0x40_0000, .. }), "{err}");
    assert!(matches!(view(6, 0, &[i64::MAX], &[0]), Err(WeightsError::TooLarge { .. })));
    let mut many = b"\x80\x02}".to_vec();
    for name in 0..100 {
        many.extend([text(&name.to_string()), tensor(6, 0, &[1 << 16], &[0]), b"s".to_vec()].concat());
    }
    many.push(b'.');
    assert!(matches!(checkpoint(&many), Err(WeightsError::TooLarge { .. })));
}

#[test]
fn what_is_shared_is_not_expanded() {
    // Lists of lists, ten references each: 10^60 values if they were copied.
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for level in 0..60u8 {
        laughs.extend(b"](");
        laughs.extend([b'h', level].repeat(10));
        laughs.extend([b'e', b'q', level + 1]);
    }
    laughs.push(b'.');
    assert!(matches!(checkpoint(&laughs), Err(WeightsError::NoTensors { .. })));
    // Dicts of dicts, each under two names, with a tensor at the bottom.
    let mut dicts = [b"\x80\x02}".as_slice(), &text("w"), &tensor(6, 0, &[6], &[1]), b"sq\x00"].concat();
    for level in 0..60u8 {
        for (place, name) in ["a", "b"].iter().enumerate() {
            dicts.extend(
                [if place == 0 { b"}".as_slice() } else { b"" }, &text(name), &[b'h', level], b"s"].concat(),
            );
        }
        dicts.extend([b'q', level + 1]);
    }
    dicts.push(b'.');
    assert!(matches!(checkpoint(&dicts), Err(WeightsError::Damaged { .. })));
    // A dict in itself, a list in itself, and a dict that is its own state dict.
    let own = [b"\x80\x02}q\x00".as_slice(), &text("a"), b"h\x00s"].concat();
    assert!(matches!(checkpoint(&[&own[..], b"."].concat()), Err(WeightsError::NoTensors { .. })));
    let own = [&own[..], &text("state_dict"), b"h\x00s."].concat();
    assert!(matches!(checkpoint(&own), Err(WeightsError::Damaged { .. })));
    assert!(matches!(checkpoint(b"\x80\x02]q\x00h\x00a."), Err(WeightsError::NoTensors { .. })));
    // One list made into an ordered dict again and again.
    let pairs = [b"\x80\x02]q\x00(".as_slice(), &b"NN\x86".repeat(1000), b"e0"].concat();
    let copies = [pairs.as_slice(), &b"ccollections\nOrderedDict\nh\x00\x85R0".repeat(200), b"N."].concat();
    assert!(matches!(checkpoint(&copies), Err(WeightsError::Pickle { .. })));
    // Very deep, which nothing here descends into.
    for deep in
        [b"]".repeat(200_000), [b"N".as_slice(), &b"\x85".repeat(200_000)].concat(), b"(".repeat(200_000)]
    {
        assert!(checkpoint(&[b"\x80\x02".as_slice(), &deep, b"."].concat()).is_err());
    }
    let nest = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x000)".to_vec();
    let nest = [&nest[..], &b"(h\x00Nt".repeat(3), b"."].concat();
    assert!(checkpoint(&nest).is_err());
}

#[test]
fn instructions_out_of_place_are_errors() {
    for program in [
        &b""[..],
        b".",
        b"0.",
        b"1.",
        b"(.",
        b"a.",
        b"]a.",
        b"Na.",
        b"NNa.",
        b"N(NNe.",
        b"NNNs.",
        b"}(Nu.",
        b"h\x00.",
        b"g1\n.",
        b"gx\n.",
        b"\x86.",
        b"N\x86.",
        b"R.",
        b"NNR.",
        b"(o.",
        b"Q.",
        b"b.",
        b"\x93.",
        b"NN\x93.",
        b"\x82\x01.",
        b"\x97.",
        b"\x80\x06N.",
        b"\x80",
        b"X\xff\xff\xff\xffab.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.",
        b"\x8b\xff\xff\xff\x7f.",
        b"L12x\n.",
        b"I\n.",
        b"Fx\n.",
        b"S'\n.",
        b"cno line",
        b"c\xff\n\xff\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v3\n(NNNNtR.",
        b"ccollections\nOrderedDict\n](NNe\x85R.",
    ] {
        let err = checkpoint(program).unwrap_err();
        let typed = matches!(err, WeightsError::Pickle { .. } | WeightsError::Truncated { .. });
        assert!(typed, "{:?}: {err}", String::from_utf8_lossy(program));
        assert!(err.to_string().starts_with("hostile: "), "{err}");
    }
}

#[test]
fn names_are_text_and_unique() {
    let w = tensor(6, 0, &[6], &[1]);
    let numbered = [b"\x80\x02}K\x05".as_slice(), &w, b"s", &text("w"), &w, b"s."].concat();
    let file = checkpoint(&numbered).unwrap();
    assert_eq!((file.tensors().len(), file.skipped().len()), (1, 1));
    assert_eq!(file.skipped()[0].reason, "the key is 5, not text");
    let nested = [b"}".as_slice(), &text("b"), &w, b"s"].concat();
    let twice = [b"\x80\x02}".as_slice(), &text("a"), &nested, b"s", &text("a.b"), &w, b"s."].concat();
    let err = checkpoint(&twice).unwrap_err();
    assert!(matches!(&err, WeightsError::DuplicateTensor { tensor, .. } if tensor == "a.b"), "{err}");
}

#[test]
fn the_state_dict_is_chosen_by_key_and_count() {
    let w = tensor(6, 0, &[6], &[1]);
    let holding = |names: &[&str]| -> Vec<u8> {
        let items: Vec<Vec<u8>> = names.iter().map(|name| [&text(name)[..], &w, b"s"].concat()).collect();
        [b"}".to_vec(), items.concat()].concat()
    };
    let choose = |entries: &[(&str, &[&str])]| -> String {
        let items: Vec<Vec<u8>> =
            entries.iter().map(|(key, names)| [&text(key)[..], &holding(names), b"s"].concat()).collect();
        let file = checkpoint(&[b"\x80\x02}".as_slice(), &items.concat(), b"."].concat()).unwrap();
        file.tensors().iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(choose(&[("model", &["m"]), ("state_dict", &["s"])]), "s");
    assert_eq!(choose(&[("net", &["n1", "n2"]), ("state_dict", &["s"])]), "n1 n2");
    assert_eq!(choose(&[("model_ema", &["e1", "e2"]), ("model", &["m"])]), "m");
    assert_eq!(choose(&[("model_ema", &["e1", "e2"]), ("other", &["o"])]), "e1 e2");
    assert_eq!(choose(&[("state_dict_ema", &["e1", "e2"])]), "e1 e2");
    assert_eq!(choose(&[("optimizer", &["o1", "o2", "o3"]), ("model", &["m"])]), "m");
    assert_eq!(choose(&[("encoder", &["a"]), ("decoder", &["b", "c"])]), "encoder.a decoder.b decoder.c");
}

#[test]
fn archives_are_checked() {
    let good = dict(&tensor(6, 0, &[6], &[1]));
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &good), ("a/data/0", &[0; 24])];
    assert!(exhaust(zip(&entries)).is_ok());
    let err = exhaust(zip(&[entries[0], entries[1], entries[1]])).unwrap_err();
    assert!(matches!(err, WeightsError::Damaged { .. }), "{err}");
    assert!(matches!(exhaust(zip(&entries[..1])), Err(WeightsError::Missing { .. })));
    assert!(matches!(exhaust(zip(&entries[1..])), Err(WeightsError::Missing { .. })));
    assert!(matches!(exhaust(zip(&[])), Err(WeightsError::Missing { .. })));
    let order = exhaust(zip(&[entries[0], entries[1], ("a/byteorder", b"middle")]));
    assert!(matches!(order, Err(WeightsError::Damaged { .. })));
    let script = exhaust(zip(&[entries[0], entries[1], ("a/constants.pkl", b"N.")]));
    assert!(matches!(script, Err(WeightsError::Unsupported { .. })));
    // The two names of an entry differ.
    let mut renamed = zip(&entries);
    renamed[30] = b'b';
    assert!(matches!(exhaust(renamed), Err(WeightsError::Damaged { .. })));
    // An entry that inflates to far more than the file.
    let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0u8; 1 << 20];
    (0..40).for_each(|_| std::io::Write::write_all(&mut out, &zeros).unwrap());
    let packed = out.finish().unwrap();
    // A pickle has less room than a storage, since it takes many times its length.
    for (declared, expected) in [(40 << 20, "inflated bytes"), (4 << 20, "inflated bytes"), (1000, "more")] {
        let mut bomb = zip(&[("a/data.pkl", &packed)]);
        let entry = bomb.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
        bomb[entry + 10] = 8;
        bomb[entry + 24..entry + 28].copy_from_slice(&(declared as u32).to_le_bytes());
        let err = exhaust(bomb).unwrap_err();
        assert!(err.to_string().contains(expected), "{err}");
    }
}

/// The same archive with every size and place in 64-bit fields, as files beyond 4 GiB have them.
fn widened(archive: &[u8]) -> Vec<u8> {
    let start = archive.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let end = archive.windows(4).rposition(|window| window == b"PK\x05\x06").unwrap();
    let (mut out, mut rest) = (archive[..start].to_vec(), &archive[start..end]);
    let mut count = 0u64;
    while !rest.is_empty() {
        let name = usize::from(rest[28]);
        let wide =
            |at: usize| u64::from(u32::from_le_bytes(rest[at..at + 4].try_into().unwrap())).to_le_bytes();
        let mut entry = rest[..46 + name].to_vec();
        entry.extend(b"\x01\x00\x18\x00");
        [24, 20, 42].into_iter().for_each(|at| entry.extend(wide(at)));
        [24, 20, 42].into_iter().for_each(|at| entry[at..at + 4].fill(0xff));
        entry[30] = 28;
        out.extend(entry);
        rest = &rest[46 + name..];
        count += 1;
    }
    let record = out.len() as u64;
    out.extend(b"PK\x06\x06");
    out.extend(44u64.to_le_bytes());
    out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [count, count, record - start as u64, start as u64] {
        out.extend(number.to_le_bytes());
    }
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend(record.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([0xff; 12]);
    out.extend([0, 0]);
    out
}

#[test]
fn archives_may_be_of_64_bits() {
    let pickle = dict(&tensor(6, 0, &[6], &[1]));
    let plain = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[7; 24])]);
    let wide = widened(&plain);
    let read = |bytes: &[u8]| exhaust(bytes.to_vec()).unwrap().tensors()[0].raw_le_bytes();
    assert_eq!(read(&plain), read(&wide));
    for place in plain.len() - 100..wide.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bytes = wide.clone();
            bytes[place] = value;
            let _ = exhaust(bytes);
        }
    }
    for length in 0..wide.len() {
        assert!(exhaust(wide[..length].to_vec()).is_err(), "{length}");
    }
}

/// A safetensors file of that header and `data` zero bytes.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn safetensors_headers_are_checked() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    assert!(exhaust(safetensors(&one("F32", "[2,3]", "[0,24]"), 24)).is_ok());
    assert!(exhaust(safetensors("{}", 0)).is_ok());
    for (header, data, kind) in [
        (one("F32", "[2,3]", "[0,24]"), 20, "Tensor"),
        (one("F32", "[2,3]", "[0,24]"), 28, "Damaged"),
        (one("F32", "[2,3]", "[0,20]"), 20, "Tensor"),
        (one("F32", "[2,3]", "[4,28]"), 28, "Tensor"),
        (one("F32", "[2,3]", "[24,0]"), 24, "Tensor"),
        (one("F99", "[2,3]", "[0,24]"), 24, "Tensor"),
        (one("F4", "[2]", "[0,1]"), 1, "Tensor"),
        (one("F32", "[4611686018427387905]", "[0,4]"), 4, "Tensor"),
        (one("F32", "[9223372036854775807,4]", "[0,4]"), 4, "Tensor"),
        (one("F32", "[-1]", "[0,4]"), 4, "Damaged"),
        (one("F32", "[99999999999999999999]", "[0,4]"), 4, "Damaged"),
        (one("F32", "3", "[0,4]"), 4, "Damaged"),
        (one("F32", "[1]", "[0]"), 4, "Damaged"),
        ("{".into(), 0, "Damaged"),
        ("{\"__metadata__\":{\"a\":1}}".into(), 0, "Damaged"),
        ("{\"__metadata__\":{},\"__metadata__\":{}}".into(), 0, "Damaged"),
        (format!("{{\"a\":{}", "[".repeat(100_000)), 0, "Damaged"),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#
                .into(),
            3,
            "Tensor",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
                .into(),
            0,
            "DuplicateTensor",
        ),
    ] {
        let err = exhaust(safetensors(&header, data)).unwrap_err();
        assert!(format!("{err:?}").starts_with(kind), "{:.200}: {err:?}", header);
        assert!(err.to_string().starts_with("hostile: "), "{err}");
    }
    for length in [3u64, 100, 99_999_999, 100_000_001, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        let err = exhaust(bytes).unwrap_err();
        assert!(
            matches!(err, WeightsError::Truncated { .. } | WeightsError::TooLarge { .. }),
            "{length}: {err}"
        );
    }
}

/// The smaller fixtures of every format.
fn small_files() -> Vec<(PathBuf, Vec<u8>)> {
    let mut names: Vec<PathBuf> = [
        "small_zip.pt",
        "small_legacy.pt",
        "protocol4.pt",
        "protocol4_legacy.pt",
        "old_tar_views.pt",
        "unsigned.pt",
        "big_endian.pt",
        "hostile/eval.pt",
        "expected/small_zip.safetensors",
        "expected/nested_zip.safetensors",
    ]
    .iter()
    .map(|name| fixtures().join(name))
    .collect();
    names.sort();
    names.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn any_truncation_is_an_error_or_a_file() {
    for folder in ["", "expected"] {
        for entry in fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            // One tensor file of each kind will do.
            if !folder.is_empty() && !["small_zip", "types_zip", "views_zip"].contains(&stem) {
                continue;
            }
            if path.is_dir() || path.extension().is_some_and(|end| end == "py" || end == "json") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let full = exhaust(bytes.clone()).unwrap().tensors().len();
            for length in 0..bytes.len() {
                // Only padding may be missing from a file that is read.
                if let Ok(file) = exhaust(bytes[..length].to_vec()) {
                    assert!(
                        bytes[length..].iter().all(|&byte| byte == 0),
                        "{} cut at {length}",
                        path.display()
                    );
                    assert_eq!(file.tensors().len(), full, "{} cut at {length}", path.display());
                }
            }
        }
    }
}

#[test]
fn any_changed_byte_is_an_error_or_a_file() {
    for (path, bytes) in small_files() {
        let mut bytes = bytes;
        let is_safetensors = path.extension().is_some_and(|end| end == "safetensors");
        for place in 0..bytes.len() {
            // Padding of zeros is the same everywhere: one place in it stands for all.
            if place >= 8 && bytes[place - 8..(place + 8).min(bytes.len())].iter().all(|&byte| byte == 0) {
                continue;
            }
            for mask in [0x01, 0x10, 0x80, 0xff] {
                bytes[place] ^= mask;
                let read = exhaust(bytes.clone());
                if is_safetensors {
                    let theirs = safetensors::SafeTensors::deserialize(&bytes);
                    // A type that only their reader knows, or a doubled name that it overlooks.
                    let stricter = matches!(read, Err(WeightsError::Tensor { .. }));
                    assert!(
                        read.is_ok() == theirs.is_ok() || (theirs.is_ok() && stricter),
                        "{read:?} {theirs:?}"
                    );
                }
                bytes[place] ^= mask;
            }
        }
    }
}
