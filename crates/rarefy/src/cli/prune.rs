//! `rarefy prune`: a model folder goes in, a sparse one comes out.

use std::path::PathBuf;

use rarefy_checkpoint::{Checkpoint, CheckpointError, Logical, Storage, WriteSummary};
use rarefy_data::random_windows;
use rarefy_prune::{
    ErrorKind, Event, LayerFilter, LayerReport, METHODS, MemoryPlan, PruneError, PruneReport, PruneRun,
    RULE_METHODS, RunSettings,
};
use rarefy_sparsity::{Pattern, check_sparsity};
use serde_json::{Map, Value, json};

use super::convert::{Format, already_complete};
use super::model::{ModelArg, refuse_same, say_rules_stay_behind};
use super::prune_options::PruneOptions;
use super::{
    CliError, CliResult, Context, Output, Progress, bytes, cancel, classifier, memory, percent, text, unknown,
};

/// Arguments of `rarefy prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Model folder, or `builtin`
    pub(super) model: ModelArg,
    /// Folder to write; it appears complete or not at all
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    pub(in crate::cli) output: PathBuf,
    /// Replace the output folder if it exists
    #[arg(long, help_heading = "Output")]
    pub(in crate::cli) overwrite: bool,
    /// TOML file with the flags below as keys; flags on the command line win
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    options: PruneOptions,
}

/// Calibration sequences when the user says nothing (both papers).
const SAMPLES: usize = 128;
/// Tokens of a calibration sequence when the user says nothing.
const LENGTH: usize = 512;
/// Most calibration sequences accepted; more than any published setting, and few enough to be drawn.
const MAX_SAMPLES: usize = 1 << 20;

pub(crate) fn run(args: &PruneArgs, context: &Context) -> CliResult {
    let options = match &args.recipe {
        Some(file) => args.options.clone().over(PruneOptions::from_recipe(file)?),
        None => args.options.clone(),
    };
    let seed = context.seed.unwrap_or(0);
    // A folder that is not there yet must not hide a mistake in the flags.
    if let ModelArg::Folder(folder) = &args.model
        && classifier::is_classifier(folder)
    {
        refuse_same(folder, &args.output)?;
        return classifier::prune(folder, args, &options, context);
    }
    if let Some(entry) = RULE_METHODS.iter().find(|m| options.method.as_deref() == Some(m.info.slug)) {
        return super::prune_rules::run(entry, args, &options, context);
    }
    let run = build(&options, args.overwrite, seed)?;
    let folder = args.model.folder()?;
    refuse_same(&folder, &args.output)?;
    let source = Checkpoint::open(&folder)?;
    source.check_layout()?;
    say_rules_stay_behind(&source, context);
    say_what_is_decoded(&source, &options, context);
    let calibration = calibration(args, &options, &run, &source, seed, context)?;

    let before = memory::peak_resident();
    memory::reset_peak();
    let graceful = cancel::Graceful::begin();
    let mut watcher = Watcher::new(&context.out);
    let outcome = run.run(&source, &calibration, &args.output, &mut watcher, graceful.flag());
    let (progress, plan) = watcher.finish();
    if let Some(progress) = progress {
        progress.finish();
    }
    match outcome {
        Ok(report) => finish(&report, plan.as_ref(), before, args, context),
        Err(PruneError::Cancelled { blocks_done, blocks, .. }) => {
            context.out.message(&format!("{blocks_done} of {blocks} blocks are complete"));
            Err(CliError::Interrupted { resume: Some(cancel::command_line()) })
        }
        Err(PruneError::Checkpoint(CheckpointError::AlreadyComplete { .. })) => {
            already_complete(&args.output, context)
        }
        Err(error) => Err(error.into()),
    }
}

/// Quantised weights are pruned as the numbers they stand for, and written as such: larger than they were.
fn say_what_is_decoded(source: &Checkpoint, options: &PruneOptions, context: &Context) {
    let is_quantised = |l: &&Logical| {
        matches!(l.storage, Storage::PackQuantized { .. } | Storage::IntQuantized | Storage::FloatQuantized)
    };
    let mut quantised = source.tensors().values().filter(is_quantised);
    let Some(first) = quantised.next() else { return };
    let (count, dtype) = (1 + quantised.count(), first.dtype);
    let (stored, dense) = source
        .tensors()
        .values()
        .filter(is_quantised)
        .fold((0, 0), |(s, d), l| (s + l.stored_bytes, d + l.dense_bytes()));
    let remedy = if options.format == Some(Format::PackQuantized) {
        ""
    } else {
        "; `rarefy convert --format pack-quantized` quantises again"
    };
    context.out.message(&format!(
        "note: {count} weights are quantised ({}): they are decoded to {dtype} before pruning, {} become up to {}{remedy}",
        first.storage,
        bytes(stored),
        bytes(dense)
    ));
}

/// The method with its settings, and how to run it.
fn build(options: &PruneOptions, overwrite: bool, seed: u64) -> CliResult<PruneRun> {
    let names: Vec<&str> = crate::registry::all().iter().map(|m| m.slug).collect();
    let Some(method) = &options.method else {
        return Err(CliError::usage(
            "a method is needed: `--method NAME`",
            format!("known: {}", names.join(", ")),
        ));
    };
    if rarefy_kernels::methods::METHODS.iter().any(|m| m.slug == *method) {
        return Err(CliError::usage(
            format!("method `{method}` does not prune language models"),
            format!("known for these: {}; `rarefy methods` shows what each is for", names.join(", ")),
        ));
    }
    let Some(entry) = METHODS.iter().find(|m| m.info.slug == *method) else {
        return Err(unknown("method", method, &names));
    };
    let settings = settings(options, method, &(entry.defaults)())?;
    let format = options.format.unwrap_or(Format::Dense);
    if format == Format::PackQuantized && options.quantize_bits.is_none() {
        return Err(CliError::usage(
            "`--format pack-quantized` needs quantised weights",
            "add `--method sparsegpt --quantize-bits 4`, or prune first and then `rarefy convert`",
        ));
    }
    let filter = LayerFilter {
        min_layer: options.min_layer.unwrap_or(0),
        max_layer: options.max_layer,
        prune_only: options.prune_only.clone().unwrap_or_default(),
        invert: options.invert,
    };
    // The grid of the method is per row unless the user groups it.
    let format = format.output(options.quantize_bits, Some(options.quantize_group.unwrap_or(0)))?;
    let settings_of_run = RunSettings { filter, format, overwrite, seed };
    Ok(PruneRun::by_name(method, &settings, settings_of_run)?)
}

/// The method's settings as the user gave them; what is absent keeps the method's default.
fn settings(options: &PruneOptions, method: &str, defaults: &Value) -> CliResult<Value> {
    let mut given = Map::new();
    pattern(options, &mut given)?;
    let others = [
        ("where", "where", options.place.map(|p| json!(p))),
        ("tokens", "tokens", options.tokens.map(|a| json!(a))),
        ("labels", "labels", options.labels.map(|l| json!(l))),
        ("channels", "channels", options.channels.map(|a| json!(a))),
        ("importance", "importance", options.importance.map(|i| json!(i))),
        ("grouping", "grouping", options.grouping.map(|g| json!(g))),
        ("dense-layers", "dense_layers", options.dense_layers.map(Value::from)),
        ("blocksize", "block_size", options.blocksize.map(Value::from)),
        ("percdamp", "percdamp", options.percdamp.map(Value::from)),
        ("quantize-bits", "quantize_bits", options.quantize_bits.map(Value::from)),
        ("quantize-group", "quantize_group", options.quantize_group.map(Value::from)),
        ("granularity", "granularity", options.granularity.map(|g| json!(g))),
        ("mask", "mask", options.mask.map(|m| json!(m))),
        ("variant", "variant", options.variant.then_some(Value::Bool(true))),
        ("compat", "compat", options.compat.then_some(Value::Bool(true))),
    ];
    for (flag, key, value) in others {
        let Some(value) = value else { continue };
        if defaults.get(key).is_none() {
            let all = METHODS.iter().map(|m| (m.info.slug, (m.defaults)()));
            let all = all.chain(RULE_METHODS.iter().map(|m| (m.info.slug, (m.defaults)())));
            let having: Vec<&str> = all.filter(|(_, d)| d.get(key).is_some()).map(|(slug, _)| slug).collect();
            return Err(CliError::usage(
                format!("method `{method}` has no setting `{flag}`"),
                format!("leave it out; it belongs to {}", having.join(", ")),
            ));
        }
        given.insert(key.into(), value);
    }
    Ok(Value::Object(given))
}

/// `--sparsity` or `--pattern`, both only where the pattern leaves the sparsity open.
fn pattern(options: &PruneOptions, given: &mut Map<String, Value>) -> CliResult {
    let pattern: Option<Pattern> = match &options.pattern {
        Some(text) => Some(text.parse()?),
        None => None,
    };
    if let Some(sparsity) = options.sparsity {
        check_sparsity(sparsity)?;
        // The authors' code counts N as pruned.
        let fixed =
            pattern.and_then(|p| p.implied_sparsity()).map(|f| if options.compat { 1.0 - f } else { f });
        if let Some(fixed) = fixed.filter(|f| (f - sparsity).abs() > 1e-9) {
            return Err(CliError::usage(
                format!(
                    "pattern {} fixes the sparsity at {fixed}, but `--sparsity {sparsity}` asks for another",
                    options.pattern.as_deref().unwrap_or_default()
                ),
                "leave out one of the two",
            ));
        }
        given.insert("sparsity".into(), sparsity.into());
    } else if pattern.is_none_or(|p| p.implied_sparsity().is_none()) {
        return Err(CliError::usage(
            "how sparse? `--sparsity S` or an N:M `--pattern` is needed",
            "for example `--sparsity 0.5`, or `--pattern 2:4`",
        ));
    }
    if let Some(pattern) = pattern {
        given.insert("pattern".into(), pattern.to_string().into());
    }
    Ok(())
}

/// The calibration sequences that the method needs.
fn calibration(
    args: &PruneArgs,
    options: &PruneOptions,
    run: &PruneRun,
    source: &Checkpoint,
    seed: u64,
    context: &Context,
) -> CliResult<Vec<Vec<u32>>> {
    if !run.pruner().needs().any() {
        if options.calibrate.is_some() {
            context.out.message("this method needs no calibration: the text is not read");
        }
        return Ok(Vec::new());
    }
    draw(args, options, source, seed, context)
}

/// Sequences drawn from the calibration text.
pub(super) fn draw(
    args: &PruneArgs,
    options: &PruneOptions,
    source: &Checkpoint,
    seed: u64,
    context: &Context,
) -> CliResult<Vec<Vec<u32>>> {
    let tokenizer = text::tokenizer(source)?;
    let samples = options.samples.unwrap_or(SAMPLES);
    let longest = source.config().max_positions;
    let length = options.length.unwrap_or_else(|| LENGTH.min(longest));
    if !(1..=MAX_SAMPLES).contains(&samples) {
        return Err(CliError::usage(
            format!("`--samples {samples}`"),
            format!("give 1 to {MAX_SAMPLES}; both papers take 128"),
        ));
    }
    if !(1..=longest).contains(&length) {
        return Err(CliError::usage(
            format!("`--length {length}`, but the model has positions for 1 to {longest} tokens"),
            "give a length in that range",
        ));
    }
    let wanted = samples.saturating_mul(length);
    let text = text::calibration(&args.model, &tokenizer, options.calibrate.as_deref(), wanted)?;
    context.out.message(&format!("calibration: {samples} sequences of {length} tokens from {}", text.source));
    random_windows(&text.tokens, samples, length, seed).map_err(|e| {
        CliError::Library(Box::new(e)).with_doing(&format!("cannot calibrate on {}", text.source))
    })
}

/// Shows the events of a run.
struct Watcher<'a> {
    out: &'a Output,
    progress: Option<Progress>,
    plan: Option<MemoryPlan>,
}

impl<'a> Watcher<'a> {
    fn new(out: &'a Output) -> Self {
        Self { out, progress: None, plan: None }
    }

    fn finish(self) -> (Option<Progress>, Option<MemoryPlan>) {
        (self.progress, self.plan)
    }
}

impl rarefy_prune::Progress for Watcher<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned(plan) => {
                self.out.message(&format!("memory: {plan}"));
                self.plan = Some((*plan).clone());
            }
            Event::Started { blocks, layers, resumed, layers_resumed } => {
                if *resumed > 0 {
                    self.out.message(&format!("going on: {resumed} of {blocks} blocks are done already"));
                }
                let left = layers.saturating_sub(*layers_resumed);
                self.progress = Some(self.out.progress("pruning", left as u64));
            }
            Event::BlockStarted { block, blocks } => {
                if let Some(progress) = &mut self.progress {
                    progress.label(&format!("block {}/{blocks}", block + 1));
                }
            }
            Event::LayerDone { report, .. } => {
                if let Some(progress) = &mut self.progress {
                    progress.line(&layer_line(report));
                    for warning in &report.warnings {
                        progress.line(&format!("  note: {warning}"));
                    }
                    progress.step();
                }
            }
            Event::Finishing => {
                if let Some(progress) = &mut self.progress {
                    progress.label("writing the folder");
                }
            }
            _ => {}
        }
    }
}

fn layer_line(report: &LayerReport) -> String {
    let error = report.relative_error.map_or_else(|| "–".into(), |e| format!("{e:.4}"));
    // Relative and squared, see the method's documentation.
    let kind = match report.error_kind {
        ErrorKind::Output => "output error",
        ErrorKind::DiagonalOutput => "output error (inputs taken as uncorrelated)",
        ErrorKind::Weight => "weight error",
    };
    format!(
        "{}: {} x {}, {} zeros, {kind} {error}, {:.2} s",
        report.layer,
        report.rows,
        report.cols,
        percent(report.sparsity()),
        report.seconds
    )
}

/// Size and sparsity beside dense, and the memory beside its prediction.
fn finish(
    report: &PruneReport,
    plan: Option<&MemoryPlan>,
    before: Option<u64>,
    args: &PruneArgs,
    context: &Context,
) -> CliResult {
    let written = report.output.as_ref();
    let stored = written.map_or(0, WriteSummary::bytes);
    let dense: u64 = written.map_or(0, |w| w.tensors.iter().map(|t| t.dense_bytes).sum());
    let peak = memory::peak_resident();
    let predicted = plan.map(MemoryPlan::peak_bytes);
    let kept_dense = written.map(|w| w.kept_dense.clone()).unwrap_or_default();
    if !kept_dense.is_empty() {
        context.out.message(&format!(
            "note: {} weights are stored as plain values, because packing would not have made them smaller; the first is `{}`",
            kept_dense.len(),
            kept_dense[0]
        ));
    }
    if let Some((peak, predicted)) = peak.zip(predicted).filter(|(peak, predicted)| peak > predicted) {
        context.out.message(&format!(
            "note: the peak resident set {} went above its prediction {}",
            bytes(peak),
            bytes(predicted)
        ));
    }
    let value = json!({
        "output": args.output,
        "method": report.method,
        "settings": report.settings,
        "format": report.format,
        "seed": report.seed,
        "sparsity": report.totals.sparsity,
        "sparsity_of_all_linears": report.totals.sparsity_of_all_linears,
        "zeros": report.totals.zeros,
        "pruned_weights": report.totals.elements,
        "bytes": stored,
        "dense_bytes": dense,
        "kept_dense": kept_dense,
        "peak_resident_bytes": peak,
        "predicted_peak_bytes": predicted,
        "peak_resident_bytes_before_pruning": before,
        "seconds": report.seconds,
        "layers": report.layers,
        "skipped": report.skipped,
    });
    let mut text = format!(
        "{}: {} layers pruned by {}, {} of their weights are zero ({} of all linear layers of the blocks)\n\
         weight files {}, {:.3} of the {} that plain values take\n",
        args.output.display(),
        report.totals.layers,
        report.method,
        percent(report.totals.sparsity),
        percent(report.totals.sparsity_of_all_linears),
        bytes(stored),
        stored as f64 / dense.max(1) as f64,
        bytes(dense)
    );
    if let Some((peak, predicted)) = peak.zip(predicted) {
        text += &format!("peak resident set {}, predicted {}", bytes(peak), bytes(predicted));
        if let Some(before) = before.filter(|b| *b > peak) {
            text += &format!("; {} before, while the text was cut into tokens", bytes(before));
        }
        text.push('\n');
    }
    text += &format!("{:.1} s\n", report.seconds);
    if stored >= dense {
        context.out.message(
            "note: zeros alone make nothing smaller or faster; `--format packed` (or `rarefy convert`) does",
        );
    }
    context.out.result(&text, &value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(change: impl FnOnce(&mut PruneOptions)) -> PruneOptions {
        let mut options = PruneOptions { method: Some("sparsegpt".into()), ..PruneOptions::default() };
        change(&mut options);
        options
    }

    #[test]
    fn flags_become_settings() {
        let options = options(|o| {
            o.pattern = Some("2:4".into());
            o.blocksize = Some(64);
            o.mask = Some(super::super::prune_options::MaskChoice::WandaSeq);
        });
        let run = build(&options, false, 0).unwrap();
        let settings = run.pruner().settings();
        assert_eq!((&settings["pattern"], &settings["block_size"]), (&json!("2:4"), &json!(64)));
        assert_eq!(settings["mask"], json!("wanda-seq"));
        assert_eq!(settings["percdamp"], json!(0.01));
    }

    #[test]
    fn every_flag_of_a_method_is_a_key_of_some_method() {
        let known: Vec<Value> = METHODS.iter().map(|m| (m.defaults)()).collect();
        for key in [
            "sparsity",
            "pattern",
            "block_size",
            "percdamp",
            "quantize_bits",
            "quantize_group",
            "granularity",
            "mask",
            "variant",
            "compat",
        ] {
            assert!(known.iter().any(|k| k.get(key).is_some()), "{key}");
        }
        // And the reverse: no method has a setting without a flag.
        for settings in known {
            for key in settings.as_object().unwrap().keys() {
                let flag = if key == "block_size" { "blocksize".to_owned() } else { key.replace('_', "-") };
                assert!(super::super::prune_options::keys().contains(&flag), "{key}");
            }
        }
    }

    #[test]
    fn sparsity_and_pattern_must_agree() {
        for (sparsity, pattern, is_fine) in [
            (Some(0.5), None, true),
            (None, Some("2:4"), true),
            (Some(0.5), Some("2:4"), true),
            (Some(0.7), Some("2:4"), false),
            (Some(0.7), Some("unstructured"), true),
            (None, Some("unstructured"), false),
            (None, None, false),
            (Some(f64::NAN), None, false),
            (Some(1.0), None, false),
        ] {
            let options = options(|o| {
                o.sparsity = sparsity;
                o.pattern = pattern.map(String::from);
            });
            assert_eq!(build(&options, false, 0).is_ok(), is_fine, "{sparsity:?} {pattern:?}");
        }
        let compat = |sparsity| {
            options(|o| {
                (o.sparsity, o.pattern, o.compat) = (Some(sparsity), Some("1:4".into()), true);
            })
        };
        assert!(build(&compat(0.25), false, 0).is_ok(), "one of four is pruned there");
        assert!(build(&compat(0.75), false, 0).is_err());
    }
}
