//! Linear operators and design matrices.
//!
//! [`LinOp`] is what a solver needs that only multiplies; [`Design`] is what coordinate descent
//! needs, which looks at columns. Vectors are plain slices.

mod csc;
mod csr;
pub mod dense;
mod design;
mod implicit;
mod kronecker;
mod masked;

pub use csc::{Csc, Triplet};
pub use csr::Csr;
pub use design::{Column, Design};
pub use implicit::{Implicit, Transposed};
pub use kronecker::Kronecker;
pub use masked::Masked;

use faer::{Mat, MatRef};

use crate::SolveError;
use crate::error::check_dimension;

/// A real linear map that can be applied and whose transpose can be applied.
///
/// `x` and `y` have the lengths given by [`LinOp::n_rows`] and [`LinOp::n_cols`]; an
/// implementation may panic otherwise. [`LinOp::try_apply`] and [`LinOp::try_apply_t`] check.
pub trait LinOp {
    /// Number of rows: the length of `A x`.
    fn n_rows(&self) -> usize;

    /// Number of columns: the length of `Aᵀ y`.
    fn n_cols(&self) -> usize;

    /// `y ← A x`. `y` is overwritten.
    fn apply(&self, x: &[f64], y: &mut [f64]);

    /// `x ← Aᵀ y`. `x` is overwritten.
    fn apply_t(&self, y: &[f64], x: &mut [f64]);

    /// `y ← A x` with the lengths checked.
    ///
    /// # Errors
    /// [`SolveError::Dimension`].
    fn try_apply(&self, x: &[f64], y: &mut [f64]) -> Result<(), SolveError> {
        check_dimension("x", self.n_cols(), "columns of the operator", x.len())?;
        check_dimension("y", self.n_rows(), "rows of the operator", y.len())?;
        self.apply(x, y);
        Ok(())
    }

    /// `x ← Aᵀ y` with the lengths checked.
    ///
    /// # Errors
    /// [`SolveError::Dimension`].
    fn try_apply_t(&self, y: &[f64], x: &mut [f64]) -> Result<(), SolveError> {
        check_dimension("y", self.n_rows(), "rows of the operator", y.len())?;
        check_dimension("x", self.n_cols(), "columns of the operator", x.len())?;
        self.apply_t(y, x);
        Ok(())
    }
}

impl<A: LinOp + ?Sized> LinOp for &A {
    fn n_rows(&self) -> usize {
        (**self).n_rows()
    }
    fn n_cols(&self) -> usize {
        (**self).n_cols()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        (**self).apply(x, y);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        (**self).apply_t(y, x);
    }
}

impl LinOp for Mat<f64> {
    fn n_rows(&self) -> usize {
        self.nrows()
    }
    fn n_cols(&self) -> usize {
        self.ncols()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        dense::gemv(self.as_ref(), x, y);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        dense::gemv_t(self.as_ref(), y, x);
    }
}

impl LinOp for MatRef<'_, f64> {
    fn n_rows(&self) -> usize {
        self.nrows()
    }
    fn n_cols(&self) -> usize {
        self.ncols()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        dense::gemv(*self, x, y);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        dense::gemv_t(*self, y, x);
    }
}

/// The operator as a dense matrix, by applying it to the unit vectors: for tests and small sizes.
#[must_use]
pub fn to_dense(a: &dyn LinOp) -> Mat<f64> {
    let (n, p) = (a.n_rows(), a.n_cols());
    let (mut unit, mut column) = (vec![0.0; p], vec![0.0; n]);
    let mut out = Mat::zeros(n, p);
    for j in 0..p {
        unit[j] = 1.0;
        a.apply(&unit, &mut column);
        unit[j] = 0.0;
        for (i, v) in column.iter().enumerate() {
            out[(i, j)] = *v;
        }
    }
    out
}

/// A dense matrix from rows of `f64`.
///
/// # Errors
/// [`SolveError::Dimension`] when the rows differ in length.
pub fn dense_from_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Mat<f64>, SolveError> {
    let p = rows.first().map_or(0, |r| r.as_ref().len());
    for row in rows {
        check_dimension("rows", p, "values per row", row.as_ref().len())?;
    }
    Ok(Mat::from_fn(rows.len(), p, |i, j| rows[i].as_ref()[j]))
}

/// A dense matrix from row-major single precision, converted once at the door.
///
/// # Errors
/// [`SolveError::Dimension`] when the length is not `n_rows · n_cols`.
pub fn dense_from_f32(values: &[f32], n_rows: usize, n_cols: usize) -> Result<Mat<f64>, SolveError> {
    check_dimension("values", n_rows.saturating_mul(n_cols), "rows times columns", values.len())?;
    Ok(Mat::from_fn(n_rows, n_cols, |i, j| f64::from(values[i * n_cols + j])))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::RngExt;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    /// `apply` and `apply_t` against the entries of `want`.
    pub(crate) fn check_against(a: &dyn LinOp, want: &Mat<f64>) {
        assert_eq!((a.n_rows(), a.n_cols()), (want.nrows(), want.ncols()));
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let x: Vec<f64> = (0..a.n_cols()).map(|_| rng.random_range(-1.0..1.0)).collect();
        let z: Vec<f64> = (0..a.n_rows()).map(|_| rng.random_range(-1.0..1.0)).collect();
        // Dirty outputs must not matter.
        let (mut y, mut w) = (vec![7.0; a.n_rows()], vec![7.0; a.n_cols()]);
        a.try_apply(&x, &mut y).unwrap();
        a.try_apply_t(&z, &mut w).unwrap();
        for i in 0..a.n_rows() {
            let v: f64 = (0..a.n_cols()).map(|j| want[(i, j)] * x[j]).sum();
            assert!((v - y[i]).abs() < 1e-10 * (1.0 + v.abs()), "row {i}: {v} {}", y[i]);
        }
        for j in 0..a.n_cols() {
            let v: f64 = (0..a.n_rows()).map(|i| want[(i, j)] * z[i]).sum();
            assert!((v - w[j]).abs() < 1e-10 * (1.0 + v.abs()), "column {j}: {v} {}", w[j]);
        }
        let mut short = vec![0.0; a.n_cols() + 1];
        assert!(matches!(a.try_apply_t(&z, &mut short), Err(SolveError::Dimension { argument: "x", .. })));
        assert!(matches!(a.try_apply(&short, &mut y), Err(SolveError::Dimension { argument: "x", .. })));
        let mut long = vec![0.0; a.n_rows() + 1];
        assert!(matches!(a.try_apply(&x, &mut long), Err(SolveError::Dimension { argument: "y", .. })));
    }

    pub(crate) fn random(n: usize, p: usize, seed: u64) -> Mat<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(n, p, |_, _| rng.random_range(-1.0..1.0))
    }

    #[test]
    fn dense_operators() {
        for (n, p) in [(0, 0), (1, 1), (3, 5), (67, 33), (700, 300)] {
            let a = random(n, p, 1);
            check_against(&a, &a);
            check_against(&a.as_ref(), &a);
            // A transposed view has strided columns.
            let t = a.transpose().to_owned();
            check_against(&t.transpose(), &a);
            assert_eq!(to_dense(&a), a);
        }
        assert!(dense_from_rows(&[vec![1.0], vec![1.0, 2.0]]).is_err());
        let a = dense_from_rows(&[[1.0, 2.0], [3.0, 4.0]]).unwrap();
        assert_eq!(a[(1, 0)], 3.0);
        assert_eq!(dense_from_f32(&[1.0, 2.0, 3.0, 4.0], 2, 2).unwrap(), a);
        assert!(dense_from_f32(&[1.0], 2, 2).is_err());
    }
}
