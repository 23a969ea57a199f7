//! `rarefy estimate`: what will pay on this machine, before anything is pruned.

use rarefy_checkpoint::{Checkpoint, DType, ModelConfig, ShapeName};
use rarefy_kernels::bench::{self, BenchSpec};
use rarefy_kernels::plan::{Break, Calibration, Residence, Work};
use rarefy_models::classifier::{Classifier, is_classifier};
use serde_json::{Value, json};

use super::bench::{SHAPE_NAMES, parse_shape};
use super::estimate_images::IMAGE_SHAPES;
use super::model::ModelArg;
use super::{CliError, CliResult, Context, bytes, percent};
use crate::estimate::machine::{self, last_level_cache};
use crate::estimate::{Estimate, Layers, choices, estimate, layers_of, rival, verdict};
use crate::measure;

/// Arguments of `rarefy estimate`.
#[derive(Debug, clap::Args)]
pub(crate) struct EstimateArgs {
    /// Model folder, or `builtin`; only its configuration is read
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<ModelArg>,
    /// A shape instead of a model: llama-7b, tinyllama-1.1b, mobilenet-v1, …, or one matrix as in `bench`
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// Sparsities of unstructured weights and of groups or blocks
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [0.5, 0.7, 0.9])]
    pub(super) sparsity: Vec<f64>,
    /// Rows of the input: 1 decodes one token
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) batch: usize,
    /// Measure a sample of the predictions and show their errors
    #[arg(long)]
    pub(super) check: bool,
    /// Measure this machine again, even if that was done before
    #[arg(long)]
    pub(super) recalibrate: bool,
}

/// Largest batch that is predicted.
const MAX_BATCH: usize = 4096;
/// A gain above this is a promise.
pub(super) const PROMISE: f64 = 1.1;
/// Median error of the predictions that `--check` accepts.
const MOST_ERROR: f64 = 0.15;
/// Shapes, and sparsities of each, that `--check` measures.
const CHECKED_SHAPES: usize = 3;

pub(crate) fn run(args: &EstimateArgs, context: &Context) -> CliResult {
    if !(1..=MAX_BATCH).contains(&args.batch) {
        return Err(CliError::usage(format!("`--batch {}`", args.batch), format!("give 1 to {MAX_BATCH}")));
    }
    for sparsity in &args.sparsity {
        rarefy_sparsity::check_sparsity(*sparsity)?;
    }
    if let Some((label, model)) = image_network(args)? {
        return super::estimate_images::run(&label, &model, args, context);
    }
    let (label, layers) = layers(args)?;
    let machine = calibration(args, context)?;
    let cache = last_level_cache();
    let found = estimate(&machine, &layers, args.batch, cache, &choices(&args.sparsity));
    let checked = if args.check { Some(check(&machine, &layers, args, context)?) } else { None };
    let value = json!({
        "model": label,
        "cpu": machine.cpu,
        "read_gb_per_s": machine.read_gb_per_s,
        "estimate": found,
        "verdicts": found.total.iter().map(verdict).collect::<Vec<_>>(),
        "check": checked.as_ref().map(|c| &c.json),
    });
    let mut text = format!(
        "{label}: its {} linear layers{}, {} rows of input\n{}, {} threads; memory reads {:.1} GB/s, last-level cache {}\n",
        layers.iter().map(|l| l.count).sum::<usize>(),
        if layers.iter().any(|l| !l.is_pruned) { " (the output layer stays dense)" } else { "" },
        args.batch,
        machine.cpu,
        machine.threads,
        machine.read_gb_per_s,
        bytes(cache)
    );
    text += &total(&found, context);
    text += &per_layer(&found, context);
    text += "predicted from the calibration of this machine; `--check` measures a sample\n";
    if let Some(checked) = &checked {
        text += &checked.text;
    }
    context.out.result(&text, &value)?;
    match checked.and_then(|c| c.missed) {
        Some(message) => Err(CliError::TargetMissed { message }),
        None => Ok(()),
    }
}

/// The image network that is to be estimated, if it is one.
fn image_network(args: &EstimateArgs) -> CliResult<Option<(String, Classifier)>> {
    if let Some(model) = &args.model {
        let folder = model.folder()?;
        return Ok(match is_classifier(&folder)? {
            true => Some((model.label(), Classifier::open(&folder)?)),
            false => None,
        });
    }
    let name = args.shape.as_deref().unwrap_or_default();
    Ok(super::estimate_images::shape(name).map(|model| (name.to_owned(), model)))
}

/// What is to be estimated, and its name.
fn layers(args: &EstimateArgs) -> CliResult<(String, Vec<Layers>)> {
    if let Some(model) = &args.model {
        let checkpoint = Checkpoint::open(&model.folder()?)?;
        checkpoint.check_layout()?;
        return Ok((model.label(), layers_of(checkpoint.config())));
    }
    let name = args.shape.as_deref().unwrap_or_default();
    if let Ok(shape) = name.parse::<ShapeName>() {
        let config = ModelConfig::from_value("config.json".as_ref(), shape.config_json(DType::F32))?;
        return Ok((name.to_owned(), layers_of(&config)));
    }
    match parse_shape(name) {
        Ok((rows, cols)) => Ok((
            name.to_owned(),
            vec![Layers { names: "matrix".into(), rows, cols, count: 1, is_pruned: true }],
        )),
        Err(_) => {
            let known: Vec<&str> =
                ShapeName::ALL.iter().map(|s| s.name()).chain(SHAPE_NAMES).chain(IMAGE_SHAPES).collect();
            Err(super::unknown("shape", name, &known))
        }
    }
}

fn calibration(args: &EstimateArgs, context: &Context) -> CliResult<Calibration> {
    if !args.recalibrate
        && let Some(stored) = machine::stored(context.threads)
    {
        return Ok(stored);
    }
    context.out.message("measuring this machine, once: about half a minute");
    let (measured, file) = machine::measure(context.threads, &mut |step| context.out.message(step))?;
    match file {
        Some(file) => context.out.detail(&format!("stored in {}", file.display())),
        None => context.out.warn("the calibration could not be stored: it will be measured again next time"),
    }
    Ok(measured)
}

/// The table of the whole model.
fn total(found: &Estimate, context: &Context) -> String {
    let mut table =
        context.out.numbers(&["weights", "zeros", "ms", "bytes", "of dense", "over int4", "verdict"]);
    for cost in &found.total {
        table.add_row([
            cost.kernel.clone(),
            percent(cost.sparsity),
            format!("{:.3}", cost.ms),
            bytes(cost.bytes as u64),
            format!("{:.2}x", cost.gain),
            format!("{:.2}x", cost.gain_over_int4),
            verdict(cost),
        ]);
    }
    let cached: Vec<&str> = found.total.iter().filter(|c| c.in_cache).map(|c| c.kernel.as_str()).collect();
    let mut text = format!("{table}\n");
    if cached.len() == found.total.len() {
        text += "the weights fit the last-level cache in every form: reading them costs little, and so gains little\n";
    }
    text
}

/// From which sparsity on each layer gains.
fn per_layer(found: &Estimate, context: &Context) -> String {
    let mut table = context.out.numbers(&[
        "layers",
        "shape",
        "count",
        "dense f32 ms",
        "dense int4 ms",
        "kernel",
        "pays from",
    ]);
    for (layers, costs) in &found.layers {
        let ms = |kernel: &str| {
            costs
                .iter()
                .find(|c| c.kernel == kernel)
                .map_or_else(|| "–".into(), |c| format!("{:.4}", c.ms / layers.count as f64))
        };
        let int4 = machine::INT4.to_string();
        let mut seen: Vec<&str> = Vec::new();
        for cost in costs {
            let Some(from) = cost.break_even.filter(|_| !seen.contains(&cost.kernel.as_str())) else {
                continue;
            };
            let is_first = seen.is_empty();
            seen.push(&cost.kernel);
            let only_first = |text: String| if is_first { text } else { String::new() };
            table.add_row([
                only_first(layers.names.clone()),
                only_first(format!("{} x {}", layers.rows, layers.cols)),
                only_first(layers.count.to_string()),
                only_first(ms("dense f32")),
                only_first(ms(&int4)),
                cost.kernel.clone(),
                match from {
                    Break::At(sparsity) => format!("{} zeros", percent(sparsity)),
                    Break::Never => "never, up to 99 %".into(),
                },
            ]);
        }
    }
    format!("{table}\n")
}

pub(super) struct Checked {
    pub(super) text: String,
    pub(super) json: Value,
    /// What was asked of the predictions and did not hold.
    pub(super) missed: Option<String>,
}

/// Measures the largest shapes at the first and last sparsity.
fn check(
    machine: &Calibration,
    layers: &[Layers],
    args: &EstimateArgs,
    context: &Context,
) -> CliResult<Checked> {
    let mut largest: Vec<&Layers> = layers.iter().filter(|l| l.is_pruned).collect();
    largest.sort_by_key(|l| std::cmp::Reverse(l.rows.saturating_mul(l.cols)));
    let (mut rows, mut errors, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    let mut table =
        context.out.numbers(&["shape", "kernel", "zeros", "predicted ms", "measured ms", "error"]);
    let mut sparsities = args.sparsity.clone();
    sparsities.sort_by(f64::total_cmp);
    sparsities.dedup();
    sparsities.drain(1..sparsities.len().saturating_sub(1).max(1));
    for layer in largest.into_iter().take(CHECKED_SHAPES) {
        for &sparsity in &sparsities {
            context.out.message(&format!("measuring {} x {}, {}", layer.rows, layer.cols, percent(sparsity)));
            let kinds = machine::kinds().into_iter().filter(|k| k.holds(layer.cols)).collect();
            let spec = BenchSpec {
                rows: layer.rows,
                cols: layer.cols,
                n: args.batch,
                threads: context.threads,
                sparsity,
                passes: 9,
                kinds,
                seed: context.seed.unwrap_or(0),
                max_bytes: measure::spare_memory(),
                ..BenchSpec::default()
            };
            let report = bench::run(&spec, &mut |_| ())?;
            let work = Work {
                rows: layer.rows,
                cols: layer.cols,
                n: args.batch,
                sparsity,
                residence: Residence::Memory,
            };
            // The gain that the table shows: over the dense weights of the same type.
            let gain = |kind: bench::Kind, of: &dyn Fn(bench::Kind) -> Option<f64>| {
                of(rival(kind)).zip(of(kind)).map_or(f64::NAN, |(dense, own)| dense / own)
            };
            let predicted_ms = |kind: bench::Kind| machine.predict(kind, &work).map(|p| p.ms);
            let measured_ms = |kind: bench::Kind| report.rows.iter().find(|r| r.kind == kind).map(|r| r.ms);
            for row in &report.rows {
                let Some(predicted) = machine.predict(row.kind, &work) else { continue };
                let error = predicted.ms / row.ms - 1.0;
                errors.push(error.abs());
                // A promise that is not kept: more than 1.1 times faster was said, and it was slower.
                let (promised, kept) = (gain(row.kind, &predicted_ms), gain(row.kind, &measured_ms));
                if promised > PROMISE && kept < 1.0 {
                    broken.push(format!("{} at {}", row.kind, percent(row.kind.sparsity(sparsity))));
                }
                table.add_row([
                    format!("{} x {}", layer.rows, layer.cols),
                    row.kind.to_string(),
                    percent(row.kind.sparsity(sparsity)),
                    format!("{:.3}", predicted.ms),
                    format!("{:.3}", row.ms),
                    format!("{:+.0} %", error * 100.0),
                ]);
                rows.push(json!({
                    "rows": layer.rows,
                    "cols": layer.cols,
                    "kernel": row.kind.to_string(),
                    "sparsity": row.kind.sparsity(sparsity),
                    "predicted_ms": predicted.ms,
                    "measured_ms": row.ms,
                    "promised_gain": promised,
                    "measured_gain": kept,
                }));
            }
        }
    }
    let middle = measure::median(&mut errors);
    let most = errors.last().copied().unwrap_or(f64::NAN);
    let text = format!(
        "{table}\nweights in memory, gains over dense of the same type\nmedian error {}, largest {}; {} gains above {PROMISE}x promised where there was none\n",
        percent(middle),
        percent(most),
        broken.len()
    );
    let json = json!({
        "rows": rows,
        "median_error": middle,
        "largest_error": most,
        "broken_promises": broken,
    });
    let missed = missed(middle, &broken);
    Ok(Checked { text, json, missed })
}

/// What was asked of the predictions and did not hold.
pub(super) fn missed(median_error: f64, broken: &[String]) -> Option<String> {
    if !broken.is_empty() {
        return Some(format!("a gain was promised where there is none: {}", broken.join(", ")));
    }
    // NaN is no small error.
    let holds = median_error <= MOST_ERROR;
    (!holds).then(|| format!("the median error {} is above {}", percent(median_error), percent(MOST_ERROR)))
}
