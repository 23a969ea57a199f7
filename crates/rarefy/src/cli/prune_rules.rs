//! `rarefy prune` with a method that leaves the weights alone and writes rules for running them.

use rarefy_checkpoint::{Checkpoint, CheckpointError};
use rarefy_models::InputThresholds;
use rarefy_prune::{PruneError, RuleEntry, RuleReport, write_rules};
use serde_json::{Map, Value, json};

use super::convert::already_complete;
use super::model::refuse_same;
use super::prune::{PruneArgs, draw};
use super::prune_options::PruneOptions;
use super::{CliError, CliResult, Context, bytes, percent};

/// Flags that belong to every method of this kind.
const COMMON: [&str; 5] = ["method", "calibrate", "samples", "length", "format"];

pub(super) fn run(
    entry: &RuleEntry,
    args: &PruneArgs,
    options: &PruneOptions,
    context: &Context,
) -> CliResult {
    let method = (entry.build)(&settings(entry, options)?)?;
    let folder = args.model.folder()?;
    refuse_same(&folder, &args.output)?;
    let source = Checkpoint::open(&folder)?;
    source.check_layout()?;
    let calibration = draw(args, options, &source, context.seed.unwrap_or(0), context)?;
    let mut progress = None;
    let outcome =
        write_rules(&*method, &source, &calibration, &args.output, args.overwrite, &mut |done, all| {
            progress.get_or_insert_with(|| context.out.progress("calibrating", all as u64)).set(done as u64);
        });
    if let Some(progress) = progress {
        progress.finish();
    }
    match outcome {
        Ok(report) => finish(&report, args, context),
        Err(PruneError::Checkpoint(CheckpointError::AlreadyComplete { .. })) => {
            already_complete(&args.output, context)
        }
        Err(error) => Err(error.into()),
    }
}

/// The method's settings; a flag that means nothing to it is an error.
fn settings(entry: &RuleEntry, options: &PruneOptions) -> CliResult<Value> {
    let slug = entry.info.slug;
    let given = serde_json::to_value(options).unwrap_or_default();
    let defaults = (entry.defaults)();
    let mut found = Map::new();
    for (flag, value) in given.as_object().into_iter().flatten() {
        let key = flag.replace('-', "_");
        if defaults.get(&key).is_some() {
            found.insert(key, value.clone());
        } else if !COMMON.contains(&flag.as_str()) {
            let keys: Vec<String> =
                defaults.as_object().into_iter().flatten().map(|(k, _)| k.replace('_', "-")).collect();
            return Err(CliError::usage(
                format!("method `{slug}` has no setting `{flag}`"),
                format!("leave it out; its own are {}", keys.join(", ")),
            ));
        }
    }
    if given.get("format").is_some_and(|f| f != "dense") {
        return Err(CliError::usage(
            format!("method `{slug}` writes the weights unchanged: `--format dense` is all there is"),
            "its rules stand in a small file beside them",
        ));
    }
    Ok(Value::Object(found))
}

fn finish(report: &RuleReport, args: &PruneArgs, context: &Context) -> CliResult {
    let (activations, attention) = (&report.files.activations, &report.files.attention);
    let value = json!({
        "output": args.output,
        "method": report.method,
        "settings": report.settings,
        "calibration": report.calibration,
        "bytes": report.output.bytes(),
        "activations": activations,
        "attention": attention,
        "seconds": report.seconds,
    });
    let mut text = format!(
        "{}: weights unchanged, {}, and rules by {}\n",
        args.output.display(),
        bytes(report.output.bytes()),
        report.method
    );
    if let Some(a) = activations {
        let mean = a.realised.iter().sum::<f64>() / a.realised.len().max(1) as f64;
        let all: Vec<f32> =
            a.inputs.iter().flat_map(InputThresholds::values).chain(a.thresholds.clone()).collect();
        text += &format!(
            "{} on the calibration text, thresholds {:.4} to {:.4}\n",
            if a.inputs.is_empty() {
                format!("MLP: {} of the neurons idle", percent(mean))
            } else {
                format!("all matrices: {} of the weights not read", percent(mean))
            },
            all.iter().copied().fold(f32::INFINITY, f32::min),
            all.iter().copied().fold(0.0, f32::max)
        );
    }
    if let Some(a) = attention {
        text += &format!(
            "attention: {} tokens by {} of {} channels ({}), from block {} on\n",
            a.kept,
            a.rank(),
            a.head_dim,
            serde_json::to_value(a.importance).unwrap_or_default().as_str().unwrap_or_default(),
            a.dense_layers
        );
    }
    text += &format!("{:.1} s\n", report.seconds);
    context
        .out
        .message("`rarefy eval`, `generate` and `bench` follow the rules; `--dense` switches them off");
    context.out.result(&text, &value)
}
