//! Sizes, radices and tables of one transform.
//!
//! `N = R₁ · R₂ ⋯ · 256`. Stage `i` works on rows of `Rᵢ · M` elements, `M` the product of the later factors: with `n = n₁ M + n₂`
//! and `k = k₁ + R₁ k₂`,
//!
//! ```text
//! X[k₁ + R₁ k₂] = Σ_{n₂} ω_M^{n₂ k₂} · ω_N^{n₂ (k₁ + s)} · Σ_{n₁} ω_{R₁}^{n₁ (k₁ + s)} x[n₁ M + n₂]
//! ```
//!
//! a codelet across rows, a twiddle, and `R₁` shorter transforms that lie each in one row. Nothing is put back in order:
//! position `p` of the result holds the frequency [`Plan::frequency`]. The shift `s` is 3/4 for one real row (see the module
//! above) and 0 for pairs; it touches the first stage only.

use crate::{AlignedBuf, KernelError};

/// Points of the innermost block: two codelets of 16.
pub(super) const LEAF: usize = 256;
const NAME: &str = "fft_conv";

/// One codelet across `radix` rows of `m` elements.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) radix: usize,
    pub(super) m: usize,
    /// `[m / 16][radix][re, im][16]`: one stream in the order of use.
    pub(super) twiddles: AlignedBuf<f32>,
}

impl Stage {
    /// Twiddles `ω_{radix m}^{n (k + quarters / 4)}`.
    fn new(radix: usize, m: usize, quarters: usize) -> Self {
        let mut twiddles = AlignedBuf::zeroed(2 * radix * m);
        let turn = 4 * (radix * m) as u64;
        for (block, out) in twiddles.as_mut_slice().chunks_exact_mut(32 * radix).enumerate() {
            for (k, out) in out.chunks_exact_mut(32).enumerate() {
                for lane in 0..16 {
                    let steps = (block * 16 + lane) as u64 * (4 * k + quarters) as u64 % turn;
                    [out[lane], out[16 + lane]] = root(steps, turn);
                }
            }
        }
        Self { radix, m, twiddles }
    }
}

/// `exp(-2 π i steps / turn)`.
fn root(steps: u64, turn: u64) -> [f32; 2] {
    let angle = -std::f64::consts::TAU * steps as f64 / turn as f64;
    [angle.cos() as f32, angle.sin() as f32]
}

/// A transform of `n` complex points.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) n: usize,
    /// `s = 3/4`: one real row of `2 n` elements; otherwise two real rows of at most `n / 2`.
    pub(super) folded: bool,
    pub(super) first: Stage,
    /// `ω_{R₁}^{n₁ s}`.
    pub(super) twist: [[f32; 2]; 32],
    pub(super) inner: Vec<Stage>,
    pub(super) leaf: Stage,
    /// Elements between rows of the work array after the first stage: one cache line more than `m` where rows would else
    /// compete for the same few sets of the cache.
    pub(super) pitch: usize,
}

impl Plan {
    /// The smallest plan for a product of `len` real elements without wrapping.
    pub(super) fn folded(len: usize) -> Result<Self, KernelError> {
        let n = power(len.div_ceil(2).max(LEAF))?;
        Ok(Self::new(n, true))
    }

    /// The smallest plan for pairs of real rows, each at most half as long as the transform.
    pub(super) fn paired(len: usize) -> Result<Self, KernelError> {
        let n = power(len.max(LEAF))?.checked_mul(2);
        Ok(Self::new(n.ok_or(KernelError::TooLarge { kernel: NAME, a: len, b: 2 })?, false))
    }

    fn new(n: usize, folded: bool) -> Self {
        let quarters = if folded { 3 } else { 0 };
        let radices = radices((n / LEAF).trailing_zeros());
        let mut m = n / radices[0];
        let first = Stage::new(radices[0], m, quarters);
        let twist = std::array::from_fn(|i| root((i * quarters) as u64, 4 * radices[0] as u64));
        let mut inner = Vec::new();
        for r in &radices[1..] {
            m /= r;
            inner.push(Stage::new(*r, m, 0));
        }
        let pitch = first.m + if first.m >= 1024 { 16 } else { 0 };
        Self { n, folded, first, twist, inner, leaf: Stage::new(16, 16, 0), pitch }
    }

    /// Elements of the work array of one part (real or imaginary).
    pub(super) fn work(&self) -> usize {
        // Three lines more, so that real and imaginary parts do not lie a multiple of 4 KiB apart.
        self.first.radix * self.pitch + 48
    }

    /// Real elements without wrapping.
    pub(super) fn span(&self) -> usize {
        if self.folded { 2 * self.n } else { self.n }
    }

    /// The frequency at position `p` of a spectrum, without the shift.
    pub(super) fn frequency(&self, p: usize) -> usize {
        let (mut rest, mut scale, mut frequency) = (p, 1, 0);
        for stage in std::iter::once(&self.first).chain(&self.inner) {
            frequency += rest / stage.m * scale;
            rest %= stage.m;
            scale *= stage.radix;
        }
        frequency + rest * scale
    }

    /// Bytes of the tables.
    pub(super) fn bytes(&self) -> usize {
        let stages = std::iter::once(&self.first).chain(&self.inner).chain([&self.leaf]);
        stages.map(|s| s.twiddles.bytes()).sum()
    }
}

fn power(len: usize) -> Result<usize, KernelError> {
    len.checked_next_power_of_two().filter(|n| *n <= usize::MAX / 64).ok_or(KernelError::TooLarge {
        kernel: NAME,
        a: len,
        b: 64,
    })
}

/// Factors of `2^bits`. The first stage passes over the whole row through L2, so it is the largest; what follows it
/// should fit L1.
fn radices(bits: u32) -> Vec<usize> {
    match bits {
        0..=5 => vec![1 << bits],
        6 => vec![8, 8],
        7 => vec![8, 16],
        _ => {
            let mut radices = vec![];
            let mut rest = bits;
            if rest % 4 == 1 {
                radices.push(32);
                rest -= 5;
            }
            while rest >= 4 && rest != 6 && rest != 7 {
                radices.push(16);
                rest -= 4;
            }
            radices.extend(match rest {
                6 => vec![8, 8],
                7 => vec![16, 8],
                _ => vec![],
            });
            radices
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn factors_multiply_to_the_size_and_positions_to_all_frequencies() {
        for bits in 0..24 {
            let r = radices(bits);
            assert_eq!(r.iter().product::<usize>(), 1 << bits, "{r:?}");
            assert!(r.iter().all(|r| *r <= 32) && (r.len() == 1 || r.iter().all(|r| *r >= 8)), "{r:?}");
        }
        for bits in 8..15 {
            let plan = Plan::new(1 << bits, true);
            let mut seen: Vec<usize> = (0..plan.n).map(|p| plan.frequency(p)).collect();
            assert_eq!(seen[1], plan.n / 256, "neighbours within a leaf are far apart in frequency");
            seen.sort_unstable();
            assert!(seen.iter().enumerate().all(|(i, f)| i == *f));
        }
        assert!(matches!(Plan::folded(usize::MAX), Err(KernelError::TooLarge { .. })));
        assert!(matches!(Plan::paired(usize::MAX / 2), Err(KernelError::TooLarge { .. })));
        assert_eq!((Plan::folded(2048).unwrap().n, Plan::paired(1024).unwrap().n), (1024, 2048));
    }
}
