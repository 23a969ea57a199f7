//! Squared loss: working sets over a Gram matrix or over the residual.

use std::ops::ControlFlow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use super::anderson::Anderson;
use super::prepare::Prepared;
use super::quadratic::Quadratic;
use super::working_set::{Bounds, Feature, WorkingSet};
use super::{Coefficients, Engine, GlmSettings, GramChoice, Problem, Step};
use crate::linop::dense;
use crate::prox::{positive_soft, soft};
use crate::{Csc, Design, LinOp, Monitor, Residual, Solution, SolveError, Status};

const NONE: u32 = u32::MAX;
/// Largest Gram matrix.
const MOST_SLOTS: usize = 4096;

pub(super) struct Squared<'a> {
    data: Prepared<'a>,
    settings: &'a GlmSettings,
    /// `X̃ᵀỹ`.
    q: Vec<f64>,
    /// `‖ỹ‖²`.
    yy: f64,
    w: Vec<f64>,
    /// Features with a non-zero coefficient, in no order.
    support: Vec<usize>,
    /// The residual is `r + shift·ones`; unused with the whole Gram matrix.
    r: Vec<f64>,
    shift: f64,
    quad: Quadratic,
    slot_of: Vec<u32>,
    whole: bool,
    /// Scratch: a dense column.
    column: Vec<f64>,
}

/// What one look at the whole problem tells.
struct Certificate {
    primal: f64,
    gap: f64,
    /// Factor that makes the residual feasible for the dual.
    scale: f64,
}

impl<'a> Squared<'a> {
    pub(super) fn new(problem: &Problem<'a>, settings: &'a GlmSettings, n_alphas: usize) -> Self {
        let data = Prepared::new(problem, settings.fit_intercept);
        let (n, p) = (problem.x.n_rows(), data.n_cols());
        let mut q = vec![0.0; p];
        data.design.apply_t(&data.y, &mut q);
        let yy = dense::norm_sq(&data.y);
        let whole = match settings.gram {
            GramChoice::Always => true,
            GramChoice::Never => false,
            GramChoice::Auto => gram_pays(&data.design, n_alphas),
        };
        let quad = if whole { Quadratic::whole(gram(&data), q.clone()) } else { Quadratic::default() };
        let slot_of = if whole { (0..p as u32).collect() } else { vec![NONE; p] };
        let (r, column) = if whole { (vec![], vec![]) } else { (data.y.clone(), vec![0.0; n]) };
        let mut this = Self {
            data,
            settings,
            q,
            yy,
            w: vec![0.0; p],
            support: vec![],
            r,
            shift: 0.0,
            quad,
            slot_of,
            whole,
            column,
        };
        this.quad.positive = settings.positive;
        this
    }

    fn weight(&self, j: usize) -> f64 {
        self.settings.penalty_weights.as_ref().map_or(1.0, |w| w[j])
    }

    /// `X̃ⱼᵀr − λ₂ⱼwⱼ` for the features of `alive`.
    fn gradient(&self, alive: &[usize], l2: f64) -> Vec<f64> {
        let one = |&j: &usize| {
            let plain = if self.whole { self.quad.c[j] } else { self.data.dot(j, &self.r, self.shift) };
            plain - l2 * self.weight(j) * self.w[j]
        };
        if self.whole || alive.len() < 512 {
            return alive.iter().map(one).collect();
        }
        alive.par_iter().with_min_len(256).map(one).collect()
    }

    fn residual_norm_sq(&self) -> f64 {
        if self.whole {
            // ‖ỹ − X̃w‖² = ‖ỹ‖² − wᵀ(q + c) with c = q − Gw.
            let cross: f64 = self.support.iter().map(|j| self.w[*j] * (self.q[*j] + self.quad.c[*j])).sum();
            return (self.yy - cross).max(0.0);
        }
        if self.data.is_centred_implicitly() {
            return self.r.iter().zip(&self.data.ones).map(|(r, d)| (r + self.shift * d).powi(2)).sum();
        }
        dense::norm_sq(&self.r)
    }

    fn certify(&self, alive: &[usize], g: &[f64], l1: f64, l2: f64) -> Certificate {
        let mut largest = 0.0_f64;
        for (&j, &g) in alive.iter().zip(g) {
            let size = if self.settings.positive { g } else { g.abs() };
            largest = largest.max(size / self.weight(j));
        }
        let (mut penalty, mut ridge, mut fit) = (0.0, 0.0, 0.0);
        for &j in &self.support {
            let (w, o) = (self.w[j], self.weight(j));
            penalty += l1 * o * w.abs();
            ridge += l2 * o * w * w;
            fit += self.q[j] * w;
        }
        let rr = self.residual_norm_sq();
        let primal = 0.5 * rr + 0.5 * ridge + penalty;
        // The dual point is a multiple of the residual of the problem in which λ₂ is part of X.
        let (norm, yr) = (rr + ridge, self.yy - fit);
        let best = if norm > 0.0 { (yr / norm).max(0.0) } else { 1.0 };
        let scale = if largest > 0.0 { best.min(l1 / largest) } else { best };
        let dual = scale * yr - 0.5 * scale * scale * norm;
        Certificate { primal, gap: primal - dual, scale }
    }

    /// Makes sure that the features have slots.
    fn cache(&mut self, features: &[usize]) {
        for &j in features {
            if self.slot_of[j] != NONE {
                continue;
            }
            let column = self.data.design.column(j);
            column.add_to(1.0, &mut self.column);
            let (mu, design) = (self.data.mu(j), &self.data.design);
            let mut products: Vec<f64> = self
                .quad
                .features
                .iter()
                .map(|k| {
                    let plain = design.column(*k).dot(&self.column);
                    self.data.sums.get(*k).map_or(plain, |m| plain - mu * m)
                })
                .collect();
            products.push(self.data.norms_sq[j]);
            match column {
                crate::linop::Column::Dense(_) => self.column.fill(0.0),
                crate::linop::Column::Sparse(i, _) => i.iter().for_each(|i| self.column[*i as usize] = 0.0),
            }
            let c = self.data.dot(j, &self.r, self.shift);
            self.slot_of[j] = self.quad.len() as u32;
            self.quad.push(j, &products, c, self.w[j]);
        }
    }

    /// Moves the residual by a change of `w[j]`.
    fn move_residual(&mut self, j: usize, delta: f64) {
        self.data.design.column(j).add_to(-delta, &mut self.r);
        self.shift += delta * self.data.mu(j);
    }

    /// Solves over `set` in the Gram matrix; the residual follows.
    fn solve_gram(&mut self, set: &[usize], l1: f64, l2: f64, target: f64) {
        if !self.whole {
            self.cache(set);
            // Slots outside the set may be stale: refresh those that are used.
            for &j in set {
                let a = self.slot_of[j] as usize;
                self.quad.c[a] = self.data.dot(j, &self.r, self.shift);
                self.quad.w[a] = self.w[j];
            }
        }
        let slots: Vec<usize> = set.iter().map(|j| self.slot_of[*j] as usize).collect();
        for (&j, &a) in set.iter().zip(&slots) {
            self.quad.l1[a] = l1 * self.weight(j);
            self.quad.l2[a] = l2 * self.weight(j);
        }
        self.quad.descend(&slots, target, 2000);
        for (&j, &a) in set.iter().zip(&slots) {
            let delta = self.quad.w[a] - self.w[j];
            if delta != 0.0 {
                if !self.whole {
                    self.move_residual(j, delta);
                }
                self.w[j] = self.quad.w[a];
            }
        }
    }

    /// Solves over `set` by sweeps that update the residual.
    fn solve_residual(&mut self, set: &[usize], l1: f64, l2: f64, target: f64) {
        let mut anderson = Anderson::default();
        for _ in 0..2000 {
            let mut progress = 0.0;
            for &j in set {
                let g = self.data.norms_sq[j];
                if g <= 0.0 {
                    continue;
                }
                let (old, o) = (self.w[j], self.weight(j));
                let u = g * old + self.data.dot(j, &self.r, self.shift);
                let curvature = g + l2 * o;
                let new = if self.settings.positive { positive_soft(u, l1 * o) } else { soft(u, l1 * o) }
                    / curvature;
                if new != old {
                    self.move_residual(j, new - old);
                    self.w[j] = new;
                    progress += curvature * (new - old).powi(2);
                }
            }
            if progress <= target {
                return;
            }
            if let Some(point) = anderson.push(set.iter().map(|j| self.w[*j]).collect()) {
                self.try_point(set, &point, l1, l2);
                anderson.clear();
            }
        }
    }

    /// Goes to an extrapolated point when the objective over `set` is lower there.
    fn try_point(&mut self, set: &[usize], point: &[f64], l1: f64, l2: f64) {
        let value = |this: &Self| -> f64 {
            let penalty: f64 = set
                .iter()
                .map(|&j| this.weight(j) * (l1 * this.w[j].abs() + 0.5 * l2 * this.w[j].powi(2)))
                .sum();
            0.5 * this.residual_norm_sq() + penalty
        };
        let before = value(self);
        let old: Vec<f64> = set.iter().map(|j| self.w[*j]).collect();
        let (r, shift) = (self.r.clone(), self.shift);
        for (&j, &v) in set.iter().zip(point) {
            let v = if self.settings.positive { v.max(0.0) } else { v };
            if v != self.w[j] {
                self.move_residual(j, v - self.w[j]);
                self.w[j] = v;
            }
        }
        let after = value(self);
        if after.is_nan() || after >= before {
            (self.r, self.shift) = (r, shift);
            set.iter().zip(old).for_each(|(j, v)| self.w[*j] = v);
        }
    }

    /// Whether a Gram update, as long as the cache, is cheaper than an update of the residual.
    fn prefers_gram(&self, set: &[usize]) -> bool {
        if self.whole {
            return true;
        }
        let missing = set.iter().filter(|j| self.slot_of[**j] == NONE).count();
        let slots = self.quad.len() + missing;
        let nnz: usize = set.iter().map(|j| self.data.design.column(*j).values().len()).sum();
        // Random access costs several times as much as a stream.
        slots <= MOST_SLOTS && slots <= 16 * (nnz / set.len().max(1)).max(4)
    }

    /// The residual from its definition, against the drift of many updates.
    fn refresh(&mut self) {
        if self.whole {
            return;
        }
        self.r.copy_from_slice(&self.data.y);
        self.shift = 0.0;
        for &j in &self.support {
            self.data.design.column(j).add_to(-self.w[j], &mut self.r);
            self.shift += self.w[j] * self.data.mu(j);
        }
    }
}

impl Engine for Squared<'_> {
    type Model = Coefficients;

    fn alpha_max(&self) -> f64 {
        let size = |j: usize| if self.settings.positive { self.q[j] } else { self.q[j].abs() };
        let largest = (0..self.q.len())
            .filter(|j| self.data.norms_sq[*j] > 0.0)
            .fold(0.0_f64, |m, j| m.max(size(j) / self.weight(j)));
        largest / (self.data.total * self.settings.l1_ratio)
    }

    fn start_at(&mut self, point: &Coefficients) {
        for (&j, &v) in point.indices.iter().zip(&point.values) {
            let v = if self.settings.positive { v.max(0.0) } else { v };
            if v == 0.0 || self.data.norms_sq[j] <= 0.0 {
                continue;
            }
            if self.whole {
                self.quad.shift(j, v);
            } else {
                self.move_residual(j, v);
            }
            self.w[j] = v;
            self.support.push(j);
        }
    }

    fn solve(&mut self, step: Step, monitor: &mut Monitor<'_>) -> Result<Solution<Coefficients>, SolveError> {
        let begin = monitor.seconds();
        let total = self.data.total;
        let l1 = step.alpha * total * self.settings.l1_ratio;
        let l2 = step.alpha * total * (1.0 - self.settings.l1_ratio);
        if l2 > 0.0 {
            self.quad.forget_factor();
        }
        let tolerance = self.settings.tolerance * 0.5 * self.yy;
        let mut working = WorkingSet::new(self.w.len(), |j| self.data.norms_sq[*j] > 0.0);
        let mut target = 0.003 * tolerance;
        let mut strong = (2.0 * step.alpha - step.previous).max(0.0) * total * self.settings.l1_ratio;
        let (mut trace, mut iterations, mut best_gap, mut stuck) = (vec![], 0, f64::INFINITY, 0);
        let mut refreshed = false;
        let (status, certificate) = loop {
            let g = self.gradient(&working.alive, l2);
            let certificate = self.certify(&working.alive, &g, l1, l2);
            if !certificate.gap.is_finite() {
                return Err(SolveError::breakdown(
                    "coordinate descent",
                    "the objective overflowed",
                    "scale the columns of x and y",
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
            // No longer falling: first remove the drift, then give up.
            stuck = if certificate.gap < 0.9 * best_gap { 0 } else { stuck + 1 };
            best_gap = best_gap.min(certificate.gap);
            if stuck >= 8 {
                if refreshed || self.whole {
                    break (Status::Stalled, certificate);
                }
                refreshed = true;
                stuck = 0;
                self.refresh();
                continue;
            }
            let radius = (2.0 * certificate.gap.max(0.0)).sqrt();
            let bounds = Bounds { l1, scale: certificate.scale, radius, strong };
            let positive = self.settings.positive;
            let (set, found) = working.grow(&g, &self.support, 100, &bounds, |j, g| Feature {
                weight: self.weight(j),
                size: if positive { g } else { g.abs() },
                norm: (self.data.norms_sq[j] + l2 * self.weight(j)).sqrt(),
                is_zero: self.w[j] == 0.0,
            });
            if !found && iterations > 0 {
                // The set was right and not solved well enough.
                target *= 0.03;
            }
            if self.prefers_gram(&set) {
                self.solve_gram(&set, l1, l2, target);
            } else {
                self.solve_residual(&set, l1, l2, target);
            }
            strong = l1;
            self.support = set.into_iter().filter(|j| self.w[*j] != 0.0).collect();
            iterations += 1;
        };
        let mut x = Coefficients::from_dense(&self.w, 0.0);
        x.intercept = self.data.intercept(&x.indices, &x.values);
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

/// Whether forming the whole Gram matrix is cheaper than what it saves.
fn gram_pays(design: &Design, n_alphas: usize) -> bool {
    let (n, p) = (design.n_rows(), design.n_cols());
    if p > 2048 || n < 2 * p || p == 0 {
        return false;
    }
    match design {
        Design::Dense(_) => p <= 64 + 20 * n_alphas,
        Design::Csc(a) => {
            let mut row = vec![0_usize; n];
            a.indices().iter().for_each(|i| row[*i as usize] += 1);
            let work: usize = row.iter().map(|k| k * k).sum();
            work <= (20 + 20 * n_alphas).saturating_mul(a.nnz())
        }
    }
}

/// `X̃ᵀX̃`, row-major.
fn gram(data: &Prepared<'_>) -> Vec<f64> {
    let p = data.n_cols();
    let mut out = match data.design.as_ref() {
        Design::Dense(a) => {
            let mut g = Mat::<f64>::zeros(p, p);
            // Sequential: the order of summation must not depend on the number of threads.
            matmul(g.as_mut(), Accum::Replace, a.transpose(), a.as_ref(), 1.0, Par::Seq);
            (0..p * p).map(|k| g[(k % p, k / p)]).collect()
        }
        Design::Csc(a) => sparse_gram(a),
    };
    for j in 0..p {
        if data.is_centred_implicitly() {
            for k in 0..p {
                out[j * p + k] -= data.mu[j] * data.sums[k];
            }
        }
        out[j * p + j] = data.norms_sq[j];
    }
    out
}

fn sparse_gram(a: &Csc) -> Vec<f64> {
    let (rows, p) = (a.to_csr(), a.n_cols());
    let n = a.n_rows();
    // A fixed number of blocks, so that the sum does not depend on the number of threads.
    let blocks: Vec<Vec<f64>> = (0..4)
        .into_par_iter()
        .map(|b| {
            let mut g = vec![0.0; p * p];
            for i in b * n / 4..(b + 1) * n / 4 {
                let (columns, values) = rows.row(i);
                for (k, (&j, &v)) in columns.iter().zip(values).enumerate() {
                    let line = &mut g[j as usize * p..(j as usize + 1) * p];
                    for (&l, &u) in columns[k..].iter().zip(&values[k..]) {
                        line[l as usize] += v * u;
                    }
                }
            }
            g
        })
        .collect();
    let mut out = blocks[0].clone();
    for block in &blocks[1..] {
        out.iter_mut().zip(block).for_each(|(o, b)| *o += b);
    }
    for j in 0..p {
        for k in 0..j {
            out[j * p + k] = out[k * p + j];
        }
    }
    out
}
