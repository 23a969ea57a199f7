//! Mask rules for SparseGPT's update: its own saliency, and the ablations of the Wanda paper.
//!
//! Paper:    Sun et al., ICLR 2024, arXiv 2306.11695, ablation of mask selection against weight
//!           update. Reference code: locuslab/wanda, `lib/ablate.py`.
//! Method:   "seq": the whole mask first, by magnitude (matrix) or Wanda (rows), then SparseGPT's
//!           update with that mask. "iter": the mask of each block of columns (N:M: of each
//!           group) by the same score on the already updated weights, the whole block competing.
//! Differs:  from the reference code: its norms are scaled by 1/√n once too often, which changes
//!           no order; not copied. Exact counts unless `compat`.

use rarefy_sparsity::{Group, Mask, Pattern};
use serde::{Deserialize, Serialize};

use crate::{
    LayerStats, LinearLayer, PruneError,
    linalg::InverseFactor,
    selection::{self, Selection},
};

/// How the mask for SparseGPT's update is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskRule {
    /// SparseGPT: `w² / U_cc²`, per block of columns, on updated weights.
    Obs,
    /// Magnitude over the matrix, before any update.
    MagnitudeSeq,
    /// Wanda over rows, before any update.
    WandaSeq,
    /// Magnitude per block of columns, on updated weights.
    MagnitudeIter,
    /// Wanda score per block of columns, on updated weights.
    WandaIter,
    /// The zeros already in the weight; nothing else is pruned.
    Existing,
}

impl MaskRule {
    /// The mask, when it is fixed before the update.
    pub(super) fn fixed_mask(
        self,
        layer: &LinearLayer,
        stats: &LayerStats,
        pattern: Pattern,
        sparsity: f64,
        compat: bool,
    ) -> Result<Option<Mask>, PruneError> {
        let (rows, cols) = (layer.rows, layer.cols);
        let factors;
        let (group, factor) = match self {
            Self::Obs | Self::MagnitudeIter | Self::WandaIter => return Ok(None),
            Self::Existing => return Ok(Some(Mask::from_nonzeros(&layer.weight, rows, cols))),
            Self::MagnitudeSeq => (Group::Tensor, None),
            Self::WandaSeq => {
                factors = selection::norm_factors(stats.input_norms(&layer.name, cols)?);
                (Group::Row, Some(&factors[..]))
            }
        };
        let selection = Selection { pattern, group, sparsity, threshold_rule: compat, factor };
        selection::choose(&layer.name, &layer.weight, rows, cols, &selection).map(Some)
    }

    /// Weight of each input in the score used during the update: the score is `|w| · saliency[c]`.
    pub(super) fn saliency(
        self,
        layer: &str,
        stats: &LayerStats,
        factor: &InverseFactor,
    ) -> Result<Vec<f64>, PruneError> {
        let cols = factor.len();
        Ok(match self {
            Self::WandaIter => stats.input_norms(layer, cols)?.iter().map(|a| a.sqrt()).collect(),
            Self::MagnitudeIter => vec![1.0; cols],
            _ => (0..cols).map(|c| 1.0 / factor.get(c, c)).collect(),
        })
    }
}
