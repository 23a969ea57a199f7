//! The exponential of whole slices, vectorised.

use std::sync::LazyLock;

use pulp::Arch;

pub(crate) static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

const LOG2_E: f64 = std::f64::consts::LOG2_E;
// ln 2 in two parts: the first has zeros at its end, so that its product with an exponent is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Adding this rounds to an integer, which is then in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
const LOWEST: f64 = -708.0;
const HIGHEST: f64 = 709.0;

/// `eˣ`, within two units in the last place; 0 below −708, infinite above 709. The argument is not NaN.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    let clamped = x.clamp(LOWEST, HIGHEST);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let k = shifted - ROUND;
    let r = k.mul_add(-LN2_LOW, k.mul_add(-LN2_HIGH, clamped));
    // Taylor to r¹³ on |r| ≤ ln 2/2: the rest is below 1e-17.
    let mut p: f64 = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p.mul_add(r, c);
    }
    let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0_f64.to_bits()));
    let y = p * scale;
    let y = if x < LOWEST { 0.0 } else { y };
    if x > HIGHEST { f64::INFINITY } else { y }
}

/// Lanes of a sum: fixed, so that results do not depend on the machine.
pub(crate) const LANES: usize = 16;

#[inline(always)]
pub(crate) fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of a slice in [`LANES`] lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail: f64 = chunks.remainder().iter().sum();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] += x[l];
        }
    }
    fold(lanes) + tail
}

/// Largest value; −∞ for none. No value is NaN.
#[inline(always)]
pub(crate) fn max(x: &[f64]) -> f64 {
    let mut lanes = [f64::NEG_INFINITY; LANES];
    let larger = |a: f64, b: f64| if a > b { a } else { b };
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f64::NEG_INFINITY, larger);
    for x in chunks {
        for l in 0..LANES {
            lanes[l] = larger(lanes[l], x[l]);
        }
    }
    lanes.into_iter().fold(tail, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_against_the_standard_library() {
        let x: Vec<f64> =
            (0..200_000).map(|i| -707.9 + f64::from(i) * 0.007_08).chain([0.0, -0.0, 1e-300]).collect();
        let mut y = x.clone();
        ARCH.dispatch(
            #[inline(always)]
            || y.iter_mut().for_each(|v| *v = exp(*v)),
        );
        for (x, y) in x.iter().zip(&y) {
            assert!((y - x.exp()).abs() <= 4.5e-16 * x.exp(), "{x}: {y} {}", x.exp());
        }
        assert_eq!([exp(-709.0), exp(f64::NEG_INFINITY), exp(-1e300)], [0.0; 3]);
        assert_eq!([exp(710.0), exp(f64::INFINITY)], [f64::INFINITY; 2]);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_maxima() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f64> = (0..n).map(|i| f64::from((i * 7) % 13) - 6.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f64>());
            assert_eq!(max(&x), x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
