//! The driver: streams a model through a method, one block resident at a time.
//!
//! For each block: (a) all calibration sequences go through the still dense block, whose inputs
//! come from already pruned predecessors, and the statistics the method asks for are collected;
//! (b) every selected linear layer is pruned, rounded to the storage type and written durably;
//! (c) the sequences go through the pruned block, rounded exactly as stored, and replace the
//! activations. Methods that need no statistics skip (a) and (c). Embeddings, output layer, norms
//! and biases are never touched.
//!
//! A run can be stopped at any moment. Blocks that were written are not pruned again: on resuming
//! their stored weights are read back and only the activations are computed, which gives the same
//! bits as an uninterrupted run.

mod filter;
mod job;
mod plan;
mod report;
mod stream;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rarefy_checkpoint::{Checkpoint, CheckpointWriter, DType, OutputFormat, layout, layout::LinearSpec};
use rarefy_sparsity::Pattern;
use xxhash_rust::xxh3::Xxh3;

pub use filter::LayerFilter;
pub use plan::{MemoryItem, MemoryPhase, MemoryPlan};
pub use report::{Calibration, Event, Progress, PruneReport, SkippedLayer, Totals};

pub(crate) use self::stream::observe;

use self::job::Job;
use crate::{LayerPruner, PruneError, SettingError, methods};

/// Settings of a run that do not belong to the method.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSettings {
    /// Layers to prune.
    pub filter: LayerFilter,
    /// Storage of the pruned layers.
    pub format: OutputFormat,
    /// Replace an existing output folder, at the end.
    pub overwrite: bool,
    /// Seed of methods that draw.
    pub seed: u64,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self { filter: LayerFilter::default(), format: OutputFormat::Dense, overwrite: false, seed: 0 }
    }
}

/// A method and how to run it over a model folder.
pub struct PruneRun {
    pruner: Box<dyn LayerPruner>,
    settings: RunSettings,
}

impl std::fmt::Debug for PruneRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PruneRun")
            .field("method", &self.pruner.info().slug)
            .field("method_settings", &self.pruner.settings())
            .field("settings", &self.settings)
            .finish()
    }
}

impl PruneRun {
    /// A run of `pruner`.
    #[must_use]
    pub fn new(pruner: Box<dyn LayerPruner>, settings: RunSettings) -> Self {
        Self { pruner, settings }
    }

    /// A run of the registered method `name` with `method_settings`, a JSON object or null.
    ///
    /// # Errors
    /// [`PruneError::UnknownMethod`], [`PruneError::SettingsFormat`], [`PruneError::Setting`].
    pub fn by_name(
        name: &str,
        method_settings: &serde_json::Value,
        settings: RunSettings,
    ) -> Result<Self, PruneError> {
        Ok(Self::new((methods::find(name)?.build)(method_settings)?, settings))
    }

    /// The method.
    #[must_use]
    pub fn pruner(&self) -> &dyn LayerPruner {
        &*self.pruner
    }

    /// The memory that [`PruneRun::run`] will need for `n_sequences` of `length` tokens.
    #[must_use]
    pub fn predict_memory(&self, source: &Checkpoint, n_sequences: usize, length: usize) -> MemoryPlan {
        let first = layout::prunable(source.config(), 0);
        let dtype =
            first.first().and_then(|l| source.tensors().get(&l.tensor)).map_or(DType::F32, |t| t.dtype);
        MemoryPlan::predict(source.config(), dtype, n_sequences, length, &*self.pruner, self.settings.format)
    }

    /// Prunes `source` into the new folder `out`. `calibration`: token sequences, unused by
    /// methods that need none. Runs on the current rayon pool.
    ///
    /// # Errors
    /// A layout, shape or setting that does not fit, before any work; everything a method, a block
    /// or the writer refuses; [`PruneError::Cancelled`] soon after `cancel` is set, with all
    /// finished layers saved: the same call resumes.
    pub fn run(
        &self,
        source: &Checkpoint,
        calibration: &[Vec<u32>],
        out: &Path,
        progress: &mut dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<PruneReport, PruneError> {
        let started = Instant::now();
        source.check_layout()?;
        self.check_format()?;
        let needs = self.pruner.needs();
        let calibration = if needs.any() { calibration } else { &[] };
        if needs.any() {
            check_calibration(self.pruner.info().slug, source, calibration)?;
        }
        let plan = Plan::new(source, &self.settings.filter, &*self.pruner)?;
        let length = calibration.iter().map(Vec::len).max().unwrap_or(0);
        progress.event(&Event::Planned(&self.predict_memory(source, calibration.len(), length)));

        let mut report = PruneReport {
            method: self.pruner.info().slug.into(),
            settings: self.pruner.settings(),
            filter: self.settings.filter.clone(),
            seed: self.settings.seed,
            format: self.settings.format.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            input_hash: source.content_hash()?,
            calibration: needs.any().then(|| describe(calibration)),
            totals: Totals::default(),
            layers: Vec::new(),
            skipped: plan.skipped.clone(),
            seconds: 0.0,
            output: None,
        };
        let key = run_key(&report)?;
        let writer =
            CheckpointWriter::create(out, source, self.settings.format, &key, self.settings.overwrite)?;
        let mut job = Job { run: self, source, out, plan: &plan, writer, progress, cancel };
        report.layers = job.blocks(calibration)?;
        report.totals = Totals::of(&report.layers, plan.elements_left_out);
        job.progress.event(&Event::Finishing);
        let record = serde_json::to_value(&report)
            .map_err(|e| PruneError::Journal { part: "report".into(), message: e.to_string() })?;
        report.output = Some(job.writer.finish(&record)?);
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    fn check_format(&self) -> Result<(), PruneError> {
        let pattern = self.pruner.pattern();
        match self.settings.format {
            OutputFormat::Sparse24Bitmask
                if !matches!(pattern, Pattern::NM { n: 1 | 2, m: 4 } | Pattern::NM { n: 1, m: 2 }) =>
            {
                Err(SettingError::new(
                    "format",
                    self.settings.format,
                    format!("another format: it stores 2:4, the pattern is {pattern}"),
                )
                .into())
            }
            _ => Ok(()),
        }
    }
}

/// Refuses sequences that the model cannot take.
pub(crate) fn check_calibration(
    method: &'static str,
    source: &Checkpoint,
    calibration: &[Vec<u32>],
) -> Result<(), PruneError> {
    let empty = |what: String| PruneError::EmptyCalibration { method, what };
    if calibration.is_empty() {
        return Err(empty("there is no sequence".into()));
    }
    let (vocab_size, max) = (source.config().vocab_size, source.config().max_positions);
    for (sequence, tokens) in calibration.iter().enumerate() {
        if tokens.is_empty() {
            return Err(empty(format!("sequence {sequence} is empty")));
        }
        if tokens.len() > max {
            return Err(PruneError::SequenceTooLong { sequence, len: tokens.len(), max });
        }
        if let Some(position) = tokens.iter().position(|&t| t as usize >= vocab_size) {
            let token = tokens[position];
            return Err(PruneError::TokenOutOfRange { sequence, position, token, vocab_size });
        }
    }
    Ok(())
}

/// Everything that determines the result, as one word.
fn run_key(report: &PruneReport) -> Result<String, PruneError> {
    let text = serde_json::to_string(report)
        .map_err(|e| PruneError::Journal { part: "report".into(), message: e.to_string() })?;
    let mut hash = Xxh3::new();
    hash.update(text.as_bytes());
    Ok(format!("{}-{:032x}", report.method, hash.digest128()))
}

pub(crate) fn describe(calibration: &[Vec<u32>]) -> Calibration {
    let mut hash = Xxh3::new();
    for tokens in calibration {
        hash.update(&(tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hash.update(&token.to_le_bytes());
        }
    }
    Calibration {
        sequences: calibration.len(),
        tokens: calibration.iter().map(Vec::len).sum(),
        hash: format!("{:032x}", hash.digest128()),
    }
}

/// Which layers are pruned, per block, and which are not.
struct Plan {
    blocks: Vec<Vec<LinearSpec>>,
    skipped: Vec<SkippedLayer>,
    elements_left_out: u64,
}

impl Plan {
    fn new(source: &Checkpoint, filter: &LayerFilter, pruner: &dyn LayerPruner) -> Result<Self, PruneError> {
        let config = source.config();
        let mut plan = Self { blocks: Vec::new(), skipped: Vec::new(), elements_left_out: 0 };
        for b in 0..config.n_layers {
            let mut selected = Vec::new();
            for linear in layout::prunable(config, b) {
                if filter.selects(b, &linear.name) {
                    pruner.check_shape(&linear.tensor, linear.rows, linear.cols)?;
                    selected.push(linear);
                } else {
                    plan.elements_left_out += linear.rows as u64 * linear.cols as u64;
                    plan.skipped.push(SkippedLayer { tensor: linear.tensor, reason: filter.reason() });
                }
            }
            plan.blocks.push(selected);
        }
        if plan.blocks.iter().all(Vec::is_empty) {
            return Err(PruneError::NothingSelected {
                min_layer: filter.min_layer,
                max_layer: filter.max_layer.map_or_else(|| "none".into(), |m| m.to_string()),
                prune_only: filter.prune_only.clone(),
                invert: filter.invert,
            });
        }
        for spec in layout::expected(config) {
            let what = match spec.role {
                layout::Role::Head => "the output layer",
                layout::Role::Projection => "a projection outside the blocks",
                _ => continue,
            };
            let reason = format!("{what} is never pruned");
            plan.skipped.push(SkippedLayer { tensor: spec.name, reason });
        }
        for tensor in source.extra_tensors() {
            let reason = "not part of the known architecture; copied unchanged".into();
            plan.skipped.push(SkippedLayer { tensor, reason });
        }
        Ok(plan)
    }

    fn layers(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }
}
