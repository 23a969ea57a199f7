//! The built-in corpus: little stories from a probabilistic grammar whose entropy is known.
//!
//! A document is one line. It introduces two people (name, role, place, a coloured belonging), then tells 3 to 7 sentences:
//!
//! * animals that do things to animals and things, with subject-verb agreement across relative clauses and intervening nouns
//!   of the other number ("The dog that the cats near the hen chase sees a bell.");
//! * people called by name, by role ("Our baker, Anna, sold ...") or by pronoun, and their belongings by colour: who is
//!   meant, and what they own, has to be recalled from the introduction;
//! * sums and differences ("Together 12 pears and 7 more make 19.");
//! * nested lists in two kinds of brackets.
//!
//! Who tends to do what to what follows fixed random tables, which a model has to learn by heart: capacity matters.
//!
//! # Why the entropy is exact
//! Every choice is written down at once as a word that no other option of that choice begins with (the grammar is LL(1) on
//! words), and words are separated by blanks and punctuation in one fixed manner. So a text determines its derivation:
//! [`Corpus::log_probability`] recovers it without searching, and the probability of the derivation *is* that of the text.
//! `-ln p` of a document, divided by its length, averages to the entropy per byte: no model can have a lower expected loss
//! on this corpus when it predicts whole documents.
//!
//! # Streams
//! Document `i` of a split is drawn from ChaCha8 keyed with the seed and the split, on stream `i`: the splits never share a
//! random stream, and any document can be made without those before it.

mod grammar;
mod lexicon;
#[cfg(test)]
mod tests;
mod voice;

use crate::DataError;
use grammar::Language;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use voice::{Reader, Writer};

/// Which of the three disjoint streams of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// For training.
    Train,
    /// For choosing settings.
    Validation,
    /// For reporting.
    Test,
}

/// One document and its exact probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// One line of ASCII text with its final `\n`.
    pub text: String,
    /// -ln of the probability of this text, in nats.
    pub nats: f64,
    /// Sum over its choices of the entropy of the choice, in nats: the same expectation as `nats`, with less scatter.
    pub entropy: f64,
    /// Number of choices made.
    pub choices: usize,
}

/// An endless, randomly accessible stream of documents.
#[derive(Debug, Clone)]
pub struct Corpus {
    language: Language,
    key: [u8; 32],
}

/// Entropy measured over some documents of a corpus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorpusFloor {
    /// Documents measured.
    pub documents: usize,
    /// Bytes of text (the text is ASCII: also characters).
    pub bytes: usize,
    /// Sum of -ln p over the documents, in nats.
    pub nats: f64,
    /// Sum of the entropies of the choices met, in nats.
    pub entropy: f64,
    /// Standard error of `nats`, from the scatter between documents.
    pub standard_error: f64,
}

impl CorpusFloor {
    /// Nats per byte of text.
    #[must_use]
    pub fn per_byte(&self) -> f64 {
        self.nats / self.bytes as f64
    }

    /// Nats per token when a tokenizer cuts these documents into `tokens` tokens; its exponential is the lowest perplexity
    /// that can be expected of a model that sees each document from its beginning.
    #[must_use]
    pub fn per_token(&self, tokens: usize) -> f64 {
        self.nats / tokens as f64
    }
}

impl Corpus {
    /// The stream of documents of `split` for `seed`.
    #[must_use]
    pub fn new(seed: u64, split: Split) -> Self {
        let mut key = *b"rarefy corpus 1                 ";
        key[16..24].copy_from_slice(&seed.to_le_bytes());
        key[24] = match split {
            Split::Train => b't',
            Split::Validation => b'v',
            Split::Test => b'e',
        };
        Self { language: Language::new(), key }
    }

    /// Document number `index`.
    #[must_use]
    pub fn document(&self, index: u64) -> Document {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        rng.set_stream(index);
        let mut writer = Writer::new(&mut rng);
        self.language.document(&mut writer).expect("writing never refuses a word");
        let (text, tally) = writer.finish();
        Document { text, nats: tally.nats, entropy: tally.entropy, choices: tally.choices }
    }

    /// The documents `first..first + count`, one after the other.
    pub fn documents(&self, first: u64, count: u64) -> impl Iterator<Item = Document> + '_ {
        (first..first.saturating_add(count)).map(|i| self.document(i))
    }

    /// The text of the documents `first..first + count`, joined.
    #[must_use]
    pub fn text(&self, first: u64, count: u64) -> String {
        self.documents(first, count).map(|d| d.text).collect()
    }

    /// Entropy over the documents `first..first + count`.
    #[must_use]
    pub fn floor(&self, first: u64, count: u64) -> CorpusFloor {
        let (mut n, mut bytes, mut nats, mut entropy, mut squares) = (0usize, 0, 0.0, 0.0, 0.0);
        for d in self.documents(first, count) {
            n += 1;
            bytes += d.text.len();
            nats += d.nats;
            entropy += d.entropy;
            squares += d.nats * d.nats;
        }
        let mean = nats / n.max(1) as f64;
        let variance = (squares / n.max(1) as f64 - mean * mean).max(0.0);
        CorpusFloor { documents: n, bytes, nats, entropy, standard_error: (variance * n as f64).sqrt() }
    }

    /// Recovers the derivation of a text of zero or more whole documents: one [`Document`] for each line.
    ///
    /// # Errors
    /// [`DataError::NotInLanguage`] with the first byte where the text leaves the language.
    pub fn log_probability(&self, text: &str) -> Result<Vec<Document>, DataError> {
        let (mut at, mut documents) = (0, Vec::new());
        while at < text.len() {
            let mut reader = Reader::new(text, at);
            self.language.document(&mut reader)?;
            let (end, tally) = reader.finish();
            documents.push(Document {
                text: text[at..end].to_owned(),
                nats: tally.nats,
                entropy: tally.entropy,
                choices: tally.choices,
            });
            at = end;
        }
        Ok(documents)
    }
}
