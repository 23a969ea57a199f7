//! CATS — finds per layer the cutoff on |SiLU(gate)| below which a chosen share of the neurons is skipped.
//!
//! Paper:    Lee, Lee, Zhang, Tiwari, Mirhoseini, CATS: Contextually-Aware Thresholding for Sparsity in Large
//!           Language Models, COLM 2024, arXiv 2404.08763. Reference code: ScalingIntelligence/CATS.
//! Problem:  y = W_down (SiLU(W_gate x) · W_up x), W_gate, W_up: [d_ff, d], W_down: [d, d_ff]; find t per layer with
//!           P(|SiLU(W_gate x)| <= t) = k over a text, so that rows of W_up and columns of W_down need not be read.
//! Method:   1. stream the text through the dense model, block by block. 2. count |SiLU(W_gate x)| over all tokens and
//!           neurons of the block; t is its quantile k (§3.2), exact, in two passes over the gate products. 3. write the
//!           thresholds; the weights stay as they are.
//! Cost:     one forward pass over the text and one more gate product per block; the hidden states of the text twice
//!           (`all`: four times, and no further product).
//! Variants: `sparsity` is k, the same in every layer; 1 makes every neuron idle. `where`: gate (the paper), or all: cutoffs on |x|
//!           of the inputs of all seven matrices, whose columns are then not read (Liu et al., TEAL, arXiv 2408.14690, with
//!           the same share everywhere instead of its greedy allocation).
//! Differs:  from the reference code: the exact quantile instead of 19,998 bins on [-2, 2]; no padded tokens exist; none of its
//!           experiments that are off by default (cutoffs on |h - mean(h)|, regularisers, a low-rank predictor). From
//!           the paper: no fine-tuning afterwards.
//! Choose:   for decoding one to four tokens at a time; it gains at most 1/(1/3 + 2/3 (1 - k)) of the MLP, and nothing for prompts
//!           and large batches, whose active neurons differ. `all` skips in the attention's matrices and the gate too.
//! Fails on: no calibration tokens → `EmptyCalibration`; a model without a SiLU-gated MLP → `UnsupportedModel`; activations
//!           not finite → `NonFiniteInput`.

use burn::tensor::{Device, Tensor, TensorData};
use rarefy_checkpoint::{Activation, Architecture, Checkpoint};
use rarefy_kernels::KernelError;
use rarefy_kernels::calibrate::cats::CatsExact;
use rarefy_kernels::row_skip::silu;
use rarefy_kernels::select::QuantileFirst;
use rarefy_models::{Block, InputThresholds, SparseActivations, SparseFiles};
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{RuleEntry, Settings, parse};
use crate::driver::observe;
use crate::{PruneError, RuleMethod, SettingError};

static INFO: MethodInfo = MethodInfo {
    slug: "cats",
    name: "CATS",
    family: "activation sparsity",
    paper: "Lee et al., COLM 2024, arXiv 2404.08763",
    command: "prune --method cats",
    maturity: Maturity::Preview,
    summary: "skips the neurons of a gated MLP whose activation is below a threshold per layer",
};

pub(super) static ENTRY: RuleEntry = RuleEntry {
    info: &INFO,
    repro: "cats",
    defaults: super::defaults::<CatsSettings>,
    build: |value| Ok(Box::new(Cats(parse(INFO.slug, value)?))),
};

/// What the cutoff is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CatsPlace {
    /// The activations of the gate: neurons are skipped.
    Gate,
    /// The inputs of all seven matrices: columns are skipped.
    All,
}

/// Settings of [`Cats`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatsSettings {
    /// Share of idle neurons in every layer on the calibration text, in [0, 1]. Paper §5: 0.5.
    pub sparsity: f64,
    /// What the cutoff is on: `gate` or `all`. Paper §3: `gate`.
    #[serde(rename = "where")]
    pub place: CatsPlace,
}

impl Default for CatsSettings {
    fn default() -> Self {
        Self { sparsity: 0.5, place: CatsPlace::Gate }
    }
}

impl Settings for CatsSettings {
    fn validate(&self) -> Result<(), SettingError> {
        if (0.0..=1.0).contains(&self.sparsity) {
            Ok(())
        } else {
            Err(SettingError::new("sparsity", self.sparsity, "in [0, 1]"))
        }
    }
}

/// The method.
#[derive(Debug, Clone)]
pub struct Cats(CatsSettings);

impl Cats {
    /// The method with these settings.
    ///
    /// # Errors
    /// A share outside [0, 1].
    pub fn new(settings: CatsSettings) -> Result<Self, SettingError> {
        settings.validate()?;
        Ok(Self(settings))
    }
}

/// `W_gate x` of one sequence.
fn gates(block: &Block, x: &[f32], device: &Device) -> Result<Vec<f32>, PruneError> {
    let gate = block.linear("mlp.gate_proj")?;
    let shape = [1, x.len() / gate.cols(), gate.cols()];
    let z = gate.forward(Tensor::from_data(TensorData::new(x.to_vec(), shape), device));
    z.into_data().try_into_vec::<f32>().map_err(|e| PruneError::Activations(format!("{e:?}")))
}

/// The first matrix that reads each of the four inputs of a block.
const INPUTS: [&str; 4] = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];

/// The exact quantile of `|x|`, in two passes; a share of zero gives zero, the dense model.
fn magnitude_quantile(inputs: &[Vec<f32>], share: f64) -> Result<f32, KernelError> {
    let magnitudes = |x: &[f32]| x.iter().map(|v| v.abs()).collect::<Vec<f32>>();
    if share <= 0.0 {
        return Ok(0.0);
    }
    let mut first = QuantileFirst::default();
    inputs.iter().for_each(|x| first.add(&magnitudes(x)));
    let mut second = first.second(share)?;
    inputs.iter().for_each(|x| second.add(&magnitudes(x)));
    // The largest input of this text is not the largest of all texts.
    if share < 1.0 { second.value() } else { Ok(f32::MAX) }
}

impl Cats {
    /// Cutoffs on the inputs of all matrices.
    fn on_inputs(
        &self,
        source: &Checkpoint,
        calibration: &[Vec<u32>],
        seen: &mut dyn FnMut(usize, usize),
    ) -> Result<SparseActivations, PruneError> {
        let (config, share) = (source.config(), self.0.sparsity);
        let (mut thresholds, mut realised) = (Vec::new(), Vec::new());
        observe(source, calibration, &INPUTS, seen, &mut |index, block, _, inputs| {
            let mut found = [0.0; 4];
            // Weights not read, of all weights.
            let (mut idle, mut all) = (0.0, 0.0);
            for (i, (x, t)) in inputs.iter().zip(&mut found).enumerate() {
                *t = magnitude_quantile(x, share)
                    .map_err(|source| PruneError::Calibration { block: index, source })?;
                let readers: &[&str] = match i {
                    0 => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                    2 => &["mlp.gate_proj", "mlp.up_proj"],
                    _ => &INPUTS[i..=i],
                };
                for reader in readers {
                    let rows = block.linear(reader)?.rows() as f64;
                    let zeros: usize = x.iter().map(|x| x.iter().filter(|v| v.abs() <= *t).count()).sum();
                    idle += zeros as f64 * rows;
                    all += x.iter().map(Vec::len).sum::<usize>() as f64 * rows;
                }
            }
            let [attention, output, mlp, down] = found;
            thresholds.push(InputThresholds { attention, output, mlp, down });
            realised.push(if all > 0.0 { idle / all } else { 0.0 });
            Ok(())
        })?;
        Ok(SparseActivations {
            version: SparseActivations::VERSION,
            method: INFO.slug.into(),
            share,
            d_ff: config.intermediate_size,
            thresholds: Vec::new(),
            inputs: thresholds,
            realised,
            tokens: calibration.iter().map(|c| c.len() as u64).sum(),
        })
    }
}

impl RuleMethod for Cats {
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
        if config.architecture == Architecture::Opt || config.activation != Activation::Silu {
            let what = "it needs a gated MLP with SiLU (Llama, Mistral, Qwen2)".to_owned();
            return Err(PruneError::UnsupportedModel { method: INFO.slug, what });
        }
        if self.0.place == CatsPlace::All {
            let activations = self.on_inputs(source, calibration, seen)?;
            activations.check(config).map_err(rarefy_models::ModelError::from)?;
            return Ok(SparseFiles { activations: Some(activations), attention: None });
        }
        let (share, d_ff) = (self.0.sparsity, config.intermediate_size);
        let (mut thresholds, mut realised) = (Vec::new(), Vec::new());
        observe(source, calibration, &["mlp.gate_proj"], seen, &mut |index, block, device, inputs| {
            let inputs = &inputs[0];
            let refused = |source| PruneError::Calibration { block: index, source };
            let mut first = CatsExact::default();
            for x in inputs {
                first.add(&gates(block, x, device)?, d_ff, None).map_err(refused)?;
            }
            let mut second = first.second(share).map_err(refused)?;
            for x in inputs {
                second.add(&gates(block, x, device)?, d_ff, None).map_err(refused)?;
            }
            // The largest activation of this text is not the largest of all texts.
            let t = if share < 1.0 { second.threshold().map_err(refused)? } else { f32::MAX };
            let (mut idle, mut all) = (0u64, 0u64);
            for x in inputs {
                let z = gates(block, x, device)?;
                idle += z.iter().filter(|z| silu(**z).abs() <= t).count() as u64;
                all += z.len() as u64;
            }
            thresholds.push(t);
            realised.push(idle as f64 / all.max(1) as f64);
            Ok(())
        })?;
        let activations = SparseActivations {
            version: SparseActivations::VERSION,
            method: INFO.slug.into(),
            share,
            d_ff,
            thresholds,
            inputs: Vec::new(),
            realised,
            tokens: calibration.iter().map(|c| c.len() as u64).sum(),
        };
        activations.check(config).map_err(rarefy_models::ModelError::from)?;
        Ok(SparseFiles { activations: Some(activations), attention: None })
    }
}
