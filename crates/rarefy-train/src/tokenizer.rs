//! Byte-level BPE tokenizers (Sennrich et al. 2016; the byte alphabet of GPT-2): any text round-trips.

use crate::TrainError;
use std::collections::HashSet;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A trained tokenizer with its file.
#[derive(Debug, Clone)]
pub struct ByteTokenizer {
    inner: tokenizers::Tokenizer,
    json: String,
}

fn failed(e: impl std::fmt::Display) -> TrainError {
    TrainError::Tokenizer(e.to_string())
}

/// Learns the merges of a byte-level BPE with `vocab_size` tokens (all 256 bytes and the most frequent merges) from `texts`.
///
/// The same texts give the same bytes of `tokenizer.json`. Fewer tokens come out when the texts offer too few merges.
///
/// # Errors
/// [`TrainError::Tokenizer`] when training fails or `vocab_size` is below 256.
pub fn train_tokenizer(texts: &[String], vocab_size: usize) -> Result<ByteTokenizer, TrainError> {
    if vocab_size < 256 {
        return Err(failed(format!(
            "vocabulary of {vocab_size} tokens is too small: the 256 bytes need 256"
        )));
    }
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    inner.train(&mut TrainerWrapper::from(trainer), texts.iter()).map_err(failed)?;
    ByteTokenizer::new(inner)
}

impl ByteTokenizer {
    fn new(inner: tokenizers::Tokenizer) -> Result<Self, TrainError> {
        let json = inner.to_string(true).map_err(failed)?;
        Ok(Self { inner, json })
    }

    /// Reads a `tokenizer.json` (of any kind the `tokenizers` crate reads).
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Tokenizer`].
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        let json = std::fs::read_to_string(path).map_err(TrainError::io(path, "read"))?;
        Self::from_json(&json)
    }

    /// From the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`].
    pub fn from_json(json: &str) -> Result<Self, TrainError> {
        let inner: tokenizers::Tokenizer = json.parse().map_err(failed)?;
        Ok(Self { inner, json: json.to_owned() })
    }

    /// The content of `tokenizer.json`.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Tokens of a text; no special tokens are added.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TrainError> {
        self.inner.decode(tokens, false).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use rarefy_data::{Corpus, Split};
    use std::sync::OnceLock;

    fn small() -> &'static ByteTokenizer {
        static T: OnceLock<ByteTokenizer> = OnceLock::new();
        T.get_or_init(|| {
            let texts: Vec<String> = Corpus::new(1, Split::Train).documents(0, 200).map(|d| d.text).collect();
            train_tokenizer(&texts, 400).unwrap()
        })
    }

    #[test]
    fn same_texts_same_bytes_and_file_round_trip() {
        let texts: Vec<String> = Corpus::new(1, Split::Train).documents(0, 200).map(|d| d.text).collect();
        let again = train_tokenizer(&texts, 400).unwrap();
        assert_eq!(again.json(), small().json());
        assert_eq!(again.vocab_size(), 400);
        let read = ByteTokenizer::from_json(again.json()).unwrap();
        assert_eq!(read.encode(&texts[3]).unwrap(), again.encode(&texts[3]).unwrap());
    }

    #[test]
    fn line_ends_stand_alone() {
        // Then the tokens of joined documents are the joined tokens of the documents.
        let d: Vec<String> = Corpus::new(1, Split::Train).documents(300, 5).map(|d| d.text).collect();
        let joined = small().encode(&d.concat()).unwrap();
        let each: Vec<u32> = d.iter().flat_map(|t| small().encode(t).unwrap()).collect();
        assert_eq!(joined, each);
    }

    #[test]
    fn too_small_and_broken_are_refused() {
        assert!(train_tokenizer(&["a".to_owned()], 255).is_err());
        assert!(ByteTokenizer::from_json("{}").is_err());
    }

    proptest! {
        #[test]
        fn any_text_round_trips(text in "\\PC*|[ \\n\\t\\r\u{0}-\u{ff}]*") {
            let tokens = small().encode(&text).unwrap();
            prop_assert!(tokens.iter().all(|&t| t < 400));
            prop_assert_eq!(small().decode(&tokens).unwrap(), text);
        }
    }
}
