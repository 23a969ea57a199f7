//! `rarefy solve`: one subcommand per class of problems.

mod answer;
mod complete;
mod data;
mod online;
mod private;
mod recover;
mod regress;
mod regression;
mod transport;
mod wht;

use std::path::PathBuf;

use super::{CliResult, Context};

/// Arguments of `rarefy solve`.
#[derive(Debug, clap::Args)]
pub(crate) struct SolveArgs {
    #[command(subcommand)]
    problem: Problem,
}

#[derive(Debug, clap::Subcommand)]
enum Problem {
    /// Sparse linear regression: lasso, elastic net, Huber; alpha by cross-validation
    ///
    /// Objective: mean of the loss + alpha (l1_ratio |w|_1 + (1 - l1_ratio)/2 |w|_2^2).
    Lasso(regression::RegressionArgs),
    /// Sparse logistic regression of two classes; alpha by cross-validation
    ///
    /// Objective: mean of ln(1 + exp(-y z)) + alpha (l1_ratio |w|_1 + (1 - l1_ratio)/2 |w|_2^2).
    Logistic(regression::RegressionArgs),
    /// Least squares: to rounding, from a sketch, or in one pass over a file of any size
    Regress(regress::RegressArgs),
    /// Optimal transport between two weighted point sets, or for a cost matrix
    ///
    /// Objective: min <C, P> + regulariser over plans P >= 0 with row sums a and column sums b.
    Transport(transport::TransportArgs),
    /// Completes a matrix of which some entries are known
    Complete(complete::CompleteArgs),
    /// A sparse vector from few linear measurements
    Recover(recover::RecoverArgs),
    /// Walsh-Hadamard transform, of all samples or of a sparse spectrum from few
    Wht(wht::WhtArgs),
    /// Sparse regression from messages that are private for each user
    PrivateRegression(private::PrivateArgs),
    /// Learns from samples one after the other, predicting each before it is learnt
    Online(online::OnlineArgs),
}

/// What every problem takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Answer")]
struct AnswerArgs {
    /// Write the answer there; the ending says how: .npy, .npz, .csv, .mtx, .libsvm
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a page with the numbers and a plot of the convergence there
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Stop after that many seconds with the best answer so far
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    time_limit: Option<f64>,
}

/// A number above zero.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".into()),
    }
}

pub(crate) fn run(args: &SolveArgs, context: &Context) -> CliResult {
    match &args.problem {
        Problem::Lasso(args) => regression::lasso(args, context),
        Problem::Logistic(args) => regression::logistic(args, context),
        Problem::Regress(args) => regress::run(args, context),
        Problem::PrivateRegression(args) => private::run(args, context),
        Problem::Transport(args) => transport::run(args, context),
        Problem::Complete(args) => complete::run(args, context),
        Problem::Recover(args) => recover::run(args, context),
        Problem::Wht(args) => wht::run(args, context),
        Problem::Online(args) => online::run(args, context),
    }
}
