//! A vector register as a type, so that AVX2 and AVX-512 share the text of a loop.
//!
//! The methods are inlined into functions that enable the instruction set; called from elsewhere they would be undefined
//! behaviour on a CPU that lacks it, hence `unsafe`.

use std::arch::x86_64::*;

/// `N` lanes of f32.
pub(crate) trait Register: Copy {
    const N: usize;
    /// All lanes zero.
    ///
    /// # Safety
    /// The CPU has the instruction set; so for every method here.
    unsafe fn zero() -> Self;
    /// All lanes `*p`.
    ///
    /// # Safety
    /// `p` is readable.
    unsafe fn splat(p: *const f32) -> Self;
    /// `N` lanes from `p`, of any alignment.
    ///
    /// # Safety
    /// `N` elements from `p` are readable.
    unsafe fn load(p: *const f32) -> Self;
    /// Writes the first `n <= N` lanes to `p`; nothing behind them is touched.
    ///
    /// # Safety
    /// `n` elements from `p` are writable.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    /// `self * b + c`, rounded once.
    ///
    /// # Safety
    /// See [`Register::zero`].
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// `min(max(self, low), high)`; a NaN in `self` stays.
    ///
    /// # Safety
    /// See [`Register::zero`].
    unsafe fn clamp(self, low: Self, high: Self) -> Self;
}

// SAFETY (both implementations): each block holds intrinsics of the instruction set that the caller promises, on memory
// that the caller promises; masked operations touch no lane outside the mask.
impl Register for __m512 {
    const N: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self {
        unsafe { _mm512_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, self) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        // The instruction returns its second operand when one is NaN, and when both are zero.
        unsafe { _mm512_min_ps(high, _mm512_max_ps(low, self)) }
    }
}

impl Register for __m256 {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self {
        unsafe { _mm256_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe {
            if n >= 8 { _mm256_storeu_ps(p, self) } else { _mm256_maskstore_ps(p, first_lanes(n), self) }
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn clamp(self, low: Self, high: Self) -> Self {
        // As above.
        unsafe { _mm256_min_ps(high, _mm256_max_ps(low, self)) }
    }
}

/// A mask of the first `n` of eight lanes.
#[inline(always)]
unsafe fn first_lanes(n: usize) -> __m256i {
    // SAFETY: the caller of the methods above promises AVX2.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }
}
