//! Sample weights and intercepts, folded into the design.

use std::borrow::Cow;

use faer::Mat;

use super::Problem;
use crate::linop::dense;
use crate::{Design, LinOp};

/// The weighted, centred problem `min ½‖ỹ − X̃w‖² + …`: `X̃ = D(X − 1μᵀ)`, `ỹ = D(y − ȳ)`, `D² = diag(s)`.
/// A sparse design keeps its zeros: `X̃ = DX − d μᵀ` is applied as such. A dense one is centred.
pub(super) struct Prepared<'a> {
    pub(super) design: Cow<'a, Design>,
    pub(super) y: Vec<f64>,
    /// `d`: square roots of the sample weights; empty without centring.
    pub(super) ones: Vec<f64>,
    /// `μ` of the columns that are centred implicitly; empty without.
    pub(super) mu: Vec<f64>,
    /// `dᵀ(DX)_j = μ_j Σs`.
    pub(super) sums: Vec<f64>,
    /// Means for the intercept.
    pub(super) x_mean: Vec<f64>,
    pub(super) y_mean: f64,
    /// `Σ s`.
    pub(super) total: f64,
    /// Squared norms of the columns of X̃; 0 for columns that are constant.
    pub(super) norms_sq: Vec<f64>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(problem: &Problem<'a>, fit_intercept: bool) -> Self {
        let (n, p) = (problem.x.n_rows(), problem.x.n_cols());
        let root: Option<Vec<f64>> = problem.sample_weight.map(|s| s.iter().map(|v| v.sqrt()).collect());
        let total = problem.sample_weight.map_or(n as f64, dense::sum);
        let weighted = |v: &[f64]| match problem.sample_weight {
            Some(s) => dense::dot(v, s),
            None => dense::sum(v),
        };
        let y_mean = if fit_intercept { weighted(problem.y) / total } else { 0.0 };
        let mut y: Vec<f64> = problem.y.iter().map(|v| v - y_mean).collect();
        if let Some(d) = &root {
            y.iter_mut().zip(d).for_each(|(y, d)| *y *= d);
        }
        let mut x_mean = vec![0.0; if fit_intercept { p } else { 0 }];
        let (mut ones, mut mu, mut sums) = (vec![], vec![], vec![]);
        let design = match problem.x {
            Design::Dense(a) if fit_intercept || root.is_some() => {
                for (j, m) in x_mean.iter_mut().enumerate() {
                    *m = weighted(a.col_as_slice(j)) / total;
                }
                let mean = |j: usize| if fit_intercept { x_mean[j] } else { 0.0 };
                let d = |i: usize| root.as_ref().map_or(1.0, |d| d[i]);
                Cow::Owned(Design::Dense(Mat::from_fn(n, p, |i, j| d(i) * (a[(i, j)] - mean(j)))))
            }
            sparse => {
                let design = match &root {
                    Some(d) => Cow::Owned(sparse.scale_rows(d)),
                    None => Cow::Borrowed(sparse),
                };
                if fit_intercept {
                    ones = root.unwrap_or_else(|| vec![1.0; n]);
                    sums = (0..p).map(|j| design.column(j).dot(&ones)).collect();
                    mu = sums.iter().map(|m| m / total).collect();
                    x_mean.clone_from(&mu);
                }
                design
            }
        };
        let norms_sq = (0..p)
            .map(|j| {
                let plain = design.column(j).norm_sq();
                if mu.is_empty() {
                    // What centring left of a constant column is rounding.
                    let noise = x_mean.get(j).map_or(0.0, |m| m * m * total * 1e-28);
                    return if plain <= noise { 0.0 } else { plain };
                }
                let centred = plain - mu[j] * sums[j];
                if centred <= plain * 1e-13 { 0.0 } else { centred }
            })
            .collect();
        Self { design, y, ones, mu, sums, x_mean, y_mean, total, norms_sq }
    }

    pub(super) fn n_cols(&self) -> usize {
        self.norms_sq.len()
    }

    pub(super) fn is_centred_implicitly(&self) -> bool {
        !self.mu.is_empty()
    }

    /// Mean of column `j` that is subtracted implicitly.
    #[inline]
    pub(super) fn mu(&self, j: usize) -> f64 {
        self.mu.get(j).copied().unwrap_or(0.0)
    }

    /// `X̃ⱼᵀ r` for `r` stored as `r + shift·d` with `dᵀ(r + shift·d) = 0`.
    #[inline]
    pub(super) fn dot(&self, j: usize, r: &[f64], shift: f64) -> f64 {
        let plain = self.design.column(j).dot(r);
        match self.sums.get(j) {
            Some(m) => plain + shift * m,
            None => plain,
        }
    }

    pub(super) fn intercept(&self, features: &[usize], values: &[f64]) -> f64 {
        // Without an intercept both means are 0.
        let mean = |j: usize| self.x_mean.get(j).copied().unwrap_or(0.0);
        self.y_mean - features.iter().zip(values).map(|(j, w)| mean(*j) * w).sum::<f64>()
    }
}
