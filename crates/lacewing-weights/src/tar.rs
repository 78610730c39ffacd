//! The members of a tar file as places in its bytes; O(members). Long names and sparse members are not needed: the
//! checkpoints that are tar files have four short names.

use std::sync::Arc;

use crate::WeightsError;
use crate::error::shown_bytes;

/// A regular file of the archive.
pub(crate) struct Member<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) start: usize,
    pub(crate) data: &'a [u8],
}

/// Whether the bytes open with a POSIX or GNU header.
pub(crate) fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

/// All regular files, in order. The archive ends at an empty header.
pub(crate) fn members<'a>(file: &Arc<str>, bytes: &'a [u8]) -> Result<Vec<Member<'a>>, WeightsError> {
    let truncated = |part: String, expected: u64, got: usize| WeightsError::Truncated {
        file: file.to_string(),
        part,
        expected,
        got: got as u64,
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(header) = bytes[at..].first_chunk::<512>() else {
            return Err(truncated("tar header".into(), 512, bytes.len() - at));
        };
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        let name = header[..100].split(|&byte| byte == 0).next().unwrap_or(&[]);
        let name = name.strip_prefix(b"./").unwrap_or(name);
        let Some(size) = size(&header[124..136]) else {
            return Err(WeightsError::Damaged {
                file: file.to_string(),
                part: format!("tar member {}", shown_bytes(name)),
                expected: "a size".into(),
                got: shown_bytes(&header[124..136]),
            });
        };
        let start = at + 512;
        let left = bytes.len() - start;
        let Some(length) = usize::try_from(size).ok().filter(|&length| length <= left) else {
            return Err(truncated(format!("tar member {}", shown_bytes(name)), size, left));
        };
        if matches!(header[156], b'0' | 0) {
            found.push(Member { name, start, data: &bytes[start..start + length] });
        }
        at = start + length.div_ceil(512).min(left.div_ceil(512)) * 512;
    }
    Ok(found)
}

/// Octal digits, or a binary number where the first bit is set.
fn size(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (zeros, number) = field[1..].split_at(3);
        let number: [u8; 8] = number.try_into().ok()?;
        return zeros.iter().all(|&byte| byte == 0).then_some(u64::from_be_bytes(number));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}
