//! Group-sparse quantised (GQSA) — only the kept groups of `G` consecutive weights of a row, as codes.
//!
//! # Layout
//! Block-sparse rows of 1×G. `row_index[rows + 1]` (u32, from 0 to the number of kept groups) counts the groups before each row; the arrays
//! below run over the kept groups, rows and then columns ascending: `values` (`G · b / 8` bytes each, low nibble first), `scales`, `zeros` (nibbles
//! or bytes, one stream; empty when symmetric). Where the groups stand is told by the smaller of
//! - a **bitmap**, one bit per group position, rows on whole `u32` words (`ceil(cols / G / 32)` of them, unused bits 0), or
//! - **indices**, one `u16` per kept group, smaller below one kept group in 16.
//!
//! Size: `nnzg · (G b / 8 + 2 + b / 8) + 4 (rows + 1)` plus columns; at half of the groups, 4 bits, G = 16: 2.69 bits per original weight.
//! `cols` must be a multiple of G.
//!
//! Quantised from the weights of kept groups only, which are whole, so pruned weights have no say in a scale.

use std::borrow::Cow;

use super::super::checksum::Checksum;
use super::super::{check_len, check_version, malformed, product, too_large};
use super::quantiser::{QuantSettings, Scales, Scheme, check_finite, decode_code, get_code, push_code};
use crate::SparsityError;

/// Version of the layout written by [`GroupSparse::parts`].
pub const VERSION: u32 = 1;
const FORMAT: &str = "group-sparse";

/// Where the kept groups stand.
#[derive(Debug, Clone, PartialEq)]
pub enum Columns {
    /// `[rows, ceil(groups / 32)]` words, bit `g % 32` of word `g / 32` = group `g` is kept.
    Bitmap(Vec<u32>),
    /// Group numbers, ascending inside a row.
    Index(Vec<u16>),
}

/// A matrix of kept groups.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSparse {
    rows: usize,
    cols: usize,
    settings: QuantSettings,
    row_index: Vec<u32>,
    columns: Columns,
    values: Vec<u8>,
    scales: Scales,
    zeros: Vec<u8>,
}

/// The arrays of a [`GroupSparse`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSparseParts<'a> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Bits, group, scheme and type of scales.
    pub settings: QuantSettings,
    /// `[rows + 1]` kept groups before each row.
    pub row_index: Cow<'a, [u32]>,
    /// Positions of the groups.
    pub columns: Cow<'a, Columns>,
    /// Codes of the groups.
    pub values: Cow<'a, [u8]>,
    /// One scale per kept group.
    pub scales: Cow<'a, Scales>,
    /// One zero point per kept group, or empty.
    pub zeros: Cow<'a, [u8]>,
    /// XXH3 of shape, settings and arrays.
    pub checksum: u64,
}

impl GroupSparse {
    /// Quantises the groups of the row-major `w[rows, cols]` for which `keep[row * (cols / G) + group]`.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], [`SparsityError::DoesNotDivide`], [`SparsityError::Malformed`] for a wrong length of `w` or `keep`,
    /// [`SparsityError::NonFinite`] for kept weights, [`SparsityError::TooLarge`].
    pub fn encode(
        w: &[f32],
        rows: usize,
        cols: usize,
        keep: &[bool],
        settings: QuantSettings,
    ) -> Result<Self, SparsityError> {
        let groups = check_shape(rows, cols, settings)?;
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        check_len(FORMAT, "keep", product(FORMAT, rows, groups)?, keep.len())?;
        let words = groups.div_ceil(32);
        let count = keep.iter().filter(|k| **k).count();
        if u32::try_from(count).is_err() {
            return Err(too_large(FORMAT, rows, cols));
        }
        let as_bitmap = rows * words * 4 <= count * 2;
        let mut columns = if as_bitmap {
            Columns::Bitmap(vec![0; rows * words])
        } else {
            Columns::Index(Vec::with_capacity(count))
        };
        let mut row_index = Vec::with_capacity(rows + 1);
        row_index.push(0);
        let mut values = Vec::with_capacity(count * settings.code_bytes(settings.group));
        let mut scales = Scales::with_capacity(settings.scales, count);
        let mut zeros = Vec::new();
        for row in 0..rows {
            for g in (0..groups).filter(|g| keep[row * groups + g]) {
                let group = &w[row * cols + g * settings.group..][..settings.group];
                check_finite("kept weights", group)?;
                match &mut columns {
                    Columns::Bitmap(b) => b[row * words + g / 32] |= 1 << (g % 32),
                    Columns::Index(i) => i.push(g as u16),
                }
                let (s, z) = settings.fit(group)?;
                if settings.scheme == Scheme::Asymmetric {
                    push_code(&mut zeros, settings.bits, scales.len(), z);
                }
                scales.push(s);
                for (i, v) in group.iter().enumerate() {
                    push_code(&mut values, settings.bits, i, settings.code(*v, s, z));
                }
            }
            row_index.push(scales.len() as u32);
        }
        Ok(Self { rows, cols, settings, row_index, columns, values, scales, zeros })
    }

    /// Quantises the groups that hold a non-zero weight.
    ///
    /// # Errors
    /// As [`GroupSparse::encode`].
    pub fn encode_nonzero(
        w: &[f32],
        rows: usize,
        cols: usize,
        settings: QuantSettings,
    ) -> Result<Self, SparsityError> {
        check_shape(rows, cols, settings)?;
        let keep: Vec<bool> = w.chunks(settings.group).map(|g| g.iter().any(|v| *v != 0.0)).collect();
        Self::encode(w, rows, cols, &keep, settings)
    }

    /// The decoded row-major matrix; pruned weights are `+0.0`. It takes `4 rows · cols` bytes, however few groups are kept.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let size = self.settings.group;
        for row in 0..self.rows {
            let mut values = self.row_values(row);
            for g in self.row_columns(row) {
                let group = &mut out[row * self.cols + g * size..][..size];
                group.iter_mut().zip(&mut values).for_each(|(w, v)| *w = v);
            }
        }
        out
    }

    /// The decoded weights of the kept groups of a row, ascending. Panics when `row >= rows`.
    pub fn row_values(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let size = self.settings.group;
        let kept = self.row_index[row] as usize * size..self.row_index[row + 1] as usize * size;
        kept.map(move |at| {
            let code = get_code(&self.values, self.settings.bits, at);
            decode_code(code, self.zero(at / size), self.scales.get(at / size))
        })
    }

    /// The kept groups of a row, ascending. Panics when `row >= rows`.
    pub fn row_columns(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let (bitmap, index): (&[u32], &[u16]) = match &self.columns {
            Columns::Bitmap(b) => {
                let words = self.groups().div_ceil(32);
                (&b[row * words..(row + 1) * words], &[])
            }
            Columns::Index(i) => (&[], &i[self.row_index[row] as usize..self.row_index[row + 1] as usize]),
        };
        let set = |(i, word): (usize, &u32)| {
            let word = *word;
            (0..32).filter(move |b| word >> b & 1 == 1).map(move |b| i * 32 + b)
        };
        bitmap.iter().enumerate().flat_map(set).chain(index.iter().map(|g| *g as usize))
    }

    fn zero(&self, i: usize) -> u8 {
        self.settings.fixed_zero().unwrap_or_else(|| get_code(&self.zeros, self.settings.bits, i))
    }

    /// Rows, `d_out`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns, `d_in`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// How it was quantised.
    pub fn settings(&self) -> QuantSettings {
        self.settings
    }
    /// Group positions of a row.
    pub fn groups(&self) -> usize {
        self.cols / self.settings.group
    }
    /// Kept groups.
    pub fn kept(&self) -> usize {
        self.scales.len()
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        let columns = match &self.columns {
            Columns::Bitmap(b) => b.len() * 4,
            Columns::Index(i) => i.len() * 2,
        };
        self.row_index.len() * 4 + columns + self.values.len() + self.scales.bytes() + self.zeros.len()
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> GroupSparseParts<'_> {
        GroupSparseParts {
            version: VERSION,
            settings: self.settings,
            row_index: Cow::Borrowed(&self.row_index),
            columns: Cow::Borrowed(&self.columns),
            values: Cow::Borrowed(&self.values),
            scales: Cow::Borrowed(&self.scales),
            zeros: Cow::Borrowed(&self.zeros),
            checksum: self.checksum(),
        }
    }

    fn checksum(&self) -> u64 {
        let q = self.settings;
        let header = [
            self.rows as u64,
            self.cols as u64,
            q.bits.into(),
            q.group as u64,
            u64::from(q.scheme == Scheme::Symmetric),
        ];
        let sum = Checksum::new(&header).array(&self.row_index);
        let sum = match &self.columns {
            Columns::Bitmap(b) => sum.array(b),
            Columns::Index(i) => sum.array(i),
        };
        super::sum_scales(sum.array(&self.values), &self.scales).array(&self.zeros).finish()
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], [`SparsityError::DoesNotDivide`], or [`SparsityError::Malformed`] naming the array: version, lengths, counts that
    /// fall or leave the arrays, bitmaps that do not count a row's groups or name absent ones, indices out of range or unsorted, scales that are not
    /// positive and finite, padding, checksum.
    pub fn from_parts(rows: usize, cols: usize, parts: GroupSparseParts<'_>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        let q = parts.settings;
        let groups = check_shape(rows, cols, q)?;
        let n_index = rows.checked_add(1).ok_or_else(|| too_large(FORMAT, rows, cols))?;
        check_len(FORMAT, "row_index", n_index, parts.row_index.len())?;
        let n = parts.scales.len();
        let (first, last) = (parts.row_index[0], parts.row_index[rows]);
        if first != 0 || last as usize != n || parts.row_index.windows(2).any(|w| w[1] < w[0]) {
            let found = format_args!("{first} to {last}").to_string();
            return Err(malformed(
                FORMAT,
                "row_index",
                format_args!("counts that rise from 0 to {n}"),
                found,
            ));
        }
        check_len(FORMAT, "values", product(FORMAT, n, q.code_bytes(q.group))?, parts.values.len())?;
        super::check_scales(FORMAT, q, n, &parts.scales)?;
        super::check_zeros(FORMAT, q, n, &parts.zeros)?;
        let counts = |row: usize| (parts.row_index[row] as usize, parts.row_index[row + 1] as usize);
        match parts.columns.as_ref() {
            Columns::Bitmap(bits) => {
                let words = groups.div_ceil(32);
                check_len(FORMAT, "columns", product(FORMAT, rows, words)?, bits.len())?;
                for row in 0..rows {
                    let line = &bits[row * words..(row + 1) * words];
                    let (begin, end) = counts(row);
                    let found: u32 = line.iter().map(|w| w.count_ones()).sum();
                    if found as usize != end - begin {
                        let expected = format_args!("{} groups in row {row}", end - begin).to_string();
                        return Err(malformed(FORMAT, "columns", expected, found));
                    }
                    if groups % 32 != 0 && line[words - 1] >> (groups % 32) != 0 {
                        return Err(malformed(
                            FORMAT,
                            "columns",
                            format_args!("groups below {groups}"),
                            "one beyond",
                        ));
                    }
                }
            }
            Columns::Index(index) => {
                check_len(FORMAT, "columns", n, index.len())?;
                for row in 0..rows {
                    let (begin, end) = counts(row);
                    let line = &index[begin..end];
                    if line.windows(2).any(|w| w[1] <= w[0])
                        || line.last().is_some_and(|g| *g as usize >= groups)
                    {
                        let expected = format_args!("ascending numbers below {groups}").to_string();
                        return Err(malformed(
                            FORMAT,
                            "columns",
                            expected,
                            format_args!("others in row {row}"),
                        ));
                    }
                }
            }
        }
        let found = parts.checksum;
        let out = Self {
            rows,
            cols,
            settings: q,
            row_index: parts.row_index.into_owned(),
            columns: parts.columns.into_owned(),
            values: parts.values.into_owned(),
            scales: parts.scales.into_owned(),
            zeros: parts.zeros.into_owned(),
        };
        super::check_sum(FORMAT, out.checksum(), found)?;
        Ok(out)
    }
}

/// The group positions of a row.
fn check_shape(rows: usize, cols: usize, q: QuantSettings) -> Result<usize, SparsityError> {
    q.validate()?;
    product(FORMAT, rows, cols)?;
    if !cols.is_multiple_of(q.group) {
        return Err(SparsityError::DoesNotDivide {
            pattern: format!("group:{}", q.group),
            dimension: "cols (d_in)",
            unit: q.group,
            found: cols,
        });
    }
    let groups = cols / q.group;
    if groups > 1 << 16 { Err(too_large(FORMAT, rows, cols)) } else { Ok(groups) }
}

#[cfg(test)]
#[path = "group_sparse_tests.rs"]
mod tests;
