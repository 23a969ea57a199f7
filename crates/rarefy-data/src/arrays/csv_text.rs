//! Separated text. The separator is the one of `,` `;` tab space that the first line holds most often; a first line
//! with a field that is not a number is the heading; an empty field, `NA`, `NaN` or `?` is a missing value.

use std::path::Path;

use super::open::{Capped, line_error, open, read_error};
use super::{Limits, Matrix, Table};
use crate::DataError;

use std::io::{BufRead as _, BufReader, Read};

/// Records of a separated text.
pub(super) struct Records {
    reader: csv::Reader<BufReader<Capped<Box<dyn Read + Send>>>>,
    record: csv::StringRecord,
    /// Names of the columns.
    pub(super) names: Option<Vec<String>>,
    /// Number of columns; 0 of an empty file.
    pub(super) n_cols: usize,
    /// The first record when it is not a heading.
    first: Option<Vec<f64>>,
    cap: u64,
}

impl Records {
    pub(super) fn open(path: &Path, cap: u64) -> Result<Self, DataError> {
        let mut source = open(path, cap)?;
        let start = source.fill_buf().map_err(|e| read_error(path, cap, e))?;
        let line = start.split(|b| *b == b'\n').next().unwrap_or_default();
        let count = |c: u8| line.iter().filter(|b| **b == c).count();
        // A space counts only when nothing else separates: `a, b` has both.
        let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|c| (count(*c), *c == b','));
        let delimiter = delimiter.filter(|c| count(*c) > 0).unwrap_or(b' ');
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .delimiter(delimiter)
            .trim(csv::Trim::All)
            .from_reader(source);
        let mut record = csv::StringRecord::new();
        let more = reader.read_record(&mut record).map_err(|e| csv_error(path, cap, e))?;
        let n_cols = if more { record.len() } else { 0 };
        let numbers: Option<Vec<f64>> = record.iter().map(number).collect();
        let names = (more && numbers.is_none()).then(|| record.iter().map(str::to_owned).collect());
        let first = numbers.filter(|_| more);
        Ok(Self { reader, record, names, n_cols, first, cap })
    }

    /// Appends the next record to `values`; false at the end.
    pub(super) fn next(&mut self, path: &Path, values: &mut Vec<f64>) -> Result<bool, DataError> {
        if let Some(first) = self.first.take() {
            values.extend(first);
            return Ok(true);
        }
        if !self.reader.read_record(&mut self.record).map_err(|e| csv_error(path, self.cap, e))? {
            return Ok(false);
        }
        for (j, field) in self.record.iter().enumerate() {
            let Some(value) = number(field) else {
                let line = self.record.position().map_or(0, csv::Position::line);
                let found = format!("`{field}` in column {}", j + 1);
                return Err(line_error(path, usize::try_from(line).unwrap_or(usize::MAX), "a number", found));
            };
            values.push(value);
        }
        Ok(true)
    }
}

fn number(field: &str) -> Option<f64> {
    if field.is_empty() || field == "NA" || field == "?" || field.eq_ignore_ascii_case("nan") {
        return Some(f64::NAN);
    }
    field.parse().ok()
}

fn csv_error(path: &Path, cap: u64, error: csv::Error) -> DataError {
    let line = error.position().map_or(0, csv::Position::line);
    let line = usize::try_from(line).unwrap_or(usize::MAX);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => read_error(path, cap, source),
        csv::ErrorKind::Utf8 { .. } => line_error(path, line, "UTF-8 text", "other bytes"),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => line_error(
            path,
            line,
            "as many fields as the first line",
            format!("{len} instead of {expected_len}"),
        ),
        _ => line_error(path, line, "separated text", "something else"),
    }
}

/// Reads the whole file.
pub(super) fn read(path: &Path, limits: Limits) -> Result<Table, DataError> {
    let mut records = Records::open(path, limits.bytes)?;
    let (mut values, mut n_rows) = (Vec::new(), 0);
    while records.next(path, &mut values)? {
        n_rows += 1;
        if values.len() > limits.values {
            return Err(line_error(
                path,
                n_rows,
                "no more values than the limit",
                format!("more than {}", limits.values),
            ));
        }
    }
    if values.is_empty() {
        return Err(DataError::Empty { file: path.to_path_buf() });
    }
    let matrix = Matrix::Dense { n_rows, n_cols: records.n_cols, values };
    Ok(Table { matrix, names: records.names, target: None })
}
