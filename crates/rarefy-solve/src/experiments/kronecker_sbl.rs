//! Kronecker-structured recovery: error, support, iterations and time of SVD-, AM- and one-pass KroSBL, and classic SBL.

use faer::Mat;
use rand::seq::index::sample;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median, quantile};
use crate::linop::{Kronecker, to_dense};
use crate::methods::kronecker_sbl::{Noise, SblSettings, Variant, sbl, solve};
use crate::{LinOp, Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Trials at the paper's size. Specification: 20.
    pub trials: u64,
    /// Trials at the small size, where classic SBL runs too.
    pub small: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// A minute at most.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { trials: 10, small: 7, seed }
    }

    /// The specification's number of trials.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { trials: 20, small: 20, seed }
    }
}

/// One drawn problem.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// One dictionary for each mode.
    pub factors: Vec<Mat<f64>>,
    /// What is to be found, last mode fastest.
    pub x: Vec<f64>,
    /// Measurements.
    pub y: Vec<f64>,
    /// Variance of the noise.
    pub noise: f64,
}

impl Drawn {
    /// Normal dictionaries `[rows[d], n]`, `nonzeros` normal entries in each mode, x their product, and noise of that
    /// many decibels below the mean square of the measurements.
    ///
    /// # Errors
    /// As [`Kronecker::new`].
    pub fn new(
        n: usize,
        rows: &[usize],
        nonzeros: usize,
        decibels: f64,
        seed: u64,
    ) -> Result<Self, SolveError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut normal = |n: usize| -> Vec<f64> { (0..n).map(|_| StandardNormal.sample(&mut rng)).collect() };
        let mut factors = vec![];
        for m in rows {
            let values = normal(m * n);
            factors.push(Mat::from_fn(*m, n, |i, j| values[i * n + j]));
        }
        let values: Vec<Vec<f64>> = rows.iter().map(|_| normal(nonzeros)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xF00D);
        let x = values.iter().fold(vec![1.0], |all: Vec<f64>, values| {
            let mut part = vec![0.0; n];
            sample(&mut rng, n, nonzeros).iter().zip(values).for_each(|(i, v)| part[i] = *v);
            all.iter().flat_map(|a| part.iter().map(move |b| a * b)).collect()
        });
        let h = Kronecker::new(factors.clone())?;
        let mut y = vec![0.0; h.n_rows()];
        h.apply(&x, &mut y);
        let power = y.iter().map(|v| v * v).sum::<f64>() / y.len() as f64;
        let noise = power * 10_f64.powf(-decibels / 10.0);
        y.iter_mut().for_each(|v| {
            let z: f64 = StandardNormal.sample(&mut rng);
            *v += noise.sqrt() * z;
        });
        Ok(Self { factors, x, y, noise })
    }

    /// Relative squared error.
    #[must_use]
    pub fn error(&self, x: &[f64]) -> f64 {
        let all: f64 = self.x.iter().map(|v| v * v).sum();
        self.x.iter().zip(x).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / all
    }

    /// Places that are non-zero in both over places that are in either.
    #[must_use]
    pub fn support(&self, x: &[f64]) -> f64 {
        let pairs = || self.x.iter().zip(x).map(|(a, b)| (*a != 0.0, *b != 0.0));
        pairs().filter(|(a, b)| *a && *b).count() as f64
            / pairs().filter(|(a, b)| *a || *b).count().max(1) as f64
    }
}

/// Runs all parts.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(sizes: Sizes, say: &mut dyn FnMut(&str)) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    let variants = [("svd", Variant::Svd), ("am", Variant::Alternating), ("one pass", Variant::OnePass)];
    let published = [
        (8, 5.0, "AM .105/.03/150, SVD .0143/.45/50"),
        (8, 15.0, "AM .0064/.56/145, SVD .0016/.86/25"),
        (8, 25.0, "AM 3.6e-4/.83/63, SVD 1.8e-4/1.0/21"),
        (12, 25.0, "AM 3.4e-3/.67/57, SVD 8.0e-5/1.0/11"),
    ];
    let mut slowest = 0.0_f64;
    for (rows, decibels, reference) in published {
        say(&format!("{rows} rows in the first mode, {decibels} dB"));
        let mut medians = vec![];
        for (case, variant) in variants {
            let (mut errors, mut counts, mut supports, mut times) = (vec![], vec![], vec![], vec![]);
            for seed in sizes.seed..sizes.seed + sizes.trials {
                let p = Drawn::new(15, &[rows, 12, 15], 3, decibels, seed)?;
                let settings = SblSettings { variant, noise: Noise::Known(p.noise), ..Default::default() };
                let factors: Vec<_> = p.factors.iter().map(Mat::as_ref).collect();
                let s = solve(&factors, &p.y, &settings, &mut Monitor::silent())?;
                errors.push(p.error(&s.x.x));
                supports.push(p.support(&s.x.x));
                counts.push(s.iterations as f64);
                times.push(s.seconds);
            }
            slowest = times.iter().fold(slowest, |t, s| t.max(*s));
            medians.push((median(&errors), median(&counts)));
            let values = vec![
                ("median error".into(), median(&errors)),
                ("p95 error".into(), quantile(&errors, 0.95)),
                ("support".into(), median(&supports)),
                ("iterations".into(), median(&counts)),
                ("median s".into(), median(&times)),
                ("p95 s".into(), quantile(&times, 0.95)),
            ];
            let experiment = format!("N 15, M ({rows}, 12, 15), K 3, {decibels} dB");
            out.rows.push(Row { experiment, case: case.into(), values });
        }
        let name = format!("M₁ = {rows}, {decibels} dB: error of AM over SVD");
        out.margins.push(Margin::new(name, medians[1].0 / medians[0].0, 1.0));
        let name = format!("M₁ = {rows}, {decibels} dB: iterations of AM over SVD");
        out.margins.push(Margin::new(name, medians[1].1 / medians[0].1, 2.0));
        out.notes.push(format!(
            "specification, M₁ = {rows}, {decibels} dB, error/support/iterations on its own draws: {reference}"
        ));
    }
    out.margins.push(Margin::new("1 s over the slowest solve at the paper's size", 1.0 / slowest, 1.0));
    say("small size, with classic SBL");
    let mut errors: [Vec<f64>; 5] = Default::default();
    for seed in sizes.seed..sizes.seed + sizes.small {
        let p = Drawn::new(10, &[6, 8, 8], 3, 10.0, seed)?;
        let factors: Vec<_> = p.factors.iter().map(Mat::as_ref).collect();
        let noise = Noise::Known(p.noise);
        for (errors, (_, variant)) in errors.iter_mut().zip(variants) {
            let settings = SblSettings { variant, noise, ..Default::default() };
            errors.push(p.error(&solve(&factors, &p.y, &settings, &mut Monitor::silent())?.x.x));
        }
        let dense = to_dense(&Kronecker::new(p.factors.clone())?);
        for (errors, uses_mackay) in errors[3..].iter_mut().zip([false, true]) {
            let settings = SblSettings { uses_mackay, noise, ..Default::default() };
            errors.push(p.error(&sbl(dense.as_ref(), &p.y, &settings, &mut Monitor::silent())?.x.x));
        }
    }
    let m: Vec<f64> = errors.iter().map(|e| median(e)).collect();
    let names = ["svd", "am", "one pass", "classic, EM", "classic, MacKay"];
    let values = names.iter().zip(&m).map(|(n, v)| ((*n).into(), *v)).collect();
    out.rows.push(Row {
        experiment: "N 10, M (6, 8, 8), K 3, 10 dB".into(),
        case: "median error".into(),
        values,
    });
    out.margins.push(Margin::new("small: error of AM over SVD", m[1] / m[0], 1.0));
    out.margins.push(Margin::new("small: error of classic EM over AM", m[3] / m[1], 1.0));
    out.margins.push(Margin::new("small: error of classic EM over SVD", m[3] / m[0], 3.0));
    out.notes.push("specification, small size: classic .152, AM .044, SVD .013, oracle .015".into());
    Ok(out)
}
