//! From files to problems.

use std::path::{Path, PathBuf};

use faer::Mat;
use rarefy_data::arrays::{Block, Format, Limits, Matrix, Table, read_table, read_vector, row_blocks};
use rarefy_solve::{Csr, Design};

use super::super::{CliError, CliResult, unknown};

/// A file, or a member of an npz as `FILE.npz:MEMBER`.
pub(super) fn split_member(path: &Path) -> (PathBuf, Option<String>) {
    let text = path.to_string_lossy();
    match text.rsplit_once(".npz:") {
        Some((file, member)) if !path.exists() => (format!("{file}.npz").into(), Some(member.to_owned())),
        _ => (path.to_path_buf(), None),
    }
}

/// Reads a table.
pub(super) fn table(path: &Path) -> CliResult<Table> {
    let (file, member) = split_member(path);
    Ok(read_table(&file, member.as_deref(), Limits::default())?)
}

/// Reads a vector.
pub(super) fn vector(path: &Path) -> CliResult<Vec<f64>> {
    let (file, member) = split_member(path);
    Ok(read_vector(&file, member.as_deref(), Limits::default())?)
}

/// A dense matrix, row-major, and its shape.
pub(super) fn dense(path: &Path) -> CliResult<(Vec<f64>, usize, usize)> {
    let matrix = table(path)?.matrix;
    let (n, p) = (matrix.n_rows(), matrix.n_cols());
    Ok((to_dense(&matrix, path)?, n, p))
}

/// The entries, row-major, when they fit.
pub(super) fn to_dense(matrix: &Matrix, path: &Path) -> CliResult<Vec<f64>> {
    if matrix.dense_len().is_none_or(|size| size > Limits::default().values) {
        let (n, p) = (matrix.n_rows(), matrix.n_cols());
        return Err(CliError::usage(
            format!("`{}` is {n} x {p}: too large to be held dense", path.display()),
            "select rows or columns first",
        ));
    }
    Ok(matrix.to_dense())
}

/// Where the targets are.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TargetArgs {
    /// Table of samples: .csv, .libsvm, .npz with `x` and `y`, .npy, .mtx; perhaps .gz
    pub(super) data: PathBuf,
    /// Column of the targets, by name or number from 1 [default: the last one of a csv or npy]
    #[arg(long, value_name = "COLUMN", conflicts_with = "target_file")]
    target: Option<String>,
    /// File of the targets, or FILE.npz:MEMBER
    #[arg(long, value_name = "FILE")]
    target_file: Option<PathBuf>,
}

/// Samples and their targets.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) x: Design,
    pub(super) y: Vec<f64>,
    /// Names of the features.
    pub(super) names: Option<Vec<String>>,
}

impl TargetArgs {
    /// Reads the samples.
    pub(super) fn read(&self) -> CliResult<Samples> {
        let (matrix, y, names) = self.read_rows()?;
        Ok(Samples { x: design(matrix)?, y, names })
    }

    /// Reads the samples row by row: the matrix, the targets and the names of the features.
    pub(super) fn read_rows(&self) -> CliResult<(Matrix, Vec<f64>, Option<Vec<String>>)> {
        let (table, y) = self.split(table(&self.data)?)?;
        Ok((table.matrix, y, table.names))
    }

    /// The samples in blocks of `rows`, read once: number and names of the features, and the blocks. `features` is needed for
    /// libsvm text.
    pub(super) fn blocks(&self, features: Option<usize>, rows: usize) -> CliResult<Blocks<'_>> {
        if self.target_file.is_some() {
            return Err(CliError::usage(
                "`--target-file` cannot be read in blocks",
                "put the targets into a column of the file",
            ));
        }
        // Only the bytes are capped, and a file that is read once may be of any size.
        let limits = Limits { bytes: u64::MAX, ..Limits::default() };
        let blocks = row_blocks(&self.data, rows, features, limits)?;
        let n_cols = blocks.n_cols();
        let mut names = blocks.names().map(<[String]>::to_vec);
        let has_labels = Format::of(&self.data) == Some(Format::Libsvm);
        let column = if has_labels { None } else { Some(self.column(n_cols, names.as_deref())?) };
        if let (Some(column), Some(names)) = (column, &mut names) {
            names.remove(column);
        }
        let d = n_cols - usize::from(column.is_some());
        let split = move |block: Block| match (column, block.target) {
            (None, Some(y)) => SampleBlock { x: block.values, y },
            (column, _) => {
                let column = column.unwrap_or(n_cols);
                let y = block.values.chunks_exact(n_cols).filter_map(|r| r.get(column).copied()).collect();
                let kept = block.values.iter().enumerate().filter(|(k, _)| k % n_cols != column);
                SampleBlock { x: kept.map(|(_, v)| *v).collect(), y }
            }
        };
        Ok((d, names, Box::new(blocks.map(move |block| Ok(split(block?))))))
    }

    fn split(&self, mut table: Table) -> CliResult<(Table, Vec<f64>)> {
        if let Some(path) = &self.target_file {
            return Ok((table, vector(path)?));
        }
        if let Some(y) = table.target.take() {
            return Ok((table, y));
        }
        if !matches!(table.matrix, Matrix::Dense { .. }) {
            return Err(CliError::usage(
                format!("`{}` is sparse: no column of it can be the target", self.data.display()),
                "name the file of the targets with --target-file",
            ));
        }
        let column = self.column(table.matrix.n_cols(), table.names.as_deref())?;
        table
            .split_column(column)
            .ok_or_else(|| CliError::usage("there is no such column", "name another with --target"))
    }

    /// The column of the targets.
    fn column(&self, n_cols: usize, names: Option<&[String]>) -> CliResult<usize> {
        let Some(name) = self.target.as_deref() else {
            return match n_cols {
                0 | 1 => Err(CliError::usage(
                    format!("`{}` holds no targets", self.data.display()),
                    "name the file of the targets with --target-file",
                )),
                n => Ok(n - 1),
            };
        };
        let by_number = || name.parse::<usize>().ok()?.checked_sub(1).filter(|j| *j < n_cols);
        let by_name = names.and_then(|names| names.iter().position(|n| n == name));
        by_name.or_else(by_number).ok_or_else(|| {
            let known: Vec<&str> = names.unwrap_or_default().iter().map(String::as_str).collect();
            if known.is_empty() {
                CliError::usage(
                    format!("there is no column `{name}` in `{}`", self.data.display()),
                    format!("columns have numbers from 1 to {n_cols}"),
                )
            } else {
                unknown("column", name, &known)
            }
        })
    }
}

/// Some samples: `x: [y.len(), features]`, row-major.
#[derive(Debug)]
pub(super) struct SampleBlock {
    pub(super) x: Vec<f64>,
    pub(super) y: Vec<f64>,
}

/// Number and names of the features, and the samples in blocks.
type Blocks<'a> = (usize, Option<Vec<String>>, Box<dyn Iterator<Item = CliResult<SampleBlock>> + 'a>);

/// A design matrix.
pub(super) fn design(matrix: Matrix) -> CliResult<Design> {
    Ok(match matrix {
        Matrix::Dense { n_rows, n_cols, values } => {
            Mat::from_fn(n_rows, n_cols, |i, j| values[i * n_cols + j]).into()
        }
        Matrix::Sparse { n_cols, indptr, indices, values } => {
            Csr::from_parts(indptr.len().saturating_sub(1), n_cols, indptr, indices, values)?.to_csc().into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_archives() {
        let split = |text: &str| split_member(Path::new(text));
        assert_eq!(split("a/b.npz:x"), ("a/b.npz".into(), Some("x".to_owned())));
        assert_eq!(split("a/b.npz"), ("a/b.npz".into(), None));
        assert_eq!(split("a:b.csv"), ("a:b.csv".into(), None));
    }
}
