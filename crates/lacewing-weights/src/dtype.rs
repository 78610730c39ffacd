//! Element types of checkpoints and their conversion; O(1) an element.

use std::fmt;

use half::{bf16, f16};

/// The type of a tensor's elements as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// 4 exponent and 3 fraction bits, bias 7, no infinity, NaN only at all ones.
    F8E4m3,
    /// 5 exponent and 2 fraction bits: the upper half of binary16.
    F8E5m2,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, zero or not.
    Bool,
}

/// Each type with its name in safetensors, in `torch`, and as a storage class of `torch`.
const NAMES: &[(Dtype, &str, &str, &str)] = &[
    (Dtype::F64, "F64", "float64", "DoubleStorage"),
    (Dtype::F32, "F32", "float32", "FloatStorage"),
    (Dtype::F16, "F16", "float16", "HalfStorage"),
    (Dtype::Bf16, "BF16", "bfloat16", "BFloat16Storage"),
    (Dtype::F8E4m3, "F8_E4M3", "float8_e4m3fn", ""),
    (Dtype::F8E5m2, "F8_E5M2", "float8_e5m2", ""),
    (Dtype::I64, "I64", "int64", "LongStorage"),
    (Dtype::I32, "I32", "int32", "IntStorage"),
    (Dtype::I16, "I16", "int16", "ShortStorage"),
    (Dtype::I8, "I8", "int8", "CharStorage"),
    (Dtype::U64, "U64", "uint64", ""),
    (Dtype::U32, "U32", "uint32", ""),
    (Dtype::U16, "U16", "uint16", ""),
    (Dtype::U8, "U8", "uint8", "ByteStorage"),
    (Dtype::Bool, "BOOL", "bool", "BoolStorage"),
];

impl Dtype {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        use Dtype::*;
        matches!(self, F64 | F32 | F16 | Bf16 | F8E4m3 | F8E5m2)
    }

    pub(crate) fn of_safetensors(name: &str) -> Option<Dtype> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// `float32` for `torch.float32`.
    pub(crate) fn of_torch(name: &str) -> Option<Dtype> {
        NAMES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// `FloatStorage` for `torch.FloatStorage`; an untyped storage counts bytes.
    pub(crate) fn of_storage(name: &str) -> Option<Dtype> {
        match name {
            "" => None,
            "UntypedStorage" => Some(Dtype::U8),
            _ => NAMES.iter().find(|row| row.3 == name).map(|row| row.0),
        }
    }

    /// The value of one little-endian element of a float type.
    pub(crate) fn float(self, bytes: &[u8]) -> Option<f64> {
        Some(match (self, bytes) {
            (Dtype::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f64(),
            (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f64(),
            (Dtype::F8E5m2, &[a]) => f16::from_le_bytes([0, a]).to_f64(),
            (Dtype::F8E4m3, &[a]) => e4m3(a),
            _ => return None,
        })
    }

    /// The same as binary32, keeping the payload of a NaN where the formats allow it.
    pub(crate) fn float32(self, bytes: &[u8]) -> Option<f32> {
        Some(match (self, bytes) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => self.float(bytes)? as f32,
        })
    }

    /// The value of one little-endian element of an integer type.
    pub(crate) fn integer(self, bytes: &[u8]) -> Option<i128> {
        let mut wide = [0u8; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        Some(match (self, bytes.len()) {
            (Dtype::I64, 8) => (unsigned as i64).into(),
            (Dtype::I32, 4) => (unsigned as u32 as i32).into(),
            (Dtype::I16, 2) => (unsigned as u16 as i16).into(),
            (Dtype::I8, 1) => (unsigned as u8 as i8).into(),
            (Dtype::U64, 8) | (Dtype::U32, 4) | (Dtype::U16, 2) | (Dtype::U8, 1) => unsigned.into(),
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|row| row.0 == *self).map_or("unknown", |row| row.1);
        f.write_str(name)
    }
}

/// (−1)^s · 2^(e−7) · (1 + m/8), or 2^−6 · m/8 where e is 0.
fn e4m3(byte: u8) -> f64 {
    let sign = if byte & 0x80 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
    match (exponent, byte & 7) {
        (15, 7) => f64::NAN.copysign(sign),
        (0, _) => sign * fraction * 2f64.powi(-6),
        _ => sign * (1.0 + fraction) * 2f64.powi(exponent - 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_in_the_table_once() {
        for (i, row) in NAMES.iter().enumerate() {
            assert_eq!(Dtype::of_safetensors(row.1), Some(row.0));
            assert_eq!(Dtype::of_torch(row.2), Some(row.0));
            assert_eq!(row.0.to_string(), row.1);
            assert!(NAMES[..i].iter().all(|other| other.0 != row.0));
            let bytes = vec![0u8; row.0.size()];
            assert_eq!(row.0.float(&bytes).is_some(), row.0.is_float());
            assert_eq!(row.0.integer(&bytes).is_some(), !row.0.is_float() && row.0 != Dtype::Bool);
        }
    }

    #[test]
    fn eight_bit_floats_follow_their_definition() {
        let e4 = |byte: u8| Dtype::F8E4m3.float(&[byte]).unwrap();
        let e5 = |byte: u8| Dtype::F8E5m2.float(&[byte]).unwrap();
        assert_eq!((e4(0x38), e4(0x7e), e4(0xfe)), (1.0, 448.0, -448.0));
        assert_eq!((e4(0x01), e4(0x08)), (2f64.powi(-9), 2f64.powi(-6)));
        assert!(e4(0x7f).is_nan() && e4(0xff).is_nan());
        assert_eq!((e5(0x3c), e5(0x7b), e5(0x7c)), (1.0, 57344.0, f64::INFINITY));
        assert_eq!(e5(0x01), 2f64.powi(-16));
    }
}
