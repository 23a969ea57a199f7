//! Hostile or damaged model folders: each is refused with its own error, which names file, tensor or field, and remedy.
#![allow(clippy::unwrap_used)]

mod support;

use rarefy_checkpoint::{
    Activation, Checkpoint, CheckpointError as E, DType, ModelConfig, RopeScaling, ShapeName, Tokenizer,
    layout, synth::synth_with,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{T, copy_dir, edit_config, f32s, tensors, tiny};

fn open(dir: &Path) -> Result<Checkpoint, E> {
    Checkpoint::open(dir)
}

fn sharded(dir: &Path) -> PathBuf {
    let out = dir.join("sharded");
    synth_with(ShapeName::TinyLlama, DType::F32, 1, &out, 100_000).unwrap();
    out
}

fn edit_index(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("model.safetensors.index.json");
    let mut index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    std::fs::write(path, index.to_string()).unwrap();
}

#[test]
fn missing_shard() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    std::fs::remove_file(dir.join("model-00002-of-00007.safetensors"))
        .or_else(|_| {
            let any = std::fs::read_dir(&dir)
                .unwrap()
                .map(|e| e.unwrap().path())
                .find(|p| p.to_string_lossy().contains("model-00002-of"));
            std::fs::remove_file(any.unwrap())
        })
        .unwrap();
    let e = open(&dir).unwrap_err();
    assert!(
        matches!(&e, E::MissingShard { shard, .. } if shard.starts_with("model-00002-of"))
            && e.to_string().contains("index.json"),
        "{e}"
    );
}

#[test]
fn index_pointing_nowhere() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    let clean = open(&dir).unwrap();
    let last =
        clean.store().files().last().unwrap().path().file_name().unwrap().to_string_lossy().into_owned();
    // A tensor that no file holds, then one that another file holds.
    edit_index(&dir, |i| i["weight_map"]["ghost.weight"] = last.clone().into());
    assert!(matches!(open(&dir), Err(E::IndexPointsNowhere { tensor, .. }) if tensor == "ghost.weight"));
    edit_index(&dir, |i| {
        i["weight_map"].as_object_mut().unwrap().remove("ghost.weight");
        i["weight_map"]["lm_head.weight"] = last.clone().into();
    });
    assert!(matches!(open(&dir), Err(E::IndexPointsNowhere { tensor, .. }) if tensor == "lm_head.weight"));
}

#[test]
fn tensor_in_two_shards() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    std::fs::write(
        dir.join("extra.safetensors"),
        tensors(&[("model.norm.weight", "F32", vec![1], f32s(&[1.0])), ("x", "F32", vec![1], f32s(&[1.0]))]),
    )
    .unwrap();
    edit_index(&dir, |i| i["weight_map"]["x"] = "extra.safetensors".into());
    let e = open(&dir).unwrap_err();
    assert!(
        matches!(&e, E::TensorInTwoShards { tensor, .. } if tensor == "model.norm.weight")
            && e.to_string().contains("extra.safetensors"),
        "{e}"
    );
}

#[test]
fn index_path_escaping_the_folder() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    std::fs::write(t.path().join("secret.safetensors"), tensors(&[("x", "F32", vec![1], f32s(&[1.0]))]))
        .unwrap();
    let absolute = t.path().join("secret.safetensors").to_string_lossy().into_owned();
    for path in [
        "../secret.safetensors",
        absolute.as_str(),
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "./secret.safetensors",
    ] {
        edit_index(&dir, |i| i["weight_map"]["x"] = path.into());
        assert!(matches!(open(&dir), Err(E::ShardOutsideFolder { shard, .. }) if shard == path), "{path}");
    }
}

#[test]
fn index_with_a_key_twice_or_of_the_wrong_form() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    for text in [
        r#"{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}"#,
        r#"{"weight_map":[]}"#,
        "{}",
        "",
        r#"{"weight_map":{"a":3}}"#,
    ] {
        std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
        assert!(matches!(open(&dir), Err(E::Json { .. })), "{text}");
    }
}

#[test]
fn symbolic_links_are_followed() {
    let t = tempfile::tempdir().unwrap();
    let dir = sharded(t.path());
    let linked = t.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), linked.join(entry.file_name())).unwrap();
    }
    let model = open(&linked).unwrap();
    model.check_layout().unwrap();
    assert_eq!(model.content_hash().unwrap(), open(&dir).unwrap().content_hash().unwrap());
}

#[test]
fn missing_files() {
    let t = tempfile::tempdir().unwrap();
    assert!(matches!(open(&t.path().join("nowhere")), Err(E::MissingFile { .. })));
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("pytorch_model.bin"), b"x").unwrap();
    let e = open(&dir).unwrap_err();
    assert!(matches!(e, E::MissingFile { .. }) && e.to_string().contains("pytorch_model.bin"), "{e}");
    std::fs::remove_file(dir.join("config.json")).unwrap();
    assert!(open(&dir).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn unknown_architecture() {
    let t = tempfile::tempdir().unwrap();
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    for (architectures, kind) in [
        (json!(["MixtralForCausalLM"]), json!("mixtral")),
        (Value::Null, Value::Null),
        (json!(["LlamaForSequenceClassification"]), json!("llama")),
    ] {
        edit_config(&dir, |c| {
            c["architectures"] = architectures.clone();
            c["model_type"] = kind.clone();
        });
        let e = open(&dir).unwrap_err();
        assert!(
            matches!(e, E::UnknownArchitecture { .. }) && e.to_string().contains("OPTForCausalLM"),
            "{e}"
        );
    }
    std::fs::write(dir.join("config.json"), "[]").unwrap();
    assert!(matches!(open(&dir), Err(E::Json { .. })));
}

#[test]
fn wrong_shapes() {
    let t = tempfile::tempdir().unwrap();
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    edit_config(&dir, |c| c["intermediate_size"] = 180.into());
    let e = open(&dir).unwrap().check_layout().unwrap_err();
    assert!(
        matches!(&e, E::ShapeMismatch { expected, found, .. } if expected[0] == 180 && found[0] == 176),
        "{e}"
    );
    edit_config(&dir, |c| {
        c["intermediate_size"] = 176.into();
        c["num_hidden_layers"] = 3.into();
    });
    let e = open(&dir).unwrap().check_layout().unwrap_err();
    assert!(matches!(&e, E::MissingTensor { tensor, .. } if tensor.contains("layers.2")), "{e}");
    edit_config(&dir, |c| c["num_hidden_layers"] = 1.into());
    let model = open(&dir).unwrap();
    model.check_layout().unwrap();
    assert_eq!(model.extra_tensors().len(), 9);
}

#[test]
fn integer_weights_are_refused() {
    let t = tempfile::tempdir().unwrap();
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    let model = open(&dir).unwrap();
    let all: Vec<(String, Vec<usize>)> =
        model.tensors().values().map(|l| (l.name.clone(), l.shape.clone())).collect();
    let list: Vec<T<'_>> =
        all.iter().map(|(n, s)| (n.as_str(), "I8", s.clone(), vec![1; s.iter().product()])).collect();
    std::fs::write(dir.join("model.safetensors"), tensors(&list)).unwrap();
    assert!(matches!(open(&dir).unwrap().check_layout(), Err(E::WrongDType { found: DType::I8, .. })));
}

#[test]
fn nan_and_infinite_weights() {
    let t = tempfile::tempdir().unwrap();
    for (dtype, nan, inf) in [
        (DType::F32, vec![0, 0, 0xc0, 0x7f], vec![0, 0, 0x80, 0x7f]),
        (DType::BF16, vec![0xc0, 0x7f], vec![0x80, 0x7f]),
        (DType::F16, vec![0, 0x7e], vec![0, 0x7c]),
    ] {
        let dir = tiny(t.path(), ShapeName::TinyLlama, dtype);
        let path = dir.join("model.safetensors");
        let name = "model.layers.1.mlp.up_proj.weight";
        let model = open(&dir).unwrap();
        let info = model.physical()[name].clone();
        let mut bytes = std::fs::read(&path).unwrap();
        for (index, bits) in [(5, &nan), (77, &inf)] {
            let at = info.offset as usize + index * dtype.size();
            bytes[at..at + dtype.size()].copy_from_slice(bits);
        }
        std::fs::write(&path, bytes).unwrap();
        let model = open(&dir).unwrap();
        for e in [model.read_f32(name).unwrap_err(), model.read_weight(name).unwrap_err()] {
            assert!(
                matches!(&e, E::NonFinite { tensor, count: 2, first: 5, .. } if tensor == name)
                    && e.to_string().contains("model.safetensors"),
                "{e}"
            );
        }
        model.read_f32("model.norm.weight").unwrap();
    }
}

#[test]
fn tokenizer_that_does_not_fit_the_vocabulary() {
    let t = tempfile::tempdir().unwrap();
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    let model = open(&dir).unwrap();
    let tokenizer = Tokenizer::open(&dir).unwrap();
    tokenizer.fits(model.config()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 259);
    let mut small = model.config().clone();
    small.vocab_size = 258;
    let e = tokenizer.fits(&small).unwrap_err();
    assert!(
        matches!(e, E::TokenizerDoesNotFit { largest: 258, vocab_size: 258, .. })
            && e.to_string().contains("tokenizer.json"),
        "{e}"
    );
    std::fs::write(dir.join("tokenizer.json"), "{").unwrap();
    assert!(matches!(Tokenizer::open(&dir), Err(E::Tokenizer { .. })));
    std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    assert!(matches!(Tokenizer::open(&dir), Err(E::MissingFile { .. })));
}

#[test]
fn a_name_that_is_almost_right_gets_a_suggestion() {
    let t = tempfile::tempdir().unwrap();
    let model = open(&tiny(t.path(), ShapeName::TinyLlama, DType::F32)).unwrap();
    let e = model.read_f32("model.layers.0.mlp.up_pro.weight").unwrap_err();
    assert!(matches!(&e, E::TensorNotFound { nearest: Some(n), .. } if n.contains("up_proj")), "{e}");
    assert!(matches!(model.raw("zzz"), Err(E::TensorNotFound { nearest: None, .. })));
}

fn config(edit: impl FnOnce(&mut Value)) -> Result<ModelConfig, E> {
    config_of(ShapeName::TinyLlama, edit)
}

fn config_of(shape: ShapeName, edit: impl FnOnce(&mut Value)) -> Result<ModelConfig, E> {
    let mut c = shape.config_json(DType::F32);
    edit(&mut c);
    ModelConfig::from_value(Path::new("d/config.json"), c)
}

#[test]
fn both_rope_forms() {
    let older = config(|c| c["rope_theta"] = 5e5.into()).unwrap().rope.unwrap();
    let newer = config(|c| {
        c.as_object_mut().unwrap().remove("rope_theta");
        c["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "default"});
    });
    assert_eq!(newer.unwrap().rope.unwrap(), older);
    assert!((older.theta - 5e5).abs() < 1e-9);
    let linear =
        config(|c| c["rope_scaling"] = json!({"type": "linear", "factor": 4.0})).unwrap().rope.unwrap();
    assert_eq!(linear.scaling, RopeScaling::Linear { factor: 4.0 });
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let scaling = config(|c| c["rope_scaling"] = llama3).unwrap().rope.unwrap().scaling;
    assert_eq!(scaling, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 });
    assert!(matches!(
        config(|c| c["rope_parameters"] = json!({"rope_theta": 1.0})),
        Err(E::ConfigField { .. })
    ));
}

#[test]
fn rope_scaling_of_other_types_is_refused_never_ignored() {
    for kind in ["dynamic", "yarn", "longrope", "su", "mrope", "proportional"] {
        for key in ["rope_scaling", "rope_parameters"] {
            let e = config(|c| c[key] = json!({"rope_type": kind, "factor": 2.0})).unwrap_err();
            assert!(
                matches!(&e, E::UnsupportedConfig { .. })
                    && e.to_string().contains(kind)
                    && e.to_string().contains("d/config.json"),
                "{e}"
            );
        }
    }
    for bad in [
        json!({"type": "linear"}),
        json!({"type": "linear", "factor": 0}),
        json!({"rope_type": "llama3", "factor": 8.0}),
        json!("linear"),
    ] {
        assert!(matches!(config(|c| c["rope_scaling"] = bad.clone()), Err(E::ConfigField { .. })), "{bad}");
    }
    let per_layer = json!({"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}});
    assert!(matches!(config(|c| c["rope_parameters"] = per_layer), Err(E::UnsupportedConfig { .. })));
    assert!(matches!(config(|c| c["partial_rotary_factor"] = 0.5.into()), Err(E::UnsupportedConfig { .. })));
}

#[test]
fn fields_out_of_range_are_named() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(1.5)),
        ("hidden_size", json!(u64::MAX)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("vocab_size", Value::Null),
        ("num_attention_heads", json!(7)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("head_dim", json!(1 << 20)),
        ("rms_norm_eps", json!(-1.0)),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([1, -2])),
        ("intermediate_size", json!([176])),
        ("max_position_embeddings", json!(0)),
        ("rope_theta", json!(0)),
    ] {
        let e = config(|c| c[field] = value.clone()).unwrap_err();
        assert!(
            matches!(&e, E::ConfigField { .. }) && e.to_string().contains(field),
            "{field} = {value}: {e}"
        );
    }
    assert!(matches!(config(|c| c["hidden_act"] = "swiglu".into()), Err(E::UnsupportedConfig { .. })));
}

#[test]
fn families_differ_where_they_should() {
    let llama = config(|c| c["attention_bias"] = true.into()).unwrap();
    assert!(llama.qkv_bias && llama.o_bias && !llama.mlp_bias && llama.sliding_window.is_none());
    let qwen = config_of(ShapeName::TinyQwen2, |c| c["sliding_window"] = 32.into()).unwrap();
    assert!(qwen.qkv_bias && !qwen.o_bias && qwen.sliding_window.is_none());
    let qwen = config_of(ShapeName::TinyQwen2, |c| {
        c["sliding_window"] = 32.into();
        c["use_sliding_window"] = true.into();
    })
    .unwrap();
    assert_eq!(qwen.sliding_window, Some(32));
    let mistral = config_of(ShapeName::TinyMistral, |c| c["eos_token_id"] = json!([2, 5])).unwrap();
    assert_eq!((mistral.sliding_window, mistral.eos), (Some(256), vec![2, 5]));
    let opt = config_of(ShapeName::TinyOpt, |c| {
        c["word_embed_proj_dim"] = 32.into();
        c["do_layer_norm_before"] = false.into();
    })
    .unwrap();
    assert!(opt.tie_embeddings && opt.activation == Activation::Relu && !opt.opt.unwrap().has_final_norm);
    let names: Vec<String> =
        layout::expected(&opt).into_iter().map(|s| format!("{}{:?}", s.name, s.shape)).collect();
    for expected in [
        "model.decoder.embed_tokens.weight[320, 32]",
        "model.decoder.embed_positions.weight[258, 64]",
        "model.decoder.project_in.weight[64, 32]",
        "model.decoder.project_out.weight[32, 64]",
        "model.decoder.layers.1.fc1.bias[256]",
    ] {
        assert!(names.iter().any(|n| n == expected), "{expected} not in {names:?}");
    }
    assert!(
        !names.iter().any(|n| n.starts_with("model.decoder.final_layer_norm") || n.starts_with("lm_head"))
    );
}

#[test]
fn stale_copies_change_the_hash() {
    let t = tempfile::tempdir().unwrap();
    let dir = tiny(t.path(), ShapeName::TinyLlama, DType::F32);
    let other = t.path().join("copy");
    copy_dir(&dir, &other);
    let hash = open(&dir).unwrap().content_hash().unwrap();
    assert_eq!(open(&other).unwrap().content_hash().unwrap(), hash);
    edit_config(&other, |c| c["rms_norm_eps"] = 2e-5.into());
    assert_ne!(open(&other).unwrap().content_hash().unwrap(), hash);
}
