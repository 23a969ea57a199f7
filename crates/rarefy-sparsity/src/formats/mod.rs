//! Storage formats for sparse weight matrices: how a pruned `W[d_out, d_in]` is laid out in memory and in files.
//!
//! | format | for | bytes per weight (s = fraction of zeros, e = bytes per value) |
//! |---|---|---|
//! | [`bitmask_panel::BitmaskPanel`] | unstructured zeros, 30–90 % | `e (1 − s) + 1/8` |
//! | [`nm_packed::NmPacked`] | at most N non-zeros in M consecutive inputs | `e N/M + 1/8` |
//! | [`delta_block::DeltaBlock`] | blocks of B output channels × 1, 1×1 convolutions | `4 (1 − s)(1 + 1/B)` |
//! | [`csr::Csr`] | more than 90 % zeros; exchange with other packages | `(e + 4)(1 − s)` |
//! | [`tiled_csl::TiledCsl`] | unstructured zeros in f16, the layout of a GPU kernel | `4 (1 − s)` |
//! | [`quantised::BitmaskInt8`] | unstructured zeros, 8-bit codes, a scale per row or group of G | `(1 − s) + 1/8 (+ 2/G)` |
//! | [`quantised::GroupQuantised`] | dense codes of `b` bits, a scale per group of G | `b/8 + 2/G` |
//! | [`quantised::GroupSparse`] | whole groups of G zeros, `b`-bit codes | `(1 − s)(b/8 + (2 + b/8)/G) + 1/(8 G)` |
//!
//! All of them: `encode` from a dense row-major slice, `decode` back to it, `parts` (plain slices to
//! store) and `from_parts`, which trusts nothing: it checks the version, every length by checked
//! arithmetic, every count, every offset and every padding bit, so that a kernel may later index
//! without further checks.
//!
//! `-0.0` counts as zero and decodes as `+0.0`; NaN and infinities count as non-zero and survive.

pub mod bitmask_panel;
mod checksum;
pub mod csr;
pub mod delta_block;
pub mod nm_packed;
pub mod quantised;
pub mod tiled_csl;

pub use bitmask_panel::{BitmaskPanel, PanelParts};
pub use csr::{Csr, CsrParts};
pub use delta_block::{DeltaBlock, DeltaBlockParts};
pub use nm_packed::{NmPacked, NmParts};
pub use quantised::{
    BitmaskInt8, BitmaskSettings, GroupQuantised, GroupSparse, QuantSettings, ScaleType, Scheme,
};
pub use tiled_csl::{TiledCsl, TiledCslParts};

use half::{bf16, f16};

use crate::SparsityError;

/// A value type that a format can hold: `f32`, [`struct@bf16`] or [`struct@f16`].
pub trait Element: Copy + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// Name used in messages: `"f32"`, `"bf16"`, `"f16"`.
    const NAME: &'static str;
    /// Bytes of one value.
    const BYTES: usize;
    /// The value widened to `f32` (exact for all three types).
    fn to_f32(self) -> f32;
    /// True for `+0.0` and `-0.0`, false for NaN.
    fn is_zero(self) -> bool;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const BYTES: usize = 4;
    fn to_f32(self) -> f32 {
        self
    }
    fn is_zero(self) -> bool {
        self.to_bits() << 1 == 0
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const BYTES: usize = 2;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn is_zero(self) -> bool {
        self.to_bits() << 1 == 0
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const BYTES: usize = 2;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn is_zero(self) -> bool {
        self.to_bits() << 1 == 0
    }
}

/// `rows * cols`, or the error that names the format.
pub(crate) fn product(format: &'static str, rows: usize, cols: usize) -> Result<usize, SparsityError> {
    rows.checked_mul(cols).ok_or_else(|| too_large(format, rows, cols))
}

/// The shape overflows the address space or an index type.
pub(crate) fn too_large(format: &'static str, rows: usize, cols: usize) -> SparsityError {
    SparsityError::TooLarge { what: format, detail: format!("{rows} x {cols} weights") }
}

/// Stored parts that contradict the shape or each other.
pub(crate) fn malformed(
    format: &'static str,
    field: &'static str,
    expected: impl ToString,
    found: impl ToString,
) -> SparsityError {
    SparsityError::Malformed { format, field, expected: expected.to_string(), found: found.to_string() }
}

/// Fails unless the array `field` has the length that the shape asks for.
pub(crate) fn check_len(
    format: &'static str,
    field: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), SparsityError> {
    if expected == found {
        return Ok(());
    }
    Err(malformed(format, field, format_args!("{expected} elements"), found))
}

/// Fails unless the parts were written by this version of the layout.
pub(crate) fn check_version(format: &'static str, expected: u32, found: u32) -> Result<(), SparsityError> {
    if expected == found { Ok(()) } else { Err(malformed(format, "version", expected, found)) }
}

/// `offsets` has `segments + 1` entries from 0 to `nnz` and never falls.
pub(crate) fn check_offsets(
    format: &'static str,
    field: &'static str,
    offsets: &[u64],
    nnz: usize,
) -> Result<(), SparsityError> {
    let nnz = nnz as u64;
    let (first, last) =
        (offsets.first().copied().unwrap_or(u64::MAX), offsets.last().copied().unwrap_or(u64::MAX));
    if first != 0 {
        return Err(malformed(format, field, "0 at entry 0", first));
    }
    if last != nnz {
        return Err(malformed(
            format,
            field,
            format_args!("{nnz}, the number of values, at the last entry"),
            last,
        ));
    }
    match offsets.windows(2).position(|w| w[1] < w[0]) {
        None => Ok(()),
        Some(i) => Err(malformed(
            format,
            field,
            format_args!("entry {} to be at least {}", i + 1, offsets[i]),
            offsets[i + 1],
        )),
    }
}

#[cfg(test)]
mod test_support {
    /// The bits of a matrix, so that NaN and signed zeros compare.
    pub(super) fn bits(w: &[f32]) -> Vec<u32> {
        w.iter().map(|v| v.to_bits()).collect()
    }

    /// Drops the last element.
    pub(super) fn shorten<T>(v: &mut Vec<T>) {
        v.truncate(v.len() - 1);
    }

    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Values in (0, 1] with about `density` of them kept and the rest `+0.0`.
    pub(super) fn sparse(seed: u64, len: usize, density: f64) -> Vec<f32> {
        let mut s = seed;
        let mut value = || if uniform(&mut s) < density { 1.0 - 0.9 * uniform(&mut s) as f32 } else { 0.0 };
        (0..len).map(|_| value()).collect()
    }

    /// At most `n` non-zeros in each `m` consecutive values.
    pub(super) fn n_of_m(seed: u64, rows: usize, cols: usize, n: usize, m: usize) -> Vec<f32> {
        let mut w = sparse(seed, rows * cols, 0.9);
        for (g, group) in w.chunks_mut(m).enumerate() {
            for i in n..m {
                group[(g * 7 + i) % m] = 0.0;
            }
        }
        w
    }
}
