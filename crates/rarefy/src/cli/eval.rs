//! `rarefy eval`: perplexity on a text, or accuracy on images.

use std::path::PathBuf;
use std::time::Instant;

use rarefy_checkpoint::Checkpoint;
use rarefy_models::{CausalLm, LoadOptions, perplexity};
use serde_json::json;

use super::model::{ModelArg, realised_lines, rules};
use super::{CliError, CliResult, Context, bytes, classifier, text};

/// Arguments of `rarefy eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Model folder, or `builtin`
    pub(in crate::cli) model: ModelArg,
    /// Text to measure on, UTF-8, plain or gzip [default for `builtin`: held-out text of its generator]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) text: Option<PathBuf>,
    /// Use the text of the built-in generator for a folder made from `builtin`
    #[arg(long, conflicts_with = "text")]
    pub(in crate::cli) builtin_text: bool,
    /// Tokens of each window [default: 256, or the model's maximum if smaller]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) window: Option<usize>,
    /// Ignore the folder's rules of idle neurons and distant tokens
    #[arg(long)]
    pub(in crate::cli) dense: bool,
    /// Measure on the first N windows only [default: all of a file; 128 of the generator]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) max_windows: Option<usize>,
    /// Folder of JPEG images with labels.tsv (file, class number, name), when MODEL is an image classifier
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) images: Option<PathBuf>,
    /// Measure on the first N images only [default: all]
    #[arg(long, value_name = "N", requires = "images")]
    pub(in crate::cli) max_images: Option<usize>,
}

/// Tokens of a window when the user says nothing.
pub(crate) const WINDOW: usize = 256;
/// Windows of generated text when the user says nothing.
pub(crate) const GENERATED_WINDOWS: usize = 128;
/// Most windows that can be asked for.
const MAX_WINDOWS: usize = 1 << 20;

pub(crate) fn run(args: &EvalArgs, context: &Context) -> CliResult {
    let started = Instant::now();
    let folder = args.model.folder()?;
    if classifier::is_classifier(&folder) {
        return classifier::eval(&folder, args, context);
    }
    if args.images.is_some() {
        return Err(CliError::usage(
            "`--images` is for image classifiers, and MODEL is none",
            "leave it out, or give a folder whose config.json lists `layers`",
        ));
    }
    let checkpoint = Checkpoint::open(&folder)?;
    checkpoint.check_layout()?;
    let tokenizer = text::tokenizer(&checkpoint)?;
    let window = args.window.unwrap_or_else(|| WINDOW.min(checkpoint.config().max_positions));
    let longest = checkpoint.config().max_positions;
    if !(2..=longest).contains(&window) {
        return Err(CliError::usage(
            format!(
                "`--window {window}`, but the model has positions for {longest} tokens, and a window needs 2"
            ),
            format!("give 2 to {longest}"),
        ));
    }
    if args.max_windows.is_some_and(|n| !(1..=MAX_WINDOWS).contains(&n)) {
        return Err(CliError::usage("`--max-windows` is out of range", format!("give 1 to {MAX_WINDOWS}")));
    }
    let is_generated = args.text.is_none();
    let max_windows = args.max_windows.or(is_generated.then_some(GENERATED_WINDOWS));
    let wanted = window.saturating_mul(max_windows.unwrap_or(0));
    let source = if args.builtin_text { ModelArg::Builtin } else { args.model.clone() };
    let text = text::held_out(&source, &tokenizer, args.text.as_deref(), wanted)?;
    let rules = rules(&checkpoint, args.dense, context)?;
    let has_rules = !rules.is_empty();
    let model = CausalLm::load(&checkpoint, LoadOptions { rules, ..LoadOptions::default() })?;
    let mut progress = None;
    let found = perplexity(
        &model,
        &text.tokens,
        window,
        &mut |done, all| {
            progress.get_or_insert_with(|| context.out.progress("perplexity", all as u64)).set(done as u64);
        },
        max_windows,
    );
    if let Some(progress) = progress {
        progress.finish();
    }
    let found = found?;
    let realised = model.take_realised();
    let convention = convention(window, found.windows, found.tokens);
    let seconds = started.elapsed().as_secs_f64();
    let value = json!({
        "model": args.model.label(),
        "text": text.source,
        "window": window,
        "windows": found.windows,
        "predicted_tokens": found.tokens,
        "convention": convention,
        "nll_mean": found.nll_mean,
        "ppl": found.ppl,
        "floor_ppl": text.floor_ppl,
        "weight_bytes": model.weight_bytes(),
        "realised": has_rules.then_some(&realised),
        "seconds": seconds,
    });
    let mut lines = format!("perplexity {:.4}\n", found.ppl);
    if let Some(floor) = text.floor_ppl {
        lines += &format!("entropy floor {floor:.4}: the perplexity of the generator of this text itself\n");
    }
    lines += &realised_lines(&realised);
    context.out.message(&format!("text: {}", text.source));
    context.out.message(&convention);
    context.out.detail(&format!("weights in memory {}, {seconds:.1} s", bytes(model.weight_bytes() as u64)));
    context.out.result(&lines, &value)
}

/// How perplexity is measured, in a sentence.
pub(crate) fn convention(window: usize, windows: usize, tokens: usize) -> String {
    format!(
        "{windows} windows of {window} tokens that do not overlap, nothing put before them; mean over the {} predicted \
         tokens of each ({tokens} in all); a rest shorter than a window is dropped",
        window.saturating_sub(1)
    )
}
