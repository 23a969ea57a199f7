//! Dense vector and matrix–vector kernels that pick the widest vector instructions at run time.
//!
//! The order of summation is fixed (32 lanes), so the result does not depend on the machine.

use std::sync::LazyLock;

use faer::MatRef;
use pulp::Arch;
use rayon::prelude::*;

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
const LANES: usize = 32;
/// Work below which threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 17;

/// `Σ a[i]·b[i]` over the common length.
#[must_use]
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    if a.len() < 16 {
        return a.iter().zip(b).map(|(a, b)| a * b).sum();
    }
    ARCH.dispatch(|| dot_lanes(a, b))
}

#[inline(always)]
fn dot_lanes(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (a, b) in ca.zip(cb) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    let tail: f64 = ra.iter().zip(rb).map(|(a, b)| a * b).sum();
    fold(lanes) + tail
}

#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `y ← y + alpha·x`.
pub fn axpy(alpha: f64, x: &[f64], y: &mut [f64]) {
    if x.len() < 16 {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
        return;
    }
    ARCH.dispatch(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x),
    );
}

/// `Σ a[i]`.
#[must_use]
pub fn sum(a: &[f64]) -> f64 {
    ARCH.dispatch(
        #[inline(always)]
        || {
            let mut lanes = [0.0; LANES];
            let chunks = a.chunks_exact(LANES);
            let tail: f64 = chunks.remainder().iter().sum();
            for a in chunks {
                for l in 0..LANES {
                    lanes[l] += a[l];
                }
            }
            fold(lanes) + tail
        },
    )
}

/// `Σ a[i]²`.
#[must_use]
pub fn norm_sq(a: &[f64]) -> f64 {
    dot(a, a)
}

/// Euclidean norm, without overflow for large entries.
#[must_use]
pub fn norm(a: &[f64]) -> f64 {
    let plain = norm_sq(a);
    if plain.is_finite() && plain > f64::MIN_POSITIVE / f64::EPSILON {
        return plain.sqrt();
    }
    let largest = norm_inf(a);
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    largest * a.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt()
}

/// `max |a[i]|`, NaN when an entry is.
#[must_use]
pub fn norm_inf(a: &[f64]) -> f64 {
    a.iter().fold(0.0, |m: f64, v| if m.is_nan() || v.is_nan() { f64::NAN } else { m.max(v.abs()) })
}

/// `Σ |a[i]|`.
#[must_use]
pub fn norm_1(a: &[f64]) -> f64 {
    a.iter().map(|v| v.abs()).sum()
}

/// `y ← A x`, by columns; rows in parallel for large matrices.
pub fn gemv(a: MatRef<'_, f64>, x: &[f64], y: &mut [f64]) {
    assert!(x.len() == a.ncols() && y.len() == a.nrows(), "lengths are checked by the caller");
    y.fill(0.0);
    let columns_are_slices = a.row_stride() == 1;
    if !columns_are_slices {
        for (i, y) in y.iter_mut().enumerate() {
            *y = (0..a.ncols()).map(|j| a[(i, j)] * x[j]).sum();
        }
        return;
    }
    let rows = |first: usize, y: &mut [f64]| {
        for (j, &v) in x.iter().enumerate() {
            if v != 0.0
                && let Some(column) = a.col(j).try_as_col_major()
            {
                axpy(v, &column.as_slice()[first..first + y.len()], y);
            }
        }
    };
    if a.nrows() * a.ncols() < PARALLEL_FROM {
        rows(0, y);
    } else {
        const BLOCK: usize = 2048;
        y.par_chunks_mut(BLOCK).enumerate().for_each(|(b, y)| rows(b * BLOCK, y));
    }
}

/// `x ← Aᵀ y`; columns in parallel for large matrices.
pub fn gemv_t(a: MatRef<'_, f64>, y: &[f64], x: &mut [f64]) {
    assert!(x.len() == a.ncols() && y.len() == a.nrows(), "lengths are checked by the caller");
    let one = |j: usize| match a.col(j).try_as_col_major() {
        Some(column) => dot(column.as_slice(), y),
        None => (0..a.nrows()).map(|i| a[(i, j)] * y[i]).sum(),
    };
    if a.nrows() * a.ncols() < PARALLEL_FROM {
        x.iter_mut().enumerate().for_each(|(j, x)| *x = one(j));
    } else {
        x.par_iter_mut().enumerate().with_min_len(8).for_each(|(j, x)| *x = one(j));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_against_loops_at_odd_lengths() {
        for n in [0, 1, 7, 15, 16, 31, 32, 33, 64, 65, 1000] {
            let a: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
            let b: Vec<f64> = (0..n).map(|i| (i as f64 * 0.3).cos()).collect();
            let want: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - want).abs() < 1e-12 * (1.0 + n as f64));
            assert!((sum(&a) - a.iter().sum::<f64>()).abs() < 1e-12 * (1.0 + n as f64));
            let mut y = b.clone();
            axpy(0.5, &a, &mut y);
            assert!(y.iter().zip(a.iter().zip(&b)).all(|(y, (a, b))| *y == b + 0.5 * a));
        }
    }

    #[test]
    fn norms_at_the_limits() {
        assert!((norm(&[3e200, 4e200]) - 5e200).abs() < 1e186);
        assert!((norm(&[3e-200, 4e-200]) - 5e-200).abs() < 1e-214);
        assert_eq!(norm(&[]), 0.0);
        assert!(norm_inf(&[1.0, f64::NAN, 2.0]).is_nan());
        assert_eq!(norm_inf(&[1.0, -3.0]), 3.0);
        assert_eq!(norm_1(&[1.0, -3.0]), 4.0);
    }
}
