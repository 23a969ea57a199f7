//! Everyday baselines: proximal gradient (ISTA, FISTA) on any linear operator, and orthogonal matching pursuit.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Coefficients, check_alpha};
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::dense::{axpy, dot, norm, norm_inf, norm_sq};
use crate::prox::{positive_soft, soft};
use crate::{Design, LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`proximal_gradient`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProximalGradientSettings {
    /// FISTA (Beck and Teboulle 2009) with restart when the objective rises (O'Donoghue and Candès 2015);
    /// otherwise ISTA. Default: yes.
    pub accelerated: bool,
    /// Only coefficients of at least 0. Default: no.
    pub positive: bool,
    /// Duality gap at which to stop, relative to `‖y‖²/2n`, at least 0. Default 1e-6.
    pub tolerance: f64,
    /// Limit of iterations. House default: 10000.
    pub max_iterations: usize,
}

impl Default for ProximalGradientSettings {
    fn default() -> Self {
        Self { accelerated: true, positive: false, tolerance: 1e-6, max_iterations: 10_000 }
    }
}

/// `min ‖Aw − y‖²/2n + α‖w‖₁` for an operator that only multiplies: implicit, Kronecker, masked. Two products
/// per iteration; the step is found by doubling a bound on `‖A‖²`. For matrices [`super::solve`] is much faster.
///
/// # Errors
/// A [`SolveError`] naming the argument.
pub fn proximal_gradient(
    a: &dyn LinOp,
    y: &[f64],
    alpha: f64,
    settings: &ProximalGradientSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    check_alpha(alpha)?;
    let tol = settings.tolerance;
    check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
    check_not_empty("y", "value", y.len())?;
    check_dimension("y", a.n_rows(), "rows of a", y.len())?;
    check_finite("y", y)?;
    let begin = monitor.seconds();
    let (n, p) = (y.len() as f64, a.n_cols());
    let lambda = alpha * n;
    let tolerance = settings.tolerance * 0.5 * norm_sq(y);
    let (mut w, mut ahead) = (vec![0.0; p], vec![0.0; p]);
    // Residuals y − A·: at w and at the extrapolated point.
    let (mut r, mut r_ahead) = (y.to_vec(), y.to_vec());
    let (mut g, mut image) = (vec![0.0; p], vec![0.0; y.len()]);
    let (mut l, mut momentum) = (0.0_f64, 1.0_f64);
    let (mut trace, mut iterations) = (vec![], 0);
    let (mut objective, mut gap) = (0.5 * norm_sq(y), f64::INFINITY);
    let status = loop {
        if iterations % 10 == 0 {
            a.apply_t(&r, &mut g);
            let top = if settings.positive { g.iter().copied().fold(0.0, f64::max) } else { norm_inf(&g) };
            let (rr, yr) = (norm_sq(&r), dot(y, &r));
            let scale =
                (yr / rr.max(f64::MIN_POSITIVE)).max(0.0).min(if top > 0.0 { lambda / top } else { 1.0 });
            gap = objective - (scale * yr - 0.5 * scale * scale * rr);
            if !gap.is_finite() {
                return Err(SolveError::breakdown("proximal gradient", "overflow", "scale the operator"));
            }
            let observed = monitor.record(&mut trace, iterations, objective / n, gap / n);
            if gap <= tolerance {
                break Status::Converged;
            }
            if let ControlFlow::Break(status) = observed {
                break status;
            }
        }
        if iterations >= settings.max_iterations {
            break Status::MaxIterations;
        }
        a.apply_t(&r_ahead, &mut g);
        if l == 0.0 {
            // A first estimate from the image of the gradient.
            a.apply(&g, &mut image);
            l = (norm_sq(&image) / norm_sq(&g).max(f64::MIN_POSITIVE)).max(f64::MIN_POSITIVE);
        }
        let (new, r_new) = loop {
            let new: Vec<f64> = ahead
                .iter()
                .zip(&g)
                .map(|(v, g)| {
                    if settings.positive {
                        positive_soft(v + g / l, lambda / l)
                    } else {
                        soft(v + g / l, lambda / l)
                    }
                })
                .collect();
            a.apply(&new, &mut image);
            let r_new: Vec<f64> = y.iter().zip(&image).map(|(y, v)| y - v).collect();
            // For a quadratic the bound holds when ‖A d‖² ≤ L‖d‖².
            let moved: f64 = new.iter().zip(&ahead).map(|(a, b)| (a - b).powi(2)).sum();
            let bent: f64 = r_new.iter().zip(&r_ahead).map(|(a, b)| (a - b).powi(2)).sum();
            if bent <= l * moved * (1.0 + 1e-10) || !bent.is_finite() {
                break (new, r_new);
            }
            l = (2.0 * l).min(1.01 * bent / moved).max(1.0001 * l);
        };
        iterations += 1;
        let value = 0.5 * norm_sq(&r_new) + lambda * new.iter().map(|v| v.abs()).sum::<f64>();
        if settings.accelerated {
            if value > objective {
                momentum = 1.0;
            }
            let next = 0.5 * (1.0 + (1.0 + 4.0_f64 * momentum * momentum).sqrt());
            let beta = (momentum - 1.0) / next;
            momentum = next;
            ahead = new.iter().zip(&w).map(|(a, b)| a + beta * (a - b)).collect();
            r_ahead = r_new.iter().zip(&r).map(|(a, b)| a + beta * (a - b)).collect();
        } else {
            ahead.clone_from(&new);
            r_ahead.clone_from(&r_new);
        }
        (w, r, objective) = (new, r_new, value);
    };
    Ok(Solution {
        x: w,
        status,
        objective: objective / n,
        residuals: vec![Residual { name: "duality gap", value: gap.max(0.0) / n }],
        iterations,
        trace,
        seconds: monitor.seconds() - begin,
    })
}

/// Settings of [`orthogonal_matching_pursuit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OmpSettings {
    /// Largest number of features, at least 1. Default: 10.
    pub max_features: usize,
    /// Ends when `‖y − Xw‖` is at most this share of `‖y‖`, at least 0. Default 1e-10.
    pub tolerance: f64,
}

impl Default for OmpSettings {
    fn default() -> Self {
        Self { max_features: 10, tolerance: 1e-10 }
    }
}

/// Orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993): adds the feature most correlated with the
/// residual (columns taken as normalised; ties: lower feature), then fits all of them by least squares with an
/// updated Cholesky factor. No intercept. O(nnz) per feature, O(k²) for the update. Ends with
/// [`Status::Stalled`] when the next column depends on those already taken. Recovers the support when
/// columns are incoherent (Tropp 2004); a poor choice for correlated ones.
///
/// # Errors
/// A [`SolveError`] naming the argument.
pub fn orthogonal_matching_pursuit(
    x: &Design,
    y: &[f64],
    settings: &OmpSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Coefficients>, SolveError> {
    check_setting(settings.max_features > 0, "max_features", settings.max_features, "at least 1")?;
    let tol = settings.tolerance;
    check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
    check_dimension("y", x.n_rows(), "rows of x", y.len())?;
    check_finite("y", y)?;
    x.check_finite()?;
    let begin = monitor.seconds();
    let p = x.n_cols();
    let norms: Vec<f64> = x.column_norms_sq().into_iter().map(f64::sqrt).collect();
    let (mut chosen, mut rows): (Vec<usize>, Vec<Vec<f64>>) = (vec![], vec![]);
    let (mut r, mut g, mut w) = (y.to_vec(), vec![0.0; p], vec![]);
    let mut column = vec![0.0; y.len()];
    let (mut trace, first) = (vec![], norm(y));
    let status = loop {
        let size = norm(&r);
        let observed = monitor.record(&mut trace, chosen.len(), 0.5 * size * size, size);
        if size <= settings.tolerance * first {
            break Status::Converged;
        }
        if let ControlFlow::Break(status) = observed {
            break status;
        }
        if chosen.len() >= settings.max_features.min(p) {
            break Status::MaxIterations;
        }
        x.apply_t(&r, &mut g);
        chosen.iter().for_each(|j: &usize| g[*j] = 0.0);
        let score = |j: usize| if norms[j] > 0.0 { g[j].abs() / norms[j] } else { 0.0 };
        let Some(next) = (0..p).reduce(|a, b| if score(b) > score(a) { b } else { a }) else {
            break Status::Stalled;
        };
        column.fill(0.0);
        x.column(next).add_to(1.0, &mut column);
        let mut row: Vec<f64> = Vec::with_capacity(chosen.len() + 1);
        for (i, below) in rows.iter().enumerate() {
            let v = (x.column(chosen[i]).dot(&column) - dot(&below[..i], &row)) / below[i];
            row.push(v);
        }
        let rest = norms[next].powi(2) - norm_sq(&row);
        if score(next) <= 0.0 || rest <= 1e-12 * norms[next].powi(2) {
            break Status::Stalled;
        }
        row.push(rest.sqrt());
        rows.push(row);
        chosen.push(next);
        w = chosen.iter().map(|j| x.column(*j).dot(y)).collect();
        for (i, row) in rows.iter().enumerate() {
            w[i] = (w[i] - dot(&row[..i], &w[..i])) / row[i];
        }
        for (i, row) in rows.iter().enumerate().rev() {
            let v: f64 = w[i] / row[i];
            w[i] = v;
            axpy(-v, &row[..i], &mut w[..i]);
        }
        r.copy_from_slice(y);
        chosen.iter().zip(&w).for_each(|(j, v)| x.column(*j).add_to(-v, &mut r));
    };
    let mut all = vec![0.0; p];
    chosen.iter().zip(&w).for_each(|(j, v)| all[*j] = *v);
    let size = norm(&r);
    Ok(Solution {
        x: Coefficients::from_dense(&all, 0.0),
        status,
        objective: 0.5 * size * size,
        residuals: vec![Residual { name: "norm of the residual", value: size }],
        iterations: chosen.len(),
        trace,
        seconds: monitor.seconds() - begin,
    })
}
