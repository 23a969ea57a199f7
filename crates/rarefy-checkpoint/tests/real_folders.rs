//! Real model folders, when `RAREFY_DATA` names the data folder (models lie beside it).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use rarefy_checkpoint::{Architecture, Checkpoint, DType, RopeScaling, ShapeName, Tokenizer, layout};
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

/// Saved from the base model, a folder lacks the prefix `model.`: OPT folders on the hub often do.
#[test]
fn a_base_model_without_its_prefix_is_the_same_model() {
    let t = tempfile::tempdir().unwrap();
    for shape in [ShapeName::TinyOpt, ShapeName::TinyLlama] {
        let (full, bare) = (t.path().join(shape.name()), t.path().join(format!("{shape}-bare")));
        rarefy_checkpoint::synth(shape, DType::BF16, 3, &full).unwrap();
        support::copy_dir(&full, &bare);
        let file = bare.join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let mut header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap().replace("\"model.", "\"");
        header.push_str(&" ".repeat(length - header.len()));
        bytes[8..8 + length].copy_from_slice(header.as_bytes());
        std::fs::write(&file, bytes).unwrap();

        let (full, bare) = (Checkpoint::open(&full).unwrap(), Checkpoint::open(&bare).unwrap());
        bare.check_layout().unwrap();
        assert_eq!(full.tensors(), bare.tensors());
        assert!(bare.extra_tensors().is_empty());
        for name in full.tensors().keys() {
            assert_eq!(full.read_f32(name).unwrap(), bare.read_f32(name).unwrap(), "{name}");
            let (mut a, mut b) = (Vec::new(), Vec::new());
            full.store()
                .stream(name, &mut |x| {
                    a.extend_from_slice(x);
                    Ok(())
                })
                .unwrap();
            bare.store()
                .stream(name, &mut |x| {
                    b.extend_from_slice(x);
                    Ok(())
                })
                .unwrap();
            assert_eq!(a, b, "{name}");
        }
    }
}
