//! Depthwise convolution, 3×3 or 5×5, stride 1 or 2, in CHW.
//!
//! Each plane is copied into a padded one first, so that the loop over taps has no borders; for stride 2 the copy parts even
//! from odd columns, so that the loop reads neighbours. Four output rows are computed together: a row of pixels, once
//! loaded, serves up to three of them.
//!
//! Roofline: per output `K²` multiply-adds and 8 bytes (stride 1) or 20 bytes (stride 2) of memory, so from L2 on it is bound by memory
//! for K = 3; within L1 by loads, of which two of three straddle cache lines: 18 per 36 multiply-adds of registers.

use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::Geometry;
use crate::error::{at_least, length, product};
use crate::{Clamp, Isa, KernelError};

const NAME: &str = "depthwise";
/// Multiply-adds below which a thread is not worth waking.
const MIN_PRODUCTS_PER_THREAD: usize = 1 << 18;

/// A depthwise convolution over images of one size.
#[derive(Debug)]
pub struct Depthwise {
    geometry: Geometry,
    channels: usize,
    /// `[channels][kernel²]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    plane: Plane,
}

/// The padded plane: `rows` rows of `stride` floats; with stride 2 a row is its even columns, then from `odd` on its odd ones.
#[derive(Debug, Clone, Copy)]
struct Plane {
    rows: usize,
    stride: usize,
    odd: usize,
}

impl Plane {
    fn new(g: &Geometry) -> Self {
        // Whole registers of 16 pixels from every tap stay inside the row.
        let half = (g.out_width().next_multiple_of(32) + g.kernel()).next_multiple_of(16);
        let rows = (g.out_height() - 1) * g.stride() + g.kernel();
        Self { rows, stride: half * g.stride(), odd: half }
    }

    fn len(self) -> usize {
        self.rows * self.stride
    }
}

impl Depthwise {
    /// A convolution with `w[channels][kernel][kernel]` and one bias per channel (none: zeros).
    ///
    /// # Errors
    /// [`KernelError::Setting`] for a window other than 3 or 5 or a stride above 2; [`KernelError::Length`] when `w` or `bias` has the wrong length.
    pub fn new(
        w: &[f32],
        bias: Option<&[f32]>,
        channels: usize,
        geometry: Geometry,
    ) -> Result<Self, KernelError> {
        let setting =
            |field, value: usize, allowed| KernelError::Setting { field, value: value.to_string(), allowed };
        if ![3, 5].contains(&geometry.kernel()) {
            return Err(setting("kernel", geometry.kernel(), "3 or 5"));
        }
        if geometry.stride() > 2 {
            return Err(setting("stride", geometry.stride(), "1 or 2"));
        }
        let expected = product(NAME, channels, geometry.kernel().pow(2))?;
        length(NAME, "weight", expected, w.len())?;
        bias.map_or(Ok(()), |b| length(NAME, "bias", channels, b.len()))?;
        let bias = bias.map_or_else(|| vec![0.0; channels], <[f32]>::to_vec);
        Ok(Self { geometry, channels, weights: w.to_vec(), bias, plane: Plane::new(&geometry) })
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// The window and the sizes of both images.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    /// Bytes of weights and biases.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.weights) + size_of_val(&*self.bias)
    }
    /// Elements of scratch for up to `threads` threads: one padded plane each. With fewer the call uses fewer threads.
    pub fn scratch_len(&self, threads: usize) -> usize {
        self.plane.len().saturating_mul(threads.max(1))
    }

    /// `y[channels][out_height][out_width] = clamp(depthwise(x) + bias)` on the current rayon pool. No allocation.
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

    /// [`Depthwise::forward`] on a chosen code path.
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
        isa.require()?;
        let (pixels, outputs) = (self.geometry.pixels(), self.geometry.out_pixels());
        let (x_len, y_len) = (product(NAME, self.channels, pixels)?, product(NAME, self.channels, outputs)?);
        length(NAME, "x", x_len, x.len())?;
        length(NAME, "y", y_len, y.len())?;
        let one = self.plane.len();
        at_least(NAME, "scratch", one, scratch.len())?;
        if self.channels == 0 {
            return Ok(());
        }
        let products = y_len.saturating_mul(self.geometry.kernel().pow(2));
        let tasks = rayon::current_num_threads()
            .min(scratch.len() / one)
            .min(products / MIN_PRODUCTS_PER_THREAD)
            .clamp(1, self.channels);
        let share = self.channels.div_ceil(tasks);
        let work = |first: usize, y: &mut [f32], plane: &mut [f32]| {
            let channels = first..first + y.len() / outputs;
            match isa {
                // SAFETY (both): `isa` is available.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { simd::avx512(self, channels, x, clamp, y, plane) },
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { simd::avx2(self, channels, x, clamp, y, plane) },
                _ => self.portable(channels, x, clamp, y, plane),
            }
        };
        if tasks == 1 {
            work(0, y, &mut scratch[..one]);
        } else {
            let planes = scratch.par_chunks_exact_mut(one);
            y.par_chunks_mut(share * outputs)
                .zip(planes)
                .enumerate()
                .with_max_len(1)
                .for_each(|(task, (y, plane))| work(task * share, y, plane));
        }
        Ok(())
    }

    /// Copies channel `c` into the padded plane, whose borders are zero already.
    #[inline(always)]
    fn fill(&self, c: usize, x: &[f32], plane: &mut [f32]) {
        let (g, p) = (&self.geometry, self.plane);
        let image = &x[c * g.pixels()..(c + 1) * g.pixels()];
        // Pixels behind the last window are not needed.
        let width = g.width().min((g.out_width() - 1) * g.stride() + g.kernel() - g.pad_left());
        for (row, to) in image.chunks_exact(g.width()).zip(plane.chunks_exact_mut(p.stride).skip(g.pad_top()))
        {
            let row = &row[..width];
            if g.stride() == 1 {
                to[g.pad_left()..g.pad_left() + width].copy_from_slice(row);
                continue;
            }
            let (even, odd) = to.split_at_mut(p.odd);
            // Column `i` of the image is column `i + pad` of the plane.
            let (first, second, at_first, at_second) = match g.pad_left() % 2 {
                0 => (even, odd, g.pad_left() / 2, g.pad_left() / 2),
                _ => (odd, even, g.pad_left() / 2, g.pad_left() / 2 + 1),
            };
            let pairs = row.chunks_exact(2);
            let rest = pairs.remainder();
            let both = first[at_first..].iter_mut().zip(second[at_second..].iter_mut());
            for (pair, (a, b)) in pairs.zip(both) {
                (*a, *b) = (pair[0], pair[1]);
            }
            if let [last] = rest {
                first[at_first + width / 2] = *last;
            }
        }
    }

    /// Start of tap `(row, kx)` in the plane, for output column 0.
    #[inline(always)]
    fn tap(&self, row: usize, kx: usize) -> usize {
        let p = self.plane;
        row * p.stride + if self.geometry.stride() == 1 { kx } else { kx % 2 * p.odd + kx / 2 }
    }

    fn portable(&self, channels: Range<usize>, x: &[f32], clamp: Clamp, y: &mut [f32], plane: &mut [f32]) {
        let (g, k) = (&self.geometry, self.geometry.kernel());
        plane.fill(0.0);
        for (c, out) in channels.zip(y.chunks_exact_mut(g.out_pixels())) {
            self.fill(c, x, plane);
            let weights = &self.weights[c * k * k..(c + 1) * k * k];
            for (oy, line) in out.chunks_exact_mut(g.out_width()).enumerate() {
                line.fill(self.bias[c]);
                for (tap, w) in weights.iter().enumerate() {
                    let from = &plane[self.tap(oy * g.stride() + tap / k, tap % k)..][..line.len()];
                    line.iter_mut().zip(from).for_each(|(s, x)| *s += w * x);
                }
                line.iter_mut().for_each(|s| *s = clamp.apply(*s));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "constant bounds unroll; iterators of registers need not")]
mod simd {
    use std::arch::x86_64::{__m256, __m512};

    use super::*;
    use crate::registers::Register;

    /// One channel's padded plane and output.
    struct Job<'a> {
        conv: &'a Depthwise,
        weights: &'a [f32],
        bias: &'a f32,
        plane: &'a [f32],
        clamp: Clamp,
    }

    /// # Safety
    /// AVX-512.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn avx512(
        conv: &Depthwise,
        channels: Range<usize>,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        plane: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        unsafe { all::<__m512>(conv, channels, x, clamp, y, plane) }
    }

    /// # Safety
    /// AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        conv: &Depthwise,
        channels: Range<usize>,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        plane: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        unsafe { all::<__m256>(conv, channels, x, clamp, y, plane) }
    }

    /// # Safety
    /// The instruction set of `L`.
    #[inline(always)]
    unsafe fn all<L: Register>(
        conv: &Depthwise,
        channels: Range<usize>,
        x: &[f32],
        clamp: Clamp,
        y: &mut [f32],
        plane: &mut [f32],
    ) {
        let (g, k) = (&conv.geometry, conv.geometry.kernel());
        plane.fill(0.0);
        for (c, out) in channels.zip(y.chunks_exact_mut(g.out_pixels())) {
            conv.fill(c, x, plane);
            let weights = &conv.weights[c * k * k..(c + 1) * k * k];
            let job = Job { conv, weights, bias: &conv.bias[c], plane, clamp };
            // SAFETY: the caller's promise; the window and stride are those of the geometry.
            unsafe {
                match (k, g.stride()) {
                    (3, 1) => rows::<L, 3, 1>(&job, out),
                    (3, 2) => rows::<L, 3, 2>(&job, out),
                    (5, 1) => rows::<L, 5, 1>(&job, out),
                    _ => rows::<L, 5, 2>(&job, out),
                }
            }
        }
    }

    /// # Safety
    /// The instruction set of `L`; `K` and `S` are those of the geometry.
    #[inline(always)]
    unsafe fn rows<L: Register, const K: usize, const S: usize>(job: &Job<'_>, out: &mut [f32]) {
        let height = job.conv.geometry.out_height();
        let mut row = 0;
        // SAFETY (all): the caller's promise, and `row + R <= height`.
        while row + 4 <= height {
            unsafe { band::<L, K, S, 4>(job, row, out) };
            row += 4;
        }
        while row < height {
            unsafe { band::<L, K, S, 1>(job, row, out) };
            row += 1;
        }
    }

    /// `R` output rows.
    ///
    /// # Safety
    /// The instruction set of `L`; `K` and `S` are those of the geometry; `row + R` is at most the output's height.
    #[inline(always)]
    unsafe fn band<L: Register, const K: usize, const S: usize, const R: usize>(
        job: &Job<'_>,
        row: usize,
        out: &mut [f32],
    ) {
        let width = job.conv.geometry.out_width();
        assert!(job.plane.len() == job.conv.plane.len() && job.weights.len() == K * K);
        assert!(out.len() >= (row + R) * width);
        // SAFETY: taps of output rows below the height are rows of the plane. A row of the plane has `K` floats more than the width
        // rounded up to 32 (each half, with stride 2), so a register from any tap and any column below the width stays in it.
        // Stores end at the width.
        unsafe {
            let (low, high) = (L::splat(&job.clamp.low()), L::splat(&job.clamp.high()));
            let mut at = 0;
            while at < width {
                let mut acc = [L::splat(job.bias); R];
                for j in 0..(R - 1) * S + K {
                    for kx in 0..K {
                        let x = L::load(job.plane.as_ptr().add(job.conv.tap(row * S + j, kx) + at));
                        for r in 0..R {
                            if j >= r * S && j - r * S < K {
                                let w = L::splat(job.weights.as_ptr().add((j - r * S) * K + kx));
                                acc[r] = w.fma(x, acc[r]);
                            }
                        }
                    }
                }
                let n = L::N.min(width - at);
                for r in 0..R {
                    let y = out.as_mut_ptr().add((row + r) * width + at);
                    acc[r].clamp(low, high).store_first(y, n);
                }
                at += L::N;
            }
        }
    }
}
