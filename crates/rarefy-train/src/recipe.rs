//! The recipe: everything about a training run in one TOML file.

use crate::{TrainError, recipe_keys};
use rarefy_sparsity::{Pattern, Ramp, Schedule};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A training recipe. Unknown keys are refused; missing keys take the documented defaults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Seed of the initial weights, the corpus and the batches. Default 0.
    pub seed: u64,
    /// Shape of the model.
    pub model: ModelSettings,
    /// The tokenizer.
    pub tokenizer: TokenizerSettings,
    /// What is read.
    pub data: DataSettings,
    /// The update rule.
    pub optimizer: OptimizerSettings,
    /// Length of the run and learning rate over it.
    pub schedule: ScheduleSettings,
    /// Gradient clipping.
    pub clip: ClipSettings,
    /// Gradual pruning while training; absent: dense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<SparsitySettings>,
    /// How often the state is saved.
    pub checkpoint: CheckpointSettings,
    /// How often and on what the model is measured.
    pub evaluation: EvaluationSettings,
}

/// Shape of a Llama-type model. Defaults: the built-in model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Width of the residual stream; a multiple of `2 * heads`. Default 192.
    pub hidden_size: usize,
    /// Inner width of the gated feed-forward part. Default 512.
    pub intermediate_size: usize,
    /// Number of blocks. Default 4.
    pub layers: usize,
    /// Query heads. Default 4.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Default 2.
    pub kv_heads: usize,
    /// Longest sequence in tokens. Default 128.
    pub max_positions: usize,
    /// Base of the rotary frequencies, above 1. Default 10000 (Su et al. 2021).
    pub rope_theta: f64,
    /// Added to the mean square in the norms, above 0. Default 1e-5 (Llama 2).
    pub norm_eps: f64,
    /// Whether the output layer is the embedding. Default true.
    pub tie_embeddings: bool,
    /// Standard deviation of the initial embedding, in (0, 10]. Default 0.02 (GPT-2). With a tied embedding 0.1 is better: words
    /// that are interchangeable as outputs (such as names) otherwise drift together before their differences are used.
    pub embedding_init: f64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            hidden_size: 192,
            intermediate_size: 512,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            max_positions: 128,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tie_embeddings: true,
            embedding_init: 0.02,
        }
    }
}

/// The byte-level BPE tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerSettings {
    /// An existing `tokenizer.json`; absent: one is trained on the training text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Tokens, from 256 (bytes only) to 65536. Default 1024.
    pub vocab_size: usize,
    /// Bytes of training text the merges are learned from, at least 1. Default 2 000 000.
    pub sample_bytes: usize,
}

impl Default for TokenizerSettings {
    fn default() -> Self {
        Self { file: None, vocab_size: 1024, sample_bytes: 2_000_000 }
    }
}

/// What the model is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// A text file (UTF-8, optionally gzip); absent: the built-in corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// A text file to measure on; absent: the validation split of the built-in corpus, or the last twentieth of `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Tokens of one training window, from 2 to `model.max_positions`. Default 128.
    pub context: usize,
    /// Windows of one step, at least 1. Default 16.
    pub batch: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self { text: None, validation: None, context: 128, batch: 16 }
    }
}

/// Which update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The update rule. Weight decay acts on the linear layers only, never on embeddings, norms or biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSettings {
    /// `"adamw"` or `"sgd"`. Default adamw.
    pub kind: OptimizerKind,
    /// Highest learning rate, above 0. Default 2e-3.
    pub lr: f64,
    /// Weight decay, at least 0. Default 0.05.
    pub weight_decay: f64,
    /// AdamW: decay of the first moment, in [0, 1). Default 0.9.
    pub beta1: f64,
    /// AdamW: decay of the second moment, in [0, 1). Default 0.98.
    pub beta2: f64,
    /// AdamW: added to the root of the second moment, above 0. Default 1e-8.
    pub eps: f64,
    /// SGD: momentum, in [0, 1). Default 0.9.
    pub momentum: f64,
    /// SGD: Nesterov's variant of momentum. Default false.
    pub nesterov: bool,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 2e-3,
            weight_decay: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            momentum: 0.9,
            nesterov: false,
        }
    }
}

/// Linear warm-up, then half a cosine down to `final_lr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleSettings {
    /// Steps of the run, at least 1. Default 1000.
    pub steps: u64,
    /// Steps until `optimizer.lr` is reached, below `steps`. Default 50.
    pub warmup: u64,
    /// Learning rate after the last step as a fraction of `optimizer.lr`, in [0, 1]. Default 0.05.
    pub final_fraction: f64,
}

impl Default for ScheduleSettings {
    fn default() -> Self {
        Self { steps: 1000, warmup: 50, final_fraction: 0.05 }
    }
}

impl ScheduleSettings {
    /// Learning rate of step `step` (from 0) as a fraction of the highest: `(step + 1) / warmup` while warming up, then
    /// `final + (1 - final) (1 + cos(π t)) / 2` with `t` from 0 at the end of the warm-up to 1 at `steps`.
    #[must_use]
    pub fn fraction_at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        if step >= self.steps {
            return self.final_fraction;
        }
        let t = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
    }
}

/// Gradient clipping by the global norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipSettings {
    /// Largest Euclidean norm of all gradients together; 0 switches clipping off. Default 1.
    pub norm: f64,
}

impl Default for ClipSettings {
    fn default() -> Self {
        Self { norm: 1.0 }
    }
}

/// How the budget is divided over the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// The same sparsity in every layer.
    Uniform,
    /// Erdős–Rényi-kernel densities (Evci et al. 2020).
    Erk,
}

/// Gradual magnitude pruning (Zhu and Gupta 2017) of the linear layers inside the blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparsitySettings {
    /// Sparsity at the end, in [0, 1). Default 0.5.
    pub target: f64,
    /// First step with a mask. Default 0.
    pub begin: u64,
    /// Step at which the target is reached, above `begin` and below `schedule.steps`. Default 750.
    pub end: u64,
    /// Steps between two masks, at least 1. Default 50.
    pub every: u64,
    /// `"unstructured"`, `"2:4"`, `"block:4x1"`, ... An N:M pattern is applied at once, in step `begin`. Default unstructured.
    pub pattern: Pattern,
    /// `"uniform"` or `"erk"`; only uniform with a pattern other than unstructured. Default uniform.
    pub distribution: Distribution,
    /// Layers left dense: a layer is excluded when its name contains one of these. Default none.
    pub excluded: Vec<String>,
}

impl Default for SparsitySettings {
    fn default() -> Self {
        Self {
            target: 0.5,
            begin: 0,
            end: 750,
            every: 50,
            pattern: Pattern::Unstructured,
            distribution: Distribution::Uniform,
            excluded: Vec::new(),
        }
    }
}

impl SparsitySettings {
    /// `s(t) = target (1 - (1 - (t - begin) / (end - begin))³)`, changing every `every` steps.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        match self.pattern {
            Pattern::NM { n, m } => Schedule::OneShot { target: 1.0 - n as f64 / m as f64, at: self.begin },
            _ => Schedule::Cubic(Ramp {
                initial: 0.0,
                target: self.target,
                begin: self.begin,
                end: self.end,
                every: self.every,
            }),
        }
    }
}

/// How often the state is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Steps between two saved states; 0: only when stopped. Default 100.
    pub every: u64,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self { every: 100 }
    }
}

/// Measurements during and after training; they do not change the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSettings {
    /// Steps between two measurements; 0: only at the end. Default 250.
    pub every: u64,
    /// Documents (built-in corpus) or windows (text) measured during the run, at least 1. Default 100.
    pub quick: u64,
    /// The same at the end, at least 1. Default 1000.
    pub full: u64,
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        Self { every: 250, quick: 100, full: 1000 }
    }
}

impl Recipe {
    /// Reads and checks a recipe. Relative paths in it are taken from the folder of the recipe.
    ///
    /// # Errors
    /// [`TrainError::Io`] and those of [`Recipe::from_toml_str`].
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io(path, "read"))?;
        let mut recipe = Self::parse(&text, &path.display().to_string())?;
        let base = path.parent().unwrap_or(Path::new(""));
        for file in [&mut recipe.data.text, &mut recipe.data.validation, &mut recipe.tokenizer.file]
            .into_iter()
            .flatten()
        {
            *file = base.join(&*file);
        }
        Ok(recipe)
    }

    /// Parses and checks a recipe.
    ///
    /// # Errors
    /// [`TrainError::RecipeSyntax`], [`TrainError::UnknownKey`], [`TrainError::Setting`].
    pub fn from_toml_str(text: &str) -> Result<Self, TrainError> {
        Self::parse(text, "recipe")
    }

    fn parse(text: &str, file: &str) -> Result<Self, TrainError> {
        let syntax =
            |e: toml::de::Error| TrainError::RecipeSyntax { file: file.to_owned(), message: e.to_string() };
        let table: toml::Table = text.parse().map_err(syntax)?;
        recipe_keys::check(&table, file)?;
        let recipe: Self = toml::from_str(text).map_err(syntax)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The fully resolved recipe as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only plain values")
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming field, value and what is allowed.
    pub fn validate(&self) -> Result<(), TrainError> {
        fn need(
            ok: bool,
            field: &'static str,
            value: impl ToString,
            allowed: &str,
        ) -> Result<(), TrainError> {
            match ok {
                true => Ok(()),
                false => {
                    Err(TrainError::Setting { field, value: value.to_string(), allowed: allowed.to_owned() })
                }
            }
        }
        let m = &self.model;
        let size = |v: usize| (1..=1 << 20).contains(&v);
        need(
            size(m.intermediate_size),
            "model.intermediate_size",
            m.intermediate_size,
            "allowed: 1 to 1048576",
        )?;
        need((1..=512).contains(&m.layers), "model.layers", m.layers, "allowed: 1 to 512")?;
        need((1..=1024).contains(&m.heads), "model.heads", m.heads, "allowed: 1 to 1024")?;
        need(
            size(m.hidden_size) && m.hidden_size.is_multiple_of(2 * m.heads),
            "model.hidden_size",
            m.hidden_size,
            "it must be a multiple of 2 * model.heads, up to 1048576",
        )?;
        need(
            m.kv_heads >= 1 && m.heads.is_multiple_of(m.kv_heads),
            "model.kv_heads",
            m.kv_heads,
            "it must divide model.heads",
        )?;
        need(
            (2..=1 << 20).contains(&m.max_positions),
            "model.max_positions",
            m.max_positions,
            "allowed: 2 to 1048576",
        )?;
        need(
            m.rope_theta.is_finite() && m.rope_theta > 1.0,
            "model.rope_theta",
            m.rope_theta,
            "it must be above 1",
        )?;
        need(m.norm_eps.is_finite() && m.norm_eps > 0.0, "model.norm_eps", m.norm_eps, "it must be above 0")?;
        let spread = m.embedding_init;
        need(spread > 0.0 && spread <= 10.0, "model.embedding_init", spread, "allowed: (0, 10]")?;
        let t = &self.tokenizer;
        need(
            (256..=65_536).contains(&t.vocab_size),
            "tokenizer.vocab_size",
            t.vocab_size,
            "allowed: 256 to 65536",
        )?;
        need(t.sample_bytes >= 1, "tokenizer.sample_bytes", t.sample_bytes, "it must be at least 1")?;
        let d = &self.data;
        need(
            (2..=m.max_positions).contains(&d.context),
            "data.context",
            d.context,
            "allowed: 2 to model.max_positions",
        )?;
        need((1..=65_536).contains(&d.batch), "data.batch", d.batch, "allowed: 1 to 65536")?;
        let o = &self.optimizer;
        let share = |x: f64| (0.0..1.0).contains(&x);
        need(o.lr.is_finite() && o.lr > 0.0, "optimizer.lr", o.lr, "it must be above 0")?;
        need(
            o.weight_decay.is_finite() && o.weight_decay >= 0.0,
            "optimizer.weight_decay",
            o.weight_decay,
            "it must be at least 0",
        )?;
        need(share(o.beta1), "optimizer.beta1", o.beta1, "allowed: [0, 1)")?;
        need(share(o.beta2), "optimizer.beta2", o.beta2, "allowed: [0, 1)")?;
        need(o.eps.is_finite() && o.eps > 0.0, "optimizer.eps", o.eps, "it must be above 0")?;
        need(share(o.momentum), "optimizer.momentum", o.momentum, "allowed: [0, 1)")?;
        need(
            !o.nesterov || o.momentum > 0.0,
            "optimizer.nesterov",
            o.nesterov,
            "it needs optimizer.momentum above 0",
        )?;
        let s = &self.schedule;
        need(s.steps >= 1, "schedule.steps", s.steps, "it must be at least 1")?;
        need(s.warmup < s.steps, "schedule.warmup", s.warmup, "it must be below schedule.steps")?;
        need(
            (0.0..=1.0).contains(&s.final_fraction),
            "schedule.final_fraction",
            s.final_fraction,
            "allowed: [0, 1]",
        )?;
        need(
            self.clip.norm.is_finite() && self.clip.norm >= 0.0,
            "clip.norm",
            self.clip.norm,
            "it must be at least 0",
        )?;
        need(self.evaluation.quick >= 1, "evaluation.quick", self.evaluation.quick, "it must be at least 1")?;
        need(self.evaluation.full >= 1, "evaluation.full", self.evaluation.full, "it must be at least 1")?;
        let Some(p) = &self.sparsity else { return Ok(()) };
        need(share(p.target), "sparsity.target", p.target, "allowed: [0, 1)")?;
        need(p.every >= 1, "sparsity.every", p.every, "it must be at least 1")?;
        need(p.begin < s.steps, "sparsity.begin", p.begin, "it must be below schedule.steps")?;
        need(
            p.begin < p.end && p.end < s.steps,
            "sparsity.end",
            p.end,
            "it must be above sparsity.begin and below schedule.steps",
        )?;
        need(
            p.distribution == Distribution::Uniform || p.pattern == Pattern::Unstructured,
            "sparsity.distribution",
            "erk",
            "with this pattern only uniform is allowed",
        )?;
        need(
            !p.excluded.iter().any(String::is_empty),
            "sparsity.excluded",
            "an empty name",
            "each entry must name something",
        )
    }
}
