//! Opening a file: gzip by its magic, a cap on the bytes that come out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::DataError;

/// Longest line of the text formats, in bytes.
const LONGEST_LINE: u64 = 256 << 20;

/// A reader that fails with [`io::ErrorKind::FileTooLarge`] beyond its cap.
pub(super) struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }
}

/// The decompressed bytes of a file.
pub(super) type Source = BufReader<Capped<Box<dyn Read + Send>>>;

/// Opens `path`; at most `cap` decompressed bytes come out.
pub(super) fn open(path: &Path, cap: u64) -> Result<Source, DataError> {
    let io = |source| DataError::Io { file: path.to_path_buf(), source };
    let mut file = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
    let is_gzip = file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
    let inner: Box<dyn Read + Send> =
        if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(BufReader::with_capacity(1 << 18, Capped { inner, left: cap }))
}

/// What an error of reading means.
pub(super) fn read_error(path: &Path, cap: u64, source: io::Error) -> DataError {
    if source.kind() == io::ErrorKind::FileTooLarge {
        DataError::TooLarge { file: path.to_path_buf(), cap }
    } else {
        DataError::Io { file: path.to_path_buf(), source }
    }
}

/// Lines of a text, counted, without their ends.
pub(super) struct Lines<'a> {
    source: Source,
    path: &'a Path,
    cap: u64,
    text: Vec<u8>,
    /// Number of the line last given, from 1.
    pub(super) number: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn open(path: &'a Path, cap: u64) -> Result<Self, DataError> {
        Ok(Self { source: open(path, cap)?, path, cap, text: Vec::new(), number: 0 })
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<&str>, DataError> {
        self.text.clear();
        let read = (&mut self.source)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut self.text)
            .map_err(|e| read_error(self.path, self.cap, e))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read as u64 == LONGEST_LINE {
            return Err(self.error("a line of at most 256 MiB", "a longer one"));
        }
        match std::str::from_utf8(&self.text) {
            Ok(line) => Ok(Some(line.trim_end_matches(['\n', '\r']))),
            Err(_) => Err(self.error("UTF-8 text", "other bytes")),
        }
    }

    /// An error at the line last given.
    pub(super) fn error(&self, expected: &'static str, found: impl Into<String>) -> DataError {
        line_error(self.path, self.number, expected, found)
    }
}

/// An error at a line.
pub(super) fn line_error(
    path: &Path,
    line: usize,
    expected: &'static str,
    found: impl Into<String>,
) -> DataError {
    let mut found: String = found.into();
    if found.chars().count() > 60 {
        found = found.chars().take(57).collect::<String>() + "...";
    }
    DataError::Array { file: path.to_path_buf(), place: format!("line {line}"), expected, found }
}
