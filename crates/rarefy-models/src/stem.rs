//! What stands before the blocks (embeddings, learned positions) and after them (last norm, vocabulary product).

use burn::tensor::{Device, Tensor};
use rarefy_checkpoint::{Architecture, Checkpoint, ModelConfig};

use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::load::{Loader, Table};
use crate::norm::{LayerNorm, RmsNorm};
use crate::opt::{POSITION_OFFSET, extra};
use crate::tensors::tensor3;

/// Tokens to the input of block 0.
#[derive(Debug)]
pub struct Stem {
    table: Table,
    vocab_size: usize,
    width: usize,
    hidden: usize,
    /// OPT: learned positions `[POSITION_OFFSET + max_positions, hidden]`.
    positions: Option<Vec<f32>>,
    /// OPT: from the width of the embeddings to that of the blocks.
    project_in: Option<Linear>,
    device: Device,
}

/// Output of the last block to logits.
#[derive(Debug)]
pub struct Head {
    norm: Norm,
    /// OPT: from the width of the blocks to that of the embeddings.
    project_out: Option<Linear>,
    lm_head: Linear,
    /// Whether `lm_head` is the memory of the stem's table.
    shared: bool,
}

#[derive(Debug)]
enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
    None,
}

/// Width of the embeddings.
fn embedding_width(config: &ModelConfig) -> Result<usize> {
    Ok(match config.architecture {
        Architecture::Opt => extra(config)?.word_embed_proj_dim,
        _ => config.hidden_size,
    })
}

fn table_name(config: &ModelConfig) -> &'static str {
    match config.architecture {
        Architecture::Opt => "model.decoder.embed_tokens.weight",
        _ => "model.embed_tokens.weight",
    }
}

/// Every sequence non-empty, of one length, of tokens inside the vocabulary; returns that length.
pub(crate) fn check_batch(batch: &[Vec<u32>], vocab_size: usize) -> Result<usize> {
    let length = batch.first().map_or(0, Vec::len);
    if length == 0 {
        return Err(ModelError::Empty { what: "batch of token sequences" });
    }
    for (sequence, tokens) in batch.iter().enumerate() {
        if tokens.len() != length {
            return Err(ModelError::Ragged { index: sequence, expected: length, found: tokens.len() });
        }
        if let Some(position) = tokens.iter().position(|t| *t as usize >= vocab_size) {
            return Err(ModelError::Token { sequence, position, token: tokens[position], vocab_size });
        }
    }
    Ok(length)
}

impl Stem {
    /// Reads the embeddings in 32 bits.
    ///
    /// # Errors
    /// A tensor missing or of another shape or with non-finite values.
    pub fn load(ckpt: &Checkpoint, device: &Device) -> Result<Self> {
        Self::load_with(&Loader::dense(ckpt, device))
    }

    pub(crate) fn load_with(loader: &Loader<'_>) -> Result<Self> {
        let c = loader.config();
        let width = embedding_width(c)?;
        let (positions, project_in) = match c.architecture {
            Architecture::Opt => {
                let rows = c.max_positions.checked_add(POSITION_OFFSET).ok_or(ModelError::Unsupported {
                    field: "max_position_embeddings",
                    value: c.max_positions.to_string(),
                    remedy: "the number is absurd; repair config.json",
                })?;
                let positions =
                    loader.checked("model.decoder.embed_positions.weight", &[rows, c.hidden_size])?;
                let project = match width == c.hidden_size {
                    true => None,
                    false => Some(loader.linear("model.decoder.project_in", c.hidden_size, width, false)?),
                };
                (Some(positions), project)
            }
            _ => (None, None),
        };
        Ok(Self {
            table: loader.table(table_name(c), c.vocab_size, width)?,
            vocab_size: c.vocab_size,
            width,
            hidden: c.hidden_size,
            positions,
            project_in,
            device: loader.device().clone(),
        })
    }

    /// A batch of sequences of equal length to `[batch, length, hidden]`, positions from 0.
    ///
    /// # Errors
    /// An empty or ragged batch, a token outside the vocabulary, more positions than were learned (OPT).
    pub fn forward(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
        self.forward_from(batch, 0)
    }

    pub(crate) fn forward_from(&self, batch: &[Vec<u32>], start: usize) -> Result<Tensor<3>> {
        let length = check_batch(batch, self.vocab_size)?;
        let mut values = Vec::with_capacity(batch.len() * length * self.width);
        for token in batch.iter().flatten() {
            self.table.append_row(*token as usize, &mut values);
        }
        let x = tensor3(values, [batch.len(), length, self.width], &self.device);
        let x = match &self.project_in {
            Some(project) => project.forward(x),
            None => x,
        };
        let Some(positions) = &self.positions else { return Ok(x) };
        let available = positions.len() / self.hidden - POSITION_OFFSET;
        if start + length > available {
            return Err(ModelError::Positions { needed: start + length, available });
        }
        let rows = (start + POSITION_OFFSET) * self.hidden..(start + length + POSITION_OFFSET) * self.hidden;
        Ok(x + tensor3(positions[rows].to_vec(), [1, length, self.hidden], &self.device))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.table.bytes()
            + self.positions.as_ref().map_or(0, |p| p.len() * 4)
            + self.project_in.as_ref().map_or(0, Linear::bytes)
    }
}

impl Head {
    /// Reads last norm and vocabulary product in 32 bits.
    ///
    /// # Errors
    /// A tensor missing or of another shape or with non-finite values.
    pub fn load(ckpt: &Checkpoint, device: &Device) -> Result<Self> {
        Self::load_with(&Loader::dense(ckpt, device), None)
    }

    /// With tied embeddings the memory of `stem` is used, if given.
    pub(crate) fn load_with(loader: &Loader<'_>, stem: Option<&Stem>) -> Result<Self> {
        let c = loader.config();
        let width = embedding_width(c)?;
        let (norm, project_out) = match c.architecture {
            Architecture::Opt => {
                let norm = match extra(c)?.has_final_norm {
                    true => Norm::Layer(loader.layer_norm(
                        "model.decoder.final_layer_norm",
                        c.hidden_size,
                        c.norm_eps,
                    )?),
                    false => Norm::None,
                };
                let project = match width == c.hidden_size {
                    true => None,
                    false => Some(loader.linear("model.decoder.project_out", width, c.hidden_size, false)?),
                };
                (norm, project)
            }
            _ => {
                let gamma = loader.vector("model.norm.weight", c.hidden_size)?;
                (Norm::Rms(RmsNorm::new(gamma, c.norm_eps, loader.device())), None)
            }
        };
        let lm_head = match (c.tie_embeddings, stem) {
            (true, Some(stem)) => stem.table.as_linear(loader.device()),
            (true, None) => loader.table(table_name(c), c.vocab_size, width)?.as_linear(loader.device()),
            (false, _) => loader.linear("lm_head", c.vocab_size, width, false)?,
        };
        let shared = c.tie_embeddings && stem.is_some();
        Ok(Self { norm, project_out, lm_head, shared })
    }

    /// `[batch, length, hidden]` to logits `[batch, length, vocab_size]`.
    #[must_use]
    pub fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        let x = match &self.norm {
            Norm::Rms(norm) => norm.forward(x),
            Norm::Layer(norm) => norm.forward(x),
            Norm::None => x,
        };
        let x = match &self.project_out {
            Some(project) => project.forward(x),
            None => x,
        };
        self.lm_head.forward(x)
    }

    /// The vocabulary product.
    #[must_use]
    pub fn lm_head(&self) -> &Linear {
        &self.lm_head
    }

    /// Bytes beyond those of the stem.
    pub(crate) fn bytes(&self) -> usize {
        let norm = match &self.norm {
            Norm::Rms(n) => n.gamma.dims()[0] * 4,
            Norm::Layer(n) => n.gamma.dims()[0] * 8,
            Norm::None => 0,
        };
        let head = if self.shared { 0 } else { self.lm_head.bytes() };
        norm + head + self.project_out.as_ref().map_or(0, Linear::bytes)
    }
}
