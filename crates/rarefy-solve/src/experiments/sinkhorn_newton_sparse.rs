//! SNS against Sinkhorn and dense Newton: iterations and time to machine precision, and where Sinkhorn wins.

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::{Margin, Measured, Row, median, quantile};
use crate::methods::sinkhorn_newton_sparse::{SnsPlan, SnsSettings, SnsVariant, solve};
use crate::transport::Transport;
use crate::{Monitor, Solution, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Points on each side. Paper: 500.
    pub points: usize,
    /// Points on each side where one step is timed.
    pub timed: usize,
    /// Limit of plain Sinkhorn's sweeps; the ratios are lower bounds where it is reached.
    pub sweeps: usize,
    /// Number of seeds.
    pub seeds: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// A minute at most.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { points: 500, timed: 1000, sweeps: 1200, seeds: 1, seed }
    }

    /// The paper's sizes.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { points: 500, timed: 1000, sweeps: 60_000, seeds: 3, seed }
    }
}

/// Independent uniform costs, the largest 1.
#[must_use]
pub fn uniform_costs(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    scaled((0..n * n).map(|_| rng.random_range(0.0..1.0)).collect())
}

/// Squared (or l1) distances of two uniform clouds in the square, the largest 1.
#[must_use]
pub fn cloud_costs(n: usize, squared: bool, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cloud = || -> Vec<[f64; 2]> {
        (0..n).map(|_| [rng.random_range(0.0..1.0), rng.random_range(0.0..1.0)]).collect()
    };
    let (x, y) = (cloud(), cloud());
    let distance = |x: &[f64; 2], y: &[f64; 2]| {
        let d = [(x[0] - y[0]).abs(), (x[1] - y[1]).abs()];
        if squared { d[0] * d[0] + d[1] * d[1] } else { d[0] + d[1] }
    };
    scaled(x.iter().flat_map(|x| y.iter().map(move |y| distance(x, y))).collect())
}

fn scaled(mut c: Vec<f64>) -> Vec<f64> {
    let top = c.iter().fold(0.0_f64, |t, v| t.max(*v));
    c.iter_mut().for_each(|v| *v /= top);
    c
}

fn once(c: &[f64], w: [&[f64]; 2], settings: &SnsSettings) -> Result<Solution<SnsPlan>, SolveError> {
    solve(&Transport::new(w[0], w[1], c)?, settings, &mut Monitor::silent())
}

/// Runs all parts. `digits`: two images of 28×28, for the digit-to-digit case.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(
    sizes: Sizes,
    digits: Option<[&[f64]; 2]>,
    say: &mut dyn FnMut(&str),
) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    let n = sizes.points;
    let flat = vec![1.0 / n as f64; n];
    say("SNS and Sinkhorn at eta 1200");
    for case in ["uniform costs", "squared distance"] {
        let (mut counts, mut times, mut ratios, mut speedups) = (vec![], vec![], vec![], vec![]);
        for seed in sizes.seed..sizes.seed + sizes.seeds {
            let c = if case == "uniform costs" { uniform_costs(n, seed) } else { cloud_costs(n, true, seed) };
            let s = once(&c, [&flat, &flat], &SnsSettings::default())?;
            let reached = s.status.is_converged();
            counts.push(if reached { s.iterations as f64 } else { f64::INFINITY });
            times.push(s.seconds);
            let plain =
                SnsSettings { variant: SnsVariant::Sinkhorn, max_sweeps: sizes.sweeps, ..Default::default() };
            let p = once(&c, [&flat, &flat], &plain)?;
            ratios.push(p.iterations as f64 / s.iterations as f64);
            speedups.push(p.seconds / s.seconds);
            let values = vec![
                ("sweeps".into(), s.x.sweeps as f64),
                ("newton steps".into(), s.x.newton_steps as f64),
                ("seconds".into(), s.seconds),
                ("marginals, l1".into(), s.residuals[0].value),
                ("sinkhorn sweeps".into(), p.iterations as f64),
                ("sinkhorn seconds".into(), p.seconds),
                ("sinkhorn marginals, l1".into(), p.residuals[0].value),
            ];
            out.rows.push(Row {
                experiment: "eta 1200".into(),
                case: format!("{case}, seed {seed}"),
                values,
            });
        }
        out.margins.push(Margin::new(
            format!("{case}: 60 over total iterations"),
            60.0 / median(&counts),
            1.0,
        ));
        if case == "uniform costs" {
            out.margins.push(Margin::new(
                "uniform costs: Sinkhorn's iterations over SNS's",
                median(&ratios),
                50.0,
            ));
            out.margins.push(Margin::new(
                "uniform costs: Sinkhorn's time over SNS's",
                median(&speedups),
                5.0,
            ));
        }
        let values = vec![("median s".into(), median(&times)), ("p95 s".into(), quantile(&times, 0.95))];
        out.rows.push(Row { experiment: "eta 1200, SNS".into(), case: case.into(), values });
    }
    say("sweep of eta");
    for eta in [30.0, 100.0, 300.0, 1200.0, 3000.0] {
        for (case, c) in [
            ("uniform costs", uniform_costs(n, sizes.seed)),
            ("squared distance", cloud_costs(n, true, sizes.seed)),
        ] {
            let s = once(&c, [&flat, &flat], &SnsSettings { eta, ..Default::default() })?;
            let plain = SnsSettings {
                eta,
                variant: SnsVariant::Sinkhorn,
                max_sweeps: sizes.sweeps.min(2000),
                ..Default::default()
            };
            let p = once(&c, [&flat, &flat], &plain)?;
            let values = vec![
                ("iterations".into(), s.iterations as f64),
                ("seconds".into(), s.seconds),
                ("marginals, l1".into(), s.residuals[0].value),
                ("sinkhorn sweeps".into(), p.iterations as f64),
                ("sinkhorn seconds".into(), p.seconds),
                ("sinkhorn marginals, l1".into(), p.residuals[0].value),
            ];
            out.rows.push(Row { experiment: format!("eta {eta}"), case: case.into(), values });
        }
    }
    say("l1 cost, 700 sweeps");
    let c = cloud_costs(n, false, sizes.seed);
    let s = once(
        &c,
        [&flat, &flat],
        &SnsSettings { max_sweeps: 700, switches_early: false, ..Default::default() },
    )?;
    let values = vec![
        ("newton steps".into(), s.x.newton_steps as f64),
        ("seconds".into(), s.seconds),
        ("marginals, l1".into(), s.residuals[0].value),
    ];
    out.rows.push(Row { experiment: "eta 1200".into(), case: "l1 distance".into(), values });
    if let Some(digits) = digits {
        say("digit to digit");
        let side = 28;
        let w = digits.map(|d| {
            let total: f64 = d.iter().sum();
            let w: Vec<f64> = d.iter().map(|v| v / total + 1e-3).collect();
            let total: f64 = w.iter().sum();
            w.iter().map(|v| v / total).collect::<Vec<_>>()
        });
        let at = |i: usize| [(i / side) as f64, (i % side) as f64];
        let c = scaled(
            (0..side * side)
                .flat_map(|i| {
                    (0..side * side)
                        .map(move |j| (at(i)[0] - at(j)[0]).powi(2) + (at(i)[1] - at(j)[1]).powi(2))
                })
                .collect(),
        );
        let s = once(&c, [&w[0], &w[1]], &SnsSettings::default())?;
        let values = vec![
            ("iterations".into(), s.iterations as f64),
            ("seconds".into(), s.seconds),
            ("marginals, l1".into(), s.residuals[0].value),
        ];
        out.rows.push(Row { experiment: "eta 1200".into(), case: "digit to digit".into(), values });
    }
    say("time of a step");
    let c = uniform_costs(sizes.timed, sizes.seed);
    let flat = vec![1.0 / sizes.timed as f64; sizes.timed];
    let sparse = once(&c, [&flat, &flat], &SnsSettings::default())?;
    let dense = once(
        &c,
        [&flat, &flat],
        &SnsSettings { variant: SnsVariant::Full, max_newton: 3, ..Default::default() },
    )?;
    let step = |s: &Solution<SnsPlan>| {
        let at = |k: usize| s.trace.get(k).map_or(f64::NAN, |t| t.seconds);
        (at(s.trace.len() - 1) - at(s.trace.len() - 1 - s.x.newton_steps)) / s.x.newton_steps as f64
    };
    let (a, b) = (step(&sparse), step(&dense));
    out.margins.push(Margin::new(
        format!("{0} × {0}: dense over sparse Newton step, time", sizes.timed),
        b / a,
        10.0,
    ));
    let values = vec![("sparse, s".into(), a), ("dense, s".into(), b)];
    out.rows.push(Row { experiment: "time of a step".into(), case: format!("n = {}", sizes.timed), values });
    out.notes.push("published on another machine, n = 500: 29 iterations in 0.34 s (uniform costs), Sinkhorn 56,199 in 233 s".into());
    out.notes
        .push("at small eta Sinkhorn needs few iterations and wins: compare the seconds in the sweep".into());
    Ok(out)
}
