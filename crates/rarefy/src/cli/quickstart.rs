//! `rarefy quickstart`: the main job on the built-in model, in one report.

use std::path::PathBuf;

use super::{CliError, CliResult, Context, bytes, percent, write_atomic};
use crate::report::{QuickstartReport, render};
use crate::{pipeline, quickstart};

/// Arguments of `rarefy quickstart`.
#[derive(Debug, clap::Args)]
pub(crate) struct QuickstartArgs {
    /// Report to write, HTML
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Keep the pruned folders here [default: they are removed at the end]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

pub(crate) fn run(args: &QuickstartArgs, context: &Context) -> CliResult {
    // A report that cannot be written is better known now than in three minutes.
    let folder = args.output.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|f| !f.is_dir()) {
        return Err(CliError::usage(
            format!("the folder `{}` of the report does not exist", folder.display()),
            "create it, or give another file with `-o`",
        ));
    }
    let scratch;
    let below = match &args.keep {
        Some(keep) => {
            std::fs::create_dir_all(keep)
                .map_err(|e| CliError::failed(format!("cannot create `{}`", keep.display()), e))?;
            keep.clone()
        }
        None => {
            scratch = pipeline::scratch()?;
            scratch.path().to_owned()
        }
    };
    let total = quickstart::steps();
    let mut progress = context.out.progress("quickstart", total);
    let mut step = 0;
    let report = quickstart::run(&below, context.seed.unwrap_or(0), &mut |text| {
        progress.set(step);
        step += 1;
        progress.label(text);
        progress.line(&format!("[{step}/{total}] {text}"));
    });
    progress.finish();
    let report = report?;
    write_atomic(&args.output, &render(&report)?)?;
    let value =
        serde_json::to_value(&report).map_err(|e| CliError::failed("cannot write the result as JSON", e))?;
    context.out.result(&text(&report, context), &value)?;
    context.out.message(&format!("report: {}", args.output.display()));
    Ok(())
}

fn text(report: &QuickstartReport, context: &Context) -> String {
    let model = &report.model;
    let mut table = context.out.numbers(&[
        "model",
        "zeros",
        "perplexity",
        "on disk",
        "in memory",
        "ms/token",
        "s to prune",
    ]);
    if let Some(dense) = model.rows.first() {
        for row in &model.rows {
            let beside = |text: String, value: f64, base: f64| {
                if row.method == "dense" { text } else { format!("{text} ({:.2}x)", value / base) }
            };
            table.add_row([
                if row.method == "dense" {
                    "dense".into()
                } else {
                    format!("{} {}", row.method, row.pattern)
                },
                percent(row.sparsity),
                beside(format!("{:.3}", row.ppl), row.ppl, dense.ppl),
                beside(bytes(row.disk_bytes), row.disk_bytes as f64, dense.disk_bytes as f64),
                beside(bytes(row.resident_bytes), row.resident_bytes as f64, dense.resident_bytes as f64),
                beside(format!("{:.3}", row.ms_per_token), row.ms_per_token, dense.ms_per_token),
                if row.method == "dense" { "–".into() } else { format!("{:.1}", row.prune_seconds) },
            ]);
        }
    }
    let mut kernels = context.out.numbers(&["kernel", "zeros", "ms", "MB", "GB/s", "faster than dense"]);
    for row in &report.kernels.kernels {
        kernels.add_row([
            format!("{} {}", row.kernel, row.dtype),
            format!("{:.0} %", row.sparsity * 100.0),
            format!("{:.2}", row.ms),
            format!("{:.1}", row.bytes as f64 / 1e6),
            format!("{:.1}", row.gb_per_s),
            format!("{:.2}x", row.speedup),
        ]);
    }
    let floor = model
        .floor_ppl
        .map_or_else(String::new, |f| format!("Entropy floor of the text: perplexity {f:.3}.\n"));
    let notes: String = report.notes.iter().map(|n| format!("- {n}\n")).collect();
    format!(
        "{}, {:.2} million parameters; {}, {} threads\n{floor}{table}\n\none matrix of {} x {}; memory reads {:.1} GB/s\n\
         {kernels}\n\n{notes}{:.0} s in all\n",
        model.name,
        model.parameters as f64 / 1e6,
        report.machine.cpu,
        report.machine.threads,
        report.kernels.rows,
        report.kernels.cols,
        report.machine.read_gb_per_s,
        report.seconds
    )
}
