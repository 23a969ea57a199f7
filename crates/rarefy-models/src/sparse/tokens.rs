//! The rule of one attention: which tokens a query keeps, over whole sequences and after a cache.

use rarefy_kernels::attention::{
    DoubleSparse, Grouping as KernelGrouping, Query, attend, attend_double_sparse, attend_scratch_len,
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
    /// `[kv_heads][r]`.
    pub(crate) channels: &'a [u32],
    pub(crate) kept: usize,
    pub(crate) grouping: Grouping,
}

impl AttentionRun {
    pub(crate) fn ranking(&self) -> Option<Ranking<'_>> {
        match &self.rule {
            AttentionRule::DoubleSparse { channels, kept, grouping } => {
                Some(Ranking { channels, kept: *kept, grouping: *grouping })
            }
            AttentionRule::All | AttentionRule::Window(_) => None,
        }
    }

    /// A cache for the kernels.
    pub(crate) fn new_cache(&self, kv_heads: usize, d: usize) -> HeadCache {
        HeadCache::new(kv_heads, d, self.ranking().map(|r| r.channels))
    }

    /// One query `q[n_heads * d]` over the whole cache.
    pub(crate) fn decode(&self, q: &[f32], n_heads: usize, cache: &mut HeadCache) -> Vec<f32> {
        const FITS: &str = "the lengths come from the cache's own shape";
        let HeadCache { kv, labels, scratch } = cache;
        let query = Query { q, heads: n_heads, scale: 1.0 / (kv.d() as f32).sqrt() };
        let mut y = vec![0.0; q.len()];
        let n = kv.len();
        let ranked = self.ranking().zip(labels.as_ref()).filter(|(r, _)| r.kept < n);
        self.counts.add(ranked.map_or(0, |(r, _)| n - r.kept), n);
        match ranked {
            Some((ranking, labels)) => {
                let grouping = match ranking.grouping {
                    Grouping::Summed => KernelGrouping::Summed,
                    Grouping::PerHead => KernelGrouping::PerHead,
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

/// The label channels of `x[rows][heads][d]`, `[rows][out_heads][r]`: for each head those of its key-value head, summed over the heads of a
/// key-value head when `out_heads` is the smaller number.
pub(crate) fn labels(
    x: &[f32],
    (heads, d): (usize, usize),
    (kv_heads, channels): (usize, &[u32]),
    out_heads: usize,
) -> Vec<f32> {
    let rank = channels.len() / kv_heads;
    let mut out = vec![0.0; x.len() / (heads * d) * out_heads * rank];
    for (x, out) in x.chunks_exact(heads * d).zip(out.chunks_exact_mut(out_heads * rank)) {
        for h in 0..heads {
            let list = &channels[h * kv_heads / heads * rank..][..rank];
            let out = &mut out[h * out_heads / heads * rank..][..rank];
            for (o, c) in out.iter_mut().zip(list) {
                *o += x[h * d + *c as usize];
            }
        }
    }
    out
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
