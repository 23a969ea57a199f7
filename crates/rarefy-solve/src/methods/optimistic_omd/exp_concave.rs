//! Steps in the norm of the gradients seen, for exp-concave losses.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::{Domain, Hint, OmdSettings, OnlineLearner, Variant, check_gradient, check_point};
use crate::SolveError;
use crate::error::check_not_empty;

/// Steps after which the inverse is computed afresh.
const REFRESH: usize = 1000;

/// Optimistic mirror descent with `ψ_t = ½‖x‖²` in the norm of H_t.
#[derive(Debug, Clone)]
pub struct ExpConcaveOmd {
    domain: Domain,
    hint_kind: Hint,
    beta: f64,
    h: Mat<f64>,
    inverse: Mat<f64>,
    rounds: usize,
    base: Vec<f64>,
    x: Vec<f64>,
}

impl ExpConcaveOmd {
    /// A learner in ℝ^d.
    ///
    /// # Errors
    /// [`SolveError::Setting`]; [`SolveError::Empty`] for `d = 0`.
    pub fn new(d: usize, settings: &OmdSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        check_not_empty("d", "dimension", d)?;
        let (Variant::ExpConcave { alpha }, Some(bound)) = (settings.variant, settings.gradient_bound) else {
            return Err(SolveError::setting("variant", "another learner's", "exp-concave"));
        };
        let beta = 0.5 * alpha.min(1.0 / (4.0 * bound * settings.domain.diameter(d)));
        let first = 1.0 + 0.5 * beta * bound * bound;
        let x = settings.domain.start(d);
        Ok(Self {
            domain: settings.domain,
            hint_kind: settings.hint,
            beta,
            h: Mat::from_fn(d, d, |i, j| if i == j { first } else { 0.0 }),
            inverse: Mat::from_fn(d, d, |i, j| if i == j { 1.0 / first } else { 0.0 }),
            rounds: 0,
            base: x.clone(),
            x,
        })
    }

    /// H_t, `[d, d]`.
    #[must_use]
    pub fn norm(&self) -> &Mat<f64> {
        &self.h
    }

    /// H_t⁻¹ as it is kept, `[d, d]`.
    #[must_use]
    pub fn inverse(&self) -> &Mat<f64> {
        &self.inverse
    }

    fn moved(&self, from: &[f64], g: &[f64]) -> Result<Vec<f64>, SolveError> {
        let d = from.len();
        let mut to: Vec<f64> =
            (0..d).map(|i| from[i] - (0..d).map(|j| self.inverse[(i, j)] * g[j]).sum::<f64>()).collect();
        check_point(&to)?;
        project_in_norm(self.domain, &self.h, &mut to)?;
        Ok(to)
    }

    /// `H ← H + (β/2) g gᵀ` and its inverse by Sherman–Morrison.
    fn grow(&mut self, g: &[f64]) -> Result<(), SolveError> {
        let d = g.len();
        let c = 0.5 * self.beta;
        self.h = Mat::from_fn(d, d, |i, j| self.h[(i, j)] + c * g[i] * g[j]);
        self.rounds += 1;
        if self.rounds.is_multiple_of(REFRESH) {
            let factor = self.h.llt(Side::Lower).map_err(|_| {
                SolveError::breakdown(
                    "optimistic OMD",
                    "the norm is not positive definite",
                    "scale the losses down",
                )
            })?;
            self.inverse = factor.solve(&Mat::<f64>::identity(d, d));
        } else {
            let w: Vec<f64> = (0..d).map(|i| (0..d).map(|j| self.inverse[(i, j)] * g[j]).sum()).collect();
            let scale = c / (1.0 + c * w.iter().zip(g).map(|(w, g)| w * g).sum::<f64>());
            self.inverse = Mat::from_fn(d, d, |i, j| self.inverse[(i, j)] - scale * w[i] * w[j]);
        }
        for m in [&self.h, &self.inverse] {
            (0..d).try_for_each(|j| check_point(&(0..d).map(|i| m[(i, j)]).collect::<Vec<_>>()))?;
        }
        Ok(())
    }
}

impl OnlineLearner for ExpConcaveOmd {
    fn predict(&self) -> &[f64] {
        &self.x
    }

    fn update(&mut self, gradient: &[f64]) -> Result<(), SolveError> {
        check_gradient(self.x.len(), gradient)?;
        let mut next = self.clone();
        next.base = self.moved(&self.base, gradient)?;
        next.grow(gradient)?;
        next.x = match self.hint_kind {
            Hint::LastGradient => next.moved(&next.base, gradient)?,
            Hint::Zero => next.base.clone(),
        };
        *self = next;
        Ok(())
    }
}

/// `argmin_{x ∈ X} (x − y)ᵀH(x − y)` in place of `y`, for a ball, a box or the whole space, H positive definite.
///
/// Ball: `x = (H + νI)⁻¹Hy`, ν by bisection on the norm in the eigenbasis. Box: cyclic coordinate descent.
///
/// # Errors
/// [`SolveError::Breakdown`] when the eigenvalues of H cannot be computed; [`SolveError::Setting`] for a simplex.
pub fn project_in_norm(domain: Domain, h: &Mat<f64>, y: &mut [f64]) -> Result<(), SolveError> {
    let d = y.len();
    match domain {
        Domain::Whole { .. } => Ok(()),
        Domain::Simplex | Domain::EntropySimplex => {
            Err(SolveError::setting("domain", "simplex", "a ball, a box or the whole space here"))
        }
        Domain::Box { low, high } => {
            if y.iter().all(|v| (low..=high).contains(v)) {
                return Ok(());
            }
            let target = y.to_vec();
            y.iter_mut().for_each(|v| *v = v.clamp(low, high));
            for _ in 0..10_000 {
                let mut moved = 0.0_f64;
                for i in 0..d {
                    let pull: f64 = (0..d).map(|j| h[(i, j)] * (y[j] - target[j])).sum();
                    let to = (y[i] - pull / h[(i, i)]).clamp(low, high);
                    moved = moved.max((to - y[i]).abs());
                    y[i] = to;
                }
                if moved <= 1e-15 * (high - low) {
                    break;
                }
            }
            Ok(())
        }
        Domain::Ball { radius } => {
            if y.iter().map(|v| v * v).sum::<f64>() <= radius * radius {
                return Ok(());
            }
            let eigen = h.self_adjoint_eigen(Side::Lower).map_err(|e| {
                SolveError::breakdown("optimistic OMD", format!("{e:?}"), "scale the losses down")
            })?;
            let (u, s) = (eigen.U(), eigen.S().column_vector());
            let rotated: Vec<f64> =
                (0..d).map(|k| (0..d).map(|i| u[(i, k)] * y[i]).sum::<f64>() * s[k]).collect();
            let length = |nu: f64| (0..d).map(|k| (rotated[k] / (s[k] + nu)).powi(2)).sum::<f64>().sqrt();
            let (mut low, mut high) = (0.0, s[d - 1].max(f64::MIN_POSITIVE));
            while length(high) > radius && high < 1e300 {
                high *= 2.0;
            }
            // Down to neighbouring numbers.
            for _ in 0..200 {
                let middle = 0.5 * (low + high);
                if middle <= low || middle >= high {
                    break;
                }
                if length(middle) > radius {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            for (i, y) in y.iter_mut().enumerate() {
                *y = (0..d).map(|k| u[(i, k)] * rotated[k] / (s[k] + high)).sum();
            }
            crate::prox::l2_ball(y, radius);
            Ok(())
        }
    }
}
