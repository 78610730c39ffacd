//! Any bytes as a PyTorch checkpoint. The first byte picks a container to build around the rest as the pickle, so that
//! the machine is reached without a valid archive; other values leave the bytes as they are.
#![no_main]

use lacewing_weights::WeightFile;
use libfuzzer_sys::fuzz_target;

/// The first three pickles of a legacy file.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for number in [data.len() as u32, data.len() as u32] {
            fields.extend(number.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(fields);
        out.extend(name.as_bytes());
        out.extend(*data);
    }
    let (start, size) = (out.len() as u32, directory.len() as u32);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([entries.len() as u8, 0, entries.len() as u8, 0]);
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fuzz_target!(|data: &[u8]| {
    let bytes = match data {
        [b'z', rest @ ..] => {
            let storage = [0x3cu8; 48];
            zip(&[
                ("a/data.pkl", rest),
                ("a/byteorder", b"little"),
                ("a/data/0", &storage),
                ("a/data/1", &storage[..24]),
            ])
        }
        [b'l', rest @ ..] => [LEGACY, rest].concat(),
        _ => data.to_vec(),
    };
    if let Ok(file) = WeightFile::from_bytes("fuzz", bytes) {
        for tensor in file.tensors() {
            assert_eq!(tensor.raw_le_bytes().len(), tensor.elements() * tensor.dtype.size());
            assert_eq!(tensor.to_f32().is_ok(), tensor.dtype.is_float());
            assert!(file.get(&tensor.name).is_some());
        }
    }
});
