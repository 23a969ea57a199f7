//! Double sparsity: attention to the tokens that a few channels call the best.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::dense::{MIN_VALUES, not_empty, stride};
use super::softmax::{Head, SEGMENT, merge, partial_len, segment};
use super::{KvCache, LabelCache, Query, check};
use crate::error::{at_least, length};
use crate::lanes::{Job, Lanes, RowValue, dispatch};
use crate::select::{BINS, Cut};
use crate::{Isa, KernelError};

const NAME: &str = "double-sparse-attention";

/// Which tokens the query heads of one group attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// One list for the group, by the sum of its heads' scores: labels, keys and values are read once.
    Summed,
    /// One list per query head: the published rule, at the price of a reading per query head. The labels may then be those of the query
    /// heads, each with channels of its own: a [`LabelCache`] of as many heads, given the keys of a group once per query head.
    PerHead,
}

/// How many tokens are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoubleSparse {
    /// Tokens attended to, at least 1; all of them when the cache has fewer.
    pub kept: usize,
    /// The rule for grouped heads.
    pub grouping: Grouping,
}

impl DoubleSparse {
    /// Elements of scratch for `heads` query heads over this cache, at its present length.
    pub fn scratch_len<T: RowValue>(&self, cache: &KvCache<T>, labels: &LabelCache, heads: usize) -> usize {
        self.stride(cache.len(), cache.d(), labels, heads / cache.kv_heads()).saturating_mul(cache.kv_heads())
    }

    /// Scratch of one key-value head: keys of all scores, the list, the query on the label channels, the segments.
    fn stride(&self, n: usize, d: usize, labels: &LabelCache, group: usize) -> usize {
        let kept = self.kept.min(n);
        let segments = kept.div_ceil(SEGMENT).saturating_mul(stride(group, d));
        n.saturating_add(kept).saturating_add(labels.channels(0).len()).saturating_add(segments)
    }
}

/// `out[heads][d]`: attention to the `kept` tokens with the highest label scores, exact on those; scores rank by a positive `scale`.
///
/// # Roofline
/// Per key-value head: `n r` labels, then `2 T d` stored values in rows of `d` that are asked for eight rows ahead; at 1/16 of tokens
/// and channels `4 (n d / 16 + n d / 8)` bytes of f32 against `8 n d`: 10.7x is the ideal. The selection costs about a
/// nanosecond per token on top ([`crate::select::top_k`]). Heads are spread over threads, so one key-value head runs on one. Measured
/// (`examples/attention.rs`, 16 k tokens, d = 128): 5.3–5.9x over the dense attention in f32, 3.4–3.9x in bf16, whose rows are half as long.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Argument`] for sizes that do not fit, an empty cache, or labels of another length.
pub fn attend_double_sparse<T: RowValue>(
    cache: &KvCache<T>,
    labels: &LabelCache,
    plan: DoubleSparse,
    query: Query<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    attend_double_sparse_with(Isa::detect(), cache, labels, plan, query, out, scratch)
}

/// [`attend_double_sparse`] on a chosen code path.
///
/// # Errors
/// Those of `attend_double_sparse`, and [`KernelError::Isa`] when this CPU lacks the path.
pub fn attend_double_sparse_with<T: RowValue>(
    isa: Isa,
    cache: &KvCache<T>,
    labels: &LabelCache,
    plan: DoubleSparse,
    query: Query<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    isa.require()?;
    let group = check(NAME, cache, &query, out)?;
    not_empty(NAME, cache)?;
    let bad = |argument, value: String, allowed| {
        Err(KernelError::Argument { kernel: NAME, argument, value, allowed })
    };
    if plan.kept == 0 {
        return bad("kept", "0".to_owned(), "at least 1");
    }
    let is_own = plan.grouping == Grouping::PerHead && labels.kv_heads() == query.heads;
    if (labels.kv_heads() != cache.kv_heads() && !is_own)
        || (labels.d(), labels.len()) != (cache.d(), cache.len())
    {
        let value = format!("{} heads, d = {}, {} tokens", labels.kv_heads(), labels.d(), labels.len());
        return bad("labels", value, "those of the cache");
    }
    let expected = plan.scratch_len(cache, labels, query.heads);
    at_least(NAME, "scratch", expected, scratch.len())?;
    let (d, n) = (cache.d(), cache.len());
    let stride = plan.stride(n, d, labels, group);
    let work = |h: usize, out: &mut [f32], scratch: &mut [f32]| {
        let q = &query.q[h * group * d..(h + 1) * group * d];
        dispatch(isa, OneHead { cache, labels, plan, h, q, group, scale: query.scale, out, scratch });
    };
    let scratch = &mut scratch[..expected];
    if rayon::current_num_threads() > 1 && n * labels.channels(0).len() * cache.kv_heads() >= MIN_VALUES / 8 {
        out.par_chunks_exact_mut(group * d)
            .zip(scratch.par_chunks_exact_mut(stride))
            .enumerate()
            .with_max_len(1)
            .for_each(|(h, (out, scratch))| work(h, out, scratch));
    } else {
        let pairs = out.chunks_exact_mut(group * d).zip(scratch.chunks_exact_mut(stride));
        pairs.enumerate().for_each(|(h, (out, scratch))| work(h, out, scratch));
    }
    Ok(())
}

/// Writes to `out` the `out.len()` tokens with the highest label scores for the query `q[d]` of key-value head `head`, ascending;
/// `scratch` has `labels.len()` elements. For inspection: it allocates.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Argument`] for sizes that do not fit.
pub fn top_tokens(
    isa: Isa,
    labels: &LabelCache,
    head: usize,
    q: &[f32],
    out: &mut [u32],
    scratch: &mut [u32],
) -> Result<(), KernelError> {
    isa.require()?;
    length(NAME, "q", labels.d(), q.len())?;
    at_least(NAME, "scratch", labels.len(), scratch.len())?;
    if out.len() > labels.len() {
        let (expected, found) = (labels.len(), out.len());
        return Err(KernelError::Length { kernel: NAME, array: "out", expected, found });
    }
    if head >= labels.kv_heads() {
        let (argument, allowed) = ("head", "below the key-value heads");
        return Err(KernelError::Argument { kernel: NAME, argument, value: head.to_string(), allowed });
    }
    let q: Vec<f32> = labels.channels(head).iter().map(|c| q[*c as usize]).collect();
    dispatch(isa, Select { labels, head, q: &q, keys: &mut scratch[..labels.len()], out });
    Ok(())
}

struct Select<'a> {
    labels: &'a LabelCache,
    head: usize,
    q: &'a [f32],
    keys: &'a mut [u32],
    out: &'a mut [u32],
}

impl Job for Select<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut counts = [0u32; BINS];
        self.labels.score(l, self.head, self.q, self.keys, &mut counts);
        let cut = Cut::find(l, self.keys, self.out.len(), &counts);
        cut.emit(l, self.keys, self.out);
    }
}

struct OneHead<'a, T: RowValue> {
    cache: &'a KvCache<T>,
    labels: &'a LabelCache,
    plan: DoubleSparse,
    h: usize,
    q: &'a [f32],
    group: usize,
    scale: f32,
    out: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: RowValue> Job for OneHead<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { cache, labels, plan, h, q, group, scale, out, scratch } = self;
        let (n, d) = (cache.len(), cache.d());
        let (keys, rest) = scratch.split_at_mut(n);
        let (list, rest) = rest.split_at_mut(plan.kept.min(n));
        let (label_q, segments) = rest.split_at_mut(labels.channels(h).len());
        let (keys, list): (&mut [u32], &mut [u32]) =
            (bytemuck::cast_slice_mut(keys), bytemuck::cast_slice_mut(list));
        let head = Head { keys: cache.keys(h), values: cache.values(h), d };
        // Heads that share a list go together.
        let together = if plan.grouping == Grouping::Summed { group } else { 1 };
        let is_own = labels.kv_heads() > cache.kv_heads();
        for (t, (q, out)) in q.chunks_exact(together * d).zip(out.chunks_exact_mut(together * d)).enumerate()
        {
            if list.len() < n {
                let head = if is_own { h * group + t } else { h };
                for (sum, c) in label_q.iter_mut().zip(labels.channels(head)) {
                    *sum = q.chunks_exact(d).map(|q| q[*c as usize]).sum();
                }
                Select { labels, head, q: label_q, keys, out: list }.run(l);
            } else {
                list.iter_mut().enumerate().for_each(|(j, t)| *t = j as u32);
            }
            let stride = stride(together, d);
            let parts = list.len().div_ceil(SEGMENT);
            for (list, own) in list.chunks(SEGMENT).zip(segments.chunks_exact_mut(stride)) {
                let (partials, scores) = own.split_at_mut(together * partial_len(d));
                let pick = |j: usize| list[j] as usize;
                segment(l, head, q, together, scale, list.len(), pick, scores, partials);
            }
            for (t, out) in out.chunks_exact_mut(d).enumerate() {
                merge(&segments[t * partial_len(d)..], stride, parts, out);
            }
        }
    }
}
