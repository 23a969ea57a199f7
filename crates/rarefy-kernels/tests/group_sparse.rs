//! Group-sparse kernels on every code path against the product of the decoded weights in f64, and against every split of the work.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rarefy_kernels::{
    Activations, Balance, Isa, KernelError, LinearKernel, SparseGroups, oracle::linear_f64,
};
use rarefy_sparsity::formats::{GroupSparse, QuantSettings, ScaleType, Scheme};

mod support;
use support::{bits, noise};

fn settings(bits: u32, group: usize, symmetric: bool, wide: bool) -> QuantSettings {
    let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric };
    QuantSettings { bits, group, scheme, scales: if wide { ScaleType::F32 } else { ScaleType::F16 } }
}

fn keep(seed: u64, len: usize, density: f64) -> Vec<bool> {
    noise(seed ^ 0x3333, len).iter().map(|v| f64::from(*v) < 2.0 * density - 1.0).collect()
}

fn run(k: &SparseGroups, balance: Balance, isa: Isa, x: &[f32], n: usize, threads: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; n * k.rows()];
    let mut scratch = vec![f32::NAN; k.scratch_len(n)];
    support::pool(threads).install(|| k.forward_balanced(balance, isa, x, n, &mut y, &mut scratch)).unwrap();
    y
}

fn check(w: &[f32], rows: usize, cols: usize, keep: &[bool], x: &[f32], n: usize, q: QuantSettings) {
    let m = GroupSparse::encode(w, rows, cols, keep, q).unwrap();
    let (want, scale) = linear_f64(&m.decode(), rows, cols, x, n);
    let k = SparseGroups::new(&m, Activations::Exact).unwrap();
    assert_eq!((k.rows(), k.cols(), k.nnz()), (rows, cols, m.kept() * q.group));
    let mut first: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        let y = run(&k, Balance::Groups, isa, x, n, 1);
        for (i, v) in y.iter().enumerate() {
            let bound = 1e-5 * scale[i] + 1e-37;
            assert!((f64::from(*v) - want[i]).abs() <= bound, "{isa} {q:?} [{i}]: {v} for {}", want[i]);
            assert!(scale[i] != 0.0 || v.to_bits() == 0, "a row without weights is 0");
        }
        let y = bits(&y);
        for threads in [1, 2, 3] {
            for balance in [Balance::Groups, Balance::Rows] {
                assert_eq!(
                    y,
                    bits(&run(&k, balance, isa, x, n, threads)),
                    "{isa} {threads} threads, {balance:?}"
                );
            }
        }
        if isa != Isa::Portable {
            assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{isa} {q:?}: same bits");
        }
    }
}

/// Eight-bit activations, one scale per token: the documented rounding in f64, and its bound.
#[test]
fn eight_bit_activations_are_the_documented_ones_and_within_their_bound() {
    for (rows, groups, density, symmetric) in [
        (1, 1, 1.0, false),
        (9, 37, 0.5, false),
        (7, 1100, 0.6, true),
        (13, 20, 0.03, false),
        (300, 128, 0.5, false),
    ] {
        let cols = groups * 16;
        let kept = keep(groups as u64, rows * groups, density);
        let q = settings(4, 16, symmetric, false);
        let m = GroupSparse::encode(&noise(3, rows * cols), rows, cols, &kept, q).unwrap();
        let k = SparseGroups::new(&m, Activations::Int8).unwrap();
        let w = m.decode();
        for n in [1, 3] {
            let mut x = noise(5, n * cols);
            let (want, scale) = linear_f64(&w, rows, cols, &x, n);
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let y = run(&k, Balance::Groups, isa, &x, n, 1);
                for (i, v) in y.iter().enumerate() {
                    let (line, w) = (&x[i / rows * cols..][..cols], &w[i % rows * cols..][..cols]);
                    let most = line.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let rounded =
                        |v: f32| f64::from((v * (127.0 / most)).round_ties_even()) * f64::from(most / 127.0);
                    let integer: f64 = line.iter().zip(w).map(|(x, w)| rounded(*x) * f64::from(*w)).sum();
                    let size = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(most);
                    // Bytes are shifted by 128, so sums are up to twice as large before the shift is taken off.
                    assert!(
                        (f64::from(*v) - integer).abs() <= 2e-6 * size,
                        "{isa} {rows} [{i}]: {v} for {integer}"
                    );
                    assert!(
                        (f64::from(*v) - want[i]).abs() <= size / 253.9 + 2e-6 * size,
                        "{isa}: the bound"
                    );
                    assert!(scale[i] != 0.0 || *v == 0.0, "a row without weights is 0");
                }
                let y = bits(&y);
                for threads in [1, 2, 3] {
                    for balance in [Balance::Groups, Balance::Rows] {
                        let again = run(&k, balance, isa, &x, n, threads);
                        assert_eq!(y, bits(&again), "{isa} {threads} threads, {balance:?}");
                    }
                }
                if isa != Isa::Portable {
                    assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{isa}: same bits");
                }
            }
            x[cols - 1] = f32::INFINITY;
            let y = run(&k, Balance::Groups, Isa::detect(), &x, n, 1);
            assert!(
                y.iter().enumerate().all(|(i, v)| v.is_nan() == (i < rows)),
                "a bad number spoils its token"
            );
        }
    }
    let m = GroupSparse::encode(&[1.0; 32], 1, 32, &[true], settings(4, 32, false, false)).unwrap();
    assert!(matches!(SparseGroups::new(&m, Activations::Int8), Err(KernelError::Unsupported { .. })));
}

#[test]
fn by_hand() {
    // Two groups of eight, the second kept: 0 … 6 and 15, so s = 1 and nothing is rounded; x = 1 … 16:
    // 1·10 + 2·11 + 3·12 + 4·13 + 5·14 + 6·15 + 15·16 = 520.
    let mut w = vec![5.0; 8];
    w.extend([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 15.0]);
    let m = GroupSparse::encode(&w, 1, 16, &[false, true], settings(4, 8, false, true)).unwrap();
    let x: Vec<f32> = (1..17).map(|i| i as f32).collect();
    for isa in Isa::available() {
        let y = run(&SparseGroups::new(&m, Activations::Exact).unwrap(), Balance::Groups, isa, &x, 1, 1);
        assert_eq!(y, [520.0], "{isa}");
    }
}

#[test]
fn every_token_count_up_to_33() {
    let (rows, cols) = (13, 320);
    let w = noise(1, rows * cols);
    for n in 1..=33 {
        let x = noise(n as u64 + 5, n * cols);
        check(&w, rows, cols, &keep(n as u64, rows * 20, 0.5), &x, n, settings(4, 16, n % 2 == 0, false));
        check(
            &w,
            rows,
            cols,
            &keep(n as u64, rows * 20, 0.3),
            &x,
            n,
            settings(8, 16, n % 3 == 0, n % 5 == 0),
        );
    }
}

#[test]
fn every_group_size_density_and_scheme() {
    let (rows, groups) = (21, 37);
    for group in [8, 16, 24, 32, 64, 128] {
        let cols = groups * group;
        let w = noise(3, rows * cols);
        let x = noise(9, 2 * cols);
        for density in [0.0, 0.04, 0.3, 0.5, 0.97, 1.0] {
            let kept = keep(group as u64, rows * groups, density);
            for (bits, symmetric, wide) in
                [(4, false, false), (4, true, true), (8, false, true), (8, true, false)]
            {
                check(&w, rows, cols, &kept, &x, 2, settings(bits, group, symmetric, wide));
            }
        }
    }
}

#[test]
fn rows_across_segments_long_rows_and_empty_rows() {
    // Segments are 512 groups: rows of 700 groups cross one or two cuts; some rows are empty, one is full.
    let (rows, groups) = (9, 1100);
    let cols = groups * 8;
    let w = noise(5, rows * cols);
    let mut kept = keep(7, rows * groups, 0.6);
    kept[groups..3 * groups].fill(false);
    kept[4 * groups..5 * groups].fill(true);
    kept[8 * groups..].fill(false);
    for n in [1, 3] {
        check(&w, rows, cols, &kept, &noise(6, n * cols), n, settings(4, 8, false, false));
    }
    // Exactly one segment per row: no cut divides a row.
    let (rows, cols) = (5, 512 * 16);
    check(
        &noise(1, rows * cols),
        rows,
        cols,
        &vec![true; rows * 512],
        &noise(2, cols),
        1,
        settings(4, 16, false, false),
    );
}

#[test]
fn skewed_rows_give_the_same_bits_on_two_threads() {
    let (rows, groups) = (256, 128);
    let cols = groups * 16;
    let kept: Vec<bool> =
        keep(1, rows * groups, 0.9).iter().enumerate().map(|(i, k)| *k == (i < rows * groups / 2)).collect();
    check(&noise(2, rows * cols), rows, cols, &kept, &noise(3, 4 * cols), 4, settings(4, 16, false, false));
}

#[test]
fn a_token_does_not_depend_on_its_batch() {
    let (rows, cols) = (60, 640);
    let m = GroupSparse::encode(
        &noise(4, rows * cols),
        rows,
        cols,
        &keep(2, rows * 40, 0.5),
        settings(4, 16, false, false),
    )
    .unwrap();
    let k = SparseGroups::new(&m, Activations::Exact).unwrap();
    let x = noise(6, 15 * cols);
    for isa in Isa::available() {
        let all = run(&k, Balance::Groups, isa, &x, 15, 2);
        for t in 0..15 {
            let one = run(&k, Balance::Groups, isa, &x[t * cols..(t + 1) * cols], 1, 1);
            assert_eq!(bits(&one), bits(&all[t * rows..(t + 1) * rows]), "{isa} token {t}");
        }
    }
}

#[test]
fn bad_activations_touch_only_the_rows_that_keep_their_group() {
    let (rows, cols, n) = (30, 160, 2);
    let kept = keep(5, rows * 10, 0.5);
    let m = GroupSparse::encode(&noise(4, rows * cols), rows, cols, &kept, settings(4, 16, false, false))
        .unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(1, n * cols);
        x[cols + 3 * 16 + 5] = bad;
        for isa in Isa::available() {
            let y = run(&SparseGroups::new(&m, Activations::Exact).unwrap(), Balance::Groups, isa, &x, n, 1);
            for (i, v) in y.iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                assert_eq!(v.is_finite(), t == 0 || !kept[r * 10 + 3], "{isa} token {t} row {r}: {v}");
            }
        }
    }
}

#[test]
fn denormals_unaligned_empty_and_wrong_lengths() {
    let (rows, cols) = (7, 64);
    let w: Vec<f32> = noise(3, rows * cols).iter().map(|v| v * 1e-36).collect();
    check(&w, rows, cols, &keep(3, rows * 4, 0.5), &noise(1, cols), 1, settings(4, 16, false, true));
    let tiny: Vec<f32> = noise(8, cols).iter().map(|v| v * 1e-39).collect();
    check(
        &noise(3, rows * cols),
        rows,
        cols,
        &keep(3, rows * 4, 0.7),
        &tiny,
        1,
        settings(8, 16, true, false),
    );
    for (rows, cols, n) in [(0, 16, 2), (4, 0, 2), (0, 0, 1), (4, 16, 0)] {
        let kept = vec![true; rows * cols / 16];
        check(
            &vec![1.0; rows * cols],
            rows,
            cols,
            &kept,
            &vec![1.0; n * cols],
            n,
            settings(4, 16, false, false),
        );
    }
    let m = GroupSparse::encode(&[1.0; 48], 3, 16, &[true; 3], settings(4, 16, false, false)).unwrap();
    let k = SparseGroups::new(&m, Activations::Exact).unwrap();
    let x = noise(1, 33);
    let (mut y, mut s) = ([0.0; 7], [0.0; 54]);
    assert_eq!(k.scratch_len(2), 2 + 2 + 32 + 15);
    k.forward(&x[1..], 2, &mut y[1..], &mut s[3..]).unwrap();
    assert_eq!(bits(&y[1..]), bits(&run(&k, Balance::Groups, Isa::detect(), &x[1..], 2, 1)));
    let found = |r: Result<(), KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(k.forward(&x[..31], 2, &mut y[1..], &mut s)), "x");
    assert_eq!(found(k.forward(&x[..32], 2, &mut y, &mut s)), "y");
    assert_eq!(found(k.forward(&x[..32], 2, &mut y[1..], &mut s[..50])), "scratch");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(seed: u64, rows in 1usize..40, groups in 1usize..90, n in 1usize..7, density in 0.0f64..1.0, eight: bool, size in 1usize..5) {
        let q = settings(if eight { 8 } else { 4 }, size * 8, seed % 2 == 0, seed % 3 == 0);
        let cols = groups * q.group;
        check(&noise(seed, rows * cols), rows, cols, &keep(seed, rows * groups, density), &noise(seed ^ 1, n * cols), n, q);
    }
}
