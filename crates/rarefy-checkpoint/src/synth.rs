//! Random-weight model folders of a given shape, for measurements of memory and speed.

use crate::config::ModelConfig;
use crate::dtype::{DType, to_dtype};
use crate::error::{CheckpointError, Result};
use crate::layout::{self, Role};
use crate::writer::assemble::{self, Item};
use crate::writer::new_model::{NewModel, NewModelFiles};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A model shape by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShapeName {
    /// Llama with two blocks of width 64, for tests.
    TinyLlama,
    /// Mistral with two blocks of width 64, for tests.
    TinyMistral,
    /// Qwen2 with two blocks of width 64, for tests.
    TinyQwen2,
    /// OPT with two blocks of width 64, for tests.
    TinyOpt,
    /// OPT-125M.
    Opt125m,
    /// TinyLlama-1.1B.
    TinyLlama11B,
    /// Llama-7B.
    Llama7B,
}

impl ShapeName {
    /// All shapes.
    pub const ALL: [Self; 7] = [
        Self::TinyLlama,
        Self::TinyMistral,
        Self::TinyQwen2,
        Self::TinyOpt,
        Self::Opt125m,
        Self::TinyLlama11B,
        Self::Llama7B,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::TinyLlama => "tiny-llama",
            Self::TinyMistral => "tiny-mistral",
            Self::TinyQwen2 => "tiny-qwen2",
            Self::TinyOpt => "tiny-opt",
            Self::Opt125m => "opt-125m",
            Self::TinyLlama11B => "tinyllama-1.1b",
            Self::Llama7B => "llama-7b",
        }
    }

    /// The config.json of the shape.
    pub fn config_json(self, dtype: DType) -> Value {
        let torch = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        let mut config = match self {
            Self::TinyLlama => llama("LlamaForCausalLM", "llama", [64, 176, 2, 4, 2, 320, 256]),
            Self::TinyMistral => llama("MistralForCausalLM", "mistral", [64, 176, 2, 4, 2, 320, 256]),
            Self::TinyQwen2 => llama("Qwen2ForCausalLM", "qwen2", [64, 176, 2, 4, 2, 320, 256]),
            Self::TinyLlama11B => llama("LlamaForCausalLM", "llama", [2048, 5632, 22, 32, 4, 32000, 2048]),
            Self::Llama7B => llama("LlamaForCausalLM", "llama", [4096, 11008, 32, 32, 32, 32000, 2048]),
            Self::TinyOpt => opt([64, 256, 2, 4, 320, 256]),
            Self::Opt125m => opt([768, 3072, 12, 12, 50272, 2048]),
        };
        config["torch_dtype"] = torch.into();
        config
    }
}

impl std::fmt::Display for ShapeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for ShapeName {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|s| s.name()).collect();
            format!("unknown shape `{text}`, known are {}", known.join(", "))
        })
    }
}

fn llama(
    architecture: &str,
    kind: &str,
    [d, inner, layers, heads, kv, vocab, positions]: [usize; 7],
) -> Value {
    let mut config = json!({
        "architectures": [architecture], "model_type": kind, "hidden_act": "silu", "hidden_size": d,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": vocab, "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": true,
    });
    match kind {
        "llama" => {
            config["attention_bias"] = false.into();
            config["mlp_bias"] = false.into();
        }
        "mistral" => config["sliding_window"] = positions.into(),
        _ => config["use_sliding_window"] = false.into(),
    }
    config
}

fn opt([d, inner, layers, heads, vocab, positions]: [usize; 6]) -> Value {
    json!({
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu", "hidden_size": d,
        "ffn_dim": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab,
        "max_position_embeddings": positions, "word_embed_proj_dim": d, "do_layer_norm_before": true,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
        "init_std": 0.02, "use_cache": true,
    })
}

/// A byte-level tokenizer without merges: every byte is a token. Ids: `<unk>` 0, `<s>` 1, `</s>` 2, then the 256 bytes.
pub fn byte_tokenizer_json() -> Value {
    // The printable stand-in of each byte, as the byte-level scheme defines it: visible Latin-1 characters stand for
    // themselves, the others for the characters from 256 on.
    let mut next = 256u32;
    let mut vocab: BTreeMap<String, usize> =
        [("<unk>", 0), ("<s>", 1), ("</s>", 2)].map(|(t, i)| (t.to_owned(), i)).into();
    for byte in 0..=255u8 {
        let visible = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let point = if visible {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        let stand_in = char::from_u32(point).expect("below 512, where every number is a character");
        vocab.insert(stand_in.to_string(), usize::from(byte) + 3);
    }
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}

/// Writes a model folder with random weights: normalisation scales 1, everything else from N(0, 0.02²), in `dtype`
/// (F32, F16 or BF16), with config.json and a byte-level tokenizer. The same arguments give the same bytes. Tensors are
/// produced as a stream, a megabyte at a time; the folder appears complete or not at all.
///
/// # Errors
/// [`WrongDType`](CheckpointError::WrongDType) for another dtype, and those of
/// [`CheckpointWriter::create`](crate::CheckpointWriter::create).
pub fn synth(shape: ShapeName, dtype: DType, seed: u64, out: &Path) -> Result<()> {
    synth_with(shape, dtype, seed, out, assemble::SHARD_BYTES)
}

/// As [`synth`], with weight files of at most `shard_bytes` bytes of data.
///
/// # Errors
/// As [`synth`].
pub fn synth_with(shape: ShapeName, dtype: DType, seed: u64, out: &Path, shard_bytes: u64) -> Result<()> {
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(CheckpointError::WrongDType {
            file: out.into(),
            tensor: "all".into(),
            expected: "F32, F16 or BF16",
            found: dtype,
        });
    }
    let config = shape.config_json(dtype);
    let model = ModelConfig::from_value(&out.join("config.json"), config.clone())?;
    let folder = NewModel::open(out, &format!("synth {shape} {dtype} seed {seed}"))?;
    let table = normal_table(dtype);
    let one = to_dtype(&[1.0], dtype);
    let items = layout::expected(&model).into_iter().enumerate().map(|(index, spec)| {
        let elements = spec.shape.iter().product::<usize>();
        let (table, one) = (&table, &one);
        Item {
            name: spec.name,
            dtype,
            bytes: (elements * dtype.size()) as u64,
            shape: spec.shape,
            fill: Box::new(move |sink| match spec.role {
                Role::Norm => sink(&one.repeat(elements)),
                _ => random(table, dtype.size(), elements, mix(seed ^ mix(index as u64 + 1)), sink),
            }),
        }
    });
    // Compact: the vocabulary would take a line per token.
    let tokenizer = byte_tokenizer_json().to_string();
    let files = NewModelFiles {
        config: &config,
        tokenizer: Some(&tokenizer),
        record: &json!({ "made_by": "rarefy synth", "shape": shape.name(), "dtype": dtype.code(), "seed": seed }),
        others: &[],
    };
    folder.finish_with(items.collect(), files, shard_bytes)
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hands `elements` random entries of the table to `sink`, in pieces. SplitMix64, four entries per draw.
fn random(
    table: &[u8],
    size: usize,
    elements: usize,
    seed: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    const PIECE: usize = 1 << 18;
    let mut state = seed;
    let mut buffer = Vec::with_capacity(PIECE.min(elements) * size);
    let mut left = elements;
    while left > 0 {
        let n = left.min(PIECE);
        buffer.clear();
        let mut bits = 0u64;
        for i in 0..n {
            if i % 4 == 0 {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                bits = mix(state);
            }
            let at = (bits & 0xffff) as usize * size;
            buffer.extend_from_slice(&table[at..at + size]);
            bits >>= 16;
        }
        sink(&buffer)?;
        left -= n;
    }
    Ok(())
}

/// The 65 536 quantiles `(i + ½)/65536` of N(0, 0.02²) in `dtype`, little endian; the largest is 4.3 standard deviations.
fn normal_table(dtype: DType) -> Vec<u8> {
    let values: Vec<f32> =
        (0..65_536).map(|i| (0.02 * quantile((f64::from(i) + 0.5) / 65_536.0)) as f32).collect();
    to_dtype(&values, dtype)
}

/// Quantile of the standard normal distribution for `p` in (0, 1): the rational approximation of P. J. Acklam, relative
/// error below 1.2e-9.
fn quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    let poly = |c: &[f64], x: f64| c.iter().fold(0.0, |s, k| s * x + k);
    let tail = |q: f64| poly(&C, q) / (poly(&D, q) * q + 1.0);
    if p < 0.02425 {
        tail((-2.0 * p.ln()).sqrt())
    } else if p > 1.0 - 0.02425 {
        -tail((-2.0 * (1.0 - p).ln()).sqrt())
    } else {
        let q = p - 0.5;
        let r = q * q;
        poly(&A, r) * q / (poly(&B, r) * r + 1.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Checkpoint, Tokenizer};

    #[test]
    fn quantiles_by_hand() {
        assert!(quantile(0.5).abs() < 1e-12);
        assert!((quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-8);
        assert!((quantile(0.001) + 3.090_232_306_167_813).abs() < 1e-8);
    }

    #[test]
    fn every_shape_has_a_config_that_reads() {
        for shape in ShapeName::ALL {
            let config = ModelConfig::from_value(Path::new("c"), shape.config_json(DType::BF16)).unwrap();
            assert_eq!(config.stated_dtype(), Some(DType::BF16));
            assert_eq!(shape.name().parse::<ShapeName>().unwrap(), shape);
        }
        let config =
            ModelConfig::from_value(Path::new("c"), ShapeName::TinyLlama11B.config_json(DType::BF16))
                .unwrap();
        // 1.1 billion, as the model card says.
        assert_eq!(layout::parameters(&config), 1_100_048_384);
        assert!("tiny".parse::<ShapeName>().unwrap_err().contains("tiny-llama"));
    }

    #[test]
    fn folders_open_and_repeat() {
        let dir = tempfile::tempdir().unwrap();
        for (shape, dtype) in [
            (ShapeName::TinyLlama, DType::F32),
            (ShapeName::TinyOpt, DType::F16),
            (ShapeName::TinyQwen2, DType::BF16),
            (ShapeName::TinyMistral, DType::BF16),
        ] {
            let (a, b, c) = (
                dir.path().join(format!("{shape}a")),
                dir.path().join(format!("{shape}b")),
                dir.path().join(format!("{shape}c")),
            );
            synth(shape, dtype, 7, &a).unwrap();
            synth(shape, dtype, 7, &b).unwrap();
            synth(shape, dtype, 8, &c).unwrap();
            let open = |p: &Path| Checkpoint::open(p).unwrap();
            let model = open(&a);
            model.check_layout().unwrap();
            assert!(model.extra_tensors().is_empty());
            assert_eq!(model.content_hash().unwrap(), open(&b).content_hash().unwrap());
            assert_ne!(model.content_hash().unwrap(), open(&c).content_hash().unwrap());
            let name = layout::prunable(model.config(), 1)[0].tensor.clone();
            let w = model.read_f32(&name).unwrap();
            let deviation = (w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64).sqrt();
            assert!((deviation - 0.02).abs() < 0.001, "{deviation}");
            let tokenizer = Tokenizer::open(&a).unwrap();
            tokenizer.fits(model.config()).unwrap();
            let text = "One day — näive\n";
            assert_eq!(tokenizer.encode(text).unwrap().len(), text.len());
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn a_second_run_says_that_the_folder_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("m");
        synth(ShapeName::TinyLlama, DType::F32, 1, &out).unwrap();
        assert!(matches!(
            synth(ShapeName::TinyLlama, DType::F32, 1, &out),
            Err(CheckpointError::AlreadyComplete { .. })
        ));
        assert!(matches!(
            synth(ShapeName::TinyLlama, DType::F32, 2, &out),
            Err(CheckpointError::OutputExists { .. })
        ));
        assert!(matches!(
            synth(ShapeName::TinyLlama, DType::I8, 2, &dir.path().join("n")),
            Err(CheckpointError::WrongDType { .. })
        ));
    }

    #[test]
    fn shards_hold_the_same_tensors_as_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, many) = (dir.path().join("one"), dir.path().join("many"));
        synth(ShapeName::TinyLlama, DType::BF16, 1, &one).unwrap();
        synth_with(ShapeName::TinyLlama, DType::BF16, 1, &many, 50_000).unwrap();
        let (one, many) = (Checkpoint::open(&one).unwrap(), Checkpoint::open(&many).unwrap());
        assert!(many.store().files().len() > 2 && one.store().files().len() == 1);
        assert_eq!(one.tensors(), many.tensors());
        for name in one.tensors().keys() {
            assert_eq!(one.read_dense(name).unwrap(), many.read_dense(name).unwrap(), "{name}");
        }
    }
}
