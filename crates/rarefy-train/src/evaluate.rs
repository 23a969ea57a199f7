//! Measuring a model against the entropy of the built-in corpus, or by perplexity on a text.

use crate::{ByteTokenizer, TrainError};
use rarefy_data::{Corpus, Split};
use rarefy_models::{LanguageModel, token_nll};
use serde::{Deserialize, Serialize};

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean negative log-likelihood of a token, in nats.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// The same for the generator itself: the lowest that can be expected. `None` for a text of unknown entropy.
    pub floor_nats_per_token: Option<f64>,
    /// `exp(floor_nats_per_token)`.
    pub floor_perplexity: Option<f64>,
    /// Tokens predicted.
    pub tokens: usize,
    /// Documents or windows measured.
    pub documents: usize,
    /// Documents longer than the context, left out of model and floor alike.
    pub skipped: usize,
}

impl Evaluation {
    fn new(nats: f64, floor: Option<f64>, tokens: usize, documents: usize, skipped: usize) -> Self {
        let mean = nats / tokens as f64;
        let floor = floor.map(|f| f / tokens as f64);
        Self {
            nats_per_token: mean,
            perplexity: mean.exp(),
            floor_nats_per_token: floor,
            floor_perplexity: floor.map(f64::exp),
            tokens,
            documents,
            skipped,
        }
    }
}

/// Every token of the first `count` validation documents, each predicted from the tokens before it in its document and the
/// line end before that: what the exact probability of the document is conditioned on too.
pub(crate) fn on_corpus(
    model: &dyn LanguageModel,
    tokenizer: &ByteTokenizer,
    seed: u64,
    count: u64,
    context: usize,
) -> Result<Evaluation, TrainError> {
    let corpus = Corpus::new(seed, Split::Validation);
    let (mut nats, mut floor, mut tokens, mut documents, mut skipped) = (0.0, 0.0, 0, 0, 0);
    let line_end = tokenizer.encode("\n")?;
    for document in corpus.documents(0, count) {
        let mut ids = line_end.clone();
        ids.extend(tokenizer.encode(&document.text)?);
        if ids.len() > context {
            skipped += 1;
            continue;
        }
        nats += token_nll(model, &ids)?.iter().skip(line_end.len() - 1).sum::<f64>();
        floor += document.nats;
        tokens += ids.len() - line_end.len();
        documents += 1;
    }
    if tokens == 0 {
        return Err(TrainError::NothingToMeasure { skipped, context });
    }
    Ok(Evaluation::new(nats, Some(floor), tokens, documents, skipped))
}

/// The first `count` windows of `context` tokens of a text, as [`rarefy_models::perplexity`] measures them.
pub(crate) fn on_tokens(
    model: &dyn LanguageModel,
    tokens: &[u32],
    count: u64,
    context: usize,
) -> Result<Evaluation, TrainError> {
    let windows = usize::try_from(count).unwrap_or(usize::MAX);
    let p =
        rarefy_models::perplexity(model, tokens, context.min(tokens.len()), &mut |_, _| (), Some(windows))?;
    Ok(Evaluation::new(p.nll_mean * p.tokens as f64, None, p.tokens, p.windows, 0))
}
