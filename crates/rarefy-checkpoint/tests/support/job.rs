//! A small pruning job to be written.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use super::tiny;
use rarefy_checkpoint::{
    Checkpoint, CheckpointError as E, CheckpointWriter, DType, OutTensor, OutputFormat, ShapeName,
    WriteSummary, layout, to_dtype,
};
use rarefy_sparsity::Pattern;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The linear layers of a block with every `1 − keep/4`-th weight of a group of four zeroed.
pub fn pruned(source: &Checkpoint, block: usize, keep: usize, pattern: Pattern) -> Vec<OutTensor> {
    layout::prunable(source.config(), block)
        .into_iter()
        .map(|l| {
            let dtype = source.tensors()[&l.tensor].dtype;
            let mut w = source.read_f32(&l.tensor).unwrap();
            w.iter_mut()
                .enumerate()
                .filter(|(i, _)| (i + i / l.cols) % 4 >= keep)
                .for_each(|(_, v)| *v = 0.0);
            OutTensor {
                name: l.tensor,
                shape: vec![l.rows, l.cols],
                dtype,
                data: to_dtype(&w, dtype),
                pattern: Some(pattern),
                quant: None,
            }
        })
        .collect()
}

pub struct Job {
    pub source: Checkpoint,
    pub out: PathBuf,
    pub format: OutputFormat,
    pub keep: usize,
    pub pattern: Pattern,
}

impl Job {
    pub fn new(dir: &Path, format: OutputFormat) -> Self {
        Self::with(dir, format, ShapeName::TinyLlama, DType::BF16, 2, Pattern::NM { n: 2, m: 4 })
    }

    pub fn with(
        dir: &Path,
        format: OutputFormat,
        shape: ShapeName,
        dtype: DType,
        keep: usize,
        pattern: Pattern,
    ) -> Self {
        let source = dir.join(format!("{shape}-{dtype}"));
        if !source.exists() {
            tiny(dir, shape, dtype);
        }
        Self { source: Checkpoint::open(&source).unwrap(), out: dir.join("out"), format, keep, pattern }
    }

    pub fn writer(&self) -> Result<CheckpointWriter, E> {
        CheckpointWriter::create(&self.out, &self.source, self.format, "key", false)
    }

    pub fn part(&self, w: &mut CheckpointWriter, block: usize) -> Result<(), E> {
        w.write_part(
            &format!("block {block}"),
            pruned(&self.source, block, self.keep, self.pattern),
            json!({ "block": block }),
        )
    }

    pub fn complete(&self) -> WriteSummary {
        let mut w = self.writer().unwrap();
        for block in 0..2 {
            if !w.is_done(&format!("block {block}")) {
                self.part(&mut w, block).unwrap();
            }
        }
        w.finish(&json!({ "method": "test" })).unwrap()
    }

    pub fn staging(&self) -> PathBuf {
        self.out.with_file_name("out.rarefy-partial")
    }

    pub fn want(&self) -> BTreeMap<String, Vec<f32>> {
        (0..2)
            .flat_map(|b| pruned(&self.source, b, self.keep, self.pattern))
            .map(|t| {
                let mut v = Vec::new();
                let file = super::tensors(&[("t", t.dtype.code(), t.shape.clone(), t.data.clone())]);
                let dir = tempfile::tempdir().unwrap();
                std::fs::write(dir.path().join("t"), file).unwrap();
                v.extend(
                    rarefy_checkpoint::TensorStore::open_file(&dir.path().join("t"))
                        .unwrap()
                        .read_f32("t")
                        .unwrap(),
                );
                (t.name, v)
            })
            .collect()
    }
}
