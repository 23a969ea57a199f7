//! Known figures of real models; only where their data is at hand.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::ops::ControlFlow;
use std::time::Instant;

use rarefy_checkpoint::{Checkpoint, Tokenizer};
use rarefy_models::{CausalLm, LoadOptions, Sampling, generate, perplexity, token_nll};
use support::{real_models, real_text};

/// 21463 predicted tokens, 1.4465 nats each, perplexity 4.248: the first 60 stories of more than 200 characters, trimmed,
/// BOS before, cut to 512 tokens; and the greedy continuation published with the model.
#[test]
fn stories260k() {
    let Some(models) = real_models("stories260k") else { return };
    let dir = models.join("stories260k");
    let ckpt = Checkpoint::open(&dir).unwrap();
    let model = CausalLm::load(&ckpt, LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let encode = |text: &str| {
        let mut tokens = vec![1];
        tokens.extend(tokenizer.encode(text).unwrap());
        tokens.truncate(512);
        tokens
    };
    let text = real_text("tinystories_sample.txt.gz");
    let mut starts: Vec<usize> =
        ["Once upon a time", "One day, a"].iter().flat_map(|s| text.match_indices(s).map(|m| m.0)).collect();
    starts.sort_unstable();
    starts.push(text.len());
    let stories: Vec<&str> = starts
        .windows(2)
        .map(|w| text[w[0]..w[1]].trim())
        .filter(|s| s.chars().count() > 200)
        .take(60)
        .collect();
    let (mut nll, mut n) = (0.0, 0);
    for story in stories {
        let each = token_nll(&model, &encode(story)).unwrap();
        nll += each.iter().sum::<f64>();
        n += each.len();
    }
    eprintln!("stories260k: {n} tokens, perplexity {}", (nll / n as f64).exp());
    assert_eq!(n, 21463);
    assert!(((nll / n as f64).exp() - 4.248).abs() < 5e-4);

    let prompt = encode("Once upon a time");
    let new = generate(&model, &prompt, Sampling::Greedy, 60, 0, &mut |_| ControlFlow::Continue(())).unwrap();
    let all: Vec<u32> = prompt[1..].iter().copied().chain(new).collect();
    let text = tokenizer.decode(&all).unwrap();
    let expected = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball.";
    assert!(text.trim().starts_with(expected), "{text}");
}

fn wikitext(models: &std::path::Path, windows: Option<usize>) -> f64 {
    let dir = models.join("llama-5m");
    let model = CausalLm::load(&Checkpoint::open(&dir).unwrap(), LoadOptions::default()).unwrap();
    let tokens = Tokenizer::open(&dir).unwrap().encode(&real_text("wikitext2.test.txt.gz")).unwrap();
    assert_eq!(tokens.len(), 444_902);
    let start = Instant::now();
    let got = perplexity(&model, &tokens, 256, &mut |_, _| (), windows).unwrap();
    eprintln!("llama-5m: {got:?}, {:.1} s", start.elapsed().as_secs_f64());
    got.ppl
}

/// The first 100 windows of WikiText-2 test; transformers 5.23.0 with torch 2.15.0 gives 41.56922233755922.
#[test]
fn llama_5m() {
    let Some(models) = real_models("llama_5m") else { return };
    assert!((wikitext(&models, Some(100)) / 41.569_222_337_559_22 - 1.0).abs() < 1e-5);
}

/// The figure measured with transformers over the whole text, in the model's `measured.json`.
#[test]
#[ignore = "one to three minutes of both cores; llama_5m checks the first 100 windows"]
fn llama_5m_whole_text() {
    let Some(models) = real_models("llama_5m_whole_text") else { return };
    assert!((wikitext(&models, None) / 40.154_945_439_667_82 - 1.0).abs() < 1e-5);
}
