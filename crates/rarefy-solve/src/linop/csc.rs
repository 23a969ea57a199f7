//! Compressed sparse columns.

use rayon::prelude::*;

use super::{Csr, LinOp};
use crate::SolveError;
use crate::error::{check_dimension, check_finite};

/// One entry of a matrix: row, column, value.
pub type Triplet = (usize, usize, f64);

/// A sparse matrix by columns: the entries of column `j` are at `indptr[j]..indptr[j + 1]`, with
/// strictly rising rows. Row numbers take four bytes, so at most 2³² rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Csc {
    n_rows: usize,
    indptr: Vec<usize>,
    indices: Vec<u32>,
    values: Vec<f64>,
}

impl Csc {
    /// From its arrays, all of them checked.
    ///
    /// # Errors
    /// A typed error naming the array: wrong length, falling `indptr`, rows out of range or not
    /// strictly rising, values that are not finite.
    pub fn from_parts(
        n_rows: usize,
        n_cols: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        values: Vec<f64>,
    ) -> Result<Self, SolveError> {
        check_parts(n_rows, n_cols, &indptr, &indices, &values)?;
        Ok(Self { n_rows, indptr, indices, values })
    }

    /// From entries in any order; entries of the same place are added.
    ///
    /// # Errors
    /// [`SolveError::Invalid`] for a place outside the matrix, [`SolveError::NonFinite`].
    pub fn from_triplets(n_rows: usize, n_cols: usize, entries: &[Triplet]) -> Result<Self, SolveError> {
        check_rows(n_rows)?;
        check_finite("entries", entries.iter().map(|(.., v)| v))?;
        let mut indptr = vec![0; n_cols + 1];
        for &(i, j, _) in entries {
            if i >= n_rows || j >= n_cols {
                return Err(SolveError::invalid(
                    "entries",
                    "places inside the matrix",
                    format!("({i}, {j}) in {n_rows} × {n_cols}"),
                    "count rows and columns from 0",
                ));
            }
            indptr[j + 1] += 1;
        }
        for j in 0..n_cols {
            indptr[j + 1] += indptr[j];
        }
        let mut next = indptr.clone();
        let mut pairs = vec![(0_u32, 0.0); entries.len()];
        for &(i, j, v) in entries {
            pairs[next[j]] = (i as u32, v);
            next[j] += 1;
        }
        let (mut starts, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for j in 0..n_cols {
            let column = &mut pairs[indptr[j]..indptr[j + 1]];
            column.sort_by_key(|(i, _)| *i);
            let first = indices.len();
            for &mut (i, v) in column {
                if indices.len() > first && indices.last() == Some(&i) {
                    if let Some(last) = values.last_mut() {
                        *last += v;
                    }
                } else {
                    indices.push(i);
                    values.push(v);
                }
            }
            starts.push(indices.len());
        }
        Ok(Self { n_rows, indptr: starts, indices, values })
    }

    /// Number of stored entries.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.values.len()
    }

    /// Rows and values of column `j`.
    #[must_use]
    pub fn column(&self, j: usize) -> (&[u32], &[f64]) {
        let range = self.indptr[j]..self.indptr[j + 1];
        (&self.indices[range.clone()], &self.values[range])
    }

    /// Where each column starts, and the end.
    #[must_use]
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// Rows of all entries.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Values of all entries.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// A copy with row `i` multiplied by `factor[i]`, one factor for each row.
    #[must_use]
    pub fn scale_rows(&self, factor: &[f64]) -> Self {
        let values = self.indices.iter().zip(&self.values).map(|(i, v)| v * factor[*i as usize]).collect();
        Self { values, ..self.clone() }
    }

    /// The same matrix by rows.
    #[must_use]
    pub fn to_csr(&self) -> Csr {
        let (indptr, indices, values) = transpose(self.n_rows, &self.indptr, &self.indices, &self.values);
        Csr::from_checked(self.n_cols(), indptr, indices, values)
    }

    /// Some of the rows, in the order given, each below `n_rows`.
    #[must_use]
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        // For each row of the source, the places it goes to.
        let mut start = vec![0_usize; self.n_rows + 1];
        for &r in rows {
            start[r + 1] += 1;
        }
        for r in 0..self.n_rows {
            start[r + 1] += start[r];
        }
        let mut next = start.clone();
        let mut places = vec![0_u32; rows.len()];
        for (k, &r) in rows.iter().enumerate() {
            places[next[r]] = k as u32;
            next[r] += 1;
        }
        let (mut indptr, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        let mut column: Vec<(u32, f64)> = Vec::new();
        for j in 0..self.n_cols() {
            column.clear();
            let (i, v) = self.column(j);
            for (i, v) in i.iter().zip(v) {
                let i = *i as usize;
                column.extend(places[start[i]..start[i + 1]].iter().map(|k| (*k, *v)));
            }
            column.sort_unstable_by_key(|(k, _)| *k);
            indices.extend(column.iter().map(|c| c.0));
            values.extend(column.iter().map(|c| c.1));
            indptr.push(indices.len());
        }
        Self { n_rows: rows.len(), indptr, indices, values }
    }

    pub(crate) fn from_checked(
        n_rows: usize,
        indptr: Vec<usize>,
        indices: Vec<u32>,
        values: Vec<f64>,
    ) -> Self {
        Self { n_rows, indptr, indices, values }
    }
}

fn check_rows(n: usize) -> Result<(), SolveError> {
    if u32::try_from(n).is_ok() {
        return Ok(());
    }
    Err(SolveError::invalid("n_rows", "at most 2^32 - 1", n, "split the matrix"))
}

/// Checks the arrays of a compressed matrix with `outer` compressed slices over `inner` places.
pub(super) fn check_parts(
    inner: usize,
    outer: usize,
    indptr: &[usize],
    indices: &[u32],
    values: &[f64],
) -> Result<(), SolveError> {
    check_rows(inner)?;
    check_dimension("indptr", outer.saturating_add(1), "slices plus one", indptr.len())?;
    check_dimension("values", indices.len(), "as many as indices", values.len())?;
    check_dimension("indptr", indices.len(), "last value: number of entries", indptr[outer])?;
    check_finite("values", values)?;
    let rises = indptr[0] == 0 && indptr.windows(2).all(|w| w[0] <= w[1]);
    if !rises {
        return Err(SolveError::invalid(
            "indptr",
            "values that rise from 0",
            "a falling value",
            "sort the entries",
        ));
    }
    for j in 0..outer {
        let slice = &indices[indptr[j]..indptr[j + 1]];
        let rises = slice.windows(2).all(|w| w[0] < w[1]);
        if !rises || slice.last().is_some_and(|i| *i as usize >= inner) {
            return Err(SolveError::invalid(
                "indices",
                "strictly rising places inside the matrix",
                format!("slice {j} breaks this"),
                "build it with `from_triplets`",
            ));
        }
    }
    Ok(())
}

/// The arrays of the transpose.
pub(super) fn transpose(
    inner: usize,
    indptr: &[usize],
    indices: &[u32],
    values: &[f64],
) -> (Vec<usize>, Vec<u32>, Vec<f64>) {
    let mut out = vec![0; inner + 1];
    for i in indices {
        out[*i as usize + 1] += 1;
    }
    for i in 0..inner {
        out[i + 1] += out[i];
    }
    let mut next = out.clone();
    let (mut places, mut entries) = (vec![0; indices.len()], vec![0.0; values.len()]);
    for j in 0..indptr.len() - 1 {
        for k in indptr[j]..indptr[j + 1] {
            let at = &mut next[indices[k] as usize];
            places[*at] = j as u32;
            entries[*at] = values[k];
            *at += 1;
        }
    }
    (out, places, entries)
}

impl LinOp for Csc {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.indptr.len() - 1
    }

    fn apply(&self, x: &[f64], y: &mut [f64]) {
        y.fill(0.0);
        for (j, &v) in x.iter().enumerate() {
            if v != 0.0 {
                scatter(self.column(j), v, y);
            }
        }
    }

    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        if self.nnz() < 1 << 16 {
            x.iter_mut().enumerate().for_each(|(j, x)| *x = gather(self.column(j), y));
        } else {
            x.par_iter_mut().enumerate().with_min_len(64).for_each(|(j, x)| *x = gather(self.column(j), y));
        }
    }
}

/// `Σ values[k]·y[indices[k]]`.
#[inline]
pub(super) fn gather((indices, values): (&[u32], &[f64]), y: &[f64]) -> f64 {
    let mut lanes = [0.0; 4];
    let (ci, cv) = (indices.chunks_exact(4), values.chunks_exact(4));
    let (ri, rv) = (ci.remainder(), cv.remainder());
    for (i, v) in ci.zip(cv) {
        for l in 0..4 {
            lanes[l] += v[l] * y[i[l] as usize];
        }
    }
    let tail: f64 = ri.iter().zip(rv).map(|(i, v)| v * y[*i as usize]).sum();
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]) + tail
}

/// `y[indices[k]] += alpha·values[k]`.
#[inline]
pub(super) fn scatter((indices, values): (&[u32], &[f64]), alpha: f64, y: &mut [f64]) {
    for (i, v) in indices.iter().zip(values) {
        y[*i as usize] += alpha * v;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::{tests::check_against, to_dense};
    use proptest::prelude::*;

    #[test]
    fn by_hand_with_duplicates_and_an_empty_column() {
        // [1 0 5; 0 0 2+4]
        let a = Csc::from_triplets(2, 3, &[(1, 2, 2.0), (0, 0, 1.0), (0, 2, 5.0), (1, 2, 4.0)]).unwrap();
        assert_eq!(a.indptr(), [0, 1, 1, 3]);
        assert_eq!(a.column(2), (&[0, 1][..], &[5.0, 6.0][..]));
        assert_eq!(a.nnz(), 3);
        check_against(&a, &crate::linop::dense_from_rows(&[[1.0, 0.0, 5.0], [0.0, 0.0, 6.0]]).unwrap());
        assert_eq!(a.to_csr().to_csc(), a);
        assert_eq!(
            to_dense(&a.select_rows(&[1, 1, 0])),
            crate::linop::dense_from_rows(&[[0.0, 0.0, 6.0], [0.0, 0.0, 6.0], [1.0, 0.0, 5.0]]).unwrap()
        );
    }

    #[test]
    fn each_wrong_array_is_named() {
        let parts = |ptr: &[usize], i: &[u32], v: &[f64]| {
            Csc::from_parts(2, 2, ptr.to_vec(), i.to_vec(), v.to_vec()).unwrap_err().to_string()
        };
        assert!(parts(&[0, 1], &[0], &[1.0]).contains("`indptr`"));
        assert!(parts(&[0, 1, 2], &[0], &[1.0]).contains("`indptr`"));
        assert!(parts(&[0, 2, 1], &[0], &[1.0]).contains("`indptr`"));
        assert!(parts(&[0, 1, 2], &[0, 2], &[1.0, 1.0]).contains("`indices`"));
        assert!(parts(&[0, 2, 2], &[1, 0], &[1.0, 1.0]).contains("`indices`"));
        assert!(parts(&[0, 1, 2], &[0, 1], &[1.0]).contains("`values`"));
        assert!(parts(&[0, 1, 2], &[0, 1], &[1.0, f64::NAN]).contains("not finite"));
        assert!(Csc::from_triplets(2, 2, &[(2, 0, 1.0)]).is_err());
        assert!(Csc::from_triplets(2, 2, &[(0, 0, f64::INFINITY)]).is_err());
    }

    proptest! {
        #[test]
        fn products_agree_with_the_dense_matrix(entries in prop::collection::vec((0..13_usize, 0..9_usize, -1.0..1.0), 0..80)) {
            let a = Csc::from_triplets(13, 9, &entries).unwrap();
            let mut want = faer::Mat::zeros(13, 9);
            for (i, j, v) in &entries {
                want[(*i, *j)] += v;
            }
            check_against(&a, &want);
            check_against(&a.to_csr(), &want);
            let again = Csc::from_parts(13, 9, a.indptr().to_vec(), a.indices().to_vec(), a.values().to_vec());
            prop_assert_eq!(again.unwrap(), a);
        }
    }
}
