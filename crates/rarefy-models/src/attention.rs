//! Causal attention with grouped keys and values, over a whole batch or after a cache.
//!
//! Three ways of computing the same: matrix products block by block of queries (inference over many tokens, bounded
//! memory), plain tensor operations (training, differentiable), and plain slices (few new tokens after a cache). With rules
//! ([`AttentionRun`]) the first masks its scores and a single new token goes through a kernel; what is read into an empty or a filled
//! cache several tokens at a time (a prompt) is dense, as in the deployment of double sparsity.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::exp;
use crate::kv_cache::LayerCache;
use crate::rope::Rope;
use crate::sparse::tokens::{self, AttentionRun};
use crate::tensors::{host_vec, tensor3};

/// Up to this many new tokens after a cache are computed on slices.
const FEW_TOKENS: usize = 8;

/// Queries in one block.
const QUERIES: usize = 64;

/// Scores in memory at a time, all heads together.
const SCORES: usize = 1 << 22;

/// Multiplications below which the slice path stays on one thread.
const PARALLEL_FROM: usize = 1 << 17;

/// The shape of one block's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A token sees itself and this many minus one tokens before it; `None`: all.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Position of the first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }

    /// `q[batch, length, n_heads * head_dim]`, `k` and `v` with `n_kv_heads`, not yet rotated, to the mixed values in the
    /// shape of `q`. With a cache the batch is one sequence, which goes on where the cache ends and is appended to it.
    pub(crate) fn attend(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rope: Option<&Rope>,
        run: Option<&AttentionRun>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        if q.is_autodiff() {
            debug_assert!(cache.is_none(), "training uses no cache");
            return self.trained(q, k, v, rope);
        }
        let [batch, length, _] = q.dims();
        let device = q.device();
        let start = cache.as_ref().map_or(0, |c| c.len);
        let (mut q, mut k, v) = (host_vec(q), host_vec(k), host_vec(v));
        if let Some(rope) = rope {
            rope.rotate_slice(&mut q, self.n_heads, length, start);
            rope.rotate_slice(&mut k, self.n_kv_heads, length, start);
        }
        let Some(cache) = cache else {
            return self.blocked(q, k, v, [batch, length, length], run, &device);
        };
        assert_eq!(batch, 1, "a cache belongs to one sequence");
        if let Some(run) = run.filter(|r| r.has_kernel())
            && cache.len == 0
            && cache.heads.is_none()
        {
            cache.heads = Some(run.new_cache(self.n_heads, self.n_kv_heads, self.head_dim));
        }
        cache.push(&k, &v, length);
        if let Some(run) = run.filter(|r| length == 1 && !r.has_kernel()) {
            let (keys, values) = (cache.keys.clone(), cache.values.clone());
            return self.blocked(q, keys, values, [1, 1, start + 1], Some(run), &device);
        }
        if let (Some(run), Some(heads)) = (run, &mut cache.heads) {
            if length == 1 {
                let y = run.decode(&q, self.n_heads, heads);
                return tensor3(y, [1, 1, self.n_heads * self.head_dim], &device);
            }
            let (keys, values) = if start == 0 { (k, v) } else { heads.rows() };
            return self.blocked(q, keys, values, [1, length, start + length], None, &device);
        }
        if length <= FEW_TOKENS {
            let y = self.on_slices(&q, &cache.keys, &cache.values, start);
            tensor3(y, [1, length, self.n_heads * self.head_dim], &device)
        } else if start == 0 {
            self.blocked(q, k, v, [1, length, length], None, &device)
        } else {
            let (keys, values) = (cache.keys.clone(), cache.values.clone());
            self.blocked(q, keys, values, [1, length, start + length], None, &device)
        }
    }

    /// Matrix products for a block of queries at a time over the keys that the block sees, so that the scores in memory are
    /// bounded and the half above the diagonal is mostly skipped. The queries are the last of the keys' positions. A rule applies to
    /// every query.
    fn blocked(
        &self,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        size: [usize; 3],
        run: Option<&AttentionRun>,
        device: &Device,
    ) -> Tensor<3> {
        let [batch, length, n_keys] = size;
        let (d, start) = (self.head_dim, n_keys - length);
        let (width, group) = (self.n_heads * d, self.n_heads / self.n_kv_heads);
        // Labels of queries and keys; the queries of a group that shares a list are one query.
        let ranking = run.and_then(AttentionRun::ranking).filter(|r| r.kept < n_keys);
        let labels = ranking.map(|r| {
            let (lists, key_lists) = r.lists(self.n_heads, self.n_kv_heads);
            let tensor = |values: Vec<f32>, length: usize, lists: usize| {
                let rank = values.len() / (batch * length * lists);
                let data = TensorData::new(values, [batch, length, lists, rank]);
                Tensor::<4>::from_data(data, device).swap_dims(1, 2)
            };
            let of_q = r.of_queries(&q, self.n_heads, self.n_kv_heads, d);
            let of_k = r.of_keys(&k, self.n_heads, self.n_kv_heads, d);
            (r, tensor(of_q, length, lists), tensor(of_k, n_keys, key_lists))
        });
        let heads = |values: Vec<f32>, length: usize, n: usize| {
            let data = TensorData::new(values, [batch, length, n, d]);
            Tensor::<4>::from_data(data, device).swap_dims(1, 2)
        };
        let (q, k, v) = (
            heads(q, length, self.n_heads),
            heads(k, n_keys, self.n_kv_heads),
            heads(v, n_keys, self.n_kv_heads),
        );
        let block = (SCORES / (self.n_heads * n_keys)).clamp(1, QUERIES).min(length);
        let sequences = (SCORES / (self.n_heads * n_keys * block)).clamp(1, batch);
        let scale = 1.0 / (d as f32).sqrt();
        let mut y = vec![0.0; batch * length * width];
        let count = |left_out: usize, all: usize| {
            if let Some(run) = run {
                run.counts.add(left_out, all);
            }
        };
        for b in (0..batch).step_by(sequences) {
            let nb = sequences.min(batch - b);
            let (q, k, v) =
                (q.clone().narrow(0, b, nb), k.clone().narrow(0, b, nb), v.clone().narrow(0, b, nb));
            for i in (0..length).step_by(block) {
                let ni = block.min(length - i);
                let (first, end) = (self.first_key(start + i), start + i + ni);
                let seen = |t: &Tensor<4>| t.clone().narrow(2, first, end - first);
                // The query heads of one group are rows of one matrix: [sequences, kv heads, group * queries, d].
                let rows = q.clone().narrow(2, i, ni).reshape([nb, self.n_kv_heads, group * ni, d]);
                let mut scores = host_vec(rows.matmul(seen(&k).transpose()));
                let ranks = labels.as_ref().map(|(ranking, q, k)| {
                    let ([_, lists, _, rank], [_, key_lists, ..]) = (q.dims(), k.dims());
                    let rows = q.clone().narrow(0, b, nb).narrow(2, i, ni);
                    let rows = rows.reshape([nb, key_lists, lists / key_lists * ni, rank]);
                    let seen = k.clone().narrow(0, b, nb).narrow(2, first, end - first);
                    (ranking.kept, lists / self.n_kv_heads, host_vec(rows.matmul(seen.transpose())))
                });
                scores.par_chunks_exact_mut(end - first).enumerate().with_min_len(16).for_each(|(r, row)| {
                    let position = start + i + r % ni;
                    let (from, to) = (self.first_key(position) - first, position + 1 - first);
                    row[..from].fill(0.0);
                    row[to..].fill(0.0);
                    let row = &mut row[from..to];
                    row.iter_mut().for_each(|s| *s *= scale);
                    let n = row.len();
                    match &ranks {
                        Some((kept, share, ranks)) if *kept < n => {
                            // Rows are [sequence, kv head, head of the group, query]; a shared list has no third part.
                            let (list, query) = (r / ni, r % ni);
                            let list = list / group * share + if *share > 1 { list % group } else { 0 };
                            let ranks = &ranks[(list * ni + query) * (end - first)..][from..to];
                            tokens::softmax_of_kept(row, ranks, *kept);
                            count(n - kept, n);
                        }
                        _ => {
                            exp::softmax(row);
                            count(0, n);
                        }
                    }
                });
                let shape = [nb, self.n_kv_heads, group * ni, end - first];
                let shares = Tensor::<4>::from_data(TensorData::new(scores, shape), device);
                let mixed = shares.matmul(seen(&v)).reshape([nb, self.n_heads, ni, d]).swap_dims(1, 2);
                for (s, mixed) in host_vec(mixed).chunks_exact(ni * width).enumerate() {
                    y[((b + s) * length + i) * width..][..ni * width].copy_from_slice(mixed);
                }
            }
        }
        tensor3(y, [batch, length, width], device)
    }

    /// Tensor operations only, so that gradients flow.
    fn trained(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, rope: Option<&Rope>) -> Tensor<3> {
        let [batch, length, _] = q.dims();
        let (device, d) = (q.device(), self.head_dim);
        let rotated = |x: Tensor<4>| match rope {
            Some(rope) => rope.rotate_tensor(x),
            None => x,
        };
        let group = self.n_heads / self.n_kv_heads;
        // Query heads of one group become rows of one matrix, so keys and values are never repeated in memory.
        let q = rotated(q.reshape([batch, length, self.n_heads, d])).swap_dims(1, 2).reshape([
            batch,
            self.n_kv_heads,
            group * length,
            d,
        ]);
        let k = rotated(k.reshape([batch, length, self.n_kv_heads, d])).swap_dims(1, 2);
        let v = v.reshape([batch, length, self.n_kv_heads, d]).swap_dims(1, 2);
        let scores =
            q.matmul(k.transpose()).mul_scalar(1.0 / (d as f64).sqrt()) + self.bias(group, length, &device);
        softmax(scores, 3).matmul(v).reshape([batch, self.n_heads, length, d]).swap_dims(1, 2).reshape([
            batch,
            length,
            self.n_heads * d,
        ])
    }

    /// Zero where a key is seen, else so low that its share becomes an exact zero; `[1, 1, group * length, length]`.
    fn bias(&self, group: usize, length: usize, device: &Device) -> Tensor<4> {
        let mut bias = vec![-1e30f32; group * length * length];
        for (r, row) in bias.chunks_exact_mut(length).enumerate() {
            let i = r % length;
            row[self.first_key(i)..=i].fill(0.0);
        }
        Tensor::from_data(TensorData::new(bias, [1, 1, group * length, length]), device)
    }

    /// Few queries `[n, n_heads * head_dim]` from position `start` on, over keys and values `[.., n_kv_heads * head_dim]`.
    fn on_slices(&self, q: &[f32], keys: &[f32], values: &[f32], start: usize) -> Vec<f32> {
        let d = self.head_dim;
        let width = self.n_kv_heads * d;
        let group = self.n_heads / self.n_kv_heads;
        let scale = 1.0 / (d as f32).sqrt();
        let mut y = vec![0.0; q.len()];
        let one = |(index, y): (usize, &mut [f32])| {
            let (token, head) = (index / self.n_heads, index % self.n_heads);
            let query = &q[index * d..(index + 1) * d];
            let at = head / group * d;
            let (first, last) = (self.first_key(start + token), start + token);
            let mut scores: Vec<f32> =
                (first..=last).map(|p| dot(query, &keys[p * width + at..][..d]) * scale).collect();
            exp::softmax(&mut scores);
            for (p, s) in (first..=last).zip(&scores) {
                for (y, v) in y.iter_mut().zip(&values[p * width + at..][..d]) {
                    *y += s * v;
                }
            }
        };
        if q.len() * (keys.len() / width) < PARALLEL_FROM {
            y.chunks_exact_mut(d).enumerate().for_each(one);
        } else {
            y.par_chunks_exact_mut(d).enumerate().for_each(one);
        }
        y
    }
}

/// Inner product with eight partial sums, in a fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 % 1009) as f32) / 500.0 - 1.0).collect()
    }

    /// The definition, in 64 bits; each query attends to the `kept` visible tokens with the highest scores.
    fn oracle(
        shape: &AttentionShape,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        length: usize,
        kept: usize,
    ) -> Vec<f64> {
        let (d, group) = (shape.head_dim, shape.n_heads / shape.n_kv_heads);
        let mut y = vec![0.0; q.len()];
        for h in 0..shape.n_heads {
            for i in 0..length {
                let key = |j: usize, c: usize| k[(j * shape.n_kv_heads + h / group) * d + c] as f64;
                let value = |j: usize, c: usize| v[(j * shape.n_kv_heads + h / group) * d + c] as f64;
                let at = (i * shape.n_heads + h) * d;
                let mut seen: Vec<usize> =
                    (0..=i).filter(|j| shape.window.is_none_or(|w| i - j < w)).collect();
                let score = |j: usize| (0..d).map(|c| q[at + c] as f64 * key(j, c)).sum::<f64>();
                seen.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
                seen.truncate(kept);
                let e: Vec<f64> = seen
                    .iter()
                    .map(|j| {
                        ((0..d).map(|c| q[at + c] as f64 * key(*j, c)).sum::<f64>() / (d as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = e.iter().sum();
                for c in 0..d {
                    y[at + c] = seen.iter().zip(&e).map(|(j, e)| e / sum * value(*j, c)).sum();
                }
            }
        }
        y
    }

    #[test]
    fn every_path_equals_the_definition() {
        for (n_heads, n_kv_heads, length, window) in
            [(4, 2, 11, None), (6, 1, 9, Some(4)), (3, 3, 20, Some(20)), (4, 4, 17, Some(1)), (2, 1, 1, None)]
        {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim: 6, window };
            let (q, k, v) = (
                values(length * n_heads * 6, 1),
                values(length * n_kv_heads * 6, 5),
                values(length * n_kv_heads * 6, 9),
            );
            let expected = oracle(&shape, &q, &k, &v, length, length);
            let check = |got: Vec<f32>, path: &str| {
                for (a, b) in got.iter().zip(&expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "{path} {shape:?}: {a} {b}");
                }
                assert_eq!(got.len(), expected.len());
            };
            let run = |device: &Device, cache: Option<&mut LayerCache>| {
                let q = tensor3(q.clone(), [1, length, n_heads * 6], device);
                let k = tensor3(k.clone(), [1, length, n_kv_heads * 6], device);
                let v = tensor3(v.clone(), [1, length, n_kv_heads * 6], device);
                shape.attend(q, k, v, None, None, cache)
            };
            check(host_vec(run(&Device::flex(), None)), "blocked");
            check(host_vec(run(&Device::flex().autodiff(), None).inner()), "trained");
            check(host_vec(run(&Device::flex(), Some(&mut LayerCache::default()))), "cache");
            check(shape.on_slices(&q, &k, &v, 0), "slices");
            // Two chunks after one another: the second one continues from the cache.
            if length > 10 {
                let mut cache = LayerCache::default();
                let mut got = Vec::new();
                for (from, to) in [(0, 2), (2, length)] {
                    let part = |x: &[f32], n: usize| {
                        tensor3(x[from * n * 6..to * n * 6].to_vec(), [1, to - from, n * 6], &Device::flex())
                    };
                    let y = shape.attend(
                        part(&q, n_heads),
                        part(&k, n_kv_heads),
                        part(&v, n_kv_heads),
                        None,
                        None,
                        Some(&mut cache),
                    );
                    got.extend(host_vec(y));
                }
                check(got, "chunks");
            }
        }
    }

    #[test]
    fn all_channels_keep_the_tokens_with_the_highest_true_scores() {
        use crate::sparse::{AttentionRule, Counts, Grouping};
        use rarefy_kernels::attention::LabelKind;
        let shape = AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim: 6, window: None };
        let length = 90;
        let noise = |len: usize, seed: u64| -> Vec<f32> {
            let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = || {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                (s >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..len).map(|_| next()).collect()
        };
        let (q, k, v) = (noise(length * 24, 1), noise(length * 12, 2), noise(length * 12, 3));
        let device = Device::flex();
        let part = |x: &[f32], i: usize, n: usize, w: usize| {
            tensor3(x[i * w..(i + n) * w].to_vec(), [1, n, w], &device)
        };
        for kept in [1, 7, 70] {
            let channels = (0..2).flat_map(|_| 0..6).collect();
            let rule = AttentionRule::DoubleSparse {
                channels,
                kept,
                grouping: Grouping::PerHead,
                labels: LabelKind::F32,
            };
            let run = AttentionRun { rule, counts: Counts::default() };
            let expected = oracle(&shape, &q, &k, &v, length, kept);
            let at = |i: usize, n: usize, cache: Option<&mut LayerCache>| {
                let (q, k, v) = (part(&q, i, n, 24), part(&k, i, n, 12), part(&v, i, n, 12));
                host_vec(shape.attend(q, k, v, None, Some(&run), cache))
            };
            let mut cache = LayerCache::default();
            let steps: Vec<f32> = (0..length).flat_map(|i| at(i, 1, Some(&mut cache))).collect();
            for got in [at(0, length, None), steps] {
                for (a, b) in got.iter().zip(&expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "T = {kept}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_batch_is_its_sequences() {
        let shape = AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim: 4, window: None };
        let (q, k, v) = (values(2 * 5 * 16, 3), values(2 * 5 * 8, 4), values(2 * 5 * 8, 5));
        let run = |from: usize, to: usize| {
            let part = |x: &[f32], n: usize| {
                tensor3(x[from * 5 * n..to * 5 * n].to_vec(), [to - from, 5, n], &Device::flex())
            };
            host_vec(shape.attend(part(&q, 16), part(&k, 8), part(&v, 8), None, None, None))
        };
        let both = run(0, 2);
        let single: Vec<f32> = [run(0, 1), run(1, 2)].concat();
        assert_eq!(both, single);
    }
}
