//! One tensor in the form of the output format.

use super::{OutTensor, OutputFormat, QuantGrid};
use crate::compressed::{bitmask, pack};
use crate::dtype::{DType, extend_f32, round_trip, to_dtype};
use crate::error::{CheckpointError, Result};
use crate::packed::{self, PackedEntry};
use crate::store::Storage;
use half::{bf16, f16};
use rarefy_sparsity::Pattern;
use serde::{Deserialize, Serialize};

/// A tensor as it goes into a file.
pub(crate) struct Array {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// What the journal keeps about a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) storage: Storage,
    pub(crate) stored_bytes: u64,
    pub(crate) dense_bytes: u64,
    pub(crate) elements: u64,
    pub(crate) zeros: u64,
    /// Would have been packed, but packing would not have made it smaller.
    pub(crate) kept_dense: bool,
    /// How it is packed, for config.json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packed: Option<PackedEntry>,
    /// For quantised weights: whether zero points are stored.
    #[serde(default)]
    pub(crate) has_zero_points: bool,
}

fn bad(tensor: &str, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::BadOutput { tensor: tensor.into(), reason: reason.into() }
}

/// Checks a tensor and brings it into the form of `format`.
pub(crate) fn encode(tensor: OutTensor, format: OutputFormat) -> Result<(Record, Vec<Array>)> {
    let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let expected = elements.and_then(|n| n.checked_mul(tensor.dtype.size()));
    if expected != Some(tensor.data.len()) {
        let reason = format!(
            "{} bytes of data for {} of shape {:?}, which needs {expected:?}",
            tensor.data.len(),
            tensor.dtype,
            tensor.shape
        );
        return Err(bad(&tensor.name, reason));
    }
    let mut record = Record {
        name: tensor.name.clone(),
        storage: Storage::Dense,
        stored_bytes: tensor.data.len() as u64,
        dense_bytes: tensor.data.len() as u64,
        elements: elements.unwrap_or(0) as u64,
        zeros: bitmask::zeros(&tensor.data, tensor.dtype),
        kept_dense: false,
        packed: None,
        has_zero_points: false,
    };
    let packs = format != OutputFormat::Dense && tensor.pattern.is_some();
    if packs {
        let arrays = encode_packed(&tensor, format, &mut record)?;
        let stored: u64 = arrays.iter().map(|a| a.data.len() as u64).sum();
        let quantised = matches!(format, OutputFormat::PackQuantized { .. });
        if stored < record.dense_bytes || quantised {
            record.stored_bytes = stored;
            return Ok((record, arrays));
        }
        record = Record { storage: Storage::Dense, kept_dense: true, packed: None, ..record };
    }
    let OutTensor { name, shape, dtype, data, .. } = tensor;
    Ok((record, vec![Array { name, dtype, shape, data }]))
}

fn encode_packed(tensor: &OutTensor, format: OutputFormat, record: &mut Record) -> Result<Vec<Array>> {
    let name = &tensor.name;
    let [rows, cols] = tensor.shape[..] else {
        return Err(bad(name, format!("packed weights have two dimensions, found shape {:?}", tensor.shape)));
    };
    let Some(module) = name.strip_suffix(".weight") else {
        return Err(bad(name, "only tensors whose name ends in `.weight` can be packed"));
    };
    if rows == 0 || cols == 0 {
        return Err(bad(name, "an empty weight cannot be packed"));
    }
    let array =
        |suffix: &str, dtype, shape, data| Array { name: format!("{module}.{suffix}"), dtype, shape, data };
    let i64s = |v: &[i64]| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    match format {
        OutputFormat::Dense => Err(bad(name, "the dense format does not pack")),
        OutputFormat::Packed => {
            let pattern = tensor.pattern.unwrap_or(Pattern::Unstructured);
            let (arrays, entry) = match tensor.dtype {
                DType::F32 => own::<f32>(tensor, rows, cols, pattern)?,
                DType::BF16 => own::<bf16>(tensor, rows, cols, pattern)?,
                DType::F16 => own::<f16>(tensor, rows, cols, pattern)?,
                other => {
                    return Err(bad(
                        name,
                        format!(
                            "weights of {other} cannot be packed, F32, BF16 and F16 can; write the dense format"
                        ),
                    ));
                }
            };
            record.storage = match (pattern, arrays.len()) {
                (Pattern::NM { n, m }, 2) => Storage::NmPacked { n, m },
                _ => Storage::BitmaskPanel,
            };
            record.packed = Some(entry);
            Ok(arrays
                .into_iter()
                .map(|(suffix, dtype, shape, data)| array(suffix, dtype, shape, data))
                .collect())
        }
        OutputFormat::SparseBitmask => {
            let parts = bitmask::encode(&tensor.data, tensor.dtype, rows, cols);
            record.storage = Storage::SparseBitmask;
            let nnz = parts.compressed.len() / tensor.dtype.size();
            Ok(vec![
                array("bitmask", DType::U8, vec![rows, cols.div_ceil(8)], parts.bitmask),
                array("compressed", tensor.dtype, vec![nnz], parts.compressed),
                array("row_offsets", DType::I64, vec![rows], i64s(&parts.row_offsets)),
                array("shape", DType::I64, vec![2], i64s(&[rows as i64, cols as i64])),
            ])
        }
        OutputFormat::Sparse24Bitmask => {
            let (values, mask) =
                bitmask::encode_24(&tensor.data, tensor.dtype, rows, cols).map_err(|e| bad(name, e))?;
            record.storage = Storage::Sparse24Bitmask;
            Ok(vec![
                array("bitmask", DType::U8, vec![rows, cols.div_ceil(8)], mask),
                array("compressed", tensor.dtype, vec![rows, cols / 2], values),
                array("shape", DType::I64, vec![2, 1], i64s(&[rows as i64, cols as i64])),
            ])
        }
        OutputFormat::PackQuantized { bits, group } => {
            record.storage = Storage::PackQuantized { bits };
            let q = quantise(tensor, rows, cols, bits, group)?;
            record.has_zero_points = q.zero_words.is_some();
            let bytes = |v: &[i32]| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
            let words = q.words.len() / rows;
            let mut out = vec![
                array("weight_packed", DType::I32, vec![rows, words], bytes(&q.words)),
                array("weight_scale", q.scale_dtype, vec![rows, q.groups], to_dtype(&q.scale, q.scale_dtype)),
                array("weight_shape", DType::I64, vec![2], i64s(&[rows as i64, cols as i64])),
            ];
            if let Some(zero) = q.zero_words {
                out.push(array(
                    "weight_zero_point",
                    DType::I32,
                    vec![zero.len() / q.groups, q.groups],
                    bytes(&zero),
                ));
            }
            Ok(out)
        }
    }
}

fn own<T: packed::Value>(
    tensor: &OutTensor,
    rows: usize,
    cols: usize,
    pattern: Pattern,
) -> Result<(Vec<packed::Array>, PackedEntry)> {
    let w = T::from_bytes(&tensor.data);
    let result = match pattern {
        Pattern::NM { n, m } if (2..=rarefy_sparsity::formats::nm_packed::MAX_M).contains(&m) => {
            packed::encode_nm(&w, rows, cols, n, m)
        }
        _ => packed::encode_panel(&w, rows, cols),
    };
    debug_assert_eq!(T::DTYPE, tensor.dtype);
    result.map_err(|e| bad(&tensor.name, e.to_string()))
}

/// The value that is read back after `x` was stored as `dtype`.
fn reads_as(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

struct Quantised {
    words: Vec<i32>,
    scale: Vec<f32>,
    scale_dtype: DType,
    groups: usize,
    zero_words: Option<Vec<i32>>,
}

/// The symmetric grid of the largest magnitude per group: `s = max|w| / ((2^bits − 1)/2)`, rounded to `dtype`.
fn largest_magnitude_grid(
    values: &[f32],
    rows: usize,
    cols: usize,
    bits: u32,
    group: usize,
    dtype: DType,
) -> QuantGrid {
    let span = if group == 0 { cols } else { group };
    let half_range = ((1u32 << bits) - 1) as f32 / 2.0;
    let mut scale: Vec<f32> = values
        .chunks_exact(cols)
        .take(rows)
        .flat_map(|row| row.chunks(span))
        .map(|g| g.iter().fold(0f32, |m, v| m.max(v.abs())) / half_range)
        .collect();
    round_trip(&mut scale, dtype);
    // A group of zeros (or of values that vanish beside the scale's precision) gets the smallest useful step.
    let epsilon = match dtype {
        DType::BF16 => bf16::EPSILON.to_f32(),
        DType::F16 => f16::EPSILON.to_f32(),
        _ => f32::EPSILON,
    };
    scale.iter_mut().filter(|s| **s <= 0.0).for_each(|s| *s = epsilon);
    QuantGrid { bits, group, scale, zero_point: None }
}

fn quantise(tensor: &OutTensor, rows: usize, cols: usize, bits: u32, group: usize) -> Result<Quantised> {
    let name = &tensor.name;
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(bad(name, format!("codes of {bits} bits are not written, 2, 3, 4 and 8 are")));
    }
    if group != 0 && !cols.is_multiple_of(group) {
        return Err(bad(
            name,
            format!(
                "{cols} columns are not divisible into groups of {group}; choose a divisor, or 0 for whole rows"
            ),
        ));
    }
    if !matches!(tensor.dtype, DType::F32 | DType::BF16 | DType::F16) {
        return Err(bad(
            name,
            format!("weights of {} cannot be quantised, F32, BF16 and F16 can", tensor.dtype),
        ));
    }
    let mut values = Vec::with_capacity(rows * cols);
    extend_f32(&tensor.data, tensor.dtype, &mut values);
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(bad(name, format!("value {i} is not finite")));
    }
    let own_grid;
    let grid = match &tensor.quant {
        Some(g) => g,
        None => {
            own_grid = largest_magnitude_grid(&values, rows, cols, bits, group, tensor.dtype);
            &own_grid
        }
    };
    if (grid.bits, grid.group) != (bits, group) {
        return Err(bad(
            name,
            format!(
                "its grid has {} bits in groups of {}, the output format {bits} in groups of {group}",
                grid.bits, grid.group
            ),
        ));
    }
    let span = if group == 0 { cols } else { group };
    let groups = cols / span;
    let zero = grid.zero_point.as_deref();
    if grid.scale.len() != rows * groups || zero.is_some_and(|z| z.len() != rows * groups) {
        return Err(bad(
            name,
            format!(
                "its grid needs {rows} x {groups} scales and zero points, found {} and {:?}",
                grid.scale.len(),
                zero.map(<[i32]>::len)
            ),
        ));
    }
    let (low, high) = (-(1i32 << (bits - 1)), (1i32 << (bits - 1)) - 1);
    if let Some(s) = grid.scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(bad(name, format!("its grid holds the scale {s}, scales are positive")));
    }
    if let Some(z) = zero.and_then(|z| z.iter().find(|z| !(low..=high).contains(*z))) {
        return Err(bad(name, format!("its grid holds the zero point {z}, outside {low}..={high}")));
    }
    // Scales are stored in the type of the weight where that loses nothing, else in f32.
    let mut rounded = grid.scale.clone();
    round_trip(&mut rounded, tensor.dtype);
    let exact = rounded.iter().zip(&grid.scale).all(|(a, b)| a.to_bits() == b.to_bits());
    let scale_dtype = if exact { tensor.dtype } else { DType::F32 };

    // The values lie on the grid already; the codes are to be found again.
    let on_grid = tensor.quant.is_some();
    let mut codes = Vec::with_capacity(values.len());
    let mut decoded = Vec::with_capacity(values.len());
    for (r, row) in values.chunks_exact(cols).enumerate() {
        for (c, &w) in row.iter().enumerate() {
            let at = r * groups + c / span;
            let (s, z) = (grid.scale[at], zero.map_or(0, |z| z[at]));
            let nearest = ((w / s).round_ties_even() + z as f32).clamp(low as f32, high as f32);
            let decode = |q: f32| (q - z as f32) * s;
            let mut q = nearest;
            if on_grid && reads_as(decode(q), tensor.dtype) != w {
                // The rounding of a narrow type can move a large code by half a step: its neighbour is meant then.
                let means_it = |n: &f32| {
                    (low as f32..=high as f32).contains(n) && reads_as(decode(*n), tensor.dtype) == w
                };
                q = [nearest - 1.0, nearest + 1.0].into_iter().find(means_it).unwrap_or(nearest);
            }
            codes.push(q as i8);
            decoded.push(decode(q));
        }
    }
    if on_grid {
        round_trip(&mut decoded, tensor.dtype);
        // Comparing values, not bits: −0.0 is the same as 0.0.
        let off = |(a, b): (&f32, &f32)| (a - b).abs() > 0.0;
        let count = decoded.iter().zip(&values).filter(|&p| off(p)).count();
        if let Some(first) = decoded.iter().zip(&values).position(off) {
            return Err(CheckpointError::OffGrid {
                tensor: name.clone(),
                count,
                first,
                value: values[first],
            });
        }
    }
    let words = pack::pack(&codes, rows, cols, bits, pack::Layout::Dense);
    let zero_words = zero.map(|z| {
        // Packed along the rows: transpose, pack, transpose back.
        let across: Vec<i8> =
            (0..groups).flat_map(|g| (0..rows).map(move |r| z[r * groups + g] as i8)).collect();
        let packed = pack::pack(&across, groups, rows, bits, pack::Layout::Dense);
        let down = packed.len() / groups;
        (0..down).flat_map(|w| (0..groups).map(move |g| (w, g))).map(|(w, g)| packed[g * down + w]).collect()
    });
    Ok(Quantised { words, scale: grid.scale.clone(), scale_dtype, groups, zero_words })
}
