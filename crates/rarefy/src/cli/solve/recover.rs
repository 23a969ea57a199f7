//! `rarefy solve recover`: a sparse vector from few linear measurements.

use std::path::PathBuf;

use faer::{Mat, MatRef};
use rarefy_data::arrays::Matrix;
use rarefy_solve::glm::{OmpSettings, orthogonal_matching_pursuit};
use rarefy_solve::methods::kronecker_sbl::{Noise, SblSettings, Variant, sbl, solve};
use serde_json::{Map, Value, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::{dense, vector};
use super::{AnswerArgs, positive};

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Bayesian learning with a prior that is a product over the factors
    KroneckerSbl,
    /// Classic sparse Bayesian learning
    Sbl,
    /// Orthogonal matching pursuit
    Omp,
}

/// How the prior of kronecker-sbl is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Fit {
    /// Successive best rank-1 approximations
    Svd,
    /// Alternating minimisation
    Alternating,
    /// One pass of it
    OnePass,
}

/// Arguments of `rarefy solve recover`.
#[derive(Debug, clap::Args)]
pub(super) struct RecoverArgs {
    /// The measurements
    y: PathBuf,
    /// Measurement matrix; give several for their Kronecker product
    #[arg(long = "matrix", short = 'A', value_name = "FILE", required = true)]
    matrices: Vec<PathBuf>,
    /// How [default: sbl for one matrix, kronecker-sbl for several]
    #[arg(long, value_enum)]
    method: Option<How>,
    /// How the prior is fitted (kronecker-sbl)
    #[arg(long, value_enum, default_value_t = Fit::Svd)]
    fit: Fit,
    /// Variance of the noise of a measurement [default: learnt]
    #[arg(long, value_name = "V", value_parser = positive)]
    noise: Option<f64>,
    /// Largest number of non-zeros (omp)
    #[arg(short, value_name = "K", default_value_t = 10)]
    k: usize,
    /// Limit of iterations (sbl)
    #[arg(long, value_name = "N", default_value_t = 150)]
    max_iterations: usize,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Entries that are printed.
const SHOWN: usize = 10;
/// Largest product of several matrices that a method without structure forms.
const MOST: usize = 1 << 26;

pub(super) fn run(args: &RecoverArgs, context: &Context) -> CliResult {
    let y = vector(&args.y)?;
    let factors: CliResult<Vec<Mat<f64>>> = args
        .matrices
        .iter()
        .map(|path| {
            let (values, n, p) = dense(path)?;
            Ok(Mat::from_fn(n, p, |i, j| values[i * p + j]))
        })
        .collect();
    let factors = factors?;
    let how = args.method.unwrap_or(if factors.len() > 1 { How::KroneckerSbl } else { How::Sbl });
    let settings = SblSettings {
        variant: match args.fit {
            Fit::Svd => Variant::Svd,
            Fit::Alternating => Variant::Alternating,
            Fit::OnePass => Variant::OnePass,
        },
        noise: args.noise.map_or(Noise::Unknown, Noise::Known),
        max_iterations: args.max_iterations,
        ..SblSettings::default()
    };
    let bayes = "min over the prior: log det C + y' C^-1 y, C = noise I + A diag(prior) A'";
    let (x, ending, formula, settings, noise) = match how {
        How::KroneckerSbl => {
            let views: Vec<MatRef<'_, f64>> = factors.iter().map(Mat::as_ref).collect();
            let s =
                watched(&args.answer, "recover", context, |monitor| solve(&views, &y, &settings, monitor))?;
            let ending = Ending::from(&s);
            (s.x.x, ending, bayes.to_owned(), json!(settings), Some(s.x.noise))
        }
        How::Sbl => {
            let a = whole(factors)?;
            let s =
                watched(&args.answer, "recover", context, |monitor| sbl(a.as_ref(), &y, &settings, monitor))?;
            let ending = Ending::from(&s);
            (s.x.x, ending, bayes.to_owned(), json!(settings), Some(s.x.noise))
        }
        How::Omp => {
            let settings = OmpSettings { max_features: args.k, ..OmpSettings::default() };
            let a = whole(factors)?.into();
            let s = watched(&args.answer, "recover", context, |monitor| {
                orthogonal_matching_pursuit(&a, &y, &settings, monitor)
            })?;
            let ending = Ending::from(&s);
            let formula = format!("min |y - A x| with at most {} non-zeros, greedily", args.k);
            (s.x.to_dense(), ending, formula, json!(settings), None)
        }
    };
    let mut largest: Vec<usize> = (0..x.len()).filter(|j| x[*j] != 0.0).collect();
    largest.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()).then(a.cmp(b)));
    let mut facts = vec![
        ("measurements x unknowns".to_owned(), format!("{} x {}", y.len(), x.len())),
        ("entries that are not 0".to_owned(), largest.len().to_string()),
    ];
    if let Some(noise) = noise {
        facts.push(("variance of the noise".to_owned(), format!("{noise:.3e}")));
    }
    facts.extend(largest.iter().take(SHOWN).map(|j| (format!("entry {}", j + 1), format!("{:+.6}", x[*j]))));
    largest.sort_unstable();
    let json = Map::from_iter([
        ("indices".to_owned(), json!(largest)),
        ("values".to_owned(), Value::from(largest.iter().map(|j| x[*j]).collect::<Vec<f64>>())),
        ("unknowns".to_owned(), json!(x.len())),
        ("noise".to_owned(), json!(noise)),
        ("settings".to_owned(), settings),
    ]);
    let result = Some(Matrix::Dense { n_rows: x.len(), n_cols: 1, values: x });
    finish(Answer { problem: "recover", formula, ending, facts, json, result }, &args.answer, context)
}

/// The Kronecker product as one matrix.
fn whole(factors: Vec<Mat<f64>>) -> CliResult<Mat<f64>> {
    let size = factors.iter().try_fold(1_usize, |s, f| s.checked_mul(f.nrows())?.checked_mul(f.ncols()));
    if size.is_none_or(|size| size > MOST) {
        return Err(CliError::usage(
            "the product of the matrices is too large to be formed",
            "use `--method kronecker-sbl`, which never forms it",
        ));
    }
    let mut all = Mat::from_fn(1, 1, |_, _| 1.0);
    for f in factors {
        let (n, p) = (f.nrows(), f.ncols());
        all = Mat::from_fn(all.nrows() * n, all.ncols() * p, |i, j| all[(i / n, j / p)] * f[(i % n, j % p)]);
    }
    Ok(all)
}
