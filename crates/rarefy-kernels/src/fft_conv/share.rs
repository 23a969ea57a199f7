//! Checks, scratch and threads, common to all convolutions of this module.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::error::{at_least, length, product};
use crate::{Isa, KernelError};

/// Real elements below which a thread is not worth waking (about 20 µs of work).
const MIN_ELEMENTS_PER_THREAD: usize = 1 << 14;

/// Elements by which a slice may start before a cache line.
pub(super) const SLACK: usize = 16;

/// `scratch` from its first full cache line on. The result never depends on where that is.
pub(super) fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(64).min(SLACK).min(scratch.len());
    &mut scratch[skip..]
}

/// Runs `f` on consecutive, disjoint ranges that make up `0..units`, on as many threads as the pool, the work and `scratch` (`per`
/// elements each) allow.
pub(super) fn share(
    units: usize,
    elements_per_unit: usize,
    per: usize,
    scratch: &mut [f32],
    f: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if elements_per_unit == 0 {
        // Any number of empty rows: nothing to do for any of them.
        return;
    }
    let work = units.saturating_mul(elements_per_unit) / MIN_ELEMENTS_PER_THREAD;
    let fits = scratch.len() / per.max(1);
    let tasks = rayon::current_num_threads().min(work).min(fits).min(units);
    if tasks <= 1 {
        return f(0..units, scratch);
    }
    // Up to 2^64 units times threads: in 128 bits.
    let bound = |t: usize| (units as u128 * t as u128 / tasks as u128) as usize;
    let parts = scratch[..tasks * per].par_chunks_exact_mut(per).with_max_len(1).enumerate();
    parts.for_each(|(t, scratch)| f(bound(t)..bound(t + 1), scratch));
}

/// A slice of which tasks write disjoint parts.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` cut into parts; `part` demands that they are disjoint.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(all: &'a mut [f32]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), borrowed: PhantomData }
    }

    /// Elements `start..start + len`. Panics outside the slice.
    ///
    /// # Safety
    /// No other part that overlaps is alive.
    #[allow(clippy::mut_from_ref, reason = "disjoint parts, as promised by the caller")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "the sizes were checked at the door");
        // SAFETY: within the slice, which is borrowed mutably for `'a`; disjoint by the promise of the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Checks a call of a convolution: the path, the arrays as long as the batch, the gates, and scratch for one thread.
pub(super) fn check(
    kernel: &'static str,
    isa: Isa,
    [batch, heads, len]: [usize; 3],
    arrays: &[(&'static str, usize)],
    gates: Gates<'_>,
    (per, scratch): (usize, usize),
) -> Result<(), KernelError> {
    isa.require()?;
    let all = product(kernel, product(kernel, batch, heads)?, len)?;
    arrays.iter().try_for_each(|&(array, found)| length(kernel, array, all, found))?;
    gates.check(kernel, all)?;
    at_least(kernel, "scratch", per, scratch)
}

/// Elementwise factors before and after a convolution, each as long as its input; absent ones are all ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gates<'a> {
    /// Multiplied into `u`.
    pub input: Option<&'a [f32]>,
    /// Multiplied into the result.
    pub output: Option<&'a [f32]>,
}

impl<'a> Gates<'a> {
    pub(super) fn check(&self, kernel: &'static str, expected: usize) -> Result<(), KernelError> {
        self.input.map_or(Ok(()), |g| length(kernel, "input gate", expected, g.len()))?;
        self.output.map_or(Ok(()), |g| length(kernel, "output gate", expected, g.len()))
    }
    /// The gates of one row; empty when absent.
    pub(super) fn input(&self, start: usize, len: usize) -> &'a [f32] {
        self.input.map_or(&[], |g| &g[start..start + len])
    }
    pub(super) fn output(&self, start: usize, len: usize) -> &'a [f32] {
        self.output.map_or(&[], |g| &g[start..start + len])
    }
}

/// Cuts at `at`, or leaves the second part empty.
pub(super) fn halves(s: &[f32], at: usize) -> (&[f32], &[f32]) {
    s.split_at(at.min(s.len()))
}

/// Cuts at `at`, or leaves the second part empty.
pub(super) fn halves_mut(s: &mut [f32], at: usize) -> (&mut [f32], &mut [f32]) {
    s.split_at_mut(at.min(s.len()))
}
