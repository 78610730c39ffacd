//! Any bytes as a PyTorch checkpoint. The first byte picks a container to build around the rest as the pickle, so that
//! the machine is reached without a valid archive; other values leave the bytes as they are.
#![no_main]

use lacewing_weights::WeightFile;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/lacewing-weights/tests/containers/mod.rs"]
mod containers;

use containers::zip;

/// The first three pickles of a legacy file.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

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
