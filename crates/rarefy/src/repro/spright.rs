//! SPRIGHT: recovery, samples and time, measured by `rarefy_solve::experiments`.

use rarefy_solve::experiments::spright::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "spright",
    summary: "recovery of sparse Walsh-Hadamard spectra with and without noise, time against a full transform",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of SPRIGHT broke down", e))?;
    Ok(measured.into())
}
