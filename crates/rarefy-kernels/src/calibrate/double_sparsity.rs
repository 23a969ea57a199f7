//! Double Sparsity — the few channels of keys by which tokens can be ranked, found offline.
//!
//! Paper:    Post-Training Sparse Attention with Double Sparsity, arXiv 2408.07092. Reference code: `andy-yang-1/DoubleSparse`.
//! Problem:  blocks of queries `q[tokens][heads][d]` and keys `k[tokens][kv_heads][d]` of one layer, after the rotation of
//!           positions (rotated channels rank differently); wanted channels `r` of `d`.
//! Method:   an importance per query head and channel, a mean over all blocks; the `r` largest.
//! Cost:     `tokens · heads · d` per block; [`Importance::SoftmaxWeighted`] also `tokens² · heads · d`.
//! Variants: [`Importance`]; per query head, or summed over the group that shares a key-value head (the default here: one smaller
//!           label cache).
//! Differs:  from the reference code: every block counts (there the accumulator is overwritten and only the last one does).
//! Fails on: sizes that do not fit, no block yet → [`KernelError`].

use serde::{Deserialize, Serialize};

use crate::KernelError;
use crate::error::{length, product};

const NAME: &str = "double-sparsity";

/// What makes a channel important; `q` and `k` belong to one head and channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Importance {
    /// Mean of `|q_t k_t|`: every token with itself. The default of the reference code.
    Qk,
    /// Mean of `|q_t|`.
    Q,
    /// Mean of `|k_t|`.
    K,
    /// Mean of `|q_i k_j|` over all pairs of a block.
    AllPairs,
    /// Mean over `i` of `Σ_{j <= i} softmax(q_i · k_j / √d) |q_i k_j|`.
    SoftmaxWeighted,
    /// `|Σ q_t k_t|` over all tokens, divided by their number.
    AbsoluteSum,
    /// Variance of `q_t k_t` over all tokens.
    Variance,
}

impl Importance {
    /// All variants.
    pub const ALL: [Importance; 7] = [
        Importance::Qk,
        Importance::Q,
        Importance::K,
        Importance::AllPairs,
        Importance::SoftmaxWeighted,
        Importance::AbsoluteSum,
        Importance::Variance,
    ];
}

/// Collects the importance of the channels of one layer.
#[derive(Debug, Clone)]
pub struct ChannelCalibrator {
    importance: Importance,
    heads: usize,
    kv_heads: usize,
    d: usize,
    /// `[heads][d]`.
    sums: Vec<f64>,
    squares: Vec<f64>,
    count: f64,
}

impl ChannelCalibrator {
    /// A layer of `heads` query heads on `kv_heads` key-value heads of `d` channels.
    ///
    /// # Errors
    /// [`KernelError::Argument`] unless the heads are a positive multiple of the key-value heads and `d` is positive.
    pub fn new(importance: Importance, heads: usize, kv_heads: usize, d: usize) -> Result<Self, KernelError> {
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            let (argument, allowed) = ("heads", "a positive multiple of the key-value heads");
            return Err(KernelError::Argument { kernel: NAME, argument, value: heads.to_string(), allowed });
        }
        if d == 0 {
            let (argument, value, allowed) = ("d", "0".to_owned(), "at least 1");
            return Err(KernelError::Argument { kernel: NAME, argument, value, allowed });
        }
        let all = product(NAME, heads, d)?;
        Ok(Self { importance, heads, kv_heads, d, sums: vec![0.0; all], squares: vec![0.0; all], count: 0.0 })
    }

    /// Adds one block of consecutive tokens.
    ///
    /// # Errors
    /// [`KernelError::Length`] unless `q` is `[tokens][heads][d]` and `k` `[tokens][kv_heads][d]`.
    pub fn add(&mut self, q: &[f32], k: &[f32], tokens: usize) -> Result<(), KernelError> {
        let (heads, d, kv) = (self.heads, self.d, self.kv_heads);
        for (array, width, found) in [("q", heads, q.len()), ("k", kv, k.len())] {
            let expected = product(NAME, tokens, product(NAME, width, d)?)?;
            length(NAME, array, expected, found)?;
        }
        if tokens == 0 {
            return Ok(());
        }
        let mut weights = Vec::new();
        for h in 0..heads {
            let group = h / (heads / kv);
            let q_at = |t: usize| &q[(t * heads + h) * d..][..d];
            let k_at = |t: usize| &k[(t * kv + group) * d..][..d];
            let sums = &mut self.sums[h * d..(h + 1) * d];
            match self.importance {
                Importance::AllPairs => {
                    // The mean over pairs of a product is the product of the means.
                    for (c, sum) in sums.iter_mut().enumerate() {
                        let of_q: f64 = (0..tokens).map(|t| f64::from(q_at(t)[c]).abs()).sum();
                        let of_k: f64 = (0..tokens).map(|t| f64::from(k_at(t)[c]).abs()).sum();
                        *sum += of_q * of_k;
                    }
                }
                Importance::SoftmaxWeighted => {
                    for i in 0..tokens {
                        causal_weights(q_at(i), (0..=i).map(k_at), &mut weights);
                        for (j, w) in weights.iter().enumerate() {
                            let (q, k) = (q_at(i), k_at(j));
                            for (c, sum) in sums.iter_mut().enumerate() {
                                *sum += w * (f64::from(q[c]) * f64::from(k[c])).abs();
                            }
                        }
                    }
                }
                _ => {
                    let squares = &mut self.squares[h * d..(h + 1) * d];
                    for t in 0..tokens {
                        for c in 0..d {
                            let (q, k) = (f64::from(q_at(t)[c]), f64::from(k_at(t)[c]));
                            sums[c] += match self.importance {
                                Importance::Q => q.abs(),
                                Importance::K => k.abs(),
                                Importance::Qk => (q * k).abs(),
                                _ => q * k,
                            };
                            squares[c] += (q * k).powi(2);
                        }
                    }
                }
            }
        }
        let tokens = tokens as f64;
        self.count += if self.importance == Importance::AllPairs { tokens * tokens } else { tokens };
        Ok(())
    }

    /// The importance, `[heads][d]`.
    ///
    /// # Errors
    /// [`KernelError::Argument`] before the first token.
    pub fn scores(&self) -> Result<Vec<f64>, KernelError> {
        if self.count == 0.0 {
            let (argument, value, allowed) = ("blocks", "none".to_owned(), "at least one token");
            return Err(KernelError::Argument { kernel: NAME, argument, value, allowed });
        }
        let n = self.count;
        let one = |(sum, square): (&f64, &f64)| match self.importance {
            Importance::AbsoluteSum => (sum / n).abs(),
            Importance::Variance => square / n - (sum / n).powi(2),
            _ => sum / n,
        };
        Ok(self.sums.iter().zip(&self.squares).map(one).collect())
    }

    /// The importance summed over the heads of a group, `[kv_heads][d]`.
    ///
    /// # Errors
    /// As [`ChannelCalibrator::scores`].
    pub fn group_scores(&self) -> Result<Vec<f64>, KernelError> {
        let mut out = vec![0.0; self.kv_heads * self.d];
        let group = self.heads / self.kv_heads;
        for (h, of_head) in self.scores()?.chunks_exact(self.d).enumerate() {
            let at = h / group * self.d;
            out[at..at + self.d].iter_mut().zip(of_head).for_each(|(o, s)| *o += s);
        }
        Ok(out)
    }

    /// The `r` most important channels of each key-value head, `[kv_heads][r]`, the best first: what
    /// [`LabelCache`](crate::attention::LabelCache) takes.
    ///
    /// # Errors
    /// As [`ChannelCalibrator::scores`]; [`KernelError::Argument`] unless `1 <= r <= d`.
    pub fn group_channels(&self, r: usize) -> Result<Vec<u32>, KernelError> {
        best_channels(&self.group_scores()?, self.d, r)
    }

    /// The `r` most important channels of each query head, `[heads][r]`, the best first.
    ///
    /// # Errors
    /// As [`ChannelCalibrator::group_channels`].
    pub fn head_channels(&self, r: usize) -> Result<Vec<u32>, KernelError> {
        best_channels(&self.scores()?, self.d, r)
    }
}

/// `softmax(q · k_j / √d)` over the keys given.
fn causal_weights<'a>(q: &[f32], keys: impl Iterator<Item = &'a [f32]>, weights: &mut Vec<f64>) {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
    weights.clear();
    weights.extend(keys.map(|k| dot(k) / (q.len() as f64).sqrt()));
    let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|w| *w = (*w - most).exp());
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
}

/// The `r` largest of each run of `d` scores, the best first; equal ones by index, NaN last.
///
/// # Errors
/// [`KernelError::Argument`] unless `1 <= r <= d`.
pub fn best_channels(scores: &[f64], d: usize, r: usize) -> Result<Vec<u32>, KernelError> {
    if r == 0 || r > d {
        return Err(KernelError::Argument {
            kernel: NAME,
            argument: "r",
            value: r.to_string(),
            allowed: "1 to the channels of a head",
        });
    }
    let mut out = Vec::with_capacity(scores.len() / d * r);
    for scores in scores.chunks_exact(d) {
        let rank = |c: u32| Some(scores[c as usize]).filter(|s| !s.is_nan()).unwrap_or(f64::NEG_INFINITY);
        let mut order: Vec<u32> = (0..d as u32).collect();
        order.sort_by(|a, b| rank(*b).total_cmp(&rank(*a)));
        out.extend(&order[..r]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                (s >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn scores(
        importance: Importance,
        blocks: &[(Vec<f32>, Vec<f32>)],
        (heads, kv, d): (usize, usize, usize),
    ) -> Vec<f64> {
        let mut c = ChannelCalibrator::new(importance, heads, kv, d).unwrap();
        for (q, k) in blocks {
            c.add(q, k, q.len() / heads / d).unwrap();
        }
        c.scores().unwrap()
    }

    #[test]
    fn every_variant_by_hand() {
        // One head of two channels, tokens q = (1, 2), (-3, 0), k = (4, -1), (1, 1).
        let block = [(vec![1.0, 2.0, -3.0, 0.0], vec![4.0, -1.0, 1.0, 1.0])];
        let s = |i| scores(i, &block, (1, 1, 2));
        assert_eq!(s(Importance::Qk), [(4.0 + 3.0) / 2.0, 1.0]);
        assert_eq!(s(Importance::Q), [2.0, 1.0]);
        assert_eq!(s(Importance::K), [2.5, 1.0]);
        // Channel 0: (1 + 3)(4 + 1) / 4 pairs; channel 1: 2 · 2 / 4.
        assert_eq!(s(Importance::AllPairs), [5.0, 1.0]);
        assert_eq!(s(Importance::AbsoluteSum), [0.5, 1.0]);
        // Products 4, -3: mean of squares 12.5 less 0.25; -2, 0: 2 less 1.
        assert_eq!(s(Importance::Variance), [12.25, 1.0]);
        // Token 0 sees itself. Token 1 scores -12/√2 and -3/√2: weights w and 1 - w with w = 1 / (1 + e^(9/√2)).
        let w = 1.0 / (1.0 + (9.0 / 2f64.sqrt()).exp());
        let want = [(4.0 + 12.0 * w + 3.0 * (1.0 - w)) / 2.0, 1.0];
        s(Importance::SoftmaxWeighted).iter().zip(want).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
    }

    #[test]
    fn every_block_counts_and_their_order_does_not() {
        let shape = (4, 2, 6);
        let block = |seed: u64, tokens: usize, scale: f32| {
            let q = noise(seed, tokens * 4 * 6).iter().map(|v| v * scale).collect::<Vec<_>>();
            (q, noise(seed + 50, tokens * 2 * 6))
        };
        let blocks = vec![block(1, 20, 1.0), block(2, 20, 3.0), block(3, 20, 0.2)];
        let reversed: Vec<_> = blocks.iter().rev().cloned().collect();
        for importance in Importance::ALL {
            let all = scores(importance, &blocks, shape);
            for (a, b) in all.iter().zip(scores(importance, &reversed, shape)) {
                assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{importance:?}");
            }
            if !matches!(importance, Importance::AbsoluteSum | Importance::Variance) {
                // Blocks of one size: the mean of the blocks' means.
                let each: Vec<_> =
                    blocks.iter().map(|b| scores(importance, std::slice::from_ref(b), shape)).collect();
                for (i, a) in all.iter().enumerate() {
                    let mean = each.iter().map(|e| e[i]).sum::<f64>() / 3.0;
                    assert!((a - mean).abs() < 1e-12 * (1.0 + mean), "{importance:?}: {a} {mean}");
                }
            }
            assert_ne!(all, scores(importance, &blocks[2..], shape), "not the last block alone");
        }
    }

    #[test]
    fn groups_sum_their_heads_and_planted_channels_come_first() {
        let (heads, kv, d, tokens) = (6, 2, 16, 64);
        let mut q = noise(8, tokens * heads * d);
        let mut k = noise(9, tokens * kv * d);
        // Outliers: channels 5 and 11 of key-value head 0, channel 2 and 7 of head 1.
        for t in 0..tokens {
            for (head, c, by) in [(0, 5, 20.0), (0, 11, 10.0), (1, 2, 30.0), (1, 7, 9.0)] {
                k[(t * kv + head) * d + c] *= by;
            }
            // A query head that ignores channel 5.
            q[(t * heads + 1) * d + 5] = 0.0;
        }
        for importance in Importance::ALL {
            let mut c = ChannelCalibrator::new(importance, heads, kv, d).unwrap();
            c.add(&q, &k, tokens).unwrap();
            let (of_heads, of_groups) = (c.scores().unwrap(), c.group_scores().unwrap());
            for g in 0..kv {
                for ch in 0..d {
                    let sum: f64 = (0..3).map(|h| of_heads[(g * 3 + h) * d + ch]).sum();
                    assert!((sum - of_groups[g * d + ch]).abs() < 1e-12 * (1.0 + sum.abs()));
                }
            }
            if matches!(
                importance,
                Importance::Qk | Importance::K | Importance::AllPairs | Importance::Variance
            ) {
                assert_eq!(c.group_channels(2).unwrap(), [5, 11, 2, 7], "{importance:?}");
            }
            if importance == Importance::Qk {
                assert_eq!(c.head_channels(1).unwrap(), [5, 11, 5, 2, 2, 2]);
            }
        }
    }

    #[test]
    fn rotation_changes_the_ranking() {
        // Channels c and c + d/2 turn together with the position: energy moves between the pair.
        let (d, tokens) = (8, 32);
        let rotate = |x: &[f32]| -> Vec<f32> {
            let mut out = x.to_vec();
            for (t, row) in out.chunks_mut(d).enumerate() {
                for c in 0..d / 2 {
                    let angle = t as f32 / 10f32.powf(2.0 * c as f32 / d as f32);
                    let (a, b) = (row[c], row[c + d / 2]);
                    row[c] = a * angle.cos() - b * angle.sin();
                    row[c + d / 2] = a * angle.sin() + b * angle.cos();
                }
            }
            out
        };
        let mut k = noise(4, tokens * d);
        k.iter_mut().skip(1).step_by(d).for_each(|v| *v = 5.0); // channel 1, paired with channel 5
        let q = k.clone();
        let before = scores(Importance::Qk, &[(q.clone(), k.clone())], (1, 1, d));
        let after = scores(Importance::Qk, &[(rotate(&q), rotate(&k))], (1, 1, d));
        assert_eq!(best_channels(&before, d, 1).unwrap(), [1]);
        assert!(!best_channels(&before, d, 2).unwrap().contains(&5));
        let mut two = best_channels(&after, d, 2).unwrap();
        two.sort_unstable();
        assert_eq!(two, [1, 5], "{after:?}");
    }

    #[test]
    fn ties_nan_and_bad_sizes() {
        assert_eq!(best_channels(&[1.0, f64::NAN, 1.0, 2.0], 4, 4).unwrap(), [3, 0, 2, 1]);
        assert!(best_channels(&[1.0; 4], 4, 0).is_err() && best_channels(&[1.0; 4], 4, 5).is_err());
        assert!(ChannelCalibrator::new(Importance::Q, 3, 2, 4).is_err());
        assert!(ChannelCalibrator::new(Importance::Q, 0, 1, 4).is_err());
        assert!(ChannelCalibrator::new(Importance::Q, 1, 1, 0).is_err());
        let mut c = ChannelCalibrator::new(Importance::Q, 2, 1, 4).unwrap();
        assert!(c.scores().is_err() && c.add(&[0.0; 16], &[0.0; 9], 2).is_err());
        c.add(&[0.0; 16], &[0.0; 8], 2).unwrap();
        assert_eq!(c.scores().unwrap(), [0.0; 8]);
    }
}
