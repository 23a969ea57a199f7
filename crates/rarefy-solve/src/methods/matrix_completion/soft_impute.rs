//! Soft-impute: the convex baseline.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::basis::{leading, left_singular, product, to_columns, to_rows};
use super::observed::Slices;
use super::{Centre, Factors, Observed, Offsets};
use crate::error::check_setting;
use crate::linop::dense::{dot, norm_sq};
use crate::{Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`soft_impute`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftImputeSettings {
    /// λ, above 0; the answer is 0 from [`largest_regularisation`] on. House default: 1.
    pub regularisation: f64,
    /// Largest rank kept, in 1..=min(m, n). Where the answer needs more, the gap stays open and says so.
    pub rank: usize,
    /// Relative duality gap at which it ends, 0 or more. House default: 1e-6.
    pub tolerance: f64,
    /// Limit of iterations. House default: 500.
    pub max_iterations: usize,
    /// What is taken off first. House default: nothing.
    pub centre: Centre,
    /// Seed of the start.
    pub seed: u64,
}

impl Default for SoftImputeSettings {
    fn default() -> Self {
        Self {
            regularisation: 1.0,
            rank: 50,
            tolerance: 1e-6,
            max_iterations: 500,
            centre: Centre::None,
            seed: 0,
        }
    }
}

impl SoftImputeSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let l = self.regularisation;
        check_setting(l > 0.0 && l.is_finite(), "regularisation", l, "above 0 and finite")?;
        check_setting(self.rank > 0, "rank", self.rank, "at least 1")?;
        let t = self.tolerance;
        check_setting(t >= 0.0 && t.is_finite(), "tolerance", t, "0 or more and finite")?;
        super::check_centre(self.centre)
    }
}

/// The spectral norm of the entries: from this regularisation on the answer is 0.
#[must_use]
pub fn largest_regularisation(data: &Observed) -> f64 {
    leading(&data.by_row, &data.by_col, 1, 0).1[0]
}

/// Minimises `½ Σ_Ω (x_ij − Z_ij)² + λ‖Z‖_*` (Mazumder, Hastie, Tibshirani, JMLR 2010) by a proximal gradient step on
/// a block of singular vectors that is carried over (rank-restricted, one power iteration a step). Convex: the duality
/// gap certifies the answer. `from` is a warm start, as along a path of falling λ. Weights must all be 1.
///
/// An iteration costs `4·nnz·r + O((m + n)r²)` with `r` the rank kept plus 5.
///
/// # Errors
/// [`SolveError::Setting`], [`SolveError::Dimension`] for a start of another shape, [`SolveError::Invalid`] for
/// weights, [`SolveError::Breakdown`] on overflow.
pub fn soft_impute(
    data: &Observed,
    from: Option<&Factors>,
    settings: &SoftImputeSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Factors>, SolveError> {
    settings.validate()?;
    let (m, n) = (data.n_rows(), data.n_cols());
    let most = m.min(n);
    check_setting(
        settings.rank <= most,
        "rank",
        settings.rank,
        "at most the smaller dimension of the matrix",
    )?;
    if data.by_row.weights.is_some() {
        return Err(SolveError::invalid(
            "data",
            "entries without weights",
            "weights",
            "use `solve`, which takes them",
        ));
    }
    if let Some(f) = from {
        crate::error::check_dimension("from", m * f.rank, "rows times rank", f.u.len())?;
        crate::error::check_dimension("from", n * f.rank, "columns times rank", f.v.len())?;
        crate::error::check_finite("from", f.u.iter().chain(&f.v))?;
    }
    let offsets = Offsets::fit(data, settings.centre);
    let data = data.without(&offsets);
    let total = norm_sq(&data.by_row.values);
    if !total.is_finite() {
        return Err(super::overflow());
    }
    let b = (settings.rank + 5).min(most);
    let lambda = settings.regularisation;
    // Z = U·Vᵀ with U = Q·D: row-major; X holds the block of right vectors to multiply with next.
    let (mut u, mut v, mut nuclear, mut kept) = (vec![0.0; m * b], vec![0.0; n * b], 0.0, 0);
    if let Some(f) = from {
        let k = f.rank.min(b);
        (0..m).for_each(|i| u[i * b..i * b + k].copy_from_slice(&f.u[i * f.rank..i * f.rank + k]));
        (0..n).for_each(|j| v[j * b..j * b + k].copy_from_slice(&f.v[j * f.rank..j * f.rank + k]));
        nuclear = nuclear_norm(&u, &v, m, n, b);
    }
    let mut x = {
        let (q, _) = leading(&data.by_col, &data.by_row, b, settings.seed);
        to_rows(&q, n, b)
    };
    let (mut status, mut trace) = (Status::MaxIterations, vec![]);
    let (mut gap, mut objective) = (f64::INFINITY, f64::INFINITY);
    let mut residual = data.clone();
    for iteration in 0..=settings.max_iterations {
        refresh(&mut residual, &data, &u, &v, b);
        let squares = norm_sq(&residual.by_row.values);
        objective = 0.5 * squares + lambda * nuclear;
        if !objective.is_finite() {
            return Err(super::overflow());
        }
        // Dual: Θ on Ω with spectral norm at most λ, value ⟨Θ, X⟩ − ½‖Θ‖². The norm is met from below.
        let top = leading(&residual.by_row, &residual.by_col, 1, settings.seed).1[0];
        let shrink = if top > lambda { lambda / top } else { 1.0 };
        let dual =
            shrink * dot(&residual.by_row.values, &data.by_row.values) - 0.5 * shrink * shrink * squares;
        gap = if total > 0.0 { ((objective - dual) / (0.5 * total)).max(0.0) } else { 0.0 };
        let stop = monitor.record(&mut trace, iteration, objective, gap);
        if gap <= settings.tolerance {
            status = Status::Converged;
            break;
        }
        if let ControlFlow::Break(why) = stop {
            status = why;
            break;
        }
        if iteration == settings.max_iterations {
            break;
        }
        // Leading singular triples of residual + U·Vᵀ: one power iteration on the block.
        let mut y = to_columns(&times(&residual.by_row, &u, &v, &x, b), m, b);
        super::basis::orthonormalise(&mut y, m, b);
        let q = to_rows(&y, m, b);
        let mut w = to_columns(&times(&residual.by_col, &v, &u, &q, b), n, b);
        // residualᵀQ + V·Uᵀ·Q = W·S·Zᵀ, so the triple is (Q·Z, S, W); with P = W·S, soft-thresholding the columns.
        let before = w.clone();
        let s = left_singular(&mut w, n, b);
        (nuclear, kept) = (0.0, 0);
        for l in 0..b {
            let d = if l < settings.rank { (s[l] - lambda).max(0.0) } else { 0.0 };
            nuclear += d;
            kept += usize::from(d > 0.0);
            // d·Q·z with z = Bᵀ·w/s, B the block before.
            let z: Vec<f64> = before.chunks_exact(n).map(|c| dot(c, &w[l * n..(l + 1) * n])).collect();
            let factor = if s[l] > 0.0 { d / s[l] } else { 0.0 };
            for i in 0..m {
                u[i * b + l] = factor * dot(&q[i * b..(i + 1) * b], &z);
            }
        }
        x = to_rows(&w, n, b);
        v.copy_from_slice(&x);
    }
    let k = kept.max(1);
    let cut = |a: &[f64]| a.chunks_exact(b).flat_map(|r| r[..k].to_vec()).collect::<Vec<f64>>();
    let iterations = trace.len().saturating_sub(1);
    let (u, v) = if iterations == 0 && from.is_some() { (u, v) } else { (cut(&u), cut(&v)) };
    let rank = u.len() / m;
    let factors = Factors { rank, u, v, offsets, round: iterations, cg_steps: 0 };
    let residuals = vec![
        Residual { name: "relative duality gap", value: gap },
        Residual { name: "rank", value: kept as f64 },
    ];
    Ok(Solution { x: factors, status, objective, residuals, iterations, trace, seconds: monitor.seconds() })
}

/// `residual ← x − P_Ω(U·Vᵀ)`, both directions.
fn refresh(residual: &mut Observed, data: &Observed, u: &[f64], v: &[f64], b: usize) {
    let fill = |to: &mut Slices, from: &Slices, own: &[f64], other: &[f64]| {
        for i in 0..from.len() {
            let row = &own[i * b..(i + 1) * b];
            for at in from.indptr[i]..from.indptr[i + 1] {
                let j = from.indices[at] as usize;
                to.values[at] = from.values[at] - dot(row, &other[j * b..(j + 1) * b]);
            }
        }
    };
    fill(&mut residual.by_row, &data.by_row, u, v);
    fill(&mut residual.by_col, &data.by_col, v, u);
}

/// `(residual + U·Vᵀ)·X`, row-major.
fn times(residual: &Slices, u: &[f64], v: &[f64], x: &[f64], b: usize) -> Vec<f64> {
    let mut small = vec![0.0; b * b];
    for (v, x) in v.chunks_exact(b).zip(x.chunks_exact(b)) {
        for (p, v) in v.iter().enumerate() {
            crate::linop::dense::axpy(*v, x, &mut small[p * b..(p + 1) * b]);
        }
    }
    let mut out = product(residual, x, b);
    for (out, u) in out.chunks_exact_mut(b).zip(u.chunks_exact(b)) {
        for (p, u) in u.iter().enumerate() {
            crate::linop::dense::axpy(*u, &small[p * b..(p + 1) * b], out);
        }
    }
    out
}

fn nuclear_norm(u: &[f64], v: &[f64], m: usize, n: usize, b: usize) -> f64 {
    let mut q = to_columns(u, m, b);
    let r = super::basis::orthonormalise(&mut q, m, b);
    let columns = to_columns(v, n, b);
    // U·Vᵀ = Q·(V·Rᵀ)ᵀ.
    let mut w = vec![0.0; n * b];
    for (p, to) in w.chunks_exact_mut(n).enumerate() {
        for l in 0..b {
            crate::linop::dense::axpy(r[l * b + p], &columns[l * n..(l + 1) * n], to);
        }
    }
    left_singular(&mut w, n, b).iter().sum()
}
