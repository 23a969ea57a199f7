//! l∞ regression: the worst coefficient by sketch and instance, and time against QR, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::linf_regression::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "linf-regression",
    summary: "sketched least squares: error of the worst coefficient by sketch and instance, and time against QR",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, None, options.say)
        .map_err(|e| CliError::failed("the experiment of l-infinity regression broke down", e))?;
    Ok(measured.into())
}
