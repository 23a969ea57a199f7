//! Recall of what a text said earlier: "Anna owns a red bell." and much later "the red", after which only "bell" is right.
//!
//! A document of the built-in generator is a list of keys (colours) and values (things); each later "the COLOUR THING" asks for one.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rarefy_checkpoint::Tokenizer;
use rarefy_data::{Corpus, Split, random_windows};
use rarefy_kernels::attention::LabelKind;
use rarefy_models::{AttentionRule, CausalLm, Grouping, LoadOptions, Rules};
use rarefy_prune::methods::DoubleSparsitySettings;
use serde_json::json;

use super::double_sparsity::{calibrated, from_block, random_channels, row};
use super::language::Subject;
use super::{Check, Outcome, ReproOptions};
use crate::builtin::CORPUS_SEED;
use crate::cli::CliError;

/// A document and what it asks for.
struct Quiz {
    tokens: Vec<u32>,
    /// Index of a token that is certain to whoever remembers, and the tokens since the value was given.
    asked: Vec<(usize, usize)>,
}

/// Byte offsets of the words between blanks.
fn words(text: &str) -> Vec<(usize, &str)> {
    let start = |w: &str| w.as_ptr() as usize - text.as_ptr() as usize;
    text.split_ascii_whitespace().map(|w| (start(w), w)).collect()
}

/// Where `text` gives a thing of a colour ("owns a red bell.") and asks for it again ("the red bell"): byte offsets of the thing asked for,
/// and of the one given.
fn asked(text: &str) -> Vec<(usize, usize)> {
    let words = words(text);
    let mut given: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let mut found = Vec::new();
    for w in words.windows(4) {
        if w[0].1 == "owns" && w[1].1 == "a" {
            given.insert(w[2].1, (w[3].1.trim_end_matches('.'), w[3].0));
        }
    }
    for w in words.windows(3) {
        if w[0].1 == "the"
            && let Some((thing, at)) = given.get(w[1].1)
            && w[2].1.trim_end_matches(['.', ',']) == *thing
            && w[2].0 > *at
        {
            found.push((w[2].0, *at));
        }
    }
    found
}

/// The first documents of the test split that ask for something and fit the model.
fn quizzes(tokenizer: &Tokenizer, count: usize, longest: usize) -> Result<Vec<Quiz>, CliError> {
    let corpus = Corpus::new(CORPUS_SEED, Split::Test);
    let mut out = Vec::new();
    for document in corpus.documents(0, 20 * count as u64) {
        let text = document.text;
        let tokens = tokenizer.encode(&text)?;
        // Tokens before a word: those of the text before its blank.
        let index = |byte: usize| -> Result<Option<usize>, CliError> {
            let before = tokenizer.encode(text[..byte].trim_end())?;
            Ok(tokens.starts_with(&before).then_some(before.len()))
        };
        let mut list = Vec::new();
        for (asked, given) in asked(&text) {
            if let (Some(asked), Some(given)) = (index(asked)?, index(given)?)
                && asked < longest
            {
                list.push((asked, asked - given));
            }
        }
        if !list.is_empty() {
            out.push(Quiz { tokens: tokens[..tokens.len().min(longest)].to_vec(), asked: list });
        }
        if out.len() == count {
            break;
        }
    }
    Ok(out)
}

/// What a rule makes of the quizzes.
#[derive(Debug, Clone, Copy, Default)]
struct Score {
    right: f64,
    nats: f64,
}

/// -ln p of token `want`, and whether it is the most likely one.
fn judge(logits: &[f32], want: u32) -> (f64, bool) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    let of_want = logits[want as usize];
    (sum.ln() - f64::from(of_want - most), of_want >= most)
}

/// Every query of a document follows the rules; or, `after_a_prompt`, it is read densely up to the token before the one asked for.
fn score(subject: &Subject, rules: Rules, quizzes: &[Quiz], after_a_prompt: bool) -> Result<Score, CliError> {
    let model = CausalLm::load(&subject.checkpoint, LoadOptions { rules, ..LoadOptions::default() })?;
    let vocab = model.config().vocab_size;
    let (mut total, mut count) = (Score::default(), 0.0);
    for quiz in quizzes {
        let whole = if after_a_prompt {
            Vec::new()
        } else {
            let logits = model.forward(std::slice::from_ref(&quiz.tokens))?.into_data();
            logits
                .try_into_vec::<f32>()
                .map_err(|e| CliError::usage(format!("logits: {e:?}"), "report it"))?
        };
        for (at, _) in &quiz.asked {
            let own;
            let logits = if after_a_prompt {
                let mut cache = model.new_cache();
                model.decode(&mut cache, &quiz.tokens[..at - 1])?;
                own = model.decode(&mut cache, &quiz.tokens[at - 1..*at])?;
                &own[..]
            } else {
                &whole[(at - 1) * vocab..at * vocab]
            };
            let (nats, right) = judge(logits, quiz.tokens[*at]);
            total.nats += nats;
            total.right += f64::from(u8::from(right));
            count += 1.0;
        }
    }
    Ok(Score { right: total.right / count, nats: total.nats / count })
}

/// Accuracy at 1/16 of tokens and channels (point 4), and the order of double sparsity and the sliding window where recall counts (point 2).
pub(super) fn run(
    options: &mut ReproOptions<'_>,
    subject: &Subject,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    (options.say)("recall: documents that ask");
    let config = subject.checkpoint.config();
    let (n, d, heads) = (config.max_positions, config.head_dim, config.n_kv_heads);
    let (kept, rank) = (n.div_ceil(16), d.div_ceil(16));
    let tokenizer = Tokenizer::open(subject.checkpoint.dir())?;
    let quizzes = quizzes(&tokenizer, if options.quick { 150 } else { 1000 }, n)?;
    let calibration =
        random_windows(&subject.calibration, if options.quick { 32 } else { 256 }, n, options.seed)?;
    let pattern = format!("{kept} tokens, {rank} of {d} channels");
    let sparse = |grouping, dense_layers| -> Result<Rules, CliError> {
        let (tokens, channels) = (kept as f64, rank as f64);
        let settings = DoubleSparsitySettings {
            tokens,
            channels,
            grouping,
            dense_layers,
            ..DoubleSparsitySettings::default()
        };
        Ok(calibrated(settings, subject, &calibration)?.rules())
    };
    let (summed, own, layers) = (Grouping::Summed, Grouping::OwnChannels, config.n_layers);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed + 1);
    let mut random = || AttentionRule::DoubleSparse {
        channels: random_channels(heads, d, rank, &mut rng).into(),
        kept,
        grouping: summed,
        labels: LabelKind::F32,
    };
    let runs: Vec<(&str, Rules, bool)> = vec![
        ("dense", Rules::default(), false),
        ("qk", sparse(summed, 2)?, false),
        ("qk, own channels", sparse(own, 2)?, false),
        ("random channels", from_block(layers, 2, &mut random), false),
        ("sliding window", from_block(layers, 2, &mut || AttentionRule::Window(kept)), false),
        ("qk, first blocks too", sparse(summed, 0)?, false),
        ("own channels, first blocks too", sparse(own, 0)?, false),
        (
            "sliding window, first blocks too",
            from_block(layers, 0, &mut || AttentionRule::Window(kept)),
            false,
        ),
        ("qk after a dense prompt", sparse(summed, 2)?, true),
        ("qk, own channels, after a dense prompt", sparse(own, 2)?, true),
    ];
    let mut found = Vec::new();
    for (name, rules, after_a_prompt) in runs {
        (options.say)(&format!("recall: {name}"));
        let score = score(subject, rules, &quizzes, after_a_prompt)?;
        outcome.table.push(row("recall", name, &pattern, "accuracy", json!(score.right)));
        outcome.table.push(row("recall", name, &pattern, "nats per recalled token", json!(score.nats)));
        found.push((name, score));
    }
    let of = |name: &str| {
        found.iter().find(|f| f.0 == name).map_or(Score { right: f64::NAN, nats: f64::NAN }, |f| f.1)
    };
    let dense = of("dense").right;
    outcome.checks.push(Check::at_least(
        "recall: accuracy of the dense model, for the rest to mean something",
        dense,
        0.5,
    ));
    let name = "recall: accuracy after a dense prompt, less that of dense";
    outcome.checks.push(Check::at_least(name, of("qk after a dense prompt").right - dense, -0.01));
    let values = [("qk", of("qk").nats), ("sliding window", of("sliding window").nats)];
    let name = "recall: nats per recalled token of qk and of as many last tokens";
    outcome.checks.push(Check::ordered(name, &values, &[]));
    let asked: Vec<usize> = quizzes.iter().flat_map(|q| q.asked.iter().map(|a| a.1)).collect();
    let beyond = asked.iter().filter(|d| **d > kept).count() as f64 / asked.len().max(1) as f64;
    let mut sorted = asked.clone();
    sorted.sort_unstable();
    outcome.notes.push(format!(
        "recall: {} questions of {} documents of the test split; the answer was given {} tokens before in the median, {:.0} % of them more than \
         the {kept} tokens kept; every query follows the rule but in the runs after a dense prompt, where only the last one does. Nothing was \
         chosen on these documents; the channels are of the validation split",
        asked.len(),
        quizzes.len(),
        sorted.get(sorted.len() / 2).copied().unwrap_or(0),
        beyond * 100.0
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_found_by_their_colour() {
        let text = "Here Anna the baker lives in the mill. Anna owns a red bell. The cat sees the red hen. Later Anna sold the red bell, and \
                    the blue boat. Boris owns a blue boat. Anna took the blue boat.";
        let found = asked(text);
        // "the red hen" is no bell, and the first blue boat comes before it is given.
        assert_eq!(found.len(), 2);
        for (at, given) in found {
            assert!(
                given < at
                    && text[at..].starts_with(if text[given..].starts_with("bell") {
                        "bell"
                    } else {
                        "boat"
                    })
            );
        }
        assert!(asked("").is_empty() && asked("the red bell").is_empty());
    }

    #[test]
    fn certain_tokens_cost_nothing() {
        let (nats, right) = judge(&[0.0, 60.0, 0.0], 1);
        assert!(nats.abs() < 1e-9 && right);
        let (nats, right) = judge(&[0.0, 0.0], 1);
        assert!((nats - 2f64.ln()).abs() < 1e-9 && right);
        assert!(!judge(&[1.0, 0.0], 1).1);
    }
}
