//! KroSBL: error, support, iterations and time of its variants beside classic SBL, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::kronecker_sbl::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "kronecker-sbl",
    summary: "recovery of tensors with a product support: error, support, iterations and time of SVD, AM and classic SBL",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of KroSBL broke down", e))?;
    Ok(measured.into())
}
