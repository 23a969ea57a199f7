//! How much each row matters: leverage scores and Lewis weights.

use faer::{Mat, Side};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::basis::{inverse_transpose, product};
use super::{Basis, Whitening, gram, quadratic_forms, sketch_design};
use crate::error::{check_not_empty, check_setting};
use crate::sketch::SketchKind;
use crate::{Design, LinOp, SolveError};

/// Leverage scores `τᵢ = aᵢᵀ(AᵀA)⁺aᵢ`: in [0, 1], sum = rank(A), unchanged under `A → AG` for invertible `G`.
///
/// ```
/// use rarefy_solve::{Design, linalg::leverage, linop::dense_from_rows};
/// let a = Design::from(dense_from_rows(&[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])?);
/// let t = leverage(&a)?;
/// assert!((t[0] - 1.0).abs() < 1e-14 && (t[1] - 0.5).abs() < 1e-14);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// As [`Basis::of`].
pub fn leverage(a: &Design) -> Result<Vec<f64>, SolveError> {
    Ok(Basis::of(a)?.leverage().into_iter().map(|t| t.min(1.0)).collect())
}

/// Leverage scores within a constant factor, without forming a basis: `T` from a sketch of `m` rows, then norms of the
/// rows of `A·T·G` with `G: [rank, directions]` of independent `N(0, 1/directions)` entries. `directions = 0`
/// leaves `G` out. Relative error about `√(rank/m) + √(2/directions)`; over-sample by 1.5.
///
/// # Errors
/// [`SolveError::Setting`] for `m` that the kind does not allow or below `d`, and as [`Basis::of`].
pub fn leverage_sketched(
    a: &Design,
    sketch: SketchKind,
    m: usize,
    directions: usize,
    seed: u64,
) -> Result<Vec<f64>, SolveError> {
    let (n, d) = (a.n_rows(), a.n_cols());
    check_not_empty("a", "entry", n.min(d))?;
    check_setting(m >= d.min(n), "m", m, "at least the number of columns")?;
    let s = sketch.draw(n, m, seed)?;
    let t = Whitening::of(sketch_design(s.as_ref(), a)?.as_ref())?;
    let t = if directions == 0 {
        t.matrix().to_owned()
    } else {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6a09_e667_f3bc_c908);
        let scale = 1.0 / (directions as f64).sqrt();
        let g = Mat::from_fn(t.rank(), directions, |_, _| {
            let z: f64 = StandardNormal.sample(&mut rng);
            scale * z
        });
        t.matrix() * g
    };
    Ok(match a {
        Design::Dense(a) => quadratic_forms(a.as_ref(), t.as_ref()),
        Design::Csc(_) => {
            let q = product(a, t.as_ref());
            quadratic_forms(q.as_ref(), Mat::<f64>::identity(t.ncols(), t.ncols()).as_ref())
        }
    })
}

/// Lewis weights and how exact they are.
#[derive(Debug, Clone, PartialEq)]
pub struct LewisWeights {
    /// `wᵢ`, sum = rank(A).
    pub weights: Vec<f64>,
    /// Largest `|τᵢ(W^{1/2−1/p}A) − wᵢ|`.
    pub residual: f64,
    /// Iterations done.
    pub iterations: usize,
}

/// ℓp Lewis weights: the fixed point `w = τ(W^{1/2−1/p}A)`.
///
/// Iterates `w ← (aᵢᵀ(AᵀW^{1−2/p}A)⁻¹aᵢ)^{p/2}` for p < 2 and `w ← τ(W^{1/2−1/p}A)` for p ≥ 2, a contraction by
/// `1 − p/2` and `1 − 2/p`, until the residual is at most `tolerance`. Each iteration costs `n·d²`; works on an
/// orthonormal basis, so that scaling and rank of `A` do not matter. For the sensitivities: `σ ≤ w ≤ d^{1−p/2}σ` for
/// p ≤ 2, `σ ≤ d^{p/2−1}w` above.
///
/// # Errors
/// [`SolveError::Setting`] for `p` outside [1, 100], [`SolveError::Breakdown`] when a weighted Gram matrix is
/// singular, and as [`Basis::of`].
pub fn lewis(a: &Design, p: f64, tolerance: f64, max_iterations: usize) -> Result<LewisWeights, SolveError> {
    check_setting((1.0..=100.0).contains(&p), "p", p, "in [1, 100]")?;
    check_setting(tolerance >= 0.0, "tolerance", tolerance, "at least 0")?;
    lewis_of_basis(Basis::of(a)?.q.as_ref(), p, tolerance, max_iterations)
}

pub(crate) fn lewis_of_basis(
    q: faer::MatRef<'_, f64>,
    p: f64,
    tolerance: f64,
    max_iterations: usize,
) -> Result<LewisWeights, SolveError> {
    let (n, r) = (q.nrows(), q.ncols());
    let identity = Mat::<f64>::identity(r, r);
    let zero: Vec<bool> = quadratic_forms(q, identity.as_ref()).iter().map(|v| *v <= 0.0).collect();
    let start = r as f64 / n as f64;
    let mut w: Vec<f64> = zero.iter().map(|zero| if *zero { 0.0 } else { start }).collect();
    let (mut residual, mut iterations) = (f64::INFINITY, 0);
    while r > 0 && iterations <= max_iterations {
        let power: Vec<f64> =
            w.iter().map(|w| if *w > 0.0 { w.powf(1.0 - 2.0 / p).min(1e150) } else { 0.0 }).collect();
        let factor = gram(q, Some(&power)).llt(Side::Lower).map_err(|_| {
            SolveError::breakdown(
                "Lewis weights",
                "a weighted Gram matrix is singular",
                "use a p nearer to 2",
            )
        })?;
        let forms = quadratic_forms(q, inverse_transpose(factor.L()).as_ref());
        residual = (0..n).map(|i| (power[i] * forms[i] - w[i]).abs()).fold(0.0, f64::max);
        if residual <= tolerance || iterations == max_iterations {
            break;
        }
        for i in (0..n).filter(|i| !zero[*i]) {
            w[i] = if p < 2.0 { forms[i].powf(p / 2.0) } else { power[i] * forms[i] };
        }
        iterations += 1;
    }
    if r == 0 {
        residual = 0.0;
    }
    Ok(LewisWeights { weights: w, residual, iterations })
}
