//! ℓp sensitivity sampling — few rows of a tall matrix, reweighted, that keep every ‖Ax‖_p, and regression on them.
//!
//! Paper:    Woodruff, Yasuda, Sharper Bounds for ℓp Sensitivity Sampling, ICML 2023, arXiv 2306.00732. Companion:
//!           Padmanabhan, Woodruff, Zhang, NeurIPS 2023. Reference code: none.
//! Problem:  min ‖Ax − b‖_p, A: [n, d] dense or sparse with n ≫ d, p in [1, 100]; wanted is S with few rows and
//!           ‖S[A b]x‖_p = (1 ± ε)‖[A b]x‖_p for all x.
//! Method:   1. scores s of the rows of [A b]. 2. q = min(1, s/α) with Σq = m; row i is kept with probability q_i and
//!           multiplied by q_i^{−1/p}. 3. ℓp regression on the rows kept ([`regress`], with a duality gap).
//! Cost:     scores: leverage n·d², or a sketch; Lewis weights 10 to 50 times n·d², or of a sample; sensitivities
//!           n regressions. Then regressions of m rows.
//! Variants: [`Scheme`]; sensitivities by [`Sensitivity`]; [`LpSettings::approximate`] scores in two passes; streaming:
//!           [`Sampler`], exact, for scores that each block gives by itself (uniform; leverage and root leverage by a
//!           [`Whitening`] of a first pass); [`Coreset`], one pass, every scheme.
//! Rows:     m = ⌈ε⁻²·bound⌉ up to logarithms and a constant, with 𝔖 = Σσ (at most d below p = 2, d^{p/2} above):
//!           sensitivity min(𝔖^{2/p}, d^{1−p/2}𝔖) for p < 2 and 𝔖^{2−2/p} above; root leverage d; leverage and
//!           sensitivity d^{2/p}𝔖^{2−4/p}; Lewis max(d, d^{p/2}).
//! Differs:  root leverage: a round aims at m^{p/2}k^{1−p/2} of k rows and the last, from at most 2m, at m (paper: only
//!           O(log log n) rounds). The mixture τ + σ is a reconstruction. The constant of m is ours, 1.
//! Choose:   the default, Lewis, for p < 4; root leverage with `approximate` for the least time at p < 2; sensitivities
//!           where 𝔖 is known to be small and n is below about 5000. Uniform rows miss what is rare.
//! Fails on: `p` outside [1, 100], root leverage above 2, leverage and sensitivity below 2, no `rows` for the baselines →
//!           `Setting`; empty, NaN, wrong lengths → the typed variant. A sample that has lost rank: `rank` says so.
//!           Evidence: `lp-sensitivity-sampling.json` (golden), `rarefy repro lp-sensitivity-sampling`.

mod coreset;
mod regress;
mod sample;
mod sensitivity;
mod vertex;

use faer::Mat;
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

pub use coreset::{Coreset, WeightedRows};
pub use regress::{RegressSettings, regress};
pub use sample::{Sample, Sampler, probabilities, sample};
pub use sensitivity::{Sensitivities, Sensitivity, sensitivities};

use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linalg::{Whitening, leverage, leverage_sketched, lewis, quadratic_forms};
use crate::sketch::SketchKind;
use crate::{Csc, Design, LinOp, Monitor, Residual, Solution, SolveError};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "lp-sensitivity-sampling",
    name: "lp sensitivity sampling",
    family: "solver",
    paper: "Woodruff, Yasuda, ICML 2023, arXiv 2306.00732",
    command: "solve regress --method lp-sensitivity-sampling",
    maturity: Maturity::Preview,
    summary: "lp regression on few reweighted rows that keep the lp norm of every combination of the columns",
};

/// What rows are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Lewis weights.
    Lewis,
    /// ℓp sensitivities.
    Sensitivity,
    /// `τ^{p/2}`, recursively; p ≤ 2.
    RootLeverage,
    /// `τ + σ`; p ≥ 2.
    LeverageSensitivity,
    /// Baseline: ℓ2 leverage scores `τ`, whatever `p`.
    Leverage,
    /// Baseline: all rows alike.
    Uniform,
}

/// Settings of [`solve`] and [`select`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LpSettings {
    /// The norm, in [1, 100]. House default: 1.
    pub p: f64,
    /// What rows are kept by. House default: Lewis weights, as the specification advises below p = 4.
    pub scheme: Scheme,
    /// How sensitivities are found, for the two schemes with them. House default: IRLS.
    pub sensitivity: Sensitivity,
    /// Expected number of rows kept, at least 1; `None`: `⌈ε⁻²·bound⌉` of the scheme, at least `2(d + 1)`.
    pub rows: Option<usize>,
    /// ε above 0, for `rows: None`. House default: 0.5.
    pub epsilon: f64,
    /// Leverage from a sketch of 8(d + 1) rows or more, Lewis weights (p ≤ 2 only) from those of 50(d + 1) rows or more
    /// that root leverage kept: within a constant factor, at a fraction of the time. House default: no.
    pub approximate: bool,
    /// The regression on the sample.
    pub regress: RegressSettings,
    /// Seed of the sample and the sketch.
    pub seed: u64,
}

impl Default for LpSettings {
    fn default() -> Self {
        Self {
            p: 1.0,
            scheme: Scheme::Lewis,
            sensitivity: Sensitivity::Irls,
            rows: None,
            epsilon: 0.5,
            approximate: false,
            regress: RegressSettings::default(),
            seed: 0,
        }
    }
}

pub(crate) fn check_p(p: f64) -> Result<(), SolveError> {
    check_setting((1.0..=100.0).contains(&p), "p", p, "in [1, 100]")
}

impl LpSettings {
    /// Checks every field, and that scheme and `p` go together.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_p(self.p)?;
        let e = self.epsilon;
        check_setting(e > 0.0 && e.is_finite(), "epsilon", e, "above 0 and finite")?;
        check_setting(self.rows != Some(0), "rows", 0, "at least 1")?;
        self.regress.validate()?;
        match self.scheme {
            Scheme::RootLeverage => check_setting(self.p <= 2.0, "p", self.p, "at most 2 for root leverage"),
            Scheme::LeverageSensitivity => {
                check_setting(self.p >= 2.0, "p", self.p, "at least 2 for leverage and sensitivity")
            }
            Scheme::Leverage | Scheme::Uniform => {
                check_setting(self.rows.is_some(), "rows", "null", "a number: the baselines have no bound")
            }
            Scheme::Lewis if self.approximate => {
                check_setting(self.p <= 2.0, "p", self.p, "at most 2 for approximate Lewis weights")
            }
            Scheme::Lewis | Scheme::Sensitivity => Ok(()),
        }
    }

    /// `m`, for scores of that sum and a matrix of that rank: `rows`, or `⌈ε⁻²·bound⌉`.
    #[must_use]
    pub fn sample_rows(&self, total: f64, d: f64) -> usize {
        let p = self.p;
        let bound = match self.scheme {
            Scheme::Sensitivity if p < 2.0 => total.powf(2.0 / p).min(d.powf(1.0 - p / 2.0) * total),
            Scheme::Sensitivity => total.powf(2.0 - 2.0 / p),
            // The scores are τ + σ.
            Scheme::LeverageSensitivity => d.powf(2.0 / p) * (total - d).max(1.0).powf(2.0 - 4.0 / p),
            Scheme::Lewis if p > 2.0 => d.powf(p / 2.0),
            Scheme::Lewis | Scheme::RootLeverage | Scheme::Leverage | Scheme::Uniform => d,
        };
        let formula = (bound / (self.epsilon * self.epsilon)).ceil();
        // A float-to-integer cast saturates.
        self.rows.unwrap_or((formula as usize).max(2 * d as usize))
    }
}

/// The scores of a scheme, one a row, the augmented matrix being given. Root leverage: of its first round.
///
/// # Errors
/// As [`solve`].
pub fn scores(a: &Design, settings: &LpSettings) -> Result<Vec<f64>, SolveError> {
    settings.validate()?;
    check_not_empty("a", "entry", a.n_rows().min(a.n_cols()))?;
    a.check_finite()?;
    let p = settings.p;
    let sensitive = || -> Result<Vec<f64>, SolveError> {
        Ok(sensitivities(a, p, settings.sensitivity, settings.seed)?.upper)
    };
    match settings.scheme {
        Scheme::Uniform => Ok(vec![1.0; a.n_rows()]),
        Scheme::Leverage => leverages(a, settings),
        Scheme::RootLeverage => root(leverages(a, settings)?, p),
        Scheme::Lewis if settings.approximate => lewis_sampled(a, settings),
        Scheme::Lewis => Ok(lewis(a, p, 1e-6, 1000)?.weights),
        Scheme::Sensitivity => sensitive(),
        Scheme::LeverageSensitivity => {
            let tau = leverages(a, settings)?;
            Ok(sensitive()?.into_iter().zip(tau).map(|(s, t)| s + t).collect())
        }
    }
}

fn root(mut tau: Vec<f64>, p: f64) -> Result<Vec<f64>, SolveError> {
    tau.iter_mut().for_each(|t| *t = sensitivity::power(*t, p / 2.0));
    Ok(tau)
}

fn leverages(a: &Design, settings: &LpSettings) -> Result<Vec<f64>, SolveError> {
    let m = (8 * a.n_cols()).max(64);
    if settings.approximate && a.n_rows() > 4 * m {
        let tau = leverage_sketched(a, SketchKind::Osnap { nonzeros: 4 }, m, 0, settings.seed)?;
        return Ok(tau.into_iter().map(|t| t.min(1.0)).collect());
    }
    leverage(a)
}

/// `(aᵀM⁻¹a)^{p/2}` with `M = BᵀW^{1−2/p}B` for the Lewis weights `W` of a sample `B` of the rows.
fn lewis_sampled(a: &Design, settings: &LpSettings) -> Result<Vec<f64>, SolveError> {
    let (p, m) = (settings.p, (50 * a.n_cols()).max(2000));
    if a.n_rows() <= 2 * m {
        return Ok(lewis(a, p, 1e-6, 1000)?.weights);
    }
    let first = sample(&root(leverages(a, settings)?, p)?, m, settings.seed ^ 0x5be0_cd19_137e_2179)?;
    let b = first.scaled(a, p);
    let w = lewis(&b, p, 1e-6, 1000)?.weights;
    let factor: Vec<f64> =
        w.iter().map(|w| if *w > 0.0 { w.powf(0.5 - 1.0 / p).min(1e75) } else { 0.0 }).collect();
    let t = match b.scale_rows(&factor) {
        Design::Dense(b) => Whitening::of(b.as_ref())?,
        Design::Csc(b) => Whitening::of(crate::linop::to_dense(&b).as_ref())?,
    };
    let forms = match a {
        Design::Dense(a) => quadratic_forms(a.as_ref(), t.matrix()),
        Design::Csc(_) => {
            let mut sum = vec![0.0; a.n_rows()];
            let mut image = vec![0.0; a.n_rows()];
            for j in 0..t.rank() {
                let column: Vec<f64> = (0..a.n_cols()).map(|i| t.matrix()[(i, j)]).collect();
                a.apply(&column, &mut image);
                sum.iter_mut().zip(&image).for_each(|(s, v)| *s += v * v);
            }
            sum
        }
    };
    Ok(forms.into_iter().map(|f| sensitivity::power(f, p / 2.0).min(1.0)).collect())
}

/// Rows of `[A b]` by the scheme; `b: None` when `A` is all there is. Without `b` in the matrix the error of a
/// regression has no bound when `b` has outliers.
///
/// # Errors
/// As [`solve`].
pub fn select(a: &Design, b: Option<&[f64]>, settings: &LpSettings) -> Result<Sample, SolveError> {
    settings.validate()?;
    match b {
        Some(b) => {
            check_dimension("b", a.n_rows(), "rows of the design", b.len())?;
            check_finite("b", b)?;
            select_of(&augmented(a, b), settings)
        }
        None => select_of(a, settings),
    }
}

fn select_of(a: &Design, settings: &LpSettings) -> Result<Sample, SolveError> {
    let s = scores(a, settings)?;
    let rank = match settings.scheme {
        Scheme::Lewis => s.iter().sum::<f64>().round(),
        _ => a.n_cols().min(a.n_rows()) as f64,
    };
    let m = settings.sample_rows(s.iter().sum(), rank.min(a.n_cols() as f64));
    if settings.scheme != Scheme::RootLeverage {
        return sample(&s, m, settings.seed);
    }
    // Rounds: of k rows, m^{p/2}k^{1−p/2}; the fixed point is m.
    let (mut kept, mut s, mut round) = (None::<Sample>, s, 0_u64);
    loop {
        let k = kept.as_ref().map_or(a.n_rows(), |k| k.rows.len());
        let next = (m as f64).powf(settings.p / 2.0) * (k as f64).powf(1.0 - settings.p / 2.0);
        let target = if next <= 2.0 * m as f64 { m } else { next.ceil() as usize };
        let drawn =
            sample(&s, target, settings.seed.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)))?;
        let now = match &kept {
            None => drawn,
            Some(before) => sample::compose(before, &drawn)?,
        };
        if target == m || now.rows.is_empty() {
            return Ok(now);
        }
        s = root(leverage(&now.scaled(a, settings.p))?, settings.p)?;
        kept = Some(now);
        round += 1;
    }
}

/// `[A b]`.
#[must_use]
pub fn augmented(a: &Design, b: &[f64]) -> Design {
    let d = a.n_cols();
    match a {
        Design::Dense(a) => {
            let mut out = Mat::zeros(a.nrows(), d + 1);
            out.as_mut().subcols_mut(0, d).copy_from(a);
            out.col_as_slice_mut(d).copy_from_slice(b);
            Design::Dense(out)
        }
        Design::Csc(a) => {
            let (mut indptr, mut indices, mut values) =
                (a.indptr().to_vec(), a.indices().to_vec(), a.values().to_vec());
            for (i, b) in b.iter().enumerate().filter(|b| *b.1 != 0.0) {
                indices.push(i as u32);
                values.push(*b);
            }
            indptr.push(values.len());
            Design::Csc(Csc::from_checked(a.n_rows(), indptr, indices, values))
        }
    }
}

/// An answer and the rows it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct LpFit {
    /// Coefficients.
    pub x: Vec<f64>,
    /// Rows that the regression was done on.
    pub sample: Sample,
}

/// Regression on a sample. Objective: `‖Ax − b‖_p^p` over all rows. Residuals: those of [`regress`] on the sample, the
/// `duality gap` first; `sampled objective`; `sample rows`, `expected rows`, `total score`.
///
/// ```
/// use rarefy_solve::{Design, Monitor, methods::lp_sensitivity_sampling::{LpSettings, solve}};
/// let a = faer::Mat::from_fn(5000, 2, |i, j| if j == 0 { 1.0 } else { (i as f64 * 0.1).sin() });
/// // One row in fifty is an outlier.
/// let b: Vec<f64> = (0..5000).map(|i| 3.0 - 2.0 * a[(i, 1)] + if i % 50 == 0 { 99.0 } else { 0.0 }).collect();
/// let s = solve(&Design::from(a), &b, &LpSettings { rows: Some(300), ..Default::default() }, &mut Monitor::silent())?;
/// assert!((s.x.x[0] - 3.0).abs() < 1e-9 && (s.x.x[1] + 2.0).abs() < 1e-9);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Setting`], [`SolveError::Empty`], [`SolveError::Dimension`], [`SolveError::NonFinite`],
/// [`SolveError::Breakdown`] on overflow or for a sample without rows: raise `rows`.
pub fn solve(
    a: &Design,
    b: &[f64],
    settings: &LpSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<LpFit>, SolveError> {
    settings.validate()?;
    check_not_empty("a", "entry", a.n_rows().min(a.n_cols()))?;
    let sample = select(a, Some(b), settings)?;
    let (p, n) = (settings.p, a.n_rows());
    if sample.rows.is_empty() {
        if b.iter().all(|b| *b == 0.0) {
            // [A b] is 0: any answer fits.
            let solution = regress(a, b, p, None, &settings.regress, monitor)?;
            return Ok(solution.map(|x| LpFit { x, sample }));
        }
        return Err(SolveError::breakdown("ℓp sampling", "no row was drawn", "raise `rows`"));
    }
    let part: Vec<f64> = sample.rows.iter().map(|i| b[*i]).collect();
    let few = a.select_rows(&sample.rows);
    let mut solution = regress(&few, &part, p, Some(&sample.weights), &settings.regress, monitor)?;
    let mut r = vec![0.0; n];
    a.apply(&solution.x, &mut r);
    r.iter_mut().zip(b).for_each(|(r, b)| *r -= b);
    let mut residual = |name, value| solution.residuals.push(Residual { name, value });
    residual("sampled objective", solution.objective);
    residual("sample rows", sample.rows.len() as f64);
    residual("expected rows", sample.expected);
    residual("total score", sample.total);
    solution.objective = sensitivity::norm_p(&r, p).powf(p);
    solution.seconds = monitor.seconds();
    if !solution.objective.is_finite() {
        return Err(SolveError::breakdown("ℓp sampling", "the answer overflows", "scale the data down"));
    }
    Ok(solution.map(|x| LpFit { x, sample }))
}
