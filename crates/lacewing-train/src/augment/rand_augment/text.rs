//! timm's way to write RandAugment down: `rand-m9-n3-p1-mstd0.5-mmax30-inc1`, and `cutout1`, which is ours.

use super::RandAugment;
use std::str::FromStr;

/// What can be wrong with such a text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TextError {
    /// It is another policy's.
    #[error("`{text}` does not begin with `rand`")]
    NotRand {
        /// The text.
        text: String,
    },
    /// A section of no known name.
    #[error("unknown section `{section}` in `{text}`; known: {KEYS}, each before a number")]
    Section {
        /// The section.
        section: String,
        /// The text.
        text: String,
    },
    /// A section without the number it needs.
    #[error("`{section}` in `{text}` must be `{key}` and {expected}")]
    Number {
        /// The section.
        section: String,
        /// The text.
        text: String,
        /// Its name.
        key: String,
        /// What must follow.
        expected: &'static str,
    },
}

/// The names of sections.
const KEYS: &str = "m, n, p, mstd, mmax, inc, cutout";

impl FromStr for RandAugment {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut sections = text.split('-');
        if sections.next() != Some("rand") {
            return Err(TextError::NotRand { text: text.to_owned() });
        }
        let mut settings = Self::default();
        for section in sections {
            let (key, value) =
                section.split_at(section.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(section.len()));
            let wrong = |expected| TextError::Number {
                section: section.to_owned(),
                text: text.to_owned(),
                key: key.to_owned(),
                expected,
            };
            let number = || value.parse::<f64>().map_err(|_| wrong("a number"));
            let flag = || match value {
                "0" => Ok(false),
                "1" => Ok(true),
                _ => Err(wrong("0 or 1")),
            };
            match key {
                "m" => settings.magnitude = number()?,
                "n" => settings.num_ops = value.parse().map_err(|_| wrong("a whole number"))?,
                "p" => settings.prob = number()?,
                "mstd" => settings.std = number()?,
                "mmax" => settings.max_magnitude = number()?,
                "inc" => settings.increasing = flag()?,
                "cutout" => settings.cutout = flag()?,
                _ => {
                    return Err(TextError::Section { section: section.to_owned(), text: text.to_owned() });
                }
            }
        }
        Ok(settings)
    }
}
