//! A run in progress: which blocks and layers are written, and how the rest is made.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_checkpoint::{
    Checkpoint, CheckpointWriter, DType, OutTensor, OutputFormat, layout::LinearSpec, round_trip, to_dtype,
};
use rarefy_models::Block;
use xxhash_rust::xxh3::xxh3_64;

use super::stream::{Activations, input_of, is_set};
use super::{Event, Plan, Progress, PruneRun};
use crate::{LayerReport, LayerStats, LinearLayer, PruneError, Warning};

/// The report as reading it back from the journal gives it: decimal text does not keep the last
/// bit of every number, and an interrupted run must end with the same record.
fn as_stored(report: LayerReport) -> LayerReport {
    let mut report = report;
    for _ in 0..8 {
        let text = serde_json::to_string(&report);
        let Some(back) = text.ok().and_then(|t| serde_json::from_str::<LayerReport>(&t).ok()) else {
            break;
        };
        let back = LayerReport { seconds: report.seconds, ..back };
        if back == report {
            break;
        }
        report = back;
    }
    report
}

fn block_part(block: usize) -> String {
    format!("block-{block:05}")
}

/// Part of a single layer, used when a run stops inside a block.
fn layer_part(block: usize, layer: &LinearSpec) -> String {
    format!("{}.{}", block_part(block), layer.name)
}

/// A run in progress.
pub(super) struct Job<'a> {
    pub(super) run: &'a PruneRun,
    pub(super) source: &'a Checkpoint,
    pub(super) out: &'a Path,
    pub(super) plan: &'a Plan,
    pub(super) writer: CheckpointWriter,
    pub(super) progress: &'a mut dyn Progress,
    pub(super) cancel: &'a AtomicBool,
}

/// A pruned layer that is not written yet.
struct Pruned {
    spec: LinearSpec,
    tensor: OutTensor,
    report: LayerReport,
}

impl Job<'_> {
    /// All blocks in order; returns one report per pruned layer.
    pub(super) fn blocks(&mut self, calibration: &[Vec<u32>]) -> Result<Vec<LayerReport>, PruneError> {
        let n = self.plan.blocks.len();
        let is_finished = |b: usize| self.plan.blocks[b].is_empty() || self.writer.is_done(&block_part(b));
        // Activations are needed up to the last block with work to do.
        let last_open = (0..n).rev().find(|&b| !is_finished(b));
        let resumed: Vec<usize> = (0..n).filter(|&b| self.writer.is_done(&block_part(b))).collect();
        let layers = self.plan.layers();
        let layers_resumed = resumed.iter().map(|&b| self.plan.blocks[b].len()).sum();
        self.progress.event(&Event::Started { blocks: n, layers, resumed: resumed.len(), layers_resumed });
        let calibrated = self.run.pruner.needs().any();
        let mut activations = match last_open {
            Some(_) if calibrated && !is_set(self.cancel) => {
                Some(Activations::embed(self.source, calibration)?)
            }
            _ => None,
        };
        let mut reports = Vec::with_capacity(layers);
        for b in 0..n {
            if is_set(self.cancel) {
                return Err(self.cancelled());
            }
            let started = Instant::now();
            self.progress.event(&Event::BlockStarted { block: b, blocks: n });
            let goes_on = last_open.is_some_and(|last| b < last);
            reports.extend(match activations.as_mut() {
                Some(x) if last_open.is_some_and(|last| b <= last) => self.calibrated_block(b, x, goes_on)?,
                _ => self.plain_block(b)?,
            });
            self.source.release_pages();
            let elapsed = started.elapsed();
            self.progress.event(&Event::BlockDone { block: b, blocks: n, elapsed });
        }
        Ok(reports)
    }

    /// A block without activations: a method without needs, or a block finished earlier.
    fn plain_block(&mut self, b: usize) -> Result<Vec<LayerReport>, PruneError> {
        if let Some(done) = self.stored_block(b)? {
            return Ok(done);
        }
        let mut stored = self.stored_layers(b)?;
        let stats = LayerStats::none();
        let mut pruned = Vec::new();
        for spec in &self.plan.blocks[b] {
            if stored.contains_key(&spec.name) {
                continue;
            }
            if is_set(self.cancel) {
                self.save_layers(b, pruned)?;
                return Err(self.cancelled());
            }
            let weight = self.source.read_f32(&spec.tensor)?;
            let (done, _) = self.prune_layer(b, spec, weight, &stats)?;
            pruned.push(done);
        }
        self.write_block(b, pruned, &mut stored)
    }

    fn calibrated_block(
        &mut self,
        b: usize,
        x: &mut Activations,
        goes_on: bool,
    ) -> Result<Vec<LayerReport>, PruneError> {
        let mut block = Block::load(self.source, b, x.device())?;
        self.source.release_pages();
        let reports = match self.stored_block(b)? {
            Some(reports) => {
                self.restore(b, &mut block)?;
                reports
            }
            None => self.prune_block(b, &mut block, x)?,
        };
        if goes_on {
            let of = x.len();
            let progress = &mut *self.progress;
            let finished = x.advance(&block, self.cancel, &mut |done| {
                progress.event(&Event::Sequence { block: b, done, of, collecting: false });
            })?;
            if !finished {
                return Err(self.cancelled());
            }
        }
        Ok(reports)
    }

    /// Steps (a) and (b).
    fn prune_block(
        &mut self,
        b: usize,
        block: &mut Block,
        x: &Activations,
    ) -> Result<Vec<LayerReport>, PruneError> {
        let mut stored = self.stored_layers(b)?;
        let open: Vec<LinearSpec> =
            self.plan.blocks[b].iter().filter(|spec| !stored.contains_key(&spec.name)).cloned().collect();
        let of = x.len();
        let progress = &mut *self.progress;
        let collected = x.collect(block, &open, self.run.pruner.needs(), self.cancel, &mut |done| {
            progress.event(&Event::Sequence { block: b, done, of, collecting: true });
        })?;
        let Some(mut stats) = collected else { return Err(self.cancelled()) };
        let mut pruned = Vec::new();
        for (i, spec) in open.iter().enumerate() {
            if is_set(self.cancel) {
                self.save_layers(b, pruned)?;
                return Err(self.cancelled());
            }
            let input = input_of(&spec.name);
            let missing = || PruneError::MissingStatistic {
                layer: spec.tensor.clone(),
                statistic: "calibration input",
            };
            let weight = block.weight(&spec.name)?;
            let (done, weight) = self.prune_layer(b, spec, weight, stats.get(input).ok_or_else(missing)?)?;
            block.set_weight(&spec.name, weight)?;
            pruned.push(done);
            if !open[i + 1..].iter().any(|s| input_of(&s.name) == input) {
                stats.remove(input);
            }
        }
        for name in stored.keys() {
            self.restore_layer(b, name, block)?;
        }
        self.write_block(b, pruned, &mut stored)
    }

    /// Prunes one layer and rounds it; returns it ready to be written, and its rounded weight.
    fn prune_layer(
        &mut self,
        b: usize,
        spec: &LinearSpec,
        weight: Vec<f32>,
        stats: &LayerStats,
    ) -> Result<(Pruned, Vec<f32>), PruneError> {
        let started = Instant::now();
        let dtype = self.source.tensors().get(&spec.tensor).map_or(DType::F32, |t| t.dtype);
        let mut layer = LinearLayer::new(spec.tensor.clone(), spec.rows, spec.cols, weight)?;
        // Each layer has its own stream, so that neither order nor interruption matters.
        let mut rng = ChaCha8Rng::seed_from_u64(self.run.settings.seed);
        rng.set_stream(xxh3_64(spec.tensor.as_bytes()));
        let mut report = self.run.pruner.prune(&mut layer, stats, &mut rng)?;
        let LinearLayer { mut weight, grid, .. } = layer;
        round_trip(&mut weight, dtype);
        let mut zeros = 0;
        for w in &mut weight {
            if !w.is_finite() {
                return Err(PruneError::OutOfRange { layer: spec.tensor.clone(), dtype });
            }
            if *w == 0.0 {
                *w = 0.0; // never −0.0: packed formats do not keep its sign
                zeros += 1;
            }
        }
        if zeros > report.pruned {
            report.warnings.push(Warning::RoundedToZero { count: zeros - report.pruned });
        }
        report.pruned = zeros;
        report.kept = weight.len() - zeros;
        report.seconds = started.elapsed().as_secs_f64();
        let report = as_stored(report);
        self.progress.event(&Event::LayerDone { block: b, report: &report });
        let tensor = OutTensor {
            name: spec.tensor.clone(),
            shape: vec![spec.rows, spec.cols],
            dtype,
            data: to_dtype(&weight, dtype),
            pattern: Some(self.run.pruner.pattern()),
            quant: grid.and_then(|g| self.stored_grid(g)),
        };
        Ok((Pruned { spec: spec.clone(), tensor, report }, weight))
    }

    /// Our unsigned codes as the writer's signed ones; only the quantised format stores them.
    fn stored_grid(&self, grid: crate::QuantGrid) -> Option<rarefy_checkpoint::QuantGrid> {
        let OutputFormat::PackQuantized { group, .. } = self.run.settings.format else {
            return None;
        };
        let middle = 1_i32 << (grid.bits - 1);
        let whole_row = grid.groups_per_row == 1;
        Some(rarefy_checkpoint::QuantGrid {
            bits: grid.bits,
            group: if whole_row && group == 0 { 0 } else { grid.group },
            zero_point: Some(grid.zero.iter().map(|z| z - middle).collect()),
            scale: grid.scale,
        })
    }

    fn write_block(
        &mut self,
        b: usize,
        pruned: Vec<Pruned>,
        stored: &mut BTreeMap<String, LayerReport>,
    ) -> Result<Vec<LayerReport>, PruneError> {
        if self.plan.blocks[b].is_empty() {
            return Ok(Vec::new());
        }
        let mut tensors = Vec::with_capacity(pruned.len());
        for layer in pruned {
            stored.insert(layer.spec.name, layer.report);
            tensors.push(layer.tensor);
        }
        let reports: Vec<LayerReport> =
            self.plan.blocks[b].iter().filter_map(|spec| stored.remove(&spec.name)).collect();
        let part = block_part(b);
        let note = serde_json::to_value(&reports)
            .map_err(|e| PruneError::Journal { part: part.clone(), message: e.to_string() })?;
        self.writer.write_part(&part, tensors, note)?;
        Ok(reports)
    }

    /// Saves the layers of an unfinished block one by one.
    fn save_layers(&mut self, b: usize, pruned: Vec<Pruned>) -> Result<(), PruneError> {
        for layer in pruned {
            let part = layer_part(b, &layer.spec);
            let note = serde_json::to_value(&layer.report)
                .map_err(|e| PruneError::Journal { part: part.clone(), message: e.to_string() })?;
            self.writer.write_part(&part, vec![layer.tensor], note)?;
        }
        Ok(())
    }

    /// Reports of a block written earlier; an empty block has none and is always written.
    fn stored_block(&self, b: usize) -> Result<Option<Vec<LayerReport>>, PruneError> {
        if self.plan.blocks[b].is_empty() {
            return Ok(Some(Vec::new()));
        }
        let part = block_part(b);
        if !self.writer.is_done(&part) {
            return Ok(None);
        }
        self.note(&part).map(Some)
    }

    /// Reports of single layers written earlier, by name.
    fn stored_layers(&self, b: usize) -> Result<BTreeMap<String, LayerReport>, PruneError> {
        let mut stored = BTreeMap::new();
        for spec in &self.plan.blocks[b] {
            let part = layer_part(b, spec);
            if self.writer.is_done(&part) {
                stored.insert(spec.name.clone(), self.note(&part)?);
            }
        }
        Ok(stored)
    }

    fn note<T: serde::de::DeserializeOwned>(&self, part: &str) -> Result<T, PruneError> {
        let note = self.writer.read_note(part).unwrap_or_default();
        serde_json::from_value(note)
            .map_err(|e| PruneError::Journal { part: part.into(), message: e.to_string() })
    }

    /// Puts the stored weights of a finished block back.
    fn restore(&self, b: usize, block: &mut Block) -> Result<(), PruneError> {
        for spec in &self.plan.blocks[b] {
            self.restore_layer(b, &spec.name, block)?;
        }
        Ok(())
    }

    fn restore_layer(&self, b: usize, name: &str, block: &mut Block) -> Result<(), PruneError> {
        let Some(spec) = self.plan.blocks[b].iter().find(|s| s.name == name) else {
            return Ok(());
        };
        let single = layer_part(b, spec);
        let part = if self.writer.is_done(&single) { single } else { block_part(b) };
        let weight = self.writer.read_part_f32(&part, &spec.tensor)?;
        Ok(block.set_weight(&spec.name, weight)?)
    }

    fn cancelled(&self) -> PruneError {
        let blocks = self.plan.blocks.len();
        PruneError::Cancelled {
            blocks_done: (0..blocks).filter(|&b| self.writer.is_done(&block_part(b))).count(),
            blocks,
            output: self.out.into(),
        }
    }
}
