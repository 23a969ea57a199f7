//! Peak resident memory against the prediction, on a random model of the TinyLlama-1.1B shape.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rarefy_checkpoint::{Checkpoint, DType, ShapeName, synth};
use rarefy_prune::{Event, Progress, PruneRun, RunSettings};

const MIB: f64 = 1024.0 * 1024.0;

/// Peak resident size since the last reset, bytes.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

struct Watch(Instant);

impl Progress for Watch {
    fn event(&mut self, event: &Event<'_>) {
        let at = self.0.elapsed().as_secs_f64();
        match event {
            Event::Planned(plan) => println!("{plan}"),
            Event::BlockDone { block, .. } => {
                println!("{at:6.1} s: block {block} done, peak {:.0} MiB", peak_resident() as f64 / MIB);
            }
            Event::Started { .. } | Event::Finishing => {
                println!("{at:6.1} s: peak {:.0} MiB", peak_resident() as f64 / MIB);
            }
            _ => {}
        }
    }
}

/// Runs one method; the peak must stay below the prediction, and the prediction within a quarter.
fn measure(source: &Checkpoint, method: &str, sequences: usize, length: usize, limit: Option<f64>) {
    let dir = tempfile::tempdir().unwrap();
    let calibration: Vec<Vec<u32>> = (0..sequences)
        .map(|s| (0..length).map(|t| ((s * 7919 + t * 104_729) % 32_000) as u32).collect())
        .collect();
    let run = PruneRun::by_name(method, &serde_json::Value::Null, RunSettings::default()).unwrap();
    let predicted = run.predict_memory(source, sequences, length).peak_bytes() as f64 / MIB;
    reset_peak();
    let started = Instant::now();
    let mut watch = Watch(started);
    run.run(source, &calibration, &dir.path().join("out"), &mut watch, &AtomicBool::new(false)).unwrap();
    let peak = peak_resident() as f64 / MIB;
    let seconds = started.elapsed().as_secs_f64();
    println!("{method}: predicted {predicted:.0} MiB, measured {peak:.0} MiB, {seconds:.1} s");
    assert!(peak <= predicted, "{method}: {peak:.0} MiB used, {predicted:.0} predicted");
    assert!(predicted <= 1.25 * peak, "{method}: {predicted:.0} MiB predicted, only {peak:.0} used");
    if let Some(limit) = limit {
        assert!(peak < limit, "{method}: {peak:.0} MiB, the limit is {limit:.0}");
    }
}

fn on_tinyllama(method: &str, sequences: usize, length: usize, limit: Option<f64>) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    synth(ShapeName::TinyLlama11B, DType::BF16, 1, &model).unwrap();
    let source = Checkpoint::open(&model).unwrap();
    measure(&source, method, sequences, length, limit);
}

#[test]
#[ignore = "writes 7 GB and takes minutes: cargo test --release -p rarefy-prune --test memory -- --ignored --nocapture"]
fn magnitude_stays_below_the_prediction() {
    on_tinyllama("magnitude", 0, 0, None);
}

#[test]
#[ignore = "writes 7 GB and takes minutes: cargo test --release -p rarefy-prune --test memory -- --ignored --nocapture"]
fn wanda_stays_below_the_prediction() {
    on_tinyllama("wanda", 16, 512, Some(1.5e9 / MIB));
}

#[test]
#[ignore = "writes 7 GB and takes many minutes: cargo test --release -p rarefy-prune --test memory -- --ignored --nocapture"]
fn sparsegpt_stays_below_the_prediction() {
    on_tinyllama("sparsegpt", 16, 512, None);
}
