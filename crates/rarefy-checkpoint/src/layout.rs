//! Which tensors an architecture has, with their shapes, and which of them can be pruned.

use crate::config::{Architecture, ModelConfig};

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embedding `[vocab, d]`.
    Embedding,
    /// Learned positions `[positions + 2, d]` (OPT).
    Position,
    /// Scale of a normalisation layer `[d]`.
    Norm,
    /// Bias `[d]`.
    Bias,
    /// Linear layer inside a block `[d_out, d_in]`.
    Linear,
    /// Output layer `[vocab, d]`.
    Head,
    /// `project_in` and `project_out` of OPT.
    Projection,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Purpose.
    pub role: Role,
    /// Block it belongs to.
    pub block: Option<usize>,
}

/// One linear layer that can be pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Name inside the block, e.g. `self_attn.q_proj`.
    pub name: String,
    /// Full name of its weight, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub tensor: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Name prefix of a block, without the final dot.
pub fn block_prefix(config: &ModelConfig, block: usize) -> String {
    match config.architecture {
        Architecture::Opt => format!("model.decoder.layers.{block}"),
        _ => format!("model.layers.{block}"),
    }
}

/// The linear layers of a block with (rows, cols, has a bias), in the order in which data passes them.
fn linears(config: &ModelConfig) -> Vec<(&'static str, usize, usize, bool)> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let attention = |o: &'static str| {
        vec![
            ("self_attn.q_proj", q, d, config.qkv_bias),
            ("self_attn.k_proj", kv, d, config.qkv_bias),
            ("self_attn.v_proj", kv, d, config.qkv_bias),
            (o, d, q, config.o_bias),
        ]
    };
    if config.architecture == Architecture::Opt {
        let mut all = attention("self_attn.out_proj");
        all.extend([("fc1", inner, d, config.mlp_bias), ("fc2", d, inner, config.mlp_bias)]);
        all
    } else {
        let mut all = attention("self_attn.o_proj");
        all.extend([
            ("mlp.gate_proj", inner, d, config.mlp_bias),
            ("mlp.up_proj", inner, d, config.mlp_bias),
            ("mlp.down_proj", d, inner, config.mlp_bias),
        ]);
        all
    }
}

/// The prunable linear layers of one block, in the order in which data passes them.
pub fn prunable(config: &ModelConfig, block: usize) -> Vec<LinearSpec> {
    let prefix = block_prefix(config, block);
    linears(config)
        .into_iter()
        .map(|(name, rows, cols, _)| LinearSpec {
            name: name.into(),
            tensor: format!("{prefix}.{name}.weight"),
            rows,
            cols,
        })
        .collect()
}

/// The tensors of one block.
pub fn block(config: &ModelConfig, index: usize) -> Vec<TensorSpec> {
    let prefix = block_prefix(config, index);
    let mut out = Vec::new();
    let mut push = |name: String, shape: Vec<usize>, role| {
        out.push(TensorSpec { name: format!("{prefix}.{name}"), shape, role, block: Some(index) });
    };
    let (norms, with_bias) = match config.architecture {
        Architecture::Opt => (["self_attn_layer_norm", "final_layer_norm"], true),
        _ => (["input_layernorm", "post_attention_layernorm"], false),
    };
    for norm in norms {
        push(format!("{norm}.weight"), vec![config.hidden_size], Role::Norm);
        if with_bias {
            push(format!("{norm}.bias"), vec![config.hidden_size], Role::Bias);
        }
    }
    for (name, rows, cols, bias) in linears(config) {
        push(format!("{name}.weight"), vec![rows, cols], Role::Linear);
        if bias {
            push(format!("{name}.bias"), vec![rows], Role::Bias);
        }
    }
    out
}

/// The tensors before the first block: embedding, positions, input projection.
pub fn stem(config: &ModelConfig) -> Vec<TensorSpec> {
    let spec =
        |name: &str, shape: Vec<usize>, role| TensorSpec { name: name.into(), shape, role, block: None };
    match &config.opt {
        Some(opt) => {
            let mut out = vec![
                spec(
                    "model.decoder.embed_tokens.weight",
                    vec![config.vocab_size, opt.word_embed_proj_dim],
                    Role::Embedding,
                ),
                // Two rows before the first position are reserved by the architecture.
                spec(
                    "model.decoder.embed_positions.weight",
                    vec![config.max_positions + 2, config.hidden_size],
                    Role::Position,
                ),
            ];
            if opt.word_embed_proj_dim != config.hidden_size {
                out.push(spec(
                    "model.decoder.project_in.weight",
                    vec![config.hidden_size, opt.word_embed_proj_dim],
                    Role::Projection,
                ));
            }
            out
        }
        None => vec![spec(
            "model.embed_tokens.weight",
            vec![config.vocab_size, config.hidden_size],
            Role::Embedding,
        )],
    }
}

/// The tensors after the last block: final normalisation, output projection, and the output layer unless it is tied.
pub fn head(config: &ModelConfig) -> Vec<TensorSpec> {
    let spec =
        |name: &str, shape: Vec<usize>, role| TensorSpec { name: name.into(), shape, role, block: None };
    let d = config.hidden_size;
    let mut out = Vec::new();
    let mut head_width = d;
    match &config.opt {
        Some(opt) => {
            if opt.has_final_norm {
                out.push(spec("model.decoder.final_layer_norm.weight", vec![d], Role::Norm));
                out.push(spec("model.decoder.final_layer_norm.bias", vec![d], Role::Bias));
            }
            if opt.word_embed_proj_dim != d {
                out.push(spec(
                    "model.decoder.project_out.weight",
                    vec![opt.word_embed_proj_dim, d],
                    Role::Projection,
                ));
            }
            head_width = opt.word_embed_proj_dim;
        }
        None => out.push(spec("model.norm.weight", vec![d], Role::Norm)),
    }
    if !config.tie_embeddings {
        out.push(spec("lm_head.weight", vec![config.vocab_size, head_width], Role::Head));
    }
    out
}

/// All tensors of the architecture, in the order in which data passes them.
pub fn expected(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut out = stem(config);
    for index in 0..config.n_layers {
        out.extend(block(config, index));
    }
    out.extend(head(config));
    out
}

fn count(specs: &[TensorSpec]) -> u64 {
    specs
        .iter()
        .map(|s| s.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64)))
        .fold(0, u64::saturating_add)
}

/// Number of parameters of the whole model; tied embeddings are counted once.
pub fn parameters(config: &ModelConfig) -> u64 {
    let outside = count(&stem(config)).saturating_add(count(&head(config)));
    block_parameters(config).saturating_mul(config.n_layers as u64).saturating_add(outside)
}

/// Number of parameters of one block.
pub fn block_parameters(config: &ModelConfig) -> u64 {
    count(&block(config, 0))
}

/// Number of parameters in the prunable linear layers of the whole model.
pub fn prunable_parameters(config: &ModelConfig) -> u64 {
    let one: u64 = prunable(config, 0)
        .iter()
        .map(|l| (l.rows as u64).saturating_mul(l.cols as u64))
        .fold(0, u64::saturating_add);
    one.saturating_mul(config.n_layers as u64)
}
