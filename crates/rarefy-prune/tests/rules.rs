//! Methods that write rules: what they find, what they write, what they refuse.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use rarefy_checkpoint::Checkpoint;
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
            let rules = Rules { mlp: found.rules(), attention: Vec::new() };
            let model = CausalLm::load(&ckpt, LoadOptions { rules, ..LoadOptions::default() }).unwrap();
            let _ = model.hidden(&text).unwrap();
            let by_model = model.take_realised().mlp[0].unwrap();
            assert!((by_model - found.realised[0]).abs() < 2e-4, "{by_model} {}", found.realised[0]);
        }
    }
}

#[test]
fn channels_do_not_depend_on_the_order_of_the_text() {
    let ckpt = builtin();
    let mut text = text(&ckpt, 5, 30);
    for importance in ["qk", "q", "k"] {
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
