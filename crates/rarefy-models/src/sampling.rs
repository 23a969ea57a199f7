//! Choosing the next token, and generating with it.

use std::ops::ControlFlow;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::causal_lm::CausalLm;
use crate::error::{ModelError, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Sampling {
    /// The most likely one; of equals the lowest.
    #[default]
    Greedy,
    /// By chance.
    Temperature {
        /// Divides the logits; in (0, ∞). 1: the model's own distribution.
        t: f64,
        /// Only the likeliest tokens that together reach this share, in (0, 1] (Holtzman et al. 2020); `None`: all.
        top_p: Option<f64>,
    },
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn validate(&self) -> Result<()> {
        let Self::Temperature { t, top_p } = *self else { return Ok(()) };
        if !(t.is_finite() && t > 0.0) {
            return Err(ModelError::Sampling {
                setting: "temperature",
                value: t,
                allowed: "a finite number above 0",
            });
        }
        match top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                Err(ModelError::Sampling { setting: "top_p", value: p, allowed: "above 0, at most 1" })
            }
            _ => Ok(()),
        }
    }

    /// One token from logits.
    ///
    /// # Errors
    /// A setting out of range, no logits, logits that are not finite.
    pub fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> Result<u32> {
        self.validate()?;
        if let Some(first) = logits.iter().position(|l| !l.is_finite()) {
            let count = logits.iter().filter(|l| !l.is_finite()).count();
            return Err(ModelError::NonFinite { what: "logits", count, first });
        }
        let best = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
        let Some((best, top)) = best else { return Err(ModelError::Empty { what: "logits" }) };
        match *self {
            Self::Greedy => Ok(best as u32),
            Self::Temperature { t, top_p } => {
                Ok(by_chance(logits, f64::from(*top), t, top_p, uniform(rng)) as u32)
            }
        }
    }
}

/// Uniform in [0, 1), 53 bits.
pub(crate) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (0.5f64).powi(53)
}

/// The index at which the running share passes `u` of the whole (of the nucleus, if `top_p` is given).
fn by_chance(logits: &[f32], top: f64, t: f64, top_p: Option<f64>, u: f64) -> usize {
    let mut shares: Vec<(usize, f64)> =
        logits.iter().enumerate().map(|(i, l)| (i, ((f64::from(*l) - top) / t).exp())).collect();
    if let Some(p) = top_p {
        shares.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let target = p * shares.iter().map(|s| s.1).sum::<f64>();
        let mut sum = 0.0;
        let kept = shares.iter().position(|s| {
            sum += s.1;
            sum >= target
        });
        shares.truncate(kept.map_or(shares.len(), |k| k + 1));
    }
    let target = u * shares.iter().map(|s| s.1).sum::<f64>();
    let mut sum = 0.0;
    for (index, share) in &shares {
        sum += share;
        if sum > target {
            return *index;
        }
    }
    // Rounding kept the sum at or below the target: the last token with a share.
    shares.iter().rev().find(|s| s.1 > 0.0).map_or(0, |s| s.0)
}

/// Continues `prompt` by up to `max_new` tokens; ends before an end-of-sequence token of the configuration, or when
/// `on_token`, called with each new token, says so. Returns the new tokens only. The same seed gives the same tokens.
///
/// # Errors
/// An empty prompt, a token outside the vocabulary, a setting out of range, logits that are not finite, more positions
/// than were learned (OPT).
pub fn generate(
    model: &CausalLm,
    prompt: &[u32],
    sampling: Sampling,
    max_new: usize,
    seed: u64,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    sampling.validate()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cache = model.new_cache();
    let mut out = Vec::new();
    if max_new == 0 {
        return Ok(out);
    }
    let mut logits = model.decode(&mut cache, prompt)?;
    loop {
        let token = sampling.choose(&logits, &mut rng)?;
        if model.config().eos.contains(&token) {
            return Ok(out);
        }
        out.push(token);
        if on_token(token).is_break() || out.len() == max_new {
            return Ok(out);
        }
        logits = model.decode(&mut cache, &[token])?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1)
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(Sampling::Greedy.choose(&[0.0, 3.0, 3.0, -1.0], &mut rng()).unwrap(), 1);
    }

    /// Shares 0.5, 0.3, 0.2: the running sums are 0.5, 0.8, 1. With top_p 0.6 the nucleus is the first two, 0.625 and 0.375.
    #[test]
    fn chance_by_hand() {
        let logits: Vec<f32> = [0.3f32, 0.5, 0.2].iter().map(|p| p.ln()).collect();
        let top = f64::from(logits[1]);
        let pick = |u, p| by_chance(&logits, top, 1.0, p, u);
        assert_eq!([pick(0.0, None), pick(0.29, None), pick(0.31, None), pick(0.81, None)], [0, 0, 1, 2]);
        assert_eq!([pick(0.62, Some(0.6)), pick(0.63, Some(0.6)), pick(0.999, Some(0.6))], [1, 0, 0]);
        assert_eq!(pick(0.999, Some(0.4)), 1);
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        let logits = [0.0f32, 1.0];
        let sampling = Sampling::Temperature { t: 0.5, top_p: None };
        let mut rng = rng();
        let n = 20_000;
        let ones = (0..n).filter(|_| sampling.choose(&logits, &mut rng).unwrap() == 1).count();
        let expected = 1.0 / (1.0 + (-2.0f64).exp());
        assert!((ones as f64 / f64::from(n) - expected).abs() < 0.01);
    }

    #[test]
    fn hostile_settings_and_logits() {
        for t in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let sampling = Sampling::Temperature { t, top_p: None };
            assert!(matches!(sampling.validate(), Err(ModelError::Sampling { setting: "temperature", .. })));
        }
        for p in [0.0, 1.5, f64::NAN] {
            let sampling = Sampling::Temperature { t: 1.0, top_p: Some(p) };
            assert!(matches!(sampling.validate(), Err(ModelError::Sampling { setting: "top_p", .. })));
        }
        let got = Sampling::Greedy.choose(&[0.0, f32::NAN, f32::INFINITY], &mut rng());
        assert!(matches!(got, Err(ModelError::NonFinite { count: 2, first: 1, .. })));
        assert!(matches!(Sampling::Greedy.choose(&[], &mut rng()), Err(ModelError::Empty { .. })));
    }
}
