//! Thresholding: proximal maps of separable and group penalties.

use super::largest_k;
use crate::linop::dense;

/// Soft threshold: the proximal map of `t|x|`.
#[inline]
#[must_use]
pub fn soft(v: f64, t: f64) -> f64 {
    // Branch-free: v minus its projection onto [−t, t].
    v - v.min(t).max(-t)
}

/// The proximal map of `t·x` on `x ≥ 0`.
#[inline]
#[must_use]
pub fn positive_soft(v: f64, t: f64) -> f64 {
    (v - t).max(0.0)
}

/// The proximal map of `t|x| + ½ s x²`.
#[inline]
#[must_use]
pub fn soft_elastic_net(v: f64, t: f64, s: f64) -> f64 {
    soft(v, t) / (1.0 + s)
}

/// Soft threshold of each entry.
pub fn soft_slice(x: &mut [f64], t: f64) {
    x.iter_mut().for_each(|v| *v = soft(*v, t));
}

/// Soft threshold of each entry at its own level `t·weights[i]`.
pub fn soft_weighted(x: &mut [f64], t: f64, weights: &[f64]) {
    x.iter_mut().zip(weights).for_each(|(v, w)| *v = soft(*v, t * w));
}

/// Hard threshold: a proximal map of `t·[x ≠ 0]`. Keeps `|v| > √(2t)`; at equality both 0 and `v`
/// are minimisers and 0 is returned.
#[inline]
#[must_use]
pub fn hard(v: f64, t: f64) -> f64 {
    if v * v > 2.0 * t { v } else { 0.0 }
}

/// Keeps the `k` entries largest in absolute value (ties: lower position), sets the rest to 0:
/// a projection onto the vectors with at most `k` non-zeros.
pub fn hard_keep_k(x: &mut [f64], k: usize) {
    let sizes: Vec<f64> = x.iter().map(|v| v.abs()).collect();
    let kept: Vec<(usize, f64)> = largest_k(&sizes, k).into_iter().map(|i| (i, x[i])).collect();
    x.fill(0.0);
    kept.into_iter().for_each(|(i, v)| x[i] = v);
}

/// Group soft threshold: the proximal map of `t‖x‖₂`.
pub fn group_soft(x: &mut [f64], t: f64) {
    let norm = dense::norm(x);
    let factor = if norm > t { 1.0 - t / norm } else { 0.0 };
    x.iter_mut().for_each(|v| *v *= factor);
}

/// The proximal map with step `step` of the minimax concave penalty (Zhang 2010):
/// `λ|x| − x²/(2γ)` for `|x| ≤ γλ`, constant `½γλ²` beyond. For `γ > step` the map is
/// continuous; otherwise it is a hard threshold at `λ√(γ·step)`.
#[must_use]
pub fn mcp(v: f64, step: f64, lambda: f64, gamma: f64) -> f64 {
    if gamma > step {
        if v.abs() > gamma * lambda {
            return v;
        }
        return soft(v, step * lambda) / (1.0 - step / gamma);
    }
    if v * v > lambda * lambda * gamma * step { v } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prox::tests::vectors;

    /// Minimises `penalty(x) + (x − v)²/(2 step)` on a grid.
    fn brute(v: f64, step: f64, penalty: impl Fn(f64) -> f64) -> f64 {
        let value = |x: f64| penalty(x) + (x - v).powi(2) / (2.0 * step);
        (-400_000..=400_000)
            .map(|i| f64::from(i) * 1e-5)
            .min_by(|a, b| value(*a).total_cmp(&value(*b)))
            .unwrap_or(0.0)
    }

    #[test]
    fn scalar_maps_against_a_grid() {
        for v in [-3.1, -1.0, -0.4, 0.0, 0.2, 0.9, 1.7, 3.3] {
            let near = |a: f64, b: f64, what: &str| assert!((a - b).abs() < 2e-5, "{what} at {v}: {a} {b}");
            near(soft(v, 0.7), brute(v, 1.0, |x| 0.7 * x.abs()), "soft");
            near(
                positive_soft(v, 0.7),
                brute(v, 1.0, |x| if x < 0.0 { f64::INFINITY } else { 0.7 * x }),
                "positive",
            );
            near(
                soft_elastic_net(v, 0.3, 0.5),
                brute(v, 1.0, |x| 0.3 * x.abs() + 0.25 * x * x),
                "elastic net",
            );
            near(hard(v, 0.3), brute(v, 1.0, |x| if x == 0.0 { 0.0 } else { 0.3 }), "hard");
            let penalty = |x: f64| {
                let (x, l, g) = (x.abs(), 0.5, 2.5);
                if x <= g * l { l * x - x * x / (2.0 * g) } else { 0.5 * g * l * l }
            };
            near(mcp(v, 0.8, 0.5, 2.5), brute(v, 0.8, penalty), "mcp");
            near(mcp(v, 4.0, 0.5, 2.5), brute(v, 4.0, penalty), "mcp, long step");
        }
        assert_eq!(soft(5.0, 0.0), 5.0);
    }

    #[test]
    fn slices() {
        let mut x = [3.0, -1.0, 2.0, -2.0];
        hard_keep_k(&mut x, 2);
        assert_eq!(x, [3.0, 0.0, 2.0, 0.0]);
        let mut x = [3.0, -1.0];
        soft_weighted(&mut x, 2.0, &[1.0, 0.25]);
        assert_eq!(x, [1.0, -0.5]);
        for v in vectors(4, 30) {
            // Optimality of the group threshold: (v − x) = t x/‖x‖, or ‖v‖ ≤ t and x = 0.
            let (mut x, t) = (v.clone(), 1.2);
            group_soft(&mut x, t);
            let n = dense::norm(&x);
            if n > 0.0 {
                assert!(x.iter().zip(&v).all(|(x, v)| (v - x - t * x / n).abs() < 1e-12));
            } else {
                assert!(dense::norm(&v) <= t);
            }
        }
    }
}
