//! A model folder: config.json, one or several safetensors files, their index.

use crate::config::ModelConfig;
use crate::error::{CheckpointError, Result};
use crate::hash::Xxh128;
use crate::json::{self, UniqueMap};
use crate::layout;
use crate::safetensors::TensorFile;
use crate::store::{Logical, StoredWeight, TensorInfo, TensorStore};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Name of the single weight file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the shard index.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Prefix of the weights of the base model in a model with a head.
const BASE_PREFIX: &str = "model.";

/// An open model folder. Cloning is cheap: the copies share the open files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    config: ModelConfig,
    store: TensorStore,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl Checkpoint {
    /// Opens a model folder: reads config.json and validates the headers of all weight files. Of the data only the
    /// stored shapes of compressed weights (16 bytes each) are read.
    ///
    /// # Errors
    /// Everything that [`ModelConfig::open`] and [`Header::parse`](crate::safetensors::Header::parse) refuse;
    /// [`MissingFile`](CheckpointError::MissingFile), [`MissingShard`](CheckpointError::MissingShard),
    /// [`ShardOutsideFolder`](CheckpointError::ShardOutsideFolder),
    /// [`IndexPointsNowhere`](CheckpointError::IndexPointsNowhere),
    /// [`TensorInTwoShards`](CheckpointError::TensorInTwoShards),
    /// [`UnsupportedFormat`](CheckpointError::UnsupportedFormat), [`Corrupt`](CheckpointError::Corrupt).
    pub fn open(dir: &Path) -> Result<Self> {
        let config = ModelConfig::open(dir)?;
        let mut store = TensorStore::open(dir, &config.raw)?;
        // OPT folders in particular: saved from the model without its head, they lack the prefix.
        if store.tensors().keys().all(|name| !name.starts_with(BASE_PREFIX)) {
            let known: BTreeSet<String> = layout::expected(&config).into_iter().map(|s| s.name).collect();
            store = store.prefixed(BASE_PREFIX, &|name| known.contains(name));
        }
        Ok(Self { inner: Arc::new(Inner { dir: dir.into(), config, store }) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Its config.json.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The tensors without the model.
    pub fn store(&self) -> &TensorStore {
        &self.inner.store
    }

    /// The weights, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Logical> {
        self.inner.store.tensors()
    }

    /// The tensors in the files, by name.
    pub fn physical(&self) -> &BTreeMap<String, TensorInfo> {
        self.inner.store.physical()
    }

    /// See [`TensorStore::read_f32`].
    ///
    /// # Errors
    /// See there.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.inner.store.read_f32(name)
    }

    /// See [`TensorStore::read_weight`].
    ///
    /// # Errors
    /// See there.
    pub fn read_weight(&self, name: &str) -> Result<StoredWeight> {
        self.inner.store.read_weight(name)
    }

    /// See [`TensorStore::read_dense`].
    ///
    /// # Errors
    /// See there.
    pub fn read_dense(&self, name: &str) -> Result<Vec<u8>> {
        self.inner.store.read_dense(name)
    }

    /// See [`TensorStore::raw`].
    ///
    /// # Errors
    /// See there.
    pub fn raw(&self, physical_name: &str) -> Result<&[u8]> {
        self.inner.store.raw(physical_name)
    }

    /// Takes mapped pages out of the resident set.
    pub fn release_pages(&self) {
        self.inner.store.release_pages();
    }

    /// Rows and columns of a two-dimensional weight.
    ///
    /// # Errors
    /// [`TensorNotFound`](CheckpointError::TensorNotFound), [`ShapeMismatch`](CheckpointError::ShapeMismatch).
    pub fn matrix_shape(&self, name: &str) -> Result<(usize, usize)> {
        let found = &self.inner.store.tensor(name)?.shape;
        match **found {
            [rows, cols] => Ok((rows, cols)),
            _ => {
                let file = self.inner.store.file_of(name);
                Err(CheckpointError::ShapeMismatch {
                    file,
                    tensor: name.into(),
                    expected: vec![0, 0],
                    found: found.clone(),
                })
            }
        }
    }

    /// Checks that every tensor of the architecture is there, with its shape and a floating-point type. Further tensors
    /// are allowed, see [`extra_tensors`](Self::extra_tensors).
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor), [`ShapeMismatch`](CheckpointError::ShapeMismatch),
    /// [`WrongDType`](CheckpointError::WrongDType).
    pub fn check_layout(&self) -> Result<()> {
        for spec in layout::expected(self.config()) {
            let Some(found) = self.tensors().get(&spec.name) else {
                return Err(CheckpointError::MissingTensor {
                    dir: self.inner.dir.clone(),
                    tensor: spec.name,
                    shape: spec.shape,
                });
            };
            let file = || self.inner.store.file_of(&spec.name);
            if found.shape != spec.shape {
                return Err(CheckpointError::ShapeMismatch {
                    file: file(),
                    tensor: spec.name.clone(),
                    expected: spec.shape,
                    found: found.shape.clone(),
                });
            }
            if !found.dtype.is_float() {
                return Err(CheckpointError::WrongDType {
                    file: file(),
                    tensor: spec.name.clone(),
                    expected: "a floating-point type",
                    found: found.dtype,
                });
            }
        }
        Ok(())
    }

    /// Tensors in the files that the architecture does not use, in order of their names.
    pub fn extra_tensors(&self) -> Vec<String> {
        let known: BTreeSet<String> = layout::expected(self.config()).into_iter().map(|s| s.name).collect();
        self.tensors().keys().filter(|n| !known.contains(*n)).cloned().collect()
    }

    /// Hash of config.json and of all weight files, headers and data: thirty-two hexadecimal digits (XXH3-128). The
    /// files are read as a stream; the name of the folder does not matter.
    ///
    /// # Errors
    /// Reading errors.
    pub fn content_hash(&self) -> Result<String> {
        let mut hash = Xxh128::default();
        let config = self.inner.dir.join("config.json");
        hash.piece(&json::read_capped(&config, json::MAX_CONFIG_BYTES, "the folder changed while in use")?);
        for file in self.inner.store.files() {
            hash.piece(file.path().file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(&file.file_bytes().to_le_bytes());
            file.stream_range(0, file.file_bytes(), &mut |bytes| {
                hash.update(bytes);
                Ok(())
            })?;
        }
        Ok(hash.hex())
    }
}

impl TensorStore {
    /// Opens the weight files of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    /// `config` is the parsed config.json. Files and folder may be symbolic links.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], without those about the architecture.
    pub fn open(dir: &Path, config: &serde_json::Value) -> Result<Self> {
        let config_file = dir.join("config.json");
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            return Self::build(dir, &config_file, vec![TensorFile::open(&single)?], config);
        }
        let bytes = json::read_capped(&index, json::MAX_INDEX_BYTES, "");
        let bytes = bytes.map_err(|e| match e {
            CheckpointError::MissingFile { .. } => CheckpointError::MissingFile {
                path: single,
                remedy: "a model folder holds model.safetensors, or shards with model.safetensors.index.json; convert other weight files (pytorch_model.bin) to safetensors first",
            },
            other => other,
        })?;
        let Index { weight_map: UniqueMap(map) } = json::parse(&index, &bytes)?;
        let mut shards = BTreeSet::new();
        for (tensor, shard) in &map {
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == shard.as_str())
            {
                return Err(CheckpointError::ShardOutsideFolder {
                    index,
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
            shards.insert(shard.as_str());
        }
        let mut files = Vec::new();
        for shard in shards {
            let path = dir.join(shard);
            if !path.exists() {
                return Err(CheckpointError::MissingShard { index, shard: shard.into() });
            }
            files.push(TensorFile::open(&path)?);
        }
        let store = Self::build(dir, &config_file, files, config)?;
        for (tensor, shard) in &map {
            let holds = store
                .physical()
                .get(tensor)
                .is_some_and(|i| i.file.file_name().is_some_and(|n| n == shard.as_str()));
            if !holds {
                return Err(CheckpointError::IndexPointsNowhere {
                    index,
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(store)
    }
}
