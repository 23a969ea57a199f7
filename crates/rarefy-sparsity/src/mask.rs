//! A bit per weight: kept or pruned.

use std::fmt;

use crate::error::{SparsityError, checked_area};
use crate::pattern::Pattern;

/// A bit set over a weight `[rows, cols]`; bit 1 means kept.
///
/// Bit `c mod 64` (least significant first) of word `c / 64` of a row belongs to column `c`. Each
/// row starts at a word boundary; the unused high bits of its last word are 0. Two masks are
/// equal exactly when their shapes and bits are.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    words_per_row: usize,
    words: Vec<u64>,
}

impl Mask {
    /// A mask that keeps every weight.
    ///
    /// # Panics
    ///
    /// When `rows · cols` exceeds the address space; check sizes from files first.
    #[must_use]
    pub fn all_kept(rows: usize, cols: usize) -> Mask {
        let mut mask = Mask::all_pruned(rows, cols);
        let last = last_word(cols);
        if mask.words_per_row > 0 {
            for row in mask.words.chunks_exact_mut(mask.words_per_row) {
                row.fill(u64::MAX);
                row[row.len() - 1] = last;
            }
        }
        mask
    }

    /// A mask that prunes every weight.
    ///
    /// # Panics
    ///
    /// When `rows · cols` exceeds the address space; check sizes from files first.
    #[must_use]
    pub fn all_pruned(rows: usize, cols: usize) -> Mask {
        assert!(rows.checked_mul(cols).is_some(), "a mask of {rows} x {cols} exceeds the address space");
        let words_per_row = cols.div_ceil(64);
        Mask { rows, cols, words_per_row, words: vec![0; rows * words_per_row] }
    }

    /// A mask that keeps `(row, column)` where `keep` says so; asked in row-major order, once each.
    ///
    /// # Panics
    ///
    /// When `rows · cols` exceeds the address space.
    #[must_use]
    pub fn from_fn(rows: usize, cols: usize, mut keep: impl FnMut(usize, usize) -> bool) -> Mask {
        let mut mask = Mask::all_pruned(rows, cols);
        for r in 0..rows {
            mask.fill_row(r, |c| keep(r, c));
        }
        mask
    }

    /// A mask that keeps what is not zero in `w` (row-major); `-0.0` is a zero, NaN is not.
    ///
    /// # Panics
    ///
    /// When `w.len() != rows · cols`.
    #[must_use]
    pub fn from_nonzeros(w: &[f32], rows: usize, cols: usize) -> Mask {
        assert_eq!(Some(w.len()), rows.checked_mul(cols), "length of w");
        Mask::from_fn(rows, cols, |r, c| w[r * cols + c] != 0.0)
    }

    /// A mask from stored words, laid out as in [`Mask::row_words`], row after row.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Length`] for a wrong number of words, [`SparsityError::TooLarge`] for an
    /// impossible shape, [`SparsityError::Malformed`] when a padding bit is set.
    pub fn from_words(rows: usize, cols: usize, words: Vec<u64>) -> Result<Mask, SparsityError> {
        checked_area("mask", rows, cols)?;
        let words_per_row = cols.div_ceil(64);
        let expected = rows * words_per_row;
        if words.len() != expected {
            return Err(SparsityError::Length { what: "mask words", expected, found: words.len() });
        }
        let last = last_word(cols);
        if words_per_row > 0 {
            for (r, row) in words.chunks_exact(words_per_row).enumerate() {
                if row[row.len() - 1] & !last != 0 {
                    return Err(SparsityError::Malformed {
                        format: "mask",
                        field: "padding bits",
                        expected: "zeros".into(),
                        found: format!("a one in row {r}"),
                    });
                }
            }
        }
        Ok(Mask { rows, cols, words_per_row, words })
    }

    /// Number of rows, `d_out`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, `d_in`.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the weight at row `r`, column `c` is kept.
    ///
    /// # Panics
    ///
    /// Outside the shape.
    #[must_use]
    pub fn get(&self, r: usize, c: usize) -> bool {
        self.check_place(r, c);
        self.words[r * self.words_per_row + c / 64] >> (c % 64) & 1 == 1
    }

    /// Keeps or prunes the weight at row `r`, column `c`.
    ///
    /// # Panics
    ///
    /// Outside the shape.
    pub fn set(&mut self, r: usize, c: usize, kept: bool) {
        self.check_place(r, c);
        let word = &mut self.words[r * self.words_per_row + c / 64];
        let bit = 1 << (c % 64);
        if kept { *word |= bit } else { *word &= !bit }
    }

    /// Sets a whole row: column `c` is kept where `keep(c)`; asked in ascending order, once each.
    ///
    /// # Panics
    ///
    /// When there is no row `r`.
    pub fn fill_row(&mut self, r: usize, mut keep: impl FnMut(usize) -> bool) {
        assert!(r < self.rows, "row {r} of a mask with {} rows", self.rows);
        let cols = self.cols;
        let start = r * self.words_per_row;
        for (w, word) in self.words[start..start + self.words_per_row].iter_mut().enumerate() {
            *word = 0;
            for c in w * 64..cols.min(w * 64 + 64) {
                *word |= u64::from(keep(c)) << (c % 64);
            }
        }
    }

    /// Keeps in row `r` what scores above `threshold`; returns how many those are.
    pub(crate) fn fill_row_above(&mut self, r: usize, scores: &[f32], threshold: f32) -> usize {
        assert!(r < self.rows && scores.len() == self.cols, "row {r} and {} scores", scores.len());
        let start = r * self.words_per_row;
        let mut kept = 0;
        let words = &mut self.words[start..start + self.words_per_row];
        for (word, part) in words.iter_mut().zip(scores.chunks(64)) {
            // Byte by byte: eight comparisons become one instruction or two.
            let (bytes, rest) = part.as_chunks::<8>();
            let bits =
                |s: &[f32]| s.iter().enumerate().fold(0u64, |b, (i, &s)| b | u64::from(s > threshold) << i);
            *word = bytes.iter().enumerate().fold(0, |w, (b, eight)| w | bits(eight) << (8 * b));
            if !rest.is_empty() {
                *word |= bits(rest) << (8 * bytes.len());
            }
            kept += word.count_ones() as usize;
        }
        kept
    }

    /// The words of row `r`.
    ///
    /// # Panics
    ///
    /// When there is no row `r`.
    #[must_use]
    pub fn row_words(&self, r: usize) -> &[u64] {
        assert!(r < self.rows, "row {r} of a mask with {} rows", self.rows);
        &self.words[r * self.words_per_row..(r + 1) * self.words_per_row]
    }

    /// The kept columns of row `r`, ascending.
    ///
    /// # Panics
    ///
    /// When there is no row `r`.
    pub fn kept_columns(&self, r: usize) -> impl Iterator<Item = usize> + '_ {
        self.row_words(r).iter().enumerate().flat_map(|(w, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                Some(w * 64 + bit)
            })
        })
    }

    /// Number of kept weights.
    #[must_use]
    pub fn kept(&self) -> usize {
        popcount(&self.words)
    }

    /// Number of pruned weights.
    #[must_use]
    pub fn pruned(&self) -> usize {
        self.rows * self.cols - self.kept()
    }

    /// Number of kept weights of row `r`.
    ///
    /// # Panics
    ///
    /// When there is no row `r`.
    #[must_use]
    pub fn kept_in_row(&self, r: usize) -> usize {
        popcount(self.row_words(r))
    }

    /// Fraction of pruned weights; 0 for a mask without elements.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        match self.rows * self.cols {
            0 => 0.0,
            all => self.pruned() as f64 / all as f64,
        }
    }

    /// Writes exactly `+0.0` at every pruned place of `w` (row-major); kept values stay bit for bit.
    ///
    /// # Panics
    ///
    /// When `w.len() != rows · cols`.
    pub fn apply(&self, w: &mut [f32]) {
        assert_eq!(w.len(), self.rows * self.cols, "length of w");
        if self.cols == 0 {
            return;
        }
        for (r, row) in w.chunks_exact_mut(self.cols).enumerate() {
            for (values, &word) in row.chunks_mut(64).zip(self.row_words(r)) {
                for (bit, value) in values.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *value = 0.0;
                    }
                }
            }
        }
    }

    /// The places kept by both masks.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Length`] when the shapes differ.
    pub fn and(&self, other: &Mask) -> Result<Mask, SparsityError> {
        for (what, expected, found) in [
            ("rows of the second mask", self.rows, other.rows),
            ("cols of the second mask", self.cols, other.cols),
        ] {
            if expected != found {
                return Err(SparsityError::Length { what, expected, found });
            }
        }
        let mut out = self.clone();
        for (a, b) in out.words.iter_mut().zip(&other.words) {
            *a &= b;
        }
        Ok(out)
    }

    /// Whether the mask has the shape `pattern` asks for: at most `n` kept per group for N:M, each
    /// unit wholly kept or wholly pruned for blocks, row groups and channels. A pattern that does
    /// not tile the shape is not satisfied; [`Pattern::Unstructured`] always is.
    #[must_use]
    pub fn satisfies(&self, pattern: &Pattern) -> bool {
        if pattern.check_shape(self.rows, self.cols).is_err() {
            return false;
        }
        match *pattern {
            Pattern::Unstructured => true,
            Pattern::NM { n, m } => {
                (0..self.rows).all(|r| (0..self.cols / m).all(|g| self.kept_between(r, g * m, m) <= n))
            }
            Pattern::Block { rows, cols } => self.is_constant_on_blocks(rows, cols),
            Pattern::RowGroup { len } => self.is_constant_on_blocks(1, len),
            Pattern::Channel => self.cols == 0 || self.is_constant_on_blocks(1, self.cols),
        }
    }

    /// Number of kept weights in columns `start..start + len` of row `r`.
    pub(crate) fn kept_between(&self, r: usize, start: usize, len: usize) -> usize {
        let words = self.row_words(r);
        let end = start + len;
        let mut count = 0;
        let mut at = start;
        while at < end {
            let take = (64 - at % 64).min(end - at);
            count += (words[at / 64] >> (at % 64) & low_bits(take)).count_ones() as usize;
            at += take;
        }
        count
    }

    fn is_constant_on_blocks(&self, block_rows: usize, block_cols: usize) -> bool {
        let unit = block_rows * block_cols;
        (0..self.rows / block_rows).all(|br| {
            (0..self.cols / block_cols).all(|bc| {
                let kept: usize = (0..block_rows)
                    .map(|i| self.kept_between(br * block_rows + i, bc * block_cols, block_cols))
                    .sum();
                kept == 0 || kept == unit
            })
        })
    }

    fn check_place(&self, r: usize, c: usize) {
        assert!(
            r < self.rows && c < self.cols,
            "place ({r}, {c}) of a mask of {} x {}",
            self.rows,
            self.cols
        );
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({} x {}, {} kept)", self.rows, self.cols, self.kept())?;
        if self.rows * self.cols > 0 && self.rows <= 16 && self.cols <= 64 {
            for r in 0..self.rows {
                let row: String = (0..self.cols).map(|c| if self.get(r, c) { '1' } else { '.' }).collect();
                write!(f, "\n  {row}")?;
            }
        }
        Ok(())
    }
}

/// The lowest `count` bits set, `count` in `0..=64`.
pub(crate) fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The valid bits of the last word of a row of `cols` columns.
fn last_word(cols: usize) -> u64 {
    match cols % 64 {
        0 => u64::MAX,
        rest => low_bits(rest),
    }
}

fn popcount(words: &[u64]) -> usize {
    words.iter().map(|w| w.count_ones() as usize).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn any_mask() -> impl Strategy<Value = (usize, usize, Vec<bool>)> {
        (0usize..6, 0usize..140).prop_flat_map(|(rows, cols)| {
            (Just(rows), Just(cols), proptest::collection::vec(any::<bool>(), rows * cols))
        })
    }

    #[test]
    fn by_hand() {
        let mut mask = Mask::from_fn(2, 3, |r, c| r == c);
        assert_eq!((mask.row_words(0), mask.row_words(1)), (&[0b001][..], &[0b010][..]));
        mask.set(1, 2, true);
        mask.set(0, 0, false);
        assert_eq!((mask.kept(), mask.pruned(), mask.kept_in_row(1)), (2, 4, 2));
        let mut w = [1.0, -0.0, f32::NAN, -2.0, 3.0, 4.0];
        mask.apply(&mut w);
        assert_eq!(w.map(f32::to_bits), [0.0, 0.0, 0.0, 0.0, 3.0, 4.0].map(f32::to_bits));
        assert_eq!(format!("{mask:?}"), "Mask(2 x 3, 2 kept)\n  ...\n  .11");
    }

    #[test]
    fn nonzeros_know_signed_zero_and_nan() {
        let mask = Mask::from_nonzeros(&[0.0, -0.0, f32::NAN, 1e-45], 1, 4);
        assert_eq!(mask.row_words(0), [0b1100]);
    }

    #[test]
    fn patterns_by_hand() {
        let rows = |text: [&str; 2]| Mask::from_fn(2, text[0].len(), |r, c| text[r].as_bytes()[c] == b'1');
        let mask = rows(["11001010", "00000011"]);
        assert!(mask.satisfies(&Pattern::NM { n: 2, m: 4 }));
        assert!(!mask.satisfies(&Pattern::NM { n: 1, m: 4 }));
        assert!(!mask.satisfies(&Pattern::RowGroup { len: 2 }));
        assert!(!mask.satisfies(&Pattern::NM { n: 2, m: 3 })); // does not tile
        let blocks = rows(["110000", "110000"]);
        assert!(blocks.satisfies(&Pattern::Block { rows: 2, cols: 2 }));
        assert!(!blocks.satisfies(&Pattern::Block { rows: 2, cols: 3 }));
        assert!(!blocks.satisfies(&Pattern::Channel));
        assert!(rows(["111111", "000000"]).satisfies(&Pattern::Channel));
    }

    #[test]
    fn stored_words_are_checked() {
        assert!(Mask::from_words(1, 65, vec![u64::MAX, 1]).is_ok());
        assert!(matches!(Mask::from_words(1, 65, vec![0, 2]), Err(SparsityError::Malformed { .. })));
        assert!(matches!(Mask::from_words(2, 65, vec![0; 3]), Err(SparsityError::Length { .. })));
        assert!(Mask::from_words(usize::MAX, 2, vec![]).is_err());
        assert!(Mask::from_words(usize::MAX, 0, vec![]).is_ok());
    }

    #[test]
    fn shapes_must_agree() {
        assert!(Mask::all_kept(2, 3).and(&Mask::all_kept(3, 2)).is_err());
        assert!(Mask::all_kept(2, 3).and(&Mask::all_kept(2, 4)).is_err());
    }

    proptest! {
        #[test]
        fn bits_counts_and_padding((rows, cols, bits) in any_mask()) {
            let mask = Mask::from_fn(rows, cols, |r, c| bits[r * cols + c]);
            let kept = bits.iter().filter(|&&b| b).count();
            prop_assert_eq!((mask.kept(), mask.pruned()), (kept, rows * cols - kept));
            let mut words = Vec::new();
            for r in 0..rows {
                let row = &bits[r * cols..(r + 1) * cols];
                for (c, &bit) in row.iter().enumerate() {
                    prop_assert_eq!(mask.get(r, c), bit);
                }
                let columns: Vec<usize> = (0..cols).filter(|&c| row[c]).collect();
                prop_assert_eq!(mask.kept_columns(r).collect::<Vec<_>>(), columns);
                prop_assert_eq!(mask.kept_in_row(r), row.iter().filter(|&&b| b).count());
                prop_assert_eq!(mask.row_words(r).len(), cols.div_ceil(64));
                if cols % 64 != 0 {
                    prop_assert_eq!(mask.row_words(r).last().unwrap() >> (cols % 64), 0);
                }
                words.extend_from_slice(mask.row_words(r));
            }
            prop_assert_eq!(&Mask::from_words(rows, cols, words).unwrap(), &mask);
            // Setting every bit by hand, over dirty contents, gives the same mask.
            let mut other = Mask::all_kept(rows, cols);
            prop_assert_eq!(other.pruned(), 0);
            for r in 0..rows {
                for c in 0..cols {
                    other.set(r, c, bits[r * cols + c]);
                }
            }
            prop_assert_eq!(&other, &mask);
            prop_assert_eq!(mask.and(&Mask::all_kept(rows, cols)).unwrap(), mask.clone());
            prop_assert_eq!(mask.and(&Mask::all_pruned(rows, cols)).unwrap().kept(), 0);
            prop_assert!((0.0..=1.0).contains(&mask.sparsity()));
        }

        #[test]
        fn apply_zeroes_exactly_the_pruned((rows, cols, bits) in any_mask()) {
            let mask = Mask::from_fn(rows, cols, |r, c| bits[r * cols + c]);
            let mut w: Vec<f32> = (0..rows * cols).map(|i| -1.0 - i as f32).collect();
            mask.apply(&mut w);
            for (i, v) in w.iter().enumerate() {
                let expected = if bits[i] { -1.0 - i as f32 } else { 0.0 };
                prop_assert_eq!(v.to_bits(), expected.to_bits());
            }
            prop_assert_eq!(Mask::from_nonzeros(&w, rows, cols), mask);
        }

        #[test]
        fn ranges_count_like_bits((rows, cols, bits) in any_mask(), a in 0usize..140, b in 0usize..140) {
            prop_assume!(rows > 0);
            let (start, end) = (a.min(b).min(cols), a.max(b).min(cols));
            let mask = Mask::from_fn(rows, cols, |r, c| bits[r * cols + c]);
            let counted = (start..end).filter(|&c| mask.get(0, c)).count();
            prop_assert_eq!(mask.kept_between(0, start, end - start), counted);
        }
    }
}
