//! Trains a model from a recipe and writes its folder: `train_builtin RECIPE.toml OUT`.
//!
//! Stopped at any moment it goes on from the last saved state when it is started again.

use rarefy_train::{Event, Recipe, train_to_folder};
use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

#[allow(clippy::print_stderr)]
fn show(event: &Event) {
    match event {
        Event::Step { step, steps, loss, lr, gradient_norm, sparsity, seconds, eta_seconds }
            if step % 10 == 0 =>
        {
            eprintln!(
                "step {step}/{steps}  loss {loss:.4}  lr {lr:.2e}  |g| {gradient_norm:.2}  sparsity {sparsity:.3}  {seconds:.2} s  ETA {:.1} min",
                eta_seconds / 60.0
            )
        }
        Event::Step { .. } => {}
        Event::Evaluated { step, evaluation: e } => eprintln!(
            "step {step}  validation {:.4} nats/token, perplexity {:.4}, floor {:.4} ({} tokens, {} documents)",
            e.nats_per_token,
            e.perplexity,
            e.floor_perplexity.unwrap_or(f64::NAN),
            e.tokens,
            e.documents
        ),
        other => eprintln!("{other:?}"),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(recipe), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: train_builtin RECIPE.toml OUT".into());
    };
    let recipe = Recipe::from_file(&recipe)?;
    train_to_folder(&recipe, &out, &mut show, &AtomicBool::new(false))?;
    Ok(())
}
