//! Prints dense against sparse for one shape: `roofline [ROWS COLS SPARSITY N THREADS PASSES]`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use rarefy_kernels::bench::{BenchReport, BenchSpec, run};
use rarefy_kernels::cpu_features;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let base = BenchSpec::default();
    let spec = BenchSpec {
        rows: number(0, base.rows)?,
        cols: number(1, base.cols)?,
        sparsity: args.get(2).map_or(Ok(base.sparsity), |a| a.parse())?,
        passes: number(5, base.passes)?,
        ..base
    };
    println!("{}", cpu_features());
    let threads: Vec<usize> = if args.len() > 4 { vec![number(4, 2)?] } else { vec![1, 2] };
    let tokens: Vec<usize> = if args.len() > 3 { vec![number(3, 1)?] } else { vec![1, 8] };
    for threads in threads {
        for n in &tokens {
            let report = run(&BenchSpec { n: *n, threads, ..spec.clone() }, &mut |step| eprintln!("{step}"))?;
            print(&report);
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
        "{:12} {:>9} {:>7} {:>9} {:>19} {:>7} {:>6} {:>8}",
        "kernel", "MB", "bytes", "ms", "(min - max)", "GB/s", "roof", "speedup"
    );
    for r in &report.rows {
        println!(
            "{:12} {:>9.2} {:>6.3}x {:>9.3} {:>19} {:>7.1} {:>5.0}% {:>7.2}x",
            r.kind,
            r.bytes as f64 / 1e6,
            r.bytes_ratio,
            r.ms,
            format!("({:.3} - {:.3})", r.ms_min, r.ms_max),
            r.gb_per_s,
            100.0 * r.gb_per_s / report.read_gb_per_s,
            r.speedup
        );
    }
}
