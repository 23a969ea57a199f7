//! The sparse product with channels in the registers, for few pixels.
//!
//! With one pixel (a fully connected layer) a register of pixels would hold one useful lane. Here it holds the weights of `B` = 8 or
//! 16 output channels instead, and the pixel is broadcast. Four blocks walk together, so that there are at least four
//! chains of multiply-adds.
//!
//! Roofline, one pixel: `4 + 4 / B` bytes per kept weight and one multiply-add, so bound by memory: the gain
//! over dense is at most `1 / ((1 − s)(1 + 1 / B))`. Measured at 4096×4096, 90 % zeros in blocks of 16, one thread, against the
//! dense product with a vector: 8.7 times of at most 9.4. Against [`super::Spmm`]: 2.6 times with one pixel, equal with 12, slower from 16 on.

use std::ops::Range;

use rarefy_sparsity::formats::DeltaBlock;

use super::drive::{self, Out, Strip, StripKernel};
use super::pack::Segment;
use super::{image, portable};
use crate::{Clamp, Isa, KernelError};

/// Blocks that walk together.
const INTERLEAVE: usize = 4;
const NAME: &str = "spmm-channels";

/// A sparse product for a fixed small number of pixels.
#[derive(Debug)]
pub struct SpmmChannels {
    rows: usize,
    cols: usize,
    nnz: usize,
    pixels: usize,
    segments: Vec<Segment>,
}

impl SpmmChannels {
    /// Makes `weight`, in blocks of 8 or 16, ready for images of `pixels` pixels, 1 to 64.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for another block or number of pixels, [`KernelError::TooLarge`] as for [`super::Spmm::new`].
    pub fn new(weight: &DeltaBlock, pixels: usize) -> Result<Self, KernelError> {
        let setting =
            |field, value: usize, allowed| KernelError::Setting { field, value: value.to_string(), allowed };
        if ![8, 16].contains(&weight.block()) {
            return Err(setting("block", weight.block(), "8 or 16"));
        }
        if !(1..=64).contains(&pixels) {
            return Err(setting("pixels", pixels, "1 to 64"));
        }
        let segments = Segment::all(weight, pixels, |block| if block == 1 { 1 } else { INTERLEAVE })?;
        Ok(Self { rows: weight.rows(), cols: weight.cols(), nnz: weight.nnz(), pixels, segments })
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
    /// Bytes of the weight in memory.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Segment::bytes).sum()
    }
    /// As for [`super::Spmm::scratch_len`].
    pub fn scratch_len(&self, threads: usize) -> usize {
        drive::scratch_len(self.cols, self.pixels, threads)
    }

    /// `y[rows, pixels] = clamp(W · x[cols, pixels] + bias)` on the current rayon pool. No allocation.
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

    /// [`SpmmChannels::forward`] on a chosen code path.
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
        let source = image(NAME, x, self.cols, self.pixels)?;
        drive::forward(self, isa, &source, self.pixels, clamp, y, scratch)
    }
}

impl StripKernel for SpmmChannels {
    const NAME: &'static str = NAME;
    fn d_out(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        self.cols
    }
    fn width(&self) -> usize {
        self.pixels
    }
    fn reads_in_place(&self) -> bool {
        false
    }
    fn units(&self) -> usize {
        self.segments.iter().map(Segment::groups).sum()
    }
    fn cost_before(&self, u: usize) -> usize {
        super::cost_before(&self.segments, u)
    }
    unsafe fn run(&self, isa: Isa, strip: Strip<'_>, units: Range<usize>, clamp: Clamp, out: &Out) {
        super::each_segment(&self.segments, units, |s, groups| {
            s.check(&groups);
            assert!(strip.pixels == strip.stride && strip.data.len() == (self.cols + 1) * strip.stride);
            match isa {
                // SAFETY (both): the promises of this function; the sizes were checked above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx2 => unsafe { simd::run(isa, s, groups, strip, clamp, out) },
                _ => unsafe { portable::run(s, groups, strip, clamp, out) },
            }
        });
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "constant bounds unroll; iterators of registers need not")]
mod simd {
    use std::arch::x86_64::{__m256, __m512};

    use super::super::pack::ABSENT;
    use super::*;
    use crate::registers::Register;

    struct Job<'a> {
        segment: &'a Segment,
        groups: Range<usize>,
        strip: Strip<'a>,
        /// First pixel.
        at: usize,
        clamp: Clamp,
        out: &'a Out,
    }

    /// `P` pixels of all groups, `N` channels of a block at a time.
    ///
    /// # Safety
    /// The instruction set of `L`; the job passed `Segment::check`; `at + P` is at most the width; `G` and `B` are those of the segment.
    #[inline(always)]
    unsafe fn groups<L: Register, const B: usize, const G: usize, const P: usize>(job: &Job<'_>) {
        let s = job.segment;
        // SAFETY: every channel is a row of the strip, and `P` pixels from `at` on lie in a row; the arrays hold `starts[g + 1]`
        // steps of `G` channels and `G B` weights; `Out::row` checks what is written.
        unsafe {
            let (low, high) = (L::splat(&job.clamp.low()), L::splat(&job.clamp.high()));
            let (strip, stride) = (job.strip.data.as_ptr().add(job.at), job.strip.stride);
            for g in job.groups.clone() {
                let begin = *s.starts.get_unchecked(g);
                let steps = *s.starts.get_unchecked(g + 1) - begin;
                for pass in 0..B / L::N {
                    let mut channel = s.channels.as_slice().as_ptr().add(begin * G);
                    let mut weight = s.values.as_slice().as_ptr().add(begin * G * B + pass * L::N);
                    let bias = s.bias.as_ptr().add(g * G * B + pass * L::N);
                    let mut acc = [[L::zero(); P]; G];
                    for i in 0..G {
                        acc[i] = [L::load(bias.add(i * B)); P];
                    }
                    for _ in 0..steps {
                        for i in 0..G {
                            let x = strip.add(*channel.add(i) as usize * stride);
                            let w = L::load(weight.add(i * B));
                            for p in 0..P {
                                acc[i][p] = w.fma(L::splat(x.add(p)), acc[i][p]);
                            }
                        }
                        channel = channel.add(G);
                        weight = weight.add(G * B);
                    }
                    for i in 0..G {
                        let row = *s.rows.get_unchecked(g * G + i);
                        if row == ABSENT {
                            continue;
                        }
                        let mut lanes = [0.0f32; 16];
                        for p in 0..P {
                            acc[i][p].clamp(low, high).store_first(lanes.as_mut_ptr(), L::N);
                            for (r, v) in lanes[..L::N].iter().enumerate() {
                                job.out.row(row as usize + pass * L::N + r, job.at + p, 1).write(*v);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The rows left over, one pixel after the other.
    ///
    /// # Safety
    /// FMA; otherwise as [`groups`] with blocks of one row.
    #[target_feature(enable = "fma")]
    unsafe fn singles(job: &Job<'_>) {
        let (s, strip) = (job.segment, job.strip);
        for g in job.groups.clone() {
            for p in 0..strip.stride {
                let mut sum = s.bias[g];
                for step in s.starts[g]..s.starts[g + 1] {
                    let x = strip.data[s.channels.as_slice()[step] as usize * strip.stride + p];
                    sum = s.values.as_slice()[step].mul_add(x, sum);
                }
                let y = job.out.row(s.rows[g] as usize, p, 1);
                // SAFETY: `Out::row` checked the place; nobody else accesses it, as `run` was promised.
                unsafe { y.write(job.clamp.apply(sum)) };
            }
        }
    }

    /// # Safety
    /// AVX-512; see [`groups`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const B: usize, const P: usize>(job: &Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { groups::<__m512, B, INTERLEAVE, P>(job) }
    }

    /// # Safety
    /// AVX2 and FMA; see [`groups`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const B: usize, const P: usize>(job: &Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { groups::<__m256, B, INTERLEAVE, P>(job) }
    }

    /// # Safety
    /// `isa` is AVX2 or AVX-512 and available; nobody else accesses these outputs meanwhile; the segment, made for [`INTERLEAVE`], was
    /// checked against the range and the strip.
    pub(super) unsafe fn run(
        isa: Isa,
        segment: &Segment,
        groups: Range<usize>,
        strip: Strip<'_>,
        clamp: Clamp,
        out: &Out,
    ) {
        type Instance = unsafe fn(&Job<'_>);
        let job = |at| Job { segment, groups: groups.clone(), strip, at, clamp, out };
        // Blocks of 8 fill half a register of AVX-512, so they take the code for AVX2.
        let instances: &[Instance] = match (isa, segment.block) {
            // SAFETY: both sets come with FMA (`Isa::detect`).
            (_, 1) => return unsafe { singles(&job(0)) },
            (Isa::Avx512, 16) => &[
                avx512::<16, 1>,
                avx512::<16, 2>,
                avx512::<16, 3>,
                avx512::<16, 4>,
                avx512::<16, 5>,
                avx512::<16, 6>,
            ],
            (_, 16) => &[avx2::<16, 1>, avx2::<16, 2>, avx2::<16, 3>],
            _ => &[avx2::<8, 1>, avx2::<8, 2>, avx2::<8, 3>],
        };
        let runs = strip.stride.div_ceil(instances.len());
        for run in 0..runs {
            let (begin, end) = (strip.stride * run / runs, strip.stride * (run + 1) / runs);
            // SAFETY: `isa` is available, and an AVX-512 machine has AVX2; the pixels lie in the rows of the strip.
            unsafe { instances[end - begin - 1](&job(begin)) };
        }
    }
}
