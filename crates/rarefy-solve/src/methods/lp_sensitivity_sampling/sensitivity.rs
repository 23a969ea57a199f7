//! ℓp sensitivities, each with a bound from either side.

use faer::{Mat, MatRef, Side};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::check_p;
use crate::error::check_setting;
use crate::linalg::{Basis, lewis, lewis_of_basis};
use crate::linop::dense::{axpy, dot, norm_inf};
use crate::{Design, LinOp as _, SolveError};

/// How sensitivities are found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitivity {
    /// To a ratio of 1 + 1e-6 of upper to lower bound, within 3000 steps a row. `O(n²d²)` and as many steps.
    Exact,
    /// To a ratio of 1.02, within 60 steps a row: enough to sample by.
    Irls,
    /// The same against a sample of so many rows by Lewis weights: `O(n·rows·d²)`. Not bounds: estimates.
    Coreset {
        /// Rows of the sample, at least 1.
        rows: usize,
    },
    /// `min(1, w)` for p ≤ 2 and `min(1, d^{p/2−1}w)` above, with Lewis weights `w`: no regressions, bounds from above.
    LewisBound,
}

/// Sensitivities `σᵢ = max |⟨aᵢ, x⟩|^p/‖Ax‖_p^p`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivities {
    /// Attained by some `x`, so bounds from below.
    pub lower: Vec<f64>,
    /// Bounds from above, by duality.
    pub upper: Vec<f64>,
}

impl Sensitivities {
    /// Largest `upper/lower`, 1 when every row is known exactly.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let pairs = self.lower.iter().zip(&self.upper);
        pairs.map(|(l, u)| if *u > 0.0 { u / l } else { 1.0 }).fold(1.0, f64::max)
    }

    /// 𝔖, from above.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.upper.iter().sum()
    }
}

/// Sensitivities of all rows; rows in parallel.
///
/// For row `a`: `x` minimises `Σ wᵢ⟨aᵢ, x⟩²` under `⟨a, x⟩ = 1` with `w = |Ax|^{p−2}` of the step before. `x` gives the
/// bound from below. `y = WAx` has `Aᵀy = λa`, so that `λ = yᵀAx' ≤ ‖y‖_q‖Ax'‖_p` for every feasible `x'`, which gives
/// `(‖y‖_q/λ)^p` from above, `1/p + 1/q = 1`. Zero rows have 0; all else is done on an orthonormal basis, where
/// neither rank nor scaling matter.
///
/// # Errors
/// [`SolveError::Setting`] for `p` outside [1, 100] or no rows of a core-set, [`SolveError::Empty`],
/// [`SolveError::NonFinite`], [`SolveError::Breakdown`].
pub fn sensitivities(a: &Design, p: f64, how: Sensitivity, seed: u64) -> Result<Sensitivities, SolveError> {
    check_p(p)?;
    if let Sensitivity::Coreset { rows } = how {
        check_setting(rows > 0, "rows", rows, "at least 1")?;
    }
    if how == Sensitivity::LewisBound {
        let w = lewis(a, p, 1e-9, 1000)?;
        let d = w.weights.iter().sum::<f64>();
        let factor = if p > 2.0 { d.powf(p / 2.0 - 1.0) } else { 1.0 };
        let upper: Vec<f64> = w.weights.iter().map(|w| (factor * w).min(1.0)).collect();
        // w ≤ d^{1−p/2}σ below 2; above, nothing better than a factor of its own is known: ℓ2 leverage by Hölder.
        let lower = if p <= 2.0 {
            w.weights.iter().map(|w| w * d.powf(p / 2.0 - 1.0)).collect()
        } else {
            vec![0.0; upper.len()]
        };
        return Ok(Sensitivities { lower, upper });
    }
    let basis = Basis::of(a)?;
    let q = row_major(basis.q.as_ref());
    let r = basis.q.ncols();
    let (tolerance, steps) = if how == Sensitivity::Exact { (1e-6, 3000) } else { (0.02, 60) };
    let norm = match how {
        Sensitivity::Coreset { rows } => {
            let w = lewis_of_basis(basis.q.as_ref(), p, 1e-6, 200)?;
            let s = super::sample(&w.weights, rows, seed)?;
            let core =
                Mat::from_fn(s.rows.len(), r, |i, j| s.weights[i].powf(1.0 / p) * basis.q[(s.rows[i], j)]);
            if core.nrows() == 0 || Basis::of(&core.clone().into())?.q.ncols() < r {
                return Err(SolveError::breakdown("core-set", "it has lost rank", "raise its `rows`"));
            }
            core
        }
        _ => basis.q.clone(),
    };
    let n = a.n_rows();
    if r == 0 {
        return Ok(Sensitivities { lower: vec![0.0; n], upper: vec![0.0; n] });
    }
    let both: Vec<(f64, f64)> =
        q.par_chunks_exact(r).map(|row| of_row(&norm, row, p, tolerance, steps)).collect();
    Ok(Sensitivities {
        lower: both.iter().map(|b| b.0.min(1.0)).collect(),
        upper: both.iter().map(|b| b.1.min(1.0)).collect(),
    })
}

fn row_major(a: MatRef<'_, f64>) -> Vec<f64> {
    (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| a[(i, j)])).collect()
}

/// `|v|^e` with the exponents that come up most.
#[inline(always)]
pub(super) fn power(v: f64, e: f64) -> f64 {
    let v = v.abs();
    if (e - 1.0).abs() < f64::EPSILON {
        v
    } else if (e - 2.0).abs() < f64::EPSILON {
        v * v
    } else if (e + 1.0).abs() < f64::EPSILON {
        1.0 / v
    } else if (e + 0.5).abs() < f64::EPSILON {
        1.0 / v.sqrt()
    } else if (e - 1.5).abs() < f64::EPSILON {
        v * v.sqrt()
    } else if (e - 3.0).abs() < f64::EPSILON {
        v * v * v
    } else if e.abs() < f64::EPSILON {
        1.0
    } else {
        v.powf(e)
    }
}

/// `(Σ|v|^p)^{1/p}` without overflow; the largest entry for infinite `p`.
pub(super) fn norm_p(v: &[f64], p: f64) -> f64 {
    let largest = norm_inf(v);
    if largest <= 0.0 || p.is_infinite() || !largest.is_finite() {
        return largest;
    }
    largest * v.iter().map(|v| power(v / largest, p)).sum::<f64>().powf(1.0 / p)
}

/// The dual exponent.
pub(super) fn dual(p: f64) -> f64 {
    if p <= 1.0 { f64::INFINITY } else { p / (p - 1.0) }
}

/// Bounds of `1/min{‖Bx‖_p^p : ⟨a, x⟩ = 1}` .
fn of_row(b: &Mat<f64>, a: &[f64], p: f64, tolerance: f64, steps: usize) -> (f64, f64) {
    let r = a.len();
    if a.iter().all(|v| *v == 0.0) {
        return (0.0, 0.0);
    }
    let n = b.nrows();
    let (mut w, mut image, mut scaled, mut old) = (vec![1.0; n], vec![0.0; n], vec![0.0; n], vec![]);
    let (mut least, mut bound) = (f64::INFINITY, 0.0_f64);
    let mut floor: f64 = 1e-2;
    for step in 0..steps {
        let mut gram = Mat::<f64>::zeros(r, r);
        for j in 0..r {
            scaled.iter_mut().zip(w.iter().zip(b.col_as_slice(j))).for_each(|(s, (w, v))| *s = w * v);
            for k in 0..=j {
                let v = dot(&scaled, b.col_as_slice(k));
                gram[(j, k)] = v;
                gram[(k, j)] = v;
            }
        }
        let Ok(factor) = gram.llt(Side::Lower) else { break };
        let mut z = Mat::from_fn(r, 1, |j, _| a[j]);
        faer::linalg::solvers::Solve::solve_in_place(&factor, z.as_mut());
        let along: f64 = (0..r).map(|j| a[j] * z[(j, 0)]).sum();
        if !(along > 0.0 && along.is_finite()) {
            break;
        }
        image.fill(0.0);
        for j in 0..r {
            axpy(z[(j, 0)] / along, b.col_as_slice(j), &mut image);
        }
        // λ = xᵀAᵀWAx = 1/(aᵀG⁻¹a).
        scaled.iter_mut().zip(w.iter().zip(&image)).for_each(|(s, (w, v))| *s = w * v);
        let size = norm_p(&scaled, dual(p));
        if size > 0.0 {
            bound = bound.max(1.0 / (along * size));
        }
        least = least.min(norm_p(&image, p));
        if p > 2.0 && step > 0 {
            // The damped step is Newton's.
            let t = 1.0 / (p - 1.0);
            let next: Vec<f64> = image.iter().zip(&old).map(|(v, o): (&f64, &f64)| o + t * (v - o)).collect();
            least = least.min(norm_p(&next, p));
            image.copy_from_slice(&next);
        }
        if least <= 0.0 || bound.powf(p) * (1.0 + tolerance) >= least.powf(p) {
            break;
        }
        let largest = norm_inf(&image);
        floor = (floor * 0.5).max(1e-9);
        w.iter_mut().zip(&image).for_each(|(w, v)| *w = power((v.abs() / largest).max(floor), p - 2.0));
        let top = norm_inf(&w);
        w.iter_mut().for_each(|w| *w /= top);
        old.clone_from(&image);
    }
    // A row outside the span of B has no bound but 1.
    let invert = |v: f64| if v > 0.0 { v.powf(-p) } else { 1.0 };
    (invert(least.min(f64::MAX)).min(invert(bound)), invert(bound))
}
