//! The quickstart report as one HTML page.

use std::fmt::Write as _;

use super::ReportError;
use super::charts::{Bar, Bars, Hue, short};
use super::data::{KernelSection, ModelRow, ModelSection, QuickstartReport};
use super::html::{HtmlTable, STYLE, escape};

/// The whole page.
///
/// # Errors
/// [`ReportError`] when a number cannot be drawn.
pub fn render(report: &QuickstartReport) -> Result<String, ReportError> {
    let mut page = String::with_capacity(64 * 1024);
    page.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    // An empty icon, so that no browser asks a server for one.
    page.push_str("<link rel=\"icon\" href=\"data:,\">\n");
    let _ = writeln!(page, "<title>rarefy: {} dense and sparse</title>", escape(&report.model.name));
    let _ = writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>\n<main>");
    header(&mut page, report);
    model(&mut page, &report.model)?;
    kernels(&mut page, &report.kernels, report.machine.read_gb_per_s)?;
    notes(&mut page, report);
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

fn header(page: &mut String, report: &QuickstartReport) {
    let model = &report.model;
    let _ = writeln!(page, "<h1>What pruning does to {}</h1>", escape(&model.name));
    let _ = writeln!(
        page,
        "<p>{:.2} million parameters, pruned by three methods at three patterns, packed and run, \
         each beside the dense model.</p>",
        model.parameters as f64 / 1e6
    );
    let _ = writeln!(
        page,
        "<p class=\"soft\">{}; {} threads; memory read {:.1} GB/s measured in this run; seed {}; \
         rarefy {}; {:.0} s in all.</p>",
        escape(&report.machine.cpu),
        report.machine.threads,
        report.machine.read_gb_per_s,
        report.seed,
        escape(&report.version),
        report.seconds
    );
}

fn figure(page: &mut String, bars: &Bars) -> Result<(), ReportError> {
    let svg = bars.svg()?;
    let _ = writeln!(page, "<figure><figcaption>{}</figcaption>\n{svg}</figure>", escape(&bars.title));
    Ok(())
}

fn hue(method: &str) -> Hue {
    match method {
        "magnitude" => Hue::First,
        "wanda" => Hue::Second,
        "sparsegpt" => Hue::Third,
        _ => Hue::Dense,
    }
}

fn model(page: &mut String, model: &ModelSection) -> Result<(), ReportError> {
    page.push_str("<section>\n<h2>Quality, size and speed</h2>\n");
    let _ = writeln!(page, "<p>{}</p>", escape(&model.convention));
    if let Some(floor) = model.floor_ppl {
        let _ = writeln!(
            page,
            "<p>The text comes from a generator whose entropy is known: no model can be expected to go below {}.</p>",
            short(floor)
        );
    }
    page.push_str(&model_table(model).html());
    page.push_str("<div class=\"plots\">\n");
    figure(page, &perplexity_plot(model))?;
    figure(page, &rows_plot(model, "Milliseconds to decode one token", "ms", |r| r.ms_per_token, short))?;
    let megabytes = |b: u64| b as f64 / 1e6;
    figure(page, &rows_plot(model, "Bytes on disk", "MB", |r| megabytes(r.disk_bytes), short))?;
    figure(page, &rows_plot(model, "Weights in memory", "MB", |r| megabytes(r.resident_bytes), short))?;
    page.push_str("</div>\n");
    let _ = writeln!(page, "<p class=\"soft\">{}</p>\n</section>", escape(&model.calibration));
    Ok(())
}

fn label(row: &ModelRow) -> String {
    if row.method == "dense" { "dense".into() } else { format!("{} {}", row.method, row.pattern) }
}

/// `x` beside the dense value: "3.21 (0.62×)".
fn beside(text: &str, value: f64, dense: f64) -> String {
    format!("{text} ({:.2}×)", value / dense)
}

fn model_table(model: &ModelSection) -> HtmlTable {
    let header = ["model", "zeros", "perplexity", "MB on disk", "MB in memory", "ms/token", "s to prune"];
    let mut rows = Vec::new();
    if let Some(dense) = model.rows.first() {
        for row in &model.rows {
            let is_dense = row.method == "dense";
            let show = |value: f64, base: f64, digits: usize| {
                let text = format!("{value:.digits$}");
                if is_dense { text } else { beside(&text, value, base) }
            };
            rows.push((
                is_dense,
                vec![
                    label(row),
                    format!("{:.1} %", row.sparsity * 100.0),
                    show(row.ppl, dense.ppl, 3),
                    show(row.disk_bytes as f64 / 1e6, dense.disk_bytes as f64 / 1e6, 2),
                    show(row.resident_bytes as f64 / 1e6, dense.resident_bytes as f64 / 1e6, 2),
                    show(row.ms_per_token, dense.ms_per_token, 3),
                    if is_dense { "–".into() } else { format!("{:.1}", row.prune_seconds) },
                ],
            ));
        }
    }
    HtmlTable {
        caption: "In brackets: relative to dense. Pruned models are stored and run packed.".into(),
        header: header.map(String::from).to_vec(),
        rows,
    }
}

fn perplexity_plot(model: &ModelSection) -> Bars {
    let mut references = Vec::new();
    if let Some(floor) = model.floor_ppl {
        references.push(("entropy floor".to_owned(), floor));
    }
    if let Some(dense) = model.rows.first() {
        references.push(("dense".to_owned(), dense.ppl));
    }
    let largest = model.rows.iter().map(|r| r.ppl).fold(0.0, f64::max);
    let smallest = model.rows.iter().map(|r| r.ppl).fold(f64::INFINITY, f64::min);
    let mut plot =
        rows_plot(model, "Perplexity on held-out text, lower is better", "perplexity", |r| r.ppl, short);
    plot.bars.retain(|b| b.label != "dense");
    plot.references = references;
    plot.is_log = largest / smallest > 1.0;
    if plot.is_log {
        plot.axis = "perplexity (logarithmic axis)".into();
    }
    plot
}

fn rows_plot(
    model: &ModelSection,
    title: &str,
    axis: &str,
    value: impl Fn(&ModelRow) -> f64,
    show: impl Fn(f64) -> String,
) -> Bars {
    let mut bars = Vec::new();
    let mut last = String::new();
    for row in &model.rows {
        let v = value(row);
        bars.push(Bar {
            label: label(row),
            value: v,
            text: show(v),
            hue: hue(&row.method),
            starts_group: row.pattern != last,
        });
        last.clone_from(&row.pattern);
    }
    Bars { title: title.into(), axis: axis.into(), bars, references: Vec::new(), is_log: false }
}

fn kernels(page: &mut String, section: &KernelSection, roof: f64) -> Result<(), ReportError> {
    let _ = writeln!(
        page,
        "<section>\n<h2>Where sparsity pays: one matrix of {} × {}</h2>",
        section.rows, section.cols
    );
    let _ = writeln!(
        page,
        "<p>The small model fits in the processor's cache. A layer of a large model does not: there the time is the \
         time to read the weights, and a smaller matrix is a faster one. One product with one vector, against our \
         dense kernel of the same type; memory reads at {roof:.1} GB/s at most.</p>"
    );
    let rows = section
        .kernels
        .iter()
        .map(|k| {
            (
                k.sparsity == 0.0,
                vec![
                    k.kernel.clone(),
                    k.dtype.clone(),
                    format!("{:.0} %", k.sparsity * 100.0),
                    format!("{:.2}", k.ms),
                    format!("{:.1}", k.bytes as f64 / 1e6),
                    format!("{:.1}", k.gb_per_s),
                    format!("{:.2}×", k.speedup),
                ],
            )
        })
        .collect();
    let header = ["kernel", "type", "zeros", "ms", "MB", "GB/s", "faster than dense"];
    let table = HtmlTable {
        caption: "Medians; below 1.00× the dense kernel wins.".into(),
        header: header.map(String::from).to_vec(),
        rows,
    };
    page.push_str(&table.html());
    page.push_str("<div class=\"plots\">\n");
    for dtype in ["f32", "bf16"] {
        let mut bars = Vec::new();
        for kernel in section.kernels.iter().filter(|k| k.dtype == dtype) {
            let is_dense = kernel.sparsity == 0.0;
            bars.push(Bar {
                label: if is_dense {
                    "dense".into()
                } else {
                    format!("{} {:.0} %", kernel.kernel, kernel.sparsity * 100.0)
                },
                value: kernel.ms,
                text: short(kernel.ms),
                hue: if is_dense { Hue::Dense } else { Hue::Second },
                starts_group: false,
            });
        }
        if !bars.is_empty() {
            let title = format!("Milliseconds per product, {dtype}");
            figure(page, &Bars { title, axis: "ms".into(), bars, references: Vec::new(), is_log: false })?;
        }
    }
    page.push_str("</div>\n</section>\n");
    Ok(())
}

fn notes(page: &mut String, report: &QuickstartReport) {
    page.push_str("<section>\n<h2>To read beside the numbers</h2>\n<ul>\n");
    for note in &report.notes {
        let _ = writeln!(page, "<li>{}</li>", escape(note));
    }
    page.push_str("</ul>\n</section>\n");
}
