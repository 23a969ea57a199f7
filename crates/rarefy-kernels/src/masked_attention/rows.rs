//! Attention of each query to its own list of keys.

use super::gemm::exp_row;
use crate::error::{at_least, length, product};
use crate::lanes::{Job, Lanes, dispatch};
use crate::rowwise::{Ahead, axpys, dots};
use crate::{Isa, KernelError};

const NAME: &str = "masked-attention";

/// The keys of each query: those of query `i` are `keys[starts[i]..starts[i + 1]]`. A query without keys gets zeros.
#[derive(Debug, Clone, Copy)]
pub struct RowLists<'a> {
    /// `n + 1` ascending offsets.
    pub starts: &'a [u32],
    /// Key indices below `n`.
    pub keys: &'a [u32],
}

impl RowLists<'_> {
    fn check(&self, n: usize) -> Result<(), KernelError> {
        length(NAME, "starts", n + 1, self.starts.len())?;
        let bad = |argument, value: u32, allowed| {
            Err(KernelError::Argument { kernel: NAME, argument, value: value.to_string(), allowed })
        };
        if let Some(w) = self.starts.windows(2).find(|w| w[0] > w[1]) {
            return bad("starts", w[1], "ascending offsets");
        }
        let ends = [self.starts[0], self.starts[n]];
        if ends[0] != 0 || ends[1] as usize != self.keys.len() {
            return bad("starts", ends[1], "from 0 to the number of keys");
        }
        match self.keys.iter().find(|k| **k as usize >= n) {
            Some(k) => bad("keys", *k, "below n"),
            None => Ok(()),
        }
    }

    /// The keys of query `i`.
    fn of(&self, i: usize) -> &[u32] {
        &self.keys[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

/// Elements of scratch for [`attend_rows`]: the scores of one query.
pub fn attend_rows_scratch_len(n: usize) -> usize {
    n
}

/// `out[i] = softmax(scale · q[i] · k[j]) v[j]` over the keys `j` of each query; a positive `scale`, lists of at most `n` keys.
///
/// # Roofline
/// `8 B d` bytes from the second-level cache per query of `B` keys, `4 B d` flops: at `d = 64` a row is four cache lines, and about 48 bytes per
/// cycle bound it, not arithmetic. So the gain over the dense product is less than `n / B`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Argument`] for sizes and lists that do not fit.
#[allow(clippy::too_many_arguments, reason = "three matrices, the lists, and where the result goes")]
pub fn attend_rows(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f32,
    lists: RowLists<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    attend_rows_with(Isa::detect(), q, k, v, d, scale, lists, out, scratch)
}

/// [`attend_rows`] on a chosen code path.
///
/// # Errors
/// Those of `attend_rows`, and [`KernelError::Isa`] when this CPU lacks the path.
#[allow(clippy::too_many_arguments, reason = "the arguments of attend_rows and the path")]
pub fn attend_rows_with(
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f32,
    lists: RowLists<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    isa.require()?;
    let n = q.len() / d.max(1);
    let expected = product(NAME, n, d)?;
    for (array, found) in [("q", q.len()), ("k", k.len()), ("v", v.len()), ("out", out.len())] {
        length(NAME, array, expected, found)?;
    }
    lists.check(n)?;
    let longest = lists.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0) as usize;
    at_least(NAME, "scratch", longest.max(attend_rows_scratch_len(n)), scratch.len())?;
    dispatch(isa, Rows { q, k, v, d, scale, lists, out, scratch });
    Ok(())
}

struct Rows<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    d: usize,
    scale: f32,
    lists: RowLists<'a>,
    out: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Job for Rows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { q, k, v, d, scale, lists, out, scratch } = self;
        if d == 0 {
            return;
        }
        let row = |all: &'_ [f32], j: u32| -> *const f32 { all[j as usize * d..].as_ptr() };
        for (i, (q, out)) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
            let list = lists.of(i);
            let scores = &mut scratch[..list.len()];
            let (fours, rest) = list.as_chunks::<4>();
            let pick = |all, four: &[u32; 4]| four.map(|j| row_of(all, j, d));
            for (g, four) in fours.iter().enumerate() {
                let rows = pick(k, four);
                let next = fours[(g + 2).min(fours.len() - 1)].map(|j| row(k, j));
                let sums = dots::<L, f32, 4, 1>(l, rows, q, Ahead::new(rows, next));
                scores[g * 4..g * 4 + 4].copy_from_slice(&sums[0]);
            }
            for (s, j) in scores[fours.len() * 4..].iter_mut().zip(rest) {
                let rows = [row_of(k, *j, d)];
                *s = dots::<L, f32, 1, 1>(l, rows, q, Ahead::new(rows, [rows[0].as_ptr()]))[0][0];
            }
            let sum = exp_row(l, scores, scale);
            out.fill(0.0);
            if list.is_empty() {
                continue;
            }
            let mut y = [&mut *out];
            for (g, four) in fours.iter().enumerate() {
                let rows = pick(v, four);
                let next = fours[(g + 2).min(fours.len() - 1)].map(|j| row(v, j));
                let w = [[scores[g * 4], scores[g * 4 + 1], scores[g * 4 + 2], scores[g * 4 + 3]]];
                axpys(l, rows, &w, &mut y, Ahead::new(rows, next));
            }
            for (s, j) in scores[fours.len() * 4..].iter().zip(rest) {
                let rows = [row_of(v, *j, d)];
                axpys(l, rows, &[[*s]], &mut y, Ahead::new(rows, [rows[0].as_ptr()]));
            }
            out.iter_mut().for_each(|o| *o /= sum);
        }
    }
}

#[inline(always)]
fn row_of(all: &[f32], j: u32, d: usize) -> &[f32] {
    &all[j as usize * d..][..d]
}
