//! SNS: iterations and time to machine precision against Sinkhorn and dense Newton, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::sinkhorn_newton_sparse::{Sizes, run as measure};
use serde_json::{Map, Value, json};

use super::{Check, Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "sinkhorn-newton-sparse",
    summary: "entropic transport to machine precision: iterations and time against Sinkhorn and dense Newton, over eta",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, None, options.say)
        .map_err(|e| CliError::failed("the experiment of SNS broke down", e))?;
    let checks = measured.margins.into_iter().map(|m| Check {
        name: m.name,
        required: format!(">= {}", m.least),
        measured: format!("{:.3e}", m.value),
        passed: m.value >= m.least,
    });
    let table = measured.rows.into_iter().map(|row| {
        let mut line = Map::new();
        line.insert("experiment".into(), row.experiment.into());
        line.insert("case".into(), row.case.into());
        line.extend(row.values.into_iter().map(|(name, value)| (name, json!(value))));
        Value::Object(line)
    });
    Ok(Outcome { checks: checks.collect(), table: table.collect(), notes: measured.notes })
}
