//! Files of torch before 0.1.10: a tar archive of `sys_info`, `storages`, `tensors` and `pickle`, in which tensors
//! are persistent ids; O(tensors).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Resolved, Source, check_byte_order, key_text, state_dict};
use crate::error::{shown, shown_bytes};
use crate::pickle::{self, Heap, Id, Node};
use crate::tar::{Member, members};
use crate::tensor::{Storage, View};
use crate::{Dtype, Format, Loaded, WeightsError};

/// A storage, its type and its elements.
type Stored = (Arc<Storage>, Dtype, usize);
/// A tensor as [`Resolved::Tensor`] holds it.
type Viewed = (Arc<Storage>, Dtype, View);

struct Tables {
    file: Arc<str>,
    storages: HashMap<String, Stored>,
    tensors: HashMap<String, Viewed>,
}

/// A member of the archive, read from its beginning.
struct Reader<'a> {
    file: &'a Arc<str>,
    part: &'static str,
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self, expected: &str, got: String) -> WeightsError {
        WeightsError::Damaged {
            file: self.file.to_string(),
            part: format!("tar member {} at byte {}", self.part, self.at),
            expected: expected.to_owned(),
            got,
        }
    }

    fn pickle(&mut self) -> Result<(Heap<'a>, Id), WeightsError> {
        let (heap, root, used) = pickle::run(self.file, &self.data[self.at..])?;
        self.at += used;
        Ok((heap, root))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WeightsError> {
        let left = &self.data[self.at..];
        let taken = left.get(..count).ok_or_else(|| WeightsError::Truncated {
            file: self.file.to_string(),
            part: format!("tar member {}", self.part),
            expected: count as u64,
            got: left.len() as u64,
        })?;
        self.at += count;
        Ok(taken)
    }

    /// A signed 64-bit number that must be a count.
    fn count(&mut self) -> Result<usize, WeightsError> {
        let number = self.take(8)?.first_chunk().map_or(-1, |bytes| i64::from_le_bytes(*bytes));
        usize::try_from(number).map_err(|_| self.damaged("a number from 0", number.to_string()))
    }

    /// A pickled number from 0.
    fn pickled_count(&mut self) -> Result<usize, WeightsError> {
        let (heap, root) = self.pickle()?;
        let number = heap.int(root).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.damaged("a number from 0", heap.kind(root)))
    }

    /// A pickled tuple of `N` fields.
    fn fields<const N: usize>(&self, heap: &Heap<'_>, id: Id) -> Result<[Id; N], WeightsError> {
        let fields = heap.sequence(id).and_then(|fields| <[Id; N]>::try_from(fields).ok());
        fields.ok_or_else(|| self.damaged(&format!("a tuple of {N}"), heap.kind(id)))
    }

    fn key(&self, heap: &Heap<'_>, id: Id) -> Result<String, WeightsError> {
        key_text(heap, id).ok_or_else(|| self.damaged("a key", heap.kind(id)))
    }
}

/// Reads one tar checkpoint.
pub(crate) fn read(file: &Arc<str>, bytes: Arc<Vec<u8>>) -> Result<Loaded, WeightsError> {
    let all = members(file, &bytes)?;
    let member = |part: &'static str| -> Result<&Member<'_>, WeightsError> {
        let mut found = all.iter().filter(|member| member.name == part.as_bytes());
        match (found.next(), found.next()) {
            (Some(member), None) => Ok(member),
            (None, _) => {
                Err(WeightsError::Missing { file: file.to_string(), what: format!("tar member {part}") })
            }
            (Some(member), Some(_)) => Err(WeightsError::Damaged {
                file: file.to_string(),
                part: "tar".into(),
                expected: "each member once".into(),
                got: format!("{} twice", shown_bytes(member.name)),
            }),
        }
    };
    let reader = |part: &'static str| -> Result<Reader<'_>, WeightsError> {
        Ok(Reader { file, part, data: member(part)?.data, at: 0 })
    };
    let (heap, info) = reader("sys_info")?.pickle()?;
    check_byte_order(file, &heap, info)?;
    let storages = read_storages(reader("storages")?, &bytes, member("storages")?.start)?;
    let tensors = read_tensors(reader("tensors")?, &storages)?;
    let mut top = reader("pickle")?;
    let (heap, root) = top.pickle()?;
    let mut tables = Tables { file: file.clone(), storages, tensors };
    state_dict(file, Format::Tar, bytes.len(), top.at, &heap, root, &mut tables)
}

/// A count; for each a pickle of (key, device, class), the number of elements and the elements; then the storages
/// that are parts of others as (key, key of the whole, offset, elements).
fn read_storages(
    mut reader: Reader<'_>,
    bytes: &Arc<Vec<u8>>,
    start: usize,
) -> Result<HashMap<String, Stored>, WeightsError> {
    let mut storages: HashMap<String, Stored> = HashMap::new();
    for _ in 0..reader.pickled_count()? {
        let (heap, root) = reader.pickle()?;
        let [key, _, class] = reader.fields(&heap, root)?;
        let key = reader.key(&heap, key)?;
        let dtype = match heap.global(class) {
            Some(("torch" | "torch.storage" | "torch.cuda", name)) => Dtype::of_storage(name),
            _ => None,
        };
        let Some(dtype) = dtype else {
            return Err(reader.damaged("a storage class of torch", heap.kind(class)));
        };
        let numel = reader.count()?;
        let begin = start + reader.at;
        let length = reader.take(numel.saturating_mul(dtype.size()))?.len();
        let storage = Storage::new(bytes.clone(), begin, length, false);
        let storage = storage.expect("a member lies in its file");
        if storages.insert(key.clone(), (storage, dtype, numel)).is_some() {
            return Err(reader.damaged("each storage once", format!("{} twice", shown(&key))));
        }
    }
    let (heap, views) = reader.pickle()?;
    let Some(views) = heap.sequence(views) else {
        return Err(reader.damaged("a list of parts", heap.kind(views)));
    };
    for &view in views {
        let [key, whole, offset, numel] = reader.fields(&heap, view)?;
        let (key, whole) = (reader.key(&heap, key)?, reader.key(&heap, whole)?);
        let count = |id: Id| heap.int(id).and_then(|number| usize::try_from(number).ok());
        let place = count(offset).zip(count(numel));
        let part = storages.get(&whole).zip(place).and_then(|((storage, dtype, all), (offset, numel))| {
            let within = offset.checked_add(numel).is_some_and(|end| end <= *all);
            let width = dtype.size();
            let part = within.then(|| storage.part(offset * width, numel * width)).flatten()?;
            Some((part, *dtype, numel))
        });
        let Some(part) = part else {
            let got = format!("{} of {}: {:?}", shown(&key), shown(&whole), place);
            return Err(reader.damaged("a part within a storage", got));
        };
        if storages.insert(key.clone(), part).is_some() {
            return Err(reader.damaged("each storage once", format!("{} twice", shown(&key))));
        }
    }
    Ok(storages)
}

/// A count; for each a pickle of (key, storage key, class), the number of axes in 4 of 8 bytes, the sizes, the
/// strides and the offset.
fn read_tensors(
    mut reader: Reader<'_>,
    storages: &HashMap<String, Stored>,
) -> Result<HashMap<String, Viewed>, WeightsError> {
    let mut tensors = HashMap::new();
    for _ in 0..reader.pickled_count()? {
        let (heap, root) = reader.pickle()?;
        let [key, storage, _] = reader.fields(&heap, root)?;
        let (key, storage) = (reader.key(&heap, key)?, reader.key(&heap, storage)?);
        let Some((storage, dtype, _)) = storages.get(&storage) else {
            return Err(reader.damaged("the key of a storage", shown(&storage)));
        };
        let axes = reader.take(8)?.first_chunk().map_or(-1, |bytes| i32::from_le_bytes(*bytes));
        let Some(axes) = usize::try_from(axes).ok().filter(|&axes| axes <= super::MOST_AXES) else {
            return Err(reader.damaged(&format!("at most {} axes", super::MOST_AXES), axes.to_string()));
        };
        let sizes = (0..axes).map(|_| reader.count()).collect::<Result<Vec<_>, _>>()?;
        let strides = (0..axes).map(|_| reader.count()).collect::<Result<Vec<_>, _>>()?;
        let view = View { offset: reader.count()?, sizes, strides };
        if tensors.insert(key.clone(), (storage.clone(), *dtype, view)).is_some() {
            return Err(reader.damaged("each tensor once", format!("{} twice", shown(&key))));
        }
    }
    Ok(tensors)
}

impl Source for Tables {
    fn resolve(&mut self, heap: &Heap<'_>, id: Id) -> Result<Resolved, WeightsError> {
        let key = key_text(heap, id).unwrap_or_default();
        if let Some((storage, dtype, view)) = self.tensors.get(&key) {
            return Ok(Resolved::Tensor(storage.clone(), *dtype, view.clone()));
        }
        match self.storages.get(&key) {
            Some((storage, dtype, _)) => Ok(Resolved::Storage(storage.clone(), *dtype)),
            None => Err(WeightsError::Missing {
                file: self.file.to_string(),
                what: match heap.get(id) {
                    Node::Text(_) | Node::Int(_) => format!("tensor or storage {}", shown(&key)),
                    _ => format!("what {} refers to", heap.kind(id)),
                },
            }),
        }
    }

    fn has_tensors(&self) -> bool {
        true
    }
}
