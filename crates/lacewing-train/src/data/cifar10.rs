//! `cifar10`: 60,000 color pictures of 32×32 pixels in 10 classes (Krizhevsky 2009).
//!
//! Read from the original binary batches (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`: 10,000 records of a
//! label byte and 3·32·32 pixel bytes) or from pictures in `{train,test}/CLASS/ID.jpg`; either in a folder or in a tar
//! archive, plain, gzip, xz or zstd, which is read without being unpacked. A decoded archive is cached.

use super::dataset::error::DataError;
use super::dataset::{CacheUse, Dataset, OpenOptions, Split, SplitName};
use super::source::archive::{self, Entry};
use super::source::cache::CacheFile;
use super::source::decode::{Contents, Feed, RawPicture, decode_all};
use super::source::{folder, picture, read_exactly};
use super::{DatasetEntry, Origin};
use crate::augment::normalize::Normalize;
use crate::augment::picture::ImageShape;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The row of the table.
pub const CIFAR10: DatasetEntry = DatasetEntry {
    name: "cifar10",
    about: "60,000 color pictures, 32x32, 10 classes (Krizhevsky 2009)",
    origin: Origin::AtPath { expects: EXPECTS, open },
};

const EXPECTS: &str = "a folder or a .tar, .tar.gz, .tar.xz or .tar.zst with data_batch_{1..5}.bin and test_batch.bin, \
                       or with {train,test}/CLASS/ID.jpg";

const SHAPE: ImageShape = ImageShape::new(3, 32, 32);
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The binary batches: five for training, the last for evaluation.
const BATCHES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
const RECORDS: usize = 10_000;
const RECORD: usize = 1 + SHAPE.len();

/// The longest file of one 32×32 picture, in bytes.
const MAX_PICTURE: u64 = 1 << 20;

fn open(path: &Path, options: &OpenOptions) -> Result<Dataset, DataError> {
    if path.is_dir() {
        return Ok(dataset(read_folder(path, options, RECORDS)?, CacheUse::None));
    }
    let cache = CacheFile::locate(&options.cache, CIFAR10.name, path);
    if let Some(file) = &cache
        && let Some(contents) = file.read(options.on_bad_image)
    {
        return Ok(dataset(contents, CacheUse::Read(file.path.clone())));
    }
    let contents = read_archive(path, options, RECORDS)?;
    let outcome = match cache.map(|file| (file.write(&contents), file.path)) {
        None => CacheUse::None,
        Some((Ok(()), path)) => CacheUse::Written(path),
        Some((Err(source), path)) => CacheUse::Failed { path, source },
    };
    Ok(dataset(contents, outcome))
}

fn dataset(contents: Contents, cache: CacheUse) -> Dataset {
    Dataset {
        name: CIFAR10.name,
        class_names: contents.class_names,
        shape: contents.shape,
        normalize: Normalize::new(&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616]),
        train: Arc::new(contents.train),
        test: Arc::new(contents.test),
        skipped: contents.skipped,
        cache,
    }
}

fn read_folder(root: &Path, options: &OpenOptions, records: usize) -> Result<Contents, DataError> {
    for below in [root.to_owned(), root.join("cifar-10-batches-bin")] {
        if !BATCHES.iter().any(|name| below.join(name).exists()) {
            continue;
        }
        let read = |name: &&str| {
            let path = below.join(name);
            let mut file =
                File::open(&path).map_err(|_| DataError::Missing { path: path.clone(), expects: EXPECTS })?;
            read_exactly(&mut file, &path, "the batch", (records * RECORD) as u64)
        };
        let batches = BATCHES.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        return from_batches(root, &batches);
    }
    let Some((train, test)) = folder::split_folders(root) else {
        return Err(DataError::Layout { path: root.to_owned(), expects: EXPECTS });
    };
    let found = decode_all(root, SHAPE, options, |feed| {
        for (split, below) in [(SplitName::Train, train), (SplitName::Test, test)] {
            for (class, files) in folder::list(&below)? {
                for path in files {
                    let mut input =
                        File::open(&path).map_err(|source| DataError::Io { path: path.clone(), source })?;
                    let io = |source| DataError::Io { path: path.clone(), source };
                    let size = input.metadata().map_err(io)?.len();
                    if size > MAX_PICTURE {
                        let what = "the file".to_owned();
                        return Err(DataError::TooLarge { path, what, limit: MAX_PICTURE });
                    }
                    let bytes = read_exactly(&mut input, &path, "the file", size)?;
                    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if !feed.push(RawPicture { split, class: class.clone(), file, bytes }) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    })?;
    found.into_contents(root, CLASSES.len())
}

fn read_archive(path: &Path, options: &OpenOptions, records: usize) -> Result<Contents, DataError> {
    let mut batches: [Option<Vec<u8>>; 6] = Default::default();
    let found = decode_all(path, SHAPE, options, |feed| {
        archive::for_each_file(path, |entry| take(path, entry, records, &mut batches, feed))
    })?;
    if batches.iter().any(Option::is_some) {
        let mut whole = Vec::with_capacity(BATCHES.len());
        for (batch, name) in batches.into_iter().zip(BATCHES) {
            whole.push(batch.ok_or_else(|| DataError::Missing { path: path.join(name), expects: EXPECTS })?);
        }
        return from_batches(path, &whole);
    }
    if found.is_empty() {
        return Err(DataError::Layout { path: path.to_owned(), expects: EXPECTS });
    }
    found.into_contents(path, CLASSES.len())
}

/// Takes one entry of an archive: a binary batch, a picture in `…/SPLIT/CLASS/FILE`, or nothing of ours.
fn take(
    path: &Path,
    entry: &mut Entry<'_>,
    records: usize,
    batches: &mut [Option<Vec<u8>>; 6],
    feed: &mut Feed,
) -> Result<bool, DataError> {
    let mut parts = entry.name.rsplit('/');
    let file = parts.next().unwrap_or_default().to_owned();
    if let Some(place) = BATCHES.iter().position(|name| *name == file) {
        let expected = (records * RECORD) as u64;
        let bytes = entry.read(expected)?;
        if (bytes.len() as u64) < expected {
            let (path, what, got) = (path.to_owned(), entry.name.to_owned(), bytes.len() as u64);
            return Err(DataError::Truncated { path, what, expected, got });
        }
        if batches[place].replace(bytes).is_some() {
            return Err(DataError::Duplicate { path: path.to_owned(), entry: entry.name.to_owned() });
        }
        return Ok(true);
    }
    let (Some(class), Some(split)) = (parts.next(), parts.next().and_then(folder::split_of)) else {
        return Ok(true);
    };
    if !picture::is_picture(&file) || file.starts_with('.') {
        return Ok(true);
    }
    let class = class.to_owned();
    Ok(feed.push(RawPicture { split, class, file, bytes: entry.read(MAX_PICTURE)? }))
}

/// Records of a label and three planes: the layout of a picture already.
fn from_batches(path: &Path, batches: &[Vec<u8>]) -> Result<Contents, DataError> {
    let split = |batches: &[Vec<u8>]| {
        let records = batches.iter().map(|batch| batch.len() / RECORD).sum::<usize>();
        let (mut labels, mut pixels) =
            (Vec::with_capacity(records), Vec::with_capacity(records * SHAPE.len()));
        for record in batches.iter().flat_map(|batch| batch.chunks_exact(RECORD)) {
            let label = u32::from(record[0]);
            if label as usize >= CLASSES.len() {
                let (path, index, n_classes) = (path.to_owned(), labels.len(), CLASSES.len());
                return Err(DataError::Label { path, index, label, n_classes });
            }
            labels.push(label);
            pixels.extend_from_slice(&record[1..]);
        }
        Ok(Split::in_memory(SHAPE, pixels, labels))
    };
    Ok(Contents {
        class_names: CLASSES.map(str::to_owned).to_vec(),
        shape: SHAPE,
        train: split(&batches[..5])?,
        test: split(&batches[5..])?,
        skipped: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::source::archive::tests::{KINDS, archive};
    use super::*;
    use crate::data::{CacheMode, OnBadImage};
    use image::{ImageBuffer, ImageFormat, Rgb};
    use std::io::Cursor;
    use std::path::PathBuf;
    use std::time::Instant;

    type Files = Vec<(String, Vec<u8>)>;

    /// A picture whose pixels tell its place.
    fn png(class: usize, id: usize, side: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        ImageBuffer::from_fn(side, side, |x, y| Rgb([class as u8, id as u8, (x * 7 + y) as u8]))
            .write_to(&mut bytes, ImageFormat::Png)
            .expect("memory");
        bytes.into_inner()
    }

    /// Three pictures a class for training and one for evaluation, in an order that is not sorted.
    fn pictures() -> Files {
        let mut files = vec![("cifar/README".to_owned(), b"not a picture".to_vec())];
        for (split, n) in [("test", 1), ("train", 3)] {
            for id in (0..n).rev() {
                for (label, class) in CLASSES.iter().enumerate() {
                    files.push((format!("cifar/{split}/{class}/{id}.png"), png(label, id, 32)));
                }
            }
        }
        files
    }

    fn batches() -> Files {
        let record = |batch: usize, r: usize| {
            let mut record = vec![(batch + r) as u8 % 10];
            record.extend((0..SHAPE.len()).map(|i| (i * 31 + r * 7 + batch) as u8));
            record
        };
        let file = |(batch, name): (usize, &&str)| {
            (format!("cifar-10-batches-bin/{name}"), (0..3).flat_map(|r| record(batch, r)).collect())
        };
        BATCHES.iter().enumerate().map(file).collect()
    }

    fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("writable");
        (folder, path)
    }

    fn unpack(files: &Files) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("writable");
            std::fs::write(path, bytes).expect("writable");
        }
        folder
    }

    fn options(workers: usize) -> OpenOptions {
        OpenOptions { workers, cache: CacheMode::Off, ..OpenOptions::default() }
    }

    fn check(contents: &Contents) {
        assert_eq!(contents.class_names, CLASSES);
        let sorted: Vec<u32> = (0..30).map(|i| i / 3).collect();
        assert_eq!(contents.train.labels(), sorted);
        assert_eq!(contents.test.labels(), (0..10).collect::<Vec<u32>>());
        for i in 0..30 {
            let pixels = contents.train.pixels(i).expect("in memory");
            assert_eq!((pixels[0], pixels[1024], pixels[2048 + 33]), ((i / 3) as u8, (i % 3) as u8, 8));
        }
    }

    #[test]
    fn every_archive_kind_and_the_folder_give_the_same_pictures() {
        for kind in KINDS {
            for workers in [1, 3] {
                let (_folder, path) = write("pictures", &archive(kind, &pictures()));
                check(&read_archive(&path, &options(workers), 3).expect(kind));
            }
        }
        let folder = unpack(&pictures());
        check(&read_folder(&folder.path().join("cifar"), &options(2), 3).expect("a valid folder"));
    }

    #[test]
    fn binary_batches_from_folder_and_archive() {
        let folder = unpack(&batches());
        let (_folder, path) = write("batches", &archive("gzip", &batches()));
        let a = read_folder(folder.path(), &options(1), 3).expect("a valid folder");
        let b = read_archive(&path, &options(1), 3).expect("a valid archive");
        for contents in [a, b] {
            assert_eq!(contents.train.labels(), [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]);
            assert_eq!(contents.test.labels(), [5, 6, 7]);
            assert_eq!(contents.test.pixels(2).expect("in memory")[..2], [19, 50]);
        }
    }

    #[test]
    fn damaged_batches_are_named() {
        let mut short = batches();
        short[3].1.truncate(5000);
        let folder = unpack(&short);
        let text = |error: DataError| error.to_string();
        let error = text(read_folder(folder.path(), &options(1), 3).expect_err("a short batch"));
        assert!(
            error.contains("data_batch_4.bin") && error.contains("5000") && error.contains("9219"),
            "{error}"
        );
        let (_folder, path) = write("batches", &archive("tar", &short));
        let error = text(read_archive(&path, &options(1), 3).expect_err("a short batch"));
        assert!(
            error.contains("data_batch_4.bin") && error.contains("5000") && error.contains("9219"),
            "{error}"
        );

        let mut label = batches();
        label[0].1[0] = 10;
        let (_folder, path) = write("batches", &archive("tar", &label));
        let error = text(read_archive(&path, &options(1), 3).expect_err("a label of 10"));
        assert!(error.contains("label 10") && error.contains("place 0"), "{error}");

        let mut missing = batches();
        missing.remove(5);
        let (_folder, path) = write("batches", &archive("tar", &missing));
        let error = text(read_archive(&path, &options(1), 3).expect_err("a batch less"));
        assert!(error.contains("test_batch.bin"), "{error}");
    }

    #[test]
    fn a_bad_picture_stops_or_is_skipped() {
        for bad in [b"not a picture".to_vec(), png(3, 1, 16)] {
            let mut files = pictures();
            let place =
                files.iter().position(|(name, _)| name == "cifar/train/cat/1.png").expect("it is there");
            files[place].1 = bad;
            let (_folder, path) = write("pictures.tar", &archive("tar", &files));
            let error = read_archive(&path, &options(2), 3).expect_err("one bad picture");
            assert!(error.is_bad_image() && error.to_string().contains("train/cat/1.png"), "{error}");
            let skip = OpenOptions { on_bad_image: OnBadImage::Skip, ..options(2) };
            let contents = read_archive(&path, &skip, 3).expect("one picture less");
            assert_eq!((contents.train.len(), contents.skipped.len()), (29, 1));
            assert!(contents.skipped[0].contains("train/cat/1.png"));
        }
    }

    #[test]
    fn missing_classes_and_twice_the_same_are_errors() {
        let without = |unwanted: &str| {
            let mut files = pictures();
            files.retain(|(name, _)| !name.contains(unwanted));
            let (_folder, path) = write("pictures", &archive("tar", &files));
            read_archive(&path, &options(1), 3).expect_err(unwanted).to_string()
        };
        let nine = without("/frog/");
        assert!(nine.contains("9 classes, expected 10"), "{nine}");
        let gap = without("test/frog/");
        assert!(gap.contains("frog is missing in test"), "{gap}");
        let empty = without("test/");
        assert!(empty.contains("no pictures in test"), "{empty}");
        let nothing = without("/");
        assert!(nothing.contains("data_batch"), "{nothing}");
        let mut twice = pictures();
        twice.push(twice[5].clone());
        let (_folder, path) = write("pictures", &archive("tar", &twice));
        let error = read_archive(&path, &options(1), 3).expect_err("an entry twice").to_string();
        assert!(error.contains("twice") && error.contains("test/"), "{error}");
    }

    #[test]
    fn the_second_run_reads_the_cache() {
        let (folder, path) = write("pictures.tar.xz", &archive("xz", &pictures()));
        let cache = CacheMode::Folder(folder.path().join("cache"));
        let options = OpenOptions { cache, ..options(2) };
        let first = open(&path, &options).expect("a valid archive");
        assert!(matches!(first.cache, CacheUse::Written(_)), "{:?}", first.cache);
        let second = open(&path, &options).expect("a valid archive");
        assert!(matches!(second.cache, CacheUse::Read(_)), "{:?}", second.cache);
        assert_eq!(first.train.all_pixels(), second.train.all_pixels());
        assert_eq!(first.test.labels(), second.test.labels());
        // A place that cannot be written costs the cache, not the run.
        let options = OpenOptions { cache: CacheMode::Folder(path.join("no folder")), ..options };
        assert!(matches!(open(&path, &options).expect("a valid archive").cache, CacheUse::Failed { .. }));
    }

    #[test]
    fn the_real_archive() {
        let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
        let folder = std::env::var_os("LACEWING_DATA").map_or(beside, PathBuf::from);
        let path = folder.join("cifar10-images.tar.xz");
        if !path.exists() {
            eprintln!(
                "skipped: no {} (set LACEWING_DATA to the folder of cifar10-images.tar.xz)",
                path.display()
            );
            return;
        }
        let cache = tempfile::tempdir().expect("a temporary folder");
        let options =
            OpenOptions { cache: CacheMode::Folder(cache.path().to_owned()), ..OpenOptions::default() };
        let start = Instant::now();
        let dataset = open(&path, &options).expect("the real archive");
        let decoded = start.elapsed();
        assert_eq!((dataset.train.len(), dataset.test.len()), (50_000, 10_000));
        assert_eq!(dataset.class_names, CLASSES);
        for class in 0..10 {
            assert_eq!(dataset.train.labels().iter().filter(|&&label| label == class).count(), 5000);
        }
        let start = Instant::now();
        let again = open(&path, &options).expect("the cache");
        assert!(matches!(again.cache, CacheUse::Read(_)));
        assert!(again.train.all_pixels() == dataset.train.all_pixels());
        eprintln!("decoded and cached in {decoded:.2?}, read from the cache in {:.2?}", start.elapsed());
    }
}
