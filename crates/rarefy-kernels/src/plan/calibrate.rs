//! Measuring a machine: a few short benchmarks of one shape, and the fit of the model to them.

use super::{Calibration, KernelCost, Residence, Work};
use crate::KernelError;
use crate::bench::{self, BenchReport, BenchSpec, Kind};

/// How a machine is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationSettings {
    /// Kernels to calibrate.
    pub kinds: Vec<Kind>,
    /// Threads, at least 1.
    pub threads: usize,
    /// The CPU, to recognise a stored calibration by.
    pub cpu: String,
    /// Bytes of weights between which each kernel alternates to find them in memory: several times the last-level cache.
    pub memory_bytes: usize,
    /// Timed calls of each kernel beyond the cache.
    pub passes: usize,
    /// Largest allocation allowed.
    pub max_bytes: usize,
}

/// Shape of the weights in the cache: f32 dense takes half a megabyte.
const SMALL: (usize, usize) = (256, 512);
/// Shape of the weights in memory.
const LARGE: (usize, usize) = (2048, 4096);
/// Rows of `x` at which kernels are measured; the most that one pass over the weights takes lies between them and 2 x them.
const ROWS: (usize, usize) = (1, 8);
/// Sparsities at which the rate from memory is measured.
const SPARSITIES: [f64; 2] = [0.5, 0.9];
/// Calls in the cache are short, so many are made.
const SMALL_PASSES: usize = 400;
/// Exponents of overlap that are tried.
const OVERLAPS: std::ops::RangeInclusive<u32> = 10..=80;

impl Calibration {
    /// Measures this machine; `on_step` gets a line before each longer step.
    ///
    /// # Errors
    /// Those of [`bench::run`].
    pub fn measure(
        settings: &CalibrationSettings,
        on_step: &mut dyn FnMut(&str),
    ) -> Result<Self, KernelError> {
        let small = |threads: usize, (rows, cols): (usize, usize), n: usize| {
            bench::run(
                &BenchSpec {
                    rows,
                    cols,
                    n,
                    threads,
                    sparsity: SPARSITIES[0],
                    passes: SMALL_PASSES,
                    min_bytes: 1,
                    max_bytes: settings.max_bytes,
                    kinds: settings.kinds.clone(),
                    seed: 0,
                },
                &mut |_| (),
            )
        };
        // Wide enough that all threads take part.
        let wide = (SMALL.0 * settings.threads.next_power_of_two() * 2, SMALL.1);
        on_step("kernels with their weights in the cache");
        let single =
            InCache { shape: SMALL, one: small(1, SMALL, ROWS.0)?, several: small(1, SMALL, ROWS.1)? };
        let single = single.fit();
        let in_cache = if settings.threads == 1 {
            single.clone()
        } else {
            let threads = settings.threads;
            InCache {
                shape: wide,
                one: small(threads, wide, ROWS.0)?,
                several: small(threads, wide, ROWS.1)?,
            }
            .fit()
        };
        let mut reports = Vec::new();
        for sparsity in SPARSITIES {
            for n in [ROWS.0, ROWS.1] {
                on_step(&format!(
                    "kernels with their weights in memory, {} % zeros, {n} rows",
                    sparsity * 100.0
                ));
                let spec = BenchSpec {
                    rows: LARGE.0,
                    cols: LARGE.1,
                    n,
                    threads: settings.threads,
                    sparsity,
                    passes: settings.passes,
                    min_bytes: settings.memory_bytes,
                    max_bytes: settings.max_bytes,
                    kinds: settings.kinds.clone(),
                    seed: 0,
                };
                reports.push(bench::run(&spec, &mut |_| ())?);
            }
        }
        let mut roofs: Vec<f64> = reports.iter().map(|r| r.read_gb_per_s).collect();
        Ok(Self {
            version: Self::VERSION,
            cpu: settings.cpu.clone(),
            threads: settings.threads,
            read_gb_per_s: crate::bandwidth::median(&mut roofs),
            kernels: in_cache.into_iter().map(|cost| with_memory(cost, &reports)).collect(),
            single,
        })
    }
}

/// Two measurements of one shape in the cache.
struct InCache {
    shape: (usize, usize),
    one: BenchReport,
    several: BenchReport,
}

impl InCache {
    /// Costs of computing: the call itself is taken as free, since a call of no work returns at once; what waking
    /// threads costs is part of a unit, which is right for calls of this size and too much for larger ones by little.
    fn fit(&self) -> Vec<KernelCost> {
        let fit = |(one, several): (&bench::BenchRow, &bench::BenchRow)| {
            let units = one.kind.units(self.shape.0, self.shape.1, SPARSITIES[0]);
            let (t1, t8) = (one.ms_min.max(0.9 * one.ms) * 1e6, several.ms_min.max(0.9 * several.ms) * 1e6);
            let (unit_ns, unit_row_ns) = line((t1 / units, ROWS.0), (t8 / units, ROWS.1));
            KernelCost {
                kernel: one.kind.to_string(),
                call_ns: 0.0,
                unit_ns,
                unit_row_ns,
                rates: Vec::new(),
                overlap: 1.0,
            }
        };
        self.one.rows.iter().zip(&self.several.rows).map(fit).collect()
    }
}

/// Intercept and slope through two points `(y, x)`; a line that falls or starts below zero goes through zero or is flat.
fn line((y0, x0): (f64, usize), (y1, x1): (f64, usize)) -> (f64, f64) {
    let slope = ((y1 - y0) / (x1 - x0) as f64).max(0.0);
    let intercept = y0 - slope * x0 as f64;
    if intercept >= 0.0 { (intercept, slope) } else { (0.0, y1 / x1 as f64) }
}

/// Rates and overlap from the measurements beyond the cache: for each exponent the rates follow from one row of `x`, and the
/// exponent is the one whose prediction for several rows is nearest.
fn with_memory(cost: KernelCost, reports: &[BenchReport]) -> KernelCost {
    let points: Vec<(Work, Kind, f64)> = reports
        .iter()
        .filter_map(|r| {
            let row = r.rows.iter().find(|row| row.kind.to_string() == cost.kernel)?;
            let s = &r.spec;
            let work = Work {
                rows: s.rows,
                cols: s.cols,
                n: s.n,
                sparsity: s.sparsity,
                residence: Residence::Memory,
            };
            Some((work, row.kind, row.ms * 1e6))
        })
        .collect();
    let size = |(work, kind, _): &(Work, Kind, f64)| {
        (kind.units(work.rows, work.cols, work.sparsity), kind.bytes(work.rows, work.cols, work.sparsity))
    };
    let with_overlap = |overlap: f64| {
        let rates = points
            .iter()
            .filter(|p| p.0.n == ROWS.0)
            .map(|p| {
                let (units, bytes) = size(p);
                (p.0.sparsity, bytes / unmeet(p.2, cost.compute_ns(units, p.0.n), overlap))
            })
            .collect();
        KernelCost { rates, overlap, ..cost.clone() }
    };
    let error = |candidate: &KernelCost| -> f64 {
        points
            .iter()
            .map(|p| {
                let (units, bytes) = size(p);
                (candidate.ns(units, bytes, &p.0) / p.2).ln().abs()
            })
            .sum()
    };
    OVERLAPS
        .map(|tenths| with_overlap(f64::from(tenths) / 10.0))
        .min_by(|a, b| error(a).total_cmp(&error(b)))
        .unwrap_or(cost)
}

/// The cost that meets `a` in `total`: see [`KernelCost`]. Where `a` alone explains the total, a small part of it.
fn unmeet(total: f64, a: f64, p: f64) -> f64 {
    let least = 0.05 * total;
    let share = 1.0 - (a / total).powf(p);
    if share <= 0.0 { least } else { (total * share.powf(1.0 / p)).max(least) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plan::cost::meet;

    #[test]
    fn meeting_and_its_inverse() {
        assert!((meet(3.0, 4.0, 2.0) - 5.0).abs() < 1e-12);
        assert!((meet(3.0, 4.0, 1.0) - 7.0).abs() < 1e-12);
        assert!((meet(3.0, 4.0, 60.0) - 4.0).abs() < 1e-6);
        assert!(meet(0.0, 0.0, 2.0).abs() < 1e-12);
        for (a, b, p) in [(3.0, 4.0, 2.0), (1.0, 9.0, 1.3), (2.0, 2.0, 5.0)] {
            assert!((unmeet(meet(a, b, p), a, p) - b).abs() < 1e-9);
        }
        assert!((unmeet(10.0, 12.0, 2.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn lines_through_two_points() {
        let (a, b) = line((3.0, 1), (10.0, 8));
        assert!((a - 2.0).abs() < 1e-12 && (b - 1.0).abs() < 1e-12);
        assert_eq!(line((3.0, 1), (2.0, 8)), (3.0, 0.0));
        let (a, b) = line((1.0, 1), (16.0, 8));
        assert!(a.abs() < 1e-12 && (b - 2.0).abs() < 1e-12);
    }

    /// A machine that follows the model exactly is recovered exactly, and predicted exactly elsewhere.
    #[test]
    fn a_machine_that_is_the_model_is_recovered() {
        let truth = KernelCost {
            kernel: Kind::PanelF32.to_string(),
            call_ns: 0.0,
            unit_ns: 0.02,
            unit_row_ns: 0.01,
            rates: vec![(0.5, 20.0), (0.9, 12.0)],
            overlap: 2.5,
        };
        let report = |rows: usize, cols: usize, n: usize, sparsity: f64| {
            let spec =
                BenchSpec { rows, cols, n, sparsity, kinds: vec![Kind::PanelF32], ..BenchSpec::default() };
            let work = Work { rows, cols, n, sparsity, residence: Residence::Memory };
            let kind = Kind::PanelF32;
            let ms =
                truth.ns(kind.units(rows, cols, sparsity), kind.bytes(rows, cols, sparsity), &work) / 1e6;
            let row = bench::BenchRow {
                kind,
                bytes: 1,
                bytes_ratio: 1.0,
                ms,
                ms_min: ms,
                ms_max: ms,
                gb_per_s: 1.0,
                speedup: 1.0,
            };
            BenchReport { spec, isa: crate::Isa::Portable, copies: 2, read_gb_per_s: 20.0, rows: vec![row] }
        };
        let reports: Vec<BenchReport> =
            [(1, 0.5), (8, 0.5), (1, 0.9), (8, 0.9)].map(|(n, s)| report(2048, 4096, n, s)).into();
        let known = KernelCost { rates: vec![], overlap: 1.0, ..truth.clone() };
        let found = with_memory(known, &reports);
        assert!((found.overlap - 2.5).abs() < 1e-9, "{found:?}");
        for (n, s) in [(1, 0.7), (4, 0.6), (16, 0.8), (32, 0.3)] {
            let want = report(5632, 2048, n, s).rows[0].ms;
            let work = Work { rows: 5632, cols: 2048, n, sparsity: s, residence: Residence::Memory };
            let kind = Kind::PanelF32;
            let got = found.ns(kind.units(5632, 2048, s), kind.bytes(5632, 2048, s), &work) / 1e6;
            assert!((got / want - 1.0).abs() < 1e-6, "{got} {want}");
        }
    }
}
