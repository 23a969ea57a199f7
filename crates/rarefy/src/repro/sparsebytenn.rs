//! SparseByteNN: what the order of the channels gains, how fast groups of 16 channels run, and the study of a network trained here.

use rarefy_models::classifier::synthetic;
use rarefy_prune::classifier::ClassifierReport;
use serde_json::{Value, json};

use super::convnets::{Real, end_to_end, pruned, rates, row};
use super::{Check, Experiment, Outcome, ReproOptions, trained_sparsebytenn};
use crate::cli::CliError;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "sparsebytenn",
    summary: "gain of the order of channels, speed of groups of 16 channels",
    run,
};

const PATTERN: &str = "block:16x1";
/// Channels of a group of that pattern.
const GROUP: usize = 16;
const SPARSITIES: [f64; 3] = [0.3, 0.5, 0.8];

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    let real = Real::open(options)?;
    match &real {
        Some(real) => accuracy(options, real, &mut outcome)?,
        None => {
            random_weights(options, &mut outcome)?;
            outcome.notes.push(
                "NOT RUN: accuracy with and without the search; it needs `--data` with imagenet-mini and the trained MobileNets beside it".into(),
            );
        }
    }
    kernels(options, &mut outcome)?;
    network(options, &mut outcome)?;
    match options.data.clone() {
        Some(data) => trained_sparsebytenn::run(options, &data, &mut outcome)?,
        None => outcome.notes.push(
            "NOT RUN: what the order of channels gains on a network of our own, within 0.5 and 1 point of dense after fine-tuning (item 1), and the order of \
             the patterns after fine-tuning (item 2): a network is trained for them; it needs `--data` with fashion-mnist"
                .into(),
        ),
    }
    outcome.notes.push(
        "NOT RUN: MNN and ONNX Runtime beside ours (items 3 and 4): they run in processes of their own, outside this command".into(),
    );
    outcome.notes.push(
        "the paper's 1.27x is MobileNet v1 with 30 % zeros on a telephone's processor (Qualcomm 855)".into(),
    );
    Ok(outcome)
}

/// The least gain of a layer in retained magnitude by the search, NaN when no layer can gain, and the means with and without it.
pub(super) fn compare(with: &ClassifierReport, without: &ClassifierReport) -> (f64, f64, f64) {
    let pairs = with.layers.iter().zip(&without.layers);
    // One group of channels has no other order, and a layer whose zeros suffice keeps everything in any.
    let least = pairs
        .filter(|(_, b)| b.layer.rows > GROUP && b.retained_l1 < 1.0 - 1e-6)
        .map(|(a, b)| a.retained_l1 - b.retained_l1)
        .reduce(f64::min)
        .unwrap_or(f64::NAN);
    let mean =
        |r: &ClassifierReport| r.layers.iter().map(|l| l.retained_l1).sum::<f64>() / r.layers.len() as f64;
    (least, mean(with), mean(without))
}

/// Item 1 on the trained network.
fn accuracy(options: &mut ReproOptions<'_>, real: &Real, outcome: &mut Outcome) -> Result<(), CliError> {
    let experiment = format!("{}, one shot", real.model.name());
    let dense = real.accuracy(&real.model)?;
    outcome.table.push(row(&experiment, "dense", "–", "top-1", dense.top1, Value::Null));
    for sparsity in [0.1, 0.3, 0.5] {
        let percent = format!("{:.0} %", 100.0 * sparsity);
        (options.say)(&format!("accuracy: {percent}"));
        let (ordered, with) = pruned(&real.model, PATTERN, sparsity, true)?;
        let (plain, without) = pruned(&real.model, PATTERN, sparsity, false)?;
        let single = pruned(&real.model, "unstructured", sparsity, false)?.0;
        let channels = pruned(&real.model, "channel", sparsity, false)?.0;
        let mut top1 = [0.0; 4];
        let subjects = [
            ("channel", &channels, "channels"),
            (PATTERN, &plain, "groups of 16"),
            (PATTERN, &ordered, "groups of 16, searched order"),
            ("unstructured", &single, "single weights"),
        ];
        for (i, (pattern, model, method)) in subjects.into_iter().enumerate() {
            let found = real.accuracy(model)?;
            let pattern = format!("{percent}, {pattern}");
            outcome.table.push(row(&experiment, method, &*pattern, "top-1", found.top1, Value::Null));
            outcome.table.push(row(&experiment, method, &*pattern, "top-5", found.top5, Value::Null));
            top1[i] = found.top1;
        }
        let (least, mean, before) = compare(&with, &without);
        outcome.table.push(row(
            &experiment,
            "groups of 16, searched order",
            &percent,
            "magnitude kept",
            mean,
            Value::Null,
        ));
        outcome.table.push(row(&experiment, "groups of 16", &percent, "magnitude kept", before, Value::Null));
        let name = format!("{percent}: magnitude kept, least gain of the layers that can gain");
        outcome.checks.push(Check::at_least(name, least, 1e-6));
        if percent == "50 %" {
            let name = "50 %, groups of 16: top-1 gained by the searched order, in points";
            outcome.checks.push(Check::at_least(name, 100.0 * (top1[2] - top1[1]), 1.0));
        } else if percent == "10 %" {
            let name = "10 %, groups of 16: top-1 gained by the searched order, in points";
            outcome.checks.push(Check::at_least(name, 100.0 * (top1[2] - top1[1]), 1.0));
            let names = ["channels", "groups", "groups in searched order", "single weights"];
            let values: Vec<(&str, f64)> = names.into_iter().zip(top1).collect();
            outcome.checks.push(Check::ordered("10 %, one shot: top-1", &values, &[true; 3]));
        }
    }
    outcome.notes.push(real.describe());
    outcome.notes.push(
        "groups of 16 are at chance from 30 % on when nothing is trained after pruning, so that the requirement at 50 % cannot be met on this network whatever the \
         order; 10 % is ours, where there is something to lose"
            .into(),
    );
    Ok(())
}

/// Item 1 without real weights: magnitudes only.
fn random_weights(options: &mut ReproOptions<'_>, outcome: &mut Outcome) -> Result<(), CliError> {
    (options.say)("search on random weights");
    let model = synthetic::mobilenet_v1(1, 128, options.seed);
    let with = pruned(&model, PATTERN, 0.5, true)?.1;
    let without = pruned(&model, PATTERN, 0.5, false)?.1;
    let (least, mean, before) = compare(&with, &without);
    let experiment = "MobileNet v1 0.25-128, random weights";
    for (method, value) in [("groups of 16, searched order", mean), ("groups of 16", before)] {
        outcome.table.push(row(experiment, method, "50 %", "magnitude kept", value, Value::Null));
    }
    let name = "random weights, 50 %: magnitude kept, least gain of the layers that can gain";
    outcome.checks.push(Check::at_least(name, least, 1e-6));
    outcome
        .notes
        .push("random weights have no structure to be found: the gain on trained ones is another".into());
    Ok(())
}

/// Item 3, the kernel.
fn kernels(options: &mut ReproOptions<'_>, outcome: &mut Outcome) -> Result<(), CliError> {
    let passes = if options.quick { 60 } else { 300 };
    for shape in [(256, 256, 832), (512, 512, 256)] {
        let (rows, cols, pixels) = shape;
        (options.say)(&format!("kernels: {rows} x {cols} x {pixels}"));
        let experiment = format!("kernel {rows} x {cols} x {pixels}, 1 thread");
        for rate in rates(shape, &SPARSITIES.map(|s| (s, 16)), passes, options.seed)? {
            let percent = format!("{:.0} %", 100.0 * rate.sparsity);
            let mut add = |quantity, value| {
                outcome.table.push(row(&experiment, "groups of 16", &percent, quantity, value, Value::Null));
            };
            add("GF/s", rate.gf_per_s);
            add("of peak", rate.of_peak);
            add("faster than dense", rate.faster);
            if cols == 256 {
                let name = format!("speed: {rows} x {cols} x {pixels}, {percent}, groups of 16: GF/s");
                outcome.checks.push(Check::at_least(name, rate.gf_per_s, 85.0));
            }
        }
    }
    Ok(())
}

/// Item 3, a whole network.
fn network(options: &mut ReproOptions<'_>, outcome: &mut Outcome) -> Result<(), CliError> {
    let passes = if options.quick { 15 } else { 60 };
    let model = synthetic::mobilenet_v1(4, 224, options.seed);
    let name = "MobileNet v1 1.0-224, random weights";
    let mut threads = vec![1, rayon::current_num_threads()];
    threads.dedup();
    for (sparsity, least, published) in
        [(0.3, 1.15, json!(1.27)), (0.5, 1.5, Value::Null), (0.8, 2.2, Value::Null)]
    {
        let percent = format!("{:.0} %", 100.0 * sparsity);
        (options.say)(&format!("network: {percent}"));
        // The order of the channels does not matter to the time.
        let sparse = pruned(&model, PATTERN, sparsity, false)?.0;
        for &threads in &threads {
            let times = end_to_end(&sparse, passes, threads)?;
            let faster = times.ms[0] / times.ms[1];
            let experiment = format!("{name}, {threads} thread(s)");
            let mut add = |method: &str, quantity, value, published: &Value| {
                outcome.table.push(row(&experiment, method, &percent, quantity, value, published.clone()));
            };
            add("dense", "ms per image", times.ms[0], &Value::Null);
            add("groups of 16", "ms per image", times.ms[1], &Value::Null);
            add("groups of 16", "faster than dense", faster, &published);
            if threads == 1 {
                let check = format!("speed: {name}, {percent}, 1 thread: times our dense network");
                outcome.checks.push(Check::at_least(check, faster, least));
            }
        }
    }
    outcome.notes.push(
        "speed: medians of interleaved runs on the same weights, batch 1; outputs compared before timing"
            .into(),
    );
    Ok(())
}
