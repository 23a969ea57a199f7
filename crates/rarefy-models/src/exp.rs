//! The exponential on whole slices, in a form that compilers turn into vector code without special instructions.
//!
//! Softmax, SiLU and log-likelihoods of a small model spend more time in a scalar `exp` than in their sums.

/// Largest and smallest argument that is told apart; beyond, the result stays at `exp` of the limit.
const LIMIT: f32 = 87.0;

/// `e^x` within 2 units in the last place for `|x| <= 87`; clamped outside, NaN stays NaN. `x = k ln 2 + r`, `|r| <= ln 2 / 2`,
/// polynomial of degree 7 in `r` (coefficients of the Cephes library).
#[inline]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons, not `clamp`: they let NaN through in vector code as well.
    let x = if x > LIMIT { LIMIT } else { x };
    let x = if x < -LIMIT { -LIMIT } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * 0.693_359_375;
    let r = r + k * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4f32;
    p = p * r + 1.398_199_951e-3;
    p = p * r + 8.333_451_907e-3;
    p = p * r + 4.166_579_589e-2;
    p = p * r + 1.666_666_546e-1;
    p = p * r + 5.000_000_120e-1;
    let y = p * r * r + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    y * f32::from_bits(power)
}

/// Replaces scores by their softmax: shares that add up to 1. Scores that are not finite give NaN.
pub(crate) fn softmax(scores: &mut [f32]) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for s in scores.iter_mut() {
        *s = exp(*s - top);
    }
    let share = 1.0 / sum(scores);
    for s in scores {
        *s *= share;
    }
}

/// Sum with sixteen partial sums, in a fixed order.
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (s, v) in sums.iter_mut().zip(chunk) {
            *s += v;
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// `log Σ exp(l)` in 64 bits.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0f64;
    let mut buffer = [0.0f32; 64];
    for chunk in logits.chunks(64) {
        for (e, l) in buffer.iter_mut().zip(chunk) {
            *e = exp(*l - top);
        }
        total += f64::from(sum(&buffer[..chunk.len()]));
    }
    total.ln() + f64::from(top)
}

/// `x / (1 + exp(-x))` in place.
pub(crate) fn silu(values: &mut [f32]) {
    for v in values {
        *v /= 1.0 + exp(-*v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_exact_value() {
        let mut worst = 0.0f64;
        for i in -870_000..=870_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
        }
        assert!(worst < 2.4e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn limits() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite());
        let mut values = [0.0, -1e30, 1e30, f32::NAN, 1.0];
        silu(&mut values);
        assert_eq!(&values[..3], &[0.0, -1e30 / (1.0 + exp(LIMIT)), 1e30]);
        assert!(values[3].is_nan());
        assert!((values[4] - 0.731_058_6).abs() < 1e-6);
    }

    /// ln 1, ln 2, ln 5: shares 1/8, 2/8, 5/8, whatever is added to all.
    #[test]
    fn softmax_by_hand() {
        let mut scores = [100.0, 100.0 + 2f32.ln(), 100.0 + 5f32.ln()];
        assert!((log_sum_exp(&scores) - (100.0 + 8f64.ln())).abs() < 1e-5);
        softmax(&mut scores);
        for (got, want) in scores.iter().zip([0.125, 0.25, 0.625]) {
            assert!((got - want).abs() < 2e-6, "{got} {want}");
        }
        let mut many: Vec<f32> = (0..1000).map(|i| (i % 7) as f32).collect();
        softmax(&mut many);
        assert!((many.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
