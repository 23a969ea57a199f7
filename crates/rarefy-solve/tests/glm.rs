//! Sparse generalised linear models: oracles, equivalent problems, certificates, hostile input.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;

use faer::Mat;
use proptest::prelude::*;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::glm::{
    self, AlphaGrid, Coefficients, CrossValidationSettings, GlmSettings, GramChoice, Loss, Problem,
};
use rarefy_solve::{Csc, Design, LinOp, Monitor, SolveError, Status, TracePoint};
use serde_json::Value;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn sparse(x: &Mat<f64>) -> Design {
    let entries: Vec<_> = (0..x.nrows())
        .flat_map(|i| (0..x.ncols()).map(move |j| (i, j)))
        .filter(|&(i, j)| x[(i, j)] != 0.0)
        .map(|(i, j)| (i, j, x[(i, j)]))
        .collect();
    Csc::from_triplets(x.nrows(), x.ncols(), &entries).unwrap().into()
}

fn run(problem: &Problem<'_>, alpha: f64, settings: &GlmSettings) -> rarefy_solve::Solution<Coefficients> {
    glm::solve(problem, alpha, settings, None, &mut Monitor::silent()).unwrap()
}

fn random(n: usize, p: usize, density: f64, seed: u64) -> (Mat<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = Mat::from_fn(n, p, |_, _| {
        let v: f64 = rng.random_range(-1.0..1.0);
        if rng.random_range(0.0..1.0) < density { v } else { 0.0 }
    });
    let y = (0..n)
        .map(|i| {
            let z: f64 = (0..p).step_by(5).map(|j| x[(i, j)] * (1.0 + (j as f64).sin())).sum();
            z + 0.7 + 0.1 * rng.random_range(-1.0..1.0)
        })
        .collect();
    (x, y)
}

fn signs(y: &[f64]) -> Vec<f64> {
    let mut sorted = y.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    y.iter().map(|v| if *v > sorted[y.len() / 2] { 1.0 } else { -1.0 }).collect()
}

#[test]
fn golden_values_of_scikit_learn() {
    let text = include_str!("../../../tests/golden/solve/glm.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    let (n, p) = (golden["n"].as_u64().unwrap() as usize, golden["p"].as_u64().unwrap() as usize);
    let (x, y, s) = (floats(&golden["x"]), floats(&golden["y"]), floats(&golden["s"]));
    let label = floats(&golden["label"]);
    let x = Mat::from_fn(n, p, |i, j| x[i * p + j]);
    for design in [Design::from(x.clone()), sparse(&x)] {
        for case in golden["cases"].as_array().unwrap() {
            let mut settings: GlmSettings = serde_json::from_value(case["settings"].clone()).unwrap();
            settings.tolerance = 1e-13;
            let logistic = settings.loss == Loss::Logistic;
            let problem = Problem {
                x: &design,
                y: if logistic { &label } else { &y },
                sample_weight: case["weighted"].as_bool().unwrap().then_some(&s),
            };
            let found = run(&problem, case["alpha"].as_f64().unwrap(), &settings);
            let tolerance = if logistic { 1e-5 } else { 1e-7 };
            for (a, b) in found.x.to_dense().iter().zip(floats(&case["coef"])) {
                assert!((a - b).abs() < tolerance, "{}: {a} {b}", case["name"]);
            }
            let b = case["intercept"].as_f64().unwrap();
            assert!((found.x.intercept - b).abs() < tolerance, "{}: {} {b}", case["name"], found.x.intercept);
        }
    }
}

/// `objective ≤ optimum + gap` cannot be seen, but the optimality conditions can.
fn check_optimality(problem: &Problem<'_>, alpha: f64, settings: &GlmSettings, x: &Coefficients) {
    let z = x.predict(problem.x).unwrap();
    let total: f64 = problem.sample_weight.map_or(problem.y.len() as f64, |s| s.iter().sum());
    let slope = |i: usize| {
        let (y, z) = (problem.y[i], z[i]);
        let s = problem.sample_weight.map_or(1.0, |s| s[i]);
        s / total
            * match settings.loss {
                Loss::Logistic => y / (1.0 + (y * z).exp()),
                Loss::Huber { delta } => (y - z).clamp(-delta, delta),
                _ => y - z,
            }
    };
    let theta: Vec<f64> = (0..z.len()).map(slope).collect();
    let (w, mut g) = (x.to_dense(), vec![0.0; problem.x.n_cols()]);
    problem.x.apply_t(&theta, &mut g);
    for j in 0..w.len() {
        let o = settings.penalty_weights.as_ref().map_or(1.0, |v| v[j]);
        let (l1, l2) = (alpha * o * settings.l1_ratio, alpha * o * (1.0 - settings.l1_ratio));
        let c = g[j] - l2 * w[j];
        let bad = if w[j] != 0.0 {
            (c - l1 * w[j].signum()).abs()
        } else if settings.positive {
            (c - l1).max(0.0)
        } else {
            (c.abs() - l1).max(0.0)
        };
        assert!(bad < 1e-5, "feature {j}: w {} c {c} l1 {l1}", w[j]);
    }
    if settings.fit_intercept {
        assert!(theta.iter().sum::<f64>().abs() < 1e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn optimality_conditions_hold(
        seed in 0_u64..1000, n in 5_usize..40, p in 1_usize..60, ratio in 0.02..0.9_f64, kind in 0_usize..3,
        l1_ratio in prop::sample::select(vec![1.0, 0.5]), positive in any::<bool>(), fit_intercept in any::<bool>(),
        weighted in any::<bool>(), is_sparse in any::<bool>(), gram in any::<bool>(),
    ) {
        let (m, y) = random(n, p, 0.5, seed);
        let x = if is_sparse { sparse(&m) } else { Design::from(m) };
        let loss = [Loss::Squared, Loss::Logistic, Loss::Huber { delta: 0.4 }][kind];
        let y = if kind == 1 { signs(&y) } else { y };
        let s: Vec<f64> = (0..n).map(|i| 0.5 + (i % 3) as f64).collect();
        let problem = Problem { x: &x, y: &y, sample_weight: weighted.then_some(&s) };
        let settings = GlmSettings {
            loss, l1_ratio, positive, fit_intercept, tolerance: 1e-11,
            penalty_weights: weighted.then(|| (0..p).map(|j| 1.0 + 0.2 * (j % 4) as f64).collect()),
            gram: if gram { GramChoice::Always } else { GramChoice::Never },
            max_iterations: 2000,
        };
        let top = glm::alpha_max(&problem, &settings).unwrap();
        prop_assume!(top > 1e-3);
        let at_top = run(&problem, top * 1.0001, &settings);
        prop_assert_eq!(at_top.x.nnz(), 0);
        let found = run(&problem, ratio * top, &settings);
        prop_assert!(matches!(found.status, Status::Converged), "{:?} {:?}", found.status, found.residuals);
        check_optimality(&problem, ratio * top, &settings, &found.x);
        // Warm from the answer: nothing is left to do.
        let again = glm::solve(&problem, ratio * top, &settings, Some(&found.x), &mut Monitor::silent()).unwrap();
        prop_assert!(again.iterations <= 3);
        prop_assert!((again.objective - found.objective).abs() <= 1e-9 * (1.0 + found.objective));
    }
}

/// The objective of these falls by less than its rounding long before the gap is small: a line search that
/// compares objectives, a gap that is a difference of objectives, or steps with the curvature of Huber's
/// majorising parabola stall on them. The gap itself is known to about ε‖θ‖₁ max|z|, 1e-14 or so of the loss.
#[test]
fn gaps_far_below_the_rounding_of_the_objective() {
    let cases = [
        (326, 25, 51, 0.1, false),
        (1002, 19, 47, 0.3, true),
        (1301, 12, 40, 0.3, false),
        (1024, 33, 38, 0.02, false),
        (131, 12, 52, 0.3, false),
        (235, 5, 47, 0.1, true),
        (1221, 12, 3, 0.02, false),
    ];
    for (seed, n, p, ratio, positive) in cases {
        let (m, y) = random(n, p, 0.5, seed);
        let x = Design::from(m);
        for fit_intercept in [true, false] {
            for l1_ratio in [1.0, 0.5] {
                for delta in [0.05, 0.4] {
                    let settings = GlmSettings {
                        loss: Loss::Huber { delta },
                        l1_ratio,
                        positive,
                        fit_intercept,
                        tolerance: 1e-12,
                        ..Default::default()
                    };
                    let problem = Problem::new(&x, &y);
                    let alpha = ratio * glm::alpha_max(&problem, &settings).unwrap();
                    let s = run(&problem, alpha, &settings);
                    assert_eq!(s.status, Status::Converged, "seed {seed}: {:?}", s.residuals);
                    check_optimality(&problem, alpha, &settings, &s.x);
                }
            }
        }
    }
    // Few distinct rows, many samples: the errors of the sums add up instead of cancelling.
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let n = 20_000;
    let kinds: Vec<[usize; 3]> =
        (0..n).map(|_| [0, 4, 8].map(|o| o + rng.random_range(0..4_usize))).collect();
    let entries: Vec<_> = kinds.iter().enumerate().flat_map(|(i, k)| k.map(|j| (i, j, 1.0))).collect();
    let x: Design = Csc::from_triplets(n, 12, &entries).unwrap().into();
    let y: Vec<f64> = kinds
        .iter()
        .map(|k| if rng.random_range(0.0..12.0) < (k[0] + k[1]) as f64 { 1.0 } else { -1.0 })
        .collect();
    for fit_intercept in [true, false] {
        let settings =
            GlmSettings { loss: Loss::Logistic, fit_intercept, tolerance: 1e-13, ..Default::default() };
        let problem = Problem::new(&x, &y);
        let s = run(&problem, 0.05 * glm::alpha_max(&problem, &settings).unwrap(), &settings);
        assert_eq!(s.status, Status::Converged, "{:?}", s.residuals);
        assert!(s.iterations < 20);
    }
}

#[test]
fn equivalent_problems_have_the_same_answer() {
    let (m, y) = random(60, 25, 0.4, 3);
    let labels = signs(&y);
    let (a, b) = (Design::from(m.clone()), sparse(&m));
    for (loss, y) in [(Loss::Squared, &y), (Loss::Logistic, &labels), (Loss::Huber { delta: 0.5 }, &y)] {
        let settings = GlmSettings { loss, tolerance: 1e-12, ..Default::default() };
        let alpha = 0.1 * glm::alpha_max(&Problem::new(&a, y), &settings).unwrap();
        let base = run(&Problem::new(&a, y), alpha, &settings);
        let same = |other: &rarefy_solve::Solution<Coefficients>| {
            assert!((other.objective - base.objective).abs() < 1e-10, "{loss:?}");
            for (u, v) in other.x.to_dense().iter().zip(base.x.to_dense()) {
                assert!((u - v).abs() < 1e-5, "{loss:?}: {u} {v}");
            }
            assert!((other.x.intercept - base.x.intercept).abs() < 1e-5);
        };
        same(&run(&Problem::new(&b, y), alpha, &settings));
        for gram in [GramChoice::Always, GramChoice::Never] {
            same(&run(&Problem::new(&b, y), alpha, &GlmSettings { gram, ..settings.clone() }));
        }
        // A weight of 2 is a sample that occurs twice, a weight of 0 one that does not.
        let mut s = vec![1.0; 60];
        let mut rows: Vec<usize> = (0..60).filter(|i| i % 7 != 0).collect();
        (0..60).filter(|i| i % 7 == 0).for_each(|i| s[i] = 0.0);
        (0..60).filter(|i| i % 7 == 1).for_each(|i| {
            s[i] = 2.0;
            rows.push(i);
        });
        let x2 = b.select_rows(&rows);
        let y2: Vec<f64> = rows.iter().map(|i| y[*i]).collect();
        let twice = run(&Problem::new(&x2, &y2), alpha, &settings);
        let weighted = run(&Problem { x: &b, y, sample_weight: Some(&s) }, alpha, &settings);
        for (u, v) in twice.x.to_dense().iter().zip(weighted.x.to_dense()) {
            assert!((u - v).abs() < 1e-5, "{u} {v}");
        }
        // A path ends where a single solve ends.
        let grid = AlphaGrid { values: Some(vec![alpha, 5.0 * alpha, 2.0 * alpha]), ..Default::default() };
        let path = glm::path(&Problem::new(&a, y), &grid, &settings, &mut Monitor::silent()).unwrap();
        assert_eq!(path.alphas, [5.0 * alpha, 2.0 * alpha, alpha]);
        same(&path.solutions[2]);
        // Feature weights are a scaling of columns.
        let scaled = Design::from(Mat::from_fn(60, 25, |i, j| m[(i, j)] / (1.0 + (j % 3) as f64)));
        let weights = (0..25).map(|j| 1.0 + (j % 3) as f64).collect();
        let by_weight = run(
            &Problem::new(&a, y),
            alpha,
            &GlmSettings { penalty_weights: Some(weights), ..settings.clone() },
        );
        let by_scale = run(&Problem::new(&scaled, y), alpha, &settings);
        assert!((by_weight.objective - by_scale.objective).abs() < 1e-10);
    }
}

#[test]
fn degenerate_columns() {
    let (m, y) = random(30, 6, 1.0, 5);
    // Columns 6 and 7 repeat column 0, column 8 is constant, column 9 is zero.
    let x = Mat::from_fn(30, 10, |i, j| match j {
        0..6 => m[(i, j)],
        6 | 7 => m[(i, 0)],
        8 => 3.0,
        _ => 0.0,
    });
    for design in [Design::from(x.clone()), sparse(&x)] {
        for gram in [GramChoice::Always, GramChoice::Never] {
            let settings = GlmSettings { tolerance: 1e-11, gram, ..Default::default() };
            let problem = Problem::new(&design, &y);
            let found = run(&problem, 0.01, &settings);
            assert_eq!(found.status, Status::Converged);
            let w = found.x.to_dense();
            assert!(w[8] == 0.0 && w[9] == 0.0, "{w:?}");
            check_optimality(&problem, 0.01, &settings, &found.x);
        }
    }
    // No feature carries anything: the constant model.
    let none = Design::from(Mat::<f64>::zeros(30, 3));
    let found = run(&Problem::new(&none, &y), 0.1, &GlmSettings::default());
    assert_eq!((found.x.nnz(), found.status), (0, Status::Converged));
    let empty = Design::from(Mat::<f64>::zeros(30, 0));
    assert_eq!(run(&Problem::new(&empty, &y), 0.1, &GlmSettings::default()).x.nnz(), 0);
    // Constant targets.
    let found = run(&Problem::new(&none, &[2.0; 30]), 0.1, &GlmSettings::default());
    assert!(found.status.is_converged() && (found.x.intercept - 2.0).abs() < 1e-15);
}

#[test]
fn many_samples_and_many_features() {
    // Wide enough for the residual form, tall enough for the Gram form.
    for (n, p, density) in [(400, 900, 0.01), (900, 40, 0.3), (200, 300, 1.0)] {
        let (m, y) = random(n, p, density, 11);
        for x in [sparse(&m), Design::from(m)] {
            let settings = GlmSettings { tolerance: 1e-9, ..Default::default() };
            let problem = Problem::new(&x, &y);
            let grid = AlphaGrid { count: 20, ratio: 0.01, ..Default::default() };
            let path = glm::path(&problem, &grid, &settings, &mut Monitor::silent()).unwrap();
            assert_eq!(path.status, Status::Converged);
            for (a, s) in path.alphas.iter().zip(&path.solutions) {
                check_optimality(&problem, *a, &settings, &s.x);
            }
        }
    }
}

#[test]
fn same_bits_on_one_and_two_threads() {
    let (m, y) = random(3000, 60, 0.5, 2);
    let x = sparse(&m);
    let labels = signs(&y);
    for (loss, y) in [(Loss::Squared, &y), (Loss::Logistic, &labels)] {
        let settings = GlmSettings { loss, ..Default::default() };
        let grid = AlphaGrid { count: 5, ratio: 0.05, ..Default::default() };
        let answers: Vec<Vec<Coefficients>> = [1, 2]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let path =
                        glm::path(&Problem::new(&x, y), &grid, &settings, &mut Monitor::silent()).unwrap();
                    path.solutions.into_iter().map(|s| s.x).collect()
                })
            })
            .into();
        assert_eq!(answers[0], answers[1]);
    }
}

#[test]
fn cross_validation_finds_a_sensible_alpha() {
    let (m, y) = random(120, 40, 0.5, 8);
    let x = sparse(&m);
    let settings = CrossValidationSettings {
        grid: AlphaGrid { count: 20, ratio: 1e-3, ..Default::default() },
        ..Default::default()
    };
    let problem = Problem::new(&x, &y);
    let cv = glm::cross_validate(&problem, &settings, &mut Monitor::silent()).unwrap();
    assert_eq!(cv, {
        let mut again = glm::cross_validate(&problem, &settings, &mut Monitor::silent()).unwrap();
        again.solution.seconds = cv.solution.seconds;
        again.solution.trace.clone_from(&cv.solution.trace);
        again
    });
    assert!(cv.best > 0 && cv.one_standard_error <= cv.best);
    assert!(cv.mean_loss[cv.best] < 0.1 * cv.mean_loss[0], "{:?}", cv.mean_loss);
    let w = cv.solution.x.to_dense();
    assert!((0..40).step_by(5).filter(|j| w[*j] != 0.0).count() >= 7);
    for folds in [0, 1, 121] {
        let bad = CrossValidationSettings { folds, ..settings.clone() };
        let e = glm::cross_validate(&problem, &bad, &mut Monitor::silent()).unwrap_err();
        assert!(matches!(e, SolveError::Setting { field: "folds", .. }));
    }
}

#[test]
fn hostile_input_is_named() {
    let x = Design::from(Mat::from_fn(3, 2, |i, j| (i + j) as f64));
    let y = [1.0, 2.0, 3.0];
    let error = |x: &Design, y: &[f64], s: Option<&[f64]>, alpha: f64, settings: &GlmSettings| {
        let problem = Problem { x, y, sample_weight: s };
        glm::solve(&problem, alpha, settings, None, &mut Monitor::silent()).unwrap_err().to_string()
    };
    let fine = GlmSettings::default();
    assert!(error(&x, &y[..2], None, 1.0, &fine).starts_with("`y`: expected 3 (rows of x), found 2"));
    assert!(error(&x, &y, Some(&[1.0]), 1.0, &fine).contains("`sample_weight`: expected 3"));
    assert!(error(&x, &y, Some(&[1.0, -1.0, 0.0]), 1.0, &fine).contains("at least 0"));
    assert!(error(&x, &y, Some(&[0.0; 3]), 1.0, &fine).contains("zeros only"));
    assert!(error(&x, &[1.0, f64::NAN, 0.0], None, 1.0, &fine).contains("`y`: 1 values are not finite"));
    let mut bad = Mat::from_fn(3, 2, |_, _| 1.0);
    bad[(1, 1)] = f64::INFINITY;
    assert!(error(&bad.into(), &y, None, 1.0, &fine).contains("`x`: 1 values"));
    assert!(error(&Mat::<f64>::zeros(0, 2).into(), &[], None, 1.0, &fine).contains("`x` is empty"));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(error(&x, &y, None, alpha, &fine).contains("`alpha`"));
    }
    let with = |f: fn(&mut GlmSettings)| {
        let mut s = GlmSettings::default();
        f(&mut s);
        s
    };
    let logistic = with(|s| s.loss = Loss::Logistic);
    assert!(error(&x, &y, None, 1.0, &logistic).contains("-1 or 1"));
    assert!(error(&x, &[1.0; 3], None, 1.0, &logistic).contains("one class only"));
    assert!(error(&x, &[1.0, 1.0, -1.0], Some(&[1.0, 1.0, 0.0]), 1.0, &logistic).contains("one class"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.l1_ratio = 0.0)).contains("`l1_ratio`"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.tolerance = -1.0)).contains("`tolerance`"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.max_iterations = 0)).contains("`max_iterations`"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.loss = Loss::Huber { delta: 0.0 })).contains("delta"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.penalty_weights = Some(vec![1.0]))).contains("expected 2"));
    assert!(error(&x, &y, None, 1.0, &with(|s| s.penalty_weights = Some(vec![1.0, 0.0]))).contains("> 0"));
    let warm = Coefficients { n_features: 3, ..Default::default() };
    let e = glm::solve(&Problem::new(&x, &y), 1.0, &fine, Some(&warm), &mut Monitor::silent()).unwrap_err();
    assert!(e.to_string().contains("`warm`: expected 2"));
    assert!(serde_json::from_str::<GlmSettings>(r#"{"tolerence": 1}"#).is_err());
    let huge = Design::from(Mat::from_fn(3, 2, |i, j| 1e200 * (1.0 + (i * j) as f64)));
    let e = glm::solve(&Problem::new(&huge, &[1e200, 0.0, 1.0]), 1.0, &fine, None, &mut Monitor::silent());
    assert!(e.is_err() || e.unwrap().x.values.iter().all(|v| v.is_finite()));
}

#[test]
fn the_monitor_stops_a_path() {
    let (m, y) = random(50, 20, 0.5, 1);
    let x = Design::from(m);
    let mut calls = 0;
    let mut stop = |_: &TracePoint| {
        calls += 1;
        if calls > 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    let grid = AlphaGrid::default();
    let path = glm::path(&Problem::new(&x, &y), &grid, &GlmSettings::default(), &mut monitor).unwrap();
    assert_eq!(path.status, Status::Stopped);
    assert!(path.solutions.len() < 5);
}
