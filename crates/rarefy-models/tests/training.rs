//! The trainable model: the same function as the one that runs, true gradients, repeatable.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rarefy_checkpoint::{Checkpoint, DType, ModelConfig, OutputFormat};
use rarefy_models::{
    CausalLm, LanguageModel, LlamaModel, LoadOptions, ModelError, causal_lm_loss, perplexity,
};
use support::{TINY, distance, some_tokens, tiny, values, write_model};

fn config(tied: bool, kind: &str) -> ModelConfig {
    let value = serde_json::json!({
        "architectures": [kind], "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 17,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 100.0, "tie_word_embeddings": tied,
        "sliding_window": null,
    });
    ModelConfig::from_value("config.json".as_ref(), value).unwrap()
}

fn ints(values: &[u32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = values.iter().map(|v| i64::from(*v)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn the_trainable_model_is_the_running_model() {
    for name in TINY.into_iter().filter(|n| !n.contains("opt")) {
        let ckpt = tiny(name);
        let vocab = ckpt.config().vocab_size;
        let batch = vec![some_tokens(14, vocab, 1), some_tokens(14, vocab, 2)];
        let running = CausalLm::load(&ckpt, LoadOptions::default()).unwrap();
        let expected = values(running.forward(&batch).unwrap());
        let training = LlamaModel::from_checkpoint(&ckpt, &Device::flex().autodiff()).unwrap();
        let got = values(training.forward(training.tokens(&batch).unwrap()).inner());
        assert!(distance(&got, &expected) < 1e-4, "{name}: {}", distance(&got, &expected));
        let valid = training.valid();
        let got = values(valid.forward(valid.tokens(&batch).unwrap()));
        assert!(distance(&got, &expected) < 1e-4, "{name} without autodiff: {}", distance(&got, &expected));
        let text = some_tokens(64, vocab, 3);
        let a = perplexity(&running, &text, 16, &mut |_, _| (), None).unwrap();
        let b = perplexity(&valid, &text, 16, &mut |_, _| (), None).unwrap();
        assert!((a.nll_mean - b.nll_mean).abs() < 1e-4, "{name}");
    }
    let opt = LlamaModel::from_checkpoint(&tiny("tiny-opt"), &Device::flex());
    assert!(matches!(opt, Err(ModelError::Unsupported { .. })));
}

/// Central differences on several entries of every parameter. In 32 bits the difference quotient is good to some 1e-3 of
/// the largest gradient.
#[test]
fn gradients_equal_finite_differences() {
    let device = Device::flex().autodiff();
    for (tied, kind) in [(true, "LlamaForCausalLM"), (false, "Qwen2ForCausalLM")] {
        let mut model = LlamaModel::init(&config(tied, kind), 3, &device).unwrap();
        // Larger weights than the usual ones, so that every path carries a gradient worth measuring.
        for (name, _, shape) in model.parameters() {
            if shape.len() == 2 {
                let w = model.get(&name).unwrap().into_iter().map(|v| v * 15.0).collect();
                model.set(&name, w).unwrap();
            }
        }
        let tokens = some_tokens(2 * 9, 17, 1);
        let targets = some_tokens(2 * 9, 17, 5);
        let loss = |m: &LlamaModel| {
            causal_lm_loss(m.forward(ints(&tokens, [2, 9], &device)), ints(&targets, [2, 9], &device))
        };
        let value = |m: &LlamaModel| f64::from(values(loss(m).inner())[0]);
        let grads = loss(&model).backward();
        let grads = GradientsParams::from_grads(grads, &model);
        let mut largest = 0f32;
        let mut checks = Vec::new();
        for (name, id, shape) in model.parameters() {
            let grad = match shape.len() {
                1 => values(grads.get::<1>(id).expect("every parameter has a gradient")),
                _ => values(grads.get::<2>(id).expect("every parameter has a gradient")),
            };
            assert_eq!(grad.len(), shape.iter().product::<usize>(), "{name}");
            largest = grad.iter().fold(largest, |m, v| m.max(v.abs()));
            for k in 0..5 {
                let at = k * 7919 % grad.len();
                let original = model.get(&name).unwrap();
                let step = 1e-2f32;
                let mut moved = |by: f32| {
                    let mut w = original.clone();
                    w[at] += by;
                    model.set(&name, w).unwrap();
                    value(&model)
                };
                let quotient = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                model.set(&name, original).unwrap();
                checks.push((name.clone(), at, f64::from(grad[at]), quotient));
            }
        }
        for (name, at, grad, quotient) in checks {
            let allowed = 2e-3 * f64::from(largest) + 2e-2 * grad.abs();
            assert!(
                (grad - quotient).abs() < allowed,
                "{name}[{at}]: {grad} against {quotient} (largest {largest})"
            );
        }
    }
}

/// Uniform logits: log V whatever the target. One logit at ln(V - 1): half of the share.
#[test]
fn the_loss_by_hand() {
    let device = Device::flex();
    let logits = Tensor::<3>::zeros([2, 3, 5], &device);
    let loss = causal_lm_loss(logits, ints(&[0, 1, 2, 3, 4, 0], [2, 3], &device));
    assert!((values(loss)[0] - 5f32.ln()).abs() < 1e-6);
    let logits =
        Tensor::<3>::from_data(TensorData::new(vec![0.0f32, 4f32.ln(), 0.0, 0.0, 0.0], [1, 1, 5]), &device);
    let loss = causal_lm_loss(logits, ints(&[1], [1, 1], &device));
    assert!((values(loss)[0] - 2f32.ln()).abs() < 1e-6);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let device = Device::flex();
    let c = config(false, "LlamaForCausalLM");
    let bytes = |seed| {
        let model = LlamaModel::init(&c, seed, &device).unwrap();
        model.export(DType::F32).into_iter().map(|t| (t.name, t.data)).collect::<Vec<_>>()
    };
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
    // 0.02, and 0.02 / sqrt(2 · 2) on what writes to the residual stream.
    let model = LlamaModel::init(&c, 1, &device).unwrap();
    let deviation = |name: &str| {
        let w = model.get(name).unwrap();
        (w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64).sqrt()
    };
    assert!((deviation("model.layers.0.mlp.gate_proj.weight") / 0.02 - 1.0).abs() < 0.2);
    assert!((deviation("model.layers.1.mlp.down_proj.weight") / 0.01 - 1.0).abs() < 0.2);
    assert!(model.get("model.norm.weight").unwrap().iter().all(|v| (*v - 1.0).abs() < f32::EPSILON));
}

/// Exported, written, read again: the same logits; every expected tensor is there.
#[test]
fn export_and_read_again() {
    for tied in [true, false] {
        let c = config(tied, "LlamaForCausalLM");
        let model = LlamaModel::init(&c, 5, &Device::flex()).unwrap();
        let tensors = model.export(DType::F32);
        let expected: std::collections::BTreeSet<String> =
            rarefy_checkpoint::layout::expected(&c).into_iter().map(|t| t.name).collect();
        assert_eq!(
            tensors.iter().map(|t| t.name.clone()).collect::<std::collections::BTreeSet<_>>(),
            expected
        );
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("config.json"), serde_json::to_string(&c.raw).unwrap()).unwrap();
        write_safetensors(&source.join("model.safetensors"), &tensors);
        let source = Checkpoint::open(&source).unwrap();
        source.check_layout().unwrap();
        let out = dir.path().join("out");
        write_model(&source, &out, tensors, OutputFormat::Dense);
        let ckpt = Checkpoint::open(&out).unwrap();
        let batch = vec![some_tokens(9, 17, 2)];
        let expected = values(model.forward(model.tokens(&batch).unwrap()));
        let read = LlamaModel::from_checkpoint(&ckpt, &Device::flex()).unwrap();
        assert_eq!(values(read.forward(read.tokens(&batch).unwrap())), expected);
        assert_eq!(read.parameters().len(), model.parameters().len());
        let running = CausalLm::load(&ckpt, LoadOptions::default()).unwrap();
        assert!(distance(&values(running.forward(&batch).unwrap()), &expected) < 1e-5);
    }
}

/// The file format in a few lines: length, header, data.
fn write_safetensors(path: &std::path::Path, tensors: &[rarefy_checkpoint::OutTensor]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for t in tensors {
        let begin = data.len();
        data.extend_from_slice(&t.data);
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": t.shape, "data_offsets": [begin, data.len()] });
        header.insert(t.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

#[test]
fn parameters_keep_their_identity_and_refuse_wrong_lengths() {
    let device = Device::flex().autodiff();
    let mut model = LlamaModel::init(&config(true, "Qwen2ForCausalLM"), 1, &device).unwrap();
    let before = model.parameters();
    let name = "model.layers.0.self_attn.q_proj.bias";
    model.set(name, vec![2.0; 16]).unwrap();
    assert_eq!(model.get(name).unwrap(), vec![2.0; 16]);
    assert_eq!(model.parameters(), before);
    assert!(matches!(model.set(name, vec![0.0; 15]), Err(ModelError::Shape { .. })));
    assert!(matches!(model.get("lm_head.weight"), Err(ModelError::UnknownParameter { .. })));
    assert!(matches!(model.tokens(&[vec![17]]), Err(ModelError::Token { .. })));
    // A parameter that was set still collects gradients.
    let tokens = model.tokens(&[vec![1, 2, 3]]).unwrap();
    let loss = causal_lm_loss(model.forward(tokens.clone()), tokens);
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let id = before.iter().find(|p| p.0 == name).unwrap().1;
    assert!(grads.get::<1>(id).is_some());
    assert_eq!(LanguageModel::vocab_size(&model), 17);
    assert_eq!(model.prunable().len(), 14);
}
