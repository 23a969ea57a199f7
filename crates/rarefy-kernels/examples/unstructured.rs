//! Unstructured zeros: every kernel for them against the dense one of its type, `unstructured [ROWS COLS SPARSITY N THREADS PASSES]`.
//!
//! Without arguments: 11008 x 4096, 70 and 90 % zeros, 1 and 8 tokens, 1 and 2 threads. Results are checked before anything is timed; weights rotate
//! over more than 1.25 GiB.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use rarefy_kernels::bench::{BenchReport, BenchSpec, Kind, run};
use rarefy_kernels::cpu_features;

const INT8: Kind = Kind::Quantised { bits: 8, group: 128, exact: false };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let base = BenchSpec::default();
    let spec = BenchSpec {
        rows: number(0, base.rows)?,
        cols: number(1, base.cols)?,
        passes: number(5, 15)?,
        kinds: vec![
            Kind::DenseF32,
            Kind::PanelF32,
            Kind::Gather,
            Kind::Tiled,
            Kind::DenseBf16,
            Kind::PanelBf16,
            INT8,
            Kind::PanelInt8 { group: None, exact: false },
            Kind::PanelInt8 { group: Some(128), exact: false },
            Kind::Quantised { bits: 8, group: 128, exact: true },
            Kind::PanelInt8 { group: None, exact: true },
        ],
        ..base
    };
    println!("{}", cpu_features());
    let threads: Vec<usize> = if args.len() > 4 { vec![number(4, 2)?] } else { vec![1, 2] };
    let tokens: Vec<usize> = if args.len() > 3 { vec![number(3, 1)?] } else { vec![1, 8] };
    let sparsities: Vec<f64> = args.get(2).map_or(Ok(vec![0.7, 0.9]), |a| a.parse().map(|s| vec![s]))?;
    for sparsity in sparsities {
        for threads in &threads {
            for n in &tokens {
                let spec = BenchSpec { n: *n, threads: *threads, sparsity, ..spec.clone() };
                print(&run(&spec, &mut |step| eprintln!("{step}"))?);
            }
        }
    }
    Ok(())
}

fn print(report: &BenchReport) {
    let s = &report.spec;
    println!(
        "\n{} x {}, {:.0} % zeros, n = {}, {} thread(s), {} copies, read bandwidth {:.1} GB/s",
        s.rows,
        s.cols,
        s.sparsity * 100.0,
        s.n,
        s.threads,
        report.copies,
        report.read_gb_per_s
    );
    println!(
        "{:18} {:>8} {:>7} {:>8} {:>17} {:>6} {:>5} {:>7} {:>7}",
        "kernel", "MB", "B/w", "ms", "(min - max)", "GB/s", "roof", "/ dense", "/ f32"
    );
    let f32s = &report.rows[0].times;
    for r in &report.rows {
        // Eight bits against dense eight bits.
        let dense = match r.kind {
            Kind::PanelInt8 { exact, .. } | Kind::Quantised { exact, .. } => {
                Kind::Quantised { bits: 8, group: 128, exact }
            }
            kind => kind.dense(),
        };
        let dense = report.rows.iter().find(|d| d.kind == dense).map_or(f32s, |d| &d.times);
        println!(
            "{:18} {:>8.2} {:>7.3} {:>8.3} {:>17} {:>6.1} {:>4.0}% {:>6.2}x {:>6.2}x",
            r.kind,
            r.bytes as f64 / 1e6,
            r.bytes as f64 / (s.rows * s.cols) as f64,
            r.ms,
            format!("({:.2} - {:.2})", r.ms_min, r.ms_max),
            r.gb_per_s,
            100.0 * r.gb_per_s / report.read_gb_per_s,
            ratio(dense, &r.times),
            ratio(f32s, &r.times)
        );
    }
}

/// Median over the passes of one time over the other.
fn ratio(over: &[f64], under: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = over.iter().zip(under).map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}
