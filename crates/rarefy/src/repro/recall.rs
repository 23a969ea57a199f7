//! Recall of what a text said earlier, where only one token is right to whoever remembers.
//!
//! A document of the built-in generator introduces people, and comes back to them: keys and values, and questions for them ([`Kind`]).
//! Which kinds of question the dense model can answer at all is decided on the validation split; the test split is then asked those.

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

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// "Here Anna the baker lives in the mill. Anna": the name again.
    NameAgain,
    /// "Our baker, Anna": the name by the role.
    NameOfRole,
    /// "Anna, our baker": the role by the name.
    RoleOfName,
    /// "Anna owns a red bell." and later "the red bell": the thing by the colour.
    ThingOfColour,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::NameAgain, Kind::NameOfRole, Kind::RoleOfName, Kind::ThingOfColour];

    fn label(self) -> &'static str {
        match self {
            Kind::NameAgain => "the name again",
            Kind::NameOfRole => "the name of a role",
            Kind::RoleOfName => "the role of a name",
            Kind::ThingOfColour => "the thing of a colour",
        }
    }
}

/// One token that is asked for.
#[derive(Debug, Clone, Copy)]
struct Question {
    kind: Kind,
    /// Its index.
    at: usize,
    /// Tokens since the answer was given.
    since: usize,
}

/// A document and what it asks for.
struct Quiz {
    tokens: Vec<u32>,
    questions: Vec<Question>,
}

/// Byte offsets of the words between blanks.
fn words(text: &str) -> Vec<(usize, &str)> {
    let start = |w: &str| w.as_ptr() as usize - text.as_ptr() as usize;
    text.split_ascii_whitespace().map(|w| (start(w), w)).collect()
}

/// The questions of a text: byte offsets of what is asked for and of where it was given.
fn questions(text: &str) -> Vec<(Kind, usize, usize)> {
    let words = words(text);
    let bare = |w: &'_ str| w.trim_end_matches(['.', ',']).to_owned();
    // Names by roles, roles by names, things by colours, each with its place.
    let mut names: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let (mut roles, mut things) = (names.clone(), names.clone());
    let mut found = Vec::new();
    for (i, w) in words.windows(4).enumerate() {
        let [(_, a), (at_b, b), (at_c, c), (at_d, d)] = [w[0], w[1], w[2], w[3]];
        let mut introduce = |name: (usize, &str), role: (usize, &str)| {
            names.insert(bare(role.1), (bare(name.1), name.0));
            roles.insert(bare(name.1), (bare(role.1), role.0));
        };
        if ["Here", "Later", "Again"].contains(&a) && c == "the" {
            introduce((at_b, b), (at_d, d));
        } else if b == "is" && c == "a" {
            introduce((w[0].0, a), (at_d, d));
        }
        if b == "owns" && c == "a" {
            if let Some((role, _)) = roles.get(a) {
                found.push((Kind::NameAgain, w[0].0, names[role].1));
            }
            if let Some((at, thing)) = words.get(i + 4) {
                things.insert(d.to_owned(), (bare(thing), *at));
            }
        }
        // What is asked for has to be what was given.
        let mut ask =
            |kind, key: &str, list: &BTreeMap<String, (String, usize)>, (at, word): (usize, &str)| {
                if let Some((value, given)) = list.get(key.trim_end_matches(','))
                    && bare(word) == *value
                    && at > *given
                {
                    found.push((kind, at, *given));
                }
            };
        if (a == "Our" || a == "our") && b.ends_with(',') {
            ask(Kind::NameOfRole, b, &names, (at_c, c));
        }
        if a.ends_with(',') && b == "our" {
            ask(Kind::RoleOfName, a, &roles, (at_c, c));
        }
        if a == "the" {
            ask(Kind::ThingOfColour, b, &things, (at_c, c));
        }
    }
    found
}

/// The first documents of a split that ask for something of these kinds, given more than `beyond` tokens before; cut to what fits the
/// model.
fn quizzes(
    tokenizer: &Tokenizer,
    split: Split,
    kinds: &[Kind],
    count: usize,
    (beyond, longest): (usize, usize),
) -> Result<Vec<Quiz>, CliError> {
    let corpus = Corpus::new(CORPUS_SEED, split);
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
        for (kind, asked, given) in questions(&text) {
            if kinds.contains(&kind)
                && let (Some(at), Some(given)) = (index(asked)?, index(given)?)
                && at < longest
                && at - given > beyond
            {
                list.push(Question { kind, at, since: at - given });
            }
        }
        if !list.is_empty() {
            out.push(Quiz { tokens: tokens[..tokens.len().min(longest)].to_vec(), questions: list });
        }
        if out.len() == count {
            break;
        }
    }
    Ok(out)
}

/// What a rule makes of questions.
#[derive(Debug, Clone, Copy, Default)]
struct Score {
    right: f64,
    nats: f64,
    count: f64,
}

impl Score {
    fn add(&mut self, nats: f64, right: bool) {
        self.nats += nats;
        self.right += f64::from(u8::from(right));
        self.count += 1.0;
    }

    fn accuracy(&self) -> f64 {
        self.right / self.count
    }

    fn nats(&self) -> f64 {
        self.nats / self.count
    }
}

/// -ln p of token `want`, and whether it is the most likely one.
fn judge(logits: &[f32], want: u32) -> (f64, bool) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    let of_want = logits[want as usize];
    (sum.ln() - f64::from(of_want - most), of_want >= most)
}

/// Every query of a document follows the rules; or, `after_a_prompt`, it is read densely up to the token before the one asked for.
fn score(
    subject: &Subject,
    rules: Rules,
    quizzes: &[Quiz],
    after_a_prompt: bool,
) -> Result<BTreeMap<Kind, Score>, CliError> {
    let model = CausalLm::load(&subject.checkpoint, LoadOptions { rules, ..LoadOptions::default() })?;
    let vocab = model.config().vocab_size;
    let mut scores: BTreeMap<Kind, Score> = BTreeMap::new();
    for quiz in quizzes {
        let whole = if after_a_prompt {
            Vec::new()
        } else {
            let logits = model.forward(std::slice::from_ref(&quiz.tokens))?.into_data();
            logits
                .try_into_vec::<f32>()
                .map_err(|e| CliError::usage(format!("logits: {e:?}"), "report it"))?
        };
        for question in &quiz.questions {
            let own;
            let at = question.at;
            let logits = if after_a_prompt {
                let mut cache = model.new_cache();
                model.decode(&mut cache, &quiz.tokens[..at - 1])?;
                own = model.decode(&mut cache, &quiz.tokens[at - 1..at])?;
                &own[..]
            } else {
                &whole[(at - 1) * vocab..at * vocab]
            };
            let (nats, right) = judge(logits, quiz.tokens[at]);
            scores.entry(question.kind).or_default().add(nats, right);
        }
    }
    Ok(scores)
}

/// All kinds together.
fn total(scores: &BTreeMap<Kind, Score>) -> Score {
    scores.values().fold(Score::default(), |a, b| Score {
        right: a.right + b.right,
        nats: a.nats + b.nats,
        count: a.count + b.count,
    })
}

/// Share of right answers on the validation split from which a kind of question counts as one the model can answer. Guessing names and
/// roles is right in one case of 24.
const ABLE: f64 = 0.5;

/// Accuracy at 1/16 of tokens and channels (point 4), and the order of double sparsity and the sliding window where recall counts (point 2).
pub(super) fn run(
    options: &mut ReproOptions<'_>,
    subject: &Subject,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    (options.say)("recall: what the model can answer");
    let config = subject.checkpoint.config();
    let (n, d, heads, layers) = (config.max_positions, config.head_dim, config.n_kv_heads, config.n_layers);
    let (kept, rank) = (n.div_ceil(16), d.div_ceil(16));
    let tokenizer = Tokenizer::open(subject.checkpoint.dir())?;
    let count = if options.quick { 150 } else { 1000 };
    let trial = quizzes(&tokenizer, Split::Validation, &Kind::ALL, count, (kept, n))?;
    let of_trial = score(subject, Rules::default(), &trial, false)?;
    let mut able = Vec::new();
    for (kind, score) in &of_trial {
        let name = format!("dense, {}", kind.label());
        outcome.table.push(row("recall", &name, "validation", "accuracy", json!(score.accuracy())));
        if score.accuracy() >= ABLE {
            able.push(*kind);
        }
    }
    if able.is_empty() {
        outcome.notes.push(format!(
            "NOT RUN: recall (point 4): the model answers no kind of question rightly in {:.0} % of the cases, even densely",
            ABLE * 100.0
        ));
        return Ok(());
    }
    let quizzes = quizzes(&tokenizer, Split::Test, &able, count, (kept, n))?;
    let samples = if options.quick { 32 } else { 256 };
    let calibration = random_windows(&subject.calibration, samples, n, options.seed)?;
    let pattern = format!("{kept} tokens, {rank} of {d} channels");
    let sparse = |grouping, dense_layers| -> Result<Rules, CliError> {
        let (tokens, channels) = (kept as f64, rank as f64);
        let rest = DoubleSparsitySettings::default();
        let settings = DoubleSparsitySettings { tokens, channels, grouping, dense_layers, ..rest };
        Ok(calibrated(settings, subject, &calibration)?.rules())
    };
    let (summed, own) = (Grouping::Summed, Grouping::OwnChannels);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed + 1);
    let mut random = || AttentionRule::DoubleSparse {
        channels: random_channels(heads, d, rank, &mut rng).into(),
        kept,
        grouping: summed,
        labels: LabelKind::F32,
    };
    let mut window = || AttentionRule::Window(kept);
    let runs: Vec<(&str, Rules, bool)> = vec![
        ("dense", Rules::default(), false),
        ("qk", sparse(summed, 2)?, false),
        ("qk, own channels", sparse(own, 2)?, false),
        ("random channels", from_block(layers, 2, &mut random), false),
        ("sliding window", from_block(layers, 2, &mut window), false),
        ("qk, first blocks too", sparse(summed, 0)?, false),
        ("own channels, first blocks too", sparse(own, 0)?, false),
        ("sliding window, first blocks too", from_block(layers, 0, &mut window), false),
        ("qk after a dense prompt", sparse(summed, 2)?, true),
        ("qk, own channels, after a dense prompt", sparse(own, 2)?, true),
    ];
    let mut found = Vec::new();
    for (name, rules, after_a_prompt) in runs {
        (options.say)(&format!("recall: {name}"));
        let score = total(&score(subject, rules, &quizzes, after_a_prompt)?);
        outcome.table.push(row("recall", name, &pattern, "accuracy", json!(score.accuracy())));
        outcome.table.push(row("recall", name, &pattern, "nats per recalled token", json!(score.nats())));
        found.push((name, score));
    }
    let of = |name: &str| found.iter().find(|f| f.0 == name).map_or(Score::default(), |f| f.1);
    let dense = of("dense").accuracy();
    let less = of("qk after a dense prompt").accuracy() - dense;
    outcome.checks.push(Check::at_least(
        "recall: accuracy after a dense prompt, less that of dense",
        less,
        -0.01,
    ));
    let less = of("qk").accuracy() - dense;
    outcome.checks.push(Check::at_least(
        "recall: accuracy with every query sparse, less that of dense",
        less,
        -0.01,
    ));
    let values = [("qk", of("qk").nats()), ("sliding window", of("sliding window").nats())];
    let name = "recall: nats per recalled token of qk and of as many last tokens";
    outcome.checks.push(Check::ordered(name, &values, &[]));
    let mut since: Vec<usize> =
        quizzes.iter().flat_map(|q| q.questions.iter().map(|question| question.since)).collect();
    since.sort_unstable();
    let kinds: Vec<&str> = able.iter().map(|k| k.label()).collect();
    outcome.notes.push(format!(
        "recall: {} questions of {} documents of the test split ({}: the kinds that the dense model answers on the validation split in at \
         least {:.0} % of the cases); only answers given more than the {kept} tokens kept before are asked for, {} before in the median; every query follows the rule but in the runs after a dense prompt, where only the last one does. Nothing was chosen on these \
         documents",
        since.len(),
        quizzes.len(),
        kinds.join(", "),
        ABLE * 100.0,
        since.get(since.len() / 2).copied().unwrap_or(0),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_by_hand() {
        let text = "Here Anna the baker lives in the mill. Anna owns a red bell. Her friend Boris is a miller. Boris owns a blue boat. \
                    The cat sees the red hen. Our baker, Anna, sold the red bell, Boris, our miller, took the blue boat.";
        let found: Vec<(Kind, &str, &str)> = questions(text)
            .into_iter()
            .map(|(kind, asked, given)| {
                assert!(given < asked);
                let word = |at: usize| text[at..].split([' ', '.', ',']).next().unwrap_or("");
                (kind, word(asked), word(given))
            })
            .collect();
        // "the red hen" is no bell, and no question.
        let want = [
            (Kind::NameAgain, "Anna", "Anna"),
            (Kind::NameAgain, "Boris", "Boris"),
            (Kind::NameOfRole, "Anna", "Anna"),
            (Kind::ThingOfColour, "bell", "bell"),
            (Kind::RoleOfName, "miller", "miller"),
        ];
        assert_eq!(found[..5], want);
        assert!(questions("").is_empty() && questions("the red bell is here").is_empty());
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
