//! Wanda — zeroes the weights whose product with the norm of their input is smallest.
//!
//! Paper:    Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language
//!           Models, ICLR 2024, arXiv 2306.11695. Reference code: locuslab/wanda.
//! Problem:  keep X Wᵀ with a given number of zeros, inputs taken as uncorrelated and weights not
//!           corrected. W: [d_out, d_in] f32; a[c]: mean over sequences of Σ x_c², f64.
//! Method:   1. score S = |W|·√a (eq. 1). 2. in every output row prune the ⌊C·s⌋ lowest (§3); for
//!           N:M the M − N lowest of every group of M inputs. Ties: lower column first.
//! Cost:     O(R·C), one forward pass over the calibration text for a; no extra memory beyond
//!           one panel of scores per thread (row granularity). Rows in parallel.
//! Variants: `granularity` row (default) or layer (§5, image classifiers); `variant`: appendix,
//!           rows lose the lowest scores that sum to α of the row's sum, one α per layer.
//! Differs:  from the reference code: nothing for rows; exact counts for `granularity = layer`
//!           and N kept of M. `compat` counts N as pruned and uses `<=` thresholds in the variant
//!           and for `granularity = layer`.
//! Choose:   the default choice: minutes instead of hours at equal quality from 7 B parameters up;
//!           on small models and N:M patterns SparseGPT is better.
//! Fails on: no calibration tokens → `EmptyCalibration`; M not dividing d_in → `PatternMismatch`.

use rand_chacha::ChaCha8Rng;
use rarefy_sparsity::{Mask, select};
use rarefy_sparsity::{Maturity, MethodInfo, Pattern};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{MethodEntry, Settings, in_effect, parse};
use crate::{
    LayerPruner, LayerReport, LayerStats, LinearLayer, Needs, PruneError, SettingError, Warning,
    selection::{self, Selection},
};

static INFO: MethodInfo = MethodInfo {
    slug: "wanda",
    name: "Wanda",
    family: "post-training pruning",
    paper: "Sun et al., ICLR 2024, arXiv 2306.11695",
    command: "prune --method wanda",
    maturity: Maturity::Stable,
    summary: "zeroes the weights whose product with their input's norm is smallest in each row",
};

pub(super) static ENTRY: MethodEntry = MethodEntry {
    info: &INFO,
    repro: "sparsegpt-wanda-baselines",
    defaults: super::defaults::<WandaSettings>,
    build: |value| Ok(Box::new(Wanda(parse(INFO.slug, value)?))),
};

/// Weights that compete with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// The weights of one output row.
    Row,
    /// The whole matrix.
    Layer,
}

/// Settings of [`Wanda`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WandaSettings {
    /// Fraction of weights set to zero in each group, in [0, 1); ignored by N:M patterns. Paper, table 2: 0.5.
    pub sparsity: f64,
    /// Where zeros may lie: `unstructured`, `2:4`, `block:4x1`, `group:16`, `channel`.
    pub pattern: Pattern,
    /// Weights that compete with each other: `row` (paper §3) or `layer` (§5).
    pub granularity: Granularity,
    /// Choose rows' shares by cumulative score (paper, appendix; `--use_variant`). Default: no.
    pub variant: bool,
    /// Reproduce the reference code: thresholds by `<=`, N of N:M counts pruned weights.
    pub compat: bool,
}

impl Default for WandaSettings {
    fn default() -> Self {
        Self {
            sparsity: 0.5,
            pattern: Pattern::Unstructured,
            granularity: Granularity::Row,
            variant: false,
            compat: false,
        }
    }
}

impl WandaSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SettingError`] naming field, value and range.
    pub fn validate(&self) -> Result<(), SettingError> {
        selection::validate_sparsity(self.sparsity)?;
        selection::validate_pattern(self.pattern, self.compat)?;
        if self.variant && (self.pattern != Pattern::Unstructured || self.granularity != Granularity::Row) {
            return Err(SettingError::new(
                "variant",
                true,
                "false unless pattern = unstructured and granularity = row",
            ));
        }
        Ok(())
    }
}

impl Settings for WandaSettings {
    fn validate(&self) -> Result<(), SettingError> {
        Self::validate(self)
    }
}

/// Pruning by weight times input norm.
#[derive(Debug, Clone)]
pub struct Wanda(WandaSettings);

impl Wanda {
    /// The method with checked settings.
    ///
    /// # Errors
    /// As [`WandaSettings::validate`].
    pub fn new(settings: WandaSettings) -> Result<Self, SettingError> {
        settings.validate()?;
        Ok(Self(settings))
    }
}

impl LayerPruner for Wanda {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn needs(&self) -> Needs {
        Needs::INPUT_NORMS
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
        let elements = rows as u64 * cols as u64;
        let scores = match self.0.granularity {
            Granularity::Row if !self.0.variant => 1 << 20,
            _ => 4 * elements,
        };
        scores + elements / 4
    }

    fn prune(
        &self,
        layer: &mut LinearLayer,
        stats: &LayerStats,
        _rng: &mut ChaCha8Rng,
    ) -> Result<LayerReport, PruneError> {
        layer.check()?;
        let (rows, cols) = (layer.rows, layer.cols);
        self.check_shape(&layer.name, rows, cols)?;
        let factor = selection::norm_factors(stats.input_norms(&layer.name, cols)?);
        if self.0.variant {
            let (mask, reached) = variant_mask(layer, &factor, self.0.sparsity, self.0.compat)?;
            let missed = (reached - self.0.sparsity).abs() > VARIANT_TOLERANCE;
            let warning = missed.then_some(Warning::SparsityMissed { asked: self.0.sparsity, reached });
            return Ok(selection::apply(layer, &mask, stats, warning.into_iter().collect()));
        }
        let selection = Selection {
            pattern: self.pattern(),
            group: self.0.granularity.group(),
            sparsity: self.0.sparsity,
            threshold_rule: self.0.compat,
            factor: Some(&factor),
        };
        let mask = selection::choose(&layer.name, &layer.weight, rows, cols, &selection)?;
        Ok(selection::apply(layer, &mask, stats, Vec::new()))
    }
}

/// Bisection ends within this distance of the target, or with a bracket this narrow.
const VARIANT_TOLERANCE: f64 = 0.001;

/// The mask of the variant and the sparsity reached: one α for the layer, found by bisection in
/// [0, 0.8] from 0.4; row r loses its lowest scores as long as their sum is at most α·(row sum).
fn variant_mask(
    layer: &LinearLayer,
    factor: &[f32],
    sparsity: f64,
    compat: bool,
) -> Result<(Mask, f64), PruneError> {
    let (rows, cols) = (layer.rows, layer.cols);
    if rows == 0 || cols == 0 {
        return Ok((Mask::all_kept(rows, cols), 0.0));
    }
    let score = |w: f32, f: f32| w.abs() * f;
    let mut sorted: Vec<f32> = Vec::with_capacity(rows * cols);
    for row in layer.weight.chunks_exact(cols) {
        sorted.extend(row.iter().zip(factor).map(|(&w, &f)| score(w, f)));
    }
    let sums: Vec<f64> = sorted
        .par_chunks_exact_mut(cols)
        .map(|row| {
            row.sort_unstable_by(f32::total_cmp);
            row.iter().map(|&s| f64::from(s)).sum()
        })
        .collect();
    let counts = |alpha: f64| -> Vec<usize> {
        sorted
            .par_chunks_exact(cols)
            .zip(&sums)
            .map(|(row, sum)| {
                let mut running = 0.0;
                row.iter()
                    .take_while(|&&s| {
                        running += f64::from(s);
                        running <= alpha * sum
                    })
                    .count()
            })
            .collect()
    };
    // A row's threshold prunes ties as well under the reference rule.
    let effective = |counts: &[usize]| -> usize {
        if !compat {
            return counts.iter().sum();
        }
        sorted
            .chunks_exact(cols)
            .zip(counts)
            .map(|(row, &k)| if k == 0 { 0 } else { row.partition_point(|s| *s <= row[k - 1]) })
            .sum()
    };
    let (mut alpha, mut low, mut high) = (0.4, 0.0, 0.8);
    let mut chosen = counts(alpha);
    let mut reached = effective(&chosen) as f64 / (rows * cols) as f64;
    while (reached - sparsity).abs() > VARIANT_TOLERANCE && high - low >= VARIANT_TOLERANCE {
        if reached > sparsity {
            high = alpha;
            alpha = f64::midpoint(alpha, low);
        } else {
            low = alpha;
            alpha = f64::midpoint(alpha, high);
        }
        chosen = counts(alpha);
        reached = effective(&chosen) as f64 / (rows * cols) as f64;
    }
    let mut mask = Mask::all_kept(rows, cols);
    for (r, (row, &k)) in layer.weight.chunks_exact(cols).zip(&chosen).enumerate() {
        let scores: Vec<f32> = row.iter().zip(factor).map(|(&w, &f)| score(w, f)).collect();
        if compat {
            if k > 0 {
                let threshold = sorted[r * cols + k - 1];
                mask.fill_row(r, |c| scores[c] > threshold);
            }
            continue;
        }
        let pruned = select::lowest_k(&scores, k)
            .map_err(|source| PruneError::Selection { layer: layer.name.clone(), source })?;
        for c in pruned {
            mask.set(r, c, false);
        }
    }
    Ok((mask, reached))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::normal_vec;
    use proptest::prelude::*;
    use rand_chacha::rand_core::SeedableRng;

    fn stats(input_sq: &[f64]) -> LayerStats {
        LayerStats::new(1, 10, Some(input_sq.to_vec()), None)
    }

    fn prune(settings: &WandaSettings, rows: usize, w: &[f32], a: &[f64]) -> Result<Vec<f32>, PruneError> {
        let mut layer = LinearLayer::new("l", rows, a.len(), w.to_vec())?;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        Wanda::new(settings.clone())?.prune(&mut layer, &stats(a), &mut rng)?;
        Ok(layer.weight)
    }

    #[test]
    fn by_hand() {
        // √a = (1, 2, 3, 10); scores row 0: 4 4 3 1 → prune columns 3 and 2;
        // row 1: 1 2 3 20 → prune 0 and 1. Magnitude would prune other weights.
        let w = [4.0, 2.0, -1.0, 0.1, 1.0, 1.0, 1.0, 2.0];
        let a = [1.0, 4.0, 9.0, 100.0];
        let rows = prune(&WandaSettings::default(), 2, &w, &a).unwrap();
        assert_eq!(rows, [4.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        // Whole layer: the four lowest of 4 4 3 1 1 2 3 20 are 1 1 2 and, by index, the first 3.
        let layer = WandaSettings { granularity: Granularity::Layer, ..Default::default() };
        assert_eq!(prune(&layer, 2, &w, &a).unwrap(), [4.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        let quarter = WandaSettings { sparsity: 0.25, ..layer };
        assert_eq!(prune(&quarter, 2, &w, &a).unwrap(), [4.0, 2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0]);
        let nm = WandaSettings { pattern: Pattern::NM { n: 1, m: 2 }, ..Default::default() };
        // Groups (4 4): tie, lower column pruned; (3 1); (1 2); (3 20).
        assert_eq!(prune(&nm, 2, &w, &a).unwrap(), [0.0, 2.0, -1.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
        let nm = WandaSettings { pattern: Pattern::NM { n: 1, m: 4 }, compat: true, ..Default::default() };
        assert_eq!(prune(&nm, 2, &w, &a).unwrap(), [4.0, 2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0]);
    }

    #[test]
    fn variant_by_hand() {
        // Row sums 10 and 10; α = 0.4 allows sums up to 4: row 0 (1 2 3 4) loses 1, 2 (sum 3),
        // row 1 (0 0 1 9) loses three (sum 1): 5 of 8 = 0.625 = the target, no further step.
        let w = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 9.0];
        let settings = WandaSettings { variant: true, sparsity: 0.625, ..Default::default() };
        assert_eq!(prune(&settings, 2, &w, &[1.0; 4]).unwrap(), [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 9.0]);
    }

    #[test]
    fn variant_reaches_its_target_on_random_rows() {
        let (rows, cols) = (64, 96);
        let w = normal_vec(1, rows * cols);
        let a: Vec<f64> = normal_vec(2, cols).iter().map(|v| f64::from(v * v) + 0.01).collect();
        for (sparsity, compat) in [(0.3, false), (0.5, false), (0.5, true), (0.7, false)] {
            let settings = WandaSettings { variant: true, sparsity, compat, ..Default::default() };
            let out = prune(&settings, rows, &w, &a).unwrap();
            let zeros = out.iter().filter(|w| **w == 0.0).count() as f64;
            assert!((zeros / (rows * cols) as f64 - sparsity).abs() < 0.005, "{sparsity}");
            let counts: Vec<usize> =
                out.chunks_exact(cols).map(|r| r.iter().filter(|w| **w == 0.0).count()).collect();
            assert!(counts.iter().min() < counts.iter().max(), "rows must differ");
        }
    }

    #[test]
    fn variant_miss_is_reported() {
        // Equal scores: each row loses ⌊0.8·4⌋ = 3 at most, 0.9 cannot be reached.
        let settings = WandaSettings { variant: true, sparsity: 0.9, ..Default::default() };
        let mut layer = LinearLayer::new("l", 1, 4, vec![1.0; 4]).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let report = Wanda::new(settings).unwrap().prune(&mut layer, &stats(&[1.0; 4]), &mut rng).unwrap();
        assert!(matches!(report.warnings[..], [Warning::SparsityMissed { .. }]));
    }

    #[test]
    fn hostile_input() {
        let settings = WandaSettings::default();
        let w = [1.0, 2.0];
        let error = prune(&settings, 1, &w, &[f64::NAN, 1.0]).unwrap_err();
        assert!(matches!(error, PruneError::InvalidStatistic { index: 0, .. }));
        let error = prune(&settings, 1, &[1.0, f32::INFINITY], &[1.0, 1.0]).unwrap_err();
        assert!(matches!(error, PruneError::NonFiniteWeight { .. }));
        let mut layer = LinearLayer::new("l", 1, 2, w.to_vec()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let wanda = Wanda::new(settings.clone()).unwrap();
        let error = wanda.prune(&mut layer, &LayerStats::none(), &mut rng).unwrap_err();
        assert!(matches!(error, PruneError::MissingStatistic { .. }));
        let none = LayerStats::new(0, 0, Some(vec![0.0; 2]), None);
        let error = wanda.prune(&mut layer, &none, &mut rng).unwrap_err();
        assert!(matches!(error, PruneError::EmptyCalibration { .. }));
        assert_eq!(layer.weight, w, "a refused layer is untouched");
        let bad = WandaSettings { variant: true, pattern: Pattern::NM { n: 2, m: 4 }, ..settings };
        assert_eq!(bad.validate().unwrap_err().field, "variant");
        // All inputs dead: still the exact count.
        let dead = prune(&WandaSettings::default(), 1, &[3.0, 1.0, 2.0, 4.0], &[0.0; 4]).unwrap();
        assert_eq!(dead, [0.0, 0.0, 2.0, 4.0]);
    }

    proptest! {
        #[test]
        fn exact_rows_and_invariances(
            rows in 1usize..6, cols in 1usize..40, seed in 0u64..1000, sparsity in 0.0f64..0.99,
            channel in 0usize..40, power in -6i32..6,
        ) {
            let w = normal_vec(seed, rows * cols);
            let a: Vec<f64> = normal_vec(seed + 1, cols).iter().map(|v| f64::from(v * v)).collect();
            let settings = WandaSettings { sparsity, ..Default::default() };
            let out = prune(&settings, rows, &w, &a).unwrap();
            let mask = |w: &[f32]| w.iter().map(|w| *w != 0.0).collect::<Vec<_>>();
            for row in out.chunks_exact(cols) {
                let zeros = row.iter().filter(|w| **w == 0.0).count();
                prop_assert_eq!(zeros, (cols as f64 * sparsity) as usize);
            }
            for (before, after) in w.iter().zip(&out) {
                prop_assert!(*after == 0.0 || after == before);
            }
            // Powers of two scale without rounding, so masks must be equal.
            let k = 2.0f32.powi(power);
            let rescaled_rows: Vec<f32> = w.iter().enumerate()
                .map(|(i, w)| if (i / cols) % 2 == 0 { w * k } else { *w }).collect();
            prop_assert_eq!(mask(&prune(&settings, rows, &rescaled_rows, &a).unwrap()), mask(&out));
            let all: Vec<f64> = a.iter().map(|a| a * f64::from(k * k)).collect();
            prop_assert_eq!(mask(&prune(&settings, rows, &w, &all).unwrap()), mask(&out));
            // Input channel times k, its weights divided by k.
            let channel = channel % cols;
            let w2: Vec<f32> = w.iter().enumerate()
                .map(|(i, w)| if i % cols == channel { w / k } else { *w }).collect();
            let a2: Vec<f64> = a.iter().enumerate()
                .map(|(c, a)| if c == channel { a * f64::from(k * k) } else { *a }).collect();
            // The common scale of the factors may differ by a rounding: allow equal scores only.
            let got = mask(&prune(&settings, rows, &w2, &a2).unwrap());
            let wanted = mask(&out);
            let differ = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            prop_assert!(differ == 0, "{} masks bits differ", differ);
        }

        #[test]
        fn n_of_m_groups_are_exact(rows in 1usize..5, groups in 1usize..6, n in 1usize..4, seed in 0u64..500) {
            let w = normal_vec(seed, rows * groups * 4);
            let a: Vec<f64> = normal_vec(seed + 7, groups * 4).iter().map(|v| f64::from(v * v)).collect();
            let settings = WandaSettings { pattern: Pattern::NM { n, m: 4 }, ..Default::default() };
            let out = prune(&settings, rows, &w, &a).unwrap();
            for group in out.chunks_exact(4) {
                prop_assert_eq!(group.iter().filter(|w| **w == 0.0).count(), 4 - n);
            }
        }
    }
}
