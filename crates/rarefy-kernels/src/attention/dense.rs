//! Attention to every cached token.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::softmax::{Head, SEGMENT, block_len, merge, partial_len, segment};
use super::{KvCache, Query, check};
use crate::error::at_least;
use crate::lanes::{Job, Lanes, RowValue, dispatch};
use crate::{Isa, KernelError};

const NAME: &str = "attention";
/// Stored values below which a second thread is not worth waking.
pub(super) const MIN_VALUES: usize = 1 << 17;

/// Elements of scratch that [`attend`] needs for `heads` query heads over this cache, at its present length.
pub fn attend_scratch_len<T: RowValue>(cache: &KvCache<T>, heads: usize) -> usize {
    let group = heads / cache.kv_heads();
    stride(group, cache.d()).saturating_mul(cache.kv_heads()).saturating_mul(cache.len().div_ceil(SEGMENT))
}

/// Scratch of one segment: a partial result and the scores of a block for each head of the group.
pub(super) fn stride(group: usize, d: usize) -> usize {
    group.saturating_mul(partial_len(d)).saturating_add(block_len(group))
}

/// `out[heads][d] = softmax(scale · q Kᵀ) V` over the whole cache; `scratch` has [`attend_scratch_len`] elements.
///
/// # Roofline
/// `2 n d` stored values per key-value head, each read once whatever the size of the group, and `4 n d` flops per query head: 1
/// flop per byte of f32 and query head, 2 of bf16. At 14 GB/s and one thread that is 14 GF/s per head of the group; up to four f32
/// heads are bound by memory. Keys go through registers as four rows against four heads; values are added to `out` in the
/// first-level cache; a block of 256 tokens stands between, so that the maximum is looked at once per block. Measured (`examples/attention.rs`, d = 128,
/// eight heads): 91 to 96 % of the read bandwidth in f32, 90 to 92 % in bf16.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Argument`] for sizes that do not fit; an empty cache is an
/// [`KernelError::Argument`].
pub fn attend<T: RowValue>(
    cache: &KvCache<T>,
    query: Query<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    attend_with(Isa::detect(), cache, query, out, scratch)
}

/// [`attend`] on a chosen code path.
///
/// # Errors
/// Those of `attend`, and [`KernelError::Isa`] when this CPU lacks the path.
pub fn attend_with<T: RowValue>(
    isa: Isa,
    cache: &KvCache<T>,
    query: Query<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    isa.require()?;
    let group = check(NAME, cache, &query, out)?;
    not_empty(NAME, cache)?;
    let expected = attend_scratch_len(cache, query.heads);
    at_least(NAME, "scratch", expected, scratch.len())?;
    let (d, n) = (cache.d(), cache.len());
    let (stride, segments) = (stride(group, d), n.div_ceil(SEGMENT));
    let scratch = &mut scratch[..expected];
    let work = |item: usize, scratch: &mut [f32]| {
        let (h, begin) = (item / segments, item % segments * SEGMENT);
        let count = SEGMENT.min(n - begin);
        let rows = begin * d..(begin + count) * d;
        let head = Head { keys: &cache.keys(h)[rows.clone()], values: &cache.values(h)[rows], d };
        let q = &query.q[h * group * d..(h + 1) * group * d];
        dispatch(isa, All { head, q, group, scale: query.scale, count, scratch });
    };
    if rayon::current_num_threads() > 1 && n * d * cache.kv_heads() >= MIN_VALUES {
        scratch.par_chunks_exact_mut(stride).enumerate().with_max_len(1).for_each(|(i, s)| work(i, s));
    } else {
        scratch.chunks_exact_mut(stride).enumerate().for_each(|(i, s)| work(i, s));
    }
    for (t, out) in out.chunks_exact_mut(d).enumerate() {
        let first = t / group * segments * stride + t % group * partial_len(d);
        merge(&scratch[first..], stride, segments, out);
    }
    Ok(())
}

pub(super) fn not_empty<T: RowValue>(kernel: &'static str, cache: &KvCache<T>) -> Result<(), KernelError> {
    if cache.is_empty() {
        let (argument, value, allowed) = ("cache", "no token".to_owned(), "at least one token");
        return Err(KernelError::Argument { kernel, argument, value, allowed });
    }
    Ok(())
}

struct All<'a, T> {
    head: Head<'a, T>,
    q: &'a [f32],
    group: usize,
    scale: f32,
    count: usize,
    scratch: &'a mut [f32],
}

impl<T: RowValue> Job for All<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (partials, scores) = self.scratch.split_at_mut(self.group * partial_len(self.head.d));
        segment(l, self.head, self.q, self.group, self.scale, self.count, |j| j, scores, partials);
    }
}
