//! Where text goes: data on standard output, everything else on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::{CliError, CliResult};

/// The output settings of one run of the command.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// Data as one JSON object instead of text.
    pub(crate) json: bool,
    /// No messages and no progress; errors stay.
    pub(crate) quiet: bool,
    /// How often `-v` was given.
    pub(crate) verbose: u8,
    stderr_is_terminal: bool,
    stdout_is_terminal: bool,
    color: bool,
}

impl Output {
    /// Looks at the terminal and at `NO_COLOR`.
    #[must_use]
    pub(crate) fn new(json: bool, quiet: bool, verbose: u8) -> Self {
        let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            json,
            quiet,
            verbose,
            stderr_is_terminal: std::io::stderr().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            color,
        }
    }

    /// Writes data and a line end to standard output.
    ///
    /// # Errors
    /// [`CliError::BrokenPipe`] when the reader went away, [`CliError::Failed`] otherwise.
    pub(crate) fn data(&self, text: &str) -> CliResult {
        let mut stdout = std::io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| if text.ends_with('\n') { Ok(()) } else { stdout.write_all(b"\n") })
            .and_then(|()| stdout.flush())
            .map_err(stdout_error)
    }

    /// Writes data to standard output as it comes, without a line end.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub(crate) fn stream(&self, text: &str) -> CliResult {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)
    }

    /// Writes one JSON value, indented, to standard output.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub(crate) fn json_value(&self, value: &serde_json::Value) -> CliResult {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| CliError::failed("cannot write the result as JSON", e))?;
        self.data(&text)
    }

    /// The result: `value` with `--json`, else `text`.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub(crate) fn result(&self, text: &str, value: &serde_json::Value) -> CliResult {
        if self.json { self.json_value(value) } else { self.data(text) }
    }

    /// A line on standard error, unless `--quiet`.
    pub(crate) fn message(&self, text: &str) {
        if !self.quiet {
            stderr_line(text);
        }
    }

    /// A line on standard error with `-v` only.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose > 0 && !self.quiet {
            stderr_line(text);
        }
    }

    /// A warning on standard error, even with `--quiet`.
    pub(crate) fn warn(&self, text: &str) {
        stderr_line(&format!("warning: {text}"));
    }

    /// A table for standard output, fitted to the terminal and coloured only there.
    #[must_use]
    pub(crate) fn table(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        if self.stdout_is_terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        if !self.color {
            table.force_no_tty();
        }
        table.set_header(header.iter().copied());
        table
    }

    /// A table whose first column names the row and whose other columns are numbers.
    #[must_use]
    pub(crate) fn numbers(&self, header: &[&str]) -> Table {
        let mut table = self.table(header);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// Starts a progress display of work whose length is not known: a spinner on a terminal, nothing when piped.
    #[must_use]
    pub(crate) fn activity(&self, label: &str) -> Progress {
        if self.quiet || !self.stderr_is_terminal {
            return Progress { kind: Kind::Silent };
        }
        let bar = ProgressBar::new_spinner();
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Progress { kind: Kind::Bar(bar) }
    }

    /// Starts a progress display of `total` steps.
    #[must_use]
    pub(crate) fn progress(&self, label: &str, total: u64) -> Progress {
        if self.quiet {
            return Progress { kind: Kind::Silent };
        }
        if self.stderr_is_terminal {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{msg:28} [{bar:24}] {pos}/{len} {elapsed} (left {eta})";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            bar.set_style(style);
            bar.set_message(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            return Progress { kind: Kind::Bar(bar) };
        }
        Progress {
            kind: Kind::Lines {
                label: label.to_owned(),
                total,
                done: 0,
                started: Instant::now(),
                last: Instant::now(),
            },
        }
    }
}

fn stdout_error(error: std::io::Error) -> CliError {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        CliError::BrokenPipe
    } else {
        CliError::failed("cannot write to standard output", error)
    }
}

/// One line on standard error. A closed standard error is no reason to stop.
pub(crate) fn stderr_line(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.write_all(b"\n"));
}

/// A progress display: a bar on a terminal, a plain line now and then when piped.
#[derive(Debug)]
pub(crate) struct Progress {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Silent,
    Bar(ProgressBar),
    Lines { label: String, total: u64, done: u64, started: Instant, last: Instant },
}

/// Seconds between two plain progress lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Sets the number of finished steps.
    pub(crate) fn set(&mut self, position: u64) {
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Bar(bar) => bar.set_position(position),
            Kind::Lines { label, total, done, started, last } => {
                *done = position;
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let seconds = started.elapsed().as_secs_f64();
                    let left = if position > 0 {
                        let rate = seconds / position as f64;
                        format!(", about {:.0} s left", rate * total.saturating_sub(position) as f64)
                    } else {
                        String::new()
                    };
                    stderr_line(&format!("{label}: {position}/{total}, {seconds:.0} s{left}"));
                }
            }
        }
    }

    /// Counts one more finished step.
    pub(crate) fn step(&mut self) {
        let next = match &self.kind {
            Kind::Silent => return,
            Kind::Bar(bar) => bar.position() + 1,
            Kind::Lines { done, .. } => done + 1,
        };
        self.set(next);
    }

    /// Says what is being done now.
    pub(crate) fn label(&mut self, text: &str) {
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Bar(bar) => bar.set_message(text.to_owned()),
            Kind::Lines { label, .. } => text.clone_into(label),
        }
    }

    /// A line beside the progress display.
    pub(crate) fn line(&self, text: &str) {
        match &self.kind {
            Kind::Silent => {}
            Kind::Bar(bar) => bar.suspend(|| stderr_line(text)),
            Kind::Lines { .. } => stderr_line(text),
        }
    }

    /// Takes the display away.
    pub(crate) fn finish(self) {
        if let Kind::Bar(bar) = self.kind {
            bar.finish_and_clear();
        }
    }
}

/// Bytes as text with decimal units: `1.23 GB`.
#[must_use]
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)];
    let value = n as f64;
    for (unit, size) in UNITS {
        if value >= size || unit == "B" {
            return if unit == "B" { format!("{n} B") } else { format!("{:.2} {unit}", value / size) };
        }
    }
    format!("{n} B")
}

/// A fraction as a percentage with one decimal: `50.0 %`.
#[must_use]
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_000), "1.00 kB");
        assert_eq!(bytes(2_200_000_000), "2.20 GB");
        assert_eq!(percent(0.5), "50.0 %");
    }
}
