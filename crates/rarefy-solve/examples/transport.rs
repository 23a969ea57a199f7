//! Times transport beside `bench/solve/peers_ot.py`: `transport DATA_DIR TASK [REPEATS]`, one JSON line per run.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a measurement, not a library"
)]

use std::time::Instant;

use rarefy_solve::Monitor;
use rarefy_solve::methods::sinkhorn_newton_sparse::{SnsSettings, SnsVariant, solve as sns};
use rarefy_solve::transport::{
    Domain, ExactSettings, SinkhornSettings, Transport, exact, sinkhorn,
    smooth::{self, SmoothSettings},
};

/// Little-endian doubles written by the Python side.
fn read(path: &str) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (file, task) = (&args[1], args[2].as_str());
    let repeats: usize = args.get(3).map_or(3, |r| r.parse().unwrap());
    let c = read(file);
    let n = (c.len() as f64).sqrt() as usize;
    let a = vec![1.0 / n as f64; n];
    let (name, value) = task.split_once('=').unwrap_or((task, "0"));
    let value: f64 = value.parse().unwrap();
    let range = c.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for _ in 0..repeats {
        let start = Instant::now();
        let t = Transport::new(&a, &a, &c).unwrap();
        let mut monitor = Monitor::silent();
        let (iterations, error, cost) = match name {
            "kernel" | "log" => {
                let domain = if name == "log" { Domain::Log } else { Domain::Kernel };
                let limit = if name == "log" { 50 } else { 100_000 };
                let s = SinkhornSettings {
                    regularisation: value * range,
                    domain,
                    max_iterations: limit,
                    ..Default::default()
                };
                let s = sinkhorn(&t, &s, &mut monitor).unwrap();
                (s.iterations, s.residuals[0].value + s.residuals[1].value, s.x.cost)
            }
            "sns" | "ssns" | "full" | "fixed" => {
                let variant = match name {
                    "sns" => SnsVariant::Adaptive,
                    "ssns" => SnsVariant::Safe,
                    "fixed" => SnsVariant::Fixed(8),
                    _ => SnsVariant::Full,
                };
                let s = SnsSettings { eta: 1.0 / (value * range), variant, ..Default::default() };
                let s = sns(&t, &s, &mut monitor).unwrap();
                eprintln!(
                    "{:?} {} sweeps {} newton {} entries",
                    s.status, s.x.sweeps, s.x.newton_steps, s.x.entries
                );
                (s.iterations, s.residuals[0].value, s.x.cost)
            }
            "emd" => {
                let s = exact(&t, &ExactSettings::default(), &mut monitor).unwrap();
                (s.iterations, s.residuals[1].value, s.x.cost)
            }
            "semidual" => {
                let s = SmoothSettings { gamma: value, ..Default::default() };
                let s = smooth::solve(&t, &s, &mut monitor).unwrap();
                eprintln!("{:?} {:?} most {}", s.status, s.residuals, s.x.most_in_a_column);
                (s.iterations, s.residuals[0].value + s.residuals[1].value, s.x.cost)
            }
            other => panic!("no task {other}"),
        };
        println!(
            "{{\"who\":\"rarefy\",\"task\":\"{task}\",\"n\":{n},\"seconds\":{:.5},\"iterations\":{iterations},\"error\":{error:.2e},\"cost\":{cost:.12}}}",
            start.elapsed().as_secs_f64()
        );
    }
}
