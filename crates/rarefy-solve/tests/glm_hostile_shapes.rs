//! Every combination of loss and penalty on hostile shapes: the optimality conditions hold, or a typed error says why not.
#![allow(clippy::unwrap_used, missing_docs)]

use faer::Mat;
use proptest::prelude::*;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::glm::{
    self, GlmSettings, GramChoice, GroupLoss, GroupPenalty, GroupSettings, Loss, Problem, group_alpha_max,
    solve_group,
};
use rarefy_solve::{Csc, Design, LinOp, Monitor, SolveError, Status};

struct Case {
    x: Design,
    y: Vec<f64>,
    s: Vec<f64>,
}

/// Columns that repeat, are constant, are empty, are tiny; rows without weight.
fn case(n: usize, p: usize, seed: u64, is_sparse: bool, labels: bool) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut m = Mat::from_fn(n, p, |_, _| {
        let v: f64 = rng.random_range(-1.0..1.0);
        if rng.random_range(0.0..1.0) < 0.6 { v } else { 0.0 }
    });
    for j in 0..p {
        let kind = rng.random_range(0..8_u32);
        let from = rng.random_range(0..p);
        let other: Vec<f64> = (0..n).map(|i| m[(i, from)]).collect();
        for (i, other) in other.iter().enumerate() {
            m[(i, j)] = match kind {
                0 => *other,
                1 => -2.0 * other,
                2 => 3.0,
                3 => 0.0,
                _ => m[(i, j)],
            };
        }
    }
    let y = (0..n)
        .map(|i| {
            let z: f64 = (0..p).map(|j| m[(i, j)] * (1.0 + j as f64).sin()).sum::<f64>() + 0.4;
            let z = z + 0.2 * rng.random_range(-1.0..1.0);
            if labels { if z > 0.5 { 1.0 } else { -1.0 } } else { z }
        })
        .collect();
    let s = (0..n)
        .map(|i| if i > 0 && rng.random_range(0..4_u32) == 0 { 0.0 } else { 0.5 + (i % 3) as f64 })
        .collect();
    let x = if is_sparse {
        let all = (0..n).flat_map(|i| (0..p).map(move |j| (i, j)));
        let entries: Vec<_> = all.filter(|e| m[*e] != 0.0).map(|e| (e.0, e.1, m[e])).collect();
        Csc::from_triplets(n, p, &entries).unwrap().into()
    } else {
        m.into()
    };
    Case { x, y, s }
}

/// Minus the gradient of the mean loss in w, and in the intercept.
fn correlations(problem: &Problem<'_>, loss: Loss, w: &[f64], b: f64) -> (Vec<f64>, f64) {
    let s = |i: usize| problem.sample_weight.map_or(1.0, |s| s[i]);
    let total: f64 = (0..problem.y.len()).map(s).sum();
    let mut z = vec![0.0; problem.y.len()];
    problem.x.apply(w, &mut z);
    let theta: Vec<f64> = (0..z.len())
        .map(|i| {
            let (y, z) = (problem.y[i], z[i] + b);
            s(i) / total
                * match loss {
                    Loss::Logistic => y / (1.0 + (y * z).exp()),
                    Loss::Huber { delta } => (y - z).clamp(-delta, delta),
                    _ => y - z,
                }
        })
        .collect();
    let mut c = vec![0.0; w.len()];
    problem.x.apply_t(&theta, &mut c);
    (c, theta.iter().sum())
}

const LOSSES: [Loss; 3] = [Loss::Squared, Loss::Logistic, Loss::Huber { delta: 0.3 }];

fn one_class(e: &SolveError) -> bool {
    e.to_string().contains("one class only")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    /// Lasso and elastic net with feature weights, signed and non-negative.
    #[test]
    fn elastic_nets(
        seed in 0_u64..100_000, n in prop::sample::select(vec![1_usize, 2, 3, 12, 30]),
        p in prop::sample::select(vec![0_usize, 1, 2, 7, 25]), kind in 0_usize..3, ratio in prop::sample::select(vec![1.5, 0.5, 0.1]),
        l1_ratio in prop::sample::select(vec![1.0, 0.5, 0.05]), positive in any::<bool>(), fit_intercept in any::<bool>(),
        weighted in any::<bool>(), is_sparse in any::<bool>(), gram in any::<bool>(),
    ) {
        let c = case(n, p.max(1), seed, is_sparse, kind == 1);
        let x = if p == 0 { Design::from(Mat::<f64>::zeros(n, 0)) } else { c.x };
        let problem = Problem { x: &x, y: &c.y, sample_weight: weighted.then_some(&c.s) };
        let omega: Vec<f64> = (0..p).map(|j| 0.3 + (j % 4) as f64).collect();
        let settings = GlmSettings {
            loss: LOSSES[kind], l1_ratio, positive, fit_intercept, tolerance: 1e-10, max_iterations: 2000,
            penalty_weights: Some(omega.clone()),
            gram: if gram { GramChoice::Always } else { GramChoice::Never },
        };
        let top = match glm::alpha_max(&problem, &settings) {
            Ok(top) => top,
            Err(e) => { prop_assert!(kind == 1 && one_class(&e), "{e}"); return Ok(()); }
        };
        let alpha = if top > 1e-6 { ratio * top } else { 0.1 };
        let s = glm::solve(&problem, alpha, &settings, None, &mut Monitor::silent()).unwrap();
        prop_assert_eq!(s.status, Status::Converged, "{:?}", s.residuals);
        if ratio > 1.0 { prop_assert_eq!(s.x.nnz(), 0); }
        let w = s.x.to_dense();
        prop_assert!(!positive || w.iter().all(|w| *w >= 0.0));
        let (g, sum) = correlations(&problem, LOSSES[kind], &w, s.x.intercept);
        prop_assert!(!fit_intercept || sum.abs() < 1e-7, "intercept {}", sum);
        for j in 0..p {
            let (l1, l2) = (alpha * omega[j] * l1_ratio, alpha * omega[j] * (1.0 - l1_ratio));
            let c = g[j] - l2 * w[j];
            let bad = if w[j] != 0.0 { (c - l1 * w[j].signum()).abs() }
                else if positive { (c - l1).max(0.0) } else { (c.abs() - l1).max(0.0) };
            prop_assert!(bad < 1e-4, "feature {j}: w {} c {c} l1 {l1}", w[j]);
        }
    }

    /// Groups with weights, all features in one group, single features; the norm and the concave penalty.
    #[test]
    fn groups(
        seed in 0_u64..100_000, n in prop::sample::select(vec![1_usize, 2, 3, 12, 30]), p in prop::sample::select(vec![1_usize, 2, 7, 12]),
        kind in 0_usize..3, ratio in prop::sample::select(vec![1.5, 0.5, 0.2]), shape in 0_usize..3, concave in any::<bool>(),
        fit_intercept in any::<bool>(), weighted in any::<bool>(), is_sparse in any::<bool>(),
    ) {
        let c = case(n, p, seed, is_sparse, kind == 1);
        let problem = Problem { x: &c.x, y: &c.y, sample_weight: weighted.then_some(&c.s) };
        let groups: Vec<Vec<usize>> = match shape {
            0 => vec![(0..p).collect()],
            1 => (0..p).map(|j| vec![j]).collect(),
            // Odd and even features, and a group without any.
            _ => vec![(0..p).step_by(2).collect(), (1..p).step_by(2).collect(), vec![]],
        };
        let omega: Vec<f64> = (0..groups.len()).map(|g| 0.5 + g as f64 * 0.7).collect();
        // Columns reach a mean square of 9, groups of 12 of them 100: γ far above 1/curvature is not asked for.
        let gamma = 4.0;
        let settings = GroupSettings {
            loss: GroupLoss::Single(LOSSES[kind]),
            penalty: if concave { GroupPenalty::Mcp { gamma } } else { GroupPenalty::Norm },
            groups: Some(groups.clone()), group_weights: Some(omega.clone()), fit_intercept,
            tolerance: 1e-6, max_iterations: 200,
        };
        let top = match group_alpha_max(&problem, &settings) {
            Ok(top) => top,
            Err(e) => { prop_assert!(kind == 1 && one_class(&e), "{e}"); return Ok(()); }
        };
        let alpha = if top > 1e-6 { ratio * top } else { 0.1 };
        let s = solve_group(&problem, alpha, &settings, None, &mut Monitor::silent()).unwrap();
        let w = &s.x.coefficients;
        if concave && kind == 1 && s.status != Status::Converged {
            // Separable data: where the penalty is flat the loss falls for ever.
            let flat = |(g, o): (&Vec<usize>, &f64)| g.iter().map(|j| w[*j].powi(2)).sum::<f64>().sqrt() > gamma * alpha * o;
            prop_assert!(groups.iter().zip(&omega).any(flat), "{:?} {:?}", s.status, s.residuals);
            return Ok(());
        }
        // Where the penalty cancels the curvature of Huber's loss, the approach is slower than linear (1 case in some
        // thousands): still falling at the limit, and near a stationary point.
        let crawls = concave && kind == 2 && s.status == Status::MaxIterations && s.residuals[0].value < 1e-2;
        prop_assert!(crawls || s.status == Status::Converged, "{:?} {:?}", s.status, s.residuals);
        if crawls { return Ok(()); }
        prop_assert!(w.iter().chain(&s.x.intercepts).all(|v| v.is_finite()));
        if ratio > 1.0 { prop_assert!(w.iter().all(|w| *w == 0.0)); }
        let (c, sum) = correlations(&problem, LOSSES[kind], w, s.x.intercepts[0]);
        prop_assert!(!fit_intercept || sum.abs() < 1e-5, "intercept {}", sum);
        for (g, omega) in groups.iter().zip(&omega) {
            let norm = |v: &[f64]| g.iter().map(|j| v[*j].powi(2)).sum::<f64>().sqrt();
            let (size, lambda) = (norm(w), alpha * omega);
            // The slope of the penalty, along the group's direction.
            let slope = if concave { (lambda - size / gamma).max(0.0) } else { lambda };
            let bad = if size > 0.0 {
                g.iter().map(|j| (c[*j] - slope * w[*j] / size).abs()).fold(0.0, f64::max)
            } else {
                norm(&c) - lambda
            };
            prop_assert!(bad < 3e-3 * (1.0 + lambda), "{g:?}: {bad} size {size} slope {slope} lambda {lambda}");
        }
    }
}

#[test]
fn one_sample_one_class_of_several() {
    let x = Design::from(Mat::from_fn(1, 3, |_, j| j as f64));
    let loss = GroupLoss::Multinomial { classes: 2 };
    for fit_intercept in [true, false] {
        let settings = GroupSettings { loss, fit_intercept, ..Default::default() };
        let s = solve_group(&Problem::new(&x, &[1.0]), 0.1, &settings, None, &mut Monitor::silent());
        match s {
            Ok(s) => assert!(!fit_intercept && s.status == Status::Converged),
            Err(e) => assert!(fit_intercept && e.to_string().contains("none of class 0"), "{e}"),
        }
    }
}
