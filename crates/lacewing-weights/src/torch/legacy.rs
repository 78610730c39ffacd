//! `torch.save` before 1.6: five pickles (magic number, protocol, machine, object, storage keys), then the storages
//! in the order of the keys, each with its length; O(tensors).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Resolved, Source, check_byte_order, declared, key_text, state_dict};
use crate::error::shown;
use crate::pickle::{self, Heap, Id, Node};
use crate::tensor::Storage;
use crate::{Dtype, Format, Loaded, WeightsError};

/// 0x1950a86a20f9469cfc6c, as protocol 1 and above write it and as protocol 0 does.
const MAGIC: [&[u8]; 2] = [b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356"];
/// The one version of this format.
const PROTOCOL: i64 = 1001;

/// Whether the bytes open with the magic number, in any protocol.
pub(crate) fn is_legacy(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64)];
    match pickle::run("", head) {
        Ok((heap, root, _)) => matches!(heap.get(root), Node::Long(long) if MAGIC.contains(long)),
        Err(_) => false,
    }
}

/// A storage's key, and the part of it in elements where it is not the whole.
type Place = (String, Option<(usize, usize)>);

struct Storages {
    file: Arc<str>,
    bytes: Arc<Vec<u8>>,
    /// First byte, type and elements of each key.
    places: HashMap<String, (usize, Dtype, usize)>,
    /// One storage a key and part: tensors that share a storage share it here.
    made: HashMap<Place, Arc<Storage>>,
}

/// Reads one legacy checkpoint.
pub(crate) fn read(file: &Arc<str>, bytes: Arc<Vec<u8>>) -> Result<Loaded, WeightsError> {
    let damaged = |part: &str, expected: String, got: String| WeightsError::Damaged {
        file: file.to_string(),
        part: part.to_owned(),
        expected,
        got,
    };
    let mut at = pickle::run(file, &bytes)?.2;
    let (heap, protocol, used) = pickle::run(file, &bytes[at..])?;
    if heap.int(protocol) != Some(PROTOCOL) {
        return Err(damaged("protocol", PROTOCOL.to_string(), heap.kind(protocol)));
    }
    at += used;
    let (heap, sys_info, used) = pickle::run(file, &bytes[at..])?;
    check_byte_order(file, &heap, sys_info)?;
    at += used;
    let (heap, object, used) = pickle::run(file, &bytes[at..])?;
    at += used;
    let (key_heap, keys, key_bytes) = pickle::run(file, &bytes[at..])?;
    at += key_bytes;
    let Some(keys) = key_heap.sequence(keys) else {
        return Err(damaged("storage keys", "a list".into(), key_heap.kind(keys)));
    };

    // Only the object says how wide a storage's elements are.
    let mut widths: HashMap<String, (Dtype, usize)> = HashMap::new();
    for node in heap.nodes() {
        let Node::Persistent(id) = node else { continue };
        // The source of a class, which nothing here looks at.
        if heap.sequence(*id).and_then(|fields| heap.text(*fields.first()?)) == Some("module") {
            continue;
        }
        let found = declared(file, &heap, *id)?;
        let before = widths.insert(found.key.clone(), (found.dtype, found.numel));
        if let Some((dtype, numel)) = before.filter(|before| *before != (found.dtype, found.numel)) {
            let part = format!("storage {}", shown(&found.key));
            let got = format!("{} of {}", found.numel, found.dtype);
            return Err(damaged(&part, format!("{numel} elements of {dtype}, as before"), got));
        }
    }
    let mut places = HashMap::new();
    for &key in keys {
        let name = key_text(&key_heap, key);
        let known = name.and_then(|name| widths.get(&name).map(|found| (name, *found)));
        let Some((name, (dtype, numel))) = known else {
            let got = key_heap.kind(key);
            return Err(damaged("storage keys", "keys of storages that occur".into(), got));
        };
        let part = format!("storage {}", shown(&name));
        let truncated = |expected: usize, left: usize| WeightsError::Truncated {
            file: file.to_string(),
            part: part.clone(),
            expected: expected as u64,
            got: left as u64,
        };
        let Some(count) = bytes[at..].first_chunk::<8>() else {
            return Err(truncated(8, bytes.len() - at));
        };
        let count = i64::from_le_bytes(*count);
        if usize::try_from(count) != Ok(numel) {
            return Err(damaged(&part, format!("{numel} elements"), count.to_string()));
        }
        at += 8;
        let length = numel.saturating_mul(dtype.size());
        if length > bytes.len() - at {
            return Err(truncated(length, bytes.len() - at));
        }
        if places.insert(name, (at, dtype, numel)).is_some() {
            return Err(damaged(&part, "each key once".into(), "twice".into()));
        }
        at += length;
    }
    let (size, pickled) = (bytes.len(), used);
    let mut source = Storages { file: file.clone(), bytes: bytes.clone(), places, made: HashMap::new() };
    state_dict(file, Format::Legacy, size, pickled, &heap, object, &mut source)
}

impl Source for Storages {
    fn resolve(&mut self, heap: &Heap<'_>, id: Id) -> Result<Resolved, WeightsError> {
        let declared = declared(&self.file, heap, id)?;
        let name = format!("storage {}", shown(&declared.key));
        let Some(&(start, dtype, numel)) = self.places.get(&declared.key) else {
            return Err(WeightsError::Missing { file: self.file.to_string(), what: name });
        };
        let (offset, length) = declared.part.unwrap_or((0, numel));
        if offset.checked_add(length).is_none_or(|end| end > numel) {
            return Err(WeightsError::Damaged {
                file: self.file.to_string(),
                part: name,
                expected: format!("a part within {numel} elements"),
                got: format!("{length} from {offset}"),
            });
        }
        let width = dtype.size();
        let storage = self.made.entry((declared.key, declared.part)).or_insert_with(|| {
            let storage = Storage::new(self.bytes.clone(), start + offset * width, length * width, false);
            storage.expect("a storage lies in its file")
        });
        Ok(Resolved::Storage(storage.clone(), dtype))
    }
}
