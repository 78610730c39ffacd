//! What follows an instruction in a pickle: counts, lines, numbers and strings; O(its bytes), borrowed.

use super::Node;
use super::machine::{BYTES, FALSE, Machine, Step, TRUE};
use crate::WeightsError;
use crate::error::shown;

impl<'a> Machine<'a, '_> {
    pub(super) fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let left = &self.program[self.at..];
        let Some(taken) = left.get(..count) else {
            return Err(WeightsError::Truncated {
                file: self.file.to_owned(),
                part: format!("pickle at byte {}", self.op_at),
                expected: count as u64,
                got: left.len() as u64,
            });
        };
        self.at += count;
        Ok(taken)
    }

    /// A little-endian count of `width` bytes.
    fn count(&mut self, width: usize) -> Step<u64> {
        let mut wide = [0u8; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// A line of ASCII without its end.
    pub(super) fn line(&mut self) -> Step<&'a str> {
        let left = &self.program[self.at..];
        let Some(end) = left.iter().position(|&byte| byte == b'\n') else {
            return Err(self.wrong("a line", "the end of the file"));
        };
        self.at += end + 1;
        std::str::from_utf8(&left[..end]).map_err(|_| self.wrong("a line of text", "other bytes"))
    }

    pub(super) fn integer(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'K' => self.count(1)? as i64,
            b'M' => self.count(2)? as i64,
            b'J' => i64::from(self.count(4)? as u32 as i32),
            b'I' | b'L' => {
                let line = self.line()?;
                match (op, line) {
                    (b'I', "00") => return self.put(FALSE),
                    (b'I', "01") => return self.put(TRUE),
                    _ => {}
                }
                let digits = line.strip_suffix('L').filter(|_| op == b'L').unwrap_or(line);
                let plain = digits.strip_prefix('-').unwrap_or(digits);
                match digits.parse::<i64>() {
                    Ok(value) => value,
                    Err(_) if !plain.is_empty() && plain.bytes().all(|digit| digit.is_ascii_digit()) => {
                        return self.push(Node::Long(digits.as_bytes()));
                    }
                    Err(_) => return Err(self.wrong("an integer", shown(line))),
                }
            }
            _ => {
                let length = self.count(if op == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                if bytes.len() > 8 {
                    return self.push(Node::Long(bytes));
                }
                // Two's complement, extended by its sign.
                let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                i64::from_le_bytes(wide)
            }
        };
        self.push(Node::Int(value))
    }

    /// A string with its length in `width` bytes. Python 2 wrote text as bytes.
    pub(super) fn string(&mut self, text: bool, width: usize) -> Step<()> {
        let length = self.count(width)?;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes) {
            Ok(content) if text => self.push(Node::Text(content)),
            _ => self.put(BYTES),
        }
    }

    /// A string of protocol 0. Nothing that needs an escape is the name of a tensor.
    pub(super) fn text_line(&mut self, quoted: bool) -> Step<()> {
        let left = &self.program[self.at..];
        let Some(end) = left.iter().position(|&byte| byte == b'\n') else {
            return Err(self.wrong("a line", "the end of the file"));
        };
        self.at += end + 1;
        let mut bytes = &left[..end];
        if quoted {
            match bytes {
                [open @ (b'\'' | b'"'), inner @ .., close] if open == close => bytes = inner,
                _ => return Err(self.wrong("a quoted string", "another line")),
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() && !text.contains('\\') => self.push(Node::Text(text)),
            _ => self.put(BYTES),
        }
    }

    pub(super) fn slot(&mut self, op: u8) -> Step<u64> {
        match op {
            b'q' | b'h' => self.count(1),
            b'r' | b'j' => self.count(4),
            0x94 => Ok(self.memo.len() as u64),
            _ => {
                let line = self.line()?;
                line.parse().map_err(|_| self.wrong("a memo slot", shown(line)))
            }
        }
    }
}
