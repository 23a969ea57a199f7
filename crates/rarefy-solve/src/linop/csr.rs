//! Compressed sparse rows.

use rayon::prelude::*;

use super::csc::{check_parts, gather, scatter, transpose};
use super::{Csc, LinOp, Triplet};
use crate::SolveError;

/// A sparse matrix by rows: the entries of row `i` are at `indptr[i]..indptr[i + 1]`, with
/// strictly rising columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Csr {
    n_cols: usize,
    indptr: Vec<usize>,
    indices: Vec<u32>,
    values: Vec<f64>,
}

impl Csr {
    /// From its arrays, all of them checked.
    ///
    /// # Errors
    /// As [`Csc::from_parts`].
    pub fn from_parts(
        n_rows: usize,
        n_cols: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        values: Vec<f64>,
    ) -> Result<Self, SolveError> {
        check_parts(n_cols, n_rows, &indptr, &indices, &values)?;
        Ok(Self { n_cols, indptr, indices, values })
    }

    /// From entries in any order; entries of the same place are added.
    ///
    /// # Errors
    /// As [`Csc::from_triplets`].
    pub fn from_triplets(n_rows: usize, n_cols: usize, entries: &[Triplet]) -> Result<Self, SolveError> {
        Ok(Csc::from_triplets(n_rows, n_cols, entries)?.to_csr())
    }

    /// Number of stored entries.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.values.len()
    }

    /// Columns and values of row `i`.
    #[must_use]
    pub fn row(&self, i: usize) -> (&[u32], &[f64]) {
        let range = self.indptr[i]..self.indptr[i + 1];
        (&self.indices[range.clone()], &self.values[range])
    }

    /// Where each row starts, and the end.
    #[must_use]
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// Columns of all entries.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Values of all entries.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The entry at `(i, j)`, 0 where none is stored.
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        let (columns, values) = self.row(i);
        columns.binary_search(&(j as u32)).map_or(0.0, |k| values[k])
    }

    /// The same matrix by columns.
    #[must_use]
    pub fn to_csc(&self) -> Csc {
        let (indptr, indices, values) = transpose(self.n_cols, &self.indptr, &self.indices, &self.values);
        Csc::from_checked(self.n_rows(), indptr, indices, values)
    }

    pub(super) fn from_checked(
        n_cols: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        values: Vec<f64>,
    ) -> Self {
        Self { n_cols, indptr, indices, values }
    }
}

impl LinOp for Csr {
    fn n_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn apply(&self, x: &[f64], y: &mut [f64]) {
        if self.nnz() < 1 << 16 {
            y.iter_mut().enumerate().for_each(|(i, y)| *y = gather(self.row(i), x));
        } else {
            y.par_iter_mut().enumerate().with_min_len(64).for_each(|(i, y)| *y = gather(self.row(i), x));
        }
    }

    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        x.fill(0.0);
        for (i, &v) in y.iter().enumerate() {
            if v != 0.0 {
                scatter(self.row(i), v, x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::{dense_from_rows, tests::check_against};

    #[test]
    fn by_hand() {
        let a = Csr::from_triplets(2, 3, &[(0, 1, 2.0), (1, 0, -1.0), (1, 2, 3.0)]).unwrap();
        assert_eq!(a.row(1), (&[0, 2][..], &[-1.0, 3.0][..]));
        assert_eq!((a.get(0, 1), a.get(0, 0), a.nnz()), (2.0, 0.0, 3));
        check_against(&a, &dense_from_rows(&[[0.0, 2.0, 0.0], [-1.0, 0.0, 3.0]]).unwrap());
        let again = Csr::from_parts(2, 3, vec![0, 1, 3], vec![1, 0, 2], vec![2.0, -1.0, 3.0]).unwrap();
        assert_eq!(again, a);
        assert!(Csr::from_parts(2, 3, vec![0, 1, 3], vec![1, 0, 3], vec![2.0, -1.0, 3.0]).is_err());
        assert!(Csr::from_parts(3, 3, vec![0, 1, 3], vec![1, 0, 2], vec![2.0, -1.0, 3.0]).is_err());
    }
}
