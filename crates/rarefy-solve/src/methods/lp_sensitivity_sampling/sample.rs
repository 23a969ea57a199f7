//! Keeping rows independently, with probabilities in proportion to scores.

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_setting};
use crate::{Design, SolveError};

/// Rows kept, and what each stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Rows kept, in rising order.
    pub rows: Vec<usize>,
    /// `1/qᵢ` of each: the factor of `|·|^p`. A row itself is multiplied by `qᵢ^{−1/p}`, not by `qᵢ^{−1/2}`.
    pub weights: Vec<f64>,
    /// `Σqᵢ` of the last round: the expected number of rows.
    pub expected: f64,
    /// Sum of the scores that were sampled by: 𝔖 for sensitivities, the rank for leverage and Lewis weights.
    pub total: f64,
}

impl Sample {
    /// `SA`: the rows kept, multiplied by `q^{−1/p}`.
    #[must_use]
    pub fn scaled(&self, a: &Design, p: f64) -> Design {
        let factor: Vec<f64> = self.weights.iter().map(|w| w.powf(1.0 / p)).collect();
        a.select_rows(&self.rows).scale_rows(&factor)
    }
}

/// `α` with `Σ min(1, sᵢ/α) = m`; 0 when at most `m` scores are above 0, which are then all kept.
fn threshold(mut positive: Vec<f64>, m: f64) -> f64 {
    if positive.len() as f64 <= m {
        return 0.0;
    }
    positive.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut tail = vec![0.0; positive.len() + 1];
    for (i, s) in positive.iter().enumerate().rev() {
        tail[i] = tail[i + 1] + s;
    }
    // The first k rows are certain. Σ then is k + tail/α.
    for (k, s) in positive.iter().enumerate() {
        let alpha = tail[k] / (m - k as f64);
        if k as f64 + 1.0 > m || *s <= alpha {
            return alpha;
        }
    }
    0.0
}

/// `qᵢ = min(1, sᵢ/α)` with `Σqᵢ = m`; every row whose score is above 0 when there are at most `m` of them. Rows of
/// score 0 are never kept.
///
/// # Errors
/// [`SolveError::NonFinite`], [`SolveError::Invalid`] for a negative score, [`SolveError::Setting`] for `m = 0`.
pub fn probabilities(scores: &[f64], m: usize) -> Result<Vec<f64>, SolveError> {
    check_setting(m > 0, "rows", m, "at least 1")?;
    check_finite("scores", scores)?;
    if let Some(at) = scores.iter().position(|s| *s < 0.0) {
        return Err(SolveError::invalid(
            "scores",
            "no negative score",
            format!("{} at index {at}", scores[at]),
            "take absolute values or clip",
        ));
    }
    let alpha = threshold(scores.iter().copied().filter(|s| *s > 0.0).collect(), m as f64);
    Ok(scores.iter().map(|s| if *s <= 0.0 { 0.0 } else { (s / alpha).min(1.0) }).collect())
}

/// Keeps row `i` with probability `qᵢ`, independently: the number of rows is random with mean `m` and variance
/// `Σq(1 − q) ≤ m`. Drawing exactly `m` rows with replacement would have another variance and repeat heavy rows.
///
/// # Errors
/// As [`probabilities`].
pub fn sample(scores: &[f64], m: usize, seed: u64) -> Result<Sample, SolveError> {
    let q = probabilities(scores, m)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut rows, mut weights) = (vec![], vec![]);
    for (i, q) in q.iter().enumerate() {
        let u: f64 = rng.random();
        if u < *q {
            rows.push(i);
            weights.push(1.0 / q);
        }
    }
    Ok(Sample { rows, weights, expected: q.iter().sum(), total: scores.iter().sum() })
}

/// [`sample`] for scores that arrive block by block, once: the same rows and weights, with room for about `m` rows.
///
/// A row is kept while `u < s/α`, and α only grows with the rows read, so that a row once dropped would never have come
/// back; certain rows are among those kept, so that α is known exactly at any time.
///
/// ```
/// use rarefy_solve::methods::lp_sensitivity_sampling::{Sampler, sample};
/// let scores: Vec<f64> = (0..1000).map(|i| 1.0 / (1.0 + f64::from(i % 37))).collect();
/// let mut sampler = Sampler::new(50, 7)?;
/// scores.chunks(64).try_for_each(|block| sampler.push(block).map(drop))?;
/// let (one, all) = (sampler.finish(), sample(&scores, 50, 7)?);
/// assert_eq!(one.rows, all.rows);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    m: usize,
    rng: ChaCha8Rng,
    read: usize,
    total: f64,
    positive: usize,
    alpha: f64,
    /// Row, score, `u`.
    kept: Vec<(usize, f64, f64)>,
}

impl Sampler {
    /// Nothing read yet.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for `m = 0`.
    pub fn new(m: usize, seed: u64) -> Result<Self, SolveError> {
        check_setting(m > 0, "rows", m, "at least 1")?;
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self { m, rng, read: 0, total: 0.0, positive: 0, alpha: 0.0, kept: vec![] })
    }

    /// The scores of the next rows. Returns the rows kept so far: those that the caller need not remember any more are
    /// missing.
    ///
    /// # Errors
    /// [`SolveError::NonFinite`], [`SolveError::Invalid`] for a negative score; the block is then not counted in.
    pub fn push(&mut self, scores: &[f64]) -> Result<Vec<usize>, SolveError> {
        if !scores.is_empty() {
            probabilities(scores, 1)?;
        }
        for s in scores {
            let u: f64 = self.rng.random();
            if *s > 0.0 {
                self.total += s;
                self.positive += 1;
                if self.alpha <= 0.0 || u < s / self.alpha {
                    self.kept.push((self.read, *s, u));
                }
            }
            self.read += 1;
        }
        self.shrink();
        Ok(self.kept.iter().map(|k| k.0).collect())
    }

    fn shrink(&mut self) {
        if self.positive <= self.m {
            return;
        }
        let mut scores: Vec<f64> = self.kept.iter().map(|k| k.1).collect();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let (m, mut tail) = (self.m as f64, self.total);
        let mut alpha = tail / m;
        for (k, s) in scores.iter().enumerate() {
            alpha = tail / (m - k as f64);
            if k as f64 + 1.0 > m || *s <= alpha {
                break;
            }
            tail = (tail - s).max(0.0);
        }
        self.alpha = alpha;
        self.kept.retain(|(_, s, u)| *u < s / alpha);
    }

    /// The sample of all rows read.
    #[must_use]
    pub fn finish(self) -> Sample {
        let q = |s: f64| if self.alpha <= 0.0 { 1.0 } else { (s / self.alpha).min(1.0) };
        Sample {
            rows: self.kept.iter().map(|k| k.0).collect(),
            weights: self.kept.iter().map(|k| 1.0 / q(k.1)).collect(),
            expected: self.positive.min(self.m) as f64,
            total: self.total,
        }
    }
}

/// A second round: `next` keeps some of the rows of `first`.
pub(super) fn compose(first: &Sample, next: &Sample) -> Result<Sample, SolveError> {
    check_dimension("weights", first.rows.len(), "rows kept", first.weights.len())?;
    Ok(Sample {
        rows: next.rows.iter().map(|i| first.rows[*i]).collect(),
        weights: next.rows.iter().zip(&next.weights).map(|(i, w)| first.weights[*i] * w).collect(),
        expected: next.expected,
        total: next.total,
    })
}
