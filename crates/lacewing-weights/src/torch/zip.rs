//! `torch.save` since 1.6: a zip archive of `data.pkl`, the byte order and one entry a storage; O(tensors).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Resolved, Source, declared, state_dict};
use crate::error::{shown, shown_bytes};
use crate::pickle::{self, Heap, Id};
use crate::tensor::Storage;
use crate::zip::Archive;
use crate::{Format, Loaded, WeightsError};

struct Entries {
    file: Arc<str>,
    archive: Archive,
    root: String,
    big_endian: bool,
    /// One storage a key: tensors that share an entry share it here.
    storages: HashMap<String, (Arc<Storage>, usize)>,
}

/// Reads one zip checkpoint.
pub(crate) fn read(file: &Arc<str>, bytes: Arc<Vec<u8>>) -> Result<Loaded, WeightsError> {
    let size = bytes.len();
    let mut archive = Archive::open(file, bytes)?;
    let root = archive.root().to_owned();
    if archive.contains(&format!("{root}constants.pkl")) {
        let what = "TorchScript (save the state dict instead)".into();
        return Err(WeightsError::Unsupported { file: file.to_string(), what });
    }
    let order = format!("{root}byteorder");
    let big_endian = archive.contains(&order) && {
        let order = archive.text(&order)?;
        match order.as_slice().trim_ascii() {
            b"little" => false,
            b"big" => true,
            other => {
                return Err(WeightsError::Damaged {
                    file: file.to_string(),
                    part: "byteorder".into(),
                    expected: "little or big".into(),
                    got: shown_bytes(other),
                });
            }
        }
    };
    let content = archive.text(&format!("{root}data.pkl"))?;
    let program = content.as_slice();
    let (heap, top, _) = pickle::run(file, program)?;
    let mut entries = Entries { file: file.clone(), archive, root, big_endian, storages: HashMap::new() };
    state_dict(file, Format::Zip, size, program.len(), &heap, top, &mut entries)
}

impl Source for Entries {
    fn resolve(&mut self, heap: &Heap<'_>, id: Id) -> Result<Resolved, WeightsError> {
        let declared = declared(&self.file, heap, id)?;
        let damaged = |expected: String, got: String| WeightsError::Damaged {
            file: self.file.to_string(),
            part: format!("storage {}", shown(&declared.key)),
            expected,
            got,
        };
        if declared.part.is_some() {
            return Err(damaged("a whole storage".into(), "a part of one".into()));
        }
        if !self.storages.contains_key(&declared.key) {
            let content = self.archive.content(&format!("{}data/{}", self.root, declared.key))?;
            let storage = Storage::new(content.bytes, content.start, content.len, self.big_endian);
            let storage = storage.expect("an entry lies in its file");
            self.storages.insert(declared.key.clone(), (storage, content.len));
        }
        let (storage, length) = &self.storages[&declared.key];
        if declared.numel.checked_mul(declared.dtype.size()) != Some(*length) {
            let expected = format!("{} elements of {}", declared.numel, declared.dtype);
            return Err(damaged(expected, format!("{length} bytes")));
        }
        Ok(Resolved::Storage(storage.clone(), declared.dtype))
    }

    fn inflated(&self) -> u64 {
        self.archive.inflated()
    }
}
