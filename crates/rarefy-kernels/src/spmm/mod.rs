//! 1×1 convolution with sparse or dense weights in channel-major (CHW) layout: `Y[d_out, pixels] = clamp(W · X[d_in, pixels] + bias)`.
//!
//! With the pixels of a channel next to each other every non-zero weight is "scalar times contiguous vector": no gather, full
//! registers. What a sparse kernel can reach depends on how often a loaded pixel is used. Per non-zero block of `B` output
//! channels and 16 pixels the AVX-512 loop loads 64 bytes of pixels and does `B` multiply-adds:
//!
//! | B | loads per multiply-add (32 pixels) | ceiling on a core with 2 loads and 2 multiply-adds per cycle |
//! |---|---|---|
//! | 1 | 3/2 | 67 % of the peak while the strip is in L1 |
//! | 2 | 1 | 100 % |
//! | 4 | 3/4 | 100 % |
//!
//! and the strip's `d_in · width · 4` bytes are read from L1 or, where it does not fit, from L2.
//!
//! # Same bits
//! Every output is one chain of multiply-adds over ascending input channels that starts at the bias, whatever the block height, the
//! strip, the thread. So [`Spmm`] equals [`DenseConv1x1`] on the same weights bit for bit for finite inputs (except that
//! a sum that is exactly zero may differ in its sign), AVX2 equals AVX-512, one thread equals two; the portable code rounds the product too.
//!
//! # NaN and infinity
//! A weight that is not stored touches nothing: there an infinite pixel has no effect, while a zero stored inside a kept
//! block behaves as in the dense kernel (`0 · ∞ = NaN`). NaN passes the clamp.

mod channels;
mod dense;
pub(crate) mod drive;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "constant bounds unroll; iterators of registers need not")]
mod micro;
mod pack;
mod portable;

use std::ops::Range;

use rarefy_sparsity::formats::DeltaBlock;

pub use channels::SpmmChannels;
pub use dense::DenseConv1x1;
use drive::{Image, Out, Strip, StripKernel, StripSource};
use pack::Segment;

use crate::error::{length, product};
use crate::{Clamp, Isa, KernelError};

/// A sparse 1×1 convolution over packed strips of pixels.
#[derive(Debug)]
pub struct Spmm {
    rows: usize,
    cols: usize,
    nnz: usize,
    block: usize,
    width: usize,
    in_place: bool,
    segments: Vec<Segment>,
}

impl Spmm {
    /// Makes `weight` ready to run.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] when a strip of all channels exceeds 2 GiB.
    pub fn new(weight: &DeltaBlock) -> Result<Self, KernelError> {
        Self::with_width(weight, width_for(weight.block(), weight.cols()))
    }

    /// As [`Spmm::new`] with strips of `width` pixels: 16, 32, 48 or 64.
    ///
    /// # Errors
    /// Also [`KernelError::Setting`] for another width.
    pub fn with_width(weight: &DeltaBlock, width: usize) -> Result<Self, KernelError> {
        if ![16, 32, 48, 64].contains(&width) {
            let value = width.to_string();
            return Err(KernelError::Setting { field: "width", value, allowed: "16, 32, 48 or 64" });
        }
        let segments = Segment::all(weight, width, |block| interleave(block, width))?;
        let (rows, cols, nnz) = (weight.rows(), weight.cols(), weight.nnz());
        Ok(Self { rows, cols, nnz, block: weight.block(), width, in_place: false, segments })
    }

    /// Reads images without packing strips where their rows allow it (blocks of 4 and more, no rows left over). To be asked for when the images lie on huge
    /// pages, as in one [`crate::AlignedBuf`] of 2 MiB or more: there it saves up to a fifth of the time, on small pages it
    /// costs up to half more. Results are the same.
    pub fn reading_in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Stored weights, zeros inside kept blocks included.
    pub fn nnz(&self) -> usize {
        self.nnz
    }
    /// Rows of a block.
    pub fn block(&self) -> usize {
        self.block
    }
    /// Pixels of a strip.
    pub fn width(&self) -> usize {
        self.width
    }
    /// Bytes of the weight in memory.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Segment::bytes).sum()
    }
    /// Elements of scratch for up to `threads` threads. With fewer the call uses fewer threads; it needs at least that for one.
    pub fn scratch_len(&self, threads: usize) -> usize {
        drive::scratch_len(self.cols, self.width, threads)
    }

    /// `y[rows, pixels] = clamp(W · x[cols, pixels] + bias)` on the current rayon pool. No allocation.
    ///
    /// # Errors
    /// [`KernelError::Length`] for a slice of the wrong length (`scratch`: too short for one thread).
    pub fn forward(
        &self,
        x: &[f32],
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, pixels, clamp, y, scratch)
    }

    /// [`Spmm::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Also [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let source = image(Self::NAME, x, self.cols, pixels)?;
        drive::forward(self, isa, &source, pixels, clamp, y, scratch)
    }

    /// The same product over strips from elsewhere.
    pub(crate) fn forward_from<S: StripSource>(
        &self,
        isa: Isa,
        source: &S,
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        drive::forward(self, isa, source, pixels, clamp, y, scratch)
    }
}

/// `x` as an image of `cols` channels.
fn image<'a>(
    kernel: &'static str,
    x: &'a [f32],
    cols: usize,
    pixels: usize,
) -> Result<Image<'a>, KernelError> {
    let expected = product(kernel, cols, pixels)?;
    length(kernel, "x", expected, x.len())?;
    Ok(Image { x, pixels })
}

/// Pixels of a strip. One non-zero at a time, the strip should stay in L1 (48 KiB), as far as 32 pixels allow: below that the
/// broadcasts weigh more than the misses. Blocks read a pixel less often, and then wide strips win, because they stream the
/// weights less often and touch fewer pages. Measured at 16, 32, 48, 64 pixels (GF/s, AVX-512, one thread, peak 177):
///
/// | B, zeros | 256×256×832 | 1024×1024×64 |
/// |---|---|---|
/// | 1, 50 % | 66 87 77 74 | 56 67 65 79 |
/// | 2, 50 % | 95 128 129 115 | 81 99 95 118 |
/// | 4, 50 % | 123 135 145 149 | 101 129 123 158 |
/// | 8, 50 % | 128 153 151 146 | 121 158 149 157 |
/// | 16, 50 % | 115 151 152 137 | 94 144 136 146 |
fn width_for(block: usize, cols: usize) -> usize {
    let narrow = cols <= 320;
    match block {
        1 if narrow => 32,
        2 | 8 | 16 if narrow => 48,
        _ => 64,
    }
}

/// Blocks that walk together, so that at least eight chains of multiply-adds (latency 4, two per cycle) are in flight.
fn interleave(block: usize, width: usize) -> usize {
    match (block, width) {
        (1, 16) => 8,
        (1, _) => 4,
        (2, 16) => 4,
        (2, _) => 2,
        (4, 16) => 2,
        _ => 1,
    }
}

impl StripKernel for Spmm {
    const NAME: &'static str = "spmm";
    fn d_out(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        self.cols
    }
    fn width(&self) -> usize {
        self.width
    }
    fn reads_in_place(&self) -> bool {
        // Single rows read a pixel once and gain from a strip in L1; blocks hide L2, and then the copy is what costs.
        self.in_place && self.block >= 4 && !self.segments.iter().any(Segment::is_padded)
    }
    fn units(&self) -> usize {
        self.segments.iter().map(Segment::groups).sum()
    }
    fn cost_before(&self, u: usize) -> usize {
        cost_before(&self.segments, u)
    }
    unsafe fn run(&self, isa: Isa, strip: Strip<'_>, units: Range<usize>, clamp: Clamp, out: &Out) {
        each_segment(&self.segments, units, |s, groups| match isa {
            // SAFETY (both): the promises of this function.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => unsafe { micro::run(isa, s, groups, strip, clamp, out) },
            _ => unsafe { portable::run(s, groups, strip, clamp, out) },
        });
    }
}

/// [`StripKernel::cost_before`] where the units are the groups of all segments.
fn cost_before(segments: &[Segment], unit: usize) -> usize {
    let (mut left, mut cost) = (unit, 0);
    for s in segments {
        let here = left.min(s.groups());
        cost += s.cost_before(here);
        left -= here;
    }
    cost
}

/// Cuts a range of units into the groups of each segment.
fn each_segment(segments: &[Segment], units: Range<usize>, mut f: impl FnMut(&Segment, Range<usize>)) {
    let mut before = 0;
    for s in segments {
        let end = before + s.groups();
        let range = units.start.clamp(before, end) - before..units.end.clamp(before, end) - before;
        if !range.is_empty() {
            f(s, range);
        }
        before = end;
    }
}
