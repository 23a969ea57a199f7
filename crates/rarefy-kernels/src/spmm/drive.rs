//! What the products over strips of pixels share: argument checks, packing of strips, the split over threads.
//!
//! A strip is `width` neighbouring pixels of all input channels, copied to `[depth + 1][width]`. The copy pays because
//! the rows of a CHW image lie `4 HW` bytes apart: read in place, a strip touches one page per channel, more than the first
//! level of the translation buffer holds, and, where that distance is a multiple of 4096, one set of the cache. The last row
//! is zero: padded entries point there.
//!
//! On huge pages, and with rows that spread over the cache, reading in place saves the copy. Measured at 256×256×832, B = 4, 50 and 90 %
//! zeros, in µs: packed 374 and 113 on small pages, 368 and 109 on huge ones; in place 615 and 129, 378 and 91.

use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::error::{at_least, length, product};
use crate::{Clamp, Isa, KernelError};

/// Multiply-adds below which a thread is not worth waking (some 10 µs of work).
const MIN_PRODUCTS_PER_THREAD: usize = 1 << 19;
/// Floats by which the start of a strip may be moved to reach a cache line.
const SLACK: usize = 16;

/// A product `Y[d_out, pixels] = clamp(W · X + bias)` strip by strip. Its outputs are cut into units that can be computed
/// one without the other.
pub(crate) trait StripKernel: Sync {
    const NAME: &'static str;
    /// Output channels.
    fn d_out(&self) -> usize;
    /// Rows of a strip that hold data.
    fn depth(&self) -> usize;
    /// Pixels of a strip.
    fn width(&self) -> usize;
    /// True when strips need not be packed: the loops never read the zero row, and the caller asked for it.
    fn reads_in_place(&self) -> bool;
    /// Number of units.
    fn units(&self) -> usize;
    /// Multiply-adds per pixel before unit `u`; monotone.
    fn cost_before(&self, u: usize) -> usize;
    /// Computes the units `units` for the first `pixels` pixels of `strip` and writes them at pixel `first` of `out`.
    ///
    /// # Safety
    /// `isa` is available; nobody else accesses these outputs meanwhile. (Sizes are asserted.)
    unsafe fn run(&self, isa: Isa, strip: Strip<'_>, units: Range<usize>, clamp: Clamp, out: &Out);
}

/// One strip.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip<'a> {
    /// Packed: `[depth + 1][stride]`, the last row zero, 64-byte aligned. In place: the image from pixel `first` on.
    pub(crate) data: &'a [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
    /// Its first pixel in the image.
    pub(crate) first: usize,
    /// Its pixels; those behind them are zero.
    pub(crate) pixels: usize,
    /// Where the next strip will be copied from.
    pub(crate) next: Ahead,
}

impl Strip<'_> {
    /// Panics unless `rows` rows of whole registers of 16 pixels can be read.
    pub(crate) fn check(&self, rows: usize) {
        let read = self.pixels.next_multiple_of(16);
        assert!(rows == 0 || (rows - 1) * self.stride + read <= self.data.len() && self.pixels > 0);
    }
}

/// Memory that will be read soon: `lines` cache lines in each of `rows` rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    from: *const f32,
    stride: usize,
    rows: usize,
    lines: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Ahead = Ahead { from: std::ptr::null(), stride: 0, rows: 0, lines: 0 };

    /// Asks for part `part` of `parts`. Spread over the computation of a strip, the requests for the next one arrive in its
    /// shade; all at once they fill the queue of the cache, and packing waits for memory as without them.
    #[inline(always)]
    pub(crate) fn fetch(&self, part: usize, parts: usize) {
        #[cfg(target_arch = "x86_64")]
        for row in self.rows * part / parts..self.rows * (part + 1) / parts {
            for line in 0..self.lines {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                let at = self.from.wrapping_add(row * self.stride + line * 16);
                // SAFETY: SSE is part of x86-64, and a prefetch never faults, wherever it points.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (part, parts);
    }
}

/// Where strips come from: an image itself, or its patches.
pub(crate) trait StripSource: Sync {
    /// Fills `[depth][width]` from pixel `first` on, zero behind the last of `pixels`.
    fn fill(&self, isa: Isa, first: usize, pixels: usize, width: usize, strip: &mut [f32]);
    /// The strip at pixel `first` as it lies in memory, with the distance of its rows, if it may be read in place.
    fn in_place(&self, first: usize) -> Option<(&[f32], usize)>;
    /// What `fill` will read for the strip at pixel `first`.
    fn ahead(&self, first: usize, width: usize) -> Ahead;
}

/// `y[rows][pixels]`, written by several tasks at disjoint places.
#[derive(Debug)]
pub(crate) struct Out {
    y: *mut f32,
    rows: usize,
    pixels: usize,
}

// SAFETY: tasks write to disjoint outputs only (the promise of `StripKernel::run`), so sharing the pointer races with nothing.
unsafe impl Sync for Out {}

impl Out {
    /// A pointer to `pixels` outputs of row `row` from pixel `first` on. Panics when they leave the image.
    #[inline]
    pub(crate) fn row(&self, row: usize, first: usize, pixels: usize) -> *mut f32 {
        assert!(row < self.rows && first <= self.pixels && pixels <= self.pixels - first);
        // SAFETY: by the line above the offset lies inside the `rows * pixels` elements behind `y`.
        unsafe { self.y.add(row * self.pixels + first) }
    }
}

/// Scratch elements for up to `threads` threads.
pub(crate) fn scratch_len(depth: usize, width: usize, threads: usize) -> usize {
    strip_len(depth, width).saturating_mul(threads.max(1))
}

fn strip_len(depth: usize, width: usize) -> usize {
    // Whole cache lines, so that two threads share none.
    depth.saturating_add(1).saturating_mul(width).saturating_add(SLACK)
}

/// Runs `kernel` over all strips of an image of `pixels` pixels.
pub(crate) fn forward<K: StripKernel, S: StripSource>(
    kernel: &K,
    isa: Isa,
    source: &S,
    pixels: usize,
    clamp: Clamp,
    y: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    isa.require()?;
    let y_len = product(K::NAME, kernel.d_out(), pixels)?;
    length(K::NAME, "y", y_len, y.len())?;
    let (depth, width) = (kernel.depth(), kernel.width());
    let one = strip_len(depth, width);
    at_least(K::NAME, "scratch", one, scratch.len())?;
    if y_len == 0 {
        return Ok(());
    }

    let out = Out { y: y.as_mut_ptr(), rows: kernel.d_out(), pixels };
    let strips = pixels.div_ceil(width);
    let units = kernel.units();
    let work = |scratch: &mut [f32], part: Range<usize>, units: Range<usize>| {
        let skip = scratch.as_ptr().align_offset(64).min(SLACK);
        let data = &mut scratch[skip..][..(depth + 1) * width];
        data[depth * width..].fill(0.0);
        for first in part.clone().step_by(width) {
            let n = width.min(part.end - first);
            let direct = if kernel.reads_in_place() { source.in_place(first) } else { None };
            let (data, stride) = direct.unwrap_or_else(|| {
                source.fill(isa, first, n, width, &mut data[..depth * width]);
                (&*data, width)
            });
            let next = first + width;
            let next = if next < part.end { source.ahead(next, width) } else { Ahead::NONE };
            let strip = Strip { data, stride, first, pixels: n, next };
            // SAFETY: `isa` is available. The (pixels, units) of two tasks are disjoint, see below.
            unsafe { kernel.run(isa, strip, units.clone(), clamp, &out) };
        }
    };
    let products = kernel.cost_before(units).saturating_mul(pixels);
    let tasks = rayon::current_num_threads()
        .min(scratch.len() / one)
        .min(products / MIN_PRODUCTS_PER_THREAD)
        .min(strips.saturating_mul(units));
    if tasks <= 1 {
        work(scratch, 0..pixels, 0..units);
        return Ok(());
    }
    // By pixels every thread packs its own strips, cut at whole registers and not at whole strips, so that the shares are even.
    // Where that leaves each less than two strips, by units: each packs all, but streams only its share of the weights.
    let by_units = strips < 2 * tasks;
    let bound = |task: usize| (pixels.div_ceil(16) * task / tasks * 16).min(pixels);
    scratch.par_chunks_mut(one).take(tasks).enumerate().with_max_len(1).for_each(|(task, scratch)| {
        if by_units {
            work(scratch, 0..pixels, split(kernel, task, tasks));
        } else {
            work(scratch, bound(task)..bound(task + 1), 0..units);
        }
    });
    Ok(())
}

/// The units of task `task` of `tasks`: consecutive, disjoint, together all, about equal in cost.
fn split<K: StripKernel>(kernel: &K, task: usize, tasks: usize) -> Range<usize> {
    let units = kernel.units();
    let total = kernel.cost_before(units);
    let bound = |k: usize| {
        if k == 0 {
            return 0;
        }
        if k == tasks {
            return units;
        }
        let wanted = (total as u128 * k as u128 / tasks as u128) as usize;
        let (mut low, mut high) = (0, units);
        while low < high {
            let middle = low + (high - low) / 2;
            if kernel.cost_before(middle) < wanted { low = middle + 1 } else { high = middle }
        }
        low
    };
    bound(task)..bound(task + 1)
}

/// The image itself: `x[depth][pixels]`.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) pixels: usize,
}

impl StripSource for Image<'_> {
    fn fill(&self, isa: Isa, first: usize, pixels: usize, width: usize, strip: &mut [f32]) {
        match isa {
            // SAFETY (both): `isa` is available, as `forward` checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { fill_avx512(self, first, pixels, width, strip) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { fill_avx2(self, first, pixels, width, strip) },
            _ => fill(self, first, pixels, width, strip),
        }
    }

    fn in_place(&self, first: usize) -> Option<(&[f32], usize)> {
        // Whole registers to the end of each row, and rows that spread over the sets of the cache: distances of 8 lines and
        // their multiples would crowd the strip into an eighth of them.
        let lines = self.pixels / 16;
        (self.pixels.is_multiple_of(16) && !lines.is_multiple_of(8)).then(|| (&self.x[first..], self.pixels))
    }

    fn ahead(&self, first: usize, width: usize) -> Ahead {
        let rows = self.x.len() / self.pixels.max(1);
        let lines = width.min(self.pixels - first).div_ceil(16);
        Ahead { from: self.x.as_ptr().wrapping_add(first), stride: self.pixels, rows, lines }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw")]
fn fill_avx512(image: &Image<'_>, first: usize, pixels: usize, width: usize, strip: &mut [f32]) {
    fill(image, first, pixels, width, strip);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn fill_avx2(image: &Image<'_>, first: usize, pixels: usize, width: usize, strip: &mut [f32]) {
    fill(image, first, pixels, width, strip);
}

#[inline(always)]
fn fill(image: &Image<'_>, first: usize, pixels: usize, width: usize, strip: &mut [f32]) {
    if width == image.pixels {
        strip.copy_from_slice(image.x);
        return;
    }
    // Whole strips by the constant width, so that a row is a few moves and not a call.
    match (pixels == width, width) {
        (true, 16) => rows::<16>(image, first, strip),
        (true, 32) => rows::<32>(image, first, strip),
        (true, 48) => rows::<48>(image, first, strip),
        (true, 64) => rows::<64>(image, first, strip),
        _ => {
            for (line, row) in strip.chunks_exact_mut(width).zip(image.x.chunks_exact(image.pixels)) {
                line[..pixels].copy_from_slice(&row[first..first + pixels]);
                line[pixels..].fill(0.0);
            }
        }
    }
}

#[inline(always)]
fn rows<const WIDTH: usize>(image: &Image<'_>, first: usize, strip: &mut [f32]) {
    for (line, row) in strip.chunks_exact_mut(WIDTH).zip(image.x.chunks_exact(image.pixels)) {
        let mut moved = [0.0; WIDTH];
        moved.copy_from_slice(&row[first..first + WIDTH]);
        line.copy_from_slice(&moved);
    }
}
