//! Greedy BCD: the orderings of its rules, updates and forests, measured by `rarefy_solve::experiments`.

use rarefy_solve::experiments::block_coordinate_descent::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "block-coordinate-descent",
    summary: "greedy rules against random and cyclic ones, matrix updates, forests, identification of the support",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of block coordinate descent broke down", e))?;
    Ok(measured.into())
}
