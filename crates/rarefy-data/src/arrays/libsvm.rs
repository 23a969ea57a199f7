//! LIBSVM text: `label index:value …`, indices from 1, `#` begins a comment.

use std::path::Path;

use super::open::Lines;
use super::{Limits, Matrix, Table};
use crate::DataError;

/// Reads the next sample: its label, and its entries (column from 0, value) into `entries`, columns rising.
pub(super) fn next_sample(
    lines: &mut Lines<'_>,
    entries: &mut Vec<(u32, f64)>,
) -> Result<Option<f64>, DataError> {
    loop {
        let Some(line) = lines.next()? else { return Ok(None) };
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        entries.clear();
        return match parse(line, entries) {
            Ok(label) => Ok(Some(label)),
            Err((expected, found)) => Err(lines.error(expected, found)),
        };
    }
}

fn parse(line: &str, entries: &mut Vec<(u32, f64)>) -> Result<f64, (&'static str, String)> {
    let mut fields = line.split_ascii_whitespace();
    let label = fields.next().unwrap_or_default();
    let quoted = |text: &str| format!("`{text}`");
    let label: f64 = label.parse().map_err(|_| ("a label, then index:value", quoted(label)))?;
    for field in fields {
        let pair = field.split_once(':').and_then(|(i, v)| Some((i.parse::<u32>().ok()?, v.parse().ok()?)));
        let Some((index, value)) = pair else {
            return Err(("index:value with a whole index from 1", quoted(field)));
        };
        let Some(column) = index.checked_sub(1) else {
            return Err(("indices from 1; add 1 to each index of the file", quoted(field)));
        };
        entries.push((column, value));
    }
    entries.sort_by_key(|e| e.0);
    match entries.windows(2).find(|w| w[0].0 == w[1].0) {
        Some(w) => Err(("each index once", format!("index {} twice", w[0].0 + 1))),
        None => Ok(label),
    }
}

/// Reads the whole file.
pub(super) fn read(path: &Path, limits: Limits) -> Result<Table, DataError> {
    let mut lines = Lines::open(path, limits.bytes)?;
    let (mut indptr, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    let (mut labels, mut sample, mut n_cols) = (Vec::new(), Vec::new(), 0);
    while let Some(label) = next_sample(&mut lines, &mut sample)? {
        labels.push(label);
        for (column, value) in &sample {
            n_cols = n_cols.max(*column as usize + 1);
            if n_cols > limits.dimension {
                return Err(lines.error("an index within the limit", n_cols.to_string()));
            }
            indices.push(*column);
            values.push(*value);
        }
        indptr.push(indices.len());
        if values.len() > limits.values {
            return Err(lines.error("no more values than the limit", format!("more than {}", limits.values)));
        }
    }
    if labels.is_empty() {
        return Err(DataError::Empty { file: path.to_path_buf() });
    }
    let matrix = Matrix::Sparse { n_cols, indptr, indices, values };
    Ok(Table { matrix, names: None, target: Some(labels) })
}
