//! Group penalties and several outputs: group lasso, multinomial regression, minimax concave penalty.
//!
//! ```text
//! minimise over W: [p, k], b: ℝ^k:   (1/Σs) Σᵢ sᵢ f(yᵢ, Wᵀxᵢ + b) + α Σ_g ω_g φ(‖W_g‖_F)
//! ```
//! W_g: the rows of the features of group g; φ(t) = t, or the minimax concave penalty of Zhang (2010),
//! `φ(t) = t − t²/(2γαω_g)` up to `t = γαω_g`, constant beyond. k = 1 but for the multinomial loss.
//!
//! Block coordinate descent with one proximal step of length 1/L_g per group and visit, on working sets; with
//! φ(t) = t a duality gap stops it, with the concave penalty (no convexity, a stationary point only) the
//! length of the proximal step. Cost per visit: O(nnz of the group · k). Convergence is linear and slows
//! down with correlated groups; for single features and convex losses [`super::solve`] is much faster.

use std::ops::ControlFlow;

use faer::{Mat, Side};
use serde::{Deserialize, Serialize};

use super::{Loss, Problem, check_alpha};
use crate::error::{check_dimension, check_finite, check_setting};
use crate::linop::dense;
use crate::{Column, LinOp, Monitor, Residual, Solution, SolveError, Status};

/// The data fit of a group model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupLoss {
    /// One output, as in [`super::solve`].
    Single(Loss),
    /// Softmax regression: y holds classes 0, 1, …, `classes − 1`.
    Multinomial {
        /// Number of classes, at least 2.
        classes: usize,
    },
}

/// The penalty on the norm of a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupPenalty {
    /// The norm itself.
    Norm,
    /// Minimax concave.
    Mcp {
        /// γ > 0, in units of 1/curvature: columns scaled to `‖x‖² = n` want γ > 1. Zhang: 3.
        gamma: f64,
    },
}

/// Settings of [`solve_group`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSettings {
    /// The data fit. Default: squared.
    pub loss: GroupLoss,
    /// The penalty. Default: the norm.
    pub penalty: GroupPenalty,
    /// Features of each group, every feature in exactly one. Default: each feature by itself.
    pub groups: Option<Vec<Vec<usize>>>,
    /// ω of each group, > 0. Default: the square root of its size (Yuan and Lin 2006).
    pub group_weights: Option<Vec<f64>>,
    /// Constants that are not penalised. Default: yes.
    pub fit_intercept: bool,
    /// Duality gap at which to stop, relative to the loss at W = 0; for the concave penalty the largest
    /// proximal step relative to α. At least 0. Default 1e-6.
    pub tolerance: f64,
    /// Limit of working sets. House default: 200.
    pub max_iterations: usize,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            loss: GroupLoss::Single(Loss::Squared),
            penalty: GroupPenalty::Norm,
            groups: None,
            group_weights: None,
            fit_intercept: true,
            tolerance: 1e-6,
            max_iterations: 200,
        }
    }
}

/// A linear model with one or several outputs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupModel {
    /// Number of outputs k.
    pub outputs: usize,
    /// W: [p, k], row-major.
    pub coefficients: Vec<f64>,
    /// b: ℝ^k.
    pub intercepts: Vec<f64>,
}

impl GroupSettings {
    /// Checks the fields that do not depend on the data.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        match self.loss {
            GroupLoss::Multinomial { classes } => {
                check_setting(classes >= 2, "loss.classes", classes, "at least 2")?;
            }
            GroupLoss::Single(Loss::Huber { delta }) => {
                check_setting(delta > 0.0 && delta.is_finite(), "loss.delta", delta, "> 0")?;
            }
            GroupLoss::Single(_) => {}
        }
        if let GroupPenalty::Mcp { gamma } = self.penalty {
            check_setting(gamma > 0.0 && gamma.is_finite(), "penalty.gamma", gamma, "> 0 and finite")?;
        }
        let tol = self.tolerance;
        check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
        check_setting(self.max_iterations > 0, "max_iterations", self.max_iterations, "at least 1")?;
        let bad = self.group_weights.iter().flatten().find(|w| !(**w > 0.0 && w.is_finite()));
        bad.map_or(Ok(()), |w| Err(SolveError::setting("group_weights", w, "> 0 and finite")))
    }

    fn resolve(&self, p: usize) -> Result<(Vec<Vec<usize>>, Vec<f64>), SolveError> {
        let groups = self.groups.clone().unwrap_or_else(|| (0..p).map(|j| vec![j]).collect());
        let mut count = vec![0_usize; p];
        for j in groups.iter().flatten() {
            match count.get_mut(*j) {
                Some(c) => *c += 1,
                None => {
                    let found = format!("feature {j} of {p}");
                    return Err(SolveError::invalid("groups", "features of x", found, "count from 0"));
                }
            }
        }
        if let Some(j) = count.iter().position(|c| *c != 1) {
            return Err(SolveError::invalid(
                "groups",
                "every feature in exactly one group",
                format!("feature {j} in {} groups", count[j]),
                "split or complete the groups",
            ));
        }
        let weights = self
            .group_weights
            .clone()
            .unwrap_or_else(|| groups.iter().map(|g| (g.len() as f64).sqrt()).collect());
        check_dimension("group_weights", groups.len(), "groups", weights.len())?;
        Ok((groups, weights))
    }
}

struct State<'a> {
    problem: Problem<'a>,
    loss: GroupLoss,
    k: usize,
    w: Vec<f64>,
    b: Vec<f64>,
    /// [n, k].
    z: Vec<f64>,
    /// Minus the gradient in z, with the sample weights: [n, k].
    theta: Vec<f64>,
}

impl State<'_> {
    fn sample(&self, i: usize) -> f64 {
        self.problem.sample_weight.map_or(1.0, |s| s[i])
    }

    fn refresh_row(&mut self, i: usize) {
        let (s, y, row) = (self.sample(i), self.problem.y[i], i * self.k..(i + 1) * self.k);
        match self.loss {
            GroupLoss::Single(loss) => self.theta[i] = s * loss.slope(y, self.z[i]),
            GroupLoss::Multinomial { .. } => {
                let z = &self.z[row.clone()];
                let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let theta = &mut self.theta[row];
                theta.iter_mut().zip(z).for_each(|(t, z)| *t = (z - top).exp());
                let sum: f64 = theta.iter().sum();
                theta.iter_mut().for_each(|t| *t *= -s / sum);
                theta[y as usize] += s;
            }
        }
    }

    fn refresh(&mut self) {
        (0..self.problem.y.len()).for_each(|i| self.refresh_row(i));
    }

    fn fit(&self) -> f64 {
        (0..self.problem.y.len())
            .map(|i| {
                let z = &self.z[i * self.k..(i + 1) * self.k];
                let y = self.problem.y[i];
                let value = match self.loss {
                    GroupLoss::Single(loss) => loss.value(y, z[0]),
                    GroupLoss::Multinomial { .. } => {
                        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        top + z.iter().map(|v| (v - top).exp()).sum::<f64>().ln() - z[y as usize]
                    }
                };
                self.sample(i) * value
            })
            .sum()
    }

    fn dual(&self, scale: f64) -> f64 {
        (0..self.problem.y.len())
            .filter(|i| self.sample(*i) > 0.0)
            .map(|i| {
                let (s, y) = (self.sample(i), self.problem.y[i]);
                let theta = &self.theta[i * self.k..(i + 1) * self.k];
                s * match self.loss {
                    GroupLoss::Single(loss) => loss.dual(y, theta[0] / s, scale),
                    GroupLoss::Multinomial { .. } => -theta
                        .iter()
                        .enumerate()
                        .map(|(c, t)| {
                            let q = f64::from(u8::from(c == y as usize)) - scale * t / s;
                            if q > 0.0 { q * q.ln() } else { 0.0 }
                        })
                        .sum::<f64>(),
                }
            })
            .sum()
    }

    /// Bound on the second derivative of the loss along any direction.
    fn smoothness(&self) -> f64 {
        match self.loss {
            GroupLoss::Single(loss) => loss.smoothness(),
            GroupLoss::Multinomial { .. } => 0.5,
        }
    }

    /// `X_gᵀθ`: [|g|, k], row-major.
    fn correlation(&self, group: &[usize]) -> Vec<f64> {
        let mut out = Vec::with_capacity(group.len() * self.k);
        for &j in group {
            let column = self.problem.x.column(j);
            for c in 0..self.k {
                out.push(match column {
                    _ if self.k == 1 => column.dot(&self.theta),
                    Column::Dense(v) => {
                        v.iter().zip(self.theta.iter().skip(c).step_by(self.k)).map(|(v, t)| v * t).sum()
                    }
                    Column::Sparse(r, v) => {
                        r.iter().zip(v).map(|(r, v)| v * self.theta[*r as usize * self.k + c]).sum()
                    }
                });
            }
        }
        out
    }

    /// Adds `delta` to the rows of the group and brings everything up to date.
    fn shift(&mut self, group: &[usize], delta: &[f64]) {
        let x = self.problem.x;
        for (&j, delta) in group.iter().zip(delta.chunks_exact(self.k)) {
            let k = self.k;
            self.w[j * k..(j + 1) * k].iter_mut().zip(delta).for_each(|(w, d)| *w += d);
            let mut add = |i: usize, v: f64| {
                self.z[i * k..(i + 1) * k].iter_mut().zip(delta).for_each(|(z, d)| *z += v * d);
            };
            match x.column(j) {
                Column::Dense(v) => v.iter().enumerate().for_each(|(i, v)| add(i, *v)),
                Column::Sparse(r, v) => r.iter().zip(v).for_each(|(r, v)| add(*r as usize, *v)),
            }
        }
        for &j in group {
            match x.column(j) {
                Column::Dense(_) => return self.refresh(),
                Column::Sparse(r, _) => r.iter().for_each(|r| self.refresh_row(*r as usize)),
            }
        }
    }

    /// Steps of the intercepts with the bound on the curvature, until θ sums to 0.
    fn fit_intercepts(&mut self, total: f64, steps: usize) {
        let curvature = self.smoothness() * total;
        for _ in 0..steps {
            let mut sums = vec![0.0; self.k];
            self.theta.chunks_exact(self.k).for_each(|t| sums.iter_mut().zip(t).for_each(|(s, t)| *s += t));
            if sums.iter().all(|s| s.abs() <= 1e-14 * total) {
                break;
            }
            for (c, s) in sums.iter().enumerate() {
                let d = s / curvature;
                self.b[c] += d;
                self.z.iter_mut().skip(c).step_by(self.k).for_each(|z| *z += d);
            }
            self.refresh();
        }
    }
}

/// Norm of a group after the proximal step, as a factor of the norm before.
fn shrink(norm: f64, step: f64, lambda: f64, penalty: GroupPenalty, total: f64) -> f64 {
    if norm == 0.0 {
        return 0.0;
    }
    let new = match penalty {
        GroupPenalty::Norm => (norm - step * lambda).max(0.0),
        // In the sum over samples, γ is divided by their total weight.
        GroupPenalty::Mcp { gamma } => crate::prox::mcp(norm, step, lambda, gamma / total),
    };
    new / norm
}

fn penalty_value(norm: f64, lambda: f64, penalty: GroupPenalty, total: f64) -> f64 {
    match penalty {
        GroupPenalty::Norm => lambda * norm,
        GroupPenalty::Mcp { gamma } => {
            let gamma = gamma / total;
            let t = norm.min(gamma * lambda);
            lambda * t - t * t / (2.0 * gamma)
        }
    }
}

/// Solves for one α, from zero or from a warm start. The first residual is the duality gap in units of
/// the objective, or for the concave penalty the largest proximal step relative to α.
///
/// # Errors
/// A [`SolveError`] naming the argument.
pub fn solve_group(
    problem: &Problem<'_>,
    alpha: f64,
    settings: &GroupSettings,
    warm: Option<&GroupModel>,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<GroupModel>, SolveError> {
    check_alpha(alpha)?;
    settings.validate()?;
    let (n, p) = (problem.x.n_rows(), problem.x.n_cols());
    let k = match settings.loss {
        GroupLoss::Single(loss) => {
            problem.check(loss)?;
            1
        }
        GroupLoss::Multinomial { classes } => {
            problem.check(Loss::Squared)?;
            let fits = |y: &&f64| **y >= 0.0 && y.fract() == 0.0 && **y < classes as f64;
            if let Some(y) = problem.y.iter().find(|y| !fits(y)) {
                let remedy = "number the classes from 0";
                return Err(SolveError::invalid("y", "classes 0, 1, …, classes - 1", y, remedy));
            }
            classes
        }
    };
    let (groups, weights) = settings.resolve(p)?;
    let begin = monitor.seconds();
    let total = problem.sample_weight.map_or(n as f64, dense::sum);
    let mut state = State {
        problem: *problem,
        loss: settings.loss,
        k,
        w: vec![0.0; p * k],
        b: vec![0.0; k],
        z: vec![0.0; n * k],
        theta: vec![0.0; n * k],
    };
    state.refresh();
    if settings.fit_intercept {
        state.fit_intercepts(total, 1000);
    }
    let tolerance = settings.tolerance * state.fit();
    if let Some(warm) = warm {
        check_dimension("warm", p * k, "features times outputs", warm.coefficients.len())?;
        check_dimension("warm", k, "outputs", warm.intercepts.len())?;
        check_finite("warm", warm.coefficients.iter().chain(&warm.intercepts))?;
        let all: Vec<usize> = (0..p).collect();
        state.shift(&all, &warm.coefficients);
        if settings.fit_intercept {
            state.fit_intercepts(total, 1000);
        }
    }
    let lipschitz: Vec<f64> =
        groups.iter().map(|g| state.smoothness() * largest_eigenvalue(problem, g)).collect();
    let lambda: Vec<f64> = weights.iter().map(|o| alpha * total * o).collect();
    let norm_of = |w: &[f64], g: &[usize]| -> f64 {
        g.iter().flat_map(|j| &w[j * k..(j + 1) * k]).map(|v| v * v).sum::<f64>().sqrt()
    };
    // One proximal step of a group; returns L‖change‖².
    let visit = |state: &mut State<'_>, g: usize| -> f64 {
        let (group, l) = (&groups[g], lipschitz[g]);
        if l <= 0.0 {
            return 0.0;
        }
        let old: Vec<f64> = group.iter().flat_map(|j| &state.w[j * k..(j + 1) * k]).copied().collect();
        let c = state.correlation(group);
        let v: Vec<f64> = old.iter().zip(&c).map(|(w, c)| w + c / l).collect();
        let factor = shrink(dense::norm(&v), 1.0 / l, lambda[g], settings.penalty, total);
        let delta: Vec<f64> = v.iter().zip(&old).map(|(v, w)| factor * v - w).collect();
        let moved = dense::norm_sq(&delta);
        if moved > 0.0 {
            state.shift(group, &delta);
        }
        l * moved
    };
    let mut target = 0.01 * tolerance;
    let (mut trace, mut iterations, mut best, mut stuck) = (vec![], 0, f64::INFINITY, 0);
    let (status, objective, residual) = loop {
        if settings.fit_intercept {
            state.fit_intercepts(total, 200);
        }
        let mut scale = 1.0_f64;
        let (mut penalty, mut longest) = (0.0, 0.0_f64);
        let mut set: Vec<usize> = vec![];
        let mut wanted: Vec<(f64, usize)> = vec![];
        for (g, group) in groups.iter().enumerate() {
            if lipschitz[g] <= 0.0 {
                continue;
            }
            let c = state.correlation(group);
            let (size, norm) = (dense::norm(&c), norm_of(&state.w, group));
            scale = scale.min(if size > lambda[g] { lambda[g] / size } else { 1.0 });
            penalty += penalty_value(norm, lambda[g], settings.penalty, total);
            let l = lipschitz[g];
            let old: Vec<f64> = group.iter().flat_map(|j| &state.w[j * k..(j + 1) * k]).copied().collect();
            let v: Vec<f64> = old.iter().zip(&c).map(|(w, c)| w + c / l).collect();
            let factor = shrink(dense::norm(&v), 1.0 / l, lambda[g], settings.penalty, total);
            let step = v.iter().zip(&old).map(|(v, w)| (factor * v - w).powi(2)).sum::<f64>().sqrt();
            longest = longest.max(l * step / lambda[g]);
            if norm > 0.0 {
                set.push(g);
            } else if step > 0.0 {
                wanted.push((-size / lambda[g], g));
            }
        }
        let primal = state.fit() + penalty;
        let (residual, done) = match settings.penalty {
            GroupPenalty::Norm => {
                let gap = primal - state.dual(scale);
                (gap.max(0.0) / total, gap <= tolerance)
            }
            GroupPenalty::Mcp { .. } => (longest, longest <= settings.tolerance),
        };
        if !residual.is_finite() {
            return Err(SolveError::breakdown(
                "group descent",
                "the objective overflowed",
                "scale the columns of x",
            ));
        }
        let observed = monitor.record(&mut trace, iterations, primal / total, residual);
        if done {
            break (Status::Converged, primal / total, residual);
        }
        if let ControlFlow::Break(status) = observed {
            break (status, primal / total, residual);
        }
        if iterations >= settings.max_iterations {
            break (Status::MaxIterations, primal / total, residual);
        }
        stuck = if residual < 0.95 * best { 0 } else { stuck + 1 };
        best = best.min(residual);
        if stuck >= 20 {
            break (Status::Stalled, primal / total, residual);
        }
        wanted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        wanted.truncate((2 * set.len()).max(20));
        if wanted.is_empty() && iterations > 0 {
            target *= 0.1;
        }
        set.extend(wanted.iter().map(|w| w.1));
        for sweep in 0..1000 {
            let progress: f64 = set.iter().map(|g| visit(&mut state, *g)).sum();
            if settings.fit_intercept && sweep % 5 == 4 {
                state.fit_intercepts(total, 3);
            }
            if progress <= target {
                break;
            }
        }
        iterations += 1;
    };
    let name = if settings.penalty == GroupPenalty::Norm { "duality gap" } else { "proximal step" };
    Ok(Solution {
        x: GroupModel { outputs: k, coefficients: state.w, intercepts: state.b },
        status,
        objective,
        residuals: vec![Residual { name, value: residual }],
        iterations,
        trace,
        seconds: monitor.seconds() - begin,
    })
}

/// `λmax(X_gᵀ S X_g)`.
fn largest_eigenvalue(problem: &Problem<'_>, group: &[usize]) -> f64 {
    let n = problem.x.n_rows();
    let mut column = vec![0.0; n];
    let mut gram = Mat::<f64>::zeros(group.len(), group.len());
    for (a, &j) in group.iter().enumerate() {
        column.fill(0.0);
        problem.x.column(j).add_to(1.0, &mut column);
        if let Some(s) = problem.sample_weight {
            column.iter_mut().zip(s).for_each(|(c, s)| *c *= s);
        }
        for (b, &k) in group[..=a].iter().enumerate() {
            gram[(a, b)] = problem.x.column(k).dot(&column);
            gram[(b, a)] = gram[(a, b)];
        }
    }
    if group.len() == 1 {
        return gram[(0, 0)];
    }
    match gram.self_adjoint_eigenvalues(Side::Lower) {
        Ok(values) => values.into_iter().fold(0.0, f64::max),
        // The trace bounds it.
        Err(_) => (0..group.len()).map(|a| gram[(a, a)]).sum(),
    }
}
