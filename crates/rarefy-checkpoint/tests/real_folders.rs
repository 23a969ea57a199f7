//! Real model folders, when `RAREFY_DATA` names the data folder (models lie beside it).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use rarefy_checkpoint::{Architecture, Checkpoint, DType, RopeScaling, Tokenizer, layout};
use std::path::PathBuf;

fn model(name: &str) -> Option<PathBuf> {
    let Some(data) = std::env::var_os("RAREFY_DATA") else {
        eprintln!("SKIPPED: RAREFY_DATA is not set, {name} was not read");
        return None;
    };
    let path = PathBuf::from(data).join("../models").join(name);
    assert!(path.exists(), "{} does not exist", path.display());
    Some(path)
}

/// The small models made by `transformers`: both rope forms, sharded, tied and untied, OPT in both styles.
#[test]
fn folders_of_transformers() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    if !dir.exists() {
        eprintln!("SKIPPED: {} does not exist", dir.display());
        return;
    }
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let label = path.display();
        let model = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{label}: {e}"));
        model.check_layout().unwrap_or_else(|e| panic!("{label}: {e}"));
        assert!(model.extra_tensors().is_empty(), "{label}: {:?}", model.extra_tensors());
        for name in model.tensors().keys() {
            model.read_f32(name).unwrap();
        }
        count += 1;
    }
    assert!(count >= 7, "only {count} models in {}", dir.display());
}

#[test]
fn llama_5m() {
    let Some(dir) = model("llama-5m") else { return };
    let model = Checkpoint::open(&dir).unwrap();
    model.check_layout().unwrap();
    let c = model.config();
    assert_eq!(
        (c.architecture, c.n_layers, c.n_heads, c.n_kv_heads, c.tie_embeddings),
        (Architecture::Llama, 6, 8, 4, true)
    );
    assert_eq!((c.rope.unwrap().scaling, c.bos, c.eos.as_slice()), (RopeScaling::None, Some(0), &[1][..]));
    // "4.95 M parameters".
    assert_eq!(layout::parameters(c) / 10_000, 495);
    let total: u64 = model.tensors().values().map(|l| l.elements()).sum();
    assert_eq!(total, layout::parameters(c));
    for name in model.tensors().keys() {
        model.read_f32(name).unwrap();
    }
    let tokenizer = Tokenizer::open(&dir).unwrap();
    tokenizer.fits(c).unwrap();
    let text = "Pierre walked into the room, and smiled.";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
}

#[test]
fn stories260k() {
    let Some(dir) = model("stories260k") else { return };
    let model = Checkpoint::open(&dir).unwrap();
    model.check_layout().unwrap();
    assert_eq!(model.tensors()["model.embed_tokens.weight"].dtype, DType::F32);
    let tokenizer = Tokenizer::open(&dir).unwrap();
    tokenizer.fits(model.config()).unwrap();
    let ids = tokenizer.encode("Once upon a time, there was a little girl named Lily.").unwrap();
    assert!(ids.len() < 30 && ids.iter().all(|&i| i < 512), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "Once upon a time, there was a little girl named Lily.");
}

#[test]
fn a_folder_of_another_kind_is_named_as_such() {
    let Some(dir) = model("cifar10-resnet20") else { return };
    let e = Checkpoint::open(&dir).unwrap_err().to_string();
    assert!(e.contains("architecture") && e.contains("LlamaForCausalLM"), "{e}");
}
