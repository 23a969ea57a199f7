//! Dense attention of one head over a short sequence.

use super::gemm::{exp_row, gemm};
use crate::error::{at_least, length, product};
use crate::lanes::{Job, Lanes, dispatch};
use crate::{Isa, KernelError};

const NAME: &str = "dense-attention";
/// Queries whose scores stand in cache together.
const QUERIES: usize = 16;

/// Elements of scratch for [`attend_all`]: the transposed keys and the scores of sixteen queries.
pub fn attend_all_scratch_len(n: usize, d: usize) -> usize {
    n.saturating_mul(d).saturating_add(n.saturating_mul(QUERIES))
}

/// `out[n][d] = softmax(scale · q kᵀ) v` for one head; a positive `scale`.
///
/// # Roofline
/// `4 n d` flops per query from keys and values in the second-level cache (`8 n d` bytes shared by sixteen queries), and `n` exponentials:
/// bound by arithmetic. Scores are made sixteen keys at a time from transposed keys, so nothing is summed across lanes; both products keep sixteen
/// sums in registers.
///
/// # Errors
/// [`KernelError::Length`] for sizes that do not fit.
pub fn attend_all(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f32,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    attend_all_with(Isa::detect(), q, k, v, d, scale, out, scratch)
}

/// [`attend_all`] on a chosen code path.
///
/// # Errors
/// Those of `attend_all`, and [`KernelError::Isa`] when this CPU lacks the path.
#[allow(clippy::too_many_arguments, reason = "the arguments of attend_all and the path")]
pub fn attend_all_with(
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f32,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    isa.require()?;
    let n = q.len() / d.max(1);
    let expected = product(NAME, n, d)?;
    for (array, found) in [("q", q.len()), ("k", k.len()), ("v", v.len()), ("out", out.len())] {
        length(NAME, array, expected, found)?;
    }
    at_least(NAME, "scratch", attend_all_scratch_len(n, d), scratch.len())?;
    dispatch(isa, All { q, k, v, n, d, scale, out, scratch });
    Ok(())
}

struct All<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    n: usize,
    d: usize,
    scale: f32,
    out: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Job for All<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { q, k, v, n, d, scale, out, scratch } = self;
        let (keys, rest) = scratch.split_at_mut(n * d);
        for (j, row) in k.chunks_exact(d.max(1)).enumerate() {
            row.iter().enumerate().for_each(|(c, v)| keys[c * n + j] = *v);
        }
        for (q, out) in q.chunks(QUERIES * d.max(1)).zip(out.chunks_mut(QUERIES * d.max(1))) {
            let rows = q.len() / d;
            let scores = &mut rest[..rows * n];
            scores.fill(0.0);
            gemm(l, (rows, d, n), q, (d, 1), keys, n, scores, n);
            out.fill(0.0);
            let mut sums = [0.0; QUERIES];
            for (s, sum) in scores.chunks_exact_mut(n).zip(&mut sums) {
                *sum = exp_row(l, s, scale);
            }
            gemm(l, (rows, n, d), scores, (n, 1), v, d, out, d);
            for (out, sum) in out.chunks_exact_mut(d).zip(sums) {
                out.iter_mut().for_each(|o| *o /= sum);
            }
        }
    }
}
