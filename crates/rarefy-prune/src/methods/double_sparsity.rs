//! Double Sparsity — finds the few channels of keys by which decoding picks the few tokens it attends to.
//!
//! Paper:    Yang, Sheng, Gonzalez, Stoica, Zheng, Post-Training Sparse Attention with Double Sparsity, 2024, arXiv
//!           2408.07092. Reference code: andy-yang-1/DoubleSparse.
//! Problem:  softmax(q Kᵀ / √d) V for one query over n cached tokens, reading r of d channels of all keys and d channels of
//!           T of n tokens. q: [heads, d], K, V: [n, kv_heads, d].
//! Method:   1. stream the text through the dense model; take queries and keys after the rotation. 2. importance of a channel,
//!           a mean over all tokens (§3.2), summed over the query heads of a key-value head; the r largest are written down.
//!           3. when decoding: score all tokens on those channels, keep the best T, attend to them exactly; the first
//!           `dense_layers` blocks attend to all.
//! Cost:     one forward pass over the text and one more product of queries and keys per block; the hidden states twice.
//! Variants: `importance`: qk (mean |q k| of a token with itself, the default), q (mean |q|), k (mean |k|), all-pairs (mean |q_i k_j|),
//!           softmax-weighted (the same, weighted as attention weighs), absolute-sum (|Σ q k|), variance (of q k); `grouping`: one list of
//!           tokens per key-value head, per query head, or per query head by channels of its own (the published rule); `labels`:
//!           the channels of the keys in 32, 16, 8 or 4 bits.
//! Differs:  from the reference code: every block of text counts (there only the last does); q and k are taken after the
//!           rotation for all variants (there q and k before it); channels are per key-value head unless asked otherwise. From
//!           the paper: labels in 32 bits by default, no offloading.
//! Choose:   for decoding after thousands of tokens; below about two thousand the cache of keys fits the processor's and little is
//!           gained. Prompts are read densely.
//! Fails on: no calibration tokens → `EmptyCalibration`; a sliding window or OPT → `UnsupportedModel`; no block left after
//!           `dense_layers` → `Setting`.

use rarefy_checkpoint::{Architecture, Checkpoint};
use rarefy_kernels::attention::LabelKind;
use rarefy_kernels::calibrate::double_sparsity::{ChannelCalibrator, Importance};
use rarefy_models::{Grouping, SparseAttention, SparseFiles};
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{RuleEntry, Settings, parse};
use crate::driver::observe;
use crate::{PruneError, RuleMethod, SettingError};

static INFO: MethodInfo = MethodInfo {
    slug: "double-sparsity",
    name: "Double Sparsity",
    family: "sparse attention",
    paper: "Yang et al., 2024, arXiv 2408.07092",
    command: "prune --method double-sparsity",
    maturity: Maturity::Preview,
    summary: "attends to the few cached tokens that score best on a few channels of their keys",
};

pub(super) static ENTRY: RuleEntry = RuleEntry {
    info: &INFO,
    repro: "double-sparsity",
    defaults: super::defaults::<DoubleSparsitySettings>,
    build: |value| Ok(Box::new(DoubleSparsity(parse(INFO.slug, value)?))),
};

/// Settings of [`DoubleSparsity`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoubleSparsitySettings {
    /// Tokens attended to: up to 1 a share of the model's context, from 2 on a number. Paper, abstract: 1/16.
    pub tokens: f64,
    /// Channels looked at: up to 1 a share of a head's, from 2 on a number. Paper, abstract: 1/16.
    pub channels: f64,
    /// What makes a channel important. Reference code: qk.
    pub importance: Importance,
    /// Which query heads share a list of tokens: `summed`, `per-head` or `own-channels`. Ours: `summed`, which reads each row once.
    pub grouping: Grouping,
    /// How the channels of the cached keys are stored: `f32`, `bf16`, `int8` or `int4`. Ours: `f32`.
    pub labels: LabelKind,
    /// Blocks from the first one on that attend to all tokens. Reference code: 2.
    pub dense_layers: usize,
}

impl Default for DoubleSparsitySettings {
    fn default() -> Self {
        Self {
            tokens: 1.0 / 16.0,
            channels: 1.0 / 16.0,
            importance: Importance::Qk,
            grouping: Grouping::Summed,
            labels: LabelKind::F32,
            dense_layers: 2,
        }
    }
}

impl Settings for DoubleSparsitySettings {
    fn validate(&self) -> Result<(), SettingError> {
        for (field, value) in [("tokens", self.tokens), ("channels", self.channels)] {
            // From 2 on whole numbers, so that a share written as a percentage does not pass as a number.
            let is_share = value > 0.0 && value <= 1.0;
            let is_number = (2.0..=f64::from(u32::MAX)).contains(&value) && value.fract() == 0.0;
            if !is_share && !is_number {
                return Err(SettingError::new(field, value, "a share in (0, 1] or a whole number from 2 on"));
            }
        }
        Ok(())
    }
}

/// A share of `all`, rounded up, or a number.
fn resolve(value: f64, all: usize) -> usize {
    // A billionth less, so that 1/3 of 3 is 1 whatever the rounding.
    let count = if value <= 1.0 { (value * all as f64 - 1e-9).ceil() } else { value };
    (count as usize).max(1)
}

/// The method.
#[derive(Debug, Clone)]
pub struct DoubleSparsity(DoubleSparsitySettings);

impl DoubleSparsity {
    /// The method with these settings.
    ///
    /// # Errors
    /// Shares or numbers out of range.
    pub fn new(settings: DoubleSparsitySettings) -> Result<Self, SettingError> {
        settings.validate()?;
        Ok(Self(settings))
    }
}

impl RuleMethod for DoubleSparsity {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn settings(&self) -> Value {
        super::to_json(&self.0)
    }

    fn calibrate(
        &self,
        source: &Checkpoint,
        calibration: &[Vec<u32>],
        seen: &mut dyn FnMut(usize, usize),
    ) -> Result<SparseFiles, PruneError> {
        let config = source.config();
        let unsupported = |what: &str| PruneError::UnsupportedModel { method: INFO.slug, what: what.into() };
        if config.architecture == Architecture::Opt {
            return Err(unsupported("it needs rotary attention (Llama, Qwen2)"));
        }
        let (heads, kv_heads, d) = (config.n_heads, config.n_kv_heads, config.head_dim);
        let rank = resolve(self.0.channels, d);
        if rank > d {
            return Err(SettingError::new("channels", self.0.channels, format!("at most {d}")).into());
        }
        if self.0.dense_layers >= config.n_layers {
            let allowed = format!("below the {} blocks of the model", config.n_layers);
            return Err(SettingError::new("dense_layers", self.0.dense_layers, allowed).into());
        }
        let importance = self.0.importance;
        let mut channels = Vec::new();
        observe(source, calibration, &["self_attn.q_proj"], seen, &mut |index, block, device, inputs| {
            let refused = |source| PruneError::Calibration { block: index, source };
            if block.attention_shape().is_none_or(|s| s.window.is_some()) {
                return Err(unsupported("its attention has a sliding window"));
            }
            let mut calibrator = ChannelCalibrator::new(importance, heads, kv_heads, d).map_err(refused)?;
            for (x, tokens) in inputs[0].iter().zip(calibration) {
                let found = block.queries_keys(x, tokens.len(), device);
                let qk = found.ok_or_else(|| unsupported("it has no rotary attention"))?;
                calibrator.add(&qk.queries, &qk.keys, tokens.len()).map_err(refused)?;
            }
            let best = match self.0.grouping {
                Grouping::OwnChannels => calibrator.head_channels(rank),
                Grouping::Summed | Grouping::PerHead => calibrator.group_channels(rank),
            };
            let best = best.map_err(refused)?;
            channels.push(best.chunks_exact(rank).map(<[u32]>::to_vec).collect());
            Ok(())
        })?;
        let attention = SparseAttention {
            version: SparseAttention::VERSION,
            method: INFO.slug.into(),
            importance,
            kept: resolve(self.0.tokens, config.max_positions),
            grouping: self.0.grouping,
            labels: self.0.labels,
            dense_layers: self.0.dense_layers,
            kv_heads,
            head_dim: d,
            channels,
            tokens: calibration.iter().map(|c| c.len() as u64).sum(),
        };
        attention.check(config).map_err(rarefy_models::ModelError::from)?;
        Ok(SparseFiles { activations: None, attention: Some(attention) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shares_and_numbers() {
        assert_eq!((resolve(1.0 / 16.0, 512), resolve(1.0 / 3.0, 3), resolve(0.1, 5)), (32, 1, 1));
        assert_eq!((resolve(1.0, 77), resolve(40.0, 8), resolve(1e-9, 8)), (77, 40, 1));
        for bad in [0.0, -1.0, 1.5, 2.5, f64::NAN, f64::INFINITY] {
            let settings = DoubleSparsitySettings { tokens: bad, ..DoubleSparsitySettings::default() };
            assert!(
                DoubleSparsity::new(settings.clone()).unwrap_err().to_string().contains("tokens"),
                "{bad}"
            );
            let settings = DoubleSparsitySettings { channels: bad, tokens: 0.5, ..settings };
            assert!(DoubleSparsity::new(settings).is_err());
        }
    }
}
