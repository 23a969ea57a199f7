//! Apache Parquet: flat tables of numbers. A null is a missing value.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;

use super::{Limits, Matrix, Table};
use crate::DataError;

/// Reads the whole file.
pub(super) fn read(path: &Path, limits: Limits) -> Result<Table, DataError> {
    let fault = |place: String, expected, found: String| DataError::Array {
        file: path.to_path_buf(),
        place,
        expected,
        found,
    };
    let broken = |e: parquet::errors::ParquetError| fault("file".into(), "a Parquet file", e.to_string());
    let file = File::open(path).map_err(|source| DataError::Io { file: path.to_path_buf(), source })?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let metadata = reader.metadata().file_metadata();
    let schema = metadata.schema_descr();
    let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    let n_cols = names.len();
    let n_rows = usize::try_from(metadata.num_rows()).unwrap_or(usize::MAX);
    if n_rows.checked_mul(n_cols).is_none_or(|size| size > limits.values) {
        return Err(fault(
            "shape".into(),
            "no more values than the limit",
            format!("{} rows, {n_cols} columns", metadata.num_rows()),
        ));
    }
    // The footer may lie: memory grows with the rows that are there.
    let mut values = Vec::new();
    let mut rows = 0;
    for row in reader.get_row_iter(None).map_err(broken)? {
        let row = row.map_err(broken)?;
        rows += 1;
        if row.len() != n_cols || values.len() >= limits.values {
            let found = format!("{} fields in row {rows}", row.len());
            return Err(fault("schema".into(), "a flat table within the limit", found));
        }
        for (name, field) in row.get_column_iter() {
            let Some(value) = number(field) else {
                let place = format!("column `{name}`, row {rows}");
                return Err(fault(place, "a number", field.to_string()));
            };
            values.push(value);
        }
    }
    if values.is_empty() {
        return Err(DataError::Empty { file: path.to_path_buf() });
    }
    let matrix = Matrix::Dense { n_rows: rows, n_cols, values };
    Ok(Table { matrix, names: Some(names), target: None })
}

fn number(field: &Field) -> Option<f64> {
    Some(match field {
        Field::Null => f64::NAN,
        Field::Bool(v) => f64::from(u8::from(*v)),
        Field::Byte(v) => f64::from(*v),
        Field::Short(v) => f64::from(*v),
        Field::Int(v) => f64::from(*v),
        Field::Long(v) => *v as f64,
        Field::UByte(v) => f64::from(*v),
        Field::UShort(v) => f64::from(*v),
        Field::UInt(v) => f64::from(*v),
        Field::ULong(v) => *v as f64,
        Field::Float(v) => f64::from(*v),
        Field::Double(v) => *v,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use parquet::data_type::{DoubleType, Int32Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    #[test]
    fn numbers_nulls_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = parse_message_type("message t { required int32 age; optional double income; }").unwrap();
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&[3, -4], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[1.5], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let table = read(&path, Limits::default()).unwrap();
        assert_eq!(table.names.unwrap(), ["age", "income"]);
        let values = table.matrix.to_dense();
        assert_eq!(values[..3], [3.0, 1.5, -4.0]);
        assert!(values[3].is_nan());
        let small = Limits { values: 3, ..Limits::default() };
        assert!(read(&path, small).unwrap_err().to_string().contains("limit"));
        std::fs::write(&path, "PAR1 nothing").unwrap();
        assert!(read(&path, Limits::default()).unwrap_err().to_string().contains("a Parquet file"));
    }
}
