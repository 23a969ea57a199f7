//! KroSBL — recovers a sparse tensor whose support is a product of supports, by sparse Bayesian learning.
//!
//! Paper:    He, Joseph, Bayesian Algorithms for Kronecker-structured Sparse Vector Recovery With Application to
//!           IRS-MIMO Channel Estimation, IEEE TSP 2024, arXiv 2307.14719. Reference code: YanbinHe/JournalKroSBL.
//! Problem:  y = (A₁ ⊗ … ⊗ A_D)x + noise of variance σ²; A_d: [M_d, N_d], x a tensor of the N_d, last mode fastest.
//!           Prior x ~ N(0, diag(γ)), γ = γ₁ ⊗ … ⊗ γ_D; minimise log det C + yᵀC⁻¹y, C = σ²I + HΓHᵀ. Not convex.
//! Method:   1. drop entries of γ_d below a share of the largest. 2. mean and variances of the posterior from the
//!           eigenvectors of each A_d·diag(γ_d)·A_dᵀ; nothing of the full size is formed. 3. Λ = variance + mean²;
//!           fit γ to Λ by the variant. Until γ moves by less than the tolerance.
//! Cost:     an iteration O(Σ M_d³) and a few mode products of the size of y and of what is left of x.
//! Variants: `Variant`: SVD (successive rank-1 approximations), alternating (AM, never raises the objective without
//!           pruning), one pass (KSBL, the earlier work). Known or unknown noise. Any number of modes.
//!           Baseline: [`sbl`], classic sparse Bayesian learning by EM or MacKay's update.
//! Differs:  from the reference code: E-step without the full matrices (the same to rounding); the inner tolerance of AM
//!           is relative; any number of modes. Real data only; PC-KroSBL and the IRS front end are not here.
//! Choose:   SVD first: fewer iterations and usually a better answer, though without a guarantee. Alternating when the
//!           objective must fall. [`sbl`] when the support is no product.
//! Fails on: a negative variance → `Setting`; wrong sizes → `Dimension`. y = 0 gives x = 0.
//!           Evidence: dense oracle in the tests, `rarefy repro kronecker-sbl`.

use std::ops::ControlFlow;

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::Kronecker;
use crate::linop::dense::{axpy, dot, norm, norm_sq};
use crate::{LinOp, Monitor, Residual, Solution, SolveError, Status};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "kronecker-sbl",
    name: "KroSBL",
    family: "solver",
    paper: "He, Joseph, IEEE TSP 2024, arXiv 2307.14719",
    command: "solve recover --method kronecker-sbl",
    maturity: Maturity::Preview,
    summary: "recovers a sparse tensor with a product support from Kronecker measurements, by Bayesian learning",
};

/// How the prior is fitted to the second moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Successive best rank-1 approximations.
    Svd,
    /// Alternating minimisation to the end.
    Alternating,
    /// One pass of it.
    OnePass,
}

/// The variance of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// This, above 0.
    Known(f64),
    /// Learnt, from a tenth of the mean square of y.
    Unknown,
}

/// Settings of [`solve`] and [`sbl`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SblSettings {
    /// How the prior is fitted ([`solve`] only). House default: SVD.
    pub variant: Variant,
    /// MacKay's fixed point instead of EM ([`sbl`] only): faster, not monotone.
    pub uses_mackay: bool,
    /// The variance of the noise. House default: unknown.
    pub noise: Noise,
    /// Share of the largest below which an entry of the prior is dropped, in [0, 1). Default of the reference code: 1e-2
    /// alternating, 1e-3 otherwise, 5e-3 with unknown noise.
    pub prune: Option<f64>,
    /// Relative change of the prior at which it ends, 0 or more. Reference code: 1e-4.
    pub tolerance: f64,
    /// Limit of iterations. Reference code: 150.
    pub max_iterations: usize,
}

impl Default for SblSettings {
    fn default() -> Self {
        Self {
            variant: Variant::Svd,
            uses_mackay: false,
            noise: Noise::Unknown,
            prune: None,
            tolerance: 1e-4,
            max_iterations: 150,
        }
    }
}

impl SblSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        if let Noise::Known(v) = self.noise {
            check_setting(v > 0.0 && v.is_finite(), "noise", v, "above 0 and finite")?;
        }
        if let Some(p) = self.prune {
            check_setting((0.0..1.0).contains(&p), "prune", p, "in [0, 1)")?;
        }
        let t = self.tolerance;
        check_setting(t >= 0.0 && t.is_finite(), "tolerance", t, "0 or more and finite")
    }

    fn threshold(&self, variant: Variant) -> f64 {
        self.prune.unwrap_or(match (self.noise, variant) {
            (Noise::Unknown, _) => 5e-3,
            (_, Variant::Alternating) => 1e-2,
            _ => 1e-3,
        })
    }
}

/// What was recovered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recovered {
    /// The posterior mean, last mode fastest; 0 where the prior was dropped.
    pub x: Vec<f64>,
    /// The prior variance of each mode, 0 where dropped.
    pub prior: Vec<Vec<f64>>,
    /// The variance of the noise, given or learnt.
    pub noise: f64,
}

/// Mean and variances of the posterior, without forming the product.
struct Posterior {
    mean: Vec<f64>,
    variance: Vec<f64>,
    /// `log det C + yᵀC⁻¹y`.
    cost: f64,
}

/// `γ₁ ⊗ … ⊗ γ_D`, last fastest.
fn product(parts: &[Vec<f64>]) -> Vec<f64> {
    parts.iter().fold(vec![1.0], |all, p| all.iter().flat_map(|a| p.iter().map(move |b| a * b)).collect())
}

fn expectation(a: &[Mat<f64>], prior: &[Vec<f64>], y: &[f64], noise: f64) -> Result<Posterior, SolveError> {
    let (mut rotate, mut back, mut squared, mut values) = (vec![], vec![], vec![], vec![]);
    for (a, g) in a.iter().zip(prior) {
        let half = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] * g[j].sqrt());
        let eigen = (&half * half.transpose()).self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|e| {
            SolveError::breakdown("kronecker-sbl", format!("{e:?}"), "scale the factors to about 1")
        })?;
        let w = a.transpose() * eigen.U();
        let w = Mat::from_fn(w.nrows(), w.ncols(), |i, j| g[i] * w[(i, j)]);
        squared.push(Mat::from_fn(w.nrows(), w.ncols(), |i, j| w[(i, j)] * w[(i, j)]));
        rotate.push(eigen.U().transpose().to_owned());
        back.push(w);
        values.push(eigen.S().column_vector().iter().map(|v| v.max(0.0)).collect::<Vec<f64>>());
    }
    let den: Vec<f64> = product(&values).into_iter().map(|p| noise + p).collect();
    let mut z = vec![0.0; y.len()];
    Kronecker::new(rotate)?.apply(y, &mut z);
    let cost = den.iter().zip(&z).map(|(d, z)| d.ln() + z * z / d).sum();
    z.iter_mut().zip(&den).for_each(|(z, d)| *z /= d);
    let mut mean = vec![0.0; prior.iter().map(Vec::len).product()];
    Kronecker::new(back)?.apply(&z, &mut mean);
    let inverse: Vec<f64> = den.iter().map(|d| 1.0 / d).collect();
    let mut variance = vec![0.0; mean.len()];
    Kronecker::new(squared)?.apply(&inverse, &mut variance);
    variance.iter_mut().zip(product(prior)).for_each(|(v, g)| *v = (g - *v).max(0.0));
    Ok(Posterior { mean, variance, cost })
}

/// Sum over all modes but `d`, weighted by the inverse of the other parts.
fn collapse(moments: &[f64], parts: &[Vec<f64>], d: usize) -> Vec<f64> {
    let inverse = |p: &[f64]| p.iter().map(|v| if *v > 0.0 { 1.0 / v } else { 0.0 }).collect::<Vec<f64>>();
    let mut t = moments.to_vec();
    for part in parts[d + 1..].iter().rev() {
        let w = inverse(part);
        t = t.chunks_exact(part.len()).map(|c| dot(c, &w)).collect();
    }
    for part in &parts[..d] {
        let right = t.len() / part.len();
        let mut sum = vec![0.0; right];
        t.chunks_exact(right).zip(inverse(part)).for_each(|(c, w)| axpy(w, c, &mut sum));
        t = sum;
    }
    t
}

/// Alternating minimisation of `Σ log g + Λ/g` over product priors `g`, at most `passes` of them.
pub(crate) fn fit_alternating(moments: &[f64], parts: &mut [Vec<f64>], passes: usize, balances: bool) {
    let mut before = product(parts);
    for _ in 0..passes {
        for d in 0..parts.len() {
            let others = (moments.len() / parts[d].len()) as f64;
            parts[d] = collapse(moments, parts, d).into_iter().map(|v| v / others).collect();
        }
        if balances {
            normalise(parts);
        }
        let now = product(parts);
        let moved = now.iter().zip(&before).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        if moved <= 1e-5 * norm(&now) {
            return;
        }
        before = now;
    }
}

/// All but the last to unit length.
fn normalise(parts: &mut [Vec<f64>]) {
    let Some((last, others)) = parts.split_last_mut() else { return };
    for part in others {
        let length = norm(part);
        if length > 0.0 {
            part.iter_mut().for_each(|v| *v /= length);
            last.iter_mut().for_each(|v| *v *= length);
        }
    }
}

/// Successive rank-1 approximations of the moments.
pub(crate) fn fit_svd(moments: &[f64], parts: &mut [Vec<f64>]) -> Result<(), SolveError> {
    let mut rest = moments.to_vec();
    let Some((last, others)) = parts.split_last_mut() else { return Ok(()) };
    for part in others {
        let (rows, right) = (part.len(), rest.len() / part.len());
        let line = |i: usize| &rest[i * right..(i + 1) * right];
        let gram = Mat::from_fn(rows, rows, |i, j| dot(line(i), line(j)));
        let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|e| {
            SolveError::breakdown("kronecker-sbl", format!("{e:?}"), "scale the measurements to about 1")
        })?;
        // Non-negative moments have a non-negative leading pair.
        *part = (0..rows).map(|i| eigen.U()[(i, rows - 1)].abs()).collect();
        let mut sum = vec![0.0; right];
        rest.chunks_exact(right).zip(&*part).for_each(|(c, w)| axpy(*w, c, &mut sum));
        rest = sum.into_iter().map(f64::abs).collect();
    }
    *last = rest;
    Ok(())
}

fn check(y: &[f64], measurements: Option<usize>) -> Result<(), SolveError> {
    check_not_empty("y", "measurement", y.len())?;
    let expected = measurements.unwrap_or(usize::MAX);
    check_dimension("y", expected, "product of the rows of the factors", y.len())?;
    check_finite("y", y)?;
    if norm_sq(y).is_finite() {
        return Ok(());
    }
    Err(SolveError::breakdown("kronecker-sbl", "the squares of y overflow", "scale y down"))
}

/// One step of the learnt variance.
fn learn_noise(noise: f64, squares: f64, shrunk: f64, n: usize, floor: f64) -> f64 {
    ((squares + noise * shrunk) / n as f64).max(floor)
}

/// Recovers x from `y = (A₁ ⊗ … ⊗ A_D)x + noise`. Objective: `log det C + yᵀC⁻¹y`; residual: relative change of the
/// prior.
///
/// # Errors
/// [`SolveError::Setting`], [`SolveError::Empty`], [`SolveError::Dimension`], [`SolveError::NonFinite`],
/// [`SolveError::Breakdown`] on overflow.
pub fn solve(
    factors: &[MatRef<'_, f64>],
    y: &[f64],
    settings: &SblSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Recovered>, SolveError> {
    settings.validate()?;
    check_not_empty("factors", "matrix", factors.len())?;
    for f in factors {
        check_not_empty("factors", "row and column", f.nrows().min(f.ncols()))?;
        (0..f.ncols()).try_for_each(|j| check_finite("factors", f.col(j).iter()))?;
    }
    check(y, factors.iter().try_fold(1_usize, |n, f| n.checked_mul(f.nrows())))?;
    let full: Vec<usize> = factors.iter().map(|f| f.ncols()).collect();
    Kronecker::new(factors.iter().map(|f| Mat::zeros(f.nrows(), f.ncols())).collect())?;
    // Unit mean square, so that thresholds do not depend on the scale.
    let power = norm_sq(y) / y.len() as f64;
    let unit = if power > 0.0 { power.sqrt() } else { 1.0 };
    let y: Vec<f64> = y.iter().map(|v| v / unit).collect();
    // log det C is that of the scaled problem plus this.
    let shift = 2.0 * y.len() as f64 * unit.ln();
    let mut noise = match settings.noise {
        Noise::Known(v) => v / (unit * unit),
        Noise::Unknown => 0.1,
    };
    let mut a: Vec<Mat<f64>> = factors.iter().map(|f| f.to_owned()).collect();
    let mut kept: Vec<Vec<usize>> = full.iter().map(|n| (0..*n).collect()).collect();
    let mut prior: Vec<Vec<f64>> = full.iter().map(|n| vec![1.0 / (*n as f64).sqrt(); *n]).collect();
    if let Some((last, others)) = prior.split_last_mut() {
        let length = others.iter().map(|p| p.len() as f64).product::<f64>().sqrt();
        last.fill(length);
    }
    let spread = |prior: &[Vec<f64>], kept: &[Vec<usize>]| -> Vec<Vec<f64>> {
        let modes = prior.iter().zip(kept).zip(&full);
        modes
            .map(|((p, kept), n)| {
                let mut out = vec![0.0; *n];
                kept.iter().zip(p).for_each(|(i, v)| out[*i] = *v);
                out
            })
            .collect()
    };
    let (mut trace, mut status) = (vec![], Status::MaxIterations);
    let (mut change, mut before) = (f64::INFINITY, product(&spread(&prior, &kept)));
    for iteration in 1..=settings.max_iterations {
        let now = expectation(&a, &prior, &y, noise)?;
        let moments: Vec<f64> = now.mean.iter().zip(&now.variance).map(|(m, v)| v + m * m).collect();
        if settings.noise == Noise::Unknown {
            let squares = misfit(&a, &now.mean, &y)?;
            let old = product(&prior);
            let shrunk =
                now.variance.iter().zip(&old).map(|(v, g)| if *g > 0.0 { 1.0 - v / g } else { 0.0 }).sum();
            noise = learn_noise(noise, squares, shrunk, y.len(), 1e-14);
        }
        match settings.variant {
            Variant::Svd => fit_svd(&moments, &mut prior)?,
            Variant::Alternating => fit_alternating(&moments, &mut prior, 2000, true),
            Variant::OnePass => fit_alternating(&moments, &mut prior, 1, false),
        }
        for ((prior, kept), a) in prior.iter_mut().zip(&mut kept).zip(&mut a) {
            let bound = settings.threshold(settings.variant) * prior.iter().fold(0.0_f64, |t, v| t.max(*v));
            let stays: Vec<usize> = (0..prior.len()).filter(|i| prior[*i] >= bound).collect();
            if stays.len() < prior.len() && !stays.is_empty() {
                *a = Mat::from_fn(a.nrows(), stays.len(), |i, j| a[(i, stays[j])]);
                *kept = stays.iter().map(|i| kept[*i]).collect();
                *prior = stays.iter().map(|i| prior[*i]).collect();
            }
        }
        let after = product(&spread(&prior, &kept));
        let moved = after.iter().zip(&before).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let length = norm(&before);
        change = if length > 0.0 { moved / length } else { 0.0 };
        before = after;
        if !change.is_finite() || !now.cost.is_finite() {
            return Err(SolveError::breakdown(
                "kronecker-sbl",
                "the prior is not finite",
                "scale the factors to about 1",
            ));
        }
        let stop = monitor.record(&mut trace, iteration, now.cost + shift, change);
        if change <= settings.tolerance {
            status = Status::Converged;
            break;
        }
        if let ControlFlow::Break(why) = stop {
            status = why;
            break;
        }
    }
    let last = expectation(&a, &prior, &y, noise)?;
    let squares = misfit(&a, &last.mean, &y)?;
    let mut x = vec![0.0; full.iter().product()];
    for (at, v) in last.mean.iter().enumerate() {
        let (mut rest, mut to, mut stride) = (at, 0, 1);
        for (kept, n) in kept.iter().zip(&full).rev() {
            to += stride * kept[rest % kept.len()];
            rest /= kept.len();
            stride *= n;
        }
        x[to] = v * unit;
    }
    let mut prior = spread(&prior, &kept);
    if let Some(p) = prior.last_mut() {
        p.iter_mut().for_each(|v| *v *= unit * unit);
    }
    Ok(finish(
        Recovered { x, prior, noise: noise * unit * unit },
        status,
        last.cost + shift,
        change,
        squares,
        trace,
        monitor,
    ))
}

fn finish(
    x: Recovered,
    status: Status,
    objective: f64,
    change: f64,
    squares: f64,
    trace: crate::Trace,
    monitor: &Monitor<'_>,
) -> Solution<Recovered> {
    let residuals = vec![
        Residual { name: "relative change of the prior", value: change },
        Residual { name: "misfit over the size of y", value: squares.sqrt() },
    ];
    Solution { x, status, objective, residuals, iterations: trace.len(), trace, seconds: monitor.seconds() }
}

fn misfit(a: &[Mat<f64>], x: &[f64], y: &[f64]) -> Result<f64, SolveError> {
    let mut fitted = vec![0.0; y.len()];
    Kronecker::new(a.to_vec())?.apply(x, &mut fitted);
    Ok(fitted.iter().zip(y).map(|(f, y)| (f - y).powi(2)).sum())
}

/// Classic sparse Bayesian learning (Tipping; Wipf, Rao): a variance of its own for each column of the dense `a`. An
/// iteration costs `O(m²·p + m³)`. Objective and residual as [`solve`].
///
/// # Errors
/// As [`solve`].
pub fn sbl(
    a: MatRef<'_, f64>,
    y: &[f64],
    settings: &SblSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Recovered>, SolveError> {
    settings.validate()?;
    check_not_empty("a", "row and column", a.nrows().min(a.ncols()))?;
    (0..a.ncols()).try_for_each(|j| check_finite("a", a.col(j).iter()))?;
    check(y, Some(a.nrows()))?;
    let (m, p) = (a.nrows(), a.ncols());
    let power = norm_sq(y) / m as f64;
    let unit = if power > 0.0 { power.sqrt() } else { 1.0 };
    let y = Mat::from_fn(m, 1, |i, _| y[i] / unit);
    let shift = 2.0 * m as f64 * unit.ln();
    let mut noise = match settings.noise {
        Noise::Known(v) => v / (unit * unit),
        Noise::Unknown => 0.1,
    };
    let mut kept: Vec<usize> = (0..p).collect();
    let mut prior = vec![1.0_f64; p];
    let (mut trace, mut status, mut change) = (vec![], Status::MaxIterations, f64::INFINITY);
    let mut last = (vec![0.0; p], 0.0, 0.0);
    for iteration in 1..=settings.max_iterations + 1 {
        let columns = Mat::from_fn(m, kept.len(), |i, j| a[(i, kept[j])]);
        let half = Mat::from_fn(m, kept.len(), |i, j| columns[(i, j)] * prior[j].sqrt());
        let mut c = &half * half.transpose();
        (0..m).for_each(|i| c[(i, i)] += noise);
        let llt = c.llt(Side::Lower).map_err(|_| {
            SolveError::breakdown("sbl", "the covariance is singular", "raise the variance of the noise")
        })?;
        let (solved, white) = (llt.solve(&columns), llt.solve(&y));
        let quad: f64 = (0..m).map(|i| y[(i, 0)] * white[(i, 0)]).sum();
        let cost = shift + quad + 2.0 * (0..m).map(|i| llt.L()[(i, i)].ln()).sum::<f64>();
        let inner = |j: usize, b: MatRef<'_, f64>, l: usize| -> f64 {
            (0..m).map(|i| columns[(i, j)] * b[(i, l)]).sum()
        };
        let mean: Vec<f64> = (0..kept.len()).map(|j| prior[j] * inner(j, white.as_ref(), 0)).collect();
        // 1 − variance/γ, in [0, 1].
        let certain: Vec<f64> =
            (0..kept.len()).map(|j| (prior[j] * inner(j, solved.as_ref(), j)).clamp(0.0, 1.0)).collect();
        let squares: f64 = (0..m)
            .map(|i| {
                let fit: f64 = (0..kept.len()).map(|j| columns[(i, j)] * mean[j]).sum();
                (y[(i, 0)] - fit).powi(2)
            })
            .sum();
        if !cost.is_finite() {
            return Err(SolveError::breakdown(
                "sbl",
                "the objective is not finite",
                "scale the columns to about 1",
            ));
        }
        last = (mean, cost, squares);
        if status.is_converged() || iteration > settings.max_iterations {
            break;
        }
        let mean = &last.0;
        if settings.noise == Noise::Unknown {
            noise = learn_noise(noise, squares, certain.iter().sum(), m, 1e-14);
        }
        let fresh: Vec<f64> = (0..kept.len())
            .map(|j| {
                if settings.uses_mackay {
                    if certain[j] > 0.0 { mean[j] * mean[j] / certain[j] } else { 0.0 }
                } else {
                    mean[j] * mean[j] + prior[j] * (1.0 - certain[j])
                }
            })
            .collect();
        let bound = settings.threshold(Variant::OnePass) * fresh.iter().fold(0.0_f64, |t, v| t.max(*v));
        let stays: Vec<usize> = (0..kept.len()).filter(|j| fresh[*j] >= bound).collect();
        let moved: f64 = (0..kept.len())
            .map(|j| (if fresh[j] >= bound { fresh[j] } else { 0.0 } - prior[j]).powi(2))
            .sum();
        let length = norm(&prior);
        change = if length > 0.0 { moved.sqrt() / length } else { 0.0 };
        let stop = monitor.record(&mut trace, iteration, cost, change);
        if change <= settings.tolerance {
            status = Status::Converged;
        }
        prior = stays.iter().map(|j| fresh[*j]).collect();
        kept = stays.iter().map(|j| kept[*j]).collect();
        if let ControlFlow::Break(why) = stop
            && !status.is_converged()
        {
            status = why;
            last.0 = stays.iter().map(|j| last.0[*j]).collect();
            break;
        }
    }
    let (mut x, mut full) = (vec![0.0; p], vec![0.0; p]);
    for (t, j) in kept.iter().enumerate() {
        x[*j] = last.0[t] * unit;
        full[*j] = prior[t] * unit * unit;
    }
    let x = Recovered { x, prior: vec![full], noise: noise * unit * unit };
    Ok(finish(x, status, last.1, change, last.2, trace, monitor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_rank_one_are_returned_and_a_scale_moves_freely() {
        let truth = [vec![0.5, 2.0], vec![1.0, 3.0, 0.25], vec![4.0, 0.1]];
        let moments = product(&truth);
        let mut svd = truth.clone().map(|p| vec![1.0; p.len()]);
        let mut am = svd.clone();
        fit_svd(&moments, &mut svd).map_err(|e| e.to_string()).unwrap_or_default();
        fit_alternating(&moments, &mut am, 50, true);
        for parts in [&svd, &am] {
            for (a, b) in product(parts).iter().zip(&moments) {
                assert!((a - b).abs() < 1e-14 * (1.0 + b), "{a} {b}");
            }
        }
        // (a·g₁, g₂, g₃/a) is the same prior.
        let mut moved = truth.clone();
        moved[0].iter_mut().for_each(|v| *v *= 3.0);
        moved[2].iter_mut().for_each(|v| *v /= 3.0);
        assert!(product(&moved).iter().zip(&moments).all(|(a, b)| (a - b).abs() < 1e-14));
    }
}
