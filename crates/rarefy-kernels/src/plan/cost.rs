//! The cost model: what is stored of a machine, and the predictions made from it.

use serde::{Deserialize, Serialize};

use crate::bench::Kind;
use crate::drive::{MAX_TOKENS, MIN_PRODUCTS_PER_THREAD, PANEL};

/// Where a kernel finds its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residence {
    /// In the last-level cache or above: small models.
    Cache,
    /// In memory: every layer of a model that is larger than the cache.
    Memory,
}

/// One product to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Rows of the weight, `d_out`.
    pub rows: usize,
    /// Columns of the weight, `d_in`.
    pub cols: usize,
    /// Rows of `x`.
    pub n: usize,
    /// Fraction of zeros of kernels for unstructured weights (or whole groups), in [0, 1].
    pub sparsity: f64,
    /// Where the weights are.
    pub residence: Residence,
}

/// What is known about one kernel on one number of threads. Times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelCost {
    /// Name of the kernel, as [`Kind`] displays it.
    pub kernel: String,
    /// Time of a call beside its work.
    pub call_ns: f64,
    /// Time of a unit of work per pass over the weights.
    pub unit_ns: f64,
    /// Time of a unit of work per row of `x`.
    pub unit_row_ns: f64,
    /// Sparsity and rate at which weights stream from memory, GB/s (10^9); ascending, at least one.
    pub rates: Vec<(f64, f64)>,
    /// Exponent of the overlap of computing and reading.
    pub overlap: f64,
}

/// A calibrated machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Version of this layout: a stored calibration of another version is measured again.
    pub version: u32,
    /// The CPU, as the caller identifies it.
    pub cpu: String,
    /// Threads of the measurement.
    pub threads: usize,
    /// Read bandwidth with these threads, GB/s (10^9).
    pub read_gb_per_s: f64,
    /// Costs with `threads` threads.
    pub kernels: Vec<KernelCost>,
    /// Costs on one thread with weights in the cache; their rates are empty.
    pub single: Vec<KernelCost>,
}

/// A predicted call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    /// Milliseconds.
    pub ms: f64,
    /// Bytes of the weight.
    pub bytes: f64,
}

/// Where a sparse kernel begins to pay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Break {
    /// From this sparsity on.
    At(f64),
    /// At no sparsity up to 99 %.
    Never,
}

impl Calibration {
    /// The layout written by this version.
    pub const VERSION: u32 = 1;

    /// Time and bytes of one call; `None` for a kernel that was not calibrated, or a shape it cannot hold.
    pub fn predict(&self, kind: Kind, work: &Work) -> Option<Prediction> {
        let name = kind.to_string();
        let find = |list: &[KernelCost]| list.iter().find(|k| k.kernel == name).cloned();
        if !kind.holds(work.cols) {
            return None;
        }
        let products = work.rows.saturating_mul(work.cols).saturating_mul(work.n);
        let several = self.threads > 1 && products >= 2 * MIN_PRODUCTS_PER_THREAD;
        let mut cost = find(&self.kernels)?;
        if self.threads > 1 && !several {
            // One thread: its own cost of computing, and memory as fast as the kernel gets it from all threads at most.
            let single = find(&self.single)?;
            cost = KernelCost { rates: cost.rates, overlap: cost.overlap, ..single };
        }
        let bytes = kind.bytes(work.rows, work.cols, work.sparsity);
        let units = kind.units(work.rows, work.cols, work.sparsity);
        Some(Prediction { ms: cost.ns(units, bytes, work) / 1e6, bytes })
    }

    /// The fastest of `kinds` for `work`.
    pub fn choose(&self, kinds: &[Kind], work: &Work) -> Option<(Kind, Prediction)> {
        let all = kinds.iter().filter_map(|k| Some((*k, self.predict(*k, work)?)));
        all.min_by(|a, b| a.1.ms.total_cmp(&b.1.ms))
    }

    /// The lowest sparsity, to half a percent, from which on `kind` is faster than `rival` on the shape of `work`.
    pub fn break_even(&self, kind: Kind, rival: Kind, work: &Work) -> Option<Break> {
        let rival_ms = self.predict(rival, work)?.ms;
        let mut from = Break::Never;
        // Downwards: a gain that is lost again at a lower sparsity ends the range in which it pays.
        for step in (0..=198).rev() {
            let sparsity = f64::from(step) / 200.0;
            if self.predict(kind, &Work { sparsity, ..*work })?.ms >= rival_ms {
                break;
            }
            from = Break::At(sparsity);
        }
        Some(from)
    }
}

impl KernelCost {
    /// Nanoseconds of `units` of work on `bytes` of weights.
    pub(crate) fn ns(&self, units: f64, bytes: f64, work: &Work) -> f64 {
        let compute = self.compute_ns(units, work.n);
        match work.residence {
            Residence::Cache => self.call_ns + compute,
            Residence::Memory => self.call_ns + meet(compute, bytes / self.rate(work.sparsity), self.overlap),
        }
    }

    /// Nanoseconds of computing alone.
    pub(crate) fn compute_ns(&self, units: f64, n: usize) -> f64 {
        units * (self.unit_ns * n.div_ceil(MAX_TOKENS) as f64 + self.unit_row_ns * n as f64)
    }

    /// Bytes per nanosecond at `sparsity`: linear between the measured ones, constant beyond.
    fn rate(&self, sparsity: f64) -> f64 {
        let Some(above) = self.rates.iter().position(|(s, _)| *s >= sparsity) else {
            return self.rates.last().map_or(f64::NAN, |r| r.1);
        };
        let (s1, r1) = self.rates[above];
        let Some((s0, r0)) = above.checked_sub(1).map(|i| self.rates[i]) else { return r1 };
        r0 + (r1 - r0) * (sparsity - s0) / (s1 - s0)
    }
}

/// Two costs that overlap with exponent `p`.
pub(crate) fn meet(a: f64, b: f64, p: f64) -> f64 {
    let most = a.max(b);
    if most <= 0.0 { 0.0 } else { most * ((a / most).powf(p) + (b / most).powf(p)).powf(1.0 / p) }
}

impl Kind {
    /// Whether the kernel can hold a weight of `cols` columns.
    pub fn holds(self, cols: usize) -> bool {
        match self {
            Kind::NmF32 { m, .. } | Kind::NmBf16 { m, .. } => m > 0 && cols.is_multiple_of(m),
            _ => cols > 0,
        }
    }

    /// Bytes of the packed weight, predicted without packing it.
    pub fn bytes(self, rows: usize, cols: usize, sparsity: f64) -> f64 {
        let width = cols;
        let (panels, cols, kept) = (rows.div_ceil(PANEL) as f64, cols as f64, 1.0 - sparsity);
        let slots = panels * PANEL as f64 * cols;
        let nnz = rows as f64 * cols * kept;
        match self {
            Kind::DenseF32 => 4.0 * slots,
            Kind::DenseBf16 => 2.0 * slots,
            // One word of 32 bits per column of a panel, and where each panel begins.
            Kind::PanelF32 => 4.0 * nnz + 4.0 * panels * cols + 8.0 * (panels + 1.0),
            Kind::PanelBf16 => 2.0 * nnz + 4.0 * panels * cols + 8.0 * (panels + 1.0),
            // Two bits a value say where it stands in its group of four; other patterns run as bitmask panels.
            Kind::NmF32 { n: 2, m: 4 } => slots / 2.0 * 4.25,
            Kind::NmBf16 { n: 2, m: 4 } => slots / 2.0 * 2.25,
            Kind::NmF32 { .. } => Kind::PanelF32.bytes(rows, width, self.sparsity(sparsity)),
            Kind::NmBf16 { .. } => Kind::PanelBf16.bytes(rows, width, self.sparsity(sparsity)),
        }
    }

    /// Units of work of one pass: positions that the kernel multiplies.
    pub fn units(self, rows: usize, cols: usize, _sparsity: f64) -> f64 {
        let slots = rows.next_multiple_of(PANEL) as f64 * cols as f64;
        match self {
            Kind::NmF32 { n: 2, m: 4 } | Kind::NmBf16 { n: 2, m: 4 } => slots / 2.0,
            Kind::DenseF32 | Kind::DenseBf16 | Kind::PanelF32 | Kind::PanelBf16 => slots,
            Kind::NmF32 { .. } | Kind::NmBf16 { .. } => slots,
        }
    }
}
