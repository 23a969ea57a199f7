//! Which kernel is chosen for which rows of `x` and which sparsity, and how far it is from the best:
//! `crossover [THREADS [ROWS COLS [PASSES [MEMORY_MB]]]]`.
//!
//! Calibrates, then measures a grid of rows and sparsities that was not calibrated on. Weights of one type replace each other: f32, bf16, 8-bit codes.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use rarefy_kernels::bench::Kind;
use rarefy_kernels::plan::{Calibration, CalibrationSettings, CrossoverSettings, crossover};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let families = vec![
        vec![Kind::DenseF32, Kind::PanelF32, Kind::Gather],
        vec![Kind::DenseBf16, Kind::PanelBf16],
        vec![
            Kind::Quantised { bits: 8, group: 128, exact: false },
            Kind::PanelInt8 { group: None, exact: false },
        ],
    ];
    let (passes, memory_bytes) = (number(3, 9)?, number(4, 1200)? << 20);
    let start = std::time::Instant::now();
    let machine = Calibration::measure(
        &CalibrationSettings {
            kinds: families.concat(),
            threads: number(0, 2)?,
            cpu: "this one".into(),
            memory_bytes,
            passes,
            max_bytes: 12 << 30,
        },
        &mut |step| eprintln!("{step}"),
    )?;
    println!(
        "calibrated in {:.1} s on {} thread(s); memory reads {:.1} GB/s",
        start.elapsed().as_secs_f64(),
        machine.threads,
        machine.read_gb_per_s
    );
    for k in &machine.kernels {
        println!(
            "{:12} {:.0} ns + {:.4?} ns/unit, rates {:.1?}, overlap {:.1}",
            k.kernel, k.call_ns, k.unit_ns, k.rates, k.overlap
        );
    }
    let settings = CrossoverSettings {
        families,
        rows: number(1, 5632)?,
        cols: number(2, 2048)?,
        tokens: vec![1, 3, 6, 16],
        sparsities: vec![0.3, 0.6, 0.8, 0.95],
        passes,
        memory_bytes,
        max_bytes: 12 << 30,
        seed: 1,
    };
    println!("\n{} x {}, measured/predicted ms", settings.rows, settings.cols);
    let cells = crossover(&machine, &settings, &mut |step| eprintln!("{step}"))?;
    for c in &cells {
        let times: Vec<String> = c.times.iter().map(|(k, a, b)| format!("{k} {a:.3}/{b:.3}")).collect();
        println!(
            "n={:<2} {:>3.0} %  {:12} {:5.2} of the best  {}",
            c.n,
            100.0 * c.sparsity,
            c.chosen,
            c.regret,
            times.join(", ")
        );
    }
    let worst = cells.iter().map(|c| c.regret).fold(1.0, f64::max);
    let within = cells.iter().filter(|c| c.regret <= 1.1).count();
    println!("within 10 % of the best in {within} of {} cells, at worst {worst:.2} times", cells.len());
    Ok(())
}
