//! `rarefy solve complete`.

use std::path::PathBuf;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rarefy_data::arrays::{Limits, Matrix};
use rarefy_solve::Status;
use rarefy_solve::methods::matrix_completion::{
    Centre, CompletionSettings, Factors, Mode, Observed, SoftImputeSettings, soft_impute, solve,
};
use serde_json::{Map, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::{table, vector};
use super::{AnswerArgs, positive};

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Alternating least squares, solved only as well as the round needs
    MatrixCompletion,
    /// Alternating least squares by normal equations
    Als,
    /// Nuclear norm, by proximal gradient steps (soft-impute)
    SoftImpute,
}

/// What is taken off first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Offset {
    /// Nothing
    None,
    /// The mean
    Mean,
    /// The mean and an offset for each row and column
    Biases,
}

/// Arguments of `rarefy solve complete`.
#[derive(Debug, clap::Args)]
pub(super) struct CompleteArgs {
    /// Observed entries: a csv or npy with the columns row, column, value; a sparse .mtx, .libsvm or .npz; or a dense matrix with
    /// NaN where nothing is known (with --dense)
    #[arg(required_unless_present = "rows")]
    data: Option<PathBuf>,
    /// The file is a dense matrix with NaN where nothing is known
    #[arg(long)]
    dense: bool,
    /// Row of each entry, with --columns and --values instead of DATA
    #[arg(long, value_name = "FILE", requires_all = ["columns", "values"], conflicts_with = "data")]
    rows: Option<PathBuf>,
    /// Column of each entry
    #[arg(long, value_name = "FILE")]
    columns: Option<PathBuf>,
    /// Value of each entry
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// Number of the first row and column in lists of entries
    #[arg(long, value_name = "N", default_value_t = 0)]
    base: usize,
    /// How
    #[arg(long, value_enum, default_value_t = How::MatrixCompletion)]
    method: How,
    /// Rank of the factors (soft-impute: the largest rank kept)
    #[arg(long, value_name = "K", default_value_t = 10)]
    rank: usize,
    /// Strength of the ridge, for each entry (soft-impute: of the nuclear norm) [default: the best of a few on the entries kept
    /// aside; 0, or 1 for soft-impute, without any]
    #[arg(long, value_name = "L", value_parser = positive)]
    ridge: Option<f64>,
    /// What is taken off the entries first
    #[arg(long, value_enum, default_value_t = Offset::Biases)]
    centre: Offset,
    /// Added to the number of observations when offsets are fitted
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    damping: f64,
    /// Share of the entries kept aside to decide when to stop and to measure the error
    #[arg(long, value_name = "S", default_value_t = 0.1)]
    held_out: f64,
    /// Limit of rounds
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: usize,
    /// Write the predictions for these rows and columns (two columns) instead of the whole matrix
    #[arg(long, value_name = "FILE")]
    predict: Option<PathBuf>,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Ridges that are tried beside 0 when none is given.
const RIDGES: [f64; 6] = [0.01, 0.03, 0.06, 0.1, 0.2, 0.4];

type Entry = (usize, usize, f64);

pub(super) fn run(args: &CompleteArgs, context: &Context) -> CliResult {
    if !(0.0..1.0).contains(&args.held_out) {
        return Err(CliError::usage(
            format!("`--held-out {}`", args.held_out),
            "give a share from 0 to below 1",
        ));
    }
    let (m, n, entries) = entries(args)?;
    let (kept, aside) = set_aside(entries, args.held_out, context.seed.unwrap_or(0));
    let observed = Observed::new(m, n, &kept)?;
    let held_out = if aside.is_empty() { None } else { Some(Observed::new(m, n, &aside)?) };
    let centre = match args.centre {
        Offset::None => Centre::None,
        Offset::Mean => Centre::Mean,
        Offset::Biases => Centre::Biases { damping: args.damping },
    };
    let seed = context.seed.unwrap_or(0);
    let (solution, settings) = match args.method {
        How::SoftImpute => {
            let settings = SoftImputeSettings {
                regularisation: args.ridge.unwrap_or(1.0),
                rank: args.rank,
                max_iterations: args.rounds,
                centre,
                seed,
                ..SoftImputeSettings::default()
            };
            let s = watched(&args.answer, "complete", context, |monitor| {
                soft_impute(&observed, None, &settings, monitor)
            })?;
            (s, json!(settings))
        }
        How::MatrixCompletion | How::Als => {
            let mut settings = CompletionSettings {
                rank: args.rank,
                rounds: args.rounds,
                ridge: args.ridge.unwrap_or(0.0),
                mode: if args.method == How::Als { Mode::Exact } else { Mode::Shared },
                centre,
                seed,
                ..CompletionSettings::default()
            };
            let s = watched(&args.answer, "complete", context, |monitor| {
                let mut solve = |settings: &CompletionSettings| {
                    solve(&observed, held_out.as_ref(), None, settings, monitor)
                };
                let (Some(aside), None) = (&held_out, args.ridge) else { return solve(&settings) };
                let mut best = solve(&settings)?;
                let mut least = best.x.score(aside)?;
                for ridge in RIDGES {
                    if matches!(best.status, Status::Stopped | Status::TimeLimit) {
                        break;
                    }
                    let s = solve(&CompletionSettings { ridge, ..settings.clone() })?;
                    let error = s.x.score(aside)?;
                    if error < least {
                        (best, least, settings.ridge) = (s, error, ridge);
                    }
                }
                Ok(best)
            })?;
            (s, json!(settings))
        }
    };
    let formula = match args.method {
        How::SoftImpute => "min over Z: sum over the entries of (x - z)^2 / 2 + lambda |Z|_*".to_owned(),
        _ => format!(
            "min over U, V of rank {}: sum over the entries of (x - u v)^2 + ridge (|u|^2 + |v|^2)",
            args.rank
        ),
    };
    let mut facts = vec![
        ("rows x columns".to_owned(), format!("{m} x {n}")),
        ("entries used".to_owned(), kept.len().to_string()),
        ("root mean square error on them".to_owned(), format!("{:.6}", solution.x.score(&observed)?)),
    ];
    let error = held_out.as_ref().map(|h| solution.x.score(h)).transpose()?;
    if let Some(error) = error {
        facts.push(("entries kept aside".to_owned(), aside.len().to_string()));
        facts.push(("root mean square error on those".to_owned(), format!("{error:.6}")));
    }
    let json = Map::from_iter([
        ("shape".to_owned(), json!([m, n])),
        ("entries".to_owned(), json!(kept.len())),
        ("held_out".to_owned(), json!(aside.len())),
        ("held_out_rmse".to_owned(), json!(error)),
        ("settings".to_owned(), settings),
    ]);
    let result = result(args, &solution.x, m, n)?;
    let answer =
        Answer { problem: "complete", formula, ending: Ending::from(&solution), facts, json, result };
    finish(answer, &args.answer, context)
}

/// What `--output` writes: the predictions asked for, or the whole matrix.
fn result(args: &CompleteArgs, x: &Factors, m: usize, n: usize) -> CliResult<Option<Matrix>> {
    if args.answer.output.is_none() {
        return Ok(None);
    }
    let outside = |i: f64, j: f64| {
        CliError::usage(
            format!("there is no entry ({i}, {j}) in a matrix of {m} x {n}"),
            format!("rows and columns are numbered from {}", args.base),
        )
    };
    if let Some(path) = &args.predict {
        let pairs = table(path)?.matrix;
        if pairs.n_cols() != 2 {
            let found = format!("`{}` has {} columns", path.display(), pairs.n_cols());
            return Err(CliError::usage(found, "give two: row and column"));
        }
        let predicted: CliResult<Vec<f64>> = pairs
            .to_dense()
            .chunks_exact(2)
            .map(|p| {
                let at = |v: f64| index(v, args.base);
                at(p[0]).zip(at(p[1])).and_then(|(i, j)| x.predict(i, j)).ok_or_else(|| outside(p[0], p[1]))
            })
            .collect();
        let values = predicted?;
        return Ok(Some(Matrix::Dense { n_rows: values.len(), n_cols: 1, values }));
    }
    if m.checked_mul(n).is_none_or(|size| size > Limits::default().values) {
        return Err(CliError::usage(
            format!("the whole matrix has {m} x {n} entries, too many to write"),
            "name the entries you want with --predict FILE",
        ));
    }
    let values = (0..m).flat_map(|i| (0..n).map(move |j| x.predict(i, j).unwrap_or(f64::NAN))).collect();
    Ok(Some(Matrix::Dense { n_rows: m, n_cols: n, values }))
}

/// A number of a list as an index from 0.
fn index(value: f64, base: usize) -> Option<usize> {
    let whole = value >= 0.0 && value.fract() == 0.0 && value <= f64::from(u32::MAX);
    if whole { (value as usize).checked_sub(base) } else { None }
}

/// Shape and observed entries.
fn entries(args: &CompleteArgs) -> CliResult<(usize, usize, Vec<Entry>)> {
    if let (Some(rows), Some(columns), Some(values)) = (&args.rows, &args.columns, &args.values) {
        let (i, j, v) = (vector(rows)?, vector(columns)?, vector(values)?);
        if i.len() != j.len() || i.len() != v.len() {
            return Err(CliError::usage(
                format!("{} rows, {} columns and {} values", i.len(), j.len(), v.len()),
                "give one of each for every entry",
            ));
        }
        return listed(i.into_iter().zip(j).zip(v).map(|((i, j), v)| (i, j, v)), args.base);
    }
    let Some(path) = &args.data else {
        return Err(CliError::usage(
            "no entries were given",
            "name a file, or --rows, --columns and --values",
        ));
    };
    match table(path)?.matrix {
        Matrix::Sparse { n_cols, indptr, indices, values } => {
            let mut entries = Vec::with_capacity(values.len());
            for (i, row) in indptr.windows(2).enumerate() {
                let row = row[0]..row[1];
                let pairs = indices[row.clone()].iter().zip(&values[row]);
                entries.extend(pairs.map(|(j, v)| (i, *j as usize, *v)));
            }
            Ok((indptr.len().saturating_sub(1), n_cols, entries))
        }
        Matrix::Dense { n_rows, n_cols, values } if args.dense => {
            let known = values.iter().enumerate().filter(|(_, v)| !v.is_nan());
            Ok((n_rows, n_cols, known.map(|(k, v)| (k / n_cols, k % n_cols, *v)).collect()))
        }
        Matrix::Dense { n_cols: 3, values, .. } => {
            listed(values.chunks_exact(3).map(|e| (e[0], e[1], e[2])), args.base)
        }
        Matrix::Dense { n_cols, .. } => Err(CliError::usage(
            format!("`{}` has {n_cols} columns", path.display()),
            "a list of entries has three: row, column, value; give --dense for a matrix with NaN",
        )),
    }
}

fn listed(list: impl Iterator<Item = (f64, f64, f64)>, base: usize) -> CliResult<(usize, usize, Vec<Entry>)> {
    let (mut m, mut n, mut entries) = (0, 0, Vec::new());
    for (at, (i, j, v)) in list.enumerate() {
        let Some((i, j)) = index(i, base).zip(index(j, base)) else {
            return Err(CliError::usage(
                format!("entry {}: row {i} and column {j}", at + 1),
                format!("give whole numbers from {base} on, or another --base"),
            ));
        };
        (m, n) = (m.max(i + 1), n.max(j + 1));
        entries.push((i, j, v));
    }
    Ok((m, n, entries))
}

/// Splits a share of the entries off at random; never all.
fn set_aside(entries: Vec<Entry>, share: f64, seed: u64) -> (Vec<Entry>, Vec<Entry>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (aside, kept): (Vec<_>, Vec<_>) = entries.into_iter().partition(|_| rng.random_bool(share));
    if kept.is_empty() { (aside, kept) } else { (kept, aside) }
}
