//! Block coordinate descent for group penalties: the engine behind `solve_group` and `group_path`.

use std::ops::ControlFlow;

use faer::{Mat, Side};

use super::{Engine, GroupLoss, GroupModel, GroupPenalty, GroupSettings, Problem, Step};
use crate::linop::dense;
use crate::{Column, LinOp, Monitor, Residual, Solution, SolveError, Status};

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

    /// `XW + b` from its definition, and θ.
    fn rebuild(&mut self) {
        let k = self.k;
        self.z.chunks_exact_mut(k).for_each(|z| z.copy_from_slice(&self.b));
        for (j, w) in self.w.chunks_exact(k).enumerate().filter(|(_, w)| w.iter().any(|v| *v != 0.0)) {
            let z = &mut self.z;
            let mut add = |i: usize, v: f64| {
                z[i * k..(i + 1) * k].iter_mut().zip(w).for_each(|(z, w)| *z += v * w);
            };
            match self.problem.x.column(j) {
                Column::Dense(v) => v.iter().enumerate().for_each(|(i, v)| add(i, *v)),
                Column::Sparse(r, v) => r.iter().zip(v).for_each(|(r, v)| add(*r as usize, *v)),
            }
        }
        self.refresh();
    }

    /// The best constants, where they have a formula.
    fn constants(&self) -> Vec<f64> {
        let GroupLoss::Multinomial { .. } = self.loss else { return vec![0.0; self.k] };
        let mut count = vec![0.0; self.k];
        self.problem.y.iter().enumerate().for_each(|(i, y)| count[*y as usize] += self.sample(i));
        let logs: Vec<f64> = count.iter().map(|c| c.ln()).collect();
        let mean = logs.iter().sum::<f64>() / self.k as f64;
        logs.iter().map(|v| v - mean).collect()
    }

    fn refresh(&mut self) {
        (0..self.problem.y.len()).for_each(|i| self.refresh_row(i));
    }

    fn fit(&self) -> f64 {
        let rows = self.problem.y.iter().zip(self.z.chunks_exact(self.k)).enumerate();
        rows.map(|(i, (y, z))| self.sample(i) * self.loss.value(*y, z)).sum()
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
    fn shift(&mut self, group: &[usize], delta: &[f64], everywhere: bool) {
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
        if everywhere {
            return self.refresh();
        }
        for &j in group {
            match x.column(j) {
                Column::Dense(_) => return self.refresh(),
                Column::Sparse(r, _) => r.iter().for_each(|r| self.refresh_row(*r as usize)),
            }
        }
    }

    /// Sums of θ, one for each output.
    fn sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.k];
        self.theta.chunks_exact(self.k).for_each(|t| sums.iter_mut().zip(t).for_each(|(s, t)| *s += t));
        sums
    }

    /// Moves the intercepts and z, not θ.
    fn shift_intercepts(&mut self, by: &[f64]) {
        self.b.iter_mut().zip(by).for_each(|(b, d)| *b += d);
        self.z.chunks_exact_mut(self.k).for_each(|z| z.iter_mut().zip(by).for_each(|(z, d)| *z += d));
    }

    /// Steps of the intercepts with the bound on the curvature, until θ sums to 0. Returns curvature·‖change‖².
    fn fit_intercepts(&mut self, total: f64, steps: usize) -> f64 {
        let (curvature, mut progress) = (self.smoothness() * total, 0.0);
        for _ in 0..steps {
            let mut sums = self.sums();
            if sums.iter().all(|s| s.abs() <= 1e-14 * total) {
                break;
            }
            sums.iter_mut().for_each(|s| *s /= curvature);
            progress += curvature * dense::norm_sq(&sums);
            self.shift_intercepts(&sums);
            self.refresh();
        }
        progress
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

/// A group problem made ready.
pub(super) struct Descent<'a> {
    state: State<'a>,
    settings: &'a GroupSettings,
    groups: Vec<Vec<usize>>,
    weights: Vec<f64>,
    /// Bounds on the curvature along each group.
    lipschitz: Vec<f64>,
    /// Means of the columns of the groups that move together with the intercepts, empty for the others: where a group
    /// touches most rows, that costs no more, and does not crawl when its columns are nearly constant.
    means: Vec<Vec<f64>>,
    total: f64,
    /// Loss of the best constant model, and the α above which it is the answer.
    reference: f64,
    alpha_max: f64,
}

impl<'a> Descent<'a> {
    /// `settings` have been checked against the problem, which has `k` outputs.
    pub(super) fn new(
        problem: &Problem<'a>,
        settings: &'a GroupSettings,
        k: usize,
        (groups, weights): (Vec<Vec<usize>>, Vec<f64>),
    ) -> Self {
        let (n, p) = (problem.x.n_rows(), problem.x.n_cols());
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
        if settings.fit_intercept {
            state.b = state.constants();
        }
        state.rebuild();
        if settings.fit_intercept {
            state.fit_intercepts(total, 1000);
        }
        let mean = |j: &usize| {
            let column = problem.x.column(*j);
            problem.sample_weight.map_or_else(|| dense::sum(column.values()), |s| column.dot(s)) / total
        };
        let means: Vec<Vec<f64>> = groups
            .iter()
            .map(|g| {
                let nnz: usize = g.iter().map(|j| problem.x.column(*j).values().len()).sum();
                let joint = settings.fit_intercept && 4 * nnz >= n;
                if joint { g.iter().map(mean).collect() } else { vec![] }
            })
            .collect();
        let lipschitz: Vec<f64> = (groups.iter().zip(&means))
            .map(|(g, m)| state.smoothness() * largest_eigenvalue(problem, g, m, total))
            .collect();
        let reference = state.fit();
        let mut this =
            Self { state, settings, groups, weights, lipschitz, means, total, reference, alpha_max: 0.0 };
        this.alpha_max = (0..this.groups.len()).fold(0.0_f64, |m, g| m.max(this.entry(g)));
        this
    }

    /// The α below which a step of group `g` leaves 0.
    fn entry(&self, g: usize) -> f64 {
        let l = self.lipschitz[g];
        if l <= 0.0 {
            return 0.0;
        }
        let size = dense::norm(&self.state.correlation(&self.groups[g])) / (self.weights[g] * self.total);
        match self.settings.penalty {
            GroupPenalty::Norm => size,
            // With γ below 1/curvature the step is a hard threshold, which lets a group in earlier.
            GroupPenalty::Mcp { gamma } => size / (gamma * l / self.total).sqrt().min(1.0),
        }
    }

    fn norm(&self, group: &[usize]) -> f64 {
        let k = self.state.k;
        group.iter().flat_map(|j| &self.state.w[j * k..(j + 1) * k]).map(|v| v * v).sum::<f64>().sqrt()
    }

    /// One proximal step of a group; returns L‖change‖².
    fn visit(&mut self, g: usize, lambda: f64) -> f64 {
        let (group, l, k) = (&self.groups[g], self.lipschitz[g], self.state.k);
        if l <= 0.0 {
            return 0.0;
        }
        let old: Vec<f64> = group.iter().flat_map(|j| &self.state.w[j * k..(j + 1) * k]).copied().collect();
        let mut c = self.state.correlation(group);
        let means = &self.means[g];
        // With the intercepts eliminated from the quadratic bound.
        let mut by = if means.is_empty() { vec![] } else { self.state.sums() };
        for (mean, c) in means.iter().zip(c.chunks_exact_mut(k)) {
            c.iter_mut().zip(&by).for_each(|(c, s)| *c -= mean * s);
        }
        let v: Vec<f64> = old.iter().zip(&c).map(|(w, c)| w + c / l).collect();
        let factor = shrink(dense::norm(&v), 1.0 / l, lambda, self.settings.penalty, self.total);
        let delta: Vec<f64> = v.iter().zip(&old).map(|(v, w)| factor * v - w).collect();
        let moved = dense::norm_sq(&delta);
        if moved > 0.0 {
            if !means.is_empty() {
                let curvature = self.state.smoothness() * self.total;
                by.iter_mut().for_each(|s| *s /= curvature);
                for (mean, delta) in means.iter().zip(delta.chunks_exact(k)) {
                    by.iter_mut().zip(delta).for_each(|(s, d)| *s -= mean * d);
                }
                self.state.shift_intercepts(&by);
            }
            // Brings θ up to date on every row where the intercepts moved too.
            self.state.shift(group, &delta, !means.is_empty());
        }
        l * moved
    }
}

impl Engine for Descent<'_> {
    type Model = GroupModel;

    fn alpha_max(&self) -> f64 {
        self.alpha_max
    }

    fn start_at(&mut self, point: &GroupModel) {
        self.state.w.copy_from_slice(&point.coefficients);
        if self.settings.fit_intercept {
            self.state.b.copy_from_slice(&point.intercepts);
        }
    }

    fn solve(&mut self, step: Step, monitor: &mut Monitor<'_>) -> Result<Solution<GroupModel>, SolveError> {
        let begin = monitor.seconds();
        let (total, k) = (self.total, self.state.k);
        let tolerance = self.settings.tolerance * self.reference;
        let lambda: Vec<f64> = self.weights.iter().map(|o| step.alpha * total * o).collect();
        // Against the drift of many updates.
        self.state.rebuild();
        if self.settings.fit_intercept {
            self.state.fit_intercepts(total, 1000);
        }
        let mut target = 0.01 * tolerance;
        let (mut trace, mut iterations, mut stuck) = (vec![], 0, 0);
        let (mut best, mut lowest) = (f64::INFINITY, f64::MAX);
        let (status, objective, residual) = loop {
            if self.settings.fit_intercept {
                self.state.fit_intercepts(total, 200);
            }
            let mut scale = 1.0_f64;
            let (mut penalty, mut longest) = (0.0, 0.0_f64);
            let mut set: Vec<usize> = vec![];
            let mut wanted: Vec<(f64, usize)> = vec![];
            for (g, group) in self.groups.iter().enumerate() {
                if self.lipschitz[g] <= 0.0 {
                    continue;
                }
                let c = self.state.correlation(group);
                let (size, norm) = (dense::norm(&c), self.norm(group));
                scale = scale.min(if size > lambda[g] { lambda[g] / size } else { 1.0 });
                penalty += penalty_value(norm, lambda[g], self.settings.penalty, total);
                let l = self.lipschitz[g];
                let old: Vec<f64> =
                    group.iter().flat_map(|j| &self.state.w[j * k..(j + 1) * k]).copied().collect();
                let v: Vec<f64> = old.iter().zip(&c).map(|(w, c)| w + c / l).collect();
                let factor = shrink(dense::norm(&v), 1.0 / l, lambda[g], self.settings.penalty, total);
                let step = v.iter().zip(&old).map(|(v, w)| (factor * v - w).powi(2)).sum::<f64>().sqrt();
                longest = longest.max(l * step / lambda[g]);
                if norm > 0.0 {
                    set.push(g);
                } else if step > 0.0 {
                    wanted.push((-size / lambda[g], g));
                }
            }
            let primal = self.state.fit() + penalty;
            let (residual, done) = match self.settings.penalty {
                GroupPenalty::Norm => {
                    let gap = primal - self.state.dual(scale);
                    (gap.max(0.0) / total, gap <= tolerance)
                }
                GroupPenalty::Mcp { .. } => (longest, longest <= self.settings.tolerance),
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
            if iterations >= self.settings.max_iterations {
                break (Status::MaxIterations, primal / total, residual);
            }
            // The residual need not fall while the objective still does.
            let falls = residual < 0.95 * best || primal < lowest - 1e-13 * lowest.abs();
            stuck = if falls { 0 } else { stuck + 1 };
            (best, lowest) = (best.min(residual), lowest.min(primal));
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
                let mut progress: f64 = set.iter().map(|g| self.visit(*g, lambda[*g])).sum();
                if self.settings.fit_intercept && (sweep % 5 == 4 || progress <= target) {
                    progress += self.state.fit_intercepts(total, 3);
                }
                if progress <= target {
                    break;
                }
            }
            iterations += 1;
        };
        let name = if self.settings.penalty == GroupPenalty::Norm { "duality gap" } else { "proximal step" };
        let model =
            GroupModel { outputs: k, coefficients: self.state.w.clone(), intercepts: self.state.b.clone() };
        Ok(Solution {
            x: model,
            status,
            objective,
            residuals: vec![Residual { name, value: residual }],
            iterations,
            trace,
            seconds: monitor.seconds() - begin,
        })
    }
}

/// `λmax(X_gᵀ S X_g − m mᵀΣs)`; `means` may be empty for 0.
fn largest_eigenvalue(problem: &Problem<'_>, group: &[usize], means: &[f64], total: f64) -> f64 {
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
            let plain = problem.x.column(k).dot(&column);
            let centred = means.get(a).zip(means.get(b)).map_or(plain, |(m, l)| plain - m * l * total);
            // What centring leaves of a constant column is rounding.
            gram[(a, b)] = if a == b && centred <= 1e-13 * plain { 0.0 } else { centred };
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
