//! SNS (Sinkhorn-Newton-Sparse) — solves entropic transport to machine precision in few iterations.
//!
//! Paper:    Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying, Accelerating Sinkhorn Algorithm
//!           with Sparse Newton Iterations, ICLR 2024, arXiv 2401.12253. Reference code: none.
//! Problem:  maximise f(x, y) = −(1/η)Σ exp(η(x_i + y_j − c_ij) − 1) + ⟨r, x⟩ + ⟨c, y⟩, the dual of
//!           min ⟨C, P⟩ + (1/η)Σ P ln P over the plans from r: ℝ^m to c: ℝ^n. η = 1/ε of [`crate::transport::sinkhorn`].
//! Method:   1. Sinkhorn sweeps in the log domain, until `max_sweeps` or until the K largest entries hold
//!           95 % of a plan whose error is at most 0.1. 2. Newton steps −∇²f·d = ∇f with the off-diagonal
//!           block P of the Hessian cut to its K largest entries, both diagonals exact; the column block is eliminated
//!           and the row block solved by conjugate gradients with its diagonal as preconditioner. 3. backtracking;
//!           a step rejected down to 1e-8 is replaced by ten sweeps.
//! Cost:     a step mn exponentials, a selection by histogram in two passes, K multiplications per CG iteration;
//!           memory mn for the plan. Exponentials run on all threads.
//! Variants: `SnsVariant`: adaptive K (default), fixed K, full Newton (dense Cholesky), plain Sinkhorn, safe (SSNS:
//!           density follows the gradient, Wolfe search, shifted Hessian).
//! Differs:  from the paper: adaptive K, the early end of stage 1 and the elimination of the column block are ours;
//!           CG stops at a residual of 0.1‖∇f‖₁ relative, at most 1e-2, at least `cg_tolerance`, which keeps
//!           quadratic convergence.
//! Choose:   for small ε and high precision. At large ε (η·range below about 100) Sinkhorn needs few, cheaper
//!           iterations: prefer it. With costs of many near-ties (l1) give `max_sweeps: 700`.
//! Fails on: wrong settings → `Setting`; η·cost not finite → `Setting`. The sparse Hessian is positive
//!           semidefinite for every threshold; how fast entries off the optimal support vanish is proved for a
//!           unique optimal vertex only. Status `Stalled` when rounding ends progress.

use std::ops::ControlFlow;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::error::check_setting;
use crate::linop::dense::{axpy, dot};
use crate::optim::StrongWolfe;
use crate::transport::{Transport, kernel};
use crate::{Monitor, Residual, Solution, SolveError, Status, Trace};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "sinkhorn-newton-sparse",
    name: "SNS",
    family: "solver",
    paper: "Tang et al., ICLR 2024, arXiv 2401.12253",
    command: "solve transport --method sinkhorn-newton-sparse",
    maturity: Maturity::Preview,
    summary: "entropic transport to machine precision by Newton steps on the largest entries of the plan",
};

/// How the second stage chooses its Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnsVariant {
    /// K = 4n entries at first, twice as many after a step that does not halve the error, at most mn/4.
    Adaptive,
    /// That many times n entries, at least 1. The published steps come out at 8.
    Fixed(usize),
    /// All entries, by dense Cholesky.
    Full,
    /// No second stage.
    Sinkhorn,
    /// Twice as many entries after a step that raised the error, 0.9 of them otherwise; Wolfe search; Hessian
    /// plus `min(‖∇f‖₁, shift)` of its diagonal.
    Safe,
}

/// Settings of [`solve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnsSettings {
    /// η = 1/ε, above 0, in units of 1/cost. Paper's experiments: 1200 for costs up to 1.
    pub eta: f64,
    /// The Hessian of stage 2. House default: adaptive.
    pub variant: SnsVariant,
    /// Most sweeps of stage 1. Paper: 20, 700 for the l1 cost.
    pub max_sweeps: usize,
    /// Whether stage 1 may end early. House default: true.
    pub switches_early: bool,
    /// Most Newton steps. House default: 200.
    pub max_newton: usize,
    /// Ends when `‖∇f‖₁ ≤ tolerance · Σr`, at least 0. Specification: 1e-12.
    pub tolerance: f64,
    /// Smallest relative residual of CG, in (0, 1). Specification: 1e-10.
    pub cg_tolerance: f64,
    /// Largest shift of the safe variant, at least 0. Specification: 1e-2.
    pub shift: f64,
    /// Required share of the predicted increase, in (0, 1). Specification: 1e-4.
    pub armijo: f64,
}

impl Default for SnsSettings {
    fn default() -> Self {
        Self {
            eta: 1200.0,
            variant: SnsVariant::Adaptive,
            max_sweeps: 20,
            switches_early: true,
            max_newton: 200,
            tolerance: 1e-12,
            cg_tolerance: 1e-10,
            shift: 1e-2,
            armijo: 1e-4,
        }
    }
}

impl SnsSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let not_negative = |v: f64| v >= 0.0 && v.is_finite();
        let inside = |v: f64| v > 0.0 && v < 1.0;
        check_setting(self.eta > 0.0 && self.eta.is_finite(), "eta", self.eta, "above 0 and finite")?;
        check_setting(
            self.variant != SnsVariant::Fixed(0),
            "variant",
            "fixed 0",
            "at least 1 times n entries",
        )?;
        check_setting(not_negative(self.tolerance), "tolerance", self.tolerance, "at least 0 and finite")?;
        check_setting(inside(self.cg_tolerance), "cg_tolerance", self.cg_tolerance, "in (0, 1)")?;
        check_setting(not_negative(self.shift), "shift", self.shift, "at least 0 and finite")?;
        check_setting(inside(self.armijo), "armijo", self.armijo, "in (0, 1)")
    }
}

/// A plan, its potentials and the work it took.
#[derive(Debug, Clone, PartialEq)]
pub struct SnsPlan {
    /// `P: [m, n]`, row-major, all points.
    pub plan: Vec<f64>,
    /// `x: ℝ^m`, `P = exp(η(x ⊕ y − C) − 1)`; −∞ at points without mass.
    pub x: Vec<f64>,
    /// `y: ℝ^n`; −∞ at points without mass.
    pub y: Vec<f64>,
    /// `⟨C, P⟩`.
    pub cost: f64,
    /// Sinkhorn sweeps of both stages.
    pub sweeps: usize,
    /// Newton steps.
    pub newton_steps: usize,
    /// Entries of the last sparse Hessian.
    pub entries: usize,
}

/// The plan at a pair of potentials `f = ηx − 1`, `g = ηy`.
#[derive(Clone)]
struct Point {
    f: Vec<f64>,
    g: Vec<f64>,
    plan: Vec<f64>,
    rows: Vec<f64>,
    cols: Vec<f64>,
    /// `η · f(x, y)`.
    value: f64,
    /// `Σ|r − P1| + Σ|c − Pᵀ1|`.
    error: f64,
}

impl Point {
    fn new(m: usize, n: usize) -> Self {
        let (f, g, plan, rows, cols) =
            (vec![-1.0; m], vec![0.0; n], vec![0.0; m * n], vec![0.0; m], vec![0.0; n]);
        Self { f, g, plan, rows, cols, value: 0.0, error: f64::INFINITY }
    }

    fn evaluate(&mut self, t: &Transport<'_>, eta: f64) {
        kernel::gibbs(t.cost(), eta, &self.f, &self.g, &mut self.plan, &mut self.rows, &mut self.cols);
        let mass: f64 = self.rows.iter().sum();
        let total: f64 = t.a().iter().sum();
        self.value = dot(t.a(), &self.f) + total + dot(t.b(), &self.g) - mass;
        let off = |w: &[f64], s: &[f64]| -> f64 { w.iter().zip(s).map(|(w, s)| (w - s).abs()).sum() };
        self.error = off(t.a(), &self.rows) + off(t.b(), &self.cols);
    }

    /// One sweep: rows, then columns.
    fn sweep(&mut self, t: &Transport<'_>, eta: f64) -> f64 {
        let error = kernel::log_both(t.cost(), eta, t.a(), &self.g, &mut self.f, &mut self.cols);
        if self.cols.iter().all(|c| *c > 1e-280) {
            self.g.iter_mut().zip(t.b()).zip(&self.cols).for_each(|((g, b), c)| *g += b.ln() - c.ln());
        } else {
            kernel::log_columns(t.cost(), eta, t.b(), &self.f, &mut self.g);
        }
        error
    }

    fn gradient(&self, t: &Transport<'_>) -> (Vec<f64>, Vec<f64>) {
        let minus = |w: &[f64], s: &[f64]| -> Vec<f64> { w.iter().zip(s).map(|(w, s)| w - s).collect() };
        (minus(t.a(), &self.rows), minus(t.b(), &self.cols))
    }

    fn moved(&mut self, from: &Point, step: f64, d: &(Vec<f64>, Vec<f64>)) {
        self.f.copy_from_slice(&from.f);
        self.g.copy_from_slice(&from.g);
        axpy(step, &d.0, &mut self.f);
        axpy(step, &d.1, &mut self.g);
    }
}

/// The `k` largest entries of a non-negative matrix (and those that tie with the last), by rows.
#[derive(Debug, Clone, PartialEq)]
pub struct LargestEntries {
    starts: Vec<usize>,
    cols: Vec<u32>,
    values: Vec<f64>,
}

impl LargestEntries {
    /// Selects in two passes: a histogram of the leading bits, then the entries above its bin.
    #[must_use]
    pub fn select(plan: &[f64], n_cols: usize, k: usize) -> Self {
        // Doubles of one sign are ordered as their bits; 16 of them: sign, exponent, four of the mantissa.
        let mut counts = vec![0_u32; 1 << 16];
        plan.iter().for_each(|p| counts[(p.to_bits() >> 48) as usize] += 1);
        let (mut bin, mut above) = (0x7ff0, 0);
        while bin > 0 && above + (counts[bin] as usize) < k {
            above += counts[bin] as usize;
            bin -= 1;
        }
        let edge = f64::from_bits((bin as u64) << 48);
        let upper = f64::from_bits((bin as u64 + 1) << 48);
        let mut inside: Vec<f64> = plan.iter().copied().filter(|p| *p >= edge && *p < upper).collect();
        let need = k.saturating_sub(above).min(inside.len());
        let rho =
            if need == 0 { upper } else { *inside.select_nth_unstable_by(need - 1, |a, b| b.total_cmp(a)).1 };
        let mut out = Self { starts: vec![0], cols: vec![], values: vec![] };
        for row in plan.chunks_exact(n_cols) {
            for (j, p) in row.iter().enumerate() {
                if *p >= rho && *p > 0.0 {
                    out.cols.push(j as u32);
                    out.values.push(*p);
                }
            }
            out.starts.push(out.cols.len());
        }
        out
    }

    /// Number of entries kept.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.values.len()
    }

    /// Their sum.
    #[must_use]
    pub fn mass(&self) -> f64 {
        self.values.iter().sum()
    }

    /// `y ← P̃ x`.
    pub fn apply(&self, x: &[f64], y: &mut [f64]) {
        for (i, y) in y.iter_mut().enumerate() {
            let at = self.starts[i]..self.starts[i + 1];
            *y = self.cols[at.clone()].iter().zip(&self.values[at]).map(|(j, v)| v * x[*j as usize]).sum();
        }
    }

    /// `x ← P̃ᵀ y`.
    pub fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        x.fill(0.0);
        for (i, y) in y.iter().enumerate() {
            let at = self.starts[i]..self.starts[i + 1];
            self.cols[at.clone()].iter().zip(&self.values[at]).for_each(|(j, v)| x[*j as usize] += v * y);
        }
    }
}

/// Solves `[[(1+s)D_r, P̃], [P̃ᵀ, (1+s)D_c]] d = (p, q)` by CG on the row block.
fn solve_sparse(
    h: &LargestEntries,
    rows: &[f64],
    cols: &[f64],
    shift: f64,
    (p, q): &(Vec<f64>, Vec<f64>),
    tolerance: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (m, n) = (rows.len(), cols.len());
    let scale = 1.0 + shift;
    let (mut w, mut z) = (vec![0.0; n], vec![0.0; m]);
    w.iter_mut().zip(q).zip(cols).for_each(|((w, q), c)| *w = q / (c * scale));
    h.apply(&w, &mut z);
    let mut r: Vec<f64> = p.iter().zip(&z).map(|(p, z)| p - z).collect();
    let mut x = vec![0.0; m];
    let precondition = |r: &[f64]| -> Vec<f64> { r.iter().zip(rows).map(|(r, d)| r / (d * scale)).collect() };
    let mut s = precondition(&r);
    let mut d = s.clone();
    let mut rs = dot(&r, &s);
    let (target, mut best, mut since) = (rs * tolerance * tolerance, rs, 0);
    for _ in 0..2 * (m + n) {
        if rs <= target || rs <= 0.0 || !rs.is_finite() || since > 300 {
            break;
        }
        h.apply_t(&d, &mut w);
        w.iter_mut().zip(cols).for_each(|(w, c)| *w /= c * scale);
        h.apply(&w, &mut z);
        let hd: Vec<f64> = (0..m).map(|i| rows[i] * scale * d[i] - z[i]).collect();
        let curvature = dot(&d, &hd);
        if curvature.is_nan() || curvature <= 0.0 {
            break;
        }
        let step = rs / curvature;
        axpy(step, &d, &mut x);
        axpy(-step, &hd, &mut r);
        s = precondition(&r);
        let next = dot(&r, &s);
        let beta = next / rs;
        d.iter_mut().zip(&s).for_each(|(d, s)| *d = s + beta * *d);
        rs = next;
        since = if rs < best { 0 } else { since + 1 };
        best = best.min(rs);
    }
    h.apply_t(&x, &mut w);
    let y = (0..n).map(|j| (q[j] - w[j]) / (cols[j] * scale)).collect();
    (x, y)
}

/// The same with all entries, by Cholesky of the row block without its last row (which is the null vector's).
fn solve_dense(at: &Point, (p, q): &(Vec<f64>, Vec<f64>)) -> Option<(Vec<f64>, Vec<f64>)> {
    let (m, n) = (at.rows.len(), at.cols.len());
    let root: Vec<f64> = at.cols.iter().map(|c| c.sqrt()).collect();
    let w = Mat::from_fn(m - 1, n, |i, j| at.plan[i * n + j] / root[j]);
    let mut s = -(&w * w.transpose());
    (0..m - 1).for_each(|i| s[(i, i)] += at.rows[i] * (1.0 + 1e-14));
    let rhs = Mat::from_fn(m - 1, 1, |i, _| p[i] - (0..n).map(|j| w[(i, j)] * q[j] / root[j]).sum::<f64>());
    let solved = s.llt(Side::Lower).ok()?.solve(&rhs);
    let x: Vec<f64> = (0..m).map(|i| if i + 1 < m { solved[(i, 0)] } else { 0.0 }).collect();
    let mut y = q.clone();
    x.iter().zip(at.plan.chunks_exact(n)).for_each(|(x, row)| axpy(-x, row, &mut y));
    y.iter_mut().zip(&at.cols).for_each(|(y, c)| *y /= c);
    x.iter().chain(&y).all(|v| v.is_finite()).then_some((x, y))
}

/// Entropic transport to high precision. Objective: the dual value `f(x, y)`; residual: `‖∇f‖₁`.
///
/// # Errors
/// [`SolveError::Setting`].
pub fn solve(
    problem: &Transport<'_>,
    settings: &SnsSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<SnsPlan>, SolveError> {
    settings.validate()?;
    let (eta, t) = (settings.eta, problem);
    let (m, n) = (t.a().len(), t.b().len());
    if !t.cost().iter().all(|c| (c * eta).is_finite()) {
        return Err(SolveError::setting("eta", eta, "small enough that η·cost is finite"));
    }
    let begin = monitor.seconds();
    let mass: f64 = t.a().iter().sum();
    let target = settings.tolerance * mass;
    let most = match settings.variant {
        SnsVariant::Full => m * n,
        _ => (m * n / 4).max(m + n).min(m * n),
    };
    let mut k = match settings.variant {
        SnsVariant::Fixed(times) => times.saturating_mul(n).min(m * n),
        SnsVariant::Full => m * n,
        _ => (4 * n.max(m)).min(most),
    };
    let mut trace = Trace::new();
    let (mut sweeps, mut steps, mut entries, mut rescues) = (0, 0, 0, 0);
    let mut at = Point::new(m, n);
    let mut status = None;
    // Stage 1. The error of a sweep is that of the potentials before it.
    while sweeps < settings.max_sweeps {
        let error = at.sweep(t, eta);
        sweeps += 1;
        if sweeps > 1 {
            if let ControlFlow::Break(why) = monitor.record(&mut trace, sweeps - 1, dual(t, &at, eta), error)
            {
                status = Some(why);
                break;
            }
            if error <= target {
                break;
            }
            if settings.switches_early && settings.variant != SnsVariant::Sinkhorn && error <= 0.1 * mass {
                at.evaluate(t, eta);
                if LargestEntries::select(&at.plan, n, k).mass() >= 0.95 * mass {
                    break;
                }
            }
        }
    }
    at.evaluate(t, eta);
    let mut trial = at.clone();
    let mut best = at.error;
    let status = loop {
        if let Some(status) = status {
            break status;
        }
        if let ControlFlow::Break(why) = monitor.record(&mut trace, sweeps + steps, at.value / eta, at.error)
        {
            break why;
        }
        if at.error <= target {
            break Status::Converged;
        }
        if settings.variant == SnsVariant::Sinkhorn || steps >= settings.max_newton {
            break Status::MaxIterations;
        }
        // Near the end a rejected step is rounding; far from it, sweeps still help.
        if rescues >= 100 || (rescues >= 8 && at.error <= 1e-8 * mass) {
            break Status::Stalled;
        }
        let gradient = at.gradient(t);
        let shift = if settings.variant == SnsVariant::Safe { settings.shift.min(at.error) } else { 0.0 };
        let relative = (0.1 * at.error / mass).min(1e-2).max(settings.cg_tolerance);
        let dense =
            if settings.variant == SnsVariant::Full && m > 1 { solve_dense(&at, &gradient) } else { None };
        let d = dense.unwrap_or_else(|| {
            let h = LargestEntries::select(&at.plan, n, k);
            entries = h.nnz();
            solve_sparse(&h, &at.rows, &at.cols, shift, &gradient, relative)
        });
        if settings.variant == SnsVariant::Full {
            entries = m * n;
        }
        let slope = dot(&gradient.0, &d.0) + dot(&gradient.1, &d.1);
        steps += 1;
        if ascend(t, settings, &at, &d, slope, &mut trial) {
            match settings.variant {
                SnsVariant::Adaptive if trial.error > 0.5 * at.error => k = (2 * k).min(most),
                SnsVariant::Safe if trial.error > at.error => k = (2 * k).min(most),
                SnsVariant::Safe => k = ((9 * k) / 10).max(m + n).min(m * n),
                _ => {}
            }
            std::mem::swap(&mut at, &mut trial);
        } else {
            for _ in 0..10 {
                at.sweep(t, eta);
            }
            sweeps += 10;
            at.evaluate(t, eta);
            if matches!(settings.variant, SnsVariant::Adaptive | SnsVariant::Safe) {
                k = (2 * k).min(most);
            }
            rescues += 1;
        }
        if at.error < 0.5 * best {
            (best, rescues) = (at.error, 0);
        }
    };
    let x: Vec<f64> = at.f.iter().map(|f| (f + 1.0) / eta).collect();
    let y: Vec<f64> = at.g.iter().map(|g| g / eta).collect();
    let answer = SnsPlan {
        cost: dot(&at.plan, t.cost()),
        plan: t.expand(at.plan),
        x: t.expand_side(&x, true, f64::NEG_INFINITY),
        y: t.expand_side(&y, false, f64::NEG_INFINITY),
        sweeps,
        newton_steps: steps,
        entries,
    };
    Ok(Solution {
        x: answer,
        status,
        objective: at.value / eta,
        residuals: vec![Residual { name: "marginals, l1", value: at.error }],
        iterations: sweeps + steps,
        trace,
        seconds: monitor.seconds() - begin,
    })
}

/// The dual value after a sweep: the columns are exact, so the plan has the mass of `b`.
fn dual(t: &Transport<'_>, at: &Point, eta: f64) -> f64 {
    (dot(t.a(), &at.f) + dot(t.b(), &at.g)) / eta
}

/// Finds an acceptable step and leaves the point in `trial`.
fn ascend(
    t: &Transport<'_>,
    settings: &SnsSettings,
    at: &Point,
    d: &(Vec<f64>, Vec<f64>),
    slope: f64,
    trial: &mut Point,
) -> bool {
    // Below this, values differ by rounding only, and the gradient decides.
    let rounding = 1e-14 * (1.0 + at.value.abs());
    if settings.variant == SnsVariant::Safe && slope > rounding {
        let search = StrongWolfe { armijo: settings.armijo, ..Default::default() };
        return search
            .search(-at.value, -slope, 1.0, |step| {
                trial.moved(at, step, d);
                trial.evaluate(t, settings.eta);
                let g = trial.gradient(t);
                (-trial.value, -dot(&g.0, &d.0) - dot(&g.1, &d.1))
            })
            .is_some();
    }
    let mut step = 1.0;
    while step >= 1e-8 {
        trial.moved(at, step, d);
        trial.evaluate(t, settings.eta);
        let rises = slope > rounding && trial.value >= at.value + settings.armijo * step * slope;
        let equal = trial.value >= at.value - rounding && trial.error < 0.9 * at.error;
        if trial.value.is_finite() && trial.error.is_finite() && (rises || equal) {
            return true;
        }
        step *= 0.5;
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::prox::tests::vectors;

    #[test]
    fn gradient_and_hessian_are_finite_differences() {
        let (m, n, eta) = (3, 4, 2.0);
        let (a, b) = ([0.2, 0.3, 0.5], [0.25; 4]);
        let c: Vec<f64> = vectors(m * n, 1).remove(0);
        let t = Transport::new(&a, &b, &c).unwrap();
        let at = |z: &[f64]| {
            let mut p = Point::new(m, n);
            p.f.iter_mut().zip(z).for_each(|(f, x)| *f = eta * x - 1.0);
            p.g.iter_mut().zip(&z[m..]).for_each(|(g, y)| *g = eta * y);
            p.evaluate(&t, eta);
            p
        };
        let z: Vec<f64> = vectors(m + n, 3).remove(0);
        let p = at(&z);
        let (gx, gy) = p.gradient(&t);
        let g: Vec<f64> = gx.iter().chain(&gy).copied().collect();
        assert!((gx.iter().sum::<f64>() - gy.iter().sum::<f64>()).abs() < 1e-12, "orthogonal to (1, -1)");
        for i in 0..m + n {
            let moved = |h: f64| {
                let mut z = z.clone();
                z[i] += h;
                at(&z)
            };
            let (up, down) = (moved(1e-5), moved(-1e-5));
            let d = (up.value - down.value) / eta / 2e-5;
            assert!((d - g[i]).abs() < 1e-6 * (1.0 + g[i].abs()), "{d} {}", g[i]);
            let (u, l) = (up.gradient(&t), down.gradient(&t));
            for k in 0..m + n {
                let pick = |g: &(Vec<f64>, Vec<f64>)| if k < m { g.0[k] } else { g.1[k - m] };
                let d = (pick(&u) - pick(&l)) / 2e-5;
                let want = -eta
                    * match (i < m, k < m) {
                        (true, true) => {
                            if i == k {
                                p.rows[i]
                            } else {
                                0.0
                            }
                        }
                        (false, false) => {
                            if i == k {
                                p.cols[i - m]
                            } else {
                                0.0
                            }
                        }
                        (true, false) => p.plan[i * n + k - m],
                        (false, true) => p.plan[k * n + i - m],
                    };
                assert!((d - want).abs() < 1e-6 * (1.0 + want.abs()), "{i} {k}: {d} {want}");
            }
        }
    }

    #[test]
    fn conjugate_gradients_and_cholesky_solve_the_same_system() {
        let (m, n) = (6, 5);
        let mut p = Point::new(m, n);
        p.plan = vectors(m * n, 1).remove(0).iter().map(|v| v.abs()).collect();
        p.rows = p.plan.chunks(n).map(|r| r.iter().sum()).collect();
        p.cols = (0..n).map(|j| (0..m).map(|i| p.plan[i * n + j]).sum()).collect();
        let mut x: Vec<f64> = vectors(m, 1).remove(0);
        let y: Vec<f64> = vectors(n, 1).remove(0);
        x[0] += y.iter().sum::<f64>() - x.iter().sum::<f64>();
        let rhs = (x, y);
        let h = LargestEntries::select(&p.plan, n, m * n);
        let (s, d) = (solve_sparse(&h, &p.rows, &p.cols, 0.0, &rhs, 1e-13), solve_dense(&p, &rhs).unwrap());
        for i in 0..m {
            for j in 0..n {
                // The null vector (1, -1) is free.
                assert!((s.0[i] + s.1[j] - d.0[i] - d.1[j]).abs() < 1e-9);
            }
        }
    }
}
