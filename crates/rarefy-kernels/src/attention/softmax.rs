//! The running softmax over rows of keys and values, and the merge of its segments.

use crate::lanes::{LANES, Lanes, RowValue};
use crate::rowwise::{Ahead, axpys, dots, split};

/// Tokens of one segment, whose results are merged in order.
pub(super) const SEGMENT: usize = 2048;
/// Tokens between two looks at the maximum: four runs of 64, read side by side. Rows of four runs form four ascending streams, which
/// the hardware follows; four neighbouring rows are one stream read out of order, and stayed at 78 % of the read bandwidth.
const BLOCK: usize = 256;
/// Query heads that share one reading of a row from memory into registers.
const HEADS: usize = 4;
/// Bytes of each of the four runs asked for ahead of use: 4 KiB under way, as in the other kernels.
const AHEAD: usize = 1024;

/// Result of one segment for one head: maximum, sum of weights, and `[d]` weighted values.
pub(super) const fn partial_len(d: usize) -> usize {
    d + 2
}

/// Scores of one block for all heads of a group.
pub(super) const fn block_len(heads: usize) -> usize {
    heads * BLOCK
}

/// The rows of one key-value head.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T> {
    pub(super) keys: &'a [T],
    pub(super) values: &'a [T],
    pub(super) d: usize,
}

impl<'a, T: RowValue> Head<'a, T> {
    #[inline(always)]
    fn key(&self, j: usize) -> &'a [T] {
        &self.keys[j * self.d..(j + 1) * self.d]
    }
    #[inline(always)]
    fn value(&self, j: usize) -> &'a [T] {
        &self.values[j * self.d..(j + 1) * self.d]
    }
}

/// Attention of `heads` queries `q[heads][d]` to the tokens `pick(0..count)`, into `partials[heads][partial_len]`.
///
/// Per token and key-value head: `2 d` stored values read once, `4 d` flops per query head, an exponential per query head.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one inlined loop, called from two jobs")]
pub(super) fn segment<L: Lanes, T: RowValue>(
    l: L,
    head: Head<'_, T>,
    q: &[f32],
    heads: usize,
    scale: f32,
    count: usize,
    pick: impl Fn(usize) -> usize + Copy,
    scores: &mut [f32],
    partials: &mut [f32],
) {
    let d = head.d;
    for p in partials.chunks_exact_mut(partial_len(d)) {
        p.fill(0.0);
        p[0] = f32::NEG_INFINITY;
    }
    for begin in (0..count).step_by(BLOCK) {
        let block = Block { head, begin, end: count.min(begin + BLOCK), count };
        for first in (0..heads).step_by(HEADS) {
            let n = HEADS.min(heads - first);
            let q = &q[first * d..(first + n) * d];
            let scores = &mut scores[first * BLOCK..(first + n) * BLOCK];
            match n {
                1 => block.keys::<L, 1>(l, q, scale, pick, scores),
                2 => block.keys::<L, 2>(l, q, scale, pick, scores),
                3 => block.keys::<L, 3>(l, q, scale, pick, scores),
                _ => block.keys::<L, 4>(l, q, scale, pick, scores),
            }
        }
        let size = block.end - begin;
        for (s, p) in scores.chunks_exact_mut(BLOCK).zip(partials.chunks_exact_mut(partial_len(d))) {
            weigh(l, &mut s[..size], p);
        }
        for first in (0..heads).step_by(HEADS) {
            let n = HEADS.min(heads - first);
            let scores = &scores[first * BLOCK..(first + n) * BLOCK];
            let partials = &mut partials[first * partial_len(d)..(first + n) * partial_len(d)];
            match n {
                1 => block.values::<L, 1>(l, scores, pick, partials),
                2 => block.values::<L, 2>(l, scores, pick, partials),
                3 => block.values::<L, 3>(l, scores, pick, partials),
                _ => block.values::<L, 4>(l, scores, pick, partials),
            }
        }
    }
}

/// Turns scores into weights `e^(s - m)` and brings the sums so far to the new maximum.
#[inline(always)]
fn weigh<L: Lanes>(l: L, s: &mut [f32], partial: &mut [f32]) {
    let (state, acc) = partial.split_at_mut(2);
    let old = state[0];
    // NaN is no maximum, but shows in the weights.
    let mut most = l.splat(f32::NEG_INFINITY);
    let (full, rest) = s.as_chunks_mut::<LANES>();
    for v in full.iter() {
        most = l.max(l.load(v), most);
    }
    let most = l.array(most).into_iter().chain(rest.iter().copied()).fold(old, f32::max);
    // All scores so far are -∞: any finite reference gives the weights zero without ∞ - ∞.
    let reference = if most == f32::NEG_INFINITY { 0.0 } else { most };
    if most > old {
        let shrink = if old == f32::NEG_INFINITY { 0.0 } else { (old - reference).exp() };
        state[1] *= shrink;
        acc.iter_mut().for_each(|v| *v *= shrink);
        state[0] = most;
    }
    let m = l.splat(reference);
    let mut sum = l.splat(0.0);
    for v in full.iter_mut() {
        let w = l.exp(l.sub(l.load(v), m));
        sum = l.add(sum, w);
        l.store(w, v);
    }
    let mut total = l.sum(sum);
    if !rest.is_empty() {
        let w = l.exp(l.sub(l.load_part(rest), m));
        l.store_part(w, rest);
        total += rest.iter().sum::<f32>();
    }
    state[1] += total;
}

/// Some consecutive tokens of the list.
#[derive(Clone, Copy)]
struct Block<'a, T> {
    head: Head<'a, T>,
    begin: usize,
    end: usize,
    count: usize,
}

impl<T: RowValue> Block<'_, T> {
    /// Rows of one run, and how many of them are asked for ahead.
    #[inline(always)]
    fn runs(&self) -> (usize, usize) {
        let far = AHEAD / (self.head.d * size_of::<T>()).max(1);
        ((self.end - self.begin) / 4, far.clamp(1, 8))
    }

    /// The rows that will be read `i` steps after the first of the block: its keys, its values, the keys of the next block.
    #[inline(always)]
    fn ahead(&self, i: usize, pick: impl Fn(usize) -> usize) -> [*const T; 4] {
        let run = self.runs().0;
        std::array::from_fn(|r| {
            if i < run {
                self.head.key(pick(self.begin + r * run + i)).as_ptr()
            } else if i < 2 * run {
                self.head.value(pick(self.begin + r * run + i - run)).as_ptr()
            } else {
                // A next block that is shorter has shorter runs: a few lines too many are asked for, once.
                self.head.key(pick((self.end + r * run + i - 2 * run).min(self.count - 1))).as_ptr()
            }
        })
    }

    /// `scores[t][j] = scale · q[t] · key`.
    #[inline(always)]
    fn keys<L: Lanes, const N: usize>(
        self,
        l: L,
        q: &[f32],
        scale: f32,
        pick: impl Fn(usize) -> usize + Copy,
        scores: &mut [f32],
    ) {
        let (run, far) = self.runs();
        for i in 0..run {
            let rows = std::array::from_fn(|r| self.head.key(pick(self.begin + r * run + i)));
            let ahead = Ahead::new(rows, self.ahead(i + far, pick));
            let sums = dots::<L, T, 4, N>(l, rows, q, ahead);
            for (t, sums) in sums.iter().enumerate() {
                for (r, v) in sums.iter().enumerate() {
                    scores[t * BLOCK + r * run + i] = v * scale;
                }
            }
        }
        for j in 4 * run..self.end - self.begin {
            let row = [self.head.key(pick(self.begin + j))];
            let sums = dots::<L, T, 1, N>(l, row, q, Ahead::new(row, [row[0].as_ptr()]));
            for (t, sums) in sums.iter().enumerate() {
                scores[t * BLOCK + j] = sums[0] * scale;
            }
        }
    }

    /// Adds the weighted values to the partial results.
    #[inline(always)]
    fn values<L: Lanes, const N: usize>(
        self,
        l: L,
        weights: &[f32],
        pick: impl Fn(usize) -> usize + Copy,
        partials: &mut [f32],
    ) {
        let (run, far) = self.runs();
        let mut acc = split::<N>(partials, partial_len(self.head.d)).map(|one| &mut one[2..]);
        for i in 0..run {
            let rows = std::array::from_fn(|r| self.head.value(pick(self.begin + r * run + i)));
            let ahead = Ahead::new(rows, self.ahead(run + i + far, pick));
            let w: [[f32; 4]; N] =
                std::array::from_fn(|t| std::array::from_fn(|r| weights[t * BLOCK + r * run + i]));
            axpys(l, rows, &w, &mut acc, ahead);
        }
        for j in 4 * run..self.end - self.begin {
            let row = [self.head.value(pick(self.begin + j))];
            let w: [[f32; 1]; N] = std::array::from_fn(|t| [weights[t * BLOCK + j]]);
            axpys(l, row, &w, &mut acc, Ahead::new(row, [row[0].as_ptr()]));
        }
    }
}

/// Merges the segments of one head, `[partial_len]` at every `stride`, into `out[d]`.
pub(super) fn merge(partials: &[f32], stride: usize, segments: usize, out: &mut [f32]) {
    let d = out.len();
    let part = |s: usize| &partials[s * stride..][..partial_len(d)];
    let most = (0..segments).map(|s| part(s)[0]).fold(f32::NEG_INFINITY, f32::max);
    out.fill(0.0);
    let mut total = 0.0;
    for s in 0..segments {
        let p = part(s);
        let factor = if p[0] == most { 1.0 } else { (p[0] - most).exp() };
        // A NaN sum stays one even when its maximum has no weight.
        total += p[1] * factor;
        for (o, v) in out.iter_mut().zip(&p[2..]) {
            *o += v * factor;
        }
    }
    out.iter_mut().for_each(|o| *o /= total);
}
