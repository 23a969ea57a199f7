//! A model gives the same however it is held and fed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::ops::ControlFlow;

use burn::tensor::Device;
use proptest::prelude::*;
use rarefy_checkpoint::{Checkpoint, DType, OutputFormat};
use rarefy_models::{
    Block, CausalLm, KvCache, LoadOptions, ModelError, PackedPolicy, Sampling, Tap, generate, perplexity,
};
use rarefy_sparsity::Pattern;
use support::{TINY, distance, some_tokens, tiny, values, write_halved};

fn load(ckpt: &Checkpoint) -> CausalLm {
    CausalLm::load(ckpt, LoadOptions::default()).unwrap()
}

/// For each number type and pattern: as stored packed, packed but decoded, and dense with zeros.
#[test]
fn packed_equals_dense_with_zeros() {
    let dir = tempfile::tempdir().unwrap();
    for source in ["tiny-llama", "tiny-opt", "tiny-qwen2"] {
        let ckpt = tiny(source);
        let tokens = some_tokens(20, ckpt.config().vocab_size, 1);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (m, pattern) in [(4, "2:4"), (8, "4:8"), (1 << 20, "unstructured")] {
                let pattern: Pattern = pattern.parse().unwrap();
                let write = |kind: &str, format: OutputFormat| {
                    let out = dir.path().join(format!("{source}-{dtype:?}-{m}-{kind}"));
                    write_halved(&ckpt, &out, m, &pattern, dtype, format);
                    Checkpoint::open(&out).unwrap()
                };
                let dense = load(&write("dense", OutputFormat::Dense));
                let packed_folder = write("packed", OutputFormat::Packed);
                let packed = load(&packed_folder);
                let options = LoadOptions { packed: PackedPolicy::DenseAlways, ..LoadOptions::default() };
                let decoded = CausalLm::load(&packed_folder, options).unwrap();
                let run = |model: &CausalLm| values(model.forward(std::slice::from_ref(&tokens)).unwrap());
                let (a, b, c) = (run(&dense), run(&packed), run(&decoded));
                let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                assert!(
                    distance(&a, &b) <= 1e-5 * scale,
                    "{source} {dtype:?} {pattern}: {}",
                    distance(&a, &b)
                );
                assert_eq!(a, c, "{source} {dtype:?} {pattern}");
                let kinds: Vec<&str> =
                    packed.linears().iter().filter_map(|(_, l)| l.kernel().map(|k| k.name())).collect();
                assert!(kinds.iter().any(|k| !k.contains("dense") && !k.contains("rows")), "{kinds:?}");
            }
        }
    }
}

#[test]
fn bf16_stays_in_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = tiny("tiny-qwen2");
    let size = |dtype: DType| {
        let out = dir.path().join(format!("{dtype:?}"));
        let pattern = "unstructured".parse().unwrap();
        write_halved(&ckpt, &out, 1 << 20, &pattern, dtype, OutputFormat::Dense);
        let model = load(&Checkpoint::open(&out).unwrap());
        model.linears().iter().map(|(_, l)| l.kernel().unwrap().bytes()).sum::<usize>()
    };
    // Kernels pad: not exactly one half.
    let ratio = size(DType::BF16) as f64 / size(DType::F32) as f64;
    assert!(ratio < 0.6, "{ratio}");
}

#[test]
fn a_batch_is_its_sequences() {
    for name in TINY {
        let ckpt = tiny(name);
        let model = load(&ckpt);
        let vocab = ckpt.config().vocab_size;
        let batch: Vec<Vec<u32>> = (0..3).map(|seed| some_tokens(13, vocab, seed)).collect();
        let all = values(model.forward(&batch).unwrap());
        let each: Vec<f32> =
            batch.iter().flat_map(|t| values(model.forward(std::slice::from_ref(t)).unwrap())).collect();
        assert!(distance(&all, &each) < 1e-5, "{name}: {}", distance(&all, &each));
    }
}

/// The blocks with dense parameters and the model in kernels are the same function.
#[test]
fn streamed_blocks_equal_the_whole_model() {
    let device = Device::flex();
    for name in TINY {
        let ckpt = tiny(name);
        let batch =
            vec![some_tokens(15, ckpt.config().vocab_size, 4), some_tokens(15, ckpt.config().vocab_size, 5)];
        let mut x = rarefy_models::Stem::load(&ckpt, &device).unwrap().forward(&batch).unwrap();
        for i in 0..ckpt.config().n_layers {
            x = Block::load(&ckpt, i, &device).unwrap().forward(x, &mut ());
        }
        let streamed = values(rarefy_models::Head::load(&ckpt, &device).unwrap().logits(x));
        let whole = values(load(&ckpt).forward(&batch).unwrap());
        assert!(distance(&streamed, &whole) < 1e-5, "{name}: {}", distance(&streamed, &whole));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However a sequence is cut, the cache gives the logits of the whole.
    #[test]
    fn any_cut_through_the_cache(cuts in prop::collection::vec(1usize..14, 1..6), which in 0usize..TINY.len(), seed in 0usize..9) {
        let ckpt = tiny(TINY[which]);
        let model = load(&ckpt);
        let vocab = ckpt.config().vocab_size;
        let n = cuts.iter().sum::<usize>().min(60);
        let tokens = some_tokens(n, vocab, seed);
        let whole = values(model.forward(std::slice::from_ref(&tokens)).unwrap());
        let mut cache = model.new_cache();
        let mut done = 0;
        for cut in cuts {
            let end = (done + cut).min(n);
            if end > done {
                let got = model.decode(&mut cache, &tokens[done..end]).unwrap();
                prop_assert!(distance(&got, &whole[(end - 1) * vocab..][..vocab]) < 1e-4);
                done = end;
            }
        }
    }
}

#[test]
fn a_truncated_cache_goes_on_as_if_nothing_had_followed() {
    let model = load(&tiny("tiny-mistral"));
    let tokens = some_tokens(12, 64, 2);
    let mut cache = model.new_cache();
    model.decode(&mut cache, &tokens[..9]).unwrap();
    let expected = model.decode(&mut cache, &tokens[9..10]).unwrap();
    model.decode(&mut cache, &[5, 6, 7]).unwrap();
    cache.truncate(9);
    assert_eq!(cache.len(), 9);
    assert_eq!(model.decode(&mut cache, &tokens[9..10]).unwrap(), expected);
    assert!(cache.bytes() > 0);
}

#[test]
fn generation_repeats_and_stops() {
    let model = load(&tiny("tiny-llama"));
    let sampling = Sampling::Temperature { t: 1.0, top_p: Some(0.9) };
    let run =
        |seed| generate(&model, &[1, 2, 3], sampling, 20, seed, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    assert_eq!(run(7).len(), 20);
    let mut seen = 0;
    let stopped = generate(&model, &[1], sampling, 20, 7, &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(stopped.unwrap().len(), 3);
    let greedy =
        generate(&model, &[1, 2], Sampling::Greedy, 5, 0, &mut |_| ControlFlow::Continue(())).unwrap();
    // Greedy by hand, without a cache.
    let mut tokens = vec![1, 2];
    for _ in 0..5 {
        let logits = values(model.forward(std::slice::from_ref(&tokens)).unwrap());
        let last = &logits[logits.len() - model.config().vocab_size..];
        let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        tokens.push(best as u32);
    }
    assert_eq!(greedy, tokens[2..]);
}

/// One and two threads, and twice the same: equal bits.
#[test]
fn results_do_not_depend_on_threads() {
    let model = load(&tiny("tiny-llama"));
    let tokens = some_tokens(64, 96, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(model.forward(std::slice::from_ref(&tokens)).unwrap()))
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(2), run(2));
}

/// What a tap sees is the input that gives the layer's output, for the layers it wants only.
#[test]
fn taps_see_the_inputs() {
    struct Record(Vec<(String, Vec<f32>, usize)>);
    impl Tap for Record {
        fn wants(&self, linear: &str) -> bool {
            !linear.ends_with("k_proj")
        }
        fn see(&mut self, linear: &str, x: &[f32], n_tokens: usize) {
            self.0.push((linear.to_owned(), x.to_vec(), n_tokens));
        }
    }
    let device = Device::flex();
    for name in TINY {
        let ckpt = tiny(name);
        let block = Block::load(&ckpt, 0, &device).unwrap();
        let batch = vec![some_tokens(7, 64, 1), some_tokens(7, 64, 2)];
        let x = rarefy_models::Stem::load(&ckpt, &device).unwrap().forward(&batch).unwrap();
        let mut record = Record(Vec::new());
        let tapped = values(block.forward(x.clone(), &mut record));
        assert_eq!(tapped, values(block.forward(x, &mut ())));
        let wanted: Vec<_> = block.linears().into_iter().filter(|l| !l.name.ends_with("k_proj")).collect();
        assert_eq!(record.0.len(), wanted.len());
        assert_eq!(block.linears(), Block::linears_of(&ckpt, 0));
        for ((seen, x, n), spec) in record.0.iter().zip(&wanted) {
            assert_eq!((seen, *n, x.len()), (&spec.name, 14, 14 * spec.cols));
        }
        // The first two share their input.
        assert_eq!(record.0[0].1, record.0[1].1);
    }
}

#[test]
fn weights_are_replaced_and_refused() {
    let device = Device::flex();
    let ckpt = tiny("tiny-llama");
    let mut block = Block::load(&ckpt, 1, &device).unwrap();
    let before = block.weight("mlp.up_proj").unwrap();
    assert_eq!(before, ckpt.read_f32("model.layers.1.mlp.up_proj.weight").unwrap());
    block.set_weight("mlp.up_proj", vec![0.5; before.len()]).unwrap();
    assert_eq!(block.weight("mlp.up_proj").unwrap(), vec![0.5; before.len()]);
    assert!(matches!(block.set_weight("mlp.up_proj", vec![0.0; 3]), Err(ModelError::Shape { .. })));
    assert!(matches!(block.set_weight("fc1", vec![0.0; 3]), Err(ModelError::UnknownLinear { .. })));
    assert!(matches!(block.weight("lm_head"), Err(ModelError::UnknownLinear { .. })));
    assert!(matches!(Block::load(&ckpt, 2, &device), Err(ModelError::NoSuchBlock { index: 2, n_layers: 2 })));
    let whole = load(&ckpt);
    assert!(matches!(whole.blocks()[0].weight("mlp.up_proj"), Err(ModelError::Packed { .. })));
}

#[test]
fn hostile_input() {
    let model = load(&tiny("tiny-opt"));
    let forward = |batch: &[Vec<u32>]| model.forward(batch).map(|_| ());
    assert!(matches!(forward(&[]), Err(ModelError::Empty { .. })));
    assert!(matches!(forward(&[vec![]]), Err(ModelError::Empty { .. })));
    assert!(matches!(
        forward(&[vec![1, 2], vec![1]]),
        Err(ModelError::Ragged { index: 1, expected: 2, found: 1 })
    ));
    let vocab = model.config().vocab_size;
    assert!(matches!(
        forward(&[vec![1], vec![vocab as u32]]),
        Err(ModelError::Token { sequence: 1, position: 0, .. })
    ));
    // 64 positions were learned.
    assert!(forward(&[some_tokens(64, vocab, 0)]).is_ok());
    assert!(matches!(
        forward(&[some_tokens(65, vocab, 0)]),
        Err(ModelError::Positions { needed: 65, available: 64 })
    ));
    let mut cache = model.new_cache();
    model.decode(&mut cache, &some_tokens(64, vocab, 0)).unwrap();
    assert!(matches!(model.decode(&mut cache, &[1]), Err(ModelError::Positions { .. })));
    assert!(matches!(model.decode(&mut model.new_cache(), &[]), Err(ModelError::Empty { .. })));
    assert!(matches!(
        model.decode(&mut KvCache::new(7), &[1]),
        Err(ModelError::Cache { expected: 2, found: 7 })
    ));
}

/// Windows in one batch or one by one: the same mean.
#[test]
fn perplexity_is_the_mean_over_windows() {
    let model = load(&tiny("tiny-llama"));
    let tokens = some_tokens(100, 96, 6);
    let all = perplexity(&model, &tokens, 16, &mut |_, _| (), None).unwrap();
    assert_eq!((all.windows, all.tokens), (6, 90));
    let sum: f64 = tokens
        .chunks_exact(16)
        .map(|w| rarefy_models::token_nll(&model, w).unwrap().iter().sum::<f64>())
        .sum();
    assert!((all.nll_mean - sum / 90.0).abs() < 1e-6);
    // Against the logits by the definition.
    let logits = values(model.forward(&[tokens[..16].to_vec()]).unwrap());
    let first: f64 = (0..15)
        .map(|t| {
            let row = &logits[t * 96..][..96];
            let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            sum.ln() - f64::from(row[tokens[t + 1] as usize])
        })
        .sum();
    let one = perplexity(&model, &tokens, 16, &mut |_, _| (), Some(1)).unwrap();
    assert!((one.nll_mean - first / 15.0).abs() < 1e-6);
}
