//! ℓp sensitivity sampling: the exact properties of its specification, golden values, hostile input. The regression has
//! its own file.
#![allow(clippy::unwrap_used, reason = "tests")]

use faer::Mat;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rarefy_solve::linalg::{Whitening, leverage, lewis};
use rarefy_solve::linop::dense;
use rarefy_solve::methods::lp_sensitivity_sampling::{
    Coreset, LpSettings, Sampler, Scheme, Sensitivity, augmented, probabilities, sample, scores, select,
    sensitivities, solve,
};
use rarefy_solve::{Csc, Design, LinOp, METHODS, Monitor, SolveError};
use serde_json::Value;

const POWERS: [f64; 6] = [1.0, 1.3, 1.5, 2.0, 3.0, 4.0];

fn normal(n: usize, d: usize, seed: u64) -> Mat<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(n, d, |_, _| StandardNormal.sample(&mut rng))
}

/// Every seventh row is heavy.
fn heavy(n: usize, d: usize, seed: u64) -> Mat<f64> {
    let a = normal(n, d, seed);
    Mat::from_fn(n, d, |i, j| if i % 7 == 0 { 10.0 * a[(i, j)] } else { a[(i, j)] })
}

fn near(a: &[f64], b: &[f64], tolerance: f64) {
    let scale = 1.0 + dense::norm_inf(b);
    assert!(
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= tolerance * scale),
        "{a:?} {b:?}"
    );
}

fn exact(a: &Mat<f64>, p: f64) -> Vec<f64> {
    let s = sensitivities(&a.clone().into(), p, Sensitivity::Exact, 0).unwrap();
    assert!(s.ratio() < 1.0 + 1e-4, "p = {p}: {}", s.ratio());
    s.lower
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn golden_values_of_linear_programming_and_newton() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/solve/lp-sensitivity-sampling.json"))
            .unwrap();
    let (n, d) = (golden["n"].as_u64().unwrap() as usize, golden["d"].as_u64().unwrap() as usize);
    let flat = floats(&golden["a"]);
    let a = Mat::from_fn(n, d, |i, j| flat[i * d + j]);
    for case in golden["sensitivity"].as_array().unwrap() {
        let (p, want) = (case["p"].as_f64().unwrap(), floats(&case["values"]));
        near(&exact(&a, p), &want, 1e-4);
        // Certified: the true value lies between the bounds of the rough ones too.
        let rough = sensitivities(&a.clone().into(), p, Sensitivity::Irls, 0).unwrap();
        for (i, want) in want.iter().enumerate() {
            let between = rough.lower[i] <= want * (1.0 + 1e-6) && *want <= rough.upper[i] * (1.0 + 1e-6);
            assert!(between, "p = {p}, row {i}: {} {} {}", rough.lower[i], want, rough.upper[i]);
        }
        assert!(rough.ratio() < 1.1, "p = {p}: {}", rough.ratio());
    }
    for case in golden["lewis"].as_array().unwrap() {
        let w = lewis(&a.clone().into(), case["p"].as_f64().unwrap(), 1e-12, 2000).unwrap();
        near(&w.weights, &floats(&case["values"]), 1e-10);
    }
}

#[test]
fn at_2_sensitivity_is_leverage() {
    let a = heavy(60, 5, 1);
    let tau = leverage(&a.clone().into()).unwrap();
    near(&exact(&a, 2.0), &tau, 1e-12);
    assert!((tau.iter().sum::<f64>() - 5.0).abs() < 1e-12);
    let settings = |scheme| LpSettings {
        p: 2.0,
        scheme,
        rows: Some(20),
        sensitivity: Sensitivity::Exact,
        seed: 3,
        ..Default::default()
    };
    let [s, t] = [Scheme::Sensitivity, Scheme::Leverage]
        .map(|s| select(&a.clone().into(), None, &settings(s)).unwrap());
    assert_eq!(s.rows, t.rows);
    near(&s.weights, &t.weights, 1e-9);
}

#[test]
fn scores_do_not_change_with_the_basis() {
    let (a, g) = (heavy(50, 3, 2), normal(3, 3, 9));
    let b = &a * &g;
    for p in POWERS {
        near(&exact(&b, p), &exact(&a, p), 1e-5);
        let [w, v] = [&a, &b].map(|a| lewis(&a.clone().into(), p, 1e-12, 2000).unwrap());
        near(&v.weights, &w.weights, 1e-9);
        assert!(w.residual <= 1e-10 && (w.weights.iter().sum::<f64>() - 3.0).abs() < 1e-9);
    }
}

#[test]
fn copies_zero_rows_and_orthogonal_rows() {
    let a = heavy(30, 3, 4);
    for p in POWERS {
        let s = exact(&a, p);
        // Row 5 as two copies of 2^{−1/p}; then as two plain copies.
        let half = 2_f64.powf(-1.0 / p);
        let split = Mat::from_fn(31, 3, |i, j| if i == 5 || i == 30 { half * a[(5, j)] } else { a[(i, j)] });
        let t = exact(&split, p);
        assert!(
            (t[5] - s[5] / 2.0).abs() < 1e-5 && (t[30] - s[5] / 2.0).abs() < 1e-5,
            "{p}: {} {}",
            t[5],
            s[5]
        );
        let double = Mat::from_fn(31, 3, |i, j| a[(if i == 30 { 5 } else { i }, j)]);
        let t = exact(&double, p);
        assert!((t[5] - s[5] / (1.0 + s[5])).abs() < 1e-5, "{p}: {} {}", t[5], s[5]);
        // A zero row and one of a direction of its own.
        let wide = Mat::from_fn(32, 4, |i, j| match i {
            30 => 0.0,
            31 => f64::from(j == 3),
            _ if j == 3 => 0.0,
            _ => a[(i, j)],
        });
        let t = exact(&wide, p);
        near(&t[..30], &s, 1e-5);
        assert!(t[30].abs() < 1e-300 && (t[31] - 1.0).abs() < 1e-9, "{p}: {t:?}");
    }
}

#[test]
fn relations_of_the_scores() {
    let a = heavy(80, 4, 5);
    let tau = leverage(&a.clone().into()).unwrap();
    let mut before = 0.0;
    for p in POWERS {
        let s = sensitivities(&a.clone().into(), p, Sensitivity::Exact, 0).unwrap();
        let w = lewis(&a.clone().into(), p, 1e-12, 2000).unwrap().weights;
        let bound = sensitivities(&a.clone().into(), p, Sensitivity::LewisBound, 0).unwrap();
        for i in 0..80 {
            let (low, high) = (s.lower[i], s.upper[i]);
            assert!(bound.lower[i] <= high * (1.0 + 1e-9) && low <= bound.upper[i] * (1.0 + 1e-9), "{p}");
            if p <= 2.0 {
                assert!(
                    low <= w[i] * (1.0 + 1e-9) && w[i] <= 4_f64.powf(1.0 - p / 2.0) * high * (1.0 + 1e-9)
                );
                assert!(low <= tau[i].powf(p / 2.0) * (1.0 + 1e-9));
            } else {
                assert!(low <= 4_f64.powf(p / 2.0 - 1.0) * w[i] * (1.0 + 1e-9));
            }
        }
        let total = s.total();
        assert!(total > 1.0 && total <= 4_f64.powf((p / 2.0).max(1.0)) + 1e-3, "{p}: {total}");
        assert!(total > before, "𝔖 rises with p here");
        before = total;
    }
}

#[test]
fn probabilities_add_up() {
    // By hand: 10 is certain; of the rest, 1 + 1 + 2 with α = 4.
    let q = probabilities(&[10.0, 1.0, 1.0, 2.0, 0.0], 2).unwrap();
    near(&q, &[1.0, 0.25, 0.25, 0.5, 0.0], 1e-15);
    let s: Vec<f64> = (1..200).map(|i| f64::from(i).powi(-2)).collect();
    for m in [1, 5, 50, 198, 199, 300] {
        let q = probabilities(&s, m).unwrap();
        assert!((q.iter().sum::<f64>() - m.min(199) as f64).abs() < 1e-9, "{m}");
        assert!(q.windows(2).all(|w| w[0] >= w[1]) && q.iter().all(|q| *q > 0.0 && *q <= 1.0));
    }
}

#[test]
fn all_rows_are_the_matrix_itself() {
    let a = Design::from(heavy(40, 3, 6));
    for scheme in
        [Scheme::Lewis, Scheme::Sensitivity, Scheme::RootLeverage, Scheme::Leverage, Scheme::Uniform]
    {
        let settings = LpSettings { scheme, rows: Some(40), ..Default::default() };
        let s = select(&a, None, &settings).unwrap();
        assert_eq!(s.rows, (0..40).collect::<Vec<usize>>(), "{scheme:?}");
        assert!(s.weights.iter().all(|w| *w == 1.0));
        assert_eq!(s.scaled(&a, 1.0), a);
    }
}

#[test]
fn the_mean_of_the_sampled_norm_is_the_norm() {
    let a = Design::from(heavy(120, 3, 7));
    let x = [0.3, -1.2, 0.8];
    let value = |a: &Design, p: f64| {
        let mut y = vec![0.0; a.n_rows()];
        a.apply(&x, &mut y);
        y.iter().map(|v| v.abs().powf(p)).sum::<f64>()
    };
    for (p, scheme) in [
        (1.0, Scheme::Lewis),
        (1.0, Scheme::RootLeverage),
        (1.5, Scheme::Sensitivity),
        (3.0, Scheme::LeverageSensitivity),
        (3.0, Scheme::Uniform),
    ] {
        let settings = LpSettings { p, scheme, rows: Some(20), ..Default::default() };
        let fixed = scores(&a, &settings).unwrap();
        let want = value(&a, p);
        let values: Vec<f64> = (0..2000)
            .map(|seed| {
                let s = match scheme {
                    Scheme::RootLeverage => select(&a, None, &LpSettings { seed, ..settings.clone() }),
                    _ => sample(&fixed, 20, seed),
                };
                value(&s.unwrap().scaled(&a, p), p)
            })
            .collect();
        let mean = values.iter().sum::<f64>() / 2000.0;
        let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2000.0 / 2000.0).sqrt();
        assert!((mean - want).abs() < 3.0 * spread, "{scheme:?}, p = {p}: {mean} {want} ± {spread}");
        assert!(spread > 0.0 && spread < 0.05 * want);
    }
}

#[test]
fn one_pass_over_scores_gives_the_same_sample() {
    let s: Vec<f64> = (0..3000).map(|i| if i % 50 == 7 { 5.0 } else { f64::from(i % 11) * 0.01 }).collect();
    for (m, block) in [(10, 1), (100, 17), (400, 1000), (5000, 64)] {
        let mut sampler = Sampler::new(m, 11).unwrap();
        let mut most = 0;
        for part in s.chunks(block) {
            most = most.max(sampler.push(part).unwrap().len());
        }
        let (one, all) = (sampler.finish(), sample(&s, m, 11).unwrap());
        assert_eq!(one.rows, all.rows);
        near(&one.weights, &all.weights, 1e-9);
        assert!((one.expected - all.expected).abs() < 1e-6 && (one.total - all.total).abs() < 1e-9);
        assert!(most <= 2 * m + block.max(50), "{most} rows held for m = {m}");
    }
}

#[test]
fn two_passes_over_blocks_are_leverage_sampling() {
    // Pass 1: a factor. Pass 2: scores of each block by it.
    let a = heavy(500, 4, 12);
    let t = Whitening::of(a.as_ref()).unwrap();
    let mut sampler = Sampler::new(40, 2).unwrap();
    for k in 0..10 {
        sampler.push(&t.leverage(a.as_ref().subrows(50 * k, 50)).unwrap()).unwrap();
    }
    let settings = LpSettings { scheme: Scheme::Leverage, rows: Some(40), seed: 2, ..Default::default() };
    assert_eq!(sampler.finish().rows, select(&a.into(), None, &settings).unwrap().rows);
}

#[test]
fn one_pass_coreset_keeps_the_norms() {
    let a = heavy(4000, 4, 13);
    for (p, scheme) in
        [(1.0, Scheme::Lewis), (1.0, Scheme::RootLeverage), (3.0, Scheme::Lewis), (1.0, Scheme::Leverage)]
    {
        let settings = LpSettings { p, scheme, rows: Some(300), ..Default::default() };
        let by = |size: usize| {
            let mut c = Coreset::new(4, &settings).unwrap();
            let mut at = 0;
            while at < 4000 {
                let count = size.min(4000 - at);
                c.push(a.as_ref().subrows(at, count)).unwrap();
                at += count;
            }
            assert_eq!(c.rows_read(), 4000);
            c.finish().unwrap()
        };
        let c = by(128);
        assert_eq!(c, by(333), "blocks do not matter");
        assert!(c.indices.windows(2).all(|w| w[0] < w[1]) && c.indices.len() < 400);
        for (k, i) in c.indices.iter().enumerate() {
            assert!((0..4).all(|j| c.rows[(k, j)] == a[(*i, j)]));
        }
        for seed in 0..10 {
            let x = normal(4, 1, 100 + seed);
            let sum = |y: &Mat<f64>, w: Option<&[f64]>| -> f64 {
                (0..y.nrows()).map(|i| w.map_or(1.0, |w| w[i]) * y[(i, 0)].abs().powf(p)).sum()
            };
            let ratio = sum(&(&c.rows * &x), Some(&c.weights)) / sum(&(&a * &x), None);
            assert!((ratio - 1.0).abs() < 0.35, "{scheme:?}, p = {p}: {ratio}");
        }
    }
}

#[test]
fn approximate_scores_are_within_a_constant() {
    let a = Design::from(heavy(6000, 4, 14));
    for scheme in [Scheme::Lewis, Scheme::RootLeverage, Scheme::Leverage] {
        for p in [1.0, 1.5] {
            let settings = LpSettings { p, scheme, rows: Some(100), ..Default::default() };
            let s = scores(&a, &settings).unwrap();
            let t = scores(&a, &LpSettings { approximate: true, ..settings }).unwrap();
            let worst = s.iter().zip(&t).map(|(s, t)| (s / t).max(t / s)).fold(1.0, f64::max);
            assert!(worst > 1.0 && worst < 2.5, "{scheme:?}, p = {p}: {worst}");
        }
    }
    // Sensitivities against a core-set.
    let a = Design::from(heavy(600, 4, 15));
    let s = sensitivities(&a, 1.0, Sensitivity::Irls, 0).unwrap().lower;
    let t = sensitivities(&a, 1.0, Sensitivity::Coreset { rows: 200 }, 0).unwrap().upper;
    let worst = s.iter().zip(&t).map(|(s, t)| (s / t).max(t / s)).fold(1.0, f64::max);
    assert!(worst < 2.0, "{worst}");
    assert!(matches!(
        sensitivities(&a, 1.0, Sensitivity::Coreset { rows: 1 }, 0),
        Err(SolveError::Breakdown { .. })
    ));
}

fn sparse(a: &Mat<f64>) -> Design {
    let entries: Vec<_> = (0..a.nrows())
        .flat_map(|i| (0..a.ncols()).map(move |j| (i, j)))
        .filter(|at| a[*at] != 0.0)
        .map(|(i, j)| (i, j, a[(i, j)]))
        .collect();
    Csc::from_triplets(a.nrows(), a.ncols(), &entries).unwrap().into()
}

#[test]
fn sparse_designs_seeds_and_threads() {
    let a =
        Mat::from_fn(5000, 5, |i, j| if (i + j) % 3 == 0 { ((i * 7 + j) as f64 * 0.3).sin() } else { 0.0 });
    let b: Vec<f64> = (0..5000).map(|i| a[(i, 0)] - a[(i, 3)] + (i as f64 * 0.9).cos()).collect();
    assert_eq!(augmented(&sparse(&a), &b).n_cols(), 6);
    for approximate in [false, true] {
        let settings = LpSettings { rows: Some(200), approximate, ..Default::default() };
        let run = |a: &Design, seed| {
            let settings = LpSettings { seed, ..settings.clone() };
            solve(a, &b, &settings, &mut Monitor::silent()).unwrap()
        };
        let (s, t) = (run(&a.clone().into(), 1), run(&sparse(&a), 1));
        assert_eq!(s.x.sample.rows, t.x.sample.rows);
        near(&s.x.x, &t.x.x, 1e-7);
        assert_ne!(s.x.sample.rows, run(&a.clone().into(), 2).x.sample.rows);
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| run(&a.clone().into(), 1));
            assert_eq!((again.x, again.objective.to_bits()), (s.x.clone(), s.objective.to_bits()));
        }
    }
}

#[test]
fn rank_deficient_duplicate_and_short_designs() {
    // Column 2 is a sum, rows 0..40 come twice, some are 0.
    let base = heavy(40, 2, 16);
    let a = Design::from(Mat::from_fn(100, 3, |i, j| match (i, j) {
        (80.., _) => 0.0,
        (_, 2) => base[(i % 40, 0)] + base[(i % 40, 1)],
        _ => base[(i % 40, j)],
    }));
    let b: Vec<f64> = (0..100).map(|i| f64::from(i % 5)).collect();
    for (p, scheme) in [
        (1.0, Scheme::Lewis),
        (1.0, Scheme::Sensitivity),
        (1.5, Scheme::RootLeverage),
        (3.0, Scheme::LeverageSensitivity),
        (4.0, Scheme::Lewis),
        (1.0, Scheme::Uniform),
    ] {
        let settings = LpSettings { p, scheme, rows: Some(60), ..Default::default() };
        let t = scores(&a, &settings).unwrap();
        assert!(
            scheme == Scheme::Uniform || t[80..].iter().all(|t| *t == 0.0),
            "{scheme:?}: zero rows have 0"
        );
        assert!(
            (0..40).all(|i| (t[i] - t[i + 40]).abs() < 1e-6 * (1.0 + t[i])),
            "{scheme:?}: copies have the same"
        );
        let s = solve(&a, &b, &settings, &mut Monitor::silent()).unwrap();
        assert!(s.x.x.iter().all(|v| v.is_finite()) && s.residual("rank") == Some(2.0), "{scheme:?}");
        assert!(s.status.is_converged(), "{scheme:?}: {:?} {:?}", s.status, s.residuals);
        // Fewer rows than columns.
        let short = Design::from(normal(2, 5, 17));
        let settings = LpSettings { rows: Some(10), ..settings };
        let s = solve(&short, &[1.0, -1.0], &settings, &mut Monitor::silent()).unwrap();
        assert!(s.objective < 1e-9, "{scheme:?}, p = {p}: {}", s.objective);
        let zero = Design::from(Mat::zeros(6, 2));
        let s = solve(&zero, &[0.0; 6], &settings, &mut Monitor::silent()).unwrap();
        assert_eq!((s.x.x, s.objective), (vec![0.0; 2], 0.0), "{scheme:?}");
    }
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let a = Design::from(normal(20, 3, 18));
    let b = vec![1.0; 20];
    let run = |a: &Design, b: &[f64], s: &LpSettings| solve(a, b, s, &mut Monitor::silent()).unwrap_err();
    let base = LpSettings::default();
    for p in [0.5, f64::NAN, f64::INFINITY, -1.0, 101.0] {
        let e = run(&a, &b, &LpSettings { p, ..base.clone() });
        assert!(matches!(e, SolveError::Setting { field: "p", .. }), "{e}");
        assert!(sensitivities(&a, p, Sensitivity::Irls, 0).is_err());
    }
    for (p, scheme, approximate) in [
        (3.0, Scheme::RootLeverage, false),
        (1.0, Scheme::LeverageSensitivity, false),
        (3.0, Scheme::Lewis, true),
    ] {
        let e = run(&a, &b, &LpSettings { p, scheme, approximate, ..base.clone() });
        assert!(matches!(e, SolveError::Setting { field: "p", .. }), "{e}");
    }
    for scheme in [Scheme::Uniform, Scheme::Leverage] {
        let e = run(&a, &b, &LpSettings { scheme, ..base.clone() });
        assert!(matches!(e, SolveError::Setting { field: "rows", .. }), "{e}");
    }
    for epsilon in [0.0, f64::NAN, f64::INFINITY] {
        let e = run(&a, &b, &LpSettings { epsilon, ..base.clone() });
        assert!(matches!(e, SolveError::Setting { field: "epsilon", .. }), "{e}");
    }
    assert!(matches!(run(&a, &b, &LpSettings { rows: Some(0), ..base.clone() }), SolveError::Setting { .. }));
    assert!(matches!(run(&a, &b[1..], &base), SolveError::Dimension { argument: "b", .. }));
    let mut bad = b.clone();
    bad[3] = f64::NAN;
    assert_eq!(run(&a, &bad, &base), SolveError::NonFinite { argument: "b", count: 1, first: 3 });
    let mut holed = normal(20, 3, 18);
    holed[(2, 1)] = f64::INFINITY;
    for scheme in [Scheme::Lewis, Scheme::Sensitivity, Scheme::Uniform] {
        let e = run(&holed.clone().into(), &b, &LpSettings { scheme, rows: Some(9), ..base.clone() });
        assert!(matches!(e, SolveError::NonFinite { .. }), "{e}");
    }
    assert!(matches!(run(&Mat::zeros(0, 3).into(), &[], &base), SolveError::Empty { .. }));
    assert!(matches!(run(&Mat::zeros(3, 0).into(), &[0.0; 3], &base), SolveError::Empty { .. }));
    assert!(matches!(probabilities(&[1.0, -1.0], 1), Err(SolveError::Invalid { .. })));
    assert!(matches!(probabilities(&[1.0, f64::NAN], 1), Err(SolveError::NonFinite { .. })));
    assert!(matches!(Coreset::new(3, &base), Err(SolveError::Setting { field: "rows", .. })));
    let mut c = Coreset::new(3, &LpSettings { rows: Some(5), ..base.clone() }).unwrap();
    assert!(matches!(c.push(holed.as_ref()), Err(SolveError::NonFinite { .. })));
    assert!(matches!(c.push(normal(2, 4, 1).as_ref()), Err(SolveError::Dimension { .. })));
    assert!(matches!(c.finish(), Err(SolveError::Empty { .. })));
    assert!(serde_json::from_str::<LpSettings>(r#"{"q": 1}"#).is_err());
    let text = r#"{"scheme": "root-leverage", "sensitivity": {"coreset": {"rows": 9}}}"#;
    assert_eq!(
        serde_json::from_str::<LpSettings>(text).unwrap().sensitivity,
        Sensitivity::Coreset { rows: 9 }
    );
    assert!(METHODS.iter().any(|m| m.slug == "lp-sensitivity-sampling"));
}

#[test]
fn the_number_of_rows_follows_the_bound() {
    let rows = |p, scheme, total, d| LpSettings { p, scheme, ..Default::default() }.sample_rows(total, d);
    assert_eq!(rows(1.0, Scheme::Lewis, 9.0, 9.0), 36);
    assert_eq!(rows(4.0, Scheme::Lewis, 9.0, 9.0), 324);
    assert_eq!(rows(1.0, Scheme::Sensitivity, 4.0, 16.0), 64);
    assert_eq!(rows(1.0, Scheme::Sensitivity, 8.0, 16.0), 128);
    assert_eq!(rows(4.0, Scheme::Sensitivity, 4.0, 16.0), 32);
    assert_eq!(rows(4.0, Scheme::LeverageSensitivity, 20.0, 16.0), 64);
}
