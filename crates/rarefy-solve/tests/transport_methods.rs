//! SNS, k-sparse and exact transport: exact properties, oracles, golden values, hostile input.
#![allow(missing_docs, clippy::unwrap_used)]

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::methods::sinkhorn_newton_sparse::{self as sns, LargestEntries, SnsSettings, SnsVariant};
use rarefy_solve::methods::sparsity_constrained_ot::{
    self as ksparse, KSparseSettings, Orientation, RouterSettings, balance, route,
};
use rarefy_solve::transport::smooth::{self, Ascent, Formulation, Regulariser, SmoothSettings};
use rarefy_solve::transport::{Domain, ExactSettings, SinkhornSettings, Transport, exact, sinkhorn};
use rarefy_solve::{LinOp, Monitor, SolveError, Status};

fn draws(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0.0..1.0)).collect()
}

fn weights(n: usize, seed: u64) -> Vec<f64> {
    let w: Vec<f64> = draws(n, seed).iter().map(|v| v + 0.1).collect();
    let s: f64 = w.iter().sum();
    w.iter().map(|v| v / s).collect()
}

fn l1(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).sum()
}

fn dense(a: &dyn LinOp) -> Vec<f64> {
    let d = rarefy_solve::linop::to_dense(a);
    (0..d.nrows()).flat_map(|i| (0..d.ncols()).map(|j| d[(i, j)]).collect::<Vec<_>>()).collect()
}

fn silent() -> Monitor<'static> {
    Monitor::silent()
}

struct Golden(serde_json::Value);

impl Golden {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/solve/transport.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }
    fn get(&self, name: &str) -> Vec<f64> {
        self.0[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }
}

#[test]
fn golden_values_of_pot() {
    let g = Golden::load();
    let (a, b, c) = (g.get("a"), g.get("b"), g.get("cost"));
    let t = Transport::new(&a, &b, &c).unwrap();
    for eta in [10.0, 200.0] {
        let want = g.get(&format!("sinkhorn_{eta}"));
        let s = sns::solve(&t, &SnsSettings { eta, ..Default::default() }, &mut silent()).unwrap();
        assert!(s.status.is_converged() && l1(&s.x.plan, &want) < 1e-9, "{eta} {}", l1(&s.x.plan, &want));
        let s = SinkhornSettings {
            regularisation: 1.0 / eta,
            tolerance: 1e-13,
            max_iterations: 200_000,
            domain: Domain::Log,
        };
        let s = sinkhorn(&t, &s, &mut silent()).unwrap();
        assert!(l1(&s.x.plan, &want) < 1e-9, "{eta} {}", l1(&s.x.plan, &want));
    }
    let s = exact(&t, &ExactSettings::default(), &mut silent()).unwrap();
    assert!(l1(&dense(&s.x.plan), &g.get("emd")) < 1e-12);
    assert!((s.objective - g.0["emd2"].as_f64().unwrap()).abs() < 1e-12);
    let s = SmoothSettings { tolerance: 1e-13, max_iterations: 5000, ..Default::default() };
    let s = smooth::solve(&t, &s, &mut silent()).unwrap();
    // POT stops at marginal errors near 1e-6; the polished plan solves the optimality conditions on its support.
    let plan = dense(&s.x.plan);
    // Ours stalls at a marginal error of 5e-9, where the dual value no longer changes in floating point; it says so.
    assert!(s.status == Status::Stalled && s.residuals[0].value < 1e-8, "{:?} {:?}", s.status, s.residuals);
    assert!(l1(&plan, &g.get("l2_polished")) < 2e-8, "{:e}", l1(&plan, &g.get("l2_polished")));
    assert!(l1(&plan, &g.get("l2")) < 5e-6, "{:e}", l1(&plan, &g.get("l2")));
    let s =
        KSparseSettings { k: 3, gamma: 0.5, tolerance: 1e-11, max_iterations: 5000, ..Default::default() };
    let s = ksparse::solve(&t, &s, &mut silent()).unwrap();
    assert!(l1(&dense(&s.x.plan), &g.get("k3")) < 1e-5, "{:e}", l1(&dense(&s.x.plan), &g.get("k3")));
    let (m, n) = (a.len(), b.len());
    let (x, want) = (g.get("x"), g.get("projection_k3"));
    for j in 0..n {
        let mut column: Vec<f64> = (0..m).map(|i| x[i * n + j]).collect();
        rarefy_solve::prox::k_sparse_simplex(&mut column, 3, 1.0);
        assert!((0..m).all(|i| (column[i] - want[i * n + j]).abs() < 1e-14), "{column:?}");
    }
}

#[test]
fn largest_entries_are_those_of_a_sort() {
    for (seed, k) in [(1, 1), (2, 17), (3, 60), (4, 63)] {
        let p: Vec<f64> = draws(63, seed).iter().map(|v| (-50.0 * v).exp()).collect();
        let h = LargestEntries::select(&p, 9, k);
        let mut sorted = p.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(h.nnz(), k);
        assert!((h.mass() - sorted[..k].iter().sum::<f64>()).abs() < 1e-14);
    }
    assert_eq!(LargestEntries::select(&[1.0; 6], 3, 2).nnz(), 6, "ties stay");
    assert_eq!(LargestEntries::select(&[0.0; 6], 3, 2).nnz(), 0);
}

#[test]
fn the_sparse_hessian_is_semidefinite_for_every_threshold() {
    let (m, n) = (6, 8);
    let p = draws(m * n, 5);
    for k in [1, 5, 20, 48] {
        let h = LargestEntries::select(&p, n, k);
        for seed in 0..50 {
            let (x, y) = (draws(m, seed), draws(n, seed + 100));
            let x: Vec<f64> = x.iter().map(|v| v - 0.5).collect();
            let y: Vec<f64> = y.iter().map(|v| v - 0.5).collect();
            let mut hy = vec![0.0; m];
            h.apply(&y, &mut hy);
            let mut q = 2.0 * x.iter().zip(&hy).map(|(a, b)| a * b).sum::<f64>();
            for i in 0..m {
                for j in 0..n {
                    q += p[i * n + j] * (x[i] * x[i] + y[j] * y[j]);
                }
            }
            assert!(q >= 0.0, "{k}: {q}");
        }
    }
}

#[test]
fn all_variants_reach_one_plan_and_the_dual_never_falls() {
    let (m, n) = (40, 50);
    let (a, b, c) = (weights(m, 1), weights(n, 2), draws(m * n, 3));
    let t = Transport::new(&a, &b, &c).unwrap();
    let mut plans = vec![];
    for variant in [SnsVariant::Adaptive, SnsVariant::Fixed(8), SnsVariant::Full, SnsVariant::Safe] {
        let s = sns::solve(&t, &SnsSettings { eta: 300.0, variant, ..Default::default() }, &mut silent())
            .unwrap();
        assert!(s.status.is_converged(), "{variant:?} {:?} {:?}", s.status, s.residuals);
        assert!(s.trace.windows(2).all(|w| w[1].objective >= w[0].objective - 1e-13), "{variant:?}");
        // P = exp(η(x ⊕ y − C) − 1), marginals exact.
        for i in 0..m {
            for j in 0..n {
                let p = (300.0 * (s.x.x[i] + s.x.y[j] - c[i * n + j]) - 1.0).exp();
                assert!((p - s.x.plan[i * n + j]).abs() < 1e-12);
            }
        }
        if variant == SnsVariant::Full {
            // Quadratic decay over the last three errors above rounding: the order, which a constant factor in
            // e₁ ≤ C·e₀² does not change (the ratio of the logarithms it does).
            let e: Vec<f64> = s.trace.iter().map(|t| t.residual).filter(|r| *r > 1e-13).collect();
            let [.., e0, e1, e2] = e[..] else { panic!("{e:?}") };
            assert!((e2 / e1).ln() / (e1 / e0).ln() >= 1.7, "{e:?}");
        }
        plans.push(s.x.plan);
    }
    assert!(plans.iter().all(|p| l1(p, &plans[0]) < 1e-9));
    // Sinkhorn needs far more iterations.
    let plain =
        SnsSettings { eta: 300.0, variant: SnsVariant::Sinkhorn, max_sweeps: 400, ..Default::default() };
    assert_eq!(sns::solve(&t, &plain, &mut silent()).unwrap().status, Status::MaxIterations);
    // C + const and (tC, η/t) leave the plan unchanged.
    let moved: Vec<f64> = c.iter().map(|c| 4.0 * (c + 1.5)).collect();
    let t = Transport::new(&a, &b, &moved).unwrap();
    let s = sns::solve(&t, &SnsSettings { eta: 75.0, ..Default::default() }, &mut silent()).unwrap();
    assert!(l1(&s.x.plan, &plans[0]) < 1e-9);
}

#[test]
fn large_eta_and_one_non_zero_give_the_assignment() {
    let n = 20;
    let (a, c) = (vec![1.0 / n as f64; n], draws(n * n, 8));
    let t = Transport::new(&a, &a, &c).unwrap();
    let e = exact(&t, &ExactSettings::default(), &mut silent()).unwrap();
    let assignment = dense(&e.x.plan);
    assert_eq!(assignment.iter().filter(|v| **v > 0.0).count(), n);
    let s = sns::solve(&t, &SnsSettings { eta: 5000.0, ..Default::default() }, &mut silent()).unwrap();
    assert!(s.status.is_converged(), "{:?} {:?} {} {}", s.status, s.residuals, s.x.sweeps, s.x.newton_steps);
    assert!(s.x.plan.iter().zip(&assignment).all(|(p, q)| (n as f64 * p).round() == (n as f64 * q).round()));
    // k = 1: dual value = LP value + γ/2 Σ b_j², and the plan is the assignment.
    let k = KSparseSettings { k: 1, gamma: 10.0, ..Default::default() };
    let s = ksparse::solve(&t, &k, &mut silent()).unwrap();
    assert!(s.x.most_in_a_column == 1 && l1(&dense(&s.x.plan), &assignment) < 1e-9, "{:?}", s.residuals);
    assert!((s.objective - e.objective - 5.0 / n as f64).abs() < 1e-9, "{} {}", s.objective, e.objective);
}

#[test]
fn exact_transport_carries_its_certificate() {
    for (m, n, seed) in [(1, 1, 0), (1, 5, 1), (6, 1, 2), (13, 8, 3), (40, 40, 4), (60, 90, 5)] {
        for uniform in [false, true] {
            let flat = |n: usize| vec![1.0 / n as f64; n];
            let (a, b) = if uniform { (flat(m), flat(n)) } else { (weights(m, seed), weights(n, seed + 50)) };
            let c: Vec<f64> = draws(m * n, seed + 9).iter().map(|v| v - 0.3).collect();
            let t = Transport::new(&a, &b, &c).unwrap();
            let s = exact(&t, &ExactSettings::default(), &mut silent()).unwrap();
            assert!(
                s.status.is_converged() && s.residuals.iter().all(|r| r.value < 1e-10),
                "{:?}",
                s.residuals
            );
            let p = dense(&s.x.plan);
            assert!(p.iter().all(|v| *v >= 0.0) && p.iter().filter(|v| **v > 0.0).count() < m + n);
            for i in 0..m {
                for j in 0..n {
                    let slack = c[i * n + j] - s.x.f[i] - s.x.g[j];
                    assert!(slack > -1e-10 && (slack < 1e-10 || p[i * n + j] <= 0.0), "{slack}");
                }
            }
        }
    }
    let (a, c) = (vec![0.25; 4], vec![1.0; 16]);
    let t = Transport::new(&a, &a, &c).unwrap();
    assert!(
        (exact(&t, &ExactSettings::default(), &mut silent()).unwrap().objective - 1.0).abs() < 1e-12,
        "all ties"
    );
    let few = ExactSettings { max_iterations: 1, ..Default::default() };
    let d = draws(16, 1);
    let t = Transport::new(&a, &a, &d).unwrap();
    assert_eq!(exact(&t, &few, &mut silent()).unwrap().status, Status::MaxIterations);
}

#[test]
fn k_sparse_plans_keep_their_promises() {
    let (m, n) = (12, 15);
    let (a, b, c) = (weights(m, 1), weights(n, 2), draws(m * n, 3));
    let t = Transport::new(&a, &b, &c).unwrap();
    let lp = exact(&t, &ExactSettings::default(), &mut silent()).unwrap().objective;
    let mut last = f64::INFINITY;
    for k in [1, 2, 3, 5, 12] {
        for formulation in [Formulation::SemiDual, Formulation::Dual] {
            let s = KSparseSettings { k, gamma: 5.0, formulation, ..Default::default() };
            let s = ksparse::solve(&t, &s, &mut silent()).unwrap();
            let p = dense(&s.x.plan);
            assert!((0..n).all(|j| (0..m).filter(|i| p[i * n + j] > 0.0).count() <= k));
            if formulation == Formulation::SemiDual {
                assert!(s.residual("column sums, l1").unwrap() < 1e-13);
                assert!(s.objective <= last + 1e-7, "falls in k");
                last = s.objective;
                let (balanced, error) = balance(&s.x.plan, &a, &b, 500).unwrap();
                assert!(balanced.nnz() <= s.x.plan.nnz());
                if error < 1e-9 {
                    // A feasible plan: weak duality.
                    let q = dense(&balanced);
                    let primal: f64 = q.iter().zip(&c).map(|(q, c)| q * c + 2.5 * q * q).sum();
                    assert!(primal >= s.objective - 1e-9);
                }
            }
        }
        let tiny = KSparseSettings { k, gamma: 1e-3, max_iterations: 3000, ..Default::default() };
        let s = ksparse::solve(&t, &tiny, &mut silent()).unwrap();
        assert!((s.objective - lp).abs() < 5e-3, "{k}: {} {lp}", s.objective);
    }
    let full =
        smooth::solve(&t, &SmoothSettings { gamma: 5.0, ..Default::default() }, &mut silent()).unwrap();
    assert!((full.objective - last).abs() < 1e-9, "k = m is squared l2");
    assert!((full.x.primal - full.objective).abs() < 1e-6, "no gap when convex");
    assert!(full.residuals[0].value < 1e-6);
    for formulation in [Formulation::SemiDual, Formulation::Dual] {
        let s = SmoothSettings {
            gamma: 0.1,
            regulariser: Regulariser::Entropy,
            formulation,
            tolerance: 1e-10,
            ..Default::default()
        };
        let s = smooth::solve(&t, &s, &mut silent()).unwrap();
        let want = SinkhornSettings { regularisation: 0.1, tolerance: 1e-12, ..Default::default() };
        let want = sinkhorn(&t, &want, &mut silent()).unwrap();
        assert!(l1(&dense(&s.x.plan), &want.x.plan) < 1e-6, "{formulation:?}");
        assert!((s.x.primal - s.objective).abs() < 1e-7);
    }
}

#[test]
fn routing_balances_load() {
    let (tokens, experts) = (256, 8);
    // A skewed gate: expert 0 is everybody's favourite.
    let logits: Vec<f64> = draws(tokens * experts, 4)
        .iter()
        .enumerate()
        .map(|(i, v)| v + if i % experts == 0 { 1.0 } else { 0.0 })
        .collect();
    let r = route(&logits, experts, &RouterSettings::default()).unwrap();
    assert_eq!(r.k, 40);
    let mut loads = vec![0; experts];
    let p = dense(&r.dispatch);
    p.iter().enumerate().filter(|(_, v)| **v > 0.0).for_each(|(i, _)| loads[i % experts] += 1);
    assert!(loads.iter().all(|l| *l <= 40), "{loads:?}");
    assert!(r.gates.chunks(experts).all(|g| (g.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    let s = RouterSettings {
        orientation: Orientation::ExpertsPerToken,
        selected_experts: 2,
        iterations: 200,
        ..Default::default()
    };
    let r = route(&logits, experts, &s).unwrap();
    let p = dense(&r.dispatch);
    assert!(p.chunks(experts).all(|row| row.iter().filter(|v| **v > 0.0).count() <= 2));
    assert!(route(&logits[1..], experts, &s).is_err() && route(&[], 0, &s).is_err());
    assert!(matches!(route(&[f64::NAN; 4], 2, &s), Err(SolveError::NonFinite { .. })));
}

#[test]
fn hostile_settings() {
    let (a, c) = (vec![0.5; 2], vec![0.0, 1.0, 1.0, 0.0]);
    let t = Transport::new(&a, &a, &c).unwrap();
    for bad in [
        SnsSettings { eta: 0.0, ..Default::default() },
        SnsSettings { eta: 1e308, tolerance: -1.0, ..Default::default() },
        SnsSettings { variant: SnsVariant::Fixed(0), ..Default::default() },
        SnsSettings { cg_tolerance: 1.0, ..Default::default() },
    ] {
        assert!(matches!(sns::solve(&t, &bad, &mut silent()), Err(SolveError::Setting { .. })));
    }
    for bad in [
        KSparseSettings { k: 0, ..Default::default() },
        KSparseSettings { gamma: f64::NAN, ..Default::default() },
        KSparseSettings { ascent: Ascent::Adam { rate: 0.0 }, ..Default::default() },
    ] {
        assert!(matches!(ksparse::solve(&t, &bad, &mut silent()), Err(SolveError::Setting { .. })));
    }
    assert!(matches!(
        exact(&t, &ExactSettings { block: 0, ..Default::default() }, &mut silent()),
        Err(SolveError::Setting { .. })
    ));
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    assert_eq!(sns::solve(&t, &SnsSettings::default(), &mut monitor).unwrap().status, Status::Stopped);
    // One point on each side, points without mass, and costs with ties.
    let t = Transport::new(&[0.0, 1.0], &[1.0, 0.0], &c).unwrap();
    let s = sns::solve(&t, &SnsSettings::default(), &mut silent()).unwrap();
    assert!(s.status.is_converged() && s.x.plan == [0.0, 0.0, 1.0, 0.0], "{:?}", s.x);
    let flat = vec![2.0; 4];
    let t = Transport::new(&a, &a, &flat).unwrap();
    let s = sns::solve(&t, &SnsSettings::default(), &mut silent()).unwrap();
    assert!(s.status.is_converged() && l1(&s.x.plan, &[0.25; 4]) < 1e-12);
}
