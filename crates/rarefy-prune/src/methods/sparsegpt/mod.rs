//! SparseGPT — zeroes weights by second-order saliency and corrects the kept ones, column by column.
//!
//! Paper:    Frantar, Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in
//!           One-Shot, ICML 2023, arXiv 2301.00774. Reference code: IST-DASLab/sparsegpt.
//! Problem:  min ‖X(W − Ŵ)ᵀ‖² row by row under a pattern. W: [d_out, d_in] f32;
//!           H = (2/S) XᵀX [d_in, d_in] f64, damped by λ·mean(diag H).
//! Method:   1. inputs with H_cc = 0: H_cc = 1, their weights zeroed. 2. U, upper, H⁻¹ = UᵀU.
//!           3. per block of `block_size` columns: choose the lowest w²/U_cc² of all rows of the
//!           block (N:M: of each group of M, when its first column is reached); for each column
//!           j: q = pruned or rounded w, e = (w − q)/U_jj, later columns of the block −= e·U_j,
//!           (alg. 1); 4. columns after the block −= E·U. Loss: ½‖E‖².
//! Cost:     2C³/3 for U (shared by layers with the same inputs) + R·C², all f64; memory 8·R·C +
//!           16·C² bytes beside H. Rows in parallel; same bits for any number of threads.
//! Variants: `quantize_bits` (§3.5): kept weights rounded to an asymmetric min-max grid per row or
//!           per `quantize_group` columns, scales from the original W. `mask`: rules of the Wanda
//!           paper's ablation, and the zeros already present.
//! Differs:  from the reference code: U from one reversed Cholesky factor instead of two and an
//!           inverse; exact counts; N of N:M counts kept weights; damping raised tenfold up to
//!           three times when H is not positive definite, then the diagonal only, with a
//!           warning. `compat` reproduces `<=` thresholds and N as pruned.
//! Choose:   best quality of the three on small models and for N:M; 20 times slower than Wanda.
//! Fails on: missing Hessian → `MissingStatistic`; M not dividing d_in → `PatternMismatch`;
//!           non-finite results → `Diverged`.

mod grid;
mod mask_rule;
mod update;

use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rarefy_sparsity::{Maturity, MethodInfo, Pattern, SparsityError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::mask_rule::MaskRule;
use self::update::{Choice, Update};
use super::{MethodEntry, Settings, in_effect, parse};
use crate::{
    ErrorKind, LayerPruner, LayerReport, LayerStats, LinearLayer, Needs, PruneError, SettingError, Warning,
    linalg::{self, InverseFactor},
    selection,
};

static INFO: MethodInfo = MethodInfo {
    slug: "sparsegpt",
    name: "SparseGPT",
    family: "post-training pruning",
    paper: "Frantar and Alistarh, ICML 2023, arXiv 2301.00774",
    command: "prune --method sparsegpt",
    maturity: Maturity::Stable,
    summary: "zeroes weights by second-order saliency and corrects the kept ones",
};

pub(super) static ENTRY: MethodEntry = MethodEntry {
    info: &INFO,
    repro: "sparsegpt-wanda-baselines",
    defaults: super::defaults::<SparseGptSettings>,
    build: |value| Ok(Box::new(SparseGpt(parse(INFO.slug, value)?))),
};

/// Settings of [`SparseGpt`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseGptSettings {
    /// Fraction of weights set to zero in each block of columns, in [0, 1); ignored by N:M. Paper §4: 0.5.
    pub sparsity: f64,
    /// Where zeros may lie: `unstructured` or N:M such as `2:4`.
    pub pattern: Pattern,
    /// How the mask is chosen. Paper: `obs`.
    pub mask: MaskRule,
    /// Damping relative to the mean diagonal of H, finite, at least 0. Paper §4: 0.01.
    pub percdamp: f64,
    /// Columns of a block, at least 1, a multiple of M for N:M. Paper §4: 128.
    pub block_size: usize,
    /// Bits of the joint quantisation, 2 to 8; absent: none. Paper §4.4: 4.
    pub quantize_bits: Option<u32>,
    /// Columns that share a scale; must divide the inputs of every layer; absent: the whole row, as in the paper.
    pub quantize_group: Option<usize>,
    /// Reproduce the reference code: thresholds by `<=`, N of N:M counts pruned weights.
    pub compat: bool,
}

impl Default for SparseGptSettings {
    fn default() -> Self {
        Self {
            sparsity: 0.5,
            pattern: Pattern::Unstructured,
            mask: MaskRule::Obs,
            percdamp: 0.01,
            block_size: 128,
            quantize_bits: None,
            quantize_group: None,
            compat: false,
        }
    }
}

impl SparseGptSettings {
    /// Whether groups of an N:M pattern are chosen during the update.
    fn selects_groups(&self) -> bool {
        matches!(self.mask, MaskRule::Obs | MaskRule::MagnitudeIter | MaskRule::WandaIter)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`SettingError`] naming field, value and range.
    pub fn validate(&self) -> Result<(), SettingError> {
        selection::validate_sparsity(self.sparsity)?;
        selection::validate_pattern(self.pattern, self.compat)?;
        if !(self.percdamp.is_finite() && self.percdamp >= 0.0) {
            return Err(SettingError::new("percdamp", self.percdamp, "finite and at least 0"));
        }
        if self.block_size == 0 {
            return Err(SettingError::new("block_size", 0, "at least 1"));
        }
        match self.pattern {
            Pattern::Unstructured => {}
            Pattern::NM { m, .. } if self.selects_groups() && !self.block_size.is_multiple_of(m) => {
                let allowed = format!("a multiple of M = {m}");
                return Err(SettingError::new("block_size", self.block_size, allowed));
            }
            Pattern::NM { .. } => {}
            other => {
                return Err(SettingError::new("pattern", other, "`unstructured` or N:M"));
            }
        }
        if let Some(bits) = self.quantize_bits
            && !(2..=8).contains(&bits)
        {
            return Err(SettingError::new("quantize_bits", bits, "2 to 8"));
        }
        match (self.quantize_group, self.quantize_bits) {
            (Some(0), _) => Err(SettingError::new("quantize_group", 0, "at least 1")),
            (Some(group), None) => {
                Err(SettingError::new("quantize_group", group, "absent without `quantize_bits`"))
            }
            _ => Ok(()),
        }
    }
}

impl Settings for SparseGptSettings {
    fn validate(&self) -> Result<(), SettingError> {
        Self::validate(self)
    }
}

/// Second-order pruning with weight correction.
#[derive(Debug, Clone)]
pub struct SparseGpt(SparseGptSettings);

impl SparseGpt {
    /// The method with checked settings.
    ///
    /// # Errors
    /// As [`SparseGptSettings::validate`].
    pub fn new(settings: SparseGptSettings) -> Result<Self, SettingError> {
        settings.validate()?;
        Ok(Self(settings))
    }

    fn warnings(&self, stats: &LayerStats, factor: &InverseFactor) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if factor.diagonal_only {
            warnings.push(Warning::DiagonalHessian { tried: factor.percdamp });
        } else if factor.percdamp > self.0.percdamp {
            warnings.push(Warning::DampingRaised { from: self.0.percdamp, to: factor.percdamp });
        }
        if !factor.dead.is_empty() {
            warnings.push(Warning::DeadInputs { count: factor.dead.len() });
        }
        if stats.n_tokens < factor.len() {
            warnings.push(Warning::FewTokens { tokens: stats.n_tokens, cols: factor.len() });
        }
        warnings
    }
}

impl LayerPruner for SparseGpt {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn needs(&self) -> Needs {
        Needs::HESSIAN
    }

    fn pattern(&self) -> Pattern {
        match self.0.mask {
            MaskRule::Existing => Pattern::Unstructured,
            _ => selection::kept_pattern(self.0.pattern, self.0.compat),
        }
    }

    fn settings(&self) -> serde_json::Value {
        in_effect(&self.0, self.pattern())
    }

    fn check_shape(&self, layer: &str, rows: usize, cols: usize) -> Result<(), PruneError> {
        if let Some(group) = self.0.quantize_group
            && !cols.is_multiple_of(group)
        {
            return Err(PruneError::GroupMismatch { layer: layer.into(), group, d_in: cols });
        }
        selection::check_shape(layer, rows, cols, &self.pattern())
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        let (rows, cols) = (rows as u64, cols as u64);
        let factoring = 16 * cols * cols;
        let updating = 8 * cols * cols + 8 * rows * cols + 5 * rows * self.0.block_size as u64;
        factoring.max(updating)
    }

    fn prune(
        &self,
        layer: &mut LinearLayer,
        stats: &LayerStats,
        _rng: &mut ChaCha8Rng,
    ) -> Result<LayerReport, PruneError> {
        let started = Instant::now();
        let settings = &self.0;
        layer.check()?;
        let (rows, cols) = (layer.rows, layer.cols);
        self.check_shape(&layer.name, rows, cols)?;
        let h = stats.hessian(&layer.name, cols)?;
        let factor = stats.inverse_factor(&layer.name, cols, settings.percdamp)?;
        let pattern = self.pattern();

        let fixed = settings.mask.fixed_mask(layer, stats, pattern, settings.sparsity, settings.compat)?;
        let saliency = settings.mask.saliency(&layer.name, stats, &factor)?;
        let choice = match (&fixed, pattern) {
            (Some(mask), _) => Choice::Fixed(mask),
            (None, Pattern::NM { n, m }) => Choice::Groups { saliency: &saliency, keep: n, m },
            (None, _) => Choice::Block {
                saliency: &saliency,
                sparsity: settings.sparsity,
                threshold_rule: settings.compat,
            },
        };
        let grid = settings
            .quantize_bits
            .map(|bits| grid::min_max_grid(&layer.weight, rows, cols, bits, settings.quantize_group));

        let mut w: Vec<f64> = layer.weight.par_iter().map(|&w| f64::from(w)).collect();
        for row in w.chunks_exact_mut(cols.max(1)) {
            for &c in &factor.dead {
                row[c] = 0.0;
            }
        }
        let energy = linalg::quadratic_trace(&w, rows, cols, h);
        let update = Update { factor: &factor, block: settings.block_size, choice, grid: grid.as_ref() };
        let diverged = || PruneError::Diverged { layer: layer.name.clone(), percdamp: factor.percdamp };
        // Scores that are not finite are weights that have exploded.
        let loss = update::run(&mut w, rows, &update).map_err(|source| match source {
            SparsityError::NonFinite { .. } => diverged(),
            source => PruneError::Selection { layer: layer.name.clone(), source },
        })?;
        if !loss.is_finite() || w.par_iter().any(|w| !(*w as f32).is_finite()) {
            return Err(diverged());
        }
        let removed = output_change(&mut w, layer, &factor, h, loss);
        layer.grid = grid;
        let zeros = layer.zeros();
        Ok(LayerReport {
            layer: layer.name.clone(),
            rows,
            cols,
            kept: rows * cols - zeros,
            pruned: zeros,
            relative_error: (energy > 0.0).then(|| removed / energy),
            error_kind: ErrorKind::Output,
            loss: Some(loss),
            seconds: started.elapsed().as_secs_f64(),
            warnings: self.warnings(stats, &factor),
        })
    }
}

/// Moves `w` into the layer and returns `tr(ΔW H ΔWᵀ)`. With the full factor that is
/// `‖E‖² − damp·‖ΔW‖²`; with the diagonal one it is computed. Dead inputs contribute nothing.
fn output_change(
    w: &mut [f64],
    layer: &mut LinearLayer,
    factor: &InverseFactor,
    h: &[f64],
    loss: f64,
) -> f64 {
    let mut alive = vec![true; layer.cols];
    for &c in &factor.dead {
        alive[c] = false;
    }
    let mut squared = 0.0;
    let rows = w.chunks_exact_mut(layer.cols.max(1));
    for (new, old) in rows.zip(layer.weight.chunks_exact_mut(layer.cols.max(1))) {
        for ((new, old), &alive) in new.iter_mut().zip(old).zip(&alive) {
            let before = f64::from(*old);
            *old = *new as f32 + 0.0; // + 0.0: never a negative zero
            *new = if alive { *new - before } else { 0.0 };
            squared += *new * *new;
        }
    }
    if factor.diagonal_only {
        return linalg::quadratic_trace(w, layer.rows, layer.cols, h);
    }
    (2.0 * loss - factor.damp * squared).max(0.0)
}
