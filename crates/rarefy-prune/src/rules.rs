//! Methods that leave the weights as they are and write rules for running them: which neurons are idle, which tokens are looked at.

use std::path::Path;
use std::time::Instant;

use rarefy_checkpoint::{Checkpoint, CheckpointWriter, OutputFormat, WriteSummary};
use rarefy_models::{ModelError, SparseFiles};
use rarefy_sparsity::MethodInfo;
use serde::Serialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::driver::{check_calibration, describe};
use crate::{Calibration, PruneError};

/// A method that finds rules on a calibration text.
pub trait RuleMethod: Send + Sync {
    /// Name, paper, family, maturity.
    fn info(&self) -> &'static MethodInfo;

    /// The settings as they took effect.
    fn settings(&self) -> Value;

    /// Streams the text through the dense model and finds the rules; the other kind of rules stays empty. `seen` is told the work done and
    /// all work, in sequences through blocks. Call [`calibrate_rules`], which checks the text.
    ///
    /// # Errors
    /// A model without the parts the method treats; activations that are not finite; reading errors.
    fn calibrate(
        &self,
        source: &Checkpoint,
        calibration: &[Vec<u32>],
        seen: &mut dyn FnMut(usize, usize),
    ) -> Result<SparseFiles, PruneError>;
}

/// What [`write_rules`] made.
#[derive(Debug, Clone, Serialize)]
pub struct RuleReport {
    /// Name of the method.
    pub method: &'static str,
    /// Its settings.
    pub settings: Value,
    /// The text.
    pub calibration: Calibration,
    /// The rules in the folder, those included that the source had already.
    #[serde(skip)]
    pub files: SparseFiles,
    /// The folder.
    #[serde(skip)]
    pub output: WriteSummary,
    /// Time of it all.
    pub seconds: f64,
}

/// The rules that `method` finds for `source` on a text of at least one sequence.
///
/// # Errors
/// Sequences the model cannot take, and those of [`RuleMethod::calibrate`].
pub fn calibrate_rules(
    method: &dyn RuleMethod,
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    seen: &mut dyn FnMut(usize, usize),
) -> Result<SparseFiles, PruneError> {
    source.check_layout()?;
    check_calibration(method.info().slug, source, calibration)?;
    method.calibrate(source, calibration, seen)
}

/// Writes the weights of `source`, unchanged (decoded if they are compressed), with the rules that `method` finds into the new folder `out`.
/// Rules of the other kind that the source has already are kept.
///
/// # Errors
/// Those of [`calibrate_rules`] and of the writer; rules of the source that are damaged.
pub fn write_rules(
    method: &dyn RuleMethod,
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    out: &Path,
    overwrite: bool,
    seen: &mut dyn FnMut(usize, usize),
) -> Result<RuleReport, PruneError> {
    let started = Instant::now();
    source.check_layout()?;
    check_calibration(method.info().slug, source, calibration)?;
    let before = SparseFiles::open(source.dir(), source.config()).map_err(ModelError::from)?;
    let mut record = json!({
        "method": method.info().slug,
        "settings": method.settings(),
        "calibration": describe(calibration),
        "version": env!("CARGO_PKG_VERSION"),
        "input_hash": source.content_hash()?,
    });
    let kept: Vec<(&str, Vec<u8>)> = before.to_bytes();
    let key = xxh3_128(format!("{record}{kept:?}").as_bytes());
    let key = format!("{}-{key:032x}", method.info().slug);
    // Before the work, so that a folder in the way is told at once.
    let writer = CheckpointWriter::create(out, source, OutputFormat::Dense, &key, overwrite)?;
    let found = match method.calibrate(source, calibration, seen) {
        Ok(found) => found,
        Err(error) => {
            // Nothing in it could be resumed, and it would be in the way of the next run. The first error is the one that matters.
            let _ = writer.abandon();
            return Err(error);
        }
    };
    let files = SparseFiles {
        activations: found.activations.or(before.activations),
        attention: found.attention.or(before.attention),
    };
    let writer = files.to_bytes().into_iter().fold(writer, |w, (name, bytes)| w.with_file(name, bytes));
    let seconds = started.elapsed().as_secs_f64();
    record["seconds"] = seconds.into();
    let output = writer.finish(&record)?;
    let (settings, calibration) = (method.settings(), describe(calibration));
    Ok(RuleReport { method: method.info().slug, settings, calibration, files, output, seconds })
}
