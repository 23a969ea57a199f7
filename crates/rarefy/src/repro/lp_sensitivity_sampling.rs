//! ℓp sensitivity sampling: excess loss and distortion by scheme, real data, time, by `rarefy_solve::experiments`.

use faer::Mat;
use rarefy_solve::experiments::lp_sensitivity_sampling::{Sizes, run as measure};

use super::{Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "lp-sensitivity-sampling",
    summary: "lp regression on sampled rows: excess loss and distortion by scheme, and time; real data with --data",
    run,
};

/// Two regressions of the UCI collection.
const REAL: [&str; 2] = ["concrete", "wine-quality-red"];

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let sizes = if options.quick { Sizes::quick(options.seed) } else { Sizes::full(options.seed) };
    let mut real = vec![];
    if let Some(folder) = &options.data {
        for name in REAL {
            let path = folder.join("regression").join(format!("{name}.npz"));
            let place = format!("cannot read `{}`", path.display());
            let (a, y) = regression(&path).map_err(|e| CliError::failed(place, e))?;
            real.push((name.to_owned(), a, y));
        }
    }
    let without = real.is_empty();
    let mut outcome: Outcome = measure(sizes, real, options.say)
        .map_err(|e| CliError::failed("the experiment of lp sensitivity sampling broke down", e))?
        .into();
    if without {
        outcome.notes.push("without --data, no real regression was looked at".into());
    }
    Ok(outcome)
}

/// Standardised features and an intercept; the response.
fn regression(path: &std::path::Path) -> std::io::Result<(Mat<f64>, Vec<f64>)> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut archive = npyz::npz::NpzArchive::open(path)?;
    let x: Vec<f32> = archive.by_name("x")?.ok_or_else(|| invalid("`x` is missing"))?.into_vec()?;
    let y: Vec<f32> = archive.by_name("y")?.ok_or_else(|| invalid("`y` is missing"))?.into_vec()?;
    let n = y.len();
    if n == 0 || !x.len().is_multiple_of(n) {
        return Err(invalid("arrays of lengths that do not fit"));
    }
    let d = x.len() / n;
    let mut a = Mat::from_fn(n, d + 1, |i, j| if j < d { f64::from(x[i * d + j]) } else { 1.0 });
    for j in 0..d {
        let column = a.col_as_slice_mut(j);
        let mean = column.iter().sum::<f64>() / n as f64;
        let spread = (column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        if spread > 0.0 {
            column.iter_mut().for_each(|v| *v = (*v - mean) / spread);
        }
    }
    Ok((a, y.into_iter().map(f64::from).collect()))
}
