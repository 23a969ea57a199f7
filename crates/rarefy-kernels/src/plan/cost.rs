//! The cost model: what is stored of a machine, and the predictions made from it.

use serde::{Deserialize, Serialize};

use crate::bench::Kind;
use crate::drive::{self, PANEL};
use crate::quantised::ROW_GROUP;
use crate::{gather, rows};

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
    /// Time of a unit of work for some numbers of rows of `x`, ascending from 1.
    pub unit_ns: Vec<(usize, f64)>,
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

/// Predictions that differ by less are taken to be equal.
const TIE: f64 = 1.03;

impl Calibration {
    /// The layout written by this version.
    pub const VERSION: u32 = 2;

    /// Time and bytes of one call; `None` for a kernel that was not calibrated, or a shape it cannot hold.
    pub fn predict(&self, kind: Kind, work: &Work) -> Option<Prediction> {
        let name = kind.to_string();
        let find = |list: &[KernelCost]| list.iter().find(|k| k.kernel == name).cloned();
        if !kind.holds(work.cols) {
            return None;
        }
        let several = self.threads > 1 && kind.uses_threads(work);
        let mut cost = find(&self.kernels)?;
        if self.threads > 1 && !several {
            // One thread: its own cost of computing, and memory as fast as the kernel gets it from all threads at most.
            let single = find(&self.single)?;
            cost = KernelCost { rates: cost.rates, overlap: cost.overlap, ..single };
        }
        let bytes = kind.bytes(work.rows, work.cols, work.sparsity);
        let units = kind.units(work.rows, work.cols, work.sparsity);
        let mut ns = cost.ns(units, bytes, work);
        if work.residence == Residence::Memory {
            // No kernel streams its weights faster than memory can be read, whatever the fit says of sparsities not measured.
            ns = ns.max(bytes / self.read_gb_per_s);
        }
        Some(Prediction { ms: ns / 1e6, bytes })
    }

    /// The fastest of `kinds` for `work`; of those that are equally fast, within 3 %, the one that reads least: the predictions cannot tell
    /// them apart, and a busy neighbour slows it least.
    pub fn choose(&self, kinds: &[Kind], work: &Work) -> Option<(Kind, Prediction)> {
        let all = || kinds.iter().filter_map(|k| Some((*k, self.predict(*k, work)?)));
        let fastest = all().map(|a| a.1.ms).min_by(f64::total_cmp)?;
        all().filter(|a| a.1.ms <= TIE * fastest).min_by(|a, b| a.1.bytes.total_cmp(&b.1.bytes))
    }

    /// Whether every kernel of `kinds` is there with numbers that a prediction can be made of: a stored calibration may be damaged.
    pub fn is_usable(&self, kinds: &[Kind]) -> bool {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let computes = |k: &KernelCost| {
            k.call_ns.is_finite()
                && k.call_ns >= 0.0
                && k.unit_ns.first().is_some_and(|u| u.0 == 1)
                && k.unit_ns.windows(2).all(|w| w[0].0 < w[1].0)
                && k.unit_ns.iter().all(|u| u.1.is_finite() && u.1 >= 0.0)
        };
        let streams = |k: &KernelCost| {
            k.overlap.is_finite()
                && k.overlap >= 1.0
                && !k.rates.is_empty()
                && k.rates.windows(2).all(|w| w[0].0 < w[1].0)
                && k.rates.iter().all(|r| positive(r.1))
        };
        let has = |list: &[KernelCost], fits: &dyn Fn(&KernelCost) -> bool| {
            kinds.iter().all(|kind| list.iter().any(|k| k.kernel == kind.to_string()))
                && list.iter().all(|k| computes(k) && fits(k))
        };
        positive(self.read_gb_per_s) && has(&self.kernels, &streams) && has(&self.single, &|_| true)
    }

    /// The lowest sparsity, to half a percent, from which on `kind` is faster than `rival` on the shape of `work`. `residence` says
    /// where the weights of a kernel are at a sparsity.
    pub fn break_even(
        &self,
        kind: Kind,
        rival: Kind,
        work: &Work,
        residence: &dyn Fn(Kind, f64) -> Residence,
    ) -> Option<Break> {
        let at = |kind, sparsity| Work { sparsity, residence: residence(kind, sparsity), ..*work };
        let rival_ms = self.predict(rival, &at(rival, 0.0))?.ms;
        let mut from = Break::Never;
        // Downwards: a gain that is lost again at a lower sparsity ends the range in which it pays.
        for step in (0..=198).rev() {
            let sparsity = f64::from(step) / 200.0;
            if self.predict(kind, &at(kind, sparsity))?.ms >= rival_ms {
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

    /// Nanoseconds of computing alone: on the line between measured numbers of rows; beyond the largest, passes of nearly equal size, as the
    /// kernels cut them.
    pub(crate) fn compute_ns(&self, units: f64, n: usize) -> f64 {
        let Some(&(most, _)) = self.unit_ns.last() else { return f64::NAN };
        let (passes, least) = (n.div_ceil(most.max(1)), n.checked_div(n.div_ceil(most.max(1))).unwrap_or(0));
        let larger = n - passes * least;
        let pass = |rows: usize| between(&self.unit_ns, rows as f64, |n| n as f64);
        units * (larger as f64 * pass(least + 1) + (passes - larger) as f64 * pass(least))
    }

    /// Bytes per nanosecond at `sparsity`: linear between the measured ones, constant beyond.
    fn rate(&self, sparsity: f64) -> f64 {
        between(&self.rates, sparsity, |s| s)
    }
}

/// The value at `x` of the lines through `points`, ascending; constant beyond the first and the last. NaN without points.
fn between<X: Copy>(points: &[(X, f64)], x: f64, number: impl Fn(X) -> f64) -> f64 {
    let Some(above) = points.iter().position(|(at, _)| number(*at) >= x) else {
        return points.last().map_or(f64::NAN, |p| p.1);
    };
    let (x1, y1) = points[above];
    let Some((x0, y0)) = above.checked_sub(1).map(|i| points[i]) else { return y1 };
    let (x0, x1) = (number(x0), number(x1));
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

/// Two costs that overlap with exponent `p`.
pub(crate) fn meet(a: f64, b: f64, p: f64) -> f64 {
    let most = a.max(b);
    if most <= 0.0 { 0.0 } else { most * ((a / most).powf(p) + (b / most).powf(p)).powf(1.0 / p) }
}

impl Kind {
    /// Whether a call is worth a second thread, as the kernels decide it.
    fn uses_threads(self, work: &Work) -> bool {
        let products = work.rows.saturating_mul(work.cols).saturating_mul(work.n);
        match self {
            Kind::Quantised { .. } | Kind::GroupSparse { .. } | Kind::PanelInt8 { .. } | Kind::Tiled => {
                products >= 2 * rows::MIN_PRODUCTS_PER_THREAD
            }
            Kind::Gather => {
                let kept = self.units(work.rows, work.cols, work.sparsity) * work.n as f64;
                kept >= 2.0 * gather::MIN_PRODUCTS_PER_THREAD as f64
            }
            _ => products >= 2 * drive::MIN_PRODUCTS_PER_THREAD,
        }
    }

    /// Whether the kernel can hold a weight of `cols` columns.
    pub fn holds(self, cols: usize) -> bool {
        match self {
            Kind::NmF32 { m, .. } | Kind::NmBf16 { m, .. } => m > 0 && cols.is_multiple_of(m),
            Kind::GroupSparse { group, .. } => group > 0 && cols.is_multiple_of(group),
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
            // Panels of 16 rows; a scale of two bytes per group and, with four bits, a zero point of half a byte.
            Kind::Quantised { bits, group, .. } => {
                let groups = rows.next_multiple_of(16) as f64 * width.div_ceil(group) as f64;
                groups * (group as f64 * f64::from(bits) / 8.0 + quantised_head(bits))
            }
            // The places of the kept groups: a bit for every group, or two bytes for every kept one.
            Kind::GroupSparse { bits, group, .. } => {
                let all = rows as f64 * (width / group.max(1)) as f64;
                let kept = rows as f64 * kept_groups(width, group, sparsity);
                let places = (all / 8.0).min(2.0 * kept);
                kept * (group as f64 * f64::from(bits) / 8.0 + quantised_head(bits))
                    + places
                    + 4.0 * (rows + 1) as f64
            }
            // Two bytes of column index, four in wide weights; filling up the sorted slices is lost in the rounding.
            Kind::Gather => nnz * if width > usize::from(u16::MAX) { 8.0 } else { 6.0 } + 4.5 * rows as f64,
            Kind::Tiled => {
                let tiles = rows.div_ceil(128) as f64 * width.div_ceil(64) as f64;
                // On average one and a half entries fill up a tile.
                4.0 * nnz + (4.0 + 6.0) * tiles + 8.0
            }
            Kind::PanelInt8 { group, .. } => {
                let panels = rows.div_ceil(16) as f64;
                let groups = width.div_ceil(group.unwrap_or(ROW_GROUP)) as f64;
                let masks = 2.0 * group.unwrap_or(ROW_GROUP) as f64;
                let scales = if group.is_some() { 32.0 * groups } else { 64.0 };
                nnz + panels * (groups * masks + scales + 8.0)
            }
            Kind::NmF32 { .. } => Kind::PanelF32.bytes(rows, width, self.sparsity(sparsity)),
            Kind::NmBf16 { .. } => Kind::PanelBf16.bytes(rows, width, self.sparsity(sparsity)),
        }
    }

    /// Units of work of one pass: positions that the kernel multiplies.
    pub fn units(self, rows: usize, cols: usize, sparsity: f64) -> f64 {
        let slots = rows.next_multiple_of(PANEL) as f64 * cols as f64;
        match self {
            Kind::NmF32 { n: 2, m: 4 } | Kind::NmBf16 { n: 2, m: 4 } => slots / 2.0,
            Kind::DenseF32 | Kind::DenseBf16 | Kind::PanelF32 | Kind::PanelBf16 => slots,
            Kind::NmF32 { .. } | Kind::NmBf16 { .. } | Kind::Quantised { .. } | Kind::PanelInt8 { .. } => {
                slots
            }
            Kind::Gather => rows as f64 * cols as f64 * (1.0 - sparsity),
            // Every non-zero is scattered, every place multiplied.
            Kind::Tiled => rows as f64 * cols as f64 * (1.0 - sparsity) + slots / 8.0,
            Kind::GroupSparse { group, .. } => {
                rows as f64 * kept_groups(cols, group, sparsity) * group as f64
            }
        }
    }
}

/// Groups of a row that are kept: `⌊sparsity · groups⌋` are not.
fn kept_groups(cols: usize, group: usize, sparsity: f64) -> f64 {
    let groups = (cols / group.max(1)) as f64;
    groups - (sparsity * groups).floor()
}

/// Bytes of scale and zero point of a group.
fn quantised_head(bits: u32) -> f64 {
    if bits == 4 { 2.5 } else { 2.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bench::{self, BenchSpec};

    fn kinds() -> Vec<Kind> {
        let mut kinds = Kind::STANDARD.to_vec();
        kinds.extend([
            Kind::NmF32 { n: 4, m: 8 },
            Kind::Quantised { bits: 4, group: 32, exact: false },
            Kind::Quantised { bits: 8, group: 128, exact: false },
            Kind::GroupSparse { bits: 4, group: 16, exact: false },
            Kind::Gather,
            Kind::Tiled,
            Kind::PanelInt8 { group: None, exact: false },
            Kind::PanelInt8 { group: Some(128), exact: true },
        ]);
        kinds
    }

    #[test]
    fn bytes_are_those_of_the_packed_weights() {
        for (rows, cols, sparsity) in [(96, 256, 0.5), (512, 1024, 0.9), (45, 128, 0.3)] {
            let spec = BenchSpec {
                rows,
                cols,
                sparsity,
                passes: 1,
                min_bytes: 1,
                kinds: kinds(),
                ..BenchSpec::default()
            };
            for row in bench::run(&spec, &mut |_| ()).unwrap().rows {
                let predicted = row.kind.bytes(rows, cols, sparsity);
                // Buffers are padded by a few lines each.
                let off = (predicted - row.bytes as f64).abs();
                let allowed = 0.03 * row.bytes as f64 + 2048.0;
                assert!(off < allowed, "{} {rows}x{cols}: {predicted} for {}", row.kind, row.bytes);
            }
        }
    }

    fn cost(kind: Kind, unit_ns: f64, gb_per_s: f64) -> KernelCost {
        KernelCost {
            kernel: kind.to_string(),
            call_ns: 0.0,
            unit_ns: vec![(1, unit_ns)],
            rates: vec![(0.5, gb_per_s)],
            overlap: 8.0,
        }
    }

    /// A machine that reads 10 GB/s and computes fast or slowly.
    fn machine(dense_ns: f64, panel_ns: f64) -> Calibration {
        let kernels = vec![cost(Kind::DenseF32, dense_ns, 10.0), cost(Kind::PanelF32, panel_ns, 10.0)];
        Calibration {
            version: Calibration::VERSION,
            cpu: "test".into(),
            threads: 1,
            read_gb_per_s: 10.0,
            single: kernels.clone(),
            kernels,
        }
    }

    fn work(sparsity: f64, residence: Residence) -> Work {
        Work { rows: 1024, cols: 1024, n: 1, sparsity, residence }
    }

    #[test]
    fn a_kernel_bound_by_memory_takes_the_time_of_its_bytes() {
        let m = machine(1e-6, 1e-6);
        let p = m.predict(Kind::DenseF32, &work(0.0, Residence::Memory)).unwrap();
        assert!((p.ms - 4.0 * 1024.0 * 1024.0 / 10.0 / 1e6).abs() < 1e-6, "{p:?}");
        // Half of the values and one bit each: 2.125 of 4 bytes.
        let half = m.predict(Kind::PanelF32, &work(0.5, Residence::Memory)).unwrap();
        assert!((half.ms / p.ms - 2.125 / 4.0).abs() < 1e-3);
        // 4 (1 - s) + 1/8 < 4 from 3.125 % on: 3.5 % in steps of half a percent.
        assert_eq!(
            m.break_even(Kind::PanelF32, Kind::DenseF32, &work(0.0, Residence::Memory), &|_, _| {
                Residence::Memory
            }),
            Some(Break::At(0.035))
        );
        assert_eq!(m.choose(&kinds(), &work(0.5, Residence::Memory)).unwrap().0, Kind::PanelF32);
    }

    #[test]
    fn nothing_is_faster_than_memory() {
        let mut m = machine(1e-6, 1e-6);
        m.kernels.iter_mut().for_each(|k| k.rates = vec![(0.5, 1e6)]);
        let p = m.predict(Kind::PanelF32, &work(0.0, Residence::Memory)).unwrap();
        assert!((p.ms - p.bytes / 10.0 / 1e6).abs() < 1e-9, "{p:?}");
    }

    #[test]
    fn where_computing_decides_zeros_do_not_pay() {
        let m = machine(0.1, 0.2);
        assert_eq!(
            m.break_even(Kind::PanelF32, Kind::DenseF32, &work(0.0, Residence::Cache), &|_, _| {
                Residence::Cache
            }),
            Some(Break::Never)
        );
        assert_eq!(m.choose(&kinds(), &work(0.9, Residence::Cache)).unwrap().0, Kind::DenseF32);
        assert!(m.predict(Kind::DenseBf16, &work(0.9, Residence::Cache)).is_none(), "it was not calibrated");
    }

    #[test]
    fn of_equals_the_one_that_reads_least_is_chosen() {
        let choose =
            |panel_ns| machine(0.1, panel_ns).choose(&kinds(), &work(0.5, Residence::Cache)).map(|c| c.0);
        assert_eq!(choose(0.102), Some(Kind::PanelF32));
        assert_eq!(choose(0.104), Some(Kind::DenseF32));
    }

    #[test]
    fn rates_between_measured_sparsities_are_on_the_line() {
        let k = KernelCost { rates: vec![(0.5, 20.0), (0.9, 12.0)], ..cost(Kind::PanelF32, 0.0, 0.0) };
        for (s, want) in [(0.0, 20.0), (0.5, 20.0), (0.7, 16.0), (0.9, 12.0), (0.99, 12.0)] {
            assert!((k.rate(s) - want).abs() < 1e-9, "{s}");
        }
    }

    #[test]
    fn rows_between_and_beyond_the_measured_ones() {
        let k = KernelCost { unit_ns: vec![(1, 1.0), (4, 1.6), (12, 4.0)], ..cost(Kind::PanelF32, 0.0, 1.0) };
        for (n, want) in [(1, 1.0), (2, 1.2), (4, 1.6), (8, 2.8), (12, 4.0), (13, 4.7), (24, 8.0), (28, 9.6)]
        {
            assert!((k.compute_ns(10.0, n) - 10.0 * want).abs() < 1e-9, "{n}");
        }
    }

    #[test]
    fn a_calibration_survives_storing() {
        let m = machine(0.1, 0.2);
        let text = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), m);
    }

    #[test]
    fn a_damaged_calibration_is_not_used() {
        let kinds = [Kind::DenseF32, Kind::PanelF32];
        let good = machine(0.1, 0.2);
        assert!(good.is_usable(&kinds) && !good.is_usable(&[Kind::DenseBf16]));
        let spoilt = |f: &dyn Fn(&mut Calibration)| {
            let mut m = good.clone();
            f(&mut m);
            m.is_usable(&kinds)
        };
        assert!(!spoilt(&|m| m.read_gb_per_s = f64::NAN));
        assert!(!spoilt(&|m| m.kernels[0].unit_ns = vec![(0, 1.0)]));
        assert!(!spoilt(&|m| m.kernels[0].unit_ns = vec![(1, 1.0), (1, 2.0)]));
        assert!(!spoilt(&|m| m.kernels[1].rates.clear()));
        assert!(!spoilt(&|m| m.kernels[1].rates = vec![(0.9, 1.0), (0.5, 1.0)]));
        assert!(!spoilt(&|m| m.kernels[1].overlap = 0.0));
        assert!(!spoilt(&|m| m.single.clear()));
    }
}
