//! Matrix completion: oracles, limits, invariants, recovery, hostile input.
#![allow(missing_docs, clippy::unwrap_used)]

use faer::Mat;
use proptest::prelude::*;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::experiments::matrix_completion::Planted;
use rarefy_solve::linop::Triplet;
use rarefy_solve::methods::matrix_completion::{
    Accuracy, Centre, Clip, CompletionSettings, Factors, Mode, Observed, Offsets, SoftImputeSettings,
    largest_regularisation, soft_impute, solve,
};
use rarefy_solve::{Monitor, Solution, SolveError, Status};
use serde_json::Value;

fn run(data: &Observed, from: Option<&Factors>, settings: &CompletionSettings) -> Solution<Factors> {
    solve(data, None, from, settings, &mut Monitor::silent()).unwrap()
}

fn settings(rank: usize, rounds: usize, mode: Mode) -> CompletionSettings {
    let accuracy = Accuracy::Fixed(1e-14);
    CompletionSettings {
        rank,
        rounds,
        mode,
        accuracy,
        tolerance: 0.0,
        improvement: 0.0,
        ..Default::default()
    }
}

fn factors(u: Vec<f64>, rank: usize, m: usize, n: usize) -> Factors {
    let offsets = Offsets { mean: 0.0, row: vec![0.0; m], col: vec![0.0; n] };
    Factors { rank, u, v: vec![0.0; n * rank], offsets, round: 0, cg_steps: 0 }
}

fn all(x: &Factors) -> Vec<f64> {
    let (m, n) = (x.offsets.row.len(), x.offsets.col.len());
    (0..m * n).map(|at| x.predict(at / n, at % n).unwrap()).collect()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0_f64, |t, (a, b)| if (a - b).is_nan() { f64::NAN } else { t.max((a - b).abs()) })
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn random(m: usize, n: usize, density: f64, seed: u64) -> Vec<Triplet> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out: Vec<Triplet> = vec![];
    for at in 0..m * n {
        let v: f64 = rng.random_range(-1.0..1.0);
        if rng.random_range(0.0..1.0) < density || at == 0 {
            out.push((at / n, at % n, v));
        }
    }
    out
}

#[test]
fn golden_values_of_numpy() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/solve/matrix-completion.json")).unwrap();
    let size = |name: &str| golden[name].as_u64().unwrap() as usize;
    let (m, n, k) = (size("m"), size("n"), size("k"));
    let (x, mask, weight) = (floats(&golden["x"]), floats(&golden["mask"]), floats(&golden["weight"]));
    let known: Vec<usize> = (0..m * n).filter(|at| mask[*at] > 0.0).collect();
    let entries: Vec<Triplet> = known.iter().map(|at| (at / n, at % n, x[*at])).collect();
    let weights: Vec<f64> = known.iter().map(|at| weight[*at]).collect();
    let plain = Observed::new(m, n, &entries).unwrap();
    let weighted = Observed::with_weights(m, n, &entries, &weights).unwrap();
    let start = factors(floats(&golden["start"]), k, m, n);
    for mode in [Mode::Exact, Mode::Shared, Mode::Sketched] {
        for (name, data, ridge, rounds) in [
            ("als", &plain, 0.0, 1),
            ("als_3", &plain, 0.0, 3),
            ("ridge", &plain, 0.05, 4),
            ("weighted", &weighted, 0.02, 4),
        ] {
            let s = run(data, Some(&start), &CompletionSettings { ridge, ..settings(k, rounds, mode) });
            let d = apart(&all(&s.x), &floats(&golden[name]));
            assert!(d < 1e-9, "{mode:?} {name}: {d:e}");
        }
    }
    let s = SoftImputeSettings { rank: n, tolerance: 1e-12, max_iterations: 5000, ..Default::default() };
    let s = soft_impute(&plain, None, &s, &mut Monitor::silent()).unwrap();
    assert!(s.status.is_converged(), "{:?} {:?}", s.status, s.residuals);
    assert!((s.objective - golden["soft_objective"].as_f64().unwrap()).abs() < 1e-9);
    let d = apart(&all(&s.x), &floats(&golden["soft"]));
    assert!(d < 1e-5, "{d:e}");
}

#[test]
fn everything_observed_is_found_in_one_round() {
    let truth = Planted::new(40, 3, false, 1);
    let data = truth.observe(2.0, 0.0, 1).unwrap();
    assert_eq!(data.nnz(), 1600);
    for mode in [Mode::Exact, Mode::Shared, Mode::Sketched] {
        let s = run(&data, None, &settings(3, 1, mode));
        assert!(truth.error(&s.x) < 1e-13, "{mode:?} {:e}", truth.error(&s.x));
    }
    // By hand: [[1, 2], [2, ?]] of rank 1 has 4 in the corner.
    let data = Observed::new(2, 2, &[(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0)]).unwrap();
    let s = run(&data, None, &CompletionSettings { rank: 1, rounds: 400, ..settings(1, 400, Mode::Exact) });
    assert!((s.x.predict(1, 1).unwrap() - 4.0).abs() < 1e-6, "{:?}", s.x.predict(1, 1));
    assert_eq!((s.x.predict(2, 0), s.x.predict(0, 2)), (None, None));
}

#[test]
fn accurate_solves_equal_exact_ones_in_every_round() {
    let truth = Planted::new(90, 4, false, 2);
    let data = truth.observe(0.4, 0.05, 2).unwrap();
    for ridge in [0.0, 1e-3] {
        for rounds in 1..6 {
            let exact = run(&data, None, &CompletionSettings { ridge, ..settings(4, rounds, Mode::Exact) });
            for mode in [Mode::Shared, Mode::Sketched] {
                let s = run(&data, None, &CompletionSettings { ridge, ..settings(4, rounds, mode) });
                assert!(s.x.cg_steps > 0);
                let d = apart(&all(&exact.x), &all(&s.x));
                assert!(d < 1e-10, "{mode:?} {rounds} {d:e}");
            }
        }
    }
}

#[test]
fn a_rotated_start_and_permuted_rows_give_the_same_matrix() {
    let truth = Planted::new(60, 3, false, 3);
    let data = truth.observe(0.4, 0.1, 3).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let u: Vec<f64> = (0..180).map(|_| rng.random_range(-1.0..1.0)).collect();
    let (c, s) = (0.6, 0.8);
    let turned = u.chunks(3).flat_map(|r| [c * r[0] - s * r[2], r[1], s * r[0] + c * r[2]]).collect();
    for ridge in [0.0, 0.01] {
        let settings = CompletionSettings { ridge, ..settings(3, 3, Mode::Shared) };
        let a = run(&data, Some(&factors(u.clone(), 3, 60, 60)), &settings);
        let b = run(&data, Some(&factors(Vec::clone(&turned), 3, 60, 60)), &settings);
        assert!(apart(&all(&a.x), &all(&b.x)) < 1e-10);
        let moved: Vec<Triplet> = data.entries().map(|(i, j, v)| ((i * 7 + 3) % 60, j, v)).collect();
        let moved = run(&Observed::new(60, 60, &moved).unwrap(), None, &settings);
        let plain = run(&data, None, &settings);
        for i in 0..60 {
            for j in 0..60 {
                let d = moved.x.predict((i * 7 + 3) % 60, j).unwrap() - plain.x.predict(i, j).unwrap();
                assert!(d.abs() < 1e-8, "{d:e}");
            }
        }
    }
}

#[test]
fn recovers_with_the_schedule_and_threads_change_no_bit() {
    let truth = Planted::new(200, 4, false, 4);
    let data = truth.observe(0.25, 0.0, 4).unwrap();
    let mut rounds = vec![];
    for mode in [Mode::Exact, Mode::Shared, Mode::Sketched] {
        let settings = CompletionSettings { rank: 4, rounds: 40, mode, ..Default::default() };
        let fit = || run(&data, None, &settings);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(fit);
        let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(fit);
        assert_eq!(one.x, two.x);
        assert!(
            one.status.is_converged() && truth.error(&one.x) < 1e-8,
            "{mode:?} {:e}",
            truth.error(&one.x)
        );
        rounds.push(one.iterations as f64);
        // A warm start from the answer is done at once.
        assert!(run(&data, Some(&one.x), &settings).iterations <= 1);
    }
    assert!(rounds.iter().all(|r| *r <= 1.2 * rounds[0]), "{rounds:?}");
    // The clip leaves incoherent starts alone.
    let clip = |clip| run(&data, None, &CompletionSettings { rank: 4, clip, ..Default::default() }).x;
    assert_eq!(clip(Clip::Off), clip(Clip::Estimated));
    assert_ne!(clip(Clip::Off), clip(Clip::Incoherence(0.3)));
}

#[test]
fn a_fixed_accuracy_bounds_the_error_and_held_out_entries_stop() {
    let truth = Planted::new(200, 4, false, 5);
    let data = truth.observe(0.3, 0.0, 5).unwrap();
    let fixed = CompletionSettings { accuracy: Accuracy::Fixed(1e-2), ..settings(4, 25, Mode::Shared) };
    let e = truth.error(&run(&data, None, &fixed).x);
    assert!(e < 3e-2 && e > 1e-2 / 30.0, "{e:e}");
    let noisy = truth.observe(0.2, 0.5, 6).unwrap();
    let (fitting, held): (Vec<_>, Vec<_>) = noisy.entries().partition(|(i, j, _)| (i * 31 + j * 17) % 10 > 0);
    let (fitting, held) =
        (Observed::new(200, 200, &fitting).unwrap(), Observed::new(200, 200, &held).unwrap());
    let s = CompletionSettings { rank: 8, rounds: 100, ..Default::default() };
    let s = solve(&fitting, Some(&held), None, &s, &mut Monitor::silent()).unwrap();
    let best = s.residual("error on held-out entries").unwrap();
    assert!(s.status.is_converged() && s.x.round + 3 == s.iterations, "{:?} {}", s.status, s.x.round);
    assert_eq!(s.x.score(&held).unwrap(), best);
    let split = CompletionSettings { split: true, rounds: 5, rank: 4, ..Default::default() };
    assert!(truth.error(&run(&data, None, &split).x) > 0.5);
}

#[test]
fn unobserved_rows_weights_offsets_and_masks() {
    let entries: Vec<Triplet> =
        random(20, 12, 0.6, 7).into_iter().filter(|(i, j, _)| *i != 5 && *j != 3).collect();
    let data = Observed::new(20, 12, &entries).unwrap();
    let centre = Centre::Biases { damping: 1.0 };
    let biased = CompletionSettings { centre, ridge: 0.05, ..settings(2, 20, Mode::Shared) };
    let s = run(&data, None, &biased);
    let o = &s.x.offsets;
    assert_eq!(s.x.predict(5, 3), Some(o.mean));
    assert_eq!(s.x.predict(5, 0), Some(o.mean + o.col[0]));
    let mean = entries.iter().map(|e| e.2).sum::<f64>() / entries.len() as f64;
    assert!((o.mean - mean).abs() < 1e-14 && o.row[5] == 0.0);
    // Offsets are at rest: Σ (v − mean − row − col) = damping·row.
    for i in 0..20 {
        let r: f64 = entries.iter().filter(|e| e.0 == i).map(|e| e.2 - o.at(i, e.1)).sum();
        assert!((r - o.row[i]).abs() < 1e-10);
    }
    // The NaN mask says the same as the entries.
    let mut dense = Mat::from_fn(20, 12, |_, _| f64::NAN);
    entries.iter().for_each(|(i, j, v)| dense[(*i, *j)] = *v);
    assert_eq!(Observed::from_nan_mask(dense.as_ref()).unwrap(), data);
    // A weight of 0 is an entry left out, and one factor on all weights changes nothing.
    let exact = CompletionSettings { ridge: 0.05, ..settings(2, 6, Mode::Exact) };
    let weights: Vec<f64> = (0..entries.len()).map(|t| if t % 9 == 0 { 0.0 } else { 1.0 }).collect();
    let kept: Vec<Triplet> = entries.iter().enumerate().filter(|(t, _)| t % 9 > 0).map(|(_, e)| *e).collect();
    let a = run(&Observed::with_weights(20, 12, &entries, &weights).unwrap(), None, &exact);
    let b = run(&Observed::new(20, 12, &kept).unwrap(), None, &exact);
    assert!(apart(&all(&a.x), &all(&b.x)) < 1e-9);
    let c = run(&Observed::with_weights(20, 12, &entries, &vec![3.0; entries.len()]).unwrap(), None, &exact);
    assert!(apart(&all(&c.x), &all(&run(&data, None, &exact).x)) < 1e-9);
    // Nothing but zeros.
    let s = run(
        &Observed::new(3, 3, &[(0, 0, 0.0), (2, 1, 0.0)]).unwrap(),
        None,
        &CompletionSettings { rank: 2, ..Default::default() },
    );
    assert!(s.status.is_converged() && all(&s.x).iter().all(|v| *v == 0.0));
}

#[test]
fn soft_impute_by_hand_and_at_its_limits() {
    // All observed: the singular values lose λ. diag(3, 1) with λ = 2 becomes diag(1, 0).
    let data = Observed::new(2, 2, &[(0, 0, 3.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)]).unwrap();
    let two = SoftImputeSettings { regularisation: 2.0, rank: 2, tolerance: 1e-12, ..Default::default() };
    let s = soft_impute(&data, None, &two, &mut Monitor::silent()).unwrap();
    assert!(apart(&all(&s.x), &[1.0, 0.0, 0.0, 0.0]) < 1e-9 && s.x.rank == 1, "{:?}", s.x);
    assert!((largest_regularisation(&data) - 3.0).abs() < 1e-12);
    let data = Observed::new(30, 25, &random(30, 25, 0.5, 8)).unwrap();
    let top = largest_regularisation(&data);
    let zero = SoftImputeSettings { regularisation: top * 1.0001, rank: 5, ..Default::default() };
    let s = soft_impute(&data, None, &zero, &mut Monitor::silent()).unwrap();
    assert!(s.iterations == 0 && all(&s.x).iter().all(|v| *v == 0.0));
    let half = SoftImputeSettings {
        regularisation: top / 3.0,
        rank: 25,
        tolerance: 1e-8,
        max_iterations: 3000,
        ..Default::default()
    };
    let s = soft_impute(&data, None, &half, &mut Monitor::silent()).unwrap();
    assert!(s.status.is_converged() && s.x.rank > 1 && s.x.rank < 25, "{:?} {}", s.residuals, s.x.rank);
    assert!(s.trace.windows(2).all(|w| w[1].objective <= w[0].objective * (1.0 + 1e-9)));
    let again = soft_impute(&data, Some(&s.x), &half, &mut Monitor::silent()).unwrap();
    assert!(again.iterations == 0 && again.x.rank > 0);
    let low = SoftImputeSettings { rank: 1, max_iterations: 20, ..half.clone() };
    assert_eq!(soft_impute(&data, None, &low, &mut Monitor::silent()).unwrap().status, Status::MaxIterations);
    for bad in [
        SoftImputeSettings { regularisation: 0.0, ..half.clone() },
        SoftImputeSettings { rank: 0, ..half.clone() },
        SoftImputeSettings { rank: 26, ..half.clone() },
        SoftImputeSettings { tolerance: -1.0, ..half.clone() },
    ] {
        assert!(matches!(
            soft_impute(&data, None, &bad, &mut Monitor::silent()),
            Err(SolveError::Setting { .. })
        ));
    }
    let weighted = Observed::with_weights(1, 1, &[(0, 0, 1.0)], &[2.0]).unwrap();
    let one = SoftImputeSettings { rank: 1, ..half };
    assert!(matches!(
        soft_impute(&weighted, None, &one, &mut Monitor::silent()),
        Err(SolveError::Invalid { argument: "data", .. })
    ));
}

#[test]
fn hostile_input() {
    let entry = |v: f64| [(0, 0, v)];
    assert!(matches!(Observed::new(2, 2, &[]), Err(SolveError::Empty { .. })));
    assert!(matches!(Observed::new(2, 2, &[(2, 0, 1.0)]), Err(SolveError::Invalid { .. })));
    assert!(matches!(Observed::new(2, 2, &entry(f64::NAN)), Err(SolveError::NonFinite { .. })));
    assert!(matches!(Observed::new(2, 2, &[(0, 0, 1.0), (0, 0, 2.0)]), Err(SolveError::Invalid { .. })));
    assert!(matches!(Observed::with_weights(2, 2, &entry(1.0), &[]), Err(SolveError::Dimension { .. })));
    assert!(matches!(Observed::with_weights(2, 2, &entry(1.0), &[-1.0]), Err(SolveError::Invalid { .. })));
    assert!(matches!(Observed::with_weights(2, 2, &entry(1.0), &[0.0]), Err(SolveError::Invalid { .. })));
    assert!(Observed::from_nan_mask(Mat::from_fn(2, 2, |_, _| f64::NAN).as_ref()).is_err());
    assert!(Observed::from_nan_mask(Mat::from_fn(2, 2, |_, _| f64::INFINITY).as_ref()).is_err());
    let data = Observed::new(4, 3, &random(4, 3, 0.8, 9)).unwrap();
    let good = settings(2, 3, Mode::Shared);
    let fails = |s: CompletionSettings| solve(&data, None, None, &s, &mut Monitor::silent()).unwrap_err();
    for bad in [
        CompletionSettings { rank: 0, ..good.clone() },
        CompletionSettings { rank: 4, ..good.clone() },
        CompletionSettings { ridge: -1.0, ..good.clone() },
        CompletionSettings { ridge: f64::NAN, ..good.clone() },
        CompletionSettings { tolerance: -1.0, ..good.clone() },
        CompletionSettings { improvement: f64::NAN, ..good.clone() },
        CompletionSettings { patience: 0, ..good.clone() },
        CompletionSettings { accuracy: Accuracy::Fixed(0.0), ..good.clone() },
        CompletionSettings { clip: Clip::Incoherence(0.0), ..good.clone() },
        CompletionSettings { centre: Centre::Biases { damping: -1.0 }, ..good.clone() },
    ] {
        assert!(matches!(fails(bad.clone()), SolveError::Setting { .. }), "{bad:?}");
    }
    let e = fails(CompletionSettings { split: true, rounds: 500, ..good.clone() });
    assert!(matches!(e, SolveError::Invalid { argument: "entries", .. }));
    let other = Observed::new(5, 3, &[(0, 0, 1.0)]).unwrap();
    let e = solve(&data, Some(&other), None, &good, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "held_out", expected: 4, found: 5, .. }));
    let other = Observed::new(4, 2, &[(0, 0, 1.0)]).unwrap();
    let e = solve(&data, Some(&other), None, &good, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "held_out", expected: 3, found: 2, .. }));
    let start = factors(vec![0.0; 7], 2, 4, 3);
    let e = solve(&data, None, Some(&start), &good, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "from", expected: 8, found: 7, .. }));
    let start = factors(vec![f64::NAN; 8], 2, 4, 3);
    assert!(solve(&data, None, Some(&start), &good, &mut Monitor::silent()).is_err());
    let huge = Observed::new(2, 2, &[(0, 0, 1e200), (1, 1, 1.0)]).unwrap();
    let e = solve(&huge, None, None, &settings(1, 3, Mode::Exact), &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Breakdown { .. }));
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    assert_eq!(solve(&data, None, None, &good, &mut monitor).unwrap().status, Status::Stopped);
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<CompletionSettings>(&text).unwrap(), good);
    assert!(serde_json::from_str::<CompletionSettings>("{\"ranks\": 3}").is_err());
}

#[test]
fn movielens_reaches_its_error() {
    let Some(folder) = std::env::var_os("RAREFY_DATA") else {
        eprintln!("SKIPPED: RAREFY_DATA is not set, MovieLens was not read");
        return;
    };
    let path = std::path::PathBuf::from(folder).join("recsys/ml-100k.npz");
    let mut archive = npyz::npz::NpzArchive::open(path).unwrap();
    let user: Vec<i32> = archive.by_name("user").unwrap().unwrap().into_vec().unwrap();
    let item: Vec<i32> = archive.by_name("item").unwrap().unwrap().into_vec().unwrap();
    let rating: Vec<f32> = archive.by_name("rating").unwrap().unwrap().into_vec().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    let all = (0..user.len()).map(|t| (user[t] as usize, item[t] as usize, f64::from(rating[t])));
    let (train, test): (Vec<Triplet>, Vec<Triplet>) = all.partition(|_| rng.random_range(0.0..1.0) < 0.9);
    let (train, test) = (Observed::new(943, 1682, &train).unwrap(), Observed::new(943, 1682, &test).unwrap());
    let rmse = |mode| {
        let centre = Centre::Biases { damping: 5.0 };
        // The ridge that the experiment chooses on validation entries.
        let s = CompletionSettings { rank: 10, rounds: 12, ridge: 0.08, mode, centre, ..Default::default() };
        run(&train, None, &s).x.score(&test).unwrap()
    };
    let (shared, exact) = (rmse(Mode::Shared), rmse(Mode::Exact));
    assert!(shared <= 0.95 && shared <= exact + 0.005, "{shared} {exact}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn exact_half_steps_never_raise_the_objective(m in 2_usize..15, n in 2_usize..15, rank in 1_usize..4, density in 0.1..1.0, ridge in prop_oneof![Just(0.0), 1e-3..1.0], seed in 0_u64..1000) {
        let data = Observed::new(m, n, &random(m, n, density, seed)).unwrap();
        let rank = rank.min(m).min(n);
        let s = run(&data, None, &CompletionSettings { ridge, ..settings(rank, 8, Mode::Exact) });
        prop_assert!(all(&s.x).iter().all(|v| v.is_finite()));
        // Without a ridge too few entries leave factors that grow without bound, and rounding then decides: the property of exact
        // arithmetic is asked where the entries determine the factors.
        let is_determined = ridge > 0.0 || density > 0.7 && m.min(n) >= 4 * rank;
        for w in s.trace.windows(2).filter(|_| is_determined) {
            prop_assert!(w[1].objective <= w[0].objective * (1.0 + 1e-9) + 1e-18, "{:?}", w);
        }
        // Approximate ones end at a finite answer whatever the pattern.
        for mode in [Mode::Shared, Mode::Sketched] {
            let s = run(&data, None, &CompletionSettings { rank, ridge, mode, rounds: 8, ..Default::default() });
            prop_assert!(all(&s.x).iter().all(|v| v.is_finite()) && s.objective.is_finite());
        }
    }
}
