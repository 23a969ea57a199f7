//! A [`DeltaBlock`] made ready to run: blocks sorted and interleaved.
//!
//! Rows differ in their number of non-zeros, and a loop whose length nobody can foresee costs a mispredicted branch of some
//! 20 cycles per row, as much as half of a row of 25 non-zeros. So blocks are sorted by length, and `G` neighbours of that
//! order walk together, the shorter ones padded: the length hardly changes from one group to the next, and the
//! `G` walks give the multiply-adds enough independent chains without splitting any sum.
//!
//! A padded step multiplies the zero row of the strip by `-0.0`, which changes no sum, not even the sign of a zero.

use std::ops::Range;

use rarefy_sparsity::formats::DeltaBlock;

use crate::{AlignedBuf, KernelError};

/// Marks a block that only fills up a group.
pub(super) const ABSENT: u32 = u32::MAX;

/// Blocks of one height, in groups of `interleave`.
#[derive(Debug)]
pub(super) struct Segment {
    /// Rows of a block, `B`.
    pub(super) block: usize,
    /// Blocks of a group, `G`.
    pub(super) interleave: usize,
    /// Steps before each group, and after the last.
    pub(super) starts: Vec<usize>,
    /// First row of each block, `[groups][G]`; [`ABSENT`] where there is none.
    pub(super) rows: Vec<u32>,
    /// `[groups][G][B]`.
    pub(super) bias: Vec<f32>,
    /// Input channels, `[steps][G]`; `depth`, the zero row of a strip, where padded.
    pub(super) channels: AlignedBuf<u32>,
    /// `[steps][G][B]`.
    pub(super) values: AlignedBuf<f32>,
    /// Input channels: no entry of `channels` exceeds it.
    depth: usize,
    padded: bool,
}

impl Segment {
    /// The segments of `weight` for strips of `width` pixels: the whole blocks, then the rows left over.
    pub(super) fn all(
        weight: &DeltaBlock,
        width: usize,
        interleave: impl Fn(usize) -> usize,
    ) -> Result<Vec<Segment>, KernelError> {
        let strip = weight.cols().checked_add(1).and_then(|d| d.checked_mul(width)?.checked_mul(4));
        if strip.is_none_or(|bytes| i32::try_from(bytes).is_err()) {
            return Err(KernelError::TooLarge { kernel: "spmm", a: weight.cols(), b: width });
        }
        let channels = weight.channels();
        let mut segments = Vec::new();
        for block in [weight.block(), 1] {
            if segments.iter().any(|s: &Segment| s.block == block) {
                continue;
            }
            let mut walks: Vec<Walk<'_>> = weight
                .blocks()
                .filter(|b| b.height == block)
                .map(|b| {
                    let entries = b.weights.len() / block;
                    let channels = &channels[b.first_entry..b.first_entry + entries];
                    Walk { row: b.row, bias: b.bias, weights: b.weights, channels }
                })
                .collect();
            if !walks.is_empty() {
                // Stable, so that equal lengths stay in row order.
                walks.sort_by_key(|w| std::cmp::Reverse(w.channels.len()));
                segments.push(Self::new(&walks, block, interleave(block), weight.cols()));
            }
        }
        Ok(segments)
    }

    fn new(walks: &[Walk<'_>], block: usize, interleave: usize, depth: usize) -> Self {
        let groups: Vec<&[Walk<'_>]> = walks.chunks(interleave).collect();
        let mut starts = vec![0];
        for group in &groups {
            // Sorted: the first is the longest.
            starts.push(starts[starts.len() - 1] + group[0].channels.len());
        }
        let steps = starts[starts.len() - 1];
        let mut channels = AlignedBuf::zeroed(steps * interleave);
        let mut values = AlignedBuf::zeroed(steps * interleave * block);
        channels.as_mut_slice().fill(depth as u32);
        values.as_mut_slice().fill(-0.0);
        let mut rows = vec![ABSENT; groups.len() * interleave];
        let mut bias = vec![0.0; rows.len() * block];
        for (g, group) in groups.iter().enumerate() {
            for (i, walk) in group.iter().enumerate() {
                let at = g * interleave + i;
                rows[at] = walk.row as u32;
                bias[at * block..(at + 1) * block].copy_from_slice(walk.bias);
                let weights = walk.weights.chunks_exact(block);
                for (step, (c, w)) in walk.channels.iter().zip(weights).enumerate() {
                    let at = (starts[g] + step) * interleave + i;
                    channels.as_mut_slice()[at] = *c as u32;
                    values.as_mut_slice()[at * block..(at + 1) * block].copy_from_slice(w);
                }
            }
        }
        let padded = channels.as_slice().contains(&(depth as u32));
        assert!(channels.as_slice().iter().all(|c| *c as usize <= depth), "channels lie in the matrix");
        Self { block, interleave, starts, rows, bias, channels, values, depth, padded }
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.starts.len() - 1
    }

    /// Multiply-adds per pixel before group `g`, padding included, and one per output for its bias and store.
    pub(super) fn cost_before(&self, g: usize) -> usize {
        (self.starts[g] + g) * self.interleave * self.block
    }

    /// Bytes of the arrays.
    pub(super) fn bytes(&self) -> usize {
        self.channels.bytes()
            + self.values.bytes()
            + 4 * (self.rows.len() + self.bias.len())
            + 8 * self.starts.len()
    }

    /// Rows that a strip must have.
    pub(super) fn strip_rows(&self) -> usize {
        self.depth + usize::from(self.padded)
    }

    /// True when some step is padded and reads row `depth`.
    pub(super) fn is_padded(&self) -> bool {
        self.padded
    }

    /// Panics unless the arrays fit each other and `groups`: what the unsafe loops rely on, with a strip of [`Segment::strip_rows`].
    /// The channels were compared with the depth when they were made, and cannot have changed.
    pub(super) fn check(&self, groups: &Range<usize>) {
        assert!(groups.start <= groups.end && groups.end <= self.groups());
        let steps = self.starts[groups.end];
        let (channels, values) = (self.channels.as_slice().len(), self.values.as_slice().len());
        assert!(steps * self.interleave <= channels && steps * self.interleave * self.block <= values);
        assert!(self.rows.len() == self.groups() * self.interleave);
        assert!(self.bias.len() == self.rows.len() * self.block);
    }
}

/// The walk of one block over its input channels.
struct Walk<'a> {
    row: usize,
    bias: &'a [f32],
    weights: &'a [f32],
    channels: &'a [usize],
}
