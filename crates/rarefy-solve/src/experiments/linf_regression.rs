//! l∞ regression: error of the worst coefficient by sketch and instance, and time against QR of the whole matrix.

use std::time::Instant;

use faer::{Mat, MatRef};
use rand::seq::index;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median, quantile};
use crate::linalg::{r_factor, solve_sketched};
use crate::linop::dense::norm;
use crate::methods::linf_regression::{LinfSettings, solve};
use crate::sketch::SketchKind;
use crate::{Design, LinOp, Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rows. Specification: 4096.
    pub rows: usize,
    /// Draws of each sketch. Specification: 60.
    pub draws: u64,
    /// Rows of the timed problem, of 64 columns. Specification: 2¹⁸.
    pub timed: usize,
    /// Repetitions of the timing.
    pub repetitions: usize,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// Under a minute.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { rows: 4096, draws: 60, timed: 1 << 18, repetitions: 1, seed }
    }

    /// More draws than the specification, so that its quantiles are steadier.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { rows: 4096, draws: 400, timed: 1 << 18, repetitions: 9, seed }
    }
}

const COLUMNS: usize = 16;

/// Independent normal entries.
#[must_use]
pub fn gaussian(n: usize, seed: u64) -> (Mat<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
    let a = Mat::from_fn(n, COLUMNS, |_, _| normal());
    (a, (0..n).map(|_| normal()).collect())
}

/// One heavy row per column over noise of 1e-3, and eight rows of huge residual.
#[must_use]
pub fn coherent(n: usize, seed: u64) -> (Mat<f64>, Vec<f64>) {
    let (mut a, mut b) = gaussian(n, seed);
    a *= faer::Scale(1e-3);
    for i in 0..COLUMNS {
        a[(i, i)] += 1.0;
        b[i] = 0.0;
    }
    b[COLUMNS..COLUMNS + 8].iter_mut().for_each(|v| *v *= 40.0);
    (a, b)
}

/// A problem, its solution, and the unit of the errors: `‖r‖·‖A†‖/√d`.
struct Problem {
    a: Mat<f64>,
    b: Vec<f64>,
    best: Vec<f64>,
    unit: f64,
}

impl Problem {
    fn new((a, b): (Mat<f64>, Vec<f64>)) -> Result<Self, SolveError> {
        let exact = LinfSettings { rows: Some(a.nrows()), refine: true, ..Default::default() };
        let design = Design::from(a);
        let best = solve(&design, &b, &exact, &mut Monitor::silent())?.x;
        let mut r = vec![0.0; b.len()];
        design.apply(&best, &mut r);
        r.iter_mut().zip(&b).for_each(|(r, b)| *r -= b);
        let Design::Dense(a) = design else {
            return Err(SolveError::invalid("a", "a dense design", "a sparse one", "build it dense"));
        };
        let failed = |_| SolveError::breakdown("singular values", "no convergence", "scale the design");
        let values = a.singular_values().map_err(failed)?;
        let least = values.last().copied().unwrap_or(0.0);
        let unit = norm(&r) / least / (a.ncols() as f64).sqrt();
        Ok(Self { a, b, best, unit })
    }

    fn error(&self, x: &[f64]) -> f64 {
        x.iter().zip(&self.best).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / self.unit
    }

    fn sketched(&self, kind: Option<SketchKind>, m: usize, seed: u64) -> Result<f64, SolveError> {
        let (n, d) = (self.a.nrows(), self.a.ncols());
        let joined = |sa: MatRef<'_, f64>, sb: &[f64]| {
            Mat::from_fn(sa.nrows(), d + 1, |i, j| if j < d { sa[(i, j)] } else { sb[i] })
        };
        let joined = match kind {
            Some(kind) => {
                let s = kind.draw(n, m, seed)?;
                joined(s.apply(self.a.as_ref())?.as_ref(), &s.apply_vector(&self.b)?)
            }
            None => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let rows = index::sample(&mut rng, n, m).into_vec();
                let a = Mat::from_fn(m, d, |i, j| self.a[(rows[i], j)]);
                joined(a.as_ref(), &rows.iter().map(|i| self.b[*i]).collect::<Vec<f64>>())
            }
        };
        Ok(self.error(&solve_sketched(joined.as_ref())?.0))
    }
}

const SKETCHES: [(&str, Option<SketchKind>); 6] = [
    ("Gaussian", Some(SketchKind::Gaussian)),
    ("SRHT", Some(SketchKind::Srht)),
    ("balanced pooling", Some(SketchKind::BalancedPooling)),
    ("OSNAP-4", Some(SketchKind::Osnap { nonzeros: 4 })),
    ("CountSketch", Some(SketchKind::CountSketch)),
    ("uniform rows", None),
];

/// Published median and p95 of the specification's table, NaN where it has none; by instance, rows, sketch.
const PUBLISHED: [[[(f64, f64); 6]; 2]; 2] = [
    [
        [(0.74, 1.05), (0.72, 0.98), (0.72, 1.01), NONE, (0.70, 1.08), (0.72, f64::NAN)],
        [(0.32, 0.47), (0.34, 0.49), (0.37, 0.54), NONE, (0.35, 0.50), (0.33, f64::NAN)],
    ],
    [
        [(0.74, 1.11), (0.75, 1.26), (0.77, 1.22), NONE, (2.19, 7.6), (7.1, f64::NAN)],
        [(0.36, 0.54), (0.35, 0.55), (0.38, 0.57), NONE, (0.23, 3.05), (4.4, f64::NAN)],
    ],
];
const NONE: (f64, f64) = (f64::NAN, f64::NAN);

/// Runs all parts. `real`: a regression of real data, whose coefficient-wise errors are reported.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(
    sizes: Sizes,
    real: Option<(Mat<f64>, Vec<f64>)>,
    say: &mut dyn FnMut(&str),
) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    // [instance][rows][sketch] = (median, p95).
    let mut table = [[[NONE; 6]; 2]; 2];
    for (i, instance) in ["Gaussian instance", "coherent instance"].into_iter().enumerate() {
        let data = if i == 0 { gaussian(sizes.rows, sizes.seed) } else { coherent(sizes.rows, sizes.seed) };
        let problem = Problem::new(data)?;
        for (k, m) in [128, 512].into_iter().enumerate() {
            say(&format!("{instance}, {m} rows"));
            for (s, (name, kind)) in SKETCHES.into_iter().enumerate() {
                let seeds = sizes.seed..sizes.seed + sizes.draws;
                let errors =
                    seeds.map(|seed| problem.sketched(kind, m, seed)).collect::<Result<Vec<_>, _>>()?;
                let found = (median(&errors), quantile(&errors, 0.95));
                table[i][k][s] = found;
                let (published, published_p95) = PUBLISHED[i][k][s];
                let mut values: Vec<(String, f64)> = vec![
                    ("median".into(), found.0),
                    ("p95".into(), found.1),
                    ("max".into(), quantile(&errors, 1.0)),
                ];
                let known = [("published median", published), ("published p95", published_p95)];
                values.extend(known.into_iter().filter(|v| v.1.is_finite()).map(|(n, v)| (n.into(), v)));
                out.rows.push(Row { experiment: format!("{instance}, m = {m}"), case: name.into(), values });
            }
        }
    }
    orderings(&table, &mut out);
    timing(&sizes, &mut out, say)?;
    if let Some(data) = real {
        say("real data");
        let (n, problem) = (data.0.nrows(), Problem::new(data)?);
        for (name, kind) in SKETCHES {
            let seeds = sizes.seed..sizes.seed + sizes.draws.min(60);
            let errors =
                seeds.map(|seed| problem.sketched(kind, 512, seed)).collect::<Result<Vec<_>, _>>()?;
            let values = vec![("median".into(), median(&errors)), ("p95".into(), quantile(&errors, 0.95))];
            out.rows.push(Row {
                experiment: format!("real data, {n} rows, m = 512"),
                case: name.into(),
                values,
            });
        }
    }
    out.notes.push(
        "Errors are ‖x' − x*‖∞·√d/(‖r‖·‖A†‖). The 2023 proof for SRHT is withdrawn; balanced pooling has one.".into(),
    );
    Ok(out)
}

fn orderings(table: &[[[(f64, f64); 6]; 2]; 2], out: &mut Measured) {
    let mut margin = |name: String, value, least| out.margins.push(Margin::new(name, value, least));
    for (i, instance) in ["Gaussian", "coherent"].into_iter().enumerate() {
        for (s, name) in [(0, "Gaussian"), (1, "SRHT"), (2, "balanced pooling")] {
            let p95 = table[i][1][s].1;
            margin(format!("{instance}, {name}: 0.75 over the p95 at 512 rows"), 0.75 / p95, 1.0);
            let ratio = table[i][0][s].0 / table[i][1][s].0;
            margin(format!("{instance}, {name}: median at 128 over 512 rows"), ratio, 1.6);
            margin(format!("{instance}, {name}: 2.6 over that"), 2.6 / ratio, 1.0);
        }
    }
    for (k, m) in [128, 512].into_iter().enumerate() {
        let [srht, osnap, count] = [1, 3, 4].map(|s| table[1][k][s].1);
        margin(format!("coherent, {m} rows: p95 of CountSketch over SRHT"), count / srht, 3.0);
        margin(format!("coherent, {m} rows: p95 of OSNAP-4 over SRHT"), osnap / srht, 1.0);
        margin(format!("coherent, {m} rows: p95 of CountSketch over OSNAP-4"), count / osnap, 1.0);
        let (plain, heavy) = (table[0][k][1].0, table[1][k][1].0);
        margin(
            format!("{m} rows: 1.25 over the ratio of SRHT's medians"),
            1.25 / (plain / heavy).max(heavy / plain),
            1.0,
        );
        let fails = table[1][k][5].0 / table[0][k][5].0;
        margin(format!("{m} rows: uniform rows, median coherent over Gaussian"), fails, 5.0);
    }
}

fn timing(sizes: &Sizes, out: &mut Measured, say: &mut dyn FnMut(&str)) -> Result<(), SolveError> {
    let (n, d) = (sizes.timed, 64);
    say("time against QR of the whole matrix");
    let mut rng = ChaCha8Rng::seed_from_u64(sizes.seed);
    let a = Mat::from_fn(n, d, |_, _| StandardNormal.sample(&mut rng));
    let b: Vec<f64> = (0..n).map(|_| StandardNormal.sample(&mut rng)).collect();
    let design = Design::from(a);
    let (mut whole, mut blocked, mut sketched) = (vec![], vec![], vec![]);
    let mut rows = 0.0;
    for seed in 0..sizes.repetitions as u64 {
        let Design::Dense(a) = &design else { break };
        let start = Instant::now();
        let qr = a.qr();
        whole.push(start.elapsed().as_secs_f64());
        drop(qr);
        let start = Instant::now();
        drop(r_factor(a.as_ref()));
        blocked.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let settings = LinfSettings { seed, ..Default::default() };
        let s = solve(&design, &b, &settings, &mut Monitor::silent())?;
        sketched.push(start.elapsed().as_secs_f64());
        rows = s.residual("sketch rows").unwrap_or(f64::NAN);
    }
    let values = vec![
        ("qr, s".into(), median(&whole)),
        ("qr by blocks, R only, s".into(), median(&blocked)),
        ("srht and solve, s".into(), median(&sketched)),
        ("sketch rows".into(), rows),
    ];
    out.rows.push(Row { experiment: "time".into(), case: format!("{n} × {d}"), values });
    out.margins.push(Margin::new(
        format!("{n} × {d}: time of the faster QR over SRHT and solve"),
        median(&whole).min(median(&blocked)) / median(&sketched),
        3.0,
    ));
    Ok(())
}
