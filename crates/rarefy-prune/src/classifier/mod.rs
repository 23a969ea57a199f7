//! One-shot pruning of convolutional classifiers: the 1×1 convolutions by magnitude, in blocks of consecutive output channels
//! ranked by their L1 norm, after a search for the order of channels that loses least ([`rearrange`]).
//!
//! The entry, the depthwise layers and the layer of the logits stay dense. Every layer gets the same sparsity, as both papers
//! (Fast Sparse ConvNets, arXiv 1911.09723; SparseByteNN, arXiv 2310.19509) do. No images are read.

mod search;

use std::time::Instant;

use rarefy_models::classifier::Classifier;
use rarefy_sparsity::{Group, Mask, Pattern};
use serde::{Deserialize, Serialize};

pub use search::{Rearrangement, rearrange};

use crate::selection::{self, Selection};
use crate::{LayerReport, LayerStats, LinearLayer, PruneError, SettingError};

/// Settings of [`prune`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierSettings {
    /// Fraction of zeros in every pruned layer, in [0, 1). SparseByteNN, abstract: 0.3; ours: 0.5.
    pub sparsity: f64,
    /// Where zeros may lie: `unstructured`, `block:4x1` (4 consecutive outputs of one input), and the others.
    pub pattern: Pattern,
    /// Search for an order of the channels first; needs blocks of several rows and one column. SparseByteNN: true; ours: false.
    pub rearranges: bool,
}

impl Default for ClassifierSettings {
    fn default() -> Self {
        Self { sparsity: 0.5, pattern: Pattern::Unstructured, rearranges: false }
    }
}

impl ClassifierSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SettingError`] naming field, value and range.
    pub fn validate(&self) -> Result<(), SettingError> {
        selection::validate_sparsity(self.sparsity)?;
        selection::validate_pattern(self.pattern, false)?;
        if self.rearranges && !matches!(self.pattern, Pattern::Block { rows: 2.., cols: 1 }) {
            return Err(SettingError::new(
                "pattern",
                self.pattern,
                "blocks of outputs such as block:16x1: an order of channels matters only to them",
            ));
        }
        Ok(())
    }
}

/// What happened to a classifier.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClassifierReport {
    /// The pruned layers.
    pub layers: Vec<ClassifierLayerReport>,
    /// The classes of channels that were reordered; empty without a search.
    pub rearrangements: Vec<Rearrangement>,
}

/// What happened to a layer.
#[derive(Debug, Clone, Serialize)]
pub struct ClassifierLayerReport {
    /// Number of the layer.
    pub index: usize,
    /// Its counts and its error.
    #[serde(flatten)]
    pub layer: LayerReport,
    /// Share of the sum of magnitudes that was kept.
    pub retained_l1: f64,
}

impl ClassifierReport {
    /// Weights of the pruned layers, and zeros among them.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let count = |f: fn(&LayerReport) -> usize| self.layers.iter().map(|l| f(&l.layer)).sum();
        (count(|l| l.kept + l.pruned), count(|l| l.pruned))
    }
}

/// Prunes the 1×1 convolutions in place; `after` is told each finished layer.
///
/// # Errors
/// [`PruneError::Setting`]; [`PruneError::Selection`] when a pattern other than blocks of one column does not divide a
/// layer; [`PruneError::NonFiniteWeight`].
pub fn prune(
    model: &mut Classifier,
    settings: &ClassifierSettings,
    after: &mut dyn FnMut(&ClassifierLayerReport),
) -> Result<ClassifierReport, PruneError> {
    settings.validate()?;
    let mut report = ClassifierReport::default();
    if settings.rearranges
        && let Pattern::Block { rows, .. } = settings.pattern
    {
        report.rearrangements = rearrange(model, rows, settings.sparsity)?;
    }
    for index in model.prunable() {
        let started = Instant::now();
        let Some(conv) = model.conv_mut(index) else { continue };
        let name = Classifier::weight_name(index);
        let (rows, cols) = (conv.d_out, conv.d_in);
        let mut layer = LinearLayer::new(name, rows, cols, std::mem::take(&mut conv.weight))?;
        let outcome = prune_layer(&mut layer, settings);
        // Also on an error: the model keeps its weights.
        conv.weight = layer.weight;
        let (mut found, retained_l1) = outcome?;
        found.seconds = started.elapsed().as_secs_f64();
        let found = ClassifierLayerReport { index, layer: found, retained_l1 };
        after(&found);
        report.layers.push(found);
    }
    Ok(report)
}

/// A name for a run: equal settings on equal weights give equal keys.
#[must_use]
pub fn run_key(model: &Classifier, settings: &ClassifierSettings) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(model.config().to_string().as_bytes());
    for conv in (0..model.layers().len()).filter_map(|i| model.conv(i)) {
        conv.weight.iter().chain(&conv.bias).for_each(|w| hash.update(&w.to_le_bytes()));
    }
    let ClassifierSettings { sparsity, pattern, rearranges } = settings;
    let order = if *rearranges { "rearranged" } else { "as it is" };
    format!("classifier {:016x}, {pattern}, sparsity {sparsity}, order {order}", hash.digest())
}

fn prune_layer(
    layer: &mut LinearLayer,
    settings: &ClassifierSettings,
) -> Result<(LayerReport, f64), PruneError> {
    layer.check()?;
    let sum = |w: &[f32]| w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
    let before = sum(&layer.weight);
    let mask = choose(layer, settings)?;
    let report = selection::apply(layer, &mask, &LayerStats::none(), vec![]);
    let retained = if before > 0.0 { sum(&layer.weight) / before } else { 1.0 };
    Ok((report, retained))
}

/// The mask. Rows that are left over at the end form shorter blocks, which compete by their mean.
fn choose(layer: &LinearLayer, settings: &ClassifierSettings) -> Result<Mask, PruneError> {
    let (rows, cols) = (layer.rows, layer.cols);
    let selection = Selection {
        pattern: settings.pattern,
        group: Group::Tensor,
        sparsity: settings.sparsity,
        threshold_rule: false,
        factor: None,
    };
    let height = match settings.pattern {
        // A block of more rows than there are is one short block.
        Pattern::Block { rows: height, cols: 1 } if !rows.is_multiple_of(height) => height.min(rows),
        _ => return selection::choose(&layer.name, &layer.weight, rows, cols, &selection),
    };
    let selection = Selection { pattern: Pattern::Block { rows: height, cols: 1 }, ..selection };
    let left = rows % height;
    if left == 0 {
        return selection::choose(&layer.name, &layer.weight, rows, cols, &selection);
    }
    let mut padded = layer.weight.clone();
    let scale = height as f32 / left as f32;
    padded[(rows - left) * cols..].iter_mut().for_each(|w| *w *= scale);
    padded.resize(rows.next_multiple_of(height) * cols, 0.0);
    let mask = selection::choose(&layer.name, &padded, rows.next_multiple_of(height), cols, &selection)?;
    Ok(Mask::from_fn(rows, cols, |r, c| mask.get(r, c)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rarefy_models::classifier::synthetic;

    fn pruned(pattern: &str, sparsity: f64, rearranges: bool) -> (Classifier, ClassifierReport) {
        let mut model = synthetic::mobilenet_v2(2, 32, 4);
        let settings = ClassifierSettings { sparsity, pattern: pattern.parse().unwrap(), rearranges };
        let report = prune(&mut model, &settings, &mut |_| ()).unwrap();
        (model, report)
    }

    #[test]
    fn blocks_by_hand() {
        // Blocks of 2 rows, sums 3 4 | 1 5; the fifth row alone: doubled 4 12. Three of six go: 1, 3 and the first of the two fours.
        let weight = vec![1.0, 2.0, -2.0, 2.0, 0.5, -3.0, 0.5, 2.0, 2.0, 6.0];
        let mut layer = LinearLayer::new("l", 5, 2, weight).unwrap();
        let pattern = "block:2x1".parse().unwrap();
        let settings = ClassifierSettings { sparsity: 0.5, pattern, rearranges: false };
        let (report, retained) = prune_layer(&mut layer, &settings).unwrap();
        assert_eq!(layer.weight, [0.0, 0.0, 0.0, 0.0, 0.0, -3.0, 0.0, 2.0, 2.0, 6.0]);
        assert_eq!(report.pruned, 6);
        assert!((retained - 13.0 / 21.0).abs() < 1e-12);
    }

    #[test]
    fn only_pointwise_layers_lose_weights_and_the_counts_are_exact() {
        let original = synthetic::mobilenet_v2(2, 32, 4);
        for (pattern, height) in [("unstructured", 1), ("block:4x1", 4), ("block:16x1", 16)] {
            let (model, report) = pruned(pattern, 0.7, false);
            let prunable = model.prunable();
            assert_eq!(report.layers.iter().map(|l| l.index).collect::<Vec<_>>(), prunable);
            for i in 0..model.layers().len() {
                let (Some(was), Some(is)) = (original.conv(i), model.conv(i)) else { continue };
                if !prunable.contains(&i) {
                    assert_eq!(was, is);
                    continue;
                }
                assert_eq!(was.bias, is.bias);
                // A block is kept as it was, or gone.
                let mut gone = 0;
                for (was, is) in was.weight.chunks(height * was.d_in).zip(is.weight.chunks(height * is.d_in))
                {
                    for c in 0..original.conv(i).unwrap().d_in {
                        let column = |w: &[f32]| {
                            w.iter()
                                .skip(c)
                                .step_by(is.len() / (is.len() / original.conv(i).unwrap().d_in))
                                .copied()
                                .collect::<Vec<_>>()
                        };
                        let (was, is) = (column(was), column(is));
                        let zero = is.iter().all(|w| *w == 0.0);
                        assert!(zero || was == is, "layer {i}");
                        gone += usize::from(zero);
                    }
                }
                let blocks = was.d_out.div_ceil(height) * was.d_in;
                assert_eq!(gone, (blocks as f64 * 0.7).floor() as usize, "layer {i}, {pattern}");
            }
        }
    }

    #[test]
    fn no_sparsity_is_the_identity() {
        let original = synthetic::mobilenet_v2(2, 32, 4);
        let (model, report) = pruned("block:4x1", 0.0, false);
        assert!((0..model.layers().len()).all(|i| model.conv(i) == original.conv(i)));
        assert_eq!(report.counts().1, 0);
        assert!(report.layers.iter().all(|l| (l.retained_l1 - 1.0).abs() < 1e-12));
    }

    #[test]
    fn blocks_of_one_are_unstructured() {
        let (blocks, _) = pruned("block:1x1", 0.6, false);
        let (single, _) = pruned("unstructured", 0.6, false);
        assert!((0..single.layers().len()).all(|i| blocks.conv(i) == single.conv(i)));
    }

    #[test]
    fn bad_settings_and_weights() {
        let mut model = synthetic::mobilenet_v1(1, 32, 0);
        for (pattern, sparsity, rearranges) in [
            ("unstructured", 0.5, true),
            ("block:1x1", 0.5, true),
            ("block:4x1", 1.0, false),
            ("2:4", 0.5, true),
        ] {
            let settings = ClassifierSettings { sparsity, pattern: pattern.parse().unwrap(), rearranges };
            assert!(matches!(prune(&mut model, &settings, &mut |_| ()), Err(PruneError::Setting(_))));
        }
        let first = model.prunable()[0];
        let whole = model.conv(first).unwrap().weight.len();
        model.conv_mut(first).unwrap().weight[3] = f32::NAN;
        let found = prune(&mut model, &ClassifierSettings::default(), &mut |_| ());
        assert!(matches!(found, Err(PruneError::NonFiniteWeight { .. })));
        assert_eq!(model.conv(first).unwrap().weight.len(), whole);
    }
}
