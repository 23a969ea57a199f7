//! Writing a model folder part by part, resumable after a crash at any moment.

pub(crate) mod assemble;
mod describe;
mod encode;
pub(crate) mod new_model;
pub(crate) mod record;
pub(crate) mod staging;

use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::{CheckpointError, Result};
use crate::fsutil::{beside, parent, put, sync_dir, write_synced};
use crate::hash::Xxh64;
use crate::json;
use crate::safetensors::TensorFile;
use crate::store::{Storage, TensorStore};
use assemble::{Item, WeightFile};
use encode::Record;
use rarefy_sparsity::Pattern;
use staging::{Entry, Staging};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How pruned weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Plain values with zeros; readable by everything.
    Dense,
    /// The packed formats of this project: N:M for N:M patterns, bitmask panels otherwise.
    Packed,
    /// compressed-tensors `sparse-bitmask`.
    SparseBitmask,
    /// compressed-tensors `sparse-24-bitmask`; every pruned weight must be 2:4.
    Sparse24Bitmask,
    /// compressed-tensors `pack-quantized`.
    PackQuantized {
        /// Bits of one code: 2, 3, 4 or 8.
        bits: u32,
        /// Columns that share a scale; 0: the whole row.
        group: usize,
    },
}

impl std::fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Packed => f.write_str("packed"),
            Self::SparseBitmask => f.write_str("sparse-bitmask"),
            Self::Sparse24Bitmask => f.write_str("sparse-24-bitmask"),
            Self::PackQuantized { bits, group } => write!(f, "pack-quantized:{bits}:{group}"),
        }
    }
}

/// The grid on which the values of a quantised weight lie: `w = (q − z) · s`, with whole `q` and `z` in
/// `[−2^(bits−1), 2^(bits−1) − 1]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantGrid {
    /// Bits of one code.
    pub bits: u32,
    /// Columns that share a scale; 0: the whole row.
    pub group: usize,
    /// `s`, `[rows, groups]`, positive.
    pub scale: Vec<f32>,
    /// `z`, `[rows, groups]`; `None`: 0 everywhere.
    pub zero_point: Option<Vec<i32>>,
}

/// One tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct OutTensor {
    /// Full name, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// Values, little endian.
    pub data: Vec<u8>,
    /// For a pruned linear layer, which may be packed: the pattern of its zeros.
    pub pattern: Option<Pattern>,
    /// For `pack-quantized`: the grid on which the values lie. Without it the grid of the largest magnitude per group is
    /// used, and values are rounded to it.
    pub quant: Option<QuantGrid>,
}

/// How one weight was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTensor {
    /// Full name.
    pub name: String,
    /// Its form in the output.
    pub storage: Storage,
    /// Bytes of its parts.
    pub stored_bytes: u64,
    /// Bytes as plain values.
    pub dense_bytes: u64,
}

/// What [`CheckpointWriter::finish`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSummary {
    /// The finished folder.
    pub out: PathBuf,
    /// Weight files with their sizes in bytes.
    pub files: Vec<(String, u64)>,
    /// All weights, by name.
    pub tensors: Vec<WrittenTensor>,
    /// Weights that no part held: copied from the source.
    pub copied: Vec<String>,
    /// Pruned weights stored as plain values although the format packs, because packing would not have made them smaller.
    pub kept_dense: Vec<String>,
    /// The staging folder, if it could not be removed; the output is complete nevertheless.
    pub leftover: Option<PathBuf>,
}

impl WriteSummary {
    /// Bytes of all weight files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.1).sum()
    }
}

/// Writes a model folder part by part.
///
/// The folder appears complete or not at all. Until [`finish`](Self::finish) everything is in a staging folder named
/// like the output with `.rarefy-partial` appended, beside it. Dropping the writer, or the end of the process at any
/// moment, keeps the finished parts there; creating a writer with the same arguments resumes. The same parts give the
/// same bytes, however often the work was interrupted. Staging and output together need twice the size of the output on
/// disk for a moment.
#[derive(Debug)]
pub struct CheckpointWriter {
    source: Checkpoint,
    format: OutputFormat,
    run_key: String,
    shard_bytes: u64,
    files: Vec<(String, Vec<u8>)>,
    staging: Staging,
}

/// Files of a model folder that are copied unchanged.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];
/// Largest of them accepted, in bytes.
const MAX_COPIED_BYTES: u64 = 128 << 20;

impl CheckpointWriter {
    /// Begins or resumes writing `out`. `run_key` stands for everything that determines the result (source, method,
    /// settings, seed); unfinished work under another key is refused. With `overwrite` an existing model folder at `out`
    /// is replaced, at the end.
    ///
    /// # Errors
    /// [`OutputIsInput`](CheckpointError::OutputIsInput), [`OutputExists`](CheckpointError::OutputExists),
    /// [`AlreadyComplete`](CheckpointError::AlreadyComplete) (the same run wrote `out`, `overwrite` not given),
    /// [`OutputNotAModel`](CheckpointError::OutputNotAModel), [`OtherRun`](CheckpointError::OtherRun),
    /// [`Locked`](CheckpointError::Locked), [`ReadOnly`](CheckpointError::ReadOnly),
    /// [`DiskFull`](CheckpointError::DiskFull), [`Io`](CheckpointError::Io).
    pub fn create(
        out: &Path,
        source: &Checkpoint,
        format: OutputFormat,
        run_key: &str,
        overwrite: bool,
    ) -> Result<Self> {
        let input = source.dir().canonicalize().map_err(|e| CheckpointError::io(source.dir(), "read", e))?;
        let inside = |out: &Path| resolved(out).starts_with(&input);
        if inside(out) {
            return Err(CheckpointError::OutputIsInput { out: out.into() });
        }
        // Again once the folders above exist: only then `..` behind a folder that was missing can be followed.
        let above = parent(out);
        std::fs::create_dir_all(above).map_err(|e| CheckpointError::io(above, "create", e))?;
        if inside(out) {
            return Err(CheckpointError::OutputIsInput { out: out.into() });
        }
        let staging = Staging::open(out, run_key, &format.to_string(), overwrite)?;
        Ok(Self {
            source: source.clone(),
            format,
            run_key: run_key.into(),
            shard_bytes: assemble::SHARD_BYTES,
            files: Vec::new(),
            staging,
        })
    }

    /// Sets the largest size of a weight file in bytes of data; the default is 5 GB.
    #[must_use]
    pub fn with_shard_bytes(mut self, bytes: u64) -> Self {
        self.shard_bytes = bytes;
        self
    }

    /// Adds a small file of this name to the folder; it appears together with the weights.
    #[must_use]
    pub fn with_file(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.files.push((name.into(), bytes));
        self
    }

    /// The staging folder.
    pub fn staging(&self) -> &Path {
        self.staging.dir()
    }

    /// Whether a part is finished, in this process or an earlier one.
    pub fn is_done(&self, part: &str) -> bool {
        self.staging.entries().contains_key(part)
    }

    /// Writes the tensors of a part, with a note that [`read_note`](Self::read_note) gives back. When this returns, the
    /// part survives a crash. A part may be written again; each tensor belongs to one part.
    ///
    /// # Errors
    /// [`BadOutput`](CheckpointError::BadOutput), [`OffGrid`](CheckpointError::OffGrid),
    /// [`DiskFull`](CheckpointError::DiskFull), [`Io`](CheckpointError::Io).
    pub fn write_part(&mut self, part: &str, tensors: Vec<OutTensor>, note: serde_json::Value) -> Result<()> {
        let mut records = Vec::new();
        let mut arrays = BTreeMap::new();
        for tensor in tensors {
            let name = tensor.name.clone();
            let twice = |what: String| CheckpointError::BadOutput { tensor: name.clone(), reason: what };
            if let Some(other) = self
                .staging
                .entries()
                .values()
                .find(|e| e.part != part && e.tensors.iter().any(|r| r.name == name))
            {
                return Err(twice(format!(
                    "part `{}` holds it already; give each tensor to one part",
                    other.part
                )));
            }
            let (record, parts) = encode::encode(tensor, self.format)?;
            for a in parts {
                if let Some(a) = arrays.insert(a.name.clone(), a) {
                    return Err(twice(format!("`{}` would be written twice by this part", a.name)));
                }
            }
            records.push(record);
        }
        let file = Staging::part_file(part);
        let path = self.staging.part_path(&file);
        let temporary = beside(&path, ".tmp");
        let items = arrays.values().map(|a| Item {
            name: a.name.clone(),
            dtype: a.dtype,
            shape: a.shape.clone(),
            bytes: a.data.len() as u64,
            fill: Box::new(|sink| sink(&a.data)),
        });
        let mut hash = Xxh64::new();
        let bytes = assemble::write_file(&temporary, items.collect(), &mut |b| hash.update(b))?;
        std::fs::rename(&temporary, &path).map_err(|e| CheckpointError::io(&path, "rename", e))?;
        sync_dir(parent(&path))?;
        self.staging.record(Entry {
            part: part.into(),
            file,
            bytes,
            xxh3: hash.hex(),
            tensors: records,
            note,
        })
    }

    fn open_part(&self, part: &str) -> Result<TensorStore> {
        let Some(entry) = self.staging.entries().get(part) else {
            return Err(CheckpointError::PartNotWritten {
                staging: self.staging.dir().into(),
                part: part.into(),
            });
        };
        let path = self.staging.part_path(&entry.file);
        let records: Vec<&Record> = entry.tensors.iter().collect();
        let config = describe::config(&serde_json::Value::Null, None, self.format, &records);
        TensorStore::build(&path, &path, vec![TensorFile::open(&path)?], &config)
    }

    /// A tensor of a finished part, decoded: the values that the finished model will hold.
    ///
    /// # Errors
    /// [`PartNotWritten`](CheckpointError::PartNotWritten), [`TensorNotFound`](CheckpointError::TensorNotFound).
    pub fn read_part_f32(&self, part: &str, tensor: &str) -> Result<Vec<f32>> {
        self.open_part(part)?.read_f32(tensor)
    }

    /// The note of a finished part.
    pub fn read_note(&self, part: &str) -> Option<serde_json::Value> {
        self.staging.entries().get(part).map(|e| e.note.clone())
    }

    /// Assembles the folder and makes it visible by one rename: weights (single file or shards), config.json, tokenizer
    /// and generation files of the source, and `run_record` with the key of the run and the checksums of the weight files
    /// as `rarefy.json`. Weights that no
    /// part holds are copied from the source (decoded if they are compressed there).
    ///
    /// # Errors
    /// [`OutputExists`](CheckpointError::OutputExists) when another program made the output meanwhile,
    /// [`DiskFull`](CheckpointError::DiskFull), reading and writing errors. The staging folder is kept in all cases.
    pub fn finish(self, run_record: &serde_json::Value) -> Result<WriteSummary> {
        let dir = self.staging.begin_final()?;
        let (files, tensors, copied) = self.write_weights(&dir)?;
        let records: Vec<&Record> = self.staging.entries().values().flat_map(|e| &e.tensors).collect();
        let kept_dense = records.iter().filter(|r| r.kept_dense).map(|r| r.name.clone()).collect();
        let config = self.source.config();
        assemble::write_json(
            &dir.join("config.json"),
            &describe::config(&config.raw, Some(config), self.format, &records),
        )?;
        for name in COPIED {
            let from = self.source.dir().join(name);
            if from.is_file() {
                let bytes =
                    json::read_capped(&from, MAX_COPIED_BYTES, "the source folder changed while in use")?;
                let to = dir.join(name);
                write_synced(&to, &mut |w| put(w, &to, &bytes))?;
            }
        }
        for (name, bytes) in &self.files {
            let to = dir.join(name);
            write_synced(&to, &mut |w| put(w, &to, bytes))?;
        }
        let record = record::with_run(run_record, &self.run_key, &files);
        assemble::write_json(&dir.join(record::FILE), &record)?;
        let out = self.staging.out().to_path_buf();
        let leftover = self.staging.publish()?;
        let files = files.into_iter().map(|f| (f.name, f.bytes)).collect();
        Ok(WriteSummary { out, files, tensors, copied, kept_dense, leftover })
    }

    #[allow(clippy::type_complexity)]
    fn write_weights(&self, dir: &Path) -> Result<(Vec<WeightFile>, Vec<WrittenTensor>, Vec<String>)> {
        let mut written = BTreeMap::new();
        let mut files = Vec::new();
        for entry in self.staging.entries().values() {
            files.push(TensorFile::open(&self.staging.part_path(&entry.file))?);
            for r in &entry.tensors {
                let t = WrittenTensor {
                    name: r.name.clone(),
                    storage: r.storage,
                    stored_bytes: r.stored_bytes,
                    dense_bytes: r.dense_bytes,
                };
                written.insert(r.name.clone(), t);
            }
        }
        let mut items = Vec::new();
        for file in &files {
            for (name, e) in &file.header().entries {
                let fill = move |sink: &mut dyn FnMut(&[u8]) -> Result<()>| file.stream(name, sink);
                items.push(Item {
                    name: name.clone(),
                    dtype: e.dtype,
                    shape: e.shape.clone(),
                    bytes: e.bytes,
                    fill: Box::new(fill),
                });
            }
        }
        let mut copied = Vec::new();
        for (name, l) in
            self.source.tensors().iter().filter(|(n, _)| !written.contains_key(*n)).collect::<Vec<_>>()
        {
            let store = self.source.store();
            let fill = move |sink: &mut dyn FnMut(&[u8]) -> Result<()>| match l.storage {
                Storage::Dense => store.stream(name, sink),
                _ => sink(&store.read_dense(name)?),
            };
            items.push(Item {
                name: name.clone(),
                dtype: l.dtype,
                shape: l.shape.clone(),
                bytes: l.dense_bytes(),
                fill: Box::new(fill),
            });
            let t = WrittenTensor {
                name: name.clone(),
                storage: Storage::Dense,
                stored_bytes: l.dense_bytes(),
                dense_bytes: l.dense_bytes(),
            };
            written.insert(name.clone(), t);
            copied.push(name.clone());
        }
        let files = assemble::write_weights(dir, items, self.shard_bytes)?;
        Ok((files, written.into_values().collect(), copied))
    }

    /// Removes the staging folder with all finished parts.
    ///
    /// # Errors
    /// [`Io`](CheckpointError::Io).
    pub fn abandon(self) -> Result<()> {
        self.staging.abandon()
    }
}

/// `path` with its existing part freed of links and dots.
fn resolved(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut at = path;
    loop {
        let here = if at.as_os_str().is_empty() { Path::new(".") } else { at };
        if let Ok(real) = here.canonicalize() {
            return rest.iter().rev().fold(real, |p: PathBuf, name| p.join(name));
        }
        match (at.parent(), at.file_name()) {
            (Some(up), Some(name)) => {
                rest.push(name);
                at = up;
            }
            _ => return path.into(),
        }
    }
}
