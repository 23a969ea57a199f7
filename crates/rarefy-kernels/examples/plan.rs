//! The cost model against measurements on shapes, sparsities and batches it was not calibrated on.
//!
//! `plan [THREADS [PASSES [MEMORY_MB]]]`: calibrates, measures a grid, prints each prediction beside its measurement, the median error,
//! and how far the kernel it would choose is from the best.

use std::error::Error;
use std::io::Write;

use rarefy_kernels::bench::{self, BenchSpec, Kind};
use rarefy_kernels::plan::{Calibration, CalibrationSettings, Residence, Work};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(2), |a| a.parse())?;
    let passes = args.next().map_or(Ok(9), |a| a.parse())?;
    let memory_mb: usize = args.next().map_or(Ok(1200), |a| a.parse())?;
    let settings = CalibrationSettings {
        kinds: kinds(),
        threads,
        cpu: "this one".into(),
        memory_bytes: memory_mb << 20,
        passes,
        max_bytes: 12 << 30,
    };
    let start = std::time::Instant::now();
    let machine = Calibration::measure(&settings, &mut |_| ())?;
    writeln!(
        out,
        "calibrated in {:.1} s; memory reads {:.1} GB/s",
        start.elapsed().as_secs_f64(),
        machine.read_gb_per_s
    )?;
    for k in &machine.kernels {
        writeln!(
            out,
            "{:12} {:.0} ns + {:.3?} ns/unit, rates {:.1?}, overlap {:.1}",
            k.kernel, k.call_ns, k.unit_ns, k.rates, k.overlap
        )?;
    }
    let mut errors = Vec::new();
    let mut worst_choice: f64 = 1.0;
    for (rows, cols) in [(5632, 2048), (1024, 6144)] {
        for (sparsity, n) in [(0.6, 1), (0.8, 1), (0.7, 4), (0.95, 12)] {
            let spec = BenchSpec {
                rows,
                cols,
                n,
                threads,
                sparsity,
                passes,
                min_bytes: memory_mb << 20,
                kinds: kinds(),
                ..BenchSpec::default()
            };
            let report = bench::run(&spec, &mut |_| ())?;
            let work = Work { rows, cols, n, sparsity, residence: Residence::Memory };
            let mut line = format!("{rows}x{cols} {:.0} % n={n}:", sparsity * 100.0);
            for row in &report.rows {
                let p = machine.predict(row.kind, &work).ok_or("a kernel without a prediction")?;
                line += &format!(" {} {:.3}/{:.3}", row.kind, p.ms, row.ms);
                errors.push((p.ms / row.ms - 1.0).abs());
            }
            let kinds: Vec<Kind> = report.rows.iter().map(|r| r.kind).collect();
            let (chosen, _) = machine.choose(&kinds, &work).ok_or("no kernel")?;
            let time = |k: Kind| report.rows.iter().find(|r| r.kind == k).map_or(f64::NAN, |r| r.ms);
            let best = report.rows.iter().map(|r| r.ms).fold(f64::INFINITY, f64::min);
            worst_choice = worst_choice.max(time(chosen) / best);
            writeln!(out, "{line} -> {chosen} ({:.2} of the best)", time(chosen) / best)?;
        }
    }
    errors.sort_by(f64::total_cmp);
    writeln!(
        out,
        "error: median {:.1} %, largest {:.1} %; the chosen kernel takes at most {worst_choice:.2} times the best",
        errors[errors.len() / 2] * 100.0,
        errors[errors.len() - 1] * 100.0
    )?;
    Ok(())
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Kind::STANDARD.to_vec();
    kinds.extend([
        Kind::Quantised { bits: 8, group: 128, exact: false },
        Kind::Quantised { bits: 4, group: 32, exact: false },
        Kind::GroupSparse { bits: 4, group: 16, exact: false },
    ]);
    kinds
}
