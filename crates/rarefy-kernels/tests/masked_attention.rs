//! Masked attention and its predictor on every code path against naive f64.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use rarefy_kernels::masked_attention::oracle::{connectivity_f64, masked_f64};
use rarefy_kernels::masked_attention::{
    Basis, Predictor, PredictorSettings, RowLists, attend_all_scratch_len, attend_all_with, attend_rows_with,
};
use rarefy_kernels::{Isa, KernelError};
use support::noise;

fn dense(isa: Isa, q: &[f32], k: &[f32], v: &[f32], d: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    let mut scratch = vec![f32::NAN; attend_all_scratch_len(q.len() / d, d)];
    attend_all_with(isa, q, k, v, d, 0.4, &mut out, &mut scratch).unwrap();
    out
}

fn rows(isa: Isa, q: &[f32], k: &[f32], v: &[f32], d: usize, lists: RowLists<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    let mut scratch = vec![f32::NAN; q.len() / d];
    attend_rows_with(isa, q, k, v, d, 0.4, lists, &mut out, &mut scratch).unwrap();
    out
}

fn close(found: &[f32], want: &[f64], what: &str) {
    for (i, (a, b)) in found.iter().zip(want).enumerate() {
        assert!((f64::from(*a) - b).abs() < 1e-5, "{what} [{i}]: {a} for {b}");
    }
}

#[test]
fn by_hand() {
    // Two tokens, d = 1: scores of query 1 are 0 and ln(3)/0.4 · 0.4: weights 1/4, 3/4 of 8 and 4.
    let (q, k, v) = ([0.0, 1.0], [0.0, 3f32.ln() / 0.4], [8.0, 4.0]);
    for isa in Isa::available() {
        close(&dense(isa, &q, &k, &v, 1), &[6.0, 5.0], "dense");
        let lists = RowLists { starts: &[0, 0, 1], keys: &[0] };
        assert_eq!(rows(isa, &q, &k, &v, 1, lists), [0.0, 8.0], "no key: zeros; one key: its value");
    }
}

#[test]
fn dense_and_rows_against_the_oracle_over_odd_shapes() {
    for (n, d) in [(1, 1), (3, 5), (16, 16), (17, 33), (65, 64), (130, 20), (197, 64)] {
        let (q, k, v) = (noise(1, n * d), noise(2, n * d), noise(3, n * d));
        let coin = noise(4, n * n);
        let allowed = |i: usize, j: usize| coin[i * n + j] > 0.5 || (i.is_multiple_of(7) && j < 3);
        let (mut starts, mut keys) = (vec![0], Vec::new());
        for i in 0..n {
            keys.extend((0..n as u32).filter(|j| allowed(i, *j as usize)));
            starts.push(keys.len() as u32);
        }
        let scale = f64::from(0.4f32);
        let want_all = masked_f64(&q, &k, &v, d, scale, &|_, _| true);
        let want = masked_f64(&q, &k, &v, d, scale, &allowed);
        let every: Vec<u32> = (0..n).flat_map(|_| 0..n as u32).collect();
        let every_start: Vec<u32> = (0..=n as u32).map(|i| i * n as u32).collect();
        let mut fused: Option<[Vec<f32>; 2]> = None;
        for isa in Isa::available() {
            let all = dense(isa, &q, &k, &v, d);
            close(&all, &want_all, "dense");
            let some = rows(isa, &q, &k, &v, d, RowLists { starts: &starts, keys: &keys });
            close(&some, &want, "rows");
            // rho = 1: the mask of ones is dense attention.
            close(
                &rows(isa, &q, &k, &v, d, RowLists { starts: &every_start, keys: &every }),
                &want_all,
                "ones",
            );
            if isa != Isa::Portable {
                let both = [all, some];
                assert_eq!(&both, fused.get_or_insert_with(|| both.clone()), "AVX2 and AVX-512: same bits");
            }
        }
    }
}

#[test]
fn nan_infinity_and_denormals() {
    let (n, d) = (20, 8);
    let (q, mut k, v) = (noise(1, n * d), noise(2, n * d), noise(3, n * d));
    k[5 * d] = f32::NAN;
    let starts: Vec<u32> = (0..=n as u32).collect();
    let keys: Vec<u32> = (0..n as u32).collect();
    for isa in Isa::available() {
        assert!(dense(isa, &q, &k, &v, d).iter().all(|v| v.is_nan()));
        // Only the query that looks at the token with a NaN gets one.
        let out = rows(isa, &q, &k, &v, d, RowLists { starts: &starts, keys: &keys });
        assert!(out.chunks(d).enumerate().all(|(i, o)| o[0].is_nan() == (i == 5)), "{isa}");
        let tiny: Vec<f32> = q.iter().map(|v| v * 1e-41).collect();
        let mean = v.iter().step_by(d).map(|v| f64::from(*v)).sum::<f64>() / n as f64;
        k[5 * d] = 0.0;
        assert!((f64::from(dense(isa, &tiny, &k, &v, d)[0]) - mean).abs() < 1e-6);
        k[5 * d] = f32::NAN;
    }
}

struct Model {
    n: usize,
    d: usize,
    basis: usize,
    p: [Vec<f32>; 4],
    w_down: Vec<f32>,
    w_up: Vec<f32>,
    settings: PredictorSettings,
}

fn model(n: usize, d: usize, low: usize, basis: usize, kept: usize, coefficients: usize) -> Model {
    let sparse = |seed, len| -> Vec<f32> {
        noise(seed, len).into_iter().map(|v| if v.abs() > 0.7 { v } else { v * 0.02 }).collect()
    };
    Model {
        n,
        d,
        basis,
        p: [noise(5, low * d), noise(6, low), noise(7, low * d), noise(8, low)],
        w_down: noise(9, n * basis).iter().map(|v| v * 0.3).collect(),
        w_up: sparse(10, n * basis),
        settings: PredictorSettings { kept, coefficients, scale: 0.4 },
    }
}

impl Model {
    fn predictor(&self) -> Predictor {
        let [a, b, c, d] = &self.p;
        let basis = Basis::new(&self.w_up, self.n, self.basis, 0.02).unwrap();
        Predictor::new((a, b), (c, d), self.d, &self.w_down, basis, self.settings).unwrap()
    }

    fn predict(&self, isa: Isa, q: &[f32], k: &[f32]) -> (Vec<u32>, Vec<u32>) {
        let p = self.predictor();
        let (mut starts, mut keys) = (vec![9; self.n + 1], vec![9; p.list_len()]);
        let mut scratch = vec![f32::NAN; p.scratch_len()];
        p.predict_with(isa, q, k, &mut starts, &mut keys, &mut scratch).unwrap();
        (starts, keys)
    }

    fn check(&self, q: &[f32], k: &[f32]) {
        let (n, kept) = (self.n, self.settings.kept);
        let [a, b, c, d] = &self.p;
        let scores =
            connectivity_f64((q, k), (a, b), (c, d), &self.w_down, &self.w_up, 0.02, self.d, self.settings);
        for isa in Isa::available() {
            let (starts, keys) = self.predict(isa, q, k);
            for i in 0..n {
                let list = &keys[starts[i] as usize..starts[i + 1] as usize];
                // CLS has n ones, every other row exactly B.
                assert_eq!(list.len(), if i == 0 { n } else { kept });
                assert!(list.windows(2).all(|w| w[0] < w[1]) && list.iter().all(|j| (*j as usize) < n));
                if i == 0 {
                    continue;
                }
                let row = &scores[i * n..(i + 1) * n];
                let mut sorted = row.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let cut = sorted[kept - 1];
                let mass = |l: &[f64]| l.iter().sum::<f64>();
                let found: Vec<f64> = list.iter().map(|j| row[*j as usize]).collect();
                // The kept entries are the largest ones, up to rounding.
                assert!((mass(&found) - mass(&sorted[..kept])).abs() < 1e-4, "{isa} row {i}");
                if cut == 0.0 && sorted.iter().filter(|v| **v > 0.0).count() + 2 <= kept {
                    assert!(list.contains(&0) && list.contains(&(i as u32)), "zeros: itself and CLS first");
                }
            }
        }
    }
}

#[test]
fn the_predictor_keeps_the_largest_entries_of_the_connectivity() {
    for (n, d, low, basis, kept, coefficients) in [
        (1, 4, 2, 1, 1, 1),
        (5, 4, 3, 3, 2, 2),
        (40, 16, 8, 12, 10, 8),
        (65, 33, 5, 20, 64, 3),
        (100, 32, 16, 40, 7, 40),
        (100, 32, 16, 40, 20, 35),
        (197, 64, 32, 32, 50, 8),
    ] {
        let m = model(n, d, low, basis, kept, coefficients);
        m.check(&noise(21, n * d), &noise(22, n * d));
    }
}

/// Coefficients so far apart that all but one vanish: fewer entries than are kept are positive, and every list is still whole.
#[test]
fn coefficients_that_vanish_leave_no_list_unwritten() {
    let mut m = model(60, 16, 8, 12, 40, 8);
    m.settings.scale = 4000.0;
    m.check(&noise(51, 60 * 16), &noise(52, 60 * 16));
}

#[test]
fn numbers_that_are_not_finite_make_no_basis() {
    for (w, threshold) in [(f32::NAN, 0.02), (1.0, f32::NAN), (1.0, -1.0), (f32::INFINITY, 0.0)] {
        assert!(Basis::new(&[w; 6], 3, 2, threshold).is_err(), "{w} {threshold}");
    }
}

#[test]
fn all_coefficients_are_no_truncation_and_all_keys_are_dense() {
    let (n, d) = (50, 16);
    let (q, k, v) = (noise(31, n * d), noise(32, n * d), noise(33, n * d));
    let full = model(n, d, 8, 8, 12, 8); // top 8 of n' = 8
    full.check(&q, &k);
    let all = model(n, d, 8, 8, n, 3);
    for isa in Isa::available() {
        let (starts, keys) = all.predict(isa, &q, &k);
        assert_eq!(keys, (0..n).flat_map(|_| 0..n as u32).collect::<Vec<_>>());
        let out = rows(isa, &q, &k, &v, d, RowLists { starts: &starts, keys: &keys });
        for (a, b) in out.iter().zip(dense(isa, &q, &k, &v, d)) {
            assert!((a - b).abs() < 1e-5);
        }
    }
}

#[test]
fn permuting_tokens_with_the_rows_of_w_down_and_w_up_permutes_the_output() {
    let (n, d) = (30, 8);
    let m = model(n, d, 6, 10, 9, 4);
    let (q, k, v) = (noise(41, n * d), noise(42, n * d), noise(43, n * d));
    // CLS stays in place.
    let to: Vec<usize> = (0..n).map(|i| if i == 0 { 0 } else { (i * 7) % (n - 1) + 1 }).collect();
    let permute = |x: &[f32], width: usize| -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        for (i, t) in to.iter().enumerate() {
            out[t * width..(t + 1) * width].copy_from_slice(&x[i * width..(i + 1) * width]);
        }
        out
    };
    let moved = Model { w_down: permute(&m.w_down, 10), w_up: permute(&m.w_up, 10), p: m.p.clone(), ..m };
    let isa = Isa::detect();
    let run = |m: &Model, q: &[f32], k: &[f32], v: &[f32]| {
        let (starts, keys) = m.predict(isa, q, k);
        rows(isa, q, k, v, d, RowLists { starts: &starts, keys: &keys })
    };
    let want = permute(&run(&m, &q, &k, &v), d);
    let found = run(&moved, &permute(&q, d), &permute(&k, d), &permute(&v, d));
    for (a, b) in found.iter().zip(&want) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let x = [0.0f32; 8];
    let (mut out, mut s) = ([0.0; 8], [0.0; 200]);
    let isa = Isa::detect();
    let mut call = |starts: &[u32], keys: &[u32]| {
        attend_rows_with(isa, &x, &x, &x, 2, 1.0, RowLists { starts, keys }, &mut out, &mut s)
    };
    assert!(call(&[0, 1, 2, 3, 4], &[0, 1, 2, 3]).is_ok());
    assert!(matches!(call(&[0, 1, 2, 3], &[0, 1, 2]), Err(KernelError::Length { array: "starts", .. })));
    assert!(call(&[0, 2, 1, 3, 4], &[0, 1, 2, 3]).is_err() && call(&[0, 1, 2, 3, 4], &[0, 1, 2, 4]).is_err());
    assert!(call(&[0, 1, 2, 3, 5], &[0, 1, 2, 3]).is_err() && call(&[1, 1, 2, 3, 4], &[0, 1, 2, 3]).is_err());
    assert!(attend_all_with(isa, &x, &x[1..], &x, 2, 1.0, &mut [0.0; 8], &mut [0.0; 200]).is_err());
    assert!(attend_all_with(isa, &x, &x, &x, 2, 1.0, &mut [0.0; 8], &mut [0.0; 3]).is_err());
    assert!(Basis::new(&[0.0; 5], 2, 3, 0.0).is_err());
    let basis = Basis::new(&[0.5; 6], 2, 3, 0.02).unwrap();
    assert!((basis.density() - 1.0).abs() < 1e-12);
    let new = |kept, coefficients| {
        let settings = PredictorSettings { kept, coefficients, scale: 1.0 };
        Predictor::new((&[0.0; 4], &[0.0; 2]), (&[0.0; 4], &[0.0; 2]), 2, &[0.0; 6], basis.clone(), settings)
    };
    assert!(new(1, 1).is_ok() && new(0, 1).is_err() && new(3, 1).is_err());
    assert!(new(1, 0).is_err() && new(1, 4).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape(seed in 0u64..1 << 40, n in 1usize..70, d in 1usize..40, low in 1usize..10, basis in 1usize..20, share in 0.0f64..1.0) {
        let kept = ((n as f64 * share) as usize).max(1);
        let m = model(n, d, low, basis, kept, basis.min(8));
        m.check(&noise(seed, n * d), &noise(seed ^ 1, n * d));
    }
}
