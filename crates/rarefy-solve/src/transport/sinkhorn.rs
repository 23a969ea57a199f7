//! Sinkhorn's iteration for entropic transport.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Transport, kernel};
use crate::error::{check_dimension, check_finite, check_setting};
use crate::linop::dense::dot;
use crate::{Monitor, Residual, Solution, SolveError, Status, Trace};

/// Where Sinkhorn computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// In kernel space while the costs span at most 500 ε and nothing under- or overflows; in the log domain
    /// from the last good potentials otherwise.
    Auto,
    /// With `K = exp(−C/ε)`: a multiplication per entry; under- and overflow are a `Breakdown`.
    Kernel,
    /// With logarithms: an exponential per entry; safe for every ε.
    Log,
}

/// Settings of [`sinkhorn`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkhornSettings {
    /// ε, above 0, in units of the cost. House default: 0.05, for costs of order 1.
    pub regularisation: f64,
    /// Where it computes. House default: automatic.
    pub domain: Domain,
    /// Ends when `Σ|P1 − a| ≤ tolerance · Σa`, at least 0. POT: 1e-9.
    pub tolerance: f64,
    /// Limit of iterations; each makes the rows, then the columns exact. House default: 10000.
    pub max_iterations: usize,
}

impl Default for SinkhornSettings {
    fn default() -> Self {
        Self { regularisation: 0.05, domain: Domain::Auto, tolerance: 1e-9, max_iterations: 10_000 }
    }
}

impl SinkhornSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let (e, t) = (self.regularisation, self.tolerance);
        check_setting(e > 0.0 && e.is_finite(), "regularisation", e, "above 0 and finite")?;
        check_setting(t >= 0.0 && t.is_finite(), "tolerance", t, "at least 0 and finite")
    }
}

/// An entropic plan.
#[derive(Debug, Clone, PartialEq)]
pub struct EntropicPlan {
    /// `P: [m, n]`, row-major, all points.
    pub plan: Vec<f64>,
    /// `f: ℝ^m` with `P = exp((f ⊕ g − C)/ε)`; −∞ at points without mass.
    pub f: Vec<f64>,
    /// `g: ℝ^n`; −∞ at points without mass.
    pub g: Vec<f64>,
    /// `⟨C, P⟩`.
    pub cost: f64,
    /// Where it was computed in the end.
    pub domain: Domain,
}

/// Entropic transport `min ⟨C, P⟩ + ε Σ P(ln P − 1)` over `U(a, b)`.
///
/// One fused pass over the matrix per iteration. The columns of the answer are exact, the rows meet the
/// tolerance when the status is `Converged`. The error falls at least like `1/iterations`, and linearly with a
/// rate that tends to 1 as `exp(−range/ε)` in the worst case; expect thousands of iterations below ε of 1e-3 of
/// the cost range, where [`crate::methods::sinkhorn_newton_sparse`] needs tens. Objective: the dual value
/// `⟨f, a⟩ + ⟨g, b⟩ − ε ΣP`.
///
/// # Errors
/// [`SolveError::Setting`]; [`SolveError::Breakdown`] in `Domain::Kernel` when ε is too small for it.
///
/// ```
/// use rarefy_solve::{Monitor, transport::{SinkhornSettings, Transport, sinkhorn}};
/// let problem = Transport::new(&[0.5, 0.5], &[0.5, 0.5], &[0.0, 1.0, 1.0, 0.0])?;
/// let settings = SinkhornSettings { regularisation: 0.1, ..Default::default() };
/// let s = sinkhorn(&problem, &settings, &mut Monitor::silent())?;
/// assert!(s.status.is_converged() && s.x.plan[0] > 0.49);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
pub fn sinkhorn(
    problem: &Transport<'_>,
    settings: &SinkhornSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<EntropicPlan>, SolveError> {
    sinkhorn_from(problem, None, settings, monitor)
}

/// As [`sinkhorn`] from the column potentials `g` of a similar problem; entries of columns without mass are
/// ignored.
///
/// # Errors
/// As [`sinkhorn`], and [`SolveError::Dimension`] or [`SolveError::NonFinite`] for `g`.
pub fn sinkhorn_from(
    problem: &Transport<'_>,
    g: Option<&[f64]>,
    settings: &SinkhornSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<EntropicPlan>, SolveError> {
    settings.validate()?;
    let inverse = 1.0 / settings.regularisation;
    let start: Vec<f64> = match g {
        None => vec![0.0; problem.cols().len()],
        Some(g) => {
            check_dimension("g", problem.shape().1, "columns of the cost", g.len())?;
            let kept: Vec<f64> = problem.cols().iter().map(|j| g[*j]).collect();
            check_finite("g", &kept)?;
            kept.into_iter().map(|v| v * inverse).collect()
        }
    };
    let span = problem.cost_range() * inverse;
    if !span.is_finite() {
        return Err(SolveError::setting(
            "regularisation",
            settings.regularisation,
            "large enough that cost/ε is finite",
        ));
    }
    let begin = monitor.seconds();
    let mut run = Run { problem, settings, inverse, trace: vec![], iterations: 0 };
    let end = match settings.domain {
        Domain::Log => run.log(start, monitor),
        Domain::Auto if span > 500.0 => run.log(start, monitor),
        domain => match run.kernel(start, monitor) {
            Ok(end) => end,
            Err(good) if domain == Domain::Auto => run.log(good, monitor),
            Err(_) => {
                return Err(SolveError::breakdown(
                    "Sinkhorn in kernel space",
                    format!("a row or column of exp(−C/ε) underflows: the costs span {span:.0} ε"),
                    "use the log domain or a larger ε",
                ));
            }
        },
    };
    Ok(run.finish(end, monitor.seconds() - begin))
}

struct Run<'a, 'b> {
    problem: &'a Transport<'b>,
    settings: &'a SinkhornSettings,
    inverse: f64,
    trace: Trace,
    iterations: usize,
}

struct End {
    plan: Vec<f64>,
    row_sums: Vec<f64>,
    f: Vec<f64>,
    g: Vec<f64>,
    status: Status,
    domain: Domain,
}

impl Run<'_, '_> {
    /// Reports the error of the state before the iteration; the status with which to end there.
    fn watch(&mut self, f: &[f64], g: &[f64], error: f64, monitor: &mut Monitor<'_>) -> Option<Status> {
        let mass: f64 = self.problem.b().iter().sum();
        let dual =
            self.settings.regularisation * (dot(self.problem.a(), f) + dot(self.problem.b(), g) - mass);
        if let ControlFlow::Break(status) = monitor.record(&mut self.trace, self.iterations, dual, error) {
            return Some(status);
        }
        if error <= self.settings.tolerance * mass {
            return Some(Status::Converged);
        }
        (self.iterations >= self.settings.max_iterations).then_some(Status::MaxIterations)
    }

    /// Scaling of `K`. `Err` holds the last good column potentials.
    fn kernel(&mut self, g0: Vec<f64>, monitor: &mut Monitor<'_>) -> Result<End, Vec<f64>> {
        let (a, b, cost) = (self.problem.a(), self.problem.b(), self.problem.cost());
        let (m, n) = (a.len(), b.len());
        let mass: f64 = b.iter().sum();
        // Each row is shifted by its smallest cost: the diagonal scaling absorbs it.
        let shift: Vec<f64> = kernel::row_minima(cost, n).into_iter().map(|c| c * self.inverse).collect();
        let (mut k, mut sums, mut columns) = (vec![0.0; m * n], vec![0.0; m], vec![0.0; n]);
        kernel::gibbs(cost, self.inverse, &shift, &vec![0.0; n], &mut k, &mut sums, &mut columns);
        let top = g0.iter().fold(f64::NEG_INFINITY, |t, v| t.max(*v));
        let mut v: Vec<f64> = g0.iter().map(|g| (g - top).exp()).collect();
        let (mut u, mut u_old) = (vec![1.0; m], vec![1.0; m]);
        let fine = |x: &[f64]| x.iter().all(|v| *v > 1e-280 && *v < 1e280);
        if !fine(&v) {
            return Err(g0);
        }
        let logs = |u: &[f64], v: &[f64]| -> (Vec<f64>, Vec<f64>) {
            let f = u.iter().zip(&shift).map(|(u, s)| u.ln() + s).collect();
            (f, v.iter().map(|v| v.ln()).collect())
        };
        loop {
            u_old.copy_from_slice(&u);
            let error = kernel::scale_both(&k, a, &v, &mut u, &mut columns, self.iterations % 2 == 1);
            if !(fine(&u) && fine(&columns)) {
                return Err(v.iter().map(|v| v.ln()).collect());
            }
            // The dual value costs logarithms: every tenth time, and at the end.
            let ends =
                error <= self.settings.tolerance * mass || self.iterations >= self.settings.max_iterations;
            if self.iterations > 0 && (ends || self.iterations % 10 == 1) {
                let (f, g) = logs(&u_old, &v);
                if let Some(status) = self.watch(&f, &g, error, monitor) {
                    let row_sums = kernel::scale_plan(&mut k, &u_old, &v);
                    return Ok(End { plan: k, row_sums, f, g, status, domain: Domain::Kernel });
                }
            }
            v.iter_mut().zip(b).zip(&columns).for_each(|((v, b), c)| *v = b / c);
            if !fine(&v) {
                return Err(logs(&u, &v).1.into_iter().map(|g| g.clamp(-650.0, 650.0)).collect());
            }
            self.iterations += 1;
        }
    }

    fn log(&mut self, mut g: Vec<f64>, monitor: &mut Monitor<'_>) -> End {
        let (a, b, cost) = (self.problem.a(), self.problem.b(), self.problem.cost());
        let (m, n) = (a.len(), b.len());
        let (mut f, mut f_old, mut columns) = (vec![0.0; m], vec![0.0; m], vec![0.0; n]);
        let mut first = true;
        let status = loop {
            f_old.copy_from_slice(&f);
            let error = kernel::log_both(cost, self.inverse, a, &g, &mut f, &mut columns);
            if !first && let Some(status) = self.watch(&f_old, &g, error, monitor) {
                break status;
            }
            first = false;
            if columns.iter().all(|c| *c > 1e-280) {
                for ((g, b), c) in g.iter_mut().zip(b).zip(&columns) {
                    *g += b.ln() - c.ln();
                }
            } else {
                kernel::log_columns(cost, self.inverse, b, &f, &mut g);
            }
            self.iterations += 1;
        };
        let (mut plan, mut row_sums) = (vec![0.0; m * n], vec![0.0; m]);
        kernel::gibbs(cost, self.inverse, &f_old, &g, &mut plan, &mut row_sums, &mut columns);
        End { plan, row_sums, f: f_old, g, status, domain: Domain::Log }
    }

    fn finish(self, end: End, seconds: f64) -> Solution<EntropicPlan> {
        let problem = self.problem;
        let rows: f64 = end.row_sums.iter().zip(problem.a()).map(|(s, a)| (s - a).abs()).sum();
        let mut sums = vec![0.0; problem.b().len()];
        let cost = kernel::totals(&end.plan, problem.cost(), &mut sums);
        let columns: f64 = sums.iter().zip(problem.b()).map(|(s, b)| (s - b).abs()).sum();
        let scaled = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| v * self.settings.regularisation).collect() };
        let x = EntropicPlan {
            cost,
            plan: problem.expand(end.plan),
            f: problem.expand_side(&scaled(&end.f), true, f64::NEG_INFINITY),
            g: problem.expand_side(&scaled(&end.g), false, f64::NEG_INFINITY),
            domain: end.domain,
        };
        let residuals = vec![
            Residual { name: "row sums, l1", value: rows },
            Residual { name: "column sums, l1", value: columns },
        ];
        let objective = self.trace.last().map_or(x.cost, |t| t.objective);
        Solution {
            x,
            status: end.status,
            objective,
            residuals,
            iterations: self.iterations,
            trace: self.trace,
            seconds,
        }
    }
}
