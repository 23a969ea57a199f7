//! What a run must compute.

use burn::tensor::{Device, Tensor};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_checkpoint::{Checkpoint, layout, round_trip};
use rarefy_models::{Block, CausalLm, LoadOptions, Stem, Tap};
use rarefy_prune::{
    LayerFilter, LayerStats, LinearLayer, METHODS, PruneReport, RunSettings, methods, statistics::InputSums,
};
use rarefy_sparsity::{Mask, Pattern};
use serde_json::json;

use crate::{MODELS, model, run, run_with, tokens, variants};

#[test]
fn every_method_on_every_model() {
    for name in MODELS {
        let source = model(name);
        let mut covered = Vec::new();
        for (method, settings) in variants() {
            covered.push(method);
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            let report = run(&source, method, &settings, &out);
            let pruned = Checkpoint::open(&out).unwrap();
            pruned.check_layout().unwrap();
            let mut zeros = 0;
            let mut layers = 0;
            for block in 0..source.config().n_layers {
                for linear in layout::prunable(source.config(), block) {
                    let w = pruned.read_f32(&linear.tensor).unwrap();
                    zeros += w.iter().filter(|w| **w == 0.0).count() as u64;
                    assert!(w.iter().all(|w| w.is_finite() && (*w != 0.0 || w.to_bits() == 0)));
                    if let Some(pattern) = settings["pattern"].as_str() {
                        let pattern: Pattern = pattern.parse().unwrap();
                        assert!(Mask::from_nonzeros(&w, linear.rows, linear.cols).satisfies(&pattern));
                    }
                    assert_eq!(report.layers[layers].layer, linear.tensor);
                    layers += 1;
                }
            }
            assert_eq!((report.totals.zeros, report.layers.len()), (zeros, layers), "{name} {method}");
            let asked = settings["sparsity"].as_f64().unwrap_or(0.5);
            assert!(report.totals.sparsity >= asked - 0.03, "{name} {method}: {}", report.totals.sparsity);
            assert_eq!(report.totals.sparsity, report.totals.sparsity_of_all_linears);
            // Everything else is untouched, bit for bit.
            let linear_names: Vec<&str> = report.layers.iter().map(|l| l.layer.as_str()).collect();
            for tensor in source.tensors().keys().filter(|t| !linear_names.contains(&t.as_str())) {
                assert_eq!(
                    source.read_dense(tensor).unwrap(),
                    pruned.read_dense(tensor).unwrap(),
                    "{tensor}"
                );
            }
            // It runs, and the record beside it is the report.
            let lm = CausalLm::load(&pruned, LoadOptions::default()).unwrap();
            let logits = lm.forward(&tokens(&source, 1, 8)).unwrap();
            assert!(logits.into_data().try_into_vec::<f32>().unwrap().iter().all(|v| v.is_finite()));
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(out.join("rarefy.json")).unwrap()).unwrap();
            assert_eq!(record["method"], method);
            assert_eq!(record["totals"]["zeros"], zeros);
            assert_eq!(record["settings"]["sparsity"], report.settings["sparsity"]);
            assert_eq!(record["input_hash"], source.content_hash().unwrap());
            assert!(!record.to_string().contains("seconds"));
        }
        for method in METHODS {
            assert!(covered.contains(&method.info.slug), "{} has no run", method.info.slug);
        }
    }
}

/// All inputs of one layer, over all sequences, with its own statistics.
struct One<'a> {
    linear: &'a str,
    sums: InputSums,
}

impl Tap for One<'_> {
    fn wants(&self, linear: &str) -> bool {
        linear == self.linear
    }
    fn see(&mut self, _linear: &str, x: &[f32], n_tokens: usize) {
        self.sums.add(x, n_tokens, 0).unwrap();
    }
}

/// The algorithm once more, written out: whole model in memory, each layer with its own tap.
fn by_the_book(source: &Checkpoint, method: &str, settings: &serde_json::Value) -> Vec<(String, Vec<f32>)> {
    let device = Device::flex();
    let pruner = (methods::find(method).unwrap().build)(settings).unwrap();
    let stem = Stem::load(source, &device).unwrap();
    let calibration = tokens(source, 3, 16);
    let mut hidden: Vec<Tensor<3>> =
        calibration.iter().map(|t| stem.forward(std::slice::from_ref(t)).unwrap()).collect();
    let mut out = Vec::new();
    for b in 0..source.config().n_layers {
        let dense = Block::load(source, b, &device).unwrap();
        let mut pruned = Block::load(source, b, &device).unwrap();
        for spec in dense.linears() {
            let mut tap = One {
                linear: &spec.name,
                sums: InputSums::new(spec.name.clone(), spec.cols, pruner.needs()),
            };
            for x in &hidden {
                let _ = dense.forward(x.clone(), &mut tap);
            }
            let stats: LayerStats = tap.sums.finish(hidden.len());
            let mut layer =
                LinearLayer::new(spec.name.clone(), spec.rows, spec.cols, dense.weight(&spec.name).unwrap())
                    .unwrap();
            pruner.prune(&mut layer, &stats, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
            round_trip(&mut layer.weight, source.tensors()[&spec.tensor].dtype);
            pruned.set_weight(&spec.name, layer.weight.clone()).unwrap();
            out.push((spec.tensor.clone(), layer.weight));
        }
        hidden = hidden.into_iter().map(|x| pruned.forward(x, &mut ())).collect();
    }
    out
}

#[test]
fn statistics_come_from_the_dense_block_behind_the_pruned_prefix() {
    for name in ["tiny-llama", "tiny-opt-350m-style", "tiny-qwen2"] {
        let source = model(name);
        for (method, settings) in variants() {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            run(&source, method, &settings, &out);
            let result = Checkpoint::open(&out).unwrap();
            for (tensor, expected) in by_the_book(&source, method, &settings) {
                let got = result.read_f32(&tensor).unwrap();
                assert_eq!(got, expected, "{name} {method} {tensor}");
            }
        }
    }
}

#[test]
fn calibration_matters_and_prefix_is_pruned() {
    // Magnitude ignores the calibration; Wanda does not; block 1 depends on how block 0 was pruned.
    let source = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let light = run(&source, "wanda", &json!({"sparsity": 0.1}), &dir.path().join("a"));
    let heavy = run(&source, "wanda", &json!({"sparsity": 0.8}), &dir.path().join("b"));
    assert!(light.calibration.is_some() && light.calibration == heavy.calibration);
    let magnitude = run(&source, "magnitude", &json!({}), &dir.path().join("c"));
    assert_eq!(magnitude.calibration, None);
    for (l, h) in light.layers.iter().zip(&heavy.layers) {
        assert!(l.relative_error < h.relative_error, "{}", l.layer);
    }
}

#[test]
fn filter_leaves_layers_dense_with_a_line_each() {
    let source = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let filter = LayerFilter { min_layer: 1, prune_only: "mlp".into(), ..LayerFilter::default() };
    let settings = RunSettings { filter: filter.clone(), ..RunSettings::default() };
    let report: PruneReport =
        run_with(&source, "sparsegpt", &json!({"pattern": "2:4", "block_size": 16}), settings, &out).unwrap();
    let result = Checkpoint::open(&out).unwrap();
    for block in 0..source.config().n_layers {
        for linear in layout::prunable(source.config(), block) {
            let selected = filter.selects(block, &linear.name);
            let same =
                source.read_dense(&linear.tensor).unwrap() == result.read_dense(&linear.tensor).unwrap();
            assert_eq!(selected, !same, "{}", linear.tensor);
            assert_eq!(selected, report.layers.iter().any(|l| l.layer == linear.tensor));
            assert_eq!(!selected, report.skipped.iter().any(|s| s.tensor == linear.tensor));
        }
    }
    assert!(report.skipped.iter().any(|s| s.reason.contains("prune_only `mlp`")));
    assert!(report.totals.sparsity_of_all_linears < report.totals.sparsity);
}
