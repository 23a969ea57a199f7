//! Quantised kernels, dense and sparse, against dense f32: `quantised [ROWS COLS SPARSITY N THREADS PASSES]`, or `quantised skew` for the
//! split of unequal rows over two threads.
//!
//! Without arguments: 11008 x 4096 and 5632 x 2048, half of the groups absent, 1 token, 1 and 2 threads. Results are checked
//! before anything is timed; weights rotate over more than 1.25 GiB.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use rarefy_kernels::bench::{BenchReport, BenchSpec, Kind, run};
use rarefy_kernels::{Activations, Balance, Isa, LinearKernel, SparseGroups, cpu_features};
use rarefy_sparsity::formats::{GroupSparse, QuantSettings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let shapes =
        if args.len() > 1 { vec![(number(0, 0)?, number(1, 0)?)] } else { vec![(11008, 4096), (5632, 2048)] };
    let threads: Vec<usize> = if args.len() > 4 { vec![number(4, 2)?] } else { vec![1, 2] };
    println!("{}", cpu_features());
    if args.first().is_some_and(|a| a == "skew") {
        return skew();
    }
    for (rows, cols) in shapes {
        for threads in &threads {
            let spec = BenchSpec {
                rows,
                cols,
                sparsity: args.get(2).map_or(Ok(0.5), |a| a.parse())?,
                n: number(3, 1)?,
                threads: *threads,
                passes: number(5, 15)?,
                kinds: vec![
                    Kind::DenseF32,
                    Kind::Quantised { bits: 8, group: 32, exact: false },
                    Kind::Quantised { bits: 8, group: 128, exact: false },
                    Kind::Quantised { bits: 8, group: 32, exact: true },
                    Kind::Quantised { bits: 4, group: 32, exact: false },
                    Kind::Quantised { bits: 4, group: 128, exact: false },
                    Kind::Quantised { bits: 4, group: 32, exact: true },
                    Kind::GroupSparse { bits: 4, group: 16, exact: false },
                    Kind::GroupSparse { bits: 4, group: 16, exact: true },
                    Kind::GroupSparse { bits: 4, group: 32, exact: true },
                    Kind::GroupSparse { bits: 8, group: 16, exact: true },
                ],
                ..BenchSpec::default()
            };
            print(&run(&spec, &mut |step| eprintln!("{step}"))?);
        }
    }
    Ok(())
}

/// Half of the rows hold 90 % of the kept groups: equal numbers of groups per thread against equal numbers of rows.
fn skew() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, cols, copies) = (11008usize, 4096usize, 60);
    let groups = cols / 16;
    let w: Vec<f32> =
        (0..rows * cols).map(|i| (i.wrapping_mul(2_654_435_761) % 2001) as f32 / 1000.0 - 1.0).collect();
    // 9 of 10 groups in the first half of the rows, 1 of 10 in the second.
    let keep = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8) % 10 < if i < rows * groups / 2 { 9 } else { 1 };
    let keep: Vec<bool> = (0..rows * groups).map(keep).collect();
    let matrix = GroupSparse::encode(&w, rows, cols, &keep, QuantSettings::int4(16))?;
    let kernels: Vec<_> =
        (0..copies).map(|_| SparseGroups::new(&matrix, Activations::Exact)).collect::<Result<_, _>>()?;
    let x: Vec<f32> = (0..cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut scratch = vec![0.0; kernels[0].scratch_len(1)];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let mut times = [Vec::new(), Vec::new()];
    let mut results = [vec![0.0; rows], vec![0.0; rows]];
    for turn in 0..copies {
        for (i, balance) in [Balance::Groups, Balance::Rows].into_iter().enumerate() {
            // Half of the copies apart, so that neither finds its weights in the cache.
            let kernel = &kernels[(turn + i * copies / 2) % copies];
            let y = &mut results[i];
            let start = std::time::Instant::now();
            pool.install(|| kernel.forward_balanced(balance, Isa::detect(), &x, 1, y, &mut scratch))?;
            times[i].push(start.elapsed().as_secs_f64() * 1e3);
        }
        assert_eq!(results[0], results[1], "both splits give the same bits");
    }
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    let [even, by_rows] = times.map(|t| t[t.len() / 2]);
    println!(
        "half of the rows with 90 % of the groups, 2 threads: by groups {even:.3} ms, by rows {by_rows:.3} ms, {:.2}x",
        by_rows / even
    );
    Ok(())
}

fn print(report: &BenchReport) {
    let s = &report.spec;
    println!(
        "\n{} x {}, {:.0} % of groups or weights absent where sparse, n = {}, {} thread(s), {} copies, read {:.1} GB/s",
        s.rows,
        s.cols,
        s.sparsity * 100.0,
        s.n,
        s.threads,
        report.copies,
        report.read_gb_per_s
    );
    println!(
        "{:16} {:>8} {:>8} {:>18} {:>6} {:>5} {:>7} {:>7} {:>7}",
        "kernel", "MB", "ms", "(min - max)", "GB/s", "roof", "/ f32", "/ int8", "/ int4"
    );
    for r in &report.rows {
        println!(
            "{:16} {:>8.2} {:>8.3} {:>18} {:>6.1} {:>4.0}% {:>6.2}x {:>6.2}x {:>6.2}x",
            r.kind,
            r.bytes as f64 / 1e6,
            r.ms,
            format!("({:.3} - {:.3})", r.ms_min, r.ms_max),
            r.gb_per_s,
            100.0 * r.gb_per_s / report.read_gb_per_s,
            r.speedup,
            against(report, &r.times, 8),
            against(report, &r.times, 4),
        );
    }
}

/// Median over the passes of the time of dense codes (8 bits in groups of 32 or 4 bits in groups of 32) over `times`.
fn against(report: &BenchReport, times: &[f64], bits: u32) -> f64 {
    let kind = Kind::Quantised { bits, group: 32, exact: false };
    let Some(base) = report.rows.iter().find(|r| r.kind == kind) else { return f64::NAN };
    let mut ratios: Vec<f64> = base.times.iter().zip(times).map(|(b, t)| b / t).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}
