//! How much memory a run will need, computed before it starts.

use std::fmt;

use rarefy_checkpoint::{DType, ModelConfig, OutputFormat, layout};
use serde::Serialize;

use super::stream::input_of;
use crate::{LayerPruner, Needs};

/// Program, tokenizer, thread stacks: measured on the finished program, x86-64 Linux.
const BASE_BYTES: u64 = 32 << 20;
/// Freed memory that the allocator cannot give back at once: one part in this many, measured as well.
const SLACK: u64 = 24;

/// One thing that takes memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryItem {
    /// What it is.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// What is resident during one step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPhase {
    /// The step.
    pub name: &'static str,
    /// What is resident.
    pub items: Vec<MemoryItem>,
}

impl MemoryPhase {
    /// Sum of the items.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.items.iter().fold(0, |sum, i| sum.saturating_add(i.bytes))
    }
}

/// Upper bound of the resident memory of a run, by step and item. The input is read piece by
/// piece and never resident as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The steps in order; the run needs the largest of them.
    pub phases: Vec<MemoryPhase>,
}

impl MemoryPlan {
    /// Predicts the memory of pruning a model stored as `dtype` with `n_sequences` calibration
    /// sequences of `length` tokens into `format`.
    #[must_use]
    pub fn predict(
        config: &ModelConfig,
        dtype: DType,
        n_sequences: usize,
        length: usize,
        pruner: &dyn LayerPruner,
        format: OutputFormat,
    ) -> Self {
        let u = |v: usize| v as u64;
        let needs = pruner.needs();
        let calibrated = needs.any();
        let (s, l) = if calibrated { (u(n_sequences), u(length)) } else { (0, 0) };
        let d = u(config.hidden_size);
        let f = u(config.intermediate_size);
        let linears = layout::prunable(config, 0);
        let size = |rows: usize, cols: usize| u(rows).saturating_mul(u(cols));
        let block: u64 = linears.iter().map(|x| size(x.rows, x.cols)).sum();
        let largest = linears.iter().map(|x| size(x.rows, x.cols)).max().unwrap_or(0);
        let stored = u(dtype.size());
        let statistics: u64 = linears
            .iter()
            .filter(|x| input_of(&x.name) == x.name)
            .map(|x| statistics_bytes(needs, u(x.cols)))
            .sum();

        let base = MemoryItem { name: "program", bytes: BASE_BYTES };
        let activations = MemoryItem { name: "activations (f32)", bytes: 4 * s * l * d };
        let block_f32 = MemoryItem { name: "one block (f32)", bytes: 4 * block };
        let statistics = MemoryItem { name: "statistics", bytes: statistics };
        let mut working = MemoryItem { name: "one sequence inside the block", bytes: 0 };
        let mut phases = Vec::new();
        if calibrated {
            let table = config.opt.as_ref().map_or(d, |o| u(o.word_embed_proj_dim));
            let positions = config.opt.as_ref().map_or(0, |_| (u(config.max_positions) + 2) * d);
            phases.push(MemoryPhase {
                name: "embedding",
                items: vec![
                    base.clone(),
                    activations.clone(),
                    MemoryItem {
                        name: "embedding table (f32)",
                        bytes: 4 * (u(config.vocab_size).saturating_mul(table) + positions),
                    },
                ],
            });
            let q = u(config.n_heads) * u(config.head_dim);
            let kv = u(config.n_kv_heads) * u(config.head_dim);
            // Input, output, normed input, q, k, v and their rotated copies, attention output.
            let attention = 4 * l * (4 * d + 3 * q + 4 * kv) + 3 * 4 * l * l;
            let mlp = 4 * l * (3 * d + 4 * f);
            // The allocator keeps what the attention used while the feed-forward part runs, and both
            // while the layers are pruned.
            working.bytes = attention + mlp;
            let threads = u(rayon::current_num_threads());
            let gram = if needs.contains(Needs::HESSIAN) { threads * 4 * 128 * d.max(f) } else { 0 };
            phases.push(MemoryPhase {
                name: "forward through a block",
                items: vec![
                    base.clone(),
                    activations.clone(),
                    block_f32.clone(),
                    statistics.clone(),
                    working.clone(),
                    MemoryItem { name: "products of inputs", bytes: gram },
                ],
            });
        }
        // Layer by layer: the statistics of an input are dropped after the last layer that has it.
        let mut waiting = 0;
        for (i, x) in linears.iter().enumerate() {
            let open: u64 = linears
                .iter()
                .filter(|y| input_of(&y.name) == y.name)
                .filter(|y| linears[i..].iter().any(|z| input_of(&z.name) == y.name))
                .map(|y| statistics_bytes(needs, u(y.cols)))
                .sum();
            let mut items = vec![base.clone(), activations.clone()];
            if calibrated {
                let statistics = MemoryItem { name: "statistics", bytes: open };
                items.extend([block_f32.clone(), statistics, working.clone()]);
            }
            let layer = size(x.rows, x.cols);
            waiting += stored * layer;
            items.extend([
                MemoryItem { name: "pruned layers waiting to be written", bytes: waiting },
                MemoryItem { name: "one layer (f32)", bytes: 4 * layer },
                MemoryItem { name: "scratch of the method", bytes: pruner.scratch_bytes(x.rows, x.cols) },
            ]);
            phases.push(MemoryPhase { name: "pruning a layer", items });
        }
        // Packing a layer: a copy in its type and the packed arrays; quantising works in f32.
        let encoding = match format {
            OutputFormat::Dense => 0,
            OutputFormat::PackQuantized { .. } => 10 * largest,
            _ => 2 * stored * largest,
        };
        let mut items = vec![base, activations];
        if calibrated {
            items.extend([block_f32, working]);
        }
        items.extend([
            MemoryItem { name: "pruned layers", bytes: stored * block },
            MemoryItem { name: "one layer being packed", bytes: encoding },
        ]);
        phases.push(MemoryPhase { name: "writing a block", items });
        for phase in &mut phases {
            let bytes = phase.bytes() / SLACK;
            phase.items.push(MemoryItem { name: "gaps of the allocator", bytes });
        }
        Self { phases }
    }

    /// The step that needs most.
    #[must_use]
    pub fn largest_phase(&self) -> Option<&MemoryPhase> {
        self.phases.iter().max_by_key(|p| p.bytes())
    }

    /// Bytes that the run will need at most.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.largest_phase().map_or(0, MemoryPhase::bytes)
    }
}

/// Bytes of the statistics of one distinct input of width `cols`.
fn statistics_bytes(needs: Needs, cols: u64) -> u64 {
    let norms = if needs.any() { 8 * cols } else { 0 };
    let hessian = if needs.contains(Needs::HESSIAN) { 8 * cols * cols } else { 0 };
    norms + hessian
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |b: u64| b as f64 / f64::from(1 << 20);
        write!(f, "peak {:.0} MiB", mib(self.peak_bytes()))?;
        if let Some(phase) = self.largest_phase() {
            write!(f, " while {}", phase.name)?;
            for (i, item) in phase.items.iter().filter(|i| i.bytes > 0).enumerate() {
                let sign = if i == 0 { ": " } else { " + " };
                write!(f, "{sign}{} {:.0}", item.name, mib(item.bytes))?;
            }
        }
        Ok(())
    }
}
