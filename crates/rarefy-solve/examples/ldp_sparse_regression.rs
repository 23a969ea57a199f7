//! Runs the experiment of LDP sparse regression: `ldp_sparse_regression [full]`.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use rarefy_solve::experiments::ldp_sparse_regression::{Sizes, run};

fn main() {
    let sizes =
        if std::env::args().nth(1).as_deref() == Some("full") { Sizes::full(0) } else { Sizes::quick(0) };
    let start = std::time::Instant::now();
    let measured =
        run(sizes, &mut |what| println!("{:6.1} s  {what}", start.elapsed().as_secs_f64())).unwrap();
    for row in &measured.rows {
        println!("{} | {} | {:?}", row.experiment, row.case, row.values);
    }
    for m in &measured.margins {
        println!("{} {}: {:.3e} >= {}", if m.holds() { "pass" } else { "FAIL" }, m.name, m.value, m.least);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
}
