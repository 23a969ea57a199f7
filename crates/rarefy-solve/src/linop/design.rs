//! Design matrices seen column by column.

use faer::Mat;

use super::csc::{gather, scatter};
use super::{Csc, LinOp, dense};
use crate::SolveError;
use crate::error::check_finite;

/// A design matrix: samples in rows, features in columns.
#[derive(Debug, Clone, PartialEq)]
pub enum Design {
    /// Column-major dense.
    Dense(Mat<f64>),
    /// Sparse by columns.
    Csc(Csc),
}

/// One column of a [`Design`].
#[derive(Debug, Clone, Copy)]
pub enum Column<'a> {
    /// All entries.
    Dense(&'a [f64]),
    /// Rows and values of the stored entries.
    Sparse(&'a [u32], &'a [f64]),
}

impl Column<'_> {
    /// Inner product with `v`.
    #[must_use]
    #[inline]
    pub fn dot(&self, v: &[f64]) -> f64 {
        match self {
            Column::Dense(c) => dense::dot(c, v),
            Column::Sparse(i, c) => gather((i, c), v),
        }
    }

    /// `Σ c[i]·w[i]·v[i]`.
    #[must_use]
    #[inline]
    pub fn weighted_dot(&self, w: &[f64], v: &[f64]) -> f64 {
        match self {
            Column::Dense(c) => c.iter().zip(w.iter().zip(v)).map(|(c, (w, v))| c * w * v).sum(),
            Column::Sparse(i, c) => i.iter().zip(*c).map(|(i, c)| c * w[*i as usize] * v[*i as usize]).sum(),
        }
    }

    /// `Σ w[i]·c[i]²`.
    #[must_use]
    #[inline]
    pub fn weighted_norm_sq(&self, w: &[f64]) -> f64 {
        match self {
            Column::Dense(c) => c.iter().zip(w).map(|(c, w)| w * c * c).sum(),
            Column::Sparse(i, c) => i.iter().zip(*c).map(|(i, c)| w[*i as usize] * c * c).sum(),
        }
    }

    /// `v ← v + alpha·column`.
    #[inline]
    pub fn add_to(&self, alpha: f64, v: &mut [f64]) {
        match self {
            Column::Dense(c) => dense::axpy(alpha, c, v),
            Column::Sparse(i, c) => scatter((i, c), alpha, v),
        }
    }

    /// Sum of the entries.
    #[must_use]
    pub fn sum(&self) -> f64 {
        dense::sum(self.values())
    }

    /// Sum of the squared entries.
    #[must_use]
    pub fn norm_sq(&self) -> f64 {
        dense::norm_sq(self.values())
    }

    /// The stored values.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        match self {
            Column::Dense(c) | Column::Sparse(_, c) => c,
        }
    }
}

impl Design {
    /// Column `j`.
    #[must_use]
    #[inline]
    pub fn column(&self, j: usize) -> Column<'_> {
        match self {
            Design::Dense(a) => Column::Dense(a.col_as_slice(j)),
            Design::Csc(a) => {
                let (i, v) = a.column(j);
                Column::Sparse(i, v)
            }
        }
    }

    /// Number of stored entries: rows times columns when dense.
    #[must_use]
    pub fn nnz(&self) -> usize {
        match self {
            Design::Dense(a) => a.nrows() * a.ncols(),
            Design::Csc(a) => a.nnz(),
        }
    }

    /// Whether it is stored sparse.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        matches!(self, Design::Csc(_))
    }

    /// Squared norms of all columns.
    #[must_use]
    pub fn column_norms_sq(&self) -> Vec<f64> {
        (0..self.n_cols()).map(|j| self.column(j).norm_sq()).collect()
    }

    /// A copy with row `i` multiplied by `factor[i]`, one factor for each row.
    #[must_use]
    pub fn scale_rows(&self, factor: &[f64]) -> Self {
        match self {
            Design::Dense(a) => {
                Design::Dense(Mat::from_fn(a.nrows(), a.ncols(), |i, j| factor[i] * a[(i, j)]))
            }
            Design::Csc(a) => Design::Csc(a.scale_rows(factor)),
        }
    }

    /// Some of the rows, in the order given, each below `n_rows`.
    #[must_use]
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        match self {
            Design::Dense(a) => Design::Dense(Mat::from_fn(rows.len(), a.ncols(), |i, j| a[(rows[i], j)])),
            Design::Csc(a) => Design::Csc(a.select_rows(rows)),
        }
    }

    /// `Ok` when every entry is finite.
    ///
    /// # Errors
    /// [`SolveError::NonFinite`].
    pub fn check_finite(&self) -> Result<(), SolveError> {
        match self {
            // A finite sum proves all entries finite; overflow only costs the exact check.
            Design::Dense(a) => {
                for j in 0..a.ncols() {
                    if !dense::sum(a.col_as_slice(j)).is_finite() {
                        check_finite("x", (0..a.ncols()).flat_map(|j| a.col_as_slice(j)))?;
                    }
                }
                Ok(())
            }
            Design::Csc(a) => check_finite("x", a.values()),
        }
    }
}

impl From<Mat<f64>> for Design {
    fn from(a: Mat<f64>) -> Self {
        Design::Dense(a)
    }
}

impl From<Csc> for Design {
    fn from(a: Csc) -> Self {
        Design::Csc(a)
    }
}

impl LinOp for Design {
    fn n_rows(&self) -> usize {
        match self {
            Design::Dense(a) => a.nrows(),
            Design::Csc(a) => a.n_rows(),
        }
    }

    fn n_cols(&self) -> usize {
        match self {
            Design::Dense(a) => a.ncols(),
            Design::Csc(a) => a.n_cols(),
        }
    }

    fn apply(&self, x: &[f64], y: &mut [f64]) {
        match self {
            Design::Dense(a) => a.apply(x, y),
            Design::Csc(a) => a.apply(x, y),
        }
    }

    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        match self {
            Design::Dense(a) => a.apply_t(y, x),
            Design::Csc(a) => a.apply_t(y, x),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::tests::{check_against, random};

    #[test]
    fn dense_and_sparse_agree() {
        let dense = Mat::from_fn(40, 7, |i, j| if (i * 3 + j) % 4 == 0 { (i + 2 * j) as f64 } else { 0.0 });
        let entries: Vec<_> = (0..40)
            .flat_map(|i| (0..7).map(move |j| (i, j)))
            .filter(|&(i, j)| dense[(i, j)] != 0.0)
            .map(|(i, j)| (i, j, dense[(i, j)]))
            .collect();
        let a = Design::from(dense.clone());
        let b = Design::from(Csc::from_triplets(40, 7, &entries).unwrap());
        check_against(&a, &dense);
        check_against(&b, &dense);
        assert!(b.is_sparse() && !a.is_sparse() && b.nnz() < a.nnz());
        let w: Vec<f64> = (0..40).map(|i| 1.0 + f64::from(i)).collect();
        let v: Vec<f64> = (0..40).map(|i| f64::from(i).sin()).collect();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * (1.0 + a.abs()), "{a} {b}");
        for j in 0..7 {
            let (c, d) = (a.column(j), b.column(j));
            near(c.dot(&v), d.dot(&v));
            near(c.weighted_dot(&w, &v), d.weighted_dot(&w, &v));
            near(c.weighted_norm_sq(&w), d.weighted_norm_sq(&w));
            near(c.sum(), d.sum());
            near(c.norm_sq(), d.norm_sq());
            let (mut p, mut q) = (v.clone(), v.clone());
            c.add_to(0.5, &mut p);
            d.add_to(0.5, &mut q);
            p.iter().zip(&q).for_each(|(p, q)| near(*p, *q));
        }
        let rows = [5, 5, 0, 39];
        check_against(&b.select_rows(&rows), &Mat::from_fn(4, 7, |i, j| dense[(rows[i], j)]));
        check_against(&a.select_rows(&rows), &Mat::from_fn(4, 7, |i, j| dense[(rows[i], j)]));
        check_against(&b.scale_rows(&w), &Mat::from_fn(40, 7, |i, j| w[i] * dense[(i, j)]));
        assert_eq!(a.column_norms_sq().len(), 7);
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        let mut a = random(4, 3, 1);
        assert!(Design::from(a.clone()).check_finite().is_ok());
        a[(2, 1)] = f64::NAN;
        let e = Design::from(a.clone()).check_finite().unwrap_err();
        assert_eq!(e, SolveError::NonFinite { argument: "x", count: 1, first: 6 });
        // A sum that overflows is no reason to refuse.
        a[(2, 1)] = f64::MAX;
        a[(1, 1)] = f64::MAX;
        assert!(Design::from(a).check_finite().is_ok());
    }
}
