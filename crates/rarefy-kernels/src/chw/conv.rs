//! K×K convolution as a product with patches, packed strip by strip.
//!
//! A strip of pixels needs `K² C` rows of patches instead of `C` rows of the image; they are copied straight into the strip,
//! never to memory as a whole. The product is then that of a 1×1 convolution, dense or sparse: in the sparse one a block is
//! `B` output channels at one tap of one input channel.
//!
//! Roofline: per output pixel `K² C` copied floats against `K² C d_out` multiply-adds at density 1. For the first layer of a
//! MobileNet (27 by 32) copying is about half of the time; from some 100 kept weights per row of patches on it vanishes.

use rarefy_sparsity::formats::DeltaBlock;

use super::Geometry;
use crate::error::{length, product};
use crate::spmm::drive::{Ahead, StripSource};
use crate::spmm::{DenseConv1x1, Spmm};
use crate::{Clamp, Isa, KernelError};

const NAME: &str = "conv";

/// How the input image lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[height][width][channels]`, as image files come.
    Hwc,
    /// `[channels][height][width]`.
    Chw,
}

/// The product with patches.
#[derive(Debug)]
pub enum PatchProduct {
    /// All weights.
    Dense(DenseConv1x1),
    /// The kept blocks only.
    Sparse(Spmm),
}

impl PatchProduct {
    /// A dense product from `w[d_out][channels][kernel][kernel]`, the order of PyTorch.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `w` or `bias` has the wrong length.
    pub fn dense(
        w: &[f32],
        d_out: usize,
        channels: usize,
        kernel: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self, KernelError> {
        let ordered = patch_order(w, d_out, channels, kernel)?;
        Ok(Self::Dense(DenseConv1x1::new(&ordered, d_out, channels * kernel * kernel, bias)?))
    }

    /// A sparse product in blocks of `block` output channels, from the same order.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `w` has the wrong length, and what [`DeltaBlock::encode`] refuses.
    pub fn sparse(
        w: &[f32],
        d_out: usize,
        channels: usize,
        kernel: usize,
        bias: Option<&[f32]>,
        block: usize,
    ) -> Result<Self, KernelError> {
        let ordered = patch_order(w, d_out, channels, kernel)?;
        let packed = DeltaBlock::encode(&ordered, d_out, channels * kernel * kernel, bias, block)?;
        Ok(Self::Sparse(Spmm::new(&packed)?))
    }

    fn rows_cols(&self) -> (usize, usize) {
        match self {
            Self::Dense(k) => (k.rows(), k.cols()),
            Self::Sparse(k) => (k.rows(), k.cols()),
        }
    }
}

/// `w[d_out][channels][kernel][kernel]` in the order of a patch, `[d_out][kernel][kernel][channels]`.
///
/// # Errors
/// [`KernelError::Length`] when `w` has another length.
pub fn patch_order(w: &[f32], d_out: usize, channels: usize, kernel: usize) -> Result<Vec<f32>, KernelError> {
    let taps = product(NAME, kernel, kernel)?;
    let row = product(NAME, taps, channels)?;
    let expected = product(NAME, d_out, row)?;
    length(NAME, "weight", expected, w.len())?;
    let mut ordered = vec![0.0; expected];
    if row > 0 {
        for (from, to) in w.chunks_exact(row).zip(ordered.chunks_exact_mut(row)) {
            for c in 0..channels {
                for tap in 0..taps {
                    to[tap * channels + c] = from[c * taps + tap];
                }
            }
        }
    }
    Ok(ordered)
}

/// A K×K convolution over images of one size.
#[derive(Debug)]
pub struct Conv {
    product: PatchProduct,
    geometry: Geometry,
    channels: usize,
    layout: Layout,
}

impl Conv {
    /// A convolution of `channels` input channels; the product has `kernel² · channels` columns, see [`patch_order`].
    ///
    /// # Errors
    /// [`KernelError::Length`] when it has others.
    pub fn new(
        product: PatchProduct,
        geometry: Geometry,
        channels: usize,
        layout: Layout,
    ) -> Result<Self, KernelError> {
        let (expected, found) = (geometry.kernel().pow(2) * channels, product.rows_cols().1);
        length(NAME, "columns of the weight", expected, found)?;
        Ok(Self { product, geometry, channels, layout })
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.product.rows_cols().0
    }
    /// The window and the sizes of both images.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    /// The product with patches.
    pub fn product(&self) -> &PatchProduct {
        &self.product
    }
    /// As for [`Spmm::scratch_len`].
    pub fn scratch_len(&self, threads: usize) -> usize {
        match &self.product {
            PatchProduct::Dense(k) => k.scratch_len(threads),
            PatchProduct::Sparse(k) => k.scratch_len(threads),
        }
    }

    /// `y[rows][out_height][out_width] = clamp(conv(x) + bias)`, `x` in the layout given. No allocation.
    ///
    /// # Errors
    /// [`KernelError::Length`] for a slice of the wrong length (`scratch`: too short for one thread).
    pub fn forward(
        &self,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, clamp, y, scratch)
    }

    /// [`Conv::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Also [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let expected = product(NAME, self.channels, self.geometry.pixels())?;
        length(NAME, "x", expected, x.len())?;
        let source = Patches { x, geometry: self.geometry, channels: self.channels, layout: self.layout };
        let pixels = self.geometry.out_pixels();
        match &self.product {
            PatchProduct::Dense(k) => k.forward_from(isa, &source, pixels, clamp, y, scratch),
            PatchProduct::Sparse(k) => k.forward_from(isa, &source, pixels, clamp, y, scratch),
        }
    }
}

/// The patches of an image, `[kernel][kernel][channels]` by output pixel.
#[derive(Debug)]
struct Patches<'a> {
    x: &'a [f32],
    geometry: Geometry,
    channels: usize,
    layout: Layout,
}

impl StripSource for Patches<'_> {
    fn fill(&self, _: Isa, first: usize, pixels: usize, width: usize, strip: &mut [f32]) {
        let g = &self.geometry;
        let (by_channel, by_row, by_column) = match self.layout {
            Layout::Hwc => (1, g.width() * self.channels, self.channels),
            Layout::Chw => (g.pixels(), g.width(), 1),
        };
        strip.fill(0.0);
        // Runs of pixels in one output row.
        let mut done = 0;
        while done < pixels {
            let (row, column) = ((first + done) / g.out_width(), (first + done) % g.out_width());
            let run = (g.out_width() - column).min(pixels - done);
            for ky in 0..g.kernel() {
                let Some(y) = (row * g.stride() + ky).checked_sub(g.pad_top()).filter(|y| *y < g.height())
                else {
                    continue;
                };
                for kx in 0..g.kernel() {
                    let inside = g.inside(kx, g.width(), g.pad_left(), g.out_width());
                    let (begin, end) = (inside.start.max(column), inside.end.min(column + run));
                    if begin >= end {
                        continue;
                    }
                    let from = y * by_row + (begin * g.stride() + kx - g.pad_left()) * by_column;
                    for c in 0..self.channels {
                        let line =
                            ((ky * g.kernel() + kx) * self.channels + c) * width + done + begin - column;
                        let line = &mut strip[line..line + end - begin];
                        let x = &self.x[from + c * by_channel..];
                        match g.stride() * by_column {
                            1 => line.copy_from_slice(&x[..line.len()]),
                            step => line.iter_mut().zip(x.iter().step_by(step)).for_each(|(to, x)| *to = *x),
                        }
                    }
                }
            }
            done += run;
        }
    }

    fn in_place(&self, _: usize) -> Option<(&[f32], usize)> {
        None
    }

    fn ahead(&self, _: usize, _: usize) -> Ahead {
        // Patches overlap those of the strip before, and the image is walked front to back: the hardware sees it coming.
        Ahead::NONE
    }
}
