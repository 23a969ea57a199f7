//! k-sparse OT: the table of regularisation and sparsity, and the load of a router, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::sparsity_constrained_ot::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "sparsity-constrained-ot",
    summary: "at most k non-zeros per column: costs, marginals and dual values over gamma and k; load of a token router",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let measured = measure(sizes, options.say)
        .map_err(|e| CliError::failed("the experiment of k-sparse OT broke down", e))?;
    Ok(measured.into())
}
