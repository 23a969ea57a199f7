//! Bitmask with 8-bit codes: unstructured zeros as one bit per weight, the others as signed bytes with a scale per row or per group of a row.
//!
//! # Layout
//! Rows are cut into panels of [`PANEL_ROWS`] = 16, columns into steps of [`STEP_COLS`] = 4; absent rows and columns have no weights. Panel `p` holds for
//! each step `s` one `u64` mask `masks[p * steps + s]` (bit `4 i + j` = row `16 p + i`, column `4 s + j` is kept) and the codes of its bits, ascending,
//! appended to `codes`. `offsets[p]..offsets[p + 1]` is the slice of `codes` of panel `p`. That is the order in which a dense kernel that multiplies
//! bytes, four columns of 16 rows at a time, reads them: one mask rebuilds one register.
//!
//! # Quantiser
//! The symmetric one of [`quantiser`](super::quantiser): `q = round(w / s)`, `|q| ≤ 127`, `s = max |w| / 127` of the row or group, rounded to the
//! type of the scales first. A weight of code 0 is not stored; it decodes as `+0.0`, as it would if it were.
//!
//! # Size
//! `nnz + panels · steps · 8` bytes of codes and masks, `(1 − s) + 1/8` per weight, scales (4 or 2 bytes per row or group) and `8 (panels + 1)`.

use std::borrow::Cow;

use super::super::checksum::Checksum;
use super::super::{check_len, check_offsets, check_version, malformed, product, too_large};
use super::quantiser::{QuantSettings, ScaleType, Scales, check_finite};
use crate::SparsityError;

/// Rows of one panel.
pub const PANEL_ROWS: usize = 16;
/// Columns of one mask.
pub const STEP_COLS: usize = 4;
/// Version of the layout written by [`BitmaskInt8::parts`].
pub const VERSION: u32 = 1;
const FORMAT: &str = "bitmask int8";

/// The weights that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleSpan {
    /// A whole row.
    Row,
    /// So many consecutive weights of a row: a multiple of 8 from 8 to 256.
    Group(usize),
}

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BitmaskSettings {
    /// The weights that share a scale.
    pub span: ScaleSpan,
    /// Type of the stored scales.
    pub scales: ScaleType,
}

impl BitmaskSettings {
    /// One f32 scale per row.
    pub fn per_row() -> Self {
        Self { span: ScaleSpan::Row, scales: ScaleType::F32 }
    }

    /// One f16 scale per group of a row: those of the dense [`QuantSettings::int8`].
    pub fn per_group(group: usize) -> Self {
        Self { span: ScaleSpan::Group(group), scales: ScaleType::F16 }
    }

    /// Scales of a row.
    pub fn scales_per_row(&self, cols: usize) -> usize {
        match self.span {
            ScaleSpan::Row => cols.min(1),
            ScaleSpan::Group(g) => cols.div_ceil(g),
        }
    }

    /// The quantiser of one span; for a row its group is never used.
    fn quantiser(&self) -> QuantSettings {
        let group = match self.span {
            ScaleSpan::Row => 8,
            ScaleSpan::Group(g) => g,
        };
        QuantSettings { scales: self.scales, ..QuantSettings::int8(group) }
    }

    fn width(&self, cols: usize) -> usize {
        match self.span {
            ScaleSpan::Row => cols.max(1),
            ScaleSpan::Group(g) => g,
        }
    }
}

/// A sparse matrix of 8-bit codes; see the module documentation for the layout.
#[derive(Debug, Clone, PartialEq)]
pub struct BitmaskInt8 {
    rows: usize,
    cols: usize,
    settings: BitmaskSettings,
    masks: Vec<u64>,
    offsets: Vec<u64>,
    codes: Vec<i8>,
    scales: Scales,
}

/// The arrays of a [`BitmaskInt8`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct BitmaskInt8Parts<'a> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Span and type of the scales.
    pub settings: BitmaskSettings,
    /// `[ceil(rows / 16), ceil(cols / 4)]` masks; bit `4 i + j` is row `i`, column `j` of the step.
    pub masks: Cow<'a, [u64]>,
    /// `[panels + 1]` starts of the panels in `codes`, from 0 to `nnz`.
    pub offsets: Cow<'a, [u64]>,
    /// `[nnz]` codes, none of them 0 or -128.
    pub codes: Cow<'a, [i8]>,
    /// Scales, `[rows]` or `[rows, ceil(cols / group)]`.
    pub scales: Cow<'a, Scales>,
    /// XXH3 of shape, settings and arrays.
    pub checksum: u64,
}

impl BitmaskInt8 {
    /// Quantises the non-zeros of the row-major `w[rows, cols]`.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], [`SparsityError::Malformed`] for a wrong length, [`SparsityError::NonFinite`], [`SparsityError::TooLarge`].
    pub fn encode(
        w: &[f32],
        rows: usize,
        cols: usize,
        settings: BitmaskSettings,
    ) -> Result<Self, SparsityError> {
        let q = settings.quantiser();
        q.validate()?;
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        check_finite("weights", w)?;
        let (n_panels, steps) = (rows.div_ceil(PANEL_ROWS), cols.div_ceil(STEP_COLS));
        let mut masks = Vec::with_capacity(product(FORMAT, n_panels, steps)?);
        let mut offsets = Vec::with_capacity(n_panels + 1);
        let (mut codes, mut scales) = (Vec::new(), Scales::with_capacity(settings.scales, 0));
        offsets.push(0);
        // Sixteen rows of codes.
        let mut tile = vec![0i8; product(FORMAT, PANEL_ROWS, cols)?];
        for panel in 0..n_panels {
            tile.fill(0);
            let height = PANEL_ROWS.min(rows - panel * PANEL_ROWS);
            for i in 0..if cols == 0 { 0 } else { height } {
                let row = (panel * PANEL_ROWS + i) * cols;
                let width = settings.width(cols);
                let spans =
                    w[row..row + cols].chunks(width).zip(tile[i * cols..(i + 1) * cols].chunks_mut(width));
                for (span, out) in spans {
                    let (s, z) = q.fit(span)?;
                    scales.push(s);
                    for (code, v) in out.iter_mut().zip(span) {
                        *code = (i16::from(q.code(*v, s, z)) - i16::from(z)) as i8;
                    }
                }
            }
            for c in (0..cols).step_by(STEP_COLS) {
                let mut mask = 0u64;
                for (i, j) in (0..height).flat_map(|i| (0..STEP_COLS.min(cols - c)).map(move |j| (i, j))) {
                    let code = tile[i * cols + c + j];
                    if code != 0 {
                        mask |= 1 << (STEP_COLS * i + j);
                        codes.push(code);
                    }
                }
                masks.push(mask);
            }
            offsets.push(codes.len() as u64);
        }
        codes.shrink_to_fit();
        Ok(Self { rows, cols, settings, masks, offsets, codes, scales })
    }

    /// The decoded row-major matrix; absent weights are `+0.0`.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for p in 0..self.n_panels() {
            let (masks, codes) = self.panel(p);
            let mut next = 0;
            for (step, mask) in masks.iter().enumerate() {
                let mut rest = *mask;
                while rest != 0 {
                    let bit = rest.trailing_zeros() as usize;
                    let (row, col) = (p * PANEL_ROWS + bit / STEP_COLS, step * STEP_COLS + bit % STEP_COLS);
                    let scale = self.scale(row, col / self.settings.width(self.cols));
                    out[row * self.cols + col] = f32::from(codes[next]) * scale;
                    next += 1;
                    rest &= rest - 1;
                }
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
    pub fn settings(&self) -> BitmaskSettings {
        self.settings
    }
    /// Stored codes.
    pub fn nnz(&self) -> usize {
        self.codes.len()
    }
    /// Panels of 16 rows.
    pub fn n_panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }
    /// Masks and codes of a panel. Panics when there is no such panel.
    pub fn panel(&self, p: usize) -> (&[u64], &[i8]) {
        let steps = self.cols.div_ceil(STEP_COLS);
        let codes = self.offsets[p] as usize..self.offsets[p + 1] as usize;
        (&self.masks[p * steps..(p + 1) * steps], &self.codes[codes])
    }
    /// Scale of a span of a row. Panics when there is none.
    pub fn scale(&self, row: usize, span: usize) -> f32 {
        self.scales.get(row * self.settings.scales_per_row(self.cols) + span)
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        self.masks.len() * 8 + self.offsets.len() * 8 + self.codes.len() + self.scales.bytes()
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> BitmaskInt8Parts<'_> {
        let mut parts = BitmaskInt8Parts {
            version: VERSION,
            settings: self.settings,
            masks: Cow::Borrowed(&self.masks),
            offsets: Cow::Borrowed(&self.offsets),
            codes: Cow::Borrowed(&self.codes),
            scales: Cow::Borrowed(&self.scales),
            checksum: 0,
        };
        parts.checksum = checksum(self.rows, self.cols, &parts);
        parts
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Setting`], or [`SparsityError::Malformed`] naming the array: version, checksum, lengths, offsets that do not start at 0, fall or
    /// leave the codes, a panel whose bits do not count its codes, bits of absent rows or columns, codes 0 and -128, scales that are not
    /// positive and finite.
    pub fn from_parts(rows: usize, cols: usize, parts: BitmaskInt8Parts<'_>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        let q = parts.settings.quantiser();
        q.validate()?;
        product(FORMAT, rows, cols)?;
        super::check_sum(FORMAT, checksum(rows, cols, &parts), parts.checksum)?;
        let (n_panels, steps) = (rows.div_ceil(PANEL_ROWS), cols.div_ceil(STEP_COLS));
        let n_offsets = n_panels.checked_add(1).ok_or_else(|| too_large(FORMAT, rows, cols))?;
        check_len(FORMAT, "masks", product(FORMAT, n_panels, steps)?, parts.masks.len())?;
        check_len(FORMAT, "offsets", n_offsets, parts.offsets.len())?;
        check_offsets(FORMAT, "offsets", &parts.offsets, parts.codes.len())?;
        let n_scales = product(FORMAT, rows, parts.settings.scales_per_row(cols))?;
        super::check_scales(FORMAT, q, n_scales, &parts.scales)?;
        for panel in 0..n_panels {
            let stored = parts.offsets[panel + 1] - parts.offsets[panel];
            let masks = &parts.masks[panel * steps..(panel + 1) * steps];
            let marked: u64 = masks.iter().map(|m| u64::from(m.count_ones())).sum();
            if marked != stored {
                let expected = format!("{stored} bits set in panel {panel}, one per code");
                return Err(malformed(FORMAT, "masks", expected, marked));
            }
            let height = PANEL_ROWS.min(rows - panel * PANEL_ROWS);
            for (step, mask) in masks.iter().enumerate() {
                let width = STEP_COLS.min(cols - step * STEP_COLS);
                let lines = if height == PANEL_ROWS { u64::MAX } else { (1 << (STEP_COLS * height)) - 1 };
                let present = lines & (0x1111_1111_1111_1111 * ((1 << width) - 1));
                if mask & !present != 0 {
                    let expected = format!("no bits of absent rows or columns in panel {panel}");
                    return Err(malformed(FORMAT, "masks", expected, format_args!("some in step {step}")));
                }
            }
        }
        if let Some(i) = parts.codes.iter().position(|c| *c == 0 || *c == i8::MIN) {
            return Err(malformed(FORMAT, "codes", "±1 to ±127", format_args!("{} at {i}", parts.codes[i])));
        }
        Ok(Self {
            rows,
            cols,
            settings: parts.settings,
            masks: parts.masks.into_owned(),
            offsets: parts.offsets.into_owned(),
            codes: parts.codes.into_owned(),
            scales: parts.scales.into_owned(),
        })
    }
}

fn checksum(rows: usize, cols: usize, parts: &BitmaskInt8Parts<'_>) -> u64 {
    let span = match parts.settings.span {
        ScaleSpan::Row => 0,
        ScaleSpan::Group(g) => g as u64,
    };
    let sum = Checksum::new(&[rows as u64, cols as u64, span]).array(&parts.masks).array(&parts.offsets);
    super::sum_scales(sum.array(&parts.codes), &parts.scales).finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::super::test_support::{bits, shorten, sparse};
    use super::super::GroupQuantised;
    use super::*;

    #[test]
    fn by_hand() {
        // Rows (127 0 -1 0 | 64), (0 0.4 0 0 | -127): scales 1, codes 127 -1 64 and -127 alone, as 0.4 rounds to 0.
        let w = [127.0, 0.0, -1.0, -0.0, 64.0, 0.0, 0.4, 0.0, 0.0, -127.0];
        let m = BitmaskInt8::encode(&w, 2, 5, BitmaskSettings::per_row()).unwrap();
        let p = m.parts();
        assert_eq!(p.masks.as_ref(), [0b0000_0101, 0b0001_0001]);
        assert_eq!(
            (p.codes.as_ref(), p.offsets.as_ref()),
            ([127, -1, 64, -127].as_slice(), [0, 4].as_slice())
        );
        assert_eq!((m.scale(0, 0), m.scale(1, 0), m.nnz()), (1.0, 1.0, 4));
        assert_eq!(m.bytes(), 2 * 8 + 2 * 8 + 4 + 2 * 4);
        let want = [127.0, 0.0, -1.0, 0.0, 64.0, 0.0, 0.0, 0.0, 0.0, -127.0];
        assert_eq!(bits(&m.decode()), bits(&want));
    }

    #[test]
    fn size_at_seventy_percent_zeros() {
        let w: Vec<f32> = (0..64 * 1024).map(|i| if i % 10 < 3 { 1.5 } else { 0.0 }).collect();
        let per = |s| BitmaskInt8::encode(&w, 64, 1024, s).unwrap().bytes() as f64 / 65536.0;
        assert!((per(BitmaskSettings::per_row()) - (0.3 + 0.125 + 4.0 / 1024.0)).abs() < 1e-3);
        assert!((per(BitmaskSettings::per_group(128)) - (0.3 + 0.125 + 2.0 / 128.0)).abs() < 1e-3);
    }

    fn refused(resum: bool, change: impl FnOnce(&mut BitmaskInt8Parts<'_>)) -> &'static str {
        let m = BitmaskInt8::encode(&sparse(3, 19 * 11, 0.4), 19, 11, BitmaskSettings::per_group(8)).unwrap();
        let mut parts = m.parts();
        change(&mut parts);
        if resum {
            parts.checksum = checksum(19, 11, &parts);
        }
        match BitmaskInt8::from_parts(19, 11, parts) {
            Err(SparsityError::Malformed { field, .. } | SparsityError::Setting { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hostile_parts_are_refused() {
        assert_eq!(refused(false, |p| p.version = 2), "version");
        assert_eq!(refused(false, |p| p.codes.to_mut()[0] ^= 2), "checksum");
        assert_eq!(refused(false, |p| p.checksum ^= 1), "checksum");
        assert_eq!(refused(false, |p| p.settings.span = ScaleSpan::Row), "checksum");
        assert_eq!(refused(true, |p| p.settings.span = ScaleSpan::Row), "scales");
        assert_eq!(refused(true, |p| p.settings.span = ScaleSpan::Group(0)), "group");
        assert_eq!(refused(true, |p| p.settings.scales = ScaleType::F32), "scales");
        assert_eq!(refused(true, |p| shorten(p.masks.to_mut())), "masks");
        assert_eq!(refused(true, |p| shorten(p.offsets.to_mut())), "offsets");
        assert_eq!(refused(true, |p| shorten(p.codes.to_mut())), "offsets");
        assert_eq!(refused(true, |p| p.offsets.to_mut()[0] = 1), "offsets");
        assert_eq!(refused(true, |p| p.offsets.to_mut()[1] = u64::MAX), "offsets");
        assert_eq!(refused(true, |p| p.offsets.to_mut()[1] -= 1), "masks");
        assert_eq!(refused(true, |p| p.masks.to_mut()[0] ^= 1), "masks");
        assert_eq!(refused(true, |p| p.codes.to_mut()[1] = 0), "codes");
        assert_eq!(refused(true, |p| p.codes.to_mut()[1] = -128), "codes");
        // A bit moved to an absent column (11 = 2 steps of 4 and 3), to an absent row (19 = 16 + 3).
        assert_eq!(refused(true, |p| move_bit(&mut p.masks.to_mut()[2], 3)), "masks");
        assert_eq!(refused(true, |p| move_bit(&mut p.masks.to_mut()[3], 12)), "masks");
        let m = BitmaskInt8::encode(&[1.0], 1, 1, BitmaskSettings::per_row()).unwrap();
        for (rows, cols) in [(usize::MAX, 2), (2, usize::MAX), (usize::MAX, 1), (2, 1)] {
            let mut parts = m.parts();
            parts.checksum = checksum(rows, cols, &parts);
            assert!(BitmaskInt8::from_parts(rows, cols, parts).is_err(), "{rows} x {cols}");
        }
        let nan = BitmaskInt8::encode(&[1.0, f32::NAN], 1, 2, BitmaskSettings::per_row());
        assert!(matches!(nan, Err(SparsityError::NonFinite { first: 1, .. })));
        assert!(BitmaskInt8::encode(&[1.0], 1, 1, BitmaskSettings::per_group(12)).is_err());
    }

    fn move_bit(mask: &mut u64, to: u32) {
        *mask = (*mask & (*mask - 1)) | 1 << to;
    }

    proptest! {
        #[test]
        fn groups_are_those_of_the_dense_format_and_the_error_is_bounded(
            seed: u64, rows in 0usize..40, cols in 0usize..70, density in 0.0f64..=1.0, by_row: bool,
        ) {
            let w = sparse(seed, rows * cols, density);
            let s = if by_row { BitmaskSettings::per_row() } else { BitmaskSettings::per_group(16) };
            let m = BitmaskInt8::encode(&w, rows, cols, s).unwrap();
            if !by_row {
                let dense = GroupQuantised::encode(&w, rows, cols, QuantSettings::int8(16)).unwrap();
                prop_assert_eq!(bits(&m.decode()), bits(&dense.decode()));
            }
            for (i, (a, b)) in w.iter().zip(m.decode()).enumerate() {
                let bound = s.quantiser().error_bound(m.scale(i / cols, i % cols / s.width(cols)));
                prop_assert!((a - b).abs() <= bound * 1.00001);
                prop_assert!(*a != 0.0 || b.to_bits() == 0);
            }
            prop_assert_eq!(&BitmaskInt8::from_parts(rows, cols, m.parts()).unwrap(), &m);
        }

        #[test]
        fn damaged_parts_never_panic(masks in proptest::collection::vec(any::<u64>(), 0..6), offsets in proptest::collection::vec(0u64..40, 0..4),
            codes in proptest::collection::vec(any::<i8>(), 0..40), scales in proptest::collection::vec(0.0f32..2.0, 0..20), rows in 0usize..36, cols in 0usize..9) {
            let mut parts = BitmaskInt8Parts { version: VERSION, settings: BitmaskSettings::per_row(), masks: masks.into(), offsets: offsets.into(),
                codes: codes.into(), scales: Cow::Owned(Scales::F32(scales)), checksum: 0 };
            parts.checksum = checksum(rows, cols, &parts);
            if let Ok(m) = BitmaskInt8::from_parts(rows, cols, parts) {
                prop_assert_eq!(m.decode().len(), rows * cols);
            }
        }
    }
}
