//! Group-quantised dense: every weight a code, one scale (and zero point) per `group` consecutive weights of a row.
//!
//! # Layout
//! Row-major. `codes`: each row starts on a byte, low nibble first for 4 bits; the unused nibble of an odd row is 0. `scales[rows,
//! ceil(cols / group)]`; `zeros` of the same count (nibbles from one stream for 4 bits) for the asymmetric scheme, empty otherwise. The last
//! group of a row may be short. Bits per weight: `b + (16 + b) / group` with zero points, `b + 16 / group` without: 4.63 and 4.5 for 4 bits
//! in groups of 32.

use std::borrow::Cow;

use super::super::checksum::Checksum;
use super::super::{check_len, check_version, malformed, product};
use super::quantiser::{QuantSettings, Scales, Scheme, check_finite, decode_code, get_code, push_code};
use crate::SparsityError;

/// Version of the layout written by [`GroupQuantised::parts`].
pub const VERSION: u32 = 1;
const FORMAT: &str = "group-quantised";

/// A dense matrix of codes.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupQuantised {
    rows: usize,
    cols: usize,
    settings: QuantSettings,
    codes: Vec<u8>,
    scales: Scales,
    zeros: Vec<u8>,
}

/// The arrays of a [`GroupQuantised`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupQuantisedParts<'a> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Bits, group, scheme and type of scales.
    pub settings: QuantSettings,
    /// Codes, rows on whole bytes.
    pub codes: Cow<'a, [u8]>,
    /// `[rows, ceil(cols / group)]` scales.
    pub scales: Cow<'a, Scales>,
    /// Zero points in the order of the scales, or empty.
    pub zeros: Cow<'a, [u8]>,
    /// XXH3 of shape, settings and arrays.
    pub checksum: u64,
}

impl GroupQuantised {
    /// Quantises the row-major `w[rows, cols]`.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], [`SparsityError::Malformed`] for a wrong length, [`SparsityError::NonFinite`].
    pub fn encode(
        w: &[f32],
        rows: usize,
        cols: usize,
        settings: QuantSettings,
    ) -> Result<Self, SparsityError> {
        settings.validate()?;
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        check_finite("weights", w)?;
        let groups = cols.div_ceil(settings.group);
        let mut codes = Vec::with_capacity(rows * settings.code_bytes(cols));
        let mut scales = Scales::with_capacity(settings.scales, rows * groups);
        let mut zeros = Vec::new();
        // Rows without columns hold nothing, however many they are said to be.
        for row in 0..if cols == 0 { 0 } else { rows } {
            let line = &w[row * cols..(row + 1) * cols];
            for (g, group) in line.chunks(settings.group).enumerate() {
                let (s, z) = settings.fit(group)?;
                if settings.scheme == Scheme::Asymmetric {
                    push_code(&mut zeros, settings.bits, scales.len(), z);
                }
                scales.push(s);
                for (i, v) in group.iter().enumerate() {
                    push_code(&mut codes, settings.bits, g * settings.group + i, settings.code(*v, s, z));
                }
            }
        }
        Ok(Self { rows, cols, settings, codes, scales, zeros })
    }

    /// The decoded row-major matrix.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for row in 0..if self.cols == 0 { 0 } else { self.rows } {
            for c in 0..self.cols {
                let g = c / self.settings.group;
                out.push(decode_code(self.code(row, c), self.zero(row, g), self.scale(row, g)));
            }
        }
        out
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
    /// Groups of a row, the last one possibly short.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.settings.group)
    }
    /// The code of one weight. Panics outside the matrix.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        let stride = self.settings.code_bytes(self.cols);
        get_code(&self.codes[row * stride..(row + 1) * stride], self.settings.bits, col)
    }
    /// The scale of a group. Panics outside the matrix.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales.get(row * self.groups() + group)
    }
    /// The zero point of a group. Panics outside the matrix.
    pub fn zero(&self, row: usize, group: usize) -> u8 {
        let i = row * self.groups() + group;
        self.settings.fixed_zero().unwrap_or_else(|| get_code(&self.zeros, self.settings.bits, i))
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes() + self.zeros.len()
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> GroupQuantisedParts<'_> {
        GroupQuantisedParts {
            version: VERSION,
            settings: self.settings,
            codes: Cow::Borrowed(&self.codes),
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
        super::sum_scales(Checksum::new(&header).array(&self.codes), &self.scales).array(&self.zeros).finish()
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], or [`SparsityError::Malformed`] naming the array: version, lengths, scales that are not positive and finite,
    /// padding nibbles that are not 0, checksum.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        parts: GroupQuantisedParts<'_>,
    ) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        let q = parts.settings;
        q.validate()?;
        product(FORMAT, rows, cols)?;
        check_len(FORMAT, "codes", product(FORMAT, rows, q.code_bytes(cols))?, parts.codes.len())?;
        let n_groups = product(FORMAT, rows, cols.div_ceil(q.group))?;
        super::check_scales(FORMAT, q, n_groups, &parts.scales)?;
        super::check_zeros(FORMAT, q, n_groups, &parts.zeros)?;
        if q.bits == 4 && cols % 2 == 1 {
            let stride = q.code_bytes(cols);
            if let Some(row) = (0..rows).find(|r| parts.codes[(r + 1) * stride - 1] > 0xf) {
                return Err(malformed(
                    FORMAT,
                    "codes",
                    "0 in the unused nibble",
                    format_args!("another in row {row}"),
                ));
            }
        }
        let found = parts.checksum;
        let out = Self {
            rows,
            cols,
            settings: q,
            codes: parts.codes.into_owned(),
            scales: parts.scales.into_owned(),
            zeros: parts.zeros.into_owned(),
        };
        super::check_sum(FORMAT, out.checksum(), found)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::super::test_support::{bits, shorten, sparse};
    use super::super::quantiser::ScaleType;
    use super::*;

    #[test]
    fn by_hand() {
        // One row of nine: groups of 8 and 1. 0 … 7: s = 7/15; 3 is code 6 (6.43), 6 is 13 (12.86). The last: 4 = 15 · 4/15.
        let w: Vec<f32> = (0..9).map(|i| if i < 8 { i as f32 } else { 4.0 }).collect();
        let q = QuantSettings { scales: ScaleType::F32, ..QuantSettings::int4(8) };
        let m = GroupQuantised::encode(&w, 1, 9, q).unwrap();
        assert_eq!(m.parts().codes.as_ref(), [0x20, 0x64, 0xb9, 0xfd, 0x0f]);
        assert_eq!((m.parts().zeros.as_ref(), m.scale(0, 1)), (&[0x00u8][..], 4.0 / 15.0));
        assert_eq!(m.bytes(), 5 + 8 + 1);
        assert_eq!(m.decode()[8], 4.0);
    }

    fn refused(change: impl FnOnce(&mut GroupQuantisedParts<'_>)) -> &'static str {
        let m = GroupQuantised::encode(&sparse(3, 33, 1.0), 3, 11, QuantSettings::int4(8)).unwrap();
        let mut parts = m.parts();
        change(&mut parts);
        match GroupQuantised::from_parts(3, 11, parts) {
            Err(SparsityError::Malformed { field, .. } | SparsityError::Setting { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hostile_parts_are_refused() {
        assert_eq!(refused(|p| p.version = 9), "version");
        assert_eq!(refused(|p| p.settings.bits = 8), "codes");
        assert_eq!(refused(|p| p.settings.group = 0), "group");
        assert_eq!(refused(|p| p.settings.group = 16), "scales");
        assert_eq!(refused(|p| p.settings.scales = ScaleType::F32), "scales");
        assert_eq!(refused(|p| p.settings.scheme = Scheme::Symmetric), "zeros");
        assert_eq!(refused(|p| shorten(p.codes.to_mut())), "codes");
        assert_eq!(refused(|p| shorten(p.zeros.to_mut())), "zeros");
        assert_eq!(refused(|p| p.codes.to_mut()[5] |= 0x10), "codes");
        assert_eq!(refused(|p| p.codes.to_mut()[0] ^= 1), "checksum");
        assert_eq!(refused(|p| p.zeros.to_mut()[0] ^= 1), "checksum");
        for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
            let set = |p: &mut GroupQuantisedParts<'_>| match p.scales.to_mut() {
                Scales::F16(v) => v[1] = half::f16::from_f32(bad),
                Scales::F32(_) => panic!("the scales are f16"),
            };
            assert_eq!(refused(set), "scales", "{bad}");
        }
        let m = GroupQuantised::encode(&[1.0], 1, 1, QuantSettings::int8(8)).unwrap();
        for (rows, cols) in [(usize::MAX, 2), (2, usize::MAX), (usize::MAX, 1), (2, 1)] {
            assert!(GroupQuantised::from_parts(rows, cols, m.parts()).is_err(), "{rows} x {cols}");
        }
        assert!(matches!(
            GroupQuantised::encode(&[1.0, f32::NAN], 1, 2, QuantSettings::int8(8)),
            Err(SparsityError::NonFinite { first: 1, .. })
        ));
    }

    proptest! {
        #[test]
        fn round_trip_is_exact_and_the_error_bounded(seed: u64, rows in 0usize..6, cols in 0usize..70, eight: bool, symmetric: bool, big: bool) {
            let w = sparse(seed, rows * cols, 0.8);
            let q = QuantSettings { bits: if eight { 8 } else { 4 }, group: if big { 32 } else { 8 },
                scheme: if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric }, scales: ScaleType::F16 };
            let m = GroupQuantised::encode(&w, rows, cols, q).unwrap();
            for (i, (a, b)) in w.iter().zip(m.decode()).enumerate() {
                let bound = q.error_bound(m.scale(i / cols, i % cols / q.group));
                prop_assert!((a - b).abs() <= bound * 1.00001);
                prop_assert!(*a != 0.0 || b.to_bits() == 0);
            }
            let again = GroupQuantised::from_parts(rows, cols, m.parts()).unwrap();
            prop_assert_eq!(bits(&again.decode()), bits(&m.decode()));
            prop_assert_eq!(again, m);
        }
    }
}
