//! The triangular factor of a matrix that is read once.

use faer::{Mat, MatRef};

use super::r_factor;
use crate::SolveError;
use crate::error::{check_dimension, check_finite};

/// `R` of `A = QR` from blocks of rows, in O(d²) memory: each block is factored together with the factor so far. As
/// stable as a QR of the whole matrix; 2·n·d² flops. `R` of `[A b]` given to [`super::solve_sketched`] solves
/// `min ‖Ax − b‖` to rounding, and the last diagonal entry of `R` is the residual's norm up to sign.
///
/// ```
/// use rarefy_solve::linalg::{StreamedQr, solve_sketched};
/// let mut qr = StreamedQr::new(2);
/// qr.push(faer::Mat::from_fn(3, 2, |i, j| if j == 0 { 1.0 + i as f64 } else { 2.0 + 2.0 * i as f64 }).as_ref())?;
/// let (x, _) = solve_sketched(qr.finish().as_ref())?;
/// assert!((x[0] - 2.0).abs() < 1e-12);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
#[derive(Debug, Clone)]
pub struct StreamedQr {
    r: Mat<f64>,
    rows: usize,
}

impl StreamedQr {
    /// Nothing read yet, of a matrix with that number of columns.
    #[must_use]
    pub fn new(n_cols: usize) -> Self {
        Self { r: Mat::zeros(0, n_cols), rows: 0 }
    }

    /// Number of rows read.
    #[must_use]
    pub fn rows_read(&self) -> usize {
        self.rows
    }

    /// The next rows.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] for the wrong number of columns, [`SolveError::NonFinite`], whose index counts along the
    /// rows of the block; the block is then not counted in.
    pub fn push(&mut self, block: MatRef<'_, f64>) -> Result<(), SolveError> {
        let (n, d) = (block.nrows(), self.r.ncols());
        check_dimension("block", d, "columns of the matrix", block.ncols())?;
        check_finite("block", (0..n).flat_map(|i| block.row(i).iter()))?;
        let k = self.r.nrows();
        let stacked = Mat::from_fn(k + n, d, |i, j| if i < k { self.r[(i, j)] } else { block[(i - k, j)] });
        self.r = r_factor(stacked.as_ref());
        self.rows += n;
        Ok(())
    }

    /// The factor: [min(rows, columns), columns].
    #[must_use]
    pub fn finish(self) -> Mat<f64> {
        self.r
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::tests::random;

    #[test]
    fn the_factor_has_the_gram_matrix_of_the_whole_however_it_is_cut() {
        let a = random(9000, 7, 4);
        let want = a.transpose() * &a;
        for block in [1, 5, 1000, 9000] {
            let mut qr = StreamedQr::new(7);
            let rows = if block == 1 { 20 } else { 9000 };
            for first in (0..rows).step_by(block) {
                qr.push(a.as_ref().subrows(first, block.min(rows - first))).unwrap();
            }
            assert_eq!(qr.rows_read(), rows);
            let r = qr.finish();
            let got = r.transpose() * &r;
            if rows == 9000 {
                assert!((&got - &want).norm_max() < 1e-9 * want.norm_max(), "{block}");
            }
            assert_eq!((r.nrows(), r.ncols()), (7, 7));
        }
    }

    #[test]
    fn bad_blocks_are_not_counted() {
        let mut qr = StreamedQr::new(2);
        assert!(matches!(qr.push(Mat::zeros(1, 3).as_ref()), Err(SolveError::Dimension { .. })));
        let bad = Mat::from_fn(2, 2, |i, j| if (i, j) == (1, 0) { f64::NAN } else { 1.0 });
        let e = qr.push(bad.as_ref()).unwrap_err();
        assert_eq!(e, SolveError::NonFinite { argument: "block", count: 1, first: 2 });
        assert_eq!(qr.rows_read(), 0);
        assert_eq!(qr.finish().nrows(), 0);
    }
}
