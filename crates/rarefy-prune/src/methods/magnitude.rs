//! Magnitude — zeroes the smallest weights of every linear layer.
//!
//! Paper:    folklore; as a baseline in Sun et al., A Simple and Effective Pruning Approach for
//!           Large Language Models, ICLR 2024, arXiv 2306.11695. Reference code: locuslab/wanda.
//! Problem:  minimise ‖W − Ŵ‖² with a given pattern and number of zeros. W: [d_out, d_in] f32.
//! Method:   prune the ⌊R·C·s⌋ smallest |W| of the matrix; for N:M the M − N smallest of every
//!           group of M consecutive inputs. Kept weights do not change.
//! Cost:     O(R·C), no calibration; scores of the matrix as extra memory (4 bytes per weight)
//!           when the whole matrix competes.
//! Variants: `granularity` layer (default) or row; every pattern of `rarefy-sparsity`.
//! Differs:  from the reference code: exact counts by stable rank. `compat` reproduces its rule
//!           `|W| <= sort(|W|)[⌊R·C·s⌋]` (one more weight, and all ties) and its reading of N:M
//!           as N pruned of M.
//! Choose:   only as a baseline, or when there is no text to calibrate on; Wanda is as fast and
//!           clearly better on language models with outlier inputs.
//! Fails on: non-finite weights → `NonFiniteWeight`; M not dividing d_in → `PatternMismatch`.

use rand_chacha::ChaCha8Rng;
use rarefy_sparsity::{Group, Maturity, MethodInfo, Pattern};
use serde::{Deserialize, Serialize};

use super::{Granularity, MethodEntry, Settings, in_effect, parse};
use crate::{
    LayerPruner, LayerReport, LayerStats, LinearLayer, Needs, PruneError, SettingError,
    selection::{self, Selection},
};

static INFO: MethodInfo = MethodInfo {
    slug: "magnitude",
    name: "Magnitude",
    family: "post-training pruning",
    paper: "baseline of Sun et al., ICLR 2024, arXiv 2306.11695",
    command: "prune --method magnitude",
    maturity: Maturity::Stable,
    summary: "zeroes the smallest weights; needs no text",
};

pub(super) static ENTRY: MethodEntry = MethodEntry {
    info: &INFO,
    repro: "sparsegpt-wanda-baselines",
    defaults: super::defaults::<MagnitudeSettings>,
    build: |value| Ok(Box::new(Magnitude(parse(INFO.slug, value)?))),
};

/// Settings of [`Magnitude`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MagnitudeSettings {
    /// Fraction of weights set to zero, in [0, 1); ignored by N:M patterns. Wanda paper, table 2: 0.5.
    pub sparsity: f64,
    /// Where zeros may lie: `unstructured`, `2:4`, `block:4x1`, `group:16`, `channel`.
    pub pattern: Pattern,
    /// Weights that compete with each other: `layer` (reference code) or `row`.
    pub granularity: Granularity,
    /// Reproduce the reference code: thresholds by `<=`, N of N:M counts pruned weights.
    pub compat: bool,
}

impl Default for MagnitudeSettings {
    fn default() -> Self {
        Self { sparsity: 0.5, pattern: Pattern::Unstructured, granularity: Granularity::Layer, compat: false }
    }
}

impl MagnitudeSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SettingError`] naming field, value and range.
    pub fn validate(&self) -> Result<(), SettingError> {
        selection::validate_sparsity(self.sparsity)?;
        selection::validate_pattern(self.pattern, self.compat)
    }
}

impl Settings for MagnitudeSettings {
    fn validate(&self) -> Result<(), SettingError> {
        Self::validate(self)
    }
}

/// Magnitude pruning.
#[derive(Debug, Clone)]
pub struct Magnitude(MagnitudeSettings);

impl Magnitude {
    /// The method with checked settings.
    ///
    /// # Errors
    /// As [`MagnitudeSettings::validate`].
    pub fn new(settings: MagnitudeSettings) -> Result<Self, SettingError> {
        settings.validate()?;
        Ok(Self(settings))
    }
}

impl LayerPruner for Magnitude {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }

    fn pattern(&self) -> Pattern {
        selection::kept_pattern(self.0.pattern, self.0.compat)
    }

    fn settings(&self) -> serde_json::Value {
        in_effect(&self.0, self.pattern())
    }

    fn check_shape(&self, layer: &str, rows: usize, cols: usize) -> Result<(), PruneError> {
        selection::check_shape(layer, rows, cols, &self.pattern())
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // Scores and the mask.
        let elements = rows as u64 * cols as u64;
        4 * elements + elements / 8
    }

    fn prune(
        &self,
        layer: &mut LinearLayer,
        stats: &LayerStats,
        _rng: &mut ChaCha8Rng,
    ) -> Result<LayerReport, PruneError> {
        layer.check()?;
        self.check_shape(&layer.name, layer.rows, layer.cols)?;
        let mask = selection::choose(
            &layer.name,
            &layer.weight,
            layer.rows,
            layer.cols,
            &Selection {
                pattern: self.pattern(),
                group: self.0.granularity.group(),
                sparsity: self.0.sparsity,
                threshold_rule: self.0.compat,
                factor: None,
            },
        )?;
        Ok(selection::apply(layer, &mask, stats, Vec::new()))
    }
}

impl Granularity {
    /// The selection group of this granularity.
    pub(super) fn group(self) -> Group {
        match self {
            Self::Layer => Group::Tensor,
            Self::Row => Group::Row,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn prune(settings: MagnitudeSettings, rows: usize, w: &[f32]) -> Result<Vec<f32>, PruneError> {
        let mut layer = LinearLayer::new("l", rows, w.len() / rows, w.to_vec())?;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        Magnitude::new(settings)?.prune(&mut layer, &LayerStats::none(), &mut rng)?;
        Ok(layer.weight)
    }

    #[test]
    fn by_hand() {
        let w = [1.0, -4.0, 3.0, 0.5, 2.0, -2.5, 6.0, -0.1];
        let half = MagnitudeSettings::default();
        assert_eq!(prune(half.clone(), 2, &w).unwrap(), [0.0, -4.0, 3.0, 0.0, 0.0, -2.5, 6.0, 0.0]);
        let row = MagnitudeSettings { granularity: Granularity::Row, sparsity: 0.25, ..half.clone() };
        assert_eq!(prune(row, 2, &w).unwrap(), [1.0, -4.0, 3.0, 0.0, 2.0, -2.5, 6.0, 0.0]);
        let nm = MagnitudeSettings { pattern: Pattern::NM { n: 1, m: 4 }, ..half.clone() };
        assert_eq!(prune(nm, 2, &w).unwrap(), [0.0, -4.0, 0.0, 0.0, 0.0, 0.0, 6.0, 0.0]);
        // compat: N counts pruned weights.
        let nm = MagnitudeSettings { pattern: Pattern::NM { n: 1, m: 4 }, compat: true, ..half.clone() };
        assert_eq!(prune(nm, 2, &w).unwrap(), [1.0, -4.0, 3.0, 0.0, 2.0, -2.5, 6.0, 0.0]);
        // compat: sort(|W|)[4] = 2.5 is pruned as well.
        let compat = MagnitudeSettings { compat: true, ..half };
        assert_eq!(prune(compat, 2, &w).unwrap(), [0.0, -4.0, 3.0, 0.0, 0.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn ties_and_existing_zeros_are_exact() {
        let settings = MagnitudeSettings::default();
        assert_eq!(prune(settings.clone(), 1, &[1.0; 4]).unwrap(), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(prune(settings, 1, &[1.0, 0.0, 1.0, -0.0]).unwrap(), [1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn sparsity_zero_is_the_identity() {
        let w = [1.0, -0.25, 1e-30, 4.0];
        let settings = MagnitudeSettings { sparsity: 0.0, ..Default::default() };
        assert_eq!(prune(settings, 2, &w).unwrap(), w);
    }

    #[test]
    fn hostile_input() {
        let settings = MagnitudeSettings::default();
        let error = prune(settings.clone(), 2, &[1.0, 2.0, 3.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, PruneError::NonFiniteWeight { row: 1, col: 1, count: 1, .. }));
        let nm = MagnitudeSettings { pattern: Pattern::NM { n: 2, m: 4 }, ..settings.clone() };
        let error = prune(nm, 1, &[1.0; 6]).unwrap_err();
        assert!(matches!(error, PruneError::PatternMismatch { d_in: 6, m: 4, .. }), "{error}");
        for sparsity in [1.0, f64::NAN, -0.5] {
            let bad = MagnitudeSettings { sparsity, ..settings.clone() };
            assert_eq!(bad.validate().unwrap_err().field, "sparsity");
        }
        assert!(matches!(LinearLayer::new("l", 2, 3, vec![0.0; 5]), Err(PruneError::ShapeMismatch { .. })));
    }
}
