//! A tail-biting convolutional code of constraint length seven, as offsets and as a soft decoder.

use serde::{Deserialize, Serialize};

use super::parity;

/// Message bits that one code bit looks at.
const SPAN: usize = 7;
const STATES: usize = 1 << (SPAN - 1);

/// Rate of the code of [`Delays::So`](super::Delays::So): code bits per bit of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// Three per bit: for 0 dB and below.
    OneThird,
    /// Two per bit.
    OneHalf,
    /// Three per two bits: for 10 dB and above.
    TwoThirds,
}

impl Rate {
    /// Generators sent at time `t`, bit j of each looks at message bit `t − j`.
    fn generators(self, t: usize) -> &'static [u32] {
        match self {
            Self::OneThird => &[0o133, 0o145, 0o175],
            Self::OneHalf => &[0o171, 0o133],
            Self::TwoThirds if t.is_multiple_of(2) => &[0o171, 0o133],
            Self::TwoThirds => &[0o171],
        }
    }

    /// The offsets whose signs are the code bits of an index of `n` bits, in order of time.
    pub(super) fn offsets(self, n: usize) -> Vec<u64> {
        let taps = |t: usize, g: u32| {
            // For n < 7 two taps can meet at one bit and cancel.
            (0..SPAN).filter(|j| g >> j & 1 == 1).fold(0, |d, j| d ^ (1u64 << ((t + SPAN * n - j) % n)))
        };
        (0..n).flat_map(|t| self.generators(t).iter().map(move |g| taps(t, *g))).collect()
    }

    /// The index whose code bits correlate best with `soft` (positive: bit 0): the maximum-likelihood word.
    ///
    /// One round of the Viterbi algorithm from any state bounds the words that end in each state. Rounds that
    /// start and end in one state are then run from the best bound on, until no bound is above the best word.
    pub(super) fn decode(self, n: usize, soft: &[f64]) -> u64 {
        let mut from = vec![[0u8; STATES]; n];
        let mut bounds: Vec<(usize, f64)> =
            self.round(n, soft, None, &mut from).into_iter().enumerate().collect();
        bounds.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let (mut best, mut index) = (f64::NEG_INFINITY, 0);
        for (state, bound) in bounds {
            if bound <= best {
                break;
            }
            let value = self.round(n, soft, Some(state), &mut from)[state];
            if value > best {
                (best, index) = (value, trace(state, &from));
            }
        }
        index
    }

    /// The best correlation of a path of `n` steps into each state, from one state or from any.
    fn round(self, n: usize, soft: &[f64], start: Option<usize>, from: &mut [[u8; STATES]]) -> [f64; STATES] {
        let mut metric = [if start.is_some() { f64::NEG_INFINITY } else { 0.0 }; STATES];
        if let Some(start) = start {
            metric[start] = 0.0;
        }
        let mut at = 0;
        for (t, from) in from.iter_mut().enumerate().take(n) {
            let generators = self.generators(t);
            let read = &soft[at..at + generators.len()];
            at += generators.len();
            // The gain depends on the seven bits in sight only.
            let gains: [f64; 2 * STATES] = std::array::from_fn(|window| {
                let signed =
                    |(g, v): (&u32, &f64)| if parity(u64::from(g & window as u32)) { -v } else { *v };
                generators.iter().zip(read).map(signed).sum()
            });
            metric = std::array::from_fn(|to| {
                let (low, high) = (to, to | STATES);
                let (a, b) = (metric[low >> 1] + gains[low], metric[high >> 1] + gains[high]);
                from[to] = u8::from(b > a);
                a.max(b)
            });
        }
        metric
    }
}

/// The message of the path that ends in `state`.
fn trace(mut state: usize, from: &[[u8; STATES]]) -> u64 {
    let mut index = 0;
    for (t, from) in from.iter().enumerate().rev() {
        index |= (state as u64 & 1) << t;
        state = state >> 1 | usize::from(from[state]) << (SPAN - 2);
    }
    index
}

/// `Σ_p (−1)^⟨d_p, index⟩ soft_p`.
pub(super) fn correlation(offsets: &[u64], index: u64, soft: &[f64]) -> f64 {
    offsets.iter().zip(soft).map(|(d, v)| if parity(d & index) { -v } else { *v }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [(Rate, usize); 3] = [(Rate::OneThird, 3), (Rate::OneHalf, 2), (Rate::TwoThirds, 1)];

    fn word(offsets: &[u64], index: u64) -> Vec<f64> {
        offsets.iter().map(|d| if parity(d & index) { -1.0 } else { 1.0 }).collect()
    }

    #[test]
    fn codewords_decode_also_with_errors() {
        for (rate, errors) in RATES {
            for n in [14, 20, 33, 63] {
                let offsets = rate.offsets(n);
                for trial in 0..40u64 {
                    let index = (trial + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - n);
                    let clean = word(&offsets, index);
                    assert_eq!(rate.decode(n, &clean), index, "{rate:?} {n}");
                    let mut noisy = clean;
                    (0..errors).for_each(|e| {
                        let at = (trial as usize * 7 + e * 11) % offsets.len();
                        noisy[at] = -noisy[at];
                    });
                    assert_eq!(rate.decode(n, &noisy), index, "{rate:?} {n}, {errors} errors");
                }
            }
        }
    }

    #[test]
    fn the_decoder_finds_the_best_of_all_words() {
        for (rate, _) in RATES {
            for n in 7..=11 {
                let offsets = rate.offsets(n);
                for trial in 0..20 {
                    // Far from any word, so that paths around the circle that are no words compete.
                    let soft: Vec<f64> =
                        (0..offsets.len()).map(|i| ((i * i + 31 * trial + 7 * i) as f64).sin()).collect();
                    let value = |k: u64| correlation(&offsets, k, &soft);
                    let most = (0..1 << n).map(value).fold(f64::NEG_INFINITY, f64::max);
                    let found = value(rate.decode(n, &soft));
                    assert!((found - most).abs() < 1e-12, "{rate:?} {n}: {found} {most}");
                }
            }
        }
    }

    #[test]
    fn distance_of_the_code_at_fourteen_bits() {
        for (rate, errors) in RATES {
            let offsets = rate.offsets(14);
            let weight = |k: u64| offsets.iter().filter(|d| parity(*d & k)).count();
            let distance = (1..1 << 14).map(weight).min().unwrap_or(0);
            assert!(distance > 2 * errors, "{rate:?}: {distance}");
        }
    }
}
