//! Interrupted at any event and resumed: the same bytes.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use rarefy_prune::{PruneError, PruneRun, RunSettings};

use crate::{CancelAt, files, model, run, run_with, tokens, variants};

/// Runs with a cancellation at event `at`, then again until it ends; returns how often it stopped.
fn interrupted(
    source: &rarefy_checkpoint::Checkpoint,
    method: &str,
    settings: &serde_json::Value,
    out: &std::path::Path,
    at: usize,
) -> usize {
    let calibration = tokens(source, 3, 16);
    let mut stops = 0;
    loop {
        let flag = AtomicBool::new(false);
        // The first runs stop at `at`, later ones a little later, so that progress is made.
        let mut progress = CancelAt { left: AtomicUsize::new(at + stops), flag: &flag };
        let pruning = PruneRun::by_name(method, settings, RunSettings::default()).unwrap();
        match pruning.run(source, &calibration, out, &mut progress, &flag) {
            Ok(_) => return stops,
            Err(PruneError::Cancelled { blocks_done, blocks, output }) => {
                assert!(blocks_done <= blocks && output == out);
                assert!(!out.exists(), "a cancelled run must not leave an output folder");
                stops += 1;
                assert!(stops < 200);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn interrupted_runs_end_with_the_same_bytes() {
    for name in ["tiny-llama", "tiny-opt"] {
        let source = model(name);
        for (method, settings) in variants() {
            let dir = tempfile::tempdir().unwrap();
            let whole = dir.path().join("whole");
            run(&source, method, &settings, &whole);
            let expected = files(&whole);
            let mut stopped = 0;
            for at in [0, 2, 3, 5, 8, 11, 14, 17, 20, 26, 33] {
                let out = dir.path().join(format!("at-{at}"));
                stopped += interrupted(&source, method, &settings, &out, at);
                let got = files(&out);
                assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (file, bytes) in &got {
                    assert!(*bytes == expected[file], "{name} {method} at {at}: {file} differs");
                }
            }
            assert!(stopped >= 5, "{name} {method}: only {stopped} interruptions");
        }
    }
}

#[test]
fn runs_and_threads_give_the_same_bytes() {
    let source = model("tiny-qwen2");
    for (method, settings) in variants() {
        let dir = tempfile::tempdir().unwrap();
        let run_on = |threads: usize, name: &str| {
            let out = dir.path().join(name);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&source, method, &settings, &out));
            files(&out)
        };
        let first = run_on(2, "a");
        assert!(first == run_on(2, "b"), "{method}: two runs differ");
        assert!(first == run_on(1, "c"), "{method}: one and two threads differ");
    }
}

#[test]
fn another_run_does_not_take_over_unfinished_work() {
    let source = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let flag = AtomicBool::new(false);
    let mut progress = CancelAt { left: AtomicUsize::new(6), flag: &flag };
    let first =
        PruneRun::by_name("wanda", &serde_json::json!({"sparsity": 0.5}), RunSettings::default()).unwrap();
    let calibration = tokens(&source, 3, 16);
    assert!(first.run(&source, &calibration, &out, &mut progress, &flag).is_err());
    // Other settings, other calibration, other seed: refused, not mixed.
    let none = AtomicBool::new(false);
    let other =
        PruneRun::by_name("wanda", &serde_json::json!({"sparsity": 0.6}), RunSettings::default()).unwrap();
    assert!(matches!(other.run(&source, &calibration, &out, &mut (), &none), Err(PruneError::Checkpoint(_))));
    let shorter = tokens(&source, 2, 16);
    assert!(matches!(first.run(&source, &shorter, &out, &mut (), &none), Err(PruneError::Checkpoint(_))));
    let seeded = RunSettings { seed: 1, ..RunSettings::default() };
    assert!(run_with(&source, "wanda", &serde_json::json!({"sparsity": 0.5}), seeded, &out).is_err());
    first.run(&source, &calibration, &out, &mut (), &none).unwrap();
}
