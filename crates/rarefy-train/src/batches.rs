//! Training windows: an endless stream of the built-in corpus, or random windows of a text.

use crate::{ByteTokenizer, Recipe, TrainError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rarefy_data::{Corpus, DEFAULT_TEXT_CAP, Split, read_text};
use serde::{Deserialize, Serialize};

/// Windows of one step: `inputs[b][t]` is followed by `targets[b][t]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[batch, context]`.
    pub inputs: Vec<Vec<u32>>,
    /// `[batch, context]`.
    pub targets: Vec<Vec<u32>>,
}

/// Where in its data a run stands; saved with the training state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Batches drawn so far.
    pub batches: u64,
    /// Built-in corpus: next document.
    pub document: u64,
    /// Built-in corpus: tokens of the documents before that are still to be used.
    pub pending: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    /// Documents one after the other, each used once; memory does not grow with the length of the run.
    Corpus(Box<Corpus>),
    /// Random windows; those of one step depend on the seed and the step only.
    Text(Vec<u32>),
}

/// The stream of batches of a run.
#[derive(Debug)]
pub struct Batches {
    source: Source,
    seed: u64,
    batch: usize,
    context: usize,
    position: Position,
}

/// What a run reads: the training text where there is one, what is measured on, and the tokenizer.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) train: Option<String>,
    pub(crate) validation: Option<String>,
    pub(crate) tokenizer: ByteTokenizer,
}

impl Material {
    /// Reads the texts the recipe names and reads or trains the tokenizer.
    pub(crate) fn load(recipe: &Recipe) -> Result<Self, TrainError> {
        let read =
            |p: &Option<std::path::PathBuf>| p.as_ref().map(|p| read_text(p, DEFAULT_TEXT_CAP)).transpose();
        let (mut train, mut validation) = (read(&recipe.data.text)?, read(&recipe.data.validation)?);
        if let (Some(text), None) = (&mut train, &validation) {
            validation = Some(text.split_off(floor_boundary(text, text.len() - text.len() / 20)));
        }
        let tokenizer = match &recipe.tokenizer.file {
            Some(file) => ByteTokenizer::from_file(file)?,
            None => crate::train_tokenizer(&sample(recipe, train.as_deref()), recipe.tokenizer.vocab_size)?,
        };
        Ok(Self { train, validation, tokenizer })
    }
}

/// The texts the tokenizer is trained on.
fn sample(recipe: &Recipe, text: Option<&str>) -> Vec<String> {
    let limit = recipe.tokenizer.sample_bytes;
    match text {
        Some(text) => {
            let text = &text[..floor_boundary(text, limit.min(text.len()))];
            text.split_inclusive('\n').map(str::to_owned).collect()
        }
        None => {
            let (corpus, mut bytes) = (Corpus::new(recipe.seed, Split::Train), 0);
            let documents = (0..).map(|i| corpus.document(i).text);
            let enough = |d: &String| {
                let before = bytes;
                bytes += d.len();
                before < limit
            };
            documents.take_while(enough).collect()
        }
    }
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Tokens of a long text, cut at line ends so that no encoding of the whole text is held at once.
pub(crate) fn tokens_of(text: &str, tokenizer: &ByteTokenizer) -> Result<Vec<u32>, TrainError> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let from = floor_boundary(rest, rest.len().min(1 << 16));
        let cut = rest[from..].find('\n').map_or(rest.len(), |n| from + n + 1);
        tokens.extend(tokenizer.encode(&rest[..cut])?);
        rest = &rest[cut..];
    }
    Ok(tokens)
}

impl Batches {
    /// The stream of `recipe`, over `text` or, without one, over the training split of the built-in corpus.
    ///
    /// # Errors
    /// [`rarefy_data::DataError::TooFewTokens`] when the text has less than one window; tokenizer errors.
    pub fn new(recipe: &Recipe, text: Option<&str>, tokenizer: &ByteTokenizer) -> Result<Self, TrainError> {
        let (batch, context, seed) = (recipe.data.batch, recipe.data.context, recipe.seed);
        let source = match text {
            None => Source::Corpus(Box::new(Corpus::new(seed, Split::Train))),
            Some(text) => {
                let tokens = tokens_of(text, tokenizer)?;
                if tokens.len() <= context {
                    return Err(rarefy_data::DataError::TooFewTokens {
                        length: context + 1,
                        found: tokens.len(),
                    }
                    .into());
                }
                Source::Text(tokens)
            }
        };
        Ok(Self { source, seed, batch, context, position: Position::default() })
    }

    /// Where the stream stands.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Continues from a saved position.
    pub fn seek(&mut self, position: Position) {
        self.position = position;
    }

    /// Batches after which as many tokens were drawn as the text has; `None` for the endless corpus.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        match &self.source {
            Source::Corpus(_) => None,
            Source::Text(tokens) => Some((tokens.len() as u64).div_ceil((self.batch * self.context) as u64)),
        }
    }

    /// The next batch.
    ///
    /// # Errors
    /// Tokenizer errors.
    pub fn next_batch(&mut self, tokenizer: &ByteTokenizer) -> Result<Batch, TrainError> {
        let (length, position) = (self.context + 1, &mut self.position);
        let mut windows: Vec<Vec<u32>> = Vec::with_capacity(self.batch);
        match &self.source {
            Source::Text(tokens) => {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(position.batches);
                for _ in 0..self.batch {
                    let start = rng.random_range(0..=tokens.len() - length);
                    windows.push(tokens[start..start + length].to_vec());
                }
            }
            Source::Corpus(corpus) => {
                for row in 0..self.batch as u64 {
                    // Even rows begin with a document, so that everything in it can be recalled; odd rows go on where the
                    // row before ended, so that a text cut anywhere is no surprise either.
                    if (position.batches * self.batch as u64 + row).is_multiple_of(2) {
                        position.pending.clear();
                    }
                    while position.pending.len() < length {
                        if position.pending.is_empty() {
                            position.pending.extend(tokenizer.encode("\n")?);
                        }
                        position.pending.extend(tokenizer.encode(&corpus.document(position.document).text)?);
                        position.document += 1;
                    }
                    windows.push(position.pending[..length].to_vec());
                    position.pending.drain(..self.context);
                }
            }
        }
        position.batches += 1;
        let targets = windows.iter().map(|w| w[1..].to_vec()).collect();
        windows.iter_mut().for_each(|w| w.truncate(self.context));
        Ok(Batch { inputs: windows, targets })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recipe() -> Recipe {
        let mut r = Recipe::default();
        (r.data.batch, r.data.context, r.tokenizer.vocab_size, r.tokenizer.sample_bytes) =
            (3, 20, 300, 20_000);
        r
    }

    #[test]
    fn even_rows_begin_a_document_and_odd_rows_go_on() {
        let r = recipe();
        let m = Material::load(&r).unwrap();
        let mut b = Batches::new(&r, None, &m.tokenizer).unwrap();
        let text = Corpus::new(r.seed, Split::Train).text(0, 40);
        let mut rows = Vec::new();
        for _ in 0..4 {
            let batch = b.next_batch(&m.tokenizer).unwrap();
            for (i, t) in batch.inputs.iter().zip(&batch.targets) {
                assert_eq!(i[1..], t[..19]);
                rows.push((m.tokenizer.decode(i).unwrap(), t[19]));
            }
        }
        for pair in rows.chunks(2) {
            assert!(pair[0].0.starts_with("\nHere "), "{}", pair[0].0);
            let both = format!("{}{}", pair[0].0, pair[1].0);
            assert!(text.contains(both.trim_start_matches('\n')), "{both}");
            // The target after an even row is the first token of the odd one.
            assert_eq!(m.tokenizer.encode(&pair[1].0).unwrap()[0], pair[0].1);
        }
        assert!(b.position().pending.len() < 1000);
        assert_eq!(b.epoch(), None);
    }

    #[test]
    fn seeking_gives_the_same_batches() {
        let text = "the quick brown fox jumps over the lazy dog\n".repeat(40);
        for text in [None, Some(text.as_str())] {
            let r = recipe();
            let m = Material::load(&r).unwrap();
            let mut a = Batches::new(&r, text, &m.tokenizer).unwrap();
            a.next_batch(&m.tokenizer).unwrap();
            let at = a.position().clone();
            let second = a.next_batch(&m.tokenizer).unwrap();
            let mut b = Batches::new(&r, text, &m.tokenizer).unwrap();
            b.seek(at);
            assert_eq!(b.next_batch(&m.tokenizer).unwrap(), second);
        }
    }

    #[test]
    fn a_text_shorter_than_a_window_is_refused() {
        let r = recipe();
        let m = Material::load(&r).unwrap();
        let e = Batches::new(&r, Some("hi"), &m.tokenizer).unwrap_err();
        assert!(
            matches!(e, TrainError::Data(rarefy_data::DataError::TooFewTokens { length: 21, .. })),
            "{e}"
        );
    }

    #[test]
    fn long_texts_are_cut_at_line_ends() {
        let r = recipe();
        let m = Material::load(&r).unwrap();
        let text = Corpus::new(9, Split::Test).text(0, 800);
        assert!(text.len() > 2 << 16);
        assert_eq!(tokens_of(&text, &m.tokenizer).unwrap(), m.tokenizer.encode(&text).unwrap());
        let unbroken = "é".repeat(70_000);
        assert_eq!(m.tokenizer.decode(&tokens_of(&unbroken, &m.tokenizer).unwrap()).unwrap(), unbroken);
    }
}
