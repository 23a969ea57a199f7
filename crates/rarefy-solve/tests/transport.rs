//! Sinkhorn and exact transport: by hand, limits, invariants, hostile input.
#![allow(missing_docs, clippy::unwrap_used)]

use proptest::prelude::*;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::transport::{Domain, SinkhornSettings, Transport, sinkhorn, sinkhorn_from};
use rarefy_solve::{Monitor, SolveError, Status};

fn random(m: usize, n: usize, seed: u64) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(0.05..1.0)).collect() };
    let (mut a, mut b, c) = (draw(m), draw(n), draw(m * n));
    for w in [&mut a, &mut b] {
        let s: f64 = w.iter().sum();
        w.iter_mut().for_each(|v| *v /= s);
    }
    (a, b, c)
}

fn settings(regularisation: f64, domain: Domain) -> SinkhornSettings {
    SinkhornSettings { regularisation, domain, tolerance: 1e-12, max_iterations: 100_000 }
}

fn l1(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).sum()
}

#[test]
fn two_points_by_hand() {
    // By symmetry P = [[p, q], [q, p]] with p + q = 1/2 and p/q = exp(1/ε).
    let t = Transport::new(&[0.5, 0.5], &[0.5, 0.5], &[0.0, 1.0, 1.0, 0.0]).unwrap();
    for domain in [Domain::Kernel, Domain::Log, Domain::Auto] {
        let s = sinkhorn(&t, &settings(0.5, domain), &mut Monitor::silent()).unwrap();
        let q = 0.5 / (1.0 + 2.0_f64.exp());
        assert!(l1(&s.x.plan, &[0.5 - q, q, q, 0.5 - q]) < 1e-12, "{:?}", s.x);
        assert!((s.x.cost - 2.0 * q).abs() < 1e-12);
    }
}

#[test]
fn kernel_and_log_domain_agree_at_odd_sizes_and_with_rows_left_out() {
    for (m, n) in [(1, 1), (1, 7), (5, 3), (33, 65), (130, 217)] {
        let (mut a, b, c) = random(m, n, 7);
        if m > 4 {
            a[2] += a[3];
            a[3] = 0.0;
        }
        let t = Transport::new(&a, &b, &c).unwrap();
        let k = sinkhorn(&t, &settings(0.05, Domain::Kernel), &mut Monitor::silent()).unwrap();
        let l = sinkhorn(&t, &settings(0.05, Domain::Log), &mut Monitor::silent()).unwrap();
        assert!(k.status.is_converged() && l.status.is_converged());
        assert!(l1(&k.x.plan, &l.x.plan) < 1e-11, "{m} {n} {}", l1(&k.x.plan, &l.x.plan));
        // P = exp((f ⊕ g − C)/ε), and rows without mass are empty.
        for i in 0..m {
            for j in 0..n {
                let p = ((l.x.f[i] + l.x.g[j] - c[i * n + j]) / 0.05).exp();
                assert!((p - l.x.plan[i * n + j]).abs() < 1e-13);
            }
        }
        let rows: Vec<f64> = l.x.plan.chunks(n).map(|r| r.iter().sum()).collect();
        assert!(l1(&rows, &a) < 1e-11);
    }
}

#[test]
fn never_nan_down_to_a_ten_thousandth() {
    let (a, b, c) = random(60, 80, 3);
    let t = Transport::new(&a, &b, &c).unwrap();
    for reg in [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-12] {
        for domain in [Domain::Log, Domain::Auto] {
            let s = SinkhornSettings { max_iterations: 200, ..settings(reg, domain) };
            let s = sinkhorn(&t, &s, &mut Monitor::silent()).unwrap();
            assert!(s.x.plan.iter().chain(&s.x.f).chain(&s.x.g).all(|v| v.is_finite()), "{reg}");
            assert!(s.residual("column sums, l1").unwrap() < 1e-9 + 1e-14 / reg, "{reg} {:?}", s.residuals);
            assert!(s.x.cost > 0.0 && s.objective.is_finite());
        }
    }
    let e = sinkhorn(&t, &settings(1e-4, Domain::Kernel), &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Breakdown { .. }), "{e}");
}

#[test]
fn the_dual_value_never_falls_and_threads_change_no_bit() {
    let (a, b, c) = random(200, 150, 5);
    let t = Transport::new(&a, &b, &c).unwrap();
    for domain in [Domain::Kernel, Domain::Log] {
        let s = SinkhornSettings { max_iterations: 50, tolerance: 0.0, ..settings(0.02, domain) };
        let run = || sinkhorn(&t, &s, &mut Monitor::silent()).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
        let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(run);
        assert_eq!(one.x, two.x);
        assert_eq!(one.status, Status::MaxIterations);
        assert!(one.trace.windows(2).all(|w| w[1].objective >= w[0].objective - 1e-12));
        assert!(one.trace.windows(2).all(|w| w[1].residual <= w[0].residual + 1e-14));
    }
}

#[test]
fn a_warm_start_is_done_at_once() {
    let (a, b, c) = random(20, 30, 9);
    let t = Transport::new(&a, &b, &c).unwrap();
    let s = settings(0.05, Domain::Auto);
    let cold = sinkhorn(&t, &s, &mut Monitor::silent()).unwrap();
    let warm = sinkhorn_from(&t, Some(&cold.x.g), &s, &mut Monitor::silent()).unwrap();
    assert!(cold.iterations > 5 && warm.iterations <= 2, "{} {}", cold.iterations, warm.iterations);
    let e = sinkhorn_from(&t, Some(&cold.x.g[1..]), &s, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "g", expected: 30, found: 29, .. }));
    let e = sinkhorn_from(&t, Some(&[f64::NAN; 30]), &s, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::NonFinite { argument: "g", .. }));
    let bad = SinkhornSettings { regularisation: 0.0, ..s.clone() };
    assert!(matches!(sinkhorn(&t, &bad, &mut Monitor::silent()), Err(SolveError::Setting { .. })));
    let bad = SinkhornSettings { tolerance: -1.0, ..s.clone() };
    assert!(matches!(sinkhorn(&t, &bad, &mut Monitor::silent()), Err(SolveError::Setting { .. })));
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    assert_eq!(sinkhorn(&t, &s, &mut monitor).unwrap().status, Status::Stopped);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_constant_and_a_scale_change_nothing(m in 1_usize..8, n in 1_usize..8, seed in 0_u64..1000, shift in -5.0..5.0, scale in 0.1..10.0) {
        let (a, b, c) = random(m, n, seed);
        let s = sinkhorn(&Transport::new(&a, &b, &c).unwrap(), &settings(0.1, Domain::Auto), &mut Monitor::silent()).unwrap();
        let moved: Vec<f64> = c.iter().map(|c| scale * (c + shift)).collect();
        let other = sinkhorn(&Transport::new(&a, &b, &moved).unwrap(), &settings(0.1 * scale, Domain::Log), &mut Monitor::silent()).unwrap();
        prop_assert!(l1(&s.x.plan, &other.x.plan) < 1e-10);
    }
}
