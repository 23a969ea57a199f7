//! The driver on the tiny models of `tests/golden/models`, every registered method.

#![allow(clippy::unwrap_used, missing_docs)]

mod faults;
mod formats;
mod resume;
mod semantics;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rarefy_checkpoint::Checkpoint;
use rarefy_prune::{Event, Progress, PruneError, PruneReport, PruneRun, RunSettings};
use serde_json::{Value, json};

pub(crate) const MODELS: [&str; 7] = [
    "tiny-llama",
    "tiny-llama3-rope",
    "tiny-llama-linear-rope",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-opt",
    "tiny-opt-350m-style",
];

pub(crate) fn model(name: &str) -> Checkpoint {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name);
    Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// `n` sequences of `length` pseudo-random tokens.
pub(crate) fn tokens(source: &Checkpoint, n: usize, length: usize) -> Vec<Vec<u32>> {
    let vocab = source.config().vocab_size as u64;
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % vocab
    };
    (0..n).map(|_| (0..length).map(|_| next() as u32).collect()).collect()
}

/// Method settings that fit the tiny models, one for each method and main variant.
pub(crate) fn variants() -> Vec<(&'static str, Value)> {
    vec![
        ("magnitude", json!({"sparsity": 0.5})),
        ("magnitude", json!({"pattern": "2:4"})),
        ("wanda", json!({"sparsity": 0.5})),
        ("wanda", json!({"pattern": "4:8"})),
        ("wanda", json!({"sparsity": 0.5, "variant": true})),
        ("wanda", json!({"sparsity": 0.5, "granularity": "layer", "compat": true})),
        ("sparsegpt", json!({"sparsity": 0.6, "block_size": 16})),
        ("sparsegpt", json!({"pattern": "2:4", "quantize_bits": 4})),
        ("sparsegpt", json!({"sparsity": 0.5, "block_size": 16, "mask": "wanda-seq"})),
        ("sparsegpt", json!({"sparsity": 0.5, "block_size": 16, "compat": true})),
    ]
}

pub(crate) fn run_with(
    source: &Checkpoint,
    method: &str,
    settings: &Value,
    run: RunSettings,
    out: &Path,
) -> Result<PruneReport, PruneError> {
    let calibration = tokens(source, 3, 16);
    PruneRun::by_name(method, settings, run)?.run(source, &calibration, out, &mut (), &AtomicBool::new(false))
}

pub(crate) fn run(source: &Checkpoint, method: &str, settings: &Value, out: &Path) -> PruneReport {
    run_with(source, method, settings, RunSettings::default(), out).unwrap()
}

/// All files of a folder.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| {
            let path = e.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
        })
        .collect()
}

/// Sets the flag at the `n`-th event.
pub(crate) struct CancelAt<'a> {
    pub(crate) left: AtomicUsize,
    pub(crate) flag: &'a AtomicBool,
}

impl Progress for CancelAt<'_> {
    fn event(&mut self, _event: &Event<'_>) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}
