//! Every kernel on every code path of this CPU against the naive product in f64, and against each other bit for bit.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use half::bf16;
use proptest::prelude::*;
use rarefy_kernels::{Dense, Isa, KernelError, LinearKernel, Nm, Panel, Value, oracle::linear_f64};
use rarefy_sparsity::formats::{BitmaskPanel, NmPacked};
use support::noise;

/// Weights with about `density` non-zeros.
fn sparse(seed: u64, len: usize, density: f64) -> Vec<f32> {
    let keep = noise(seed ^ 0x55, len);
    let cut = (2.0 * density - 1.0) as f32;
    noise(seed, len).into_iter().zip(keep).map(|(w, k)| if k < cut { w } else { 0.0 }).collect()
}

/// At most `n` non-zeros in each `m`.
fn n_of_m(seed: u64, rows: usize, cols: usize, n: usize, m: usize) -> Vec<f32> {
    let mut w = noise(seed, rows * cols);
    let order = noise(seed ^ 0x77, rows * cols);
    for (w, order) in w.chunks_mut(m).zip(order.chunks(m)) {
        let mut by: Vec<usize> = (0..m).collect();
        by.sort_by(|a, b| order[*a].total_cmp(&order[*b]));
        by[n..].iter().for_each(|i| w[*i] = 0.0);
    }
    w
}

trait Typed: Value {
    fn from_f32(v: f32) -> Self;
}
impl Typed for f32 {
    fn from_f32(v: f32) -> f32 {
        v
    }
}
impl Typed for bf16 {
    fn from_f32(v: f32) -> bf16 {
        bf16::from_f32(v)
    }
}

/// A kernel with its `forward_with`.
type Run<'a> = Box<dyn Fn(Isa, &[f32], usize, &mut [f32], &mut [f32]) -> Result<(), KernelError> + Sync + 'a>;

fn run(kernel: &dyn LinearKernel, f: &Run<'_>, isa: Isa, x: &[f32], n: usize, threads: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; n * kernel.rows()]; // dirty output
    let mut scratch = vec![f32::NAN; kernel.scratch_len(n)]; // dirty scratch
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| f(isa, x, n, &mut y, &mut scratch)).unwrap();
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    // `+ 0.0` maps -0.0 to +0.0: the sign of an underflowed zero is not promised.
    y.iter().map(|v| (v + 0.0).to_bits()).collect()
}

/// All kernels of one type on `w[rows, cols]` (already rounded to `T`), against the oracle and each other.
fn check<T: Typed>(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize, nm: Option<(usize, usize)>) {
    let typed: Vec<T> = w.iter().map(|v| T::from_f32(*v)).collect();
    let exact: Vec<f32> = typed.iter().map(|v| v.to_f32()).collect();
    let (want, scale) = linear_f64(&exact, rows, cols, x, n);
    let dense = Dense::<T>::new(&typed, rows, cols).unwrap();
    let panel = Panel::<T>::new(BitmaskPanel::encode(&typed, rows, cols).unwrap());
    let nm = nm.map(|(a, b)| Nm::<T>::new(NmPacked::encode(&typed, rows, cols, a, b).unwrap()).unwrap());
    let mut kernels: Vec<(&dyn LinearKernel, Run<'_>)> = vec![
        (&dense, Box::new(|i, x, n, y, s| dense.forward_with(i, x, n, y, s))),
        (&panel, Box::new(|i, x, n, y, s| panel.forward_with(i, x, n, y, s))),
    ];
    if let Some(k) = &nm {
        kernels.push((k, Box::new(|i, x, n, y, s| k.forward_with(i, x, n, y, s))));
    }
    let mut fused: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        let mut first: Option<Vec<u32>> = None;
        for (kernel, f) in &kernels {
            assert_eq!((kernel.rows(), kernel.cols()), (rows, cols));
            let y = run(*kernel, f, isa, x, n, 1);
            for (i, v) in y.iter().enumerate() {
                // A chain of `cols` roundings in f32: error below (cols + 1) u times the sum of absolute products.
                let bound = (cols + 2) as f64 * f64::from(f32::EPSILON) * scale[i] + 1e-37;
                let error = (f64::from(*v) - want[i]).abs();
                assert!(
                    error <= bound,
                    "{} {isa} {rows}x{cols} n={n} [{i}]: {v} for {}",
                    kernel.name(),
                    want[i]
                );
            }
            let y = bits(&y);
            assert_eq!(y, bits(&run(*kernel, f, isa, x, n, 2)), "{} {isa}: 1 and 2 threads", kernel.name());
            let first = first.get_or_insert_with(|| y.clone());
            assert_eq!(&y, first, "{} {isa} {rows}x{cols} n={n}: same bits as dense", kernel.name());
        }
        if isa != Isa::Portable {
            let y = first.unwrap();
            assert_eq!(&y, fused.get_or_insert_with(|| y.clone()), "AVX2 and AVX-512: same bits");
        }
    }
}

#[test]
fn by_hand() {
    // Rows [1 0 2 0], [0 0 0 0], [0 -3 0 4]; x = (1, 10, 100, 1000): 201, 0, 3970.
    let w = [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -3.0, 0.0, 4.0];
    let x = [1.0, 10.0, 100.0, 1000.0];
    let panel = Panel::new(BitmaskPanel::encode(&w, 3, 4).unwrap());
    let nm = Nm::new(NmPacked::encode(&w, 3, 4, 2, 4).unwrap()).unwrap();
    let dense = Dense::new(&w, 3, 4).unwrap();
    for k in [&panel as &dyn LinearKernel, &nm, &dense] {
        let mut y = [f32::NAN; 3];
        k.forward(&x, 1, &mut y, &mut []).unwrap();
        assert_eq!(y, [201.0, 0.0, 3970.0], "{}", k.name());
    }
    assert_eq!((panel.nnz(), nm.nnz(), dense.nnz()), (4, 6, 12));
}

#[test]
fn every_token_count_up_to_33() {
    let (rows, cols) = (70, 52);
    let (w, two_four) = (sparse(1, rows * cols, 0.4), n_of_m(2, rows, cols, 2, 4));
    for n in 1..=33 {
        let x = noise(n as u64, n * cols);
        check::<f32>(&w, rows, cols, &x, n, None);
        check::<bf16>(&w, rows, cols, &x, n, None);
        check::<f32>(&two_four, rows, cols, &x, n, Some((2, 4)));
        check::<bf16>(&two_four, rows, cols, &x, n, Some((2, 4)));
    }
}

#[test]
fn odd_shapes_and_every_density() {
    for (rows, cols) in [(1, 1), (1, 17), (31, 5), (32, 32), (33, 33), (64, 7), (65, 129), (100, 300)] {
        for density in [0.0, 0.02, 0.3, 0.5, 0.97, 1.0] {
            for n in [1, 3, 8] {
                let w = sparse((rows + cols + n) as u64, rows * cols, density);
                let x = noise(9, n * cols);
                check::<f32>(&w, rows, cols, &x, n, None);
                check::<bf16>(&w, rows, cols, &x, n, None);
            }
        }
    }
}

#[test]
fn other_n_of_m() {
    for (n_kept, m) in [(1, 2), (1, 4), (2, 4), (3, 4), (4, 4), (4, 8), (2, 8), (1, 16), (3, 5), (7, 32)] {
        let (rows, cols) = (45, m * 9);
        let w = n_of_m(m as u64, rows, cols, n_kept, m);
        for n in [1, 4, 13] {
            let x = noise(3, n * cols);
            check::<f32>(&w, rows, cols, &x, n, Some((n_kept, m)));
            check::<bf16>(&w, rows, cols, &x, n, Some((n_kept, m)));
        }
    }
}

#[test]
fn large_enough_for_two_threads_with_uneven_panels() {
    // Panels with all, no and few weights: the split is by bytes, and no panel may be lost.
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
        check::<f32>(&w, rows, cols, &x, n, None);
        check::<bf16>(&w, rows, cols, &x, n, None);
        check::<f32>(&n_of_m(6, rows, cols, 2, 4), rows, cols, &x, n, Some((2, 4)));
    }
}

#[test]
fn a_token_does_not_depend_on_its_batch() {
    let (rows, cols) = (96, 260);
    let w = sparse(8, rows * cols, 0.5);
    let panel = Panel::new(BitmaskPanel::encode(&w, rows, cols).unwrap());
    let x = noise(10, 29 * cols);
    let mut all = vec![0.0; 29 * rows];
    panel.forward(&x, 29, &mut all, &mut vec![0.0; panel.scratch_len(29)]).unwrap();
    for t in 0..29 {
        let mut one = vec![0.0; rows];
        panel.forward(&x[t * cols..(t + 1) * cols], 1, &mut one, &mut []).unwrap();
        assert_eq!(bits(&one), bits(&all[t * rows..(t + 1) * rows]), "token {t}");
    }
}

#[test]
fn unaligned_slices_and_denormals() {
    let (rows, cols, n) = (40, 37, 2);
    let mut w = sparse(11, rows * cols, 0.5);
    w.iter_mut().step_by(3).for_each(|v| *v *= 1e-39);
    let x = noise(12, n * cols + 1);
    check::<f32>(&w, rows, cols, &x[1..], n, None);
    let panel = Panel::new(BitmaskPanel::encode(&w, rows, cols).unwrap());
    let (mut y, mut scratch) = (vec![0.0; n * rows + 1], vec![0.0; panel.scratch_len(n) + 3]);
    panel.forward(&x[1..], n, &mut y[1..], &mut scratch[3..]).unwrap();
    let mut again = vec![0.0; n * rows];
    let aligned = x[1..].to_vec();
    panel.forward(&aligned, n, &mut again, &mut scratch).unwrap();
    assert_eq!(bits(&y[1..]), bits(&again));
}

#[test]
fn nan_and_infinity_spread_as_in_the_dense_kernel_except_at_pruned_places_of_two_four() {
    let (rows, cols, n) = (33, 64, 3);
    let w = n_of_m(13, rows, cols, 2, 4);
    let dense = Dense::new(&w, rows, cols).unwrap();
    let panel = Panel::new(BitmaskPanel::encode(&w, rows, cols).unwrap());
    let two_four = Nm::new(NmPacked::encode(&w, rows, cols, 2, 4).unwrap()).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(14, n * cols);
        x[cols + 5] = bad; // token 1 only
        for isa in Isa::available() {
            let (mut a, mut b, mut c) = (vec![0.0; n * rows], vec![0.0; n * rows], vec![0.0; n * rows]);
            let mut scratch = vec![0.0; n * cols];
            dense.forward_with(isa, &x, n, &mut a, &mut scratch).unwrap();
            panel.forward_with(isa, &x, n, &mut b, &mut scratch).unwrap();
            two_four.forward_with(isa, &x, n, &mut c, &mut scratch).unwrap();
            for t in 0..n {
                for r in 0..rows {
                    let (a, b, c) = (a[t * rows + r], b[t * rows + r], c[t * rows + r]);
                    assert!(a == b || a.is_nan() && b.is_nan(), "panel {isa} {t} {r}: {b} for {a}");
                    let touched = w[r * cols + 5] != 0.0;
                    assert_eq!(c.is_finite(), t != 1 || !touched, "2:4 {isa} {t} {r}: {c}");
                    assert_eq!(a.is_finite(), t != 1, "dense {isa} {t} {r}: {a}");
                    assert!(touched || a.is_finite() || a.is_nan(), "0 * inf is NaN");
                }
            }
        }
    }
}

#[test]
fn infinite_and_nan_weights_survive() {
    let mut w = vec![0.0; 34 * 8];
    (w[3], w[33 * 8 + 7]) = (f32::INFINITY, f32::NAN);
    let panel = Panel::new(BitmaskPanel::encode(&w, 34, 8).unwrap());
    let mut y = vec![0.0; 34];
    panel.forward(&[1.0; 8], 1, &mut y, &mut []).unwrap();
    assert_eq!(y[0], f32::INFINITY);
    assert!(y[33].is_nan() && y[1..33].iter().all(|v| *v == 0.0));
}

#[test]
fn empty_shapes_do_nothing_or_give_zeros() {
    for (rows, cols, n) in [(0, 4, 2), (4, 0, 2), (0, 0, 1), (4, 4, 0)] {
        check::<f32>(&vec![1.0; rows * cols], rows, cols, &vec![1.0; n * cols], n, None);
        check::<bf16>(&vec![0.0; rows * cols], rows, cols, &vec![1.0; n * cols], n, Some((2, 4)));
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let dense = Dense::new(&[1.0f32; 12], 3, 4).unwrap();
    let mut y = [0.0; 6];
    let mut s = [0.0; 8];
    let found = |r: Result<(), KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(dense.forward(&[0.0; 7], 2, &mut y, &mut s)), "x");
    assert_eq!(found(dense.forward(&[0.0; 8], 2, &mut y[..5], &mut s)), "y");
    assert_eq!(found(dense.forward(&[0.0; 8], 2, &mut y, &mut s[..7])), "scratch");
    assert_eq!(found(Dense::new(&[1.0f32; 11], 3, 4).map(|_| ())), "weight");
    assert!(matches!(
        dense.forward(&[0.0; 8], usize::MAX, &mut y, &mut s),
        Err(KernelError::TooLarge { .. })
    ));
    let message = dense.forward(&[0.0; 7], 2, &mut y, &mut s).unwrap_err().to_string();
    assert_eq!(message, "dense-f32: `x` needs 8 elements, got 7");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_shape(seed: u64, rows in 1usize..90, cols in 1usize..140, n in 1usize..15, density in 0.0f64..1.0) {
        let w = sparse(seed, rows * cols, density);
        let x = noise(seed ^ 1, n * cols);
        check::<f32>(&w, rows, cols, &x, n, None);
        check::<bf16>(&w, rows, cols, &x, n, None);
    }
}
