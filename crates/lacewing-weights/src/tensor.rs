//! One tensor of a checkpoint: a strided view of a storage that other tensors may share. Nothing is copied before
//! [`TensorEntry::to_f32`] and its siblings, which cost O(1) an element.

use std::sync::Arc;

use crate::error::shown;
use crate::{Dtype, WeightsError};

/// The bytes of one storage inside a file's bytes.
#[derive(Debug)]
pub(crate) struct Storage {
    bytes: Arc<Vec<u8>>,
    start: usize,
    len: usize,
    big_endian: bool,
}

impl Storage {
    /// Bytes `start .. start + len`; none where that is outside.
    pub(crate) fn new(
        bytes: Arc<Vec<u8>>,
        start: usize,
        len: usize,
        big_endian: bool,
    ) -> Option<Arc<Storage>> {
        let end = start.checked_add(len)?;
        (end <= bytes.len()).then(|| Arc::new(Storage { bytes, start, len, big_endian }))
    }

    /// A storage of its own that begins `offset` bytes into this one.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Option<Arc<Storage>> {
        let within = offset.checked_add(len)? <= self.len;
        within.then(|| Storage::new(self.bytes.clone(), self.start + offset, len, self.big_endian)).flatten()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// Where a tensor's elements lie in its storage, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) offset: usize,
    pub(crate) sizes: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

impl View {
    /// The row-major view of a whole storage.
    pub(crate) fn contiguous(sizes: Vec<usize>) -> View {
        let mut strides = vec![1usize; sizes.len()];
        for axis in (1..sizes.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(sizes[axis].max(1));
        }
        View { offset: 0, sizes, strides }
    }

    /// Π sizes; none on overflow.
    pub(crate) fn elements(&self) -> Option<usize> {
        if self.sizes.contains(&0) {
            return Some(0);
        }
        self.sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// One past the last element touched, offset + Σ (size − 1) · stride + 1, or 0 for an empty view; none on
    /// overflow.
    fn end(&self) -> Option<usize> {
        if self.sizes.contains(&0) {
            return Some(0);
        }
        self.sizes.iter().zip(&self.strides).try_fold(self.offset.checked_add(1)?, |end, (&size, &stride)| {
            end.checked_add((size - 1).checked_mul(stride)?)
        })
    }

    /// Whether the elements follow each other in row-major order. Axes of length 1 do not matter.
    fn is_contiguous(&self) -> bool {
        let mut next = 1usize;
        for (&size, &stride) in self.sizes.iter().zip(&self.strides).rev() {
            if size != 1 {
                if stride != next {
                    return false;
                }
                next = next.saturating_mul(size);
            }
        }
        true
    }
}

/// A named tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// The name, after [`stripped_prefix`](crate::WeightFile::stripped_prefix) is removed.
    pub name: String,
    /// The lengths of the axes; none for a scalar.
    pub shape: Vec<usize>,
    /// The type of the elements in the file.
    pub dtype: Dtype,
    file: Arc<str>,
    stored: Dtype,
    storage: Arc<Storage>,
    view: View,
    elements: usize,
}

impl TensorEntry {
    /// Checks the view against the storage: everything after this is within bounds.
    pub(crate) fn new(
        file: &Arc<str>,
        name: String,
        dtype: Dtype,
        storage: Arc<Storage>,
        view: View,
    ) -> Result<TensorEntry, WeightsError> {
        let wrong = |expected: String, got: String| {
            Err(WeightsError::Tensor { file: file.to_string(), tensor: shown(&name), expected, got })
        };
        if view.sizes.len() != view.strides.len() {
            return wrong(format!("{} strides", view.sizes.len()), view.strides.len().to_string());
        }
        let there = storage.len / dtype.size();
        let Some(elements) = view.elements() else {
            return wrong("a shape whose product fits 64 bits".into(), format!("{:?}", view.sizes));
        };
        match view.end() {
            Some(end) if end <= there => {}
            end => {
                let got = end.map_or("more than 64 bits can count".to_owned(), |end| end.to_string());
                return wrong(format!("at most {there} elements of {dtype} in the storage"), got);
            }
        }
        let shape = view.sizes.clone();
        Ok(TensorEntry { name, shape, dtype, file: file.clone(), stored: dtype, storage, view, elements })
    }

    /// The number of elements of the view.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The elements as f32, row-major. Half-precision values convert exactly, f64 rounds to nearest.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for integers and booleans.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        self.converted("f32", |bytes, _| self.stored.float32(bytes).ok_or_else(|| self.no_conversion("f32")))
    }

    /// The elements as f64, row-major and exact.
    ///
    /// # Errors
    /// As [`to_f32`](Self::to_f32).
    pub fn to_f64(&self) -> Result<Vec<f64>, WeightsError> {
        self.converted("f64", |bytes, _| self.stored.float(bytes).ok_or_else(|| self.no_conversion("f64")))
    }

    /// The elements of any integer type as u32, row-major.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for floats and booleans, [`WeightsError::Range`] for a value that does not fit.
    pub fn to_u32(&self) -> Result<Vec<u32>, WeightsError> {
        self.converted("u32", |bytes, index| {
            let value = self.stored.integer(bytes).ok_or_else(|| self.no_conversion("u32"))?;
            u32::try_from(value).map_err(|_| WeightsError::Range {
                file: self.file.to_string(),
                tensor: shown(&self.name),
                index,
                value,
                expected: "u32",
            })
        })
    }

    /// The elements in their own type, row-major, contiguous and little endian.
    pub fn raw_le_bytes(&self) -> Vec<u8> {
        if let Some(bytes) = self.plain_bytes() {
            return bytes.to_vec();
        }
        let mut out = Vec::with_capacity(self.elements * self.stored.size());
        self.visit(|bytes, _| {
            out.extend_from_slice(bytes);
            Ok(())
        })
        .expect("copying does not fail");
        out
    }

    /// Whether both are one view of one storage, as tied parameters are: equality of places, not of values.
    pub fn same_values_as(&self, other: &TensorEntry) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage) && self.stored == other.stored && self.view == other.view
    }

    fn no_conversion(&self, expected: &'static str) -> WeightsError {
        WeightsError::Dtype {
            file: self.file.to_string(),
            tensor: shown(&self.name),
            expected,
            got: self.stored,
        }
    }

    fn converted<T>(
        &self,
        unit: &'static str,
        convert: impl Fn(&[u8], usize) -> Result<T, WeightsError>,
    ) -> Result<Vec<T>, WeightsError> {
        // An empty tensor of the wrong type is as wrong as a full one.
        if (unit == "u32") == (self.stored.is_float() || self.stored == Dtype::Bool) {
            return Err(self.no_conversion(unit));
        }
        let mut out = Vec::with_capacity(self.elements);
        self.visit(|bytes, index| {
            out.push(convert(bytes, index)?);
            Ok(())
        })?;
        Ok(out)
    }

    /// The bytes of a view that is already contiguous and little endian.
    fn plain_bytes(&self) -> Option<&[u8]> {
        let size = self.stored.size();
        if self.elements == 0 {
            return Some(&[]);
        }
        let plain = self.view.is_contiguous() && (size == 1 || !self.storage.big_endian);
        let start = self.view.offset * size;
        plain.then(|| &self.storage.bytes()[start..start + self.elements * size])
    }

    /// Calls `each` with every element's little-endian bytes and row-major index.
    fn visit(
        &self,
        mut each: impl FnMut(&[u8], usize) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        if let Some(bytes) = self.plain_bytes() {
            let mut elements = bytes.chunks_exact(self.stored.size()).enumerate();
            return elements.try_for_each(|(index, element)| each(element, index));
        }
        let (bytes, size) = (self.storage.bytes(), self.stored.size());
        let big_endian = self.storage.big_endian;
        let mut give = |place: usize, index: usize| {
            let element = &bytes[place * size..(place + 1) * size];
            if big_endian && size > 1 {
                let mut turned = [0u8; 8];
                turned[..size].copy_from_slice(element);
                turned[..size].reverse();
                each(&turned[..size], index)
            } else {
                each(element, index)
            }
        };
        let View { offset, sizes, strides } = &self.view;
        let mut counter = vec![0usize; sizes.len()];
        let mut place = *offset;
        for index in 0..self.elements {
            give(place, index)?;
            for axis in (0..sizes.len()).rev() {
                counter[axis] += 1;
                if counter[axis] < sizes[axis] {
                    place += strides[axis];
                    break;
                }
                counter[axis] = 0;
                place -= strides[axis] * (sizes[axis] - 1);
            }
        }
        Ok(())
    }
}
