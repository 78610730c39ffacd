//! `digits`: 1797 handwritten digits of 8×8 pixels, embedded in the binary.
//!
//! The test half of *Optical Recognition of Handwritten Digits* (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository,
//! 1998, <https://doi.org/10.24432/C50P49>), licensed CC BY 4.0; only the encoding was changed. `digits.bin` is one zlib
//! stream of 1797 labels and then 1797·64 gray levels 0 to 16, in the order of the original file. See `digits.md`.
//!
//! The split is fixed and stratified. Ordered by label and, within a label, by place in the file, sample `p` is for
//! evaluation when `⌊(p+1)·360/1797⌋ > ⌊p·360/1797⌋`: 360 of them, spread evenly over every class. Within a split samples
//! keep the order of the file. Gray level `g` becomes the byte `⌊(255·g + 8)/16⌋`.

use super::dataset::error::DataError;
use super::dataset::{CacheUse, Dataset, Split};
use super::{DatasetEntry, Origin};
use crate::augment::normalize::Normalize;
use crate::augment::picture::ImageShape;
use flate2::read::ZlibDecoder;
use std::io::Read;
use std::sync::Arc;

/// The row of the table.
pub const DIGITS: DatasetEntry = DatasetEntry {
    name: "digits",
    about: "1797 handwritten digits, 8x8 gray, 10 classes, part of the program (UCI, CC BY 4.0)",
    origin: Origin::Embedded(open),
};

const SAMPLES: usize = 1797;
const TEST_SAMPLES: usize = 360;
const SHAPE: ImageShape = ImageShape::new(1, 8, 8);
const LEVELS: u16 = 16;

fn open() -> Result<Dataset, DataError> {
    let mut bytes = Vec::with_capacity(SAMPLES * (1 + SHAPE.len()));
    ZlibDecoder::new(&include_bytes!("digits.bin")[..])
        .read_to_end(&mut bytes)
        .expect("the embedded file is whole");
    let (labels, levels) = bytes.split_at(SAMPLES);

    let mut order: Vec<usize> = (0..SAMPLES).collect();
    order.sort_by_key(|&i| labels[i]);
    let mut is_test = vec![false; SAMPLES];
    for (p, &i) in order.iter().enumerate() {
        is_test[i] = (p + 1) * TEST_SAMPLES / SAMPLES > p * TEST_SAMPLES / SAMPLES;
    }

    let split = |test: bool| {
        let members: Vec<usize> = (0..SAMPLES).filter(|&i| is_test[i] == test).collect();
        let level = |g: &u8| ((u16::from(*g) * 255 + LEVELS / 2) / LEVELS) as u8;
        let pixels = members.iter().flat_map(|&i| &levels[i * SHAPE.len()..(i + 1) * SHAPE.len()]).map(level);
        let labels = members.iter().map(|&i| labels[i].into()).collect();
        Arc::new(Split::in_memory(SHAPE, pixels.collect(), labels))
    };
    Ok(Dataset {
        name: DIGITS.name,
        class_names: (0..10).map(|digit| digit.to_string()).collect(),
        shape: SHAPE,
        normalize: Normalize::new(&[0.3054], &[0.3759]),
        train: split(false),
        test: split(true),
        skipped: Vec::new(),
        cache: CacheUse::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_strata_and_statistics() {
        let digits = open().expect("embedded");
        assert_eq!((digits.train.len(), digits.test.len(), digits.n_classes()), (1437, 360, 10));
        for class in 0..10 {
            let count = |split: &Split| split.labels().iter().filter(|&&label| label == class).count();
            let (train, test) = (count(&digits.train), count(&digits.test));
            let share = (train + test) as f64 * 360.0 / 1797.0;
            assert!((test as f64 - share).abs() < 1.0, "class {class}: {test} of {}", train + test);
        }
        let pixels = digits.train.all_pixels().expect("in memory");
        let n = pixels.len() as f64;
        let mean = pixels.iter().map(|&v| f64::from(v) / 255.0).sum::<f64>() / n;
        let variance = pixels.iter().map(|&v| (f64::from(v) / 255.0 - mean).powi(2)).sum::<f64>() / n;
        // The statistics are given to four places.
        assert!((mean - digits.normalize.mean[0]).abs() <= 0.5e-4);
        assert!((variance.sqrt() - digits.normalize.std[0]).abs() <= 0.5e-4);
    }

    #[test]
    fn the_first_digit_is_the_zero_of_the_file() {
        // Row 0 of the original file, label 0; it is the first of its class, so for training.
        let digits = open().expect("embedded");
        let first = digits.train.pixels(0).expect("in memory");
        assert_eq!(digits.train.labels()[0], 0);
        let level = |g: u16| ((g * 255 + 8) / 16) as u8;
        assert_eq!(first[..8], [0, 0, 5, 13, 9, 1, 0, 0].map(level));
        assert_eq!(first[56..], [0, 0, 6, 13, 10, 0, 0, 0].map(level));
    }
}
