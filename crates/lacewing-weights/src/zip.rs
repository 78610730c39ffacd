//! The part of the zip format that checkpoints use: stored and deflated entries, with 64-bit sizes; O(directory).
//!
//! Stored entries are places in the file's bytes, never copies. Checksums are not compared: PyTorch can be told not
//! to compute them, and does not compare them either.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use crate::WeightsError;
use crate::error::{shown, shown_bytes};

/// What all deflated entries of a file may grow to, beyond a base: this many times the file.
const GROWTH: u64 = 32;
/// What the storages of any file may inflate to: zeros are common and deflate to nothing.
const GROWTH_BASE: u64 = 1 << 24;
/// The same for text and pickles, which take many times their length once they are read.
const TEXT_BASE: u64 = 1 << 16;

/// A zip archive in memory.
pub(crate) struct Archive {
    file: Arc<str>,
    bytes: Arc<Vec<u8>>,
    entries: HashMap<String, Entry>,
    first: String,
    inflated: u64,
}

struct Entry {
    deflated: bool,
    compressed: u64,
    size: u64,
    header: u64,
}

/// The content of one entry: a place in shared bytes.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Content {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// Little-endian fields at places of a record.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn u16(&self, at: usize) -> u64 {
        self.0.get(at..at + 2).map_or(0, |field| u64::from(u16::from_le_bytes([field[0], field[1]])))
    }
    fn u32(&self, at: usize) -> u64 {
        self.u16(at) | self.u16(at + 2) << 16
    }
    fn u64(&self, at: usize) -> u64 {
        self.u32(at) | self.u32(at + 4) << 32
    }
}

impl Archive {
    /// Reads the central directory.
    pub(crate) fn open(file: &Arc<str>, bytes: Arc<Vec<u8>>) -> Result<Archive, WeightsError> {
        let damaged = |part: &str, expected: &str, got: String| WeightsError::Damaged {
            file: file.to_string(),
            part: part.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let (start, end) = directory(file, &bytes)?;
        let mut archive = Archive {
            file: file.clone(),
            bytes: bytes.clone(),
            entries: HashMap::new(),
            first: String::new(),
            inflated: 0,
        };
        let mut rest = &bytes[start..end];
        while !rest.is_empty() {
            let record = Record(rest);
            if rest.len() < 46 || record.u32(0) != 0x0201_4b50 {
                let got = format!("{} bytes beginning {:02x?}", rest.len(), &rest[..rest.len().min(4)]);
                return Err(damaged("zip directory", "an entry of 46 bytes or more", got));
            }
            let (name, extra, comment) =
                (record.u16(28) as usize, record.u16(30) as usize, record.u16(32) as usize);
            let length = 46 + name + extra + comment;
            if rest.len() < length {
                let got = rest.len().to_string();
                return Err(damaged("zip directory", &format!("an entry of {length} bytes"), got));
            }
            let text = &rest[46..46 + name];
            let Ok(name) = std::str::from_utf8(text) else {
                return Err(damaged("zip directory", "names in UTF-8", shown_bytes(text)));
            };
            let entry = entry(file, name, &record, &rest[46 + text.len()..46 + text.len() + extra])?;
            if archive.entries.is_empty() {
                archive.first = name.to_owned();
            }
            if archive.entries.insert(name.to_owned(), entry).is_some() {
                return Err(damaged("zip directory", "each name once", format!("{} twice", shown(name))));
            }
            rest = &rest[length..];
        }
        Ok(archive)
    }

    /// The folder in which PyTorch keeps everything, with its slash; empty if there is none.
    pub(crate) fn root(&self) -> &str {
        self.first.find('/').map_or("", |slash| &self.first[..=slash])
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Bytes that were inflated so far.
    pub(crate) fn inflated(&self) -> u64 {
        self.inflated
    }

    /// The content of an entry, inflated where it is deflated.
    pub(crate) fn content(&mut self, name: &str) -> Result<Content, WeightsError> {
        self.within(GROWTH_BASE, name)
    }

    /// The content of an entry that is text or a pickle.
    pub(crate) fn text(&mut self, name: &str) -> Result<Content, WeightsError> {
        self.within(TEXT_BASE, name)
    }

    fn within(&mut self, base: u64, name: &str) -> Result<Content, WeightsError> {
        let file = self.file.to_string();
        let Some(entry) = self.entries.get(name) else {
            return Err(WeightsError::Missing { file, what: format!("entry {}", shown(name)) });
        };
        let part = format!("zip entry {}", shown(name));
        let truncated = |expected: u64, got: u64| WeightsError::Truncated {
            file: self.file.to_string(),
            part: part.clone(),
            expected,
            got,
        };
        let total = self.bytes.len() as u64;
        let header = usize::try_from(entry.header).ok().and_then(|at| self.bytes.get(at..)?.get(..30));
        let Some(header) = header else {
            return Err(truncated(entry.header.saturating_add(30), total));
        };
        let record = Record(header);
        if record.u32(0) != 0x0403_4b50 {
            let got = format!("{:02x?}", &header[..4]);
            return Err(WeightsError::Damaged { file, part, expected: "PK\\x03\\x04".into(), got });
        }
        let start = entry.header + 30 + record.u16(26) + record.u16(28);
        let end = start.checked_add(entry.compressed).filter(|&end| end <= total);
        let Some(end) = end else {
            return Err(truncated(entry.compressed, total.saturating_sub(start)));
        };
        // The name stands twice, and readers differ in the one they believe.
        let local = &self.bytes[entry.header as usize + 30..][..record.u16(26) as usize];
        if local != name.as_bytes() {
            let got = shown_bytes(local);
            return Err(WeightsError::Damaged {
                file,
                part,
                expected: "the name of the directory".into(),
                got,
            });
        }
        let (start, end) = (start as usize, end as usize);
        if !entry.deflated {
            return Ok(Content { bytes: self.bytes.clone(), start, len: end - start });
        }
        let limit = base.saturating_add(total.saturating_mul(GROWTH));
        let got = self.inflated.saturating_add(entry.size);
        if got > limit {
            return Err(WeightsError::TooLarge { file, what: part, got, limit, unit: "inflated bytes" });
        }
        let mut out = Vec::new();
        let read = flate2::read::DeflateDecoder::new(&self.bytes[start..end])
            .take(entry.size + 1)
            .read_to_end(&mut out);
        if read.is_err() || out.len() as u64 != entry.size {
            let got = match read {
                Err(err) => format!("{} bytes, then: {err}", out.len()),
                Ok(_) if out.len() as u64 > entry.size => "more".to_owned(),
                Ok(_) => format!("{} bytes", out.len()),
            };
            let expected = format!("{} bytes when inflated", entry.size);
            return Err(WeightsError::Damaged { file, part, expected, got });
        }
        self.inflated += entry.size;
        let len = out.len();
        Ok(Content { bytes: Arc::new(out), start: 0, len })
    }
}

/// One line of the directory; `extra` holds the sizes that do not fit 32 bits.
fn entry(file: &Arc<str>, name: &str, record: &Record<'_>, mut extra: &[u8]) -> Result<Entry, WeightsError> {
    let unsupported = |what: String| WeightsError::Unsupported { file: file.to_string(), what };
    if record.u16(8) & 1 != 0 {
        return Err(unsupported(format!("encrypted zip entry {}", shown(name))));
    }
    let deflated = match record.u16(10) {
        0 => false,
        8 => true,
        method => return Err(unsupported(format!("zip entry {} with compression {method}", shown(name)))),
    };
    let (mut compressed, mut size, mut header) = (record.u32(20), record.u32(24), record.u32(42));
    while extra.len() >= 4 {
        let field = Record(extra);
        let (id, length) = (field.u16(0), field.u16(2) as usize);
        let Some(body) = extra.get(4..4 + length) else { break };
        if id == 1 {
            // In this order, and each only where the 32-bit field is full.
            let mut at = 0;
            for value in [&mut size, &mut compressed, &mut header] {
                if *value == 0xffff_ffff && body.len() >= at + 8 {
                    *value = Record(body).u64(at);
                    at += 8;
                }
            }
        }
        extra = &extra[4 + length..];
    }
    if !deflated && compressed != size {
        return Err(WeightsError::Damaged {
            file: file.to_string(),
            part: format!("zip entry {}", shown(name)),
            expected: format!("{size} stored bytes"),
            got: compressed.to_string(),
        });
    }
    Ok(Entry { deflated, compressed, size, header })
}

/// The place of the central directory. It is looked for from the end, since a comment may follow.
fn directory(file: &Arc<str>, bytes: &[u8]) -> Result<(usize, usize), WeightsError> {
    let damaged = |expected: &str, got: String| WeightsError::Damaged {
        file: file.to_string(),
        part: "end of the zip directory".into(),
        expected: expected.into(),
        got,
    };
    let lowest = bytes.len().saturating_sub(22 + 0xffff);
    let found = (lowest..=bytes.len().saturating_sub(22)).rev().find(|&at| {
        let record = Record(&bytes[at..]);
        record.u32(0) == 0x0605_4b50 && at as u64 + 22 + record.u16(20) == bytes.len() as u64
    });
    let Some(at) = found.filter(|_| bytes.len() >= 22) else {
        return Err(damaged("a record in the last 65557 bytes", "none: the file is cut or is no zip".into()));
    };
    let record = Record(&bytes[at..]);
    let (mut size, mut start, mut before) = (record.u32(12), record.u32(16), at as u64);
    if let Some(locator) = at.checked_sub(20).map(|place| Record(&bytes[place..at]))
        && locator.u32(0) == 0x0706_4b50
    {
        let place = usize::try_from(locator.u64(8)).ok().and_then(|place| bytes.get(place..at)).map(Record);
        let Some(wide) = place.filter(|wide| wide.0.len() >= 56 && wide.u32(0) == 0x0606_4b50) else {
            return Err(damaged("a 64-bit record at the place named", format!("none at {}", locator.u64(8))));
        };
        (size, start, before) = (wide.u64(40), wide.u64(48), locator.u64(8));
    }
    match start.checked_add(size) {
        Some(end) if end <= before => Ok((start as usize, end as usize)),
        _ => Err(damaged(
            &format!("a directory that ends by byte {before}"),
            format!("{size} bytes from {start}"),
        )),
    }
}
