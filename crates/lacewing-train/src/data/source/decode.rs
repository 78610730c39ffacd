//! Decoding of many small pictures into memory, beside the reader that finds them.
//!
//! One thread reads (and decompresses) and puts chunks of encoded pictures into a bounded channel, workers decode them, and
//! the caller's thread gathers the chunks in the reader's order. So memory holds the decoded pictures plus a few chunks, and
//! neither the result nor which error is reported depends on the number of workers.

use super::picture;
use crate::augment::picture::{ImageShape, Picture};
use crate::data::dataset::error::DataError;
use crate::data::dataset::{OnBadImage, OpenOptions, Split, SplitName};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Pictures, or bytes, after which a chunk is handed over.
const CHUNK_PICTURES: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;

/// An encoded picture.
pub(crate) struct RawPicture {
    /// The split it belongs to.
    pub(crate) split: SplitName,
    /// Its class.
    pub(crate) class: String,
    /// Its file name within the class.
    pub(crate) file: String,
    /// The JPEG or PNG file.
    pub(crate) bytes: Vec<u8>,
}

/// A data set in memory.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) class_names: Vec<String>,
    pub(crate) shape: ImageShape,
    pub(crate) train: Split,
    pub(crate) test: Split,
    pub(crate) skipped: Vec<String>,
}

/// Where the reader puts what it finds.
pub(crate) struct Feed {
    chunk: Vec<RawPicture>,
    bytes: usize,
    sent: usize,
    workers: SyncSender<(usize, Vec<RawPicture>)>,
}

impl Feed {
    /// Takes one picture; `false` when nobody wants more because decoding failed.
    pub(crate) fn push(&mut self, picture: RawPicture) -> bool {
        self.bytes += picture.bytes.len();
        self.chunk.push(picture);
        (self.chunk.len() < CHUNK_PICTURES && self.bytes < CHUNK_BYTES) || self.flush()
    }

    fn flush(&mut self) -> bool {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_PICTURES));
        self.bytes = 0;
        self.sent += 1;
        self.workers.send((self.sent - 1, chunk)).is_ok()
    }
}

/// A decoded chunk: who each picture is or why it is bad, and the bytes of the good ones.
struct DecodedChunk {
    pictures: Vec<(RawPicture, Result<(), DataError>)>,
    pixels: Vec<u8>,
}

/// The pictures of one split, in the reader's order.
#[derive(Default)]
struct Gathered {
    /// Class (in order of first appearance) and file name.
    keys: Vec<(u32, String)>,
    pixels: Vec<u8>,
}

/// All that was decoded.
pub(crate) struct Collection {
    shape: ImageShape,
    classes: Vec<String>,
    train: Gathered,
    test: Gathered,
    skipped: Vec<String>,
}

/// Decodes everything that `read` feeds; every picture must have `shape`.
///
/// # Errors
/// What `read` returns; the first bad picture in its order, unless bad ones are skipped.
pub(crate) fn decode_all(
    path: &Path,
    shape: ImageShape,
    options: &OpenOptions,
    read: impl FnOnce(&mut Feed) -> Result<(), DataError> + Send,
) -> Result<Collection, DataError> {
    let workers = match options.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (to_workers, chunks) = sync_channel(2 * workers);
    let (to_gather, decoded) = sync_channel(2 * workers);
    let chunks = Mutex::new(chunks);
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut feed = Feed { chunk: Vec::new(), bytes: 0, sent: 0, workers: to_workers };
            read(&mut feed)?;
            feed.flush();
            Ok(())
        });
        // Workers hold the receiver by turns; when the last one leaves, the reader must notice.
        let chunks = Arc::new(chunks);
        for _ in 0..workers {
            let (chunks, to_gather) = (Arc::clone(&chunks), to_gather.clone());
            scope.spawn(move || work(path, shape, &chunks, &to_gather));
        }
        drop((chunks, to_gather));
        let collection = Collection::gather(shape, options.on_bad_image, decoded);
        let read: Result<(), DataError> = reader.join().expect("the reader does not panic");
        // A bad picture lies before the place where the reader stopped, so it is reported first.
        let collection = collection?;
        read?;
        Ok(collection)
    })
}

/// A worker: decodes chunks until there are none or nobody takes them.
fn work(
    path: &Path,
    shape: ImageShape,
    chunks: &Mutex<Receiver<(usize, Vec<RawPicture>)>>,
    to_gather: &SyncSender<(usize, DecodedChunk)>,
) {
    let mut picture = Picture::empty();
    loop {
        let Ok((place, chunk)) = chunks.lock().expect("no worker panics").recv() else { return };
        let mut pixels = Vec::with_capacity(chunk.len() * shape.len());
        let mut decode = |raw: RawPicture| {
            let name = || format!("{}: {}/{}/{}", path.display(), raw.split, raw.class, raw.file);
            let result = picture::decode(&raw.bytes, Some(shape), name, &mut picture);
            if result.is_ok() {
                pixels.extend_from_slice(&picture.pixels);
            }
            (RawPicture { bytes: Vec::new(), ..raw }, result)
        };
        let pictures = chunk.into_iter().map(&mut decode).collect();
        if to_gather.send((place, DecodedChunk { pictures, pixels })).is_err() {
            return;
        }
    }
}

impl Collection {
    /// Puts the chunks in order.
    fn gather(
        shape: ImageShape,
        on_bad: OnBadImage,
        decoded: Receiver<(usize, DecodedChunk)>,
    ) -> Result<Self, DataError> {
        let mut all = Self {
            shape,
            classes: Vec::new(),
            train: Gathered::default(),
            test: Gathered::default(),
            skipped: Vec::new(),
        };
        let (mut early, mut next) = (BTreeMap::new(), 0);
        for (place, chunk) in decoded {
            early.insert(place, chunk);
            while let Some(chunk) = early.remove(&next) {
                all.append(chunk, on_bad)?;
                next += 1;
            }
        }
        Ok(all)
    }

    fn append(&mut self, chunk: DecodedChunk, on_bad: OnBadImage) -> Result<(), DataError> {
        let mut pixels = chunk.pixels.chunks_exact(self.shape.len());
        for (raw, result) in chunk.pictures {
            match result {
                Ok(()) => {}
                Err(error) if on_bad == OnBadImage::Skip && error.is_bad_image() => {
                    self.skipped.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            }
            let class = match self.classes.iter().position(|known| *known == raw.class) {
                Some(class) => class,
                None => {
                    self.classes.push(raw.class);
                    self.classes.len() - 1
                }
            };
            let split = match raw.split {
                SplitName::Train => &mut self.train,
                SplitName::Test => &mut self.test,
            };
            split.keys.push((class as u32, raw.file));
            split.pixels.extend_from_slice(pixels.next().expect("one picture a good result"));
        }
        Ok(())
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.train.keys.is_empty() && self.test.keys.is_empty() && self.skipped.is_empty()
    }

    /// The data set: classes by name, pictures by class and then by file name, whatever the reader's order was.
    ///
    /// # Errors
    /// A number of classes other than `n_classes`, a split that is empty or lacks a class, an entry that is there twice.
    pub(crate) fn into_contents(mut self, path: &Path, n_classes: usize) -> Result<Contents, DataError> {
        for (split, name) in [(&self.train, SplitName::Train), (&self.test, SplitName::Test)] {
            if split.keys.is_empty() {
                return Err(DataError::EmptySplit { path: path.to_owned(), split: name });
            }
        }
        if self.classes.len() != n_classes {
            let source_name = path.display().to_string();
            return Err(DataError::ClassCount { source_name, expected: n_classes, got: self.classes.len() });
        }
        let mut class_names = self.classes.clone();
        class_names.sort();
        let ranks: Vec<u32> = self
            .classes
            .iter()
            .map(|class| class_names.binary_search(class).expect("a sorted copy holds it") as u32)
            .collect();
        let train = std::mem::take(&mut self.train).into_split(
            self.shape,
            &ranks,
            path,
            SplitName::Train,
            &class_names,
        )?;
        let test = std::mem::take(&mut self.test).into_split(
            self.shape,
            &ranks,
            path,
            SplitName::Test,
            &class_names,
        )?;
        Ok(Contents { class_names, shape: self.shape, train, test, skipped: self.skipped })
    }
}

impl Gathered {
    fn into_split(
        self,
        shape: ImageShape,
        ranks: &[u32],
        path: &Path,
        split: SplitName,
        class_names: &[String],
    ) -> Result<Split, DataError> {
        let keys: Vec<(u32, &str)> =
            self.keys.iter().map(|(class, file)| (ranks[*class as usize], file.as_str())).collect();
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        if let Some(pair) = order.windows(2).find(|pair| keys[pair[0]] == keys[pair[1]]) {
            let (class, file) = keys[pair[0]];
            let entry = format!("{split}/{}/{file}", class_names[class as usize]);
            return Err(DataError::Duplicate { path: path.to_owned(), entry });
        }
        let labels: Vec<u32> = order.iter().map(|&i| keys[i].0).collect();
        if let Some(class) = (0..class_names.len()).find(|&class| !labels.contains(&(class as u32))) {
            let class = class_names[class].clone();
            return Err(DataError::ClassMissing { path: path.to_owned(), class, split });
        }
        let pixels = if order.is_sorted() {
            self.pixels
        } else {
            let mut pixels = Vec::with_capacity(self.pixels.len());
            for &i in &order {
                pixels.extend_from_slice(&self.pixels[i * shape.len()..(i + 1) * shape.len()]);
            }
            pixels
        };
        Ok(Split::in_memory(shape, pixels, labels))
    }
}
