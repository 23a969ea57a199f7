//! Projections onto balls and boxes around 0.

use super::simplex_threshold;
use crate::linop::dense;

/// Projects onto `{‖x‖₁ ≤ radius}`. O(n log n).
pub fn l1_ball(x: &mut [f64], radius: f64) {
    if dense::norm_1(x) <= radius {
        return;
    }
    if radius <= 0.0 {
        return x.fill(0.0);
    }
    let sizes: Vec<f64> = x.iter().map(|v| v.abs()).collect();
    let tau = simplex_threshold(&sizes, radius);
    super::soft_slice(x, tau.max(0.0));
}

/// Projects onto `{‖x‖₂ ≤ radius}`.
pub fn l2_ball(x: &mut [f64], radius: f64) {
    let norm = dense::norm(x);
    if norm > radius {
        let factor = radius.max(0.0) / norm;
        x.iter_mut().for_each(|v| *v *= factor);
    }
}

/// Projects onto `{‖x‖∞ ≤ radius}`.
pub fn linf_ball(x: &mut [f64], radius: f64) {
    clamp_box(x, -radius.max(0.0), radius.max(0.0));
}

/// Projects onto `{low ≤ x ≤ high}` for numbers `low ≤ high`; either may be infinite.
pub fn clamp_box(x: &mut [f64], low: f64, high: f64) {
    x.iter_mut().for_each(|v| *v = v.min(high).max(low));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prox::tests::{check_projection, vectors};

    #[test]
    fn nearest_points() {
        for radius in [0.5, 1.5, 100.0] {
            for v in vectors(5, 40) {
                let mut p = v.clone();
                l1_ball(&mut p, radius);
                assert!(dense::norm_1(&p) <= radius * (1.0 + 1e-12));
                let corners: Vec<Vec<f64>> = (0..10)
                    .map(|c| {
                        (0..5).map(|j| if c / 2 == j { [radius, -radius][c % 2] } else { 0.0 }).collect()
                    })
                    .collect();
                check_projection(&v, &p, &corners);
                let mut p = v.clone();
                linf_ball(&mut p, radius);
                let corners: Vec<Vec<f64>> = (0..32)
                    .map(|c: u32| (0..5).map(|j| if c >> j & 1 == 1 { radius } else { -radius }).collect())
                    .collect();
                check_projection(&v, &p, &corners);
                let mut p = v.clone();
                l2_ball(&mut p, radius);
                assert!(dense::norm(&p) <= radius * (1.0 + 1e-12));
                // v − p points along p when v is outside, and is zero otherwise.
                let inside = dense::norm(&v) <= radius;
                assert!(if inside {
                    p == v
                } else {
                    (dense::dot(&v, &p) - dense::norm(&v) * radius).abs() < 1e-12 * (1.0 + radius * radius)
                });
            }
        }
    }

    #[test]
    fn at_radius_zero_and_in_boxes() {
        let project: [fn(&mut [f64], f64); 3] = [l1_ball, l2_ball, linf_ball];
        for f in project {
            let mut x = [1.0, -2.0];
            f(&mut x, 0.0);
            assert!(x.iter().all(|v| *v == 0.0));
            f(&mut [], 1.0);
        }
        let mut x = [-1.0, 0.5, 3.0];
        clamp_box(&mut x, 0.0, f64::INFINITY);
        assert_eq!(x, [0.0, 0.5, 3.0]);
        let mut x = [3.0, 1.0];
        l1_ball(&mut x, 2.0);
        assert_eq!(x, [2.0, 0.0]);
    }
}
