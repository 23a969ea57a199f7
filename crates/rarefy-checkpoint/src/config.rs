//! config.json of a model folder, read into a typed form. Settings that would change the result and that are not
//! implemented are errors, never ignored.

use crate::error::{CheckpointError, Result};
use crate::json;
use serde_json::Value;
use std::path::Path;

/// Model families this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// LlamaForCausalLM.
    Llama,
    /// MistralForCausalLM.
    Mistral,
    /// Qwen2ForCausalLM.
    Qwen2,
    /// OPTForCausalLM.
    Opt,
}

impl Architecture {
    /// The supported names, for messages.
    pub const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, OPTForCausalLM";
}

/// Activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
    /// Gaussian error linear unit, exact.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
}

/// Change of the rotary frequencies for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor, at least 1.
        factor: f64,
    },
    /// The rule of Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`, tokens.
        original: usize,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change for longer contexts.
    pub scaling: RopeScaling,
}

/// What only OPT has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptExtra {
    /// Width of the token embedding; where it differs from the hidden size, `project_in` and `project_out` exist.
    pub word_embed_proj_dim: usize,
    /// LayerNorm before (true) or after (false) attention and feed-forward.
    pub do_layer_norm_before: bool,
    /// Whether a LayerNorm follows the last block.
    pub has_final_norm: bool,
    /// Whether linear layers have biases.
    pub has_bias: bool,
}

/// config.json in typed form.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers (`ffn_dim` of OPT).
    pub intermediate_size: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence, tokens.
    pub max_positions: usize,
    /// Added to the variance in the normalisation layers.
    pub norm_eps: f64,
    /// Rotary embedding; `None` for learned positions.
    pub rope: Option<Rope>,
    /// Whether the output layer is the embedding.
    pub tie_embeddings: bool,
    /// Biases of the query, key and value layers.
    pub qkv_bias: bool,
    /// Bias of the attention output layer.
    pub o_bias: bool,
    /// Biases of the feed-forward layers.
    pub mlp_bias: bool,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Attention reaches back this many tokens; `None`: unlimited. Sequences up to this length are not affected.
    pub sliding_window: Option<usize>,
    /// What only OPT has.
    pub opt: Option<OptExtra>,
    /// The whole file.
    pub raw: Value,
}

/// Access to the fields of one JSON object, with errors that name file and field.
struct Fields<'a> {
    file: &'a Path,
    object: &'a serde_json::Map<String, Value>,
    prefix: &'a str,
}

impl Fields<'_> {
    fn bad(&self, field: &str, expected: &str, found: impl ToString) -> CheckpointError {
        CheckpointError::ConfigField {
            file: self.file.into(),
            field: format!("{}{field}", self.prefix),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    fn unsupported(&self, field: &str, value: impl ToString, remedy: &str) -> CheckpointError {
        CheckpointError::UnsupportedConfig {
            file: self.file.into(),
            field: format!("{}{field}", self.prefix),
            value: value.to_string(),
            remedy: remedy.into(),
        }
    }

    /// The value, with null read as absent.
    fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    fn size_or(&self, field: &str, default: Option<usize>, limit: usize) -> Result<usize> {
        let expected = format!("a whole number from 1 to {limit}");
        match (self.get(field), default) {
            (None, Some(d)) => Ok(d),
            (None, None) => Err(self.bad(field, &expected, "nothing")),
            (Some(v), _) => v
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|&n| n >= 1 && n <= limit)
                .ok_or_else(|| self.bad(field, &expected, v)),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(field, "true or false", v)),
        }
    }

    fn positive(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(field), default) {
            (None, Some(d)) => Ok(d),
            (None, None) => Err(self.bad(field, "a positive number", "nothing")),
            (Some(v), _) => v
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.bad(field, "a positive number", v)),
        }
    }

    fn token(&self, field: &str) -> Result<Option<u32>> {
        Ok(self.tokens(field)?.first().copied())
    }

    fn tokens(&self, field: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| {
            v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| self.bad(field, "token ids", v))
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(v) => Ok(vec![one(v)?]),
        }
    }

    fn activation(&self, field: &str, default: Activation) -> Result<Activation> {
        let Some(v) = self.get(field) else { return Ok(default) };
        match v.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("relu") => Ok(Activation::Relu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            _ => {
                Err(self.unsupported(field, v, "known are silu, relu, gelu, gelu_new and gelu_pytorch_tanh"))
            }
        }
    }
}

const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 26;
const MAX_LAYERS: usize = 4096;
const MAX_POSITIONS: usize = 1 << 30;
const OTHER_MODEL: &str = "use a model without this setting";

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`MissingFile`](CheckpointError::MissingFile), [`Json`](CheckpointError::Json),
    /// [`UnknownArchitecture`](CheckpointError::UnknownArchitecture), [`ConfigField`](CheckpointError::ConfigField),
    /// [`UnsupportedConfig`](CheckpointError::UnsupportedConfig).
    pub fn open(dir: &Path) -> Result<Self> {
        Self::from_value(&dir.join("config.json"), read_config(dir)?)
    }

    /// Reads the parsed content of a config.json; `file` is used in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_value(file: &Path, raw: Value) -> Result<Self> {
        let Some(object) = raw.as_object() else {
            return Err(CheckpointError::Json { path: file.into(), reason: "it is not an object".into() });
        };
        let f = Fields { file, object, prefix: "" };
        let architecture = architecture(&f)?;
        let mut config =
            if architecture == Architecture::Opt { opt(&f)? } else { llama_family(&f, architecture)? };
        if !config.n_heads.is_multiple_of(config.n_kv_heads) {
            return Err(f.bad(
                "num_key_value_heads",
                &format!("a divisor of num_attention_heads = {}", config.n_heads),
                config.n_kv_heads,
            ));
        }
        config.raw = raw;
        Ok(config)
    }

    /// Number of bytes of one element as stated by `dtype` or `torch_dtype`, if it is one of the usual three.
    pub fn stated_dtype(&self) -> Option<crate::DType> {
        match self
            .raw
            .get("dtype")
            .or_else(|| self.raw.get("torch_dtype"))?
            .as_str()?
            .trim_start_matches("torch.")
        {
            "float32" => Some(crate::DType::F32),
            "float16" => Some(crate::DType::F16),
            "bfloat16" => Some(crate::DType::BF16),
            _ => None,
        }
    }
}

/// Reads the `config.json` of a model folder of any architecture, 4 MiB at most.
///
/// # Errors
/// [`MissingFile`](CheckpointError::MissingFile), [`FileTooLarge`](CheckpointError::FileTooLarge), [`Json`](CheckpointError::Json).
pub fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    let remedy = "a model folder needs its config.json; name the folder that holds it";
    json::parse(&path, &json::read_capped(&path, json::MAX_CONFIG_BYTES, remedy)?)
}

fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let named = f.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let kind = f.get("model_type").and_then(Value::as_str);
    match (named, kind) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Architecture::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Architecture::Mistral),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Architecture::Qwen2),
        (Some("OPTForCausalLM"), _) | (None, Some("opt")) => Ok(Architecture::Opt),
        _ => Err(CheckpointError::UnknownArchitecture {
            file: f.file.into(),
            found: named.or(kind).unwrap_or("none stated").into(),
            supported: Architecture::SUPPORTED,
        }),
    }
}

fn llama_family(f: &Fields<'_>, architecture: Architecture) -> Result<ModelConfig> {
    let hidden_size = f.size_or("hidden_size", None, MAX_WIDTH)?;
    let n_heads = f.size_or("num_attention_heads", None, MAX_WIDTH)?;
    let head_dim = match f.get("head_dim") {
        Some(_) => f.size_or("head_dim", None, MAX_WIDTH)?,
        None if hidden_size % n_heads != 0 => {
            return Err(f.bad(
                "num_attention_heads",
                &format!("a divisor of hidden_size = {hidden_size}, or head_dim given"),
                n_heads,
            ));
        }
        None => hidden_size / n_heads,
    };
    if head_dim % 2 != 0 {
        return Err(f.bad("head_dim", "an even number (rotary embedding turns pairs)", head_dim));
    }
    if n_heads.checked_mul(head_dim).is_none_or(|n| n > MAX_WIDTH) {
        return Err(f.bad("head_dim", &format!("at most {MAX_WIDTH} / num_attention_heads"), head_dim));
    }
    if let Some(v) = f.get("partial_rotary_factor")
        && v.as_f64() != Some(1.0)
    {
        return Err(f.unsupported("partial_rotary_factor", v, OTHER_MODEL));
    }
    if let Some(v) = f.get("pretraining_tp")
        && v.as_u64() != Some(1)
    {
        return Err(f.unsupported("pretraining_tp", v, "set it to 1; results then differ by rounding only"));
    }
    let attention_bias = f.flag("attention_bias", false)?;
    let (qkv_bias, o_bias, mlp_bias) = match architecture {
        Architecture::Qwen2 => (true, false, false),
        Architecture::Mistral => (false, false, false),
        _ => (attention_bias, attention_bias, f.flag("mlp_bias", false)?),
    };
    let window =
        f.get("sliding_window").map(|_| f.size_or("sliding_window", None, MAX_POSITIONS)).transpose()?;
    let sliding_window = match architecture {
        Architecture::Mistral => window,
        Architecture::Qwen2 if f.flag("use_sliding_window", false)? => window,
        _ => None,
    };
    Ok(ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: f.size_or("intermediate_size", None, MAX_WIDTH)?,
        n_layers: f.size_or("num_hidden_layers", None, MAX_LAYERS)?,
        n_heads,
        n_kv_heads: f.size_or("num_key_value_heads", Some(n_heads), n_heads)?,
        head_dim,
        vocab_size: f.size_or("vocab_size", None, MAX_VOCAB)?,
        max_positions: f.size_or("max_position_embeddings", Some(2048), MAX_POSITIONS)?,
        norm_eps: f.positive("rms_norm_eps", Some(1e-6))?,
        rope: Some(rope(f)?),
        tie_embeddings: f.flag("tie_word_embeddings", false)?,
        qkv_bias,
        o_bias,
        mlp_bias,
        activation: f.activation("hidden_act", Activation::Silu)?,
        bos: f.token("bos_token_id")?,
        eos: f.tokens("eos_token_id")?,
        sliding_window,
        opt: None,
        raw: Value::Null,
    })
}

/// Both forms: `rope_parameters` (newer) and `rope_theta` with `rope_scaling` (older).
fn rope(f: &Fields<'_>) -> Result<Rope> {
    let older_theta = f.get("rope_theta").map(|_| f.positive("rope_theta", None)).transpose()?;
    let (key, value) = match (f.get("rope_parameters"), f.get("rope_scaling")) {
        (Some(v), _) => ("rope_parameters", v),
        (None, Some(v)) => ("rope_scaling", v),
        (None, None) => {
            return Ok(Rope { theta: older_theta.unwrap_or(10_000.0), scaling: RopeScaling::None });
        }
    };
    let prefix = format!("{key}.");
    let object = value.as_object().ok_or_else(|| f.bad(key, "an object", value))?;
    let r = Fields { file: f.file, object, prefix: &prefix };
    if let Some((layer, v)) = object.iter().find(|(_, v)| v.is_object()) {
        return Err(r.unsupported(
            layer,
            v,
            "rotary settings that differ between layers are not implemented",
        ));
    }
    let theta = match (r.get("rope_theta"), older_theta) {
        (Some(_), older) => {
            let theta = r.positive("rope_theta", None)?;
            if older.is_some_and(|o| (o - theta).abs() > 0.0) {
                return Err(r.bad("rope_theta", "the value of the top-level rope_theta", theta));
            }
            theta
        }
        (None, older) => older.unwrap_or(10_000.0),
    };
    if let Some(v) = r.get("partial_rotary_factor")
        && v.as_f64() != Some(1.0)
    {
        return Err(r.unsupported("partial_rotary_factor", v, OTHER_MODEL));
    }
    let kind = r.get("rope_type").or_else(|| r.get("type"));
    let scaling = match kind.map(|v| v.as_str().unwrap_or("")) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: r.positive("factor", None)? },
        Some("llama3") => {
            let (low, high) = (r.positive("low_freq_factor", None)?, r.positive("high_freq_factor", None)?);
            if low >= high {
                return Err(r.bad("high_freq_factor", &format!("more than low_freq_factor = {low}"), high));
            }
            let original = r.size_or("original_max_position_embeddings", None, MAX_POSITIONS)?;
            RopeScaling::Llama3 { factor: r.positive("factor", None)?, low, high, original }
        }
        Some(other) => {
            let remedy = "supported are default, linear and llama3; for sequences within the original length the scaling may be removed from config.json where its type leaves short sequences unchanged";
            return Err(r.unsupported("rope_type", format!("\"{other}\""), remedy));
        }
    };
    Ok(Rope { theta, scaling })
}

fn opt(f: &Fields<'_>) -> Result<ModelConfig> {
    let hidden_size = f.size_or("hidden_size", None, MAX_WIDTH)?;
    let n_heads = f.size_or("num_attention_heads", None, MAX_WIDTH)?;
    if hidden_size % n_heads != 0 {
        return Err(f.bad(
            "num_attention_heads",
            &format!("a divisor of hidden_size = {hidden_size}"),
            n_heads,
        ));
    }
    if !f.flag("layer_norm_elementwise_affine", true)? {
        return Err(f.unsupported("layer_norm_elementwise_affine", false, OTHER_MODEL));
    }
    let has_bias = f.flag("enable_bias", true)?;
    let do_layer_norm_before = f.flag("do_layer_norm_before", true)?;
    let removed = f.flag("_remove_final_layer_norm", false)?;
    Ok(ModelConfig {
        architecture: Architecture::Opt,
        hidden_size,
        intermediate_size: f.size_or("ffn_dim", None, MAX_WIDTH)?,
        n_layers: f.size_or("num_hidden_layers", None, MAX_LAYERS)?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: hidden_size / n_heads,
        vocab_size: f.size_or("vocab_size", None, MAX_VOCAB)?,
        max_positions: f.size_or("max_position_embeddings", Some(2048), MAX_POSITIONS)?,
        norm_eps: 1e-5,
        rope: None,
        tie_embeddings: f.flag("tie_word_embeddings", true)?,
        qkv_bias: has_bias,
        o_bias: has_bias,
        mlp_bias: has_bias,
        activation: f.activation("activation_function", Activation::Relu)?,
        bos: f.token("bos_token_id")?,
        eos: f.tokens("eos_token_id")?,
        sliding_window: None,
        opt: Some(OptExtra {
            word_embed_proj_dim: f.size_or("word_embed_proj_dim", Some(hidden_size), MAX_WIDTH)?,
            do_layer_norm_before,
            has_final_norm: do_layer_norm_before && !removed,
            has_bias,
        }),
        raw: Value::Null,
    })
}
