//! What a run tells: events while it goes on, a report at the end.

use std::time::Duration;

use rarefy_checkpoint::WriteSummary;
use serde::{Deserialize, Serialize};

use super::{LayerFilter, MemoryPlan};
use crate::LayerReport;

/// Something that happened during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Before any work: the memory that will be needed.
    Planned(&'a MemoryPlan),
    /// The work begins.
    Started {
        /// Blocks of the model.
        blocks: usize,
        /// Layers that are to be pruned, those of finished blocks included.
        layers: usize,
        /// Blocks already finished by an earlier run.
        resumed: usize,
        /// Layers in those blocks.
        layers_resumed: usize,
    },
    /// A block begins.
    BlockStarted {
        /// Its index.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A calibration sequence went through a block.
    Sequence {
        /// Block index.
        block: usize,
        /// Sequences done in this pass.
        done: usize,
        /// Sequences of a pass.
        of: usize,
        /// Whether statistics were collected (first pass) or outputs of the pruned block (second).
        collecting: bool,
    },
    /// A layer was pruned.
    LayerDone {
        /// Block index.
        block: usize,
        /// What happened to it.
        report: &'a LayerReport,
    },
    /// A block was written durably, or had nothing to prune.
    BlockDone {
        /// Its index.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
        /// Time spent on it.
        elapsed: Duration,
    },
    /// All blocks are done; the output folder is being assembled.
    Finishing,
}

/// Receives events.
pub trait Progress {
    /// Called in order, from the thread that runs.
    fn event(&mut self, event: &Event<'_>);
}

/// Ignores everything.
impl Progress for () {
    fn event(&mut self, _event: &Event<'_>) {}
}

/// A layer that was not pruned, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLayer {
    /// Name of the weight.
    pub tensor: String,
    /// Why.
    pub reason: String,
}

/// Counts over all pruned layers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Layers pruned.
    pub layers: usize,
    /// Elements of those layers.
    pub elements: u64,
    /// Zeros among them.
    pub zeros: u64,
    /// `zeros / elements`.
    pub sparsity: f64,
    /// Zeros over the elements of all linear layers inside blocks, pruned or not.
    pub sparsity_of_all_linears: f64,
}

/// The calibration data of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Sequences.
    pub sequences: usize,
    /// Tokens in all of them.
    pub tokens: usize,
    /// XXH3-128 of lengths and tokens.
    pub hash: String,
}

/// Record of a run. The same run gives the same record, interrupted or not: times are not stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Name of the method.
    pub method: String,
    /// Its fully resolved settings.
    pub settings: serde_json::Value,
    /// Which layers were selected.
    pub filter: LayerFilter,
    /// Seed of methods that draw.
    pub seed: u64,
    /// Storage of the pruned layers.
    pub format: String,
    /// Version of this crate.
    pub version: String,
    /// XXH3-128 of the input model.
    pub input_hash: String,
    /// The calibration data, when the method used any.
    pub calibration: Option<Calibration>,
    /// Counts.
    pub totals: Totals,
    /// One entry per pruned layer, in model order.
    pub layers: Vec<LayerReport>,
    /// One entry per layer that was not pruned.
    pub skipped: Vec<SkippedLayer>,
    /// Wall time in seconds.
    #[serde(skip)]
    pub seconds: f64,
    /// What was written.
    #[serde(skip)]
    pub output: Option<WriteSummary>,
}

impl Totals {
    /// Sums up; `all_linears`: elements and present zeros of the linear layers that were left out
    /// are part of `others`.
    pub(super) fn of(layers: &[LayerReport], others: u64) -> Self {
        let elements: u64 = layers.iter().map(|l| (l.kept + l.pruned) as u64).sum();
        let zeros: u64 = layers.iter().map(|l| l.pruned as u64).sum();
        let share = |all: u64| if all == 0 { 0.0 } else { zeros as f64 / all as f64 };
        Self {
            layers: layers.len(),
            elements,
            zeros,
            sparsity: share(elements),
            sparsity_of_all_linears: share(elements + others),
        }
    }
}
