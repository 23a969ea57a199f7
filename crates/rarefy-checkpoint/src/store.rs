//! The tensors of a folder: where they lie, how they are stored, and their decoded values. Knows nothing of models.

use crate::compressed::{config::QuantConfig, plan};
use crate::dtype::{DType, extend_f32};
use crate::error::{CheckpointError, Result};
use crate::packed::{self, PackedConfig};
use crate::safetensors::TensorFile;
use half::{bf16, f16};
use rarefy_sparsity::formats::{BitmaskPanel, NmPacked};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor as it lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// File.
    pub file: PathBuf,
    /// First byte, counted from the beginning of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// Plain values.
    Dense,
    /// compressed-tensors `sparse-bitmask`.
    SparseBitmask,
    /// compressed-tensors `sparse-24-bitmask`.
    Sparse24Bitmask,
    /// compressed-tensors `pack-quantized`.
    PackQuantized {
        /// Bits of one code.
        bits: u32,
    },
    /// compressed-tensors `int-quantized`.
    IntQuantized,
    /// compressed-tensors `float-quantized`.
    FloatQuantized,
    /// Bitmask panel of this project.
    BitmaskPanel,
    /// N:M packed of this project.
    NmPacked {
        /// Values per group.
        n: usize,
        /// Weights per group.
        m: usize,
    },
}

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::SparseBitmask => f.write_str("sparse-bitmask"),
            Self::Sparse24Bitmask => f.write_str("sparse-24-bitmask"),
            Self::PackQuantized { bits } => write!(f, "pack-quantized {bits} bit"),
            Self::IntQuantized => f.write_str("int-quantized"),
            Self::FloatQuantized => f.write_str("float-quantized"),
            Self::BitmaskPanel => f.write_str("bitmask-panel"),
            Self::NmPacked { n, m } => write!(f, "nm-packed {n}:{m}"),
        }
    }
}

/// A weight as a model sees it, whatever its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical {
    /// Full name, e.g. `model.norm.weight`.
    pub name: String,
    /// Element type of the decoded weight.
    pub dtype: DType,
    /// Shape of the decoded weight.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: Storage,
    /// Bytes of all its parts in the files.
    pub stored_bytes: u64,
}

impl Logical {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d as u64))
    }

    /// Bytes it would take as plain values.
    pub fn dense_bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size() as u64)
    }
}

/// A weight in the form in which it can run. Formats of other packages arrive decoded, as dense values.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum StoredWeight {
    DenseF32(Vec<f32>),
    DenseBf16(Vec<bf16>),
    DenseF16(Vec<f16>),
    PanelF32(BitmaskPanel<f32>),
    PanelBf16(BitmaskPanel<bf16>),
    PanelF16(BitmaskPanel<f16>),
    NmF32(NmPacked<f32>),
    NmBf16(NmPacked<bf16>),
    NmF16(NmPacked<f16>),
}

impl StoredWeight {
    /// Bytes of the arrays in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::DenseF32(v) => v.len() * 4,
            Self::DenseBf16(v) => v.len() * 2,
            Self::DenseF16(v) => v.len() * 2,
            Self::PanelF32(p) => p.bytes(),
            Self::PanelBf16(p) => p.bytes(),
            Self::PanelF16(p) => p.bytes(),
            Self::NmF32(p) => p.bytes(),
            Self::NmBf16(p) => p.bytes(),
            Self::NmF16(p) => p.bytes(),
        }
    }
}

/// Reading access to the physical tensors.
pub(crate) struct Physical<'a> {
    pub(crate) root: &'a Path,
    pub(crate) info: &'a BTreeMap<String, TensorInfo>,
    place: &'a BTreeMap<String, usize>,
    files: &'a [TensorFile],
}

impl Physical<'_> {
    fn file(&self, name: &str) -> Result<&TensorFile> {
        self.place
            .get(name)
            .and_then(|&i| self.files.get(i))
            .ok_or_else(|| not_found(self.root, name, self.info.keys()))
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.file(name)?.read(name)
    }

    /// The error for parts that contradict each other; `physical` names the file.
    pub(crate) fn corrupt(&self, physical: &str, logical: &str, reason: String) -> CheckpointError {
        let file = self.info.get(physical).map_or_else(|| self.root.into(), |i| i.file.clone());
        CheckpointError::Corrupt { file, tensor: logical.into(), reason }
    }
}

fn not_found<'n>(place: &Path, name: &str, all: impl Iterator<Item = &'n String>) -> CheckpointError {
    let common = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let nearest = all.max_by_key(|n| common(n)).filter(|n| common(n) * 2 > name.len()).cloned();
    CheckpointError::TensorNotFound { place: place.into(), tensor: name.into(), nearest }
}

#[derive(Debug)]
enum Plan {
    /// Plain values under this physical name.
    Dense(String),
    Compressed(plan::Plan),
    Packed(packed::Plan),
}

/// The tensors of a model folder, or of a single file.
#[derive(Debug)]
pub struct TensorStore {
    root: PathBuf,
    files: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
    physical: BTreeMap<String, TensorInfo>,
    logical: BTreeMap<String, Logical>,
    plans: BTreeMap<String, Plan>,
}

impl TensorStore {
    /// Opens one safetensors file; its tensors are taken as they are.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::build(path, path, vec![TensorFile::open(path)?], &Value::Null)
    }

    /// Combines open files; `config` is the parsed config.json, which says how weights are compressed.
    pub(crate) fn build(
        root: &Path,
        config_file: &Path,
        files: Vec<TensorFile>,
        config: &Value,
    ) -> Result<Self> {
        let (mut place, mut physical) = (BTreeMap::<String, usize>::new(), BTreeMap::new());
        for (i, file) in files.iter().enumerate() {
            for (name, e) in &file.header().entries {
                if let Some(&other) = place.get(name) {
                    let (first, second) = (files[other].path().into(), file.path().into());
                    return Err(CheckpointError::TensorInTwoShards { tensor: name.clone(), first, second });
                }
                place.insert(name.clone(), i);
                let info = TensorInfo {
                    dtype: e.dtype,
                    shape: e.shape.clone(),
                    file: file.path().into(),
                    offset: e.offset,
                    bytes: e.bytes,
                };
                physical.insert(name.clone(), info);
            }
        }
        let quant = QuantConfig::parse(config_file, config)?;
        let packed = PackedConfig::parse(config_file, config)?;
        let (mut logical, mut plans) = (BTreeMap::new(), BTreeMap::new());
        let mut used = std::collections::BTreeSet::new();
        {
            let tensors = Physical { root, info: &physical, place: &place, files: &files };
            if let Some(quant) = quant {
                let found = plan::find(config_file, &quant, &tensors)?;
                used.extend(found.parts);
                for (l, p) in found.weights {
                    plans.insert(l.name.clone(), Plan::Compressed(p));
                    logical.insert(l.name.clone(), l);
                }
            }
            for (l, p) in packed.map(|p| p.find(config_file, &tensors)).transpose()?.unwrap_or_default() {
                used.extend(p.arrays().iter().cloned());
                if plans.insert(l.name.clone(), Plan::Packed(p)).is_some() {
                    return Err(tensors.corrupt(&l.name, &l.name, "two formats claim it".into()));
                }
                logical.insert(l.name.clone(), l);
            }
        }
        for (name, info) in physical.iter().filter(|(n, _)| !used.contains(*n)) {
            plans.insert(name.clone(), Plan::Dense(name.clone()));
            let l = Logical {
                name: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                storage: Storage::Dense,
                stored_bytes: info.bytes,
            };
            logical.insert(name.clone(), l);
        }
        Ok(Self { root: root.into(), files, place, physical, logical, plans })
    }

    fn access(&self) -> Physical<'_> {
        Physical { root: &self.root, info: &self.physical, place: &self.place, files: &self.files }
    }

    /// The open files, in the order of their names.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// The weights, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Logical> {
        &self.logical
    }

    /// The tensors in the files, by name.
    pub fn physical(&self) -> &BTreeMap<String, TensorInfo> {
        &self.physical
    }

    /// One weight.
    ///
    /// # Errors
    /// [`TensorNotFound`](CheckpointError::TensorNotFound) with the nearest name.
    pub fn tensor(&self, name: &str) -> Result<&Logical> {
        self.logical.get(name).ok_or_else(|| not_found(&self.root, name, self.logical.keys()))
    }

    fn plan(&self, name: &str) -> Result<(&Logical, &Plan)> {
        let logical = self.tensor(name)?;
        // Both maps are filled together.
        self.plans
            .get(name)
            .map(|p| (logical, p))
            .ok_or_else(|| not_found(&self.root, name, self.logical.keys()))
    }

    /// The file that holds a weight, or the first of its parts; for messages.
    pub(crate) fn file_of(&self, name: &str) -> PathBuf {
        let module = name.strip_suffix("weight").unwrap_or(name);
        let part = self.physical.get(name).or_else(|| {
            self.physical
                .range(module.to_owned()..)
                .next()
                .filter(|(n, _)| n.starts_with(module))
                .map(|(_, i)| i)
        });
        part.map_or_else(|| self.root.clone(), |i| i.file.clone())
    }

    /// Dense little-endian bytes of a weight in its logical dtype, bit for bit. Values are not checked.
    ///
    /// # Errors
    /// [`TensorNotFound`](CheckpointError::TensorNotFound), [`Corrupt`](CheckpointError::Corrupt), reading errors.
    pub fn read_dense(&self, name: &str) -> Result<Vec<u8>> {
        let (logical, plan) = self.plan(name)?;
        match plan {
            Plan::Dense(physical) => self.access().read(physical),
            Plan::Compressed(p) => p.decode(&self.access(), name),
            Plan::Packed(p) => p.decode(&self.access(), name, logical.dtype),
        }
    }

    /// Calls `f` with the bytes of a plainly stored weight in order, a megabyte at most at a time.
    ///
    /// # Errors
    /// [`TensorNotFound`](CheckpointError::TensorNotFound), also for a weight that is not stored plainly; reading errors,
    /// errors of `f`.
    pub fn stream(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let physical = match self.plan(name)? {
            (_, Plan::Dense(physical)) => physical,
            _ => name,
        };
        self.access().file(physical)?.stream(physical, f)
    }

    /// Puts `prefix` before the names of all weights that the model then knows. A bare base model is saved without it.
    pub(crate) fn prefixed(mut self, prefix: &str, is_known: &dyn Fn(&str) -> bool) -> Self {
        let named = |name: String| {
            let full = format!("{prefix}{name}");
            if is_known(&full) { full } else { name }
        };
        self.plans = self.plans.into_iter().map(|(name, plan)| (named(name), plan)).collect();
        self.logical = self
            .logical
            .into_iter()
            .map(|(name, l)| {
                let name = named(name);
                (name.clone(), Logical { name, ..l })
            })
            .collect();
        self
    }

    /// Values of a weight as f32.
    ///
    /// # Errors
    /// As [`read_dense`](Self::read_dense); [`NonFinite`](CheckpointError::NonFinite).
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (logical, plan) = self.plan(name)?;
        let mut out = Vec::new();
        if let Plan::Dense(physical) = plan {
            // Converted piece by piece: the bytes are never in memory as a whole.
            let file = self.access();
            let file = file.file(physical)?;
            let elements = file.entry(physical)?.bytes / logical.dtype.size() as u64;
            out.reserve_exact(usize::try_from(elements).unwrap_or(0));
            file.stream(physical, &mut |bytes| {
                extend_f32(bytes, logical.dtype, &mut out);
                Ok(())
            })?;
        } else {
            extend_f32(&self.read_dense(name)?, logical.dtype, &mut out);
        }
        self.check_finite(name, out.iter().map(|v| v.is_finite()))?;
        Ok(out)
    }

    /// A weight in the form in which it runs: packed formats of this project stay packed, the others are decoded.
    /// F32, BF16 and F16 keep their type; other types become f32.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    pub fn read_weight(&self, name: &str) -> Result<StoredWeight> {
        let (logical, plan) = self.plan(name)?;
        let tensors = self.access();
        macro_rules! packed {
            ($plan:expr, $t:ty, $panel:ident, $nm:ident) => {
                match $plan.storage {
                    Storage::NmPacked { .. } => {
                        let w = $plan.nm::<$t>(&tensors, name)?;
                        self.check_finite(name, w.parts().values.iter().map(|v| v.is_finite()))?;
                        StoredWeight::$nm(w)
                    }
                    _ => {
                        let w = $plan.panel::<$t>(&tensors, name)?;
                        self.check_finite(name, w.parts().values.iter().map(|v| v.is_finite()))?;
                        StoredWeight::$panel(w)
                    }
                }
            };
        }
        Ok(match (plan, logical.dtype) {
            (Plan::Packed(p), DType::BF16) => packed!(p, bf16, PanelBf16, NmBf16),
            (Plan::Packed(p), DType::F16) => packed!(p, f16, PanelF16, NmF16),
            (Plan::Packed(p), _) => packed!(p, f32, PanelF32, NmF32),
            (_, DType::BF16) => {
                let w: Vec<bf16> = packed::Value::from_bytes(&self.read_dense(name)?);
                self.check_finite(name, w.iter().map(|v| v.is_finite()))?;
                StoredWeight::DenseBf16(w)
            }
            (_, DType::F16) => {
                let w: Vec<f16> = packed::Value::from_bytes(&self.read_dense(name)?);
                self.check_finite(name, w.iter().map(|v| v.is_finite()))?;
                StoredWeight::DenseF16(w)
            }
            _ => StoredWeight::DenseF32(self.read_f32(name)?),
        })
    }

    fn check_finite(&self, name: &str, finite: impl Iterator<Item = bool>) -> Result<()> {
        let (mut count, mut first) = (0, 0);
        for (i, _) in finite.enumerate().filter(|(_, ok)| !ok) {
            if count == 0 {
                first = i;
            }
            count += 1;
        }
        if count > 0 {
            return Err(CheckpointError::NonFinite {
                file: self.file_of(name),
                tensor: name.into(),
                count,
                first,
            });
        }
        Ok(())
    }

    /// Bytes of a physical tensor in the memory map. Pages touched stay resident until
    /// [`release_pages`](Self::release_pages). Prefer the other reading functions: they cope with a file that is
    /// truncated while in use.
    ///
    /// # Errors
    /// [`TensorNotFound`](CheckpointError::TensorNotFound), [`Truncated`](CheckpointError::Truncated).
    pub fn raw(&self, physical: &str) -> Result<&[u8]> {
        let index =
            self.place.get(physical).ok_or_else(|| not_found(&self.root, physical, self.physical.keys()))?;
        self.files[*index].mapped(physical)
    }

    /// Takes mapped pages out of the resident set.
    pub fn release_pages(&self) {
        self.files.iter().for_each(TensorFile::release);
    }
}
