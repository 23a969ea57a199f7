//! Least squares by Golub–Kahan bidiagonalisation.

use serde::{Deserialize, Serialize};

use super::Whitening;
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::dense::{axpy, norm};
use crate::{LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`lsqr()`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LsqrSettings {
    /// Ends at `‖Āᵀr‖ ≤ tolerance·‖Ā‖‖r‖` or `‖r‖ ≤ tolerance·‖b‖`, Ā the preconditioned matrix, in [0, 1). House
    /// default: 1e-12.
    pub tolerance: f64,
    /// Limit of iterations. House default: 1000.
    pub max_iterations: usize,
    /// λ ≥ 0 of the penalty `λ²‖x‖²` (of `‖T⁻¹x‖²` with a preconditioner). Default: 0.
    pub damp: f64,
}

impl Default for LsqrSettings {
    fn default() -> Self {
        Self { tolerance: 1e-12, max_iterations: 1000, damp: 0.0 }
    }
}

impl LsqrSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting((0.0..1.0).contains(&self.tolerance), "tolerance", self.tolerance, "in [0, 1)")?;
        check_setting(self.damp >= 0.0 && self.damp.is_finite(), "damp", self.damp, "at least 0 and finite")
    }
}

/// `min ‖Ax − b‖² + λ²‖x − x₀‖²` by LSQR (Paige and Saunders 1982), from `x₀` (0 when not given), with a right
/// preconditioner: the iteration runs on `A·T`. Two products per iteration; with `T` from a sketch the number of
/// iterations does not depend on the conditioning of `A`.
///
/// Objective: `½‖Ax − b‖²`. Residuals: `normal equations`, the relative `‖Āᵀr‖/(‖Ā‖‖r‖)`; `residual`, `‖r‖`.
///
/// # Errors
/// [`SolveError::Dimension`], [`SolveError::NonFinite`], [`SolveError::Setting`], [`SolveError::Breakdown`] when the
/// operator returns values that are not finite.
pub fn lsqr(
    a: &dyn LinOp,
    b: &[f64],
    precondition: Option<&Whitening>,
    x0: Option<&[f64]>,
    settings: &LsqrSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    settings.validate()?;
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    check_dimension("b", n, "rows of the operator", b.len())?;
    check_finite("b", b)?;
    if let Some(t) = precondition {
        check_dimension("precondition", d, "columns of the operator", t.matrix().nrows())?;
    }
    let mut base = vec![0.0; d];
    let mut u = b.to_vec();
    if let Some(x0) = x0 {
        check_dimension("x0", d, "columns of the operator", x0.len())?;
        check_finite("x0", x0)?;
        base.copy_from_slice(x0);
        let mut y = vec![0.0; n];
        a.apply(x0, &mut y);
        axpy(-1.0, &y, &mut u);
    }
    let r = precondition.map_or(d, Whitening::rank);
    let forward = |z: &[f64], y: &mut [f64]| match precondition {
        None => a.apply(z, y),
        Some(t) => a.apply(&t.apply(z), y),
    };
    let adjoint = |y: &[f64], z: &mut [f64]| match precondition {
        None => a.apply_t(y, z),
        Some(t) => {
            let mut x = vec![0.0; d];
            a.apply_t(y, &mut x);
            t.matrix().apply_t(&x, z);
        }
    };
    let (mut trace, mut status, mut iterations) = (vec![], Status::MaxIterations, 0);
    let mut z = vec![0.0; r];
    let scale_b = norm(b);
    let mut beta = scaled(&mut u);
    let mut v = vec![0.0; r];
    adjoint(&u, &mut v);
    let mut alpha = scaled(&mut v);
    let mut w = v.clone();
    let (mut phi, mut rho) = (beta, alpha);
    let (mut frobenius_sq, mut damped) = (0.0, 0.0);
    let mut relative = if alpha * beta == 0.0 { 0.0 } else { 1.0 };
    let (mut image, mut back) = (vec![0.0; n], vec![0.0; r]);
    if alpha * beta == 0.0 {
        status = Status::Converged;
    }
    while status == Status::MaxIterations && iterations < settings.max_iterations {
        forward(&v, &mut image);
        u.iter_mut().zip(&image).for_each(|(u, y)| *u = y - alpha * *u);
        beta = scaled(&mut u);
        frobenius_sq += alpha * alpha + beta * beta + settings.damp * settings.damp;
        adjoint(&u, &mut back);
        v.iter_mut().zip(&back).for_each(|(v, y)| *v = y - beta * *v);
        alpha = scaled(&mut v);
        if !(alpha.is_finite() && beta.is_finite()) {
            return Err(SolveError::breakdown(
                "LSQR",
                format!("the operator returned values that are not finite in iteration {}", iterations + 1),
                "check the operator, or scale it down",
            ));
        }
        // Two rotations: one for the damping, one for the bidiagonal.
        let bar = rho.hypot(settings.damp);
        let psi = phi * settings.damp / bar;
        phi *= rho / bar;
        damped += psi * psi;
        let full = bar.hypot(beta);
        let (c, s) = (bar / full, beta / full);
        let theta = s * alpha;
        rho = -c * alpha;
        axpy(c * phi / full, &w, &mut z);
        phi *= s;
        w.iter_mut().zip(&v).for_each(|(w, v)| *w = v - (theta / full) * *w);
        iterations += 1;
        let residual = (phi * phi + damped).sqrt();
        let normal = phi.abs() * alpha * c.abs();
        relative = if residual > 0.0 { normal / (frobenius_sq.sqrt() * residual) } else { 0.0 };
        if let std::ops::ControlFlow::Break(s) =
            monitor.record(&mut trace, iterations, 0.5 * phi * phi, relative)
        {
            status = s;
        }
        if relative <= settings.tolerance || residual <= settings.tolerance * scale_b {
            status = Status::Converged;
        } else if status == Status::MaxIterations && relative <= 4.0 * f64::EPSILON {
            status = Status::Stalled;
        }
    }
    let mut x = precondition.map_or_else(|| z.clone(), |t| t.apply(&z));
    axpy(1.0, &base, &mut x);
    a.apply(&x, &mut image);
    axpy(-1.0, b, &mut image);
    let residual = norm(&image);
    if !residual.is_finite() || x.iter().any(|v| !v.is_finite()) {
        return Err(SolveError::breakdown("LSQR", "the answer overflows", "scale the operator"));
    }
    let residuals = vec![
        Residual { name: "normal equations", value: relative },
        Residual { name: "residual", value: residual },
    ];
    let objective = 0.5 * residual * residual;
    Ok(Solution { x, status, objective, residuals, iterations, trace, seconds: monitor.seconds() })
}

/// Scales to norm 1 and returns the norm.
fn scaled(v: &mut [f64]) -> f64 {
    let n = norm(v);
    if n > 0.0 {
        v.iter_mut().for_each(|v| *v /= n);
    }
    n
}
