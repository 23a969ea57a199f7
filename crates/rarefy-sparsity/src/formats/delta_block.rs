//! Delta block — blocks of `B` consecutive output channels by one input channel, with delta-coded input channels.
//!
//! The format of sparse 1×1 convolutions: the kernel walks one strip of pixels with a pointer that jumps from kept input
//! channel to kept input channel, so what is stored is the jump and not the index.
//!
//! # Layout
//! The rows are cut into `rows / B` blocks of `B` rows, and the `rows % B` rows left over follow as blocks of one. In block order:
//! * `values`: the biases of the block's rows, then, for each input channel where any of the rows has a non-zero
//!   weight (ascending), one weight per row, zeros included;
//! * `nnz[block]`: how many input channels the block stores;
//! * `diff[entry]`: the next stored input channel minus this one, walking on across blocks; the last entry jumps back to the
//!   first stored channel, so the jumps sum to zero and one walk ends where the next begins;
//! * `first_channel`: where the walk starts; 0 when nothing is stored.
//!
//! Size: `4 rows` for the biases and `4 B + 4` bytes per stored block, `4` per block: at density `d` with full blocks
//! `4 d (1 + 1/B)` bytes per weight.
//!
//! The checksum covers the shape and all arrays: a flipped weight is found too, which no structural check could do.

use std::borrow::Cow;

use super::checksum::Checksum;
use super::{check_len, check_version, malformed, product, too_large};
use crate::SparsityError;

/// Version of the layout written by [`DeltaBlock::parts`].
pub const VERSION: u32 = 1;
/// The heights a block may have.
pub const BLOCKS: [usize; 5] = [1, 2, 4, 8, 16];
/// Fill from which a block height is worth its stored zeros: [`choose_block`].
pub const LEAST_FILL: f64 = 0.9;
const FORMAT: &str = "delta-block";

/// A sparse matrix with bias, in blocks of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaBlock {
    rows: usize,
    cols: usize,
    block: usize,
    values: Vec<f32>,
    nnz: Vec<u32>,
    diff: Vec<i32>,
    first_channel: u32,
}

/// The arrays of a [`DeltaBlock`], to store or to read back.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaBlockParts<'a> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Rows of a block, one of [`BLOCKS`].
    pub block: usize,
    /// Biases and weights, block by block.
    pub values: Cow<'a, [f32]>,
    /// Stored input channels of each block.
    pub nnz: Cow<'a, [u32]>,
    /// Jumps between stored input channels.
    pub diff: Cow<'a, [i32]>,
    /// The first stored input channel.
    pub first_channel: u32,
    /// XXH3-64 of all the above and of the shape.
    pub checksum: u64,
}

/// One block of a [`DeltaBlock`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block<'a> {
    /// First row.
    pub row: usize,
    /// Rows: `B`, or 1 in the rest.
    pub height: usize,
    /// One bias per row.
    pub bias: &'a [f32],
    /// `[entries][height]` weights.
    pub weights: &'a [f32],
    /// Index of the block's first entry among all entries.
    pub first_entry: usize,
}

fn is_zero(v: f32) -> bool {
    v.to_bits() << 1 == 0
}

impl DeltaBlock {
    /// Packs the row-major `w[rows, cols]`, one bias per row (none: zeros), in blocks of `block` rows.
    ///
    /// # Errors
    /// [`SparsityError::Malformed`] when `w` or `bias` has the wrong length, [`SparsityError::Setting`] for a height that is not one of
    /// [`BLOCKS`], [`SparsityError::TooLarge`] when `cols` exceeds `i32` or the shape overflows.
    pub fn encode(
        w: &[f32],
        rows: usize,
        cols: usize,
        bias: Option<&[f32]>,
        block: usize,
    ) -> Result<Self, SparsityError> {
        check_shape(rows, cols, block)?;
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        if let Some(bias) = bias {
            check_len(FORMAT, "bias", rows, bias.len())?;
        }
        let (mut values, mut nnz, mut channels) = (Vec::new(), Vec::new(), Vec::new());
        for (row, height) in heights(rows, block) {
            values.extend((row..row + height).map(|r| bias.map_or(0.0, |b| b[r])));
            let before = channels.len();
            for c in 0..cols {
                if (row..row + height).any(|r| !is_zero(w[r * cols + c])) {
                    channels.push(c as i32);
                    // A negative zero inside a kept block becomes positive, as everywhere among the formats.
                    values.extend(
                        (row..row + height).map(|r| w[r * cols + c]).map(
                            |v| {
                                if is_zero(v) { 0.0 } else { v }
                            },
                        ),
                    );
                }
            }
            nnz.push((channels.len() - before) as u32);
        }
        let first = channels.first().copied().unwrap_or(0);
        let next = channels.iter().skip(1).chain(std::iter::once(&first));
        let diff = channels.iter().zip(next).map(|(this, next)| next - this).collect();
        Ok(Self { rows, cols, block, values, nnz, diff, first_channel: first as u32 })
    }

    /// The row-major dense matrix `[rows, cols]` and the biases; absent weights are `+0.0`.
    pub fn decode(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut w, mut bias) = (vec![0.0; self.rows * self.cols], Vec::with_capacity(self.rows));
        let channels = self.channels();
        for block in self.blocks() {
            bias.extend_from_slice(block.bias);
            for (entry, weights) in block.weights.chunks_exact(block.height).enumerate() {
                for (i, v) in weights.iter().enumerate() {
                    w[(block.row + i) * self.cols + channels[block.first_entry + entry]] = *v;
                }
            }
        }
        (w, bias)
    }

    /// The input channel of every entry: the walk over the jumps.
    pub fn channels(&self) -> Vec<usize> {
        let mut at = i64::from(self.first_channel);
        self.diff
            .iter()
            .map(|d| {
                let this = at as usize;
                at += i64::from(*d);
                this
            })
            .collect()
    }

    /// The blocks in row order.
    pub fn blocks(&self) -> impl Iterator<Item = Block<'_>> + '_ {
        let (mut value, mut entry) = (0, 0);
        heights(self.rows, self.block).zip(&self.nnz).map(move |((row, height), nnz)| {
            let nnz = *nnz as usize;
            let (bias, weights) = self.values[value..value + height * (nnz + 1)].split_at(height);
            let first_entry = entry;
            value += height * (nnz + 1);
            entry += nnz;
            Block { row, height, bias, weights, first_entry }
        })
    }

    /// Rows, `d_out`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns, `d_in`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Rows of a block.
    pub fn block(&self) -> usize {
        self.block
    }
    /// Stored weights, zeros inside kept blocks included.
    pub fn nnz(&self) -> usize {
        self.values.len() - self.rows
    }
    /// Stored blocks.
    pub fn entries(&self) -> usize {
        self.diff.len()
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        4 * (self.values.len() + self.nnz.len() + self.diff.len())
    }

    /// The arrays, borrowed, with their checksum.
    pub fn parts(&self) -> DeltaBlockParts<'_> {
        let mut parts = DeltaBlockParts {
            version: VERSION,
            block: self.block,
            values: Cow::Borrowed(&self.values),
            nnz: Cow::Borrowed(&self.nnz),
            diff: Cow::Borrowed(&self.diff),
            first_channel: self.first_channel,
            checksum: 0,
        };
        parts.checksum = checksum(self.rows, self.cols, &parts);
        parts
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Malformed`] naming the array, what was expected and what was found: version, checksum, lengths that contradict
    /// the shape or each other, channels that leave the matrix or do not ascend inside a block, a walk that does not
    /// close; [`SparsityError::Setting`] for an impossible block height.
    pub fn from_parts(rows: usize, cols: usize, parts: DeltaBlockParts<'_>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        check_shape(rows, cols, parts.block)?;
        let sum = checksum(rows, cols, &parts);
        if sum != parts.checksum {
            let hex = |v: u64| format!("{v:016x}");
            return Err(malformed(FORMAT, "checksum", hex(sum), hex(parts.checksum)));
        }
        let block = parts.block;
        check_len(FORMAT, "nnz", rows / block + rows % block, parts.nnz.len())?;
        let (mut entries, mut values) = (0usize, rows);
        for ((_, height), nnz) in heights(rows, block).zip(parts.nnz.iter()) {
            let nnz = *nnz as usize;
            if nnz > cols {
                return Err(malformed(FORMAT, "nnz", format_args!("at most {cols}"), nnz));
            }
            let more = product(FORMAT, height, nnz)?;
            entries = entries.checked_add(nnz).ok_or_else(|| too_large(FORMAT, rows, cols))?;
            values = values.checked_add(more).ok_or_else(|| too_large(FORMAT, rows, cols))?;
        }
        check_len(FORMAT, "diff", entries, parts.diff.len())?;
        check_len(FORMAT, "values", values, parts.values.len())?;
        if parts.diff.is_empty() {
            check_len(FORMAT, "first_channel", 0, parts.first_channel as usize)?;
        }
        let (mut at, mut entry) = (i64::from(parts.first_channel), 0);
        for nnz in parts.nnz.iter() {
            let mut least = 0;
            for _ in 0..*nnz {
                if at < least || at >= cols as i64 {
                    let expected = format!("ascending channels below {cols}");
                    return Err(malformed(FORMAT, "diff", expected, format_args!("{at} at entry {entry}")));
                }
                least = at + 1;
                at += i64::from(parts.diff[entry]);
                entry += 1;
            }
        }
        if at != i64::from(parts.first_channel) {
            return Err(malformed(
                FORMAT,
                "diff",
                "jumps that sum to zero",
                at - i64::from(parts.first_channel),
            ));
        }
        Ok(Self {
            rows,
            cols,
            block,
            values: parts.values.into_owned(),
            nnz: parts.nnz.into_owned(),
            diff: parts.diff.into_owned(),
            first_channel: parts.first_channel,
        })
    }
}

/// The block height for `w[rows, cols]`: the largest of [`BLOCKS`] up to `largest` whose kept blocks are filled to at least
/// [`LEAST_FILL`] (counting the whole blocks only), or 1. The published rule has `largest` = 4.
///
/// # Errors
/// [`SparsityError::Malformed`] when `w` has not `rows * cols` elements, [`SparsityError::TooLarge`] when the shape overflows.
pub fn choose_block(w: &[f32], rows: usize, cols: usize, largest: usize) -> Result<usize, SparsityError> {
    check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
    let pays = |block: usize| {
        let (mut kept, mut blocks) = (0usize, 0usize);
        for b in 0..rows / block {
            for c in 0..cols {
                let n = (0..block).filter(|i| !is_zero(w[(b * block + i) * cols + c])).count();
                kept += n;
                blocks += usize::from(n > 0);
            }
        }
        blocks > 0 && kept as f64 / (block * blocks) as f64 >= LEAST_FILL
    };
    let mut sizes = BLOCKS.into_iter().rev().filter(|b| *b <= largest && *b > 1);
    Ok(sizes.find(|b| pays(*b)).unwrap_or(1))
}

/// First row and height of each block.
fn heights(rows: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = rows / block;
    (0..whole).map(move |b| (b * block, block)).chain((whole * block..rows).map(|r| (r, 1)))
}

fn check_shape(rows: usize, cols: usize, block: usize) -> Result<(), SparsityError> {
    if !BLOCKS.contains(&block) {
        let value = block.to_string();
        return Err(SparsityError::Setting { field: "block", value, allowed: "1, 2, 4, 8 or 16" });
    }
    let fits = i32::try_from(cols).is_ok() && product(FORMAT, rows, cols)?.checked_add(rows).is_some();
    if fits { Ok(()) } else { Err(too_large(FORMAT, rows, cols)) }
}

fn checksum(rows: usize, cols: usize, parts: &DeltaBlockParts<'_>) -> u64 {
    let header = [rows as u64, cols as u64, parts.block as u64, u64::from(parts.first_channel)];
    Checksum::new(&header).array(&parts.values).array(&parts.nnz).array(&parts.diff).finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::test_support::{bits, shorten, sparse};
    use super::*;

    /// Rows (1 0 2), (0 0 3), (0 0 0), (0 4 0), (5 0 0): two blocks of two rows and one row left over.
    fn example() -> DeltaBlock {
        let w = [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 5.0, 0.0, 0.0];
        DeltaBlock::encode(&w, 5, 3, Some(&[10.0, 20.0, 30.0, 40.0, 50.0]), 2).unwrap()
    }

    /// Which field is blamed after `change`; `resum`: with a checksum made to fit, as an attacker would.
    fn refused(resum: bool, change: impl FnOnce(&mut DeltaBlockParts<'_>)) -> &'static str {
        let e = example();
        let mut parts = e.parts();
        change(&mut parts);
        if resum {
            parts.checksum = checksum(5, 3, &parts);
        }
        match DeltaBlock::from_parts(5, 3, parts) {
            Err(SparsityError::Malformed { field, .. } | SparsityError::Setting { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_hand() {
        let e = example();
        let p = e.parts();
        assert_eq!(p.nnz.as_ref(), [2, 1, 1]);
        // Channels 0 2 | 1 | 0: jumps +2, -1, -1 and back to channel 0.
        assert_eq!((p.diff.as_ref(), p.first_channel), ([2, -1, -1, 0].as_slice(), 0));
        let values = [10.0, 20.0, 1.0, 0.0, 2.0, 3.0, 30.0, 40.0, 0.0, 4.0, 50.0, 5.0];
        assert_eq!(p.values.as_ref(), values);
        assert_eq!((e.nnz(), e.entries(), e.bytes()), (7, 4, 4 * (12 + 3 + 4)));
    }

    #[test]
    fn hostile_parts_are_refused() {
        assert_eq!(refused(false, |p| p.version = 2), "version");
        assert_eq!(refused(false, |p| p.values.to_mut()[3] = 9.0), "checksum");
        assert_eq!(refused(false, |p| p.checksum ^= 1), "checksum");
        assert_eq!(refused(true, |p| p.block = 3), "block");
        assert_eq!(refused(true, |p| p.block = 0), "block");
        assert_eq!(refused(true, |p| p.block = 4), "nnz");
        assert_eq!(refused(true, |p| shorten(p.nnz.to_mut())), "nnz");
        assert_eq!(refused(true, |p| p.nnz.to_mut()[0] = 4), "nnz");
        assert_eq!(refused(true, |p| p.nnz.to_mut()[0] = 3), "diff");
        assert_eq!(refused(true, |p| shorten(p.diff.to_mut())), "diff");
        assert_eq!(refused(true, |p| shorten(p.values.to_mut())), "values");
        assert_eq!(refused(true, |p| p.first_channel = 3), "diff");
        assert_eq!(refused(true, |p| p.diff.to_mut()[0] = 0), "diff");
        assert_eq!(refused(true, |p| p.diff.to_mut()[0] = 3), "diff");
        assert_eq!(refused(true, |p| p.diff.to_mut()[0] = i32::MIN), "diff");
        assert_eq!(refused(true, |p| p.diff.to_mut()[3] = 1), "diff");
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let empty = DeltaBlock::encode(&[], 0, 3, None, 4).unwrap();
        for (rows, cols) in [(usize::MAX, 1), (usize::MAX, 2), (1, usize::MAX), (1, 1 << 31)] {
            let mut parts = empty.parts();
            parts.checksum = checksum(rows, cols, &parts);
            assert!(DeltaBlock::from_parts(rows, cols, parts).is_err(), "{rows} x {cols}");
        }
        let mut parts = empty.parts();
        parts.first_channel = 1;
        parts.checksum = checksum(0, 3, &parts);
        assert!(DeltaBlock::from_parts(0, 3, parts).is_err(), "a first channel without entries");
    }

    #[test]
    fn the_block_rule_at_its_boundary() {
        // Four rows, 25 kept blocks of 4: with 90 of 100 weights the fill is exactly 0.9.
        let mut w = vec![1.0; 4 * 25];
        w.iter_mut().step_by(10).for_each(|v| *v = 0.0);
        assert_eq!(choose_block(&w, 4, 25, 4).unwrap(), 4);
        assert_eq!(choose_block(&w, 4, 25, 2).unwrap(), 2);
        assert_eq!(choose_block(&w, 4, 25, 16).unwrap(), 4, "no whole block of 8 or 16");
        w[1] = 0.0;
        let chosen = choose_block(&w, 4, 25, 4).unwrap();
        assert!(chosen < 4, "{chosen}");
        assert_eq!(choose_block(&[0.0; 64], 16, 4, 16).unwrap(), 1, "nothing kept");
        assert_eq!(choose_block(&[1.0; 64], 16, 4, 16).unwrap(), 16);
        assert_eq!(choose_block(&[1.0; 3], 3, 1, 4).unwrap(), 2, "three rows hold a whole block of two");
    }

    proptest! {
        #[test]
        fn round_trip_and_a_closed_walk(
            seed: u64, rows in 0usize..40, cols in 0usize..40, density in 0.0f64..=1.0, b in 0usize..5,
        ) {
            let w = sparse(seed, rows * cols, density);
            let bias = sparse(seed ^ 1, rows, 0.8);
            let m = DeltaBlock::encode(&w, rows, cols, Some(&bias), BLOCKS[b]).unwrap();
            let (back, back_bias) = m.decode();
            prop_assert_eq!((bits(&back), bits(&back_bias)), (bits(&w), bits(&bias)));
            let p = m.parts();
            prop_assert_eq!(p.diff.iter().map(|d| i64::from(*d)).sum::<i64>(), 0);
            prop_assert_eq!(p.nnz.iter().map(|n| *n as usize).sum::<usize>(), p.diff.len());
            prop_assert_eq!(&DeltaBlock::from_parts(rows, cols, p).unwrap(), &m);
        }
    }
}
