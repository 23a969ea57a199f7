//! Quantiles of magnitudes from a stream that does not fit memory.

use crate::KernelError;

const NAME: &str = "quantile";
const BINS: usize = 1 << 16;
/// Bits of a magnitude below its first 65,536 bins: 31 - 16.
const LOW_BITS: u32 = 15;

/// First pass of the exact quantile of `|v|`: counts by the upper 16 bits of the magnitude.
///
/// Two passes over the same stream give the exact value; the memory is that of one histogram.
#[derive(Debug, Clone)]
pub struct QuantileFirst {
    counts: Vec<u64>,
    total: u64,
    not_numbers: u64,
}

impl Default for QuantileFirst {
    fn default() -> Self {
        Self { counts: vec![0; BINS], total: 0, not_numbers: 0 }
    }
}

impl QuantileFirst {
    /// Counts more values; a NaN makes the quantile an error.
    pub fn add(&mut self, values: &[f32]) {
        for v in values {
            self.not_numbers += u64::from(v.is_nan());
            self.counts[(v.abs().to_bits() >> LOW_BITS) as usize] += 1;
        }
        self.total += values.len() as u64;
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The second pass for the quantile `share` in [0, 1]: the element of rank `ceil(share (count - 1))`, as numpy's method "higher".
    ///
    /// # Errors
    /// [`KernelError::Argument`] without values, with a NaN among them, or for a share outside [0, 1].
    pub fn second(&self, share: f64) -> Result<QuantileSecond, KernelError> {
        let bad = |argument, value: String, allowed| KernelError::Argument {
            kernel: NAME,
            argument,
            value,
            allowed,
        };
        if self.total == 0 {
            return Err(bad("values", "none".to_owned(), "at least one value"));
        }
        if self.not_numbers > 0 {
            return Err(bad("values", format!("{} NaN", self.not_numbers), "numbers only"));
        }
        if !(0.0..=1.0).contains(&share) {
            return Err(bad("share", share.to_string(), "[0, 1]"));
        }
        let mut rank = ((self.total - 1) as f64 * share).ceil() as u64;
        for (bin, count) in self.counts.iter().enumerate() {
            if rank < *count {
                return Ok(QuantileSecond { bin: bin as u32, rank, counts: vec![0; 1 << LOW_BITS] });
            }
            rank -= count;
        }
        Err(bad("share", share.to_string(), "[0, 1]"))
    }
}

/// Second pass of the exact quantile: the same values once more.
#[derive(Debug, Clone)]
pub struct QuantileSecond {
    bin: u32,
    rank: u64,
    counts: Vec<u64>,
}

impl QuantileSecond {
    /// Counts those values that lie in the bin of the quantile.
    pub fn add(&mut self, values: &[f32]) {
        for v in values {
            let bits = v.abs().to_bits();
            if bits >> LOW_BITS == self.bin {
                self.counts[bits as usize % (1 << LOW_BITS)] += 1;
            }
        }
    }

    /// The quantile.
    ///
    /// # Errors
    /// [`KernelError::Argument`] when the second pass saw other values than the first.
    pub fn value(&self) -> Result<f32, KernelError> {
        let mut rank = self.rank;
        for (low, count) in self.counts.iter().enumerate() {
            if rank < *count {
                return Ok(f32::from_bits(self.bin << LOW_BITS | low as u32));
            }
            rank -= count;
        }
        Err(KernelError::Argument {
            kernel: NAME,
            argument: "values",
            value: "fewer than in the first pass".to_owned(),
            allowed: "the same values in both passes",
        })
    }
}

/// The exact quantile of `|values|` in memory; see [`QuantileFirst::second`].
///
/// # Errors
/// As [`QuantileFirst::second`].
pub fn quantile_higher(values: &[f32], share: f64) -> Result<f32, KernelError> {
    let mut first = QuantileFirst::default();
    first.add(values);
    let mut second = first.second(share)?;
    second.add(values);
    second.value()
}

/// One pass: 65,536 equal bins of `|v|` on [0, max], and what lies above.
#[derive(Debug, Clone)]
pub struct LinearHistogram {
    counts: Vec<u64>,
    above: u64,
    total: u64,
    max: f32,
}

impl LinearHistogram {
    /// Bins on [0, max].
    ///
    /// # Errors
    /// [`KernelError::Argument`] unless `max` is positive and finite.
    pub fn new(max: f32) -> Result<Self, KernelError> {
        if !(max > 0.0 && max.is_finite()) {
            let (argument, allowed) = ("max", "positive and finite");
            return Err(KernelError::Argument { kernel: NAME, argument, value: max.to_string(), allowed });
        }
        Ok(Self { counts: vec![0; BINS], above: 0, total: 0, max })
    }

    /// Counts more values; NaN counts as above the maximum.
    pub fn add(&mut self, values: &[f32]) {
        for v in values {
            let bin = (f64::from(v.abs()) / f64::from(self.max) * BINS as f64).floor();
            // False for NaN; the maximum itself belongs to the last bin.
            if v.abs() <= self.max {
                self.counts[(bin as usize).min(BINS - 1)] += 1;
            } else {
                self.above += 1;
            }
        }
        self.total += values.len() as u64;
    }

    /// Width of one bin.
    pub fn width(&self) -> f32 {
        (f64::from(self.max) / BINS as f64) as f32
    }

    /// Share of the fullest bin: how far the realised share may exceed the wanted one.
    pub fn largest_share(&self) -> f64 {
        self.counts.iter().max().map_or(0.0, |c| *c as f64 / self.total.max(1) as f64)
    }

    /// Share of values above the maximum (or NaN).
    pub fn share_above(&self) -> f64 {
        self.above as f64 / self.total.max(1) as f64
    }

    /// The smallest upper bin edge at which the cumulative share exceeds `share`, or reaches the whole; `None` when so many values lie
    /// above the maximum that no edge does.
    pub fn edge(&self, share: f64) -> Option<f32> {
        let mut below = 0;
        for (bin, count) in self.counts.iter().enumerate() {
            below += count;
            if below as f64 > share * self.total as f64 || (below == self.total && self.total > 0) {
                let edge = f64::from(self.max) * (bin + 1) as f64 / BINS as f64;
                // Rounded up, so that every value of the bin is at most the edge.
                let rounded = edge as f32;
                return Some(if f64::from(rounded) < edge { rounded.next_up() } else { rounded });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn by_sorting(values: &[f32], share: f64) -> f32 {
        let mut v: Vec<f32> = values.iter().map(|v| v.abs()).collect();
        v.sort_by(f32::total_cmp);
        v[((v.len() - 1) as f64 * share).ceil() as usize]
    }

    #[test]
    fn by_hand() {
        // numpy.quantile([1, 2, 3, 4], q, method="higher"): rank ceil(3 q).
        let v = [-3.0, 1.0, 4.0, -2.0];
        for (q, want) in [(0.0, 1.0), (0.1, 2.0), (0.5, 3.0), (0.7, 4.0), (1.0, 4.0)] {
            assert_eq!(quantile_higher(&v, q).unwrap(), want, "{q}");
        }
        assert_eq!(quantile_higher(&[f32::INFINITY, 0.0, -0.0], 1.0).unwrap(), f32::INFINITY);
        assert!(quantile_higher(&[], 0.5).is_err() && quantile_higher(&[f32::NAN], 0.5).is_err());
        assert!(quantile_higher(&[1.0], 1.5).is_err() && quantile_higher(&[1.0], f64::NAN).is_err());
        let mut first = QuantileFirst::default();
        first.add(&[1.0, 2.0]);
        assert!(first.second(0.5).unwrap().value().is_err(), "the second pass saw nothing");
        assert!(LinearHistogram::new(0.0).is_err() && LinearHistogram::new(f32::NAN).is_err());
    }

    proptest! {
        #[test]
        fn exact_and_binned(raw in prop::collection::vec(-4000i32..4000, 1..400), share in 0.0f64..=1.0) {
            let v: Vec<f32> = raw.iter().map(|v| *v as f32 * 1.3e-3).collect();
            let want = by_sorting(&v, share);
            prop_assert_eq!(quantile_higher(&v, share).unwrap(), want);
            let mut h = LinearHistogram::new(6.0).unwrap();
            v.chunks(7).for_each(|c| h.add(c));
            let edge = h.edge(share).unwrap();
            // Realised share of |v| <= edge: more than wanted, by at most one bin.
            let realised = v.iter().filter(|v| v.abs() <= edge).count() as f64 / v.len() as f64;
            prop_assert!(realised > share || realised == 1.0);
            prop_assert!(realised <= share + h.largest_share() + 1e-9);
            // Within one rank on either side and one bin of the exact one.
            let step = 1.0 / (v.len().max(2) - 1) as f64;
            let before = by_sorting(&v, (share - step).max(0.0));
            let next = by_sorting(&v, (share + step).min(1.0));
            prop_assert!(edge >= before - 1e-6 && edge <= next + 1.01 * h.width());
        }
    }
}
