//! PyTorch checkpoints: which of a pickle's values are the model's tensors, and where their elements lie.
//!
//! The state dict is the one with the most tensors of the top level and the values under [`STATE_KEYS`]; the earlier
//! key wins among equals. Cost: O(values of the dict), with everything counted against the pickle's length.

mod legacy;
mod tar;
mod zip;

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::shown;
use crate::pickle::{Heap, Id, Node};
use crate::tensor::{Storage, View};
use crate::{Dtype, Format, Loaded, Skipped, TensorEntry, WeightsError};

pub(crate) use legacy::is_legacy;
pub(crate) use legacy::read as read_legacy;
pub(crate) use tar::read as read_tar;
pub(crate) use zip::read as read_zip;

/// The keys under which training scripts keep the state dict, best first.
pub(crate) const STATE_KEYS: &[&str] =
    &["state_dict", "model", "model_state_dict", "model_state", "module", "net"];
/// Averages of the same tensors, taken only where no key of [`STATE_KEYS`] has any. An average often has a counter
/// more than the model that it is of.
const AVERAGE_KEYS: &[&str] = &["ema", "model_ema", "state_dict_ema"];

/// What every tensor of a file may take together when its elements are written out: this many times the file.
const GROWTH: u64 = 16;
/// What the tensors of any file may take.
const GROWTH_BASE: u64 = 1 << 20;
/// Dicts in dicts.
const DEEPEST: usize = 32;
/// PyTorch's own limit on axes.
const MOST_AXES: usize = 64;

/// A storage as a persistent id describes it.
pub(crate) struct Declared {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    /// Elements of the storage that is in the file.
    pub(crate) numel: usize,
    /// Offset and length of the part meant, in elements.
    pub(crate) part: Option<(usize, usize)>,
}

/// What a persistent id stands for in one of the formats.
pub(crate) enum Resolved {
    Storage(Arc<Storage>, Dtype),
    Tensor(Arc<Storage>, Dtype, View),
}

/// The part of a format that differs: where persistent ids lead.
pub(crate) trait Source {
    fn resolve(&mut self, heap: &Heap<'_>, id: Id) -> Result<Resolved, WeightsError>;
    /// Whether a persistent id may be a tensor by itself.
    fn has_tensors(&self) -> bool {
        false
    }
    /// Bytes beyond the file's own that reading has made.
    fn inflated(&self) -> u64 {
        0
    }
}

/// `("storage", class, key, device, elements[, part])`.
pub(crate) fn declared(file: &str, heap: &Heap<'_>, id: Id) -> Result<Declared, WeightsError> {
    let damaged = |expected: &str, got: String| WeightsError::Damaged {
        file: file.to_owned(),
        part: "persistent id".into(),
        expected: expected.to_owned(),
        got,
    };
    let fields = heap.sequence(id).filter(|fields| fields.len() >= 5);
    let Some(&[tag, class, key, _, numel, ref rest @ ..]) = fields else {
        return Err(damaged("a tuple of 5 or 6", heap.kind(id)));
    };
    if heap.text(tag) != Some("storage") {
        return Err(damaged("a storage", heap.kind(tag)));
    }
    let dtype = match heap.global(class) {
        Some(("torch" | "torch.storage" | "torch.cuda", name)) => Dtype::of_storage(name),
        _ => None,
    };
    let Some(dtype) = dtype else {
        return Err(damaged("a storage class of torch", heap.kind(class)));
    };
    let Some(name) = key_text(heap, key) else {
        return Err(damaged("a key of text", heap.kind(key)));
    };
    let count = |id: Id| heap.int(id).and_then(|value| usize::try_from(value).ok());
    let Some(elements) = count(numel) else {
        return Err(damaged("a number of elements", heap.kind(numel)));
    };
    let part = match rest.first().map(|&part| (part, heap.get(part))) {
        None | Some((_, Node::None)) => None,
        Some((part, _)) => match heap.sequence(part) {
            Some(&[_, offset, length]) if count(offset).is_some() && count(length).is_some() => {
                count(offset).zip(count(length))
            }
            _ => return Err(damaged("a part as (key, offset, length)", heap.kind(part))),
        },
    };
    Ok(Declared { key: name, dtype, numel: elements, part })
}

/// Refuses what a big-endian machine wrote in a format that does not say how to read it.
pub(crate) fn check_byte_order(file: &str, heap: &Heap<'_>, sys_info: Id) -> Result<(), WeightsError> {
    let items = heap.items(sys_info).unwrap_or_default();
    let order = items.iter().find(|(key, _)| heap.text(*key) == Some("little_endian"));
    match order.map(|(_, value)| heap.get(*value)) {
        Some(Node::Bool(false)) => Err(WeightsError::Unsupported {
            file: file.to_owned(),
            what: "a file without byte order of a big-endian machine".into(),
        }),
        _ => Ok(()),
    }
}

/// Keys are text, or the numbers of pointers.
pub(crate) fn key_text(heap: &Heap<'_>, id: Id) -> Option<String> {
    match heap.get(id) {
        Node::Text(text) if text.len() <= 256 => Some((*text).to_owned()),
        Node::Int(value) => Some(value.to_string()),
        _ => None,
    }
}

/// Reads one pickle's state dict.
pub(crate) fn state_dict(
    file: &Arc<str>,
    format: Format,
    bytes: usize,
    pickled: usize,
    heap: &Heap<'_>,
    root: Id,
    source: &mut dyn Source,
) -> Result<Loaded, WeightsError> {
    let mut walk = Walk {
        file,
        heap,
        with_ids: source.has_tensors(),
        budget: 64 + 4 * pickled,
        text: 4096 + 16 * pickled,
    };
    let mut best: Option<Found> = None;
    let mut any_key = false;
    for (place, key) in STATE_KEYS.iter().chain(AVERAGE_KEYS).enumerate() {
        if any_key && place >= STATE_KEYS.len() {
            break;
        }
        // The last of two equal keys is the one that Python keeps.
        let items = heap.items(root).unwrap_or_default().iter().rev();
        let Some(&(_, value)) = items.into_iter().find(|(name, _)| heap.text(*name) == Some(key)) else {
            continue;
        };
        if heap.items(value).is_none() {
            continue;
        }
        let found = walk.collect(value, DEEPEST)?;
        any_key |= !found.tensors.is_empty();
        if best.as_ref().is_none_or(|best| found.tensors.len() > best.tensors.len()) {
            best = Some(found);
        }
    }
    // Beside a state dict, what lies deeper at top level is the optimizer and the like.
    let top = walk.collect(root, if any_key { 1 } else { DEEPEST })?;
    if best.as_ref().is_none_or(|best| top.tensors.len() > best.tensors.len()) {
        best = Some(top);
    }
    let Some(found) =
        best.filter(|found| !found.tensors.is_empty() || heap.items(root).is_some_and(<[_]>::is_empty))
    else {
        return Err(WeightsError::NoTensors {
            file: file.to_string(),
            looked: [STATE_KEYS, AVERAGE_KEYS].concat().join(", "),
            got: heap.kind(root),
        });
    };

    let mut tensors = Vec::with_capacity(found.tensors.len());
    let mut total = 0u64;
    let mut names = HashSet::new();
    for (name, id) in found.tensors {
        if !names.insert(name.clone()) {
            return Err(WeightsError::DuplicateTensor { file: file.to_string(), tensor: shown(&name) });
        }
        let entry = entry(file, heap, name, id, source)?;
        total = total.saturating_add((entry.elements() as u64).saturating_mul(entry.dtype.size() as u64));
        let there = (bytes as u64).saturating_add(source.inflated());
        let limit = GROWTH_BASE.saturating_add(there.saturating_mul(GROWTH));
        if total > limit {
            let what = format!("tensors up to {} of shape {:?}", shown(&entry.name), entry.shape);
            return Err(WeightsError::TooLarge {
                file: file.to_string(),
                what,
                got: total,
                limit,
                unit: "bytes",
            });
        }
        tensors.push(entry);
    }
    Ok(Loaded { format, tensors, metadata: Default::default(), skipped: found.skipped })
}

/// The tensors of a dict by name, before they are looked at.
#[derive(Default)]
struct Found {
    tensors: Vec<(String, Id)>,
    skipped: Vec<Skipped>,
}

struct Walk<'a, 'h> {
    file: &'a Arc<str>,
    heap: &'a Heap<'h>,
    /// Whether persistent ids are tensors.
    with_ids: bool,
    /// Items that may still be visited, and bytes of names that may still be written: shared dicts are entered once
    /// for each name they have, which could be exponentially often.
    budget: usize,
    text: usize,
}

impl Walk<'_, '_> {
    fn collect(&mut self, root: Id, depth: usize) -> Result<Found, WeightsError> {
        let mut found = Found::default();
        // Dict, next item, and length of the prefix to return to.
        let mut open: Vec<(Id, usize, usize)> = vec![(root, 0, 0)];
        let mut prefix = String::new();
        while let Some(&mut (dict, ref mut next, length)) = open.last_mut() {
            prefix.truncate(length);
            let Some(&(key, value)) = self.heap.items(dict).unwrap_or_default().get(*next) else {
                open.pop();
                continue;
            };
            *next += 1;
            self.spend(1, 0)?;
            let node = self.heap.get(value);
            let tensor = match node {
                Node::Tensor(_) => true,
                Node::Persistent(_) => self.with_ids,
                Node::Dict(_) | Node::Object(..) => false,
                _ => continue,
            };
            let Some(name) = self.heap.text(key) else {
                self.spend(1, prefix.len())?;
                found.skipped.push(Skipped {
                    name: prefix.clone(),
                    reason: format!("the key is {}, not text", self.heap.kind(key)),
                });
                continue;
            };
            if tensor {
                self.spend(1, prefix.len() + name.len())?;
                found.tensors.push((format!("{prefix}{name}"), value));
            } else if open.len() < depth {
                self.spend(1, name.len() + 1)?;
                prefix.push_str(name);
                prefix.push('.');
                open.push((value, 0, prefix.len()));
            } else if depth == DEEPEST {
                self.spend(1, prefix.len() + name.len())?;
                found.skipped.push(Skipped {
                    name: format!("{prefix}{name}"),
                    reason: format!("more than {DEEPEST} dicts deep"),
                });
            }
        }
        Ok(found)
    }

    fn spend(&mut self, items: usize, text: usize) -> Result<(), WeightsError> {
        match (self.budget.checked_sub(items), self.text.checked_sub(text)) {
            (Some(budget), Some(text)) => {
                (self.budget, self.text) = (budget, text);
                Ok(())
            }
            _ => Err(WeightsError::Damaged {
                file: self.file.to_string(),
                part: "state dict".into(),
                expected: "about as many names as the pickle has values".into(),
                got: "many more, by dicts that occur again and again".into(),
            }),
        }
    }
}

/// Adds to an error about a storage whose it is.
fn of_tensor(mut err: WeightsError, name: &str) -> WeightsError {
    use WeightsError::{Damaged, Missing, TooLarge, Truncated};
    if let Damaged { part: what, .. }
    | Truncated { part: what, .. }
    | Missing { what, .. }
    | TooLarge { what, .. } = &mut err
    {
        what.push_str(&format!(" of tensor {}", shown(name)));
    }
    err
}

/// Reads the description of one tensor and finds its storage.
fn entry(
    file: &Arc<str>,
    heap: &Heap<'_>,
    name: String,
    id: Id,
    source: &mut dyn Source,
) -> Result<TensorEntry, WeightsError> {
    let wrong = |expected: &str, got: String| WeightsError::Tensor {
        file: file.to_string(),
        tensor: shown(&name),
        expected: expected.to_owned(),
        got,
    };
    let tensor = match heap.get(id) {
        Node::Tensor(tensor) => *tensor,
        Node::Persistent(pid) => match source.resolve(heap, *pid).map_err(|err| of_tensor(err, &name))? {
            Resolved::Tensor(storage, dtype, view) => {
                return TensorEntry::new(file, name, dtype, storage, view);
            }
            Resolved::Storage(..) => return Err(wrong("a tensor", "a storage".into())),
        },
        _ => return Err(wrong("a tensor", heap.kind(id))),
    };
    let (storage, mut dtype) = match heap.get(tensor.storage) {
        Node::Persistent(pid) => match source.resolve(heap, *pid).map_err(|err| of_tensor(err, &name))? {
            Resolved::Storage(storage, dtype) => (storage, dtype),
            Resolved::Tensor(..) => return Err(wrong("a storage", "a tensor".into())),
        },
        _ => return Err(wrong("a storage", heap.kind(tensor.storage))),
    };
    if let Some(own) = tensor.dtype {
        let known = heap.global(own).filter(|(module, _)| *module == "torch");
        let Some(known) = known.and_then(|(_, name)| Dtype::of_torch(name)) else {
            return Err(wrong("a type of whole bytes that is not complex", heap.kind(own)));
        };
        dtype = known;
    }
    let axes = |id: Id, what: &str| -> Result<Vec<usize>, WeightsError> {
        let list = heap.sequence(id).filter(|list| list.len() <= MOST_AXES);
        let Some(list) = list else {
            return Err(wrong(&format!("{what} of at most {MOST_AXES} axes"), heap.kind(id)));
        };
        let read = |&axis: &Id| heap.int(axis).and_then(|value| usize::try_from(value).ok()).ok_or(axis);
        list.iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(|axis| wrong(&format!("{what} of whole numbers from 0"), heap.kind(axis)))
    };
    let (sizes, strides) = (axes(tensor.size, "sizes")?, axes(tensor.stride, "strides")?);
    let Some(offset) = heap.int(tensor.offset).and_then(|value| usize::try_from(value).ok()) else {
        return Err(wrong("an offset from 0", heap.kind(tensor.offset)));
    };
    TensorEntry::new(file, name, dtype, storage, View { offset, sizes, strides })
}
