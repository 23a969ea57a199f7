//! The kernel of a node, and how it is chosen.

use rarefy_sparsity::formats::delta_block::choose_block;
use rarefy_sparsity::formats::{BitmaskPanel, DeltaBlock};

use super::{NetworkSettings, NodeReport, Op, Padding, setting};
use crate::chw::{Conv, Depthwise, Geometry, Layout, PatchProduct, global_average, patch_order};
use crate::error::length;
use crate::spmm::{DenseConv1x1, Spmm, SpmmChannels};
use crate::{Clamp, DenseF32, Isa, KernelError, LinearKernel, PanelF32};

/// What runs.
#[derive(Debug)]
pub(super) enum Layer {
    Dense(DenseConv1x1, usize),
    Sparse(Spmm, usize),
    Channels(SpmmChannels),
    /// A product with one pixel; the biases are added behind it.
    LinearDense(DenseF32, Vec<f32>),
    LinearPanel(PanelF32, Vec<f32>),
    Patches(Conv),
    Depthwise(Depthwise),
    Add {
        other: usize,
    },
    GlobalAverage {
        channels: usize,
        pixels: usize,
    },
}

/// Sparsity from which a sparse kernel with blocks of `block` rows is chosen: where it breaks even with the dense one, with a margin. Measured
/// at 256×256×832 and 512×512×256: one row breaks even at 50 %, two gain 1.3 times there, four and more 1.6 times;
/// sixteen gain 1.2 to 1.3 times at 30 %, which pruning to 30 % misses by the fraction of a block that is left over.
fn gate(block: usize) -> f64 {
    match block {
        1 => 0.6,
        2 => 0.4,
        _ => 0.25,
    }
}

impl Layer {
    /// The kernel for `op` on an input of `[channels, height, width]`.
    pub(super) fn choose(
        op: &Op<'_>,
        [channels, height, width]: [usize; 3],
        layout: Layout,
        settings: &NetworkSettings,
    ) -> Result<(Self, NodeReport), KernelError> {
        let plain = |kernel: &str, products, output| NodeReport {
            kernel: kernel.to_owned(),
            reason: String::new(),
            density: 1.0,
            products,
            output,
            bytes: 0,
        };
        if layout == Layout::Hwc && !matches!(op, Op::Conv { groups: 1, .. }) {
            return Err(setting("layout", 0, "HWC only for a first convolution over all channels"));
        }
        let (weight, bias, d_out, groups, kernel, stride, padding) = match *op {
            Op::Add { other } => {
                return Ok((Self::Add { other }, plain("add", 0, [channels, height, width])));
            }
            Op::GlobalAverage => {
                let pixels = height * width;
                return Ok((Self::GlobalAverage { channels, pixels }, plain("average", 0, [channels, 1, 1])));
            }
            Op::Conv { weight, bias, d_out, groups, kernel, stride, padding } => {
                (weight, bias, d_out, groups, kernel, stride, padding)
            }
        };
        let geometry = match padding {
            Padding::Same => Geometry::same(height, width, kernel, stride)?,
            Padding::Pixels(pad) => Geometry::padded(height, width, kernel, stride, pad)?,
        };
        let output = [d_out, geometry.out_height(), geometry.out_width()];
        let products = weight.len().saturating_mul(geometry.out_pixels());
        let kept = weight.iter().filter(|w| **w != 0.0).count();
        let density = if weight.is_empty() { 1.0 } else { kept as f64 / weight.len() as f64 };
        let report = |kernel: String, reason: String| NodeReport {
            kernel,
            reason,
            density,
            products,
            output,
            bytes: 0,
        };
        if groups != 1 {
            if groups != channels || d_out != channels {
                return Err(setting("groups", groups, "1, or all channels with as many outputs"));
            }
            let layer = Self::Depthwise(Depthwise::new(weight, bias, channels, geometry)?);
            return Ok((layer, report("depthwise".to_owned(), "depthwise has no sparse kernel".to_owned())));
        }

        let ordered = patch_order(weight, d_out, channels, kernel)?;
        let cols = channels * kernel * kernel;
        let block = choose_block(&ordered, d_out, cols, settings.largest_block)?;
        let dense_because = if !settings.may_be_sparse {
            Some("sparse kernels are switched off".to_owned())
        } else if 1.0 - density < gate(block) {
            Some(format!(
                "{:.0} % zeros, and blocks of {block} pay from {:.0} % on",
                100.0 * (1.0 - density),
                100.0 * gate(block)
            ))
        } else {
            None
        };
        let in_place = settings.huge_pages;
        let dense = || {
            DenseConv1x1::new(&ordered, d_out, cols, bias)
                .map(|k| if in_place { k.reading_in_place() } else { k })
        };
        let packed = || DeltaBlock::encode(&ordered, d_out, cols, bias, block);
        let sparse = || Spmm::new(&packed()?).map(|k| if in_place { k.reading_in_place() } else { k });
        let pixels = geometry.out_pixels();
        let pointwise =
            kernel == 1 && stride == 1 && geometry.out_pixels() == geometry.pixels() && layout == Layout::Chw;
        let biases = || bias.map_or_else(|| vec![0.0; d_out], <[f32]>::to_vec);
        let (layer, name) = match (&dense_because, pointwise, pixels) {
            (Some(_), true, 1) => {
                check_bias(bias, d_out)?;
                (Self::LinearDense(DenseF32::new(&ordered, d_out, cols)?, biases()), "linear".to_owned())
            }
            (Some(_), true, _) => (Self::Dense(dense()?, pixels), "1x1".to_owned()),
            (Some(_), false, _) => {
                let conv = Conv::new(PatchProduct::Dense(dense()?), geometry, channels, layout)?;
                (Self::Patches(conv), format!("{kernel}x{kernel}"))
            }
            (None, true, 1) if block < 8 => {
                check_bias(bias, d_out)?;
                let panel = BitmaskPanel::encode(&ordered, d_out, cols)?;
                (Self::LinearPanel(PanelF32::new(panel), biases()), "linear bitmask".to_owned())
            }
            (None, true, 1..=12) if block >= 8 => {
                (Self::Channels(SpmmChannels::new(&packed()?, pixels)?), format!("1x1 channels {block}"))
            }
            (None, true, _) => (Self::Sparse(sparse()?, pixels), format!("1x1 sparse {block}")),
            (None, false, _) => {
                let conv = Conv::new(PatchProduct::Sparse(sparse()?), geometry, channels, layout)?;
                (Self::Patches(conv), format!("{kernel}x{kernel} sparse {block}"))
            }
        };
        Ok((layer, report(name, dense_because.unwrap_or_default())))
    }

    /// Bytes of weights and biases as they are held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(k, _) => k.bytes(),
            Self::Sparse(k, _) => k.bytes(),
            Self::Channels(k) => k.bytes(),
            Self::LinearDense(k, bias) => k.bytes() + size_of_val(&**bias),
            Self::LinearPanel(k, bias) => k.bytes() + size_of_val(&**bias),
            Self::Patches(k) => match k.product() {
                PatchProduct::Dense(k) => k.bytes(),
                PatchProduct::Sparse(k) => k.bytes(),
            },
            Self::Depthwise(k) => k.bytes(),
            Self::Add { .. } | Self::GlobalAverage { .. } => 0,
        }
    }

    /// Elements of scratch for up to `threads` threads.
    pub(super) fn scratch_len(&self, threads: usize) -> usize {
        match self {
            Self::Dense(k, _) => k.scratch_len(threads),
            Self::Sparse(k, _) => k.scratch_len(threads),
            Self::Channels(k) => k.scratch_len(threads),
            Self::LinearDense(k, _) => k.scratch_len(1),
            Self::LinearPanel(k, _) => k.scratch_len(1),
            Self::Patches(k) => k.scratch_len(threads),
            Self::Depthwise(k) => k.scratch_len(threads),
            Self::Add { .. } | Self::GlobalAverage { .. } => 0,
        }
    }

    /// Computes `y` from `x`; additions are the network's, which knows both operands.
    pub(super) fn run(
        &self,
        isa: Isa,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let biased =
            |y: &mut [f32], bias: &[f32]| y.iter_mut().zip(bias).for_each(|(y, b)| *y = clamp.apply(*y + b));
        match self {
            Self::Dense(k, pixels) => k.forward_with(isa, x, *pixels, clamp, y, scratch),
            Self::Sparse(k, pixels) => k.forward_with(isa, x, *pixels, clamp, y, scratch),
            Self::Channels(k) => k.forward_with(isa, x, clamp, y, scratch),
            Self::LinearDense(k, bias) => {
                k.forward_with(isa, x, 1, y, scratch)?;
                biased(y, bias);
                Ok(())
            }
            Self::LinearPanel(k, bias) => {
                k.forward_with(isa, x, 1, y, scratch)?;
                biased(y, bias);
                Ok(())
            }
            Self::Patches(k) => k.forward_with(isa, x, clamp, y, scratch),
            Self::Depthwise(k) => k.forward_with(isa, x, clamp, y, scratch),
            Self::GlobalAverage { channels, pixels } => {
                global_average(x, *channels, *pixels, y)?;
                y.iter_mut().for_each(|y| *y = clamp.apply(*y));
                Ok(())
            }
            Self::Add { .. } => Ok(()),
        }
    }
}

fn check_bias(bias: Option<&[f32]>, d_out: usize) -> Result<(), KernelError> {
    bias.map_or(Ok(()), |b| length("network", "bias", d_out, b.len()))
}
