//! The OPT block (Zhang et al. 2022): layer norms with shift, biases everywhere, learned positions (in the stem), one
//! feed-forward pair. `do_layer_norm_before` chooses whether the norms stand before each half or after its residual sum.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use rarefy_checkpoint::{Activation, ModelConfig};

use crate::activation::activate;
use crate::attention::AttentionShape;
use crate::block::{Tap, show};
use crate::error::{ModelError, Result};
use crate::kv_cache::LayerCache;
use crate::linear::Linear;
use crate::load::Loader;
use crate::norm::LayerNorm;

/// Rows of the position table before the row of position 0.
pub(crate) const POSITION_OFFSET: usize = 2;

/// One block.
#[derive(Module, Debug)]
pub struct OptBlock {
    attention_norm: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    final_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    fixed: Arc<OptFixed>,
}

/// What a block knows besides its weights.
#[derive(Debug, Clone)]
struct OptFixed {
    index: usize,
    attention: AttentionShape,
    activation: Activation,
    norm_before: bool,
}

/// Short names of the linear layers, in the order they run.
const LINEARS: [&str; 6] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"];

/// The part of the configuration that only this family has.
pub(crate) fn extra(config: &ModelConfig) -> Result<&rarefy_checkpoint::OptExtra> {
    config.opt.as_ref().ok_or(ModelError::Unsupported {
        field: "ffn_dim",
        value: "missing".to_owned(),
        remedy: "an OPT configuration needs ffn_dim and word_embed_proj_dim",
    })
}

impl OptBlock {
    pub(crate) fn load(loader: &Loader<'_>, index: usize) -> Result<Self> {
        let c = loader.config();
        let norm_before = extra(c)?.do_layer_norm_before;
        let at = |name: &str| format!("model.decoder.layers.{index}.{name}");
        let linear =
            |name: &str, rows: usize, cols: usize, bias: bool| loader.linear(&at(name), rows, cols, bias);
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let attention = AttentionShape {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            window: None,
        };
        Ok(Self {
            attention_norm: loader.layer_norm(&at("self_attn_layer_norm"), d, c.norm_eps)?,
            q_proj: linear(LINEARS[0], d, d, c.qkv_bias)?,
            k_proj: linear(LINEARS[1], d, d, c.qkv_bias)?,
            v_proj: linear(LINEARS[2], d, d, c.qkv_bias)?,
            out_proj: linear(LINEARS[3], d, d, c.o_bias)?,
            final_norm: loader.layer_norm(&at("final_layer_norm"), d, c.norm_eps)?,
            fc1: linear(LINEARS[4], f, d, c.mlp_bias)?,
            fc2: linear(LINEARS[5], d, f, c.mlp_bias)?,
            fixed: Arc::new(OptFixed { index, attention, activation: c.activation, norm_before }),
        })
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let fixed = &self.fixed;
        let before = |norm: &LayerNorm, x: Tensor<3>| if fixed.norm_before { norm.forward(x) } else { x };
        let after = |norm: &LayerNorm, x: Tensor<3>| if fixed.norm_before { x } else { norm.forward(x) };

        let n = before(&self.attention_norm, x.clone());
        show(tap, &LINEARS[..3], &n);
        let q = self.q_proj.forward(n.clone());
        let k = self.k_proj.forward(n.clone());
        let v = self.v_proj.forward(n);
        let mixed = fixed.attention.attend(q, k, v, None, None, cache);
        show(tap, &LINEARS[3..4], &mixed);
        let h = after(&self.attention_norm, x + self.out_proj.forward(mixed));

        let n = before(&self.final_norm, h.clone());
        show(tap, &LINEARS[4..5], &n);
        let inner = activate(fixed.activation, self.fc1.forward(n));
        show(tap, &LINEARS[5..], &inner);
        after(&self.final_norm, h + self.fc2.forward(inner))
    }

    pub(crate) fn prefix(&self) -> String {
        format!("model.decoder.layers.{}.", self.fixed.index)
    }

    pub(crate) fn norm_bytes(&self) -> usize {
        (self.attention_norm.gamma.dims()[0] + self.final_norm.gamma.dims()[0]) * 8
    }

    pub(crate) fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let all = [&self.q_proj, &self.k_proj, &self.v_proj, &self.out_proj, &self.fc1, &self.fc2];
        LINEARS.into_iter().zip(all).collect()
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let all = [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.out_proj,
            &mut self.fc1,
            &mut self.fc2,
        ];
        LINEARS.into_iter().zip(all).collect()
    }
}
