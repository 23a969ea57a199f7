//! The kernels for unstructured zeros beyond the f32 and bf16 panels: gathered non-zeros, Tiled-CSL, 8-bit panels. On every code path against the
//! naive product in f64, and against the dense kernel of the same order bit for bit.
#![allow(clippy::unwrap_used)]

use half::f16;
use proptest::prelude::*;
use rarefy_kernels::{
    Activations, Dense, Gather, Isa, KernelError, LinearKernel, PanelInt8, Quantised, Tiled,
    oracle::linear_f64,
};
use rarefy_sparsity::formats::quantised::{BitmaskSettings, ScaleSpan};
use rarefy_sparsity::formats::tiled_csl::Order;
use rarefy_sparsity::formats::{BitmaskInt8, Csr, GroupQuantised, QuantSettings, ScaleType, TiledCsl};

mod support;
use support::{bits, noise, pool, sparse};

type Run<'a> = &'a (dyn Fn(Isa, &[f32], usize, &mut [f32], &mut [f32]) -> Result<(), KernelError> + Sync);

fn run(k: &dyn LinearKernel, f: Run<'_>, isa: Isa, x: &[f32], n: usize, threads: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; n * k.rows()]; // dirty output
    let mut scratch = vec![f32::NAN; k.scratch_len(n)]; // dirty scratch
    pool(threads).install(|| f(isa, x, n, &mut y, &mut scratch)).unwrap();
    y
}

fn dense(w: &[f32], rows: usize, cols: usize, isa: Isa, x: &[f32], n: usize) -> Vec<f32> {
    let k = Dense::new(w, rows, cols).unwrap();
    run(&k, &|i, x, n, y, s| k.forward_with(i, x, n, y, s), isa, x, n, 1)
}

/// `k` on every path: within rounding of the oracle, the bits of the dense kernel, the same on one and two threads.
fn check_exact(k: &dyn LinearKernel, f: Run<'_>, w: &[f32], x: &[f32], n: usize) {
    let (rows, cols) = (k.rows(), k.cols());
    let (want, scale) = linear_f64(w, rows, cols, x, n);
    let mut fused: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        let y = run(k, f, isa, x, n, 1);
        for (i, v) in y.iter().enumerate() {
            let bound = (cols + 2) as f64 * f64::from(f32::EPSILON) * scale[i] + 1e-37;
            let error = (f64::from(*v) - want[i]).abs();
            assert!(error <= bound, "{} {isa} {rows}x{cols} n={n} [{i}]: {v} for {}", k.name(), want[i]);
        }
        let y = bits(&y);
        let same = bits(&dense(w, rows, cols, isa, x, n));
        assert_eq!(y, same, "{} {isa} {rows}x{cols} n={n}: same bits as dense", k.name());
        assert_eq!(y, bits(&run(k, f, isa, x, n, 2)), "{} {isa}: 1 and 2 threads", k.name());
        if isa != Isa::Portable {
            assert_eq!(&y, fused.get_or_insert_with(|| y.clone()), "AVX2 and AVX-512: same bits");
        }
    }
}

fn check_gather(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize) {
    let k = Gather::new(&Csr::encode(w, rows, cols).unwrap()).unwrap();
    assert_eq!((k.rows(), k.cols()), (rows, cols));
    assert_eq!(k.nnz(), w.iter().filter(|v| **v != 0.0).count());
    check_exact(&k, &|i, x, n, y, s| k.forward_with(i, x, n, y, s), w, x, n);
}

fn halves(w: &[f32]) -> (Vec<f16>, Vec<f32>) {
    let narrow: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
    let wide = narrow.iter().map(|v| v.to_f32()).collect();
    (narrow, wide)
}

fn check_tiled(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize) {
    let (narrow, wide) = halves(w);
    for order in [Order::Plain, Order::Shuffled] {
        let k = Tiled::new(TiledCsl::encode(&narrow, rows, cols, order).unwrap());
        check_exact(&k, &|i, x, n, y, s| k.forward_with(i, x, n, y, s), &wide, x, n);
    }
}

const SETTINGS: [(ScaleSpan, ScaleType); 4] = [
    (ScaleSpan::Row, ScaleType::F32),
    (ScaleSpan::Row, ScaleType::F16),
    (ScaleSpan::Group(16), ScaleType::F16),
    (ScaleSpan::Group(128), ScaleType::F32),
];

fn check_int8(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize) {
    for (span, scales) in SETTINGS {
        let matrix = BitmaskInt8::encode(w, rows, cols, BitmaskSettings { span, scales }).unwrap();
        let decoded = matrix.decode();
        let (want, _) = linear_f64(&decoded, rows, cols, x, n);
        let group = if let ScaleSpan::Group(g) = span { g } else { 128 };
        for activations in [Activations::Exact, Activations::Int8] {
            let k = PanelInt8::new(&matrix, activations).unwrap();
            let f: Run<'_> = &|i, x, n, y, s| k.forward_with(i, x, n, y, s);
            assert_eq!((k.rows(), k.cols(), k.nnz()), (rows, cols, matrix.nnz()));
            let rival = match span {
                ScaleSpan::Row => None,
                ScaleSpan::Group(_) => {
                    let q = QuantSettings { scales, ..QuantSettings::int8(group) };
                    let m = GroupQuantised::encode(w, rows, cols, q).unwrap();
                    assert_eq!(bits(&m.decode()), bits(&decoded));
                    Some(Quantised::new(&m, activations).unwrap())
                }
            };
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let y = run(&k, f, isa, x, n, 1);
                for t in 0..n {
                    for r in 0..rows {
                        // The codes stand around 128: rounding is relative to `Σ s (|q| + 128) |x|`.
                        let (mut size, mut step) = (0.0, 0.0);
                        for (g, run) in x[t * cols..(t + 1) * cols].chunks(group).enumerate() {
                            let s = f64::from(matrix.scale(r, if span == ScaleSpan::Row { 0 } else { g }));
                            let most = run.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                            size += 256.0 * s * run.iter().map(|v| f64::from(v.abs())).sum::<f64>();
                            let w = &decoded[r * cols + g * group..][..run.len()];
                            step +=
                                w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(most) / 253.9;
                        }
                        let bound = (group + cols / group + 4) as f64 * 6e-8 * size + 1e-30;
                        let bound =
                            if activations == Activations::Exact { bound } else { step + 1e-6 * size };
                        let (want, found) = (want[t * rows + r], f64::from(y[t * rows + r]));
                        assert!(
                            (found - want).abs() <= bound,
                            "{} {isa} {span:?}: {found} for {want}",
                            k.name()
                        );
                    }
                }
                let y = bits(&y);
                assert_eq!(y, bits(&run(&k, f, isa, x, n, 2)), "1 and 2 threads");
                if let Some(d) = &rival {
                    let f: Run<'_> = &|i, x, n, y, s| d.forward_with(i, x, n, y, s);
                    assert_eq!(
                        y,
                        bits(&run(d, f, isa, x, n, 1)),
                        "{} {isa} {span:?} n={n}: same bits as dense",
                        k.name()
                    );
                }
                if activations == Activations::Int8 || isa != Isa::Portable {
                    assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{} {isa}: same bits", k.name());
                }
            }
        }
    }
}

#[test]
fn by_hand() {
    // Rows [1 0 2 0], [0 0 0 0], [0 -3 0 4]; x = (1, 10, 100, 1000): 201, 0, 3970.
    let w = [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -3.0, 0.0, 4.0];
    let x = [1.0, 10.0, 100.0, 1000.0];
    let gather = Gather::new(&Csr::encode(&w, 3, 4).unwrap()).unwrap();
    let tiled = Tiled::new(TiledCsl::encode(&halves(&w).0, 3, 4, Order::Shuffled).unwrap());
    for k in [&gather as &dyn LinearKernel, &tiled] {
        let mut y = [f32::NAN; 3];
        k.forward(&x, 1, &mut y, &mut vec![f32::NAN; k.scratch_len(1)]).unwrap();
        assert_eq!((y, k.nnz()), ([201.0, 0.0, 3970.0], 4), "{}", k.name());
    }
    // Scales 1 and activations with step 1: both ways are exact. 127 · 127 − 2 · 3 = 16123.
    let m = BitmaskInt8::encode(&[127.0, 0.0, -2.0, 0.0], 1, 4, BitmaskSettings::per_row()).unwrap();
    for activations in [Activations::Exact, Activations::Int8] {
        let k = PanelInt8::new(&m, activations).unwrap();
        let mut y = [f32::NAN];
        k.forward(&[127.0, 50.0, 3.0, 9.0], 1, &mut y, &mut vec![f32::NAN; k.scratch_len(1)]).unwrap();
        assert_eq!(y, [16123.0]);
    }
}

#[test]
fn every_token_count_up_to_33() {
    let (rows, cols) = (37, 140);
    let w = sparse(1, rows * cols, 0.3);
    for n in 1..=33 {
        let x = noise(n as u64, n * cols);
        check_gather(&w, rows, cols, &x, n);
        check_tiled(&w, rows, cols, &x, n);
        check_int8(&w, rows, cols, &x, n);
    }
}

#[test]
fn odd_shapes_and_every_density() {
    for (rows, cols) in [(1, 1), (1, 17), (15, 5), (16, 16), (33, 33), (64, 7), (129, 65), (100, 300)] {
        for density in [0.0, 0.02, 0.3, 0.97, 1.0] {
            for n in [1, 3, 8] {
                let w = sparse((rows + cols + n) as u64, rows * cols, density);
                let x = noise(9, n * cols);
                check_gather(&w, rows, cols, &x, n);
                check_tiled(&w, rows, cols, &x, n);
                check_int8(&w, rows, cols, &x, n);
            }
        }
    }
}

#[test]
fn large_enough_for_two_threads_with_uneven_rows() {
    let (rows, cols) = (640, 1028);
    let mut w = sparse(4, rows * cols, 0.1);
    for r in 0..rows {
        match r / 32 % 5 {
            0 => w[r * cols..(r + 1) * cols].copy_from_slice(&noise(r as u64, cols)),
            1 | 2 => w[r * cols..(r + 1) * cols].fill(0.0),
            _ => {}
        }
    }
    for n in [1, 8] {
        let x = noise(5, n * cols);
        check_gather(&w, rows, cols, &x, n);
        check_tiled(&w, rows, cols, &x, n);
        check_int8(&w, rows, cols, &x, n);
    }
}

#[test]
fn indices_of_four_bytes() {
    let (rows, cols) = (20, 70_000);
    let w = sparse(6, rows * cols, 0.001);
    for n in [1, 2, 5, 9] {
        check_gather(&w, rows, cols, &noise(7, n * cols), n);
    }
    // A gather's index is signed.
    let wide = Csr::encode(&[], 0, 1 << 31).unwrap();
    assert!(matches!(Gather::new(&wide), Err(KernelError::TooLarge { .. })));
    // The widest weight with two bytes, its last column kept.
    let mut w = vec![0.0; 65_535];
    (w[3], w[65_534]) = (2.0, 3.0);
    check_gather(&w, 1, 65_535, &noise(8, 65_535), 1);
}

#[test]
fn split_k_agrees_with_the_whole() {
    let (rows, cols) = (140, 64 * 7 + 5);
    let (narrow, wide) = halves(&sparse(10, rows * cols, 0.4));
    for n in [1, 5] {
        let x = noise(11, n * cols);
        let (want, scale) = linear_f64(&wide, rows, cols, &x, n);
        for split in [1, 2, 3, 5, 8, 99] {
            let matrix = TiledCsl::encode(&narrow, rows, cols, Order::Shuffled).unwrap();
            let k = Tiled::new(matrix).with_split_k(split).unwrap();
            assert_eq!(k.split_k(), split.min(8));
            let f: Run<'_> = &|i, x, n, y, s| k.forward_with(i, x, n, y, s);
            for isa in Isa::available() {
                let y = run(&k, f, isa, &x, n, 1);
                for (i, v) in y.iter().enumerate() {
                    assert!((f64::from(*v) - want[i]).abs() <= 1e-5 * scale[i].max(1e-3), "{split} {isa}");
                }
                assert_eq!(bits(&y), bits(&run(&k, f, isa, &x, n, 2)), "1 and 2 threads");
            }
        }
    }
    let refused = Tiled::new(TiledCsl::encode(&[], 0, 0, Order::Plain).unwrap()).with_split_k(0);
    assert!(matches!(refused, Err(KernelError::Argument { argument: "split", .. })));
}

#[test]
fn a_token_does_not_depend_on_its_batch() {
    let (rows, cols) = (50, 260);
    let w = sparse(8, rows * cols, 0.2);
    let x = noise(10, 29 * cols);
    let gather = Gather::new(&Csr::encode(&w, rows, cols).unwrap()).unwrap();
    let tiled = Tiled::new(TiledCsl::encode(&halves(&w).0, rows, cols, Order::Plain).unwrap());
    let int8 = BitmaskInt8::encode(&w, rows, cols, BitmaskSettings::per_row()).unwrap();
    let [a, b] = [Activations::Exact, Activations::Int8].map(|a| PanelInt8::new(&int8, a).unwrap());
    for k in [&gather as &dyn LinearKernel, &tiled, &a, &b] {
        let one = |x: &[f32], n: usize| {
            let mut y = vec![f32::NAN; n * rows];
            k.forward(x, n, &mut y, &mut vec![f32::NAN; k.scratch_len(n)]).unwrap();
            bits(&y)
        };
        let all = one(&x, 29);
        for t in 0..29 {
            assert_eq!(
                one(&x[t * cols..(t + 1) * cols], 1),
                all[t * rows..(t + 1) * rows],
                "{} {t}",
                k.name()
            );
        }
    }
}

#[test]
fn unaligned_slices_and_denormals() {
    let (rows, cols, n) = (40, 37, 5);
    let mut w = sparse(11, rows * cols, 0.5);
    w.iter_mut().step_by(3).for_each(|v| *v *= 1e-39);
    let x = noise(12, n * cols + 1);
    check_gather(&w, rows, cols, &x[1..], n);
    check_int8(&w, rows, cols, &x[1..], n);
    let mut w = sparse(11, rows * cols, 0.5);
    w.iter_mut().step_by(3).for_each(|v| *v *= 1e-7); // denormal as f16
    check_tiled(&w, rows, cols, &x[1..], n);
    let k = Gather::new(&Csr::encode(&w, rows, cols).unwrap()).unwrap();
    let aligned = x[1..].to_vec();
    for skip in 0..20 {
        let (mut y, mut scratch) = (vec![0.0; n * rows + 1], vec![f32::NAN; k.scratch_len(n) + skip]);
        k.forward(&x[1..], n, &mut y[1..], &mut scratch[skip..]).unwrap();
        assert_eq!(
            bits(&y[1..]),
            bits(&run(&k, &|i, x, n, y, s| k.forward_with(i, x, n, y, s), Isa::detect(), &aligned, n, 1))
        );
    }
}

#[test]
fn infinite_activations_where_nothing_is_kept_do_nothing_when_gathered_and_spread_when_scattered() {
    let (rows, cols) = (33, 64);
    let mut w = sparse(13, rows * cols, 0.3);
    w[5 * cols..6 * cols].fill(0.0); // a row without weights fills the slices up
    for (n, bad) in [(1, f32::NAN), (3, f32::INFINITY), (6, f32::NEG_INFINITY), (11, f32::NAN)] {
        let mut x = noise(14, n * cols);
        x[(n - 1) * cols + 5] = bad; // the last token only
        let gather = Gather::new(&Csr::encode(&w, rows, cols).unwrap()).unwrap();
        let (narrow, wide) = halves(&w);
        let tiled = Tiled::new(TiledCsl::encode(&narrow, rows, cols, Order::Shuffled).unwrap());
        for isa in Isa::available() {
            let g = run(&gather, &|i, x, n, y, s| gather.forward_with(i, x, n, y, s), isa, &x, n, 1);
            let t = run(&tiled, &|i, x, n, y, s| tiled.forward_with(i, x, n, y, s), isa, &x, n, 1);
            let d = dense(&wide, rows, cols, isa, &x, n);
            for (i, (g, (t, d))) in g.iter().zip(t.iter().zip(&d)).enumerate() {
                let touched = i / rows == n - 1 && w[i % rows * cols + 5] != 0.0;
                assert_eq!(g.is_finite(), !touched, "{isa} {i}: {g}");
                assert!(t == d || t.is_nan() && d.is_nan(), "{isa} {i}: {t} for {d}");
            }
        }
    }
    // Eight-bit activations: the whole token.
    let m = BitmaskInt8::encode(&w, rows, cols, BitmaskSettings::per_group(16)).unwrap();
    let k = PanelInt8::new(&m, Activations::Int8).unwrap();
    let mut x = noise(14, 2 * cols);
    x[cols + 5] = f32::INFINITY;
    let y = run(&k, &|i, x, n, y, s| k.forward_with(i, x, n, y, s), Isa::detect(), &x, 2, 1);
    assert!(y[..rows].iter().all(|v| v.is_finite()) && y[rows..].iter().all(|v| v.is_nan()));
}

#[test]
fn infinite_and_nan_weights_survive() {
    let mut w = vec![0.0; 34 * 8];
    (w[3], w[33 * 8 + 7]) = (f32::INFINITY, f32::NAN);
    let gather = Gather::new(&Csr::encode(&w, 34, 8).unwrap()).unwrap();
    let tiled = Tiled::new(TiledCsl::encode(&halves(&w).0, 34, 8, Order::Plain).unwrap());
    for k in [&gather as &dyn LinearKernel, &tiled] {
        let mut y = vec![0.0; 34];
        k.forward(&[1.0; 8], 1, &mut y, &mut vec![0.0; k.scratch_len(1)]).unwrap();
        assert_eq!(y[0], f32::INFINITY);
        assert!(y[33].is_nan() && y[1..33].iter().all(|v| *v == 0.0), "{}", k.name());
    }
}

#[test]
fn empty_shapes_do_nothing_or_give_zeros() {
    for (rows, cols, n) in [(0, 4, 2), (4, 0, 2), (4, 0, 9), (0, 0, 1), (4, 4, 0)] {
        let (w, x) = (vec![1.0; rows * cols], vec![1.0; n * cols]);
        check_gather(&w, rows, cols, &x, n);
        check_tiled(&w, rows, cols, &x, n);
        check_int8(&w, rows, cols, &x, n);
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let w = [1.0f32; 12];
    let gather = Gather::new(&Csr::encode(&w, 3, 4).unwrap()).unwrap();
    let csl = TiledCsl::encode(&halves(&w).0, 3, 4, Order::Plain).unwrap();
    let tiled = Tiled::new(csl).with_split_k(2).unwrap();
    let int8 = BitmaskInt8::encode(&w, 3, 4, BitmaskSettings::per_row()).unwrap();
    let int8 = PanelInt8::new(&int8, Activations::Int8).unwrap();
    for k in [&gather as &dyn LinearKernel, &tiled, &int8] {
        let (mut y, mut s) = ([0.0; 6], vec![0.0; k.scratch_len(2)]);
        let found = |r: Result<(), KernelError>| match r {
            Err(KernelError::Length { array, .. }) => array,
            other => panic!("{other:?}"),
        };
        assert_eq!(found(k.forward(&[0.0; 7], 2, &mut y, &mut s)), "x");
        assert_eq!(found(k.forward(&[0.0; 8], 2, &mut y[..5], &mut s)), "y");
        if let Some(short) = s.len().checked_sub(1) {
            assert_eq!(found(k.forward(&[0.0; 8], 2, &mut y, &mut s[..short])), "scratch");
        }
        let huge = k.forward(&[0.0; 8], usize::MAX, &mut y, &mut s);
        assert!(matches!(huge, Err(KernelError::TooLarge { .. })), "{huge:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(seed: u64, rows in 1usize..150, cols in 1usize..140, n in 1usize..20, density in 0.0f64..1.0) {
        let w = sparse(seed, rows * cols, density);
        let x = noise(seed ^ 1, n * cols);
        check_gather(&w, rows, cols, &x, n);
        check_tiled(&w, rows, cols, &x, n);
        check_int8(&w, rows, cols, &x, n);
    }
}
