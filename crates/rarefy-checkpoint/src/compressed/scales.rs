//! The scales and zero points of one quantised weight: where they lie and how they are read.

use super::config::{QuantConfig, unreadable};
use super::dequant::{GridExtent, ScaleGrid};
use super::pack;
use super::plan::{Parts, layout, matrix, words};
use crate::dtype::{DType, extend_f32};
use crate::error::{CheckpointError, Result};
use crate::store::Physical;
use std::path::Path;

/// The weight that scales are looked for.
pub(crate) struct ScaledWeight<'a> {
    /// Module name.
    pub(crate) module: &'a str,
    /// Full name.
    pub(crate) name: &'a str,
    pub(crate) parts: &'a Parts<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Bits of a code, where codes are packed.
    pub(crate) packed_bits: Option<u32>,
}

/// Names and extents of scales and zero points.
#[derive(Debug)]
pub(crate) struct Scales {
    pub(crate) scale: String,
    zero: Option<Zero>,
    group_of_column: Option<String>,
    extent: GridExtent,
    pub(crate) dtype: DType,
}

#[derive(Debug)]
enum Zero {
    Plain(String),
    Packed { name: String, bits: u32, layout: pack::Layout },
}

impl Scales {
    /// Finds the scales of a weight and checks their extents; `None` when it has none.
    pub(crate) fn find(
        config_file: &Path,
        quant: &QuantConfig,
        tensors: &Physical<'_>,
        weight: &ScaledWeight<'_>,
    ) -> Result<Option<Self>> {
        let ScaledWeight { module, name, parts, rows, cols, packed_bits } = *weight;
        let Some(scale) = parts.get("weight_scale") else { return Ok(None) };
        let info = &tensors.info[*scale];
        if info.dtype == DType::U8 {
            return Err(unreadable(config_file, "mxfp8-quantized"));
        }
        if !info.dtype.is_float() {
            return Err(CheckpointError::WrongDType {
                file: info.file.clone(),
                tensor: (*scale).into(),
                expected: "a floating-point type",
                found: info.dtype,
            });
        }
        let args = quant.args_for(module);
        let (group, block) = (args.and_then(|a| a.group_size), args.and_then(|a| a.block));
        let extent = GridExtent::new(&info.shape, rows, cols, group, block)
            .map_err(|r| tensors.corrupt(scale, name, r))?;
        let zero = match (parts.get("weight_zero_point"), packed_bits) {
            (None, _) => None,
            (Some(zero), Some(bits)) if tensors.info[*zero].dtype == DType::I32 => {
                // Packed along the rows: the file holds [words, grid columns].
                let info = &tensors.info[*zero];
                let [words, across] = matrix(tensors, zero, name, &info.shape)?;
                let found = layout(quant, extent.rows, words, bits).filter(|_| across == extent.cols);
                let layout = found.ok_or_else(|| {
                    tensors.corrupt(
                        zero,
                        name,
                        format!(
                            "zero points of shape {:?} do not fit {} x {} groups",
                            info.shape, extent.rows, extent.cols
                        ),
                    )
                })?;
                Some(Zero::Packed { name: (*zero).into(), bits, layout })
            }
            (Some(zero), _) => {
                let elements = tensors.info[*zero].shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                if elements != Some(extent.len()) {
                    return Err(tensors.corrupt(
                        zero,
                        name,
                        format!(
                            "zero points of shape {:?} do not fit {} scales",
                            tensors.info[*zero].shape,
                            extent.len()
                        ),
                    ));
                }
                Some(Zero::Plain((*zero).into()))
            }
        };
        let group_of_column = parts.get("weight_g_idx").map(|n| (*n).to_owned());
        Ok(Some(Self { scale: (*scale).into(), zero, group_of_column, extent, dtype: info.dtype }))
    }

    /// Reads them.
    pub(crate) fn load(&self, tensors: &Physical<'_>, name: &str) -> Result<ScaleGrid> {
        let mut scale = Vec::new();
        extend_f32(&tensors.read(&self.scale)?, self.dtype, &mut scale);
        let zero = match &self.zero {
            None => None,
            Some(Zero::Plain(zero)) => {
                let mut out = Vec::new();
                extend_f32(&tensors.read(zero)?, tensors.info[zero].dtype, &mut out);
                Some(out)
            }
            Some(Zero::Packed { name: zero, bits, layout }) => {
                // Stored transposed: each column of the grid is a run of words.
                let (stored, across) = (words(&tensors.read(zero)?), self.extent.cols);
                let down = stored.len().checked_div(across).unwrap_or(0);
                let columns: Vec<i32> = (0..across)
                    .flat_map(|c| (0..down).map(move |w| (c, w)))
                    .map(|(c, w)| stored[w * across + c])
                    .collect();
                let codes = pack::unpack(&columns, across, self.extent.rows, *bits, *layout)
                    .map_err(|r| tensors.corrupt(zero, name, r))?;
                let rows = self.extent.rows;
                Some(
                    (0..rows)
                        .flat_map(|r| (0..across).map(move |c| (r, c)))
                        .map(|(r, c)| f32::from(codes[c * rows + r]))
                        .collect(),
                )
            }
        };
        let group_of_column = match &self.group_of_column {
            None => None,
            Some(map) => {
                let info = &tensors.info[map];
                if info.dtype != DType::I32 {
                    return Err(CheckpointError::WrongDType {
                        file: info.file.clone(),
                        tensor: map.clone(),
                        expected: "I32",
                        found: info.dtype,
                    });
                }
                let groups = words(&tensors.read(map)?);
                // −1 everywhere means that no order was recorded.
                if groups.iter().all(|&g| g == -1) {
                    None
                } else {
                    Some(groups.into_iter().map(|g| usize::try_from(g).unwrap_or(usize::MAX)).collect())
                }
            }
        };
        Ok(ScaleGrid { scale, zero, group_of_column, extent: self.extent })
    }
}
