//! Rules of sparse running: their limits, and the kernels against the masked dense computation.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::path::Path;
use std::sync::Arc;

use rarefy_checkpoint::{Checkpoint, OutputFormat};
use rarefy_kernels::attention::LabelKind;
use rarefy_kernels::calibrate::double_sparsity::Importance;
use rarefy_models::{
    AttentionRule, CausalLm, Grouping, InputThresholds, LoadOptions, MlpRule, ModelError, PackedPolicy,
    RuleError, Rules, SparseActivations, SparseAttention, SparseFiles, perplexity,
};
use rarefy_sparsity::Pattern;
use support::{distance, real_models, some_tokens, tiny, values, write_halved};

fn load(ckpt: &Checkpoint, rules: Rules) -> CausalLm {
    CausalLm::load(ckpt, LoadOptions { rules, ..LoadOptions::default() }).unwrap()
}

fn mlp(ckpt: &Checkpoint, rule: MlpRule) -> CausalLm {
    load(ckpt, Rules { mlp: vec![rule; ckpt.config().n_layers], ..Rules::default() })
}

fn attention(ckpt: &Checkpoint, rule: &AttentionRule) -> CausalLm {
    load(ckpt, Rules { attention: vec![rule.clone(); ckpt.config().n_layers], ..Rules::default() })
}

/// The same `r` channels for every key-value head.
fn channels(ckpt: &Checkpoint, r: usize) -> Arc<[u32]> {
    let d = ckpt.config().head_dim;
    // The last ones first, so that the order does not happen to be that of the keys.
    (0..ckpt.config().n_kv_heads).flat_map(|_| (0..r).map(|i| (d - 1 - i) as u32)).collect()
}

/// Other channels for every query head.
fn own_channels(ckpt: &Checkpoint, r: usize) -> Arc<[u32]> {
    let d = ckpt.config().head_dim;
    (0..ckpt.config().n_heads).flat_map(|h| (0..r).map(move |i| ((i * 3 + h * 5) % d) as u32)).collect()
}

fn sparse(ckpt: &Checkpoint, r: usize, kept: usize, grouping: Grouping) -> AttentionRule {
    let own = grouping == Grouping::OwnChannels;
    let channels = if own { own_channels(ckpt, r) } else { channels(ckpt, r) };
    AttentionRule::DoubleSparse { channels, kept, grouping, labels: LabelKind::F32 }
}

/// The same threshold on all inputs.
fn inputs(ckpt: &Checkpoint, t: f32) -> CausalLm {
    let thresholds = InputThresholds { attention: t, output: t, mlp: t, down: t };
    load(ckpt, Rules { inputs: vec![thresholds; ckpt.config().n_layers], ..Rules::default() })
}

fn logits(model: &CausalLm, tokens: &[u32]) -> Vec<f32> {
    values(model.forward(&[tokens.to_vec()]).unwrap())
}

/// Token by token after a cache, all logits.
fn decoded(model: &CausalLm, tokens: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache();
    tokens.iter().flat_map(|t| model.decode(&mut cache, &[*t]).unwrap()).collect()
}

fn llamas() -> Vec<Checkpoint> {
    let mut all = vec![tiny("tiny-llama"), tiny("tiny-llama3-rope"), tiny("tiny-qwen2")];
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rarefy/assets/builtin");
    all.push(Checkpoint::open(&builtin).unwrap());
    if let Some(models) = real_models("rules on llama-5m") {
        all.push(Checkpoint::open(&models.join("llama-5m")).unwrap());
    }
    all
}

#[test]
fn nothing_left_out_is_the_dense_model() {
    for ckpt in llamas() {
        let tokens = some_tokens(24, ckpt.config().vocab_size, 3);
        let dense = load(&ckpt, Rules::default());
        let (whole, steps) = (logits(&dense, &tokens), decoded(&dense, &tokens));
        let n = ckpt.config().n_layers;
        let (r, per_head) = (ckpt.config().head_dim, Grouping::PerHead);
        let same = [
            ("all", load(&ckpt, Rules::all(n))),
            ("t = 0", mlp(&ckpt, MlpRule::Threshold(0.0))),
            ("no random ones", mlp(&ckpt, MlpRule::Random { share: 0.0, seed: 1 })),
            ("T = n, r = 1", attention(&ckpt, &sparse(&ckpt, 1, 24, Grouping::Summed))),
            ("T = n, r = d", attention(&ckpt, &sparse(&ckpt, r, 24, per_head))),
            ("T = n, own", attention(&ckpt, &sparse(&ckpt, 2, 24, Grouping::OwnChannels))),
            (
                "T = n, means",
                attention(&ckpt, &AttentionRule::GroupMeans { rank: 2, kept: 24, grouping: per_head }),
            ),
            ("inputs above 0", inputs(&ckpt, 0.0)),
            ("window = n", attention(&ckpt, &AttentionRule::Window(24))),
        ];
        for (name, model) in same {
            let far = distance(&logits(&model, &tokens), &whole);
            assert!(far < 2e-4, "{name}, whole: {far}");
            let far = distance(&decoded(&model, &tokens), &steps);
            assert!(far < 2e-4, "{name}, step by step: {far}");
            let found = model.take_realised();
            for share in found.mlp.iter().chain(&found.attention).chain(&found.inputs).flatten() {
                // Exact zeros do not occur here.
                assert!(share.abs() < 1e-12, "{name}: {share}");
            }
        }
        // The weights are held once, and without the padding of panels.
        assert!(load(&ckpt, Rules::all(n)).weight_bytes() <= dense.weight_bytes());
    }
}

#[test]
fn everything_idle_gives_no_mlp_output() {
    for ckpt in llamas() {
        let tokens = some_tokens(9, ckpt.config().vocab_size, 5);
        let model = mlp(&ckpt, MlpRule::Threshold(f32::INFINITY));
        let whole = logits(&model, &tokens);
        assert!(distance(&decoded(&model, &tokens[..1]), &whole[..ckpt.config().vocab_size]) < 2e-4);
        assert!(model.take_realised().mlp.iter().all(|s| s.is_some_and(|s| (s - 1.0).abs() < 1e-12)));
        // The same as a model whose down projections are zero.
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("no-mlp");
        let tensors = ckpt
            .tensors()
            .values()
            .map(|t| rarefy_checkpoint::OutTensor {
                name: t.name.clone(),
                shape: t.shape.clone(),
                dtype: t.dtype,
                data: if t.name.contains("down_proj") {
                    vec![0; ckpt.read_dense(&t.name).unwrap().len()]
                } else {
                    ckpt.read_dense(&t.name).unwrap()
                },
                pattern: None,
                quant: None,
            })
            .collect();
        support::write_model(&ckpt, &out, tensors, OutputFormat::Dense);
        let without = load(&Checkpoint::open(&out).unwrap(), Rules::default());
        assert!(distance(&logits(&without, &tokens), &whole) < 2e-4);
    }
}

#[test]
fn kernels_follow_the_rules_of_the_masked_computation() {
    for ckpt in llamas() {
        let tokens = some_tokens(40, ckpt.config().vocab_size, 7);
        for t in [0.005, 0.05, 0.3] {
            let model = mlp(&ckpt, MlpRule::Threshold(t));
            let whole = logits(&model, &tokens);
            let by_mask = model.take_realised();
            let steps = decoded(&model, &tokens);
            let by_kernel = model.take_realised();
            let far = distance(&whole, &steps);
            eprintln!("t = {t}: {far} apart, {:?} idle", by_kernel.mlp_mean());
            assert!(far < 2e-3, "t = {t}: {far}");
            let (a, b) = (by_mask.mlp_mean().unwrap(), by_kernel.mlp_mean().unwrap());
            assert!((a - b).abs() < 1e-3 && a > 0.0, "{a} {b}");
        }
        let relu = mlp(&ckpt, MlpRule::Relu);
        assert!(distance(&logits(&relu, &tokens), &decoded(&relu, &tokens)) < 2e-3);
        for t in [0.05, 0.5] {
            let model = inputs(&ckpt, t);
            let whole = logits(&model, &tokens);
            let by_mask = model.take_realised().inputs_mean().unwrap();
            let steps = decoded(&model, &tokens);
            let by_kernel = model.take_realised().inputs_mean().unwrap();
            let far = distance(&whole, &steps);
            eprintln!("inputs up to {t}: {far} apart, {by_kernel} of the weights not read");
            assert!(far < 5e-3, "t = {t}: {far}");
            assert!((by_mask - by_kernel).abs() < 2e-3 && by_mask > 0.0, "{by_mask} {by_kernel}");
        }
        let means = |grouping| AttentionRule::GroupMeans { rank: 3, kept: 6, grouping };
        for rule in [means(Grouping::Summed), means(Grouping::PerHead)] {
            let model = attention(&ckpt, &rule);
            let whole = logits(&model, &tokens);
            let by_mask = model.take_realised().attention_mean().unwrap();
            assert!(distance(&whole, &decoded(&model, &tokens)) < 2e-3);
            assert!((by_mask - model.take_realised().attention_mean().unwrap()).abs() < 1e-12);
        }
        for grouping in [Grouping::Summed, Grouping::PerHead, Grouping::OwnChannels] {
            for (r, kept) in [(1, 5), (3, 1), (ckpt.config().head_dim, 7)] {
                let model = attention(&ckpt, &sparse(&ckpt, r, kept, grouping));
                let whole = logits(&model, &tokens);
                let (by_mask, steps) = (model.take_realised(), decoded(&model, &tokens));
                let far = distance(&whole, &steps);
                eprintln!("r = {r}, T = {kept}, {grouping:?}: {far} apart");
                assert!(far < 2e-3, "r = {r}, T = {kept}, {grouping:?}: {far}");
                let (a, b) =
                    (by_mask.attention_mean().unwrap(), model.take_realised().attention_mean().unwrap());
                // min(T, i) of i tokens are read, i = 1 to 40.
                let read: usize = (1..=40).map(|i| i.min(kept)).sum();
                let want = 1.0 - read as f64 / 820.0;
                assert!((a - want).abs() < 1e-12 && (b - want).abs() < 1e-12, "{a} {b} {want}");
            }
        }
    }
}

#[test]
fn stored_labels_rank_the_same_over_sequences_and_after_a_cache() {
    for ckpt in llamas() {
        let tokens = some_tokens(40, ckpt.config().vocab_size, 17);
        let dense = logits(&load(&ckpt, Rules::default()), &tokens);
        for grouping in [Grouping::Summed, Grouping::OwnChannels] {
            for kind in [LabelKind::Bf16, LabelKind::Int8, LabelKind::Int4] {
                let AttentionRule::DoubleSparse { channels, kept, .. } = sparse(&ckpt, 4, 6, grouping) else {
                    panic!("the rule of `sparse`")
                };
                let rule = AttentionRule::DoubleSparse { channels, kept, grouping, labels: kind };
                let model = attention(&ckpt, &rule);
                let whole = logits(&model, &tokens);
                let far = distance(&whole, &decoded(&model, &tokens));
                eprintln!("{kind:?}, {grouping:?}: {far} apart");
                assert!(far < 2e-3, "{kind:?}, {grouping:?}: {far}");
                assert!(distance(&whole, &dense) > 1e-4, "the rule does something");
            }
        }
    }
}

/// What the double-sparsity paper calls group query attention: the lists of one group may differ, and with one query head per key-value head
/// all three groupings are the same.
#[test]
fn groupings_differ_only_where_heads_share_keys() {
    let ckpt = tiny("tiny-llama");
    assert!(ckpt.config().n_heads > ckpt.config().n_kv_heads);
    let tokens = some_tokens(40, ckpt.config().vocab_size, 19);
    let by = |grouping| logits(&attention(&ckpt, &sparse(&ckpt, 2, 5, grouping)), &tokens);
    let [summed, per_head, own] = [Grouping::Summed, Grouping::PerHead, Grouping::OwnChannels].map(by);
    assert!(distance(&summed, &per_head) > 1e-4 && distance(&per_head, &own) > 1e-4);
    // Own channels that are those of the key-value head: one list per head by shared channels.
    let (heads, kv, d) = (ckpt.config().n_heads, ckpt.config().n_kv_heads, ckpt.config().head_dim);
    let shared = channels(&ckpt, 2);
    let repeated: Arc<[u32]> = (0..heads).flat_map(|h| shared[h * kv / heads * 2..][..2].to_vec()).collect();
    assert!(repeated.iter().all(|c| (*c as usize) < d));
    let rule = AttentionRule::DoubleSparse {
        channels: repeated,
        kept: 5,
        grouping: Grouping::OwnChannels,
        labels: LabelKind::F32,
    };
    assert!(distance(&logits(&attention(&ckpt, &rule), &tokens), &per_head) < 2e-4);
}

/// Queries and keys that a calibration sees are those after the rotation: their products depend on distance, those before do not.
#[test]
fn queries_and_keys_are_rotated() {
    use burn::tensor::{Device, Tensor, TensorData};
    let ckpt = tiny("tiny-llama");
    let device = Device::flex();
    let block = rarefy_models::Block::load(&ckpt, 0, &device).unwrap();
    let (c, n) = (ckpt.config(), 6);
    // The same input at every position.
    let one: Vec<f32> = (0..c.hidden_size).map(|i| ((i * 37 % 23) as f32) / 11.0 - 1.0).collect();
    let x = one.repeat(n);
    let qk = block.queries_keys(&x, n, &device).unwrap();
    let plain = |name: &str| -> Vec<f32> {
        let x = Tensor::<3>::from_data(TensorData::new(x.clone(), [1, n, c.hidden_size]), &device);
        values(block.linear(name).unwrap().forward(x))
    };
    for (found, name, heads) in
        [(&qk.queries, "self_attn.q_proj", c.n_heads), (&qk.keys, "self_attn.k_proj", c.n_kv_heads)]
    {
        let (plain, d, half) = (plain(name), c.head_dim, c.head_dim / 2);
        assert!(distance(&found[..heads * d], &plain[..heads * d]) < 1e-6, "position 0 is not rotated");
        assert!(distance(&found[heads * d..], &plain[heads * d..]) > 1e-3, "{name}");
        for (f, p) in found.chunks(d).zip(plain.chunks(d)) {
            for i in 0..half {
                // Pairs (c, c + d/2) turn together: their length stays.
                let (a, b) = (f[i].hypot(f[i + half]), p[i].hypot(p[i + half]));
                assert!((a - b).abs() < 1e-5);
            }
        }
    }
    assert!(matches!(block.attention_shape(), Some(s) if s.n_heads == c.n_heads));
}

#[test]
fn a_prompt_is_dense_and_what_follows_is_not() {
    for ckpt in llamas() {
        let tokens = some_tokens(30, ckpt.config().vocab_size, 11);
        let vocab = ckpt.config().vocab_size;
        let (dense, model) =
            (load(&ckpt, Rules::default()), attention(&ckpt, &sparse(&ckpt, 2, 3, Grouping::Summed)));
        let (mut a, mut b) = (dense.new_cache(), model.new_cache());
        // Two pieces of prompt: the second one finds the first in the cache.
        for piece in [&tokens[..17], &tokens[17..29]] {
            let (x, y) = (dense.decode(&mut a, piece).unwrap(), model.decode(&mut b, piece).unwrap());
            assert!(distance(&x, &y) < 2e-4 && x.len() == vocab);
        }
        assert!(model.take_realised().attention_mean().unwrap_or(0.0) < 1e-12);
        let before = b.clone();
        let y = model.decode(&mut b, &tokens[29..]).unwrap();
        assert!((model.take_realised().attention_mean().unwrap() - 0.9).abs() < 1e-12, "3 of 30");
        assert!(
            distance(&dense.decode(&mut a, &tokens[29..]).unwrap(), &y) > 1e-5,
            "the rule does something"
        );
        // Cutting the cache back and a copy of it give the same again.
        b.truncate(29);
        let mut copy = before;
        assert_eq!(model.decode(&mut b, &tokens[29..]).unwrap(), y);
        assert_eq!(model.decode(&mut copy, &tokens[29..]).unwrap(), y);
    }
}

#[test]
fn the_order_of_all_channels_does_not_matter_and_fewer_choose_otherwise() {
    let ckpt = tiny("tiny-llama");
    let tokens = some_tokens(40, ckpt.config().vocab_size, 13);
    let d = ckpt.config().head_dim;
    let forward: Arc<[u32]> = (0..ckpt.config().n_kv_heads).flat_map(|_| 0..d as u32).collect();
    let rule = |channels| {
        let (grouping, labels) = (Grouping::PerHead, LabelKind::F32);
        AttentionRule::DoubleSparse { channels, kept: 4, grouping, labels }
    };
    let a = logits(&attention(&ckpt, &rule(forward)), &tokens);
    let b = logits(&attention(&ckpt, &rule(channels(&ckpt, d))), &tokens);
    let c = logits(&attention(&ckpt, &rule(channels(&ckpt, 1))), &tokens);
    assert!(distance(&a, &b) < 2e-4);
    assert!(distance(&a, &c) > 1e-3);
}

#[test]
fn bf16_weights_follow_the_rules_too_and_packed_ones_refuse() {
    let ckpt = tiny("tiny-llama");
    let folder = tempfile::tempdir().unwrap();
    let pattern = Pattern::Unstructured;
    let write = |name: &str, dtype, format| {
        let out = folder.path().join(name);
        write_halved(&ckpt, &out, 4, &pattern, dtype, format);
        Checkpoint::open(&out).unwrap()
    };
    use rarefy_checkpoint::DType;
    let half = write("bf16", DType::BF16, OutputFormat::Dense);
    let tokens = some_tokens(20, ckpt.config().vocab_size, 1);
    let model = mlp(&half, MlpRule::Threshold(0.02));
    assert!(distance(&logits(&model, &tokens), &decoded(&model, &tokens)) < 2e-3);
    assert!(model.linears().iter().any(|(_, l)| l.kernel().is_some_and(|k| k.name() == "row-skip-bf16")));
    assert!(
        distance(
            &logits(&mlp(&half, MlpRule::All), &tokens),
            &logits(&load(&half, Rules::default()), &tokens)
        ) < 2e-4
    );

    let packed = write("packed", DType::F32, OutputFormat::Packed);
    let rules = Rules { mlp: vec![MlpRule::Threshold(0.02); ckpt.config().n_layers], ..Rules::default() };
    let options = |packed| LoadOptions { packed, rules: rules.clone(), ..LoadOptions::default() };
    let error = CausalLm::load(&packed, options(PackedPolicy::AsStored)).unwrap_err();
    assert!(
        matches!(error, ModelError::Rule(RuleError::Model { .. })) && error.to_string().contains("packed")
    );
    assert!(CausalLm::load(&packed, options(PackedPolicy::DenseAlways)).is_ok());
}

#[test]
fn models_and_rules_that_do_not_fit_are_refused() {
    let refuse = |name: &str, rules: Rules| {
        let error = CausalLm::load(&tiny(name), LoadOptions { rules, ..LoadOptions::default() }).unwrap_err();
        match error {
            ModelError::Rule(rule) => rule,
            other => panic!("{other}"),
        }
    };
    let llama = tiny("tiny-llama");
    let n = llama.config().n_layers;
    assert!(matches!(
        refuse("tiny-opt", Rules::all(tiny("tiny-opt").config().n_layers)),
        RuleError::Model { .. }
    ));
    assert!(matches!(
        refuse("tiny-mistral", Rules::all(tiny("tiny-mistral").config().n_layers)),
        RuleError::Model { .. }
    ));
    assert!(matches!(refuse("tiny-llama", Rules::all(n + 1)), RuleError::Size { .. }));
    let of_mlp = |rule| Rules { mlp: vec![rule; n], ..Rules::default() };
    for bad in [f32::NAN, -1.0] {
        assert!(matches!(refuse("tiny-llama", of_mlp(MlpRule::Threshold(bad))), RuleError::Threshold { .. }));
    }
    let random = MlpRule::Random { share: 1.5, seed: 0 };
    assert!(matches!(refuse("tiny-llama", of_mlp(random)), RuleError::Range { .. }));
    let of_attention = |rule| Rules { attention: vec![rule; n], ..Rules::default() };
    let rule = |channels: Vec<u32>, kept| {
        of_attention(AttentionRule::DoubleSparse {
            channels: channels.into(),
            kept,
            grouping: Grouping::Summed,
            labels: LabelKind::F32,
        })
    };
    let heads = llama.config().n_kv_heads;
    assert!(matches!(refuse("tiny-llama", rule(vec![0; heads], 0)), RuleError::Range { .. }));
    assert!(matches!(refuse("tiny-llama", rule(vec![], 1)), RuleError::Size { .. }));
    assert!(matches!(refuse("tiny-llama", rule(vec![1000; heads], 1)), RuleError::Channel { .. }));
    assert!(matches!(refuse("tiny-llama", of_attention(AttentionRule::Window(0))), RuleError::Range { .. }));
    for (rank, kept) in [(0, 1), (1000, 1), (1, 0)] {
        let rule = AttentionRule::GroupMeans { rank, kept, grouping: Grouping::Summed };
        assert!(matches!(refuse("tiny-llama", of_attention(rule)), RuleError::Range { .. }));
    }
    let own = AttentionRule::DoubleSparse {
        channels: vec![0; heads].into(),
        kept: 1,
        grouping: Grouping::OwnChannels,
        labels: LabelKind::F32,
    };
    assert!(matches!(refuse("tiny-llama", of_attention(own)), RuleError::Size { field: "channels", .. }));
    for bad in [f32::NAN, -1.0] {
        let thresholds = InputThresholds { down: bad, ..InputThresholds::default() };
        let rules = Rules { inputs: vec![thresholds; n], ..Rules::default() };
        assert!(matches!(refuse("tiny-llama", rules), RuleError::Threshold { .. }));
    }
    let inputs = |n| vec![InputThresholds::default(); n];
    let rules = Rules { inputs: inputs(n + 1), ..Rules::default() };
    assert!(matches!(refuse("tiny-llama", rules), RuleError::Size { .. }));
    let both = Rules { inputs: inputs(n), ..of_mlp(MlpRule::All) };
    assert!(matches!(refuse("tiny-llama", both), RuleError::Model { .. }));
}

fn files(ckpt: &Checkpoint) -> SparseFiles {
    let c = ckpt.config();
    SparseFiles {
        activations: Some(SparseActivations {
            version: 1,
            method: "cats".into(),
            share: 0.5,
            d_ff: c.intermediate_size,
            thresholds: vec![0.1; c.n_layers],
            inputs: Vec::new(),
            realised: vec![0.5; c.n_layers],
            tokens: 10,
        }),
        attention: Some(SparseAttention {
            version: 1,
            method: "double-sparsity".into(),
            importance: Importance::Qk,
            kept: 4,
            grouping: Grouping::Summed,
            labels: LabelKind::F32,
            dense_layers: 1,
            kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            channels: vec![vec![vec![3, 1]; c.n_kv_heads]; c.n_layers],
            tokens: 10,
        }),
    }
}

#[test]
fn files_come_back_and_give_the_rules() {
    let ckpt = tiny("tiny-llama");
    let folder = tempfile::tempdir().unwrap();
    let written = files(&ckpt);
    for (name, bytes) in written.to_bytes() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let read = SparseFiles::open(folder.path(), ckpt.config()).unwrap();
    assert_eq!(read, written);
    let rules = read.rules();
    assert_eq!(rules.mlp, vec![MlpRule::Threshold(0.1); ckpt.config().n_layers]);
    assert_eq!(rules.attention[0], AttentionRule::All);
    assert!(
        matches!(&rules.attention[1], AttentionRule::DoubleSparse { kept: 4, channels, .. } if channels[..2] == [3, 1])
    );
    assert!(SparseFiles::open(&folder.path().join("none"), ckpt.config()).unwrap().is_empty());

    // Thresholds of inputs instead, and channels of query heads in four bits.
    let mut written = files(&ckpt);
    let c = ckpt.config();
    let thresholds = InputThresholds { attention: 0.1, output: 0.2, mlp: 0.3, down: 0.4 };
    let activations = written.activations.as_mut().unwrap();
    (activations.thresholds, activations.inputs) = (Vec::new(), vec![thresholds; c.n_layers]);
    let attention = written.attention.as_mut().unwrap();
    attention.channels = vec![vec![vec![3, 1]; c.n_heads]; c.n_layers];
    (attention.grouping, attention.labels) = (Grouping::OwnChannels, LabelKind::Int4);
    for (name, bytes) in written.to_bytes() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let read = SparseFiles::open(folder.path(), c).unwrap();
    assert_eq!(read, written);
    let rules = read.rules();
    assert_eq!((rules.mlp.len(), rules.inputs), (0, vec![thresholds; c.n_layers]));
    let labels = LabelKind::Int4;
    assert!(matches!(&rules.attention[1], AttentionRule::DoubleSparse { labels: l, .. } if *l == labels));
    attention_of_too_few_heads(written, c);
}

fn attention_of_too_few_heads(mut files: SparseFiles, config: &rarefy_checkpoint::ModelConfig) {
    let mut attention = files.attention.take().unwrap();
    attention.channels.iter_mut().for_each(|heads| heads.truncate(config.n_kv_heads));
    assert!(matches!(attention.check(config), Err(RuleError::Size { field: "heads in channels", .. })));
}

#[test]
fn hostile_files_are_typed_errors() {
    let ckpt = tiny("tiny-llama");
    let c = ckpt.config();
    let folder = tempfile::tempdir().unwrap();
    let good = files(&ckpt);
    let refuse = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let error = SparseFiles::open(folder.path(), c).unwrap_err();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        error
    };
    let edited = |which: usize, edit: &dyn Fn(&mut serde_json::Value)| {
        let (name, bytes) = good.to_bytes().swap_remove(which);
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        edit(&mut value);
        refuse(name, value.to_string().as_bytes())
    };
    let a = |edit: &dyn Fn(&mut serde_json::Value)| edited(0, edit);
    let b = |edit: &dyn Fn(&mut serde_json::Value)| edited(1, edit);
    assert!(matches!(refuse(SparseActivations::FILE, b"{"), RuleError::Json { .. }));
    assert!(matches!(refuse(SparseActivations::FILE, b"[1]"), RuleError::Json { .. }));
    assert!(matches!(refuse(SparseAttention::FILE, &[0xff; 9]), RuleError::Json { .. }));
    assert!(matches!(refuse(SparseAttention::FILE, &vec![b' '; (16 << 20) + 1]), RuleError::TooLarge { .. }));
    assert!(matches!(a(&|v| v["version"] = 2.into()), RuleError::Version { found: 2, known: 1 }));
    assert!(matches!(a(&|v| v["surprise"] = 2.into()), RuleError::Json { .. }));
    assert!(matches!(a(&|v| v["share"] = 1.5.into()), RuleError::Range { .. }));
    assert!(matches!(a(&|v| v["d_ff"] = 3.into()), RuleError::Size { field: "d_ff", .. }));
    assert!(matches!(
        a(&|v| v["thresholds"] = vec![0.1].into()),
        RuleError::Size { field: "thresholds", .. }
    ));
    assert!(matches!(a(&|v| v["realised"] = vec![0.1].into()), RuleError::Size { field: "realised", .. }));
    assert!(matches!(a(&|v| v["thresholds"][1] = (-0.5).into()), RuleError::Threshold { layer: 1, .. }));
    // JSON has no NaN: it is written as null; too large for 32 bits becomes infinite.
    assert!(matches!(a(&|v| v["thresholds"][1] = serde_json::Value::Null), RuleError::Json { .. }));
    assert!(matches!(a(&|v| v["thresholds"][1] = 1e39.into()), RuleError::Threshold { layer: 1, .. }));

    let thresholds = |down: f32| serde_json::json!({"attention": 0, "output": 0, "mlp": 0, "down": down});
    let all = |down: f32| vec![thresholds(down); c.n_layers];
    assert!(matches!(a(&|v| v["inputs"] = all(0.5).into()), RuleError::Size { found: 1.., .. }));
    let only = |v: &mut serde_json::Value, inputs: Vec<serde_json::Value>| {
        (v["thresholds"], v["inputs"]) = (serde_json::json!([]), inputs.into());
    };
    assert!(matches!(a(&|v| only(v, vec![thresholds(0.5)])), RuleError::Size { field: "inputs", .. }));
    assert!(matches!(a(&|v| only(v, all(-0.5))), RuleError::Threshold { layer: 0, .. }));
    assert!(matches!(a(&|v| only(v, vec![])), RuleError::Size { field: "thresholds", .. }));

    assert!(matches!(b(&|v| v["version"] = 0.into()), RuleError::Version { .. }));
    assert!(matches!(b(&|v| v["labels"] = "int2".into()), RuleError::Json { .. }));
    assert!(matches!(b(&|v| v["importance"] = "kq".into()), RuleError::Json { .. }));
    assert!(matches!(b(&|v| v["grouping"] = "own-channels".into()), RuleError::Size { .. }));
    assert!(matches!(b(&|v| v["kept"] = 0.into()), RuleError::Range { field: "kept", .. }));
    assert!(matches!(b(&|v| v["kept"] = (-1).into()), RuleError::Json { .. }));
    assert!(matches!(b(&|v| v["grouping"] = "both".into()), RuleError::Json { .. }));
    assert!(matches!(b(&|v| v["kv_heads"] = 99.into()), RuleError::Size { field: "kv_heads", .. }));
    assert!(matches!(b(&|v| v["head_dim"] = 99.into()), RuleError::Size { field: "head_dim", .. }));
    assert!(matches!(b(&|v| v["channels"][0][0][1] = 1000.into()), RuleError::Channel { channel: 1000, .. }));
    assert!(matches!(b(&|v| v["channels"][0][0][1] = 3.into()), RuleError::Twice { channel: 3, .. }));
    assert!(matches!(b(&|v| v["channels"][0][0] = Vec::<u32>::new().into()), RuleError::Range { .. }));
    assert!(matches!(b(&|v| v["channels"][1][0] = vec![1].into()), RuleError::Size { .. }));
    assert!(matches!(b(&|v| v["channels"][1] = serde_json::json!([])), RuleError::Size { .. }));
    assert!(matches!(b(&|v| v["channels"] = serde_json::json!([])), RuleError::Size { .. }));
}

#[test]
fn perplexity_rises_with_the_threshold_and_the_counts_follow() {
    let ckpt = tiny("tiny-llama");
    let tokens = some_tokens(256, ckpt.config().vocab_size, 2);
    let mut last = -1.0;
    for t in [0.0, 0.01, 0.1, 10.0] {
        let model = mlp(&ckpt, MlpRule::Threshold(t));
        let ppl = perplexity(&model, &tokens, 32, &mut |_, _| (), None).unwrap().ppl;
        assert!(ppl.is_finite());
        let share = model.take_realised().mlp_mean().unwrap();
        assert!(share >= last, "{share}");
        last = share;
        assert_eq!(model.take_realised().mlp_mean(), None, "counted anew");
    }
    assert!((last - 1.0).abs() < 1e-12);
}
