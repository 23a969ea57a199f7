//! Times lasso paths and sparse logistic regressions: `lasso_path DATA_DIR [REPEATS] [NAMES…]`.
//! The peers are in `bench/solve/peers_lasso.py`; both print one JSON line per run.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use std::io::Read;
use std::path::Path as FilePath;
use std::time::Instant;

use rarefy_solve::glm::{self, AlphaGrid, GlmSettings, Loss, Problem};
use rarefy_solve::{Csc, Design, LinOp, Monitor};

fn gunzip(path: &FilePath) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn libsvm(path: &FilePath) -> (Design, Vec<f64>) {
    let (mut y, mut entries, mut p) = (vec![], vec![], 0);
    for (i, line) in gunzip(path).lines().enumerate() {
        let mut words = line.split_whitespace();
        y.push(words.next().unwrap().parse().unwrap());
        for word in words {
            let (j, v) = word.split_once(':').unwrap();
            let j: usize = j.parse().unwrap();
            p = p.max(j);
            entries.push((i, j - 1, v.parse().unwrap()));
        }
    }
    (Csc::from_triplets(y.len(), p, &entries).unwrap().into(), y)
}

fn california(path: &FilePath) -> (Design, Vec<f64>) {
    let mut archive = npyz::npz::NpzArchive::open(path).unwrap();
    let x: Vec<f32> = archive.by_name("x").unwrap().unwrap().into_vec().unwrap();
    let y: Vec<f32> = archive.by_name("y").unwrap().unwrap().into_vec().unwrap();
    let (n, p) = (y.len(), x.len() / y.len());
    // Standardised, as the peers get it.
    let (mut mean, mut sd) = (vec![0.0; p], vec![0.0; p]);
    for j in 0..p {
        mean[j] = (0..n).map(|i| f64::from(x[i * p + j])).sum::<f64>() / n as f64;
        let var: f64 = (0..n).map(|i| (f64::from(x[i * p + j]) - mean[j]).powi(2)).sum();
        sd[j] = (var / n as f64).sqrt();
    }
    let m = faer::Mat::from_fn(n, p, |i, j| (f64::from(x[i * p + j]) - mean[j]) / sd[j]);
    let my = y.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
    (m.into(), y.iter().map(|v| f64::from(*v) - my).collect())
}

/// The same arithmetic as in `peers_lasso.py`: a linear congruential generator, so that both
/// sides see the same matrix.
fn synthetic() -> (Design, Vec<f64>) {
    let (n, p, per_column) = (10_000_usize, 100_000_usize, 10);
    let mut state = 12345_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let mut entries = Vec::with_capacity(p * per_column);
    for j in 0..p {
        for _ in 0..per_column {
            let i = (next() * n as f64) as usize;
            entries.push((i, j, 2.0 * next() - 1.0));
        }
    }
    let x = Csc::from_triplets(n, p, &entries).unwrap();
    let mut w = vec![0.0; p];
    for k in 0..200 {
        w[k * 500] = 2.0 * next() - 1.0;
    }
    let mut y = vec![0.0; n];
    x.apply(&w, &mut y);
    y.iter_mut().for_each(|y| *y += 0.05 * (2.0 * next() - 1.0));
    (x.into(), y)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = FilePath::new(&args[1]);
    let repeats: usize = args.get(2).map_or(5, |v| v.parse().unwrap());
    let names: Vec<&str> = args.iter().skip(3).map(String::as_str).collect();
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    let load = |name: &str| match name {
        "california" => california(&dir.join("regression/california_housing.npz")),
        "synthetic" => synthetic(),
        _ => libsvm(&dir.join(format!("sparse-linear/{name}.gz"))),
    };
    for name in ["california", "pcmac.libsvm", "a9a", "synthetic"] {
        if !wanted(name) {
            continue;
        }
        let (x, y) = load(name);
        let problem = Problem::new(&x, &y);
        let yy: f64 = 0.5 * y.iter().map(|v| v * v).sum::<f64>() / y.len() as f64;
        let tolerances: &[f64] = if name == "synthetic" { &[1e-6] } else { &[1e-6, 1e-8, 1e-12] };
        for &tolerance in tolerances {
            let settings = GlmSettings { fit_intercept: false, tolerance, ..Default::default() };
            let grid = AlphaGrid { ratio: 0.01, ..Default::default() };
            for _ in 0..repeats {
                let start = Instant::now();
                let path = glm::path(&problem, &grid, &settings, &mut Monitor::silent()).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                let gap = path.solutions.iter().map(|s| s.residuals[0].value / yy).fold(0.0, f64::max);
                let sets: usize = path.solutions.iter().map(|s| s.iterations).sum();
                let last = path.solutions.last().unwrap();
                let nnz = last.x.nnz();
                println!(
                    "{{\"work\": \"lasso-path\", \"data\": \"{name}\", \"tolerance\": {tolerance:e}, \"seconds\": {seconds:.5}, \
                     \"gap\": {gap:.2e}, \"nnz\": {nnz}, \"sets\": {sets}, \"objective\": {:.12}, \"status\": \"{:?}\"}}",
                    last.objective, path.status
                );
            }
        }
        if !matches!(name, "pcmac.libsvm" | "a9a") {
            continue;
        }
        for tolerance in [1e-6, 1e-9, 1e-12] {
            let settings =
                GlmSettings { loss: Loss::Logistic, fit_intercept: false, tolerance, ..Default::default() };
            let alpha = glm::alpha_max(&problem, &settings).unwrap() / 20.0;
            for _ in 0..repeats {
                let start = Instant::now();
                let s = glm::solve(&problem, alpha, &settings, None, &mut Monitor::silent()).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                println!(
                    "{{\"work\": \"logistic\", \"data\": \"{name}\", \"tolerance\": {tolerance:e}, \"seconds\": {seconds:.5}, \
                     \"gap\": {:.2e}, \"nnz\": {}, \"sets\": {}, \"objective\": {:.12}, \"status\": \"{:?}\"}}",
                    s.residuals[0].value / std::f64::consts::LN_2,
                    s.x.nnz(),
                    s.iterations,
                    s.objective,
                    s.status
                );
            }
        }
    }
}
