//! LDP sparse regression: errors of three protocols, measured by `rarefy_solve::experiments`.

use rarefy_solve::experiments::ldp_sparse_regression::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "ldp-sparse-regression",
    summary: "sparse regression from private messages: errors over d, n and epsilon, time of a million users",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of LDP sparse regression broke down", e))?;
    Ok(measured.into())
}
