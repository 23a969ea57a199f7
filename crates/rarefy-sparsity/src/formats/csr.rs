//! CSR — compressed sparse rows: for each row the ascending column indices of its non-zeros and their values.
//!
//! # Layout
//! `row_ptr[rows + 1]` (u64, from 0 to `nnz`), `columns[nnz]` (u32, strictly ascending inside a row), `values[nnz]`.
//! Size: `(e + 4) nnz + 8 (rows + 1)` bytes, larger than dense below half zeros in f32 and below two thirds in bf16.

use std::borrow::Cow;

use super::{Element, check_len, check_offsets, check_version, malformed, product, too_large};
use crate::SparsityError;

/// Version of the layout written by [`Csr::parts`].
pub const VERSION: u32 = 1;
const FORMAT: &str = "csr";

/// A sparse matrix by rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Csr<T> {
    rows: usize,
    cols: usize,
    row_ptr: Vec<u64>,
    columns: Vec<u32>,
    values: Vec<T>,
}

/// The arrays of a [`Csr`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct CsrParts<'a, T: Clone> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// `[rows + 1]` starts of the rows, from 0 to `nnz`.
    pub row_ptr: Cow<'a, [u64]>,
    /// `[nnz]` column indices, ascending inside a row.
    pub columns: Cow<'a, [u32]>,
    /// `[nnz]` values.
    pub values: Cow<'a, [T]>,
}

impl<T: Element> Csr<T> {
    /// Packs the non-zeros of the row-major `w[rows, cols]`.
    ///
    /// # Errors
    /// [`SparsityError::TooLarge`] when `cols` exceeds `u32` or the shape overflows; [`SparsityError::Malformed`] when `w` has not
    /// `rows * cols` elements.
    pub fn encode(w: &[T], rows: usize, cols: usize) -> Result<Self, SparsityError> {
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        check_cols(rows, cols)?;
        let (mut row_ptr, mut columns, mut values) = (Vec::with_capacity(rows + 1), Vec::new(), Vec::new());
        row_ptr.push(0);
        for r in 0..rows {
            for (c, v) in w[r * cols..(r + 1) * cols].iter().enumerate() {
                if !v.is_zero() {
                    columns.push(c as u32);
                    values.push(*v);
                }
            }
            row_ptr.push(values.len() as u64);
        }
        Ok(Self { rows, cols, row_ptr, columns, values })
    }

    /// The row-major dense matrix `[rows, cols]`; absent weights are `+0.0`.
    pub fn decode(&self) -> Vec<T> {
        let mut out = vec![T::default(); self.rows * self.cols];
        for r in 0..self.rows {
            for (c, v) in self.row(r) {
                out[r * self.cols + c] = v;
            }
        }
        out
    }

    /// The `(column, value)` pairs of row `r`, columns ascending. Panics when `r >= rows`.
    pub fn row(&self, r: usize) -> impl Iterator<Item = (usize, T)> + '_ {
        let range = self.row_ptr[r] as usize..self.row_ptr[r + 1] as usize;
        self.columns[range.clone()].iter().zip(&self.values[range]).map(|(c, v)| (*c as usize, *v))
    }

    /// Rows, `d_out`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns, `d_in`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Stored values.
    pub fn nnz(&self) -> usize {
        self.values.len()
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        self.row_ptr.len() * 8 + self.columns.len() * 4 + self.values.len() * T::BYTES
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> CsrParts<'_, T> {
        CsrParts {
            version: VERSION,
            row_ptr: Cow::Borrowed(&self.row_ptr),
            columns: Cow::Borrowed(&self.columns),
            values: Cow::Borrowed(&self.values),
        }
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Malformed`] naming the array, what was expected and what was found: version, lengths, row starts
    /// that do not begin at 0, fall or leave `values`, column indices out of range, repeated or unsorted.
    pub fn from_parts(rows: usize, cols: usize, parts: CsrParts<'_, T>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        product(FORMAT, rows, cols)?;
        check_cols(rows, cols)?;
        let n_ptr = rows.checked_add(1).ok_or_else(|| too_large(FORMAT, rows, cols))?;
        check_len(FORMAT, "row_ptr", n_ptr, parts.row_ptr.len())?;
        check_len(FORMAT, "columns", parts.values.len(), parts.columns.len())?;
        check_offsets(FORMAT, "row_ptr", &parts.row_ptr, parts.values.len())?;
        for row in 0..rows {
            let (begin, end) = (parts.row_ptr[row], parts.row_ptr[row + 1]);
            let mut least = 0;
            for position in begin as usize..end as usize {
                let found = parts.columns[position];
                if (found as usize) < least || found as usize >= cols {
                    let expected = format!("ascending indices below {cols} in row {row}");
                    return Err(malformed(
                        FORMAT,
                        "columns",
                        expected,
                        format_args!("{found} at position {position}"),
                    ));
                }
                least = found as usize + 1;
            }
        }
        Ok(Self {
            rows,
            cols,
            row_ptr: parts.row_ptr.into_owned(),
            columns: parts.columns.into_owned(),
            values: parts.values.into_owned(),
        })
    }
}

/// Column indices are `u32`.
fn check_cols(rows: usize, cols: usize) -> Result<(), SparsityError> {
    if u32::try_from(cols).is_ok() { Ok(()) } else { Err(too_large(FORMAT, rows, cols)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::test_support::{bits, shorten, sparse};
    use super::*;

    fn refused(change: impl FnOnce(&mut CsrParts<'_, f32>)) -> &'static str {
        // Rows (0, 1), (), (1): columns 0 1 | | 1.
        let c = Csr::encode(&[1.0, 2.0, 0.0, 0.0, 0.0, 3.0], 3, 2).unwrap();
        let mut parts = c.parts();
        change(&mut parts);
        match Csr::from_parts(3, 2, parts) {
            Err(SparsityError::Malformed { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_hand() {
        let c = Csr::encode(&[1.0, 2.0, 0.0, -0.0, 0.0, 3.0f32], 3, 2).unwrap();
        assert_eq!(c.parts().row_ptr.as_ref(), [0, 2, 2, 3]);
        assert_eq!(c.parts().columns.as_ref(), [0, 1, 1]);
        assert_eq!(c.parts().values.as_ref(), [1.0, 2.0, 3.0]);
        assert_eq!(c.bytes(), 4 * 8 + 3 * 4 + 3 * 4);
        assert_eq!(c.row(0).collect::<Vec<_>>(), [(0, 1.0), (1, 2.0)]);
    }

    #[test]
    fn wrong_version_and_lengths_are_refused() {
        assert_eq!(refused(|p| p.version = 0), "version");
        assert_eq!(refused(|p| shorten(p.row_ptr.to_mut())), "row_ptr");
        assert_eq!(refused(|p| shorten(p.columns.to_mut())), "columns");
        assert_eq!(refused(|p| shorten(p.values.to_mut())), "columns");
    }

    #[test]
    fn lying_row_starts_are_refused() {
        assert_eq!(refused(|p| p.row_ptr.to_mut()[0] = 1), "row_ptr");
        assert_eq!(refused(|p| p.row_ptr.to_mut()[1] = u64::MAX), "row_ptr");
        assert_eq!(refused(|p| p.row_ptr.to_mut()[2] = 1), "row_ptr");
        assert_eq!(refused(|p| p.row_ptr.to_mut()[3] = 2), "row_ptr");
    }

    #[test]
    fn columns_out_of_range_repeated_or_unsorted_are_refused() {
        assert_eq!(refused(|p| p.columns.to_mut()[2] = 2), "columns");
        assert_eq!(refused(|p| p.columns.to_mut()[1] = 0), "columns");
        assert_eq!(refused(|p| p.columns.to_mut().swap(0, 1)), "columns");
        assert_eq!(refused(|p| p.columns.to_mut()[0] = u32::MAX), "columns");
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let c = Csr::encode(&[1.0f32], 1, 1).unwrap();
        for (rows, cols) in [(usize::MAX, 1), (usize::MAX, 2), (1, usize::MAX)] {
            assert!(Csr::from_parts(rows, cols, c.parts()).is_err(), "{rows} x {cols}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seed: u64, rows in 0usize..40, cols in 0usize..40, density in 0.0f64..=1.0) {
            let w = sparse(seed, rows * cols, density);
            let c = Csr::encode(&w, rows, cols).unwrap();
            prop_assert_eq!(bits(&c.decode()), bits(&w));
            prop_assert_eq!(&Csr::from_parts(rows, cols, c.parts()).unwrap(), &c);
        }
    }
}
