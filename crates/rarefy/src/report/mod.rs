//! The report: one self-contained HTML page with plots as inline SVG, no script and no network.

pub mod charts;
mod data;
mod html;
mod page;
mod solve;

pub use data::{KernelRow, KernelSection, Machine, ModelRow, ModelSection, QuickstartReport};
pub use page::render;
pub use solve::SolveReport;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The drawing library refused a plot.
    #[error("cannot draw the plot \"{title}\": {reason}")]
    Chart {
        /// Title of the plot.
        title: String,
        /// What the drawing library said.
        reason: String,
    },
    /// A plot got a value that cannot be drawn.
    #[error("plot \"{title}\": the value of \"{label}\" is {value}; a finite number above zero is needed")]
    Value {
        /// Title of the plot.
        title: String,
        /// Label of the bar.
        label: String,
        /// The value found.
        value: f64,
    },
}
