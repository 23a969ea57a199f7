#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::super::super::test_support::{bits, shorten, sparse};
use super::super::GroupQuantised;
use super::super::quantiser::ScaleType;
use super::*;

#[test]
fn by_hand() {
    // Two rows of two groups of eight; kept: (0, 1) and (1, 0). Row 0, group 1: 0 … 7, s = 7/15, codes 0 2 4 6 9 b d f.
    let mut w = vec![9.0; 32];
    for i in 0..8 {
        w[8 + i] = i as f32;
        w[16 + i] = -(i as f32);
    }
    let q = QuantSettings { scales: ScaleType::F32, ..QuantSettings::int4(8) };
    let m = GroupSparse::encode(&w, 2, 16, &[false, true, true, false], q).unwrap();
    let parts = m.parts();
    assert_eq!(parts.row_index.as_ref(), [0, 1, 2]);
    assert_eq!(parts.values.as_ref(), [0x20, 0x64, 0xb9, 0xfd, 0xdf, 0x9b, 0x46, 0x02]);
    assert_eq!(parts.zeros.as_ref(), [0xf0]);
    // Two indices are 4 bytes, two words of bitmap 8.
    assert_eq!(parts.columns.as_ref(), &Columns::Index(vec![1, 0]));
    assert_eq!(m.bytes(), 3 * 4 + 4 + 8 + 8 + 1);
    let back = m.decode();
    assert_eq!((back[0].to_bits(), back[15], back[23], back[24]), (0, 7.0, -7.0, 0.0));
}

#[test]
fn columns_are_the_smaller_form_and_the_size_is_the_formula() {
    let (rows, cols) = (8, 2048);
    let w = sparse(1, rows * cols, 1.0);
    for (every, bitmap) in [(2, true), (8, true), (64, false)] {
        let keep: Vec<bool> = (0..rows * cols / 16).map(|i| i % every == 0).collect();
        let m = GroupSparse::encode(&w, rows, cols, &keep, QuantSettings::int4(16)).unwrap();
        assert_eq!(matches!(m.columns, Columns::Bitmap(_)), bitmap, "1 of {every}");
        let n = m.kept();
        let columns = if bitmap { rows * cols / 16 / 8 } else { 2 * n };
        assert_eq!(m.bytes(), n * (8 + 2) + n.div_ceil(2) + 4 * (rows + 1) + columns);
        if every == 2 {
            let bits = (m.bytes() - 4 * (rows + 1)) as f64 * 8.0 / (rows * cols) as f64;
            assert!((bits - 2.6875).abs() < 1e-9, "{bits} bits per weight");
        }
    }
}

#[test]
fn nothing_pruned_is_plain_group_quantisation() {
    let (rows, cols) = (5, 96);
    let w = sparse(7, rows * cols, 1.0);
    for q in [QuantSettings::int4(16), QuantSettings::int8(32)] {
        let all = vec![true; rows * cols / q.group];
        let sparse = GroupSparse::encode(&w, rows, cols, &all, q).unwrap();
        let dense = GroupQuantised::encode(&w, rows, cols, q).unwrap();
        assert_eq!(bits(&sparse.decode()), bits(&dense.decode()));
    }
}

fn refused(change: impl FnOnce(&mut GroupSparseParts<'_>)) -> &'static str {
    let keep: Vec<bool> = (0..3 * 40).map(|i| i % 3 != 1).collect();
    let m = GroupSparse::encode(&sparse(3, 3 * 320, 1.0), 3, 320, &keep, QuantSettings::int4(8)).unwrap();
    let mut parts = m.parts();
    change(&mut parts);
    match GroupSparse::from_parts(3, 320, parts) {
        Err(SparsityError::Malformed { field, .. } | SparsityError::Setting { field, .. }) => field,
        Err(SparsityError::DoesNotDivide { .. }) => "group does not divide",
        other => panic!("{other:?}"),
    }
}

fn bitmap<'a>(p: &'a mut GroupSparseParts<'_>) -> &'a mut Vec<u32> {
    match p.columns.to_mut() {
        Columns::Bitmap(b) => b,
        Columns::Index(_) => panic!("two thirds are kept: a bitmap"),
    }
}

#[test]
fn hostile_parts_are_refused() {
    assert_eq!(refused(|p| p.version = 0), "version");
    assert_eq!(refused(|p| p.settings.bits = 5), "bits");
    assert_eq!(refused(|p| p.settings.bits = 8), "values");
    assert_eq!(refused(|p| p.settings.group = 256), "group does not divide");
    assert_eq!(refused(|p| p.settings.group = 16), "values");
    assert_eq!(refused(|p| p.row_index.to_mut()[0] = 1), "row_index");
    assert_eq!(refused(|p| p.row_index.to_mut()[1] = u32::MAX), "row_index");
    assert_eq!(refused(|p| p.row_index.to_mut()[1] += 1), "columns");
    assert_eq!(refused(|p| shorten(p.row_index.to_mut())), "row_index");
    assert_eq!(refused(|p| shorten(p.values.to_mut())), "values");
    assert_eq!(refused(|p| shorten(p.zeros.to_mut())), "zeros");
    assert_eq!(refused(|p| p.settings.scheme = Scheme::Symmetric), "zeros");
    assert_eq!(refused(|p| bitmap(p)[0] ^= 1), "columns");
    assert_eq!(refused(|p| shorten(bitmap(p))), "columns");
    assert_eq!(
        refused(|p| {
            let b = bitmap(p);
            b[1] = (b[1] & (b[1] - 1)) | 1 << 31;
        }),
        "columns"
    );
    // One group moved within its row: only the checksum can tell.
    assert_eq!(
        refused(|p| {
            let b = bitmap(p);
            b[0] = (b[0] & (b[0] - 1)) | 2;
        }),
        "checksum"
    );
    assert_eq!(refused(|p| p.values.to_mut()[0] ^= 1), "checksum");
    assert_eq!(refused(|p| *p.columns.to_mut() = Columns::Index(vec![0; 80])), "columns");
    assert_eq!(refused(|p| *p.columns.to_mut() = Columns::Index(vec![0; 79])), "columns");
    let m = GroupSparse::encode_nonzero(&[1.0; 8], 1, 8, QuantSettings::int4(8)).unwrap();
    for (rows, cols) in [(usize::MAX, 8), (usize::MAX, 0), (1, usize::MAX - 7), (2, 8), (1, 16)] {
        assert!(GroupSparse::from_parts(rows, cols, m.parts()).is_err(), "{rows} x {cols}");
    }
}

#[test]
fn kept_weights_must_be_finite_and_pruned_ones_need_not() {
    let mut w = vec![1.0; 16];
    w[3] = f32::NAN;
    let q = QuantSettings::int4(8);
    assert!(matches!(GroupSparse::encode(&w, 1, 16, &[true, true], q), Err(SparsityError::NonFinite { .. })));
    assert_eq!(GroupSparse::encode(&w, 1, 16, &[false, true], q).unwrap().kept(), 1);
    assert!(matches!(
        GroupSparse::encode(&w, 2, 8, &[true], q),
        Err(SparsityError::Malformed { field: "keep", .. })
    ));
}

proptest! {
    #[test]
    fn decode_is_the_fake_quantised_matrix_and_parts_round_trip(seed: u64, rows in 0usize..6, groups in 0usize..70, cut in 0u64..100,
        eight: bool, symmetric: bool, size in 0usize..3, wide: bool) {
        let q = QuantSettings { bits: if eight { 8 } else { 4 }, group: 8 << size,
            scheme: if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric },
            scales: if wide { ScaleType::F32 } else { ScaleType::F16 } };
        let cols = groups * q.group;
        let w = sparse(seed, rows * cols, 1.0);
        let keep: Vec<bool> = (0..(rows * groups) as u64).map(|i| (i + 1).wrapping_mul(seed | 1) % 100 < cut).collect();
        let m = GroupSparse::encode(&w, rows, cols, &keep, q).unwrap();
        let found = m.decode();
        for (i, group) in w.chunks(q.group).enumerate() {
            let got = &found[i * q.group..(i + 1) * q.group];
            if keep[i] {
                let (s, z) = q.fit(group).unwrap();
                let want: Vec<f32> = group.iter().map(|v| decode_code(q.code(*v, s, z), z, s)).collect();
                prop_assert_eq!(bits(got), bits(&want));
            } else {
                prop_assert!(got.iter().all(|v| v.to_bits() == 0));
            }
        }
        prop_assert_eq!(m.kept(), keep.iter().filter(|k| **k).count());
        prop_assert_eq!(&GroupSparse::from_parts(rows, cols, m.parts()).unwrap(), &m);
    }
}
