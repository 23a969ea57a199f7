//! Optimistic OMD: regret on linear, quadratic and exp-concave losses, under switches, and online to batch.

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median, quantile};
use crate::linop::dense::{axpy, dot, norm};
use crate::methods::optimistic_omd::{Domain, Hint, OmdSettings, Variant, learner, play};
use crate::optim::{LbfgsSettings, lbfgs};
use crate::{Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Number of streams per case.
    pub seeds: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// Seconds.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { seeds: 10, seed }
    }

    /// More streams.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { seeds: 50, seed }
    }
}

const ROUNDS: [usize; 3] = [1000, 4000, 16000];
const D: usize = 10;

/// A stream: loss and gradient of round t at x, and the regret of what was played.
trait Stream {
    fn loss(&mut self, t: usize, x: &[f64], g: &mut [f64]) -> f64;
    /// The least total loss of the comparator.
    fn best(&self) -> f64;
}

fn regret(
    d: usize,
    settings: &OmdSettings,
    rounds: usize,
    stream: &mut dyn Stream,
) -> Result<f64, SolveError> {
    let mut learner = learner(d, settings)?;
    let played = play(&mut *learner, rounds, &mut |t, x, g| stream.loss(t, x, g), &mut Monitor::silent())?;
    Ok(played.objective - stream.best())
}

fn normals(d: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..d).map(|_| StandardNormal.sample(rng)).collect()
}

fn on_sphere(d: usize, radius: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let v = normals(d, rng);
    let scale = radius / norm(&v).max(f64::MIN_POSITIVE);
    v.iter().map(|v| v * scale).collect()
}

/// `⟨0.2v + σz/√d, x⟩` on the unit ball, against the best fixed point.
struct Linear {
    rng: ChaCha8Rng,
    v: Vec<f64>,
    sigma: f64,
    sum: Vec<f64>,
}

impl Linear {
    fn new(sigma: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let v = on_sphere(D, 0.2, &mut rng);
        Self { rng, v, sigma, sum: vec![0.0; D] }
    }
}

impl Stream for Linear {
    fn loss(&mut self, _: usize, x: &[f64], g: &mut [f64]) -> f64 {
        g.copy_from_slice(&self.v);
        axpy(self.sigma / (D as f64).sqrt(), &normals(D, &mut self.rng), g);
        axpy(1.0, g, &mut self.sum);
        dot(g, x)
    }

    fn best(&self) -> f64 {
        -norm(&self.sum)
    }
}

/// `½‖x − c_t‖²`, c_t = c + σz/√d, against the best fixed point of the ball; with switches of c against c.
struct Quadratic {
    rng: ChaCha8Rng,
    centre: Vec<f64>,
    sigma: f64,
    /// Rounds between two centres; 0: one centre.
    every: usize,
    sum: Vec<f64>,
    squares: f64,
    rounds: f64,
    moving: f64,
}

impl Quadratic {
    fn new(sigma: f64, every: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let centre = on_sphere(D, 0.8, &mut rng);
        Self { rng, centre, sigma, every, sum: vec![0.0; D], squares: 0.0, rounds: 0.0, moving: 0.0 }
    }
}

impl Stream for Quadratic {
    fn loss(&mut self, t: usize, x: &[f64], g: &mut [f64]) -> f64 {
        if self.every > 0 && t > 0 && t.is_multiple_of(self.every) {
            self.centre = on_sphere(D, 0.8, &mut self.rng);
        }
        let mut c = self.centre.clone();
        axpy(self.sigma / (D as f64).sqrt(), &normals(D, &mut self.rng), &mut c);
        axpy(1.0, &c, &mut self.sum);
        self.squares += dot(&c, &c);
        self.rounds += 1.0;
        let off = |a: &[f64]| a.iter().zip(&c).map(|(a, c)| (a - c) * (a - c)).sum::<f64>();
        self.moving += 0.5 * off(&self.centre);
        g.iter_mut().zip(x).zip(&c).for_each(|((g, x), c)| *g = x - c);
        0.5 * off(x)
    }

    fn best(&self) -> f64 {
        if self.every > 0 {
            return self.moving;
        }
        let mean = norm(&self.sum) / self.rounds;
        let u = mean.min(1.0);
        0.5 * self.rounds * u * u - u * norm(&self.sum) + 0.5 * self.squares
    }
}

/// `−log(1 + ⟨a_t, x⟩)` on the unit disc, a_t = m + 0.4z with m = (0.2, 0.1), cut to a length below 1.
struct Portfolio {
    cut: f64,
    rng: ChaCha8Rng,
    all: Vec<[f64; 2]>,
}

impl Portfolio {
    fn total(&self, x: [f64; 2]) -> f64 {
        -self.all.iter().map(|a| (a[0] * x[0] + a[1] * x[1]).ln_1p()).sum::<f64>()
    }
}

impl Stream for Portfolio {
    fn loss(&mut self, _: usize, x: &[f64], g: &mut [f64]) -> f64 {
        let z = normals(2, &mut self.rng);
        let mut a = [0.2 + 0.4 * z[0], 0.1 + 0.4 * z[1]];
        crate::prox::l2_ball(&mut a, self.cut);
        self.all.push(a);
        let s = 1.0 + dot(&a, x);
        g.iter_mut().zip(&a).for_each(|(g, a)| *g = -a / s);
        -s.ln()
    }

    /// Projected Newton steps with halving from zero; the function is convex, the disc has one local minimum.
    fn best(&self) -> f64 {
        let mut x = [0.0, 0.0];
        let mut value = self.total(x);
        for _ in 0..200 {
            let (mut g, mut curvature) = ([0.0, 0.0], 0.0);
            for a in &self.all {
                let s = 1.0 / (1.0 + a[0] * x[0] + a[1] * x[1]);
                (g[0], g[1]) = (g[0] - a[0] * s, g[1] - a[1] * s);
                curvature += (a[0] * a[0] + a[1] * a[1]) * s * s;
            }
            let mut step = 4.0 / curvature;
            let before = value;
            for _ in 0..60 {
                let mut to = [x[0] - step * g[0], x[1] - step * g[1]];
                crate::prox::l2_ball(&mut to, 1.0);
                let there = self.total(to);
                if there < value {
                    (x, value) = (to, there);
                    break;
                }
                step *= 0.5;
            }
            if before - value <= 1e-13 * self.all.len() as f64 {
                break;
            }
        }
        value
    }
}

fn with(variant: Variant, hint: Hint, bound: f64) -> OmdSettings {
    OmdSettings { variant, hint, gradient_bound: Some(bound), ..Default::default() }
}

/// Mean over the seeds, and a row with the spread.
fn case(
    out: &mut Measured,
    sizes: Sizes,
    (experiment, label): (&str, String),
    published: f64,
    run: &mut dyn FnMut(u64) -> Result<f64, SolveError>,
) -> Result<f64, SolveError> {
    let all = (sizes.seed..sizes.seed + sizes.seeds).map(run).collect::<Result<Vec<f64>, _>>()?;
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let mut values = vec![
        ("regret, mean".into(), mean),
        ("median".into(), median(&all)),
        ("p95".into(), quantile(&all, 0.95)),
    ];
    if published.is_finite() {
        values.push(("specification".into(), published));
    }
    out.rows.push(Row { experiment: experiment.into(), case: label, values });
    Ok(mean)
}

fn at_most(out: &mut Measured, name: &str, value: f64, most: f64) {
    out.margins.push(Margin::new(format!("{name}: {most} over the value"), most / value, 1.0));
}

/// Runs all parts.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(sizes: Sizes, say: &mut dyn FnMut(&str)) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    say("linear losses");
    linear(sizes, &mut out)?;
    say("strongly convex and exp-concave losses");
    curved(sizes, &mut out)?;
    say("switching centres");
    switching(sizes, &mut out)?;
    say("online to batch");
    batch(sizes, &mut out)?;
    out.notes.push(
        "the specification's figures come from another implementation whose centres and portfolios are not recorded: compare orderings"
            .into(),
    );
    out.notes.push("exp-concave regret is above the convex learner's at these T; only its growth is smaller, and only once T is far above 1/beta: 1.80 at cut 0.8 (G = 4), where 1.75 is not reached"
            .into());
    Ok(out)
}

fn linear(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let published = [
        (0.0, [0.5, 0.5, 0.5], [7.8, 15.7, 31.5]),
        (0.3, [6.3, 13.0, 25.1], [14.3, 28.0, 55.4]),
        (1.0, [24.0, 49.0, 93.0], [33.0, 63.0, 124.0]),
    ];
    let mut optimistic = vec![];
    let mut fixed = vec![];
    for (sigma, of_optimistic, of_fixed) in published {
        let bound = 1.0 + 2.0 * sigma;
        for (i, rounds) in ROUNDS.into_iter().enumerate() {
            let horizon = with(Variant::FixedHorizon { rounds }, Hint::Zero, bound);
            let convex = with(Variant::Convex, Hint::LastGradient, bound);
            let ftrl = with(Variant::Ftrl, Hint::LastGradient, bound);
            let blind = with(Variant::Convex, Hint::Zero, bound);
            let descent = with(Variant::OnlineGradient, Hint::Zero, bound);
            for (name, settings, published, keep) in [
                ("optimistic", convex, of_optimistic[i], Some(&mut optimistic)),
                ("fixed OGD", horizon, of_fixed[i], Some(&mut fixed)),
                ("optimistic FTRL", ftrl, f64::NAN, None),
                ("without hint", blind, f64::NAN, None),
                ("OGD", descent, f64::NAN, None),
            ] {
                let label = format!("{name}, sigma {sigma}, T {rounds}");
                let mean = case(out, sizes, ("linear", label), published, &mut |seed| {
                    regret(D, &settings, rounds, &mut Linear::new(sigma, seed))
                })?;
                if let Some(keep) = keep {
                    keep.push(mean);
                }
            }
        }
    }
    at_most(out, "sigma 0: regret at T 16000 over T 1000", optimistic[2] / optimistic[0], 1.1);
    out.margins.push(Margin::new(
        "sigma 0, T 4000: fixed OGD over optimistic",
        fixed[1] / optimistic[1],
        10.0,
    ));
    for (i, sigma) in [(3, 0.3), (6, 1.0)] {
        for (a, b) in [(i, i + 1), (i + 1, i + 2)] {
            let name = format!("sigma {sigma}: growth of regret, T {} to {}", ROUNDS[a - i], ROUNDS[b - i]);
            let growth = optimistic[b] / optimistic[a];
            out.margins.push(Margin::new(format!("{name} (root: 2), from below"), growth, 1.6));
            at_most(out, &format!("{name} (root: 2), from above"), growth, 2.5);
        }
    }
    for (i, rounds) in ROUNDS.into_iter().enumerate() {
        let ratio = optimistic[6 + i] / optimistic[3 + i];
        out.margins.push(Margin::new(format!("T {rounds}: regret at sigma 1 over 0.3"), ratio, 2.5));
        at_most(out, &format!("T {rounds}: regret at sigma 1 over 0.3"), ratio, 4.5);
    }
    Ok(())
}

fn curved(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let mut strong = vec![];
    for (i, rounds) in ROUNDS.into_iter().enumerate() {
        for (name, variant, published, keep) in [
            (
                "strongly convex",
                Variant::StronglyConvex { lambda: 1.0 },
                [6.9, 8.0, 9.1][i],
                Some(&mut strong),
            ),
            ("convex", Variant::Convex, [24.0, 48.0, 93.0][i], None),
        ] {
            let settings = with(variant, Hint::LastGradient, 3.0);
            let mean =
                case(out, sizes, ("quadratic", format!("{name}, T {rounds}")), published, &mut |seed| {
                    regret(D, &settings, rounds, &mut Quadratic::new(1.0, 0, seed))
                })?;
            if let Some(keep) = keep {
                keep.push(mean);
            }
        }
    }
    // The specification does not say how its portfolios are drawn; a cut at 0.5 is the nearer to its convex row.
    for (cut, is_required) in [(0.5, true), (0.8, false)] {
        let (mut exp, mut convex) = (vec![], vec![]);
        for (i, rounds) in ROUNDS.into_iter().enumerate() {
            for (name, variant, published, keep) in [
                ("exp-concave", Variant::ExpConcave { alpha: 1.0 }, [16.8, 32.6, 51.7][i], &mut exp),
                ("convex", Variant::Convex, [7.0, 15.2, 31.8][i], &mut convex),
            ] {
                let settings = with(variant, Hint::LastGradient, cut / (1.0 - cut));
                let label = format!("{name}, cut {cut}, T {rounds}");
                keep.push(case(out, sizes, ("exp-concave losses", label), published, &mut |seed| {
                    let mut stream = Portfolio { cut, rng: ChaCha8Rng::seed_from_u64(seed), all: vec![] };
                    regret(2, &settings, rounds, &mut stream)
                })?);
            }
        }
        let (a, b) = (exp[2] / exp[1], convex[2] / convex[1]);
        if is_required {
            at_most(out, "exp-concave: growth T 4000 to 16000", a, 1.75);
            out.margins.push(Margin::new(
                "convex learner on exp-concave losses: growth T 4000 to 16000",
                b,
                1.9,
            ));
        }
        out.rows.push(Row {
            experiment: "exp-concave losses".into(),
            case: format!("growth T 4000 to 16000, cut {cut}"),
            values: vec![("exp-concave".into(), a), ("convex".into(), b)],
        });
    }
    at_most(out, "strongly convex: added regret, T 1000 to 4000", strong[1] - strong[0], 1.5);
    at_most(out, "strongly convex: added regret, T 4000 to 16000", strong[2] - strong[1], 1.5);
    Ok(())
}

fn switching(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let rounds = 8000;
    for (sigma, switches, published) in [
        (1.0, 64, [541.0, 882.0, 1343.0, 1671.0, 2425.0]),
        (1.0, 8, [170.0, 172.0, f64::NAN, f64::NAN, f64::NAN]),
        (1.0, 1, [45.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN]),
        (0.0, 64, [205.0, 90.0, f64::NAN, f64::NAN, f64::NAN]),
    ] {
        let mut means = vec![];
        for (i, (name, variant, hint)) in [
            ("ensemble", Variant::Ensemble { smoothness: 1.0, rounds: Some(rounds) }, Hint::LastGradient),
            ("convex", Variant::Convex, Hint::LastGradient),
            ("OGD", Variant::OnlineGradient, Hint::Zero),
            ("fixed OGD", Variant::FixedHorizon { rounds }, Hint::Zero),
            ("strongly convex", Variant::StronglyConvex { lambda: 1.0 }, Hint::LastGradient),
            ("ensemble, T unknown", Variant::Ensemble { smoothness: 1.0, rounds: None }, Hint::LastGradient),
        ]
        .into_iter()
        .enumerate()
        {
            let settings = with(variant, hint, 3.0);
            let label = format!("{name}, sigma {sigma}, {switches} switches");
            let of = published.get(i).copied().unwrap_or(f64::NAN);
            means.push(case(out, sizes, ("switching centres", label), of, &mut |seed| {
                regret(D, &settings, rounds, &mut Quadratic::new(sigma, rounds / switches, seed))
            })?);
        }
        if sigma > 0.0 && switches == 64 {
            let best = means[1..5].iter().fold(f64::INFINITY, |b, m| b.min(*m));
            out.margins.push(Margin::new("64 switches: best other over ensemble", best / means[0], 1.4));
            let least = means[..5].windows(2).fold(f64::INFINITY, |l, w| l.min(w[1] / w[0]));
            out.margins.push(Margin::new(
                "64 switches: ensemble < convex < OGD < fixed OGD < strongly convex, least ratio",
                least,
                1.0,
            ));
        }
    }
    Ok(())
}

/// A pool of labelled points, drawn with replacement (a stochastic stream) or in random order.
fn batch(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let pool = 8192;
    let horizons = [512, 1024, 2048, 4096, 8192];
    let mut means = [vec![], vec![]];
    for (kind, means) in ["i.i.d.", "random order"].into_iter().zip(&mut means) {
        for rounds in horizons {
            let label = format!("logistic regression, {kind}, T {rounds}");
            means.push(case(out, sizes, ("online to batch: excess risk", label), f64::NAN, &mut |seed| {
                excess(pool, rounds, kind == "i.i.d.", seed)
            })?);
        }
    }
    for (kind, means) in ["i.i.d.", "random order"].into_iter().zip(&means) {
        let slope = (means[4] / means[0]).ln() / (horizons[4] as f64 / horizons[0] as f64).ln();
        out.margins.push(Margin::new(
            format!("online to batch, {kind}: excess risk falls as T to minus this power"),
            -slope,
            0.4,
        ));
    }
    Ok(())
}

fn excess(pool: usize, rounds: usize, iid: bool, seed: u64) -> Result<f64, SolveError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let truth = on_sphere(D, 3.0, &mut rng);
    let points: Vec<Vec<f64>> = (0..pool)
        .map(|_| {
            let z: Vec<f64> = normals(D, &mut rng).iter().map(|v| v / (D as f64).sqrt()).collect();
            let p = 1.0 / (1.0 + (-dot(&z, &truth)).exp());
            let sign = if rng.random::<f64>() < p { 1.0 } else { -1.0 };
            z.iter().map(|v| sign * v).collect()
        })
        .collect();
    let log1p = |s: f64| if s > 0.0 { s + (-s).exp().ln_1p() } else { s.exp().ln_1p() };
    let risk = |x: &[f64]| points.iter().map(|p| log1p(-dot(p, x))).sum::<f64>() / pool as f64;
    let slope = |p: &[f64], x: &[f64]| -1.0 / (1.0 + dot(p, x).exp());
    let objective = |x: &[f64], g: &mut [f64]| {
        g.fill(0.0);
        points.iter().for_each(|p| axpy(slope(p, x) / pool as f64, p, g));
        risk(x)
    };
    let best = lbfgs(objective, &[0.0; D], &LbfgsSettings::default(), &mut Monitor::silent())?;
    // The optimum lies inside the ball of radius 5, so both problems have the same value.
    let domain = Domain::Ball { radius: 5.0 };
    let mut online = learner(D, &OmdSettings { domain, ..Default::default() })?;
    let order: Vec<usize> = if iid {
        (0..rounds).map(|_| rng.random_range(0..pool)).collect()
    } else {
        rand::seq::index::sample(&mut rng, pool, rounds).into_vec()
    };
    let mut loss = |t: usize, x: &[f64], g: &mut [f64]| {
        let p = &points[order[t]];
        let s = slope(p, x);
        g.iter_mut().zip(p).for_each(|(g, p)| *g = s * p);
        log1p(-dot(p, x))
    };
    let average = play(&mut *online, rounds, &mut loss, &mut Monitor::silent())?.x.average;
    Ok(risk(&average) - best.objective)
}
