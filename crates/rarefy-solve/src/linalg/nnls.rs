//! Least squares with x ≥ 0.

use faer::Mat;
use serde::{Deserialize, Serialize};

use super::basis::densify;
use super::{Whitening, qr};
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::dense::{dot, norm};
use crate::{Design, LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`nnls()`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NnlsSettings {
    /// A coordinate at 0 is freed while its slope exceeds this times `‖aⱼ‖‖b‖`, in [0, 1). House default: 1e-12.
    pub tolerance: f64,
    /// Limit of steps; `None`: three times the number of columns, as Lawson and Hanson.
    pub max_iterations: Option<usize>,
}

impl Default for NnlsSettings {
    fn default() -> Self {
        Self { tolerance: 1e-12, max_iterations: None }
    }
}

impl NnlsSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting((0.0..1.0).contains(&self.tolerance), "tolerance", self.tolerance, "in [0, 1)")
    }
}

/// `min ½‖Ax − b‖²` over `x ≥ 0`, by the active-set method of Lawson and Hanson on the triangular factor of `[A b]`
/// (`n·d²` once, then `d·k²` per step with `k` free coordinates).
///
/// Certificate, computed from `A` itself: `kkt`, the largest of `aⱼᵀ(b − Ax)` over coordinates at 0 and of its absolute
/// value over the others, relative to `‖aⱼ‖‖b‖`. It is 0 exactly at a minimiser.
///
/// # Errors
/// [`SolveError::Empty`], [`SolveError::Dimension`], [`SolveError::NonFinite`], [`SolveError::Setting`],
/// [`SolveError::Breakdown`].
pub fn nnls(
    a: &Design,
    b: &[f64],
    settings: &NnlsSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    settings.validate()?;
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    check_dimension("b", n, "rows of the design", b.len())?;
    check_finite("b", b)?;
    a.check_finite()?;
    let norms: Vec<f64> = a.column_norms_sq().iter().map(|v| v.sqrt()).collect();
    let size = norm(b);
    if !size.is_finite() || norms.iter().any(|v| !v.is_finite()) {
        return Err(SolveError::breakdown("nnls", "squared norms overflow", "scale the design and b down"));
    }
    let (small, rhs) = reduce(a, b);
    let limit = settings.max_iterations.unwrap_or(3 * d);
    let (mut x, mut free) = (vec![0.0; d], vec![false; d]);
    // Coordinates that numerical dependence keeps from entering until something else changes.
    let mut barred = vec![false; d];
    let (mut trace, mut status, mut iterations) = (vec![], Status::Converged, 0);
    loop {
        let slope = slopes(&small, &rhs, &x);
        let scaled = |j: usize| if norms[j] * size > 0.0 { slope[j] / (norms[j] * size) } else { 0.0 };
        let enter = (0..d)
            .filter(|j| !free[*j] && !barred[*j] && scaled(*j) > settings.tolerance)
            .max_by(|i, j| scaled(*i).total_cmp(&scaled(*j)));
        let Some(enter) = enter else { break };
        if iterations == limit {
            status = Status::MaxIterations;
            break;
        }
        iterations += 1;
        free[enter] = true;
        let mut z = passive(&small, &rhs, &free)?;
        if z[enter] <= 0.0 {
            free[enter] = false;
            barred[enter] = true;
            continue;
        }
        // Each round of this loop frees at least one coordinate of its place, so it ends.
        while let Some(step) = (0..d)
            .filter(|j| free[*j] && z[*j] <= 0.0)
            .map(|j| x[j] / (x[j] - z[j]))
            .map(|s| if s.is_finite() { s } else { 0.0 })
            .min_by(f64::total_cmp)
        {
            for j in 0..d {
                if !free[j] {
                    continue;
                }
                let blocks = z[j] <= 0.0 && (x[j] <= 0.0 || x[j] / (x[j] - z[j]) <= step);
                x[j] = if blocks { 0.0 } else { (x[j] + step * (z[j] - x[j])).max(0.0) };
                free[j] &= !blocks;
            }
            z = passive(&small, &rhs, &free)?;
        }
        x = z;
        barred.fill(false);
        let gap = scaled(enter);
        let value = 0.5 * residual(&small, &rhs, &x).iter().map(|v| v * v).sum::<f64>();
        if let std::ops::ControlFlow::Break(s) = monitor.record(&mut trace, iterations, value, gap) {
            status = s;
            break;
        }
    }
    let mut r = vec![0.0; n];
    a.apply(&x, &mut r);
    r.iter_mut().zip(b).for_each(|(r, b)| *r = b - *r);
    let mut slope = vec![0.0; d];
    a.apply_t(&r, &mut slope);
    let kkt = (0..d)
        .filter(|j| norms[*j] * size > 0.0)
        .map(|j| (if x[j] > 0.0 { slope[j].abs() } else { slope[j].max(0.0) }) / (norms[j] * size))
        .fold(0.0, f64::max);
    if !kkt.is_finite() {
        return Err(SolveError::breakdown("nnls", "values that are not finite", "scale the design and b"));
    }
    if status == Status::Converged && kkt > settings.tolerance.max(1e-10) {
        status = Status::Stalled;
    }
    let residuals =
        vec![Residual { name: "kkt", value: kkt }, Residual { name: "residual", value: norm(&r) }];
    let objective = 0.5 * dot(&r, &r);
    Ok(Solution { x, status, objective, residuals, iterations, trace, seconds: monitor.seconds() })
}

/// `R` and `Qᵀb` of tall problems: the same objective up to a constant.
fn reduce(a: &Design, b: &[f64]) -> (Mat<f64>, Vec<f64>) {
    let (n, d) = (a.n_rows(), a.n_cols());
    let dense = match a {
        Design::Dense(a) => a.clone(),
        Design::Csc(a) => densify(a),
    };
    if n <= d + 1 {
        return (dense, b.to_vec());
    }
    let joined = Mat::from_fn(n, d + 1, |i, j| if j < d { dense[(i, j)] } else { b[i] });
    let r = qr::r_factor(joined.as_ref());
    (r.subcols(0, d).to_owned(), r.col_as_slice(d).to_vec())
}

fn residual(a: &Mat<f64>, b: &[f64], x: &[f64]) -> Vec<f64> {
    let mut r = vec![0.0; b.len()];
    a.apply(x, &mut r);
    r.iter_mut().zip(b).for_each(|(r, b)| *r = b - *r);
    r
}

fn slopes(a: &Mat<f64>, b: &[f64], x: &[f64]) -> Vec<f64> {
    let mut slope = vec![0.0; x.len()];
    a.apply_t(&residual(a, b, x), &mut slope);
    slope
}

/// Least squares over the free coordinates, 0 elsewhere.
fn passive(a: &Mat<f64>, b: &[f64], free: &[bool]) -> Result<Vec<f64>, SolveError> {
    let columns: Vec<usize> = (0..free.len()).filter(|j| free[*j]).collect();
    let part = Mat::from_fn(a.nrows(), columns.len(), |i, k| a[(i, columns[k])]);
    let (t, z) = Whitening::with_rhs(part.as_ref(), Some(b))?;
    let mut x = vec![0.0; free.len()];
    columns.iter().zip(t.apply(&z)).for_each(|(j, v)| x[*j] = v);
    Ok(x)
}
