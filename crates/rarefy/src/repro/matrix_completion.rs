//! Matrix completion: rounds, error and time against exact alternating least squares, by `rarefy_solve::experiments`.

use rarefy_solve::experiments::matrix_completion::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "matrix-completion",
    summary: "completing a low-rank matrix: rounds, error and growth of the time against exact ALS; MovieLens with --data",
    run,
};

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let ratings = match &options.data {
        Some(folder) => {
            let path = folder.join("recsys").join("ml-100k.npz");
            let place = format!("cannot read `{}`", path.display());
            Some(ratings(&path).map_err(|e| CliError::failed(place, e))?)
        }
        None => None,
    };
    let mut outcome: Outcome = measure(sizes, ratings.as_deref(), options.say)
        .map_err(|e| CliError::failed("the experiment of matrix completion broke down", e))?
        .into();
    if ratings.is_none() {
        outcome.notes.push("without --data, MovieLens-100k was not looked at".into());
    }
    Ok(outcome)
}

fn ratings(path: &std::path::Path) -> std::io::Result<Vec<(usize, usize, f64)>> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut archive = npyz::npz::NpzArchive::open(path)?;
    let mut places = |name: &str| -> std::io::Result<Vec<usize>> {
        let values: Vec<i32> =
            archive.by_name(name)?.ok_or_else(|| invalid("an array is missing"))?.into_vec()?;
        values.into_iter().map(|v| usize::try_from(v).map_err(|_| invalid("a negative place"))).collect()
    };
    let (user, item) = (places("user")?, places("item")?);
    let rating: Vec<f32> =
        archive.by_name("rating")?.ok_or_else(|| invalid("`rating` is missing"))?.into_vec()?;
    if user.len() != rating.len() || item.len() != rating.len() {
        return Err(invalid("arrays of different lengths"));
    }
    Ok((0..rating.len()).map(|at| (user[at], item[at], f64::from(rating[at]))).collect())
}
