//! `rarefy synth`: a model folder of a known shape with random weights.

use std::path::PathBuf;

use rarefy_checkpoint::{Checkpoint, CheckpointError, DType, ShapeName, synth};
use serde_json::json;

use super::convert::already_complete;
use super::{CliResult, Context, bytes, unknown};

/// Arguments of `rarefy synth`.
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    /// Shape, for example tinyllama-1.1b
    #[arg(long, value_name = "NAME")]
    shape: String,
    /// Type of the weights
    #[arg(long, value_enum, default_value_t = SynthDtype::Bf16)]
    dtype: SynthDtype,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// Types that `synth` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SynthDtype {
    /// 32-bit
    F32,
    /// 16-bit, IEEE
    F16,
    /// 16-bit, brain
    Bf16,
}

pub(crate) fn run(args: &SynthArgs, context: &Context) -> CliResult {
    let Ok(shape) = args.shape.parse::<ShapeName>() else {
        let known: Vec<&str> = ShapeName::ALL.iter().map(|s| s.name()).collect();
        return Err(unknown("shape", &args.shape, &known));
    };
    let dtype = match args.dtype {
        SynthDtype::F32 => DType::F32,
        SynthDtype::F16 => DType::F16,
        SynthDtype::Bf16 => DType::BF16,
    };
    let seed = context.seed.unwrap_or(0);
    context.out.message(&format!("writing random weights of the shape {shape}"));
    match synth(shape, dtype, seed, &args.output) {
        Err(CheckpointError::AlreadyComplete { .. }) => return already_complete(&args.output, context),
        other => other?,
    }
    let written = Checkpoint::open(&args.output)?;
    let size: u64 = written.store().files().iter().map(|f| f.file_bytes()).sum();
    let value = json!({
        "output": args.output,
        "shape": shape.name(),
        "dtype": dtype.to_string(),
        "seed": seed,
        "bytes": size,
    });
    context.out.result(&format!("{}: {shape}, {dtype}, {}\n", args.output.display(), bytes(size)), &value)
}
