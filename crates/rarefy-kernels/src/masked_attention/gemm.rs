//! The small dense product behind the predictor and the dense yardstick.

use crate::lanes::{LANES, Lanes};

/// `out[i][j] += Σ_k a(i, k) b[k][j]` for `i < rows`, `j < cols`: four rows of `out` and four vectors of columns in registers.
///
/// `b` is `[depth][b_stride]`, `out` is `[rows][out_stride]`; `a` is read through `a[i * a_row + k * a_col]`, so that a transpose costs nothing.
/// Per step of `k`: eight loads for sixteen multiply-adds of sixteen lanes, so it runs near the peak from cache.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their strides")]
pub(super) fn gemm<L: Lanes>(
    l: L,
    (rows, depth, cols): (usize, usize, usize),
    a: &[f32],
    (a_row, a_col): (usize, usize),
    b: &[f32],
    b_stride: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let mut j = 0;
    while j < cols {
        let vectors = ((cols - j) / LANES).min(4);
        let mut i = 0;
        while i < rows {
            let four = rows - i >= 4;
            let at = (i, j);
            match (four, vectors) {
                (true, 4) => tile::<L, 4, 4>(l, depth, a, (a_row, a_col), b, b_stride, out, out_stride, at),
                (true, 1..) => tile::<L, 4, 1>(l, depth, a, (a_row, a_col), b, b_stride, out, out_stride, at),
                (false, 4) => tile::<L, 1, 4>(l, depth, a, (a_row, a_col), b, b_stride, out, out_stride, at),
                (false, 1..) => {
                    tile::<L, 1, 1>(l, depth, a, (a_row, a_col), b, b_stride, out, out_stride, at)
                }
                (_, 0) => {
                    for i in i..rows.min(i + 4) {
                        for j in j..cols {
                            let sum = (0..depth)
                                .map(|k| a[i * a_row + k * a_col] * b[k * b_stride + j])
                                .sum::<f32>();
                            out[i * out_stride + j] += sum;
                        }
                    }
                }
            }
            i += if four || vectors == 0 { 4 } else { 1 };
        }
        j += match vectors {
            4 => 4 * LANES,
            0 => cols - j,
            _ => LANES,
        };
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "as above")]
fn tile<L: Lanes, const R: usize, const C: usize>(
    l: L,
    depth: usize,
    a: &[f32],
    (a_row, a_col): (usize, usize),
    b: &[f32],
    b_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    (i, j): (usize, usize),
) {
    let mut acc = [[l.splat(0.0); C]; R];
    for k in 0..depth {
        let line = &b[k * b_stride + j..][..C * LANES];
        let line = line.as_chunks::<LANES>().0;
        let v: [L::V; C] = std::array::from_fn(|c| l.load(&line[c]));
        for (r, acc) in acc.iter_mut().enumerate() {
            let f = l.splat(a[(i + r) * a_row + k * a_col]);
            for c in 0..C {
                acc[c] = l.fma(f, v[c], acc[c]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let line = &mut out[(i + r) * out_stride + j..][..C * LANES];
        for (o, acc) in line.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            let sum = l.add(l.load(o), *acc);
            l.store(sum, o);
        }
    }
}

/// Turns `s` into softmax weights times a common factor, and returns the factor's inverse: the sum of `e^(s - max)`.
#[inline(always)]
pub(super) fn exp_row<L: Lanes>(l: L, s: &mut [f32], scale: f32) -> f32 {
    let (full, rest) = s.as_chunks_mut::<LANES>();
    let mut most = l.splat(f32::NEG_INFINITY);
    for v in full.iter() {
        most = l.max(l.load(v), most);
    }
    let most = l.array(most).into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let (m, f) = (l.splat(most), l.splat(scale));
    let mut sum = l.splat(0.0);
    for v in full.iter_mut() {
        let w = l.exp(l.mul(l.sub(l.load(v), m), f));
        sum = l.add(sum, w);
        l.store(w, v);
    }
    let mut total = l.sum(sum);
    if !rest.is_empty() {
        let w = l.exp(l.mul(l.sub(l.load_part(rest), m), f));
        l.store_part(w, rest);
        total += rest.iter().sum::<f32>();
    }
    total
}
