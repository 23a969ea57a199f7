//! Text to token ids and back, from tokenizer.json.

use crate::config::ModelConfig;
use crate::error::{CheckpointError, Result};
use crate::json;
use std::path::{Path, PathBuf};

/// Largest tokenizer.json accepted, in bytes.
const MAX_BYTES: u64 = 128 << 20;

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// [`MissingFile`](CheckpointError::MissingFile), [`Tokenizer`](CheckpointError::Tokenizer).
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_file(&dir.join("tokenizer.json"))
    }

    /// Reads a file in the form of tokenizer.json.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_file(path: &Path) -> Result<Self> {
        let bytes = json::read_capped(
            path,
            MAX_BYTES,
            "use the tokenizer.json that came with the model, or pass token ids",
        )?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| CheckpointError::Tokenizer { path: path.into(), reason: e.to_string() })?;
        Ok(Self { path: path.into(), inner })
    }

    /// Token ids of `text`, without the special tokens that the file would add around it.
    ///
    /// # Errors
    /// [`Tokenizer`](CheckpointError::Tokenizer) when the vocabulary cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_as(text, false)
    }

    /// Token ids of `text`, with the special tokens that the file adds around it (often the beginning of text).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_as(text, true)
    }

    fn encode_as(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.error(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; special tokens are left out.
    ///
    /// # Errors
    /// [`Tokenizer`](CheckpointError::Tokenizer) when the file's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| self.error(&e))
    }

    fn error(&self, e: &tokenizers::Error) -> CheckpointError {
        CheckpointError::Tokenizer { path: self.path.clone(), reason: e.to_string() }
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token, by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Checks that the model's embedding has a row for every token.
    ///
    /// # Errors
    /// [`TokenizerDoesNotFit`](CheckpointError::TokenizerDoesNotFit).
    pub fn fits(&self, config: &ModelConfig) -> Result<()> {
        let ids = self.inner.get_vocab(true);
        let largest = ids.values().copied().max().unwrap_or(0);
        if largest as usize >= config.vocab_size {
            return Err(CheckpointError::TokenizerDoesNotFit {
                path: self.path.clone(),
                largest,
                vocab_size: config.vocab_size,
            });
        }
        Ok(())
    }
}
