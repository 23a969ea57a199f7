//! From files to problems.

use std::path::{Path, PathBuf};

use faer::Mat;
use rarefy_data::arrays::{Limits, Matrix, Table, read_table, read_vector};
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
    if n.checked_mul(p).is_none_or(|size| size > Limits::default().values) {
        return Err(CliError::usage(
            format!("`{}` is {n} x {p}: too large to be held dense", path.display()),
            "select rows or columns first",
        ));
    }
    Ok((matrix.to_dense(), n, p))
}

/// Where the targets are.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TargetArgs {
    /// Table of samples: .csv, .libsvm, .npz with `x` and `y`, .npy, .mtx; perhaps .gz
    data: PathBuf,
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

    fn split(&self, mut table: Table) -> CliResult<(Table, Vec<f64>)> {
        if let Some(path) = &self.target_file {
            return Ok((table, vector(path)?));
        }
        if let Some(y) = table.target.take() {
            return Ok((table, y));
        }
        let n_cols = table.matrix.n_cols();
        let by_name = |name: &str| table.names.as_ref()?.iter().position(|n| n == name);
        let column = match self.target.as_deref() {
            None if n_cols >= 2 && matches!(table.matrix, Matrix::Dense { .. }) => n_cols - 1,
            None => {
                return Err(CliError::usage(
                    format!("`{}` holds no targets", self.data.display()),
                    "name the file of the targets with --target-file",
                ));
            }
            Some(name) => {
                let by_number = || name.parse::<usize>().ok()?.checked_sub(1).filter(|j| *j < n_cols);
                match by_name(name).or_else(by_number) {
                    Some(column) => column,
                    None => {
                        let names = table.names.clone().unwrap_or_default();
                        let known: Vec<&str> = names.iter().map(String::as_str).collect();
                        return Err(if known.is_empty() {
                            CliError::usage(
                                format!("there is no column `{name}` in `{}`", self.data.display()),
                                format!("columns have numbers from 1 to {n_cols}"),
                            )
                        } else {
                            unknown("column", name, &known)
                        });
                    }
                }
            }
        };
        table.split_column(column).ok_or_else(|| {
            CliError::usage(
                format!("`{}` is sparse: no column of it can be the target", self.data.display()),
                "name the file of the targets with --target-file",
            )
        })
    }
}

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
