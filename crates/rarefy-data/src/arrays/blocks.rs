//! A table read once, in blocks of rows, so that its size does not matter.

use std::path::{Path, PathBuf};

use super::csv_text::Records;
use super::npy::{self, Opened};
use super::open::{Lines, open};
use super::{Format, Limits, libsvm, unknown_format};
use crate::DataError;

/// Some rows of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Number of rows, at least 1.
    pub n_rows: usize,
    /// Number of columns.
    pub n_cols: usize,
    /// The entries, row-major: [n_rows, n_cols].
    pub values: Vec<f64>,
    /// The labels of libsvm text.
    pub target: Option<Vec<f64>>,
}

/// Blocks of rows of a file; see [`row_blocks`].
pub struct RowBlocks<'a> {
    source: Source<'a>,
    path: &'a Path,
    rows: usize,
    n_cols: usize,
    names: Option<Vec<String>>,
    has_failed: bool,
}

enum Source<'a> {
    Csv(Records),
    Libsvm(Lines<'a>, Vec<(u32, f64)>),
    Npy(npy::Values<'a>),
}

impl std::fmt::Debug for RowBlocks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowBlocks")
            .field("path", &self.path)
            .field("n_cols", &self.n_cols)
            .finish_non_exhaustive()
    }
}

/// Opens a csv, libsvm or npy file to be read once in blocks of at most `rows` rows.
///
/// `n_cols` is needed for libsvm text, whose width is known only at its end, and ignored otherwise. Only
/// `limits.bytes` of the limits applies to text, and it counts the bytes of the whole file.
///
/// # Errors
/// As [`super::read_table`]; [`DataError::Array`] for a format that cannot be read in blocks, for an npy file in
/// Fortran order and for `rows` = 0.
pub fn row_blocks(
    path: &Path,
    rows: usize,
    n_cols: Option<usize>,
    limits: Limits,
) -> Result<RowBlocks<'_>, DataError> {
    let error = |place: &str, expected, found: &str| DataError::Array {
        file: PathBuf::from(path),
        place: place.into(),
        expected,
        found: found.into(),
    };
    if rows == 0 {
        return Err(DataError::Zero { field: "rows" });
    }
    let (source, n_cols, names) = match Format::of(path).ok_or_else(|| unknown_format(path))? {
        Format::Csv => {
            let mut records = Records::open(path, limits.bytes)?;
            let (n_cols, names) = (records.n_cols, records.names.take());
            (Source::Csv(records), n_cols, names)
        }
        Format::Libsvm => {
            let Some(n_cols) = n_cols else {
                return Err(error("width", "the number of features, given beside a libsvm file", "none"));
            };
            (Source::Libsvm(Lines::open(path, limits.bytes)?, Vec::new()), n_cols, None)
        }
        Format::Npy => {
            // The array is never held as a whole, so its own size is no matter.
            let wide = Limits { values: usize::MAX, ..limits };
            let Opened { file, shape, .. } = npy::open_array(open(path, limits.bytes)?, path, "array", wide)?;
            let [_, n_cols] = shape[..] else {
                return Err(error("shape", "two dimensions", &format!("{shape:?}")));
            };
            if file.order() == npyz::Order::Fortran {
                return Err(error("array", "C order, to be read by rows", "Fortran order"));
            }
            (Source::Npy(npy::values(file, path, "array", wide)?), n_cols, None)
        }
        Format::Npz | Format::MatrixMarket | Format::Parquet => {
            return Err(error("name", "csv, libsvm or npy, to be read in blocks of rows", "another format"));
        }
    };
    if n_cols == 0 {
        return Err(DataError::Empty { file: path.to_path_buf() });
    }
    Ok(RowBlocks { source, path, rows, n_cols, names, has_failed: false })
}

impl RowBlocks<'_> {
    /// Number of columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Names of the columns, when the file has a heading.
    #[must_use]
    pub fn names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    fn read(&mut self) -> Result<Option<Block>, DataError> {
        let (mut values, mut n_rows, n_cols) = (Vec::new(), 0, self.n_cols);
        let mut target = None;
        match &mut self.source {
            Source::Csv(records) => {
                while n_rows < self.rows && records.next(self.path, &mut values)? {
                    n_rows += 1;
                }
            }
            Source::Libsvm(lines, entries) => {
                let mut labels = Vec::new();
                while n_rows < self.rows {
                    let Some(label) = libsvm::next_sample(lines, entries)? else { break };
                    labels.push(label);
                    values.resize(values.len() + n_cols, 0.0);
                    for (column, value) in entries.iter() {
                        let Some(at) = (*column as usize)
                            .checked_add(n_rows * n_cols)
                            .filter(|_| (*column as usize) < n_cols)
                        else {
                            return Err(lines
                                .error("an index within the number of features", (column + 1).to_string()));
                        };
                        values[at] = *value;
                    }
                    n_rows += 1;
                }
                target = Some(labels);
            }
            Source::Npy(all) => {
                while n_rows < self.rows {
                    let before = values.len();
                    for value in all.by_ref().take(n_cols) {
                        values.push(value?);
                    }
                    if values.len() == before {
                        break;
                    }
                    n_rows += 1;
                }
            }
        }
        Ok((n_rows > 0).then_some(Block { n_rows, n_cols, values, target }))
    }
}

impl Iterator for RowBlocks<'_> {
    type Item = Result<Block, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let block = self.read().transpose();
        self.has_failed = matches!(block, Some(Err(_)));
        block
    }
}
