//! Logits and hidden states against those of Python's transformers.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use burn::tensor::{Device, Tensor};
use rarefy_checkpoint::Checkpoint;
use rarefy_models::{Block, CausalLm, Head, LoadOptions, Stem};
use support::{TINY, distance, golden, npy_f32, npy_tokens, real_models, tiny, values};

/// Logits are of size 1 to 20; transformers and we sum in different orders.
const TOLERANCE: f32 = 1e-3;

fn logits_of(case: &str) -> (Vec<u32>, Vec<f32>) {
    let dir = golden().join("logits").join(case);
    let tokens = npy_tokens(&dir.join("tokens.npy"));
    let (shape, logits) = npy_f32(&dir.join("logits.npy"));
    assert_eq!(shape[0] as usize, tokens.len());
    (tokens, logits)
}

fn check_logits(ckpt: &Checkpoint, case: &str) {
    let (tokens, expected) = logits_of(case);
    let model = CausalLm::load(ckpt, LoadOptions::default()).unwrap();
    let got = values(model.forward(std::slice::from_ref(&tokens)).unwrap());
    let d = distance(&got, &expected);
    eprintln!("{case}: {} tokens, largest difference of a logit {d:e}", tokens.len());
    assert!(d < TOLERANCE, "{case}: {d}");

    // Token after token through the cache, and in two pieces.
    let vocab = model.config().vocab_size;
    let mut cache = model.new_cache();
    for (i, t) in tokens.iter().enumerate() {
        let got = model.decode(&mut cache, &[*t]).unwrap();
        let d = distance(&got, &expected[i * vocab..][..vocab]);
        assert!(d < TOLERANCE, "{case}: token {i} through the cache: {d}");
    }
    let mut cache = model.new_cache();
    let (a, b) = tokens.split_at(tokens.len() / 3);
    model.decode(&mut cache, a).unwrap();
    let got = model.decode(&mut cache, b).unwrap();
    let d = distance(&got, &expected[(tokens.len() - 1) * vocab..]);
    assert!(d < TOLERANCE, "{case}: in two pieces: {d}");
    assert_eq!(cache.len(), tokens.len());
}

#[test]
fn tiny_models_give_the_logits_of_transformers() {
    for name in TINY {
        check_logits(&tiny(name), name);
    }
}

/// The input of every block and of the head, block by block as the pruning driver runs them.
#[test]
fn streamed_blocks_give_the_hidden_states_of_transformers() {
    let device = Device::flex();
    for name in TINY {
        let ckpt = tiny(name);
        let (tokens, logits) = logits_of(name);
        let (shape, expected) = npy_f32(&golden().join("logits").join(name).join("hidden.npy"));
        let states = shape[0] as usize;
        let size = expected.len() / states;
        let mut x = Stem::load(&ckpt, &device).unwrap().forward(&[tokens]).unwrap();
        for layer in 0..=ckpt.config().n_layers {
            // The last state of transformers has gone through the final norm already.
            if layer < states.min(ckpt.config().n_layers) {
                let d = distance(&values(x.clone()), &expected[layer * size..][..size]);
                assert!(d < TOLERANCE, "{name}: input of block {layer}: {d}");
            }
            if layer < ckpt.config().n_layers {
                x = Block::load(&ckpt, layer, &device).unwrap().forward(x, &mut ());
            }
        }
        let got = Head::load(&ckpt, &device).unwrap().logits(x);
        let d = distance(&values(got), &logits);
        assert!(d < TOLERANCE, "{name}: {d}");
    }
}

#[test]
fn real_models_give_the_logits_of_transformers() {
    let Some(models) = real_models("real_models_give_the_logits_of_transformers") else { return };
    for name in ["stories260k", "llama-5m"] {
        check_logits(&Checkpoint::open(&models.join(name)).unwrap(), name);
    }
}

/// The blocks with their smaller half set to zero by layer, against the same done in Python.
#[test]
fn real_models_pruned_by_magnitude() {
    let Some(models) = real_models("real_models_pruned_by_magnitude") else { return };
    let device = Device::flex();
    for name in ["stories260k", "llama-5m"] {
        let ckpt = Checkpoint::open(&models.join(name)).unwrap();
        let (tokens, expected) = logits_of(&format!("{name}-magnitude50"));
        let mut x: Tensor<3> = Stem::load(&ckpt, &device).unwrap().forward(&[tokens]).unwrap();
        for layer in 0..ckpt.config().n_layers {
            let mut block = Block::load(&ckpt, layer, &device).unwrap();
            for l in block.linears() {
                let mut w = block.weight(&l.name).unwrap();
                let len = w.len();
                support::halve(&mut w, len);
                block.set_weight(&l.name, w).unwrap();
            }
            x = block.forward(x, &mut ());
        }
        let got = Head::load(&ckpt, &device).unwrap().logits(x);
        let d = distance(&values(got), &expected);
        eprintln!("{name} at 50 %: {d:e}");
        assert!(d < TOLERANCE, "{name}: {d}");
    }
}
