//! Block updates: the change of the block, given the state.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::problem::Tracked;
use super::{BcdProblem, Prox, Update};
use crate::SolveError;
use crate::glm::quadratic::Quadratic;
use crate::optim::Backtracking;
use crate::prox::soft;

/// `H⁺`: Cholesky, or the pseudo-inverse when H is singular.
pub(super) enum Inverse {
    Cholesky(faer::linalg::solvers::Llt<f64>),
    /// Eigenvectors of the non-zero eigenvalues and their inverses.
    Spectral(Mat<f64>, Vec<f64>),
}

impl Inverse {
    pub(super) fn new(h: Mat<f64>) -> Self {
        let t = h.nrows();
        // A factor whose diagonal spans more than half the digits is as good as singular.
        if let Ok(factor) = h.llt(Side::Lower) {
            let l = factor.L();
            let largest = (0..t).map(|i| l[(i, i)]).fold(0.0, f64::max);
            if (0..t).all(|i| l[(i, i)] > 1e-7 * largest) {
                return Self::Cholesky(factor);
            }
        }
        let Ok(eigen) = h.self_adjoint_eigen(Side::Lower) else {
            return Self::Spectral(Mat::zeros(t, 0), vec![]);
        };
        let (u, s) = (eigen.U(), eigen.S());
        let largest = (0..t).map(|i| s[i].abs()).fold(0.0, f64::max);
        let kept: Vec<usize> = (0..t).filter(|i| s[*i] > largest * 1e-12).collect();
        let basis = Mat::from_fn(t, kept.len(), |r, c| u[(r, kept[c])]);
        Self::Spectral(basis, kept.iter().map(|i| 1.0 / s[*i]).collect())
    }

    pub(super) fn apply(&self, g: &[f64]) -> Vec<f64> {
        let rhs = Mat::from_fn(g.len(), 1, |i, _| g[i]);
        let out = match self {
            Self::Cholesky(factor) => factor.solve(&rhs),
            Self::Spectral(u, inverse) => {
                let c = u.transpose() * &rhs;
                u * Mat::from_fn(inverse.len(), 1, |i, _| inverse[i] * c[(i, 0)])
            }
        };
        (0..g.len()).map(|i| out[(i, 0)]).collect()
    }
}

pub(super) fn largest_eigenvalue(h: &Mat<f64>) -> f64 {
    match h.self_adjoint_eigenvalues(Side::Lower) {
        Ok(values) => values.iter().copied().fold(0.0, f64::max),
        // The row sums bound it.
        Err(_) => (0..h.nrows()).map(|i| (0..h.ncols()).map(|j| h[(i, j)].abs()).sum()).fold(0.0, f64::max),
    }
}

/// The change of `block`; `adaptive` holds the estimates found by doubling, one per fixed block.
pub(super) fn update(
    state: &Tracked<'_>,
    block: &[usize],
    rule: Update,
    prox: Prox,
    inverse: Option<&Inverse>,
    adaptive: &mut f64,
) -> Result<Vec<f64>, SolveError> {
    let g: Vec<f64> = block.iter().map(|i| state.g[*i]).collect();
    let x: Vec<f64> = block.iter().map(|i| state.x[*i]).collect();
    Ok(match rule {
        Update::Lipschitz { adaptive: false } => {
            let l = largest_eigenvalue(&state.bound(block));
            g.iter().map(|g| if l > 0.0 { -g / l } else { 0.0 }).collect()
        }
        Update::Lipschitz { adaptive: true } => {
            let (before, norm) = (state.value(), g.iter().map(|g| g * g).sum::<f64>());
            let mut l = adaptive.max(1.0);
            let mut d: Vec<f64> = g.iter().map(|g| -g / l).collect();
            for _ in 0..200 {
                let slack = 1e-14 * before.abs();
                if norm == 0.0 || state.value_after(block, &d) <= before - norm / (2.0 * l) + slack {
                    break;
                }
                l *= 2.0;
                d = g.iter().map(|g| -g / l).collect();
            }
            *adaptive = l;
            d
        }
        Update::Matrix => {
            let d = match inverse {
                Some(inverse) => inverse.apply(&g),
                None => Inverse::new(state.bound(block)).apply(&g),
            };
            d.into_iter().map(|v| -v).collect()
        }
        Update::Newton => {
            let d: Vec<f64> = Inverse::new(state.hessian(block)).apply(&g).into_iter().map(|v| -v).collect();
            search(state, block, &g, d)
        }
        Update::CubicNewton => cubic(state, block, &g),
        Update::ProjectedGradient => {
            let l = largest_eigenvalue(&state.bound(block));
            if l <= 0.0 {
                return Ok(vec![0.0; block.len()]);
            }
            let step = |x: f64, g: f64| match prox {
                Prox::NonNegative { lambda } => (x - (g + lambda) / l).max(0.0),
                Prox::L1 { lambda } => soft(x - g / l, lambda / l),
                Prox::None => x - g / l,
            };
            x.iter().zip(&g).map(|(x, g)| step(*x, *g) - x).collect()
        }
        Update::ProjectedNewton => projected_newton(state, block, &x, &g, prox),
        Update::TwoMetric => two_metric(state, block, &x, &g, prox),
        Update::Tree => {
            let BcdProblem::Graph { q, .. } = state.problem else { return Ok(vec![0.0; block.len()]) };
            // Q_bb d = −g_b is the same solve, for the change instead of the point.
            let rhs: Vec<f64> = g.iter().map(|v| -v).collect();
            super::forest::solve_forest(q, block, &rhs)?
        }
    })
}

/// Armijo along `d` with the constant of the reference code.
fn search(state: &Tracked<'_>, block: &[usize], g: &[f64], d: Vec<f64>) -> Vec<f64> {
    let slope: f64 = g.iter().zip(&d).map(|(g, d)| g * d).sum();
    let scaled = |t: f64| -> Vec<f64> { d.iter().map(|d| t * d).collect() };
    let rule = Backtracking { armijo: 1e-10, ..Backtracking::default() };
    match rule.search(state.value(), slope, 1.0, |t| state.value_after(block, &scaled(t))) {
        Some(found) => scaled(found.step),
        None => vec![0.0; d.len()],
    }
}

/// Minimises `gᵀd + ½dᵀ∇²d + (M/6)‖d‖³`: d = −(∇² + ½Mr I)⁻¹g with r = ‖d‖, by bisection on r.
fn cubic(state: &Tracked<'_>, block: &[usize], g: &[f64]) -> Vec<f64> {
    let h = state.hessian(block);
    let m = state.third_bound(block);
    let norm = |d: &[f64]| d.iter().map(|v| v * v).sum::<f64>().sqrt();
    let at = |r: f64| {
        let shifted =
            Mat::from_fn(h.nrows(), h.ncols(), |i, j| h[(i, j)] + if i == j { 0.5 * m * r } else { 0.0 });
        Inverse::new(shifted).apply(g)
    };
    let (mut low, mut high) = (0.0, norm(&at(0.0)));
    if m > 0.0 {
        // ‖d(r)‖ falls in r: the root lies in [0, ‖d(0)‖]; for a singular Hessian, below √(2‖g‖/M).
        high = f64::min(high.max(f64::MIN_POSITIVE), (2.0 * norm(g) / m).sqrt()).max(low);
        for _ in 0..60 {
            let r = f64::midpoint(low, high);
            if norm(&at(r)) > r {
                low = r;
            } else {
                high = r;
            }
        }
    }
    let d = at(if m > 0.0 { high } else { 0.0 }).into_iter().map(|v| -v).collect();
    if m > 0.0 { d } else { search(state, block, g, d) }
}

/// The quadratic model with the true Hessian of the block, minimised exactly under the bound or
/// the l1 term, then a search along the way there (one step for quadratics).
fn projected_newton(state: &Tracked<'_>, block: &[usize], x: &[f64], g: &[f64], prox: Prox) -> Vec<f64> {
    let h = state.hessian(block);
    let t = block.len();
    let mut quad =
        Quadratic::whole((0..t * t).map(|k| h[(k / t, k % t)]).collect(), g.iter().map(|g| -g).collect());
    let lambda = match prox {
        Prox::NonNegative { lambda } | Prox::L1 { lambda } => lambda,
        Prox::None => 0.0,
    };
    quad.w.copy_from_slice(x);
    quad.l1.fill(lambda);
    quad.positive = matches!(prox, Prox::NonNegative { .. });
    let scale: f64 = x.iter().zip(g).map(|(x, g)| (x * g).abs()).sum::<f64>() + 1e-300;
    let slots: Vec<usize> = (0..t).collect();
    quad.descend(&slots, 1e-18 * scale, 2000);
    let d: Vec<f64> = quad.w.iter().zip(x).map(|(w, x)| w - x).collect();
    if matches!(state.problem, BcdProblem::LeastSquares { .. } | BcdProblem::Graph { .. }) {
        return d;
    }
    let penalty = |s: f64| -> f64 { x.iter().zip(&d).map(|(x, d)| lambda * (x + s * d).abs()).sum() };
    let slope: f64 = g.iter().zip(&d).map(|(g, d)| g * d).sum::<f64>() + penalty(1.0) - penalty(0.0);
    let scaled = |s: f64| -> Vec<f64> { d.iter().map(|d| s * d).collect() };
    let rule = Backtracking { armijo: 1e-10, ..Backtracking::default() };
    let start = state.value() + penalty(0.0);
    let found = rule.search(start, slope, 1.0, |s| state.value_after(block, &scaled(s)) + penalty(s));
    match found {
        Some(found) if found.step < 1.0 => scaled(found.step),
        Some(_) => d,
        None => vec![0.0; t],
    }
}

/// Two-metric projection: diagonal scaling where the bound is active, Newton elsewhere, and an
/// Armijo search along the projected path.
fn two_metric(state: &Tracked<'_>, block: &[usize], x: &[f64], g: &[f64], prox: Prox) -> Vec<f64> {
    let lambda = if let Prox::NonNegative { lambda } = prox { lambda } else { 0.0 };
    let g: Vec<f64> = g.iter().map(|g| g + lambda).collect();
    let largest = state.x.iter().copied().fold(0.0, f64::max);
    let active: Vec<bool> = x.iter().zip(&g).map(|(x, g)| *x <= 1e-4 * largest && *g > 0.0).collect();
    let free: Vec<usize> = (0..block.len()).filter(|k| !active[*k]).collect();
    let nodes: Vec<usize> = free.iter().map(|k| block[*k]).collect();
    let part: Vec<f64> = free.iter().map(|k| g[*k]).collect();
    let mut d: Vec<f64> = block
        .iter()
        .zip(&g)
        .map(|(i, g)| if state.lipschitz[*i] > 0.0 { -g / state.lipschitz[*i] } else { 0.0 })
        .collect();
    for (k, v) in free.iter().zip(Inverse::new(state.hessian(&nodes)).apply(&part)) {
        d[*k] = -v;
    }
    let change = |t: f64| -> Vec<f64> { x.iter().zip(&d).map(|(x, d)| (x + t * d).max(0.0) - x).collect() };
    let before = state.value() + lambda * x.iter().sum::<f64>();
    let mut t = 1.0;
    for _ in 0..60 {
        let c = change(t);
        let value = state.value_after(block, &c) + lambda * x.iter().zip(&c).map(|(x, c)| x + c).sum::<f64>();
        // Bertsekas: the free part by its slope, the active part by its move.
        let slope: f64 = (0..c.len()).map(|k| g[k] * if active[k] { c[k] } else { t * d[k] }).sum();
        if value.is_finite() && value <= before + 1e-10 * slope {
            return c;
        }
        t *= 0.5;
    }
    vec![0.0; block.len()]
}
