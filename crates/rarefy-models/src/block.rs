//! One transformer block of either family, as the pruning driver streams it: load, look at the inputs of its linear
//! layers, replace weights, run. The whole models of this crate are made of the same blocks.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rarefy_checkpoint::layout::LinearSpec;
use rarefy_checkpoint::{Architecture, Checkpoint, layout};

use crate::attention::AttentionShape;
use crate::error::{ModelError, Result};
use crate::kv_cache::LayerCache;
use crate::linear::Linear;
use crate::llama::LlamaBlock;
use crate::load::Loader;
use crate::opt::OptBlock;
use crate::tensors::{host_vec, tensor3};

/// Sees the inputs of linear layers during a forward pass.
pub trait Tap {
    /// Whether the inputs of this layer (`self_attn.q_proj`) are wanted; others are not even copied.
    fn wants(&self, linear: &str) -> bool;
    /// The inputs of one layer, row-major `[n_tokens, d_in]`. Layers that share an input are reported one by one.
    fn see(&mut self, linear: &str, x: &[f32], n_tokens: usize);
}

/// Sees nothing.
impl Tap for () {
    fn wants(&self, _linear: &str) -> bool {
        false
    }
    fn see(&mut self, _linear: &str, _x: &[f32], _n_tokens: usize) {}
}

/// Shows `x[batch, length, d_in]`, the common input of `linears`, to those who want it.
pub(crate) fn show(tap: &mut dyn Tap, linears: &[&str], x: &Tensor<3>) {
    if linears.iter().any(|l| tap.wants(l)) {
        let [batch, length, _] = x.dims();
        let values = host_vec(x.clone());
        for linear in linears {
            if tap.wants(linear) {
                tap.see(linear, &values, batch * length);
            }
        }
    }
}

/// Queries and keys of one sequence, rotated by position.
#[derive(Debug, Clone, PartialEq)]
pub struct QueriesKeys {
    /// `[n_tokens, n_heads, head_dim]`.
    pub queries: Vec<f32>,
    /// `[n_tokens, n_kv_heads, head_dim]`.
    pub keys: Vec<f32>,
}

/// A transformer block.
#[derive(Module, Debug)]
pub enum Block {
    /// Llama, Mistral, Qwen2.
    Llama(LlamaBlock),
    /// OPT.
    Opt(OptBlock),
}

impl Block {
    /// Reads block `index` with every weight dense in 32 bits.
    ///
    /// # Errors
    /// No such block, a tensor missing or of another shape or with non-finite values, an unsupported configuration.
    pub fn load(ckpt: &Checkpoint, index: usize, device: &Device) -> Result<Self> {
        Self::load_with(&Loader::dense(ckpt, device), index)
    }

    pub(crate) fn load_with(loader: &Loader<'_>, index: usize) -> Result<Self> {
        let config = loader.config();
        if index >= config.n_layers {
            return Err(ModelError::NoSuchBlock { index, n_layers: config.n_layers });
        }
        match config.architecture {
            Architecture::Opt => OptBlock::load(loader, index).map(Self::Opt),
            _ => LlamaBlock::load(loader, index).map(Self::Llama),
        }
    }

    /// The linear layers of block `index` of the model `ckpt`, without loading anything.
    #[must_use]
    pub fn linears_of(ckpt: &Checkpoint, index: usize) -> Vec<LinearSpec> {
        layout::prunable(ckpt.config(), index)
    }

    /// The linear layers with their short name, tensor name and shape, in the order they run.
    #[must_use]
    pub fn linears(&self) -> Vec<LinearSpec> {
        let prefix = match self {
            Self::Llama(b) => b.prefix(),
            Self::Opt(b) => b.prefix(),
        };
        self.named_linears()
            .into_iter()
            .map(|(name, l)| LinearSpec {
                name: name.to_owned(),
                tensor: format!("{prefix}{name}.weight"),
                rows: l.rows(),
                cols: l.cols(),
            })
            .collect()
    }

    /// The weight of one layer, row-major `[d_out, d_in]`.
    ///
    /// # Errors
    /// No layer of that name, or its weight is packed.
    pub fn weight(&self, linear: &str) -> Result<Vec<f32>> {
        let l = self.linear(linear)?;
        l.weight().ok_or_else(|| packed(linear, l))
    }

    /// Replaces the weight of one layer, row-major `[d_out, d_in]`.
    ///
    /// # Errors
    /// No layer of that name, its weight is packed, or the length is not `d_out * d_in`.
    pub fn set_weight(&mut self, linear: &str, weight: Vec<f32>) -> Result<()> {
        let full =
            self.linears().into_iter().find(|l| l.name == linear).map_or_else(String::new, |l| l.tensor);
        let known = self.names();
        let found = match self {
            Self::Llama(b) => b.linears_mut().into_iter().find(|(n, _)| *n == linear),
            Self::Opt(b) => b.linears_mut().into_iter().find(|(n, _)| *n == linear),
        };
        let Some((_, l)) = found else {
            return Err(ModelError::UnknownLinear { name: linear.to_owned(), known });
        };
        if l.weight_is_packed() {
            return Err(packed(linear, l));
        }
        let expected = vec![l.rows(), l.cols()];
        let len = weight.len();
        if l.set_weight(weight) {
            Ok(())
        } else {
            Err(ModelError::Shape { tensor: full, expected, found: vec![len] })
        }
    }

    /// One layer.
    ///
    /// # Errors
    /// No layer of that name.
    pub fn linear(&self, linear: &str) -> Result<&Linear> {
        let found = self.named_linears().into_iter().find(|(n, _)| *n == linear);
        found
            .map(|(_, l)| l)
            .ok_or_else(|| ModelError::UnknownLinear { name: linear.to_owned(), known: self.names() })
    }

    /// Runs the block on `x[batch, length, hidden]`, each sequence causal with positions from 0. `tap` sees the inputs of
    /// the linear layers. The attention scores exist for one head of one sequence at a time.
    #[must_use]
    pub fn forward(&self, x: Tensor<3>, tap: &mut dyn Tap) -> Tensor<3> {
        self.run(x, tap, None)
    }

    /// The same for one sequence that goes on where `cache` ends.
    pub(crate) fn run(&self, x: Tensor<3>, tap: &mut dyn Tap, cache: Option<&mut LayerCache>) -> Tensor<3> {
        match self {
            Self::Llama(b) => b.forward(x, tap, cache),
            Self::Opt(b) => b.forward(x, tap, cache),
        }
    }

    /// The shape of the attention; `None` for OPT.
    #[must_use]
    pub fn attention_shape(&self) -> Option<AttentionShape> {
        match self {
            Self::Llama(b) => Some(b.fixed.attention),
            Self::Opt(_) => None,
        }
    }

    /// Queries and keys, after the rotation of positions, of `x[n_tokens, hidden]`: what a tap sees of `self_attn.q_proj` for one sequence
    /// from position 0. `None` for OPT.
    ///
    /// # Panics
    /// When the length of `x` does not fit.
    #[must_use]
    pub fn queries_keys(&self, x: &[f32], n_tokens: usize, device: &Device) -> Option<QueriesKeys> {
        let Self::Llama(b) = self else { return None };
        let x = tensor3(x.to_vec(), [1, n_tokens, b.q_proj.cols()], device);
        let (mut q, mut k) = (host_vec(b.q_proj.forward(x.clone())), host_vec(b.k_proj.forward(x)));
        if let Some(rope) = &b.fixed.rope {
            rope.rotate_slice(&mut q, b.fixed.attention.n_heads, n_tokens, 0);
            rope.rotate_slice(&mut k, b.fixed.attention.n_kv_heads, n_tokens, 0);
        }
        Some(QueriesKeys { queries: q, keys: k })
    }

    /// Bytes of all parameters.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let linears: usize = self.named_linears().iter().map(|(_, l)| l.bytes()).sum();
        linears
            + match self {
                Self::Llama(b) => b.norm_bytes(),
                Self::Opt(b) => b.norm_bytes(),
            }
    }

    pub(crate) fn named_linears(&self) -> Vec<(&'static str, &Linear)> {
        match self {
            Self::Llama(b) => b.linears(),
            Self::Opt(b) => b.linears(),
        }
    }

    fn names(&self) -> Vec<String> {
        self.named_linears().into_iter().map(|(n, _)| n.to_owned()).collect()
    }
}

fn packed(name: &str, linear: &Linear) -> ModelError {
    ModelError::Packed { name: name.to_owned(), kind: linear.kernel().map_or("dense", |k| k.name()) }
}
