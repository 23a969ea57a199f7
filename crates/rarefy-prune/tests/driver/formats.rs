//! The same result in every storage.

use rarefy_checkpoint::{Checkpoint, OutputFormat, layout};
use rarefy_prune::RunSettings;
use serde_json::json;

use crate::{model, run, run_with};

#[test]
fn packed_and_compressed_outputs_decode_to_the_dense_one() {
    for name in ["tiny-llama", "tiny-opt", "tiny-mistral"] {
        let source = model(name);
        let cases = [
            ("wanda", json!({"sparsity": 0.7}), OutputFormat::Packed),
            ("sparsegpt", json!({"pattern": "2:4", "block_size": 16}), OutputFormat::Packed),
            ("magnitude", json!({"sparsity": 0.7}), OutputFormat::SparseBitmask),
            ("wanda", json!({"pattern": "2:4"}), OutputFormat::Sparse24Bitmask),
        ];
        for (method, settings, format) in cases {
            let dir = tempfile::tempdir().unwrap();
            let (dense, other) = (dir.path().join("dense"), dir.path().join("other"));
            run(&source, method, &settings, &dense);
            let run_settings = RunSettings { format, ..RunSettings::default() };
            run_with(&source, method, &settings, run_settings, &other).unwrap();
            let (dense, other) = (Checkpoint::open(&dense).unwrap(), Checkpoint::open(&other).unwrap());
            for tensor in source.tensors().keys() {
                assert_eq!(
                    dense.read_dense(tensor).unwrap(),
                    other.read_dense(tensor).unwrap(),
                    "{name} {method} {format}: {tensor}"
                );
            }
        }
    }
}

#[test]
fn joint_quantisation_is_stored_on_its_own_grid() {
    for (group, stored) in [(None, 0), (Some(8), 8)] {
        for name in ["tiny-llama", "tiny-mistral"] {
            let source = model(name);
            let settings = json!({
                "sparsity": 0.5, "quantize_bits": 4, "quantize_group": group, "block_size": 16,
            });
            let dir = tempfile::tempdir().unwrap();
            let (dense, packed) = (dir.path().join("dense"), dir.path().join("packed"));
            run(&source, "sparsegpt", &settings, &dense);
            let format = OutputFormat::PackQuantized { bits: 4, group: stored };
            let run_settings = RunSettings { format, ..RunSettings::default() };
            let report = run_with(&source, "sparsegpt", &settings, run_settings, &packed).unwrap();
            assert!(report.totals.sparsity >= 0.5);
            let (dense, packed) = (Checkpoint::open(&dense).unwrap(), Checkpoint::open(&packed).unwrap());
            for block in 0..source.config().n_layers {
                for linear in layout::prunable(source.config(), block) {
                    let a = dense.read_f32(&linear.tensor).unwrap();
                    let b = packed.read_f32(&linear.tensor).unwrap();
                    // Scales are f32, the dense copy is rounded to the model's type (bf16: 2⁻⁸).
                    for (a, b) in a.iter().zip(&b) {
                        assert!((a - b).abs() <= 0.004 * a.abs(), "{name} {}: {a} {b}", linear.tensor);
                    }
                }
            }
        }
    }
}
