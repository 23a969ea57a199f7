//! Logistic and Huber losses: proximal Newton steps on working sets.
//!
//! Near the answer the decrease of a step is of second order and far below the rounding of the objective,
//! whereas the duality gap is of first order. So decreases are sums of exact differences, not a difference of
//! sums, and the gap is a sum of terms that are each at least 0: both keep their digits down to the rounding of
//! the gradient.

use std::ops::ControlFlow;

use rayon::prelude::*;

use super::quadratic::Quadratic;
use super::working_set::{Bounds, Feature, WorkingSet};
use super::{Coefficients, Engine, GlmSettings, Loss, Problem, Step};
use crate::linop::dense;
use crate::{Column, LinOp, Monitor, Residual, Solution, SolveError, Status};

pub(super) struct Newton<'a> {
    problem: Problem<'a>,
    settings: &'a GlmSettings,
    total: f64,
    largest_weight: f64,
    norms_sq: Vec<f64>,
    w: Vec<f64>,
    intercept: f64,
    support: Vec<usize>,
    /// `Xw + b`.
    z: Vec<f64>,
    /// `−sᵢ f'(zᵢ)`.
    theta: Vec<f64>,
    /// Curvature of the model, and how much of it the linear part of Huber's loss gets, in (0, 1].
    v: Vec<f64>,
    damping: f64,
    /// The best constant model, its loss, and the α above which it is the answer.
    constant: f64,
    reference: f64,
    alpha_max: f64,
}

struct Certificate {
    primal: f64,
    gap: f64,
    scale: f64,
}

impl<'a> Newton<'a> {
    pub(super) fn new(problem: &Problem<'a>, settings: &'a GlmSettings) -> Self {
        let (n, p) = (problem.x.n_rows(), problem.x.n_cols());
        let mut this = Self {
            problem: *problem,
            settings,
            total: problem.sample_weight.map_or(n as f64, dense::sum),
            largest_weight: problem.sample_weight.map_or(1.0, |s| s.iter().copied().fold(0.0, f64::max)),
            norms_sq: problem.x.column_norms_sq(),
            w: vec![0.0; p],
            intercept: 0.0,
            support: vec![],
            z: vec![0.0; n],
            theta: vec![0.0; n],
            v: vec![0.0; n],
            damping: 1.0,
            constant: 0.0,
            reference: 0.0,
            alpha_max: 0.0,
        };
        if settings.fit_intercept {
            this.fit_intercept();
        }
        this.derivatives();
        (this.constant, this.reference) = (this.intercept, this.fit(&this.z));
        let all: Vec<usize> = (0..p).collect();
        let g = this.gradient(&all, 0.0);
        let sizes = g.iter().enumerate().map(|(j, g)| this.size(*g) / this.weight(j));
        this.alpha_max = sizes.fold(0.0, f64::max) / (this.total * settings.l1_ratio);
        this
    }

    fn weight(&self, j: usize) -> f64 {
        self.settings.penalty_weights.as_ref().map_or(1.0, |w| w[j])
    }

    fn size(&self, g: f64) -> f64 {
        if self.settings.positive { g } else { g.abs() }
    }

    fn fit(&self, z: &[f64]) -> f64 {
        let loss = self.settings.loss;
        match self.problem.sample_weight {
            None => self.problem.y.iter().zip(z).map(|(y, z)| loss.value(*y, *z)).sum(),
            Some(s) => {
                s.iter().zip(self.problem.y.iter().zip(z)).map(|(s, (y, z))| s * loss.value(*y, *z)).sum()
            }
        }
    }

    fn derivatives(&mut self) {
        let loss = self.settings.loss;
        for i in 0..self.z.len() {
            let s = self.problem.sample_weight.map_or(1.0, |s| s[i]);
            let (y, z) = (self.problem.y[i], self.z[i]);
            self.theta[i] = s * loss.slope(y, z);
            self.v[i] = s * loss.curvature(y, z, self.damping);
        }
    }

    /// Makes the intercept optimal for the coefficients at hand, so that the residual sums to 0: Newton's
    /// method inside a bracket, since the sum falls as the intercept rises.
    fn fit_intercept(&mut self) {
        let (mut below, mut above) = (f64::NEG_INFINITY, f64::INFINITY);
        let damping = std::mem::replace(&mut self.damping, 1e-9);
        for _ in 0..200 {
            self.derivatives();
            let (g, h) = (dense::sum(&self.theta), dense::sum(&self.v));
            let size = dense::norm_1(&self.theta);
            if g.abs() <= 1e-15 * size || h <= 0.0 {
                break;
            }
            if g > 0.0 {
                below = self.intercept
            } else {
                above = self.intercept
            }
            // The curvature may be tiny: short steps while there is no bracket.
            let most = if self.settings.loss == Loss::Logistic { 4.0 } else { 4.0 * size };
            let mut next = self.intercept + (g / h).clamp(-most, most);
            if !(next > below && next < above) && below.is_finite() && above.is_finite() {
                next = 0.5 * (below + above);
            }
            let by = next - self.intercept;
            self.intercept = next;
            self.z.iter_mut().for_each(|z| *z += by);
            if by.abs() <= 1e-16 * (1.0 + self.intercept.abs()) {
                break;
            }
        }
        self.damping = damping;
    }

    /// `xⱼᵀθ − λ₂ⱼwⱼ`.
    fn gradient(&self, alive: &[usize], l2: f64) -> Vec<f64> {
        let one = |&j: &usize| self.problem.x.column(j).dot(&self.theta) - l2 * self.weight(j) * self.w[j];
        if alive.len() < 64 || self.problem.x.nnz() < 1 << 16 {
            return alive.iter().map(one).collect();
        }
        alive.par_iter().with_min_len(16).map(one).collect()
    }

    /// `λ‖w‖₁` and `λ₂‖w‖²` with the weights of the features.
    fn penalty(&self, l1: f64, l2: f64) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for &j in &self.support {
            let (w, o) = (self.w[j], self.weight(j));
            sums.0 += l1 * o * w.abs();
            sums.1 += l2 * o * w * w;
        }
        sums
    }

    fn certify(&self, alive: &[usize], g: &[f64], l1: f64, l2: f64) -> Certificate {
        let largest = alive.iter().zip(g).fold(0.0_f64, |m, (j, g)| m.max(self.size(*g) / self.weight(*j)));
        let scale = if largest > l1 { l1 / largest } else { 1.0 };
        let (penalty, ridge) = self.penalty(l1, l2);
        let primal = self.fit(&self.z) + penalty + 0.5 * ridge;
        let loss = self.settings.loss;
        // Primal minus dual, with Xᵀθ = g + λ₂w put in: every term is at least 0.
        let mut gap = 0.5 * (1.0 - scale).powi(2) * ridge;
        for (i, (y, z)) in self.problem.y.iter().zip(&self.z).enumerate() {
            let s = self.problem.sample_weight.map_or(1.0, |s| s[i]);
            gap += s * loss.fenchel_gap(*y, *z, scale);
        }
        for (&j, &g) in alive.iter().zip(g) {
            if self.w[j] != 0.0 {
                gap += (l1 * self.weight(j) * self.w[j].abs() - scale * self.w[j] * g).max(0.0);
            }
        }
        if self.settings.fit_intercept {
            // The dual wants Σθ = 0; what rounding leaves of it counts against us, times the intercept. That has no
            // natural origin: counted from the best constant model, the mean of y plays no part.
            gap += scale * ((self.intercept - self.constant) * dense::sum(&self.theta)).abs();
        }
        Certificate { primal, gap, scale }
    }

    /// Gram matrix of the columns under the curvature, with the intercept eliminated, and `Xᵀv`.
    fn hessian(&self, set: &[usize]) -> (Vec<f64>, Vec<f64>, f64) {
        let (m, n) = (set.len(), self.z.len());
        let x = self.problem.x;
        let rows: Vec<(Vec<f64>, f64)> = set
            .par_iter()
            .enumerate()
            .map_init(
                || vec![0.0; n],
                |buffer, (a, &j)| {
                    let column = x.column(j);
                    match column {
                        Column::Dense(c) => {
                            buffer.iter_mut().zip(c.iter().zip(&self.v)).for_each(|(b, (c, v))| *b = c * v);
                        }
                        Column::Sparse(i, c) => {
                            i.iter().zip(c).for_each(|(i, c)| buffer[*i as usize] = c * self.v[*i as usize]);
                        }
                    }
                    let row = set[..=a].iter().map(|k| x.column(*k).dot(buffer)).collect();
                    if let Column::Sparse(i, _) = column {
                        i.iter().for_each(|i| buffer[*i as usize] = 0.0);
                    }
                    (row, column.dot(&self.v))
                },
            )
            .collect();
        let sums: Vec<f64> = rows.iter().map(|r| r.1).collect();
        let total = dense::sum(&self.v);
        let centre = self.settings.fit_intercept && total > 0.0;
        let mut gram = vec![0.0; m * m];
        for (a, (row, _)) in rows.iter().enumerate() {
            for (b, v) in row.iter().enumerate() {
                let v = if centre { v - sums[a] * sums[b] / total } else { *v };
                // What centring leaves of a constant column is rounding.
                let v = if a == b && v <= row[a] * 1e-13 { 0.0 } else { v };
                gram[a * m + b] = v;
                gram[b * m + a] = v;
            }
        }
        (gram, sums, total)
    }

    /// One step on `set`: returns the decrease that the model predicted, 0 when none was possible.
    fn step(&mut self, set: &[usize], l1: f64, l2: f64, target: f64) -> f64 {
        self.derivatives();
        let (gram, sums, total) = self.hessian(set);
        let slope = if self.settings.fit_intercept { dense::sum(&self.theta) } else { 0.0 };
        let plain: Vec<f64> = set.iter().map(|j| self.problem.x.column(*j).dot(&self.theta)).collect();
        let centre = self.settings.fit_intercept && total > 0.0;
        let c = (0..set.len()).map(|a| if centre { plain[a] - sums[a] * slope / total } else { plain[a] });
        let mut quad = Quadratic::whole(gram, c.collect());
        quad.positive = self.settings.positive;
        for (a, &j) in set.iter().enumerate() {
            quad.w[a] = self.w[j];
            quad.l1[a] = l1 * self.weight(j);
            quad.l2[a] = l2 * self.weight(j);
        }
        let slots: Vec<usize> = (0..set.len()).collect();
        quad.descend(&slots, target, 500);
        let d: Vec<f64> = set.iter().zip(&quad.w).map(|(j, w)| w - self.w[*j]).collect();
        let db = if centre { (slope - dense::dot(&sums, &d)) / total } else { 0.0 };
        let mut along = vec![db; self.z.len()];
        for (&j, &d) in set.iter().zip(&d) {
            if d != 0.0 {
                self.problem.x.column(j).add_to(d, &mut along);
            }
        }
        let old: Vec<f64> = set.iter().map(|j| self.w[*j]).collect();
        // What `t` of the step changes, coordinate by coordinate: slopes of the fit and of the penalty cancel here.
        let change = |t: f64, smooth: bool| -> f64 {
            let one = |a: usize| {
                let (old, by) = (old[a], t * d[a]);
                let size =
                    if old * (old + by) > 0.0 { by * old.signum() } else { (old + by).abs() - old.abs() };
                quad.l1[a] * size + quad.l2[a] * by * (old + 0.5 * by)
                    - if smooth { plain[a] * by } else { 0.0 }
            };
            (0..set.len()).map(one).sum()
        };
        let predicted = change(1.0, true) - slope * db;
        // Errors of the two sums below, against which no decrease can be seen: n terms of either sign. A full
        // step that changes no more than that is taken, for the gradient still improves.
        let terms = self.theta.iter().zip(&along).map(|(t, a)| (t * a).abs()).sum::<f64>();
        let rounding = f64::EPSILON * (16.0 + (self.z.len() as f64).sqrt()) * terms;
        if predicted.is_nan() || predicted > rounding {
            return 0.0;
        }
        let loss = self.settings.loss;
        let mut t = 1.0;
        for _ in 0..40 {
            let fit: f64 = (0..self.z.len())
                .map(|i| {
                    let s = self.problem.sample_weight.map_or(1.0, |s| s[i]);
                    s * loss.difference(self.problem.y[i], self.z[i], t * along[i])
                })
                .sum();
            let value = fit + change(t, false);
            if value.is_finite() && value <= 1e-4 * t * predicted + rounding {
                let full = t.total_cmp(&1.0).is_eq();
                self.z.iter_mut().zip(&along).for_each(|(z, a)| *z += t * a);
                self.intercept += t * db;
                for (a, &j) in set.iter().enumerate() {
                    self.w[j] = if full { quad.w[a] } else { old[a] + t * d[a] };
                }
                self.damping =
                    if full { (0.1 * self.damping).max(1e-8) } else { (100.0 * self.damping).min(1.0) };
                return if -predicted <= rounding { 0.0 } else { -predicted };
            }
            t *= 0.5;
        }
        self.damping = 1.0;
        0.0
    }

    /// `Xw + b` from its definition, against the drift of many steps.
    fn refresh(&mut self) {
        self.z.fill(self.intercept);
        for &j in &self.support {
            self.problem.x.column(j).add_to(self.w[j], &mut self.z);
        }
    }
}

impl Engine for Newton<'_> {
    type Model = Coefficients;

    fn alpha_max(&self) -> f64 {
        self.alpha_max
    }

    fn start_at(&mut self, point: &Coefficients) {
        for (&j, &v) in point.indices.iter().zip(&point.values) {
            let v = if self.settings.positive { v.max(0.0) } else { v };
            if v != 0.0 {
                self.problem.x.column(j).add_to(v, &mut self.z);
                self.w[j] = v;
                self.support.push(j);
            }
        }
        if self.settings.fit_intercept {
            let delta = point.intercept - self.intercept;
            self.intercept = point.intercept;
            self.z.iter_mut().for_each(|z| *z += delta);
        }
    }

    fn solve(&mut self, step: Step, monitor: &mut Monitor<'_>) -> Result<Solution<Coefficients>, SolveError> {
        let begin = monitor.seconds();
        let total = self.total;
        let l1 = step.alpha * total * self.settings.l1_ratio;
        let l2 = step.alpha * total * (1.0 - self.settings.l1_ratio);
        let tolerance = self.settings.tolerance * self.reference;
        let mut working = WorkingSet::new(self.w.len(), |j| self.norms_sq[*j] > 0.0);
        let mut target = 0.1 * tolerance;
        let mut strong = (2.0 * step.alpha - step.previous).max(0.0) * total * self.settings.l1_ratio;
        let (mut trace, mut iterations, mut stuck) = (vec![], 0, 0);
        let (mut best_gap, mut best_primal) = (f64::INFINITY, f64::INFINITY);
        self.refresh();
        let (status, certificate) = loop {
            if self.settings.fit_intercept {
                self.fit_intercept();
            }
            self.derivatives();
            let g = self.gradient(&working.alive, l2);
            let certificate = self.certify(&working.alive, &g, l1, l2);
            if !certificate.gap.is_finite() {
                return Err(SolveError::breakdown(
                    "proximal Newton",
                    "the objective overflowed",
                    "scale the columns of x",
                ));
            }
            let observed =
                monitor.record(&mut trace, iterations, certificate.primal / total, certificate.gap / total);
            if certificate.gap <= tolerance {
                break (Status::Converged, certificate);
            }
            if let ControlFlow::Break(status) = observed {
                break (status, certificate);
            }
            if iterations >= self.settings.max_iterations {
                break (Status::MaxIterations, certificate);
            }
            // The gap need not fall while a working set is still growing or its signs are not found; the
            // objective does.
            let falls = certificate.gap < 0.9 * best_gap || certificate.primal < best_primal * (1.0 - 1e-12);
            stuck = if falls { 0 } else { stuck + 1 };
            best_gap = best_gap.min(certificate.gap);
            best_primal = best_primal.min(certificate.primal);
            if stuck >= 10 {
                break (Status::Stalled, certificate);
            }
            if stuck == 5 {
                self.refresh();
                self.damping = 1.0;
            }
            let smooth =
                (self.largest_weight * self.settings.loss.smoothness()).max(if l2 > 0.0 { 1.0 } else { 0.0 });
            let radius = (2.0 * smooth * certificate.gap.max(0.0)).sqrt();
            let bounds = Bounds { l1, scale: certificate.scale, radius, strong };
            let (mut set, found) = working.grow(&g, &self.support, 10, &bounds, |j, g| Feature {
                weight: self.weight(j),
                size: self.size(g),
                norm: (self.norms_sq[j] + l2 * self.weight(j)).sqrt(),
                is_zero: self.w[j] == 0.0,
            });
            set.sort_unstable();
            if !found && iterations > 0 {
                target *= 0.03;
            }
            // While features are still missing, a rough solution does, unless that leads nowhere.
            let rough = if found { target.max(0.03 * 0.1_f64.powi(stuck) * certificate.gap) } else { target };
            for _ in 0..30 {
                if self.step(&set, l1, l2, 0.01 * rough) <= rough {
                    break;
                }
            }
            strong = l1;
            self.support = set.into_iter().filter(|j| self.w[*j] != 0.0).collect();
            iterations += 1;
        };
        let x = Coefficients::from_dense(&self.w, self.intercept);
        let gap = certificate.gap.max(0.0) / total;
        Ok(Solution {
            x,
            status,
            objective: certificate.primal / total,
            residuals: vec![Residual { name: "duality gap", value: gap }],
            iterations,
            trace,
            seconds: monitor.seconds() - begin,
        })
    }
}
