//! Quantised kernels on every code path against the product of the decoded weights in f64.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rarefy_kernels::{Activations, Isa, KernelError, LinearKernel, Quantised, oracle::linear_f64};
use rarefy_sparsity::formats::{GroupQuantised, QuantSettings, ScaleType, Scheme};

mod support;
use support::{bits, noise};

fn settings(bits: u32, group: usize, symmetric: bool, wide: bool) -> QuantSettings {
    let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric };
    QuantSettings { bits, group, scheme, scales: if wide { ScaleType::F32 } else { ScaleType::F16 } }
}

fn run(k: &Quantised, isa: Isa, x: &[f32], n: usize, threads: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; n * k.rows()];
    let mut scratch = vec![f32::NAN; k.scratch_len(n)];
    support::pool(threads).install(|| k.forward_with(isa, x, n, &mut y, &mut scratch)).unwrap();
    y
}

/// The eight-bit activations as documented: per group `s = max/127`, `q = round(x · (127/max))`.
fn rounded(x: &[f32], cols: usize, group: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for line in x.chunks(cols.max(1)) {
        for run in line.chunks(group) {
            let most = run.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let (s, inverse) =
                if most < 2.0f32.powi(-100) { (0.0, 0.0) } else { (most / 127.0, 127.0 / most) };
            out.extend(run.iter().map(|v| f64::from((v * inverse).round_ties_even()) * f64::from(s)));
        }
    }
    out
}

fn check(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize, q: QuantSettings) {
    let matrix = GroupQuantised::encode(w, rows, cols, q).unwrap();
    let decoded = matrix.decode();
    let (exact, scale) = linear_f64(&decoded, rows, cols, x, n);
    let q_x = rounded(x, cols, q.group);
    for activations in [Activations::Exact, Activations::Int8] {
        let k = Quantised::new(&matrix, activations).unwrap();
        assert_eq!((k.rows(), k.cols(), k.nnz()), (rows, cols, rows * cols));
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let y = run(&k, isa, x, n, 1);
            for t in 0..n {
                for r in 0..rows {
                    // `Σ s (q + z) |x|`: zero points are taken off after the sum, so rounding is relative to this.
                    let mut size = scale[t * rows + r];
                    let mut integer = 0.0;
                    let mut step = 0.0;
                    for c in 0..cols {
                        let (i, g) = (t * cols + c, c / q.group);
                        let s = f64::from(matrix.scale(r, g));
                        size += 2.0 * s * f64::from(matrix.zero(r, g)) * f64::from(x[i]).abs();
                        integer += f64::from(decoded[r * cols + c]) * q_x[i];
                        let run = &x[t * cols + g * q.group..t * cols + cols.min((g + 1) * q.group)];
                        let most = run.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        step += f64::from(decoded[r * cols + c]).abs() * f64::from(most) / 253.9;
                    }
                    let (want, found) = (exact[t * rows + r], f64::from(y[t * rows + r]));
                    let tight = 1e-6 * size + 1e-30;
                    if activations == Activations::Exact {
                        let bound = (q.group + cols / q.group + 4) as f64 * 6e-8 * size + 1e-30;
                        assert!(
                            (found - want).abs() <= bound.max(tight),
                            "{} {isa} {q:?}: {found} for {want}",
                            k.name()
                        );
                    } else {
                        assert!(
                            (found - integer).abs() <= tight,
                            "{} {isa} {q:?}: {found} for {integer}",
                            k.name()
                        );
                        assert!(
                            (found - want).abs() <= step + tight,
                            "bound of the activations: {found} for {want}"
                        );
                    }
                }
            }
            let y = bits(&y);
            assert_eq!(y, bits(&run(&k, isa, x, n, 2)), "1 and 2 threads");
            let all_agree = activations == Activations::Int8;
            if all_agree || isa != Isa::Portable {
                assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{} {isa} {q:?}: same bits", k.name());
            }
        }
    }
}

const ALL: [(u32, bool, bool); 8] = [
    (4, false, false),
    (4, true, false),
    (8, false, false),
    (8, true, false),
    (4, false, true),
    (4, true, true),
    (8, false, true),
    (8, true, true),
];

#[test]
fn by_hand() {
    // One group of eight: s = 15/15 = 1, z = 0, codes 0 … 14 even, and 15; x all 127 has scale 1, so both kernels are exact.
    let w = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0];
    let m = GroupQuantised::encode(&w, 1, 8, settings(4, 8, false, true)).unwrap();
    for a in [Activations::Exact, Activations::Int8] {
        let k = Quantised::new(&m, a).unwrap();
        for isa in Isa::available() {
            assert_eq!(run(&k, isa, &[127.0; 8], 1, 1), [57.0 * 127.0], "{isa}");
            assert_eq!(
                run(&k, isa, &[0.0, 0.0, 127.0, 0.0, 0.0, 0.0, 0.0, -127.0], 1, 1),
                [-11.0 * 127.0],
                "{isa}"
            );
        }
    }
}

#[test]
fn every_token_count_up_to_33() {
    let (rows, cols) = (35, 96);
    let w = noise(1, rows * cols);
    for n in 1..=33 {
        let x = noise(n as u64 + 5, n * cols);
        check(&w, rows, cols, &x, n, settings(4, 32, n % 2 == 0, false));
        check(&w, rows, cols, &x, n, settings(8, 32, n % 3 == 0, false));
    }
}

#[test]
fn odd_shapes_groups_and_schemes() {
    for (rows, cols) in [(1, 1), (1, 17), (15, 5), (16, 32), (17, 33), (33, 129), (20, 300)] {
        for (bits, symmetric, wide) in ALL {
            for group in [8, 32, 128, 256] {
                let w: Vec<f32> = noise(3, rows * cols).iter().map(|v| v + 0.3).collect();
                check(&w, rows, cols, &noise(9, 2 * cols), 2, settings(bits, group, symmetric, wide));
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    // All codes 255 (or 15) against all activations ±127: the largest sums there are.
    let (rows, cols) = (16, 512);
    for sign in [1.0f32, -1.0] {
        for (bits, symmetric, wide) in ALL {
            let x = vec![-sign; cols];
            check(&vec![sign; rows * cols], rows, cols, &x, 1, settings(bits, 256, symmetric, wide));
        }
    }
}

#[test]
fn two_threads_have_work_and_a_token_does_not_depend_on_its_batch() {
    let (rows, cols) = (1030, 640);
    let w = noise(4, rows * cols);
    for q in [settings(4, 128, false, false), settings(8, 32, true, false)] {
        let m = GroupQuantised::encode(&w, rows, cols, q).unwrap();
        for a in [Activations::Exact, Activations::Int8] {
            let k = Quantised::new(&m, a).unwrap();
            let x = noise(6, 11 * cols);
            let all = run(&k, Isa::detect(), &x, 11, 2);
            for t in 0..11 {
                let one = run(&k, Isa::detect(), &x[t * cols..(t + 1) * cols], 1, 1);
                assert_eq!(bits(&one), bits(&all[t * rows..(t + 1) * rows]), "token {t}");
            }
        }
    }
}

#[test]
fn a_bad_activation_spoils_its_token_only() {
    let (rows, cols, n) = (18, 64, 3);
    let m =
        GroupQuantised::encode(&noise(2, rows * cols), rows, cols, settings(4, 32, false, false)).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(1, n * cols);
        x[cols + 40] = bad;
        for a in [Activations::Exact, Activations::Int8] {
            for isa in Isa::available() {
                let y = run(&Quantised::new(&m, a).unwrap(), isa, &x, n, 1);
                assert!(
                    y.iter().enumerate().all(|(i, v)| v.is_finite() == (i / rows != 1)),
                    "{isa} {a:?} {bad}: {y:?}"
                );
            }
        }
    }
}

#[test]
fn denormals_zeros_and_unaligned_slices() {
    let (rows, cols, n) = (20, 72, 2);
    let w = noise(7, rows * cols);
    let tiny: Vec<f32> = noise(8, n * cols).iter().map(|v| v * 1e-39).collect();
    check(&w, rows, cols, &tiny, n, settings(4, 32, false, false));
    check(&w, rows, cols, &vec![0.0; n * cols], n, settings(8, 32, true, false));
    check(&vec![0.0; rows * cols], rows, cols, &noise(3, n * cols), n, settings(4, 32, true, false));
    let k = Quantised::new(
        &GroupQuantised::encode(&w, rows, cols, settings(4, 32, false, false)).unwrap(),
        Activations::Int8,
    )
    .unwrap();
    let x = noise(12, n * cols + 1);
    let (mut y, mut s) = (vec![0.0; n * rows + 1], vec![0.0; k.scratch_len(n) + 3]);
    k.forward(&x[1..], n, &mut y[1..], &mut s[3..]).unwrap();
    assert_eq!(bits(&y[1..]), bits(&run(&k, Isa::detect(), &x[1..], n, 1)));
}

#[test]
fn empty_shapes_and_wrong_lengths() {
    for (rows, cols, n) in [(0, 4, 2), (4, 0, 2), (0, 0, 1), (4, 4, 0)] {
        check(&vec![1.0; rows * cols], rows, cols, &vec![1.0; n * cols], n, settings(4, 32, false, false));
    }
    let m = GroupQuantised::encode(&[1.0; 12], 3, 4, settings(4, 8, false, false)).unwrap();
    let k = Quantised::new(&m, Activations::Int8).unwrap();
    let found = |r: Result<(), KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    let (mut y, mut s) = ([0.0; 6], [0.0; 8]);
    assert_eq!(k.scratch_len(2), 8);
    assert_eq!(found(k.forward(&[0.0; 7], 2, &mut y, &mut s)), "x");
    assert_eq!(found(k.forward(&[0.0; 8], 2, &mut y[..5], &mut s)), "y");
    assert_eq!(found(k.forward(&[0.0; 8], 2, &mut y, &mut s[..7])), "scratch");
    assert!(matches!(k.forward(&[0.0; 8], usize::MAX, &mut y, &mut s), Err(KernelError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(seed: u64, rows in 1usize..50, cols in 1usize..160, n in 1usize..10, which in 0usize..8, group in 1usize..9) {
        let (bits, symmetric, wide) = ALL[which];
        let w = noise(seed, rows * cols);
        check(&w, rows, cols, &noise(seed ^ 1, n * cols), n, settings(bits, group * 8, symmetric, wide));
    }
}
