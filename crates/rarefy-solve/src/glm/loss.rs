//! The losses: values, derivatives, and differences and Fenchel gaps that do not cancel.

use super::Loss;

impl Loss {
    /// `f(y, z)`.
    #[must_use]
    pub fn value(self, y: f64, z: f64) -> f64 {
        match self {
            Loss::Squared => 0.5 * (y - z).powi(2),
            Loss::Logistic => {
                let m = y * z;
                (-m.abs()).exp().ln_1p() + (-m).max(0.0)
            }
            Loss::Huber { delta } => {
                let r = (y - z).abs();
                if r <= delta { 0.5 * r * r } else { delta * (r - 0.5 * delta) }
            }
        }
    }

    /// Minus the derivative in z.
    pub(super) fn slope(self, y: f64, z: f64) -> f64 {
        match self {
            Loss::Squared => y - z,
            Loss::Logistic => y / (1.0 + (y * z).exp()),
            Loss::Huber { delta } => (y - z).clamp(-delta, delta),
        }
    }

    /// Second derivative of the model of a step. Where Huber's loss is linear that is `damping` times the
    /// curvature of the parabola that touches it from above: 1 never overshoots, 0 is Newton's method.
    pub(super) fn curvature(self, y: f64, z: f64, damping: f64) -> f64 {
        match self {
            Loss::Squared => 1.0,
            Loss::Logistic => {
                let a = 1.0 / (1.0 + (y * z).exp());
                a * (1.0 - a)
            }
            Loss::Huber { delta } => {
                let r = (y - z).abs();
                if r <= delta { 1.0 } else { damping * delta / r }
            }
        }
    }

    /// `f(y, z + by) − f(y, z)`, exact to a few units in the last place of the difference.
    pub(super) fn difference(self, y: f64, z: f64, by: f64) -> f64 {
        match self {
            Loss::Squared => -by * (y - z - 0.5 * by),
            Loss::Logistic if by.abs() <= 1.0 => ((-y * by).exp_m1() / (1.0 + (y * z).exp())).ln_1p(),
            Loss::Logistic => self.value(y, z + by) - self.value(y, z),
            Loss::Huber { delta } => {
                // Minus the integral of the slope: a parabola between two lines.
                let (from, to) = (y - z, y - z - by);
                if from.abs() <= delta && to.abs() <= delta {
                    return -by * (from - 0.5 * by);
                }
                let (inner_from, inner_to) = (from.clamp(-delta, delta), to.clamp(-delta, delta));
                let outer = |r: f64| (r.abs() - delta).max(0.0);
                if inner_from.total_cmp(&inner_to).is_eq() {
                    return -by * inner_from;
                }
                let parabola = 0.5 * (inner_to - inner_from) * (inner_to + inner_from);
                parabola + delta * (outer(to) - outer(from))
            }
        }
    }

    /// Minus the conjugate at `−scale·slope`, where `slope` is minus a derivative.
    pub(super) fn dual(self, y: f64, slope: f64, scale: f64) -> f64 {
        let a = scale * slope;
        match self {
            Loss::Squared | Loss::Huber { .. } => a * (y - 0.5 * a),
            Loss::Logistic => {
                let a = (a * y).clamp(0.0, 1.0);
                let entropy = |v: f64| if v > 0.0 { -v * v.ln() } else { 0.0 };
                entropy(a) + if a < 1.0 { -(1.0 - a) * (-a).ln_1p() } else { 0.0 }
            }
        }
    }

    /// `f(z) + f*(u) − zu ≥ 0` at `u = scale·f'(z)`, `scale` in [0, 1]: 0 at scale 1, and of second order near it
    /// without any cancellation of the values.
    pub(super) fn fenchel_gap(self, y: f64, z: f64, scale: f64) -> f64 {
        let rest = 1.0 - scale;
        match self {
            Loss::Squared | Loss::Huber { .. } => {
                let (r, slope) = ((y - z).abs(), self.slope(y, z).abs());
                (rest * slope * (r - 0.5 * slope * (1.0 + scale))).max(0.0)
            }
            Loss::Logistic => {
                // The divergence of Bernoulli(scale·p) from Bernoulli(p), p = σ(−yz).
                let m = y * z;
                let (p, odds) = (1.0 / (1.0 + m.exp()), (-m).exp());
                let q = scale * p;
                let first = if q > 0.0 { q * scale.ln() } else { 0.0 };
                // ln((1 − q)/(1 − p)); for p near 1 the odds p/(1 − p) overflow gracefully into logarithms.
                let second = if odds < 1e200 { (rest * odds).ln_1p() } else { rest.ln() - m };
                if rest > 0.0 { (first + (1.0 - q) * second).max(0.0) } else { 0.0 }
            }
        }
    }

    pub(super) fn smoothness(self) -> f64 {
        if self == Loss::Logistic { 0.25 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSES: [Loss; 3] = [Loss::Squared, Loss::Logistic, Loss::Huber { delta: 0.7 }];

    #[test]
    fn differences_and_gaps_are_those_of_the_values() {
        for loss in LOSSES {
            for y in [-1.0, 1.0] {
                for z in [-40.0, -3.0, -1.1, -0.2, 0.0, 0.31, 1.7, 5.0, 40.0] {
                    for by in [-60.0, -2.5, -0.9, -1e-3, 0.0, 1e-3, 0.4, 2.0, 60.0] {
                        let want = loss.value(y, z + by) - loss.value(y, z);
                        let found = loss.difference(y, z, by);
                        assert!(
                            (found - want).abs() <= 1e-13 * (1.0 + loss.value(y, z) + loss.value(y, z + by)),
                            "{loss:?} {y} {z} {by}"
                        );
                    }
                    for scale in [0.0, 0.3, 0.9, 1.0] {
                        let slope = loss.slope(y, z);
                        let want = loss.value(y, z) - loss.dual(y, slope, scale) + z * scale * slope;
                        let found = loss.fenchel_gap(y, z, scale);
                        let size = 1.0 + loss.value(y, z) + (z * slope).abs();
                        assert!(
                            (found - want).abs() <= 1e-13 * size,
                            "{loss:?} {y} {z} {scale}: {found} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tiny_differences_keep_their_digits() {
        // f(z + h) − f(z) = −slope·h + ½f''h²: at h = 1e-9 a difference of values would have 7 digits.
        let h = 1e-9;
        for loss in LOSSES {
            let want = -loss.slope(1.0, 0.4) * h + 0.5 * loss.curvature(1.0, 0.4, 0.0) * h * h;
            assert!((loss.difference(1.0, 0.4, h) / want - 1.0).abs() < 1e-14, "{loss:?}");
            // The gap near scale 1: ½(1 − scale)²·slope²/f'', here with f'' > 0.
            let (s, c) = (loss.slope(1.0, 0.4), loss.curvature(1.0, 0.4, 0.0));
            let found = loss.fenchel_gap(1.0, 0.4, 1.0 - 1e-6);
            assert!((found / (0.5e-12 * s * s / c) - 1.0).abs() < 1e-4, "{loss:?} {found}");
        }
    }
}
