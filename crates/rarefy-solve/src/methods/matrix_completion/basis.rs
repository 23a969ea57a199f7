//! Small dense steps on tall factors: orthonormal columns, one-sided Jacobi, the start by a randomised SVD.
//! Column-major unless said otherwise; sums in a fixed order, so threads change no bit.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::observed::Slices;
use crate::linop::dense::{axpy, dot, norm};

/// Orthonormalises the columns by modified Gram–Schmidt, twice; `R` with `A = Q·R`, column-major.
/// A column that depends on the ones before it becomes 0, and so does its row of `R`.
pub(super) fn orthonormalise(a: &mut [f64], rows: usize, k: usize) -> Vec<f64> {
    let mut r = vec![0.0; k * k];
    for l in 0..k {
        let (done, rest) = a.split_at_mut(l * rows);
        let column = &mut rest[..rows];
        let before = norm(column);
        for _ in 0..2 {
            for (i, q) in done.chunks_exact(rows.max(1)).enumerate() {
                let c = dot(q, column);
                axpy(-c, q, column);
                r[l * k + i] += c;
            }
        }
        let left = norm(column);
        if left > 1e-13 * before && left > 0.0 {
            column.iter_mut().for_each(|v| *v /= left);
            r[l * k + l] = left;
        } else {
            column.fill(0.0);
        }
    }
    r
}

/// Rotates the columns until they are orthogonal: `A·V = W·S`; `a` becomes `W·S`. Returns `V`, k × k.
pub(super) fn one_sided_jacobi(a: &mut [f64], rows: usize, k: usize) -> Vec<f64> {
    let mut v = vec![0.0; k * k];
    (0..k).for_each(|l| v[l * k + l] = 1.0);
    for _ in 0..60 {
        let mut turned = false;
        for p in 0..k {
            for q in p + 1..k {
                let (x, y) = pair(a, rows, p, q);
                let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                if xy.abs() <= 1e-15 * (xx * yy).sqrt() || xy == 0.0 {
                    continue;
                }
                turned = true;
                let tau = (yy - xx) / (2.0 * xy);
                let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(x, y, c, c * t);
                let (x, y) = pair(&mut v, k, p, q);
                rotate(x, y, c, c * t);
            }
        }
        if !turned {
            break;
        }
    }
    v
}

fn pair(a: &mut [f64], rows: usize, p: usize, q: usize) -> (&mut [f64], &mut [f64]) {
    let (left, right) = a.split_at_mut(q * rows);
    (&mut left[p * rows..(p + 1) * rows], &mut right[..rows])
}

fn rotate(x: &mut [f64], y: &mut [f64], c: f64, s: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// The singular value decomposition of tall columns, without the right side: `A ← Q·W` with orthonormal
/// columns, and the singular values, falling.
pub(super) fn left_singular(a: &mut Vec<f64>, rows: usize, k: usize) -> Vec<f64> {
    let mut r = orthonormalise(a, rows, k);
    one_sided_jacobi(&mut r, k, k);
    let mut order: Vec<(f64, usize)> = (0..k).map(|l| (norm(&r[l * k..(l + 1) * k]), l)).collect();
    order.sort_by(|x, y| y.0.total_cmp(&x.0));
    let mut turned = vec![0.0; rows * k];
    for (to, (s, from)) in turned.chunks_exact_mut(rows.max(1)).zip(&order) {
        if *s > 0.0 {
            for i in 0..k {
                axpy(r[from * k + i] / s, &a[i * rows..(i + 1) * rows], to);
            }
        }
    }
    *a = turned;
    order.into_iter().map(|(s, _)| s).collect()
}

/// Row-major from column-major.
pub(super) fn to_rows(a: &[f64], rows: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * k];
    for l in 0..k {
        (0..rows).for_each(|i| out[i * k + l] = a[l * rows + i]);
    }
    out
}

/// Column-major from row-major.
pub(super) fn to_columns(a: &[f64], rows: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * k];
    for l in 0..k {
        (0..rows).for_each(|i| out[l * rows + i] = a[i * k + l]);
    }
    out
}

/// `P_Ω(W∘M)·X` for row-major `X` with `b` columns, row-major; rows in parallel.
pub(super) fn product(side: &Slices, x: &[f64], b: usize) -> Vec<f64> {
    let mut out = vec![0.0; side.len() * b];
    out.par_chunks_mut(b.max(1)).enumerate().for_each(|(i, out)| {
        let (places, values, weights) = side.slice(i);
        for (k, (j, v)) in places.iter().zip(values).enumerate() {
            let w = weights.map_or(1.0, |w| w[k]);
            axpy(w * v, &x[*j as usize * b..(*j as usize + 1) * b], out);
        }
    });
    out
}

/// The leading `k` left singular vectors of `P_Ω(W∘M)` (column-major) and singular values: block of
/// `k + 10`, four power iterations.
pub(super) fn leading(rows: &Slices, cols: &Slices, k: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
    let (m, n) = (rows.len(), cols.len());
    let b = (k + 10).min(m.min(n));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut x: Vec<f64> = (0..n * b).map(|_| StandardNormal.sample(&mut rng)).collect();
    for _ in 0..4 {
        let mut y = to_columns(&product(rows, &x, b), m, b);
        orthonormalise(&mut y, m, b);
        let mut z = to_columns(&product(cols, &to_rows(&y, m, b), b), n, b);
        orthonormalise(&mut z, n, b);
        x = to_rows(&z, n, b);
    }
    let mut y = to_columns(&product(rows, &x, b), m, b);
    let mut s = left_singular(&mut y, m, b);
    y.truncate(m * k);
    s.truncate(k);
    (y, s)
}

/// Zeroes the rows longer than `bound`; how many there were.
pub(super) fn clip(u: &mut [f64], rows: usize, k: usize, bound: f64) -> usize {
    let mut count = 0;
    for i in 0..rows {
        let length = (0..k).map(|l| u[l * rows + i].powi(2)).sum::<f64>().sqrt();
        if length > bound {
            count += 1;
            (0..k).for_each(|l| u[l * rows + i] = 0.0);
        }
    }
    count
}

/// `μ` of the definition ‖U_i‖ ≤ μ·√(k/rows), from the 99.9 % quantile of the rows.
pub(super) fn incoherence(u: &[f64], rows: usize, k: usize) -> f64 {
    let lengths: Vec<f64> =
        (0..rows).map(|i| (0..k).map(|l| u[l * rows + i].powi(2)).sum::<f64>().sqrt()).collect();
    crate::experiments::quantile(&lengths, 0.999) * (rows as f64 / k as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
    }

    fn is_orthonormal(q: &[f64], rows: usize, k: usize) -> bool {
        (0..k).all(|a| {
            (0..=a).all(|b| {
                let d = dot(&q[a * rows..(a + 1) * rows], &q[b * rows..(b + 1) * rows]);
                (d - f64::from(u8::from(a == b))).abs() < 1e-13
            })
        })
    }

    #[test]
    fn gram_schmidt_and_jacobi() {
        let (rows, k) = (40, 6);
        let a = random(rows * k, 1);
        let mut q = a.clone();
        let r = orthonormalise(&mut q, rows, k);
        assert!(is_orthonormal(&q, rows, k));
        for l in 0..k {
            for i in 0..rows {
                let v: f64 = (0..k).map(|t| q[t * rows + i] * r[l * k + t]).sum();
                assert!((v - a[l * rows + i]).abs() < 1e-13);
            }
        }
        let mut u = a.clone();
        let s = left_singular(&mut u, rows, k);
        assert!(is_orthonormal(&u, rows, k) && s.windows(2).all(|w| w[0] >= w[1]));
        let want = faer::MatRef::from_column_major_slice(&a, rows, k).singular_values().unwrap_or_default();
        assert!(s.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12), "{s:?} {want:?}");
        // Fewer rows than columns: what is left over is 0.
        let mut wide = random(3 * 5, 2);
        one_sided_jacobi(&mut wide, 3, 5);
        assert_eq!((0..5).filter(|l| norm(&wide[l * 3..l * 3 + 3]) > 1e-12).count(), 3);
        // A repeated column has nothing new.
        let mut twice = a[..rows].to_vec();
        twice.extend_from_slice(&a[..rows]);
        orthonormalise(&mut twice, rows, 2);
        assert!(twice[rows..].iter().all(|v| *v == 0.0));
    }

    #[test]
    fn the_clip_bounds_rows_and_leaves_an_orthonormal_matrix() {
        let (rows, k) = (300, 4);
        let mut u = random(rows * k, 3);
        (0..k).for_each(|l| u[l * rows + 17] *= 30.0);
        orthonormalise(&mut u, rows, k);
        let bound = 2.0 * (k as f64 / rows as f64).sqrt();
        assert!(clip(&mut u, rows, k, bound) >= 1);
        for i in 0..rows {
            assert!((0..k).map(|l| u[l * rows + i].powi(2)).sum::<f64>().sqrt() <= bound);
        }
        assert_eq!(u[17], 0.0);
        orthonormalise(&mut u, rows, k);
        assert!(is_orthonormal(&u, rows, k));
        assert!(incoherence(&u, rows, k) > 1.0);
    }
}
