//! What a model leaves out while it runs: idle neurons of the gated MLP, distant tokens of the attention.
//!
//! The rules are data ([`Rules`], one per block), not weights: the same folder runs dense without them. They are followed in two
//! ways that give the same numbers up to the order of sums: over whole sequences by masking the dense computation (perplexity),
//! and for one new token after a cache by kernels that do not read what is left out (decoding).

mod error;
mod files;
pub(crate) mod heads;
pub(crate) mod inputs;
pub(crate) mod mlp;
pub(crate) mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rarefy_checkpoint::{Activation, Architecture, ModelConfig};
use rarefy_kernels::attention::LabelKind;
use serde::{Deserialize, Serialize};

pub use error::RuleError;
pub use files::{SparseActivations, SparseAttention, SparseFiles};

/// Which neurons of a gated MLP are idle for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MlpRule {
    /// None; decoding runs on the row kernel all the same.
    All,
    /// Those with `|act(gate)|` at most this: CATS.
    Threshold(f32),
    /// Those with a negative gate, whose activation becomes ReLU.
    Relu,
    /// A random share of them, drawn anew for every token: what a rule has to beat. Not for decoding.
    Random {
        /// Share of idle neurons.
        share: f64,
        /// Seed of the draw.
        seed: u64,
    },
}

/// Which query heads share a list of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// Those of a key-value head, by the sum of their scores: its rows are read once.
    Summed,
    /// None: a list for each, by the channels of its key-value head.
    PerHead,
    /// None: a list for each, by channels of its own; the labels are kept once per query head.
    OwnChannels,
}

/// Thresholds on the inputs of the seven matrices of a block: of each token, an input `|x|` at most this is taken as zero and its column of
/// the matrix is not read. Matrices with the same input share one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputThresholds {
    /// Of the query, key and value projections.
    pub attention: f32,
    /// Of the output projection of the attention.
    pub output: f32,
    /// Of the gate and up projections.
    pub mlp: f32,
    /// Of the down projection.
    pub down: f32,
}

impl InputThresholds {
    /// In the order the inputs appear.
    #[must_use]
    pub fn values(&self) -> [f32; 4] {
        [self.attention, self.output, self.mlp, self.down]
    }
}

/// Which of the visible tokens a query attends to.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionRule {
    /// All; decoding runs on the kernel for one query all the same.
    All,
    /// The last ones: the sliding window that a rule has to beat.
    Window(usize),
    /// The `kept` tokens that score best on a few channels of their keys.
    DoubleSparse {
        /// `[kv_heads][r]`, or `[heads][r]` with [`Grouping::OwnChannels`].
        channels: Arc<[u32]>,
        /// Tokens attended to; with fewer visible, all of them.
        kept: usize,
        /// Which heads share a list.
        grouping: Grouping,
        /// How the channels of the keys are stored.
        labels: LabelKind,
    },
    /// The `kept` tokens that score best on means of adjacent channels instead of chosen ones: what needs no calibration. It reads
    /// every key, also when decoding; for comparison.
    GroupMeans {
        /// Means per head.
        rank: usize,
        /// Tokens attended to; with fewer visible, all of them.
        kept: usize,
        /// Which heads share a list.
        grouping: Grouping,
    },
}

/// The rules of a model, one per block; an empty list leaves that part as it always is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Of the MLPs.
    pub mlp: Vec<MlpRule>,
    /// Of the attention.
    pub attention: Vec<AttentionRule>,
    /// Of the inputs of all matrices; only without rules of the MLPs, which they replace.
    pub inputs: Vec<InputThresholds>,
}

impl Rules {
    /// Nothing is left out, but decoding runs on the same kernels as with rules: what a rule's speed is compared with.
    #[must_use]
    pub fn all(n_layers: usize) -> Self {
        let (mlp, attention) = (vec![MlpRule::All; n_layers], vec![AttentionRule::All; n_layers]);
        Self { mlp, attention, inputs: Vec::new() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mlp.is_empty() && self.attention.is_empty() && self.inputs.is_empty()
    }

    /// Checks them against a model.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), RuleError> {
        let model = |reason: &str, remedy| Err(RuleError::Model { reason: reason.into(), remedy });
        if self.is_empty() {
            return Ok(());
        }
        let fields = [
            ("MLP rules", self.mlp.len()),
            ("attention rules", self.attention.len()),
            ("input rules", self.inputs.len()),
        ];
        for (field, found) in fields {
            if found != 0 && found != config.n_layers {
                return Err(RuleError::Size { field, expected: config.n_layers, found });
            }
        }
        if config.architecture == Architecture::Opt {
            return model("OPT has no gated MLP and no rotary attention", "run it dense");
        }
        if !self.mlp.is_empty() {
            if !matches!(config.activation, Activation::Silu | Activation::Relu) {
                return model("the gate is neither SiLU nor ReLU", "run it dense");
            }
            if config.mlp_bias {
                return model("the MLP has biases", "run it dense");
            }
        }
        if !self.mlp.is_empty() && !self.inputs.is_empty() {
            return model("rules of gates and of inputs at once", "keep one of them");
        }
        for (layer, thresholds) in self.inputs.iter().enumerate() {
            if let Some(value) = thresholds.values().into_iter().find(|t| t.is_nan() || *t < 0.0) {
                return Err(RuleError::Threshold { layer, value });
            }
        }
        for (layer, rule) in self.mlp.iter().enumerate() {
            match *rule {
                // A NaN must not pass; infinity is a way to say "nothing is active".
                MlpRule::Threshold(value) if value.is_nan() || value < 0.0 => {
                    return Err(RuleError::Threshold { layer, value });
                }
                MlpRule::Random { share, .. } if !(0.0..=1.0).contains(&share) => {
                    let (value, allowed) = (share.to_string(), "0 to 1");
                    return Err(RuleError::Range { field: "share", value, allowed });
                }
                _ => {}
            }
        }
        for (layer, rule) in self.attention.iter().enumerate() {
            match rule {
                AttentionRule::All => {}
                AttentionRule::Window(0) => {
                    let (value, allowed) = ("0".to_owned(), "at least 1");
                    return Err(RuleError::Range { field: "window", value, allowed });
                }
                AttentionRule::Window(_) => {}
                AttentionRule::DoubleSparse { kept: 0, .. } | AttentionRule::GroupMeans { kept: 0, .. } => {
                    let (value, allowed) = ("0".to_owned(), "at least 1");
                    return Err(RuleError::Range { field: "kept", value, allowed });
                }
                AttentionRule::GroupMeans { rank, .. } => {
                    if !(1..=config.head_dim).contains(rank) {
                        let (value, allowed) = (rank.to_string(), "1 to the channels of a head");
                        return Err(RuleError::Range { field: "rank", value, allowed });
                    }
                }
                AttentionRule::DoubleSparse { channels, grouping, .. } => {
                    let own = *grouping == Grouping::OwnChannels;
                    let heads = if own { config.n_heads } else { config.n_kv_heads };
                    let head_dim = config.head_dim;
                    if channels.is_empty() || !channels.len().is_multiple_of(heads) {
                        let found = channels.len();
                        return Err(RuleError::Size { field: "channels", expected: heads, found });
                    }
                    let rank = channels.len() / heads;
                    if let Some(i) = channels.iter().position(|c| *c as usize >= head_dim) {
                        let (head, channel) = (i / rank, channels[i]);
                        return Err(RuleError::Channel { layer, head, channel, head_dim });
                    }
                }
            }
        }
        Ok(())
    }
}

/// How much was left out, counted while a model runs.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    left_out: AtomicU64,
    all: AtomicU64,
}

impl Counts {
    pub(crate) fn add(&self, left_out: usize, all: usize) {
        self.left_out.fetch_add(left_out as u64, Ordering::Relaxed);
        self.all.fetch_add(all as u64, Ordering::Relaxed);
    }

    /// The share since the last call; `None` when nothing was counted.
    pub(crate) fn take(&self) -> Option<f64> {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let all = self.all.swap(0, Ordering::Relaxed);
        (all > 0).then(|| left_out as f64 / all as f64)
    }
}

/// Shares left out, block by block, of what the dense model would have done; `None` where nothing was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Realised {
    /// Idle neurons.
    pub mlp: Vec<Option<f64>>,
    /// Visible tokens not attended to.
    pub attention: Vec<Option<f64>>,
    /// Weights not read since their input was taken as zero.
    pub inputs: Vec<Option<f64>>,
}

impl Realised {
    fn mean(list: &[Option<f64>]) -> Option<f64> {
        let some: Vec<f64> = list.iter().flatten().copied().collect();
        (!some.is_empty()).then(|| some.iter().sum::<f64>() / some.len() as f64)
    }

    /// Mean over the blocks that counted.
    #[must_use]
    pub fn mlp_mean(&self) -> Option<f64> {
        Self::mean(&self.mlp)
    }

    /// Mean over the blocks that counted.
    #[must_use]
    pub fn attention_mean(&self) -> Option<f64> {
        Self::mean(&self.attention)
    }

    /// Mean over the blocks that counted.
    #[must_use]
    pub fn inputs_mean(&self) -> Option<f64> {
        Self::mean(&self.inputs)
    }
}

/// The rules of one block with what runs them.
#[derive(Debug, Default)]
pub(crate) struct BlockRules {
    pub(crate) mlp: Option<mlp::MlpRun>,
    pub(crate) attention: Option<tokens::AttentionRun>,
    pub(crate) inputs: Option<Arc<Counts>>,
}
