//! Runs the experiments of transport: `ot_experiments [full]`.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use rarefy_solve::experiments::{sinkhorn_newton_sparse as sns, sparsity_constrained_ot as ksparse};

fn main() {
    let full = std::env::args().nth(1).as_deref() == Some("full");
    let start = std::time::Instant::now();
    let mut say = |what: &str| println!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let (k, s) = if full {
        (ksparse::Sizes::full(0), sns::Sizes::full(0))
    } else {
        (ksparse::Sizes::quick(0), sns::Sizes::quick(0))
    };
    let mut measured = ksparse::run(k, &mut say).unwrap();
    let more = sns::run(s, None, &mut say).unwrap();
    measured.rows.extend(more.rows);
    measured.margins.extend(more.margins);
    for row in &measured.rows {
        println!("{} | {} | {:?}", row.experiment, row.case, row.values);
    }
    for m in &measured.margins {
        println!("{} {}: {:.3e} >= {}", if m.holds() { "pass" } else { "FAIL" }, m.name, m.value, m.least);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
}
