//! Hostile safetensors headers: each is refused with its own error, which names the file and the tensor.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use proptest::prelude::*;
use rarefy_checkpoint::safetensors::{Header, MAX_HEADER_BYTES, TensorFile};
use rarefy_checkpoint::{CheckpointError as E, TensorStore};
use std::path::Path;
use support::{f32s, file_bytes, tensors};

fn parse(bytes: &[u8]) -> Result<Header, E> {
    Header::from_bytes(Path::new("dir/evil.safetensors"), bytes)
}

fn refuse(bytes: &[u8]) -> E {
    let e = parse(bytes).expect_err("must be refused");
    assert!(e.to_string().contains("dir/evil.safetensors"), "{e}");
    e
}

fn one(entry: &str, data: &[u8]) -> E {
    refuse(&file_bytes(&format!(r#"{{"w":{entry}}}"#), data))
}

#[test]
fn valid_files_are_read() {
    let h = parse(&tensors(&[
        ("a", "F32", vec![2, 1], f32s(&[1.0, 2.0])),
        ("empty", "F32", vec![0, 4], vec![]),
        ("s", "U8", vec![], vec![7]),
    ]))
    .unwrap();
    assert_eq!(h.entries["a"].shape, [2, 1]);
    assert_eq!(h.entries["s"].bytes, 1);
    assert!(parse(&file_bytes("{}  ", &[])).unwrap().entries.is_empty());
    let h = parse(&file_bytes(r#"{"__metadata__":{"format":"pt"}}"#, &[])).unwrap();
    assert_eq!(h.metadata["format"], "pt");
}

#[test]
fn truncated_file() {
    let whole = tensors(&[("w", "F32", vec![4], f32s(&[1.0; 4]))]);
    for n in 0..whole.len() {
        assert!(matches!(refuse(&whole[..n]), E::Truncated { .. }), "cut at {n}");
    }
    assert!(refuse(&whole[..whole.len() - 1]).to_string().contains("tensor `w`"));
}

#[test]
fn size_over_the_file() {
    let e = one(r#"{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}"#, &[0; 16]);
    assert!(matches!(e, E::Truncated { .. }) && e.to_string().contains("`w`"), "{e}");
}

#[test]
fn overlapping_offsets() {
    let h = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let e = refuse(&file_bytes(h, &[0; 6]));
    assert!(
        matches!(&e, E::OffsetsNotContiguous { tensor, .. } if tensor == "b")
            && e.to_string().contains("overlaps"),
        "{e}"
    );
}

#[test]
fn gapped_offsets() {
    let h = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}}"#;
    let e = refuse(&file_bytes(h, &[0; 8]));
    assert!(
        matches!(&e, E::OffsetsNotContiguous { tensor, .. } if tensor == "b")
            && e.to_string().contains("gap"),
        "{e}"
    );
    assert!(matches!(
        one(r#"{"dtype":"U8","shape":[2],"data_offsets":[2,4]}"#, &[0; 4]),
        E::OffsetsNotContiguous { .. }
    ));
}

#[test]
fn trailing_bytes() {
    assert!(matches!(
        one(r#"{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#, &[0; 5]),
        E::TrailingBytes { extra: 3, .. }
    ));
}

#[test]
fn reversed_offsets() {
    assert!(matches!(
        one(r#"{"dtype":"U8","shape":[2],"data_offsets":[2,0]}"#, &[0; 2]),
        E::OffsetsReversed { .. }
    ));
}

#[test]
fn wrong_dtype() {
    // A dtype that does not fit the byte range, and one that does not exist.
    let e = one(r#"{"dtype":"F64","shape":[2],"data_offsets":[0,8]}"#, &[0; 8]);
    assert!(matches!(e, E::SizeMismatch { expected: 16, found: 8, .. }), "{e}");
    let e = one(r#"{"dtype":"F4","shape":[2],"data_offsets":[0,8]}"#, &[0; 8]);
    assert!(
        matches!(&e, E::UnknownDType { found, .. } if found == "F4") && e.to_string().contains("BF16"),
        "{e}"
    );
}

#[test]
fn count_overflow() {
    for shape in ["[4294967296,4294967296,16]", "[18446744073709551615,2]", "[9223372036854775808,1]"] {
        let e = one(&format!(r#"{{"dtype":"F64","shape":{shape},"data_offsets":[0,8]}}"#), &[0; 8]);
        assert!(matches!(e, E::SizeOverflow { .. }), "{shape}: {e}");
    }
    // The product wraps around to the number of bytes present: 2^62 · 4 · 8 = 2^67.
    let e = one(r#"{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#, &[]);
    assert!(matches!(e, E::SizeOverflow { .. }), "{e}");
    let e = one(
        r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
        &[0; 8],
    );
    assert!(matches!(e, E::Truncated { .. }), "{e}");
}

#[test]
fn hundred_megabyte_header() {
    for claimed in [100_000_000, MAX_HEADER_BYTES + 1, u64::MAX, u64::MAX - 7] {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert!(matches!(refuse(&bytes), E::HeaderTooLarge { declared, .. } if declared == claimed));
    }
    // Also when the file really is that large (sparse on disk): refused before anything is allocated.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.safetensors");
    std::fs::write(&path, 100_000_000u64.to_le_bytes()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100_000_008).unwrap();
    assert!(matches!(TensorFile::open(&path), Err(E::HeaderTooLarge { .. })));
}

#[test]
fn header_longer_than_the_file() {
    let mut bytes = 1000u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    assert!(matches!(refuse(&bytes), E::Truncated { expected: 1008, found: 10, .. }));
}

#[test]
fn duplicate_names() {
    let h = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert!(matches!(refuse(&file_bytes(h, &[0; 2])), E::DuplicateTensor { tensor, .. } if tensor == "a"));
    let h = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
    assert!(refuse(&file_bytes(h, &[])).to_string().contains("`k` occurs twice"));
    let h = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert!(matches!(refuse(&file_bytes(h, &[])), E::HeaderInvalid { .. }));
}

#[test]
fn malformed_json() {
    for header in [
        "",
        "[]",
        " {}",
        "{",
        "{}{}",
        "null",
        r#"{"w":3}"#,
        r#"{"w":{}}"#,
        r#"{"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
        r#"{"w":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#,
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        r#"{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1}}"#,
        r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#,
        r#"{"__metadata__":{"n":1}}"#,
    ] {
        assert!(matches!(refuse(&file_bytes(header, &[0])), E::HeaderInvalid { .. }), "{header}");
    }
    let deep = format!("{{\"w\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(refuse(&file_bytes(&deep, &[])), E::HeaderInvalid { .. }));
    let mut not_utf8 = file_bytes(r#"{"a":1}"#, &[]);
    not_utf8[10] = 0xff;
    assert!(matches!(refuse(&not_utf8), E::HeaderInvalid { .. }));
    assert!(one(r#"{"dtype":"U8"}"#, &[]).to_string().contains("tensor `w`"));
}

#[test]
fn a_file_truncated_while_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, tensors(&[("w", "F32", vec![4096], f32s(&[1.0; 4096]))])).unwrap();
    let store = TensorStore::open_file(&path).unwrap();
    assert_eq!(store.read_f32("w").unwrap().len(), 4096);
    assert_eq!(store.raw("w").unwrap().len(), 16384);
    store.release_pages();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    for e in [store.read_f32("w").unwrap_err(), store.raw("w").unwrap_err()] {
        assert!(matches!(e, E::Truncated { .. }), "{e}");
    }
}

#[test]
fn folders_and_devices_are_not_weight_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(TensorFile::open(dir.path()).is_err());
    assert!(TensorFile::open(Path::new("/dev/zero")).is_err());
    assert!(matches!(TensorFile::open(&dir.path().join("absent")), Err(E::Io { .. })));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&file_bytes(&String::from_utf8_lossy(&bytes), &bytes));
    }

    #[test]
    fn a_changed_header_is_refused_or_still_covers_the_file(at in 0usize..200, value in any::<u8>()) {
        let mut bytes = tensors(&[("a", "F32", vec![2, 3], f32s(&[0.5; 6])), ("b", "BF16", vec![3], vec![0; 6])]);
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(h) = parse(&bytes) {
            let covered: u64 = h.entries.values().map(|e| e.bytes).sum();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            prop_assert_eq!(covered + header + 8, bytes.len() as u64);
        }
    }
}
