//! How the parts of one compressed weight are found, checked and decoded.

use super::config::{QuantConfig, SparseFormat, unreadable};
use super::scales::{ScaledWeight, Scales};
use super::{bitmask, pack};
use crate::dtype::{DType, extend_f32, to_dtype};
use crate::error::{CheckpointError, Result};
use crate::store::{Logical, Physical, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Suffixes of the tensors that belong to a compressed weight.
const PARTS: [&str; 17] = [
    "compressed",
    "bitmask",
    "row_offsets",
    "shape",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "scale_packed",
    "meta",
];

/// Names of the physical tensors of one weight and what is known from headers and configuration.
#[derive(Debug)]
pub(crate) struct Plan {
    kind: Kind,
    rows: usize,
    cols: usize,
    scales: Option<Scales>,
}

#[derive(Debug)]
enum Kind {
    Sparse { compressed: String, bitmask: String, dtype: DType, two_of_four: bool },
    Packed { packed: String, bits: u32, layout: pack::Layout },
    Whole { weight: String, dtype: DType },
}

/// `M.part` or `M.weight.part` (releases up to 0.8.1) → (M, part).
fn split(name: &str) -> Option<(&str, &'static str)> {
    let (module, suffix) = name.rsplit_once('.')?;
    let part = PARTS.into_iter().find(|p| *p == suffix)?;
    Some((module.strip_suffix(".weight").unwrap_or(module), part))
}

/// One module's parts by suffix.
pub(super) type Parts<'a> = BTreeMap<&'static str, &'a str>;

/// The compressed weights of a folder.
pub(crate) struct Found {
    pub(crate) weights: Vec<(Logical, Plan)>,
    /// Names of the tensors that are their parts.
    pub(crate) parts: BTreeSet<String>,
}

/// Finds all compressed weights.
pub(crate) fn find(config_file: &Path, quant: &QuantConfig, tensors: &Physical<'_>) -> Result<Found> {
    let mut modules: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
    for name in tensors.info.keys() {
        if let Some((module, part)) = split(name)
            && let Some(other) = modules.entry(module).or_default().insert(part, name)
        {
            let reason = format!("both `{other}` and `{name}` hold its part `{part}`");
            return Err(tensors.corrupt(name, &format!("{module}.weight"), reason));
        }
    }
    let mut found = Found { weights: Vec::new(), parts: BTreeSet::new() };
    for (module, parts) in modules {
        let Some((logical, plan)) = plan_module(config_file, quant, tensors, module, &parts)? else {
            continue;
        };
        found.parts.extend(parts.values().map(|n| (*n).to_owned()));
        found.parts.insert(logical.name.clone());
        found.weights.push((logical, plan));
    }
    Ok(found)
}

fn plan_module(
    config_file: &Path,
    quant: &QuantConfig,
    tensors: &Physical<'_>,
    module: &str,
    parts: &Parts<'_>,
) -> Result<Option<(Logical, Plan)>> {
    let name = format!("{module}.weight");
    if parts.contains_key("scale_packed") && parts.contains_key("weight_packed") {
        return Err(unreadable(config_file, "marlin-24"));
    }
    if parts.contains_key("weight_global_scale") {
        return Err(unreadable(config_file, "nvfp4-pack-quantized"));
    }
    let (kind, shape, storage) = if let Some(compressed) = parts.get("compressed") {
        sparse(quant, tensors, &name, compressed, parts)?
    } else if let Some(packed) = parts.get("weight_packed") {
        packed_codes(config_file, quant, tensors, module, &name, packed, parts)?
    } else if let (Some(info), true) = (tensors.info.get(&name), parts.contains_key("weight_scale")) {
        let storage = match info.dtype {
            DType::I8 => Storage::IntQuantized,
            DType::F8E4M3 | DType::F8E5M2 => Storage::FloatQuantized,
            // The scales belong to weights that were not compressed: plain values.
            _ => return Ok(None),
        };
        matrix(tensors, &name, &name, &info.shape)?;
        (Kind::Whole { weight: name.clone(), dtype: info.dtype }, info.shape.clone(), storage)
    } else {
        return Ok(None);
    };
    if tensors.info.contains_key(&name) && !matches!(kind, Kind::Whole { .. }) {
        return Err(tensors.corrupt(&name, &name, "it is stored both plainly and compressed".into()));
    }
    let (rows, cols) = extents(&shape);
    let packed_bits = match kind {
        Kind::Packed { bits, .. } => Some(bits),
        _ => None,
    };
    let weight = ScaledWeight { module, name: &name, parts, rows, cols, packed_bits };
    let scales = Scales::find(config_file, quant, tensors, &weight)?;
    let dtype = match (&scales, &kind) {
        (Some(s), _) => s.dtype,
        (None, Kind::Sparse { dtype, .. }) => *dtype,
        (None, _) => return Err(tensors.corrupt(&name, &name, "its part `weight_scale` is missing".into())),
    };
    let stored = |n: &&str| tensors.info.get(*n).map_or(0, |i| i.bytes);
    let mut stored_bytes: u64 = parts.values().map(stored).sum();
    if let Kind::Whole { weight, .. } = &kind {
        stored_bytes += stored(&weight.as_str());
    }
    let logical = Logical { name, dtype, shape, storage, stored_bytes };
    Ok(Some((logical, Plan { kind, rows, cols, scales })))
}

/// The two extents of a matrix.
pub(super) fn matrix(
    tensors: &Physical<'_>,
    physical: &str,
    logical: &str,
    shape: &[usize],
) -> Result<[usize; 2]> {
    match *shape {
        [r, c] => Ok([r, c]),
        _ => Err(tensors.corrupt(
            physical,
            logical,
            format!("compressed weights have two dimensions, found shape {shape:?}"),
        )),
    }
}

/// A stored shape of one or two numbers (I64 or I32; flat or as a column).
fn stored_shape(tensors: &Physical<'_>, logical: &str, part: &str) -> Result<Vec<usize>> {
    let info = &tensors.info[part];
    let bad = |reason: String| tensors.corrupt(part, logical, reason);
    if !matches!(info.dtype, DType::I64 | DType::I32)
        || !(1..=2).contains(&(info.bytes / info.dtype.size() as u64))
    {
        return Err(bad(format!(
            "`{part}` must hold one or two integers (I64 or I32), found {} of shape {:?}",
            info.dtype, info.shape
        )));
    }
    let bytes = tensors.read(part)?;
    let numbers = bytes.chunks_exact(info.dtype.size()).map(|b| match *b {
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => -1,
    });
    numbers
        .map(|n| {
            usize::try_from(n)
                .ok()
                .filter(|n| (1..1 << 40).contains(n))
                .ok_or_else(|| bad(format!("`{part}` holds the extent {n}")))
        })
        .collect()
}

fn sparse(
    quant: &QuantConfig,
    tensors: &Physical<'_>,
    name: &str,
    compressed: &str,
    parts: &Parts<'_>,
) -> Result<(Kind, Vec<usize>, Storage)> {
    let part = |p: &str| {
        parts
            .get(p)
            .copied()
            .ok_or_else(|| tensors.corrupt(compressed, name, format!("its part `{p}` is missing")))
    };
    let (mask, shape) = (part("bitmask")?, part("shape")?);
    let shape = stored_shape(tensors, name, shape)?;
    // Releases up to 0.8.1 also compressed vectors.
    let (rows, cols) = extents(&shape);
    let (values, bits) = (&tensors.info[compressed], &tensors.info[mask]);
    let two_of_four = match quant.sparsity {
        Some(SparseFormat::Bitmask24) => true,
        Some(SparseFormat::Bitmask) => false,
        _ => values.shape.len() == 2 && !parts.contains_key("row_offsets"),
    };
    if bits.dtype != DType::U8 {
        return Err(CheckpointError::WrongDType {
            file: bits.file.clone(),
            tensor: mask.into(),
            expected: "U8",
            found: bits.dtype,
        });
    }
    let width = cols.div_ceil(8);
    let flat = rows == 1 && bits.shape == [width];
    if bits.shape != [rows, width] && !flat {
        return Err(CheckpointError::ShapeMismatch {
            file: bits.file.clone(),
            tensor: mask.into(),
            expected: vec![rows, width],
            found: bits.shape.clone(),
        });
    }
    if two_of_four && values.shape != [rows, cols / 2] {
        return Err(CheckpointError::ShapeMismatch {
            file: values.file.clone(),
            tensor: compressed.into(),
            expected: vec![rows, cols / 2],
            found: values.shape.clone(),
        });
    }
    if let Some(offsets) = parts.get("row_offsets") {
        let info = &tensors.info[*offsets];
        if info.shape.iter().product::<usize>() != rows && !info.shape.is_empty() {
            return Err(CheckpointError::ShapeMismatch {
                file: info.file.clone(),
                tensor: (*offsets).into(),
                expected: vec![rows],
                found: info.shape.clone(),
            });
        }
    }
    let storage = if two_of_four { Storage::Sparse24Bitmask } else { Storage::SparseBitmask };
    let kind = Kind::Sparse {
        compressed: compressed.into(),
        bitmask: mask.into(),
        dtype: values.dtype,
        two_of_four,
    };
    Ok((kind, shape, storage))
}

/// Rows and columns; a vector is one row.
fn extents(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, cols] => (rows, cols),
        [cols] => (1, cols),
        _ => (0, 0),
    }
}

fn packed_codes(
    config_file: &Path,
    quant: &QuantConfig,
    tensors: &Physical<'_>,
    module: &str,
    name: &str,
    packed: &str,
    parts: &Parts<'_>,
) -> Result<(Kind, Vec<usize>, Storage)> {
    let info = &tensors.info[packed];
    if info.dtype == DType::U8 {
        return Err(unreadable(config_file, "mxfp4-pack-quantized"));
    }
    if info.dtype != DType::I32 {
        return Err(CheckpointError::WrongDType {
            file: info.file.clone(),
            tensor: packed.into(),
            expected: "I32",
            found: info.dtype,
        });
    }
    let shape = parts
        .get("weight_shape")
        .ok_or_else(|| tensors.corrupt(packed, name, "its part `weight_shape` is missing".into()))?;
    let shape = stored_shape(tensors, name, shape)?;
    let [rows, cols] = matrix(tensors, packed, name, &shape)?;
    let bits = quant.args_for(module).map(|a| a.bits).ok_or_else(|| {
        tensors.corrupt(
            packed,
            name,
            "no entry of quantization_config.config_groups targets it, so its number of bits is unknown"
                .into(),
        )
    })?;
    if !(1..=8).contains(&bits) {
        return Err(tensors.corrupt(
            packed,
            name,
            format!("codes of {bits} bits are not supported, 1 to 8 are"),
        ));
    }
    let [stored_rows, words] = matrix(tensors, packed, name, &info.shape)?;
    let layout = layout(quant, cols, words, bits);
    match layout {
        Some(layout) if stored_rows == rows => {
            Ok((Kind::Packed { packed: packed.into(), bits, layout }, shape, Storage::PackQuantized { bits }))
        }
        _ => {
            let expected = vec![rows, pack::Layout::Dense.words(cols, bits).unwrap_or(usize::MAX)];
            Err(CheckpointError::ShapeMismatch {
                file: info.file.clone(),
                tensor: packed.into(),
                expected,
                found: info.shape.clone(),
            })
        }
    }
}

/// The layout in which `count` codes take `words` words. Where both do, the release decides.
pub(super) fn layout(quant: &QuantConfig, count: usize, words: usize, bits: u32) -> Option<pack::Layout> {
    let fits = |l: pack::Layout| l.words(count, bits) == Some(words);
    match (fits(pack::Layout::Dense), fits(pack::Layout::Padded)) {
        (true, true) if 32 % bits != 0 && quant.version.is_some_and(|v| v < (0, 18)) => {
            Some(pack::Layout::Padded)
        }
        (true, _) => Some(pack::Layout::Dense),
        (false, true) => Some(pack::Layout::Padded),
        (false, false) => None,
    }
}

/// Little-endian 32-bit words.
pub(super) fn words(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b)).collect()
}

impl Plan {
    /// The dense weight, row-major, little-endian bytes of the logical dtype.
    pub(crate) fn decode(&self, tensors: &Physical<'_>, name: &str) -> Result<Vec<u8>> {
        let (rows, cols) = (self.rows, self.cols);
        let mut values = Vec::new();
        match &self.kind {
            Kind::Sparse { compressed, bitmask, dtype, two_of_four } => {
                let dense = bitmask::decode(
                    &tensors.read(compressed)?,
                    &tensors.read(bitmask)?,
                    rows,
                    cols,
                    dtype.size(),
                    *two_of_four,
                )
                .map_err(|r| tensors.corrupt(compressed, name, r))?;
                if self.scales.is_none() {
                    return Ok(dense);
                }
                extend_f32(&dense, *dtype, &mut values);
            }
            Kind::Packed { packed, bits, layout } => {
                let codes = pack::unpack(&words(&tensors.read(packed)?), rows, cols, *bits, *layout)
                    .map_err(|r| tensors.corrupt(packed, name, r))?;
                values.extend(codes.into_iter().map(f32::from));
            }
            Kind::Whole { weight, dtype } => extend_f32(&tensors.read(weight)?, *dtype, &mut values),
        }
        let Some(scales) = &self.scales else {
            return Err(tensors.corrupt(name, name, "its part `weight_scale` is missing".into()));
        };
        let grid = scales.load(tensors, name)?;
        grid.apply(&mut values, cols).map_err(|r| tensors.corrupt(&scales.scale, name, r))?;
        Ok(to_dtype(&values, scales.dtype))
    }
}
