//! Dense against sparse on this machine: numbers for one shape, to print or to decide by.
//!
//! One measurement makes random weights, packs them for every kernel asked for, checks each result against the dense
//! kernel, and then times the kernels *interleaved*: each pass runs every kernel once, on the next of several copies
//! of its weights, and reads a part of a large buffer for the roof. All copies together exceed
//! [`BenchSpec::min_bytes`], so a kernel finds its weights in memory and not in the cache, as in a model
//! with many layers. Interleaving lets a noisy neighbour slow all kernels alike: trust ratios more than times.

use std::time::Instant;

use half::{bf16, f16};
use rarefy_sparsity::formats::tiled_csl::Order;
use rarefy_sparsity::formats::{BitmaskPanel, Csr, NmPacked, TiledCsl};

mod quantised;

use crate::bandwidth::{ReadProbe, median};
use crate::{Dense, Gather, Isa, KernelError, LinearKernel, Nm, Panel, Tiled, Value, drive};

/// A kernel to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    DenseF32,
    DenseBf16,
    PanelF32,
    PanelBf16,
    NmF32 {
        n: usize,
        m: usize,
    },
    NmBf16 {
        n: usize,
        m: usize,
    },
    /// Unstructured f32, its non-zeros gathered.
    Gather,
    /// Unstructured f16 in Tiled-CSL, against the dense f32 kernel on the same weights.
    Tiled,
    /// Unstructured codes of 8 bits with an f16 scale per group, or an f32 one per row; activations exact or of 8 bits.
    PanelInt8 {
        group: Option<usize>,
        exact: bool,
    },
    /// Dense codes of 4 or 8 bits with f16 scales per group of columns; activations exact or of 8 bits.
    Quantised {
        bits: u32,
        group: usize,
        exact: bool,
    },
    /// Kept groups of a row as codes of 4 or 8 bits; the sparsity is that of whole groups.
    GroupSparse {
        bits: u32,
        group: usize,
        exact: bool,
    },
}

impl Kind {
    /// The kernels of the standard table: dense and panel, and 2:4, in f32 and bf16.
    pub const STANDARD: [Kind; 6] = [
        Kind::DenseF32,
        Kind::PanelF32,
        Kind::NmF32 { n: 2, m: 4 },
        Kind::DenseBf16,
        Kind::PanelBf16,
        Kind::NmBf16 { n: 2, m: 4 },
    ];

    /// The dense kernel of the same type.
    pub fn dense(self) -> Kind {
        match self {
            Kind::DenseF32 | Kind::PanelF32 | Kind::NmF32 { .. } | Kind::Gather | Kind::Tiled => {
                Kind::DenseF32
            }
            // Four and eight bits are compared with f32; compare among them by [`BenchRow::times`].
            Kind::Quantised { .. } | Kind::GroupSparse { .. } | Kind::PanelInt8 { .. } => Kind::DenseF32,
            Kind::DenseBf16 | Kind::PanelBf16 | Kind::NmBf16 { .. } => Kind::DenseBf16,
        }
    }

    /// Fraction of zeros of this kernel's weights, where unstructured ones have `unstructured`.
    pub fn sparsity(self, unstructured: f64) -> f64 {
        match self {
            Kind::DenseF32 | Kind::DenseBf16 | Kind::Quantised { .. } => 0.0,
            Kind::PanelF32 | Kind::PanelBf16 | Kind::GroupSparse { .. } => unstructured,
            Kind::Gather | Kind::Tiled | Kind::PanelInt8 { .. } => unstructured,
            Kind::NmF32 { n, m } | Kind::NmBf16 { n, m } => 1.0 - n as f64 / m as f64,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::DenseF32 => f.pad("dense f32"),
            Kind::DenseBf16 => f.pad("dense bf16"),
            Kind::PanelF32 => f.pad("panel f32"),
            Kind::PanelBf16 => f.pad("panel bf16"),
            Kind::NmF32 { n, m } => f.pad(&format!("{n}:{m} f32")),
            Kind::NmBf16 { n, m } => f.pad(&format!("{n}:{m} bf16")),
            Kind::Gather => f.pad("gather f32"),
            Kind::Tiled => f.pad("tiled f16"),
            Kind::PanelInt8 { group, exact } => {
                let group = group.map(|g| format!(" g{g}")).unwrap_or_default();
                f.pad(&format!("panel int8{group}{}", if *exact { " exact" } else { "" }))
            }
            Kind::Quantised { bits, group, exact } => {
                f.pad(&format!("int{bits} g{group}{}", if *exact { " exact" } else { "" }))
            }
            Kind::GroupSparse { bits, group, exact } => {
                f.pad(&format!("W{bits} 1x{group}{}", if *exact { " exact" } else { "" }))
            }
        }
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchSpec {
    /// Rows of the weight, `d_out`, at least 1.
    pub rows: usize,
    /// Columns of the weight, `d_in`, at least 1; a multiple of M for N:M kernels.
    pub cols: usize,
    /// Fraction of zeros in the unstructured weights, in [0, 1).
    pub sparsity: f64,
    /// Rows of `x`, at least 1.
    pub n: usize,
    /// Threads, at least 1.
    pub threads: usize,
    /// Timed calls of each kernel, at least 1; after one call each that is not counted.
    pub passes: usize,
    /// Bytes of all copies of all weights together, at least; there are at least two copies.
    pub min_bytes: usize,
    /// Largest [`peak_bytes`](Self::peak_bytes) accepted: what the machine can spare.
    pub max_bytes: usize,
    /// Kernels, each at most once. The dense kernel of each type is added where it is missing.
    pub kinds: Vec<Kind>,
    /// Seed of weights and activations.
    pub seed: u64,
}

impl Default for BenchSpec {
    fn default() -> Self {
        Self {
            rows: 11008,
            cols: 4096,
            sparsity: 0.7,
            n: 1,
            threads: 2,
            passes: 25,
            min_bytes: 5 << 28,
            max_bytes: 12 << 30,
            kinds: Kind::STANDARD.to_vec(),
            seed: 0,
        }
    }
}

/// One kernel's result.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchRow {
    /// The kernel.
    pub kind: Kind,
    /// Bytes of one weight.
    pub bytes: usize,
    /// Bytes relative to the dense kernel of the same type.
    pub bytes_ratio: f64,
    /// Milliseconds of one call: median.
    pub ms: f64,
    /// Fastest call.
    pub ms_min: f64,
    /// Slowest call.
    pub ms_max: f64,
    /// Weight bytes per second at the median, GB/s (10^9).
    pub gb_per_s: f64,
    /// Median over the passes of dense time (same type, same pass) over this kernel's time.
    pub speedup: f64,
    /// Milliseconds of each pass, in order: pass `i` of one kernel ran beside pass `i` of the others.
    pub times: Vec<f64>,
}

/// All results of one [`BenchSpec`].
#[derive(Debug, Clone, PartialEq)]
pub struct BenchReport {
    /// What was measured.
    pub spec: BenchSpec,
    /// Code path used.
    pub isa: Isa,
    /// Copies of each weight.
    pub copies: usize,
    /// Read bandwidth measured between the calls, median, GB/s (10^9).
    pub read_gb_per_s: f64,
    /// One row per kernel.
    pub rows: Vec<BenchRow>,
}

/// Measures `spec`; `on_step` gets a line before each longer step.
///
/// # Errors
/// [`KernelError::Setting`] for a value outside its range, [`KernelError::Wrong`] when a kernel's result differs
/// from the dense kernel's, and what packing or starting threads can raise.
pub fn run(spec: &BenchSpec, on_step: &mut dyn FnMut(&str)) -> Result<BenchReport, KernelError> {
    check(spec)?;
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in &spec.kinds {
        for k in [kind.dense(), *kind] {
            if !kinds.contains(&k) {
                kinds.push(k);
            }
        }
    }
    on_step("packing and checking the weights");
    let x = noise(spec.seed ^ 0x5eed, spec.n * spec.cols);
    let pool = drive::pool(spec.threads)?;
    let make = Weights::new(spec);
    let mut kernels: Vec<Vec<Box<dyn Runs>>> = Vec::new();
    for kind in &kinds {
        kernels.push(vec![pool.install(|| make.checked(*kind, &x, spec.n))?]);
    }
    let one_set: usize = kernels.iter().map(|k| k[0].bytes()).sum();
    let copies = spec.min_bytes.div_ceil(one_set).max(2);
    for (kind, list) in kinds.iter().zip(&mut kernels) {
        on_step(&format!("copying {kind}: {copies} x {:.1} MB", list[0].bytes() as f64 / 1e6));
        while list.len() < copies {
            list.push(list[0].another());
        }
    }
    drop(make);

    const READ_PARTS: usize = 4;
    let probe = ReadProbe::new(spec.min_bytes.clamp(1 << 20, 5 << 28));
    let mut y = vec![0.0; spec.n * spec.rows];
    let mut scratch = vec![0.0; kernels.iter().map(|k| k[0].scratch_len(spec.n)).max().unwrap_or(0)];
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); kinds.len()];
    let mut reads = Vec::new();
    on_step("timing");
    for pass in 0..=spec.passes {
        let rate = pool.install(|| probe.read(pass % READ_PARTS, READ_PARTS));
        if pass > 0 {
            reads.push(rate);
        }
        for (list, times) in kernels.iter().zip(&mut times) {
            let kernel = &list[pass % copies];
            let ms = pool.install(|| {
                let start = Instant::now();
                kernel.forward(&x, spec.n, &mut y, &mut scratch)?;
                Ok::<f64, KernelError>(start.elapsed().as_secs_f64() * 1e3)
            })?;
            if pass > 0 {
                times.push(ms);
            }
        }
    }

    let mut rows = Vec::new();
    for (i, kind) in kinds.iter().enumerate() {
        let dense = kinds.iter().position(|k| *k == kind.dense()).unwrap_or(i);
        let mut ratios: Vec<f64> = times[dense].iter().zip(&times[i]).map(|(d, t)| d / t).collect();
        let mut sorted = times[i].clone();
        let ms = median(&mut sorted);
        let bytes = kernels[i][0].bytes();
        rows.push(BenchRow {
            kind: *kind,
            bytes,
            bytes_ratio: bytes as f64 / kernels[dense][0].bytes() as f64,
            ms,
            ms_min: sorted[0],
            ms_max: sorted[sorted.len() - 1],
            gb_per_s: bytes as f64 / ms / 1e6,
            speedup: median(&mut ratios),
            times: times[i].clone(),
        });
    }
    Ok(BenchReport {
        spec: spec.clone(),
        isa: Isa::detect(),
        copies,
        read_gb_per_s: median(&mut reads),
        rows,
    })
}

/// Milliseconds of the fastest call of the first kernel of `spec`, alone on one weight that stays in the cache if it fits.
pub(crate) fn best_in_cache(spec: &BenchSpec) -> Result<f64, KernelError> {
    check(spec)?;
    let pool = drive::pool(spec.threads)?;
    let kernel = Weights::new(spec).kernel(spec.kinds[0])?;
    let x = noise(spec.seed ^ 0x5eed, spec.n * spec.cols);
    let (mut y, mut scratch) = (vec![0.0; spec.n * spec.rows], vec![0.0; kernel.scratch_len(spec.n)]);
    pool.install(|| {
        let mut best = f64::INFINITY;
        for _ in 0..spec.passes {
            let start = Instant::now();
            kernel.forward(&x, spec.n, &mut y, &mut scratch)?;
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(best)
    })
}

fn check(spec: &BenchSpec) -> Result<(), KernelError> {
    let bad = |field, value: String, allowed| Err(KernelError::Setting { field, value, allowed });
    for (field, value) in [
        ("rows", spec.rows),
        ("cols", spec.cols),
        ("n", spec.n),
        ("threads", spec.threads),
        ("passes", spec.passes),
        ("kinds", spec.kinds.len()),
    ] {
        if value == 0 {
            return bad(field, "0".to_owned(), "at least 1");
        }
    }
    if !(0.0..1.0).contains(&spec.sparsity) {
        return bad("sparsity", spec.sparsity.to_string(), "[0, 1)");
    }
    let tokens = spec.n.checked_mul(spec.cols.max(spec.rows)).and_then(|e| e.checked_mul(4));
    match spec.peak_bytes().zip(tokens).and_then(|(a, b)| a.checked_add(b)) {
        Some(needed) if needed <= spec.max_bytes => Ok(()),
        needed => Err(KernelError::Memory { needed, limit: spec.max_bytes }),
    }
}

impl BenchSpec {
    /// Bytes that [`run`] needs at most for weights and the read probe; `None` when the product overflows.
    ///
    /// The copies of all kernels together have [`min_bytes`](Self::min_bytes), or two of each; while they are made, the
    /// f32 original and one masked copy stand beside them. Only gathered non-zeros can take more than dense f32, half as much again.
    pub fn peak_bytes(&self) -> Option<usize> {
        let dense = self.rows.checked_mul(self.cols)?.checked_mul(4)?;
        // The dense kernels may be added to the list; no packed form is larger than dense f32 by more than rounding.
        let gathered = self.kinds.iter().filter(|k| **k == Kind::Gather).count();
        let set = dense.checked_mul(self.kinds.len().checked_add(2 + gathered)?)?;
        let copies = set.checked_mul(2)?.max(self.min_bytes.checked_add(set)?);
        copies.checked_add(dense.checked_mul(2)?)?.checked_add(self.min_bytes.clamp(1 << 20, 5 << 28))
    }
}

/// A kernel that can be copied, to meet other memory at every call.
trait Runs: LinearKernel {
    fn another(&self) -> Box<dyn Runs>;
}

impl<K: LinearKernel + Clone + 'static> Runs for K {
    fn another(&self) -> Box<dyn Runs> {
        Box::new(self.clone())
    }
}

/// The dense weights every kernel is packed from.
struct Weights<'a> {
    spec: &'a BenchSpec,
    full: Vec<f32>,
}

impl<'a> Weights<'a> {
    fn new(spec: &'a BenchSpec) -> Self {
        Self { spec, full: noise(spec.seed, spec.rows * spec.cols) }
    }

    /// The weights of `kind` with their zeros, as `T`.
    fn masked<T: From32>(&self, kind: Kind) -> Vec<T> {
        let mut out: Vec<T> = self.full.iter().map(|v| T::from_f32(*v)).collect();
        match kind {
            Kind::NmF32 { n, m } | Kind::NmBf16 { n, m } => {
                for (g, group) in out.chunks_mut(m).enumerate() {
                    // Keeps the n positions from a pseudo-random start on: cheap, exact and unaligned.
                    let start = mix(self.spec.seed ^ g as u64) as usize % m;
                    for i in n..m {
                        if let Some(v) = group.get_mut((start + i) % m) {
                            *v = T::default();
                        }
                    }
                }
            }
            _ => {
                if kind == Kind::Tiled {
                    for (v, full) in out.iter_mut().zip(&self.full) {
                        *v = T::from_f32(f16::from_f32(*full).to_f32());
                    }
                }
                let cut = (self.spec.sparsity * (1u64 << 32) as f64) as u64;
                for (i, v) in out.iter_mut().enumerate() {
                    if mix(self.spec.seed.wrapping_add(i as u64) ^ 0xabcd_ef01) >> 32 < cut {
                        *v = T::default();
                    }
                }
            }
        }
        out
    }

    fn kernel(&self, kind: Kind) -> Result<Box<dyn Runs>, KernelError> {
        match kind {
            Kind::DenseF32 | Kind::PanelF32 | Kind::NmF32 { .. } => {
                self.typed::<f32>(kind, &self.masked(kind))
            }
            Kind::DenseBf16 | Kind::PanelBf16 | Kind::NmBf16 { .. } => {
                self.typed::<bf16>(kind, &self.masked(kind))
            }
            Kind::Gather => {
                let matrix = Csr::encode(&self.masked::<f32>(kind), self.spec.rows, self.spec.cols)?;
                Ok(Box::new(Gather::new(&matrix)?))
            }
            Kind::Tiled => {
                let w: Vec<f16> = self.masked::<f32>(kind).iter().map(|v| f16::from_f32(*v)).collect();
                let matrix = TiledCsl::encode(&w, self.spec.rows, self.spec.cols, Order::Shuffled)?;
                Ok(Box::new(Tiled::new(matrix)))
            }
            Kind::Quantised { .. } | Kind::GroupSparse { .. } | Kind::PanelInt8 { .. } => {
                Ok(quantised::make(self, kind)?.0)
            }
        }
    }

    fn typed<T: From32>(&self, kind: Kind, w: &[T]) -> Result<Box<dyn Runs>, KernelError> {
        let (rows, cols) = (self.spec.rows, self.spec.cols);
        Ok(match kind {
            Kind::DenseF32 | Kind::DenseBf16 => Box::new(Dense::new(w, rows, cols)?),
            Kind::PanelF32 | Kind::PanelBf16 => Box::new(Panel::new(BitmaskPanel::encode(w, rows, cols)?)),
            Kind::NmF32 { n, m } | Kind::NmBf16 { n, m } => {
                Box::new(Nm::new(NmPacked::encode(w, rows, cols, n, m)?)?)
            }
            other => self.kernel(other)?,
        })
    }

    /// The kernel, after its result was found equal to the dense kernel's on the same weights.
    fn checked(&self, kind: Kind, x: &[f32], n: usize) -> Result<Box<dyn Runs>, KernelError> {
        if matches!(kind, Kind::Quantised { .. } | Kind::GroupSparse { .. } | Kind::PanelInt8 { .. }) {
            return quantised::checked(self, kind, x, n);
        }
        let dense = match kind.dense() {
            Kind::DenseBf16 => self.typed::<bf16>(Kind::DenseBf16, &self.masked(kind))?,
            _ => self.typed::<f32>(Kind::DenseF32, &self.masked(kind))?,
        };
        if kind == kind.dense() {
            return Ok(dense);
        }
        let kernel = self.kernel(kind)?;
        let (want, found) = (output(&*dense, x, n)?, output(&*kernel, x, n)?);
        match want.iter().zip(&found).position(|(a, b)| a != b) {
            None => Ok(kernel),
            Some(index) => Err(KernelError::Wrong {
                kernel: kernel.name(),
                index,
                expected: want[index],
                found: found[index],
            }),
        }
    }
}

fn output(kernel: &dyn LinearKernel, x: &[f32], n: usize) -> Result<Vec<f32>, KernelError> {
    let mut y = vec![f32::NAN; n * kernel.rows()];
    kernel.forward(x, n, &mut y, &mut vec![f32::NAN; kernel.scratch_len(n)])?;
    Ok(y)
}

/// Types that the benchmark can make from f32.
trait From32: Value {
    fn from_f32(v: f32) -> Self;
}
impl From32 for f32 {
    fn from_f32(v: f32) -> f32 {
        v
    }
}
impl From32 for bf16 {
    fn from_f32(v: f32) -> bf16 {
        bf16::from_f32(v)
    }
}

/// SplitMix64 of a counter.
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `len` values in (-1, 1), none zero.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let value = |i: usize| ((mix(seed.wrapping_add(i as u64)) >> 41) as f32 + 0.5) / (1 << 22) as f32 - 1.0;
    (0..len).map(|i| Some(value(i)).filter(|v| *v != 0.0).unwrap_or(0.5)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn small() -> BenchSpec {
        BenchSpec { rows: 96, cols: 64, n: 2, passes: 3, min_bytes: 1 << 20, ..BenchSpec::default() }
    }

    #[test]
    fn a_small_run_reports_every_kernel() {
        let mut steps = Vec::new();
        let report = run(&small(), &mut |s| steps.push(s.to_owned())).unwrap();
        assert_eq!(report.rows.len(), 6);
        assert!(report.copies >= 2 && !steps.is_empty() && report.read_gb_per_s > 0.0);
        for row in &report.rows {
            assert!(row.ms_min <= row.ms && row.ms <= row.ms_max && row.gb_per_s > 0.0, "{row:?}");
            assert!(row.kind != row.kind.dense() || row.speedup == 1.0 && row.bytes_ratio == 1.0);
        }
    }

    #[test]
    fn the_dense_baseline_is_added_and_the_weights_have_the_sparsity() {
        let spec = BenchSpec { kinds: vec![Kind::PanelBf16, Kind::NmF32 { n: 4, m: 8 }], ..small() };
        let report = run(&spec, &mut |_| {}).unwrap();
        let kinds: Vec<String> = report.rows.iter().map(|r| r.kind.to_string()).collect();
        assert_eq!(kinds, ["dense bf16", "panel bf16", "dense f32", "4:8 f32"]);
        let spec = BenchSpec { rows: 256, cols: 256, ..small() };
        let zeros = Weights::new(&spec).masked::<f32>(Kind::PanelF32).iter().filter(|v| **v == 0.0).count();
        assert!((zeros as f64 / 65536.0 - 0.7).abs() < 0.01, "{zeros}");
    }

    #[test]
    fn settings_are_checked() {
        for bad in [
            BenchSpec { rows: 0, ..small() },
            BenchSpec { threads: 0, ..small() },
            BenchSpec { sparsity: 1.0, ..small() },
            BenchSpec { sparsity: f64::NAN, ..small() },
            BenchSpec { kinds: vec![], ..small() },
        ] {
            assert!(matches!(run(&bad, &mut |_| {}), Err(KernelError::Setting { .. })), "{bad:?}");
        }
        for huge in [
            BenchSpec { rows: usize::MAX, ..small() },
            BenchSpec { rows: 1_000_000, cols: 1_000_000, ..small() },
            BenchSpec { n: usize::MAX / 64, ..small() },
        ] {
            assert!(matches!(run(&huge, &mut |_| {}), Err(KernelError::Memory { .. })), "{huge:?}");
        }
        let odd = BenchSpec { cols: 62, ..small() };
        assert!(matches!(run(&odd, &mut |_| {}), Err(KernelError::Format(_))));
    }
}
