//! An aligned, zero-filled buffer on huge pages.
//!
//! Weights are streamed front to back. Packed streams are read in full vectors, up to [`PAD_BYTES`] behind the last
//! value, so the buffer is padded by that many zero bytes. Buffers from 2 MiB on start at a multiple of 2 MiB and
//! ask the kernel for huge pages, which raised the read rate of one thread by 10–25 % on the machines measured, and the
//! speed of the bitmask kernel by about 15 %: its prefetches would miss the translation buffer. For that reason
//! the two arrays of a sparse weight share one buffer ([`Streams`]), so that only one tail is left on small pages; the tail
//! becomes a huge page too where that wastes no more than 1/64.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use bytemuck::Pod;

/// Readable zero bytes behind the last element.
pub(crate) const PAD_BYTES: usize = 256;
const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// A fixed-length array of plain values, 64-byte aligned and padded.
pub struct AlignedBuf<T: Pod> {
    ptr: NonNull<T>,
    len: usize,
    layout: Layout,
}

// SAFETY: the buffer owns its memory exclusively and hands out references by the usual borrow rules only, so it is
// as thread-safe as a `Vec<T>`; `T: Pod` is a plain value.
unsafe impl<T: Pod + Send> Send for AlignedBuf<T> {}
// SAFETY: as above; a shared reference only allows reads.
unsafe impl<T: Pod + Sync> Sync for AlignedBuf<T> {}

impl<T: Pod> Clone for AlignedBuf<T> {
    fn clone(&self) -> Self {
        Self::from_slice(self.as_slice())
    }
}

impl<T: Pod> AlignedBuf<T> {
    /// `len` zeros. Panics when the size overflows, aborts when memory is exhausted, like `vec![0; len]`.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|b| b.checked_add(PAD_BYTES));
        let bytes = bytes.expect("buffer size fits the address space, as its source was in memory");
        let rounded = bytes.next_multiple_of(HUGE_PAGE);
        let bytes = if rounded - bytes <= bytes / 64 { rounded } else { bytes };
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        let layout =
            Layout::from_size_align(bytes, align.max(align_of::<T>())).expect("size is below isize::MAX");
        // SAFETY: the layout has a non-zero size, because of the padding.
        let raw = unsafe { alloc(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        if align == HUGE_PAGE {
            advise_huge(ptr.as_ptr(), bytes);
        }
        // SAFETY: `raw` is valid for writes of `bytes` bytes, just allocated. The pages are first touched here,
        // after the advice, so that they can be huge from the start.
        unsafe { ptr.as_ptr().write_bytes(0, bytes) };
        Self { ptr: ptr.cast(), len, layout }
    }

    /// A copy of `source`.
    pub fn from_slice(source: &[T]) -> Self {
        let mut out = Self::zeroed(source.len());
        out.as_mut_slice().copy_from_slice(source);
        out
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `ptr` is aligned for `T` and valid for `len` elements, all initialised (zeroed or written through
        // `as_mut_slice`); the lifetime is tied to `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the reference unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Allocated bytes, padding included.
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }
}

/// Masks or selectors and the values they belong to, in one buffer.
#[derive(Debug, Clone)]
pub(crate) struct Streams<T> {
    words: AlignedBuf<u32>,
    heads: usize,
    values_at: usize,
    n_values: usize,
    value: PhantomData<T>,
}

impl<T: Pod> Streams<T> {
    /// `heads` words and `n_values` values, all zero. `None` when the size overflows.
    pub(crate) fn zeroed(heads: usize, n_values: usize) -> Option<Self> {
        // Values start on a cache line of their own, and end on a whole word.
        let values_at = heads.checked_next_multiple_of(CACHE_LINE / 4)?;
        let value_words = n_values.checked_mul(size_of::<T>())?.div_ceil(4);
        let all = values_at.checked_add(value_words)?;
        all.checked_mul(4).filter(|bytes| *bytes < isize::MAX as usize / 2)?;
        Some(Self { words: AlignedBuf::zeroed(all), heads, values_at, n_values, value: PhantomData })
    }

    /// The words.
    pub(crate) fn heads(&self) -> &[u32] {
        &self.words.as_slice()[..self.heads]
    }

    /// The values.
    pub(crate) fn values(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words.as_slice()[self.values_at..])[..self.n_values]
    }

    /// Both, to write.
    pub(crate) fn parts_mut(&mut self) -> (&mut [u32], &mut [T]) {
        let (heads, values) = self.words.as_mut_slice().split_at_mut(self.values_at);
        (&mut heads[..self.heads], &mut bytemuck::cast_slice_mut(values)[..self.n_values])
    }

    /// A part of the values, behind which at least [`PAD_BYTES`] bytes are readable. Panics when `range` leaves the values.
    pub(crate) fn padded(&self, range: Range<usize>) -> Padded<'_, T> {
        assert!(range.start <= range.end && range.end <= self.n_values, "the range lies in the values");
        // SAFETY: `values_at` words and then `start` values lie inside the buffer. The pointer is derived from that of
        // the allocation, so it may be used for the padding too.
        let ptr = unsafe { self.words.ptr.as_ptr().add(self.values_at).cast::<T>().add(range.start) };
        Padded { ptr, len: range.len(), buffer: PhantomData }
    }

    /// Allocated bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.words.bytes()
    }
}

/// A slice behind which at least [`PAD_BYTES`] more bytes are readable: more elements of its buffer or the zero padding.
/// Only [`Streams`] makes one.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "named by the sealed trait of kernels, not exported")]
pub struct Padded<'a, T> {
    ptr: *const T,
    len: usize,
    buffer: PhantomData<&'a [T]>,
}

impl<'a, T> Padded<'a, T> {
    /// The elements without what lies behind.
    pub(crate) fn slice(self) -> &'a [T] {
        // SAFETY: `Streams::padded` made the pointer from `len` initialised values of a buffer borrowed for `'a`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The first element; valid for reads of `len` elements and [`PAD_BYTES`] more bytes.
    pub(crate) fn ptr(self) -> *const T {
        self.ptr
    }
}

impl<T: Pod> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc` with this layout and is freed once.
        unsafe { dealloc(self.ptr.as_ptr().cast(), self.layout) };
    }
}

impl<T: Pod> fmt::Debug for AlignedBuf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("bytes", &self.bytes()).finish()
    }
}

/// Asks for huge pages; a refusal changes nothing but speed.
fn advise_huge(ptr: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the range was just allocated with 2 MiB alignment and belongs to us; this advice never changes
        // its content. Only whole huge pages inside the range are named, so no neighbour is touched.
        let _refused = unsafe {
            rustix::mm::madvise(ptr.cast(), bytes - bytes % HUGE_PAGE, rustix::mm::Advice::LinuxHugepage)
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (ptr, bytes);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn streams_share_one_buffer_without_overlap() {
        for (heads, n_values) in [(0, 0), (1, 3), (16, 5), (17, 64), (1 << 20, 3 << 19)] {
            let mut s = Streams::<half::bf16>::zeroed(heads, n_values).unwrap();
            let (h, v) = s.parts_mut();
            h.fill(u32::MAX);
            v.fill(half::bf16::ONE);
            assert!(s.heads().len() == heads && s.heads().iter().all(|w| *w == u32::MAX));
            assert!(s.values().len() == n_values && s.values().iter().all(|v| *v == half::bf16::ONE));
            assert_eq!(s.values().as_ptr() as usize % 64, 0);
            let data = heads * 4 + n_values * 2;
            assert!(s.bytes() <= data + data / 64 + PAD_BYTES + 64, "{} for {data}", s.bytes());
        }
        assert!(Streams::<f32>::zeroed(usize::MAX / 2, 1).is_none());
        assert!(Streams::<f32>::zeroed(1, usize::MAX / 3).is_none());
    }

    #[test]
    fn small_and_huge_buffers_are_aligned_zeroed_and_copied() {
        for len in [0, 1, 15, 1 << 21] {
            let mut b = AlignedBuf::<f32>::zeroed(len);
            assert_eq!(b.as_slice().as_ptr() as usize % 64, 0);
            assert!(b.as_slice().len() == len && b.as_slice().iter().all(|v| v.to_bits() == 0));
            assert!(b.bytes() >= len * 4 + PAD_BYTES);
            if let Some(last) = b.as_mut_slice().last_mut() {
                *last = 3.0;
                assert_eq!(AlignedBuf::from_slice(b.as_slice()).as_slice()[len - 1], 3.0);
            }
        }
    }
}
