//! ℓp sensitivity sampling: excess loss and distortion by scheme and sample size, on the reference instance of the
//! specification, on real data, and time against regression on all rows.

use std::time::Instant;

use faer::{Mat, MatRef};
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal, StudentT};

use super::{Margin, Measured, Row, median, quantile};
use crate::linalg::Whitening;
use crate::methods::lp_sensitivity_sampling::{
    LpSettings, RegressSettings, Sample, Scheme, Sensitivity, augmented, regress, sample, scores, select,
    sensitivities, solve,
};
use crate::{Design, LinOp, Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the reference instance. Specification: 3000.
    pub rows: usize,
    /// Draws of each sample. Specification: 40.
    pub draws: u64,
    /// Rows of the timed problem, of 20 columns. Specification: 10⁶.
    pub timed: usize,
    /// Repetitions of the timing.
    pub repetitions: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// Under a minute: a timed problem of 200,000 rows.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { rows: 3000, draws: 40, timed: 200_000, repetitions: 1, seed }
    }

    /// The sizes of the specification.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { rows: 3000, draws: 40, timed: 1_000_000, repetitions: 3, seed }
    }
}

/// Five normal features and an intercept, 15 rows multiplied by 300·U(0, 1), `y = Aw + t₂` noise.
fn reference(n: usize, seed: u64) -> Result<(Design, Vec<f64>), SolveError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut a = Mat::from_fn(n, 6, |_, j| if j < 5 { StandardNormal.sample(&mut rng) } else { 1.0 });
    for k in 0..15 {
        let factor = 300.0 * rng.random::<f64>();
        (0..6).for_each(|j| a[(k * n / 15, j)] *= factor);
    }
    let w: Vec<f64> = (0..6).map(|_| StandardNormal.sample(&mut rng)).collect();
    let noise = StudentT::new(2.0).map_err(|e| SolveError::breakdown("noise", e, "report this"))?;
    let mut y = vec![0.0; n];
    a.apply(&w, &mut y);
    y.iter_mut().for_each(|y| *y += noise.sample(&mut rng));
    Ok((a.into(), y))
}

fn norms(a: &Design, u: Option<&[f64]>, x: MatRef<'_, f64>, p: f64) -> Vec<f64> {
    let mut y = vec![0.0; a.n_rows()];
    let sum = |y: &[f64]| -> f64 {
        y.iter()
            .enumerate()
            .map(|(i, v)| u.map_or(1.0, |u| u[i]) * v.abs().powf(p))
            .sum::<f64>()
            .powf(1.0 / p)
    };
    (0..x.ncols())
        .map(|j| {
            let x: Vec<f64> = (0..x.nrows()).map(|i| x[(i, j)]).collect();
            a.apply(&x, &mut y);
            sum(&y)
        })
        .collect()
}

/// Largest `|‖SAx‖_p/‖Ax‖_p − 1|` over the columns of `x`.
fn distortion(a: &Design, s: &Sample, x: MatRef<'_, f64>, p: f64) -> f64 {
    let (all, few) = (norms(a, None, x, p), norms(&a.select_rows(&s.rows), Some(&s.weights), x, p));
    all.iter().zip(&few).map(|(a, f)| (f / a - 1.0).abs()).fold(0.0, f64::max)
}

const SCHEMES: [(&str, Scheme); 6] = [
    ("uniform", Scheme::Uniform),
    ("leverage", Scheme::Leverage),
    ("root leverage", Scheme::RootLeverage),
    ("Lewis", Scheme::Lewis),
    ("sensitivity", Scheme::Sensitivity),
    ("leverage + sensitivity", Scheme::LeverageSensitivity),
];

/// Median and p90 of the excess loss and the distortion at 100 and 300 rows for p = 1, in the order of [`SCHEMES`].
const PUBLISHED: [[(f64, f64, f64); 5]; 2] = [
    [
        (0.080, 0.149, 0.41),
        (0.014, 0.034, 0.20),
        (0.009, 0.028, 0.15),
        (0.008, 0.022, 0.15),
        (0.010, 0.020, 0.15),
    ],
    [
        (0.029, 0.060, 0.37),
        (0.002, 0.011, 0.08),
        (0.001, 0.005, 0.09),
        (0.001, 0.008, 0.08),
        (0.002, 0.005, 0.09),
    ],
];

struct Problem {
    a: Design,
    y: Vec<f64>,
    joined: Design,
    best: f64,
    p: f64,
}

/// Excess loss and distortion of many draws.
struct Found {
    excess: Vec<f64>,
    distortion: Vec<f64>,
}

impl Problem {
    fn new(a: Design, y: Vec<f64>, p: f64) -> Result<Self, SolveError> {
        let best = regress(&a, &y, p, None, &RegressSettings::default(), &mut Monitor::silent())?.objective;
        Ok(Self { joined: augmented(&a, &y), a, y, best, p })
    }

    /// Twenty random `x` are the same for all draws. `sensitive`: bounds from above, if known.
    fn draw(
        &self,
        scheme: Scheme,
        sensitive: &[f64],
        rows: &[usize],
        draws: u64,
        seed: u64,
    ) -> Result<Vec<Found>, SolveError> {
        let p = self.p;
        let settings = LpSettings { p, scheme, rows: Some(1), ..Default::default() };
        let fixed = match scheme {
            Scheme::Sensitivity => sensitive.to_vec(),
            Scheme::LeverageSensitivity => {
                crate::linalg::leverage(&self.joined)?.iter().zip(sensitive).map(|(t, s)| t + s).collect()
            }
            _ => scores(&self.joined, &settings)?,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xff);
        let x = Mat::from_fn(self.joined.n_cols(), 20, |_, _| StandardNormal.sample(&mut rng));
        rows.iter()
            .map(|m| {
                let mut out = Found { excess: vec![], distortion: vec![] };
                for seed in seed..seed + draws {
                    let s = match scheme {
                        Scheme::RootLeverage => select(
                            &self.joined,
                            None,
                            &LpSettings { rows: Some(*m), seed, ..settings.clone() },
                        )?,
                        _ => sample(&fixed, *m, seed)?,
                    };
                    let part: Vec<f64> = s.rows.iter().map(|i| self.y[*i]).collect();
                    let few = self.a.select_rows(&s.rows);
                    let regression = RegressSettings::default();
                    let fit = regress(&few, &part, p, Some(&s.weights), &regression, &mut Monitor::silent())?;
                    let mut r = vec![0.0; self.y.len()];
                    self.a.apply(&fit.x, &mut r);
                    let loss: f64 = r.iter().zip(&self.y).map(|(r, y)| (r - y).abs().powf(p)).sum();
                    out.excess.push(loss / self.best - 1.0);
                    out.distortion.push(distortion(&self.joined, &s, x.as_ref(), p));
                }
                Ok(out)
            })
            .collect()
    }
}

/// Runs all parts. `real`: name, features with an intercept, response.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(
    sizes: Sizes,
    real: Vec<(String, Mat<f64>, Vec<f64>)>,
    say: &mut dyn FnMut(&str),
) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    for p in [1.0, 1.5, 3.0] {
        say(&format!("reference instance, p = {p}"));
        on_reference(&sizes, p, &mut out)?;
    }
    say("low-sensitivity family, p = 4");
    low_sensitivity(&sizes, &mut out)?;
    for (name, a, y) in real {
        say(&name);
        on_real(&sizes, &name, a, &y, &mut out)?;
    }
    timing(&sizes, &mut out, say)?;
    out.notes.push(
        "Excess loss is against the optimum of all rows, known within a duality gap of 1e-8; distortion is the median over the draws of the largest over 20 random x of [A b].".into(),
    );
    Ok(out)
}

fn on_reference(sizes: &Sizes, p: f64, out: &mut Measured) -> Result<(), SolveError> {
    let (a, y) = reference(sizes.rows, sizes.seed)?;
    let problem = Problem::new(a, y, p)?;
    let total = sensitivities(&problem.joined, p, Sensitivity::Irls, 0)?;
    let tau = crate::linalg::leverage(&problem.joined)?;
    let mut values = vec![
        ("total sensitivity, from above".into(), total.total()),
        ("from below".into(), total.lower.iter().sum()),
        ("sum of τ^(p/2)".into(), tau.iter().map(|t| t.powf(p / 2.0)).sum()),
    ];
    if p <= 1.0 {
        values.push(("published total sensitivity".into(), 3.32));
        values.push(("published sum of τ^(p/2)".into(), 79.0));
    }
    out.rows.push(Row { experiment: format!("p = {p}"), case: "scores".into(), values });
    let mut medians = [[(f64::NAN, f64::NAN); 6]; 2];
    for (s, (name, scheme)) in SCHEMES.into_iter().enumerate() {
        if (scheme == Scheme::RootLeverage && p > 2.0) || (scheme == Scheme::LeverageSensitivity && p < 2.0) {
            continue;
        }
        for (k, found) in
            problem.draw(scheme, &total.upper, &[100, 300], sizes.draws, sizes.seed)?.into_iter().enumerate()
        {
            let (excess, worst) = (median(&found.excess), median(&found.distortion));
            medians[k][s] = (excess, worst);
            let mut values = vec![
                ("excess loss, median".into(), excess),
                ("p90".into(), quantile(&found.excess, 0.9)),
                ("distortion".into(), worst),
            ];
            if p <= 1.0 && s < 5 {
                let (m, q, d) = PUBLISHED[k][s];
                values.extend([
                    ("published median".into(), m),
                    ("published p90".into(), q),
                    ("published distortion".into(), d),
                ]);
            }
            let experiment = format!("p = {p}, m = {}", [100, 300][k]);
            out.rows.push(Row { experiment, case: name.into(), values });
        }
    }
    let mut margin = |name: String, value, least| out.margins.push(Margin::new(name, value, least));
    let [uniform, leverage, root, lewis, sensitive, mixed] = medians[0];
    if p <= 1.0 {
        for (name, found) in
            [("leverage", leverage), ("root leverage", root), ("Lewis", lewis), ("sensitivity", sensitive)]
        {
            margin(format!("p = 1, m = 100: excess loss of uniform over {name}"), uniform.0 / found.0, 4.0);
        }
        margin("p = 1, m = 100: 1.5 times Lewis over sensitivity".into(), 1.5 * lewis.0 / sensitive.0, 1.0);
        margin("p = 1, m = 100: leverage over Lewis".into(), leverage.0 / lewis.0, 1.2);
        margin("p = 1, m = 100: leverage over sensitivity".into(), leverage.0 / sensitive.0, 1.2);
    } else if p < 2.0 {
        for (name, found) in
            [("leverage", leverage), ("root leverage", root), ("Lewis", lewis), ("sensitivity", sensitive)]
        {
            margin(
                format!("p = 1.5, m = 100: published 0.006 over the excess loss of {name}"),
                0.006 / found.0,
                1.0,
            );
        }
    } else {
        for (name, found) in [("sensitivity", sensitive), ("leverage + sensitivity", mixed)] {
            margin(
                format!("p = 3, m = 100: half the distortion of uniform over {name}"),
                0.5 * uniform.1 / found.1,
                1.0,
            );
        }
    }
    Ok(())
}

/// Rows needed for a distortion of 0.5, in median, over random directions and those in which a kept row is heaviest.
fn low_sensitivity(sizes: &Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let (p, mut found) = (4.0, vec![]);
    for d in [4_usize, 8, 16] {
        let n = 20 * d * d;
        let mut rng = ChaCha8Rng::seed_from_u64(sizes.seed + d as u64);
        let a = Design::from(Mat::from_fn(n, d, |_, _| StandardNormal.sample(&mut rng)));
        // Lewis weights' bound is loose here and IRLS on all n rows slow: a core-set would do; n is small enough.
        let s = sensitivities(&a, p, Sensitivity::Irls, 0)?;
        let random = Mat::<f64>::from_fn(d, 20, |_, _| StandardNormal.sample(&mut rng));
        let Design::Dense(dense) = &a else { continue };
        let t = Whitening::of(dense.as_ref())?;
        let inverse = t.matrix() * t.matrix().transpose();
        let mut m = d;
        let needed = loop {
            let mut worst = vec![];
            for seed in sizes.seed..sizes.seed + 10 {
                let kept = sample(&s.upper, m, seed)?;
                let rows = kept.rows.len().min(40);
                let x = Mat::from_fn(d, 20 + rows, |i, j| {
                    if j < 20 {
                        return random[(i, j)];
                    }
                    (0..d).map(|k| inverse[(i, k)] * dense[(kept.rows[j - 20], k)]).sum()
                });
                worst.push(distortion(&a, &kept, x.as_ref(), p));
            }
            if median(&worst) <= 0.5 || m >= n {
                break m;
            }
            m += m.div_ceil(8);
        };
        let values = vec![
            ("total sensitivity, from above".into(), s.total()),
            ("from below".into(), s.lower.iter().sum()),
            ("d^(p/2)".into(), (d * d) as f64),
            ("rows for distortion 0.5".into(), needed as f64),
        ];
        out.rows.push(Row { experiment: "p = 4, normal".into(), case: format!("{n} × {d}"), values });
        found.push((needed as f64, s.total()));
    }
    if let [first, .., last] = found.as_slice() {
        let growth = (last.1 / first.1) / (last.0 / first.0);
        out.margins.push(Margin::new(
            "p = 4: growth of 𝔖 over growth of the rows needed, d = 4 to 16",
            growth,
            1.0,
        ));
    }
    out.notes.push(
        "For normal rows and p = 4, 𝔖 is about d(d + 2)/3: a third of d^{p/2}, of the same order.".into(),
    );
    Ok(())
}

fn on_real(sizes: &Sizes, name: &str, a: Mat<f64>, y: &[f64], out: &mut Measured) -> Result<(), SolveError> {
    let n = y.len();
    let design = Design::from(a);
    for p in [1.0, 1.5, 3.0] {
        let problem = Problem::new(design.clone(), y.to_vec(), p)?;
        let experiment = format!("{name}, p = {p}");
        let how = if n > 2000 { Sensitivity::Coreset { rows: 600 } } else { Sensitivity::Irls };
        let s = sensitivities(&problem.joined, p, how, 0)?;
        let values = vec![
            ("total sensitivity, from above".into(), s.total()),
            ("from below".into(), s.lower.iter().sum()),
            ("worst case".into(), (problem.joined.n_cols() as f64).powf((p / 2.0).max(1.0))),
        ];
        out.rows.push(Row { experiment: experiment.clone(), case: "scores".into(), values });
        let rows = [n / 50, n / 20, n / 10, n / 5].map(|m| m.max(2 * problem.joined.n_cols()));
        for (case, scheme) in
            [("uniform", Scheme::Uniform), ("leverage", Scheme::Leverage), ("Lewis", Scheme::Lewis)]
        {
            let found = problem.draw(scheme, &[], &rows, sizes.draws.min(10), sizes.seed)?;
            let curve = rows.iter().zip(&found);
            let values = curve.map(|(m, f)| (format!("excess loss, m = {m}"), median(&f.excess))).collect();
            out.rows.push(Row { experiment: experiment.clone(), case: case.into(), values });
        }
    }
    Ok(())
}

fn timing(sizes: &Sizes, out: &mut Measured, say: &mut dyn FnMut(&str)) -> Result<(), SolveError> {
    let (n, d) = (sizes.timed, 20);
    say("time against regression on all rows");
    let mut rng = ChaCha8Rng::seed_from_u64(sizes.seed);
    let noise = StudentT::new(2.0).map_err(|e| SolveError::breakdown("noise", e, "report this"))?;
    let a = Mat::from_fn(n, d, |_, j| if j + 1 < d { StandardNormal.sample(&mut rng) } else { 1.0 });
    let b: Vec<f64> = (0..n).map(|i| a[(i, 0)] - a[(i, 1)] + noise.sample(&mut rng)).collect();
    let a = Design::from(a);
    let (mut rough, mut all, mut best) = (vec![], vec![], f64::INFINITY);
    let (mut few, mut excess) = ([vec![], vec![]], [vec![], vec![]]);
    let schemes = [("root leverage", Scheme::RootLeverage), ("Lewis", Scheme::Lewis)];
    for seed in sizes.seed..sizes.seed + sizes.repetitions {
        let start = Instant::now();
        let loose = RegressSettings { tolerance: 0.01, ..Default::default() };
        let _ = regress(&a, &b, 1.0, None, &loose, &mut Monitor::silent())?;
        rough.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let full = regress(
            &a,
            &b,
            1.0,
            None,
            &RegressSettings { tolerance: 1e-4, ..Default::default() },
            &mut Monitor::silent(),
        )?;
        all.push(start.elapsed().as_secs_f64());
        best = best.min(full.objective);
        for (k, (_, scheme)) in schemes.into_iter().enumerate() {
            let settings =
                LpSettings { scheme, rows: Some(2000), approximate: true, seed, ..Default::default() };
            let start = Instant::now();
            let s = solve(&a, &b, &settings, &mut Monitor::silent())?;
            few[k].push(start.elapsed().as_secs_f64());
            excess[k].push(s.objective / best - 1.0);
        }
    }
    for (k, (name, _)) in schemes.into_iter().enumerate() {
        let values = vec![
            ("all rows to a gap of 1e-4, s".into(), median(&all)),
            ("all rows to a gap of 1e-2, s".into(), median(&rough)),
            ("2000 rows by approximate scores, s".into(), median(&few[k])),
            ("excess loss".into(), median(&excess[k])),
        ];
        out.rows.push(Row { experiment: "time, p = 1".into(), case: format!("{n} × {d}, {name}"), values });
        let times = median(&all) / median(&few[k]);
        out.margins.push(Margin::new(
            format!("{n} × {d}, {name}: time of all rows over sampling"),
            times,
            10.0,
        ));
        let room = 0.02 / median(&excess[k]);
        out.margins.push(Margin::new(format!("{n} × {d}, {name}: 0.02 over the excess loss"), room, 1.0));
    }
    Ok(())
}
