//! The page about one solved problem: numbers and the convergence.

use std::fmt::Write as _;

use plotters::prelude::*;
use rarefy_solve::TracePoint;

use super::ReportError;
use super::html::{HtmlTable, STYLE, escape};

/// What the page shows.
#[derive(Debug, Clone, Copy)]
pub struct SolveReport<'a> {
    /// Class of the problem.
    pub problem: &'a str,
    /// The objective.
    pub formula: &'a str,
    /// Names and values.
    pub rows: &'a [(String, String)],
    /// Progress of the solver.
    pub trace: &'a [TracePoint],
    /// The command that made it.
    pub command: &'a str,
    /// Version of the program.
    pub version: &'a str,
}

impl SolveReport<'_> {
    /// The whole page, without script or network.
    ///
    /// # Errors
    /// [`ReportError::Chart`] when drawing fails.
    pub fn render(&self) -> Result<String, ReportError> {
        let mut page =
            String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        page.push_str("<link rel=\"icon\" href=\"data:,\">\n");
        let _ = writeln!(page, "<title>rarefy solve {}</title>", escape(self.problem));
        let _ = writeln!(page, "<style>\n{STYLE}</style>\n</head>\n<body>\n<main>");
        let _ = writeln!(page, "<h1>{}</h1>\n<p>{}</p>", escape(self.problem), escape(self.formula));
        let table = HtmlTable {
            caption: "What was found".into(),
            header: vec!["quantity".into(), "value".into()],
            rows: self.rows.iter().map(|(n, v)| (false, vec![n.clone(), v.clone()])).collect(),
        };
        page.push_str(&table.html());
        let title = "Residual by seconds";
        match residuals(self.trace)? {
            Some(svg) => {
                let _ = writeln!(page, "<figure><figcaption>{title}</figcaption>\n{svg}</figure>");
            }
            None => {
                page.push_str("<p class=\"soft\">Solved in one step: there is no convergence to draw.</p>\n")
            }
        }
        let _ = writeln!(
            page,
            "<p class=\"soft\">rarefy {}; made by <code>{}</code></p>",
            escape(self.version),
            escape(self.command)
        );
        page.push_str("</main>\n</body>\n</html>\n");
        Ok(page)
    }
}

/// Residuals above zero over time, on a logarithmic axis; `None` with fewer than two of them.
fn residuals(trace: &[TracePoint]) -> Result<Option<String>, ReportError> {
    let points: Vec<(f64, f64)> = trace
        .iter()
        .filter(|p| p.residual > 0.0 && p.residual.is_finite())
        .map(|p| (p.seconds, p.residual))
        .collect();
    if points.len() < 2 {
        return Ok(None);
    }
    let refused = |e: String| ReportError::Chart { title: "Residual by seconds".into(), reason: e };
    let end = points.iter().map(|p| p.0).fold(0.0, f64::max).max(1e-6);
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min) / 2.0;
    let high = points.iter().map(|p| p.1).fold(0.0, f64::max) * 2.0;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (640, 320)).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error>> {
            let mut chart = ChartBuilder::on(&area)
                .margin(8)
                .x_label_area_size(32)
                .y_label_area_size(72)
                .build_cartesian_2d(0.0..end, (low..high).log_scale())
                .map_err(|e| e.to_string())?;
            let ink = RGBColor(0x1A, 0x1A, 0x1A);
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(0xDD, 0xDD, 0xDD))
                .axis_style(RGBColor(0x66, 0x66, 0x66))
                .label_style(("sans-serif", 13).into_font().color(&ink))
                .y_label_formatter(&|v| format!("{v:.0e}"))
                .x_labels(6)
                .y_labels(8)
                .draw()
                .map_err(|e| e.to_string())?;
            let line = RGBColor(0xC7, 0x6B, 0x29);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), line.stroke_width(2)))
                .map_err(|e| e.to_string())?;
            area.present().map_err(|e| e.to_string())?;
            Ok(())
        };
        draw().map_err(|e| refused(e.to_string()))?;
    }
    let label = "<svg class=\"chart\" role=\"img\" aria-label=\"Residual by seconds, logarithmic\" ";
    Ok(Some(svg.replacen("<svg ", label, 1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn point(iteration: usize, residual: f64) -> TracePoint {
        TracePoint { iteration, objective: 1.0, residual, seconds: iteration as f64 * 0.1 }
    }

    #[test]
    fn text_is_escaped_and_the_plot_needs_two_points() {
        let trace: Vec<_> = (0..20).map(|k| point(k, 0.5_f64.powi(k as i32))).collect();
        let rows = [("<b>".to_owned(), "&".to_owned())];
        let mut report = SolveReport {
            problem: "lasso",
            formula: "a < b",
            rows: &rows,
            trace: &trace,
            command: "rarefy solve",
            version: "0",
        };
        let page = report.render().unwrap();
        assert!(page.contains("a &lt; b") && page.contains("&lt;b&gt;") && page.contains("<polyline"));
        assert!(!page.contains("<script"));
        let flat = [point(0, 0.0), point(1, f64::NAN), point(2, 1.0)];
        report.trace = &flat;
        assert!(report.render().unwrap().contains("no convergence to draw"));
    }
}
