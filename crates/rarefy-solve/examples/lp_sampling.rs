//! Runs the experiment of ℓp sensitivity sampling: `lp_sampling [full] [npz with x and y]...`.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use faer::Mat;
use rarefy_solve::experiments::lp_sensitivity_sampling::{Sizes, run};

/// Standardised features and an intercept.
fn read(path: &str) -> (String, Mat<f64>, Vec<f64>) {
    let mut file = npyz::npz::NpzArchive::open(path).unwrap();
    let x: Vec<f32> = file.by_name("x").unwrap().unwrap().into_vec().unwrap();
    let y: Vec<f32> = file.by_name("y").unwrap().unwrap().into_vec().unwrap();
    let (n, d) = (y.len(), x.len() / y.len());
    let mut a = Mat::from_fn(n, d + 1, |i, j| if j < d { f64::from(x[i * d + j]) } else { 1.0 });
    for j in 0..d {
        let column = a.col_as_slice_mut(j);
        let mean = column.iter().sum::<f64>() / n as f64;
        let spread = (column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        column.iter_mut().for_each(|v| *v = (*v - mean) / spread);
    }
    let name = std::path::Path::new(path).file_stem().unwrap().to_string_lossy().into_owned();
    (name, a, y.into_iter().map(f64::from).collect())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let full = arguments.iter().any(|a| a == "full");
    let sizes = if full { Sizes::full(0) } else { Sizes::quick(0) };
    let real = arguments.iter().filter(|a| a.ends_with(".npz")).map(|path| read(path)).collect();
    let start = std::time::Instant::now();
    let measured =
        run(sizes, real, &mut |what| println!("{:6.1} s  {what}", start.elapsed().as_secs_f64())).unwrap();
    for row in &measured.rows {
        println!("{} | {} | {:?}", row.experiment, row.case, row.values);
    }
    for m in &measured.margins {
        println!("{} {}: {:.3e} >= {}", if m.holds() { "pass" } else { "FAIL" }, m.name, m.value, m.least);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
}
