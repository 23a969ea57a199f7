//! k-sparse OT: the table of γ and k between two Gaussians, and the load of a router.

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median};
use crate::experiments::quantile;
use crate::methods::sparsity_constrained_ot::{KSparseSettings, RouterSettings, route, solve};
use crate::transport::smooth::{self, SmoothSettings};
use crate::transport::{ExactSettings, Transport, exact};
use crate::{Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Points on each side. Specification: 100.
    pub points: usize,
    /// Number of seeds.
    pub seeds: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// Seconds.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { points: 100, seeds: 1, seed }
    }

    /// The specification's size, more seeds.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { points: 100, seeds: 5, seed }
    }
}

/// Squared distances between two Gaussian clouds in the plane.
#[must_use]
pub fn gaussian_costs(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cloud = |shift: f64| -> Vec<[f64; 2]> {
        let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
        (0..n).map(|_| [normal() + shift, normal()]).collect()
    };
    let (x, y) = (cloud(0.0), cloud(0.5));
    x.iter().flat_map(|x| y.iter().map(move |y| (x[0] - y[0]).powi(2) + (x[1] - y[1]).powi(2))).collect()
}

/// Runs all parts.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(sizes: Sizes, say: &mut dyn FnMut(&str)) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    say("two Gaussians");
    let n = sizes.points;
    let w = vec![1.0 / n as f64; n];
    let (mut surplus, mut columns, mut rows_tight, mut rows_any, mut falls) =
        (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    let mut seconds = 0.0;
    for seed in sizes.seed..sizes.seed + sizes.seeds {
        let c = gaussian_costs(n, seed);
        let top = c.iter().fold(0.0_f64, |t, v| t.max(*v));
        let t = Transport::new(&w, &w, &c)?;
        let lp = exact(&t, &ExactSettings::default(), &mut Monitor::silent())?.objective;
        for relative in [0.01, 0.1, 1.0] {
            let gamma = relative * top;
            let l2 =
                smooth::solve(&t, &SmoothSettings { gamma, ..Default::default() }, &mut Monitor::silent())?;
            let mut last = f64::INFINITY;
            for k in [1, 2, 4, 8, n] {
                let s =
                    solve(&t, &KSparseSettings { k, gamma, ..Default::default() }, &mut Monitor::silent())?;
                let rows = s.residual("row sums, l1").unwrap_or(f64::NAN);
                surplus = surplus.max(s.x.most_in_a_column as f64 - k as f64);
                columns = columns.max(s.residual("column sums, l1").unwrap_or(f64::NAN));
                if k == 1 || k >= l2.x.most_in_a_column {
                    rows_tight = rows_tight.max(rows);
                }
                rows_any = rows_any.max(rows);
                falls = falls.max(s.objective - last);
                last = s.objective;
                seconds += s.seconds;
                let values = vec![
                    ("cost".into(), s.x.cost),
                    ("row error, l1".into(), rows),
                    ("most in a column".into(), s.x.most_in_a_column as f64),
                    ("dual value".into(), s.objective),
                    ("LP cost".into(), lp),
                ];
                let case = format!("gamma {relative}, k {k}, seed {seed}");
                out.rows.push(Row { experiment: "two Gaussians".into(), case, values });
            }
        }
    }
    let at_most = |name: &str, value: f64, most: f64| {
        Margin::new(format!("{name}: {most:e} minus the value"), most - value, 0.0)
    };
    out.margins.push(at_most("non-zeros in a column above k", surplus, 0.0));
    out.margins.push(at_most("column error, l1", columns, 1e-12));
    out.margins.push(at_most(
        "row error, l1, k = 1 and k at least the columns of the l2 plan",
        rows_tight,
        1e-6,
    ));
    out.margins.push(at_most("row error, l1, any k", rows_any, 0.15));
    out.margins.push(at_most("rise of the dual value with k", falls, 1e-6));
    out.margins.push(at_most("seconds per seed", seconds / sizes.seeds as f64, 10.0));
    say("routing");
    let (tokens, experts) = (1024, 16);
    let (mut spread, mut dropped, mut plain_dropped, mut over) = (vec![], vec![], vec![], 0.0_f64);
    for seed in sizes.seed..sizes.seed + sizes.seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let d = 32;
        // Embeddings around a common mean, so that a random gate is skewed.
        let gate: Vec<f64> =
            (0..d * experts).map(|_| StandardNormal.sample(&mut rng)).map(|v: f64| 0.3 * v).collect();
        let mean: Vec<f64> = (0..d).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut logits = Vec::with_capacity(tokens * experts);
        for _ in 0..tokens {
            let x: Vec<f64> = mean
                .iter()
                .map(|m| {
                    let z: f64 = StandardNormal.sample(&mut rng);
                    m + 0.5 * z
                })
                .collect();
            logits.extend((0..experts).map(|e| (0..d).map(|i| x[i] * gate[i * experts + e]).sum::<f64>()));
        }
        let r = route(&logits, experts, &RouterSettings::default())?;
        let mut first = vec![0.0_f64; experts];
        for g in r.gates.chunks_exact(experts) {
            let best = (0..experts).fold(0, |b, e| if g[e] > g[b] { e } else { b });
            first[best] += 1.0;
        }
        let mut load = vec![0.0; experts];
        let mut served = vec![false; tokens];
        for (e, load) in load.iter_mut().enumerate() {
            let (rows, _) = r.dispatch.column(e);
            *load = rows.len() as f64;
            rows.iter().for_each(|t| served[*t as usize] = true);
        }
        let deviation = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
        };
        over = load.iter().fold(over, |o, l| o.max(l - r.k as f64));
        spread.push(deviation(&first) / deviation(&load).max(1e-9));
        dropped.push(served.iter().filter(|s| !**s).count() as f64 / tokens as f64);
        plain_dropped.push(first.iter().map(|l| (l - r.k as f64).max(0.0)).sum::<f64>() / tokens as f64);
    }
    out.margins.push(at_most("routing: load above k", over, 0.0));
    out.margins.push(Margin::new(
        "routing: deviation of the load, top-1 softmax over k-sparse",
        median(&spread),
        5.0,
    ));
    out.margins.push(Margin::new("routing: share of tokens served", 1.0 - median(&dropped), 0.99));
    let values = vec![
        ("dropped".into(), median(&dropped)),
        ("dropped, p95".into(), quantile(&dropped, 0.95)),
        ("dropped by top-1 at the same capacity".into(), median(&plain_dropped)),
    ];
    out.rows.push(Row {
        experiment: "routing".into(),
        case: format!("{tokens} tokens, {experts} experts"),
        values,
    });
    out.notes.push("tokens are synthetic embeddings with a common mean; the training of routers and colour transfer are not run".into());
    Ok(out)
}
