//! Optimistic OMD: golden points, closed forms, regret that does not grow, projections, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use proptest::prelude::*;
use rarefy_solve::experiments::optimistic_omd::{Sizes, run};
use rarefy_solve::methods::optimistic_omd::{
    Domain, Ensemble, ExpConcaveOmd, Hint, Omd, OmdSettings, OnlineLearner, Variant, learner, play,
    project_in_norm,
};
use rarefy_solve::{Monitor, SolveError, Status};

fn settings(variant: Variant) -> OmdSettings {
    OmdSettings { variant, gradient_bound: Some(2.0), ..Default::default() }
}

fn gradients(d: usize, rounds: usize) -> Vec<Vec<f64>> {
    let value = |i: usize| ((i * i % 1009) as f64 * 0.37).sin();
    (0..rounds).map(|t| (0..d).map(|i| value(t * d + i + 1) + 0.3 * (i as f64 - 0.5)).collect()).collect()
}

#[derive(serde::Deserialize)]
struct Golden {
    gradients: Vec<Vec<f64>>,
    convex: Vec<Vec<f64>>,
    entropy: Vec<Vec<f64>>,
    exp_concave: Vec<Vec<f64>>,
    ensemble: Vec<Vec<f64>>,
}

#[test]
fn the_points_of_the_formulas_in_numpy() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../tests/golden/solve/optimistic_omd.json")).unwrap();
    let entropy =
        OmdSettings { domain: Domain::EntropySimplex, ..settings(Variant::FixedStep { step: 0.3 }) };
    for (name, settings, want) in [
        ("convex", settings(Variant::Convex), &golden.convex),
        ("entropy", entropy, &golden.entropy),
        ("exp-concave", settings(Variant::ExpConcave { alpha: 1.0 }), &golden.exp_concave),
        ("ensemble", settings(Variant::Ensemble { smoothness: 0.05, rounds: Some(40) }), &golden.ensemble),
    ] {
        let mut learner = learner(3, &settings).unwrap();
        for (t, (g, want)) in golden.gradients.iter().zip(want).enumerate() {
            for (a, b) in learner.predict().iter().zip(want) {
                assert!((a - b).abs() < 1e-12, "{name}, round {t}: {:?} {want:?}", learner.predict());
            }
            learner.update(g).unwrap();
        }
    }
}

#[test]
fn two_rounds_by_hand() {
    // x̂₂ = −0.5, x₂ = −0.5 − 0.5·1 = −1; x̂₃ = −0.5 + 0.5·3 = 1, x₃ = 1 + 1.5 = 2.5.
    let s = OmdSettings {
        domain: Domain::Whole { diameter: 10.0 },
        ..settings(Variant::FixedStep { step: 0.5 })
    };
    let mut omd = Omd::new(1, &s).unwrap();
    omd.update(&[1.0]).unwrap();
    assert_eq!(omd.predict(), [-1.0]);
    omd.update(&[-3.0]).unwrap();
    assert_eq!(omd.predict(), [2.5]);
}

#[test]
fn with_the_right_hint_linear_losses_cost_a_constant() {
    let step = 0.2;
    for rounds in [100, 1000, 10_000] {
        let mut omd = Omd::new(4, &settings(Variant::FixedStep { step })).unwrap();
        let (mut total, mut sum) = (0.0, [0.0; 4]);
        for g in gradients(4, rounds) {
            omd.set_hint(&g).unwrap();
            total += g.iter().zip(omd.predict()).map(|(g, x)| g * x).sum::<f64>();
            sum.iter_mut().zip(&g).for_each(|(s, g)| *s += g);
            omd.update(&g).unwrap();
        }
        let regret = total + sum.iter().map(|s| s * s).sum::<f64>().sqrt();
        // ½‖u − x̂₁‖²/η with ‖u‖ ≤ 1.
        assert!(regret <= 0.5 / step + 1e-9, "{rounds}: {regret}");
    }
}

#[test]
fn without_hint_it_is_plain_descent_bit_for_bit() {
    let s = OmdSettings { hint: Hint::Zero, ..settings(Variant::Convex) };
    let mut omd = Omd::new(3, &s).unwrap();
    let (mut x, mut seen) = (vec![0.0; 3], 0.0_f64);
    for g in gradients(3, 500) {
        assert_eq!(omd.predict(), x);
        let step = 2.0 / (1.0 + 4.0 * 2.0 * 2.0 + seen).sqrt();
        x.iter_mut().zip(&g).for_each(|(x, g)| *x += -step * g);
        Domain::Ball { radius: 1.0 }.project(&mut x);
        seen += g.iter().map(|g| g * g).sum::<f64>();
        omd.update(&g).unwrap();
    }
}

#[test]
fn the_unconstrained_step_is_the_sum_of_two() {
    // x_{t+1} = x̂_t − η_t g_t − η_{t+1} M_{t+1}, and x̂ is what a learner without hint plays.
    let whole = Domain::Whole { diameter: 3.0 };
    let s = OmdSettings { domain: whole, ..settings(Variant::StronglyConvex { lambda: 0.5 }) };
    let mut omd = Omd::new(2, &s).unwrap();
    let mut base = [0.0; 2];
    for (t, g) in gradients(2, 200).into_iter().enumerate() {
        omd.update(&g).unwrap();
        let eta = |t: usize| 2.0 / (0.5 * t as f64);
        for i in 0..2 {
            base[i] -= eta(t + 1) * g[i];
            let want = base[i] - eta(t + 2) * g[i];
            assert!((omd.predict()[i] - want).abs() < 1e-12, "{t}");
        }
    }
}

#[test]
fn the_kept_inverse_is_the_inverse() {
    let mut omd = ExpConcaveOmd::new(5, &settings(Variant::ExpConcave { alpha: 1.0 })).unwrap();
    for (t, g) in gradients(5, 10_000).iter().enumerate() {
        omd.update(g).unwrap();
        if t % 999 == 998 || t == 9998 {
            let direct = omd.norm().llt(Side::Lower).unwrap().solve(&Mat::<f64>::identity(5, 5));
            let off = (omd.inverse() - &direct).norm_max() / direct.norm_max();
            assert!(off < 1e-8, "round {t}: {off}");
        }
    }
}

#[test]
fn a_pool_of_one_is_its_learner() {
    let s = settings(Variant::Ensemble { smoothness: 100.0, rounds: Some(300) });
    let mut ensemble = Ensemble::new(3, &s).unwrap();
    assert_eq!(ensemble.steps().len(), 1);
    let mut alone = Omd::new(3, &settings(Variant::FixedStep { step: ensemble.steps()[0] })).unwrap();
    for g in gradients(3, 300) {
        assert_eq!(ensemble.predict(), alone.predict());
        ensemble.update(&g).unwrap();
        alone.update(&g).unwrap();
    }
}

#[test]
fn weights_sum_to_one_and_unknown_horizons_double() {
    for rounds in [Some(1000), None] {
        let s = settings(Variant::Ensemble { smoothness: 0.05, rounds });
        let mut ensemble = Ensemble::new(3, &s).unwrap();
        let first = ensemble.steps().len();
        for g in gradients(3, 1000) {
            ensemble.update(&g).unwrap();
            assert!((ensemble.weights().iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(ensemble.predict().iter().map(|x| x * x).sum::<f64>() <= 1.0 + 1e-12);
        }
        assert_eq!(ensemble.steps().len() > first, rounds.is_none());
    }
}

#[test]
fn smooth_losses_that_stay_cost_a_constant_with_one_gradient_per_round() {
    let centre = [0.5, -0.3, 0.2];
    let regret = |rounds: usize| {
        let mut learner = learner(3, &settings(Variant::Convex)).unwrap();
        let mut calls = 0;
        let mut loss = |_: usize, x: &[f64], g: &mut [f64]| {
            calls += 1;
            g.iter_mut().zip(x.iter().zip(&centre)).for_each(|(g, (x, c))| *g = x - c);
            0.5 * g.iter().map(|g| g * g).sum::<f64>()
        };
        let played = play(&mut *learner, rounds, &mut loss, &mut Monitor::silent()).unwrap();
        assert_eq!((calls, played.status, played.iterations), (rounds, Status::Converged, rounds));
        played.objective
    };
    assert!(regret(10_000) <= 1.0001 * regret(1000), "{} {}", regret(1000), regret(10_000));
}

#[test]
fn an_l1_term_makes_iterates_sparse() {
    let s = OmdSettings { l1: 0.1, ..settings(Variant::Convex) };
    let mut omd = learner(4, &s).unwrap();
    for t in 0..400 {
        let wave = 0.05 * f64::from(t % 2) - 0.025;
        omd.update(&[0.5, -0.4, wave, 0.02 + wave]).unwrap();
    }
    let x = omd.predict();
    assert!(x[0] < -0.5 && x[1] > 0.3 && x[2] == 0.0 && x[3] == 0.0, "{x:?}");
}

#[test]
fn hostile_input_leaves_the_learner_as_it_was() {
    for variant in [
        Variant::Convex,
        Variant::Ftrl,
        Variant::StronglyConvex { lambda: 1.0 },
        Variant::ExpConcave { alpha: 1.0 },
        Variant::Ensemble { smoothness: 1.0, rounds: None },
    ] {
        let mut l = learner(2, &settings(variant)).unwrap();
        l.update(&[0.3, -0.1]).unwrap();
        let before = format!("{l:?}");
        assert!(matches!(l.update(&[1.0]).unwrap_err(), SolveError::Dimension { expected: 2, found: 1, .. }));
        assert!(matches!(l.update(&[1.0, f64::NAN]).unwrap_err(), SolveError::NonFinite { .. }));
        assert_eq!(format!("{l:?}"), before);
        // Too large to square: an error or a finite point, never NaN.
        let _ = l.update(&[1e200, -1e308]);
        assert!(l.predict().iter().all(|x| x.is_finite()), "{variant:?}");
        assert!(matches!(learner(0, &settings(variant)).unwrap_err(), SolveError::Empty { .. }));
    }
    let open = OmdSettings { gradient_bound: None, ..Default::default() };
    for s in [
        OmdSettings { domain: Domain::Ball { radius: 0.0 }, ..Default::default() },
        OmdSettings { domain: Domain::Box { low: 1.0, high: 1.0 }, ..Default::default() },
        OmdSettings { domain: Domain::Whole { diameter: f64::NAN }, ..Default::default() },
        OmdSettings { delta: 0.0, ..Default::default() },
        OmdSettings { l1: -1.0, ..Default::default() },
        OmdSettings { l1: 1.0, domain: Domain::Simplex, ..Default::default() },
        OmdSettings { gradient_bound: Some(-1.0), ..Default::default() },
        OmdSettings { domain: Domain::EntropySimplex, ..settings(Variant::Ftrl) },
        OmdSettings { domain: Domain::Simplex, ..settings(Variant::ExpConcave { alpha: 1.0 }) },
        settings(Variant::StronglyConvex { lambda: 0.0 }),
        settings(Variant::FixedStep { step: f64::INFINITY }),
        settings(Variant::FixedHorizon { rounds: 0 }),
        settings(Variant::ExpConcave { alpha: -1.0 }),
        settings(Variant::Ensemble { smoothness: 0.0, rounds: None }),
        settings(Variant::Ensemble { smoothness: 1.0, rounds: Some(0) }),
        OmdSettings { variant: Variant::OnlineGradient, ..open.clone() },
        OmdSettings { variant: Variant::ExpConcave { alpha: 1.0 }, ..open },
    ] {
        assert!(matches!(learner(2, &s).unwrap_err(), SolveError::Setting { .. }), "{s:?}");
    }
    assert!(Omd::new(2, &settings(Variant::Ftrl)).is_err());
    assert!(serde_json::from_str::<OmdSettings>(r#"{"step": 1}"#).is_err());
    let text = serde_json::to_string(&OmdSettings::default()).unwrap();
    assert_eq!(serde_json::from_str::<OmdSettings>(&text).unwrap(), OmdSettings::default());
}

#[test]
fn a_run_can_be_stopped_and_a_bad_loss_is_an_error() {
    let mut l = learner(1, &settings(Variant::Convex)).unwrap();
    let mut loss = |_: usize, _: &[f64], g: &mut [f64]| {
        g[0] = 1.0;
        0.5
    };
    let mut stop = |p: &rarefy_solve::TracePoint| {
        if p.iteration < 7 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    let s = play(&mut *l, 100, &mut loss, &mut monitor).unwrap();
    assert_eq!((s.status, s.iterations, s.objective), (Status::Stopped, 7, 3.5));
    let mut bad = |_: usize, _: &[f64], _: &mut [f64]| f64::NAN;
    assert!(play(&mut *l, 5, &mut bad, &mut Monitor::silent()).is_err());
    assert_eq!(play(&mut *l, 0, &mut loss, &mut Monitor::silent()).unwrap().x.average, l.predict());
}

proptest! {
    #[test]
    fn projections_satisfy_the_variational_inequality(
        y in prop::collection::vec(-3.0..3.0_f64, 3),
        w in prop::collection::vec(-1.5..1.5_f64, 9),
        others in prop::collection::vec(prop::collection::vec(-1.0..1.0_f64, 3), 20),
    ) {
        let a = Mat::from_fn(3, 3, |i, j| w[3 * i + j]);
        let h = &a * a.transpose() + 0.1 * Mat::<f64>::identity(3, 3);
        let identity = Mat::<f64>::identity(3, 3);
        for (domain, h) in [
            (Domain::Ball { radius: 1.2 }, &h),
            (Domain::Box { low: -0.5, high: 0.8 }, &h),
            (Domain::Ball { radius: 1.2 }, &identity),
            (Domain::Box { low: -0.5, high: 0.8 }, &identity),
        ] {
            let mut x = y.clone();
            project_in_norm(domain, h, &mut x).unwrap();
            for q in &others {
                let mut q = q.clone();
                domain.project(&mut q);
                let inner: f64 = (0..3)
                    .map(|i| (q[i] - x[i]) * (0..3).map(|j| h[(i, j)] * (y[j] - x[j])).sum::<f64>())
                    .sum();
                prop_assert!(inner <= 1e-10, "{domain:?}: {inner}");
            }
            let mut direct = y.clone();
            domain.project(&mut direct);
            if h == &identity {
                prop_assert!(direct.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-12));
            }
        }
    }
}

#[test]
fn the_orderings_of_the_specification() {
    // Two streams per case: the margins that are far from their limits.
    let measured = run(Sizes { seeds: 2, seed: 100 }, &mut |_| {}).unwrap();
    for name in ["sigma 0", "strongly convex", "64 switches: best other"] {
        let mut some = measured.margins.iter().filter(|m| m.name.starts_with(name)).peekable();
        assert!(some.peek().is_some(), "{name}");
        some.for_each(|m| assert!(m.holds(), "{}: {} < {}", m.name, m.value, m.least));
    }
}
