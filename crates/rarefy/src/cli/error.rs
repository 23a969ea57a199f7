//! What the command line can fail with, how it is shown and which exit code it gives.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Everything a verb can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The request itself cannot be carried out.
    #[error("{message}")]
    Usage {
        /// What is wrong, naming the argument, file or tensor.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A step failed for the reason in `source`.
    #[error("{doing}")]
    Failed {
        /// The step that failed, for example "cannot read `x.toml`".
        doing: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A library refused; its message names the place, what was expected and the remedy.
    #[error(transparent)]
    Library(Box<dyn Error + Send + Sync>),
    /// The work ran to its end but the result misses the target that was asked for.
    #[error("{message}")]
    TargetMissed {
        /// What was missed and by how much.
        message: String,
    },
    /// Ctrl-C; what was finished is saved.
    #[error("interrupted; the finished layers are saved")]
    Interrupted {
        /// The command that goes on from here, when there is one.
        resume: Option<String>,
    },
    /// Ctrl-C; the answer so far is printed and written.
    #[error("interrupted; the answer so far is given")]
    Stopped,
    /// The reader of standard output went away; this is success.
    #[error("standard output was closed")]
    BrokenPipe,
}

impl CliError {
    /// A bad request with a remedy.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// A failed step with its cause.
    pub fn failed(doing: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { doing: doing.into(), source: source.into(), hint: None }
    }

    /// The same error with a remedy, where it can carry one.
    #[must_use]
    pub fn with_hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Usage { message, .. } => Self::Usage { message, hint: Some(text.into()) },
            Self::Failed { doing, source, .. } => Self::Failed { doing, source, hint: Some(text.into()) },
            other => other,
        }
    }

    /// The same error as the cause of a step that failed.
    #[must_use]
    pub fn with_doing(self, doing: &str) -> Self {
        match self {
            Self::Library(source) => Self::Failed { doing: doing.into(), source, hint: None },
            other => other,
        }
    }

    /// The process exit code: 0 done, 1 target not met, 2 error, 130 after Ctrl-C.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::TargetMissed { .. } => 1,
            Self::Interrupted { .. } | Self::Stopped => 130,
            Self::Usage { .. } | Self::Failed { .. } | Self::Library(_) => 2,
        }
    }

    /// The text for standard error: `error: …`, the chain of causes, then `hint: …`.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = match self {
            Self::Interrupted { resume } => {
                let mut text = self.to_string();
                if let Some(command) = resume {
                    let _ = write!(text, "\nresume with: {command}");
                }
                return text;
            }
            Self::Stopped => return self.to_string(),
            Self::TargetMissed { message } => return format!("target not met: {message}"),
            other => format!("error: {other}"),
        };
        let mut shown = self.to_string();
        let mut cause = self.source();
        while let Some(next) = cause {
            let line = next.to_string();
            // Some errors already contain the text of their cause.
            if !shown.contains(&line) {
                let _ = write!(text, "\n  caused by: {line}");
                shown = line;
            }
            cause = next.source();
        }
        let hint = match self {
            Self::Usage { hint, .. } | Self::Failed { hint, .. } => hint.clone(),
            _ => None,
        };
        if let Some(hint) = hint.or_else(|| hint_for_io(self)) {
            let _ = write!(text, "\n\nhint: {hint}");
        }
        text
    }
}

/// A remedy for the operating-system errors users meet most, found anywhere in the chain.
fn hint_for_io(error: &CliError) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(next) = cause {
        if let Some(io) = next.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Some(
                    "free some space or choose another target with `-o`, then give the same \
                     command again: it goes on where it stopped"
                        .into(),
                ),
                std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
                    Some("choose a folder you can write to with `-o`".into())
                }
                _ => None,
            };
        }
        cause = next.source();
    }
    None
}

fn library(error: impl Error + Send + Sync + 'static) -> CliError {
    CliError::Library(Box::new(error))
}

impl From<crate::builtin::BuiltinError> for CliError {
    fn from(error: crate::builtin::BuiltinError) -> Self {
        library(error)
    }
}

impl From<crate::report::ReportError> for CliError {
    fn from(error: crate::report::ReportError) -> Self {
        library(error)
    }
}

impl From<rarefy_data::DataError> for CliError {
    fn from(error: rarefy_data::DataError) -> Self {
        library(error)
    }
}

impl From<crate::classify::ClassifyError> for CliError {
    fn from(error: crate::classify::ClassifyError) -> Self {
        library(error)
    }
}

impl From<rarefy_sparsity::SparsityError> for CliError {
    fn from(error: rarefy_sparsity::SparsityError) -> Self {
        library(error)
    }
}

impl From<rarefy_kernels::KernelError> for CliError {
    fn from(error: rarefy_kernels::KernelError) -> Self {
        library(error)
    }
}

impl From<rarefy_checkpoint::CheckpointError> for CliError {
    fn from(error: rarefy_checkpoint::CheckpointError) -> Self {
        library(error)
    }
}

impl From<rarefy_models::ModelError> for CliError {
    fn from(error: rarefy_models::ModelError) -> Self {
        library(error)
    }
}

impl From<rarefy_prune::PruneError> for CliError {
    fn from(error: rarefy_prune::PruneError) -> Self {
        library(error)
    }
}

impl From<rarefy_solve::SolveError> for CliError {
    fn from(error: rarefy_solve::SolveError) -> Self {
        library(error)
    }
}

impl From<rarefy_train::TrainError> for CliError {
    fn from(error: rarefy_train::TrainError) -> Self {
        library(error)
    }
}

/// The result of a verb.
pub type CliResult<T = ()> = Result<T, CliError>;

/// Reads a text file that the user named.
///
/// # Errors
/// [`CliError::Failed`] naming the file when it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: &Path, what: &str) -> CliResult<String> {
    std::fs::read_to_string(path)
        .map_err(|e| CliError::failed(format!("cannot read {what} `{}`", path.display()), e))
}

/// Writes a file so that it appears complete or not at all.
///
/// # Errors
/// [`CliError::Failed`] naming the file.
pub(crate) fn write_atomic(path: &Path, text: &str) -> CliResult {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary: PathBuf = path.with_file_name(name);
    let outcome = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    outcome.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        CliError::failed(format!("cannot write `{}`", path.display()), e)
    })
}

/// The names among `known` that are nearest to `wanted`, best first, at most three.
#[must_use]
pub(crate) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(score, _)| *score > 0.6)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// "unknown method `x`" with the nearest names as the hint.
#[must_use]
pub(crate) fn unknown(what: &str, wanted: &str, known: &[&str]) -> CliError {
    let near = nearest(wanted, known.iter().copied());
    let list = |names: &[&str]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let hint = if near.is_empty() {
        format!("known: {}", list(known))
    } else {
        format!("nearest: {}; known: {}", list(&near), list(known))
    };
    CliError::usage(format!("unknown {what} `{wanted}`"), hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chain_is_printed_once_and_hint_last() {
        let inner = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let text = CliError::failed("cannot write `a`", inner).render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "error: cannot write `a`");
        assert!(lines[1].starts_with("  caused by: "));
        assert_eq!(lines[2], "");
        assert!(lines[3].starts_with("hint: free some space"));
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn nearest_names_come_first() {
        assert_eq!(nearest("wnda", ["magnitude", "wanda", "sparsegpt"])[0], "wanda");
        assert_eq!(nearest("SparseGTP", ["magnitude", "wanda", "sparsegpt"])[0], "sparsegpt");
        assert!(nearest("zzzz", ["magnitude", "wanda"]).is_empty());
    }

    #[test]
    fn exit_codes() {
        assert_eq!(CliError::usage("a", "b").exit_code(), 2);
        assert_eq!(CliError::TargetMissed { message: "a".into() }.exit_code(), 1);
        assert_eq!(CliError::Interrupted { resume: None }.exit_code(), 130);
        assert_eq!(CliError::BrokenPipe.exit_code(), 0);
    }
}
