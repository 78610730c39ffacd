//! The loader: shuffled, augmented, normalized batches, made ahead of the consumer.
//!
//! A producer thread fills batches with a pool of workers of its own and puts them into a bounded channel. Everything random
//! is a function of `(seed, epoch, place)`: the number of workers changes nothing, and a stream that starts in the middle of
//! an epoch gives the batches an unbroken one would have given, bit by bit.

mod maker;

use super::dataset::error::DataError;
use super::dataset::{Dataset, OnBadImage, SplitName};
use crate::augment::picture::ImageShape;
use crate::augment::{AugmentConfig, Pipeline};
use maker::{Maker, Mode};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// How batches are made.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Samples a batch, over all processes; the last one of an epoch may have fewer.
    pub batch_size: usize,
    /// This process, and how many share each batch: of n samples, numbers n·rank/ranks to n·(rank + 1)/ranks are its own.
    pub rank: usize,
    /// See `rank`.
    pub ranks: usize,
    /// The seed of order and augmentation.
    pub seed: u64,
    /// Training: leave out the last batch when it is not full.
    pub drop_last: bool,
    /// Working threads; 0 for one a core.
    pub workers: usize,
    /// Batches made before they are asked for.
    pub ahead: usize,
    /// ε of the soft targets, `(1-ε)·onehot + ε/n_classes`.
    pub label_smoothing: f64,
    /// What to do with a file that does not decode. Skipped in training, the next sample of the split takes its place;
    /// skipped in evaluation, its batch is smaller.
    pub on_bad_image: OnBadImage,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 128,
            rank: 0,
            ranks: 1,
            seed: 0,
            drop_last: true,
            workers: 0,
            ahead: 4,
            label_smoothing: 0.0,
            on_bad_image: OnBadImage::default(),
        }
    }
}

/// A place in a stream of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch of the epoch, from 0.
    pub batch: usize,
}

/// One batch. Give it back with [`Batches::recycle`] and its memory is used again.
#[derive(Debug, Default)]
pub struct Batch {
    /// Normalized pictures, `[B, channels, height, width]`.
    pub images: Vec<f32>,
    /// The label of each picture.
    pub labels: Vec<u32>,
    /// Distributions over the classes, `[B, n_classes]`, when augmentation mixes pictures or labels are smoothed.
    pub soft_targets: Option<Vec<f32>>,
    /// Samples of the batch over all processes.
    pub whole: usize,
    /// Where in the stream it is.
    pub position: Position,
}

impl Batch {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Makes streams of batches from one split.
pub struct Loader {
    maker: Arc<Maker>,
    pool: Arc<ThreadPool>,
}

impl Loader {
    /// Shuffled and augmented batches of the training split, epoch after epoch without end.
    ///
    /// # Errors
    /// A batch size of zero, or one with which `drop_last` leaves nothing; augmentation settings that do not fit.
    pub fn train(
        dataset: &Dataset,
        augment: &AugmentConfig,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let pipeline = Pipeline::train(augment, dataset.source(), options.label_smoothing)?;
        Self::new(dataset, SplitName::Train, Mode::Train, pipeline, options)
    }

    /// All samples of `split` once, in order, without augmentation, the last batch as small as it is.
    ///
    /// # Errors
    /// A batch size of zero; augmentation settings that do not fit.
    pub fn eval(
        dataset: &Dataset,
        split: SplitName,
        augment: &AugmentConfig,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let pipeline = Pipeline::eval(augment, dataset.source())?;
        Self::new(dataset, split, Mode::Eval, pipeline, LoaderOptions { drop_last: false, ..options })
    }

    /// All training samples once, shuffled, without augmentation: the first of them are a fair sample even where a data
    /// set is sorted by class.
    ///
    /// # Errors
    /// As [`Loader::eval`].
    pub fn sample(
        dataset: &Dataset,
        augment: &AugmentConfig,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let pipeline = Pipeline::eval(augment, dataset.source())?;
        let options = LoaderOptions { drop_last: false, ..options };
        Self::new(dataset, SplitName::Train, Mode::Sample, pipeline, options)
    }

    fn new(
        dataset: &Dataset,
        split: SplitName,
        mode: Mode,
        pipeline: Pipeline,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(options.workers)
            .thread_name(|i| format!("lacewing-data-{i}"))
            .build()
            .map_err(|source| DataError::Threads { workers: options.workers, source })?;
        let maker = Maker {
            split: Arc::clone(dataset.split(split)),
            mode,
            n_classes: dataset.n_classes(),
            pipeline,
            options,
            bad: Mutex::default(),
        };
        if maker.batches_per_epoch() == 0 {
            let (batch_size, samples) = (maker.options.batch_size, maker.split.len());
            return Err(DataError::BatchSize { batch_size, samples });
        }
        Ok(Self { maker: Arc::new(maker), pool: Arc::new(pool) })
    }

    /// Batches of one epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.maker.batches_per_epoch()
    }

    /// Samples of the split.
    pub fn samples(&self) -> usize {
        self.maker.split.len()
    }

    /// Samples a full batch, over all processes.
    pub fn batch_size(&self) -> usize {
        self.maker.options.batch_size
    }

    /// Shape of every picture of a batch.
    pub fn image_shape(&self) -> ImageShape {
        self.maker.pipeline.shape()
    }

    /// Whether batches have soft targets.
    pub fn has_soft_targets(&self) -> bool {
        self.maker.pipeline.has_soft_targets()
    }

    /// Names of the pictures that did not decode and were skipped, so far.
    pub fn skipped(&self) -> Vec<String> {
        let bad = self.maker.bad.lock().expect("no worker panics while it holds the list");
        bad.iter().map(|&index| self.maker.split.name(index)).collect()
    }

    /// The batches from `start` on: in training without end, in evaluation to the end of the split. A batch number beyond
    /// the epoch counts on into the next ones.
    pub fn stream(&self, start: Position) -> Batches {
        let (to_consumer, batches) = sync_channel(self.maker.options.ahead.max(1));
        let (recycle, recycled) = channel();
        let (maker, pool) = (Arc::clone(&self.maker), Arc::clone(&self.pool));
        let producer = thread::spawn(move || produce(&maker, &pool, start, &to_consumer, &recycled));
        Batches { batches: Some(batches), recycle, producer: Some(producer) }
    }
}

/// Fills batches until the stream ends, fails, or nobody takes them.
fn produce(
    maker: &Maker,
    pool: &ThreadPool,
    start: Position,
    to_consumer: &SyncSender<Result<Batch, DataError>>,
    recycled: &Receiver<Batch>,
) {
    let per_epoch = maker.batches_per_epoch();
    let mut epoch = start.epoch + (start.batch / per_epoch) as u64;
    let mut first = start.batch % per_epoch;
    loop {
        let order = maker.order(epoch);
        for batch in first..per_epoch {
            let mut made = recycled.try_recv().unwrap_or_default();
            made.position = Position { epoch, batch };
            let result = pool.install(|| maker.fill(&order, &mut made)).map(|()| made);
            let failed = result.is_err();
            if to_consumer.send(result).is_err() || failed {
                return;
            }
        }
        if maker.mode != Mode::Train {
            return;
        }
        (epoch, first) = (epoch + 1, 0);
    }
}

/// A stream of batches. After an error it ends.
pub struct Batches {
    batches: Option<Receiver<Result<Batch, DataError>>>,
    recycle: Sender<Batch>,
    producer: Option<JoinHandle<()>>,
}

impl Batches {
    /// Takes the memory of a batch that is no longer needed.
    pub fn recycle(&self, batch: Batch) {
        // A stream that has ended needs no memory.
        let _ = self.recycle.send(batch);
    }

    /// Waits for the producer; passes its panic on.
    fn join(&mut self) {
        if let Some(Err(panic)) = self.producer.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        if batch.is_none() {
            self.join();
        }
        batch
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // Without a receiver the producer's next send fails.
        self.batches = None;
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{OpenOptions, open};
    use serde_json::json;
    use std::fs;
    use std::time::Instant;

    fn digits() -> Dataset {
        open("digits", None, &OpenOptions::default()).expect("embedded")
    }

    fn everything() -> AugmentConfig {
        serde_json::from_value(json!({
            "random_resized_crop": {"size": 8, "filter": "random"},
            "random_crop": {"padding": 1},
            "horizontal_flip": true,
            "rand_augment": "rand-m9-n2-mstd1-inc1-cutout1",
            "random_erasing": {"mode": "pixel", "count": 3},
            "mixup": {"prob": 0.5},
            "cutmix": true
        }))
        .expect("valid settings")
    }

    fn options(workers: usize) -> LoaderOptions {
        LoaderOptions { batch_size: 100, seed: 9, workers, label_smoothing: 0.1, ..LoaderOptions::default() }
    }

    /// Images, labels and targets as bits, so that equal means equal.
    type Bits = (Vec<u32>, Vec<u32>, Vec<u32>, Position);

    fn bits(batch: &Batch) -> Bits {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
        let soft = batch.soft_targets.as_deref().map(bits).unwrap_or_default();
        (bits(&batch.images), batch.labels.clone(), soft, batch.position)
    }

    fn take(loader: &Loader, start: Position, n: usize) -> Vec<Bits> {
        let mut stream = loader.stream(start);
        let mut taken = Vec::new();
        while taken.len() < n {
            let batch = stream.next().expect("training has no end").expect("digits decode");
            taken.push(bits(&batch));
            stream.recycle(batch);
        }
        taken
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let (digits, augment) = (digits(), everything());
        let one = Loader::train(&digits, &augment, options(1)).expect("valid");
        let batches = take(&one, Position::default(), 20);
        for workers in [2, 5] {
            let many = Loader::train(&digits, &augment, LoaderOptions { ahead: 1, ..options(workers) })
                .expect("valid");
            assert!(take(&many, Position::default(), 20) == batches, "{workers} workers");
        }
    }

    #[test]
    fn a_stream_restarts_anywhere() {
        let loader = Loader::train(&digits(), &everything(), options(2)).expect("valid");
        assert_eq!(loader.batches_per_epoch(), 14);
        let whole = take(&loader, Position::default(), 32);
        for start in [1, 7, 13, 14, 20] {
            let position = Position { epoch: start as u64 / 14, batch: start % 14 };
            assert!(take(&loader, position, 3) == whole[start..start + 3], "batch {start}");
            assert!(take(&loader, Position { epoch: 0, batch: start }, 1) == whole[start..start + 1]);
        }
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let (digits, augment) = (digits(), everything());
        let loader = Loader::train(&digits, &augment, options(2)).expect("valid");
        let other =
            Loader::train(&digits, &augment, LoaderOptions { seed: 10, ..options(2) }).expect("valid");
        let first = take(&loader, Position::default(), 1);
        assert!(first[0].0 != take(&other, Position::default(), 1)[0].0);
        assert!(first[0].0 != take(&loader, Position { epoch: 1, batch: 0 }, 1)[0].0);
    }

    #[test]
    fn an_epoch_has_every_sample_once() {
        let digits = digits();
        let plain = LoaderOptions { drop_last: false, label_smoothing: 0.0, ..options(2) };
        let loader = Loader::train(&digits, &AugmentConfig::default(), plain).expect("valid");
        assert_eq!(loader.batches_per_epoch(), 15);
        let batches = take(&loader, Position { epoch: 3, batch: 0 }, 15);
        assert_eq!(batches[14].1.len(), 37);
        let mut seen: Vec<Vec<u32>> =
            batches.iter().flat_map(|b| b.0.chunks(64).map(<[u32]>::to_vec)).collect();
        let ordered =
            Loader::eval(&digits, SplitName::Train, &AugmentConfig::default(), options(1)).expect("valid");
        let mut all: Vec<Vec<u32>> = Vec::new();
        for batch in ordered.stream(Position::default()) {
            let batch = batch.expect("digits decode");
            assert!(batch.soft_targets.is_none());
            all.extend(bits(&batch).0.chunks(64).map(<[u32]>::to_vec));
        }
        assert_ne!(seen, all);
        seen.sort();
        all.sort();
        assert!(seen == all);
    }

    #[test]
    fn evaluation_is_in_order_and_ends() {
        let digits = digits();
        let loader = Loader::eval(&digits, SplitName::Test, &everything(), options(2)).expect("valid");
        let labels: Vec<u32> = loader
            .stream(Position::default())
            .flat_map(|batch| batch.expect("digits decode").labels)
            .collect();
        assert_eq!(labels, digits.test.labels());
    }

    #[test]
    fn sizes_that_make_no_batch_are_errors() {
        for batch_size in [0, 2000] {
            let result = Loader::train(&digits(), &everything(), LoaderOptions { batch_size, ..options(1) });
            let error = result.map(|_| ()).expect_err("no batch").to_string();
            assert!(error.contains(&batch_size.to_string()) && error.contains("1437"), "{error}");
        }
    }

    fn folder_with_a_bad_picture() -> (tempfile::TempDir, Dataset) {
        let root = tempfile::tempdir().expect("a temporary folder");
        for split in ["train", "val"] {
            for class in 0..2_u8 {
                let folder = root.path().join(split).join(class.to_string());
                fs::create_dir_all(&folder).expect("writable");
                for id in 0..4_u8 {
                    let picture = image::ImageBuffer::from_pixel(12, 10, image::Rgb([class, id, 7]));
                    picture.save(folder.join(format!("{id}.png"))).expect("writable");
                }
                fs::write(folder.join("2.png"), b"garbage").expect("writable");
            }
        }
        let options = OpenOptions { image_size: 8, ..OpenOptions::default() };
        let dataset = open("image_folder", Some(root.path()), &options).expect("a valid layout");
        (root, dataset)
    }

    #[test]
    fn bad_files_stop_or_are_skipped() {
        let (_root, dataset) = folder_with_a_bad_picture();
        let plain = LoaderOptions { batch_size: 8, workers: 2, ..LoaderOptions::default() };
        let augment = AugmentConfig::default();
        let loader = Loader::train(&dataset, &augment, plain.clone()).expect("valid");
        let mut stream = loader.stream(Position::default());
        let error = stream.next().expect("one result").expect_err("a bad file");
        assert!(error.is_bad_image() && error.to_string().contains("2.png"), "{error}");
        assert!(stream.next().is_none());

        let skip = LoaderOptions { on_bad_image: OnBadImage::Skip, ..plain };
        let loader = Loader::train(&dataset, &augment, skip.clone()).expect("valid");
        let batch =
            loader.stream(Position::default()).next().expect("one batch").expect("bad files are replaced");
        assert_eq!(batch.len(), 8);
        assert_eq!(batch.images.len(), 8 * 3 * 64);
        // The third picture of each class is replaced by the fourth.
        assert_eq!(batch.labels.iter().filter(|&&label| label == 0).count(), 4);
        assert_eq!(loader.skipped().len(), 2);

        let loader = Loader::eval(&dataset, SplitName::Test, &augment, skip).expect("valid");
        let batch =
            loader.stream(Position::default()).next().expect("one batch").expect("bad files are left out");
        assert_eq!((batch.labels.as_slice(), batch.images.len()), (&[0, 0, 0, 1, 1, 1][..], 6 * 3 * 64));
    }

    #[test]
    fn a_split_of_bad_files_is_an_error() {
        let (root, dataset) = folder_with_a_bad_picture();
        for entry in dataset.train.labels().iter().enumerate().map(|(i, _)| dataset.train.name(i)) {
            fs::write(entry, b"garbage").expect("writable");
        }
        let skip = LoaderOptions {
            batch_size: 4,
            on_bad_image: OnBadImage::Skip,
            workers: 1,
            ..LoaderOptions::default()
        };
        let loader = Loader::train(&dataset, &AugmentConfig::default(), skip).expect("valid");
        let error =
            loader.stream(Position::default()).next().expect("one result").expect_err("nothing decodes");
        assert!(matches!(error, DataError::AllBad { .. }), "{error}");
        drop(root);
    }

    #[test]
    fn small_pictures_are_made_faster_than_any_device_takes_them() {
        let n = 2048;
        let shape = ImageShape::new(3, 32, 32);
        let pixels: Vec<u8> = (0..n * shape.len()).map(|i| ((i * 31) >> 3) as u8).collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 10).collect();
        let split = Arc::new(crate::data::Split::in_memory(shape, pixels, labels));
        let dataset = Dataset {
            train: Arc::clone(&split),
            test: split,
            shape,
            normalize: crate::augment::normalize::Normalize::new(&[0.5; 3], &[0.25; 3]),
            ..digits()
        };
        let augment: AugmentConfig =
            serde_json::from_value(json!({"random_crop": true, "horizontal_flip": true, "mixup": true}))
                .expect("valid");
        let loader =
            Loader::train(&dataset, &augment, LoaderOptions { workers: 1, ..LoaderOptions::default() })
                .expect("valid");
        let mut stream = loader.stream(Position::default());
        let (start, batches) = (Instant::now(), 160);
        for _ in 0..batches {
            let batch = stream.next().expect("no end").expect("in memory");
            stream.recycle(batch);
        }
        let rate = f64::from(batches) * 128.0 / start.elapsed().as_secs_f64();
        eprintln!("one worker: {rate:.0} images/s of 3x32x32 with crop, flip and mixup");
        // An order of magnitude below what one core does, so that a busy machine does not fail the test.
        assert!(rate > 5_000.0, "{rate:.0} images/s");
    }
}
