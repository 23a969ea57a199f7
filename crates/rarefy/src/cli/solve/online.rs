//! `rarefy solve online`: one pass over the samples, predicting each before it is learnt.

use rarefy_data::arrays::Matrix;
use rarefy_solve::methods::optimistic_omd::{Domain, Hint, OmdSettings, Variant, learner, play};
use serde_json::{Map, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::TargetArgs;
use super::{AnswerArgs, positive};

/// The loss of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Loss {
    /// (y - z)^2 / 2
    Squared,
    /// ln(1 + exp(-y z)), y the sign of the target
    Logistic,
    /// max(0, 1 - y z), y the sign of the target
    Hinge,
}

/// How it learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Optimistic mirror descent: the last gradient is the guess of the next one
    OptimisticOmd,
    /// Optimistic follow the regularised leader
    Ftrl,
    /// Mirror descent without a guess
    Omd,
}

/// Arguments of `rarefy solve online`.
#[derive(Debug, clap::Args)]
pub(super) struct OnlineArgs {
    #[command(flatten)]
    data: TargetArgs,
    /// Loss of a round
    #[arg(long, value_enum, default_value_t = Loss::Squared)]
    loss: Loss,
    /// How
    #[arg(long, value_enum, default_value_t = How::OptimisticOmd)]
    method: How,
    /// Radius of the ball in which the weights stay
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive)]
    radius: f64,
    /// Strength of an added l1 penalty, which makes weights exactly 0
    #[arg(long, value_name = "A")]
    l1: Option<f64>,
    /// Bound on the length of a gradient [default: the largest so far]
    #[arg(long, value_name = "G", value_parser = positive)]
    gradient_bound: Option<f64>,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(super) fn run(args: &OnlineArgs, context: &Context) -> CliResult {
    let (matrix, y, names) = args.data.read_rows()?;
    let (n, d) = (matrix.n_rows(), matrix.n_cols());
    if y.len() != n {
        return Err(CliError::usage(
            format!("{n} samples and {} targets", y.len()),
            "give one for each sample",
        ));
    }
    let finite = |v: &[f64]| v.iter().all(|v| v.is_finite());
    let stored = match &matrix {
        Matrix::Dense { values, .. } | Matrix::Sparse { values, .. } => values,
    };
    if !finite(&y) || !finite(stored) {
        return Err(CliError::usage("some samples are not finite", "remove or impute them first"));
    }
    let settings = OmdSettings {
        domain: Domain::Ball { radius: args.radius },
        variant: if args.method == How::Ftrl { Variant::Ftrl } else { Variant::Convex },
        hint: if args.method == How::Omd { Hint::Zero } else { Hint::LastGradient },
        gradient_bound: args.gradient_bound,
        l1: args.l1.unwrap_or(0.0),
        ..OmdSettings::default()
    };
    let mut learner = learner(d, &settings)?;
    let row = |t: usize, f: &mut dyn FnMut(usize, f64)| match &matrix {
        Matrix::Dense { n_cols, values, .. } => {
            values[t * n_cols..(t + 1) * n_cols].iter().enumerate().for_each(|(j, v)| f(j, *v));
        }
        Matrix::Sparse { indptr, indices, values, .. } => {
            let at = indptr[t]..indptr[t + 1];
            indices[at.clone()].iter().zip(&values[at]).for_each(|(j, v)| f(*j as usize, *v));
        }
    };
    let mut right = 0_usize;
    let mut loss = |t: usize, w: &[f64], gradient: &mut [f64]| {
        let mut z = 0.0;
        row(t, &mut |j, v| z += w[j] * v);
        let sign = if y[t] > 0.0 { 1.0 } else { -1.0 };
        right += usize::from(z * sign > 0.0);
        let (value, slope) = match args.loss {
            Loss::Squared => (0.5 * (y[t] - z).powi(2), z - y[t]),
            Loss::Logistic => {
                let m = sign * z;
                // ln(1 + e^-m) without overflow on either side.
                let value = (-m).max(0.0) + (-m.abs()).exp().ln_1p();
                (value, -sign / (1.0 + m.exp()))
            }
            Loss::Hinge => ((1.0 - sign * z).max(0.0), if sign * z < 1.0 { -sign } else { 0.0 }),
        };
        gradient.fill(0.0);
        row(t, &mut |j, v| gradient[j] += slope * v);
        value
    };
    let s =
        watched(&args.answer, "online", context, |monitor| play(learner.as_mut(), n, &mut loss, monitor))?;
    let loss_name = match args.loss {
        Loss::Squared => "(y - z)^2 / 2",
        Loss::Logistic => "ln(1 + exp(-y z))",
        Loss::Hinge => "max(0, 1 - y z)",
    };
    let average = &s.x.average;
    let kept = average.iter().filter(|v| **v != 0.0).count();
    let mut facts = vec![
        ("rounds".to_owned(), s.iterations.to_string()),
        (
            "mean loss, each sample before it is learnt".to_owned(),
            format!("{:.6}", s.objective / s.iterations.max(1) as f64),
        ),
        ("weights that are not 0".to_owned(), format!("{kept} of {d}")),
    ];
    if args.loss != Loss::Squared {
        let share = right as f64 / s.iterations.max(1) as f64;
        facts.push(("right signs".to_owned(), format!("{:.2} %", 100.0 * share)));
    }
    let json = Map::from_iter([
        ("average".to_owned(), json!(average)),
        ("last".to_owned(), json!(s.x.last)),
        ("names".to_owned(), json!(names)),
        ("right_signs".to_owned(), json!((args.loss != Loss::Squared).then_some(right))),
        ("settings".to_owned(), json!(settings)),
    ]);
    let formula = format!(
        "sum over rounds of {loss_name} + l1 |w|_1, |w| <= {}, w chosen before the sample",
        args.radius
    );
    let result = Some(Matrix::Dense { n_rows: d, n_cols: 1, values: average.clone() });
    let answer = Answer { problem: "online", formula, ending: Ending::from(&s), facts, json, result };
    finish(answer, &args.answer, context)
}
