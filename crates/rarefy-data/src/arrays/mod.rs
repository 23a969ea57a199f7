//! Tables and matrices: npy, npz, csv, libsvm and MatrixMarket, plain or gzip, read whole or in blocks of rows.
//!
//! Everything becomes `f64`. Files are untrusted: sizes are checked against [`Limits`] before memory is taken, and a
//! header that promises more than the file holds is an error.

mod blocks;
mod csv_text;
mod libsvm;
mod market;
mod npy;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod write;

pub use blocks::{Block, RowBlocks, row_blocks};
pub use write::{write_matrix, write_vector};

use std::path::Path;

use crate::DataError;

/// Caps on what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes after decompression. Default 8 GiB.
    pub bytes: u64,
    /// Most stored values of one matrix. Default 2^30 (8 GiB of `f64`).
    pub values: usize,
    /// Most rows that a header and columns that a header or an index may promise in a sparse file, whatever it holds: each takes
    /// memory of its own. Default 2^27 (1 GiB).
    pub dimension: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 8 << 30, values: 1 << 30, dimension: 1 << 27 }
    }
}

/// A matrix as read: dense formats stay dense, sparse ones sparse.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// All entries, row-major: [n_rows, n_cols].
    Dense {
        /// Number of rows.
        n_rows: usize,
        /// Number of columns.
        n_cols: usize,
        /// The entries, row-major.
        values: Vec<f64>,
    },
    /// Compressed sparse rows; the column indices of a row rise.
    Sparse {
        /// Number of columns.
        n_cols: usize,
        /// Where each row begins, and the end: n_rows + 1 values.
        indptr: Vec<usize>,
        /// Columns of the stored entries.
        indices: Vec<u32>,
        /// The stored entries.
        values: Vec<f64>,
    },
}

impl Matrix {
    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        match self {
            Matrix::Dense { n_rows, .. } => *n_rows,
            Matrix::Sparse { indptr, .. } => indptr.len().saturating_sub(1),
        }
    }

    /// Number of columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        match self {
            Matrix::Dense { n_cols, .. } | Matrix::Sparse { n_cols, .. } => *n_cols,
        }
    }

    /// Number of entries when dense; `None` when that overflows.
    #[must_use]
    pub fn dense_len(&self) -> Option<usize> {
        self.n_rows().checked_mul(self.n_cols())
    }

    /// All entries, row-major. Look at [`Matrix::dense_len`] first: a small sparse file can promise more than fits into memory.
    #[must_use]
    pub fn to_dense(&self) -> Vec<f64> {
        match self {
            Matrix::Dense { values, .. } => values.clone(),
            Matrix::Sparse { n_cols, indptr, indices, values } => {
                let mut out = vec![0.0; self.n_rows() * n_cols];
                for (i, row) in indptr.windows(2).enumerate() {
                    for k in row[0]..row[1] {
                        out[i * n_cols + indices[k] as usize] = values[k];
                    }
                }
                out
            }
        }
    }

    /// Compressed sparse rows from entries in any order.
    ///
    /// Entries named twice are an error: the formats forbid them and adding them up would hide a broken file.
    fn from_entries(
        n_rows: usize,
        n_cols: usize,
        mut entries: Vec<(u32, u32, f64)>,
    ) -> Result<Self, (u32, u32)> {
        entries.sort_unstable_by_key(|e| (e.0, e.1));
        if let Some(pair) = entries.windows(2).find(|w| (w[0].0, w[0].1) == (w[1].0, w[1].1)) {
            return Err((pair[0].0, pair[0].1));
        }
        let mut indptr = vec![0; n_rows + 1];
        for (i, ..) in &entries {
            indptr[*i as usize + 1] += 1;
        }
        for i in 0..n_rows {
            indptr[i + 1] += indptr[i];
        }
        let indices = entries.iter().map(|e| e.1).collect();
        let values = entries.iter().map(|e| e.2).collect();
        Ok(Matrix::Sparse { n_cols, indptr, indices, values })
    }
}

/// A matrix with what its file says beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The entries.
    pub matrix: Matrix,
    /// Names of the columns, when the file has a heading.
    pub names: Option<Vec<String>>,
    /// Targets, when the format keeps them apart: the labels of libsvm, `y` of an npz.
    pub target: Option<Vec<f64>>,
}

impl Table {
    /// Takes one column out of a dense table as the target.
    ///
    /// `None` when there is no such column or the table is sparse.
    #[must_use]
    pub fn split_column(self, column: usize) -> Option<(Self, Vec<f64>)> {
        let Matrix::Dense { n_rows, n_cols, values } = self.matrix else { return None };
        if column >= n_cols {
            return None;
        }
        let target = (0..n_rows).map(|i| values[i * n_cols + column]).collect();
        let kept = |j: &usize| *j != column;
        let rest = values.iter().enumerate().filter(|(k, _)| kept(&(k % n_cols))).map(|(_, v)| *v).collect();
        let names = self.names.map(|mut names| {
            names.remove(column);
            names
        });
        let matrix = Matrix::Dense { n_rows, n_cols: n_cols - 1, values: rest };
        Some((Self { matrix, names, target: None }, target))
    }
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One NumPy array.
    Npy,
    /// A zip archive of NumPy arrays.
    Npz,
    /// Comma-, semicolon-, tab- or space-separated text.
    Csv,
    /// `label index:value …`, indices from 1.
    Libsvm,
    /// MatrixMarket.
    MatrixMarket,
    /// Apache Parquet; read with the feature `parquet`, not written.
    Parquet,
}

impl Format {
    /// The format by the name's ending, before a possible `.gz`. A name without a known ending is libsvm when
    /// it has none at all (as the files of the LIBSVM collection), otherwise `None`.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let Some((_, ending)) = name.rsplit_once('.') else { return Some(Self::Libsvm) };
        Some(match ending {
            "npy" => Self::Npy,
            "npz" => Self::Npz,
            "csv" | "tsv" | "txt" | "data" => Self::Csv,
            "libsvm" | "svm" | "svmlight" => Self::Libsvm,
            "mtx" => Self::MatrixMarket,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }
}

fn unknown_format(path: &Path) -> DataError {
    DataError::Array {
        file: path.to_path_buf(),
        place: "name".into(),
        expected: "an ending .npy, .npz, .csv, .tsv, .txt, .libsvm, .svm or .mtx, perhaps with .gz",
        found: path.file_name().map_or_else(|| "none".into(), |n| format!("`{}`", n.to_string_lossy())),
    }
}

/// Reads a table. The format follows from the name's ending (see [`Format::of`]).
///
/// `member` names an array of an npz; without it `x` (or the only two-dimensional array, or a matrix stored by
/// `scipy.sparse.save_npz`) is the table and `y`, when there, the target.
///
/// # Errors
/// [`DataError::Io`], [`DataError::TooLarge`], [`DataError::NotUtf8`]; [`DataError::Array`] naming the line or the
/// member, what was expected and what was found.
pub fn read_table(path: &Path, member: Option<&str>, limits: Limits) -> Result<Table, DataError> {
    match Format::of(path).ok_or_else(|| unknown_format(path))? {
        Format::Npy => npy::read(path, limits),
        Format::Npz => npy::read_archive(path, member, limits),
        Format::Csv => csv_text::read(path, limits),
        Format::Libsvm => libsvm::read(path, limits),
        Format::MatrixMarket => market::read(path, limits),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::read(path, limits),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(DataError::Array {
            file: path.to_path_buf(),
            place: "format".into(),
            expected: "a program built with `--features parquet`, or a csv",
            found: "Parquet".into(),
        }),
    }
}

/// Reads one vector: a file with one row or one column, or one member of an npz.
///
/// # Errors
/// As [`read_table`].
pub fn read_vector(path: &Path, member: Option<&str>, limits: Limits) -> Result<Vec<f64>, DataError> {
    let table = read_table(path, member, limits)?;
    let shape = (table.matrix.n_rows(), table.matrix.n_cols());
    if shape.0 != 1 && shape.1 != 1 {
        return Err(DataError::Array {
            file: path.to_path_buf(),
            place: "shape".into(),
            expected: "one row or one column",
            found: format!("{} x {}", shape.0, shape.1),
        });
    }
    // One of the two is 1.
    if shape.0.max(shape.1) > limits.values {
        return Err(DataError::Array {
            file: path.to_path_buf(),
            place: "shape".into(),
            expected: "no more values than the limit",
            found: format!("{} x {}", shape.0, shape.1),
        });
    }
    Ok(table.matrix.to_dense())
}

#[cfg(test)]
mod tests;
