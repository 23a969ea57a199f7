//! The same walks in plain Rust: the safe twin of [`super::micro`].

use std::ops::Range;

use super::drive::{Out, Strip};
use super::pack::{ABSENT, Segment};
use crate::Clamp;

/// The groups `range` of `segment` for one strip.
///
/// # Safety
/// Nobody else accesses these outputs meanwhile.
pub(super) unsafe fn run(segment: &Segment, range: Range<usize>, strip: Strip<'_>, clamp: Clamp, out: &Out) {
    let (block, interleave) = (segment.block, segment.interleave);
    let mut sums = [0.0f32; 64];
    let sums = &mut sums[..strip.pixels];
    for g in range {
        for i in (0..interleave).filter(|i| segment.rows[g * interleave + i] != ABSENT) {
            for r in 0..block {
                sums.fill(segment.bias[(g * interleave + i) * block + r]);
                for step in segment.starts[g]..segment.starts[g + 1] {
                    let at = step * interleave + i;
                    let x = &strip.data[segment.channels.as_slice()[at] as usize * strip.stride..]
                        [..strip.pixels];
                    let w = segment.values.as_slice()[at * block + r];
                    sums.iter_mut().zip(x).for_each(|(s, x)| *s += w * x);
                }
                let row = segment.rows[g * interleave + i] as usize + r;
                // SAFETY: the caller's promise.
                unsafe { store(out, row, strip.first, sums, clamp) };
            }
        }
    }
}

/// Writes the clamped `sums` to `row`.
///
/// # Safety
/// Nobody else accesses these outputs meanwhile.
pub(super) unsafe fn store(out: &Out, row: usize, first: usize, sums: &[f32], clamp: Clamp) {
    let y = out.row(row, first, sums.len());
    for (i, s) in sums.iter().enumerate() {
        // SAFETY: `Out::row` gave a pointer to `sums.len()` outputs, ours alone by the caller's promise.
        unsafe { y.add(i).write(clamp.apply(*s)) };
    }
}
