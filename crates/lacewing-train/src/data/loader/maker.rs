//! How one batch is made: a pure function of the split, the settings, the seed and the position.

use super::{Batch, LoaderOptions};
use crate::augment::Pipeline;
use crate::augment::pipeline::Canvas;
use crate::augment::random::{Draws, Purpose};
use crate::data::dataset::error::DataError;
use crate::data::dataset::{OnBadImage, Split};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Samples that are worth a task of their own.
const SAMPLES_A_TASK: usize = 4;

/// What the batches are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Shuffled; bad pictures are replaced.
    Train,
    /// In order; bad pictures are left out.
    Eval,
    /// Shuffled; bad pictures are left out.
    Sample,
}

/// Everything a batch is a function of, besides its position.
pub(super) struct Maker {
    pub(super) split: Arc<Split>,
    pub(super) mode: Mode,
    pub(super) n_classes: usize,
    pub(super) pipeline: Pipeline,
    pub(super) options: LoaderOptions,
    /// Pictures that did not decode.
    pub(super) bad: Mutex<BTreeSet<usize>>,
}

impl Maker {
    /// Batches of one epoch; 0 when the batch size makes none.
    pub(super) fn batches_per_epoch(&self) -> usize {
        let (samples, size) = (self.split.len(), self.options.batch_size);
        match (size, self.options.drop_last) {
            (0, _) => 0,
            (_, true) => samples / size,
            (_, false) => samples.div_ceil(size),
        }
    }

    /// The samples of an epoch: unless all are evaluated the Fisher–Yates shuffle with the draws of `(seed, epoch)`.
    pub(super) fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.split.len() as u32).collect();
        if self.mode != Mode::Eval {
            let mut draws = Draws::new(Purpose::Order, self.options.seed, epoch, 0);
            for last in (1..order.len()).rev() {
                order.swap(last, draws.below(last as u32 + 1) as usize);
            }
        }
        order
    }

    /// Fills `batch`, whose position is set and whose buffers may hold an old one, from the epoch's `order`.
    ///
    /// # Errors
    /// A picture that cannot be read or, unless skipped, does not decode.
    pub(super) fn fill(&self, order: &[u32], batch: &mut Batch) -> Result<(), DataError> {
        let start = batch.position.batch * self.options.batch_size;
        let whole = &order[start..(start + self.options.batch_size).min(order.len())];
        let LoaderOptions { rank, ranks, .. } = self.options;
        let samples = &whole[whole.len() * rank / ranks..whole.len() * (rank + 1) / ranks];
        batch.whole = whole.len();
        let size = self.pipeline.shape().len();
        batch.images.resize(samples.len() * size, 0.0);
        batch.labels.resize(samples.len(), 0);
        let missing = Mutex::new(BTreeSet::new());
        let epoch = batch.position.epoch;
        let targets = batch.images.par_chunks_exact_mut(size).zip(&mut batch.labels);
        targets.zip(samples).with_min_len(SAMPLES_A_TASK).enumerate().try_for_each_init(
            Canvas::new,
            |canvas, (place, ((image, label), &index))| {
                match self.load(index as usize, canvas)? {
                    Some(shown) => {
                        *label = self.split.labels()[shown];
                        let mut draws = Draws::new(Purpose::Sample, self.options.seed, epoch, index.into());
                        self.pipeline.sample(canvas, &mut draws, image);
                    }
                    None => {
                        missing.lock().expect("no worker panics while it holds the list").insert(place);
                    }
                }
                Ok::<_, DataError>(())
            },
        )?;
        let missing = missing.into_inner().expect("no worker panics while it holds the list");
        for &place in missing.iter().rev() {
            batch.labels.remove(place);
            batch.images.drain(place * size..(place + 1) * size);
        }
        if self.pipeline.has_soft_targets() {
            let place = (batch.position.batch * ranks + rank) as u64;
            let mut draws = Draws::new(Purpose::Batch, self.options.seed, epoch, place);
            let targets = batch.soft_targets.get_or_insert_default();
            self.pipeline.batch(&mut batch.images, &batch.labels, self.n_classes, &mut draws, targets);
        }
        Ok(())
    }

    /// Loads a sample; returns the one that is shown: `index`, in training the next one that decodes, in evaluation none.
    fn load(&self, index: usize, canvas: &mut Canvas) -> Result<Option<usize>, DataError> {
        let n = self.split.len();
        for shown in (index..n).chain(0..index) {
            match self.split.load(shown, &mut canvas.picture) {
                Ok(()) => return Ok(Some(shown)),
                Err(error) if error.is_bad_image() && self.options.on_bad_image == OnBadImage::Skip => {
                    self.bad.lock().expect("no worker panics while it holds the list").insert(shown);
                }
                Err(error) => return Err(error),
            }
            if self.mode != Mode::Train {
                return Ok(None);
            }
        }
        Err(DataError::AllBad { split: "the training split".to_owned(), first: self.split.name(0) })
    }
}
