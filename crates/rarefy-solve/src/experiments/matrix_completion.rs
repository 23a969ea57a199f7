//! Matrix completion: rounds and error against exact alternating least squares, growth of the time with the rank,
//! splitting, the accuracy schedule, noise, incoherence, and MovieLens.

use std::time::Instant;

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median};
use crate::linop::Triplet;
use crate::linop::dense::{axpy, dot, norm};
use crate::methods::matrix_completion::{
    Accuracy, Centre, Clip, CompletionSettings, Factors, Mode, Observed, SoftImputeSettings, soft_impute,
    solve,
};
use crate::{Monitor, Solution, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rows and columns where errors are measured. Specification: 300.
    pub size: usize,
    /// Rows and columns where time is measured. Specification: 4000.
    pub timed: usize,
    /// How often each time is taken; the best counts.
    pub repeats: usize,
    /// Number of seeds.
    pub seeds: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// A minute at most.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { size: 300, timed: 4000, repeats: 3, seeds: 2, seed }
    }

    /// The sizes of the specification.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { size: 300, timed: 4000, repeats: 3, seeds: 10, seed }
    }
}

/// A low-rank matrix with orthonormal factors of normal vectors and singular values falling evenly from 1 to ½, times
/// `√(mn)`; optionally with all the mass of the first singular vector on one row.
#[derive(Debug, Clone)]
pub struct Planted {
    size: usize,
    rank: usize,
    /// Row-major, with the singular values in.
    u: Vec<f64>,
    v: Vec<f64>,
}

impl Planted {
    /// Draws a square one.
    #[must_use]
    pub fn new(size: usize, rank: usize, is_spiky: bool, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut orthonormal = |spiky: bool| {
            let mut columns: Vec<Vec<f64>> = vec![];
            for l in 0..rank {
                let mut c: Vec<f64> = (0..size).map(|_| StandardNormal.sample(&mut rng)).collect();
                if spiky && l == 0 {
                    c.iter_mut().enumerate().for_each(|(i, v)| *v = f64::from(u8::from(i == 0)));
                }
                for _ in 0..2 {
                    for q in &columns {
                        let d = dot(q, &c);
                        axpy(-d, q, &mut c);
                    }
                }
                let length = norm(&c);
                c.iter_mut().for_each(|v| *v /= length);
                columns.push(c);
            }
            columns
        };
        let (left, right) = (orthonormal(is_spiky), orthonormal(false));
        let value = |l: usize| size as f64 * (1.0 - 0.5 * l as f64 / (rank.max(2) - 1) as f64);
        let u = (0..size * rank).map(|at| value(at % rank) * left[at % rank][at / rank]).collect();
        let v = (0..size * rank).map(|at| right[at % rank][at / rank]).collect();
        Self { size, rank, u, v }
    }

    /// The entry at `(i, j)`.
    #[must_use]
    pub fn at(&self, i: usize, j: usize) -> f64 {
        let k = self.rank;
        dot(&self.u[i * k..(i + 1) * k], &self.v[j * k..(j + 1) * k])
    }

    /// Each entry with probability `p`, plus normal noise of size `sigma`.
    ///
    /// # Errors
    /// As [`Observed::new`].
    pub fn observe(&self, p: f64, sigma: f64, seed: u64) -> Result<Observed, SolveError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xABCD);
        let mut entries: Vec<Triplet> = vec![];
        for i in 0..self.size {
            for j in 0..self.size {
                if rng.random_range(0.0..1.0) < p {
                    let noise: f64 = StandardNormal.sample(&mut rng);
                    entries.push((i, j, self.at(i, j) + sigma * noise));
                }
            }
        }
        Observed::new(self.size, self.size, &entries)
    }

    /// Relative Frobenius error of the completed matrix.
    #[must_use]
    pub fn error(&self, x: &Factors) -> f64 {
        let (mut wrong, mut all) = (0.0, 0.0);
        for i in 0..self.size {
            for j in 0..self.size {
                let t = self.at(i, j);
                wrong += (t - x.predict(i, j).unwrap_or(f64::NAN)).powi(2);
                all += t * t;
            }
        }
        (wrong / all).sqrt()
    }
}

fn fit(data: &Observed, settings: &CompletionSettings) -> Result<Solution<Factors>, SolveError> {
    solve(data, None, None, settings, &mut Monitor::silent())
}

/// A generous number of rounds and a tolerance of 1e-9 on the entries.
fn base(mode: Mode, seed: u64) -> CompletionSettings {
    CompletionSettings { rank: 5, rounds: 40, mode, improvement: 0.0, seed, ..Default::default() }
}

/// Runs all parts. `ratings`: user, item and rating of MovieLens-100k.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(
    sizes: Sizes,
    ratings: Option<&[Triplet]>,
    say: &mut dyn FnMut(&str),
) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    let seeds = || sizes.seed..sizes.seed + sizes.seeds;
    say("recovery with the accuracy schedule");
    for p in [0.05, 0.07, 0.10, 0.15, 0.25] {
        let mut all = vec![];
        for mode in [Mode::Exact, Mode::Shared, Mode::Sketched] {
            let (mut errors, mut rounds, mut steps) = (vec![], vec![], vec![]);
            for seed in seeds() {
                let truth = Planted::new(sizes.size, 5, false, seed);
                let s = fit(&truth.observe(p, 0.0, seed)?, &base(mode, seed))?;
                errors.push(truth.error(&s.x));
                rounds.push(s.iterations as f64);
                steps.push(s.x.cg_steps as f64 / (s.iterations * 2 * sizes.size) as f64);
            }
            let worst = errors.iter().fold(0.0_f64, |t, e| t.max(*e));
            all.push((worst, median(&rounds)));
            let values = vec![
                ("median error".into(), median(&errors)),
                ("worst error".into(), worst),
                ("rounds".into(), median(&rounds)),
                ("cg steps a row".into(), median(&steps)),
            ];
            out.rows.push(Row {
                experiment: format!("p = {p}"),
                case: format!("{mode:?}").to_lowercase(),
                values,
            });
        }
        if p >= 0.15 {
            for (case, (worst, rounds)) in ["shared", "sketched"].iter().zip(&all[1..]) {
                out.margins.push(Margin::new(
                    format!("p = {p}, {case}: 1e-8 over the worst error"),
                    1e-8 / worst,
                    1.0,
                ));
                let name = format!("p = {p}, {case}: 1.2 times the rounds of exact, over its own");
                out.margins.push(Margin::new(name, 1.2 * all[0].1 / rounds, 1.0));
            }
        }
    }
    say("fixed accuracies");
    for eps in [1e-1, 1e-2, 1e-4] {
        let mut errors = vec![];
        for seed in seeds() {
            let truth = Planted::new(sizes.size, 5, false, seed);
            let settings = CompletionSettings { accuracy: Accuracy::Fixed(eps), ..base(Mode::Shared, seed) };
            errors.push(truth.error(&fit(&truth.observe(0.25, 0.0, seed)?, &settings)?.x));
        }
        let e = median(&errors);
        out.margins.push(Margin::new(
            format!("accuracy {eps}: 3 times it, over the error"),
            3.0 * eps / e,
            1.0,
        ));
        out.margins.push(Margin::new(
            format!("accuracy {eps}: 3 times the error, over it"),
            3.0 * e / eps,
            1.0,
        ));
        let values = vec![("median error".into(), e)];
        out.rows.push(Row { experiment: "fixed accuracy, p = 0.25".into(), case: format!("{eps}"), values });
    }
    say("splitting");
    let (mut splits, mut reuses) = (vec![], vec![]);
    for seed in seeds() {
        let truth = Planted::new(sizes.size, 5, false, seed);
        let data = truth.observe(0.3, 0.0, seed)?;
        let five = CompletionSettings { rounds: 5, ..base(Mode::Shared, seed) };
        reuses.push(truth.error(&fit(&data, &five)?.x));
        splits.push(truth.error(&fit(&data, &CompletionSettings { split: true, ..five })?.x));
    }
    out.margins.push(Margin::new("splitting into 11 parts, p = 0.3: error", median(&splits), 1.0));
    out.margins.push(Margin::new(
        "reusing, p = 0.3, 5 rounds: 1e-3 over the error",
        1e-3 / median(&reuses),
        1.0,
    ));
    let values = vec![("split".into(), median(&splits)), ("reused".into(), median(&reuses))];
    out.rows.push(Row { experiment: "five rounds, p = 0.3".into(), case: "error".into(), values });
    say("noise and incoherence");
    let truth = Planted::new(sizes.size, 5, false, sizes.seed);
    let mut noisy = vec![];
    for sigma in [1e-3, 1e-2, 1e-1] {
        let settings =
            CompletionSettings { tolerance: 0.0, improvement: 1e-7, ..base(Mode::Shared, sizes.seed) };
        noisy.push(truth.error(&fit(&truth.observe(0.25, sigma, sizes.seed)?, &settings)?.x) / sigma);
    }
    let (low, high) = noisy.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
    out.margins.push(Margin::new(
        "error over noise from 1e-3 to 1e-1: 1.5 times the least over the most",
        1.5 * low / high,
        1.0,
    ));
    let (mut spiky, mut clipped) = (vec![], vec![]);
    for seed in seeds() {
        let truth = Planted::new(sizes.size, 5, true, seed);
        spiky.push(truth.error(&fit(&truth.observe(0.15, 0.0, seed)?, &base(Mode::Shared, seed))?.x));
        let truth = Planted::new(sizes.size, 5, false, seed);
        let data = truth.observe(0.15, 0.0, seed)?;
        let with = truth.error(&fit(&data, &base(Mode::Shared, seed))?.x);
        let off = CompletionSettings { clip: Clip::Off, ..base(Mode::Shared, seed) };
        let without = truth.error(&fit(&data, &off)?.x);
        clipped.push((with - without).abs());
    }
    out.margins.push(Margin::new("a spiky row, p = 0.15: error over 1e-3", median(&spiky) / 1e-3, 1.0));
    let most = clipped.iter().fold(0.0_f64, |t, v| t.max(*v));
    out.margins.push(Margin::new(
        "1e-8 over what the clip changes on incoherent matrices",
        1e-8 / most.max(1e-300),
        1.0,
    ));
    let values = vec![
        ("error over noise, 1e-3".into(), noisy[0]),
        ("error over noise, 1e-2".into(), noisy[1]),
        ("error over noise, 1e-1".into(), noisy[2]),
        ("spiky row, median error".into(), median(&spiky)),
    ];
    out.rows.push(Row {
        experiment: "noise (p = 0.25) and spikes (p = 0.15)".into(),
        case: "shared".into(),
        values,
    });
    growth(sizes, &mut out, say)?;
    if let Some(ratings) = ratings {
        movielens(sizes, ratings, &mut out, say)?;
    }
    out.notes.push("the paper has no experiments; the figures to meet are those of the specification".into());
    Ok(out)
}

fn growth(sizes: Sizes, out: &mut Measured, say: &mut dyn FnMut(&str)) -> Result<(), SolveError> {
    say("growth with the rank");
    let truth = Planted::new(sizes.timed, 40, false, sizes.seed);
    let data = truth.observe(0.1, 0.01, sizes.seed)?;
    let mut times = [vec![], vec![]];
    for rank in [10, 20, 40] {
        // In pairs, so that other work on the machine hits both.
        for (mode, times) in [Mode::Shared, Mode::Exact].into_iter().zip(&mut times) {
            let settings = CompletionSettings { rank, rounds: 3, tolerance: 0.0, ..base(mode, sizes.seed) };
            let mut best = f64::INFINITY;
            for _ in 0..sizes.repeats {
                let start = Instant::now();
                let s = fit(&data, &settings)?;
                let first = s.trace.first().map_or(0.0, |t| t.seconds);
                // Two rounds between the points of the trace: without the start.
                let rounds = s.trace.last().map_or(0.0, |t| t.seconds) - first;
                best = best.min(if rounds > 0.0 { rounds } else { start.elapsed().as_secs_f64() });
            }
            times.push(best);
        }
    }
    let ratio = |t: &[f64]| t[2] / t[0];
    out.margins.push(Margin::new("shared: 6 over time(40)/time(10)", 6.0 / ratio(&times[0]), 1.0));
    out.margins.push(Margin::new("exact: time(40)/time(10)", ratio(&times[1]), 10.0));
    for (case, t) in ["shared", "exact"].iter().zip(&times) {
        let values = [10, 20, 40].iter().zip(t).map(|(k, t)| (format!("k = {k}, s"), *t)).collect();
        let experiment = format!("two rounds, {0} × {0}, {1} entries", sizes.timed, data.nnz());
        out.rows.push(Row { experiment, case: (*case).into(), values });
    }
    Ok(())
}

/// 90/10, and a tenth of the training part to choose the ridge.
fn movielens(
    sizes: Sizes,
    ratings: &[Triplet],
    out: &mut Measured,
    say: &mut dyn FnMut(&str),
) -> Result<(), SolveError> {
    say("MovieLens");
    let (m, n) = ratings.iter().fold((0, 0), |(m, n), r| (m.max(r.0 + 1), n.max(r.1 + 1)));
    let (mut shared, mut exact, mut soft) = (vec![], vec![], vec![]);
    for seed in sizes.seed..sizes.seed + sizes.seeds.min(3) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut parts: [Vec<Triplet>; 3] = Default::default();
        for r in ratings {
            let draw: f64 = rng.random_range(0.0..1.0);
            parts[if draw < 0.1 { 2 } else { usize::from(draw < 0.19) }].push(*r);
        }
        let train = [&parts[0][..], &parts[1][..]].concat();
        let [fitting, validation, test] = &parts;
        let [fitting, validation, test, train] =
            [fitting, validation, test, &train].map(|e| Observed::new(m, n, e));
        let (fitting, validation, test, train) = (fitting?, validation?, test?, train?);
        for (mode, errors) in [(Mode::Shared, &mut shared), (Mode::Exact, &mut exact)] {
            let mut best = (f64::INFINITY, CompletionSettings::default());
            for ridge in [0.04, 0.07, 0.1, 0.14, 0.2, 0.28] {
                let centre = Centre::Biases { damping: 5.0 };
                let settings =
                    CompletionSettings { ridge, mode, centre, seed, rounds: 40, ..Default::default() };
                let s = solve(&fitting, Some(&validation), None, &settings, &mut Monitor::silent())?;
                let error = s.residual("error on held-out entries").unwrap_or(f64::INFINITY);
                if error < best.0 {
                    best = (error, CompletionSettings { rounds: s.x.round, ..settings });
                }
            }
            let s = fit(&train, &best.1)?;
            let error = s.x.score(&test)?;
            errors.push(error);
            let values = vec![
                ("test RMSE".into(), error),
                ("ridge".into(), best.1.ridge),
                ("rounds".into(), s.iterations as f64),
                ("seconds".into(), s.seconds),
            ];
            let case = format!("{mode:?}, seed {seed}").to_lowercase();
            out.rows.push(Row { experiment: "MovieLens-100k, k = 10".into(), case, values });
        }
        let mut best = (f64::INFINITY, SoftImputeSettings::default());
        let mut warm: Option<Factors> = None;
        for regularisation in [40.0, 30.0, 22.0, 16.0, 12.0] {
            let centre = Centre::Biases { damping: 5.0 };
            let settings = SoftImputeSettings {
                regularisation,
                centre,
                rank: 60,
                tolerance: 1e-3,
                max_iterations: 60,
                seed,
            };
            let s = soft_impute(&fitting, warm.as_ref(), &settings, &mut Monitor::silent())?;
            let error = s.x.score(&validation)?;
            if error < best.0 {
                best = (error, settings);
            }
            warm = Some(s.x);
        }
        let s = soft_impute(&train, None, &best.1, &mut Monitor::silent())?;
        soft.push(s.x.score(&test)?);
        let values = vec![
            ("test RMSE".into(), soft.last().copied().unwrap_or(f64::NAN)),
            ("regularisation".into(), best.1.regularisation),
            ("rank".into(), s.x.rank as f64),
            ("seconds".into(), s.seconds),
        ];
        out.rows.push(Row {
            experiment: "MovieLens-100k".into(),
            case: format!("soft-impute, seed {seed}"),
            values,
        });
    }
    out.margins.push(Margin::new("MovieLens: 0.95 over the RMSE", 0.95 / median(&shared), 1.0));
    let behind = shared.iter().zip(&exact).fold(f64::NEG_INFINITY, |t, (s, e)| t.max(s - e));
    out.margins.push(Margin::new("MovieLens: 0.005 less what it is behind exact", 0.005 - behind, 0.0));
    Ok(())
}
