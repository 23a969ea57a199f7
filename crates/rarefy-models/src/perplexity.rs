//! Perplexity over a token sequence, and the negative log-likelihood below it.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::causal_lm::CausalLm;
use crate::error::{ModelError, Result};
use crate::exp::log_sum_exp;
use crate::tensors::host_vec;

/// Logits that exist at a time, in values.
const LOGITS_AT_ONCE: usize = 1 << 23;

/// Tokens that go through the blocks together when windows are short.
const TOKENS_AT_ONCE: usize = 512;

/// A model that scores tokens: the one that runs and the one that trains.
pub trait LanguageModel {
    /// Size of the vocabulary.
    fn vocab_size(&self) -> usize;
    /// Sequences of equal length to the output of the last block, `[batch, length, hidden]`.
    ///
    /// # Errors
    /// An empty or ragged batch, a token outside the vocabulary, more positions than were learned.
    fn hidden(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>>;
    /// Output of the last block to logits, `[batch, length, vocab_size]`.
    fn head(&self, hidden: Tensor<3>) -> Tensor<3>;
}

impl LanguageModel for CausalLm {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }
    fn hidden(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
        Self::hidden(self, batch)
    }
    fn head(&self, hidden: Tensor<3>) -> Tensor<3> {
        Self::head(self).logits(hidden)
    }
}

/// The outcome of [`perplexity`].
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Perplexity {
    /// Mean negative log-likelihood of a predicted token, in nats.
    pub nll_mean: f64,
    /// `exp(nll_mean)`.
    pub ppl: f64,
    /// Predicted tokens: `windows * (window - 1)`.
    pub tokens: usize,
    /// Windows measured.
    pub windows: usize,
}

/// Perplexity over non-overlapping windows of `window` tokens from the start of the text, at most `max_windows` of them.
/// In each window the tokens 2 to `window` are predicted from those before them in the same window; a rest shorter than a
/// window is dropped. No token is added at the start. `progress` is called with (windows done, windows in all).
///
/// # Errors
/// A window of less than 2 tokens or longer than the text, a token outside the vocabulary, likelihoods not finite.
pub fn perplexity(
    model: &dyn LanguageModel,
    tokens: &[u32],
    window: usize,
    progress: &mut dyn FnMut(usize, usize),
    max_windows: Option<usize>,
) -> Result<Perplexity> {
    if window < 2 || tokens.len() < window || max_windows == Some(0) {
        return Err(ModelError::Window { window, tokens: tokens.len() });
    }
    let windows: Vec<&[u32]> = tokens.chunks_exact(window).take(max_windows.unwrap_or(usize::MAX)).collect();
    let mut nll = 0.0;
    let mut done = 0;
    for batch in windows.chunks((TOKENS_AT_ONCE / window).max(1)) {
        let batch: Vec<Vec<u32>> = batch.iter().map(|w| w.to_vec()).collect();
        nll += batch_nll(model, &batch)?.iter().sum::<f64>();
        done += batch.len();
        progress(done, windows.len());
    }
    let tokens = windows.len() * (window - 1);
    let nll_mean = nll / tokens as f64;
    Ok(Perplexity { nll_mean, ppl: nll_mean.exp(), tokens, windows: windows.len() })
}

/// Negative log-likelihood in nats of each token of one sequence but the first, `[length - 1]`.
///
/// # Errors
/// As [`perplexity`].
pub fn token_nll(model: &dyn LanguageModel, tokens: &[u32]) -> Result<Vec<f64>> {
    if tokens.len() < 2 {
        return Err(ModelError::Window { window: tokens.len(), tokens: tokens.len() });
    }
    batch_nll(model, &[tokens.to_vec()])
}

/// Negative log-likelihoods of a batch of equal lengths, `[batch * (length - 1)]`.
fn batch_nll(model: &dyn LanguageModel, batch: &[Vec<u32>]) -> Result<Vec<f64>> {
    let hidden = model.hidden(batch)?;
    let [n, length, width] = hidden.dims();
    let vocab = model.vocab_size();
    let rows = hidden.narrow(1, 0, length - 1).reshape([1, n * (length - 1), width]);
    let targets: Vec<u32> = batch.iter().flat_map(|tokens| tokens[1..].iter().copied()).collect();
    let step = (LOGITS_AT_ONCE / vocab.max(1)).clamp(1, targets.len());
    let mut nll = Vec::with_capacity(targets.len());
    for (i, targets) in targets.chunks(step).enumerate() {
        let logits = model.head(rows.clone().narrow(1, i * step, targets.len()));
        let logits = host_vec(logits);
        nll.par_extend(logits.par_chunks_exact(vocab).zip(targets).map(|(row, t)| row_nll(row, *t as usize)));
    }
    if let Some(first) = nll.iter().position(|v| !v.is_finite()) {
        let count = nll.iter().filter(|v| !v.is_finite()).count();
        return Err(ModelError::NonFinite { what: "log-likelihoods", count, first });
    }
    Ok(nll)
}

/// `log Σ exp(l) - l[target]`.
fn row_nll(logits: &[f32], target: usize) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stem::check_batch;
    use crate::tensors::tensor3;
    use burn::tensor::Device;

    /// Token t predicts t + 1 (mod 4) with probability 1/2 and each other one with 1/6.
    struct Successor;

    impl LanguageModel for Successor {
        fn vocab_size(&self) -> usize {
            4
        }
        fn hidden(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
            let length = check_batch(batch, 4)?;
            let values = batch.iter().flatten().map(|t| *t as f32).collect();
            Ok(tensor3(values, [batch.len(), length, 1], &Device::flex()))
        }
        fn head(&self, hidden: Tensor<3>) -> Tensor<3> {
            let [b, l, _] = hidden.dims();
            let logits = host_vec(hidden)
                .into_iter()
                .flat_map(|t| {
                    let mut row = [(1.0f32 / 6.0).ln() + 5.0; 4];
                    row[(t as usize + 1) % 4] = 0.5f32.ln() + 5.0;
                    row
                })
                .collect();
            tensor3(logits, [b, l, 4], &Device::flex())
        }
    }

    /// 0123 0123 01: two windows of 4, each predicting 3 tokens with 1/2; the rest 01 is dropped.
    #[test]
    fn by_hand() {
        let tokens = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1];
        let mut calls = Vec::new();
        let got = perplexity(&Successor, &tokens, 4, &mut |a, b| calls.push((a, b)), None).unwrap();
        assert_eq!((got.tokens, got.windows), (6, 2));
        assert!((got.ppl - 2.0).abs() < 1e-6);
        assert_eq!(calls, [(2, 2)]);
        // 0 0: once predicted with 1/6.
        let got = perplexity(&Successor, &[0, 0, 1, 2], 2, &mut |_, _| (), Some(1)).unwrap();
        assert!((got.ppl - 6.0).abs() < 1e-5);
        assert_eq!(got.windows, 1);
    }

    #[test]
    fn hostile_windows() {
        for (window, tokens, max) in [(1, 10, None), (0, 10, None), (11, 10, None), (4, 10, Some(0))] {
            let tokens = vec![0; tokens];
            let got = perplexity(&Successor, &tokens, window, &mut |_, _| (), max);
            assert!(matches!(got, Err(ModelError::Window { .. })));
        }
        let got = perplexity(&Successor, &[0, 9, 0, 0], 4, &mut |_, _| (), None);
        assert!(matches!(got, Err(ModelError::Token { position: 1, token: 9, .. })));
    }

    #[test]
    fn a_row_of_huge_logits_does_not_overflow() {
        assert!((row_nll(&[1e30, 0.0], 0)).abs() < 1e-9);
        assert!(row_nll(&[f32::NAN, 0.0], 1).is_nan());
    }
}
