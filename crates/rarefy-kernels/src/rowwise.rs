//! Dot products and multiply-adds over contiguous rows: the two motions of every row-wise kernel.
//!
//! A row of a few hundred bytes and more costs about the same wherever it lies, if the next one is asked for in time;
//! that is why rows can be skipped at will. Four rows at a time share the loads of `x` and `y` (one per four products).
//! Each dot product is sixteen chains over ascending columns and the fixed sum of the lanes, each element of `y` one chain
//! over the rows in the order given: results do not depend on how rows are grouped.

use crate::lanes::{LANES, Lanes, RowValue, prefetch};

/// Bytes that a row is asked for ahead of its use; with four rows that is 4 KiB under way, as in the panel kernels.
const AHEAD: usize = 1024;

/// Where the loops will read: the rest of the present rows, then the beginnings of the next ones.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<T, const R: usize> {
    now: [*const T; R],
    next: [*const T; R],
    len: usize,
}

impl<T, const R: usize> Ahead<T, R> {
    /// `next` may be any rows, also the present ones when nothing follows.
    #[inline(always)]
    pub(crate) fn new(now: [&[T]; R], next: [*const T; R]) -> Self {
        let len = now[0].len();
        // A row shorter than the distance is left behind at once: the next one is then asked for from its start on.
        let short = (AHEAD / size_of::<T>()).saturating_sub(len);
        Self { now: now.map(<[T]>::as_ptr), next: next.map(|p| p.wrapping_sub(short)), len }
    }

    /// Called before the elements from `c * 16` on are read.
    #[inline(always)]
    fn step(&self, c: usize) {
        // One request per cache line: every vector of f32, every second one of bf16.
        if size_of::<T>() < 4 && c % 2 == 1 {
            return;
        }
        let at = c * LANES + AHEAD / size_of::<T>();
        let (base, at) = if at < self.len { (&self.now, at) } else { (&self.next, at - self.len) };
        for p in base {
            prefetch(p.wrapping_add(at));
        }
    }
}

/// `out[t][r] = rows[r] · x[t]` for `x[N][len]`.
#[inline(always)]
pub(crate) fn dots<L: Lanes, T: RowValue, const R: usize, const N: usize>(
    l: L,
    rows: [&[T]; R],
    x: &[f32],
    ahead: Ahead<T, R>,
) -> [[f32; R]; N] {
    let len = rows[0].len();
    let chunks = len / LANES;
    let xs: [&[f32]; N] = std::array::from_fn(|t| &x[t * len..(t + 1) * len]);
    let row: [&[[T; LANES]]; R] = rows.map(|r| &r.as_chunks().0[..chunks]);
    let xc: [&[[f32; LANES]]; N] = xs.map(|x| &x.as_chunks().0[..chunks]);
    let mut acc = [[l.splat(0.0); R]; N];
    for c in 0..chunks {
        ahead.step(c);
        let mut w = [l.splat(0.0); R];
        for r in 0..R {
            w[r] = T::lanes(l, &row[r][c]);
        }
        for t in 0..N {
            let v = l.load(&xc[t][c]);
            for r in 0..R {
                acc[t][r] = l.fma(w[r], v, acc[t][r]);
            }
        }
    }
    if chunks * LANES < len {
        for t in 0..N {
            let v = l.load_part(&xs[t][chunks * LANES..]);
            for r in 0..R {
                acc[t][r] = l.fma(T::lanes_part(l, &rows[r][chunks * LANES..]), v, acc[t][r]);
            }
        }
    }
    let mut out = [[0.0; R]; N];
    for t in 0..N {
        if R == 4 {
            out[t].copy_from_slice(&l.sum4(std::array::from_fn(|r| acc[t][r % R])));
        } else {
            for r in 0..R {
                out[t][r] = l.sum(acc[t][r]);
            }
        }
    }
    out
}

/// `y[t] += Σ_r h[t][r] · rows[r]` for `N` slices of the length of the rows; rows in order.
#[inline(always)]
pub(crate) fn axpys<L: Lanes, T: RowValue, const R: usize, const N: usize>(
    l: L,
    rows: [&[T]; R],
    h: &[[f32; R]; N],
    y: &mut [&mut [f32]; N],
    ahead: Ahead<T, R>,
) {
    let len = rows[0].len();
    let chunks = len / LANES;
    let row: [&[[T; LANES]]; R] = rows.map(|r| &r.as_chunks().0[..chunks]);
    {
        let yc: [&mut [[f32; LANES]]; N] = y.each_mut().map(|y| &mut y.as_chunks_mut().0[..chunks]);
        let hv: [[L::V; R]; N] = std::array::from_fn(|t| h[t].map(|h| l.splat(h)));
        for c in 0..chunks {
            ahead.step(c);
            let mut w = [l.splat(0.0); R];
            for r in 0..R {
                w[r] = T::lanes(l, &row[r][c]);
            }
            for t in 0..N {
                let mut acc = l.load(&yc[t][c]);
                for r in 0..R {
                    acc = l.fma(hv[t][r], w[r], acc);
                }
                l.store(acc, &mut yc[t][c]);
            }
        }
    }
    let done = chunks * LANES;
    if done < len {
        for t in 0..N {
            let mut acc = l.load_part(&y[t][done..len]);
            for r in 0..R {
                acc = l.fma(l.splat(h[t][r]), T::lanes_part(l, &rows[r][done..]), acc);
            }
            l.store_part(acc, &mut y[t][done..len]);
        }
    }
}

/// `y[N][len]` as `N` slices.
#[inline(always)]
pub(crate) fn split<const N: usize>(y: &mut [f32], len: usize) -> [&mut [f32]; N] {
    let mut rest = y;
    std::array::from_fn(|_| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        head
    })
}
