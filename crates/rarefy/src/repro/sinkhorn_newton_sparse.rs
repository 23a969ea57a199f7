//! SNS: iterations and time to machine precision against Sinkhorn and dense Newton, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::sinkhorn_newton_sparse::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
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
    Ok(measured.into())
}
