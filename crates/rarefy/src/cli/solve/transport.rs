//! `rarefy solve transport`.

use std::path::PathBuf;

use rarefy_data::arrays::Matrix;
use rarefy_solve::methods::{sinkhorn_newton_sparse, sparsity_constrained_ot};
use rarefy_solve::transport::{ExactSettings, SinkhornSettings, Transport, exact, sinkhorn, smooth};
use rarefy_solve::{Csr, Monitor, Solution, SolveError};
use serde_json::{Map, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::{dense, vector};
use super::{AnswerArgs, positive};

/// Entries of the cost up to which the exact plan is the default.
const EXACT_UP_TO: usize = 4_000_000;
/// Regularisation relative to the range of the cost, when none is given.
const REGULARISATION: f64 = 0.01;

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// A vertex of the polytope with its certificate, by the network simplex
    Exact,
    /// Entropic, by Sinkhorn's iteration
    Sinkhorn,
    /// Entropic to high precision, by sparse Newton steps (SNS)
    #[value(alias = "sinkhorn-newton-sparse")]
    Sns,
    /// Squared l2 regulariser: sparse plans
    L2,
    /// At most k non-zeros in each column
    #[value(alias = "sparsity-constrained-ot")]
    KSparse,
}

/// Distance of two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Metric {
    /// Squared Euclidean
    Sqeuclidean,
    /// Euclidean
    Euclidean,
    /// Sum of absolute differences
    Cityblock,
}

/// Arguments of `rarefy solve transport`.
#[derive(Debug, clap::Args)]
pub(super) struct TransportArgs {
    /// Points to move, one in each row
    #[arg(required_unless_present = "cost")]
    source: Option<PathBuf>,
    /// Where to move them, one point in each row
    #[arg(required_unless_present = "cost")]
    target: Option<PathBuf>,
    /// Matrix of costs instead of points
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "target"])]
    cost: Option<PathBuf>,
    /// Cost of two points
    #[arg(long, value_enum, default_value_t = Metric::Sqeuclidean)]
    metric: Metric,
    /// Weights of the rows [default: equal]
    #[arg(long, value_name = "FILE")]
    a: Option<PathBuf>,
    /// Weights of the columns [default: equal]
    #[arg(long, value_name = "FILE")]
    b: Option<PathBuf>,
    /// How [default: exact up to 2000 x 2000, sinkhorn beyond]
    #[arg(long, value_enum)]
    method: Option<How>,
    /// Regularisation in units of the cost [default: 0.01 of its range]
    #[arg(long, value_name = "R", value_parser = positive)]
    regularisation: Option<f64>,
    /// Most non-zeros in a column (k-sparse)
    #[arg(short, value_name = "K", default_value_t = 2)]
    k: usize,
    /// Error of the marginals at which to stop, relative to the mass
    #[arg(long, value_name = "T", default_value_t = 1e-9)]
    tolerance: f64,
    /// Limit of iterations [default: that of the method]
    #[arg(long, value_name = "N")]
    max_iterations: Option<usize>,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// A plan, whatever made it.
struct Found {
    plan: Matrix,
    cost: f64,
    ending: Ending,
    row_potentials: Vec<f64>,
    column_potentials: Vec<f64>,
}

pub(super) fn run(args: &TransportArgs, context: &Context) -> CliResult {
    let (cost, m, n) = costs(args)?;
    let weights = |file: &Option<PathBuf>, len: usize| match file {
        Some(path) => vector(path),
        None => Ok(vec![1.0 / len as f64; len]),
    };
    let (a, b) = (weights(&args.a, m)?, weights(&args.b, n)?);
    let problem = Transport::new(&a, &b, &cost)?;
    let how = args.method.unwrap_or(if cost.len() <= EXACT_UP_TO { How::Exact } else { How::Sinkhorn });
    // A constant cost has no range; any regularisation gives the same plan then.
    let range = if problem.cost_range() > 0.0 { problem.cost_range() } else { 1.0 };
    let strength = args.regularisation.unwrap_or(REGULARISATION * range);
    let found = watched(&args.answer, "transport", context, |monitor| {
        solve(args, how, strength, &problem, (m, n), monitor)
    })?;
    let (stored, per_column) = stored(&found.plan);
    let formula = match how {
        How::Exact => "min <C, P> over P >= 0, P 1 = a, P' 1 = b".to_owned(),
        How::Sinkhorn | How::Sns => format!("min <C, P> + {strength:.4e} sum P (ln P - 1) over the plans"),
        How::L2 => format!("min <C, P> + {:.4e} |P|^2 / 2 over the plans", strength),
        How::KSparse => {
            format!("min <C, P> + {strength:.4e} |P|^2 / 2, at most {} non-zeros in a column", args.k)
        }
    };
    let method =
        clap::ValueEnum::to_possible_value(&how).map_or_else(String::new, |v| v.get_name().to_owned());
    let facts = vec![
        ("method".to_owned(), method.clone()),
        ("rows x columns".to_owned(), format!("{m} x {n}")),
        ("cost <C, P>".to_owned(), format!("{:.10e}", found.cost)),
        ("non-zeros of the plan".to_owned(), stored.to_string()),
        ("most in a column".to_owned(), per_column.to_string()),
    ];
    let json = Map::from_iter([
        ("method".to_owned(), json!(method)),
        ("regularisation".to_owned(), json!((how != How::Exact).then_some(strength))),
        ("cost".to_owned(), json!(found.cost)),
        ("shape".to_owned(), json!([m, n])),
        ("non_zeros".to_owned(), json!(stored)),
        ("row_potentials".to_owned(), json!(found.row_potentials)),
        ("column_potentials".to_owned(), json!(found.column_potentials)),
    ]);
    let answer =
        Answer { problem: "transport", formula, ending: found.ending, facts, json, result: Some(found.plan) };
    finish(answer, &args.answer, context)
}

fn solve(
    args: &TransportArgs,
    how: How,
    strength: f64,
    problem: &Transport<'_>,
    (m, n): (usize, usize),
    monitor: &mut Monitor<'_>,
) -> Result<Found, SolveError> {
    let full = |values: Vec<f64>| Matrix::Dense { n_rows: m, n_cols: n, values };
    Ok(match how {
        How::Exact => {
            let mut settings = ExactSettings::default();
            settings.max_iterations = args.max_iterations.unwrap_or(settings.max_iterations);
            let s = exact(problem, &settings, monitor)?;
            let ending = Ending::from(&s);
            let plan = by_rows(&s.x.plan, n);
            Found { plan, cost: s.x.cost, ending, row_potentials: s.x.f, column_potentials: s.x.g }
        }
        How::Sinkhorn => {
            let mut settings = SinkhornSettings {
                regularisation: strength,
                tolerance: args.tolerance,
                ..SinkhornSettings::default()
            };
            settings.max_iterations = args.max_iterations.unwrap_or(settings.max_iterations);
            let s = sinkhorn(problem, &settings, monitor)?;
            let ending = Ending::from(&s);
            Found {
                plan: full(s.x.plan),
                cost: s.x.cost,
                ending,
                row_potentials: s.x.f,
                column_potentials: s.x.g,
            }
        }
        How::Sns => {
            let mut settings = sinkhorn_newton_sparse::SnsSettings {
                eta: 1.0 / strength,
                tolerance: args.tolerance,
                ..Default::default()
            };
            settings.max_newton = args.max_iterations.unwrap_or(settings.max_newton);
            let s = sinkhorn_newton_sparse::solve(problem, &settings, monitor)?;
            let ending = Ending::from(&s);
            Found {
                plan: full(s.x.plan),
                cost: s.x.cost,
                ending,
                row_potentials: s.x.x,
                column_potentials: s.x.y,
            }
        }
        How::L2 => {
            let mut settings =
                smooth::SmoothSettings { gamma: strength, tolerance: args.tolerance, ..Default::default() };
            settings.max_iterations = args.max_iterations.unwrap_or(settings.max_iterations);
            smoothed(smooth::solve(problem, &settings, monitor)?, n)
        }
        How::KSparse => {
            let mut settings = sparsity_constrained_ot::KSparseSettings {
                k: args.k,
                gamma: strength,
                tolerance: args.tolerance,
                ..Default::default()
            };
            settings.max_iterations = args.max_iterations.unwrap_or(settings.max_iterations);
            smoothed(sparsity_constrained_ot::solve(problem, &settings, monitor)?, n)
        }
    })
}

fn smoothed(s: Solution<smooth::SmoothPlan>, n: usize) -> Found {
    let ending = Ending::from(&s);
    let plan = by_rows(&s.x.plan.to_csr(), n);
    Found { plan, cost: s.x.cost, ending, row_potentials: s.x.alpha, column_potentials: s.x.beta }
}

fn by_rows(plan: &Csr, n_cols: usize) -> Matrix {
    Matrix::Sparse {
        n_cols,
        indptr: plan.indptr().to_vec(),
        indices: plan.indices().to_vec(),
        values: plan.values().to_vec(),
    }
}

/// Number of non-zeros, and the most in a column.
fn stored(plan: &Matrix) -> (usize, usize) {
    let mut columns = vec![0_usize; plan.n_cols()];
    match plan {
        Matrix::Dense { n_cols, values, .. } => {
            values.iter().enumerate().filter(|(_, v)| **v > 0.0).for_each(|(k, _)| columns[k % n_cols] += 1);
        }
        Matrix::Sparse { indices, values, .. } => {
            let pairs = indices.iter().zip(values).filter(|(_, v)| **v > 0.0);
            pairs.for_each(|(j, _)| columns[*j as usize] += 1);
        }
    }
    (columns.iter().sum(), columns.iter().copied().max().unwrap_or(0))
}

fn costs(args: &TransportArgs) -> CliResult<(Vec<f64>, usize, usize)> {
    if let Some(path) = &args.cost {
        return dense(path);
    }
    let (Some(source), Some(target)) = (&args.source, &args.target) else {
        return Err(CliError::usage("no problem was given", "name two files of points, or --cost FILE"));
    };
    let ((x, m, d), (y, n, e)) = (dense(source)?, dense(target)?);
    if d != e {
        return Err(CliError::usage(
            format!(
                "points of `{}` have {d} coordinates, those of `{}` {e}",
                source.display(),
                target.display()
            ),
            "give points of the same space",
        ));
    }
    if m.checked_mul(n).is_none_or(|size| size > rarefy_data::arrays::Limits::default().values) {
        return Err(CliError::usage(format!("{m} x {n} costs do not fit into memory"), "sample the points"));
    }
    let distance = |p: &[f64], q: &[f64]| -> f64 {
        let pairs = p.iter().zip(q).map(|(p, q)| p - q);
        match args.metric {
            Metric::Sqeuclidean => pairs.map(|v| v * v).sum(),
            Metric::Euclidean => pairs.map(|v| v * v).sum::<f64>().sqrt(),
            Metric::Cityblock => pairs.map(f64::abs).sum(),
        }
    };
    let rows = x.chunks_exact(d.max(1));
    let cost = rows.flat_map(|p| y.chunks_exact(d.max(1)).map(move |q| (p, q)));
    Ok((cost.map(|(p, q)| distance(p, q)).collect(), m, n))
}
