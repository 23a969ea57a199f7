//! `rarefy train`: a model from a recipe.

use std::path::PathBuf;

use rarefy_train::{Event, Outcome, Recipe, train_to_folder};
use serde_json::json;

use super::{CliError, CliResult, Context, Output, Progress, cancel, percent};

/// Arguments of `rarefy train`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Recipe, TOML; its `seed` is used unless `--seed` is given
    recipe: PathBuf,
    /// Model folder to write; an interrupted run goes on from its last saved state
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// Steps between two lines about the loss.
const LINE_EVERY: u64 = 50;

pub(crate) fn run(args: &TrainArgs, context: &Context) -> CliResult {
    let mut recipe = Recipe::from_file(&args.recipe)?;
    if let Some(seed) = context.seed {
        recipe.seed = seed;
    }
    let graceful = cancel::Graceful::begin();
    let mut progress = None;
    let outcome = train_to_folder(
        &recipe,
        &args.output,
        &mut |event| show(event, &mut progress, &context.out),
        graceful.flag(),
    );
    if let Some(progress) = progress {
        progress.finish();
    }
    match outcome? {
        Outcome::Finished(evaluation) => {
            let mut text = format!("{}: perplexity {:.4}\n", args.output.display(), evaluation.perplexity);
            if let Some(floor) = evaluation.floor_perplexity {
                text += &format!("entropy floor {floor:.4}\n");
            }
            context.out.result(
                &text,
                &json!({ "output": args.output, "seed": recipe.seed, "evaluation": evaluation }),
            )
        }
        Outcome::Cancelled { step, .. } => {
            context.out.message(&format!("saved after {step} steps"));
            Err(CliError::Interrupted { resume: Some(cancel::command_line()) })
        }
    }
}

fn show(event: &Event, progress: &mut Option<Progress>, out: &Output) {
    match event {
        Event::Started { step, steps, weights, tokens_per_step } => {
            out.message(&format!("{weights} weights, {steps} steps of {tokens_per_step} tokens"));
            if *step > 0 {
                out.message(&format!("going on after step {step}"));
            }
            *progress = Some(out.progress("training", *steps));
        }
        Event::Step { step, steps, loss, lr, gradient_norm, sparsity, seconds, eta_seconds } => {
            let Some(progress) = progress else { return };
            progress.set(*step);
            if step % LINE_EVERY == 0 || step == steps {
                let zeros =
                    if *sparsity > 0.0 { format!(", {} masked", percent(*sparsity)) } else { String::new() };
                progress.line(&format!(
                    "step {step}/{steps}: loss {loss:.4}, lr {lr:.2e}, gradient {gradient_norm:.2}{zeros}, \
                     {seconds:.2} s/step, {:.0} min left",
                    eta_seconds / 60.0
                ));
            }
        }
        Event::Evaluated { step, evaluation } => {
            if let Some(progress) = progress {
                progress.line(&format!("step {step}: validation perplexity {:.4}", evaluation.perplexity));
            }
        }
        Event::Saved { step, file } => out.detail(&format!("step {step}: saved {}", file.display())),
        _ => {}
    }
}
