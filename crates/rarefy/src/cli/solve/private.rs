//! `rarefy solve private-regression`: sparse regression from messages that are private for each user.

use rarefy_data::arrays::Matrix;
use rarefy_solve::methods::ldp_sparse_regression::{Block, LdpSettings, Protocol, solve};
use serde_json::{Map, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::{TargetArgs, dense, to_dense};
use super::{AnswerArgs, positive};

/// What users send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// A gradient in one of a few rounds; pure epsilon
    #[value(alias = "ldp-sparse-regression")]
    Iht,
    /// Second moments and cross moments, once; (epsilon, delta)
    Nldp,
    /// Cross moments only, beside public covariates; (epsilon, delta)
    Public,
}

/// Arguments of `rarefy solve private-regression`.
#[derive(Debug, clap::Args)]
pub(super) struct PrivateArgs {
    #[command(flatten)]
    data: TargetArgs,
    /// Privacy of each user
    #[arg(long, value_name = "E", default_value_t = 1.0, value_parser = positive)]
    epsilon: f64,
    /// The other parameter of (epsilon, delta)
    #[arg(long, value_name = "D", default_value_t = 1e-6)]
    delta: f64,
    /// Number of coefficients that are not 0
    #[arg(short, value_name = "K", default_value_t = 3)]
    k: usize,
    /// What users send
    #[arg(long, value_enum, default_value_t = How::Iht)]
    method: How,
    /// Covariates that are public, one row for each (public)
    #[arg(long, value_name = "FILE")]
    public: Option<std::path::PathBuf>,
    /// Bound on a covariate: larger ones are clipped
    #[arg(long, value_name = "B", default_value_t = 2.5, value_parser = positive)]
    covariate_bound: f64,
    /// Bound on a response: larger ones are clipped
    #[arg(long, value_name = "B", default_value_t = 2.5, value_parser = positive)]
    response_bound: f64,
    /// Number of rounds (iht)
    #[arg(long, value_name = "T", default_value_t = 6)]
    rounds: usize,
    /// Read the file once, in blocks; it holds that many users
    #[arg(long, value_name = "N")]
    users: Option<usize>,
    /// Number of features, needed to stream libsvm text
    #[arg(long, value_name = "N", requires = "users")]
    features: Option<usize>,
    /// Draw the noise from --seed: to repeat an experiment. Whoever knows the seed can take the noise off
    #[arg(long)]
    repeatable: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Users of a block of a stream.
const BLOCK: usize = 16_384;

pub(super) fn run(args: &PrivateArgs, context: &Context) -> CliResult {
    let protocol = match args.method {
        How::Iht => Protocol::Iht,
        How::Nldp => Protocol::Nldp,
        How::Public => Protocol::PublicCovariates,
    };
    let settings = LdpSettings {
        protocol,
        epsilon: args.epsilon,
        delta: args.delta,
        sparsity: args.k,
        covariate_bound: args.covariate_bound,
        response_bound: args.response_bound,
        rounds: args.rounds,
        seed: args.repeatable.then(|| context.seed.unwrap_or(0)),
        ..LdpSettings::default()
    };
    let public = args.public.as_deref().map(dense).transpose()?;
    let public = public.as_ref().map(|(values, ..)| values.as_slice());
    let label = "private-regression";
    let (s, n, d, names) = if let Some(users) = args.users {
        let (d, names, blocks) = args.data.blocks(args.features, BLOCK)?;
        // The solver takes blocks, not errors: the first error ends the blocks and is given instead of the answer.
        let mut failed = None;
        let mut blocks = blocks.map_while(|block| match block {
            Ok(block) => Some(Block { x: block.x, y: block.y }),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let found =
            watched(&args.answer, label, context, |m| solve(d, users, &mut blocks, public, &settings, m));
        drop(blocks);
        if let Some(error) = failed {
            return Err(error);
        }
        (found?, users, d, names)
    } else {
        let (matrix, y, names) = args.data.read_rows()?;
        let (n, d) = (matrix.n_rows(), matrix.n_cols());
        if y.len() != n {
            return Err(CliError::usage(
                format!("{n} users and {} responses", y.len()),
                "give one for each user",
            ));
        }
        let mut blocks = std::iter::once(Block { x: to_dense(&matrix, &args.data.data)?, y });
        let s = watched(&args.answer, label, context, |m| solve(d, n, &mut blocks, public, &settings, m))?;
        (s, n, d, names)
    };
    let mut facts = vec![
        ("users x features".to_owned(), format!("{n} x {d}")),
        ("epsilon".to_owned(), args.epsilon.to_string()),
    ];
    if args.method != How::Iht {
        facts.push(("delta".to_owned(), format!("{:e}", args.delta)));
    }
    facts.push(("noise of a message".to_owned(), format!("{:.3}", s.x.noise)));
    if args.repeatable {
        facts.push(("private".to_owned(), "no: the noise follows from the seed".to_owned()));
    }
    let mut largest: Vec<usize> = (0..d).filter(|j| s.x.theta[*j] != 0.0).collect();
    largest.sort_by(|a, b| s.x.theta[*b].abs().total_cmp(&s.x.theta[*a].abs()).then(a.cmp(b)));
    for j in largest.iter().take(10) {
        let name = names.as_ref().and_then(|n| n.get(*j)).cloned();
        facts.push((name.unwrap_or_else(|| format!("feature {}", j + 1)), format!("{:+.6}", s.x.theta[*j])));
    }
    let json = Map::from_iter([
        ("theta".to_owned(), json!(s.x.theta)),
        ("names".to_owned(), json!(names)),
        ("users".to_owned(), json!(n)),
        ("settings".to_owned(), json!(settings)),
    ]);
    let formula = "min over theta: mean of (y - x theta)^2 / 2, from messages that are private for each user"
        .to_owned();
    let result = Some(Matrix::Dense { n_rows: d, n_cols: 1, values: s.x.theta.clone() });
    let answer = Answer { problem: label, formula, ending: Ending::from(&s), facts, json, result };
    finish(answer, &args.answer, context)
}
