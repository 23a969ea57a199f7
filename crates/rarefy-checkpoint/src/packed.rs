//! The packed formats of this project inside safetensors: bitmask panels and N:M.
//!
//! The arrays of a weight `M.weight` are stored as tensors `M.panel_masks` (U32), `M.panel_offsets` (U64),
//! `M.panel_values` or `M.nm_masks` (U32), `M.nm_values`. The entry `rarefy_config` of config.json says how to read them:
//!
//! ```json
//! "rarefy_config": { "version": 1, "tensors": {
//!   "M.weight": { "format": "bitmask-panel", "layout": 1, "shape": [256, 704], "xxh3": "0123456789abcdef" },
//!   "N.weight": { "format": "nm", "n": 2, "m": 4, "layout": 1, "shape": [704, 256], "xxh3": "0123456789abcdef" } } }
//! ```
//!
//! The checksum is XXH3-64 over the bytes of the arrays in the order named above.

use crate::dtype::DType;
use crate::error::{CheckpointError, Result};
use crate::hash::Xxh64;
use crate::json::UniqueMap;
use crate::store::{Logical, Physical, Storage};
use half::{bf16, f16};
use rarefy_sparsity::formats::{
    BitmaskPanel, Element, NmPacked, NmParts, PanelParts, bitmask_panel, nm_packed,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// Version of the `rarefy_config` entry.
pub(crate) const VERSION: u32 = 1;

/// The `rarefy_config` entry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PackedConfig {
    version: u32,
    tensors: UniqueMap<PackedEntry>,
}

/// How one weight is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PackedEntry {
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    m: Option<usize>,
    layout: u32,
    shape: [usize; 2],
    xxh3: String,
}

/// A value type of this crate's packed weights.
pub(crate) trait Value: Element {
    const DTYPE: DType;
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
    fn to_bytes(values: &[Self]) -> Vec<u8>;
}

macro_rules! value {
    ($t:ty, $dtype:expr, $n:literal) => {
        impl Value for $t {
            const DTYPE: DType = $dtype;
            fn from_bytes(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks::<$n>().0.iter().map(|&b| Self::from_le_bytes(b)).collect()
            }
            fn to_bytes(values: &[Self]) -> Vec<u8> {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
        }
    };
}
value!(f32, DType::F32, 4);
value!(bf16, DType::BF16, 2);
value!(f16, DType::F16, 2);

fn u32_bytes(v: &[u32]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}
fn u64_bytes(v: &[u64]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// One tensor to be stored: suffix, dtype, shape, bytes.
pub(crate) type Array = (&'static str, DType, Vec<usize>, Vec<u8>);

fn checksum(arrays: &[Array]) -> String {
    let mut hash = Xxh64::new();
    arrays.iter().for_each(|a| hash.update(&a.3));
    hash.hex()
}

/// Arrays and entry of a weight in panel form.
pub(crate) fn encode_panel<T: Value>(
    w: &[T],
    rows: usize,
    cols: usize,
) -> std::result::Result<(Vec<Array>, PackedEntry), rarefy_sparsity::SparsityError> {
    let panel = BitmaskPanel::encode(w, rows, cols)?;
    let parts = panel.parts();
    let arrays: Vec<Array> = vec![
        ("panel_masks", DType::U32, vec![panel.n_panels(), cols], u32_bytes(&parts.masks)),
        ("panel_offsets", DType::U64, vec![parts.offsets.len()], u64_bytes(&parts.offsets)),
        ("panel_values", T::DTYPE, vec![parts.values.len()], T::to_bytes(&parts.values)),
    ];
    let xxh3 = checksum(&arrays);
    let entry = PackedEntry {
        format: "bitmask-panel".into(),
        n: None,
        m: None,
        layout: parts.version,
        shape: [rows, cols],
        xxh3,
    };
    Ok((arrays, entry))
}

/// Arrays and entry of a weight in N:M form.
pub(crate) fn encode_nm<T: Value>(
    w: &[T],
    rows: usize,
    cols: usize,
    n: usize,
    m: usize,
) -> std::result::Result<(Vec<Array>, PackedEntry), rarefy_sparsity::SparsityError> {
    let nm = NmPacked::encode(w, rows, cols, n, m)?;
    let parts = nm.parts();
    let arrays: Vec<Array> = vec![
        ("nm_masks", DType::U32, vec![rows, cols.div_ceil(32)], u32_bytes(&parts.masks)),
        ("nm_values", T::DTYPE, vec![rows, cols / m * n], T::to_bytes(&parts.values)),
    ];
    let xxh3 = checksum(&arrays);
    let entry = PackedEntry {
        format: "nm".into(),
        n: Some(n),
        m: Some(m),
        layout: parts.version,
        shape: [rows, cols],
        xxh3,
    };
    Ok((arrays, entry))
}

/// A packed weight found in a folder.
#[derive(Debug)]
pub(crate) struct Plan {
    entry: PackedEntry,
    arrays: Vec<String>,
    pub(crate) storage: Storage,
}

impl PackedConfig {
    /// Reads the entry of a parsed config.json; `None` when there is none.
    pub(crate) fn parse(file: &Path, config: &serde_json::Value) -> Result<Option<Self>> {
        let Some(value) = config.get("rarefy_config") else { return Ok(None) };
        let bad = |field: &str, expected: String, found: String| CheckpointError::ConfigField {
            file: file.into(),
            field: field.into(),
            expected,
            found,
        };
        let parsed: Self = serde::Deserialize::deserialize(value).map_err(|e| {
            bad("rarefy_config", "version and tensors as written by rarefy".into(), e.to_string())
        })?;
        if parsed.version != VERSION {
            return Err(bad(
                "rarefy_config.version",
                format!("{VERSION} (written by this release)"),
                parsed.version.to_string(),
            ));
        }
        Ok(Some(parsed))
    }

    /// Finds the arrays of every listed weight and checks their dtypes and shapes.
    pub(crate) fn find(self, config_file: &Path, tensors: &Physical<'_>) -> Result<Vec<(Logical, Plan)>> {
        self.tensors.0.into_iter().map(|(name, entry)| plan(config_file, tensors, name, entry)).collect()
    }
}

fn plan(
    config_file: &Path,
    tensors: &Physical<'_>,
    name: String,
    entry: PackedEntry,
) -> Result<(Logical, Plan)> {
    let field = |key: &str, expected: &str, found: String| CheckpointError::ConfigField {
        file: config_file.into(),
        field: format!("rarefy_config.tensors.{name}.{key}"),
        expected: expected.into(),
        found,
    };
    let [rows, cols] = entry.shape;
    if rows == 0 || cols == 0 {
        return Err(field("shape", "two positive extents", format!("{:?}", entry.shape)));
    }
    let Some(module) = name.strip_suffix(".weight") else {
        return Err(field("", "a name ending in `.weight`", name.clone()));
    };
    let (suffixes, storage, layout): (&[&str], _, _) = match (entry.format.as_str(), entry.n, entry.m) {
        ("bitmask-panel", None, None) => {
            (&["panel_masks", "panel_offsets", "panel_values"], Storage::BitmaskPanel, bitmask_panel::VERSION)
        }
        ("nm", Some(n), Some(m)) => {
            (&["nm_masks", "nm_values"], Storage::NmPacked { n, m }, nm_packed::VERSION)
        }
        (other, n, m) => {
            return Err(field(
                "format",
                "bitmask-panel, or nm with n and m",
                format!("{other} with n {n:?}, m {m:?}"),
            ));
        }
    };
    if entry.layout != layout {
        return Err(field(
            "layout",
            &format!("{layout} (written by this release)"),
            entry.layout.to_string(),
        ));
    }
    let mut arrays = Vec::new();
    let mut stored_bytes = 0;
    let mut dtype = DType::F32;
    for suffix in suffixes {
        let array = format!("{module}.{suffix}");
        let Some(info) = tensors.info.get(&array) else {
            return Err(CheckpointError::TensorNotFound {
                place: tensors.root.into(),
                tensor: array,
                nearest: None,
            });
        };
        let (ok, expected) = match *suffix {
            "panel_masks" | "nm_masks" => (info.dtype == DType::U32, "U32"),
            "panel_offsets" => (info.dtype == DType::U64, "U64"),
            _ => (matches!(info.dtype, DType::F32 | DType::BF16 | DType::F16), "F32, BF16 or F16"),
        };
        if !ok {
            return Err(CheckpointError::WrongDType {
                file: info.file.clone(),
                tensor: array,
                expected,
                found: info.dtype,
            });
        }
        let shape = match *suffix {
            "panel_masks" => Some(vec![rows.div_ceil(bitmask_panel::PANEL_ROWS), cols]),
            "nm_masks" => Some(vec![rows, cols.div_ceil(32)]),
            _ => None,
        };
        if let Some(shape) = shape.filter(|s| *s != info.shape) {
            return Err(CheckpointError::ShapeMismatch {
                file: info.file.clone(),
                tensor: array,
                expected: shape,
                found: info.shape.clone(),
            });
        }
        dtype = info.dtype;
        stored_bytes += info.bytes;
        arrays.push(array);
    }
    if tensors.info.contains_key(&name) {
        return Err(tensors.corrupt(&name, &name, "it is stored both plainly and packed".into()));
    }
    let logical = Logical { name, dtype, shape: vec![rows, cols], storage, stored_bytes };
    Ok((logical, Plan { entry, arrays, storage }))
}

impl Plan {
    /// Names of the physical tensors.
    pub(crate) fn arrays(&self) -> &[String] {
        &self.arrays
    }

    /// The arrays, their checksum compared.
    fn load(&self, tensors: &Physical<'_>, name: &str) -> Result<Vec<Vec<u8>>> {
        let mut hash = Xxh64::new();
        let mut out = Vec::new();
        for array in &self.arrays {
            let bytes = tensors.read(array)?;
            hash.update(&bytes);
            out.push(bytes);
        }
        let found = hash.hex();
        if found != self.entry.xxh3 {
            let reason = format!("its checksum is {found}, config.json states {}", self.entry.xxh3);
            return Err(tensors.corrupt(&self.arrays[0], name, reason));
        }
        Ok(out)
    }

    fn corrupt(
        &self,
        tensors: &Physical<'_>,
        name: &str,
        e: &rarefy_sparsity::SparsityError,
    ) -> CheckpointError {
        tensors.corrupt(&self.arrays[0], name, e.to_string())
    }

    /// Reads a weight in panel form.
    pub(crate) fn panel<T: Value>(&self, tensors: &Physical<'_>, name: &str) -> Result<BitmaskPanel<T>> {
        let arrays = self.load(tensors, name)?;
        let masks = arrays[0].as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        let offsets = arrays[1].as_chunks::<8>().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
        let parts = PanelParts {
            version: self.entry.layout,
            masks: Cow::Owned(masks),
            offsets: Cow::Owned(offsets),
            values: Cow::Owned(T::from_bytes(&arrays[2])),
        };
        let [rows, cols] = self.entry.shape;
        BitmaskPanel::from_parts(rows, cols, parts).map_err(|e| self.corrupt(tensors, name, &e))
    }

    /// Reads a weight in N:M form.
    pub(crate) fn nm<T: Value>(&self, tensors: &Physical<'_>, name: &str) -> Result<NmPacked<T>> {
        let arrays = self.load(tensors, name)?;
        let masks = arrays[0].as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        let (n, m) = (self.entry.n.unwrap_or(0), self.entry.m.unwrap_or(0));
        let parts = NmParts {
            version: self.entry.layout,
            n,
            m,
            masks: Cow::Owned(masks),
            values: Cow::Owned(T::from_bytes(&arrays[1])),
        };
        let [rows, cols] = self.entry.shape;
        NmPacked::from_parts(rows, cols, parts).map_err(|e| self.corrupt(tensors, name, &e))
    }

    /// The dense weight as little-endian bytes.
    pub(crate) fn decode(&self, tensors: &Physical<'_>, name: &str, dtype: DType) -> Result<Vec<u8>> {
        fn dense<T: Value>(plan: &Plan, tensors: &Physical<'_>, name: &str) -> Result<Vec<u8>> {
            Ok(T::to_bytes(&match plan.storage {
                Storage::NmPacked { .. } => plan.nm::<T>(tensors, name)?.decode(),
                _ => plan.panel::<T>(tensors, name)?.decode(),
            }))
        }
        match dtype {
            DType::BF16 => dense::<bf16>(self, tensors, name),
            DType::F16 => dense::<f16>(self, tensors, name),
            _ => dense::<f32>(self, tensors, name),
        }
    }
}
