#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
    fn read(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<Table, DataError> {
        read_table(&self.file(name, bytes), None, Limits::default())
    }
}

fn dense(n_rows: usize, n_cols: usize, values: &[f64]) -> Matrix {
    Matrix::Dense { n_rows, n_cols, values: values.to_vec() }
}

fn message(result: Result<Table, DataError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn csv_with_and_without_heading_and_each_separator() {
    let f = Folder::new();
    for (name, text) in [
        ("a.csv", "1,2.5\n3,-4e2\n"),
        ("b.csv", "1;2.5\r\n3;-4e2\r\n"),
        ("c.tsv", "1\t2.5\n3\t-4e2"),
        ("d.txt", "1 2.5\n3 -4e2\n"),
        ("e.csv", "1, 2.5\n3, -4e2\n"),
    ] {
        assert_eq!(f.read(name, text).unwrap().matrix, dense(2, 2, &[1.0, 2.5, 3.0, -400.0]), "{name}");
    }
    let t = f.read("h.csv", "age,\"in, come\"\n1,\n2,NA\n").unwrap();
    assert_eq!(t.names.clone().unwrap(), ["age", "in, come"]);
    let values = t.matrix.to_dense();
    assert!(values[1].is_nan() && values[3].is_nan());
    let (rest, target) = t.split_column(0).unwrap();
    assert_eq!((target, rest.names.unwrap()), (vec![1.0, 2.0], vec!["in, come".to_owned()]));
    assert_eq!(rest.matrix.n_cols(), 1);
}

#[test]
fn csv_errors_name_line_and_column() {
    let f = Folder::new();
    let e = message(f.read("a.csv", "a,b\n1,2\n3,x\n"));
    assert!(e.contains("line 3") && e.contains("`x` in column 2"), "{e}");
    let e = message(f.read("a.csv", "1,2\n3\n"));
    assert!(e.contains("line 2") && e.contains("1 instead of 2"), "{e}");
    assert!(message(f.read("a.csv", b"1,2\n3,\xff\n")).contains("UTF-8"));
    assert!(message(f.read("a.csv", "")).contains("empty"));
    assert!(message(f.read("a.csv", "a,b\n")).contains("empty"));
    let path = f.file("b.csv", "1,2\n3,4\n");
    let small = Limits { values: 3, ..Limits::default() };
    assert!(message(read_table(&path, None, small)).contains("more than 3"));
    let small = Limits { bytes: 5, ..Limits::default() };
    assert!(matches!(read_table(&path, None, small), Err(DataError::TooLarge { cap: 5, .. })));
}

#[test]
fn libsvm_by_hand_and_its_errors() {
    let f = Folder::new();
    let t = f.read("a.libsvm", "+1 1:0.5 3:2 # note\n\n-1\n2.5 3:1 2:4\n").unwrap();
    assert_eq!(t.target.unwrap(), [1.0, -1.0, 2.5]);
    assert_eq!(t.matrix.to_dense(), [0.5, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 4.0, 1.0]);
    for (text, word) in [
        ("1 0:1\n", "add 1"),
        ("1 2:1 2:3\n", "twice"),
        ("1 a:1\n", "index:value"),
        ("1 5\n", "index:value"),
        ("1 99999999999:1\n", "index:value"),
        ("1 4294967295:1\n", "within the limit"),
        ("x 1:1\n", "label"),
        ("# only\n", "empty"),
    ] {
        let e = message(f.read("a.svm", text));
        assert!(e.contains(word), "{text}: {e}");
    }
}

#[test]
fn matrix_market_in_all_its_forms() {
    let f = Folder::new();
    let head = "%%MatrixMarket matrix";
    let read = |rest: &str| f.read("a.mtx", format!("{head} {rest}"));
    let m = read("coordinate real general\n% note\n2 3 2\n1 3 5\n2 1 -1\n").unwrap().matrix;
    assert_eq!(m.to_dense(), [0.0, 0.0, 5.0, -1.0, 0.0, 0.0]);
    let m = read("coordinate pattern symmetric\n2 2 2\n1 1\n2 1\n").unwrap().matrix;
    assert_eq!(m.to_dense(), [1.0, 1.0, 1.0, 0.0]);
    let m = read("coordinate integer skew-symmetric\n2 2 1\n2 1 3\n").unwrap().matrix;
    assert_eq!(m.to_dense(), [0.0, -3.0, 3.0, 0.0]);
    let m = read("array real general\n2 2\n1\n2\n3\n4\n").unwrap().matrix;
    assert_eq!(m, dense(2, 2, &[1.0, 3.0, 2.0, 4.0]));
    let m = read("array real symmetric\n2 2\n1\n2\n3\n").unwrap().matrix;
    assert_eq!(m, dense(2, 2, &[1.0, 2.0, 2.0, 3.0]));
    for (rest, word) in [
        ("coordinate complex general\n1 1 0\n", "another first line"),
        ("coordinate real general\n2 2 2\n1 1 1\n", "the end of the file"),
        ("coordinate real general\n2 2 1\n1 1 1\n2 2 2\n", "all entries promised"),
        ("coordinate real general\n2 2 1\n3 1 1\n", "inside the matrix"),
        ("coordinate real general\n2 2 1\n0 1 1\n", "inside the matrix"),
        ("coordinate real general\n2 2 2\n1 1 1\n1 1 2\n", "twice"),
        ("coordinate real symmetric\n2 3 1\n1 1 1\n", "square"),
        ("array real general\n4294967296 4294967296\n", "within the limit"),
        ("coordinate real general\n4294967295 1 1\n1 1 1\n", "within the limit"),
        ("coordinate real general\n2 2 9999999999\n", "within the limit"),
        ("coordinate real general\n2 4294967295 1\n1 1 1\n", "within the limit"),
    ] {
        let e = message(read(rest));
        assert!(e.contains(word), "{rest}: {e}");
    }
}

/// An npy file with any header text.
fn npy_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

#[test]
fn npy_types_orders_and_shapes() {
    let f = Folder::new();
    let head = |descr: &str, fortran: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    };
    let bytes: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let m = f.read("a.npy", npy_bytes(&head("<f4", "False", "(2, 3)"), &bytes)).unwrap().matrix;
    assert_eq!(m, dense(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let m = f.read("a.npy", npy_bytes(&head("<f4", "True", "(2, 3)"), &bytes)).unwrap().matrix;
    assert_eq!(m, dense(2, 3, &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
    let m = f.read("a.npy", npy_bytes(&head("|u1", "False", "(3,)"), &[1, 2, 255])).unwrap().matrix;
    assert_eq!(m, dense(3, 1, &[1.0, 2.0, 255.0]));
    let m = f.read("a.npy", npy_bytes(&head(">i2", "False", "()"), &[1, 0])).unwrap().matrix;
    assert_eq!(m, dense(1, 1, &[256.0]));
    let deep = "(".repeat(50);
    for (header, word) in [
        (head("<f8", "False", "(2, 3)"), "end of the file"),
        (head("<f8", "False", "(4294967296, 4294967296, 2)"), "within the limit"),
        (head("<f8", "False", "(0, 9223372036854775807, 4)"), "within the limit"),
        (head("|O", "False", "(1,)"), "real numbers"),
        (head("<c16", "False", "(1,)"), "real numbers"),
        (head("<U3", "False", "(1,)"), "real numbers"),
        (head("|u1", "False", "(1, 1, 1)"), "two dimensions"),
        (deep, "nested"),
        ("nothing".into(), "npy header"),
    ] {
        let e = message(f.read("a.npy", npy_bytes(&header, &[0; 16])));
        assert!(e.contains(word), "{header}: {e}");
    }
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    assert!(message(f.read("a.npy", long)).contains("64 KiB"));
    assert!(message(f.read("a.npy", b"PK\x03\x04 and more bytes")).contains("magic"));
    assert!(message(f.read("a.npy", b"\x93NUM")).contains("end of the file"));
}

#[test]
fn npz_members_targets_and_scipy() {
    let f = Folder::new();
    let path = f.path("a.npz");
    {
        let mut z = npyz::npz::NpzWriter::create(&path).unwrap();
        use npyz::WriterBuilder as _;
        for (name, values, shape) in [
            ("x", vec![1.0, 2.0, 3.0, 4.0], vec![2, 2]),
            ("y", vec![5.0, 6.0], vec![2]),
            ("w", vec![7.0], vec![1]),
        ] {
            let mut w =
                z.array(name, Default::default()).unwrap().default_dtype().shape(&shape).begin_nd().unwrap();
            w.extend(values).unwrap();
            w.finish().unwrap();
        }
    }
    let t = read_table(&path, None, Limits::default()).unwrap();
    assert_eq!((t.matrix, t.target), (dense(2, 2, &[1.0, 2.0, 3.0, 4.0]), Some(vec![5.0, 6.0])));
    assert_eq!(read_vector(&path, Some("w"), Limits::default()).unwrap(), [7.0]);
    let e = message(read_table(&path, Some("q"), Limits::default()));
    assert!(e.contains("[\"w\", \"x\", \"y\"]"), "{e}");
    assert!(read_vector(&path, Some("x"), Limits::default()).unwrap_err().to_string().contains("2 x 2"));
    assert!(message(f.read("b.npz", "no zip")).contains("zip archive"));
}

fn scipy(format: &[u8], indptr: &[i32], indices: &[i32], shape: &[i64]) -> Vec<u8> {
    use npyz::WriterBuilder as _;
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut z = npyz::npz::NpzWriter::new(&mut bytes);
    macro_rules! put {
        ($name:expr, $values:expr) => {{
            let n = [$values.len() as u64];
            let mut w =
                z.array($name, Default::default()).unwrap().default_dtype().shape(&n).begin_nd().unwrap();
            w.extend($values.iter().copied()).unwrap();
            w.finish().unwrap();
        }};
    }
    put!("indptr", indptr);
    put!("indices", indices);
    put!("shape", shape);
    put!("data", vec![1.0_f64; indices.len()]);
    let header = "{'descr': '|S3', 'fortran_order': False, 'shape': (), }\n";
    let zip = z.zip_writer();
    zip.start_file("format.npy", Default::default()).unwrap();
    zip.write_all(&npy_bytes(header, format)).unwrap();
    drop(z);
    bytes.into_inner()
}

#[test]
fn scipy_matrices_are_checked() {
    let f = Folder::new();
    let m = f.read("a.npz", scipy(b"csr", &[0, 1, 3], &[2, 0, 1], &[2, 3])).unwrap().matrix;
    assert_eq!(m.to_dense(), [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    for (bytes, word) in [
        (scipy(b"csc", &[0, 1, 2], &[0, 1], &[2, 2]), "tocsr"),
        (scipy(b"csr", &[0, 1, 3], &[2, 0, 3], &[2, 3]), "column 3 of 3"),
        (scipy(b"csr", &[0, 2, 1], &[0], &[2, 3]), "row starts"),
        (scipy(b"csr", &[0, 1], &[0], &[2, 3]), "2 row starts for 2 rows"),
        (scipy(b"csr", &[0, -1, 1], &[0], &[2, 3]), "holds -1"),
        (scipy(b"csr", &[0, 2, 2], &[0, 0], &[2, 3]), "twice"),
        (scipy(b"csr", &[0, 1], &[0], &[1, 4_000_000_000]), "more than the limit"),
    ] {
        let e = message(f.read("a.npz", bytes));
        assert!(e.contains(word), "{e}");
    }
}

#[test]
fn blocks_give_the_rows_of_the_whole() {
    let f = Folder::new();
    let values: Vec<f64> = (0..21).map(f64::from).collect();
    let matrix = dense(7, 3, &values);
    for name in ["a.csv", "a.npy", "a.libsvm"] {
        write_matrix(&f.path(name), &matrix).unwrap();
        for rows in [1, 3, 7, 100] {
            let path = f.path(name);
            let blocks = row_blocks(&path, rows, Some(3), Limits::default()).unwrap();
            let blocks: Vec<Block> = blocks.map(Result::unwrap).collect();
            assert_eq!(blocks.len(), 7_usize.div_ceil(rows));
            let all: Vec<f64> = blocks.iter().flat_map(|b| b.values.clone()).collect();
            assert_eq!(all, values, "{name} {rows}");
            assert!(blocks.iter().all(|b| b.target.is_some() == (name == "a.libsvm")));
        }
    }
    let path = f.path("a.libsvm");
    assert!(row_blocks(&path, 2, None, Limits::default()).is_err());
    let narrow = row_blocks(&path, 2, Some(2), Limits::default()).unwrap().next().unwrap();
    assert!(narrow.unwrap_err().to_string().contains("within the number of features"));
    assert!(row_blocks(&path, 0, Some(3), Limits::default()).is_err());
    // An error ends the blocks.
    let path = f.file("b.csv", "1,2\n3,4\n5,x\n6,7\n");
    let all: Vec<_> = row_blocks(&path, 1, None, Limits::default()).unwrap().collect();
    assert_eq!((all.len(), all[2].is_err()), (3, true));
}

#[test]
fn nothing_is_left_when_writing_fails() {
    let f = Folder::new();
    assert!(write_vector(&f.path("none/a.npy"), &[1.0]).is_err());
    assert!(write_vector(&f.path("a.xyz"), &[1.0]).is_err());
    assert!(write_vector(&f.path("a.csv.gz"), &[1.0]).is_err());
    assert_eq!(std::fs::read_dir(f.0.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_format_reads_back_what_was_written(
        n in 1_usize..6, p in 1_usize..6, seed in proptest::collection::vec(prop_oneof![Just(0.0), -1e300..1e300], 36),
    ) {
        let f = Folder::new();
        // The last entry is stored, so that libsvm text keeps the width.
        let mut values = seed[..n * p].to_vec();
        values[n * p - 1] = 1.5;
        let matrix = dense(n, p, &values);
        for name in ["a.npy", "a.npz", "a.csv", "a.libsvm", "a.mtx"] {
            let path = f.path(name);
            write_matrix(&path, &matrix).unwrap();
            let back = read_table(&path, None, Limits::default()).unwrap();
            prop_assert_eq!((back.matrix.n_rows(), back.matrix.n_cols()), (n, p), "{}", name);
            prop_assert_eq!(back.matrix.to_dense(), values.clone(), "{}", name);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), which in 0_usize..5) {
        let f = Folder::new();
        let name = ["a.npy", "a.npz", "a.csv", "a.libsvm", "a.mtx"][which];
        let start: &[u8] = [&b"\x93NUMPY\x01\x00"[..], b"PK", b"1,2\n", b"1 1:1\n", b"%%MatrixMarket matrix coordinate real general\n"][which];
        let _ = f.read(name, [start, &bytes].concat());
    }
}
