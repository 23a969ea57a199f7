//! A Llama to train: every weight a parameter of Burn, named as in the Hugging Face files.

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::module::embedding;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rarefy_checkpoint::layout::{LinearSpec, prunable};
use rarefy_checkpoint::{Architecture, Checkpoint, DType, ModelConfig, OutTensor, to_dtype};

use crate::error::{ModelError, Result};
use crate::init::Initializer;
use crate::linear::{Linear, set_param};
use crate::llama::{LINEARS, LlamaBlock, LlamaFixed};
use crate::load::Loader;
use crate::norm::RmsNorm;
use crate::perplexity::LanguageModel;
use crate::rope::Rope;
use crate::stem::check_batch;
use crate::tensors::{tensor2, to_host};

/// A trainable Llama, Mistral or Qwen2. On a device with autodiff its parameters collect gradients; `valid()` of Burn's
/// `Module` gives the same model without.
#[derive(Module, Debug)]
pub struct LlamaModel {
    embed: Param<Tensor<2>>,
    blocks: Vec<LlamaBlock>,
    norm: RmsNorm,
    /// `None`: tied to `embed`.
    lm_head: Option<Linear>,
    #[module(skip)]
    config: Arc<ModelConfig>,
}

/// A parameter of rank 1 or 2.
enum AnyParam<'a> {
    Vector(&'a Param<Tensor<1>>),
    Matrix(&'a Param<Tensor<2>>),
}

/// The same, to change.
enum AnyParamMut<'a> {
    Vector(&'a mut Param<Tensor<1>>),
    Matrix(&'a mut Param<Tensor<2>>),
}

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

fn check_family(config: &ModelConfig) -> Result<()> {
    if config.architecture == Architecture::Opt {
        return Err(ModelError::Unsupported {
            field: "architectures",
            value: "OPTForCausalLM".to_owned(),
            remedy: "only LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM can be trained",
        });
    }
    Ok(())
}

impl LlamaModel {
    /// Random weights: matrices from N(0, 0.02²), those that write to the residual stream (`o_proj`, `down_proj`) with the
    /// deviation divided by `sqrt(2 · n_layers)` (Radford et al. 2019), norms 1, biases 0. The same seed gives the same bytes.
    ///
    /// # Errors
    /// The configuration is not of the Llama family.
    pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        check_family(config)?;
        let c = config;
        let mut draw = Initializer::new(seed);
        let deviation = 0.02;
        let residual = deviation / (2.0 * c.n_layers as f64).sqrt();
        let mut linear = |rows: usize, cols: usize, bias: bool, deviation: f64| {
            let weight = draw.normal(rows * cols, deviation);
            Linear::dense(weight, rows, cols, bias.then(|| vec![0.0; rows]), device)
        };
        let ones = || RmsNorm::new(vec![1.0; c.hidden_size], c.norm_eps, device);
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let rope = c.rope.as_ref().map(|r| Rope::new(r, c.head_dim));
        let mut blocks = Vec::new();
        for index in 0..c.n_layers {
            blocks.push(LlamaBlock {
                input_norm: ones(),
                q_proj: linear(q, d, c.qkv_bias, deviation),
                k_proj: linear(kv, d, c.qkv_bias, deviation),
                v_proj: linear(kv, d, c.qkv_bias, deviation),
                o_proj: linear(d, q, c.o_bias, residual),
                post_norm: ones(),
                gate_proj: linear(f, d, c.mlp_bias, deviation),
                up_proj: linear(f, d, c.mlp_bias, deviation),
                down_proj: linear(d, f, c.mlp_bias, residual),
                fixed: Arc::new(LlamaFixed::new(c, index, rope.clone())?),
                sparse: Arc::default(),
            });
        }
        let lm_head = (!c.tie_embeddings).then(|| linear(c.vocab_size, d, false, deviation));
        let embed = tensor2(draw.normal(c.vocab_size * d, deviation), [c.vocab_size, d], device);
        Ok(Self {
            embed: Param::from_tensor(embed),
            blocks,
            norm: ones(),
            lm_head,
            config: Arc::new(c.clone()),
        })
    }

    /// The weights of a folder, in 32 bits.
    ///
    /// # Errors
    /// Not of the Llama family; a tensor missing, of another shape or with non-finite values.
    pub fn from_checkpoint(ckpt: &Checkpoint, device: &Device) -> Result<Self> {
        let c = ckpt.config();
        check_family(c)?;
        let loader = Loader::dense(ckpt, device);
        let embed = loader.checked(EMBED, &[c.vocab_size, c.hidden_size])?;
        let mut blocks = Vec::new();
        for index in 0..c.n_layers {
            blocks.push(LlamaBlock::load(&loader, index)?);
            ckpt.release_pages();
        }
        let norm = RmsNorm::new(loader.vector(NORM, c.hidden_size)?, c.norm_eps, device);
        let lm_head = match c.tie_embeddings {
            true => None,
            false => Some(loader.linear("lm_head", c.vocab_size, c.hidden_size, false)?),
        };
        let embed = Param::from_tensor(tensor2(embed, [c.vocab_size, c.hidden_size], device));
        Ok(Self { embed, blocks, norm, lm_head, config: Arc::new(c.clone()) })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokens `[batch, length]` to logits `[batch, length, vocab_size]`. Tokens must lie inside the vocabulary.
    #[must_use]
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.logits(self.run_blocks(tokens))
    }

    fn run_blocks(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = embedding(self.embed.val(), tokens);
        self.blocks.iter().fold(x, |x, block| block.forward(x, &mut (), None))
    }

    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => {
                let [batch, length, width] = x.dims();
                let y = x.reshape([batch * length, width]).matmul(self.embed.val().transpose());
                y.reshape([batch, length, self.config.vocab_size])
            }
        }
    }

    /// A batch of sequences of equal length as the tensor that [`Self::forward`] takes, on the device of the model.
    ///
    /// # Errors
    /// An empty or ragged batch, a token outside the vocabulary.
    pub fn tokens(&self, batch: &[Vec<u32>]) -> Result<Tensor<2, Int>> {
        let length = check_batch(batch, self.config.vocab_size)?;
        let values: Vec<i64> = batch.iter().flatten().map(|t| i64::from(*t)).collect();
        Ok(Tensor::from_data(TensorData::new(values, [batch.len(), length]), &self.embed.device()))
    }

    /// Every parameter: name in the files, identity, shape. In the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, ParamId, Vec<usize>)> {
        self.named()
            .into_iter()
            .map(|(name, p)| match p {
                AnyParam::Vector(p) => (name, p.id, p.dims().to_vec()),
                AnyParam::Matrix(p) => (name, p.id, p.dims().to_vec()),
            })
            .collect()
    }

    /// The linear layers of all blocks, by tensor name and shape.
    #[must_use]
    pub fn prunable(&self) -> Vec<LinearSpec> {
        (0..self.blocks.len()).flat_map(|index| prunable(&self.config, index)).collect()
    }

    /// The values of one parameter, row-major.
    ///
    /// # Errors
    /// No parameter of that name.
    pub fn get(&self, name: &str) -> Result<Vec<f32>> {
        match self.named().into_iter().find(|(n, _)| n == name) {
            Some((_, AnyParam::Vector(p))) => Ok(to_host(&p.val())),
            Some((_, AnyParam::Matrix(p))) => Ok(to_host(&p.val())),
            None => Err(unknown(name)),
        }
    }

    /// Replaces the values of one parameter; its identity stays, so an optimizer goes on with its state.
    ///
    /// # Errors
    /// No parameter of that name, or the length does not fit its shape.
    pub fn set(&mut self, name: &str, values: Vec<f32>) -> Result<()> {
        let Some((_, param)) = self.named_mut().into_iter().find(|(n, _)| n == name) else {
            return Err(unknown(name));
        };
        let expected = match &param {
            AnyParamMut::Vector(p) => p.dims().to_vec(),
            AnyParamMut::Matrix(p) => p.dims().to_vec(),
        };
        if expected.iter().product::<usize>() != values.len() {
            return Err(ModelError::Shape { tensor: name.to_owned(), expected, found: vec![values.len()] });
        }
        match param {
            AnyParamMut::Vector(p) => set_param(p, values),
            AnyParamMut::Matrix(p) => set_param(p, values),
        }
        Ok(())
    }

    /// Every tensor as the files hold it, rounded to `dtype`. Tied embeddings are written once.
    #[must_use]
    pub fn export(&self, dtype: DType) -> Vec<OutTensor> {
        self.named()
            .into_iter()
            .map(|(name, p)| {
                let (shape, values) = match p {
                    AnyParam::Vector(p) => (p.dims().to_vec(), to_host(&p.val())),
                    AnyParam::Matrix(p) => (p.dims().to_vec(), to_host(&p.val())),
                };
                OutTensor { name, shape, dtype, data: to_dtype(&values, dtype), pattern: None, quant: None }
            })
            .collect()
    }

    fn named(&self) -> Vec<(String, AnyParam<'_>)> {
        let mut all = vec![(EMBED.to_owned(), AnyParam::Matrix(&self.embed))];
        for (index, block) in self.blocks.iter().enumerate() {
            let at = |name: &str| format!("model.layers.{index}.{name}");
            all.push((at("input_layernorm.weight"), AnyParam::Vector(&block.input_norm.gamma)));
            all.push((at("post_attention_layernorm.weight"), AnyParam::Vector(&block.post_norm.gamma)));
            for (name, linear) in block.linears() {
                push_linear(&mut all, &at(name), linear);
            }
        }
        all.push((NORM.to_owned(), AnyParam::Vector(&self.norm.gamma)));
        if let Some(head) = &self.lm_head {
            push_linear(&mut all, "lm_head", head);
        }
        all
    }

    fn named_mut(&mut self) -> Vec<(String, AnyParamMut<'_>)> {
        let mut all = vec![(EMBED.to_owned(), AnyParamMut::Matrix(&mut self.embed))];
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let at = |name: &str| format!("model.layers.{index}.{name}");
            let LlamaBlock {
                input_norm,
                post_norm,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                gate_proj,
                up_proj,
                down_proj,
                ..
            } = block;
            all.push((at("input_layernorm.weight"), AnyParamMut::Vector(&mut input_norm.gamma)));
            all.push((at("post_attention_layernorm.weight"), AnyParamMut::Vector(&mut post_norm.gamma)));
            let linears = [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj];
            for (name, linear) in LINEARS.into_iter().zip(linears) {
                push_linear_mut(&mut all, &at(name), linear);
            }
        }
        all.push((NORM.to_owned(), AnyParamMut::Vector(&mut self.norm.gamma)));
        if let Some(head) = &mut self.lm_head {
            push_linear_mut(&mut all, HEAD.trim_end_matches(".weight"), head);
        }
        all
    }
}

/// Weight and bias of a dense layer; a model of this module has no packed ones.
fn push_linear<'a>(all: &mut Vec<(String, AnyParam<'a>)>, prefix: &str, linear: &'a Linear) {
    if let Linear::Dense(l) = linear {
        all.push((format!("{prefix}.weight"), AnyParam::Matrix(&l.weight)));
        if let Some(bias) = &l.bias {
            all.push((format!("{prefix}.bias"), AnyParam::Vector(bias)));
        }
    }
}

fn push_linear_mut<'a>(all: &mut Vec<(String, AnyParamMut<'a>)>, prefix: &str, linear: &'a mut Linear) {
    if let Linear::Dense(l) = linear {
        all.push((format!("{prefix}.weight"), AnyParamMut::Matrix(&mut l.weight)));
        if let Some(bias) = &mut l.bias {
            all.push((format!("{prefix}.bias"), AnyParamMut::Vector(bias)));
        }
    }
}

fn unknown(name: &str) -> ModelError {
    ModelError::UnknownParameter { name: name.to_owned(), example: EMBED.to_owned() }
}

impl LanguageModel for LlamaModel {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }
    fn hidden(&self, batch: &[Vec<u32>]) -> Result<Tensor<3>> {
        Ok(self.run_blocks(self.tokens(batch)?))
    }
    fn head(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.logits(hidden)
    }
}
