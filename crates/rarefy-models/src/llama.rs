//! The Llama block: root-mean-square norms, rotary grouped-query attention, gated feed-forward. Mistral adds a sliding
//! window, Qwen2 biases on query, key and value.
//!
//! `h = x + O·attend(Q·n₁, K·n₁, V·n₁)` with `n₁ = norm(x)`; `y = h + D·(act(G·n₂) ∘ U·n₂)` with `n₂ = norm(h)`.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use rarefy_checkpoint::{Activation, Architecture, ModelConfig};

use crate::activation::activate;
use crate::attention::AttentionShape;
use crate::block::{Tap, show};
use crate::error::{ModelError, Result};
use crate::kv_cache::LayerCache;
use crate::linear::Linear;
use crate::load::Loader;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::sparse::{BlockRules, Counts};

/// One block.
#[derive(Module, Debug)]
pub struct LlamaBlock {
    pub(crate) input_norm: RmsNorm,
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    pub(crate) post_norm: RmsNorm,
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
    #[module(skip)]
    pub(crate) fixed: Arc<LlamaFixed>,
    #[module(skip)]
    pub(crate) sparse: Arc<BlockRules>,
}

/// What a block knows besides its weights.
#[derive(Debug, Clone)]
pub(crate) struct LlamaFixed {
    pub(crate) index: usize,
    pub(crate) attention: AttentionShape,
    pub(crate) activation: Activation,
    pub(crate) rope: Option<Rope>,
}

/// Short names of the linear layers, in the order they run.
pub(crate) const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl LlamaFixed {
    pub(crate) fn new(config: &ModelConfig, index: usize, rope: Option<Rope>) -> Result<Self> {
        let attention = AttentionShape {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            window: window(config, index)?,
        };
        Ok(Self { index, attention, activation: config.activation, rope })
    }
}

/// The sliding window of one block. Qwen2 gives one only to the blocks from `max_window_layers` on, or lists them.
fn window(config: &ModelConfig, index: usize) -> Result<Option<usize>> {
    let window = match config.sliding_window {
        // The reference implementation's default where the file says nothing (null means full attention).
        None if config.architecture == Architecture::Mistral
            && config.raw.get("sliding_window").is_none() =>
        {
            4096
        }
        None => return Ok(None),
        Some(window) => window,
    };
    if window == 0 {
        return Err(ModelError::Unsupported {
            field: "sliding_window",
            value: "0".to_owned(),
            remedy: "set it to null for full attention",
        });
    }
    if let Some(types) = config.raw.get("layer_types").and_then(|t| t.as_array()) {
        return match types.get(index).and_then(|t| t.as_str()) {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            other => Err(ModelError::Unsupported {
                field: "layer_types",
                value: format!("{other:?}"),
                remedy: "each entry must be full_attention or sliding_attention",
            }),
        };
    }
    if config.architecture == Architecture::Qwen2 {
        let first = config.raw.get("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28);
        if (index as u64) < first {
            return Ok(None);
        }
    }
    Ok(Some(window))
}

impl LlamaBlock {
    pub(crate) fn load(loader: &Loader<'_>, index: usize) -> Result<Self> {
        let c = loader.config();
        let at = |name: &str| format!("model.layers.{index}.{name}");
        let by_inputs = loader.input_rule(index).map(|t| (t, Arc::new(Counts::default())));
        let linear = |i: usize, rows: usize, cols: usize, bias: bool| match &by_inputs {
            None => loader.linear(&at(LINEARS[i]), rows, cols, bias),
            Some((t, counts)) => {
                let t = [t.attention, t.attention, t.attention, t.output, t.mlp, t.mlp, t.down][i];
                loader.linear_by_columns(&at(LINEARS[i]), (rows, cols), bias, t, counts.clone())
            }
        };
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(loader.vector(&at(name), c.hidden_size)?, c.norm_eps, loader.device()))
        };
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let mut fixed = LlamaFixed::new(c, index, loader.rope())?;
        let attention = loader.attention_run(index, &mut fixed.attention)?;
        let ([gate_proj, up_proj, down_proj], mlp) = match loader.mlp_rule(index) {
            Some(rule) => loader.mlp_by_rows(rule, [LINEARS[4], LINEARS[5], LINEARS[6]].map(at), (d, f))?,
            None => {
                let all = [
                    linear(4, f, d, c.mlp_bias)?,
                    linear(5, f, d, c.mlp_bias)?,
                    linear(6, d, f, c.mlp_bias)?,
                ];
                (all, None)
            }
        };
        Ok(Self {
            input_norm: norm("input_layernorm.weight")?,
            q_proj: linear(0, q, d, c.qkv_bias)?,
            k_proj: linear(1, kv, d, c.qkv_bias)?,
            v_proj: linear(2, kv, d, c.qkv_bias)?,
            o_proj: linear(3, d, q, c.o_bias)?,
            post_norm: norm("post_attention_layernorm.weight")?,
            gate_proj,
            up_proj,
            down_proj,
            fixed: Arc::new(fixed),
            sparse: Arc::new(BlockRules { mlp, attention, inputs: by_inputs.map(|i| i.1) }),
        })
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        tap: &mut dyn Tap,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let fixed = &self.fixed;
        let n = self.input_norm.forward(x.clone());
        show(tap, &LINEARS[..3], &n);
        let q = self.q_proj.forward(n.clone());
        let k = self.k_proj.forward(n.clone());
        let v = self.v_proj.forward(n);
        let decodes = cache.is_some();
        let mixed =
            fixed.attention.attend(q, k, v, fixed.rope.as_ref(), self.sparse.attention.as_ref(), cache);
        show(tap, &LINEARS[3..4], &mixed);
        let h = x + self.o_proj.forward(mixed);

        let n = self.post_norm.forward(h.clone());
        show(tap, &LINEARS[4..6], &n);
        let mlp = self.sparse.mlp.as_ref();
        // After a cache few tokens are decoded; the inputs of `down_proj` do not exist there.
        if let Some(y) = mlp.filter(|_| decodes).and_then(|mlp| mlp.few(&n)) {
            return h + y;
        }
        let z = self.gate_proj.forward(n.clone());
        let gate = match mlp {
            Some(mlp) => mlp.gate(z),
            None => activate(fixed.activation, z),
        };
        let inner = gate * self.up_proj.forward(n);
        show(tap, &LINEARS[6..], &inner);
        h + self.down_proj.forward(inner)
    }

    pub(crate) fn prefix(&self) -> String {
        format!("model.layers.{}.", self.fixed.index)
    }

    pub(crate) fn norm_bytes(&self) -> usize {
        (self.input_norm.gamma.dims()[0] + self.post_norm.gamma.dims()[0]) * 4
    }

    pub(crate) fn linears(&self) -> Vec<(&'static str, &Linear)> {
        let all = [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ];
        LINEARS.into_iter().zip(all).collect()
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let all = [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ];
        LINEARS.into_iter().zip(all).collect()
    }
}
