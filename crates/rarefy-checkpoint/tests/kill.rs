//! `kill -9` at any moment: nothing half-written is ever visible, and the same command ends with the same bytes.
#![allow(clippy::unwrap_used)]

mod support;

use rarefy_checkpoint::{
    Checkpoint, CheckpointError as E, CheckpointWriter, DType, OutTensor, OutputFormat, ShapeName, layout,
};
use rarefy_sparsity::Pattern;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{snapshot, tiny};

/// Writes `dir/out` from `dir/tiny-llama-F32`, one part per linear layer.
fn work(dir: &Path) {
    let source = Checkpoint::open(&dir.join("tiny-llama-F32")).unwrap();
    let out = dir.join("out");
    let mut w = match CheckpointWriter::create(&out, &source, OutputFormat::Packed, "run", false) {
        Err(E::AlreadyComplete { .. }) => return,
        other => other.unwrap(),
    };
    for block in 0..2 {
        for l in layout::prunable(source.config(), block) {
            if w.is_done(&l.tensor) {
                continue;
            }
            let mut values = source.read_f32(&l.tensor).unwrap();
            values.iter_mut().skip(block).step_by(2).for_each(|v| *v = 0.0);
            let data = rarefy_checkpoint::to_dtype(&values, DType::F32);
            let tensor = OutTensor {
                name: l.tensor.clone(),
                shape: vec![l.rows, l.cols],
                dtype: DType::F32,
                data,
                pattern: Some(Pattern::Unstructured),
                quant: None,
            };
            w.write_part(&l.tensor, vec![tensor], json!({ "layer": l.name })).unwrap();
        }
    }
    w.finish(&json!({ "test": "kill" })).unwrap();
}

/// The process that is killed; does nothing when run as an ordinary test.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os("RAREFY_KILL_TEST_DIR") {
        work(Path::new(&dir));
    }
}

#[test]
fn killed_at_any_moment() {
    let reference = tempfile::tempdir().unwrap();
    tiny(reference.path(), ShapeName::TinyLlama, DType::F32);
    work(reference.path());
    let want = snapshot(&reference.path().join("out"));

    let mut kills = 0;
    for round in 0..6u64 {
        let t = tempfile::tempdir().unwrap();
        tiny(t.path(), ShapeName::TinyLlama, DType::F32);
        let out = t.path().join("out");
        for attempt in 0.. {
            assert!(attempt < 400, "no progress");
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture"])
                .env("RAREFY_KILL_TEST_DIR", t.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Longer each time, so that in the end one attempt is left alone.
            std::thread::sleep(Duration::from_micros(700 * (round + 1) + attempt * 600 * (round + 2)));
            // SIGKILL; fails harmlessly when the process has ended.
            let _ = child.kill();
            let ended = child.wait().unwrap();
            if out.exists() {
                assert_eq!(snapshot(&out), want, "round {round}: what is visible is complete");
            }
            if ended.code().is_some() {
                assert!(ended.success(), "round {round}, attempt {attempt}");
                break;
            }
            kills += 1;
        }
        work(t.path());
        assert_eq!(snapshot(&out), want, "round {round}");
        assert!(!t.path().join("out.rarefy-partial").exists());
    }
    assert!(kills >= 6, "only {kills} processes were killed before they ended");
}
