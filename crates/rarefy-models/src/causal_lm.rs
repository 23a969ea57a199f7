//! A whole model to run: every linear weight in a kernel, in the number type and format of the folder.

use burn::tensor::{Device, Tensor};
use rarefy_checkpoint::{Checkpoint, ModelConfig};

use crate::block::Block;
use crate::error::{ModelError, Result};
use crate::kv_cache::KvCache;
use crate::linear::Linear;
use crate::load::{Loader, PackedPolicy};
use crate::sparse::{Realised, Rules, SparseFiles};
use crate::stem::{Head, Stem};
use crate::tensors::host_vec;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the dense products of many rows run.
    pub device: Device,
    /// How packed weights run.
    pub packed: PackedPolicy,
    /// What is left out while the model runs.
    pub rules: Rules,
}

impl LoadOptions {
    /// The defaults, with the rules that the folder itself brings.
    ///
    /// # Errors
    /// A file of rules that is damaged or of another model.
    pub fn of_folder(ckpt: &Checkpoint) -> Result<Self> {
        Ok(Self { rules: SparseFiles::open(ckpt.dir(), ckpt.config())?.rules(), ..Self::default() })
    }
}

impl Default for LoadOptions {
    /// The processor; packed weights as stored; nothing is left out.
    fn default() -> Self {
        Self { device: Device::flex(), packed: PackedPolicy::AsStored, rules: Rules::default() }
    }
}

/// A causal language model that predicts the next token.
#[derive(Debug)]
pub struct CausalLm {
    config: ModelConfig,
    stem: Stem,
    blocks: Vec<Block>,
    head: Head,
}

impl CausalLm {
    /// Reads the whole model. Tensors are read one after another and the mapped pages released after each block, so the
    /// memory in use at any time is the model as it runs plus one block of the file.
    ///
    /// # Errors
    /// A tensor missing, of another shape or with non-finite values; an unsupported configuration; rules that the model cannot follow.
    pub fn load(ckpt: &Checkpoint, options: LoadOptions) -> Result<Self> {
        let loader = Loader::run(ckpt, &options.device, options.packed, &options.rules);
        let config = ckpt.config().clone();
        options.rules.check(&config)?;
        let stem = Stem::load_with(&loader)?;
        let mut blocks = Vec::new();
        for index in 0..config.n_layers {
            blocks.push(Block::load_with(&loader, index)?);
            ckpt.release_pages();
        }
        let head = Head::load_with(&loader, Some(&stem))?;
        ckpt.release_pages();
        Ok(Self { config, stem, blocks, head })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sequences of equal length to logits `[batch, length, vocab_size]`.
    ///
    /// # Errors
    /// An empty or ragged batch, a token outside the vocabulary, more positions than were learned (OPT).
    pub fn forward(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
        Ok(self.head.logits(self.hidden(batch)?))
    }

    /// Sequences of equal length to the output of the last block, `[batch, length, hidden]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn hidden(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
        let x = self.stem.forward(batch)?;
        Ok(self.blocks.iter().fold(x, |x, block| block.forward(x, &mut ())))
    }

    /// An empty cache for this model.
    #[must_use]
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.blocks.len())
    }

    /// Appends `tokens` to the sequence in `cache` and returns the logits after the last one, `[vocab_size]`. Rotary models
    /// also take more positions than `max_positions`, like the reference; what they then predict is another question.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, more positions than were learned (OPT), a cache of another model.
    pub fn decode(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Vec<f32>> {
        if cache.n_layers() != self.blocks.len() {
            return Err(ModelError::Cache { expected: self.blocks.len(), found: cache.n_layers() });
        }
        let mut x = self.stem.forward_from(&[tokens.to_vec()], cache.len())?;
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.run(x, &mut (), Some(cache.layer_mut(index)));
        }
        let last = x.narrow(1, tokens.len() - 1, 1);
        Ok(host_vec(self.head.logits(last)))
    }

    /// Bytes of memory that all parameters occupy; memory that two layers share counts once.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.stem.bytes() + self.blocks.iter().map(Block::bytes).sum::<usize>() + self.head.bytes()
    }

    /// Every linear layer of the blocks and the vocabulary product, by tensor name without `.weight`.
    #[must_use]
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let mut all = Vec::new();
        for block in &self.blocks {
            for (spec, (_, linear)) in block.linears().into_iter().zip(block.named_linears()) {
                let name = spec.tensor.strip_suffix(".weight").unwrap_or(&spec.tensor).to_owned();
                all.push((name, linear));
            }
        }
        all.push(("lm_head".to_owned(), self.head.lm_head()));
        all
    }

    /// What the rules left out of all that went through the blocks since the last call, and begins to count anew.
    #[must_use]
    pub fn take_realised(&self) -> Realised {
        let mut found = Realised::default();
        for block in &self.blocks {
            if let Block::Llama(block) = block {
                found.mlp.push(block.sparse.mlp.as_ref().and_then(|r| r.counts.take()));
                found.attention.push(block.sparse.attention.as_ref().and_then(|r| r.counts.take()));
                found.inputs.push(block.sparse.inputs.as_ref().and_then(|c| c.take()));
            }
        }
        found
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
}
