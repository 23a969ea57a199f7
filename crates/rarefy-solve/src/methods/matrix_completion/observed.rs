//! The observed entries, by rows and by columns, and the offsets taken off them.

use faer::MatRef;
use serde::{Deserialize, Serialize};

use crate::SolveError;
use crate::error::{check_dimension, check_finite, check_not_empty};
use crate::linop::{Csc, Triplet};

/// Compressed slices in one direction: places, values, and weights where they are not all 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slices {
    pub(super) indptr: Vec<usize>,
    pub(super) indices: Vec<u32>,
    pub(super) values: Vec<f64>,
    pub(super) weights: Option<Vec<f64>>,
}

impl Slices {
    pub(super) fn len(&self) -> usize {
        self.indptr.len() - 1
    }

    pub(super) fn slice(&self, i: usize) -> (&[u32], &[f64], Option<&[f64]>) {
        let range = self.indptr[i]..self.indptr[i + 1];
        let weights = self.weights.as_ref().map(|w| &w[range.clone()]);
        (&self.indices[range.clone()], &self.values[range], weights)
    }

    fn transposed(&self, inner: usize) -> Self {
        let (outer, nnz) = (self.len(), self.values.len());
        let mut indptr = vec![0; inner + 1];
        self.indices.iter().for_each(|i| indptr[*i as usize + 1] += 1);
        (0..inner).for_each(|i| indptr[i + 1] += indptr[i]);
        let mut next = indptr.clone();
        let (mut indices, mut values) = (vec![0; nnz], vec![0.0; nnz]);
        let mut weights = self.weights.as_ref().map(|_| vec![0.0; nnz]);
        for j in 0..outer {
            for k in self.indptr[j]..self.indptr[j + 1] {
                let at = &mut next[self.indices[k] as usize];
                indices[*at] = j as u32;
                values[*at] = self.values[k];
                if let (Some(to), Some(from)) = (&mut weights, &self.weights) {
                    to[*at] = from[k];
                }
                *at += 1;
            }
        }
        Self { indptr, indices, values, weights }
    }
}

/// A matrix of which some entries are observed, each with a weight (1 unless given). A stored 0 is an
/// observation; what is not stored is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub(super) by_row: Slices,
    pub(super) by_col: Slices,
}

impl Observed {
    /// From entries `(row, column, value)` in any order, each place at most once.
    ///
    /// # Errors
    /// [`SolveError::Empty`] without entries, [`SolveError::Invalid`] for a place outside the matrix or
    /// named twice, [`SolveError::NonFinite`].
    pub fn new(n_rows: usize, n_cols: usize, entries: &[Triplet]) -> Result<Self, SolveError> {
        check_not_empty("entries", "observed entry", entries.len())?;
        let columns = Csc::from_triplets(n_rows, n_cols, entries)?;
        if columns.nnz() < entries.len() {
            return Err(SolveError::invalid(
                "entries",
                "each place at most once",
                format!("{} repeated", entries.len() - columns.nnz()),
                "average them and give the number as the weight",
            ));
        }
        let by_col = Slices {
            indptr: columns.indptr().to_vec(),
            indices: columns.indices().to_vec(),
            values: columns.values().to_vec(),
            weights: None,
        };
        if u32::try_from(n_cols).is_err() {
            return Err(SolveError::invalid("n_cols", "at most 2^32 - 1", n_cols, "split the matrix"));
        }
        Ok(Self { by_row: by_col.transposed(n_rows), by_col })
    }

    /// From entries with a weight each, 0 or more: the square of the residual counts that many times.
    ///
    /// # Errors
    /// As [`Observed::new`]; [`SolveError::Dimension`], [`SolveError::Invalid`] for a negative weight or
    /// when all are 0.
    pub fn with_weights(
        n_rows: usize,
        n_cols: usize,
        entries: &[Triplet],
        weights: &[f64],
    ) -> Result<Self, SolveError> {
        check_dimension("weights", entries.len(), "observed entries", weights.len())?;
        check_finite("weights", weights)?;
        let total: f64 = weights.iter().sum();
        if weights.iter().any(|w| *w < 0.0) || total <= 0.0 || !total.is_finite() {
            return Err(SolveError::invalid(
                "weights",
                "0 or more, a finite sum above 0",
                format!("sum {total}"),
                "leave entries without weight out",
            ));
        }
        let mut observed = Self::new(n_rows, n_cols, entries)?;
        let weighted: Vec<Triplet> = entries.iter().zip(weights).map(|(&(i, j, _), w)| (i, j, *w)).collect();
        let sorted = Csc::from_triplets(n_rows, n_cols, &weighted)?;
        observed.by_col.weights = Some(sorted.values().to_vec());
        observed.by_row = observed.by_col.transposed(n_rows);
        Ok(observed)
    }

    /// From a dense matrix where NaN means unknown.
    ///
    /// # Errors
    /// [`SolveError::Empty`] when all are NaN, [`SolveError::NonFinite`] for an infinity.
    pub fn from_nan_mask(matrix: MatRef<'_, f64>) -> Result<Self, SolveError> {
        let places = (0..matrix.ncols()).flat_map(|j| (0..matrix.nrows()).map(move |i| (i, j)));
        let known: Vec<Triplet> =
            places.map(|(i, j)| (i, j, matrix[(i, j)])).filter(|(.., v)| !v.is_nan()).collect();
        Self::new(matrix.nrows(), matrix.ncols(), &known)
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.by_row.len()
    }

    /// Number of columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.by_col.len()
    }

    /// Number of observed entries.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.by_row.values.len()
    }

    /// The entries by rows: row, column, value.
    pub fn entries(&self) -> impl Iterator<Item = Triplet> + '_ {
        (0..self.n_rows()).flat_map(move |i| {
            let (columns, values, _) = self.by_row.slice(i);
            columns.iter().zip(values).map(move |(j, v)| (i, *j as usize, *v))
        })
    }

    pub(super) fn weight(&self, at: usize) -> f64 {
        self.by_row.weights.as_ref().map_or(1.0, |w| w[at])
    }

    /// Some of the entries, chosen by their place in [`Observed::entries`].
    pub(super) fn subset(&self, keep: impl Fn(usize) -> bool) -> Self {
        let rows = &self.by_row;
        let (mut indptr, mut indices, mut values) = (vec![0], vec![], vec![]);
        let mut weights = rows.weights.as_ref().map(|_| vec![]);
        for i in 0..rows.len() {
            for at in (rows.indptr[i]..rows.indptr[i + 1]).filter(|at| keep(*at)) {
                indices.push(rows.indices[at]);
                values.push(rows.values[at]);
                if let Some(weights) = &mut weights {
                    weights.push(self.weight(at));
                }
            }
            indptr.push(indices.len());
        }
        let by_row = Slices { indptr, indices, values, weights };
        Self { by_col: by_row.transposed(self.n_cols()), by_row }
    }

    /// With the offsets taken off.
    pub(super) fn without(&self, offsets: &Offsets) -> Self {
        let mut by_row = self.by_row.clone();
        for i in 0..by_row.len() {
            for at in by_row.indptr[i]..by_row.indptr[i + 1] {
                by_row.values[at] -= offsets.at(i, by_row.indices[at] as usize);
            }
        }
        Self { by_col: by_row.transposed(self.n_cols()), by_row }
    }
}

/// What is taken off the entries before a low rank is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Centre {
    /// Nothing.
    None,
    /// The weighted mean.
    Mean,
    /// The mean, and an offset for each row and column: the least squares fit with `damping` added to the
    /// number of observations, 0 or more.
    Biases {
        /// Pulls the offsets of rarely observed rows and columns to 0.
        damping: f64,
    },
}

/// `mean + row[i] + col[j]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offsets {
    /// The mean.
    pub mean: f64,
    /// One per row.
    pub row: Vec<f64>,
    /// One per column.
    pub col: Vec<f64>,
}

impl Offsets {
    /// The offset at `(i, j)`.
    #[must_use]
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.mean + self.row[i] + self.col[j]
    }

    /// Twenty sweeps of block coordinate descent over rows and columns.
    pub(super) fn fit(data: &Observed, centre: Centre) -> Self {
        let (m, n) = (data.n_rows(), data.n_cols());
        let mut offsets = Self { mean: 0.0, row: vec![0.0; m], col: vec![0.0; n] };
        if centre == Centre::None {
            return offsets;
        }
        let total: f64 = (0..data.nnz()).map(|at| data.weight(at)).sum();
        let sum: f64 = data.by_row.values.iter().enumerate().map(|(at, v)| data.weight(at) * v).sum();
        offsets.mean = sum / total;
        let Centre::Biases { damping } = centre else { return offsets };
        let refit = |side: &Slices, mean: f64, own: &mut [f64], other: &[f64]| {
            for (i, own) in own.iter_mut().enumerate() {
                let (places, values, weights) = side.slice(i);
                let (mut load, mut sum) = (damping, 0.0);
                for (k, (j, v)) in places.iter().zip(values).enumerate() {
                    let w = weights.map_or(1.0, |w| w[k]);
                    load += w;
                    sum += w * (v - mean - other[*j as usize]);
                }
                *own = if load > 0.0 { sum / load } else { 0.0 };
            }
        };
        for _ in 0..20 {
            refit(&data.by_col, offsets.mean, &mut offsets.col, &offsets.row);
            refit(&data.by_row, offsets.mean, &mut offsets.row, &offsets.col);
        }
        offsets
    }
}
