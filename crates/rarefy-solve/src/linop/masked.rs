//! An operator of which only some rows are observed.

use super::LinOp;
use crate::SolveError;

/// `(A x)[rows]`: the rows of `A` that are observed, in the order given; a row may occur twice.
#[derive(Debug, Clone)]
pub struct Masked<A> {
    inner: A,
    rows: Vec<usize>,
}

impl<A: LinOp> Masked<A> {
    /// The observed rows of `inner`.
    ///
    /// # Errors
    /// [`SolveError::Invalid`] for a row that `inner` does not have.
    pub fn new(inner: A, rows: Vec<usize>) -> Result<Self, SolveError> {
        if let Some(row) = rows.iter().find(|r| **r >= inner.n_rows()) {
            return Err(SolveError::invalid(
                "rows",
                "rows of the operator",
                format!("row {row} of {}", inner.n_rows()),
                "count rows from 0",
            ));
        }
        Ok(Self { inner, rows })
    }

    /// The observed rows.
    #[must_use]
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }
}

impl<A: LinOp> LinOp for Masked<A> {
    fn n_rows(&self) -> usize {
        self.rows.len()
    }
    fn n_cols(&self) -> usize {
        self.inner.n_cols()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        let mut all = vec![0.0; self.inner.n_rows()];
        self.inner.apply(x, &mut all);
        y.iter_mut().zip(&self.rows).for_each(|(y, r)| *y = all[*r]);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        let mut all = vec![0.0; self.inner.n_rows()];
        self.rows.iter().zip(y).for_each(|(r, y)| all[*r] += y);
        self.inner.apply_t(&all, x);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::tests::{check_against, random};
    use faer::Mat;

    #[test]
    fn observed_rows() {
        let a = random(5, 3, 4);
        let rows = vec![4, 0, 4];
        let want = Mat::from_fn(3, 3, |i, j| a[(rows[i], j)]);
        check_against(&Masked::new(&a, rows).unwrap(), &want);
        assert!(Masked::new(&a, vec![5]).is_err());
    }
}
