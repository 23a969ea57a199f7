//! CATS — a cutoff on `|SiLU(gate)|` per layer, so that a chosen share of neurons falls below it.
//!
//! Paper:    Contextually-Aware Thresholding for Sparsity, COLM 2024, arXiv 2404.08763. Reference code: `ScalingIntelligence/CATS`.
//! Problem:  pre-activations `z[tokens][d_ff]` of one layer of the dense model, wanted share `k` of idle entries in [0, 1].
//! Method:   count `|SiLU(z)|` over all tokens and neurons; `t` is the quantile `k`. Entries with `|SiLU(z)| <= t` are idle.
//! Cost:     one increment and one exponential per activation and pass; 512 KiB of counters.
//! Variants: [`CatsExact`] (two passes, the exact quantile), [`CatsBinned`] (one pass, 65,536 bins on [0, max]),
//!           [`CatsReference`] (one pass, the edges of the reference code).
//! Differs:  from the reference code: activations, not pre-activations, are counted in the overflow bin; padding is left out by a
//!           mask instead of skipping batches that are nearly all zero; `k = 0` gives `t = 0`, the dense model.
//! Choose:   the exact one when the stream can be replayed.
//! Fails on: no activations, NaN, a share outside [0, 1] → [`KernelError::Argument`].

use crate::KernelError;
use crate::row_skip::silu;
use crate::select::{LinearHistogram, QuantileFirst, QuantileSecond};

const NAME: &str = "cats";

/// Calls `add` with `|SiLU(z)|` of every token that `keep` keeps (all without a mask), a token at a time.
fn each_token(
    z: &[f32],
    d_ff: usize,
    keep: Option<&[bool]>,
    add: &mut dyn FnMut(&[f32]),
) -> Result<(), KernelError> {
    if d_ff == 0 || !z.len().is_multiple_of(d_ff) {
        let expected = z.len().next_multiple_of(d_ff.max(1));
        return Err(KernelError::Length { kernel: NAME, array: "z", expected, found: z.len() });
    }
    let tokens = z.len() / d_ff;
    if let Some(keep) = keep.filter(|k| k.len() != tokens) {
        return Err(KernelError::Length { kernel: NAME, array: "keep", expected: tokens, found: keep.len() });
    }
    let mut magnitudes = vec![0.0; d_ff];
    for (t, z) in z.chunks_exact(d_ff).enumerate() {
        if keep.is_none_or(|k| k[t]) {
            magnitudes.iter_mut().zip(z).for_each(|(m, z)| *m = silu(*z).abs());
            add(&magnitudes);
        }
    }
    Ok(())
}

/// The exact threshold in two passes over the same activations.
#[derive(Debug, Clone, Default)]
pub struct CatsExact {
    first: QuantileFirst,
}

impl CatsExact {
    /// First pass: `z[tokens][d_ff]`; `keep[tokens]` is false for padding.
    ///
    /// # Errors
    /// [`KernelError::Length`] for sizes that do not fit.
    pub fn add(&mut self, z: &[f32], d_ff: usize, keep: Option<&[bool]>) -> Result<(), KernelError> {
        each_token(z, d_ff, keep, &mut |m| self.first.add(m))
    }

    /// The second pass for the wanted share of idle entries.
    ///
    /// # Errors
    /// [`KernelError::Argument`] without activations, with NaN among them, or for a share outside [0, 1].
    pub fn second(&self, share: f64) -> Result<CatsSecond, KernelError> {
        Ok(CatsSecond { second: self.first.second(share)?, is_dense: share == 0.0 })
    }
}

/// The second pass of [`CatsExact`].
#[derive(Debug, Clone)]
pub struct CatsSecond {
    second: QuantileSecond,
    is_dense: bool,
}

impl CatsSecond {
    /// The activations of the first pass once more, in any order.
    ///
    /// # Errors
    /// As [`CatsExact::add`].
    pub fn add(&mut self, z: &[f32], d_ff: usize, keep: Option<&[bool]>) -> Result<(), KernelError> {
        each_token(z, d_ff, keep, &mut |m| self.second.add(m))
    }

    /// The threshold.
    ///
    /// # Errors
    /// [`KernelError::Argument`] when the second pass saw other values than the first.
    pub fn threshold(&self) -> Result<f32, KernelError> {
        let t = self.second.value()?;
        Ok(if self.is_dense { 0.0 } else { t })
    }
}

/// The exact threshold of activations in memory.
///
/// # Errors
/// As the two passes.
pub fn threshold(z: &[f32], share: f64) -> Result<f32, KernelError> {
    let mut first = CatsExact::default();
    first.add(z, 1, None)?;
    let mut second = first.second(share)?;
    second.add(z, 1, None)?;
    second.threshold()
}

/// One pass, 65,536 equal bins on [0, max].
#[derive(Debug, Clone)]
pub struct CatsBinned {
    histogram: LinearHistogram,
}

impl CatsBinned {
    /// Bins up to the largest `|SiLU(z)|` expected.
    ///
    /// # Errors
    /// [`KernelError::Argument`] unless `max` is positive and finite.
    pub fn new(max: f32) -> Result<Self, KernelError> {
        Ok(Self { histogram: LinearHistogram::new(max)? })
    }

    /// As [`CatsExact::add`].
    ///
    /// # Errors
    /// As there.
    pub fn add(&mut self, z: &[f32], d_ff: usize, keep: Option<&[bool]>) -> Result<(), KernelError> {
        each_token(z, d_ff, keep, &mut |m| self.histogram.add(m))
    }

    /// The smallest bin edge whose cumulative share exceeds `share`; `None` when too many values lie above the maximum.
    pub fn threshold(&self, share: f64) -> Option<f32> {
        if share == 0.0 { Some(0.0) } else { self.histogram.edge(share) }
    }

    /// The bins, to see how many values lie above.
    pub fn histogram(&self) -> &LinearHistogram {
        &self.histogram
    }
}

/// One pass with the edges of the reference code: -∞, 19,998 points from -2 to 2, ∞.
#[derive(Debug, Clone)]
pub struct CatsReference {
    counts: Vec<u64>,
    total: u64,
}

const POINTS: usize = 19_998;

impl Default for CatsReference {
    fn default() -> Self {
        Self { counts: vec![0; POINTS + 1], total: 0 }
    }
}

impl CatsReference {
    fn point(i: usize) -> f64 {
        -2.0 + 4.0 * i as f64 / (POINTS - 1) as f64
    }

    /// As [`CatsExact::add`]; NaN counts as above every edge.
    ///
    /// # Errors
    /// As there.
    pub fn add(&mut self, z: &[f32], d_ff: usize, keep: Option<&[bool]>) -> Result<(), KernelError> {
        each_token(z, d_ff, keep, &mut |m| {
            for v in m {
                // Bin i holds the values between point i - 1 and point i, that one included.
                let guess = ((f64::from(*v) + 2.0) / 4.0 * (POINTS - 1) as f64).ceil();
                let bin = if *v <= 2.0 { (guess as usize).min(POINTS - 1) } else { POINTS };
                self.counts[bin] += 1;
            }
            self.total += m.len() as u64;
        })
    }

    /// The smallest edge whose cumulative share exceeds `share`, or reaches the whole; `None` when that is infinity.
    pub fn threshold(&self, share: f64) -> Option<f32> {
        let mut below = 0;
        for (i, count) in self.counts.iter().take(POINTS).enumerate() {
            below += count;
            if below as f64 > share * self.total as f64 || (below == self.total && below > 0) {
                return Some(Self::point(i) as f32);
            }
        }
        None
    }
}

/// Share of `z` that the threshold makes idle.
pub fn realised_share(z: &[f32], t: f32) -> f64 {
    z.iter().filter(|z| silu(**z).abs() <= t).count() as f64 / z.len().max(1) as f64
}

/// The activation that is kept, `SiLU(z)` or zero.
pub fn activation(z: f32, t: f32) -> f32 {
    crate::row_skip::Activity::GateAbove(t).gate(silu(z))
}

/// Its derivative for fine-tuning: that of SiLU where kept, zero where idle; the threshold is a constant.
pub fn derivative(z: f32, t: f32) -> f32 {
    if silu(z).abs() <= t {
        return 0.0;
    }
    let s = 1.0 / (1.0 + (-z).exp());
    s * (1.0 + z * (1.0 - s))
}

/// Weights read by the gated MLP relative to the dense one, at a share of idle neurons: its inverse is the largest speed-up.
pub fn cost_share(idle: f64) -> f64 {
    (1.0 + 2.0 * (1.0 - idle)) / 3.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn noise(seed: u64, len: usize, scale: f32) -> Vec<f32> {
        let mut s = seed | 1;
        (0..len)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                ((s >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect()
    }

    fn by_sorting(z: &[f32], k: f64) -> f32 {
        let mut v: Vec<f32> = z.iter().map(|z| silu(*z).abs()).collect();
        v.sort_by(f32::total_cmp);
        v[((v.len() - 1) as f64 * k).ceil() as usize]
    }

    #[test]
    fn by_hand() {
        // |SiLU| of 0, 1, 2, 4: 0, 0.731, 1.762, 3.928.
        let z = [2.0, 0.0, 4.0, 1.0];
        assert!((threshold(&z, 0.5).unwrap() - 1.761_594).abs() < 1e-5);
        assert_eq!(threshold(&z, 0.0).unwrap(), 0.0);
        assert_eq!(threshold(&z, 1.0).unwrap(), silu(4.0));
        assert_eq!((realised_share(&z, 1.0), cost_share(0.0)), (0.5, 1.0));
        assert!((1.0 / cost_share(0.5) - 1.5).abs() < 1e-12 && (1.0 / cost_share(0.7) - 1.875).abs() < 1e-12);
    }

    #[test]
    fn every_variant_realises_the_share() {
        let (d_ff, z) = (64, noise(3, 64 * 500, 3.0));
        let (mut exact, mut binned, mut reference) =
            (CatsExact::default(), CatsBinned::new(3.0).unwrap(), CatsReference::default());
        // From a stream, in uneven pieces.
        for piece in z.chunks(d_ff * 7) {
            exact.add(piece, d_ff, None).unwrap();
            binned.add(piece, d_ff, None).unwrap();
            reference.add(piece, d_ff, None).unwrap();
        }
        for k in [0.01, 0.3, 0.5, 0.7, 0.9, 1.0] {
            let mut second = exact.second(k).unwrap();
            z.rchunks(d_ff * 3).for_each(|piece| second.add(piece, d_ff, None).unwrap());
            let t = second.threshold().unwrap();
            assert_eq!(t, by_sorting(&z, k), "exact, and in any order");
            let one = 1.0 / z.len() as f64;
            let realised = realised_share(&z, t);
            assert!(realised >= k && realised <= k + 2.0 * one + 1e-12, "{k}: {realised}");
            let edge = binned.threshold(k).unwrap();
            let realised = realised_share(&z, edge);
            assert!(realised >= k && realised <= k + binned.histogram().largest_share(), "{k}: {realised}");
            // Neighbouring values are far closer than a bin of 3 / 65,536 here.
            assert!((edge - t).abs() <= 2.0 * binned.histogram().width(), "{k}: {edge} {t}");
            if by_sorting(&z, k) < 1.99 {
                let coarse = reference.threshold(k).unwrap();
                assert!((coarse - t).abs() <= 4.1e-4, "{k}: {coarse} {t}");
                assert!(realised_share(&z, coarse) >= k);
            } else {
                assert_eq!(reference.threshold(k), None, "activations above 2 have no edge");
            }
        }
    }

    #[test]
    fn padding_is_left_out() {
        let (d_ff, mut z) = (8, noise(5, 8 * 40, 2.0));
        let keep: Vec<bool> = (0..40).map(|t| t % 3 != 0).collect();
        let kept: Vec<f32> =
            z.chunks(d_ff).zip(&keep).filter(|(_, k)| **k).flat_map(|(z, _)| z.to_vec()).collect();
        z.chunks_mut(d_ff).zip(&keep).filter(|(_, k)| !**k).for_each(|(z, _)| z.fill(0.0));
        let mut first = CatsExact::default();
        first.add(&z, d_ff, Some(&keep)).unwrap();
        let mut second = first.second(0.5).unwrap();
        second.add(&z, d_ff, Some(&keep)).unwrap();
        assert_eq!(second.threshold().unwrap(), by_sorting(&kept, 0.5));
        assert!(first.add(&z, d_ff, Some(&keep[1..])).is_err() && first.add(&z, 7, None).is_err());
        assert!(first.add(&z, 0, None).is_err());
    }

    #[test]
    fn a_scaled_gate_gets_the_quantile_of_its_new_distribution() {
        let z = noise(7, 4000, 1.5);
        let scaled: Vec<f32> = z.iter().map(|z| z * 2.5).collect();
        let (a, b) = (threshold(&z, 0.6).unwrap(), threshold(&scaled, 0.6).unwrap());
        assert_eq!(b, by_sorting(&scaled, 0.6));
        assert!(b > 1.5 * a && (realised_share(&scaled, b) - 0.6).abs() < 1e-3);
        assert!((realised_share(&scaled, a) - 0.6).abs() > 0.05, "the old threshold no longer fits");
    }

    #[test]
    fn the_derivative_is_that_of_silu_on_kept_and_zero_on_idle() {
        for (z, t) in [(-3.0f32, 0.1f32), (-1.2, 0.1), (-0.2, 0.15), (0.1, 0.2), (0.9, 0.2), (5.0, 3.0)] {
            let h = 1e-3;
            let slope = (activation(z + h, t) - activation(z - h, t)) / (2.0 * h);
            assert!((slope - derivative(z, t)).abs() < 2e-3, "{z} {t}: {slope}");
            assert_eq!(derivative(z, t) == 0.0, activation(z, t) == 0.0);
        }
    }

    #[test]
    fn nan_and_nothing_are_errors() {
        assert!(threshold(&[], 0.5).is_err() && threshold(&[f32::NAN, 1.0], 0.5).is_err());
        assert!(threshold(&[1.0], -0.1).is_err() && CatsBinned::new(-1.0).is_err());
    }
}
