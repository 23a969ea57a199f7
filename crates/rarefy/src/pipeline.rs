//! One pruned folder, the way `repro` and `quickstart` make it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use rarefy_checkpoint::{Checkpoint, OutputFormat};
use rarefy_prune::{PruneReport, PruneRun, RunSettings};
use serde_json::Value;

use crate::cli::CliError;

/// What to make.
#[derive(Debug, Clone)]
pub struct Job {
    /// Method, as in `rarefy methods`.
    pub method: String,
    /// Its settings; absent keys have the method's defaults.
    pub settings: Value,
    /// Format of the folder.
    pub format: OutputFormat,
    /// Seed of every random choice.
    pub seed: u64,
}

/// Prunes `source` into the folder `out`, replacing an older model folder there.
///
/// # Errors
/// As [`PruneRun::run`].
pub fn prune(
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    job: &Job,
    out: &Path,
) -> Result<PruneReport, CliError> {
    let settings =
        RunSettings { format: job.format, seed: job.seed, overwrite: true, ..RunSettings::default() };
    let run = PruneRun::by_name(&job.method, &job.settings, settings)?;
    Ok(run.run(source, calibration, out, &mut (), &AtomicBool::new(false))?)
}

/// Scratch folders in use, for the end that runs no destructor.
static IN_USE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder for intermediate results that goes away with the value, and when Ctrl-C ends the program.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).retain(|p| p != self.0.path());
    }
}

/// A new scratch folder.
///
/// # Errors
/// [`CliError::Failed`] when the system's folder for temporary files cannot be written.
pub fn scratch() -> Result<Scratch, CliError> {
    let folder = tempfile::Builder::new().prefix("rarefy-").tempdir().map_err(|e| {
        CliError::failed(format!("cannot create a folder in `{}`", std::env::temp_dir().display()), e)
            .with_hint("set TMPDIR to a folder with a few hundred megabytes of free space")
    })?;
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner).push(folder.path().to_owned());
    Ok(Scratch(folder))
}

/// Removes all scratch folders: the program is about to end.
pub(crate) fn remove_scratch() {
    for folder in IN_USE.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Best effort: files may still be written there.
        let _ = std::fs::remove_dir_all(folder);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scratch_goes_away_with_the_value_and_at_the_end() {
        let first = scratch().unwrap();
        let kept = first.path().to_owned();
        drop(first);
        assert!(!kept.exists());
        let second = scratch().unwrap();
        std::fs::write(second.path().join("f"), "x").unwrap();
        remove_scratch();
        assert!(!second.path().exists());
    }
}
