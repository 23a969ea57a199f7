//! Smoothed transport through its dual and semi-dual.
//!
//! `min ⟨C, P⟩ + Σ_j Ω(P_j)` over `U(a, b)`, `P_j` the columns. The semi-dual, of `α: ℝ^m`,
//! `D(α) = ⟨α, a⟩ − Σ_j max {⟨α − C_j, p⟩ − Ω(p) : p ≥ 0, Σp = b_j}`, has the maximisers as columns of the plan:
//! they sum to `b` exactly at every iterate. The dual, of `α` and `β: ℝ^n`, drops `Σp = b_j` from the maximum.

use std::ops::ControlFlow;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Transport;
use super::exp::{ARCH, exp, max, sum};
use crate::error::check_setting;
use crate::linop::Csc;
use crate::linop::dense::{dot, norm_1};
use crate::optim::{LbfgsSettings, lbfgs};
use crate::{Monitor, Residual, Solution, SolveError, Status};

/// Ω, on one column of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regulariser {
    /// `γ Σ p ln p` (semi-dual), `γ Σ p(ln p − 1)` (dual): dense plans.
    Entropy,
    /// `γ/2 ‖p‖²`: sparse plans.
    SquaredL2,
    /// `γ/2 ‖p‖²`, and at most that many non-zeros: not convex, but both duals are concave.
    KSparse(usize),
}

/// Which dual is maximised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Formulation {
    /// `m` variables, exact column sums.
    SemiDual,
    /// `m + n` variables.
    Dual,
}

/// How the dual is maximised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ascent {
    /// L-BFGS; at a kink that it cannot leave, 200 steps of Adam, of which the best iterate is kept.
    Lbfgs,
    /// Adam from 0 with that rate, in units of γ; the best iterate is kept.
    Adam {
        /// Above 0. Router of the reference code: 1e-2.
        rate: f64,
    },
}

/// Settings of [`solve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmoothSettings {
    /// γ, above 0, in units of cost over mass (of cost for the entropy). House default: 1.
    pub gamma: f64,
    /// Ω. House default: squared l2.
    pub regulariser: Regulariser,
    /// Which dual. Reference code: the semi-dual.
    pub formulation: Formulation,
    /// How it is maximised. POT: L-BFGS.
    pub ascent: Ascent,
    /// Ends when no marginal is off by more than `tolerance · Σa`, at least 0. House default: 1e-9.
    pub tolerance: f64,
    /// Limit of iterations. House default: 1000.
    pub max_iterations: usize,
}

impl Default for SmoothSettings {
    fn default() -> Self {
        Self {
            gamma: 1.0,
            regulariser: Regulariser::SquaredL2,
            formulation: Formulation::SemiDual,
            ascent: Ascent::Lbfgs,
            tolerance: 1e-9,
            max_iterations: 1000,
        }
    }
}

impl SmoothSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.gamma > 0.0 && self.gamma.is_finite(), "gamma", self.gamma, "above 0 and finite")?;
        check_setting(
            self.regulariser != Regulariser::KSparse(0),
            "regulariser",
            "k = 0",
            "at least one non-zero",
        )?;
        let t = self.tolerance;
        check_setting(t >= 0.0 && t.is_finite(), "tolerance", t, "at least 0 and finite")?;
        if let Ascent::Adam { rate } = self.ascent {
            check_setting(rate > 0.0 && rate.is_finite(), "rate", rate, "above 0 and finite")?;
        }
        Ok(())
    }
}

/// A plan read off a dual point.
#[derive(Debug, Clone)]
pub struct SmoothPlan {
    /// `P: [m, n]`, all points, by columns.
    pub plan: Csc,
    /// `α: ℝ^m`; 0 at points without mass.
    pub alpha: Vec<f64>,
    /// `β: ℝ^n` of the dual; empty for the semi-dual.
    pub beta: Vec<f64>,
    /// `⟨C, P⟩`.
    pub cost: f64,
    /// `⟨C, P⟩ + Ω(P)`.
    pub primal: f64,
    /// Most non-zeros in a column.
    pub most_in_a_column: usize,
}

/// The entries `(row, value)` of a column.
type Entries = Vec<(u32, f64)>;

/// `max {⟨x, p⟩ − Ω(p)/γ : p ≥ 0, Σp = mass}` for `x` in units of γ; the maximiser goes to `out`.
pub(crate) fn semi_column(reg: Regulariser, x: &mut [f64], mass: f64, out: &mut Entries) -> f64 {
    out.clear();
    let top = ARCH.dispatch(
        #[inline(always)]
        || max(x),
    );
    let k = match reg {
        Regulariser::Entropy => {
            let s = ARCH.dispatch(
                #[inline(always)]
                || {
                    x.iter_mut().for_each(|x| *x = exp(*x - top));
                    sum(x)
                },
            );
            out.extend(x.iter().enumerate().map(|(i, e)| (i as u32, mass * e / s)));
            return mass * (s.ln() + top - mass.ln());
        }
        Regulariser::SquaredL2 => x.len(),
        Regulariser::KSparse(k) => k,
    };
    // The threshold is at least `top − mass`: what lies below is 0 whatever else is kept.
    out.extend(x.iter().enumerate().filter(|(_, x)| **x > top - mass).map(|(i, x)| (i as u32, x - top)));
    if out.is_empty() {
        // The mass is below the spacing of doubles at `top`.
        out.extend(x.iter().position(|x| *x >= top).map(|i| (i as u32, 0.0)));
    }
    let tau = if k < out.len() {
        keep_largest(out, k);
        threshold_of_falling(out, mass)
    } else {
        threshold(out, mass)
    };
    let mut value = 0.0;
    out.retain_mut(|(_, v)| {
        let p = *v - tau;
        if p > 0.0 {
            value += p * (*v + top) - 0.5 * p * p;
        }
        *v = p;
        p > 0.0
    });
    value
}

/// The `τ` with `Σ max(v − τ, 0) = mass` for values that fall.
fn threshold_of_falling(entries: &Entries, mass: f64) -> f64 {
    let (mut total, mut tau) = (0.0, -mass);
    for (r, (_, v)) in entries.iter().enumerate() {
        total += v;
        let candidate = (total - mass) / (r + 1) as f64;
        if r > 0 && *v <= candidate {
            break;
        }
        tau = candidate;
    }
    tau
}

/// The same for values in any order: the threshold of all, then of those above it, until none drops out
/// (Michelot 1986). What drops out never comes back, so it ends.
fn threshold(entries: &mut Entries, mass: f64) -> f64 {
    loop {
        let before = entries.len();
        let total: f64 = entries.iter().map(|e| e.1).sum();
        let tau = (total - mass) / before as f64;
        if before > 1 {
            entries.retain(|e| e.1 > tau);
        }
        if entries.len() == before || entries.is_empty() {
            return tau;
        }
    }
}

/// Keeps the `k` largest, largest first; ties go to the lower row.
fn keep_largest(entries: &mut Entries, k: usize) {
    let before = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < entries.len() {
        entries.select_nth_unstable_by(k - 1, before);
        entries.truncate(k);
    }
    entries.sort_unstable_by(before);
}

/// The same without `Σp = mass`.
fn dual_column(reg: Regulariser, x: &[f64], out: &mut Entries) -> f64 {
    out.clear();
    match reg {
        Regulariser::Entropy => {
            out.extend(x.iter().enumerate().map(|(i, x)| (i as u32, exp(*x))));
            return out.iter().map(|e| e.1).sum();
        }
        Regulariser::SquaredL2 | Regulariser::KSparse(_) => {
            out.extend(x.iter().enumerate().filter(|(_, x)| **x > 0.0).map(|(i, x)| (i as u32, *x)));
        }
    }
    if let Regulariser::KSparse(k) = reg {
        keep_largest(out, k);
    }
    0.5 * out.iter().map(|e| e.1 * e.1).sum::<f64>()
}

/// The dual functions of a problem, with the cost by columns.
pub(crate) struct Dual<'a> {
    a: &'a [f64],
    b: &'a [f64],
    /// `Cᵀ`, row-major.
    columns: Vec<f64>,
    reg: Regulariser,
    gamma: f64,
    formulation: Formulation,
}

impl<'a> Dual<'a> {
    pub(crate) fn new(t: &'a Transport<'_>, settings: &SmoothSettings) -> Self {
        let (m, n) = (t.a().len(), t.b().len());
        let mut columns = vec![0.0; m * n];
        for (i, row) in t.cost().chunks_exact(n).enumerate() {
            row.iter().enumerate().for_each(|(j, c)| columns[j * m + i] = *c);
        }
        let (reg, gamma, formulation) = (settings.regulariser, settings.gamma, settings.formulation);
        Self { a: t.a(), b: t.b(), columns, reg, gamma, formulation }
    }

    fn variables(&self) -> usize {
        self.a.len() + if self.formulation == Formulation::Dual { self.b.len() } else { 0 }
    }

    /// Maximum over column `j`, in units of γ.
    fn column(&self, z: &[f64], j: usize, x: &mut [f64], out: &mut Entries) -> f64 {
        let m = self.a.len();
        let beta = if self.formulation == Formulation::Dual { z[m + j] } else { 0.0 };
        let inverse = 1.0 / self.gamma;
        ARCH.dispatch(
            #[inline(always)]
            || {
                for ((x, a), c) in x.iter_mut().zip(z).zip(&self.columns[j * m..(j + 1) * m]) {
                    *x = ((a - c) + beta) * inverse;
                }
            },
        );
        match self.formulation {
            Formulation::SemiDual => semi_column(self.reg, x, self.b[j], out),
            Formulation::Dual => dual_column(self.reg, x, out),
        }
    }

    /// `−D(z)`, and its gradient.
    pub(crate) fn negative(&self, z: &[f64], gradient: &mut [f64]) -> f64 {
        let (m, n) = (self.a.len(), self.b.len());
        let width = if m * n < 1 << 14 { n } else { n.div_ceil(16) };
        let (rows, cols) = gradient.split_at_mut(m);
        let mut sums = vec![0.0; n];
        let parts: Vec<(f64, Vec<f64>)> = sums
            .par_chunks_mut(width)
            .enumerate()
            .map(|(part, sums)| {
                let (mut x, mut out, mut rows) = (vec![0.0; m], vec![], vec![0.0; m]);
                let mut value = 0.0;
                for (offset, s) in sums.iter_mut().enumerate() {
                    value += self.column(z, part * width + offset, &mut x, &mut out);
                    for (i, p) in &out {
                        rows[*i as usize] += p;
                        *s += p;
                    }
                }
                (value, rows)
            })
            .collect();
        rows.iter_mut().zip(self.a).for_each(|(g, a)| *g = -a);
        let mut value = -dot(&z[..m], self.a);
        for (part, sums) in parts {
            value += self.gamma * part;
            rows.iter_mut().zip(sums).for_each(|(g, s)| *g += s);
        }
        if self.formulation == Formulation::Dual {
            value -= dot(&z[m..], self.b);
            cols.iter_mut().zip(sums).zip(self.b).for_each(|((g, s), b)| *g = s - b);
        }
        value
    }
}

/// Smoothed transport. Objective: the dual value; residuals: row and column sums in l1.
///
/// Cost per evaluation: `mn` and, for the sparse regularisers, a sort of the few candidates of each
/// column. For `KSparse` the dual optimum may lie at a kink, where the rows of the plan stay wrong: look at the
/// residual, and at [`SmoothPlan::primal`] minus the objective, which is then no duality gap.
///
/// # Errors
/// [`SolveError::Setting`]; [`SolveError::Breakdown`] when the costs span too many γ for doubles.
pub fn solve(
    problem: &Transport<'_>,
    settings: &SmoothSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<SmoothPlan>, SolveError> {
    settings.validate()?;
    let begin = monitor.seconds();
    let dual = Dual::new(problem, settings);
    let mass: f64 = problem.a().iter().sum();
    let start = vec![0.0; dual.variables()];
    let tolerance = settings.tolerance * mass;
    let mut found = match settings.ascent {
        Ascent::Lbfgs => {
            let l =
                LbfgsSettings { tolerance, max_iterations: settings.max_iterations, ..Default::default() };
            let mut found = lbfgs(|z, g| dual.negative(z, g), &start, &l, monitor)?;
            if found.status == Status::Stalled && matches!(settings.regulariser, Regulariser::KSparse(_)) {
                let more = adam(
                    &dual,
                    &found.x,
                    1e-2 * settings.gamma / problem.b().len() as f64,
                    200,
                    tolerance,
                    monitor,
                );
                if more.objective < found.objective {
                    found.x = more.x;
                    found.objective = more.objective;
                }
                found.iterations += more.iterations;
            }
            found
        }
        Ascent::Adam { rate } => {
            adam(&dual, &start, rate * settings.gamma, settings.max_iterations, tolerance, monitor)
        }
    };
    found.trace.iter_mut().for_each(|p| p.objective = -p.objective);
    let z = &found.x;
    let (m, n) = (problem.a().len(), problem.b().len());
    let (mut x, mut out, mut entries) = (vec![0.0; m], vec![], vec![]);
    let (mut rows, mut cols) = (vec![0.0; m], vec![0.0; n]);
    let (mut cost, mut omega, mut most) = (0.0, 0.0, 0);
    for (j, col) in cols.iter_mut().enumerate() {
        dual.column(z, j, &mut x, &mut out);
        out.retain(|e| e.1 > 0.0);
        out.sort_unstable_by_key(|e| e.0);
        most = most.max(out.len());
        for (i, p) in &out {
            let i = *i as usize;
            rows[i] += p;
            *col += p;
            cost += p * dual.columns[j * m + i];
            omega += match settings.regulariser {
                Regulariser::Entropy if settings.formulation == Formulation::Dual => p * (p.ln() - 1.0),
                Regulariser::Entropy => p * p.ln(),
                _ => 0.5 * p * p,
            };
            entries.push((problem.rows()[i], problem.cols()[j], *p));
        }
    }
    let off = |s: &[f64], w: &[f64]| norm_1(&s.iter().zip(w).map(|(s, w)| s - w).collect::<Vec<_>>());
    let residuals = vec![
        Residual { name: "row sums, l1", value: off(&rows, problem.a()) },
        Residual { name: "column sums, l1", value: off(&cols, problem.b()) },
    ];
    let shape = problem.shape();
    let answer = SmoothPlan {
        plan: Csc::from_triplets(shape.0, shape.1, &entries)?,
        alpha: problem.expand_side(&z[..m], true, 0.0),
        beta: if z.len() > m { problem.expand_side(&z[m..], false, 0.0) } else { vec![] },
        cost,
        primal: cost + settings.gamma * omega,
        most_in_a_column: most,
    };
    Ok(Solution {
        x: answer,
        status: found.status,
        objective: -found.objective,
        residuals,
        iterations: found.iterations,
        trace: found.trace,
        seconds: monitor.seconds() - begin,
    })
}

/// Adam with its usual moments; returns the iterate of the best value.
pub(crate) fn adam(
    dual: &Dual<'_>,
    start: &[f64],
    rate: f64,
    iterations: usize,
    tolerance: f64,
    monitor: &mut Monitor<'_>,
) -> Solution<Vec<f64>> {
    let (b1, b2) = (0.9_f64, 0.999_f64);
    let mut z = start.to_vec();
    let (mut g, mut first, mut second) = (vec![0.0; z.len()], vec![0.0; z.len()], vec![0.0; z.len()]);
    let (mut best, mut x, mut trace) = (f64::INFINITY, z.clone(), vec![]);
    let mut step = 0;
    let status = loop {
        let value = dual.negative(&z, &mut g);
        let residual = crate::linop::dense::norm_inf(&g);
        if !(value.is_finite() && residual.is_finite()) {
            break Status::Stalled;
        }
        if value < best {
            best = value;
            x.copy_from_slice(&z);
        }
        if let ControlFlow::Break(status) = monitor.record(&mut trace, step, value, residual) {
            break status;
        }
        if residual <= tolerance {
            break Status::Converged;
        }
        if step >= iterations {
            break Status::MaxIterations;
        }
        step += 1;
        let (c1, c2) = (1.0 - b1.powi(step as i32), 1.0 - b2.powi(step as i32));
        for i in 0..z.len() {
            first[i] = b1 * first[i] + (1.0 - b1) * g[i];
            second[i] = b2 * second[i] + (1.0 - b2) * g[i] * g[i];
            z[i] -= rate * (first[i] / c1) / ((second[i] / c2).sqrt() + 1e-8);
        }
    };
    let seconds = trace.last().map_or(0.0, |t: &crate::TracePoint| t.seconds);
    Solution { x, status, objective: best, residuals: vec![], iterations: step, trace, seconds }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::prox::k_sparse_simplex;
    use crate::prox::tests::vectors;

    #[test]
    fn columns_are_projections() {
        for v in vectors(11, 50) {
            for k in [1, 2, 5, 11] {
                for mass in [1e-3, 0.4, 3.0] {
                    let mut want = v.clone();
                    k_sparse_simplex(&mut want, k, mass);
                    let (mut got, mut out) = (vec![0.0; 11], vec![]);
                    semi_column(Regulariser::KSparse(k), &mut v.clone(), mass, &mut out);
                    out.iter().for_each(|(i, p)| got[*i as usize] = *p);
                    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-14), "{v:?} {k} {mass}");
                }
            }
        }
    }

    #[test]
    fn gradients_are_central_differences() {
        let (m, n) = (5, 4);
        let (a, b) = ([0.2; 5], [0.1, 0.2, 0.3, 0.4]);
        let c: Vec<f64> = vectors(m * n, 1).remove(0);
        let t = Transport::new(&a, &b, &c).unwrap();
        for regulariser in [Regulariser::Entropy, Regulariser::SquaredL2, Regulariser::KSparse(2)] {
            for formulation in [Formulation::SemiDual, Formulation::Dual] {
                let s = SmoothSettings { regulariser, formulation, gamma: 0.7, ..Default::default() };
                let dual = Dual::new(&t, &s);
                let z: Vec<f64> = vectors(dual.variables(), 3).remove(1);
                let (mut g, mut scratch) = (vec![0.0; z.len()], vec![0.0; z.len()]);
                dual.negative(&z, &mut g);
                for i in 0..z.len() {
                    let mut at = |h: f64| {
                        let mut z = z.clone();
                        z[i] += h;
                        dual.negative(&z, &mut scratch)
                    };
                    let d = (at(1e-5) - at(-1e-5)) / 2e-5;
                    assert!(
                        (d - g[i]).abs() < 1e-8 * (1.0 + d.abs()),
                        "{regulariser:?} {formulation:?}: {d} {}",
                        g[i]
                    );
                }
            }
        }
    }
}
