//! What can go wrong with data, each variant naming the place, what was found and the remedy.

use std::path::PathBuf;

/// An error of the readers, the window sampler or the corpus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file could not be opened or read.
    #[error("cannot read `{file}`: {source}")]
    Io {
        /// File that was being read.
        file: PathBuf,
        /// Cause given by the operating system.
        source: std::io::Error,
    },
    /// The file holds no text besides white space.
    #[error("text `{file}` is empty; give a text file with at least a few sentences")]
    Empty {
        /// File that was read.
        file: PathBuf,
    },
    /// The text is not UTF-8.
    #[error(
        "text `{file}` is not UTF-8: invalid byte at offset {offset}; convert it first (for example with `iconv -t UTF-8`)"
    )]
    NotUtf8 {
        /// File that was read.
        file: PathBuf,
        /// Offset in the decompressed bytes of the first invalid byte.
        offset: usize,
    },
    /// The file is longer than the cap.
    #[error("`{file}` holds more than {cap} bytes; cut it or raise the cap")]
    TooLarge {
        /// File that was read.
        file: PathBuf,
        /// Cap in bytes, after decompression.
        cap: u64,
    },
    /// A line of `labels.tsv` is not understood.
    #[error("`{file}`, line {line}: expected {expected}, found `{found}`")]
    Label {
        /// File that was read.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is expected.
        expected: &'static str,
        /// The line's beginning.
        found: String,
    },
    /// An image could not be decoded.
    #[error("image `{file}`: not a JPEG image that can be read (at most 16384 pixels a side)")]
    Image {
        /// The image's file.
        file: PathBuf,
        /// The decoder's own account.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A table or matrix is not what its format asks for.
    #[error("`{file}`, {place}: expected {expected}, found {found}")]
    Array {
        /// File that was read.
        file: PathBuf,
        /// Where in the file: `"line 3"`, `"member `x`"`.
        place: String,
        /// What the format asks for, with the remedy where there is one.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// There are not enough tokens to cut one window.
    #[error(
        "calibration needs windows of {length} tokens, but the text has only {found} tokens; give a longer text or a shorter length"
    )]
    TooFewTokens {
        /// Window length asked for.
        length: usize,
        /// Tokens available.
        found: usize,
    },
    /// A count or length of zero was asked for.
    #[error("`{field}` must be at least 1, got 0")]
    Zero {
        /// Name of the argument.
        field: &'static str,
    },
    /// A text is not a sentence of the built-in language.
    #[error("not a text of the built-in language at byte {at}: expected {expected}, found `{found}`")]
    NotInLanguage {
        /// Byte offset in the text.
        at: usize,
        /// What the grammar allows there.
        expected: String,
        /// The next piece of the text.
        found: String,
    },
}
