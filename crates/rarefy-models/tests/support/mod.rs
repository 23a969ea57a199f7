//! What the integration tests share.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use npyz::NpyFile;
use rarefy_checkpoint::{Checkpoint, CheckpointWriter, DType, OutTensor, OutputFormat, to_dtype};
use rarefy_sparsity::Pattern;

/// The folder of golden files.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

pub(crate) fn tiny(name: &str) -> Checkpoint {
    Checkpoint::open(&golden().join("models").join(name)).unwrap()
}

/// Every tiny model.
pub(crate) const TINY: [&str; 7] = [
    "tiny-llama",
    "tiny-llama-linear-rope",
    "tiny-llama3-rope",
    "tiny-mistral",
    "tiny-opt",
    "tiny-opt-350m-style",
    "tiny-qwen2",
];

/// The folder of real models, or a loud note that the test did nothing.
pub(crate) fn real_models(test: &str) -> Option<PathBuf> {
    match std::env::var_os("RAREFY_DATA") {
        Some(data) => Some(PathBuf::from(data).join("../models")),
        None => {
            eprintln!(
                "SKIPPED: {test} needs RAREFY_DATA (a folder with the data sets, the models beside it)"
            );
            None
        }
    }
}

/// A text of the real data, decompressed.
pub(crate) fn real_text(name: &str) -> String {
    let path = PathBuf::from(std::env::var_os("RAREFY_DATA").unwrap()).join("text").join(name);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(File::open(path).unwrap()), &mut text)
        .unwrap();
    text
}

pub(crate) fn npy_f32(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let npy = NpyFile::new(std::io::BufReader::new(File::open(path).unwrap())).unwrap();
    (npy.shape().to_vec(), npy.into_vec::<f32>().unwrap())
}

pub(crate) fn npy_tokens(path: &Path) -> Vec<u32> {
    let npy = NpyFile::new(std::io::BufReader::new(File::open(path).unwrap())).unwrap();
    npy.into_vec::<i64>().unwrap().into_iter().map(|t| u32::try_from(t).unwrap()).collect()
}

pub(crate) fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec::<f32>().unwrap()
}

/// Largest absolute difference; the lengths must agree.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// Repeatable tokens.
pub(crate) fn some_tokens(n: usize, vocab: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 31 + i * 7 + seed * 101) % vocab) as u32).collect()
}

/// Keeps the larger half of each aligned group of `m`: half of the values become zero, by the pattern `m / 2 : m`.
pub(crate) fn halve(weights: &mut [f32], m: usize) {
    for group in weights.chunks_mut(m) {
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|a, b| group[*a].abs().total_cmp(&group[*b].abs()).then(a.cmp(b)));
        for i in &order[..group.len() / 2] {
            group[*i] = 0.0;
        }
    }
}

/// Writes `source` with its linear layers halved by `m` into `out`.
pub(crate) fn write_halved(
    source: &Checkpoint,
    out: &Path,
    m: usize,
    pattern: &Pattern,
    dtype: DType,
    format: OutputFormat,
) {
    let mut prunable = std::collections::BTreeSet::new();
    for block in 0..source.config().n_layers {
        for l in rarefy_checkpoint::layout::prunable(source.config(), block) {
            prunable.insert(l.tensor);
        }
    }
    let tensors = source
        .tensors()
        .values()
        .map(|t| {
            let mut w = source.read_f32(&t.name).unwrap();
            let pattern = prunable.contains(&t.name).then_some(*pattern);
            if pattern.is_some() {
                halve(&mut w, m);
            }
            OutTensor {
                name: t.name.clone(),
                shape: t.shape.clone(),
                dtype,
                data: to_dtype(&w, dtype),
                pattern,
                quant: None,
            }
        })
        .collect();
    write_model(source, out, tensors, format);
}

pub(crate) fn write_model(source: &Checkpoint, out: &Path, tensors: Vec<OutTensor>, format: OutputFormat) {
    let mut writer = CheckpointWriter::create(out, source, format, "test", false).unwrap();
    writer.write_part("all", tensors, serde_json::Value::Null).unwrap();
    writer.finish(&serde_json::json!({})).unwrap();
}
