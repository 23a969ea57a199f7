//! Orthonormal bases of tall matrices and the factors that make them.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

use super::qr;
use crate::error::check_not_empty;
use crate::linop::dense::norm_sq;
use crate::sketch::{Sketch, SketchKind, Stream};
use crate::{Csc, Design, LinOp, SolveError};

/// Rows of a block when a product is cut for threads.
const BLOCK: usize = 1024;
/// Entries up to which a factor comes from the matrix itself rather than from a sketch of it.
const DIRECT: usize = 1 << 18;

/// `A·T`.
pub(crate) fn product(a: &Design, t: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.n_rows(), t.ncols());
    match a {
        Design::Dense(a) => {
            out.as_mut().par_row_chunks_mut(BLOCK).enumerate().for_each(|(k, out)| {
                let rows = out.nrows();
                matmul(out, Accum::Replace, a.subrows(k * BLOCK, rows), t, 1.0, Par::Seq);
            });
        }
        Design::Csc(a) => {
            let t = t.to_owned();
            out.as_mut().par_col_iter_mut().enumerate().for_each(|(j, out)| {
                if let Some(out) = out.try_as_col_major_mut() {
                    a.apply(t.col_as_slice(j), out.as_slice_mut());
                }
            });
        }
    }
    out
}

/// `QᵀWQ`, with `W = I` when no weights are given.
pub(crate) fn gram(q: MatRef<'_, f64>, w: Option<&[f64]>) -> Mat<f64> {
    let (n, r) = (q.nrows(), q.ncols());
    let block = BLOCK.max(n.div_ceil(64));
    let parts: Vec<Mat<f64>> = (0..n.div_ceil(block))
        .into_par_iter()
        .map(|k| {
            let mut sum = Mat::zeros(r, r);
            let end = n.min((k + 1) * block);
            let mut at = k * block;
            while at < end {
                let rows = BLOCK.min(end - at);
                let part = q.subrows(at, rows);
                match w {
                    None => matmul(sum.as_mut(), Accum::Add, part.transpose(), part, 1.0, Par::Seq),
                    Some(w) => {
                        let w = &w[at..at + rows];
                        let scaled = Mat::from_fn(rows, r, |i, j| w[i] * part[(i, j)]);
                        matmul(sum.as_mut(), Accum::Add, part.transpose(), &scaled, 1.0, Par::Seq);
                    }
                }
                at += rows;
            }
            sum
        })
        .collect();
    parts.into_iter().fold(Mat::zeros(r, r), |sum, part| sum + part)
}

/// `‖Tᵀqᵢ‖²` for every row `qᵢ` of `Q`.
pub(crate) fn quadratic_forms(q: MatRef<'_, f64>, t: MatRef<'_, f64>) -> Vec<f64> {
    let mut out = vec![0.0; q.nrows()];
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(k, out)| {
        let mut y = Mat::zeros(out.len(), t.ncols());
        matmul(y.as_mut(), Accum::Replace, q.subrows(k * BLOCK, out.len()), t, 1.0, Par::Seq);
        for j in 0..t.ncols() {
            out.iter_mut().zip(y.col_as_slice(j)).for_each(|(o, v)| *o += v * v);
        }
    });
    out
}

/// Rows `first..first + count` of a sparse matrix, dense and row-major.
fn dense_rows(a: &crate::Csr, first: usize, count: usize) -> Vec<f64> {
    let p = a.n_cols();
    let mut rows = vec![0.0; count * p];
    for (i, row) in rows.chunks_exact_mut(p).enumerate() {
        let (columns, values) = a.row(first + i);
        columns.iter().zip(values).for_each(|(j, v)| row[*j as usize] = *v);
    }
    rows
}

/// `S·A`; sparse matrices pass through in dense blocks of rows.
///
/// # Errors
/// As [`Sketch::apply`].
pub fn sketch_design(s: &dyn Sketch, a: &Design) -> Result<Mat<f64>, SolveError> {
    match a {
        Design::Dense(a) => s.apply(a.as_ref()),
        Design::Csc(a) => {
            let rows = a.to_csr();
            let mut stream = Stream::new(s, a.n_cols());
            while stream.rows_read() < a.n_rows() && a.n_cols() > 0 {
                let count = (4 * BLOCK).min(a.n_rows() - stream.rows_read());
                let block = dense_rows(&rows, stream.rows_read(), count);
                stream.push(MatRef::from_row_major_slice(&block, count, a.n_cols()))?;
            }
            if a.n_cols() == 0 { Ok(Mat::zeros(s.n_out(), 0)) } else { stream.finish() }
        }
    }
}

/// A matrix `T: [d, r]` such that the columns of `A·T` are orthonormal, or nearly so: a right preconditioner of `A`
/// and the key to its leverage scores. `r` is the numerical rank.
///
/// From a factor `F` with `FᵀF ≈ AᵀA`, such as a sketch `SA`: pivoted QR of `F` with its columns scaled to norm 1,
/// cut where a pivot falls below `max(rows, d)·ε` of the first. Cost `m·d²`. When `S` distorts the range of `A` by at
/// most ε the singular values of `A·T` lie in `1/(1 ± ε)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    t: Mat<f64>,
}

impl Whitening {
    /// From a factor or a sketch, of any number of rows.
    ///
    /// # Errors
    /// [`SolveError::Breakdown`] when the factor is not finite.
    pub fn of(factor: MatRef<'_, f64>) -> Result<Self, SolveError> {
        Ok(Self::with_rhs(factor, None)?.0)
    }

    /// The same, and `z` such that `T·z` solves `min ‖Fx − rhs‖`.
    pub(crate) fn with_rhs(f: MatRef<'_, f64>, rhs: Option<&[f64]>) -> Result<(Self, Vec<f64>), SolveError> {
        let (m, d) = (f.nrows(), f.ncols());
        let mut scaled = f.to_owned();
        let mut scale = vec![0.0; d];
        for (j, scale) in scale.iter_mut().enumerate() {
            let column = scaled.col_as_slice_mut(j);
            let norm = crate::linop::dense::norm(column);
            if !norm.is_finite() {
                return Err(SolveError::breakdown(
                    "factor",
                    format!("the norm of column {j} is {norm}"),
                    "scale the matrix down first",
                ));
            }
            if norm > 0.0 {
                *scale = 1.0 / norm;
                column.iter_mut().for_each(|v| *v /= norm);
            }
        }
        if m.min(d) == 0 || scale.iter().all(|s| *s <= 0.0) {
            return Ok((Self { t: Mat::zeros(d, 0) }, vec![]));
        }
        let tall = qr::r_factor(scaled.as_ref());
        let (r, order) = qr::pivoted(tall.as_ref());
        let least = m.max(d) as f64 * f64::EPSILON * r[(0, 0)].abs();
        let rank = (0..m.min(d)).take_while(|k| r[(*k, *k)].abs() > least).count();
        let mut inverse = Mat::<f64>::identity(rank, rank);
        r.submatrix(0, 0, rank, rank).solve_upper_triangular_in_place(inverse.as_mut());
        let mut t = Mat::zeros(d, rank);
        for k in 0..rank {
            for j in 0..rank {
                t[(order[k], j)] = scale[order[k]] * inverse[(k, j)];
            }
        }
        if (0..rank).any(|j| t.col_as_slice(j).iter().any(|v: &f64| !v.is_finite())) {
            return Err(SolveError::breakdown(
                "factor",
                "its inverse overflows",
                "scale the columns to similar sizes first",
            ));
        }
        let whitening = Self { t };
        let mut z = vec![0.0; if rhs.is_some() { rank } else { 0 }];
        if let Some(rhs) = rhs {
            // Columns of F·T are orthonormal up to the conditioning of F times ε: refine.
            for _ in 0..3 {
                let (mut r, mut x, mut step) = (vec![0.0; m], vec![0.0; d], vec![0.0; rank]);
                f.apply(&whitening.apply(&z), &mut r);
                r.iter_mut().zip(rhs).for_each(|(r, b)| *r = b - *r);
                f.apply_t(&r, &mut x);
                whitening.t.apply_t(&x, &mut step);
                z.iter_mut().zip(&step).for_each(|(z, s)| *z += s);
            }
        }
        Ok((whitening, z))
    }

    /// Numerical rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.t.ncols()
    }

    /// `T`.
    #[must_use]
    pub fn matrix(&self) -> MatRef<'_, f64> {
        self.t.as_ref()
    }

    /// `‖Tᵀaᵢ‖²` for the rows of a block: the leverage scores when `A·T` is orthonormal. For streaming: the factor from
    /// a first pass, the scores from a second.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] for the wrong number of columns.
    pub fn leverage(&self, block: MatRef<'_, f64>) -> Result<Vec<f64>, SolveError> {
        crate::error::check_dimension("block", self.t.nrows(), "columns of the matrix", block.ncols())?;
        Ok(quadratic_forms(block, self.t.as_ref()))
    }

    /// `T·z`.
    pub(crate) fn apply(&self, z: &[f64]) -> Vec<f64> {
        let mut x = vec![0.0; self.t.nrows()];
        self.t.apply(z, &mut x);
        x
    }
}

/// An orthonormal basis of the range: `Q = A·T`, `QᵀQ = I` to rounding.
#[derive(Debug, Clone)]
pub struct Basis {
    /// `Q: [n, r]`.
    pub q: Mat<f64>,
    /// `T: [d, r]`.
    pub whitening: Whitening,
}

impl Basis {
    /// Of the whole matrix. Small matrices by pivoted QR; large ones by that of an OSNAP sketch, then two rounds of
    /// Cholesky QR on the well-conditioned product, `O(n·d·r)` in parallel.
    ///
    /// # Errors
    /// [`SolveError::Empty`], [`SolveError::NonFinite`], [`SolveError::Breakdown`] on overflow.
    pub fn of(a: &Design) -> Result<Self, SolveError> {
        let (n, d) = (a.n_rows(), a.n_cols());
        check_not_empty("a", "entry", n.min(d))?;
        a.check_finite()?;
        let m = (8 * d).max(64);
        if n * d > DIRECT && n > 4 * m {
            let s = SketchKind::Osnap { nonzeros: 8 }.draw(n, m, 0)?;
            let whitening = Whitening::of(sketch_design(s.as_ref(), a)?.as_ref())?;
            if let Some(basis) = Self::refine(a, whitening) {
                return Ok(basis);
            }
        }
        let whitening = match a {
            Design::Dense(a) => Whitening::of(a.as_ref())?,
            Design::Csc(a) => Whitening::of(densify(a).as_ref())?,
        };
        match Self::refine(a, whitening.clone()) {
            Some(basis) => Ok(basis),
            None => Ok(Self { q: product(a, whitening.matrix()), whitening }),
        }
    }

    /// Cholesky QR, twice.
    fn refine(a: &Design, mut whitening: Whitening) -> Option<Self> {
        for _ in 0..2 {
            let q = product(a, whitening.matrix());
            let factor = gram(q.as_ref(), None).llt(Side::Lower).ok()?;
            let l = factor.L();
            let r = whitening.rank();
            let condition = (0..r).map(|k| l[(k, k)]).fold(0.0, f64::max)
                / (0..r).map(|k| l[(k, k)]).fold(f64::INFINITY, f64::min);
            if r > 0 && (condition.is_nan() || condition >= 1e3) {
                return None;
            }
            whitening.t = &whitening.t * inverse_transpose(l);
        }
        Some(Self { q: product(a, whitening.matrix()), whitening })
    }

    /// Leverage scores: squared norms of the rows of `Q`.
    #[must_use]
    pub fn leverage(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.q.nrows()];
        for j in 0..self.q.ncols() {
            out.iter_mut().zip(self.q.col_as_slice(j)).for_each(|(o, v)| *o += v * v);
        }
        out
    }
}

/// `L⁻ᵀ`.
pub(crate) fn inverse_transpose(l: MatRef<'_, f64>) -> Mat<f64> {
    let mut inverse = Mat::<f64>::identity(l.nrows(), l.nrows());
    let out: MatMut<'_, f64> = inverse.as_mut();
    l.transpose().solve_upper_triangular_in_place(out);
    inverse
}

pub(crate) fn densify(a: &Csc) -> Mat<f64> {
    let mut out = Mat::zeros(a.n_rows(), a.n_cols());
    for j in 0..a.n_cols() {
        let (rows, values) = a.column(j);
        rows.iter().zip(values).for_each(|(i, v)| out[(*i as usize, j)] = *v);
    }
    out
}

/// `‖A‖_F`.
pub(crate) fn frobenius(a: &Design) -> f64 {
    (0..a.n_cols()).map(|j| norm_sq(a.column(j).values())).sum::<f64>().sqrt()
}
