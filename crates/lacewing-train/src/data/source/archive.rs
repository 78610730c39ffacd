//! Tar archives, plain or compressed with gzip, xz or zstd, read as a stream: nothing is unpacked to disk.
//!
//! The format is told by the first bytes, not by the name. The decoders' memory, the unpacked size and the number of
//! entries are bounded; checksums are verified to the end of the file.

use crate::data::dataset::error::DataError;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

/// The most bytes an archive may unpack to.
const MAX_UNPACKED: u64 = 1 << 30;

/// The most entries an archive may have.
const MAX_ENTRIES: usize = 2_000_000;

/// The most memory the xz decoder may take, in KiB, and the greatest window of zstd, in bytes.
const XZ_MEMORY_KIB: u32 = 256 << 10;
const ZSTD_WINDOW: u64 = 128 << 20;

/// Bytes that tell the formats apart.
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// How far a stream has been read.
#[derive(Default)]
struct Progress {
    bytes: Cell<u64>,
    ended: Cell<bool>,
}

/// A reader that keeps [`Progress`] and stops at a limit.
struct Metered<R> {
    inner: R,
    progress: Rc<Progress>,
    limit: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.progress.ended.set(n == 0 && !buffer.is_empty());
        self.progress.bytes.set(self.progress.bytes.get() + n as u64);
        if self.progress.bytes.get() > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the archive unpacks to too many bytes"));
        }
        Ok(n)
    }
}

/// Zstandard frames, one after the other, skippable ones skipped, checksums compared.
struct ZstdReader<R> {
    inner: R,
    frame: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(inner: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(ZSTD_WINDOW);
        Self { inner, frame, inside: false }
    }

    /// Begins the next frame; `false` at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.inner.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.inner) {
                Ok(()) => {
                    self.inside = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.inner.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside && !self.begin()? {
                return Ok(0);
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.frame.decode_blocks(&mut self.inner, one).map_err(io::Error::other)?;
            }
            let n = self.frame.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let stored = self.frame.get_checksum_from_data();
            if stored.is_some() && stored != self.frame.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
            }
            self.inside = false;
        }
    }
}

/// A file in an archive.
pub(crate) struct Entry<'a> {
    /// Its path in the archive.
    pub(crate) name: &'a str,
    size: u64,
    bytes: &'a mut dyn Read,
    stream: &'a Stream<'a>,
}

impl Entry<'_> {
    /// The contents.
    ///
    /// # Errors
    /// More than `limit` bytes, fewer than the archive says, or a stream that does not decode.
    pub(crate) fn read(&mut self, limit: u64) -> Result<Vec<u8>, DataError> {
        let (path, what) = (self.stream.path.to_owned(), self.name.to_owned());
        if self.size > limit {
            return Err(DataError::TooLarge { path, what, limit });
        }
        let mut bytes = Vec::with_capacity(self.size as usize);
        self.bytes.read_to_end(&mut bytes).map_err(|source| self.stream.error(source))?;
        let (expected, got) = (self.size, bytes.len() as u64);
        if got < expected {
            return Err(DataError::Truncated { path, what, expected, got });
        }
        Ok(bytes)
    }
}

/// What errors of a stream have to name.
struct Stream<'a> {
    path: &'a Path,
    format: &'static str,
    file: Rc<Progress>,
}

impl Stream<'_> {
    /// A decoder that fails after the end of the file wanted more of it.
    fn error(&self, source: io::Error) -> DataError {
        let (path, format, read) = (self.path.to_owned(), self.format, self.file.bytes.get());
        if source.kind() == io::ErrorKind::FileTooLarge {
            DataError::TooLarge { path, what: "the unpacked archive".to_owned(), limit: MAX_UNPACKED }
        } else if self.file.ended.get() {
            DataError::StreamEnds { path, format, read }
        } else {
            DataError::Stream { path, format, read, source }
        }
    }
}

/// Calls `visit` with every regular file of the archive, in its order, until it returns `false`.
///
/// # Errors
/// A file that is unreadable, truncated, corrupt or beyond the limits, by name; what `visit` returns.
pub(crate) fn for_each_file(
    path: &Path,
    mut visit: impl FnMut(&mut Entry<'_>) -> Result<bool, DataError>,
) -> Result<(), DataError> {
    let file = File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let progress = Rc::new(Progress::default());
    let metered = Metered { inner: file, progress: Rc::clone(&progress), limit: u64::MAX };
    let mut input = BufReader::with_capacity(256 << 10, metered);
    let start = input.fill_buf().map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let (format, decoder): (&'static str, Box<dyn Read>) = if start.starts_with(GZIP) {
        ("gzip", Box::new(MultiGzDecoder::new(input)))
    } else if start.starts_with(XZ) {
        ("xz", Box::new(XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB)))
    } else if start.starts_with(ZSTD) {
        ("zstd", Box::new(ZstdReader::new(input)))
    } else {
        ("tar", Box::new(input))
    };
    let stream = Stream { path, format, file: progress };
    let unpacked = Rc::new(Progress::default());
    let metered = Metered { inner: decoder, progress: Rc::clone(&unpacked), limit: MAX_UNPACKED };
    let mut archive = tar::Archive::new(metered);

    for (index, entry) in archive.entries().map_err(|source| stream.error(source))?.enumerate() {
        let mut entry = entry.map_err(|source| stream.error(source))?;
        if index == MAX_ENTRIES {
            let (path, what) = (path.to_owned(), "the number of entries".to_owned());
            return Err(DataError::Count { path, what, limit: MAX_ENTRIES as u64, got: index as u64 + 1 });
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        if !visit(&mut Entry { name: &name, size, bytes: &mut entry, stream: &stream })? {
            return Ok(());
        }
    }
    // An archive ends with blocks of zeros; one that just stops was cut between two entries.
    if unpacked.ended.get() {
        return Err(DataError::StreamEnds {
            path: path.to_owned(),
            format: "tar",
            read: stream.file.bytes.get(),
        });
    }
    // The checksum of the stream comes after the archive.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|source| stream.error(source))?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// How an archive is compressed.
    pub(crate) const KINDS: [&str; 4] = ["tar", "gzip", "xz", "zstd"];

    /// A tar archive of `files`, compressed.
    pub(crate) fn archive(kind: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &bytes[..]).expect("memory");
        }
        let plain = builder.into_inner().expect("memory");
        match kind {
            "tar" => plain,
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).expect("memory");
                encoder.finish().expect("memory")
            }
            "xz" => {
                let options = lzma_rust2::XzOptions::with_preset(1);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("valid options");
                encoder.write_all(&plain).expect("memory");
                encoder.finish().expect("memory")
            }
            "zstd" => {
                ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest)
            }
            other => panic!("unknown kind {other}"),
        }
    }

    type Files = Vec<(String, Vec<u8>)>;

    fn read(bytes: &[u8]) -> Result<Files, DataError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("a writable file");
        let mut files = Vec::new();
        for_each_file(file.path(), |entry| {
            files.push((entry.name.to_owned(), entry.read(1 << 20)?));
            Ok(true)
        })?;
        Ok(files)
    }

    fn some_files() -> Files {
        // Bytes that do not compress to nothing, so that a cut falls inside the data.
        let noise = |n: u32| (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        vec![("a/b/one.bin".to_owned(), noise(3000)), (format!("{}two.bin", "long/".repeat(40)), noise(777))]
    }

    #[test]
    fn every_kind_gives_the_files_back() {
        for kind in KINDS {
            // Not assert_eq: nobody wants to read the bytes.
            assert!(read(&archive(kind, &some_files())).expect(kind) == some_files(), "{kind}");
        }
    }

    #[test]
    fn a_cut_anywhere_is_an_error() {
        for kind in KINDS {
            let whole = archive(kind, &some_files());
            // The last block of zeros of a plain archive is padding.
            let end = if kind == "tar" { whole.len() - 1024 } else { whole.len() };
            for cut in (1..end).step_by(101).chain([end - 1]) {
                let error = read(&whole[..cut]).map(|files| files.len()).expect_err(kind);
                let text = error.to_string();
                let named = text.contains("truncated") || text.contains("corrupt");
                assert!(named, "{kind} cut to {cut} of {}: {text}", whole.len());
            }
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_other_bytes() {
        for kind in ["gzip", "xz"] {
            let whole = archive(kind, &some_files());
            for place in (20..whole.len()).step_by(37) {
                let mut bad = whole.clone();
                bad[place] ^= 4;
                if let Ok(files) = read(&bad) {
                    assert!(files == some_files(), "{kind}, byte {place}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_archive_is_said_to_be_corrupt() {
        for bytes in [&b"just some text that is no archive"[..], &[7; 2048]] {
            let text = read(bytes).expect_err("no archive").to_string();
            assert!(text.contains("corrupt") || text.contains("truncated"), "{text}");
        }
    }
}
