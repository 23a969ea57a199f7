//! The rule of one attention: which tokens a query keeps, over whole sequences and after a cache.

use rarefy_kernels::attention::{
    DoubleSparse, Grouping as KernelGrouping, LabelCache, LabelKind, Query, attend, attend_double_sparse,
    attend_scratch_len,
};
use rarefy_kernels::select::top_k;

use super::heads::HeadCache;
use super::{AttentionRule, Counts, Grouping};

/// The rule of one block.
#[derive(Debug)]
pub(crate) struct AttentionRun {
    pub(crate) rule: AttentionRule,
    pub(crate) counts: Counts,
}

/// Which tokens are ranked by what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranking<'a> {
    pub(crate) by: By<'a>,
    pub(crate) kept: usize,
    pub(crate) grouping: Grouping,
}

/// What a score is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum By<'a> {
    /// Chosen channels, `[lists][r]`, and how those of the keys are stored.
    Channels(&'a [u32], LabelKind),
    /// Means of adjacent channels, so many.
    Means(usize),
}

impl AttentionRun {
    pub(crate) fn ranking(&self) -> Option<Ranking<'_>> {
        match &self.rule {
            AttentionRule::DoubleSparse { channels, kept, grouping, labels } => {
                Some(Ranking { by: By::Channels(channels, *labels), kept: *kept, grouping: *grouping })
            }
            AttentionRule::GroupMeans { rank, kept, grouping } => {
                Some(Ranking { by: By::Means(*rank), kept: *kept, grouping: *grouping })
            }
            AttentionRule::All | AttentionRule::Window(_) => None,
        }
    }

    /// Whether a kernel decodes by this rule; otherwise the dense computation is masked.
    pub(crate) fn has_kernel(&self) -> bool {
        !matches!(self.rule, AttentionRule::GroupMeans { .. })
    }

    /// A cache for the kernels.
    pub(crate) fn new_cache(&self, n_heads: usize, kv_heads: usize, d: usize) -> HeadCache {
        match self.ranking() {
            Some(Ranking { by: By::Channels(channels, kind), grouping, .. }) => {
                let lists = if grouping == Grouping::OwnChannels { n_heads } else { kv_heads };
                HeadCache::new(kv_heads, d, Some((lists, channels)), kind)
            }
            _ => HeadCache::new(kv_heads, d, None, LabelKind::F32),
        }
    }

    /// One query `q[n_heads * d]` over the whole cache.
    pub(crate) fn decode(&self, q: &[f32], n_heads: usize, cache: &mut HeadCache) -> Vec<f32> {
        const FITS: &str = "the lengths come from the cache's own shape";
        let HeadCache { kv, labels, scratch, .. } = cache;
        let query = Query { q, heads: n_heads, scale: 1.0 / (kv.d() as f32).sqrt() };
        let mut y = vec![0.0; q.len()];
        let n = kv.len();
        let ranked = self.ranking().zip(labels.as_ref()).filter(|(r, _)| r.kept < n);
        self.counts.add(ranked.map_or(0, |(r, _)| n - r.kept), n);
        match ranked {
            Some((ranking, labels)) => {
                let grouping = match ranking.grouping {
                    Grouping::Summed => KernelGrouping::Summed,
                    Grouping::PerHead | Grouping::OwnChannels => KernelGrouping::PerHead,
                };
                let plan = DoubleSparse { kept: ranking.kept, grouping };
                let needed = plan.scratch_len(kv, labels, n_heads);
                scratch.resize(scratch.len().max(needed), 0.0);
                attend_double_sparse(kv, labels, plan, query, &mut y, scratch).expect(FITS);
            }
            None => {
                let needed = attend_scratch_len(kv, n_heads);
                scratch.resize(scratch.len().max(needed), 0.0);
                attend(kv, query, &mut y, scratch).expect(FITS);
            }
        }
        y
    }
}

impl Ranking<'_> {
    /// Lists of tokens, and lists of labels of the keys, for so many query and key-value heads.
    pub(crate) fn lists(&self, n_heads: usize, kv_heads: usize) -> (usize, usize) {
        match self.grouping {
            Grouping::Summed => (kv_heads, kv_heads),
            Grouping::PerHead => (n_heads, kv_heads),
            Grouping::OwnChannels => (n_heads, n_heads),
        }
    }

    /// What queries `[rows][n_heads][d]` are multiplied with: `[rows][lists][r]`, summed over the heads that share a list.
    pub(crate) fn of_queries(&self, q: &[f32], n_heads: usize, kv_heads: usize, d: usize) -> Vec<f32> {
        let (lists, key_lists) = self.lists(n_heads, kv_heads);
        match self.by {
            By::Channels(channels, _) => labels(q, (n_heads, d), (key_lists, channels), lists),
            By::Means(rank) => means(q, (n_heads, d), rank, lists),
        }
    }

    /// The labels of keys `[rows][kv_heads][d]`, as stored: `[rows][key lists][r]`.
    pub(crate) fn of_keys(&self, k: &[f32], n_heads: usize, kv_heads: usize, d: usize) -> Vec<f32> {
        let (_, key_lists) = self.lists(n_heads, kv_heads);
        match self.by {
            By::Channels(channels, kind) => {
                let rank = channels.len() / key_lists;
                let labels = labels(k, (kv_heads, d), (key_lists, channels), key_lists);
                if kind == LabelKind::F32 { labels } else { stored(kind, &labels, key_lists, rank) }
            }
            By::Means(rank) => means(k, (kv_heads, d), rank, key_lists),
        }
    }
}

/// The label channels of `x[rows][heads][d]`, `[rows][out_heads][r]`, by `channels[lists][r]`. Of more heads than `out_heads` those that
/// share one are summed; fewer are repeated.
fn labels(
    x: &[f32],
    (heads, d): (usize, usize),
    (lists, channels): (usize, &[u32]),
    out_heads: usize,
) -> Vec<f32> {
    let rank = channels.len() / lists;
    let mut out = vec![0.0; x.len() / (heads * d) * out_heads * rank];
    let all = heads.max(out_heads);
    for (x, out) in x.chunks_exact(heads * d).zip(out.chunks_exact_mut(out_heads * rank)) {
        for h in 0..all {
            let list = &channels[h * lists / all * rank..][..rank];
            let x = &x[h * heads / all * d..][..d];
            let out = &mut out[h * out_heads / all * rank..][..rank];
            for (o, c) in out.iter_mut().zip(list) {
                *o += x[*c as usize];
            }
        }
    }
    out
}

/// Means of `rank` runs of adjacent channels of `x[rows][heads][d]`, as [`labels`].
fn means(x: &[f32], (heads, d): (usize, usize), rank: usize, out_heads: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / (heads * d) * out_heads * rank];
    let all = heads.max(out_heads);
    for (x, out) in x.chunks_exact(heads * d).zip(out.chunks_exact_mut(out_heads * rank)) {
        for h in 0..all {
            let x = &x[h * heads / all * d..][..d];
            let out = &mut out[h * out_heads / all * rank..][..rank];
            for (i, o) in out.iter_mut().enumerate() {
                let (from, to) = (i * d / rank, (i + 1) * d / rank);
                *o += x[from..to].iter().sum::<f32>() / (to - from) as f32;
            }
        }
    }
    out
}

/// `labels[rows][lists][r]` after storing them: what the cache of the kernels gives back.
fn stored(kind: LabelKind, labels: &[f32], lists: usize, rank: usize) -> Vec<f32> {
    const FITS: &str = "the sizes come from a checked configuration";
    let rows = labels.len() / (lists * rank);
    let channels: Vec<u32> = (0..lists).flat_map(|_| 0..rank as u32).collect();
    let mut cache = LabelCache::new(kind, lists, rank, &channels, rows.max(1)).expect(FITS);
    for row in labels.chunks_exact(lists * rank) {
        cache.append(row).expect(FITS);
    }
    let at = |i: usize| cache.label(i / rank % lists, i / (lists * rank), i % rank);
    (0..labels.len()).map(at).collect()
}

/// Softmax of `scores` over the `kept` tokens with the best `ranks`, zero elsewhere.
pub(crate) fn softmax_of_kept(scores: &mut [f32], ranks: &[f32], kept: usize) {
    let mut list = vec![0u32; kept];
    let mut keys = vec![0u32; ranks.len()];
    top_k(ranks, kept, &mut list, &mut keys).expect("fewer are kept than there are");
    let mut some: Vec<f32> = list.iter().map(|i| scores[*i as usize]).collect();
    crate::exp::softmax(&mut some);
    scores.fill(0.0);
    for (i, s) in list.iter().zip(some) {
        scores[*i as usize] = s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_by_hand() {
        // Two tokens, four heads on two key-value heads, three channels; labels 2 and 0 of the first, 1 and 1 of the second.
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let each = labels(&x, (4, 3), (2, &[2, 0, 1, 1]), 4);
        assert_eq!(each[..8], [2.0, 0.0, 5.0, 3.0, 7.0, 7.0, 10.0, 10.0]);
        let summed = labels(&x, (4, 3), (2, &[2, 0, 1, 1]), 2);
        assert_eq!(summed[..4], [7.0, 3.0, 17.0, 17.0]);
        assert_eq!(summed[4..], [14.0 + 17.0, 12.0 + 15.0, 19.0 + 22.0, 19.0 + 22.0]);
        // Two heads of keys for four lists of one channel each.
        assert_eq!(labels(&x[..6], (2, 3), (4, &[0, 1, 2, 0]), 4), [0.0, 1.0, 5.0, 3.0]);
    }

    #[test]
    fn means_and_stored_labels_by_hand() {
        let x = [1.0, 3.0, 5.0, 9.0, -1.0, 1.0, 0.0, 2.0];
        assert_eq!(means(&x, (2, 4), 2, 2), [2.0, 7.0, 0.0, 1.0]);
        assert_eq!(means(&x, (2, 4), 2, 1), [2.0, 8.0]);
        assert_eq!(means(&x[..4], (1, 4), 2, 2), [2.0, 7.0, 2.0, 7.0]);
        assert_eq!(means(&x[..4], (1, 4), 3, 1), [1.0, 3.0, 7.0]);
        assert_eq!(stored(LabelKind::F32, &x, 2, 4), x);
        // Four bits between the least and the most of each row: ends exact, the rest within half a step.
        let four = stored(LabelKind::Int4, &x, 2, 4);
        for (row, found) in x.chunks(4).zip(four.chunks(4)) {
            let (low, high) = (row[0], row[3]);
            for (v, f) in row.iter().zip(found) {
                assert!((v - f).abs() <= (high - low) / 30.0 + 1e-6, "{v} {f}");
            }
            assert!((found[0] - low).abs() < 1e-6 && (found[3] - high).abs() < 1e-6);
        }
    }

    #[test]
    fn only_the_best_share_the_softmax() {
        let mut scores = [0.0, 100.0, 2f32.ln(), 5.0];
        softmax_of_kept(&mut scores, &[3.0, -1.0, 4.0, 0.0], 2);
        for (s, want) in scores.iter().zip([1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0]) {
            assert!((s - want).abs() < 1e-6, "{scores:?}");
        }
    }
}
