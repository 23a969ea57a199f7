//! The inner loops with AVX2 and AVX-512. Steps and packed activations are laid out as the head of the module says.

use std::arch::x86_64::*;

use super::{GATHERED, HEIGHT, MAX_TOKENS, Sums, step_bytes};
use crate::registers::Register;

/// Bytes between a load and its prefetch.
const AHEAD: usize = 4096;

/// A column index as it is stored.
trait Index: Copy {
    /// The index of row `i` of the step whose indices are at `p`.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn at(p: *const u8, i: usize) -> usize;
}
impl Index for u16 {
    #[inline(always)]
    unsafe fn at(p: *const u8, i: usize) -> usize {
        // SAFETY: the caller's promise.
        usize::from(unsafe { p.cast::<u16>().add(i).read_unaligned() })
    }
}
impl Index for u32 {
    #[inline(always)]
    unsafe fn at(p: *const u8, i: usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<u32>().add(i).read_unaligned() as usize }
    }
}

#[inline(always)]
fn ahead(p: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        crate::lanes::prefetch(p.wrapping_add(AHEAD + line));
    }
}

/// Eight or sixteen tokens side by side: `ROWS` rows from `first` on, their sums in as many registers.
///
/// # Safety
/// The instructions of `R`; columns below `x.len() / R::N`.
#[inline(always)]
unsafe fn tokens<R: Register, I: Index, const ROWS: usize>(
    steps: &[u8],
    x: &[f32],
    first: usize,
    sums: &mut Sums,
) {
    // SAFETY: each step has sixteen values and sixteen indices, of columns that `x` has `R::N` tokens of.
    unsafe {
        let mut acc = [R::zero(); ROWS];
        let size = 64 + HEIGHT * size_of::<I>();
        for step in steps.chunks_exact(size) {
            let (values, columns) = (step.as_ptr(), step.as_ptr().add(64));
            ahead(values, size);
            for (i, acc) in acc.iter_mut().enumerate() {
                let column = I::at(columns, first + i);
                let line = R::load(x.as_ptr().add(column * R::N));
                *acc = line.fma(R::splat(values.cast::<f32>().add(first + i)), *acc);
            }
        }
        for (acc, sums) in acc.into_iter().zip(&mut sums[first..]) {
            acc.store_first(sums.as_mut_ptr(), R::N);
        }
    }
}

/// Dispatches on the width of the indices.
macro_rules! indexed {
    ($wide:expr, $f:ident::<$r:ty, $rows:literal>($($arg:expr),*)) => {
        if $wide { $f::<$r, u32, $rows>($($arg),*) } else { $f::<$r, u16, $rows>($($arg),*) }
    };
}

/// # Safety
/// AVX-512 F and VL, AVX2, FMA; `steps` whole, with columns below `width`; `x` packed for `n` tokens of `width` columns.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
pub(super) unsafe fn avx512(steps: &[u8], wide: bool, x: &[f32], n: usize, width: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        match n {
            1 => gather512::<1>(steps, wide, x, width, sums),
            2 => gather512::<2>(steps, wide, x, width, sums),
            GATHERED => gather512::<3>(steps, wide, x, width, sums),
            4..=8 => indexed!(wide, tokens::<__m256, 16>(steps, x, 0, sums)),
            _ => indexed!(wide, tokens::<__m512, 16>(steps, x, 0, sums)),
        }
    }
}

/// # Safety
/// As [`avx512`], with AVX2 and FMA; at most eight tokens.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(steps: &[u8], wide: bool, x: &[f32], n: usize, width: usize, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        match n {
            1 => gather256::<1>(steps, wide, x, width, sums),
            2 => gather256::<2>(steps, wide, x, width, sums),
            GATHERED => gather256::<3>(steps, wide, x, width, sums),
            4..=8 => {
                // Half of the registers: two passes over a slice that is in the cache the second time.
                indexed!(wide, tokens::<__m256, 8>(steps, x, 0, sums));
                indexed!(wide, tokens::<__m256, 8>(steps, x, 8, sums));
            }
            n => unreachable!("an AVX2 pass has 1 to 8 tokens, got {n}"),
        }
    }
}

/// # Safety
/// AVX-512 F; see [`avx512`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn gather512<const N: usize>(steps: &[u8], wide: bool, x: &[f32], width: usize, sums: &mut Sums) {
    let mut acc = [_mm512_setzero_ps(); N];
    let size = step_bytes(wide);
    for step in steps.chunks_exact(size) {
        let p = step.as_ptr();
        ahead(p, size);
        // SAFETY: a step has sixteen values and sixteen indices below `width`, and each of the `N` lines of `x` has `width` elements.
        unsafe {
            let values = _mm512_loadu_ps(p.cast());
            let columns = if wide {
                _mm512_loadu_si512(p.add(64).cast())
            } else {
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(64).cast()))
            };
            for (t, acc) in acc.iter_mut().enumerate() {
                let line = x.as_ptr().add(t * width);
                *acc = _mm512_fmadd_ps(values, _mm512_i32gather_ps::<4>(columns, line), *acc);
            }
        }
    }
    for (t, acc) in acc.into_iter().enumerate() {
        let mut all = [0.0f32; HEIGHT];
        // SAFETY: `all` has sixteen elements.
        unsafe { _mm512_storeu_ps(all.as_mut_ptr(), acc) };
        spread(&all, t, sums);
    }
}

/// # Safety
/// AVX2 and FMA; see [`avx512`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn gather256<const N: usize>(steps: &[u8], wide: bool, x: &[f32], width: usize, sums: &mut Sums) {
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    let size = step_bytes(wide);
    for step in steps.chunks_exact(size) {
        let p = step.as_ptr();
        ahead(p, size);
        for half in 0..2 {
            // SAFETY: as in `gather512`, eight rows at a time.
            unsafe {
                let values = _mm256_loadu_ps(p.add(32 * half).cast());
                let columns = if wide {
                    _mm256_loadu_si256(p.add(64 + 32 * half).cast())
                } else {
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(64 + 16 * half).cast()))
                };
                for (t, acc) in acc.iter_mut().enumerate() {
                    let line = x.as_ptr().add(t * width);
                    acc[half] = _mm256_fmadd_ps(values, _mm256_i32gather_ps::<4>(line, columns), acc[half]);
                }
            }
        }
    }
    for (t, acc) in acc.into_iter().enumerate() {
        let mut all = [0.0f32; HEIGHT];
        // SAFETY: `all` has sixteen elements.
        unsafe {
            _mm256_storeu_ps(all.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(all.as_mut_ptr().add(8), acc[1]);
        }
        spread(&all, t, sums);
    }
}

/// Sixteen rows of token `t`.
#[inline]
fn spread(all: &[f32; HEIGHT], t: usize, sums: &mut Sums) {
    debug_assert!(t < MAX_TOKENS);
    for (v, sums) in all.iter().zip(sums) {
        sums[t] = *v;
    }
}
