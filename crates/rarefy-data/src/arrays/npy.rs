//! NumPy's npy and npz, read by `npyz`. Nothing is unpickled.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use npyz::{DType, NpyFile, Order, TypeChar};

use super::open::{open, read_error};
use super::{Limits, Matrix, Table};
use crate::DataError;

/// Longest header of an array, in bytes.
const LONGEST_HEADER: usize = 64 << 10;

/// An array of any shape.
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    /// Row-major.
    pub(super) values: Vec<f64>,
}

/// An array whose header has been read and checked.
pub(super) struct Opened<R: Read> {
    pub(super) file: NpyFile<R>,
    pub(super) shape: Vec<usize>,
    /// Number of values.
    pub(super) len: usize,
}

fn error(path: &Path, place: &str, expected: &'static str, found: impl Into<String>) -> DataError {
    DataError::Array { file: path.to_path_buf(), place: place.to_owned(), expected, found: found.into() }
}

/// A reader whose first bytes were looked at.
type Again<R> = std::io::Chain<std::io::Cursor<Vec<u8>>, R>;

/// Reads and checks the header. `place` is named in errors.
pub(super) fn open_array<R: Read>(
    mut reader: R,
    path: &Path,
    place: &str,
    limits: Limits,
) -> Result<Opened<Again<R>>, DataError> {
    let fault = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => error(path, place, "a whole npy array", "the end of the file"),
        _ => read_error(path, limits.bytes, e),
    };
    let mut start = vec![0; 10];
    reader.read_exact(&mut start).map_err(fault)?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(error(path, place, "the npy magic", "other bytes"));
    }
    // The length of the header is two bytes in version 1 and four later.
    let length = if start[6] == 1 {
        usize::from(u16::from_le_bytes([start[8], start[9]]))
    } else {
        start.extend([0, 0]);
        reader.read_exact(&mut start[10..]).map_err(fault)?;
        u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize
    };
    if length > LONGEST_HEADER {
        return Err(error(path, place, "a header of at most 64 KiB", format!("{length} bytes")));
    }
    let at = start.len();
    start.resize(at + length, 0);
    reader.read_exact(&mut start[at..]).map_err(fault)?;
    let text = String::from_utf8_lossy(&start[at..]).into_owned();
    check_header(&text, limits)
        .map_err(|found| error(path, place, "a flat header and a size within the limit", found))?;
    let file = NpyFile::new(std::io::Cursor::new(start).chain(reader))
        .map_err(|e| error(path, place, "an npy header", e.to_string()))?;
    let shape: Option<Vec<usize>> = file.shape().iter().map(|n| usize::try_from(*n).ok()).collect();
    let len = shape.as_ref().and_then(|s| s.iter().try_fold(1_usize, |a, n| a.checked_mul(*n)));
    match (shape, len) {
        (Some(shape), Some(len)) if len <= limits.values => Ok(Opened { file, shape, len }),
        _ => Err(error(path, place, "a size within the limit", format!("{:?}", text.trim()))),
    }
}

/// What the parser of the header does not check by itself: nesting, and a product of sizes that overflows.
fn check_header(text: &str, limits: Limits) -> Result<(), String> {
    let mut depth = 0_i32;
    for c in text.chars() {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        if depth > 8 {
            return Err("brackets nested more than 8 deep".into());
        }
    }
    let shape = text.split("shape").nth(1).and_then(|rest| rest.split_once('('));
    let sizes = shape.and_then(|(_, rest)| rest.split_once(')')).map_or("", |(sizes, _)| sizes);
    let mut product = 1_usize;
    for size in sizes.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        let size: Option<usize> = size.trim_end_matches(['L', 'l']).parse().ok();
        // A size of 0 must not hide another that overflows.
        let next = size.and_then(|s| product.checked_mul(s.max(1))).filter(|p| *p <= limits.values);
        product = next.ok_or_else(|| format!("({sizes})"))?;
    }
    Ok(())
}

/// The values, in the order of the file.
pub(super) type Values<'a> = Box<dyn Iterator<Item = Result<f64, DataError>> + 'a>;

/// The values of an array of real numbers, in the order of the file.
pub(super) fn values<'a, R: Read + 'a>(
    file: NpyFile<R>,
    path: &'a Path,
    place: &'a str,
    limits: Limits,
) -> Result<Values<'a>, DataError> {
    let dtype = file.dtype();
    let DType::Plain(kind) = &dtype else {
        return Err(error(path, place, "an array of numbers", dtype.descr()));
    };
    let fault = move |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => error(path, place, "all values promised", "the end of the file"),
        _ => read_error(path, limits.bytes, e),
    };
    macro_rules! read {
        ($type:ty, $convert:expr) => {{
            let data = file.data::<$type>().map_err(|e| error(path, place, "numbers", e.to_string()))?;
            Ok(Box::new(data.map(move |value| value.map($convert).map_err(fault))))
        }};
    }
    match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 8) => read!(f64, |v| v),
        (TypeChar::Float, 4) => read!(f32, f64::from),
        (TypeChar::Int, 8) => read!(i64, |v| v as f64),
        (TypeChar::Int, 4) => read!(i32, f64::from),
        (TypeChar::Int, 2) => read!(i16, f64::from),
        (TypeChar::Int, 1) => read!(i8, f64::from),
        (TypeChar::Uint, 8) => read!(u64, |v| v as f64),
        (TypeChar::Uint, 4) => read!(u32, f64::from),
        (TypeChar::Uint, 2) => read!(u16, f64::from),
        (TypeChar::Uint, 1) => read!(u8, f64::from),
        (TypeChar::Bool, _) => read!(bool, |v: bool| f64::from(u8::from(v))),
        _ => Err(error(
            path,
            place,
            "real numbers of up to 64 bits; convert with numpy's astype",
            dtype.descr(),
        )),
    }
}

fn read_array(reader: impl Read, path: &Path, place: &str, limits: Limits) -> Result<Array, DataError> {
    let Opened { file, shape, len } = open_array(reader, path, place, limits)?;
    let is_fortran = file.order() == Order::Fortran;
    // The header may lie: memory grows with the values that are there.
    let mut read = Vec::with_capacity(len.min(1 << 20));
    for value in values(file, path, place, limits)? {
        read.push(value?);
    }
    let mut values = read;
    if values.len() != len {
        return Err(error(path, place, "all values promised", format!("{} of {len}", values.len())));
    }
    if is_fortran && shape.len() == 2 {
        let (n, p) = (shape[0], shape[1]);
        let column_major = values;
        values = (0..n * p).map(|k| column_major[(k % p) * n + k / p]).collect();
    } else if is_fortran && shape.len() > 2 {
        return Err(error(path, place, "C order for more than two dimensions", "Fortran order"));
    }
    Ok(Array { shape, values })
}

impl Array {
    fn into_matrix(self, path: &Path, place: &str) -> Result<Matrix, DataError> {
        let (n_rows, n_cols) = match self.shape[..] {
            [] => (1, 1),
            [n] => (n, 1),
            [n, p] => (n, p),
            _ => return Err(error(path, place, "at most two dimensions", format!("{:?}", self.shape))),
        };
        Ok(Matrix::Dense { n_rows, n_cols, values: self.values })
    }
}

/// Reads an npy file.
pub(super) fn read(path: &Path, limits: Limits) -> Result<Table, DataError> {
    let matrix = read_array(open(path, limits.bytes)?, path, "array", limits)?.into_matrix(path, "array")?;
    Ok(Table { matrix, names: None, target: None })
}

type Archive = npyz::npz::NpzArchive<BufReader<File>>;

/// Gives the decompressed bytes of a member to `read`, and its name for errors.
fn with_member<T>(
    archive: &mut Archive,
    path: &Path,
    name: &str,
    read: impl FnOnce(&mut dyn Read, &str) -> Result<T, DataError>,
) -> Result<T, DataError> {
    let place = format!("member `{name}`");
    let inside = npyz::npz::file_name_from_array_name(name);
    let entry = archive.zip_archive().by_name(&inside);
    let mut entry = entry.map_err(|e| error(path, &place, "a readable member", e.to_string()))?;
    read(&mut entry, &place)
}

/// Reads an npz file: one member, or `x` and `y`, or a matrix of SciPy.
pub(super) fn read_archive(path: &Path, member: Option<&str>, limits: Limits) -> Result<Table, DataError> {
    let io = |source| DataError::Io { file: path.to_path_buf(), source };
    let file = BufReader::new(File::open(path).map_err(io)?);
    let mut archive = npyz::npz::NpzArchive::new(file)
        .map_err(|e| error(path, "archive", "a zip archive of npy arrays", e.to_string()))?;
    let mut names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    names.sort_unstable();
    let has = |name: &str| names.iter().any(|n| n == name);
    let get = |archive: &mut Archive, name: &str| -> Result<Array, DataError> {
        with_member(archive, path, name, |entry, place| {
            read_array(entry.take(limits.bytes), path, place, limits)
        })
    };
    let dense = |matrix| Table { matrix, names: None, target: None };
    if let Some(name) = member {
        if !has(name) {
            return Err(error(path, "archive", "the member that was asked for", format!("only {names:?}")));
        }
        return Ok(dense(get(&mut archive, name)?.into_matrix(path, &format!("member `{name}`"))?));
    }
    if ["indptr", "indices", "data", "shape", "format"].into_iter().all(has) {
        let format = format_of_scipy(&mut archive, path, limits)?;
        if format != b"csr" {
            let found = String::from_utf8_lossy(&format).into_owned();
            return Err(error(path, "member `format`", "a CSR matrix; convert with .tocsr()", found));
        }
        let parts = [
            get(&mut archive, "indptr")?,
            get(&mut archive, "indices")?,
            get(&mut archive, "data")?,
            get(&mut archive, "shape")?,
        ];
        return Ok(dense(scipy(parts, limits).map_err(|found| {
            error(path, "archive", "a CSR matrix as scipy.sparse.save_npz writes it", found)
        })?));
    }
    let name = ["x", "X"].into_iter().find(|n| has(n)).or_else(|| match &names[..] {
        [only] => Some(only.as_str()),
        _ => None,
    });
    let Some(name) = name else {
        let expected = "a member `x`, or one array only; name one as FILE:MEMBER";
        return Err(error(path, "archive", expected, format!("{names:?}")));
    };
    let mut table = dense(get(&mut archive, name)?.into_matrix(path, &format!("member `{name}`"))?);
    if let Some(y) = ["y", "Y"].into_iter().find(|n| has(n)) {
        table.target = Some(get(&mut archive, y)?.values);
    }
    Ok(table)
}

/// The three letters of the member `format`: an array of bytes without dimensions.
fn format_of_scipy(archive: &mut Archive, path: &Path, limits: Limits) -> Result<Vec<u8>, DataError> {
    with_member(archive, path, "format", |entry, place| {
        let mut inner = open_array(entry, path, place, limits)?.file.into_inner().take(3);
        let mut letters = Vec::new();
        inner.read_to_end(&mut letters).map_err(|e| read_error(path, limits.bytes, e))?;
        Ok(letters)
    })
}

/// A CSR matrix from its parts; indices are checked.
fn scipy([indptr, indices, data, shape]: [Array; 4], limits: Limits) -> Result<Matrix, String> {
    let whole = |v: f64| (v >= 0.0 && v.fract() == 0.0 && v <= f64::from(u32::MAX)).then_some(v as usize);
    let list = |name: &str, a: &Array| -> Result<Vec<usize>, String> {
        a.values.iter().map(|v| whole(*v).ok_or_else(|| format!("{name} holds {v}"))).collect()
    };
    let (indptr, indices, shape) =
        (list("indptr", &indptr)?, list("indices", &indices)?, list("shape", &shape)?);
    let [n_rows, n_cols] = shape[..] else { return Err(format!("shape {shape:?}")) };
    if n_cols > limits.dimension {
        return Err(format!("{n_cols} columns, more than the limit of {}", limits.dimension));
    }
    if indptr.len() != n_rows + 1 {
        return Err(format!("{} row starts for {n_rows} rows; convert with .tocsr()", indptr.len()));
    }
    let rises = indptr.first() == Some(&0) && indptr.windows(2).all(|w| w[0] <= w[1]);
    if !rises || indptr.last() != Some(&indices.len()) || indices.len() != data.values.len() {
        return Err("row starts that do not fit the entries".into());
    }
    let mut entries = Vec::with_capacity(indices.len());
    for (i, row) in indptr.windows(2).enumerate() {
        let row = row[0]..row[1];
        for (column, value) in indices[row.clone()].iter().zip(&data.values[row]) {
            if *column >= n_cols {
                return Err(format!("column {column} of {n_cols}"));
            }
            entries.push((i as u32, *column as u32, *value));
        }
    }
    Matrix::from_entries(n_rows, n_cols, entries).map_err(|(i, j)| format!("entry ({i}, {j}) twice"))
}
