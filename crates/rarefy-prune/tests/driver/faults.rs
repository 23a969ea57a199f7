//! Input that must be refused before any work, with a message that names the place.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use rarefy_checkpoint::{Checkpoint, DType, ModelConfig, OutputFormat, ShapeName};
use rarefy_prune::{LayerFilter, MemoryPlan, PruneError, PruneRun, RunSettings, methods};
use serde_json::{Value, json};

use crate::{model, run_with, tokens};

fn refused(
    method: &str,
    settings: Value,
    run: RunSettings,
    calibration: Option<Vec<Vec<u32>>>,
) -> PruneError {
    let source = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let calibration = calibration.unwrap_or_else(|| tokens(&source, 2, 8));
    let error = PruneRun::by_name(method, &settings, run)
        .and_then(|r| r.run(&source, &calibration, &out, &mut (), &AtomicBool::new(false)))
        .unwrap_err();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "something was written before the refusal");
    error
}

#[test]
fn calibration() {
    let run = RunSettings::default;
    let vocab = model("tiny-llama").config().vocab_size as u32;
    let max = model("tiny-llama").config().max_positions;
    let e = refused("wanda", json!({}), run(), Some(vec![]));
    assert!(matches!(e, PruneError::EmptyCalibration { method: "wanda", .. }), "{e}");
    let e = refused("sparsegpt", json!({}), run(), Some(vec![vec![1], vec![]]));
    assert!(matches!(e, PruneError::EmptyCalibration { .. }) && e.to_string().contains("sequence 1"));
    let e = refused("wanda", json!({}), run(), Some(vec![vec![1, vocab]]));
    assert!(matches!(e, PruneError::TokenOutOfRange { sequence: 0, position: 1, .. }), "{e}");
    let e = refused("wanda", json!({}), run(), Some(vec![vec![0; max + 1]]));
    assert!(matches!(e, PruneError::SequenceTooLong { sequence: 0, .. }), "{e}");
}

#[test]
fn settings_shapes_and_formats() {
    let run = RunSettings::default;
    let e = refused("wanda", json!({"sparsity": 1.0}), run(), None);
    assert!(matches!(e, PruneError::Setting(_)), "{e}");
    let e = refused("wand", json!({}), run(), None);
    assert!(matches!(e, PruneError::UnknownMethod { .. }), "{e}");
    let e = refused("sparsegpt", json!({"pattern": "3:7", "block_size": 7}), run(), None);
    assert!(matches!(e, PruneError::PatternMismatch { m: 7, .. }), "{e}");
    assert!(e.to_string().contains("layers.0.self_attn.q_proj"), "{e}");
    let filter = LayerFilter { min_layer: 99, ..LayerFilter::default() };
    let e = refused("magnitude", json!({}), RunSettings { filter, ..run() }, None);
    assert!(matches!(e, PruneError::NothingSelected { min_layer: 99, .. }), "{e}");
    let format = OutputFormat::Sparse24Bitmask;
    let e = refused("wanda", json!({}), RunSettings { format, ..run() }, None);
    assert!(matches!(e, PruneError::Setting(ref s) if s.field == "format"), "{e}");
}

#[test]
fn output_equal_to_input_and_existing_output() {
    let source = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let e = run_with(&source, "magnitude", &json!({}), RunSettings::default(), source.dir()).unwrap_err();
    assert!(matches!(e, PruneError::Checkpoint(_)), "{e}");
    let out = dir.path().join("out");
    run_with(&source, "magnitude", &json!({}), RunSettings::default(), &out).unwrap();
    assert!(run_with(&source, "wanda", &json!({}), RunSettings::default(), &out).is_err());
    let overwrite = RunSettings { overwrite: true, ..RunSettings::default() };
    let report = run_with(&source, "wanda", &json!({}), overwrite, &out).unwrap();
    assert_eq!(report.method, "wanda");
    Checkpoint::open(&out).unwrap();
}

#[test]
fn non_finite_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let source = model("tiny-qwen2"); // F32, one file
    for entry in std::fs::read_dir(source.dir()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    let name = "model.layers.0.mlp.up_proj.weight";
    let info = &source.physical()[name];
    let file = broken.join(info.file.file_name().unwrap());
    let mut bytes = std::fs::read(&file).unwrap();
    let at = info.offset as usize + 40;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let source = Checkpoint::open(&broken).unwrap();
    for method in ["magnitude", "wanda"] {
        let out = dir.path().join(method);
        let e = run_with(&source, method, &json!({}), RunSettings::default(), &out).unwrap_err();
        assert!(e.to_string().contains(name), "{e}");
        assert!(!out.exists());
    }
}

#[test]
fn memory_plan_counts_what_matters() {
    let json = ShapeName::TinyLlama11B.config_json(DType::BF16);
    let config = ModelConfig::from_value(Path::new("config.json"), json).unwrap();
    let plan = |method: &str, s, format| {
        let pruner = (methods::find(method).unwrap().build)(&Value::Null).unwrap();
        MemoryPlan::predict(&config, DType::BF16, s, 512, &*pruner, format)
    };
    let dense = |method, s| plan(method, s, OutputFormat::Dense);
    assert!(dense("sparsegpt", 16).peak_bytes() > dense("wanda", 16).peak_bytes());
    assert!(dense("wanda", 16).peak_bytes() > dense("magnitude", 16).peak_bytes());
    assert!(dense("wanda", 16).peak_bytes() < 1_500_000_000);
    assert_eq!(dense("magnitude", 4), dense("magnitude", 400));
    let packed = plan("magnitude", 0, OutputFormat::Packed);
    assert!(packed.peak_bytes() >= dense("magnitude", 0).peak_bytes());
    let more = dense("wanda", 1016).peak_bytes() - dense("wanda", 16).peak_bytes();
    // The activations, and the share of the allocator's gaps that goes with them.
    let activations = 1000.0 * 512.0 * 4.0 * 2048.0;
    assert!((1.0..1.05).contains(&(more as f64 / activations)), "{more}");
    let text = dense("wanda", 16).to_string();
    assert!(text.starts_with("peak ") && text.contains("MiB while"), "{text}");
}
