//! The label cache: a few channels of every key, laid out for scoring.

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::error::{length, product};
use crate::lanes::{LANES, Lanes, RowValue, prefetch};
use crate::select::{BINS, FIRST_SHIFT, key};
use crate::{AlignedBuf, KernelError};

const NAME: &str = "label-cache";
/// Distance of prefetching, as in the other streams of this crate.
const AHEAD: usize = 4096;

/// How labels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelKind {
    /// 4 bytes per label: exact for f32 and bf16 keys.
    #[default]
    F32,
    /// 2 bytes per label: exact for bf16 keys.
    Bf16,
    /// 1 byte per label and 8 per token: minimum and step of its labels.
    Int8,
    /// Half a byte per label and 8 per token.
    Int4,
}

impl LabelKind {
    /// Largest code of the quantised kinds.
    fn levels(self) -> Option<f32> {
        match self {
            LabelKind::F32 | LabelKind::Bf16 => None,
            LabelKind::Int8 => Some(255.0),
            LabelKind::Int4 => Some(15.0),
        }
    }
}

#[derive(Debug, Clone)]
enum Store {
    F32(AlignedBuf<f32>),
    Bf16(AlignedBuf<bf16>),
    Int8(AlignedBuf<u8>),
    Int4(AlignedBuf<u8>),
}

/// Chosen channels of every cached key, per key-value head in tiles of 16 tokens: `[capacity / 16][r][16]`.
///
/// Sixteen tokens are scored with one multiply-add per channel and without a horizontal sum. The channels are copied out of the
/// keys, as a view of them would read the same cache lines as the dense attention. int8 and int4 quantise the
/// labels of one token between their minimum and maximum, `step = (max - min) / (2^b - 1)`; the error of a label is at
/// most half a step.
#[derive(Debug, Clone)]
pub struct LabelCache {
    kv_heads: usize,
    d: usize,
    rank: usize,
    capacity: usize,
    len: usize,
    /// `[kv_heads][rank]`.
    channels: Vec<u32>,
    store: Store,
    /// `[kv_heads][tiles][2][16]` steps and minima; empty unless quantised.
    steps: AlignedBuf<f32>,
}

impl LabelCache {
    /// An empty cache for `channels[kv_heads][rank]` of `d`.
    ///
    /// # Errors
    /// [`KernelError::Argument`] for sizes of zero, channels beyond `d` or a list that the heads do not divide.
    pub fn new(
        kind: LabelKind,
        kv_heads: usize,
        d: usize,
        channels: &[u32],
        capacity: usize,
    ) -> Result<Self, KernelError> {
        let bad = |argument, value: String, allowed| {
            Err(KernelError::Argument { kernel: NAME, argument, value, allowed })
        };
        if kv_heads == 0 || channels.is_empty() || !channels.len().is_multiple_of(kv_heads) {
            return bad("channels", channels.len().to_string(), "as many for each head, at least one");
        }
        if let Some(c) = channels.iter().find(|c| **c as usize >= d) {
            return bad("channels", c.to_string(), "below d");
        }
        if capacity == 0 || u32::try_from(capacity).is_err() {
            return bad("capacity", capacity.to_string(), "1 to 2^32 - 1");
        }
        let rank = channels.len() / kv_heads;
        let padded = product(NAME, kv_heads, capacity.next_multiple_of(LANES))?;
        let all = product(NAME, padded, rank)?;
        product(NAME, all, 8)?;
        let store = match kind {
            LabelKind::F32 => Store::F32(AlignedBuf::zeroed(all)),
            LabelKind::Bf16 => Store::Bf16(AlignedBuf::zeroed(all)),
            LabelKind::Int8 => Store::Int8(AlignedBuf::zeroed(all)),
            LabelKind::Int4 => Store::Int4(AlignedBuf::zeroed(all / 2)),
        };
        let steps = AlignedBuf::zeroed(if kind.levels().is_some() { padded * 2 } else { 0 });
        Ok(Self { kv_heads, d, rank, capacity, len: 0, channels: channels.to_vec(), store, steps })
    }

    /// Takes the labels of one token from its keys `[kv_heads][d]` (after the rotation of positions).
    ///
    /// # Errors
    /// [`KernelError::Length`], or [`KernelError::Full`].
    pub fn append<T: RowValue>(&mut self, k: &[T]) -> Result<(), KernelError> {
        let expected = self.kv_heads * self.d;
        length(NAME, "k", expected, k.len())?;
        if self.len == self.capacity {
            return Err(KernelError::Full { kernel: NAME, capacity: self.capacity });
        }
        let (tiles, rank, lane) = (self.capacity.div_ceil(LANES), self.rank, self.len % LANES);
        for h in 0..self.kv_heads {
            let tile = h * tiles + self.len / LANES;
            let channels = &self.channels[h * rank..(h + 1) * rank];
            let label = |c: u32| k[h * self.d + c as usize].to_f32();
            let (low, high) = channels
                .iter()
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), c| (a.min(label(*c)), b.max(label(*c))));
            let mut quantise = |levels: f32| {
                // A range of zero gets the step of a range of one, so that nothing is divided by zero.
                let step = if high > low { (high - low) / levels } else { 1.0 / levels };
                // Codes hold no NaN and no infinity: their step does, so that such a label shows in the score.
                let step = if channels.iter().all(|c| label(*c).is_finite()) { step } else { f32::NAN };
                self.steps.as_mut_slice()[tile * 2 * LANES + lane] = step;
                self.steps.as_mut_slice()[tile * 2 * LANES + LANES + lane] = low;
                move |v: f32| ((v - low) / step).round().clamp(0.0, levels) as u8
            };
            let at = |i: usize| (tile * rank + i) * LANES + lane;
            match &mut self.store {
                Store::F32(s) => {
                    channels.iter().enumerate().for_each(|(i, c)| s.as_mut_slice()[at(i)] = label(*c));
                }
                Store::Bf16(s) => channels
                    .iter()
                    .enumerate()
                    .for_each(|(i, c)| s.as_mut_slice()[at(i)] = bf16::from_f32(label(*c))),
                Store::Int8(s) => {
                    let code = quantise(255.0);
                    channels.iter().enumerate().for_each(|(i, c)| s.as_mut_slice()[at(i)] = code(label(*c)));
                }
                Store::Int4(s) => {
                    let code = quantise(15.0);
                    for (i, c) in channels.iter().enumerate() {
                        // Lanes 0 to 7 are the low halves of the eight bytes, 8 to 15 the high ones.
                        let byte = &mut s.as_mut_slice()[(tile * rank + i) * (LANES / 2) + lane % 8];
                        let shift = lane / 8 * 4;
                        *byte = *byte & !(15 << shift) | code(label(*c)) << shift;
                    }
                }
            }
        }
        self.len += 1;
        Ok(())
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True without tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }
    /// Channels of a key.
    pub fn d(&self) -> usize {
        self.d
    }
    /// The channels of a head. Panics when there is no such head.
    pub fn channels(&self, head: usize) -> &[u32] {
        &self.channels[head * self.rank..(head + 1) * self.rank]
    }
    /// Bytes that scoring all tokens reads.
    pub fn bytes_read(&self) -> usize {
        let labels = self.len.next_multiple_of(LANES) * self.kv_heads;
        match self.store {
            Store::F32(_) => 4 * labels * self.rank,
            Store::Bf16(_) => 2 * labels * self.rank,
            Store::Int8(_) => labels * (self.rank + 8),
            Store::Int4(_) => labels * self.rank / 2 + 8 * labels,
        }
    }

    /// The stored label of a token, decoded. Panics outside the cache.
    pub fn label(&self, head: usize, token: usize, i: usize) -> f32 {
        assert!(head < self.kv_heads && token < self.len && i < self.rank, "inside the cache");
        let tile = head * self.capacity.div_ceil(LANES) + token / LANES;
        let lane = token % LANES;
        let at = (tile * self.rank + i) * LANES + lane;
        let decode = |code: u8| {
            let s = &self.steps.as_slice()[tile * 2 * LANES..];
            s[LANES + lane] + s[lane] * f32::from(code)
        };
        match &self.store {
            Store::F32(s) => s.as_slice()[at],
            Store::Bf16(s) => s.as_slice()[at].to_f32(),
            Store::Int8(s) => decode(s.as_slice()[at]),
            Store::Int4(s) => {
                let byte = s.as_slice()[(tile * self.rank + i) * (LANES / 2) + lane % 8];
                decode(byte >> (lane / 8 * 4) & 15)
            }
        }
    }

    /// Writes the sortable keys of the scores `Σ q[c] label[c]` of all tokens of `head` and counts them by their upper bits.
    ///
    /// Per token and head: `r` labels read, `2 r` flops, 4 bytes written to cache, one increment.
    #[inline(always)]
    pub(super) fn score<L: Lanes>(
        &self,
        l: L,
        head: usize,
        q: &[f32],
        keys: &mut [u32],
        counts: &mut [u32; BINS],
    ) {
        let (rank, tiles) = (self.rank, self.capacity.div_ceil(LANES));
        let used = self.len.div_ceil(LANES);
        let range =
            |lane_size: usize| head * tiles * rank * lane_size..(head * tiles + used) * rank * lane_size;
        let mut sink = Sink { l, keys: &mut keys[..self.len], counts };
        let steps = || {
            let at = head * tiles * 2;
            &self.steps.as_slice().as_chunks::<LANES>().0[at..at + used * 2]
        };
        let total: f32 = q.iter().sum();
        match &self.store {
            Store::F32(s) => {
                let all = s.as_slice()[range(LANES)].as_chunks::<LANES>().0;
                for (t, tile) in all.chunks_exact(rank).enumerate() {
                    let sum = channels(l, tile, q, |v| l.load(v));
                    sink.put(t, sum);
                }
            }
            Store::Bf16(s) => {
                let all = s.as_slice()[range(LANES)].as_chunks::<LANES>().0;
                for (t, tile) in all.chunks_exact(rank).enumerate() {
                    let sum = channels(l, tile, q, |v| l.load_bf16(v));
                    sink.put(t, sum);
                }
            }
            Store::Int8(s) => {
                let all = s.as_slice()[range(LANES)].as_chunks::<LANES>().0;
                for (t, (tile, s)) in all.chunks_exact(rank).zip(steps().chunks_exact(2)).enumerate() {
                    let sum = channels(l, tile, q, |v| l.load_u8(v));
                    let offset = l.mul(l.splat(total), l.load(&s[1]));
                    sink.put(t, l.fma(l.load(&s[0]), sum, offset));
                }
            }
            Store::Int4(s) => {
                let all = s.as_slice()[range(LANES / 2)].as_chunks::<{ LANES / 2 }>().0;
                for (t, (tile, s)) in all.chunks_exact(rank).zip(steps().chunks_exact(2)).enumerate() {
                    let sum = channels(l, tile, q, |v| l.load_u4(v));
                    let offset = l.mul(l.splat(total), l.load(&s[1]));
                    sink.put(t, l.fma(l.load(&s[0]), sum, offset));
                }
            }
        }
    }
}

/// `Σ_c q[c] tile[c]`.
#[inline(always)]
fn channels<L: Lanes, C>(l: L, tile: &[C], q: &[f32], load: impl Fn(&C) -> L::V) -> L::V {
    let mut sum = l.splat(0.0);
    for (c, q) in tile.iter().zip(q) {
        prefetch((c as *const C).wrapping_byte_add(AHEAD));
        sum = l.fma(l.splat(*q), load(c), sum);
    }
    sum
}

/// Where scores go.
struct Sink<'a, L> {
    l: L,
    keys: &'a mut [u32],
    counts: &'a mut [u32; BINS],
}

impl<L: Lanes> Sink<'_, L> {
    #[inline(always)]
    fn put(&mut self, tile: usize, scores: L::V) {
        let new = self.l.array(scores).map(key);
        let rest = &mut self.keys[tile * LANES..];
        // The last tile may be longer than the cache.
        let count = rest.len().min(LANES);
        rest[..count].copy_from_slice(&new[..count]);
        for k in &new[..count] {
            self.counts[(*k >> FIRST_SHIFT) as usize] += 1;
        }
    }
}
