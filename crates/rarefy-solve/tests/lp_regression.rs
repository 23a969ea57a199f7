//! ℓp regression: golden values, the certificate, vertices, limits, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;
use std::time::Duration;

use faer::Mat;
use proptest::prelude::*;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal, StudentT};
use rarefy_solve::methods::lp_sensitivity_sampling::{RegressSettings, regress};
use rarefy_solve::{Design, LinOp, Monitor, Solution, SolveError, Status, TracePoint};
use serde_json::Value;

fn problem(n: usize, d: usize, seed: u64) -> (Design, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let a = Mat::from_fn(n, d, |_, _| StandardNormal.sample(&mut rng));
    let t = StudentT::new(2.0).unwrap();
    let b = (0..n).map(|i| a[(i, 0)] + t.sample(&mut rng)).collect();
    (a.into(), b)
}

fn run(a: &Design, b: &[f64], p: f64, u: Option<&[f64]>) -> Solution<Vec<f64>> {
    regress(a, b, p, u, &RegressSettings::default(), &mut Monitor::silent()).unwrap()
}

fn objective(a: &Design, b: &[f64], p: f64, x: &[f64]) -> f64 {
    let mut r = vec![0.0; b.len()];
    a.apply(x, &mut r);
    r.iter().zip(b).map(|(r, b)| (r - b).abs().powf(p)).sum()
}

#[test]
fn golden_values() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/solve/lp-sensitivity-sampling.json"))
            .unwrap();
    let floats =
        |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let (flat, b, d) = (floats(&golden["a"]), floats(&golden["b"]), golden["d"].as_u64().unwrap() as usize);
    let a = Design::from(Mat::from_fn(b.len(), d, |i, j| flat[i * d + j]));
    for case in golden["regress"].as_array().unwrap() {
        let (p, want) = (case["p"].as_f64().unwrap(), case["objective"].as_f64().unwrap());
        let s = run(&a, &b, p, None);
        assert!(s.status.is_converged(), "p = {p}: {:?} {:?}", s.status, s.residuals);
        assert!((s.objective / want - 1.0).abs() < 1e-7, "p = {p}: {} {want}", s.objective);
        let x = floats(&case["x"]);
        assert!(s.x.iter().zip(&x).all(|(x, y)| (x - y).abs() < 2e-4), "p = {p}: {:?} {x:?}", s.x);
    }
}

#[test]
fn every_power_converges_with_a_certificate() {
    for p in [1.0, 1.05, 1.2, 1.5, 2.0, 2.5, 4.0, 8.0, 20.0] {
        for (n, d, seed) in [(300, 6, 1), (40, 10, 2), (2000, 15, 3)] {
            let (a, b) = problem(n, d, seed);
            let s = run(&a, &b, p, None);
            let gap = s.residual("duality gap").unwrap();
            assert!(s.status.is_converged() && gap <= 1e-8, "p = {p}, {n} × {d}: {:?} {gap:e}", s.status);
            assert!((objective(&a, &b, p, &s.x) / s.objective - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn p_of_1_passes_through_as_many_rows_as_columns() {
    let (a, b) = problem(500, 7, 4);
    let s = run(&a, &b, 1.0, None);
    let mut r = vec![0.0; 500];
    a.apply(&s.x, &mut r);
    let zeros = r.iter().zip(&b).filter(|(r, b)| (*r - *b).abs() < 1e-11).count();
    assert_eq!((zeros, s.status), (7, Status::Converged));
    // Many ties: whole numbers only.
    let a = Design::from(Mat::from_fn(200, 3, |i, j| ((i * (j + 3) + j) % 5) as f64));
    let b: Vec<f64> = (0..200).map(|i| f64::from(i * i % 7)).collect();
    let s = run(&a, &b, 1.0, None);
    assert!(s.status.is_converged(), "{:?} {:?}", s.status, s.residuals);
}

#[test]
fn p_of_2_is_least_squares_and_weights_are_copies() {
    let (a, b) = problem(80, 4, 5);
    let s = run(&a, &b, 2.0, None);
    let mut r = vec![0.0; 80];
    a.apply(&s.x, &mut r);
    r.iter_mut().zip(&b).for_each(|(r, b)| *r -= b);
    let mut gradient = vec![0.0; 4];
    a.apply_t(&r, &mut gradient);
    assert!(gradient.iter().all(|g| g.abs() < 1e-9));
    let rows: Vec<usize> = (0..80).chain(0..20).chain(0..20).collect();
    let copied: Vec<f64> = rows.iter().map(|i| b[*i]).collect();
    let u: Vec<f64> = (0..80).map(|i| if i < 20 { 3.0 } else { 1.0 }).collect();
    for p in [1.0, 1.5, 3.0] {
        let (s, t) = (run(&a, &b, p, Some(&u)), run(&a.select_rows(&rows), &copied, p, None));
        assert!((s.objective / t.objective - 1.0).abs() < 1e-7, "p = {p}: {} {}", s.objective, t.objective);
    }
}

#[test]
fn a_right_hand_side_in_the_range_is_met() {
    let (a, _) = problem(60, 5, 6);
    let x = [1.0, -2.0, 3.0, 0.0, 0.5];
    let mut b = vec![0.0; 60];
    a.apply(&x, &mut b);
    for p in [1.0, 1.5, 2.0, 5.0, 100.0] {
        let s = run(&a, &b, p, None);
        assert!(s.status.is_converged(), "p = {p}: {:?}", s.status);
        assert!(s.x.iter().zip(&x).all(|(x, y)| (x - y).abs() < 1e-12), "p = {p}: {:?}", s.x);
        // Fewer than half the rows are wrong by much: p = 1 does not notice.
        if p <= 1.0 {
            let mut c = b.clone();
            c.iter_mut().step_by(6).for_each(|v| *v += 1e6);
            let s = run(&a, &c, p, None);
            assert!(s.x.iter().zip(&x).all(|(x, y)| (x - y).abs() < 1e-8), "{:?}", s.x);
        }
    }
}

#[test]
fn limits_and_the_caller_stop_it() {
    let (a, b) = problem(300, 6, 7);
    let settings = RegressSettings { max_iterations: 2, ..Default::default() };
    let s = regress(&a, &b, 1.5, None, &settings, &mut Monitor::silent()).unwrap();
    assert_eq!((s.status, s.iterations), (Status::MaxIterations, 2));
    let best = run(&a, &b, 1.5, None).residual("norm").unwrap();
    let (norm, gap) = (s.residual("norm").unwrap(), s.residual("duality gap").unwrap());
    assert!(norm * (1.0 - gap) <= best * (1.0 + 1e-12) && best <= norm, "the gap is a bound");
    let mut monitor = Monitor::silent().with_time_limit(Duration::ZERO);
    let s = regress(&a, &b, 1.0, None, &RegressSettings::default(), &mut monitor).unwrap();
    assert_eq!(s.status, Status::TimeLimit);
    let mut stop =
        |p: &TracePoint| if p.iteration < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    let s = regress(
        &a,
        &b,
        1.0,
        None,
        &RegressSettings::default(),
        &mut Monitor::silent().with_progress(&mut stop),
    );
    assert_eq!(s.unwrap().status, Status::Stopped);
}

#[test]
fn hostile_input() {
    let (a, b) = problem(30, 3, 8);
    let settings = RegressSettings::default();
    let e = |p: f64, b: &[f64], u: Option<&[f64]>| {
        regress(&a, b, p, u, &settings, &mut Monitor::silent()).unwrap_err()
    };
    assert!(matches!(e(0.9, &b, None), SolveError::Setting { field: "p", .. }));
    assert!(matches!(e(f64::NAN, &b, None), SolveError::Setting { field: "p", .. }));
    assert!(matches!(e(1.0, &b[..5], None), SolveError::Dimension { argument: "b", .. }));
    assert!(matches!(e(1.0, &b, Some(&b[..5])), SolveError::Dimension { argument: "weights", .. }));
    let mut u = vec![1.0; 30];
    u[4] = -1.0;
    assert!(matches!(e(1.0, &b, Some(&u)), SolveError::Invalid { argument: "weights", .. }));
    u[4] = f64::NAN;
    assert!(matches!(e(1.0, &b, Some(&u)), SolveError::NonFinite { argument: "weights", .. }));
    let bad = RegressSettings { tolerance: f64::NAN, ..settings };
    assert!(regress(&a, &b, 1.0, None, &bad, &mut Monitor::silent()).is_err());
    // All weights 0, a zero design, huge and tiny scales.
    let s = run(&a, &b, 1.0, Some(&[0.0; 30]));
    assert_eq!((s.objective, s.status), (0.0, Status::Converged));
    let s = run(&Mat::zeros(30, 2).into(), &b, 1.0, None);
    assert!((s.objective - b.iter().map(|b| b.abs()).sum::<f64>()).abs() < 1e-9 && s.x == [0.0, 0.0]);
    for scale in [1e-100, 1e100] {
        let scaled: Vec<f64> = b.iter().map(|b| b * scale).collect();
        for p in [1.0, 1.5, 3.0] {
            let (s, t) = (run(&a, &b, p, None), run(&a, &scaled, p, None));
            assert!((t.residual("norm").unwrap() / scale / s.residual("norm").unwrap() - 1.0).abs() < 1e-6);
        }
        assert!(matches!(
            regress(&a, &[1e200; 30], 4.0, None, &settings, &mut Monitor::silent()),
            Err(SolveError::Breakdown { .. })
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// No point near the answer is better by more than the gap allows.
    #[test]
    fn nothing_beats_the_certificate(seed in 0_u64..1000, p in 1.0_f64..6.0, n in 6_usize..60, d in 1_usize..6) {
        let (a, b) = problem(n, d, seed);
        let s = run(&a, &b, p, None);
        let least = s.objective * (1.0 - s.residual("duality gap").unwrap()).powf(p);
        let mut rng = ChaCha8Rng::seed_from_u64(seed + 1);
        for size in [1.0, 1e-2, 1e-4] {
            let x: Vec<f64> = s.x.iter().map(|x| { let z: f64 = StandardNormal.sample(&mut rng); x + size * z }).collect();
            prop_assert!(objective(&a, &b, p, &x) >= least * (1.0 - 1e-9));
        }
        prop_assert!(s.status.is_converged(), "p = {}, {} × {}: {:?} {:?}", p, n, d, s.status, s.residuals);
    }
}
