//! The command line: one file per verb, data on standard output, everything else on standard error.

mod bench;
mod cancel;
mod classifier;
mod convert;
mod error;
mod estimate;
mod estimate_images;
mod eval;
mod generate;
mod inspect;
pub(crate) mod memory;
mod methods;
mod model;
mod output;
mod prune;
mod prune_options;
mod prune_rules;
mod quickstart;
mod repro;
mod solve;
mod synth;
mod text;
mod train;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use error::{CliError, CliResult};
pub(crate) use error::{unknown, write_atomic};
pub(crate) use output::{Output, Progress, bytes, percent};

/// Make models sparse and make the sparsity pay.
///
/// A model folder goes in (Hugging Face layout), a sparse one comes out, measured beside the dense
/// one. MODEL is a folder, or the word `builtin` for the small language model in this program.
#[derive(Debug, Parser)]
#[command(name = "rarefy", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that every verb takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub struct GlobalArgs {
    /// Print the result as one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// No messages and no progress on standard error; errors and warnings stay
    #[arg(long, short, global = true)]
    quiet: bool,
    /// More detail on standard error
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Seed of every random choice [default: 0]
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The main job on the built-in model: prune, measure, pack, run, report.html
    Quickstart(quickstart::QuickstartArgs),
    /// What is in a model folder: shapes, sparsity and patterns per layer, bytes
    Inspect(inspect::InspectArgs),
    /// What will pay on this machine, before anything is pruned
    Estimate(estimate::EstimateArgs),
    /// Make a model sparse
    Prune(Box<prune::PruneArgs>),
    /// Store a model in another format
    Convert(convert::ConvertArgs),
    /// Check a model folder, alone or against another one
    Verify(verify::VerifyArgs),
    /// Perplexity on a text, or accuracy on images
    Eval(eval::EvalArgs),
    /// Continue a prompt
    Generate(generate::GenerateArgs),
    /// Time dense against sparse: a model's tokens or images, or one matrix shape
    Bench(bench::BenchArgs),
    /// Train a model from a recipe
    Train(train::TrainArgs),
    /// Write a model folder of a known shape with random weights
    Synth(synth::SynthArgs),
    /// Solve a sparse problem: regression, transport, completion, recovery
    Solve(Box<solve::SolveArgs>),
    /// Run a published experiment, scaled to this machine
    Repro(repro::ReproArgs),
    /// The table of methods
    Methods(methods::MethodsArgs),
}

/// What a verb gets beside its own arguments.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where text goes.
    pub(crate) out: Output,
    /// `--seed`, when given.
    pub(crate) seed: Option<u64>,
    /// Threads of the global pool.
    pub(crate) threads: usize,
}

/// Runs the command with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

/// Runs the command with the given arguments, the program's name first; returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output, usage errors to standard error.
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    match dispatch(cli) {
        Ok(()) => 0,
        Err(error) => {
            if !matches!(error, CliError::BrokenPipe) {
                output::stderr_line(&error.render());
            }
            error.exit_code()
        }
    }
}

/// The definition of the whole command line, for generated documentation.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

fn dispatch(cli: Cli) -> CliResult {
    let global = cli.global;
    cancel::install();
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|e| CliError::failed(format!("cannot start {threads} threads"), e))?;
    }
    let context = Context {
        out: Output::new(global.json, global.quiet, global.verbose),
        seed: global.seed,
        threads: rayon::current_num_threads(),
    };
    match cli.verb {
        Verb::Quickstart(args) => quickstart::run(&args, &context),
        Verb::Inspect(args) => inspect::run(&args, &context),
        Verb::Estimate(args) => estimate::run(&args, &context),
        Verb::Prune(args) => prune::run(&args, &context),
        Verb::Convert(args) => convert::run(&args, &context),
        Verb::Verify(args) => verify::run(&args, &context),
        Verb::Eval(args) => eval::run(&args, &context),
        Verb::Generate(args) => generate::run(&args, &context),
        Verb::Bench(args) => bench::run(&args, &context),
        Verb::Train(args) => train::run(&args, &context),
        Verb::Synth(args) => synth::run(&args, &context),
        Verb::Solve(args) => solve::run(&args, &context),
        Verb::Repro(args) => repro::run(&args, &context),
        Verb::Methods(args) => methods::run(&args, &context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }
}
