//! N:M packed — exactly N stored values for each aligned group of M consecutive inputs of a row.
//!
//! # Layout
//! Row-major. `masks` holds one bit per weight: row `r` is `ceil(cols / 32)` words of `u32`, bit `c % 32` of word `c / 32`; the
//! bits behind the last column are 0. In each group of M bits exactly N are set. `values[rows, cols / M, N]` are
//! the values at the set bits, column ascending. A group with fewer than N non-zeros is filled up with explicit
//! zeros at its lowest free positions, so no offsets are needed: the place of a group is known from its number.
//!
//! Size: `e · rows · cols · N/M + 4 · rows · ceil(cols / 32)` bytes: 0.531 of dense f32 and 0.5625 of dense bf16 at 2:4 and 4:8.
//! One bit per weight is never larger than indices for 2:4 (2 bits per value) and smaller for 4:8 (3 bits).

use std::borrow::Cow;

use super::{Element, check_len, check_version, malformed, product};
use crate::SparsityError;

/// Version of the layout written by [`NmPacked::parts`].
pub const VERSION: u32 = 1;
/// Largest M.
pub const MAX_M: usize = 32;
const FORMAT: &str = "n:m packed";

/// A matrix with at most N non-zeros in each aligned group of M consecutive inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct NmPacked<T> {
    n: usize,
    m: usize,
    rows: usize,
    cols: usize,
    masks: Vec<u32>,
    values: Vec<T>,
}

/// The arrays of an [`NmPacked`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct NmParts<'a, T: Clone> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Values per group.
    pub n: usize,
    /// Weights per group.
    pub m: usize,
    /// `[rows, ceil(cols / 32)]` mask words.
    pub masks: Cow<'a, [u32]>,
    /// `[rows, cols / m, n]` values.
    pub values: Cow<'a, [T]>,
}

impl<T: Element> NmPacked<T> {
    /// Packs the row-major `w[rows, cols]`, which must already have the pattern.
    ///
    /// # Errors
    /// [`SparsityError::PatternParameters`] for an impossible N:M or naming the first group with more than `n` non-zeros,
    /// [`SparsityError::DoesNotDivide`], [`SparsityError::Malformed`] when `w` has not `rows * cols` elements.
    pub fn encode(w: &[T], rows: usize, cols: usize, n: usize, m: usize) -> Result<Self, SparsityError> {
        check_pattern(cols, n, m)?;
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        let words = cols.div_ceil(32);
        let mut masks = vec![0u32; product(FORMAT, rows, words)?];
        let mut values = Vec::with_capacity(rows * (cols / m) * n);
        for row in 0..rows {
            let line = &w[row * cols..(row + 1) * cols];
            let mask = &mut masks[row * words..(row + 1) * words];
            for (g, group) in line.chunks_exact(m).enumerate() {
                let mut bits = (0..m).filter(|i| !group[*i].is_zero()).fold(0u32, |b, i| b | 1 << i);
                let found = bits.count_ones() as usize;
                if found > n {
                    return Err(SparsityError::PatternParameters {
                        pattern: format!("{n}:{m} in row {row}, columns {}..{}", g * m, g * m + m),
                        reason: "the group has more than N non-zeros; prune to this pattern first",
                    });
                }
                for _ in found..n {
                    bits |= 1 << (!bits).trailing_zeros();
                }
                for (i, v) in group.iter().enumerate() {
                    if bits >> i & 1 == 1 {
                        values.push(if v.is_zero() { T::default() } else { *v });
                        let c = g * m + i;
                        mask[c / 32] |= 1 << (c % 32);
                    }
                }
            }
        }
        Ok(Self { n, m, rows, cols, masks, values })
    }

    /// The row-major dense matrix `[rows, cols]`; absent weights are `+0.0`.
    pub fn decode(&self) -> Vec<T> {
        let mut out = vec![T::default(); self.rows * self.cols];
        if self.cols > 0 {
            for (row, line) in out.chunks_exact_mut(self.cols).enumerate() {
                self.decode_row(row, line);
            }
        }
        out
    }

    /// Writes the `cols` weights of `row` to `out`. Panics when `row >= rows` or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [T]) {
        assert_eq!(out.len(), self.cols, "decode_row needs one element per column");
        let words = self.cols.div_ceil(32);
        let per_row = self.cols / self.m * self.n;
        let mut values = self.values[row * per_row..(row + 1) * per_row].iter();
        for (w, word) in self.masks[row * words..(row + 1) * words].iter().enumerate() {
            let end = self.cols.min(w * 32 + 32);
            for (i, o) in out[w * 32..end].iter_mut().enumerate() {
                let kept = word >> i & 1 == 1;
                // The counts were checked when the matrix was made, so `values` cannot run dry.
                *o = if kept { values.next().copied().unwrap_or_default() } else { T::default() };
            }
        }
    }

    /// The same matrix with values widened to `f32`, which is exact; for types without kernels of their own.
    pub fn to_f32(&self) -> NmPacked<f32> {
        NmPacked {
            n: self.n,
            m: self.m,
            rows: self.rows,
            cols: self.cols,
            masks: self.masks.clone(),
            values: self.values.iter().map(|v| v.to_f32()).collect(),
        }
    }

    /// Mask words of `row`: bit `c % 32` of word `c / 32` is column `c`.
    pub fn row_masks(&self, row: usize) -> &[u32] {
        let words = self.cols.div_ceil(32);
        &self.masks[row * words..(row + 1) * words]
    }

    /// Values of `row`: `[cols / m, n]`, columns ascending.
    pub fn row_values(&self, row: usize) -> &[T] {
        let per_row = self.cols / self.m * self.n;
        &self.values[row * per_row..(row + 1) * per_row]
    }

    /// Values per group.
    pub fn n(&self) -> usize {
        self.n
    }
    /// Weights per group.
    pub fn m(&self) -> usize {
        self.m
    }
    /// Rows, `d_out`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns, `d_in`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Stored values, explicit zeros included: `rows * cols * n / m`.
    pub fn nnz(&self) -> usize {
        self.values.len()
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        self.masks.len() * 4 + self.values.len() * T::BYTES
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> NmParts<'_, T> {
        NmParts {
            version: VERSION,
            n: self.n,
            m: self.m,
            masks: Cow::Borrowed(&self.masks),
            values: Cow::Borrowed(&self.values),
        }
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// The pattern errors of [`NmPacked::encode`]; [`SparsityError::Malformed`] naming the array, what was expected and
    /// what was found: version, lengths, a group whose bits are not exactly `n`, bits behind the last column.
    pub fn from_parts(rows: usize, cols: usize, parts: NmParts<'_, T>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        let (n, m) = (parts.n, parts.m);
        check_pattern(cols, n, m)?;
        product(FORMAT, rows, cols)?;
        let words = cols.div_ceil(32);
        check_len(FORMAT, "masks", product(FORMAT, rows, words)?, parts.masks.len())?;
        // (cols / m) * n <= cols, so this product is smaller than rows * cols, which did not overflow.
        check_len(FORMAT, "values", rows * (cols / m * n), parts.values.len())?;
        let group_bits = ((1u64 << m) - 1) as u32;
        for row in 0..rows {
            let mask = &parts.masks[row * words..(row + 1) * words];
            if !cols.is_multiple_of(32) && mask[words - 1] >> (cols % 32) != 0 {
                return Err(malformed(
                    FORMAT,
                    "masks",
                    format!("no bits behind the last column in row {row}"),
                    "some",
                ));
            }
            for g in 0..cols / m {
                let (word, bit) = (g * m / 32, g * m % 32);
                let next = mask.get(word + 1).copied().unwrap_or(0);
                let bits = ((u64::from(next) << 32 | u64::from(mask[word])) >> bit) as u32 & group_bits;
                if bits.count_ones() as usize != n {
                    let expected = format!("{n} bits set in row {row}, columns {}..{}", g * m, g * m + m);
                    return Err(malformed(FORMAT, "masks", expected, bits.count_ones()));
                }
            }
        }
        Ok(Self { n, m, rows, cols, masks: parts.masks.into_owned(), values: parts.values.into_owned() })
    }
}

/// `1 <= n <= m`, `2 <= m <= 32`, `m` divides `cols`.
fn check_pattern(cols: usize, n: usize, m: usize) -> Result<(), SparsityError> {
    if n == 0 || n > m || !(2..=MAX_M).contains(&m) {
        return Err(SparsityError::PatternParameters {
            pattern: format!("{n}:{m}"),
            reason: "packed storage needs 1 <= N <= M and 2 <= M <= 32",
        });
    }
    if !cols.is_multiple_of(m) {
        return Err(SparsityError::DoesNotDivide {
            pattern: format!("{n}:{m}"),
            dimension: "cols (d_in)",
            unit: m,
            found: cols,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use half::bf16;
    use proptest::prelude::*;

    use super::super::test_support::{bits, n_of_m, shorten};
    use super::*;

    fn refused(change: impl FnOnce(&mut NmParts<'_, f32>)) -> &'static str {
        let p = NmPacked::encode(&n_of_m(1, 3, 36, 2, 4), 3, 36, 2, 4).unwrap();
        let mut parts = p.parts();
        change(&mut parts);
        match NmPacked::from_parts(3, 36, parts) {
            Err(SparsityError::Malformed { field, .. }) => field,
            Err(SparsityError::PatternParameters { .. } | SparsityError::DoesNotDivide { .. }) => "pattern",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_hand() {
        // Group one has its two values; group two has one, at position 3, and is filled up at position 0.
        let p = NmPacked::encode(&[0.0, 5.0, 6.0, 0.0, 0.0, -0.0, 0.0, 7.0f32], 1, 8, 2, 4).unwrap();
        assert_eq!(p.parts().masks.as_ref(), [0b1001_0110]);
        assert_eq!(bits(p.parts().values.as_ref()), bits(&[5.0, 6.0, 0.0, 7.0]));
        assert_eq!((p.nnz(), p.bytes()), (4, 4 + 16));
        assert_eq!(bits(&p.decode()), bits(&[0.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 7.0]));
        assert_eq!((p.row_masks(0), p.row_values(0).len()), (&[0b1001_0110][..], 4));
    }

    #[test]
    fn size_at_two_four() {
        let w = n_of_m(3, 32, 1024, 2, 4);
        let narrow: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
        assert_eq!(NmPacked::encode(&w, 32, 1024, 2, 4).unwrap().bytes(), 32 * 1024 * 17 / 8);
        assert_eq!(NmPacked::encode(&narrow, 32, 1024, 2, 4).unwrap().bytes(), 32 * 1024 * 9 / 8);
    }

    #[test]
    fn weights_without_the_pattern_are_refused_naming_the_group() {
        let mut w = vec![0.0f32; 16];
        w[13..].fill(1.0);
        let message = NmPacked::encode(&w, 2, 8, 2, 4).unwrap_err().to_string();
        assert!(message.contains("2:4 in row 1, columns 4..8"), "{message}");
        assert!(matches!(NmPacked::encode(&w, 2, 8, 2, 3), Err(SparsityError::DoesNotDivide { .. })));
        for (n, m) in [(0, 4), (5, 4), (1, 1), (1, 33), (1, 0)] {
            assert!(matches!(NmPacked::encode(&w, 2, 8, n, m), Err(SparsityError::PatternParameters { .. })));
        }
    }

    #[test]
    fn wrong_version_pattern_and_lengths_are_refused() {
        assert_eq!(refused(|p| p.version = 7), "version");
        assert_eq!(refused(|p| p.m = 0), "pattern");
        assert_eq!(refused(|p| p.m = usize::MAX), "pattern");
        assert_eq!(refused(|p| p.m = 5), "pattern");
        assert_eq!(refused(|p| p.n = 3), "values");
        assert_eq!(refused(|p| shorten(p.masks.to_mut())), "masks");
        assert_eq!(refused(|p| shorten(p.values.to_mut())), "values");
    }

    #[test]
    fn lying_masks_are_refused() {
        // A bit more, a bit behind the last column, a bit moved between groups.
        assert_eq!(refused(|p| p.masks.to_mut()[2] = u32::MAX), "masks");
        assert_eq!(refused(|p| p.masks.to_mut()[1] |= 1 << 4), "masks");
        assert_eq!(refused(|p| p.masks.to_mut()[0] = 0xffff), "masks");
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let p = NmPacked::encode(&[1.0f32, 0.0], 1, 2, 1, 2).unwrap();
        assert!(NmPacked::from_parts(usize::MAX, 2, p.parts()).is_err());
        assert!(NmPacked::from_parts(usize::MAX, 0, p.parts()).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(seed: u64, rows in 0usize..9, groups in 0usize..20, m in 2usize..=32, share in 0.0f64..1.0) {
            let n = 1 + (share * m as f64) as usize;
            let w = n_of_m(seed, rows, groups * m, n, m);
            let p = NmPacked::encode(&w, rows, groups * m, n, m).unwrap();
            prop_assert_eq!(bits(&p.decode()), bits(&w));
            prop_assert_eq!(bits(&p.to_f32().decode()), bits(&w));
            prop_assert_eq!(&NmPacked::from_parts(rows, groups * m, p.parts()).unwrap(), &p);
        }
    }
}
