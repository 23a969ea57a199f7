//! MatrixMarket: coordinate and array, real, integer and pattern, general, symmetric and skew-symmetric.

use std::path::Path;

use super::open::Lines;
use super::{Limits, Matrix, Table};
use crate::DataError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Symmetry {
    General,
    Symmetric,
    Skew,
}

struct Header {
    is_coordinate: bool,
    is_pattern: bool,
    symmetry: Symmetry,
}

const BANNER: &str =
    "`%%MatrixMarket matrix coordinate|array real|integer|pattern general|symmetric|skew-symmetric`";

fn header(line: &str) -> Option<Header> {
    let line = line.to_ascii_lowercase();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let ["%%matrixmarket", "matrix", layout, field, symmetry] = words[..] else { return None };
    let is_coordinate = match layout {
        "coordinate" => true,
        "array" => false,
        _ => return None,
    };
    let is_pattern = match field {
        "real" | "integer" | "double" => false,
        "pattern" if is_coordinate => true,
        _ => return None,
    };
    let symmetry = match symmetry {
        "general" => Symmetry::General,
        "symmetric" => Symmetry::Symmetric,
        "skew-symmetric" => Symmetry::Skew,
        _ => return None,
    };
    Some(Header { is_coordinate, is_pattern, symmetry })
}

/// The next line that is neither blank nor a comment, split at spaces and given to `parse`.
fn next_line<T>(
    lines: &mut Lines<'_>,
    expected: &'static str,
    parse: impl FnOnce(&[&str]) -> Option<T>,
) -> Result<T, DataError> {
    loop {
        let Some(line) = lines.next()? else { return Err(lines.error(expected, "the end of the file")) };
        let line = line.trim();
        if line.is_empty() || line.starts_with('%') {
            continue;
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        return match parse(&words) {
            Some(value) => Ok(value),
            None => {
                let found = format!("`{line}`");
                Err(lines.error(expected, found))
            }
        };
    }
}

/// Reads the whole file.
pub(super) fn read(path: &Path, limits: Limits) -> Result<Table, DataError> {
    let mut lines = Lines::open(path, limits.bytes)?;
    let first = lines.next()?.map(header);
    let Some(Some(header)) = first else { return Err(lines.error(BANNER, "another first line")) };
    let matrix = if header.is_coordinate {
        coordinate(&mut lines, &header, limits)
    } else {
        array(&mut lines, &header, limits)
    }?;
    while let Some(line) = lines.next()? {
        if !line.trim().is_empty() && !line.starts_with('%') {
            let found = format!("`{line}`");
            return Err(lines.error("the end of the file: all entries promised are there", found));
        }
    }
    Ok(Table { matrix, names: None, target: None })
}

fn coordinate(lines: &mut Lines<'_>, header: &Header, limits: Limits) -> Result<Matrix, DataError> {
    let (rows, cols, count) = next_line(lines, "rows, columns and number of entries", |w| match w {
        [r, c, n] => Some((r.parse::<u32>().ok()?, c.parse::<u32>().ok()?, n.parse::<usize>().ok()?)),
        _ => None,
    })?;
    if header.symmetry != Symmetry::General && rows != cols {
        return Err(lines.error("a square matrix when symmetric", format!("{rows} x {cols}")));
    }
    if rows.max(cols) as usize > limits.dimension || count > limits.values {
        return Err(lines.error("a size within the limit", format!("{rows} x {cols}, {count} entries")));
    }
    // The header may lie: memory grows with the entries that are there.
    let mut entries: Vec<(u32, u32, f64)> = Vec::new();
    let expected = if header.is_pattern { "row and column" } else { "row, column and value" };
    for _ in 0..count {
        let (i, j, value) = next_line(lines, expected, |w| match w {
            [i, j] if header.is_pattern => Some((i.parse::<u32>().ok()?, j.parse::<u32>().ok()?, 1.0)),
            [i, j, v] if !header.is_pattern => Some((i.parse().ok()?, j.parse().ok()?, v.parse().ok()?)),
            _ => None,
        })?;
        if i == 0 || j == 0 || i > rows || j > cols {
            return Err(lines.error("indices from 1, inside the matrix", format!("({i}, {j})")));
        }
        entries.push((i - 1, j - 1, value));
        if i != j && header.symmetry != Symmetry::General {
            let sign = if header.symmetry == Symmetry::Skew { -1.0 } else { 1.0 };
            entries.push((j - 1, i - 1, sign * value));
        }
    }
    Matrix::from_entries(rows as usize, cols as usize, entries)
        .map_err(|(i, j)| lines.error("each entry once", format!("({}, {}) twice", i + 1, j + 1)))
}

fn array(lines: &mut Lines<'_>, header: &Header, limits: Limits) -> Result<Matrix, DataError> {
    let (n_rows, n_cols) = next_line(lines, "rows and columns", |w| match w {
        [r, c] => Some((r.parse::<usize>().ok()?, c.parse::<usize>().ok()?)),
        _ => None,
    })?;
    let size = n_rows.checked_mul(n_cols).filter(|n| *n <= limits.values);
    let Some(size) = size else {
        return Err(lines.error("a size within the limit", format!("{n_rows} x {n_cols}")));
    };
    if header.symmetry != Symmetry::General && n_rows != n_cols {
        return Err(lines.error("a square matrix when symmetric", format!("{n_rows} x {n_cols}")));
    }
    // Columns one after the other; only the lower triangle when symmetric.
    let mut columns: Vec<(usize, usize, f64)> = Vec::new();
    for j in 0..n_cols {
        let from = match header.symmetry {
            Symmetry::General => 0,
            Symmetry::Symmetric => j,
            Symmetry::Skew => j + 1,
        };
        for i in from..n_rows {
            let value = next_line(lines, "one value", |w| match w {
                [v] => v.parse::<f64>().ok(),
                _ => None,
            })?;
            columns.push((i, j, value));
        }
    }
    let mut values = vec![0.0; size];
    for (i, j, value) in columns {
        values[i * n_cols + j] = value;
        match header.symmetry {
            Symmetry::General => {}
            Symmetry::Symmetric => values[j * n_cols + i] = value,
            Symmetry::Skew => values[j * n_cols + i] = -value,
        }
    }
    Ok(Matrix::Dense { n_rows, n_cols, values })
}
