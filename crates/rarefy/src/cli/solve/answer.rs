//! Watching a solver, and showing, writing and reporting what it found.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rarefy_data::arrays::{Matrix, write_matrix};
use rarefy_solve::{Monitor, Residual, Solution, SolveError, Status, Trace, TracePoint};
use serde_json::{Map, Value, json};

use super::super::{CliError, CliResult, Context, cancel, write_atomic};
use super::AnswerArgs;
use crate::report::SolveReport;

/// How a solver ended, whatever it solved.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) status: Status,
    pub(super) objective: f64,
    pub(super) residuals: Vec<Residual>,
    pub(super) iterations: usize,
    pub(super) seconds: f64,
    pub(super) trace: Trace,
}

impl<X> From<&Solution<X>> for Ending {
    fn from(s: &Solution<X>) -> Self {
        Self {
            status: s.status,
            objective: s.objective,
            residuals: s.residuals.clone(),
            iterations: s.iterations,
            seconds: s.seconds,
            trace: s.trace.clone(),
        }
    }
}

/// What is shown of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// `lasso`, `transport`, …
    pub(super) problem: &'static str,
    /// The objective in a formula of plain characters.
    pub(super) formula: String,
    /// How it ended.
    pub(super) ending: Ending,
    /// Lines for people: name and value.
    pub(super) facts: Vec<(String, String)>,
    /// More members of the JSON object.
    pub(super) json: Map<String, Value>,
    /// What `--output` writes.
    pub(super) result: Option<Matrix>,
}

/// Runs `solve` with a monitor that shows progress, knows the time limit and stops at Ctrl-C.
pub(super) fn watched<T>(
    args: &AnswerArgs,
    label: &str,
    context: &Context,
    solve: impl FnOnce(&mut Monitor<'_>) -> Result<T, SolveError>,
) -> CliResult<T> {
    let graceful = cancel::Graceful::begin();
    let mut shown = context.out.activity(label);
    let mut progress = |point: &TracePoint| {
        shown.label(&format!(
            "{label}: iteration {}, objective {:.6e}, residual {:.2e}",
            point.iteration, point.objective, point.residual
        ));
        if graceful.flag().load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let mut monitor = Monitor::silent().with_progress(&mut progress);
    if let Some(seconds) = args.time_limit {
        monitor = monitor.with_time_limit(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    let outcome = solve(&mut monitor);
    shown.finish();
    Ok(outcome?)
}

/// Writes, reports and prints the answer. An answer that did not converge is written too, and exits with 1.
pub(super) fn finish(answer: Answer, args: &AnswerArgs, context: &Context) -> CliResult {
    if let (Some(path), Some(matrix)) = (&args.output, &answer.result) {
        write_matrix(path, matrix)?;
    }
    let ending = &answer.ending;
    let mut rows = vec![
        ("status".to_owned(), ending.status.to_string()),
        ("objective".to_owned(), format!("{:.10e}", ending.objective)),
    ];
    rows.extend(ending.residuals.iter().map(|r| (r.name.to_owned(), format!("{:.3e}", r.value))));
    rows.push(("iterations".to_owned(), ending.iterations.to_string()));
    rows.push(("seconds".to_owned(), format!("{:.3}", ending.seconds)));
    rows.extend(answer.facts);
    if let Some(path) = &args.report {
        let report = SolveReport {
            problem: answer.problem,
            formula: &answer.formula,
            rows: &rows,
            trace: &ending.trace,
            command: &cancel::command_line(),
            version: env!("CARGO_PKG_VERSION"),
        };
        write_atomic(path, &report.render()?)?;
    }
    let mut table = context.out.table(&["", answer.problem]);
    for (name, value) in &rows {
        table.add_row([name, value]);
    }
    let residuals: Map<String, Value> =
        ending.residuals.iter().map(|r| (r.name.to_owned(), json!(r.value))).collect();
    let mut value = json!({
        "problem": answer.problem,
        "objective_formula": answer.formula,
        "status": ending.status,
        "objective": ending.objective,
        "residuals": residuals,
        "iterations": ending.iterations,
        "seconds": ending.seconds,
        "trace": ending.trace,
        "seed": context.seed.unwrap_or(0),
        "threads": context.threads,
        "version": env!("CARGO_PKG_VERSION"),
        "output": args.output,
    });
    if let Value::Object(object) = &mut value {
        object.extend(answer.json);
    }
    context.out.result(&format!("{table}\n{}\n", answer.formula), &value)?;
    match ending.status {
        Status::Converged => Ok(()),
        Status::Stopped => Err(CliError::Stopped),
        other => Err(CliError::TargetMissed { message: other.to_string() }),
    }
}
