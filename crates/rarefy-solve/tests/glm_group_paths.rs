//! Paths and cross-validation of group models: peers, single solves, stratified folds, the concave penalty.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;

use faer::Mat;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::glm::{
    AlphaGrid, CrossValidationSettings, GroupLoss, GroupPenalty, GroupSettings, Loss, Problem,
    group_alpha_max, group_cross_validate, group_path, solve_group,
};
use rarefy_solve::{Design, Monitor, SolveError, Status, TracePoint};
use serde_json::Value;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn random(n: usize, p: usize, seed: u64) -> (Mat<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = Mat::from_fn(n, p, |_, _| rng.random_range(-1.0..1.0));
    let y = (0..n).map(|i| 0.5 + 2.0 * x[(i, 0)] - x[(i, 3)] + 0.3 * rng.random_range(-1.0..1.0)).collect();
    (x, y)
}

/// Three classes by the sign and size of the linear score.
fn classes(y: &[f64]) -> Vec<f64> {
    y.iter().map(|v| f64::from(u8::from(*v > 0.0)) + f64::from(u8::from(*v > 1.0))).collect()
}

fn grid(values: &[f64]) -> AlphaGrid {
    AlphaGrid { values: Some(values.to_vec()), ..Default::default() }
}

#[test]
fn golden_paths_of_celer_and_scikit_learn() {
    let text = include_str!("../../../tests/golden/solve/group-path.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    let (n, p) = (golden["n"].as_u64().unwrap() as usize, golden["p"].as_u64().unwrap() as usize);
    let (x, y) = (floats(&golden["x"]), floats(&golden["y"]));
    let x = Design::from(Mat::from_fn(n, p, |i, j| x[i * p + j]));
    for case in golden["cases"].as_array().unwrap() {
        let settings = GroupSettings {
            groups: Some(serde_json::from_value(case["groups"].clone()).unwrap()),
            group_weights: Some(floats(&case["weights"])),
            fit_intercept: case["fit_intercept"].as_bool().unwrap(),
            tolerance: 1e-13,
            max_iterations: 5000,
            ..Default::default()
        };
        let alphas = floats(&case["alphas"]);
        let path =
            group_path(&Problem::new(&x, &y), &grid(&alphas), &settings, &mut Monitor::silent()).unwrap();
        assert_eq!(path.alphas, alphas);
        for (k, s) in path.solutions.iter().enumerate() {
            for (a, b) in s.x.coefficients.iter().zip(floats(&case["coef"][k])) {
                assert!((a - b).abs() < 1e-5, "{} {k}: {a} {b} {:?}", case["name"], s.residuals);
            }
            let b = case["intercept"][k].as_f64().unwrap();
            assert!((s.x.intercepts[0] - b).abs() < 1e-5, "{} {k}", case["name"]);
        }
    }
}

#[test]
fn a_path_holds_what_single_solves_find() {
    let (m, y) = random(60, 12, 1);
    let x = Design::from(m);
    let (labels, kinds): (Vec<f64>, _) =
        (y.iter().map(|v| if *v > 0.5 { 1.0 } else { -1.0 }).collect(), classes(&y));
    let groups: Vec<Vec<usize>> = (0..4).map(|g| (3 * g..3 * g + 3).collect()).collect();
    for (loss, y) in [
        (GroupLoss::Single(Loss::Squared), &y),
        (GroupLoss::Single(Loss::Logistic), &labels),
        (GroupLoss::Single(Loss::Huber { delta: 0.3 }), &y),
        (GroupLoss::Multinomial { classes: 3 }, &kinds),
    ] {
        let settings = GroupSettings {
            loss,
            groups: Some(groups.clone()),
            tolerance: 1e-9,
            max_iterations: 5000,
            ..Default::default()
        };
        let problem = Problem::new(&x, y);
        let top = group_alpha_max(&problem, &settings).unwrap();
        let one = |alpha: f64| solve_group(&problem, alpha, &settings, None, &mut Monitor::silent()).unwrap();
        assert!(one(1.0001 * top).x.coefficients.iter().all(|w| *w == 0.0), "{loss:?}");
        assert!(one(0.99 * top).x.coefficients.iter().any(|w| *w != 0.0), "{loss:?}");
        let coarse = AlphaGrid { count: 6, ratio: 0.02, ..Default::default() };
        let path = group_path(&problem, &coarse, &settings, &mut Monitor::silent()).unwrap();
        assert_eq!((path.status, path.solutions.len()), (Status::Converged, 6), "{loss:?}");
        assert!(path.solutions.windows(2).all(|w| w[1].objective <= w[0].objective));
        for (alpha, s) in path.alphas.iter().zip(&path.solutions) {
            let alone = one(*alpha);
            assert!(
                (s.objective - alone.objective).abs() < 1e-8 * (1.0 + alone.objective),
                "{loss:?} {alpha}"
            );
            // From the answer, nothing is left to do.
            let again = solve_group(&problem, *alpha, &settings, Some(&s.x), &mut Monitor::silent()).unwrap();
            assert!(again.status.is_converged() && again.iterations <= 1, "{loss:?} {}", again.iterations);
        }
    }
}

#[test]
fn cross_validation_of_groups_and_classes() {
    let (m, y) = random(90, 12, 2);
    let x = Design::from(m);
    let kinds = classes(&y);
    let groups: Vec<Vec<usize>> = (0..4).map(|g| (3 * g..3 * g + 3).collect()).collect();
    for (loss, y) in [(GroupLoss::Single(Loss::Squared), &y), (GroupLoss::Multinomial { classes: 3 }, &kinds)]
    {
        let settings = CrossValidationSettings {
            grid: AlphaGrid { count: 6, ratio: 2e-2, ..Default::default() },
            model: GroupSettings { loss, groups: Some(groups.clone()), ..Default::default() },
            ..Default::default()
        };
        let problem = Problem::new(&x, y);
        let cv = group_cross_validate(&problem, &settings, &mut Monitor::silent()).unwrap();
        assert!(cv.best > 0 && cv.one_standard_error <= cv.best, "{cv:?}");
        assert!(cv.mean_loss[cv.best] < 0.5 * cv.mean_loss[0], "{:?}", cv.mean_loss);
        let again = group_cross_validate(&problem, &settings, &mut Monitor::silent()).unwrap();
        assert_eq!((cv.mean_loss, cv.solution.x), (again.mean_loss, again.solution.x));
    }
}

#[test]
fn folds_keep_every_class() {
    // Two samples of class 2 among 60: without stratification most shuffles put both in one fold of two.
    let (m, y) = random(60, 6, 3);
    let x = Design::from(m);
    let mut kinds: Vec<f64> = y.iter().map(|v| f64::from(u8::from(*v > 0.5))).collect();
    (kinds[10], kinds[40]) = (2.0, 2.0);
    let model = GroupSettings { loss: GroupLoss::Multinomial { classes: 3 }, ..Default::default() };
    let grid = AlphaGrid { count: 3, ratio: 0.1, ..Default::default() };
    for seed in 0..20 {
        let settings = CrossValidationSettings { folds: 2, seed, grid: grid.clone(), model: model.clone() };
        let cv = group_cross_validate(&Problem::new(&x, &kinds), &settings, &mut Monitor::silent()).unwrap();
        assert!(cv.mean_loss.iter().all(|l| l.is_finite()));
    }
    // One sample only: some fold leaves none, and says so.
    kinds[40] = 0.0;
    let settings = CrossValidationSettings { folds: 2, seed: 0, grid, model: model.clone() };
    let e = group_cross_validate(&Problem::new(&x, &kinds), &settings, &mut Monitor::silent()).unwrap_err();
    assert!(e.to_string().contains("none of class 2"), "{e}");
    // A sample of weight 0 is none.
    let s: Vec<f64> = (0..60).map(|i| f64::from(u8::from(i != 10))).collect();
    let problem = Problem { x: &x, y: &kinds, sample_weight: Some(&s) };
    let e = solve_group(&problem, 0.1, &model, None, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Invalid { argument: "y", .. }));
    let settings = CrossValidationSettings { folds: 61, ..settings };
    let e = group_cross_validate(&Problem::new(&x, &y), &settings, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(
        e,
        SolveError::Setting { field: "folds", .. } | SolveError::Invalid { argument: "y", .. }
    ));
    type Settings = CrossValidationSettings<GroupSettings>;
    assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
    assert!(serde_json::from_str::<Settings>(r#"{"fold": 3}"#).is_err());
}

#[test]
fn a_concave_path_comes_from_above() {
    let (m, y) = random(200, 15, 4);
    let x = Design::from(m);
    let problem = Problem::new(&x, &y);
    let settings = GroupSettings {
        penalty: GroupPenalty::Mcp { gamma: 5.0 },
        tolerance: 1e-9,
        max_iterations: 2000,
        ..Default::default()
    };
    let top = group_alpha_max(&problem, &settings).unwrap();
    let full = AlphaGrid { count: 12, ratio: 0.05, ..Default::default() };
    let full = group_path(&problem, &full, &settings, &mut Monitor::silent()).unwrap();
    assert_eq!(full.status, Status::Converged);
    assert!(full.solutions[0].x.coefficients.iter().all(|w| *w == 0.0));
    // Where a grid begins does not matter: it is walked to from the top.
    let last = *full.alphas.last().unwrap();
    let low = group_path(&problem, &grid(&[last]), &settings, &mut Monitor::silent()).unwrap();
    let (a, b) = (&full.solutions[11].x.coefficients, &low.solutions[0].x.coefficients);
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
    assert!((a[0] - 2.0).abs() < 0.1 && (a[3] + 1.0).abs() < 0.1, "{a:?}");
    // γ below 1/curvature: the step is a hard threshold, and alpha_max knows.
    let hard = GroupSettings { penalty: GroupPenalty::Mcp { gamma: 0.5 }, ..settings.clone() };
    let higher = group_alpha_max(&problem, &hard).unwrap();
    assert!(higher > 1.05 * top, "{higher} {top}");
    let one = |alpha: f64| solve_group(&problem, alpha, &hard, None, &mut Monitor::silent()).unwrap().x;
    assert!(one(1.0001 * higher).coefficients.iter().all(|w| *w == 0.0));
    assert!(one(0.999 * higher).coefficients.iter().any(|w| *w != 0.0));
    // Cross-validation ends on the path.
    let cv = CrossValidationSettings {
        grid: AlphaGrid { count: 12, ratio: 0.05, ..Default::default() },
        model: settings,
        ..Default::default()
    };
    let cv = group_cross_validate(&problem, &cv, &mut Monitor::silent()).unwrap();
    let on_path = &full.solutions[cv.best].x.coefficients;
    assert!(cv.solution.x.coefficients.iter().zip(on_path).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn the_monitor_stops_a_group_path() {
    let (m, y) = random(50, 10, 5);
    let x = Design::from(m);
    for penalty in [GroupPenalty::Norm, GroupPenalty::Mcp { gamma: 5.0 }] {
        let mut calls = 0;
        let mut stop = |_: &TracePoint| {
            calls += 1;
            if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut monitor = Monitor::silent().with_progress(&mut stop);
        let settings = GroupSettings { penalty, ..Default::default() };
        let path = group_path(&Problem::new(&x, &y), &grid(&[1e-3, 1e-4]), &settings, &mut monitor).unwrap();
        assert_eq!(path.status, Status::Stopped);
        assert!(path.solutions.len() < 2);
    }
}
