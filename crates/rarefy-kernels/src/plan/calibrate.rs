//! Measuring a machine: a few short benchmarks of one shape, and the fit of the model to them.

use super::{Calibration, KernelCost, Residence, Work};
use crate::KernelError;
use crate::bench::{self, BenchReport, BenchSpec, Kind};
use crate::drive::MAX_TOKENS;

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
/// The same for gathered non-zeros: as wide as the layers of models are, because activations that leave the first-level cache are what a
/// gather waits for.
const SMALL_GATHER: (usize, usize) = (32, 4096);
/// Shape of the weights in memory.
const LARGE: (usize, usize) = (2048, 4096);
/// Rows of `x` at which kernels are measured in the cache; the last is the most that one pass over the weights takes.
const CACHE_ROWS: &[usize] = &[1, 2, 4, 8, MAX_TOKENS];
/// The same for codes, and for gathered non-zeros, which take steps where a register of tokens is full.
const CACHE_ROWS_CODES: &[usize] = &[1, 2, 4, 8];
const CACHE_ROWS_GATHER: &[usize] = &[1, 2, 3, 4, 8, 9, 16];
/// Rows of `x` at which kernels are measured in memory: the first gives the rate, the second the overlap.
const ROWS: (usize, usize) = (1, 8);
/// Sparsities at which the rate from memory is measured.
const SPARSITIES: [f64; 2] = [0.5, 0.9];
/// Calls in the cache are short, so many are made.
const SMALL_PASSES: usize = 400;
/// The least share of the read bandwidth that a kernel is believed to stream at; below it is measured again, so many times.
const SLOWEST: f64 = 0.6;
const REPEATS: usize = 2;
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
        on_step("kernels with their weights in the cache");
        let in_cache = |threads: usize| -> Result<Vec<KernelCost>, KernelError> {
            // Wide enough that all threads take part, and small enough for their caches.
            let shape = |kind| {
                let (rows, cols) = if kind == Kind::Gather { SMALL_GATHER } else { SMALL };
                (rows * 2 * threads.next_power_of_two(), cols)
            };
            let max_bytes = settings.max_bytes;
            settings.kinds.iter().map(|kind| in_cache(*kind, shape(*kind), threads, max_bytes)).collect()
        };
        let single = in_cache(1)?;
        let several = if settings.threads == 1 { single.clone() } else { in_cache(settings.threads)? };
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
                let mut report = bench::run(&spec, &mut |_| ())?;
                for _ in 0..REPEATS {
                    let again = implausible(&report, &several);
                    if again.is_empty() {
                        break;
                    }
                    on_step("some of them again, on other memory");
                    let second = bench::run(&BenchSpec { kinds: again, ..spec.clone() }, &mut |_| ())?;
                    keep_faster(&mut report, second);
                }
                reports.push(report);
            }
        }
        let mut roofs: Vec<f64> = reports.iter().map(|r| r.read_gb_per_s).collect();
        let roof = crate::bandwidth::median(&mut roofs);
        Ok(Self {
            version: Self::VERSION,
            cpu: settings.cpu.clone(),
            threads: settings.threads,
            read_gb_per_s: roof,
            kernels: several.into_iter().map(|cost| with_memory(cost, &reports, roof)).collect(),
            single,
        })
    }
}

/// The cost of computing of one kernel, measured alone with its weights in the cache: of the call from the times of a weight and of one
/// of half its rows, the rest is work.
fn in_cache(
    kind: Kind,
    (rows, cols): (usize, usize),
    threads: usize,
    max_bytes: usize,
) -> Result<KernelCost, KernelError> {
    let ns = |rows: usize, n: usize| {
        let spec = BenchSpec {
            rows,
            cols,
            n,
            threads,
            sparsity: SPARSITIES[0],
            passes: SMALL_PASSES,
            min_bytes: 1,
            max_bytes,
            kinds: vec![kind],
            seed: 0,
        };
        Ok::<f64, KernelError>(bench::best_in_cache(&spec)? * 1e6)
    };
    let whole = ns(rows, 1)?;
    let call_ns = (2.0 * ns(rows / 2, 1)? - whole).clamp(0.0, 0.5 * whole);
    let units = kind.units(rows, cols, SPARSITIES[0]);
    let mut unit_ns = Vec::new();
    let steps = match kind {
        Kind::Gather => CACHE_ROWS_GATHER,
        Kind::Quantised { .. } | Kind::PanelInt8 { .. } => CACHE_ROWS_CODES,
        _ => CACHE_ROWS,
    };
    for &n in steps {
        unit_ns.push((n, (ns(rows, n)? - call_ns).max(0.0) / units));
    }
    Ok(KernelCost { kernel: kind.to_string(), call_ns, unit_ns, rates: Vec::new(), overlap: 1.0 })
}

/// Kernels whose time is not explained by their work and a slow memory, one after the other: some of the copies lie where the system reads
/// slowly, or a neighbour was busy.
fn implausible(report: &BenchReport, costs: &[KernelCost]) -> Vec<Kind> {
    let s = &report.spec;
    let explained = |row: &bench::BenchRow| {
        let cost = costs.iter().find(|c| c.kernel == row.kind.to_string())?;
        let compute = cost.compute_ns(row.kind.units(s.rows, s.cols, s.sparsity), s.n);
        let memory = row.kind.bytes(s.rows, s.cols, s.sparsity) / (SLOWEST * report.read_gb_per_s);
        Some(cost.call_ns + compute + memory)
    };
    let odd = |row: &&bench::BenchRow| explained(row).is_some_and(|ns| undisturbed(&row.times) * 1e6 > ns);
    report.rows.iter().filter(odd).map(|row| row.kind).collect()
}

/// Takes the rows of `second` that are faster, times of the read rate of `report`.
fn keep_faster(report: &mut BenchReport, second: BenchReport) {
    let scale = second.read_gb_per_s / report.read_gb_per_s;
    for mut row in second.rows {
        row.times.iter_mut().for_each(|t| *t *= scale);
        let old = report.rows.iter_mut().find(|r| r.kind == row.kind);
        if let Some(old) = old.filter(|old| undisturbed(&row.times) < undisturbed(&old.times)) {
            *old = row;
        }
    }
}

/// Rates and overlap from the measurements beyond the cache: for each exponent the rates follow from one row of `x`, and the
/// exponent is the one whose prediction for several rows is nearest.
fn with_memory(cost: KernelCost, reports: &[BenchReport], roof: f64) -> KernelCost {
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
            // As it would be at the roof of the whole calibration: a neighbour slows a run and its read probe alike.
            Some((work, row.kind, undisturbed(&row.times) * 1e6 * r.read_gb_per_s / roof))
        })
        .collect();
    let size = |(work, kind, _): &(Work, Kind, f64)| {
        (kind.units(work.rows, work.cols, work.sparsity), kind.bytes(work.rows, work.cols, work.sparsity))
    };
    let with_overlap = |overlap: f64| {
        let mut rates: Vec<(f64, f64)> = points
            .iter()
            .filter(|p| p.0.n == ROWS.0)
            .map(|p| {
                let (units, bytes) = size(p);
                (p.0.sparsity, bytes / unmeet(p.2 - cost.call_ns, cost.compute_ns(units, p.0.n), overlap))
            })
            .collect();
        // Where the weights are the same at every sparsity asked for, so is the rate: the better measurement.
        if points.iter().all(|p| (p.1.sparsity(0.0) - p.1.sparsity(1.0)).abs() < f64::EPSILON) {
            rates.sort_by(|a, b| b.1.total_cmp(&a.1));
            rates.truncate(1);
        }
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

/// The lower quartile: a neighbour that slows some of the calls does not make the kernel slow.
fn undisturbed(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied().unwrap_or(f64::NAN)
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
    fn an_implausible_time_gives_way_to_a_faster_one() {
        let kind = Kind::PanelF32;
        let cost = KernelCost {
            kernel: kind.to_string(),
            call_ns: 0.0,
            unit_ns: vec![(1, 0.01)],
            rates: vec![],
            overlap: 1.0,
        };
        let spec =
            BenchSpec { rows: 2048, cols: 4096, sparsity: 0.5, kinds: vec![kind], ..BenchSpec::default() };
        // 17.8 MB at 20 GB/s: 0.9 ms; at 12 GB/s and after 0.08 ms of work 1.57 ms.
        let report = |ms: f64, read_gb_per_s: f64| {
            let row = bench::BenchRow {
                kind,
                bytes: 1,
                bytes_ratio: 1.0,
                ms,
                ms_min: ms,
                ms_max: ms,
                gb_per_s: 1.0,
                speedup: 1.0,
                times: vec![ms; 5],
            };
            BenchReport {
                spec: spec.clone(),
                isa: crate::Isa::Portable,
                copies: 2,
                read_gb_per_s,
                rows: vec![row],
            }
        };
        assert!(implausible(&report(1.5, 20.0), std::slice::from_ref(&cost)).is_empty());
        let mut slow = report(1.7, 20.0);
        assert_eq!(implausible(&slow, &[cost]), [kind]);
        keep_faster(&mut slow, report(2.0, 10.0)); // 1 ms at the rate of the first
        assert!((slow.rows[0].times[0] - 1.0).abs() < 1e-9);
        keep_faster(&mut slow, report(2.0, 20.0));
        assert!((slow.rows[0].times[0] - 1.0).abs() < 1e-9);
    }

    /// A machine that follows the model exactly is recovered exactly, and predicted exactly elsewhere.
    #[test]
    fn a_machine_that_is_the_model_is_recovered() {
        let truth = KernelCost {
            kernel: Kind::PanelF32.to_string(),
            call_ns: 0.0,
            unit_ns: vec![(1, 0.03), (12, 0.14)],
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
                times: vec![ms],
            };
            BenchReport { spec, isa: crate::Isa::Portable, copies: 2, read_gb_per_s: 20.0, rows: vec![row] }
        };
        let reports: Vec<BenchReport> =
            [(1, 0.5), (8, 0.5), (1, 0.9), (8, 0.9)].map(|(n, s)| report(2048, 4096, n, s)).into();
        let known = KernelCost { rates: vec![], overlap: 1.0, ..truth.clone() };
        let found = with_memory(known, &reports, 20.0);
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
