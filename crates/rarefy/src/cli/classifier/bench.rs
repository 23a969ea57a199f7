//! `rarefy bench` on an image classifier: dense against sparse, per image and per layer.

use std::path::Path;

use rarefy_kernels::cnn::{NetworkSettings, NodeReport};
use rarefy_models::classifier::Classifier;
use serde_json::{Value, json};

use crate::classify::{Times, test_image, times};
use crate::cli::bench::BenchArgs;
use crate::cli::{CliError, CliResult, Context, bytes, percent};
use crate::measure;

pub(in crate::cli) fn bench(folder: &Path, label: &str, args: &BenchArgs, context: &Context) -> CliResult {
    super::refuse(&[("dense", args.dense)])?;
    if !(1..=100_000).contains(&args.passes) {
        return Err(CliError::usage("`--passes` is out of range", "give 1 to 100000"));
    }
    let model = Classifier::open(folder)?;
    let dense = model.network(&NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() })?;
    let chosen = model.network(&NetworkSettings::default())?;
    let reports: Vec<&NodeReport> = chosen.network.report().collect();
    let is_sparse = reports.iter().zip(dense.network.report()).any(|(a, b)| a.kernel != b.kernel);
    let image = test_image(model.side());
    let mut networks = vec![&dense.network];
    if is_sparse {
        networks.push(&chosen.network);
    }
    let mut counts = vec![1, context.threads];
    counts.dedup();
    let mut runs = Vec::new();
    for threads in counts {
        context.out.message(&format!("timing on {threads} thread(s)"));
        runs.push((threads, times(&networks, &image, args.passes, threads)?));
    }
    let total = |f: fn(&NodeReport) -> usize| reports.iter().map(|r| f(r)).sum::<usize>();
    let dense_bytes: usize = dense.network.report().map(|r| r.bytes).sum();
    let stored_bytes = total(|r| r.bytes);
    let products = total(|r| r.products);
    let kept: f64 = reports.iter().map(|r| r.products as f64 * r.density).sum();

    let mut table =
        context.out.numbers(&["threads", "run", "ms/image (least)", "images/s", "weights", "faster"]);
    let mut entries = Vec::new();
    for (threads, times) in &runs {
        for (i, name) in ["dense", "sparse"].iter().take(networks.len()).enumerate() {
            let size = if i == 0 { dense_bytes } else { stored_bytes };
            table.add_row([
                threads.to_string(),
                (*name).to_owned(),
                format!("{:.3} ({:.3})", times.ms[i], times.least[i]),
                format!("{:.1}", 1e3 / times.ms[i]),
                bytes(size as u64),
                format!("{:.2}x", times.ms[0] / times.ms[i]),
            ]);
        }
        entries.push(run_json(*threads, times));
    }
    let mut layers = context.out.numbers(&[
        "layer",
        "kernel",
        "output",
        "zeros",
        "weights",
        "ms dense",
        "ms",
        "why not sparse",
    ]);
    let single = &runs[0].1;
    let mut layer_values = Vec::new();
    for (n, report) in reports.iter().enumerate() {
        let before = single.nodes[0][n];
        let after = single.nodes.get(1).map_or(before, |t| t[n]);
        let [c, h, w] = report.output;
        layers.add_row([
            chosen.layer_of[n].to_string(),
            report.kernel.clone(),
            format!("{c} x {h} x {w}"),
            percent(1.0 - report.density),
            bytes(report.bytes as u64),
            format!("{before:.4}"),
            format!("{after:.4}"),
            report.reason.clone(),
        ]);
        layer_values.push(json!({
            "layer": chosen.layer_of[n],
            "kernel": report.kernel,
            "reason": report.reason,
            "density": report.density,
            "products": report.products,
            "output": report.output,
            "bytes": report.bytes,
            "dense_ms": before,
            "ms": after,
        }));
    }
    let value = json!({
        "model": label,
        "resolution": model.side(),
        "cpu": measure::cpu_name(),
        "passes": args.passes,
        "sparse": is_sparse,
        "dense_bytes": dense_bytes,
        "bytes": stored_bytes,
        "products": products,
        "products_kept": kept.round(),
        "runs": entries,
        "layers_threads": 1,
        "layers": layer_values,
    });
    let mut text = format!(
        "{}; {} at {} x {}, one image at a time\n{layers}\nlayer by layer on 1 thread\n{table}\n{:.1} million multiply-adds, {:.1} million without the zeros\n",
        measure::cpu_name(),
        model.name(),
        model.side(),
        model.side(),
        products as f64 / 1e6,
        kept / 1e6
    );
    if !is_sparse {
        text += "no layer is sparse enough to gain: `rarefy prune MODEL -o OUT --method magnitude --sparsity 0.8 --pattern block:4x1`\n";
    }
    context.out.result(&text, &value)
}

fn run_json(threads: usize, times: &Times) -> Value {
    let entry = |i: usize| {
        times
            .ms
            .get(i)
            .map(|ms| json!({ "ms_per_image": ms, "ms_least": times.least[i], "images_per_s": 1e3 / ms }))
    };
    json!({
        "threads": threads,
        "dense": entry(0),
        "sparse": entry(1),
        "speedup": times.ms.get(1).map(|ms| times.ms[0] / ms),
    })
}
