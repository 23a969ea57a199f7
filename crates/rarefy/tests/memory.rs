//! Resident memory of the commands on a model that is much larger than what they may keep: 125 million random weights.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{json, rarefy, succeed, text};

const MB: u64 = 1_000_000;

/// Largest resident size of a command, in bytes, as its status file shows it until it ends.
fn peak(arguments: &[&str]) -> u64 {
    let mut child = rarefy().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // A process that has ended but was not waited for has no such line any more.
        if let Some(kib) = std::fs::read_to_string(&status).ok().and_then(|s| high_water_mark(&s)) {
            peak = peak.max(kib * 1024);
        }
        if let Some(code) = child.try_wait().unwrap() {
            assert!(code.success(), "{arguments:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn model(folder: &Path) -> String {
    let model = text(&folder.join("model")).to_owned();
    succeed(&["synth", "--shape", "opt-125m", "--dtype", "bf16", "-o", &model]);
    model
}

#[test]
fn inspecting_reads_as_a_stream_and_pruning_keeps_to_its_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let stored = std::fs::metadata(Path::new(&model).join("model.safetensors")).unwrap().len();
    assert!(stored > 240 * MB);

    let inspect = peak(&["inspect", &model]);
    assert!(inspect > MB && inspect < 100 * MB, "inspect kept {inspect} bytes resident");

    let words = folder.path().join("words.txt");
    std::fs::write(&words, "sparse matrices are quick to multiply\n".repeat(100)).unwrap();
    for method in ["wanda", "sparsegpt", "magnitude"] {
        let out = folder.path().join(method);
        let made = json(&[
            "prune",
            &model,
            "-o",
            text(&out),
            "--method",
            method,
            "--sparsity",
            "0.5",
            "--calibrate",
            text(&words),
            "--samples",
            "4",
            "--length",
            "128",
            "--max-layer",
            "2",
        ]);
        let (used, predicted) =
            (made["peak_resident_bytes"].as_u64().unwrap(), made["predicted_peak_bytes"].as_u64().unwrap());
        assert!(used <= predicted, "{method}: {used} bytes resident, {predicted} predicted");
        assert!(predicted < 500 * MB, "{method}: {predicted} bytes predicted");
    }
}
