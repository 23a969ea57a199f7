//! SPRIGHT: the aliasing identity, exact recovery, linearity, noise, samples asked once, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rarefy_solve::methods::spright::{Delays, Rate, Spectrum, SprightSettings, Subsampling, solve};
use rarefy_solve::{Monitor, Solution, SolveError, Status};

fn sign(m: u64, k: u64) -> f64 {
    if (m & k).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
}

fn support(n: u32, count: usize, seed: u64) -> Vec<(u64, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = BTreeMap::new();
    while out.len() < count {
        let k = rng.random::<u64>() >> (64 - n);
        out.insert(k, if rng.random::<bool>() { 1.0 } else { -1.0 });
    }
    out.into_iter().collect()
}

/// Noise is a function of the index.
fn noise(m: u64, sigma: f64, seed: u64) -> f64 {
    if sigma == 0.0 {
        return 0.0;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(m);
    let z: f64 = StandardNormal.sample(&mut rng);
    sigma * z
}

fn run(n: u32, truth: &[(u64, f64)], sigma: f64, settings: &SprightSettings) -> Solution<Spectrum> {
    let mut seen = BTreeSet::new();
    let mut oracle = |at: &[u64], x: &mut [f64]| {
        for (m, x) in at.iter().zip(x) {
            assert!(*m >> (n - 1) <= 1 && seen.insert(*m), "{m} is outside or asked twice");
            *x = truth.iter().map(|(k, a)| a * sign(*m, *k)).sum::<f64>() + noise(*m, sigma, settings.seed);
        }
    };
    solve(n, &mut oracle, settings, &mut Monitor::silent()).unwrap()
}

fn same(found: &[(u64, f64)], truth: &[(u64, f64)], tolerance: f64) -> bool {
    found.len() == truth.len()
        && found.iter().zip(truth).all(|(f, t)| f.0 == t.0 && (f.1 - t.1).abs() <= tolerance)
}

fn settings(sparsity: usize, seed: u64) -> SprightSettings {
    SprightSettings { sparsity, seed, ..Default::default() }
}

#[test]
fn one_coefficient_with_one_group_and_any_bins() {
    for n in [1, 5, 9, 63] {
        for bits in [0, 1, n.min(4)] {
            for k in [0, 1, (1 << (n - 1)) | 1] {
                let s = SprightSettings { groups: 1, bin_bits: Some(bits), ..settings(1, 3) };
                let found = run(n, &[(k, -2.5)], 0.0, &s);
                assert!(same(&found.x.entries, &[(k, -2.5)], 1e-12), "{n} {bits} {k}: {:?}", found.x);
                assert_eq!(found.status, Status::Converged);
            }
        }
    }
}

#[test]
fn two_in_one_bin_are_refused() {
    let s = SprightSettings { groups: 1, bin_bits: Some(0), ..settings(1, 3) };
    let found = run(10, &[(3, 1.0), (500, 0.7)], 0.0, &s);
    assert_eq!((found.x.entries.len(), found.x.unresolved_bins), (0, 1));
    assert_eq!(found.status, Status::Stalled);
}

#[test]
fn the_rows_of_the_specification_without_noise() {
    for (n, k, b, subsampling) in [
        (14, 20, 4, Subsampling::Random),
        (14, 20, 5, Subsampling::Random),
        (14, 20, 6, Subsampling::Random),
        (16, 40, 5, Subsampling::Random),
        (16, 40, 6, Subsampling::Random),
        (16, 40, 7, Subsampling::Random),
        (15, 20, 5, Subsampling::Blocks),
    ] {
        let mut full = 0;
        for seed in 0..20 {
            let truth = support(n, k, seed);
            let s = SprightSettings { bin_bits: Some(b), subsampling, ..settings(k, seed) };
            let found = run(n, &truth, 0.0, &s);
            assert!(found.x.samples_used <= (3 * (n as usize + 1)) << b);
            if same(&found.x.entries, &truth, 1e-9) {
                full += 1;
                assert!(found.objective < 1e-18);
                assert_eq!(found.x.unresolved_bins, 0);
            }
        }
        assert!(full >= 18, "n = {n}, K = {k}, b = {b}: {full} of 20");
    }
}

#[test]
fn bins_grow_and_old_samples_are_used_again() {
    // Far too few bins at first.
    let truth = support(20, 60, 1);
    let s = SprightSettings { growth: 6, ..settings(4, 1) };
    let found = run(20, &truth, 0.0, &s);
    assert!(same(&found.x.entries, &truth, 1e-9));
    assert!(found.x.bin_bits > 2 && found.x.samples_used <= (3 * 21) << found.x.bin_bits);
}

#[test]
fn noise_at_ten_decibels() {
    let (n, k, b) = (16, 20, 5);
    let sigma = (k as f64 / 10.0).sqrt();
    for delays in [
        Delays::Nso { chains: 3 },
        Delays::So { rate: Rate::OneHalf, checks: 8 },
        Delays::Mle { offsets: 40 },
    ] {
        let mut full = 0;
        for seed in 0..10 {
            let truth = support(n, k, seed);
            let s = SprightSettings { bin_bits: Some(b), delays, sigma: Some(sigma), ..settings(k, seed) };
            let found = run(n, &truth, sigma, &s);
            full += usize::from(same(&found.x.entries, &truth, 0.5));
        }
        assert!(full >= 9, "{delays:?}: {full} of 10");
    }
}

#[test]
fn scaling_and_shifting_the_signal() {
    let truth = support(12, 10, 5);
    let base = run(12, &truth, 0.0, &settings(10, 5)).x;
    let d = 0b1011_0110_0101;
    let moved: Vec<(u64, f64)> = truth.iter().map(|(k, a)| (*k, -3.0 * a * sign(d, *k))).collect();
    let found = run(12, &moved, 0.0, &settings(10, 5)).x;
    assert!(same(&base.entries, &truth, 1e-12) && same(&found.entries, &moved, 1e-12));
    assert_eq!(base.samples_used, found.samples_used);
}

#[test]
fn same_seed_same_bits_and_the_zero_signal() {
    let truth = support(16, 20, 9);
    assert_eq!(run(16, &truth, 0.0, &settings(20, 2)).x, run(16, &truth, 0.0, &settings(20, 2)).x);
    let zero = run(16, &[], 0.0, &settings(20, 2));
    assert!(zero.x.entries.is_empty() && zero.status == Status::Converged);
}

#[test]
fn a_signal_that_is_not_sparse_ends_with_a_status() {
    let truth = support(10, 900, 4);
    let s = SprightSettings { growth: 1, ..settings(8, 0) };
    let found = run(10, &truth, 0.0, &s);
    assert!(found.x.unresolved_bins > 0 && !found.status.is_converged());
}

#[test]
fn hostile_input() {
    let mut zero = |_: &[u64], x: &mut [f64]| x.fill(0.0);
    let mut bad = |s: SprightSettings, n| solve(n, &mut zero, &s, &mut Monitor::silent()).unwrap_err();
    for n in [0, 64] {
        assert!(matches!(bad(settings(4, 0), n), SolveError::Setting { field: "n", .. }));
    }
    for s in [
        settings(0, 0),
        SprightSettings { groups: 0, ..settings(4, 0) },
        SprightSettings { bin_bits: Some(11), ..settings(4, 0) },
        SprightSettings { gamma: f64::NAN, ..settings(4, 0) },
        SprightSettings { sigma: Some(-1.0), ..settings(4, 0) },
        SprightSettings { amplitude: Some(f64::INFINITY), ..settings(4, 0) },
        SprightSettings { max_passes: 0, ..settings(4, 0) },
        SprightSettings { delays: Delays::Nso { chains: 0 }, ..settings(4, 0) },
        SprightSettings { delays: Delays::Mle { offsets: 1 }, ..settings(4, 0) },
        SprightSettings { delays: Delays::So { rate: Rate::OneHalf, checks: 0 }, ..settings(4, 0) },
    ] {
        assert!(matches!(bad(s, 10), SolveError::Setting { .. }));
    }
    let mut nan = |_: &[u64], x: &mut [f64]| x.fill(f64::NAN);
    let e = solve(10, &mut nan, &settings(4, 0), &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::NonFinite { argument: "samples", .. }));
    assert!(serde_json::from_str::<SprightSettings>(r#"{"bins": 3}"#).is_err());
}

#[test]
fn overflow_is_an_error_and_the_clock_a_status() {
    let mut huge = |at: &[u64], x: &mut [f64]| at.iter().zip(x).for_each(|(m, x)| *x = 1e300 * sign(*m, 5));
    let e = solve(10, &mut huge, &settings(4, 0), &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Breakdown { .. }), "{e}");
    let mut one = |at: &[u64], x: &mut [f64]| at.iter().zip(x).for_each(|(m, x)| *x = sign(*m, 5));
    let mut monitor = Monitor::silent().with_time_limit(std::time::Duration::ZERO);
    assert_eq!(solve(10, &mut one, &settings(4, 0), &mut monitor).unwrap().status, Status::TimeLimit);
}

#[test]
fn search_and_votes_agree_when_the_noise_is_small() {
    let truth = support(14, 8, 2);
    let with = |delays| {
        let s = SprightSettings { bin_bits: Some(4), delays, sigma: Some(0.05), ..settings(8, 2) };
        run(14, &truth, 0.05, &s).x.entries
    };
    let (search, votes) = (with(Delays::Mle { offsets: 40 }), with(Delays::Nso { chains: 3 }));
    assert!(same(&search, &truth, 0.05) && same(&votes, &search, 0.05), "{search:?} {votes:?}");
}

#[test]
fn unknown_noise_is_estimated_and_known_amplitudes_are_snapped() {
    let sigma = 0.5;
    let mut full = 0;
    for seed in 0..10 {
        let truth = support(16, 20, seed);
        let delays = Delays::Nso { chains: 3 };
        let s = SprightSettings { bin_bits: Some(6), delays, ..settings(20, seed) };
        let found = run(16, &truth, sigma, &s).x;
        assert!(found.sigma > 0.7 * sigma && found.sigma < 1.3 * sigma, "{}", found.sigma);
        full += usize::from(same(&found.entries, &truth, 0.2));
        let s = SprightSettings { amplitude: Some(1.0), sigma: Some(sigma), ..s };
        assert!(same(&run(16, &truth, sigma, &s).x.entries, &truth, 0.0), "seed {seed}");
    }
    assert!(full >= 9, "{full} of 10");
}

#[test]
fn supports_of_low_degree_need_random_grids() {
    // All 15 coefficients of degree one and the constant: blocks of consecutive bits put most into few bins.
    let truth: Vec<(u64, f64)> =
        std::iter::once((0, 1.5)).chain((0..15).map(|q| (1 << q, 1.0 + f64::from(q) / 16.0))).collect();
    let full = |subsampling| {
        let solved = |seed| {
            let s = SprightSettings { bin_bits: Some(4), subsampling, ..settings(16, seed) };
            same(&run(15, &truth, 0.0, &s).x.entries, &truth, 1e-9)
        };
        (0..20).filter(|seed| solved(*seed)).count()
    };
    assert!(full(Subsampling::Random) >= 15, "{}", full(Subsampling::Random));
    assert_eq!(full(Subsampling::Blocks), 0);
}

#[derive(serde::Deserialize)]
struct Golden {
    n: u32,
    x: Vec<f64>,
    spectrum: Vec<f64>,
}

#[test]
fn the_matrix_of_scipy_gives_the_same_spectrum() {
    let text = include_str!("../../../tests/golden/solve/spright.json");
    let golden: Golden = serde_json::from_str(text).unwrap();
    let mut oracle =
        |at: &[u64], x: &mut [f64]| at.iter().zip(x).for_each(|(m, x)| *x = golden.x[*m as usize]);
    let found = solve(golden.n, &mut oracle, &settings(6, 1), &mut Monitor::silent()).unwrap().x;
    let mut dense = vec![0.0; golden.x.len()];
    found.entries.iter().for_each(|(k, v)| dense[*k as usize] = *v);
    assert!(dense.iter().zip(&golden.spectrum).all(|(a, b)| (a - b).abs() < 1e-12));
}
