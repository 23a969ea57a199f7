//! Causal language models (Llama, Mistral, Qwen2, OPT) on Burn, whose linear layers hold a weight dense or packed.
//!
//! - [`Block`], [`Stem`], [`Head`]: a model streamed block by block, to look at activations and replace weights.
//! - [`CausalLm`]: a whole model to run, with [`KvCache`], [`generate`] and [`perplexity`].
//! - [`LlamaModel`]: a model to train, with [`causal_lm_loss`].
//! - [`MobileNet`]: a small image classifier to train, which becomes a [`classifier::Classifier`].
//!
//! What a model leaves out while it runs, idle neurons and distant tokens, is given by [`Rules`]; a folder brings its own in
//! [`SparseFiles`].
//!
//! All three are made of the same block code. Weights are `[d_out, d_in]` row-major as in the files; activations are
//! `[batch, length, width]`, 32-bit floats. Parallel work runs on rayon's current pool.

mod activation;
mod attention;
mod block;
mod causal_lm;
pub mod classifier;
mod error;
mod exp;
mod init;
mod kv_cache;
mod linear;
mod llama;
mod load;
mod loss;
mod norm;
mod opt;
mod perplexity;
mod rope;
mod rows;
mod sampling;
mod sparse;
mod stem;
mod tensors;
mod train_llama;
mod train_mobilenet;

pub use attention::AttentionShape;
pub use block::{Block, QueriesKeys, Tap};
pub use causal_lm::{CausalLm, LoadOptions};
pub use error::{ModelError, Result};
pub use kv_cache::KvCache;
pub use linear::{DenseLinear, Linear, PackedLinear};
pub use llama::LlamaBlock;
pub use load::PackedPolicy;
pub use loss::causal_lm_loss;
pub use norm::{LayerNorm, RmsNorm};
pub use opt::OptBlock;
pub use perplexity::{LanguageModel, Perplexity, perplexity, token_nll};
pub use rope::Rope;
pub use sampling::{Sampling, generate};
pub use sparse::{
    AttentionRule, Grouping, InputThresholds, MlpRule, Realised, RuleError, Rules, SparseActivations,
    SparseAttention, SparseFiles,
};
pub use stem::{Head, Stem};
pub use train_llama::LlamaModel;
pub use train_mobilenet::{BatchStatistics, MobileNet, MobileNetSettings};
