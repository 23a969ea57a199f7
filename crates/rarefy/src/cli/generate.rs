//! `rarefy generate`: continues a prompt.

use std::ops::ControlFlow;
use std::time::Instant;

use rarefy_checkpoint::Checkpoint;
use rarefy_models::{CausalLm, LoadOptions, PackedPolicy, Sampling, generate};
use serde_json::json;

use super::model::{ModelArg, realised_lines, rules};
use super::{CliError, CliResult, Context, text};

/// Arguments of `rarefy generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// Model folder, or `builtin`
    model: ModelArg,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new: usize,
    /// Sample at this temperature [default: take the most likely token]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample among the most likely tokens that hold this share of the probability
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f64>,
    /// Run packed weights as dense ones, and ignore the folder's rules of idle neurons and distant tokens
    #[arg(long)]
    dense: bool,
}

pub(crate) fn run(args: &GenerateArgs, context: &Context) -> CliResult {
    let sampling = match args.temperature {
        Some(t) => Sampling::Temperature { t, top_p: args.top_p },
        None => Sampling::Greedy,
    };
    sampling.validate()?;
    let checkpoint = Checkpoint::open(&args.model.folder()?)?;
    checkpoint.check_layout()?;
    let tokenizer = text::tokenizer(&checkpoint)?;
    let prompt = tokenizer.encode_with_special(&args.prompt)?;
    if prompt.is_empty() {
        return Err(CliError::usage("the prompt gives no tokens", "give a longer `--prompt`"));
    }
    let longest = checkpoint.config().max_positions;
    if prompt.len().saturating_add(args.max_new) > longest {
        context.out.warn(&format!(
            "{} tokens of prompt and {} new ones are more than the {longest} positions the model was made for",
            prompt.len(),
            args.max_new
        ));
    }
    let packed = if args.dense { PackedPolicy::DenseAlways } else { PackedPolicy::AsStored };
    let rules = rules(&checkpoint, args.dense, context)?;
    let has_rules = !rules.is_empty();
    let model = CausalLm::load(&checkpoint, LoadOptions { packed, rules, ..LoadOptions::default() })?;
    let mut new = Vec::new();
    let mut shown = String::new();
    let mut problem: CliResult = Ok(());
    let started = Instant::now();
    if !context.out.json {
        context.out.stream(&args.prompt)?;
    }
    let outcome =
        generate(&model, &prompt, sampling, args.max_new, context.seed.unwrap_or(0), &mut |token| {
            new.push(token);
            if context.out.json {
                return ControlFlow::Continue(());
            }
            match show(&tokenizer, &prompt, &new, &mut shown, context) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    problem = Err(error);
                    ControlFlow::Break(())
                }
            }
        });
    problem?;
    outcome?;
    let seconds = started.elapsed().as_secs_f64();
    let realised = model.take_realised();
    let per_token = seconds * 1e3 / new.len().max(1) as f64;
    if context.out.json {
        return context.out.json_value(&json!({
            "model": args.model.label(),
            "prompt": args.prompt,
            "text": tokenizer.decode(&new)?,
            "prompt_tokens": prompt,
            "tokens": new,
            "seconds": seconds,
            "ms_per_token": per_token,
            "realised": has_rules.then_some(&realised),
        }));
    }
    context.out.data("")?;
    for line in realised_lines(&realised).lines() {
        context.out.message(line);
    }
    context.out.detail(&format!("{} tokens, {per_token:.2} ms each", new.len()));
    Ok(())
}

/// Prints what the tokens so far add to the text. Bytes that are only half a character wait.
fn show(
    tokenizer: &rarefy_checkpoint::Tokenizer,
    prompt: &[u32],
    new: &[u32],
    shown: &mut String,
    context: &Context,
) -> CliResult {
    // Decoded together with the end of the prompt, because a decoder may drop a leading blank.
    let before = &prompt[prompt.len().saturating_sub(8)..];
    let all: Vec<u32> = before.iter().chain(new).copied().collect();
    let head = tokenizer.decode(before)?;
    let whole = tokenizer.decode(&all)?;
    let text = whole.strip_prefix(&head).unwrap_or(&whole).trim_end_matches('\u{fffd}');
    if let Some(more) = text.strip_prefix(shown.as_str()).filter(|m| !m.is_empty()) {
        context.out.stream(more)?;
        text.clone_into(shown);
    }
    Ok(())
}
