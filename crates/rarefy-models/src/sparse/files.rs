//! The rules as files of a model folder: `sparse-activations.json` and `sparse-attention.json`.
//!
//! Both are small, carry a version, and are checked against the model before anything runs.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rarefy_checkpoint::ModelConfig;
use rarefy_kernels::attention::LabelKind;
use rarefy_kernels::calibrate::double_sparsity::Importance;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{AttentionRule, Grouping, InputThresholds, MlpRule, RuleError, Rules};

/// Version of both files.
const VERSION: u32 = 1;
/// Largest file accepted: 16 MB are the channels of a model with a million heads and layers.
const LIMIT: u64 = 16 << 20;

/// Thresholds on the gates of the MLPs, one per block; or on the inputs of all matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseActivations {
    /// Version of the file, 1.
    pub version: u32,
    /// The method that found them.
    pub method: String,
    /// Share of idle neurons aimed at, in [0, 1].
    pub share: f64,
    /// Neurons of a block.
    pub d_ff: usize,
    /// A neuron is idle for a token when `|SiLU(gate)|` is at most this; one per block, or none when there are `inputs`.
    pub thresholds: Vec<f32>,
    /// Thresholds on the inputs of all matrices instead, per block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputThresholds>,
    /// Share of idle neurons, or of weights not read, on the calibration text, per block.
    pub realised: Vec<f64>,
    /// Tokens of the calibration text.
    pub tokens: u64,
}

/// Channels by which cached tokens are ranked, and how many tokens are attended to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseAttention {
    /// Version of the file, 1.
    pub version: u32,
    /// The method that found them.
    pub method: String,
    /// What made a channel important.
    pub importance: Importance,
    /// Tokens attended to; with fewer in the cache, all of them.
    pub kept: usize,
    /// Whether the query heads of a group share one list of tokens.
    pub grouping: Grouping,
    /// How the channels of the cached keys are stored.
    pub labels: LabelKind,
    /// Blocks from the first one on that attend to all tokens.
    pub dense_layers: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// `[layers][kv_heads][r]`, or `[layers][heads][r]` with channels of their own; the most important channel first.
    pub channels: Vec<Vec<Vec<u32>>>,
    /// Tokens of the calibration text.
    pub tokens: u64,
}

/// What a model folder says about running it sparsely.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SparseFiles {
    /// `sparse-activations.json`.
    pub activations: Option<SparseActivations>,
    /// `sparse-attention.json`.
    pub attention: Option<SparseAttention>,
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuleError> {
    let io = |source| RuleError::Io { path: path.into(), source };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LIMIT {
        return Err(RuleError::TooLarge { path: path.into(), limit: LIMIT });
    }
    // The version comes first: a later one may have other fields.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let json = |e: serde_json::Error| RuleError::Json { path: path.into(), reason: e.to_string() };
    let Version { version } = serde_json::from_slice(&bytes).map_err(json)?;
    check_version(version)?;
    serde_json::from_slice(&bytes).map(Some).map_err(json)
}

fn check_version(found: u32) -> Result<(), RuleError> {
    if found == VERSION { Ok(()) } else { Err(RuleError::Version { found, known: VERSION }) }
}

fn size(field: &'static str, expected: usize, found: usize) -> Result<(), RuleError> {
    if expected == found { Ok(()) } else { Err(RuleError::Size { field, expected, found }) }
}

impl SparseActivations {
    /// Name of the file.
    pub const FILE: &'static str = "sparse-activations.json";
    /// Version written.
    pub const VERSION: u32 = VERSION;

    /// Checks the thresholds against a model.
    ///
    /// # Errors
    /// [`RuleError`] naming the field, its value and what the model needs.
    pub fn check(&self, config: &ModelConfig) -> Result<(), RuleError> {
        check_version(self.version)?;
        if !(0.0..=1.0).contains(&self.share) {
            let (value, allowed) = (self.share.to_string(), "0 to 1");
            return Err(RuleError::Range { field: "share", value, allowed });
        }
        size("d_ff", config.intermediate_size, self.d_ff)?;
        if self.inputs.is_empty() {
            size("thresholds", config.n_layers, self.thresholds.len())?;
        } else {
            size("thresholds beside inputs", 0, self.thresholds.len())?;
            size("inputs", config.n_layers, self.inputs.len())?;
        }
        size("realised", config.n_layers, self.realised.len())?;
        let bad = |t: &f32| !t.is_finite() || *t < 0.0;
        if let Some(layer) = self.thresholds.iter().position(bad) {
            return Err(RuleError::Threshold { layer, value: self.thresholds[layer] });
        }
        for (layer, thresholds) in self.inputs.iter().enumerate() {
            if let Some(value) = thresholds.values().into_iter().find(bad) {
                return Err(RuleError::Threshold { layer, value });
            }
        }
        Ok(())
    }

    /// One rule per block; none when the thresholds are those of inputs.
    #[must_use]
    pub fn rules(&self) -> Vec<MlpRule> {
        self.thresholds.iter().map(|t| MlpRule::Threshold(*t)).collect()
    }
}

impl SparseAttention {
    /// Name of the file.
    pub const FILE: &'static str = "sparse-attention.json";
    /// Version written.
    pub const VERSION: u32 = VERSION;

    /// Channels of each key-value head that are looked at.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.channels.first().and_then(|l| l.first()).map_or(0, Vec::len)
    }

    /// Checks the lists against a model.
    ///
    /// # Errors
    /// [`RuleError`] naming the field, its value and what the model needs.
    pub fn check(&self, config: &ModelConfig) -> Result<(), RuleError> {
        check_version(self.version)?;
        if self.kept == 0 {
            let (value, allowed) = ("0".to_owned(), "at least 1");
            return Err(RuleError::Range { field: "kept", value, allowed });
        }
        size("kv_heads", config.n_kv_heads, self.kv_heads)?;
        size("head_dim", config.head_dim, self.head_dim)?;
        size("channels", config.n_layers, self.channels.len())?;
        let rank = self.rank();
        if !(1..=self.head_dim).contains(&rank) {
            let (value, allowed) = (rank.to_string(), "1 to the channels of a head");
            return Err(RuleError::Range { field: "channels", value, allowed });
        }
        let lists = if self.grouping == Grouping::OwnChannels { config.n_heads } else { self.kv_heads };
        for (layer, heads) in self.channels.iter().enumerate() {
            size("heads in channels", lists, heads.len())?;
            for (head, list) in heads.iter().enumerate() {
                size("channels of a head", rank, list.len())?;
                for (i, channel) in list.iter().enumerate() {
                    if *channel as usize >= self.head_dim {
                        let (channel, head_dim) = (*channel, self.head_dim);
                        return Err(RuleError::Channel { layer, head, channel, head_dim });
                    }
                    if list[..i].contains(channel) {
                        return Err(RuleError::Twice { layer, head, channel: *channel });
                    }
                }
            }
        }
        Ok(())
    }

    /// One rule per block.
    #[must_use]
    pub fn rules(&self) -> Vec<AttentionRule> {
        let one = |(layer, heads): (usize, &Vec<Vec<u32>>)| {
            if layer < self.dense_layers {
                return AttentionRule::All;
            }
            let channels: Arc<[u32]> = heads.concat().into();
            let (kept, grouping, labels) = (self.kept, self.grouping, self.labels);
            AttentionRule::DoubleSparse { channels, kept, grouping, labels }
        };
        self.channels.iter().enumerate().map(one).collect()
    }
}

impl SparseFiles {
    /// Reads the files of a folder, those that are there, and checks them against its model.
    ///
    /// # Errors
    /// [`RuleError`] for a file that is damaged, of another version, or of another model.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self, RuleError> {
        let files = Self {
            activations: read(&dir.join(SparseActivations::FILE))?,
            attention: read(&dir.join(SparseAttention::FILE))?,
        };
        if let Some(activations) = &files.activations {
            activations.check(config)?;
        }
        if let Some(attention) = &files.attention {
            attention.check(config)?;
        }
        Ok(files)
    }

    /// Whether the folder asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.activations.is_none() && self.attention.is_none()
    }

    /// The rules to load the model with.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            mlp: self.activations.as_ref().map(SparseActivations::rules).unwrap_or_default(),
            attention: self.attention.as_ref().map(SparseAttention::rules).unwrap_or_default(),
            inputs: self.activations.as_ref().map(|a| a.inputs.clone()).unwrap_or_default(),
        }
    }

    /// The files to write: names and contents.
    ///
    /// # Panics
    /// Never: the fields are numbers, strings and lists.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut out = Vec::new();
        let text = "numbers, strings and lists can be written";
        if let Some(activations) = &self.activations {
            out.push((SparseActivations::FILE, serde_json::to_vec_pretty(activations).expect(text)));
        }
        if let Some(attention) = &self.attention {
            // In one line: a line for each channel would be long.
            out.push((SparseAttention::FILE, serde_json::to_vec(attention).expect(text)));
        }
        out
    }
}
