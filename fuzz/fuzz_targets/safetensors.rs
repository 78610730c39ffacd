//! Any bytes as a safetensors file: an error or tensors that can be read, never a panic.
#![no_main]

use lacewing_weights::WeightFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = WeightFile::from_bytes("fuzz.safetensors", data.to_vec()) {
        for tensor in file.tensors() {
            assert_eq!(tensor.raw_le_bytes().len(), tensor.elements() * tensor.dtype.size());
            assert_eq!(tensor.to_f32().is_ok(), tensor.dtype.is_float());
            assert!(file.get(&tensor.name).is_some());
        }
    }
});
