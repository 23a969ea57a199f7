//! Least squares through a sketch.

use faer::{Mat, MatRef};
use serde::{Deserialize, Serialize};

use super::basis::frobenius;
use super::{LsqrSettings, Whitening, lsqr, sketch_design};
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linop::dense::norm;
use crate::sketch::SketchKind;
use crate::{Design, LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`least_squares()`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeastSquaresSettings {
    /// Which sketch. House default: SRHT.
    pub sketch: SketchKind,
    /// Rows of the sketch, at least the number of columns; `None`: four times the columns, at least 64. Rounded up to a
    /// power of two for balanced pooling; at least the rows of the problem means no sketch is smaller: then a plain QR.
    pub rows: Option<usize>,
    /// Refine by LSQR to rounding (sketch-and-precondition), or return the solution of the sketched problem.
    pub refine: bool,
    /// Tolerance of LSQR, in [0, 1). House default: 1e-12.
    pub tolerance: f64,
    /// Limit of LSQR's iterations. House default: 200.
    pub max_iterations: usize,
    /// Seed of the sketch.
    pub seed: u64,
}

impl Default for LeastSquaresSettings {
    fn default() -> Self {
        Self {
            sketch: SketchKind::Srht,
            rows: None,
            refine: true,
            tolerance: 1e-12,
            max_iterations: 200,
            seed: 0,
        }
    }
}

impl LeastSquaresSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.rows != Some(0), "rows", 0, "at least 1")?;
        self.lsqr().validate()
    }

    fn lsqr(&self) -> LsqrSettings {
        LsqrSettings { tolerance: self.tolerance, max_iterations: self.max_iterations, damp: 0.0 }
    }
}

/// `min ‖Ax − b‖²` by way of `min ‖S(Ax − b)‖²`: the residual of that is within `1 + O(ε)` of the least when `S`
/// embeds the range of `[A b]` with distortion ε. With `refine`, its factor preconditions [`lsqr()`], which then needs
/// about `log(1/tolerance)/log(√(m/d))` iterations whatever the conditioning.
///
/// Rank-deficient designs get a basic solution: dependent columns at 0. Objective: `½‖Ax − b‖²`. Residuals: `normal
/// equations`, `‖Aᵀr‖/(‖A‖_F‖r‖)`; `residual`, `‖r‖`; `rank`.
///
/// Data that do not fit: stream blocks of `[A b]` through [`Stream`](crate::sketch::Stream), then [`solve_sketched`].
///
/// # Errors
/// [`SolveError::Empty`], [`SolveError::Dimension`], [`SolveError::NonFinite`], [`SolveError::Setting`],
/// [`SolveError::Breakdown`] on overflow.
pub fn least_squares(
    a: &Design,
    b: &[f64],
    settings: &LeastSquaresSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    settings.validate()?;
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    check_dimension("b", n, "rows of the design", b.len())?;
    check_finite("b", b)?;
    let mut m = settings.rows.unwrap_or((4 * d).max(64));
    check_setting(m >= d.min(n), "rows", m, "at least the number of columns")?;
    if settings.sketch == SketchKind::BalancedPooling {
        m = m.next_power_of_two();
    }
    let (t, z) = if m >= n {
        a.check_finite()?;
        match a {
            Design::Dense(a) => Whitening::with_rhs(a.as_ref(), Some(b))?,
            Design::Csc(a) => Whitening::with_rhs(super::basis::densify(a).as_ref(), Some(b))?,
        }
    } else {
        let s = settings.sketch.draw(n, m, settings.seed)?;
        Whitening::with_rhs(sketch_design(s.as_ref(), a)?.as_ref(), Some(&s.apply_vector(b)?))?
    };
    let x = t.apply(&z);
    if settings.refine && x.iter().all(|v| v.is_finite()) {
        let mut solution = lsqr(a, b, Some(&t), Some(&x), &settings.lsqr(), monitor)?;
        solution.residuals.push(Residual { name: "rank", value: t.rank() as f64 });
        return Ok(solution);
    }
    let mut residual = vec![0.0; n];
    a.apply(&x, &mut residual);
    residual.iter_mut().zip(b).for_each(|(r, b)| *r -= b);
    let mut gradient = vec![0.0; d];
    a.apply_t(&residual, &mut gradient);
    let (size, slope) = (norm(&residual), norm(&gradient));
    if !(size.is_finite() && slope.is_finite() && x.iter().all(|v| v.is_finite())) {
        return Err(SolveError::breakdown("least squares", "the answer overflows", "scale the design"));
    }
    let relative = if slope > 0.0 { slope / (frobenius(a) * size) } else { 0.0 };
    let residuals = vec![
        Residual { name: "normal equations", value: relative },
        Residual { name: "residual", value: size },
        Residual { name: "rank", value: t.rank() as f64 },
    ];
    Ok(Solution {
        x,
        status: Status::Converged,
        objective: 0.5 * size * size,
        residuals,
        iterations: 0,
        trace: vec![],
        seconds: monitor.seconds(),
    })
}

/// Solves `min ‖SAx − Sb‖` from the sketch `[SA Sb]`, and returns the factor for refining.
///
/// ```
/// use rarefy_solve::{linalg::solve_sketched, sketch::{SketchKind, Stream}};
/// let row = |i: usize| [1.0, i as f64, 3.0 + 2.0 * i as f64];
/// let s = SketchKind::CountSketch.draw(1000, 64, 1)?;
/// let mut stream = Stream::new(s.as_ref(), 3);
/// for block in 0..10 {
///     stream.push(faer::Mat::from_fn(100, 3, |i, j| row(100 * block + i)[j]).as_ref())?;
/// }
/// let (x, _) = solve_sketched(stream.finish()?.as_ref())?;
/// assert!((x[0] - 3.0).abs() < 1e-9 && (x[1] - 2.0).abs() < 1e-12);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Empty`] without columns beside `Sb`, [`SolveError::NonFinite`], [`SolveError::Breakdown`].
pub fn solve_sketched(sketch: MatRef<'_, f64>) -> Result<(Vec<f64>, Whitening), SolveError> {
    check_not_empty("sketch", "column of A beside b", sketch.ncols().saturating_sub(1))?;
    let sketch: Mat<f64> = sketch.to_owned();
    let d = sketch.ncols() - 1;
    check_finite("sketch", (0..=d).flat_map(|j| sketch.col_as_slice(j)))?;
    let (t, z) = Whitening::with_rhs(sketch.subcols(0, d), Some(sketch.col_as_slice(d)))?;
    Ok((t.apply(&z), t))
}
