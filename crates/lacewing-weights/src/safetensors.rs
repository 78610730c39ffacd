//! The safetensors format: a length, a JSON header, then the tensors' bytes without holes; O(header).
//!
//! The header is parsed here and not by the `safetensors` crate (which the tests compare with), because that keeps
//! the last of two tensors of one name, loses the order of the header, and does not say which tensor is wrong.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::shown;
use crate::tensor::{Storage, View};
use crate::{Dtype, Format, Loaded, TensorEntry, WeightsError};

/// The longest header that the format's own reader accepts.
const LONGEST_HEADER: u64 = 100_000_000;

/// One line of the header.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header in its own order, with what is doubled left in.
#[derive(Default)]
struct Header {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(String, Info)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Lines;
        impl<'de> Visitor<'de> for Lines {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key != "__metadata__" {
                        header.tensors.push((key, map.next_value()?));
                    } else if header.metadata.is_none() {
                        header.metadata = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        return Err(serde::de::Error::custom("__metadata__ occurs twice"));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Lines)
    }
}

/// Reads one safetensors file.
pub(crate) fn read(file: &Arc<str>, bytes: Arc<Vec<u8>>) -> Result<Loaded, WeightsError> {
    let truncated = |part: &str, expected: u64, got: usize| WeightsError::Truncated {
        file: file.to_string(),
        part: part.to_owned(),
        expected,
        got: got as u64,
    };
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(truncated("length of the header", 8, bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER {
        return Err(WeightsError::TooLarge {
            file: file.to_string(),
            what: "header".into(),
            got: length,
            limit: LONGEST_HEADER,
            unit: "bytes",
        });
    }
    let start = 8 + length as usize;
    let Some(text) = bytes.get(8..start) else {
        return Err(truncated("header", length, bytes.len() - 8));
    };
    let header: Header = serde_json::from_slice(text).map_err(|err| WeightsError::Damaged {
        file: file.to_string(),
        part: "header".into(),
        expected: "JSON with dtype, shape and data_offsets of every tensor".into(),
        got: shown(&err.to_string()),
    })?;

    let mut seen = HashSet::new();
    if let Some((name, _)) = header.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        return Err(WeightsError::DuplicateTensor { file: file.to_string(), tensor: shown(name) });
    }
    check_layout(file, &header.tensors, bytes.len() - start)?;

    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        let wrong = |expected: String, got: String| WeightsError::Tensor {
            file: file.to_string(),
            tensor: shown(&name),
            expected,
            got,
        };
        let Some(dtype) = Dtype::of_safetensors(&info.dtype) else {
            return Err(wrong("a data type of whole bytes".into(), shown(&info.dtype)));
        };
        let (from, to) = info.data_offsets;
        let view = View::contiguous(info.shape);
        let needed = view.elements().and_then(|count| count.checked_mul(dtype.size()));
        if needed != Some(to - from) {
            let needed = needed.map_or("more than 64 bits can count".to_owned(), |needed| needed.to_string());
            return Err(wrong(
                format!("{needed} bytes for {dtype} {:?}", view.sizes),
                (to - from).to_string(),
            ));
        }
        let storage = Storage::new(bytes.clone(), start + from, to - from, false);
        let storage = storage.expect("the layout was checked against the file's length");
        tensors.push(TensorEntry::new(file, name, dtype, storage, view)?);
    }
    Ok(Loaded {
        format: Format::Safetensors,
        tensors,
        metadata: header.metadata.unwrap_or_default(),
        skipped: Vec::new(),
    })
}

/// The tensors must cover `data` bytes in some order, without a hole and without sharing a byte.
fn check_layout(file: &Arc<str>, tensors: &[(String, Info)], data: usize) -> Result<(), WeightsError> {
    let mut order: Vec<&(String, Info)> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut reached = 0;
    for (name, info) in order {
        let (from, to) = info.data_offsets;
        let expected = if from != reached {
            format!("data from byte {reached}, where the tensor before it ends")
        } else if to < from {
            "data that ends after it begins".to_owned()
        } else if to > data {
            format!("data within the {data} bytes after the header")
        } else {
            reached = to;
            continue;
        };
        return Err(WeightsError::Tensor {
            file: file.to_string(),
            tensor: shown(name),
            expected,
            got: format!("bytes {from} to {to}"),
        });
    }
    if reached == data {
        return Ok(());
    }
    Err(WeightsError::Damaged {
        file: file.to_string(),
        part: "data after the header".into(),
        expected: format!("{reached} bytes, the sum of its tensors"),
        got: data.to_string(),
    })
}
