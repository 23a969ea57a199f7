//! Conjugate gradients.

use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::dense::{axpy, dot, norm};
use crate::{LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`cg()`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgSettings {
    /// Ends at `‖b − Hx‖ ≤ tolerance·‖b‖`, in [0, 1). House default: 1e-10.
    pub tolerance: f64,
    /// Limit of iterations. House default: 1000.
    pub max_iterations: usize,
}

impl Default for CgSettings {
    fn default() -> Self {
        Self { tolerance: 1e-10, max_iterations: 1000 }
    }
}

impl CgSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting((0.0..1.0).contains(&self.tolerance), "tolerance", self.tolerance, "in [0, 1)")
    }
}

/// `Hx = b` for symmetric positive definite `H`, from `x₀` (0 when not given), by conjugate gradients preconditioned
/// with `M ≈ H⁻¹`, symmetric positive definite too.
///
/// Objective: `½xᵀHx − bᵀx`. Residual: `‖b − Hx‖/‖b‖` at the answer, computed anew. The recurrence can drift from it:
/// then the status is [`Status::Stalled`].
///
/// # Errors
/// [`SolveError::Invalid`] when `H` or `M` shows a direction of no positive curvature, [`SolveError::Dimension`] (also
/// when `H` is not square), [`SolveError::NonFinite`], [`SolveError::Setting`], [`SolveError::Breakdown`].
pub fn cg(
    h: &dyn LinOp,
    b: &[f64],
    precondition: Option<&dyn LinOp>,
    x0: Option<&[f64]>,
    settings: &CgSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    settings.validate()?;
    let d = h.n_cols();
    check_not_empty("h", "entry", d)?;
    check_dimension("h", d, "as many rows as columns", h.n_rows())?;
    check_dimension("b", d, "rows of the operator", b.len())?;
    check_finite("b", b)?;
    if let Some(m) = precondition {
        check_dimension("precondition", d, "columns of the operator", m.n_cols())?;
        check_dimension("precondition", d, "rows of the operator", m.n_rows())?;
    }
    let mut x = vec![0.0; d];
    let mut image = vec![0.0; d];
    let mut r = b.to_vec();
    if let Some(x0) = x0 {
        check_dimension("x0", d, "columns of the operator", x0.len())?;
        check_finite("x0", x0)?;
        x.copy_from_slice(x0);
        h.apply(&x, &mut image);
        axpy(-1.0, &image, &mut r);
    }
    let indefinite = |what: &'static str, value: f64| {
        SolveError::invalid(
            what,
            "a positive definite operator",
            format!("curvature {value:e}"),
            "use `lsqr` on the least squares problem, or add a multiple of the identity",
        )
    };
    let scale = norm(b);
    let small = settings.tolerance * scale;
    let mut z = vec![0.0; d];
    let mut p = vec![0.0; d];
    let mut before = 0.0;
    let (mut trace, mut status, mut iterations) = (vec![], Status::MaxIterations, 0);
    while norm(&r) > small {
        if iterations == settings.max_iterations {
            break;
        }
        match precondition {
            None => z.copy_from_slice(&r),
            Some(m) => m.apply(&r, &mut z),
        }
        let rz = dot(&r, &z);
        if !rz.is_finite() {
            return Err(breakdown());
        }
        if rz <= 0.0 {
            return Err(indefinite("precondition", rz));
        }
        let beta = if iterations == 0 { 0.0 } else { rz / before };
        before = rz;
        p.iter_mut().zip(&z).for_each(|(p, z)| *p = z + beta * *p);
        h.apply(&p, &mut image);
        let curvature = dot(&p, &image);
        if !curvature.is_finite() {
            return Err(breakdown());
        }
        if curvature <= 0.0 {
            return Err(indefinite("h", curvature));
        }
        let step = rz / curvature;
        axpy(step, &p, &mut x);
        axpy(-step, &image, &mut r);
        iterations += 1;
        let objective = -0.5 * (dot(&x, b) + dot(&x, &r));
        if let std::ops::ControlFlow::Break(s) =
            monitor.record(&mut trace, iterations, objective, norm(&r) / scale.max(f64::MIN_POSITIVE))
        {
            status = s;
            break;
        }
    }
    h.apply(&x, &mut image);
    let objective = 0.5 * dot(&x, &image) - dot(&x, b);
    let left = norm(&b.iter().zip(&image).map(|(b, y)| b - y).collect::<Vec<f64>>());
    if !(left.is_finite() && objective.is_finite()) {
        return Err(breakdown());
    }
    if left <= small.max(f64::EPSILON * scale) {
        status = Status::Converged;
    } else if status == Status::MaxIterations && iterations < settings.max_iterations {
        status = if left <= 10.0 * small { Status::Converged } else { Status::Stalled };
    }
    let value = if scale > 0.0 { left / scale } else { left };
    let residuals = vec![Residual { name: "relative residual", value }];
    Ok(Solution { x, status, objective, residuals, iterations, trace, seconds: monitor.seconds() })
}

fn breakdown() -> SolveError {
    SolveError::breakdown(
        "conjugate gradients",
        "values that are not finite",
        "check the operator, or scale it",
    )
}
