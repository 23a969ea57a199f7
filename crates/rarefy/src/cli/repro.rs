//! `rarefy repro`: a published experiment, scaled to this machine.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::{CliError, CliResult, Context, unknown};
use crate::repro::{self, EXPERIMENTS, Outcome, ReproOptions};

/// Arguments of `rarefy repro`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReproArgs {
    /// Method, or the name of its experiment, as in `rarefy methods --json`
    method: String,
    /// At most a minute
    #[arg(long)]
    quick: bool,
    /// Folder with the real data sets [default: built-in model and generators]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(crate) fn run(args: &ReproArgs, context: &Context) -> CliResult {
    let Some(experiment) = repro::find(&args.method) else {
        let mut known: Vec<&str> = EXPERIMENTS.iter().map(|e| e.slug).collect();
        known.extend(
            crate::registry::all().iter().map(|m| m.slug).filter(|s| !known.contains(s)).collect::<Vec<_>>(),
        );
        return Err(unknown("method", &args.method, &known));
    };
    let started = Instant::now();
    let mut options = ReproOptions {
        quick: args.quick,
        data: args.data.clone(),
        seed: context.seed.unwrap_or(0),
        say: &mut |text| context.out.message(text),
    };
    let outcome = (experiment.run)(&mut options)?;
    let seconds = started.elapsed().as_secs_f64();
    let missed: Vec<&str> = outcome.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect();
    let value = json!({
        "method": experiment.slug,
        "quick": args.quick,
        "passed": missed.is_empty(),
        "seconds": seconds,
        "checks": outcome.checks,
        "table": outcome.table,
        "notes": outcome.notes,
    });
    context.out.result(&text(&outcome, seconds, context), &value)?;
    if missed.is_empty() { Ok(()) } else { Err(CliError::TargetMissed { message: missed.join("; ") }) }
}

fn text(outcome: &Outcome, seconds: f64, context: &Context) -> String {
    let mut numbers =
        context.out.table(&["experiment", "quantity", "method", "pattern", "measured", "published"]);
    for row in &outcome.table {
        let cell = |key: &str| show(&row[key]);
        numbers.add_row(["experiment", "quantity", "method", "pattern", "measured", "published"].map(cell));
    }
    let mut checks = context.out.table(&["check", "required", "measured", "passed"]);
    for check in &outcome.checks {
        let passed = if check.passed { "yes" } else { "NO" };
        checks.add_row([&check.name, &check.required, &check.measured, passed]);
    }
    let notes: String = outcome.notes.iter().map(|n| format!("- {n}\n")).collect();
    format!("{numbers}\n\n{checks}\n\n{notes}- {seconds:.0} s\n")
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), number),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(" to "),
        other => other.to_string(),
    }
}

fn number(x: f64) -> String {
    if x.abs() >= 1.0 { format!("{x:.2}") } else { format!("{x:.4}") }
}
