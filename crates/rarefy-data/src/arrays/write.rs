//! Writing answers: the same formats, complete or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use npyz::WriterBuilder as _;

use super::{Format, Matrix, unknown_format};
use crate::DataError;

/// Writes a matrix in the format of the name's ending: npy, npz (member `x`), csv, libsvm (label 0) or MatrixMarket
/// (coordinate when sparse). The file appears complete or not at all. npy and csv store a sparse matrix dense.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Array`] for an unknown ending, a compressed one or Parquet.
pub fn write_matrix(path: &Path, matrix: &Matrix) -> Result<(), DataError> {
    let unwritten = path.extension().is_some_and(|e| e == "gz");
    let format = Format::of(path)
        .filter(|f| !unwritten && *f != Format::Parquet)
        .ok_or_else(|| unknown_format(path))?;
    atomically(path, |out| match format {
        Format::Npy => npy(out, matrix),
        Format::Npz => npz(out, matrix),
        Format::Csv => csv(out, matrix),
        Format::Libsvm => libsvm(out, matrix),
        Format::MatrixMarket | Format::Parquet => market(out, matrix),
    })
}

/// As [`write_matrix`] for one column.
///
/// # Errors
/// As [`write_matrix`].
pub fn write_vector(path: &Path, values: &[f64]) -> Result<(), DataError> {
    write_matrix(path, &Matrix::Dense { n_rows: values.len(), n_cols: 1, values: values.to_vec() })
}

type Out = BufWriter<std::fs::File>;

fn atomically(path: &Path, write: impl FnOnce(&mut Out) -> io::Result<()>) -> Result<(), DataError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let outcome = std::fs::File::create(&temporary).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    outcome.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        DataError::Io { file: path.to_path_buf(), source }
    })
}

fn npy(out: &mut (impl Write + io::Seek), matrix: &Matrix) -> io::Result<()> {
    let values = matrix.to_dense();
    let shape = [matrix.n_rows() as u64, matrix.n_cols() as u64];
    // One column is a vector to NumPy's users.
    let shape = if shape[1] == 1 { &shape[..1] } else { &shape[..] };
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(out).begin_nd()?;
    writer.extend(values)?;
    writer.finish()
}

fn npz(out: &mut Out, matrix: &Matrix) -> io::Result<()> {
    let mut archive = npyz::npz::NpzWriter::new(out);
    let shape = [matrix.n_rows() as u64, matrix.n_cols() as u64];
    let mut writer = archive.array("x", Default::default())?.default_dtype().shape(&shape).begin_nd()?;
    writer.extend(matrix.to_dense())?;
    writer.finish()
}

/// Rust prints the shortest decimal that reads back as the same number.
fn csv(out: &mut Out, matrix: &Matrix) -> io::Result<()> {
    let values = matrix.to_dense();
    for row in values.chunks(matrix.n_cols().max(1)) {
        for (j, value) in row.iter().enumerate() {
            if j > 0 {
                out.write_all(b",")?;
            }
            write!(out, "{value}")?;
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Gives the stored entries of a matrix to `f`, by rows; zeros of a dense matrix are left out.
fn entries(matrix: &Matrix, mut f: impl FnMut(usize, usize, f64) -> io::Result<()>) -> io::Result<()> {
    match matrix {
        Matrix::Dense { n_cols, values, .. } => {
            for (k, value) in values.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                f(k / n_cols, k % n_cols, *value)?;
            }
        }
        Matrix::Sparse { indptr, indices, values, .. } => {
            for (i, row) in indptr.windows(2).enumerate() {
                for k in row[0]..row[1] {
                    f(i, indices[k] as usize, values[k])?;
                }
            }
        }
    }
    Ok(())
}

fn libsvm(out: &mut Out, matrix: &Matrix) -> io::Result<()> {
    let mut at = None;
    let end = |out: &mut Out, from: Option<usize>, to: usize| -> io::Result<()> {
        for row in from.map_or(0, |r| r + 1)..=to {
            out.write_all(if row == 0 { b"0" } else { b"\n0" })?;
        }
        Ok(())
    };
    entries(matrix, |i, j, value| {
        if at != Some(i) {
            end(out, at, i)?;
            at = Some(i);
        }
        write!(out, " {}:{value}", j + 1)
    })?;
    if let Some(last) = matrix.n_rows().checked_sub(1) {
        if at != Some(last) {
            end(out, at, last)?;
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn market(out: &mut Out, matrix: &Matrix) -> io::Result<()> {
    let (rows, cols) = (matrix.n_rows(), matrix.n_cols());
    match matrix {
        Matrix::Dense { n_cols, values, .. } => {
            writeln!(out, "%%MatrixMarket matrix array real general\n{rows} {cols}")?;
            for j in 0..cols {
                for i in 0..rows {
                    writeln!(out, "{}", values[i * n_cols + j])?;
                }
            }
            Ok(())
        }
        Matrix::Sparse { values, .. } => {
            let count = values.len();
            writeln!(out, "%%MatrixMarket matrix coordinate real general\n{rows} {cols} {count}")?;
            entries(matrix, |i, j, value| writeln!(out, "{} {} {value}", i + 1, j + 1))
        }
    }
}
