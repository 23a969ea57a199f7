//! The inner loop of the sparse product, for AVX2 and AVX-512.
//!
//! `R` rows by `V` registers of pixels for each of `G` interleaved blocks: per step and block one channel number, `V` loads of pixels,
//! `R` broadcasts of weights, `R V` multiply-adds. With two loads and two multiply-adds per cycle a step of `R = 1` takes
//! `(V + 1) / 2` cycles for `V` multiply-adds, so at most `V / (V + 1)` of the peak: 67 % with 32 pixels, and that only while the
//! strip is in L1. From `R = 2` on the loads are no longer the bound.

use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;

use super::drive::{Out, Strip};
use super::pack::{ABSENT, Segment};
use crate::registers::Register;
use crate::{Clamp, Isa};

/// What a call of an instance works on.
struct Job<'a> {
    segment: &'a Segment,
    groups: Range<usize>,
    strip: Strip<'a>,
    /// Pixels of the strip to compute: `V` registers from `at` on, the last with `last` pixels.
    at: usize,
    last: usize,
    clamp: Clamp,
    out: &'a Out,
}

/// Runs all groups of the job with `B / R` passes over each.
///
/// # Safety
/// The instruction set of `L`; the job passed `Segment::check`, with `at + V N` at most the width of the strip and `(B, G)` those of the segment.
#[inline(always)]
unsafe fn groups<L: Register, const B: usize, const R: usize, const G: usize, const V: usize>(job: &Job<'_>) {
    let s = job.segment;
    let pixels = (V - 1) * L::N + job.last;
    // SAFETY: the caller's promise: every channel is a row of the strip, and `V` registers from `at` on lie in a row; the
    // arrays hold `starts[g + 1]` steps of `G` channels and `G B` weights; `Out::row` checks what is written.
    unsafe {
        let (low, high) = (L::splat(&job.clamp.low()), L::splat(&job.clamp.high()));
        let (strip, stride) = (job.strip.data.as_ptr().add(job.at), job.strip.stride);
        for (k, g) in job.groups.clone().enumerate() {
            job.strip.next.fetch(k, job.groups.len());
            let begin = *s.starts.get_unchecked(g);
            let steps = *s.starts.get_unchecked(g + 1) - begin;
            for pass in 0..B / R {
                let mut channel = s.channels.as_slice().as_ptr().add(begin * G);
                let mut weight = s.values.as_slice().as_ptr().add(begin * G * B + pass * R);
                let bias = s.bias.as_ptr().add(g * G * B + pass * R);
                let mut acc = [[[L::zero(); V]; R]; G];
                for i in 0..G {
                    for r in 0..R {
                        acc[i][r] = [L::splat(bias.add(i * B + r)); V];
                    }
                }
                for _ in 0..steps {
                    for i in 0..G {
                        let x = strip.add(*channel.add(i) as usize * stride);
                        let mut pixel = [L::zero(); V];
                        for v in 0..V {
                            pixel[v] = L::load(x.add(v * L::N));
                        }
                        for r in 0..R {
                            let w = L::splat(weight.add(i * B + r));
                            for v in 0..V {
                                acc[i][r][v] = w.fma(pixel[v], acc[i][r][v]);
                            }
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
                    for r in 0..R {
                        let y = job.out.row(row as usize + pass * R + r, job.strip.first + job.at, pixels);
                        for v in 0..V {
                            let n = if v + 1 == V { job.last } else { L::N };
                            acc[i][r][v].clamp(low, high).store_first(y.add(v * L::N), n);
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// AVX-512; see [`groups`].
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const B: usize, const R: usize, const G: usize, const V: usize>(job: &Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe { groups::<__m512, B, R, G, V>(job) }
}

/// # Safety
/// AVX2 and FMA; see [`groups`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const B: usize, const R: usize, const G: usize, const V: usize>(job: &Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe { groups::<__m256, B, R, G, V>(job) }
}

type Instance = unsafe fn(&Job<'_>);

/// The instances for 1, 2, … registers of pixels. Accumulators `R G V` fill at most 24 of 32 registers.
fn instances_avx512(block: usize, interleave: usize) -> &'static [Instance] {
    match (block, interleave) {
        (1, 8) => &[avx512::<1, 1, 8, 1>, avx512::<1, 1, 8, 2>],
        (1, 4) => &[avx512::<1, 1, 4, 1>, avx512::<1, 1, 4, 2>, avx512::<1, 1, 4, 3>, avx512::<1, 1, 4, 4>],
        (2, 4) => &[avx512::<2, 2, 4, 1>, avx512::<2, 2, 4, 2>],
        (2, 2) => &[avx512::<2, 2, 2, 1>, avx512::<2, 2, 2, 2>, avx512::<2, 2, 2, 3>, avx512::<2, 2, 2, 4>],
        (4, 2) => &[avx512::<4, 4, 2, 1>, avx512::<4, 4, 2, 2>, avx512::<4, 4, 2, 3>],
        (4, 1) => &[avx512::<4, 4, 1, 1>, avx512::<4, 4, 1, 2>, avx512::<4, 4, 1, 3>, avx512::<4, 4, 1, 4>],
        (8, 1) => &[avx512::<8, 8, 1, 1>, avx512::<8, 8, 1, 2>, avx512::<8, 8, 1, 3>],
        (16, 1) => &[avx512::<16, 8, 1, 1>, avx512::<16, 8, 1, 2>, avx512::<16, 8, 1, 3>],
        other => unreachable!("segments have the interleaves of `interleave`, got {other:?}"),
    }
}

/// As above with 16 registers, of which at most 12 accumulate.
fn instances_avx2(block: usize, interleave: usize) -> &'static [Instance] {
    match (block, interleave) {
        (1, 8) => &[avx2::<1, 1, 8, 1>],
        (1, 4) => &[avx2::<1, 1, 4, 1>, avx2::<1, 1, 4, 2>],
        (2, 4) => &[avx2::<2, 2, 4, 1>],
        (2, 2) => &[avx2::<2, 2, 2, 1>, avx2::<2, 2, 2, 2>],
        (4, 2) => &[avx2::<4, 4, 2, 1>],
        (4, 1) => &[avx2::<4, 4, 1, 1>, avx2::<4, 4, 1, 2>, avx2::<4, 4, 1, 3>],
        (8, 1) => &[avx2::<8, 4, 1, 1>, avx2::<8, 4, 1, 2>, avx2::<8, 4, 1, 3>],
        (16, 1) => &[avx2::<16, 4, 1, 1>, avx2::<16, 4, 1, 2>, avx2::<16, 4, 1, 3>],
        other => unreachable!("segments have the interleaves of `interleave`, got {other:?}"),
    }
}

/// The groups `range` of `segment` for one strip.
///
/// # Safety
/// `isa` is AVX2 or AVX-512 and available; nobody else accesses these outputs meanwhile.
pub(super) unsafe fn run(
    isa: Isa,
    segment: &Segment,
    range: Range<usize>,
    strip: Strip<'_>,
    clamp: Clamp,
    out: &Out,
) {
    segment.check(&range);
    strip.check(segment.strip_rows());
    let (lanes, instances) = match isa {
        Isa::Avx512 => (16, instances_avx512(segment.block, segment.interleave)),
        _ => (8, instances_avx2(segment.block, segment.interleave)),
    };
    let registers = strip.pixels.div_ceil(lanes);
    // Runs of nearly equal length: 3 + 1 registers would leave the second run with too few chains.
    let runs = registers.div_ceil(instances.len());
    for run in 0..runs {
        let (begin, end) = (registers * run / runs, registers * (run + 1) / runs);
        let (at, last) = (begin * lanes, lanes.min(strip.pixels - (end - 1) * lanes));
        let job = Job { segment, groups: range.clone(), strip, at, last, clamp, out };
        // SAFETY: `isa` is available; the segment was checked above; `registers * lanes` is at most the number of pixels
        // rounded up to 16, which the strip was checked to hold; the instance is that of the segment.
        unsafe { instances[end - begin - 1](&job) };
    }
}
