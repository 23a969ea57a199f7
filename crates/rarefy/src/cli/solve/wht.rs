//! `rarefy solve wht`.

use std::path::PathBuf;
use std::time::Instant;

use rarefy_data::arrays::Matrix;
use rarefy_solve::Status;
use rarefy_solve::methods::spright::{Delays, SprightSettings, solve};
use rarefy_solve::sketch::walsh_hadamard;
use serde_json::{Map, json};

use super::super::{CliError, CliResult, Context};
use super::answer::{Answer, Ending, finish, watched};
use super::data::vector;
use super::{AnswerArgs, positive};

/// How it is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// The fast transform of all samples
    Full,
    /// Few samples, hashed into bins and peeled
    Spright,
}

/// Arguments of `rarefy solve wht`.
#[derive(Debug, clap::Args)]
pub(super) struct WhtArgs {
    /// The samples: 2^n numbers
    data: PathBuf,
    /// How
    #[arg(long, value_enum, default_value_t = How::Full)]
    method: How,
    /// Expected number of coefficients that are not 0 (spright)
    #[arg(short, value_name = "K", default_value_t = 32)]
    k: usize,
    /// Samples are noisy: standard deviation of the noise, or `auto` (spright)
    #[arg(long, value_name = "SIGMA")]
    noise: Option<String>,
    /// All coefficients are plus or minus this (spright)
    #[arg(long, value_name = "A", value_parser = positive)]
    amplitude: Option<f64>,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Coefficients that are printed.
const SHOWN: usize = 10;

pub(super) fn run(args: &WhtArgs, context: &Context) -> CliResult {
    let mut x = vector(&args.data)?;
    let size = x.len();
    if size < 2 || !size.is_power_of_two() {
        return Err(CliError::usage(
            format!("`{}` holds {size} samples", args.data.display()),
            "append zeros up to the next power of two",
        ));
    }
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(CliError::usage(format!("sample {} is not finite", at + 1), "remove or impute it first"));
    }
    let formula =
        "coefficient k = 2^-n sum over m of (-1)^(m.k) x[m], m.k the parity of the common bits".to_owned();
    let (entries, result, ending, json) = match args.method {
        How::Full => {
            let started = Instant::now();
            walsh_hadamard(&mut x)?;
            x.iter_mut().for_each(|v| *v /= size as f64);
            let ending = Ending {
                status: Status::Converged,
                objective: x.iter().map(|v| v * v).sum(),
                residuals: vec![],
                iterations: 1,
                seconds: started.elapsed().as_secs_f64(),
                trace: vec![],
            };
            let mut largest: Vec<usize> = (0..size).filter(|k| x[*k] != 0.0).collect();
            let by_size = |a: &usize, b: &usize| x[*b].abs().total_cmp(&x[*a].abs()).then(a.cmp(b));
            if largest.len() > SHOWN {
                largest.select_nth_unstable_by(SHOWN, by_size);
                largest.truncate(SHOWN);
            }
            let entries: Vec<(u64, f64)> = largest.iter().map(|k| (*k as u64, x[*k])).collect();
            let result = Matrix::Dense { n_rows: size, n_cols: 1, values: x };
            (entries, result, ending, Map::from_iter([("samples_used".to_owned(), json!(size))]))
        }
        How::Spright => {
            let sigma = match args.noise.as_deref() {
                None | Some("auto") => None,
                Some(text) => Some(
                    positive(text)
                        .map_err(|e| CliError::usage(format!("`--noise {text}`: {e}"), "or `auto`"))?,
                ),
            };
            let settings = SprightSettings {
                sparsity: args.k,
                delays: if args.noise.is_some() { Delays::Nso { chains: 3 } } else { Delays::Noiseless },
                sigma,
                amplitude: args.amplitude,
                seed: context.seed.unwrap_or(0),
                ..SprightSettings::default()
            };
            let mut oracle = |at: &[u64], out: &mut [f64]| {
                at.iter().zip(out).for_each(|(m, out)| *out = x[*m as usize]);
            };
            let s = watched(&args.answer, "wht", context, |monitor| {
                solve(size.ilog2(), &mut oracle, &settings, monitor)
            })?;
            let ending = Ending::from(&s);
            let values = s.x.entries.iter().flat_map(|(k, v)| [*k as f64, *v]).collect();
            let result = Matrix::Dense { n_rows: s.x.entries.len(), n_cols: 2, values };
            let json = Map::from_iter([
                ("samples_used".to_owned(), json!(s.x.samples_used)),
                ("unresolved_bins".to_owned(), json!(s.x.unresolved_bins)),
                ("sigma".to_owned(), json!(s.x.sigma)),
                ("settings".to_owned(), json!(settings)),
                ("entries".to_owned(), json!(s.x.entries)),
            ]);
            (s.x.entries, result, ending, json)
        }
    };
    let used = json["samples_used"].as_u64().unwrap_or(0);
    let mut facts = vec![
        ("samples".to_owned(), format!("2^{}", size.ilog2())),
        ("samples read".to_owned(), format!("{used} ({:.3} %)", 100.0 * used as f64 / size as f64)),
    ];
    if args.method == How::Spright {
        facts.push(("coefficients found".to_owned(), entries.len().to_string()));
    }
    let mut largest = entries;
    largest.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    facts.extend(largest.iter().take(SHOWN).map(|(k, v)| (format!("coefficient {k}"), format!("{v:+.6}"))));
    let answer = Answer { problem: "wht", formula, ending, facts, json, result: Some(result) };
    finish(answer, &args.answer, context)
}
