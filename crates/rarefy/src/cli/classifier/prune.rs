//! `rarefy prune` on an image classifier.

use std::path::Path;
use std::time::Instant;

use rarefy_checkpoint::{CheckpointError, NewModel};
use rarefy_kernels::cnn::NetworkSettings;
use rarefy_models::classifier::Classifier;
use rarefy_prune::classifier::{ClassifierReport, ClassifierSettings, prune as prune_model, run_key};
use rarefy_sparsity::Pattern;
use serde_json::json;

use crate::cli::convert::{Format, already_complete};
use crate::cli::prune::PruneArgs;
use crate::cli::prune_options::PruneOptions;
use crate::cli::{CliError, CliResult, Context, bytes, percent, unknown};

/// Methods for image classifiers.
const METHODS: [&str; 2] = ["magnitude", "sparsebytenn"];
/// Flags that apply.
const FLAGS: [&str; 4] = ["method", "sparsity", "pattern", "format"];
/// Pattern of SparseByteNN when the user says nothing: a block fills a register of 16 numbers.
const SPARSEBYTENN: Pattern = Pattern::Block { rows: 16, cols: 1 };

pub(in crate::cli) fn prune(
    folder: &Path,
    args: &PruneArgs,
    options: &PruneOptions,
    context: &Context,
) -> CliResult {
    let started = Instant::now();
    let (method, settings) = settings(options)?;
    let mut model = Classifier::open(folder)?;
    let key = format!("{method} {}", run_key(&model, &settings));
    // Before the work: an output that cannot be written is told at once.
    let target = match NewModel::open_over(&args.output, &key, args.overwrite) {
        Err(CheckpointError::AlreadyComplete { .. }) => return already_complete(&args.output, context),
        opened => opened?,
    };
    let dense = model.network(&NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() })?;
    let dense_bytes: usize = dense.network.report().map(|n| n.bytes).sum();
    drop(dense);
    if settings.rearranges {
        context.out.message("searching an order of the channels");
    }
    let mut progress = context.out.progress("pruning", model.prunable().len() as u64);
    let pruned = prune_model(&mut model, &settings, &mut |layer| {
        progress.line(&format!(
            "{}: {} x {}, {} zeros, {} of the magnitude kept",
            layer.layer.layer,
            layer.layer.rows,
            layer.layer.cols,
            percent(layer.layer.sparsity()),
            percent(layer.retained_l1)
        ));
        progress.step();
    });
    progress.finish();
    let report = match pruned {
        Ok(report) => report,
        Err(error) => {
            target.abandon()?;
            return Err(error.into());
        }
    };
    let record = json!({
        "command": "prune",
        "version": env!("CARGO_PKG_VERSION"),
        "method": method,
        "settings": settings,
        "layers": report.layers,
        "rearrangements": report.rearrangements,
    });
    model.write(target, &record)?;
    finish(&model, &report, (&method, &settings), dense_bytes, started, args, context)
}

fn finish(
    model: &Classifier,
    report: &ClassifierReport,
    (method, settings): (&str, &ClassifierSettings),
    dense_bytes: usize,
    started: Instant,
    args: &PruneArgs,
    context: &Context,
) -> CliResult {
    let network = model.network(&NetworkSettings::default())?.network;
    let run_bytes: usize = network.report().map(|n| n.bytes).sum();
    let (weights, zeros) = report.counts();
    let sparsity = zeros as f64 / weights.max(1) as f64;
    let value = json!({
        "output": args.output,
        "method": method,
        "settings": settings,
        "sparsity": sparsity,
        "zeros": zeros,
        "pruned_weights": weights,
        "bytes_as_run": run_bytes,
        "dense_bytes_as_run": dense_bytes,
        "seconds": started.elapsed().as_secs_f64(),
        "layers": report.layers,
        "rearrangements": report.rearrangements,
    });
    let mut text = format!(
        "{}: {} layers pruned by {method}, {} of their weights are zero\n\
         weights as they run {}, {:.3} of the {} dense; on disk they are plain numbers\n",
        args.output.display(),
        report.layers.len(),
        percent(sparsity),
        bytes(run_bytes as u64),
        run_bytes as f64 / dense_bytes.max(1) as f64,
        bytes(dense_bytes as u64),
    );
    if !report.rearrangements.is_empty() {
        let n = report.rearrangements.len() as f64;
        let mean = |f: fn(&rarefy_prune::classifier::Rearrangement) -> f64| {
            report.rearrangements.iter().map(f).sum::<f64>() / n
        };
        text += &format!(
            "new order of {n} classes of channels: {} of the magnitude kept, {} in the old order (means)\n",
            percent(mean(|r| r.retained_l1_after)),
            percent(mean(|r| r.retained_l1_before))
        );
    }
    context.out.result(&text, &value)
}

/// The method and its settings as the user gave them.
fn settings(options: &PruneOptions) -> CliResult<(String, ClassifierSettings)> {
    let given =
        toml::Table::try_from(options).map_err(|e| CliError::failed("cannot read the settings", e))?;
    if let Some(flag) = given.keys().find(|k| !FLAGS.contains(&k.as_str())) {
        return Err(CliError::usage(
            format!("`--{flag}` means nothing to an image classifier, which MODEL is"),
            format!("leave it out; these apply: {}", FLAGS.map(|f| format!("--{f}")).join(", ")),
        ));
    }
    if !matches!(options.format, None | Some(Format::Dense)) {
        return Err(CliError::usage(
            "folders of image classifiers are written as plain numbers only",
            "leave `--format` out: the network is packed when it is loaded",
        ));
    }
    let Some(method) = options.method.as_deref() else {
        return Err(CliError::usage(
            "a method is needed: `--method NAME`",
            format!("for image classifiers: {}", METHODS.join(", ")),
        ));
    };
    if !METHODS.contains(&method) {
        return Err(unknown("method for image classifiers", method, &METHODS));
    }
    let rearranges = method == "sparsebytenn";
    let pattern = match &options.pattern {
        Some(text) => text.parse()?,
        None if rearranges => SPARSEBYTENN,
        None => Pattern::Unstructured,
    };
    let sparsity = match (options.sparsity, pattern.implied_sparsity()) {
        (Some(s), None) => s,
        (None, Some(fixed)) => fixed,
        (Some(s), Some(fixed)) if (s - fixed).abs() < 1e-9 => s,
        (Some(s), Some(fixed)) => {
            return Err(CliError::usage(
                format!(
                    "pattern {pattern} fixes the sparsity at {fixed}, but `--sparsity {s}` asks for another"
                ),
                "leave out one of the two",
            ));
        }
        (None, None) => {
            return Err(CliError::usage(
                "how sparse? `--sparsity S` or an N:M `--pattern` is needed",
                "for example `--sparsity 0.5`, or `--pattern 2:4`",
            ));
        }
    };
    let settings = ClassifierSettings { sparsity, pattern, rearranges };
    settings.validate().map_err(rarefy_prune::PruneError::from)?;
    Ok((method.to_owned(), settings))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_the_user_gives_and_what_is_refused() {
        let read = |text: &str| settings(&toml::from_str::<PruneOptions>(text).unwrap());
        let (method, found) = read("method = 'sparsebytenn'\nsparsity = 0.3").unwrap();
        assert_eq!((&*method, found.pattern, found.rearranges), ("sparsebytenn", SPARSEBYTENN, true));
        let (_, found) = read("method = 'magnitude'\nsparsity = 0.9\npattern = 'block:4x1'").unwrap();
        assert_eq!((found.sparsity, found.rearranges), (0.9, false));
        assert!((read("method = 'magnitude'\npattern = '2:4'").unwrap().1.sparsity - 0.5).abs() < 1e-12);
        for (bad, says) in [
            ("sparsity = 0.5", "a method is needed"),
            ("method = 'wanda'\nsparsity = 0.5", "unknown method"),
            ("method = 'magnitude'", "how sparse"),
            ("method = 'magnitude'\nsparsity = 1.0", "sparsity"),
            ("method = 'magnitude'\nsparsity = 0.7\npattern = '2:4'", "fixes the sparsity"),
            ("method = 'magnitude'\nsparsity = 0.7\nsamples = 3", "--samples"),
            ("method = 'magnitude'\nsparsity = 0.7\nvariant = true", "--variant"),
            ("method = 'magnitude'\nsparsity = 0.7\nformat = 'packed'", "plain numbers only"),
            ("method = 'sparsebytenn'\nsparsity = 0.7\npattern = 'unstructured'", "block:16x1"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.render().contains(says), "{bad}: {}", error.render());
        }
    }
}
