//! Counting: non-zeros, bytes and floating-point operations, before anything is encoded.
//!
//! Bytes are those of the arrays of a format, in memory and in a file, without file headers; they
//! equal what the encoders of [`crate::formats`] report. Floating-point operations count one
//! multiplication and one addition for each stored weight and each position it is applied to: the
//! arithmetic that is needed, which is not a running time.

use std::fmt;

use crate::error::SparsityError;
use crate::formats::bitmask_panel::PANEL_ROWS;
use crate::pattern::Pattern;

/// A layout whose size and arithmetic can be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Every weight, zeros included.
    Dense,
    /// [`crate::formats::BitmaskPanel`].
    BitmaskPanel,
    /// [`crate::formats::NmPacked`].
    NmPacked {
        /// Values stored per group.
        n: usize,
        /// Length of a group.
        m: usize,
    },
    /// [`crate::formats::Csr`].
    Csr,
    /// `sparse-bitmask` of the compressed-tensors package: row-major bit mask, values, row offsets.
    SparseBitmask,
    /// `sparse-24-bitmask` of the compressed-tensors package: bit mask and two values per group of 4.
    Sparse24Bitmask,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Dense => f.pad("dense"),
            Format::BitmaskPanel => f.pad("bitmask-panel"),
            Format::NmPacked { n, m } => f.pad(&format!("nm-packed {n}:{m}")),
            Format::Csr => f.pad("csr"),
            Format::SparseBitmask => f.pad("sparse-bitmask"),
            Format::Sparse24Bitmask => f.pad("sparse-24-bitmask"),
        }
    }
}

/// Number of values that are not zero; `-0.0` is a zero, NaN is not.
#[must_use]
pub fn nnz(w: &[f32]) -> usize {
    w.iter().filter(|&&v| v != 0.0).count()
}

/// The counts of one layer: all that sizes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCount {
    rows: usize,
    cols: usize,
    nnz: usize,
}

impl LayerCount {
    /// A weight `[rows, cols]` with `nnz` non-zeros.
    ///
    /// # Errors
    ///
    /// [`SparsityError::TooLarge`] when the shape overflows, [`SparsityError::Count`] for more
    /// non-zeros than elements.
    pub fn new(rows: usize, cols: usize, nnz: usize) -> Result<LayerCount, SparsityError> {
        let available = crate::error::checked_area("layer", rows, cols)?;
        if nnz > available {
            return Err(SparsityError::Count { what: "non-zeros of a layer", asked: nnz, available });
        }
        Ok(LayerCount { rows, cols, nnz })
    }

    /// Weights, zeros included.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// Non-zeros.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.nnz
    }

    /// Fraction of zeros; 0 for a layer without weights.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        zero_fraction(self.nnz as u64, self.elements() as u64)
    }

    /// Values a format stores, explicit zeros included.
    ///
    /// # Errors
    ///
    /// [`SparsityError::PatternParameters`], [`SparsityError::DoesNotDivide`] for a group that does
    /// not fit the shape; [`SparsityError::Count`] when the non-zeros cannot fit the groups.
    pub fn stored_values(&self, format: Format) -> Result<usize, SparsityError> {
        let (n, m) = match format {
            Format::Dense => return Ok(self.elements()),
            Format::BitmaskPanel | Format::Csr | Format::SparseBitmask => return Ok(self.nnz),
            Format::NmPacked { n, m } => (n, m),
            Format::Sparse24Bitmask => (2, 4),
        };
        Pattern::NM { n, m }.check_shape(self.rows, self.cols)?;
        let stored = self.elements() / m * n;
        if self.nnz > stored {
            return Err(SparsityError::Count {
                what: "places for non-zeros in the groups of the format",
                asked: self.nnz,
                available: stored,
            });
        }
        Ok(stored)
    }

    /// Bytes of the layer in `format` with values of `value_bytes` bytes.
    ///
    /// # Errors
    ///
    /// Those of [`LayerCount::stored_values`]; [`SparsityError::TooLarge`] when the size overflows.
    pub fn bytes(&self, format: Format, value_bytes: usize) -> Result<u64, SparsityError> {
        let values = self.stored_values(format)? as u128 * value_bytes as u128;
        let (rows, cols) = (self.rows as u128, self.cols as u128);
        let panels = rows.div_ceil(PANEL_ROWS as u128);
        let index = match format {
            Format::Dense => 0,
            Format::BitmaskPanel => panels * cols * 4 + (panels + 1) * 8,
            Format::NmPacked { .. } => rows * cols.div_ceil(32) * 4,
            Format::Csr => (rows + 1) * 8 + self.nnz as u128 * 4,
            // Mask bytes, i64 row offsets, i64 shape of two entries.
            Format::SparseBitmask => rows * cols.div_ceil(8) + rows * 8 + 16,
            Format::Sparse24Bitmask => rows * cols.div_ceil(8) + 16,
        };
        to_u64("bytes of a layer", values + index)
    }

    /// Floating-point operations in `format` when applied to `positions` inputs (tokens, or output
    /// positions of a convolution).
    ///
    /// # Errors
    ///
    /// As [`LayerCount::bytes`].
    pub fn flops(&self, format: Format, positions: u64) -> Result<u64, SparsityError> {
        let stored = self.stored_values(format)? as u128;
        to_u64("operations of a layer", (stored * 2).saturating_mul(u128::from(positions)))
    }
}

/// Sums over the layers of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Layers counted.
    pub layers: u64,
    /// Weights, zeros included.
    pub elements: u64,
    /// Non-zeros.
    pub nnz: u64,
    /// Bytes if every layer were dense.
    pub dense_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Floating-point operations if every layer were dense.
    pub dense_flops: u64,
    /// Floating-point operations as stored.
    pub stored_flops: u64,
}

impl Tally {
    /// Adds a layer stored in `format` with values of `value_bytes` bytes, applied to `positions`
    /// inputs. Nothing is added on error.
    ///
    /// # Errors
    ///
    /// Those of [`LayerCount::bytes`] and [`LayerCount::flops`]; [`SparsityError::TooLarge`] when a
    /// sum overflows.
    pub fn add(
        &mut self,
        layer: &LayerCount,
        format: Format,
        value_bytes: usize,
        positions: u64,
    ) -> Result<(), SparsityError> {
        let one = Tally {
            layers: 1,
            elements: layer.elements() as u64,
            nnz: layer.nnz() as u64,
            dense_bytes: layer.bytes(Format::Dense, value_bytes)?,
            stored_bytes: layer.bytes(format, value_bytes)?,
            dense_flops: layer.flops(Format::Dense, positions)?,
            stored_flops: layer.flops(format, positions)?,
        };
        *self = self.plus(&one)?;
        Ok(())
    }

    /// The sum of two tallies.
    ///
    /// # Errors
    ///
    /// [`SparsityError::TooLarge`] when a sum overflows.
    pub fn plus(&self, other: &Tally) -> Result<Tally, SparsityError> {
        let sum = |a: u64, b: u64| to_u64("a sum over layers", u128::from(a) + u128::from(b));
        Ok(Tally {
            layers: sum(self.layers, other.layers)?,
            elements: sum(self.elements, other.elements)?,
            nnz: sum(self.nnz, other.nnz)?,
            dense_bytes: sum(self.dense_bytes, other.dense_bytes)?,
            stored_bytes: sum(self.stored_bytes, other.stored_bytes)?,
            dense_flops: sum(self.dense_flops, other.dense_flops)?,
            stored_flops: sum(self.stored_flops, other.stored_flops)?,
        })
    }

    /// Fraction of zeros over all layers; 0 when there are no weights.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        zero_fraction(self.nnz, self.elements)
    }

    /// Stored bytes over dense bytes; 1 when there are none.
    #[must_use]
    pub fn bytes_ratio(&self) -> f64 {
        ratio(self.stored_bytes, self.dense_bytes)
    }

    /// Stored operations over dense operations; 1 when there are none.
    #[must_use]
    pub fn flops_ratio(&self) -> f64 {
        ratio(self.stored_flops, self.dense_flops)
    }
}

fn zero_fraction(nnz: u64, elements: u64) -> f64 {
    match elements {
        0 => 0.0,
        all => all.saturating_sub(nnz) as f64 / all as f64,
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 1.0,
        whole => part as f64 / whole as f64,
    }
}

fn to_u64(what: &'static str, value: u128) -> Result<u64, SparsityError> {
    u64::try_from(value).map_err(|_| SparsityError::TooLarge { what, detail: value.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::formats::{BitmaskPanel, Csr, Element, NmPacked};
    use crate::{Group, select};
    use half::bf16;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // 2 x 8, 4 non-zeros, f32.
        let layer = LayerCount::new(2, 8, 4).unwrap();
        assert_eq!(layer.bytes(Format::Dense, 4), Ok(64));
        assert_eq!(layer.bytes(Format::BitmaskPanel, 4), Ok(16 + 8 * 4 + 2 * 8));
        assert_eq!(layer.bytes(Format::NmPacked { n: 2, m: 4 }, 4), Ok(32 + 8));
        assert_eq!(layer.bytes(Format::Csr, 4), Ok(16 + 16 + 3 * 8));
        assert_eq!(layer.bytes(Format::SparseBitmask, 4), Ok(16 + 2 + 16 + 16));
        assert_eq!(layer.bytes(Format::Sparse24Bitmask, 4), Ok(32 + 2 + 16));
        assert_eq!(layer.flops(Format::Dense, 3), Ok(96));
        assert_eq!(layer.flops(Format::Csr, 3), Ok(24));
        assert_eq!(layer.flops(Format::NmPacked { n: 2, m: 4 }, 3), Ok(48));
        assert_eq!(layer.sparsity(), 0.75);
    }

    #[test]
    fn promised_ratios_hold() {
        let ratio = |layer: LayerCount, format, e: usize| {
            layer.bytes(format, e).unwrap() as f64 / layer.bytes(Format::Dense, e).unwrap() as f64
        };
        let sparse = LayerCount::new(4096, 4096, 4096 * 4096 * 3 / 10).unwrap();
        assert!(ratio(sparse, Format::BitmaskPanel, 4) <= 0.36);
        assert!(ratio(sparse, Format::BitmaskPanel, 2) <= 0.40);
        let half = LayerCount::new(4096, 4096, 4096 * 2048).unwrap();
        assert!((ratio(half, Format::Sparse24Bitmask, 2) - 0.5625).abs() < 1e-5);
        assert!((ratio(half, Format::NmPacked { n: 2, m: 4 }, 2) - 0.5625).abs() < 1e-5);
    }

    #[test]
    fn hostile_counts() {
        assert!(LayerCount::new(usize::MAX, 2, 0).is_err());
        assert!(LayerCount::new(2, 2, 5).is_err());
        let layer = LayerCount::new(2, 6, 3).unwrap();
        assert!(layer.bytes(Format::Sparse24Bitmask, 4).is_err());
        assert!(layer.bytes(Format::NmPacked { n: 3, m: 2 }, 4).is_err());
        let full = LayerCount::new(1, 4, 3).unwrap();
        assert!(matches!(full.bytes(Format::Sparse24Bitmask, 4), Err(SparsityError::Count { .. })));
        let huge = LayerCount::new(1 << 40, 1 << 20, 1 << 60).unwrap();
        assert!(huge.bytes(Format::Dense, 64).is_err());
        assert!(huge.flops(Format::Dense, u64::MAX).is_err());
        assert_eq!(LayerCount::new(0, 5, 0).unwrap().sparsity(), 0.0);
    }

    #[test]
    fn tally_adds_up_and_stays_on_error() {
        let mut tally = Tally::default();
        assert_eq!((tally.sparsity(), tally.bytes_ratio()), (0.0, 1.0));
        tally.add(&LayerCount::new(4, 8, 16).unwrap(), Format::NmPacked { n: 2, m: 4 }, 2, 1).unwrap();
        tally.add(&LayerCount::new(4, 8, 32).unwrap(), Format::Dense, 2, 1).unwrap();
        assert_eq!((tally.layers, tally.elements, tally.nnz), (2, 64, 48));
        assert_eq!(tally.sparsity(), 0.25);
        assert_eq!((tally.dense_bytes, tally.stored_bytes), (128, 32 + 16 + 64));
        assert_eq!((tally.dense_flops, tally.stored_flops), (128, 96));
        let before = tally;
        assert!(tally.add(&LayerCount::new(1, 3, 0).unwrap(), Format::Sparse24Bitmask, 2, 1).is_err());
        assert_eq!(tally, before);
    }

    fn check_encoders<T: Element>(w: &[T], rows: usize, cols: usize) {
        let count = w.iter().filter(|v| !v.is_zero()).count();
        let layer = LayerCount::new(rows, cols, count).unwrap();
        let panel = BitmaskPanel::encode(w, rows, cols).unwrap();
        assert_eq!(layer.bytes(Format::BitmaskPanel, T::BYTES), Ok(panel.bytes() as u64));
        let csr = Csr::encode(w, rows, cols).unwrap();
        assert_eq!(layer.bytes(Format::Csr, T::BYTES), Ok(csr.bytes() as u64));
        let packed = NmPacked::encode(w, rows, cols, 2, 4).unwrap();
        let format = Format::NmPacked { n: 2, m: 4 };
        assert_eq!(layer.bytes(format, T::BYTES), Ok(packed.bytes() as u64));
        assert_eq!(layer.stored_values(format), Ok(packed.nnz()));
    }

    proptest! {
        #[test]
        fn predicted_bytes_are_those_of_the_encoders(
            (rows, groups, scores) in (1usize..70, 1usize..30).prop_flat_map(|(r, g)| {
                (Just(r), Just(g), proptest::collection::vec(0.01f32..9.0, r * g * 4))
            }),
            sparsity in 0.0f64..1.0,
        ) {
            let cols = groups * 4;
            let mut w = scores.clone();
            select::n_of_m(&scores, rows, cols, 2, 4).unwrap().apply(&mut w);
            select::unstructured(&scores, rows, cols, Group::Tensor, sparsity).unwrap().apply(&mut w);
            check_encoders(&w, rows, cols);
            let narrow: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            check_encoders(&narrow, rows, cols);
            prop_assert_eq!(nnz(&w), w.iter().filter(|v| v.abs() > 0.0).count());
        }
    }
}
