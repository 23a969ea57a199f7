//! `rarefy bench`: dense against sparse, a model's tokens or images, or one matrix shape.

use std::collections::BTreeMap;

use rarefy_checkpoint::{Checkpoint, Storage};
use rarefy_kernels::bench::{BenchReport, BenchSpec, Kind};
use rarefy_kernels::{bandwidth, cpu_features};
use rarefy_models::{CausalLm, InputThresholds, LoadOptions, PackedPolicy, Rules};
use serde_json::json;

use super::error::nearest;
use super::model::{ModelArg, realised_lines, rules};
use super::{CliError, CliResult, Context, bytes, classifier};
use crate::measure;

/// Arguments of `rarefy bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Model folder, or `builtin`
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<ModelArg>,
    /// One matrix instead of a model: ROWSxCOLS, or a name such as llama-7b-up
    #[arg(long, value_name = "SHAPE")]
    shape: Option<String>,
    /// Sparsities to time with `--shape`
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [0.5, 0.7, 0.9])]
    sparsity: Vec<f64>,
    /// Rows of the input with `--shape`
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Timed calls of each kernel with `--shape`, or images when MODEL is an image classifier
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub(in crate::cli) passes: usize,
    /// Ignore the folder's rules of idle neurons and distant tokens, with MODEL
    #[arg(long, conflicts_with = "shape")]
    pub(in crate::cli) dense: bool,
    /// Tokens to decode with MODEL
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,
}

/// Matrices of well-known models, `[d_out, d_in]`.
const SHAPES: [(&str, usize, usize); 8] = [
    ("opt-125m-fc1", 3072, 768),
    ("opt-125m-fc2", 768, 3072),
    ("tinyllama-up", 5632, 2048),
    ("tinyllama-down", 2048, 5632),
    ("llama-7b-attention", 4096, 4096),
    ("llama-7b-up", 11008, 4096),
    ("llama-7b-down", 4096, 11008),
    ("llama-7b-head", 32000, 4096),
];

/// Their names.
pub(crate) const SHAPE_NAMES: [&str; SHAPES.len()] = {
    let mut names = [""; SHAPES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = SHAPES[i].0;
        i += 1;
    }
    names
};

pub(crate) fn run(args: &BenchArgs, context: &Context) -> CliResult {
    match (&args.shape, &args.model) {
        (Some(shape), _) => kernels(args, parse_shape(shape)?, context),
        (None, Some(model)) => {
            let folder = model.folder()?;
            if classifier::is_classifier(&folder) {
                return classifier::bench(&folder, &model.label(), args, context);
            }
            tokens(args, model, context)
        }
        (None, None) => Err(CliError::usage("nothing to time", "give a MODEL or `--shape`")),
    }
}

pub(crate) fn parse_shape(text: &str) -> CliResult<(usize, usize)> {
    if let Some((_, rows, cols)) = SHAPES.iter().find(|s| s.0 == text) {
        return Ok((*rows, *cols));
    }
    let numbers = text.split_once('x').and_then(|(r, c)| Some((r.parse().ok()?, c.parse().ok()?)));
    match numbers {
        Some((rows, cols)) if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => {
            let names: Vec<&str> = SHAPES.iter().map(|s| s.0).collect();
            let near = nearest(text, names.iter().copied());
            let hint = if near.is_empty() { names.join(", ") } else { near.join(", ") };
            Err(CliError::usage(
                format!("unknown shape `{text}`"),
                format!("ROWSxCOLS such as 4096x11008, or a name: {hint}"),
            ))
        }
    }
}

fn kernels(args: &BenchArgs, (rows, cols): (usize, usize), context: &Context) -> CliResult {
    let mut reports = Vec::new();
    for sparsity in &args.sparsity {
        rarefy_sparsity::check_sparsity(*sparsity)?;
    }
    for (i, sparsity) in args.sparsity.iter().enumerate() {
        let mut kinds = vec![Kind::DenseF32, Kind::PanelF32, Kind::DenseBf16, Kind::PanelBf16];
        // 2:4 has one sparsity of its own: timed once.
        if i == 0 && cols.is_multiple_of(4) {
            kinds.extend([Kind::NmF32 { n: 2, m: 4 }, Kind::NmBf16 { n: 2, m: 4 }]);
        }
        let spec = BenchSpec {
            rows,
            cols,
            sparsity: *sparsity,
            n: args.batch,
            threads: context.threads,
            passes: args.passes,
            kinds,
            seed: context.seed.unwrap_or(0),
            max_bytes: measure::spare_memory(),
            ..BenchSpec::default()
        };
        context.out.message(&format!("{rows} x {cols}, sparsity {sparsity}"));
        reports.push(rarefy_kernels::bench::run(&spec, &mut |step| context.out.detail(step))?);
    }
    let roof = reports.iter().map(|r| r.read_gb_per_s).fold(0.0, f64::max);
    let isa = reports.first().map(|r| r.isa.to_string());
    let value = json!({
        "rows": rows,
        "cols": cols,
        "batch": args.batch,
        "threads": context.threads,
        "cpu": measure::cpu_name(),
        "cpu_features": cpu_features().to_string(),
        "isa": isa,
        "read_gb_per_s": roof,
        "kernels": reports.iter().flat_map(rows_json).collect::<Vec<_>>(),
    });
    let mut table = context.out.numbers(&[
        "kernel",
        "zeros",
        "ms (least – most)",
        "MB",
        "of dense",
        "GB/s",
        "of read rate",
        "faster than dense",
    ]);
    for report in &reports {
        for row in &report.rows {
            table.add_row([
                row.kind.to_string(),
                format!("{:.0} %", zeros(report, row.kind) * 100.0),
                format!("{:.3} ({:.3} – {:.3})", row.ms, row.ms_min, row.ms_max),
                format!("{:.2}", row.bytes as f64 / 1e6),
                format!("{:.3}", row.bytes_ratio),
                format!("{:.1}", row.gb_per_s),
                format!("{:.0} %", row.gb_per_s / report.read_gb_per_s * 100.0),
                format!("{:.2}x", row.speedup),
            ]);
        }
    }
    let text = format!(
        "{} ({}), {} threads; memory reads {roof:.1} GB/s, measured between the calls\n{rows} x {cols}, {} rows of input\n{table}\n",
        measure::cpu_name(),
        isa.unwrap_or_default(),
        context.threads,
        args.batch
    );
    context.out.result(&text, &value)
}

/// The sparsity of the weights of one kernel.
fn zeros(report: &BenchReport, kind: Kind) -> f64 {
    kind.sparsity(report.spec.sparsity)
}

fn rows_json(report: &BenchReport) -> Vec<serde_json::Value> {
    report
        .rows
        .iter()
        .map(|row| {
            json!({
                "kernel": row.kind.to_string(),
                "sparsity": zeros(report, row.kind),
                "ms": row.ms,
                "ms_min": row.ms_min,
                "ms_max": row.ms_max,
                "bytes": row.bytes,
                "bytes_ratio": row.bytes_ratio,
                "gb_per_s": row.gb_per_s,
                "read_gb_per_s": report.read_gb_per_s,
                "speedup": row.speedup,
            })
        })
        .collect()
}

fn tokens(args: &BenchArgs, arg: &ModelArg, context: &Context) -> CliResult {
    if args.tokens == 0 {
        return Err(CliError::usage("`--tokens` is 0", "give at least 1"));
    }
    let checkpoint = Checkpoint::open(&arg.folder()?)?;
    checkpoint.check_layout()?;
    let is_packed = checkpoint
        .tensors()
        .values()
        .any(|t| matches!(t.storage, Storage::BitmaskPanel | Storage::NmPacked { .. }));
    let own = rules(&checkpoint, args.dense, context)?;
    let load = |packed, rules: &Rules| {
        let rules = rules.clone();
        CausalLm::load(&checkpoint, LoadOptions { packed, rules, ..LoadOptions::default() })
    };
    let none = Rules::default();
    let mut runs = vec![("dense", load(PackedPolicy::DenseAlways, &none)?)];
    if is_packed {
        runs.push(("as stored", load(PackedPolicy::AsStored, &none)?));
    }
    if !own.is_empty() {
        // The same kernels with nothing left out: the rival that a rule has to beat.
        let all = Rules::all(checkpoint.config().n_layers);
        let all = Rules {
            mlp: if own.mlp.is_empty() { Vec::new() } else { all.mlp },
            attention: if own.attention.is_empty() { Vec::new() } else { all.attention },
            inputs: vec![InputThresholds::default(); own.inputs.len()],
        };
        runs.push(("same kernels, all", load(PackedPolicy::AsStored, &all)?));
        runs.push(("by the rules", load(PackedPolicy::AsStored, &own)?));
    }
    let prompt: Vec<u32> = (0..8).map(|i| i % checkpoint.config().vocab_size as u32).collect();
    context.out.message("timing");
    let models: Vec<&CausalLm> = runs.iter().map(|r| &r.1).collect();
    let times = measure::decode_ms(&models, &prompt, args.tokens, 3)?;
    context.out.message("measuring how fast memory reads");
    let roof = bandwidth::measure_read(context.threads, 5 << 28)?;
    let floor = |model: &CausalLm| model.weight_bytes() as f64 / roof / 1e6;
    let at = |name: &str| runs.iter().position(|r| r.0 == name);
    let entry = |name: &str| {
        at(name).map(|i| (i, &runs[i].1)).map(|(i, model)| {
            json!({
                "ms_per_token": times[i],
                "weight_bytes": model.weight_bytes(),
                "ms_at_read_rate": floor(model),
                "kernels": kernels_of(model),
            })
        })
    };
    let speedup = at("as stored").map(|i| times[0] / times[i]);
    let of_rules = at("by the rules").zip(at("same kernels, all"));
    // The fastest way of leaving nothing out is what leaving out is compared with.
    let rules_speedup = of_rules.map(|(i, all)| times[0].min(times[all]) / times[i]);
    let realised = of_rules.map(|(i, _)| runs[i].1.take_realised());
    let value = json!({
        "model": arg.label(),
        "threads": context.threads,
        "cpu": measure::cpu_name(),
        "read_gb_per_s": roof,
        "tokens": args.tokens,
        "dense": entry("dense"),
        "stored": entry("as stored"),
        "speedup": speedup,
        "same_kernels": entry("same kernels, all"),
        "by_rules": entry("by the rules"),
        "rules_speedup": rules_speedup,
        "realised": realised,
        "packed": is_packed,
    });
    let mut table =
        context.out.numbers(&["run", "ms/token", "tokens/s", "weights in memory", "ms at the read rate"]);
    for ((name, model), ms) in runs.iter().zip(&times) {
        table.add_row([
            (*name).to_owned(),
            format!("{ms:.3}"),
            format!("{:.1}", 1e3 / ms),
            bytes(model.weight_bytes() as u64),
            format!("{:.3}", floor(model)),
        ]);
    }
    let mut text = format!(
        "{}, {} threads; memory reads {roof:.1} GB/s\n{table}\n",
        measure::cpu_name(),
        context.threads
    );
    for (name, model) in &runs {
        let counts: Vec<String> =
            kernels_of(model).iter().map(|(kernel, n)| format!("{n} on {kernel}")).collect();
        text += &format!("{name}: linear layers {}\n", counts.join(", "));
    }
    if let Some((speedup, found)) = rules_speedup.zip(realised.as_ref()) {
        text +=
            &format!("by the rules: {speedup:.2}x the faster of the dense runs\n{}", realised_lines(found));
    }
    text += &match speedup {
        Some(speedup) => format!("as stored: {speedup:.2}x the dense speed\n"),
        None if rules_speedup.is_some() => String::new(),
        None => "nothing in this folder is packed: `rarefy convert MODEL -o OUT --format packed` packs it\n"
            .into(),
    };
    context.out.result(&text, &value)
}

/// How many layers run on which kernel.
fn kernels_of(model: &CausalLm) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (_, linear) in model.linears() {
        let name = linear.kernel().map_or("matrix product", |k| k.name());
        *counts.entry(name.to_owned()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shapes_by_name_and_number() {
        assert_eq!(parse_shape("llama-7b-down").unwrap(), (4096, 11008));
        assert_eq!(parse_shape("12x34").unwrap(), (12, 34));
        for bad in ["0x4", "x", "12", "12x-4", "99999999999999999999x1"] {
            assert_eq!(parse_shape(bad).unwrap_err().exit_code(), 2);
        }
        assert!(parse_shape("llama-7b-dwn").unwrap_err().render().contains("llama-7b-down"));
    }
}
