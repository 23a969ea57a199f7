//! `rarefy convert`: the same model in another format.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rarefy_checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriter, OutTensor, OutputFormat, WriteSummary, layout,
};
use rarefy_sparsity::Pattern;
use rarefy_sparsity::detect::detect;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::model::{ModelArg, say_rules_stay_behind};
use super::{CliError, CliResult, Context, bytes, cancel};

/// Arguments of `rarefy convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Model folder, or `builtin`
    model: ModelArg,
    /// Folder to write; it appears complete or not at all
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Format of the new folder
    #[arg(long, value_enum, value_name = "F")]
    format: Format,
    /// Bits with `--format pack-quantized` [default: 4]
    #[arg(long, value_name = "BITS")]
    quantize_bits: Option<u32>,
    /// Columns that share a scale with `--format pack-quantized` [default: 128; 0: the whole row]
    #[arg(long, value_name = "N")]
    quantize_group: Option<usize>,
    /// Replace the output folder if it exists
    #[arg(long)]
    overwrite: bool,
}

/// How the weights of linear layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// Zeros stored as zeros; every Hugging Face program reads it
    Dense,
    /// The layout of our kernels; smaller by what the pattern promises
    Packed,
    /// compressed-tensors bitmask
    SparseBitmask,
    /// compressed-tensors bitmask for 2:4
    #[value(name = "sparse-24-bitmask")]
    #[serde(rename = "sparse-24-bitmask")]
    Sparse24Bitmask,
    /// compressed-tensors packed integers
    PackQuantized,
}

impl Format {
    /// The format of the library; `bits` and `group` are those of `pack-quantized`.
    ///
    /// # Errors
    /// Bits or group given for another format.
    pub(crate) fn output(self, bits: Option<u32>, group: Option<usize>) -> CliResult<OutputFormat> {
        Ok(match self {
            Self::Dense => OutputFormat::Dense,
            Self::Packed => OutputFormat::Packed,
            Self::SparseBitmask => OutputFormat::SparseBitmask,
            Self::Sparse24Bitmask => OutputFormat::Sparse24Bitmask,
            Self::PackQuantized => {
                let bits = bits.unwrap_or(4);
                if ![2, 3, 4, 8].contains(&bits) {
                    return Err(CliError::usage(
                        format!("`pack-quantized` cannot hold {bits} bits"),
                        "give `--quantize-bits` 2, 3, 4 or 8",
                    ));
                }
                OutputFormat::PackQuantized { bits, group: group.unwrap_or(128) }
            }
        })
    }
}

pub(crate) fn run(args: &ConvertArgs, context: &Context) -> CliResult {
    let is_quantized = args.format == Format::PackQuantized;
    if !is_quantized && (args.quantize_bits.is_some() || args.quantize_group.is_some()) {
        return Err(CliError::usage(
            "`--quantize-bits` and `--quantize-group` belong to `--format pack-quantized`",
            "leave them out, or choose that format",
        ));
    }
    let format = args.format.output(args.quantize_bits, args.quantize_group)?;
    let source = Checkpoint::open(&args.model.folder()?)?;
    source.check_layout()?;
    say_rules_stay_behind(&source, context);
    let config = source.config().clone();
    let hash = source.content_hash()?;
    let run_key = format!("convert {format} {hash}");
    let mut writer = match CheckpointWriter::create(&args.output, &source, format, &run_key, args.overwrite) {
        Err(CheckpointError::AlreadyComplete { .. }) => {
            return already_complete(&args.output, context);
        }
        other => other?,
    };
    let mut progress = context.out.progress("convert", config.n_layers as u64);
    let graceful = cancel::Graceful::begin();
    for block in 0..config.n_layers {
        if graceful.flag().load(Ordering::SeqCst) {
            progress.finish();
            return Err(CliError::Interrupted { resume: Some(cancel::command_line()) });
        }
        let part = layout::block_prefix(&config, block);
        if !writer.is_done(&part) {
            let tensors = layout::prunable(&config, block)
                .into_iter()
                .map(|spec| tensor(&source, &spec))
                .collect::<CliResult<Vec<_>>>()?;
            source.release_pages();
            writer.write_part(&part, tensors, serde_json::Value::Null)?;
        }
        progress.step();
    }
    progress.finish();
    let record = json!({
        "command": "convert",
        "version": env!("CARGO_PKG_VERSION"),
        "source": args.model.label(),
        "source_hash": hash,
        "format": format.to_string(),
    });
    let summary = writer.finish(&record)?;
    if is_quantized {
        context.out.warn("weights were rounded to the grid of the integers: the model has changed");
    }
    report(&summary, args, context)
}

/// The same command has made the folder before.
pub(crate) fn already_complete(output: &Path, context: &Context) -> CliResult {
    if context.out.json {
        return context.out.json_value(&json!({ "output": output, "already_complete": true }));
    }
    context.out.message(&format!("`{}` is complete already: nothing to do", output.display()));
    Ok(())
}

fn tensor(source: &Checkpoint, spec: &layout::LinearSpec) -> CliResult<OutTensor> {
    let values = source.read_f32(&spec.tensor)?;
    let pattern = detect(&values, spec.rows, spec.cols)?.best.unwrap_or(Pattern::Unstructured);
    drop(values);
    let dtype = source.store().tensor(&spec.tensor)?.dtype;
    Ok(OutTensor {
        name: spec.tensor.clone(),
        shape: vec![spec.rows, spec.cols],
        dtype,
        data: source.read_dense(&spec.tensor)?,
        pattern: Some(pattern),
        quant: None,
    })
}

fn report(summary: &WriteSummary, args: &ConvertArgs, context: &Context) -> CliResult {
    let dense: u64 = summary.tensors.iter().map(|t| t.dense_bytes).sum();
    let stored = summary.bytes();
    if !summary.kept_dense.is_empty() {
        context.out.warn(&format!(
            "{} weights are stored as plain values, because packing would not have made them smaller; the first is `{}`",
            summary.kept_dense.len(),
            summary.kept_dense[0]
        ));
    }
    let value = json!({
        "output": summary.out,
        "format": args.format,
        "bytes": stored,
        "dense_bytes": dense,
        "ratio": stored as f64 / dense.max(1) as f64,
        "kept_dense": summary.kept_dense,
    });
    let text = format!(
        "{}: {} in weight files, {:.3} of the {} that plain values take\n",
        summary.out.display(),
        bytes(stored),
        stored as f64 / dense.max(1) as f64,
        bytes(dense)
    );
    context.out.result(&text, &value)
}
