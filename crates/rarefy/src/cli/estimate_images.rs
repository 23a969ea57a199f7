//! `rarefy estimate` for image networks.

use rarefy_kernels::cnn::{NetworkSettings, NodeReport};
use rarefy_models::classifier::{Classifier, synthetic};
use serde_json::{Value, json};

use super::estimate::{Checked, EstimateArgs, PROMISE, missed};
use super::{CliError, CliResult, Context, bytes, percent};
use crate::estimate::images::{ImageCalibration, PATTERNS, measured, pruned};
use crate::estimate::{gain_in_words, machine};
use crate::measure;

/// Names that `--shape` takes for image networks.
pub(super) const IMAGE_SHAPES: [&str; 2] = ["mobilenet-v1", "mobilenet-v2"];
/// Timed passes of `--check`.
const PASSES: usize = 30;

/// A network with random weights of a known shape, full width, images of 224 × 224.
pub(super) fn shape(name: &str) -> Option<Classifier> {
    match name {
        "mobilenet-v1" => Some(synthetic::mobilenet_v1(4, 224, 0)),
        "mobilenet-v2" => Some(synthetic::mobilenet_v2(4, 224, 0)),
        _ => None,
    }
}

/// A pattern at a sparsity, predicted.
struct Predicted {
    pattern: &'static str,
    sparsity: f64,
    ms: f64,
    bytes: usize,
    gain: f64,
}

pub(super) fn run(label: &str, model: &Classifier, args: &EstimateArgs, context: &Context) -> CliResult {
    if args.batch != 1 {
        return Err(CliError::usage(
            "`--batch` is for language models",
            "images are estimated one at a time",
        ));
    }
    let calibration = calibration(args, context)?;
    let dense = model.network(&NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() })?;
    let nodes: Vec<&NodeReport> = dense.network.report().collect();
    let side = model.side();
    let dense_ms: f64 = calibration.predict(&nodes, side).iter().sum();
    let dense_bytes: usize = nodes.iter().map(|n| n.bytes).sum();
    let mut predicted = Vec::new();
    for pattern in PATTERNS {
        for &sparsity in &args.sparsity {
            let network = pruned(model, pattern, sparsity)?.network(&NetworkSettings::default())?.network;
            let nodes: Vec<&NodeReport> = network.report().collect();
            let ms: f64 = calibration.predict(&nodes, side).iter().sum();
            let bytes = nodes.iter().map(|n| n.bytes).sum();
            predicted.push(Predicted { pattern, sparsity, ms, bytes, gain: dense_ms / ms });
        }
    }
    let mut table = context.out.numbers(&["1x1 weights", "zeros", "ms", "bytes", "of dense", "verdict"]);
    table.add_row([
        "dense f32".to_owned(),
        percent(0.0),
        format!("{dense_ms:.3}"),
        bytes(dense_bytes as u64),
        "1.00x".to_owned(),
        "dense".to_owned(),
    ]);
    for p in &predicted {
        table.add_row([
            p.pattern.to_owned(),
            percent(p.sparsity),
            format!("{:.3}", p.ms),
            bytes(p.bytes as u64),
            format!("{:.2}x", p.gain),
            gain_in_words(p.gain),
        ]);
    }
    let layers = layers(&calibration, &nodes, (side, &dense.layer_of), context);
    let checked = if args.check { Some(check(model, &predicted, context)?) } else { None };
    let value = json!({
        "model": label,
        "cpu": calibration.cpu,
        "threads": calibration.threads,
        "dense": { "ms": dense_ms, "bytes": dense_bytes },
        "patterns": predicted.iter().map(|p| json!({
            "pattern": p.pattern,
            "sparsity": p.sparsity,
            "ms": p.ms,
            "bytes": p.bytes,
            "gain": p.gain,
            "verdict": gain_in_words(p.gain),
        })).collect::<Vec<_>>(),
        "layers": layers.1,
        "check": checked.as_ref().map(|c| &c.json),
    });
    let mut text = format!(
        "{label}: one image of {side} x {side}; entry, depthwise layers and logits stay dense\n{cpu}, {threads} threads\n\
         {table}\n{layers}\npredicted from the calibration of this machine, which ran other networks; `--check` measures this \
         one. Image kernels compute in f32 only.\n",
        cpu = calibration.cpu,
        threads = calibration.threads,
        layers = layers.0,
    );
    text += checked.as_ref().map_or("", |c| &c.text);
    context.out.result(&text, &value)?;
    match checked.and_then(|c| c.missed) {
        Some(message) => Err(CliError::TargetMissed { message }),
        None => Ok(()),
    }
}

/// Dense time of each layer and from where on each pattern beats it.
fn layers(
    calibration: &ImageCalibration,
    nodes: &[&NodeReport],
    (side, layer_of): (usize, &[usize]),
    context: &Context,
) -> (String, Vec<Value>) {
    let mut table = context.out.numbers(&[
        "layer",
        "kernel",
        "output",
        "dense ms",
        "single pays from",
        "4x1 pays from",
        "16x1 pays from",
    ]);
    let mut values = Vec::new();
    let predicted = calibration.predict(nodes, side);
    let even = [1, 4, 16].map(|block| calibration.break_even(nodes, side, block));
    for (n, (node, layer)) in nodes.iter().zip(layer_of).enumerate() {
        let is_pointwise = node.kernel == "1x1";
        let from: Vec<Option<f64>> = even.iter().map(|e| e[n]).collect();
        let shown = from.iter().map(|f| match f {
            Some(sparsity) => format!("{} zeros", percent(*sparsity)),
            None if is_pointwise => "never, up to 99 %".to_owned(),
            None => "–".to_owned(),
        });
        let [c, h, w] = node.output;
        let ms = predicted[n];
        let first = [layer.to_string(), node.kernel.clone(), format!("{c} x {h} x {w}"), format!("{ms:.4}")];
        table.add_row(first.into_iter().chain(shown));
        values.push(json!({
            "layer": layer,
            "kernel": node.kernel,
            "output": node.output,
            "dense_ms": ms,
            "break_even": { "unstructured": from[0], "block:4x1": from[1], "block:16x1": from[2] },
        }));
    }
    (table.to_string(), values)
}

/// Measures this network at every pattern and sparsity that was predicted.
fn check(model: &Classifier, predicted: &[Predicted], context: &Context) -> CliResult<Checked> {
    let mut table =
        context.out.numbers(&["1x1 weights", "zeros", "predicted ms", "measured ms", "error", "gain"]);
    let (mut errors, mut broken, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut dense = Vec::new();
    for p in predicted {
        context.out.message(&format!("measuring {} at {}", p.pattern, percent(p.sparsity)));
        let (_, times) = measured(model, p.pattern, p.sparsity, PASSES, context.threads)?;
        let (ms, gain) = (times.least[1], times.least[0] / times.least[1]);
        dense.push(times.least[0]);
        errors.push((p.ms / ms - 1.0).abs());
        if p.gain > PROMISE && gain < 1.0 {
            broken.push(format!("{} at {}", p.pattern, percent(p.sparsity)));
        }
        table.add_row([
            p.pattern.to_owned(),
            percent(p.sparsity),
            format!("{:.3}", p.ms),
            format!("{ms:.3}"),
            format!("{:+.0} %", (p.ms / ms - 1.0) * 100.0),
            format!("{gain:.2}x, predicted {:.2}x", p.gain),
        ]);
        rows.push(json!({
            "pattern": p.pattern,
            "sparsity": p.sparsity,
            "predicted_ms": p.ms,
            "measured_ms": ms,
            "promised_gain": p.gain,
            "measured_gain": gain,
        }));
    }
    let middle = measure::median(&mut errors);
    let most = errors.last().copied().unwrap_or(f64::NAN);
    let dense = measure::median(&mut dense);
    let text = format!(
        "{table}\nleast times of passes; dense {dense:.3} ms; median error {}, largest {}; {} gains above {PROMISE}x promised where there was none\n",
        percent(middle),
        percent(most),
        broken.len()
    );
    let json = json!({
        "rows": rows,
        "dense_ms": dense,
        "median_error": middle,
        "largest_error": most,
        "broken_promises": broken,
    });
    let missed = missed(middle, &broken);
    Ok(Checked { text, json, missed })
}

fn calibration(args: &EstimateArgs, context: &Context) -> CliResult<ImageCalibration> {
    let name = format!("calibration-images-{}-threads.json", context.threads);
    if !args.recalibrate {
        let stored: Option<ImageCalibration> = machine::read_stored(&name);
        if let Some(found) = stored.filter(|c| c.is_usable(context.threads)) {
            return Ok(found);
        }
    }
    context.out.message("measuring this machine, once: about half a minute");
    let found = ImageCalibration::measure(context.threads, &mut |step| context.out.message(step))?;
    if machine::store(&name, &found).is_none() {
        context.out.warn("the calibration could not be stored: it will be measured again next time");
    }
    Ok(found)
}
