//! ℓp regression with a bound on how far the answer is from the best.

use std::ops::ControlFlow;

use faer::{Mat, MatRef, Side};
use serde::{Deserialize, Serialize};

use super::check_p;
use super::sensitivity::{dual, norm_p, power};
use super::vertex::{self, Vertex};
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::linalg::{Basis, gram};
use crate::linop::dense::{dot, norm_inf};
use crate::{Design, LinOp, Monitor, Residual, Solution, SolveError, Status, Trace};

/// Settings of [`regress`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegressSettings {
    /// Ends at a relative duality gap of the norm of at most that, in [0, 1). House default: 1e-8.
    pub tolerance: f64,
    /// Limit of reweightings, then again of exchanges for p = 1. House default: 500.
    pub max_iterations: usize,
    /// For p = 1, exchange to an exact vertex once reweighting has come near. House default: yes.
    pub polish: bool,
}

impl Default for RegressSettings {
    fn default() -> Self {
        Self { tolerance: 1e-8, max_iterations: 500, polish: true }
    }
}

impl RegressSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting((0.0..1.0).contains(&self.tolerance), "tolerance", self.tolerance, "in [0, 1)")
    }
}

/// A residual this small beside `b` is 0 to rounding.
const ROUNDING: f64 = 1e-13;
/// Reweightings after which exchanges begin, when the gap has not come below [`NEAR`] before.
const WARM: usize = 60;
const NEAR: f64 = 1e-4;

/// `min Σ uᵢ|⟨aᵢ, x⟩ − bᵢ|^p` by reweighted least squares, with `u = 1` when no weights are given.
///
/// Below p = 2 each step is that of least squares with weights `|r|^{p−2}`, or Newton's, which is `1/(p − 1)` as long,
/// whichever lowers the sum more; above, Newton's, halved until the sum falls. Each step gives, at no cost, `y` with
/// `Aᵀy = 0` and so the bound `|bᵀy|/‖y‖_q ≤ ‖r‖_p` of the optimum, `1/p + 1/q = 1`: the residual `duality gap` is one
/// minus its best value over the norm at the answer. For p = 1 reweighting only comes near, then the rows with the
/// smallest residuals are exchanged, one a step, as by the simplex method: the answer passes exactly through rank(A) rows.
///
/// Rank-deficient designs: dependent columns at 0. Objective: the sum. Residuals: `duality gap`; `norm`, `(Σu|r|^p)^{1/p}`;
/// `rank`.
///
/// ```
/// use rarefy_solve::{Design, Monitor, methods::lp_sensitivity_sampling::{RegressSettings, regress}};
/// let a = Design::from(faer::Mat::from_fn(5, 1, |_, _| 1.0));
/// let s = regress(&a, &[0.0, 1.0, 2.0, 3.0, 1000.0], 1.0, None, &RegressSettings::default(), &mut Monitor::silent())?;
/// assert!((s.x[0] - 2.0).abs() < 1e-12 && s.status.is_converged());
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Setting`] also for `p` outside [1, 100], [`SolveError::Empty`], [`SolveError::Dimension`],
/// [`SolveError::NonFinite`], [`SolveError::Invalid`] for a negative weight, [`SolveError::Breakdown`] on overflow.
pub fn regress(
    a: &Design,
    b: &[f64],
    p: f64,
    weights: Option<&[f64]>,
    settings: &RegressSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    check_p(p)?;
    settings.validate()?;
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    check_dimension("b", n, "rows of the design", b.len())?;
    check_finite("b", b)?;
    a.check_finite()?;
    let (basis, c) = match weights {
        None => (Basis::of(a)?, b.to_vec()),
        Some(u) => {
            check_dimension("weights", n, "rows of the design", u.len())?;
            check_finite("weights", u)?;
            if let Some(at) = u.iter().position(|u| *u < 0.0) {
                let found = format!("{} at index {at}", u[at]);
                return Err(SolveError::invalid(
                    "weights",
                    "no negative weight",
                    found,
                    "use 0 to leave a row out",
                ));
            }
            let factor: Vec<f64> = u.iter().map(|u| u.powf(1.0 / p)).collect();
            (Basis::of(&a.scale_rows(&factor))?, b.iter().zip(&factor).map(|(b, f)| b * f).collect())
        }
    };
    let mut run = Run::new(basis.q.as_ref(), &c, p);
    let mut trace = vec![];
    let mut status = run.reweight(settings, monitor, &mut trace);
    if p <= 1.0 && settings.polish && matches!(status, Status::MaxIterations | Status::Stalled) {
        status = run.exchange(settings, monitor, &mut trace);
    }
    let size = norm_p(&run.r, p);
    let x = basis.whitening.apply(&run.z);
    let objective = size.powf(p);
    if !(objective.is_finite() && x.iter().all(|v| v.is_finite())) {
        return Err(SolveError::breakdown("ℓp regression", "the answer overflows", "scale the data down"));
    }
    let residuals = vec![
        Residual { name: "duality gap", value: run.gap() },
        Residual { name: "norm", value: size },
        Residual { name: "rank", value: basis.q.ncols() as f64 },
    ];
    let (iterations, seconds) = (run.iterations, monitor.seconds());
    Ok(Solution { x, status, objective, residuals, iterations, trace, seconds })
}

/// `min ‖Qz − c‖_p`.
struct Run<'a> {
    q: MatRef<'a, f64>,
    c: &'a [f64],
    p: f64,
    z: Vec<f64>,
    r: Vec<f64>,
    /// `‖r‖_p`.
    size: f64,
    /// The best bound of the optimum from below.
    bound: f64,
    /// A residual of that size is rounding.
    small: f64,
    iterations: usize,
}

impl<'a> Run<'a> {
    fn new(q: MatRef<'a, f64>, c: &'a [f64], p: f64) -> Self {
        let mut z = vec![0.0; q.ncols()];
        q.apply_t(c, &mut z);
        let mut run = Self {
            q,
            c,
            p,
            z,
            r: vec![0.0; c.len()],
            size: 0.0,
            bound: 0.0,
            small: ROUNDING * norm_p(c, p),
            iterations: 0,
        };
        run.refresh();
        run
    }

    /// Residual and its norm at `z`.
    fn refresh(&mut self) {
        self.q.apply(&self.z, &mut self.r);
        self.r.iter_mut().zip(self.c).for_each(|(r, c)| *r -= c);
        self.size = norm_p(&self.r, self.p);
    }

    fn gap(&self) -> f64 {
        if self.size <= self.small { 0.0 } else { (1.0 - self.bound / self.size).max(0.0) }
    }

    /// Counts the bound of `y` in, after taking out what it has along the columns of `Q`.
    fn bound_by(&mut self, y: &mut [f64]) {
        let mut inner = vec![0.0; self.z.len()];
        let mut along = vec![0.0; y.len()];
        for _ in 0..2 {
            self.q.apply_t(y, &mut inner);
            self.q.apply(&inner, &mut along);
            y.iter_mut().zip(&along).for_each(|(y, v)| *y -= v);
        }
        let size = norm_p(y, dual(self.p));
        // yᵀr = −yᵀc.
        let bound = dot(y, &self.r).abs() / size;
        if size > 0.0 && bound.is_finite() {
            self.bound = self.bound.max(bound);
        }
    }

    fn reweight(
        &mut self,
        settings: &RegressSettings,
        monitor: &mut Monitor<'_>,
        trace: &mut Trace,
    ) -> Status {
        let (n, k, p) = (self.r.len(), self.z.len(), self.p);
        let limit = if p <= 1.0 && settings.polish {
            settings.max_iterations.min(WARM)
        } else {
            settings.max_iterations
        };
        let (mut along, mut floor, mut idle) = (vec![0.0; n], 1e-2_f64, 0);
        let (mut best_gap, mut best) = (f64::INFINITY, (self.size, self.z.clone()));
        loop {
            // Weights |r|^{p−2}, at most 1; the floor falls, so that zeros of the residual can form.
            let largest = norm_inf(&self.r);
            let mean = self.r.iter().map(|v| v.abs()).sum::<f64>() / n.max(1) as f64;
            let least = if p < 2.0 { floor * mean / largest } else { 0.0 };
            let mut w: Vec<f64> =
                self.r.iter().map(|r| power((r / largest).abs().max(least), p - 2.0)).collect();
            let top = norm_inf(&w);
            w.iter_mut().for_each(|w| *w /= top);
            let mut step = vec![0.0; k];
            let usable = self.size > self.small && top.is_finite() && top > 0.0;
            if usable && k > 0 {
                let weighted: Vec<f64> = w.iter().zip(&self.r).map(|(w, r)| w * r).collect();
                self.q.apply_t(&weighted, &mut step);
                step = solve_gram(gram(self.q, Some(&w)), &step);
                step.iter_mut().for_each(|v| *v = -*v);
                self.q.apply(&step, &mut along);
            }
            if usable {
                let mut y: Vec<f64> = (0..n).map(|i| w[i] * (self.r[i] + along[i])).collect();
                self.bound_by(&mut y);
                // The gradient itself, without its part in the range, is better near the optimum above 2.
                let mut y: Vec<f64> =
                    self.r.iter().map(|r| power(r / largest, p - 1.0).copysign(*r)).collect();
                if p > 1.0 {
                    self.bound_by(&mut y);
                }
            }
            let gap = self.gap();
            if let ControlFlow::Break(s) = monitor.record(trace, self.iterations, self.size.powf(p), gap) {
                return s;
            }
            if gap <= settings.tolerance {
                return Status::Converged;
            }
            if self.iterations >= limit {
                return Status::MaxIterations;
            }
            if p <= 1.0 && settings.polish && gap <= NEAR {
                return Status::MaxIterations;
            }
            idle = if gap < 0.999 * best_gap { 0 } else { idle + 1 };
            best_gap = best_gap.min(gap);
            if idle >= 40 || !usable {
                return Status::Stalled;
            }
            let shifted = |t: f64, r: &[f64]| -> f64 {
                norm_p(&r.iter().zip(&along).map(|(r, v)| r + t * v).collect::<Vec<f64>>(), p)
            };
            let newton = if p > 1.0 { 1.0 / (p - 1.0) } else { 1.0 };
            let mut t = newton;
            if p < 2.0 {
                if p > 1.0 && shifted(newton, &self.r) > shifted(1.0, &self.r) {
                    t = 1.0;
                }
            } else {
                while t > 1e-10 && shifted(t, &self.r) > self.size {
                    t *= 0.5;
                }
            }
            self.z.iter_mut().zip(&step).for_each(|(z, s)| *z += t * s);
            self.refresh();
            self.iterations += 1;
            floor = (0.5 * floor).max(1e-12);
            if self.size <= best.0 {
                best = (self.size, self.z.clone());
            } else if self.size > 2.0 * best.0 {
                // Weights beyond the reach of the factorisation.
                self.z = best.1;
                self.refresh();
                return Status::Stalled;
            }
        }
    }

    fn exchange(
        &mut self,
        settings: &RegressSettings,
        monitor: &mut Monitor<'_>,
        trace: &mut Trace,
    ) -> Status {
        let Some(mut vertex) = Vertex::near(self.q, &self.r) else { return Status::Stalled };
        let before = (self.size, self.z.clone());
        let moved = vertex::moved(self.c);
        for _ in 0..=settings.max_iterations {
            let Some(state) = vertex.visit(self.q, self.c, &moved) else { break };
            self.z.clone_from(&state.z);
            self.refresh();
            self.bound_by(&mut state.y.clone());
            let gap = self.gap();
            if let ControlFlow::Break(s) = monitor.record(trace, self.iterations, self.size, gap) {
                return s;
            }
            if gap <= settings.tolerance {
                return Status::Converged;
            }
            self.iterations += 1;
            if !vertex::leave(self.q, &mut vertex, &state) {
                return Status::Stalled;
            }
        }
        if self.size > before.0 {
            self.z = before.1;
            self.refresh();
        }
        Status::MaxIterations
    }
}

/// `G⁻¹g`, with a ridge of rounding where `G` is singular.
fn solve_gram(g: Mat<f64>, rhs: &[f64]) -> Vec<f64> {
    let k = rhs.len();
    let trace: f64 = (0..k).map(|j| g[(j, j)]).sum();
    let mut ridge = 0.0;
    for _ in 0..4 {
        let shifted = Mat::from_fn(k, k, |i, j| g[(i, j)] + if i == j { ridge } else { 0.0 });
        if let Ok(factor) = shifted.llt(Side::Lower) {
            let mut x = Mat::from_fn(k, 1, |i, _| rhs[i]);
            faer::linalg::solvers::Solve::solve_in_place(&factor, x.as_mut());
            if (0..k).all(|i| x[(i, 0)].is_finite()) {
                return x.col_as_slice(0).to_vec();
            }
        }
        ridge = if ridge > 0.0 { ridge * 1e3 } else { 1e-16 * trace };
    }
    vec![0.0; k]
}
