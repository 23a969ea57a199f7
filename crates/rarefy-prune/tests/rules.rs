//! Methods that write rules: what they find, what they write, what they refuse.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use rarefy_checkpoint::{Checkpoint, CheckpointWriter, DType, OutTensor, OutputFormat};
use rarefy_kernels::calibrate::double_sparsity::Importance;
use rarefy_models::{CausalLm, LoadOptions, Rules, SparseFiles};
use rarefy_prune::{PruneError, RULE_METHODS, RuleMethod, calibrate_rules, write_rules};
use serde_json::{Value, json};

fn tiny(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name))
        .unwrap()
}

fn builtin() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../rarefy/assets/builtin")).unwrap()
}

fn text(ckpt: &Checkpoint, sequences: usize, length: usize) -> Vec<Vec<u32>> {
    let vocab = ckpt.config().vocab_size;
    (0..sequences)
        .map(|s| (0..length).map(|i| ((i * i * 31 + i * 7 + s * 101) % vocab) as u32).collect())
        .collect()
}

fn method(slug: &str, settings: Value) -> Box<dyn RuleMethod> {
    (RULE_METHODS.iter().find(|m| m.info.slug == slug).unwrap().build)(&settings).unwrap()
}

fn find(
    slug: &str,
    settings: Value,
    ckpt: &Checkpoint,
    text: &[Vec<u32>],
) -> Result<SparseFiles, PruneError> {
    calibrate_rules(&*method(slug, settings), ckpt, text, &mut |_, _| ())
}

#[test]
fn thresholds_give_the_share_asked_for_on_their_own_text() {
    for ckpt in [tiny("tiny-llama"), builtin()] {
        let text = text(&ckpt, 6, 24);
        let mut last = vec![-1.0; ckpt.config().n_layers];
        for share in [0.0, 0.3, 0.5, 0.9, 1.0] {
            let found =
                find("cats", json!({ "sparsity": share }), &ckpt, &text).unwrap().activations.unwrap();
            let values = (6 * 24 * ckpt.config().intermediate_size) as f64;
            for (layer, (t, realised)) in found.thresholds.iter().zip(&found.realised).enumerate() {
                // At most one value more than asked for, when none are equal.
                assert!(
                    *realised >= share - 1e-9 && *realised <= share + 3.0 / values,
                    "{share}: {realised}"
                );
                assert!(*t >= last[layer]);
                last[layer] = *t;
            }
            // Layer 0 sees the same inputs dense and sparse, so the model realises the share there.
            let rules = Rules { mlp: found.rules(), ..Rules::default() };
            let model = CausalLm::load(&ckpt, LoadOptions { rules, ..LoadOptions::default() }).unwrap();
            let _ = model.hidden(&text).unwrap();
            let by_model = model.take_realised().mlp[0].unwrap();
            assert!((by_model - found.realised[0]).abs() < 2e-4, "{by_model} {}", found.realised[0]);
        }
    }
}

/// The oracle is the definition: sorted magnitudes of what a tap sees, the smallest with at least the share below or equal.
#[test]
fn thresholds_of_inputs_are_quantiles_of_what_the_matrices_read() {
    struct All(std::collections::BTreeMap<String, Vec<f32>>);
    impl rarefy_models::Tap for All {
        fn wants(&self, _: &str) -> bool {
            true
        }
        fn see(&mut self, linear: &str, x: &[f32], _: usize) {
            self.0.entry(linear.to_owned()).or_default().extend(x.iter().map(|v| v.abs()));
        }
    }
    for ckpt in [tiny("tiny-llama"), tiny("tiny-qwen2"), builtin()] {
        let text = text(&ckpt, 4, 20);
        for share in [0.0, 0.4, 0.9, 1.0] {
            let settings = json!({ "sparsity": share, "where": "all" });
            let found = find("cats", settings, &ckpt, &text).unwrap().activations.unwrap();
            assert!(found.thresholds.is_empty() && found.inputs.len() == ckpt.config().n_layers);
            // The first block by hand.
            let device = burn::tensor::Device::flex();
            let stem = rarefy_models::Stem::load(&ckpt, &device).unwrap();
            let block = rarefy_models::Block::load(&ckpt, 0, &device).unwrap();
            let mut seen = All(std::collections::BTreeMap::new());
            for sequence in &text {
                let _ = block.forward(stem.forward(std::slice::from_ref(sequence)).unwrap(), &mut seen);
            }
            let names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];
            for (name, t) in names.iter().zip(found.inputs[0].values()) {
                let values = seen.0.get_mut(*name).unwrap();
                values.sort_by(f32::total_cmp);
                let want = match share {
                    0.0 => 0.0,
                    1.0 => f32::MAX,
                    k => values[((values.len() - 1) as f64 * k).ceil() as usize],
                };
                assert!((t - want).abs() <= 1e-6 * want, "{name} {share}: {t} {want}");
            }
            for realised in &found.realised {
                assert!((realised - share).abs() < 0.01, "{share}: {realised}");
            }
            // The first block sees the same inputs dense and sparse up to its own output projection.
            let rules = Rules { inputs: found.inputs, ..Rules::default() };
            let model = CausalLm::load(&ckpt, LoadOptions { rules, ..LoadOptions::default() }).unwrap();
            let _ = model.hidden(&text).unwrap();
            let by_model = model.take_realised().inputs[0].unwrap();
            assert!((by_model - share).abs() < 0.05, "{share}: {by_model}");
        }
    }
}

/// The threshold follows the gate: scaled weights get the quantile of their new distribution.
#[test]
fn a_scaled_gate_is_calibrated_anew() {
    let ckpt = tiny("tiny-llama");
    let text = text(&ckpt, 4, 20);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("scaled");
    let mut writer = CheckpointWriter::create(&out, &ckpt, OutputFormat::Dense, "scaled", false).unwrap();
    let tensors = ckpt.tensors().values().map(|t| {
        let by = if t.name.contains("gate_proj") { 3.0 } else { 1.0 };
        OutTensor {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: DType::F32,
            data: ckpt.read_f32(&t.name).unwrap().iter().flat_map(|v| (v * by).to_le_bytes()).collect(),
            pattern: None,
            quant: None,
        }
    });
    writer.write_part("all", tensors.collect(), Value::Null).unwrap();
    writer.finish(&json!({})).unwrap();
    let scaled = Checkpoint::open(&out).unwrap();
    let of = |ckpt: &Checkpoint| {
        find("cats", json!({ "sparsity": 0.6 }), ckpt, &text).unwrap().activations.unwrap()
    };
    let (a, b) = (of(&ckpt), of(&scaled));
    assert!(b.thresholds[0] > 1.5 * a.thresholds[0]);
    assert!((a.realised[0] - 0.6).abs() < 0.01 && (b.realised[0] - 0.6).abs() < 0.01);
}

#[test]
fn channels_do_not_depend_on_the_order_of_the_text() {
    let ckpt = builtin();
    let mut text = text(&ckpt, 5, 30);
    for importance in Importance::ALL {
        let settings = json!({ "importance": importance, "channels": 6, "tokens": 0.25 });
        let found = find("double-sparsity", settings.clone(), &ckpt, &text).unwrap().attention.unwrap();
        assert_eq!((found.rank(), found.kept), (6, 32));
        assert_eq!(found.importance, importance);
        text.reverse();
        assert_eq!(
            find("double-sparsity", settings, &ckpt, &text).unwrap().attention.unwrap().channels,
            found.channels
        );
    }
}

#[test]
fn query_heads_may_have_channels_of_their_own_and_labels_few_bits() {
    let ckpt = builtin();
    let text = text(&ckpt, 3, 30);
    let c = ckpt.config();
    let settings = json!({ "grouping": "own-channels", "labels": "int4", "channels": 6, "tokens": 9 });
    let own = find("double-sparsity", settings, &ckpt, &text).unwrap();
    let shared = find("double-sparsity", json!({ "channels": 6 }), &ckpt, &text).unwrap();
    let (own, shared) = (own.attention.unwrap(), shared.attention.unwrap());
    assert_eq!((own.channels[0].len(), shared.channels[0].len()), (c.n_heads, c.n_kv_heads));
    let group = c.n_heads / c.n_kv_heads;
    assert!(own.channels.iter().any(|heads| heads.chunks(group).any(|g| g[0] != g[1])), "they differ");
    let files = SparseFiles { activations: None, attention: Some(own) };
    let model =
        CausalLm::load(&ckpt, LoadOptions { rules: files.rules(), ..LoadOptions::default() }).unwrap();
    let mut cache = model.new_cache();
    for token in &text[0] {
        model.decode(&mut cache, &[*token]).unwrap();
    }
    let found = model.take_realised().attention;
    assert!(found[0].unwrap() < 1e-12 && found[1].unwrap() < 1e-12, "the first two blocks are dense");
    // min(9, i) of i tokens, i = 1 to 30.
    let want = 1.0 - (1..=30).map(|i| i.min(9)).sum::<usize>() as f64 / 465.0;
    assert!(found[2..].iter().all(|s| (s.unwrap() - want).abs() < 1e-12), "{found:?}");
}

#[test]
fn both_methods_end_up_in_one_folder_with_the_same_weights() {
    let ckpt = builtin();
    let text = text(&ckpt, 3, 20);
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("cats"), folder.path().join("both"));
    write_rules(&*method("cats", json!({})), &ckpt, &text, &first, false, &mut |_, _| ()).unwrap();
    let cats = Checkpoint::open(&first).unwrap();
    let report =
        write_rules(&*method("double-sparsity", json!({})), &cats, &text, &second, false, &mut |_, _| ())
            .unwrap();
    let both = Checkpoint::open(&second).unwrap();
    let files = SparseFiles::open(both.dir(), both.config()).unwrap();
    assert_eq!(files, report.files);
    assert!(files.activations.is_some() && files.attention.is_some());
    for name in ckpt.tensors().keys() {
        assert_eq!(ckpt.read_dense(name).unwrap(), both.read_dense(name).unwrap(), "{name}");
    }
    // The same again is complete already, another setting is in the way.
    let again = |settings| {
        write_rules(&*method("double-sparsity", settings), &cats, &text, &second, false, &mut |_, _| ())
            .unwrap_err()
    };
    assert!(again(json!({})).to_string().contains("already"), "{}", again(json!({})));
    assert!(
        again(json!({"channels": 1.0})).to_string().contains("exists"),
        "{}",
        again(json!({"channels": 1.0}))
    );
    let model = CausalLm::load(&both, LoadOptions::of_folder(&both).unwrap()).unwrap();
    let mut cache = model.new_cache();
    for token in &text[0] {
        model.decode(&mut cache, &[*token]).unwrap();
    }
    let found = model.take_realised();
    assert!(found.mlp_mean().unwrap() > 0.2 && found.attention_mean().unwrap() > 0.1, "{found:?}");
}

#[test]
fn models_and_texts_that_do_not_fit_are_refused() {
    let (opt, llama, mistral) = (tiny("tiny-opt"), tiny("tiny-llama"), tiny("tiny-mistral"));
    for slug in ["cats", "double-sparsity"] {
        assert!(matches!(
            find(slug, json!({}), &opt, &text(&opt, 1, 5)),
            Err(PruneError::UnsupportedModel { .. })
        ));
        assert!(matches!(find(slug, json!({}), &llama, &[]), Err(PruneError::EmptyCalibration { .. })));
        assert!(matches!(find(slug, json!({}), &llama, &[vec![]]), Err(PruneError::EmptyCalibration { .. })));
        let wrong = [vec![0, llama.config().vocab_size as u32]];
        assert!(matches!(find(slug, json!({}), &llama, &wrong), Err(PruneError::TokenOutOfRange { .. })));
    }
    let dense_layers = json!({ "dense_layers": 0 });
    let error = find("double-sparsity", dense_layers, &mistral, &text(&mistral, 1, 5));
    assert!(matches!(error, Err(PruneError::UnsupportedModel { .. })), "{error:?}");
    let all = json!({ "dense_layers": llama.config().n_layers });
    assert!(matches!(find("double-sparsity", all, &llama, &text(&llama, 1, 5)), Err(PruneError::Setting(_))));
    let many = json!({ "channels": 1000, "dense_layers": 0 });
    assert!(matches!(
        find("double-sparsity", many, &llama, &text(&llama, 1, 5)),
        Err(PruneError::Setting(_))
    ));
    let cats = RULE_METHODS.iter().find(|m| m.info.slug == "cats").unwrap();
    for bad in [-0.1, 1.1] {
        assert!((cats.build)(&json!({ "sparsity": bad })).is_err());
    }
}
