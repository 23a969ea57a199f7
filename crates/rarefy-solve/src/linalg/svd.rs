//! Leading singular triples by random subspace iteration.

use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::qr;
use crate::error::{check_not_empty, check_setting};
use crate::linop::dense::{axpy, norm};
use crate::{LinOp, Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`randomised_svd()`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvdSettings {
    /// Number of triples, at least 1, at most the smaller dimension.
    pub rank: usize,
    /// Extra directions that are carried along. Halko, Martinsson and Tropp 2011: 10.
    pub oversampling: usize,
    /// Ends when every triple has `‖Av − σu‖ ≤ tolerance·σ₁`; at least 0. House default: 1e-6.
    pub tolerance: f64,
    /// Limit of power iterations, each with a product by `AAᵀ`. House default: 20; 2 is the common choice without a
    /// tolerance.
    pub max_iterations: usize,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for SvdSettings {
    fn default() -> Self {
        Self { rank: 10, oversampling: 10, tolerance: 1e-6, max_iterations: 20, seed: 0 }
    }
}

impl SvdSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.rank > 0, "rank", self.rank, "at least 1")?;
        check_setting(self.tolerance >= 0.0, "tolerance", self.tolerance, "at least 0")
    }
}

/// Leading singular triples, the largest first.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomisedSvd {
    /// Left vectors `[n, rank]`.
    pub u: Mat<f64>,
    /// Singular values.
    pub values: Vec<f64>,
    /// Right vectors `[d, rank]`.
    pub v: Mat<f64>,
}

/// The leading singular triples of an operator that is only multiplied with: random start, subspace iteration with an
/// orthonormalisation at every half step (Halko, Martinsson and Tropp 2011, algorithm 4.4), then the SVD of `QᵀA`.
///
/// `Aᵀu = σv` holds to rounding by construction; the residual `triples` is the largest `‖Av − σu‖/σ₁`: within that,
/// relative to σ₁, each value has a singular value of `A`. Objective: `Σσ²`, which rises. Slow decay needs more iterations or
/// more oversampling: the status tells.
///
/// # Errors
/// [`SolveError::Setting`] for a rank above the smaller dimension, [`SolveError::Empty`], [`SolveError::Breakdown`]
/// when the operator returns values that are not finite.
pub fn randomised_svd(
    a: &dyn LinOp,
    settings: &SvdSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<RandomisedSvd>, SolveError> {
    settings.validate()?;
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    let k = settings.rank;
    check_setting(k <= n.min(d), "rank", k, "at most the smaller dimension")?;
    let l = k.saturating_add(settings.oversampling).min(n.min(d));
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let start = Mat::from_fn(d, l, |_, _| StandardNormal.sample(&mut rng));
    let mut q = qr::thin_q(columns(n, &start, |x, y| a.apply(x, y))?);
    let (mut trace, mut status, mut iterations) = (vec![], Status::MaxIterations, 0);
    loop {
        // B = AᵀQ: its SVD gives the triples, its range the next step.
        let back = columns(d, &q, |y, x| a.apply_t(y, x))?;
        let row_space = qr::thin_q(back.clone());
        let small = row_space.transpose() * &back;
        let svd = small.thin_svd().map_err(|_| breakdown("the small singular value decomposition"))?;
        // Av for the leading right vectors tells how far they are from singular vectors.
        let v = &row_space * svd.U().subcols(0, k);
        let u = &q * svd.V().subcols(0, k);
        let values: Vec<f64> = (0..k).map(|j| svd.S()[j]).collect();
        let image = columns(n, &v, |x, y| a.apply(x, y))?;
        let mut worst = 0.0_f64;
        for (j, value) in values.iter().enumerate() {
            let mut r = image.col_as_slice(j).to_vec();
            axpy(-value, u.col_as_slice(j), &mut r);
            worst = worst.max(norm(&r));
        }
        let relative = if values[0] > 0.0 { worst / values[0] } else { 0.0 };
        let objective = values.iter().map(|s| s * s).sum();
        if let std::ops::ControlFlow::Break(s) = monitor.record(&mut trace, iterations, objective, relative) {
            status = s;
        }
        if relative <= settings.tolerance {
            status = Status::Converged;
        }
        if status != Status::MaxIterations || iterations == settings.max_iterations {
            let residuals = vec![Residual { name: "triples", value: relative }];
            let x = RandomisedSvd { u, values, v };
            return Ok(Solution {
                x,
                status,
                objective,
                residuals,
                iterations,
                trace,
                seconds: monitor.seconds(),
            });
        }
        q = qr::thin_q(columns(n, &row_space, |x, y| a.apply(x, y))?);
        iterations += 1;
    }
}

fn columns(n: usize, x: &Mat<f64>, apply: impl Fn(&[f64], &mut [f64])) -> Result<Mat<f64>, SolveError> {
    let mut out = Mat::zeros(n, x.ncols());
    for j in 0..x.ncols() {
        let y = out.col_as_slice_mut(j);
        apply(x.col_as_slice(j), y);
        if y.iter().any(|v| !v.is_finite()) {
            return Err(breakdown("the operator"));
        }
    }
    Ok(out)
}

fn breakdown(what: &str) -> SolveError {
    SolveError::breakdown(
        "randomised SVD",
        format!("{what} gave values that are not finite"),
        "check the operator, or scale it",
    )
}
