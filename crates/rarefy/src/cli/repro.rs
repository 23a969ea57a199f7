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
    const COLUMNS: [&str; 6] = ["experiment", "quantity", "method", "pattern", "measured", "published"];
    let mut numbers = context.out.table(&COLUMNS);
    // Rows of the solvers name their own numbers.
    let mut named = context.out.table(&["experiment", "case", "numbers"]);
    for row in &outcome.table {
        match row.as_object() {
            Some(fields) if !fields.contains_key("measured") => {
                let own = fields.iter().filter(|(name, _)| !["experiment", "case"].contains(&name.as_str()));
                let own: Vec<String> = own.map(|(name, v)| format!("{name} = {}", show(v))).collect();
                named.add_row([show(&row["experiment"]), show(&row["case"]), own.join("; ")]);
            }
            _ => drop(numbers.add_row(COLUMNS.map(|key| show(&row[key])))),
        }
    }
    let tables: Vec<String> =
        [numbers, named].iter().filter(|t| t.row_count() > 0).map(ToString::to_string).collect();
    let mut checks = context.out.table(&["check", "required", "measured", "passed"]);
    for check in &outcome.checks {
        let passed = if check.passed { "yes" } else { "NO" };
        checks.add_row([&check.name, &check.required, &check.measured, passed]);
    }
    let notes: String = outcome.notes.iter().map(|n| format!("- {n}\n")).collect();
    format!("{}\n\n{checks}\n\n{notes}- {seconds:.0} s\n", tables.join("\n\n"))
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
    match x.abs() {
        0.0 => "0".into(),
        a if (1e-3..1.0).contains(&a) => format!("{x:.4}"),
        a if (1.0..1e6).contains(&a) => format!("{x:.2}"),
        _ => format!("{x:.2e}"),
    }
}
