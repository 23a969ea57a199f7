//! Optimistic OMD: regret by kind of loss, noise and drift, measured by `rarefy_solve::experiments`.

use rarefy_solve::experiments::optimistic_omd::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "optimistic-omd",
    summary: "regret of online learners on linear, quadratic, exp-concave and switching losses; online to batch",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of optimistic OMD broke down", e))?;
    Ok(measured.into())
}
