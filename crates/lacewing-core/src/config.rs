//! Reading a structure's config: known keys, typed values, nearest names.

use serde_json::{Map, Value};

use crate::StructureError;

/// One key of a structure's config.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// One line on what it does, with its range.
    pub about: &'static str,
    /// The default as JSON; empty when there is none.
    pub default: &'static str,
}

impl Key {
    /// A key with its line and its default as JSON.
    pub(crate) const fn new(name: &'static str, about: &'static str, default: &'static str) -> Self {
        Self { name, about, default }
    }
}

/// The `pad` key, the same for every structure that has sizes to divide.
pub(crate) const PAD: Key = Key::new("pad", "pad sizes that do not divide with zeros", "false");

/// A structure's config with every key known. Values are read, and checked, by the structure.
#[derive(Clone, Debug)]
pub struct Options {
    structure: &'static str,
    keys: &'static [Key],
    map: Map<String, Value>,
}

impl Options {
    /// Takes the keys of `map` except `structure`.
    ///
    /// # Errors
    ///
    /// [`StructureError::UnknownKey`] for a key that is not among `keys`.
    pub fn new(
        structure: &'static str,
        keys: &'static [Key],
        map: &Map<String, Value>,
    ) -> Result<Self, StructureError> {
        let mut map = map.clone();
        map.retain(|key, _| key != "structure");
        if let Some(key) = map.keys().find(|key| keys.iter().all(|known| known.name != **key)) {
            let nearest = nearest(key, keys.iter().map(|key| key.name));
            return Err(StructureError::UnknownKey { structure, key: key.clone(), nearest });
        }
        Ok(Self { structure, keys, map })
    }

    /// The same config with `value` for `key`.
    pub(crate) fn with(mut self, key: &'static str, value: Value) -> Self {
        self.map.insert(key.to_owned(), value);
        self
    }

    /// The structure's name.
    pub fn structure(&self) -> &'static str {
        self.structure
    }

    /// Whether there is a key `key`.
    pub(crate) fn declares(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.name == key)
    }

    /// Whether the config itself gives `key`.
    pub(crate) fn given(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The value of `key`: the config's, else the default.
    ///
    /// # Panics
    ///
    /// When the structure asks for a key that it did not declare.
    pub(crate) fn value(&self, key: &'static str) -> Option<Value> {
        let known = self.keys.iter().find(|known| known.name == key);
        let known = known.unwrap_or_else(|| panic!("{} declares no key {key}", self.structure));
        self.map.get(key).cloned().or_else(|| serde_json::from_str(known.default).ok())
    }

    pub(crate) fn required(&self, key: &'static str) -> Result<Value, StructureError> {
        self.value(key).ok_or(StructureError::MissingKey { structure: self.structure, key })
    }

    pub(crate) fn flag(&self, key: &'static str) -> Result<bool, StructureError> {
        let value = self.required(key)?;
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false", &value))
    }

    /// A whole number in `low..=high`.
    pub(crate) fn size(&self, key: &'static str, low: usize, high: usize) -> Result<usize, StructureError> {
        let value = self.required(key)?;
        self.size_of(key, &value, low, high)
    }

    /// `value`, found under `key`, as a whole number in `low..=high`.
    pub(crate) fn size_of(
        &self,
        key: &'static str,
        value: &Value,
        low: usize,
        high: usize,
    ) -> Result<usize, StructureError> {
        let number = value.as_u64().ok_or_else(|| self.wrong(key, "a whole number", value))?;
        let size = usize::try_from(number).unwrap_or(usize::MAX);
        if !(low..=high).contains(&size) {
            return Err(self.range(key, number as f64, low as f64, high as f64));
        }
        Ok(size)
    }

    /// A number in `low..=high`.
    pub(crate) fn number(&self, key: &'static str, low: f64, high: f64) -> Result<f64, StructureError> {
        let value = self.required(key)?;
        let number = value.as_f64().ok_or_else(|| self.wrong(key, "a number", &value))?;
        if !(low..=high).contains(&number) {
            return Err(self.range(key, number, low, high));
        }
        Ok(number)
    }

    /// One of the names in `choices`; `expected` says them in words.
    pub(crate) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&str, T)],
        expected: &'static str,
    ) -> Result<T, StructureError> {
        let value = self.required(key)?;
        let found = choices.iter().find(|(name, _)| Some(*name) == value.as_str());
        found.map(|&(_, choice)| choice).ok_or_else(|| self.wrong(key, expected, &value))
    }

    pub(crate) fn wrong(&self, key: &str, expected: &'static str, got: &Value) -> StructureError {
        StructureError::WrongType {
            structure: self.structure,
            key: key.to_owned(),
            expected,
            got: got.to_string(),
        }
    }

    pub(crate) fn range(&self, key: &'static str, got: f64, low: f64, high: f64) -> StructureError {
        StructureError::OutOfRange { structure: self.structure, key, got, low, high }
    }

    /// The sizes after padding up to multiples, or an error when they do not divide and `pad` is off.
    ///
    /// `divisors` are those of `n_out` and of `n_in`, with the words for where they come from.
    pub(crate) fn padded(
        &self,
        (n_out, n_in): (usize, usize),
        divisors: (usize, usize),
        divisor_name: &'static str,
    ) -> Result<(usize, usize), StructureError> {
        let pad = self.flag("pad")?;
        let extend = |size_name, size: usize, divisor: usize| {
            let padded = size.div_ceil(divisor).saturating_mul(divisor);
            if padded == size || pad {
                return Ok(padded);
            }
            let structure = self.structure;
            Err(StructureError::Indivisible { structure, size_name, size, divisor_name, divisor, padded })
        };
        Ok((extend("n_out", n_out, divisors.0)?, extend("n_in", n_in, divisors.1)?))
    }
}

/// The known name that takes the fewest single-letter edits, if at most half of `name`'s letters (at least two).
pub(crate) fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let most = (name.chars().count() / 2).max(2);
    let found = known.map(|known| (edits(name, known), known)).min_by_key(|&(distance, _)| distance)?;
    (found.0 <= most).then_some(found.1)
}

/// Levenshtein distance: insertions, deletions and replacements that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_are_near() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(nearest("blcoks", ["block", "blocks", "pad"].into_iter()), Some("blocks"));
        assert_eq!(nearest("temperature", ["block", "pad"].into_iter()), None);
    }
}
