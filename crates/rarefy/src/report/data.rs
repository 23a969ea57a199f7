//! The numbers of a report. They are also what `rarefy quickstart --json` prints.

use serde::Serialize;

/// Everything one quickstart measured.
#[derive(Debug, Clone, Serialize)]
pub struct QuickstartReport {
    /// Version of this program.
    pub version: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Wall time of the whole run, seconds.
    pub seconds: f64,
    /// Where it ran.
    pub machine: Machine,
    /// The language model: dense and pruned.
    pub model: ModelSection,
    /// One large matrix: dense and sparse kernels.
    pub kernels: KernelSection,
    /// What a reader has to know beside the numbers, one sentence each.
    pub notes: Vec<String>,
}

/// Where a measurement ran.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor name and vector instructions.
    pub cpu: String,
    /// Threads used.
    pub threads: usize,
    /// Read bandwidth of memory measured in this run, GB/s (10^9).
    pub read_gb_per_s: f64,
}

/// The dense model and its pruned versions.
#[derive(Debug, Clone, Serialize)]
pub struct ModelSection {
    /// Name of the model.
    pub name: String,
    /// Number of parameters.
    pub parameters: u64,
    /// How perplexity was measured.
    pub convention: String,
    /// Perplexity that the generator of the text itself would have; nothing can go below it in expectation.
    pub floor_ppl: Option<f64>,
    /// How the calibration was drawn.
    pub calibration: String,
    /// The dense model first, then one row per method and pattern.
    pub rows: Vec<ModelRow>,
}

/// One model, dense or pruned and packed.
#[derive(Debug, Clone, Serialize)]
pub struct ModelRow {
    /// `dense`, or the slug of the method.
    pub method: String,
    /// `dense`, `50 %`, `4:8`, `2:4`.
    pub pattern: String,
    /// Fraction of zeros among the weights of pruned linear layers, in [0, 1).
    pub sparsity: f64,
    /// Perplexity on held-out text.
    pub ppl: f64,
    /// Size of the weight files on disk, bytes.
    pub disk_bytes: u64,
    /// Size of the weights in memory while it runs, bytes.
    pub resident_bytes: u64,
    /// Milliseconds to decode one token, median.
    pub ms_per_token: f64,
    /// Seconds to prune; 0 for the dense model.
    pub prune_seconds: f64,
}

/// One matrix shape beyond the cache.
#[derive(Debug, Clone, Serialize)]
pub struct KernelSection {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// One row per kernel.
    pub kernels: Vec<KernelRow>,
}

/// One kernel at one sparsity.
#[derive(Debug, Clone, Serialize)]
pub struct KernelRow {
    /// Name of the kernel.
    pub kernel: String,
    /// Type of the values, `f32` or `bf16`.
    pub dtype: String,
    /// Fraction of zeros.
    pub sparsity: f64,
    /// Milliseconds per product, median.
    pub ms: f64,
    /// Bytes of the stored matrix.
    pub bytes: u64,
    /// Time of our dense kernel of the same type over this time.
    pub speedup: f64,
    /// Bytes read per second, GB/s (10^9).
    pub gb_per_s: f64,
}
