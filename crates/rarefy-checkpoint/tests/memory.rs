//! Resident memory: opening reads headers only, reading a tensor leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use rarefy_checkpoint::{Checkpoint, DType, ModelConfig, ShapeName, layout};
use std::path::Path;

/// A field of /proc/self/status in MiB.
fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// A folder of the TinyLlama-1.1B shape in bf16, 2.2 GB, whose weights are a hole in the file.
fn hollow(dir: &Path) {
    let config = ShapeName::TinyLlama11B.config_json(DType::BF16);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let model = ModelConfig::from_value(dir, config).unwrap();
    let (mut header, mut at) = (String::from("{"), 0);
    for spec in layout::expected(&model) {
        let end = at + 2 * spec.shape.iter().product::<usize>();
        let comma = if at == 0 { "" } else { "," };
        header.push_str(&format!(
            r#"{comma}"{}":{{"dtype":"BF16","shape":{:?},"data_offsets":[{at},{end}]}}"#,
            spec.name, spec.shape
        ));
        at = end;
    }
    header.push('}');
    let path = dir.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + at as u64).unwrap();
}

#[test]
fn opening_a_model_of_2_gigabytes_takes_less_than_100_megabytes() {
    let Some(_) = status("VmHWM") else {
        eprintln!("SKIPPED: no /proc/self/status here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    hollow(dir.path());
    let model = Checkpoint::open(dir.path()).unwrap();
    model.check_layout().unwrap();
    assert_eq!(model.tensors().values().map(|l| l.stored_bytes).sum::<u64>(), 2_200_096_768);
    let peak = status("VmHWM").unwrap();
    assert!(peak < 100, "{peak} MiB after opening");

    // One matrix at a time: 2048 × 5632 in f32 is 44 MiB, whatever the number of matrices read.
    for block in 0..4 {
        for l in layout::prunable(model.config(), block) {
            assert_eq!(model.read_f32(&l.tensor).unwrap().len(), l.rows * l.cols);
        }
    }
    let peak = status("VmHWM").unwrap();
    assert!(peak < 100, "{peak} MiB after reading 28 matrices one by one");

    // The memory map gives its pages back. The embedding has 125 MiB.
    let sum: u64 = model.raw("model.embed_tokens.weight").unwrap().iter().map(|&b| u64::from(b)).sum();
    assert_eq!(sum, 0);
    let mapped = status("VmRSS").unwrap();
    model.release_pages();
    let released = status("VmRSS").unwrap();
    assert!(mapped >= released + 100, "{mapped} MiB with the map, {released} MiB after releasing it");
}
