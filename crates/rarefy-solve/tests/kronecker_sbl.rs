//! Kronecker sparse Bayesian learning: dense oracle, limits, monotone objective, recovery, hostile input.
#![allow(missing_docs, clippy::unwrap_used)]

use faer::{Mat, MatRef};
use rarefy_solve::experiments::kronecker_sbl::Drawn;
use rarefy_solve::linop::{Kronecker, to_dense};
use rarefy_solve::methods::kronecker_sbl::{Noise, Recovered, SblSettings, Variant, sbl, solve};
use rarefy_solve::{Monitor, Solution, SolveError, Status};
use serde_json::Value;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn views(factors: &[Mat<f64>]) -> Vec<MatRef<'_, f64>> {
    factors.iter().map(Mat::as_ref).collect()
}

fn run(p: &Drawn, settings: &SblSettings) -> Solution<Recovered> {
    solve(&views(&p.factors), &p.y, settings, &mut Monitor::silent()).unwrap()
}

fn settings(variant: Variant, noise: f64, iterations: usize) -> SblSettings {
    SblSettings {
        variant,
        noise: Noise::Known(noise),
        prune: Some(0.0),
        tolerance: 0.0,
        max_iterations: iterations,
        ..Default::default()
    }
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum()
}

#[test]
fn golden_values_of_the_full_matrices() {
    let text = include_str!("../../../tests/golden/solve/kronecker-sbl.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    let shapes: Vec<Vec<f64>> = golden["shapes"].as_array().unwrap().iter().map(floats).collect();
    let flat: Vec<Vec<f64>> = golden["factors"].as_array().unwrap().iter().map(floats).collect();
    let factors: Vec<Mat<f64>> = shapes
        .iter()
        .zip(&flat)
        .map(|(s, f)| Mat::from_fn(s[0] as usize, s[1] as usize, |i, j| f[i * s[1] as usize + j]))
        .collect();
    let (y, noise) = (floats(&golden["y"]), golden["noise"].as_f64().unwrap());
    // The inner minimisation of AM ends at a relative change of 1e-5, that of the golden file at rest.
    let cases = [
        ("start", Variant::Svd, 0, 1e-12),
        ("svd", Variant::Svd, 4, 1e-9),
        ("one-pass", Variant::OnePass, 4, 1e-9),
        ("alternating", Variant::Alternating, 3, 1e-3),
    ];
    for (name, variant, iterations, tolerance) in cases {
        let s = settings(variant, noise, iterations);
        let s = solve(&views(&factors), &y, &s, &mut Monitor::silent()).unwrap();
        let want = floats(&golden["cases"][name]["x"]);
        assert!(apart(&s.x.x, &want) < tolerance, "{name}: {:e}", apart(&s.x.x, &want));
        let cost = golden["cases"][name]["cost"].as_f64().unwrap();
        assert!((s.objective - cost).abs() < tolerance * cost.abs(), "{name}: {} {cost}", s.objective);
    }
    let dense = to_dense(&Kronecker::new(factors).unwrap());
    for (name, uses_mackay, iterations) in [("start", false, 0), ("em", false, 4), ("mackay", true, 3)] {
        let s = SblSettings { uses_mackay, ..settings(Variant::Svd, noise, iterations) };
        let s = sbl(dense.as_ref(), &y, &s, &mut Monitor::silent()).unwrap();
        let cost = golden["cases"][name]["cost"].as_f64().unwrap();
        assert!((s.objective - cost).abs() < 1e-9 * cost.abs(), "{name}: {} {cost}", s.objective);
        let want = floats(&golden["cases"][name]["x"]);
        assert!(apart(&s.x.x, &want) < 1e-9, "{name}: {:e}", apart(&s.x.x, &want));
    }
}

#[test]
fn one_mode_is_classic_sbl() {
    let p = Drawn::new(12, &[8], 2, 15.0, 1).unwrap();
    for variant in [Variant::Svd, Variant::Alternating, Variant::OnePass] {
        for prune in [0.0, 1e-3] {
            let s = SblSettings { prune: Some(prune), ..settings(variant, p.noise, 30) };
            let a = run(&p, &s);
            let b = sbl(p.factors[0].as_ref(), &p.y, &s, &mut Monitor::silent()).unwrap();
            assert!(apart(&a.x.x, &b.x.x) < 1e-8, "{variant:?} {:e}", apart(&a.x.x, &b.x.x));
            assert!((a.objective - b.objective).abs() < 1e-8 * a.objective.abs());
            // Modes of size 1 change nothing.
            let one = Mat::from_fn(1, 1, |_, _| 1.0);
            let c = solve(&[one.as_ref(), p.factors[0].as_ref()], &p.y, &s, &mut Monitor::silent()).unwrap();
            assert!(apart(&a.x.x, &c.x.x) < 1e-8);
        }
    }
}

#[test]
fn alternating_never_raises_the_objective_without_pruning() {
    for seed in 0..3 {
        let p = Drawn::new(8, &[4, 6, 7], 2, 15.0, seed).unwrap();
        let s = run(&p, &settings(Variant::Alternating, p.noise, 60));
        assert_eq!(s.trace.len(), 60);
        assert!(s.trace.windows(2).all(|w| w[1].objective <= w[0].objective + 1e-7 * w[0].objective.abs()));
        assert!(s.trace[59].objective < s.trace[0].objective);
        let dense = to_dense(&Kronecker::new(p.factors.clone()).unwrap());
        let c =
            sbl(dense.as_ref(), &p.y, &settings(Variant::Svd, p.noise, 30), &mut Monitor::silent()).unwrap();
        assert!(c.trace.windows(2).all(|w| w[1].objective <= w[0].objective + 1e-9 * w[0].objective.abs()));
    }
}

#[test]
fn recovers_the_support_at_any_scale_and_on_any_number_of_threads() {
    let p = Drawn::new(15, &[12, 12, 15], 3, 25.0, 4).unwrap();
    let s = SblSettings { noise: Noise::Known(p.noise), ..Default::default() };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| run(&p, &s));
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| run(&p, &s));
    assert_eq!(one.x, two.x);
    assert!(one.status.is_converged() && p.error(&one.x.x) < 1e-2 && p.support(&one.x.x) > 0.99);
    // y, x and the variances scale together.
    let mut big = p.clone();
    big.y.iter_mut().for_each(|v| *v *= 1024.0);
    let scaled = run(&big, &SblSettings { noise: Noise::Known(p.noise * 1024.0 * 1024.0), ..s.clone() });
    let back: Vec<f64> = scaled.x.x.iter().map(|v| v / 1024.0).collect();
    assert!(apart(&back, &one.x.x) < 1e-8);
    let shift = 2.0 * p.y.len() as f64 * 1024.0_f64.ln();
    assert!((scaled.objective - one.objective - shift).abs() < 1e-6 * shift);
    // Unknown noise is found to within a factor of 2.
    let learnt = run(&p, &SblSettings { noise: Noise::Unknown, ..s });
    assert!(p.error(&learnt.x.x) < 3e-2, "{:e}", p.error(&learnt.x.x));
    assert!(
        learnt.x.noise < 2.0 * p.noise && learnt.x.noise > 0.5 * p.noise,
        "{:e} {:e}",
        learnt.x.noise,
        p.noise
    );
}

#[test]
fn hostile_input() {
    let p = Drawn::new(4, &[3, 2], 1, 20.0, 5).unwrap();
    let good = settings(Variant::Svd, 0.1, 5);
    let f = views(&p.factors);
    let mut silent = Monitor::silent();
    let e = solve(&[], &p.y, &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::Empty { argument: "factors", .. }));
    let e = solve(&f, &p.y[1..], &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "y", expected: 6, found: 5, .. }));
    let e = solve(&f, &[f64::NAN; 6], &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::NonFinite { argument: "y", .. }));
    let e = solve(&f, &[1e200; 6], &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::Breakdown { .. }));
    let bad = Mat::from_fn(3, 4, |_, _| f64::INFINITY);
    let e = solve(&[bad.as_ref(), f[1]], &p.y, &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::NonFinite { argument: "factors", .. }));
    let huge = Mat::from_fn(3, 4, |_, _| 1e200);
    assert!(solve(&[huge.as_ref(), f[1]], &p.y, &good, &mut silent).is_err());
    assert!(sbl(huge.as_ref(), &p.y[..3], &good, &mut silent).is_err());
    let e = solve(&[Mat::zeros(3, 0).as_ref(), f[1]], &p.y, &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::Empty { .. }));
    for bad in [
        SblSettings { noise: Noise::Known(0.0), ..good.clone() },
        SblSettings { noise: Noise::Known(f64::NAN), ..good.clone() },
        SblSettings { prune: Some(1.0), ..good.clone() },
        SblSettings { tolerance: -1.0, ..good.clone() },
    ] {
        assert!(matches!(solve(&f, &p.y, &bad, &mut silent), Err(SolveError::Setting { .. })));
        assert!(matches!(sbl(f[0], &p.y[..3], &bad, &mut silent), Err(SolveError::Setting { .. })));
    }
    let e = sbl(f[0], &p.y, &good, &mut silent).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "y", expected: 3, found: 6, .. }));
    // Nothing measured, nothing found; a zero dictionary explains nothing.
    for variant in [Variant::Svd, Variant::Alternating, Variant::OnePass] {
        let s = SblSettings { variant, ..Default::default() };
        let s = solve(&f, &[0.0; 6], &s, &mut silent).unwrap();
        assert!(s.x.x.iter().all(|v| *v == 0.0));
        let zero = Mat::zeros(3, 4);
        let s = settings(variant, 0.1, 20);
        assert!(solve(&[zero.as_ref(), f[1]], &p.y, &s, &mut silent).unwrap().x.x.iter().all(|v| *v == 0.0));
    }
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    assert_eq!(solve(&f, &p.y, &good, &mut monitor).unwrap().status, Status::Stopped);
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    assert_eq!(sbl(f[0], &p.y[..3], &good, &mut monitor).unwrap().status, Status::Stopped);
    assert_eq!(run(&p, &SblSettings { max_iterations: 0, ..good }).status, Status::MaxIterations);
}
