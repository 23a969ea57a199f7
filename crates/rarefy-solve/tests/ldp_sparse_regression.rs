//! LDP sparse regression and its mechanisms: calibration, empirical privacy, limits without noise, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use rarefy_solve::experiments::ldp_sparse_regression::Users;
use rarefy_solve::methods::ldp_sparse_regression::client::{IhtClient, IhtMessage, NldpClient, NldpMessage};
use rarefy_solve::methods::ldp_sparse_regression::server::{
    IhtServer, Moments, public_gram, threshold_by_public_data,
};
use rarefy_solve::methods::ldp_sparse_regression::{
    Block, CovarianceNoise, LdpEstimate, LdpSettings, Protocol, solve,
};
use rarefy_solve::privacy::{PrivacyRng, analytic_gaussian_sigma, classical_gaussian_sigma, gaussian_delta};
use rarefy_solve::{Monitor, Solution, SolveError, Status};

#[derive(serde::Deserialize)]
struct Calibration {
    epsilon: f64,
    delta: f64,
    sigma: f64,
}

#[derive(serde::Deserialize)]
struct Golden {
    gaussian: Vec<Calibration>,
    d: usize,
    x: Vec<f64>,
    y: Vec<f64>,
    threshold: f64,
    dense: Vec<f64>,
    theta: Vec<f64>,
    iht: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/solve/ldp.json")).unwrap()
}

/// No noise, no clipping that bites.
fn open(protocol: Protocol) -> LdpSettings {
    LdpSettings {
        protocol,
        epsilon: f64::INFINITY,
        covariate_length: Some(1e6),
        covariate_bound: 1e6,
        response_bound: 1e6,
        gradient_length: Some(1e6),
        eigen_floor: 0.0,
        radius: 1e6,
        seed: Some(0),
        ..Default::default()
    }
}

fn run(d: usize, x: &[f64], y: &[f64], rows: usize, s: &LdpSettings) -> Solution<LdpEstimate> {
    let mut blocks =
        x.chunks(rows * d).zip(y.chunks(rows)).map(|(x, y)| Block { x: x.to_vec(), y: y.to_vec() });
    solve(d, y.len(), &mut blocks, Some(x), s, &mut Monitor::silent()).unwrap()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

#[test]
fn calibration_against_scipy_and_the_classical_formula() {
    for c in golden().gaussian {
        let sigma = analytic_gaussian_sigma(3.0, c.epsilon, c.delta).unwrap();
        assert!((sigma / 3.0 / c.sigma - 1.0).abs() < 1e-8, "{} {}: {sigma}", c.epsilon, c.delta);
        assert!(gaussian_delta(sigma, 3.0, c.epsilon).unwrap() <= c.delta);
        assert!(gaussian_delta(0.999 * sigma, 3.0, c.epsilon).unwrap() > c.delta);
        if c.epsilon <= 1.0 {
            assert!(sigma < classical_gaussian_sigma(3.0, c.epsilon, c.delta).unwrap());
        }
    }
    // Δ√(2 ln(1.25/δ'))/ε' with halves: by hand √(2 ln 2.5e6)·2 = 10.856 at ε = 1, δ = 1e-6.
    assert!((classical_gaussian_sigma(1.0, 0.5, 5e-7).unwrap() - 10.8560).abs() < 1e-3);
    for (s, e, d) in [(0.0, 1.0, 0.1), (1.0, 0.0, 0.1), (1.0, 501.0, 0.1), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)] {
        assert!(matches!(analytic_gaussian_sigma(s, e, d).unwrap_err(), SolveError::Setting { .. }));
    }
    assert!(gaussian_delta(0.0, 1.0, 1.0).is_err() && gaussian_delta(1.0, f64::NAN, 1.0).is_err());
}

#[test]
fn second_moments_differ_by_no_more_than_their_sensitivity() {
    // ‖xxᵀ − zzᵀ‖_F² = |x|⁴ + |z|⁴ − 2⟨x, z⟩² ≤ 2r⁴, reached by orthogonal vectors of full length.
    let mut worst = 0.0_f64;
    for i in 0..400 {
        for j in 0..400 {
            let at = |k: i32| (f64::from(k) * 0.031).sin_cos();
            let (x, z) = (at(i), at(j));
            let scale = f64::from(1 + i % 4) / 4.0;
            let (x, z) = ([x.0 * scale, x.1 * scale], [z.0, z.1]);
            let entry = |a: usize, b: usize| (x[a] * x[b] - z[a] * z[b]).powi(2);
            worst = worst.max((entry(0, 0) + entry(1, 1) + 2.0 * entry(0, 1)).sqrt());
        }
    }
    assert!(worst <= 2f64.sqrt() + 1e-12 && worst > 0.9999 * 2f64.sqrt(), "{worst}");
}

/// Share of events of the form score > t for two inputs; the hockey-stick bound must hold and be nearly reached.
fn check_private(epsilon: f64, delta: f64, p: &mut [f64], q: &mut [f64], is_tight: bool) {
    p.sort_unstable_by(f64::total_cmp);
    q.sort_unstable_by(f64::total_cmp);
    let n = p.len() as f64;
    let mut worst = f64::NEG_INFINITY;
    for t in (0..400).map(|i| p[i * p.len() / 400]) {
        let above = |v: &[f64]| 1.0 - v.partition_point(|v| *v <= t) as f64 / n;
        worst = worst.max(above(p) - epsilon.exp() * above(q));
    }
    // Two shares of n draws, the second times e^ε.
    let spread = 4.0 * (0.25 * (1.0 + epsilon.exp() * epsilon.exp()) / n).sqrt();
    assert!(worst <= delta + spread, "{worst} > {delta} + {spread}");
    assert!(!is_tight || worst >= delta - spread, "{worst} < {delta} - {spread}");
}

#[test]
fn messages_of_worst_neighbours_are_as_private_as_promised() {
    let (epsilon, delta, d, draws) = (1.0, 0.05, 3, 100_000);
    let base = LdpSettings { epsilon, delta, ..Default::default() };
    // Cross moments: opposite corners, along their difference.
    let s = LdpSettings { protocol: Protocol::PublicCovariates, ..base.clone() };
    let client = NldpClient::new(d, &s).unwrap();
    let score = |y: f64, seed| -> Vec<f64> {
        let mut rng = PrivacyRng::repeatable_without_privacy(seed, 0);
        let sum = |m: NldpMessage| m.cross.iter().sum::<f64>();
        (0..draws).map(|_| sum(client.report(&[9.0; 3], y, &mut rng).unwrap())).collect()
    };
    check_private(epsilon, delta, &mut score(9.0, 1), &mut score(-9.0, 2), true);
    // Second moments: orthogonal vectors of full length, with half of the budget.
    for noise in [CovarianceNoise::Symmetrised, CovarianceNoise::UpperTriangle] {
        let s = LdpSettings { protocol: Protocol::Nldp, covariance_noise: noise, ..base.clone() };
        let client = NldpClient::new(d, &s).unwrap();
        let score = |x: [f64; 3], seed| -> Vec<f64> {
            let mut rng = PrivacyRng::repeatable_without_privacy(seed, 0);
            let difference = |m: NldpMessage| m.gram_upper[0] - m.gram_upper[3];
            (0..draws).map(|_| difference(client.report(&x, 0.0, &mut rng).unwrap())).collect()
        };
        let (mut p, mut q) = (score([99.0, 0.0, 0.0], 3), score([0.0, 99.0, 0.0], 4));
        check_private(0.5 * epsilon, 0.5 * delta, &mut p, &mut q, true);
    }
    // IHT: opposite gradients, pure ε.
    let client = IhtClient::new(d, &base).unwrap();
    let score = |y: f64, seed| -> Vec<f64> {
        let mut rng = PrivacyRng::repeatable_without_privacy(seed, 0);
        let first = |m: IhtMessage| m.gradient[0];
        (0..draws).map(|_| first(client.report(&[9.0, 0.0, 0.0], y, &[0.0; 3], &mut rng).unwrap())).collect()
    };
    check_private(epsilon, 0.0, &mut score(9.0, 5), &mut score(-9.0, 6), true);
}

#[test]
fn without_noise_the_protocols_are_thresholded_least_squares_and_hard_thresholding() {
    let g = golden();
    for protocol in [Protocol::Nldp, Protocol::PublicCovariates] {
        let s = LdpSettings { threshold: Some(g.threshold), ..open(protocol) };
        let found = run(g.d, &g.x, &g.y, 7, &s);
        assert_eq!((found.status, found.iterations), (Status::Converged, g.y.len()));
        assert!(close(&found.x.dense, &g.dense, 1e-10) && close(&found.x.theta, &g.theta, 1e-10));
        let none = run(g.d, &g.x, &g.y, 7, &LdpSettings { threshold: Some(0.0), ..s.clone() }).x;
        assert_eq!(none.theta, none.dense);
        let all = run(g.d, &g.x, &g.y, 7, &LdpSettings { threshold: Some(9.0), ..s }).x;
        assert!(all.theta.iter().all(|t| *t == 0.0));
    }
    for rows in [1, 7, 40] {
        let s = LdpSettings { rounds: 4, keep: Some(2), ..open(Protocol::Iht) };
        assert!(close(&run(g.d, &g.x, &g.y, rows, &s).x.theta, &g.iht, 1e-12), "blocks of {rows}");
    }
}

#[test]
fn order_and_blocks_and_threads_do_not_matter() {
    let users: Vec<Block> = Users::new(4, 3000, 1).collect();
    let (x, y): (Vec<f64>, Vec<f64>) =
        (users.iter().flat_map(|b| b.x.clone()).collect(), users.iter().flat_map(|b| b.y.clone()).collect());
    for protocol in [Protocol::Nldp, Protocol::PublicCovariates, Protocol::Iht] {
        let s = LdpSettings { protocol, seed: Some(3), ..Default::default() };
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let [one, two] = [1, 2].map(|t| pool(t).install(|| run(4, &x, &y, 3000, &s).x));
        assert_eq!(one, two);
        assert!(close(&run(4, &x, &y, 111, &s).x.theta, &one.theta, 1e-9));
    }
    // The server adds messages: any order gives the same estimate.
    let client = NldpClient::new(4, &LdpSettings { protocol: Protocol::Nldp, ..Default::default() }).unwrap();
    let messages: Vec<NldpMessage> = (0..500)
        .map(|i| {
            let mut rng = PrivacyRng::repeatable_without_privacy(5, i as u64);
            client.report(&x[4 * i..4 * i + 4], y[i], &mut rng).unwrap()
        })
        .collect();
    let (mut a, mut b) = (Moments::new(4), Moments::new(4));
    messages.iter().for_each(|m| a.add(m).unwrap());
    messages.iter().rev().for_each(|m| b.add(m).unwrap());
    assert!(close(&a.estimate(0.5).unwrap(), &b.estimate(0.5).unwrap(), 1e-9) && a.users() == 500);
}

#[test]
fn noise_is_smaller_where_it_may_be() {
    let noise = |s: &LdpSettings| {
        let client = NldpClient::new(6, s).unwrap();
        (client.gram_noise(), client.cross_noise())
    };
    let s = LdpSettings { protocol: Protocol::Nldp, epsilon: 4.0, ..Default::default() };
    let (gram, cross) = noise(&s);
    let (joint_gram, joint_cross) = noise(&LdpSettings { joint: true, ..s.clone() });
    assert!(joint_gram.unwrap() < gram.unwrap() && joint_cross < cross);
    let (none, public) = noise(&LdpSettings { protocol: Protocol::PublicCovariates, ..s });
    assert!(none.is_none() && public < joint_cross);
}

#[test]
fn errors_are_ordered_and_supports_found() {
    let error = |protocol| {
        let mut users = Users::new(8, 200_000, 7);
        let truth = users.theta.clone();
        let public: Vec<f64> = Users::new(8, 20_000, 99).flat_map(|b| b.x).collect();
        let s = LdpSettings { protocol, epsilon: 4.0, seed: Some(7), ..Default::default() };
        let x = solve(8, 200_000, &mut users, Some(&public), &s, &mut Monitor::silent()).unwrap().x;
        let off: f64 = x.theta.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum();
        let found = truth.iter().zip(&x.theta).all(|(t, f)| *t == 0.0 || *f != 0.0);
        (off.sqrt(), found)
    };
    let (a, b, c) = (error(Protocol::Nldp), error(Protocol::PublicCovariates), error(Protocol::Iht));
    assert!(c.0 < b.0 && b.0 < a.0 && c.0 < 0.15 && c.1, "{a:?} {b:?} {c:?}");
}

#[test]
fn public_data_choose_the_threshold() {
    let x = [1.0, 0.0, 0.0, 1.0];
    let y = [0.5, 0.0];
    let best = threshold_by_public_data(&[0.7, 0.2], &x, &y, &[0.0, 0.2, 0.4]).unwrap();
    assert_eq!(best, 0.2);
    assert!(threshold_by_public_data(&[0.7, 0.2], &x, &y, &[]).is_err());
    assert!(threshold_by_public_data(&[0.7, 0.2], &x[1..], &y, &[0.1]).is_err());
}

#[test]
fn hostile_input() {
    for s in [
        LdpSettings { epsilon: 0.0, ..Default::default() },
        LdpSettings { epsilon: f64::NAN, ..Default::default() },
        LdpSettings { delta: 0.0, ..Default::default() },
        LdpSettings { sparsity: 0, ..Default::default() },
        LdpSettings { covariate_length: Some(-1.0), ..Default::default() },
        LdpSettings { covariate_bound: 0.0, ..Default::default() },
        LdpSettings { response_bound: f64::INFINITY, ..Default::default() },
        LdpSettings { threshold: Some(-0.1), ..Default::default() },
        LdpSettings { eigen_floor: f64::NAN, ..Default::default() },
        LdpSettings { rounds: 0, ..Default::default() },
        LdpSettings { gradient_length: Some(0.0), ..Default::default() },
        LdpSettings { step: 0.0, ..Default::default() },
        LdpSettings { keep: Some(0), ..Default::default() },
        LdpSettings { radius: 0.0, ..Default::default() },
    ] {
        assert!(matches!(s.validate().unwrap_err(), SolveError::Setting { .. }), "{s:?}");
    }
    let block = |x: &[f64], y: &[f64]| Block { x: x.to_vec(), y: y.to_vec() };
    let s = LdpSettings { rounds: 2, seed: Some(0), ..Default::default() };
    let go = |d, n, b: Block, s: &LdpSettings| {
        solve(d, n, &mut std::iter::once(b), None, s, &mut Monitor::silent()).unwrap_err()
    };
    assert!(matches!(go(0, 2, block(&[], &[]), &s), SolveError::Setting { field: "d", .. }));
    assert!(matches!(go(1, 1, block(&[1.0], &[1.0]), &s), SolveError::Invalid { argument: "n", .. }));
    assert!(matches!(go(2, 2, block(&[1.0; 3], &[1.0; 2]), &s), SolveError::Dimension { .. }));
    assert!(matches!(
        go(1, 2, block(&[1.0; 3], &[1.0; 3]), &s),
        SolveError::Dimension { argument: "users", .. }
    ));
    assert!(matches!(
        go(1, 3, block(&[1.0; 2], &[1.0; 2]), &s),
        SolveError::Dimension { argument: "users", .. }
    ));
    assert!(matches!(
        go(1, 2, block(&[f64::NAN, 1.0], &[1.0; 2]), &s),
        SolveError::NonFinite { argument: "x", .. }
    ));
    assert!(matches!(
        go(1, 2, block(&[1.0; 2], &[1.0, f64::INFINITY]), &s),
        SolveError::NonFinite { argument: "y", .. }
    ));
    let public = LdpSettings { protocol: Protocol::PublicCovariates, ..s.clone() };
    assert!(matches!(
        go(1, 2, block(&[1.0; 2], &[1.0; 2]), &public),
        SolveError::Invalid { argument: "public", .. }
    ));
    assert!(public_gram(2, &[1.0; 3]).is_err() && public_gram(2, &[]).is_err());
    // Without noise and floor, covariates of rank one have no inverse.
    let flat = LdpSettings { ..open(Protocol::Nldp) };
    let singular = go(2, 2, block(&[1.0, 0.0, 2.0, 0.0], &[1.0; 2]), &flat);
    assert!(matches!(singular, SolveError::Breakdown { .. }), "{singular}");
    let mut server = IhtServer::new(2, &s).unwrap();
    assert!(server.add(&IhtMessage { gradient: vec![1.0] }).is_err());
    assert!(server.add(&IhtMessage { gradient: vec![1.0, f64::NAN] }).is_err());
    assert!(matches!(server.end_round().unwrap_err(), SolveError::Empty { .. }));
    let mut moments = Moments::new(2);
    assert!(moments.add(&NldpMessage { gram_upper: vec![1.0], cross: vec![0.0; 2] }).is_err());
    assert!(matches!(moments.estimate(0.5).unwrap_err(), SolveError::Empty { .. }));
    // Huge but finite values are cut, not overflowed.
    let client = IhtClient::new(2, &s).unwrap();
    let mut rng = PrivacyRng::from_system().unwrap();
    let m = client.report(&[1e308, -1e308], 1e308, &[1e308, -1e308], &mut rng).unwrap();
    assert!(m.gradient.iter().all(|g| g.is_finite()));
    let keyed = LdpSettings { rounds: 1, ..Default::default() };
    let b = block(&[1.0, 2.0], &[1.0, 2.0]);
    assert!(solve(1, 2, &mut std::iter::once(b), None, &keyed, &mut Monitor::silent()).is_ok());
    assert!(serde_json::from_str::<LdpSettings>(r#"{"eps": 3}"#).is_err());
    let text = serde_json::to_string(&LdpSettings::default()).unwrap();
    assert_eq!(serde_json::from_str::<LdpSettings>(&text).unwrap(), LdpSettings::default());
}
