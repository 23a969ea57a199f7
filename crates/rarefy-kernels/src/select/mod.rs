//! Exact selection in linear time: the `k` largest of many numbers, and quantiles of a stream.
//!
//! Numbers are ordered by their bits ([`key`]): NaN below everything (an undefined score selects nothing unless all do), `-0`
//! equal to `+0`. Equal numbers are taken by ascending index, so a selection never depends on the path or on threads.

mod quantile;

pub use quantile::{LinearHistogram, QuantileFirst, QuantileSecond, quantile_higher};

use crate::error::{at_least, length};
use crate::lanes::{Job, LANES, Lanes, dispatch};
use crate::{Isa, KernelError};

const NAME: &str = "top-k";
/// Bins of the first step: sign, exponent and two bits of the mantissa.
pub(crate) const BINS: usize = 2048;
pub(crate) const FIRST_SHIFT: u32 = 21;

/// A number whose unsigned order is that of `v`; 0 for NaN.
#[inline(always)]
pub fn key(v: f32) -> u32 {
    let bits = (v + 0.0).to_bits(); // -0 becomes +0
    let flipped = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    if v.is_nan() { 0 } else { flipped }
}

/// Writes the indices of the `k` largest of `values` to `out`, ascending; `keys` is scratch of `values.len()`.
///
/// # Roofline
/// One pass makes keys and counts them by their upper 11 bits (one increment per value, about a nanosecond), two passes count the
/// values of one bin more finely, one writes the indices; those three compare sixteen values per step. 12 bytes of
/// cache-resident data per value in all; a sort of 128 k values takes fifty times as long.
///
/// # Errors
/// [`KernelError::Length`] when `out` has not `min(k, values.len())` elements or `keys` is too short.
pub fn top_k(values: &[f32], k: usize, out: &mut [u32], keys: &mut [u32]) -> Result<(), KernelError> {
    top_k_with(Isa::detect(), values, k, out, keys)
}

/// [`top_k`] on a chosen code path.
///
/// # Errors
/// Those of `top_k`, and [`KernelError::Isa`] when this CPU lacks the path.
pub fn top_k_with(
    isa: Isa,
    values: &[f32],
    k: usize,
    out: &mut [u32],
    keys: &mut [u32],
) -> Result<(), KernelError> {
    isa.require()?;
    let k = k.min(values.len());
    length(NAME, "out", k, out.len())?;
    at_least(NAME, "keys", values.len(), keys.len())?;
    if u32::try_from(values.len()).is_err() {
        return Err(KernelError::TooLarge { kernel: NAME, a: values.len(), b: 1 });
    }
    let keys = &mut keys[..values.len()];
    dispatch(isa, TopK { values, keys, out });
    Ok(())
}

struct TopK<'a> {
    values: &'a [f32],
    keys: &'a mut [u32],
    out: &'a mut [u32],
}

impl Job for TopK<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut counts = [0u32; BINS];
        for (k, v) in self.keys.iter_mut().zip(self.values) {
            *k = key(*v);
        }
        for k in self.keys.iter() {
            counts[(*k >> FIRST_SHIFT) as usize] += 1;
        }
        let cut = Cut::find(l, self.keys, self.out.len(), &counts);
        cut.emit(l, self.keys, self.out);
    }
}

/// Which keys are taken: all above `key`, and the first `ties` equal to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    key: u32,
    ties: usize,
}

/// The bin, from the top, in which the `k`-th element lies, and how many of that bin are wanted. `1 <= k <=` the sum of `counts`.
#[inline(always)]
fn bin_of(counts: &[u32], k: usize) -> (u32, usize) {
    let mut wanted = k;
    for (bin, count) in counts.iter().enumerate().rev() {
        if wanted <= *count as usize {
            return (bin as u32, wanted);
        }
        wanted -= *count as usize;
    }
    (0, wanted)
}

impl Cut {
    /// The cut that keeps the `k` largest keys; `counts` are those of the upper 11 bits.
    #[inline(always)]
    pub(crate) fn find<L: Lanes>(l: L, keys: &[u32], k: usize, counts: &[u32; BINS]) -> Self {
        if k == 0 {
            return Self { key: u32::MAX, ties: 0 };
        }
        let (bin, wanted) = bin_of(counts, k);
        let base = bin << FIRST_SHIFT;
        let mut fine = [0u32; BINS];
        each_between(l, keys, base, base | ((1 << FIRST_SHIFT) - 1), |_, k| {
            fine[(k >> 10) as usize % BINS] += 1;
        });
        let (bin, wanted) = bin_of(&fine, wanted);
        let base = base | bin << 10;
        let mut finest = [0u32; 1024];
        each_between(l, keys, base, base | 1023, |_, k| finest[k as usize % 1024] += 1);
        let (bin, ties) = bin_of(&finest, wanted);
        Self { key: base | bin, ties }
    }

    /// Writes the indices of the keys taken, ascending; `out` has room for exactly those.
    #[inline(always)]
    pub(crate) fn emit<L: Lanes>(self, l: L, keys: &[u32], out: &mut [u32]) {
        let (mut at, mut ties) = (0, self.ties);
        if out.is_empty() {
            return;
        }
        each_between(l, keys, self.key, u32::MAX, |i, k| {
            let tied = k == self.key;
            if tied && ties == 0 {
                return;
            }
            ties -= usize::from(tied);
            if let Some(o) = out.get_mut(at) {
                *o = i as u32;
            }
            at += 1;
        });
    }
}

/// Calls `f(index, key)` for all keys in `low..=high`, ascending by index.
#[inline(always)]
fn each_between<L: Lanes>(l: L, keys: &[u32], low: u32, high: u32, mut f: impl FnMut(usize, u32)) {
    let (blocks, rest) = keys.as_chunks::<LANES>();
    for (b, block) in blocks.iter().enumerate() {
        let at_least = if low == 0 { u16::MAX } else { l.above(block, low - 1) };
        let mut mask = at_least & !l.above(block, high);
        while mask != 0 {
            let i = mask.trailing_zeros() as usize;
            f(b * LANES + i, block[i % LANES]);
            mask &= mask - 1;
        }
    }
    for (i, k) in rest.iter().enumerate() {
        if (low..=high).contains(k) {
            f(blocks.len() * LANES + i, *k);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// By sorting: largest first, ties by index, NaN last.
    fn naive(values: &[f32], k: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|a, b| {
            let (a, b) = (values[*a as usize], values[*b as usize]);
            match (a.is_nan(), b.is_nan()) {
                (false, false) => b.partial_cmp(&a).unwrap(),
                (x, y) => x.cmp(&y),
            }
        });
        order.truncate(k);
        order.sort_unstable();
        order
    }

    fn check(values: &[f32], k: usize) {
        let want = naive(values, k);
        for isa in Isa::available() {
            let mut out = vec![7; k.min(values.len())];
            top_k_with(isa, values, k, &mut out, &mut vec![9; values.len() + 1]).unwrap();
            assert_eq!(out, want, "{isa} {k} of {values:?}");
        }
    }

    #[test]
    fn by_hand_with_ties_zeros_and_nan() {
        check(&[3.0, 1.0, 2.0], 2);
        let mut out = [0; 2];
        top_k(&[1.0, 5.0, 5.0, 5.0], 2, &mut out, &mut [0; 4]).unwrap();
        assert_eq!(out, [1, 2]); // equal numbers by index
        check(&[0.0, -0.0, 0.0], 2);
        check(&[f32::NAN, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN], 4);
        check(&[f32::NAN; 20], 3);
        check(&[1e-45, -1e-45, 0.0, 1e-40], 2);
        check(&[], 3);
        check(&[2.0; 40], 0);
        check(&[2.0; 40], 17);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(top_k(&[1.0; 4], 2, &mut [0; 3], &mut [0; 4]).is_err());
        assert!(top_k(&[1.0; 4], 2, &mut [0; 2], &mut [0; 3]).is_err());
    }

    proptest! {
        #[test]
        fn as_by_sorting(v in prop::collection::vec(prop_oneof![-3i32..3, -1_000_000i32..1_000_000], 0..300), scale in 0u32..4, k in 0usize..320) {
            let scale = [1e-43f32, 1.0, 1e-3, 1e33][scale as usize];
            let v: Vec<f32> = v.iter().map(|v| *v as f32 * scale).collect();
            check(&v, k);
        }
    }
}
