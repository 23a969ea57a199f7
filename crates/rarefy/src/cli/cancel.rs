//! Ctrl-C: the first one lets the current layer or iteration finish and saves, the second one stops at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::output::stderr_line;

/// Set by the first Ctrl-C while [`Graceful`] work is going on.
static CANCEL: AtomicBool = AtomicBool::new(false);
/// True while somebody watches [`CANCEL`].
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Installs the handler. A second call does nothing.
pub(super) fn install() {
    let _ = ctrlc::set_handler(|| {
        if WATCHED.load(Ordering::SeqCst) && !CANCEL.swap(true, Ordering::SeqCst) {
            stderr_line(
                "interrupted: finishing the current step and saving; press Ctrl-C again to stop at once",
            );
        } else {
            stderr_line("stopped");
            crate::pipeline::remove_scratch();
            // The only place that ends the process: the user asked for it, and every file that
            // is being written is a temporary one beside its target.
            #[allow(clippy::exit)]
            std::process::exit(130);
        }
    });
}

/// Work that watches the flag: while this value lives the first Ctrl-C only sets it.
#[derive(Debug)]
pub(super) struct Graceful(());

impl Graceful {
    /// Begins such work.
    #[must_use]
    pub(super) fn begin() -> Self {
        WATCHED.store(true, Ordering::SeqCst);
        Self(())
    }

    /// The flag to hand to the library.
    #[must_use]
    pub(super) fn flag(&self) -> &'static AtomicBool {
        &CANCEL
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::SeqCst);
    }
}

/// The arguments of this process as a line for a POSIX shell.
#[must_use]
pub(super) fn command_line() -> String {
    std::env::args_os().map(|a| quote(&a.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// Quotes one argument for a POSIX shell.
fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(quote("a/b-c.d"), "a/b-c.d");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
