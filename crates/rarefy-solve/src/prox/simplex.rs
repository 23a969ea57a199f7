//! Projections onto the simplex, with or without a limit on the number of non-zeros.

/// The `τ` with `Σ max(v_i − τ, 0) = radius`, for `radius > 0` and a non-empty `v`: the multiplier
/// of the projection onto `{x ≥ 0, Σ x = radius}`. O(n log n).
#[must_use]
pub fn simplex_threshold(v: &[f64], radius: f64) -> f64 {
    let (largest, tau) = threshold(v, radius);
    largest + tau
}

/// The threshold as the largest value plus something negative: no cancellation when all values
/// are large.
fn threshold(v: &[f64], radius: f64) -> (f64, f64) {
    let mut sorted = v.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    threshold_of_sorted(&sorted, radius)
}

/// As [`threshold`] for values that already fall.
fn threshold_of_sorted(falling: &[f64], radius: f64) -> (f64, f64) {
    let Some(&largest) = falling.first() else { return (0.0, 0.0) };
    let (mut sum, mut tau) = (0.0, -radius);
    for (i, v) in falling.iter().enumerate() {
        sum += v - largest;
        let candidate = (sum - radius) / (i + 1) as f64;
        if i > 0 && v - largest <= candidate {
            break;
        }
        tau = candidate;
    }
    (largest, tau)
}

/// Projects onto `{x ≥ 0, Σ x = radius}`; a radius of 0 gives zeros.
pub fn simplex(x: &mut [f64], radius: f64) {
    if radius <= 0.0 {
        return x.fill(0.0);
    }
    let (largest, tau) = threshold(x, radius);
    x.iter_mut().for_each(|v| *v = (*v - largest - tau).max(0.0));
}

/// Positions of the `k` largest values, largest first; ties go to the lower position.
/// O(n + k log k).
#[must_use]
pub fn largest_k(v: &[f64], k: usize) -> Vec<usize> {
    let k = k.min(v.len());
    if k == 0 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..v.len()).collect();
    let before = |a: &usize, b: &usize| v[*b].total_cmp(&v[*a]).then(a.cmp(b));
    if k < v.len() {
        order.select_nth_unstable_by(k - 1, before);
        order.truncate(k);
    }
    order.sort_unstable_by(before);
    order
}

/// Projects onto `{x ≥ 0, Σ x = radius, at most k non-zeros}`, a set that is not convex: keeps the
/// `k` largest values and projects them onto the simplex, which is a nearest point (Kyrillidis,
/// Becker, Cevher, Koch, ICML 2013). `k = 0` gives zeros, which is not in the set.
pub fn k_sparse_simplex(x: &mut [f64], k: usize, radius: f64) {
    let kept = largest_k(x, k);
    if radius <= 0.0 || kept.is_empty() {
        return x.fill(0.0);
    }
    let values: Vec<f64> = kept.iter().map(|i| x[*i]).collect();
    let (largest, tau) = threshold_of_sorted(&values, radius);
    x.fill(0.0);
    kept.iter().zip(&values).for_each(|(i, v)| x[*i] = (v - largest - tau).max(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prox::tests::{check_projection, vectors};

    #[test]
    fn by_hand() {
        let mut x = [3.0, 1.0];
        simplex(&mut x, 1.0);
        assert_eq!(x, [1.0, 0.0]);
        let mut x = [0.5, 0.5, -10.0];
        simplex(&mut x, 2.0);
        assert_eq!(x, [1.0, 1.0, 0.0]);
        let mut x = [1e16, 1e16];
        simplex(&mut x, 1.0);
        assert_eq!(x, [0.5, 0.5]);
        simplex(&mut [], 1.0);
        let mut x = [1.0, 2.0];
        simplex(&mut x, 0.0);
        assert_eq!(x, [0.0, 0.0]);
        assert_eq!(largest_k(&[1.0, 3.0, 3.0, 2.0], 3), [1, 2, 3]);
        assert_eq!(largest_k(&[1.0], 0), [0_usize; 0]);
    }

    #[test]
    fn nearest_point_of_the_simplex() {
        for radius in [0.3, 1.0, 7.0] {
            for v in vectors(9, 40) {
                let mut p = v.clone();
                simplex(&mut p, radius);
                assert!((p.iter().sum::<f64>() - radius).abs() < 1e-12 * (1.0 + radius));
                assert!(p.iter().all(|v| *v >= 0.0));
                // The corners span the simplex.
                let corners: Vec<Vec<f64>> =
                    (0..9).map(|i| (0..9).map(|j| if i == j { radius } else { 0.0 }).collect()).collect();
                check_projection(&v, &p, &corners);
            }
        }
    }

    #[test]
    fn k_sparse_against_all_supports() {
        for v in vectors(6, 60) {
            for k in 1..=6 {
                let mut p = v.clone();
                k_sparse_simplex(&mut p, k, 1.0);
                assert!(p.iter().filter(|v| **v > 0.0).count() <= k);
                let distance = |p: &[f64]| -> f64 { p.iter().zip(&v).map(|(a, b)| (a - b).powi(2)).sum() };
                let mut best = f64::INFINITY;
                for support in (1_u32..64).filter(|s| s.count_ones() as usize <= k) {
                    let on: Vec<usize> = (0..6).filter(|i| support >> i & 1 == 1).collect();
                    let mut values: Vec<f64> = on.iter().map(|i| v[*i]).collect();
                    simplex(&mut values, 1.0);
                    let mut q = vec![0.0; 6];
                    on.iter().zip(values).for_each(|(i, v)| q[*i] = v);
                    best = best.min(distance(&q));
                }
                assert!((distance(&p) - best).abs() < 1e-12, "{v:?} {k}");
            }
        }
        let mut p = [1.0, 2.0];
        k_sparse_simplex(&mut p, 0, 1.0);
        assert_eq!(p, [0.0, 0.0]);
    }
}
